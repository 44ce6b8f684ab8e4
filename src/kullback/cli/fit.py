"""`kullback fit`: q(z) to the log density in a file, and whether to believe it."""

from typing import Annotated

from cyclopts import Parameter

from .options import FitOptions
from .session import prepare

__all__ = ["fit"]


def fit(
    target: Annotated[str, Parameter(help="file.py:log_density, the file's function.")],
    /,
    *,
    options: Annotated[FitOptions | None, Parameter(name="*")] = None,
) -> None:
    """Fit q(z) to an unnormalised log density and say how far it can be trusted.

    The file is run as Python. Its function takes one point z (a vector) or the parameters by name,
    computes with torch, and returns the log density up to a constant; `parameters` beside it is the
    dimension of z, or a mapping of names to shapes and constraints.
    """
    prepare()
    options = options or FitOptions()
    options.check()
    from .fitting import fit_both, fit_one
    from .user_files import read_target

    found = read_target(target, dim=options.dim)
    (fit_both if options.direction == "both" else fit_one)(found, options)
