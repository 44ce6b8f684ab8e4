"""The arguments and options of `entropy`, `cross-entropy`, `kl` and `js`; no torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from kullback.core import require

__all__ = ["MeasureOptions", "Options", "P", "Q"]

FORMS = "0.5,0.25,0.25, a .csv, .json or .npy file, or a name such as normal(0,1)."

P = Annotated[str, Parameter(help=f"The truth: {FORMS}")]
Q = Annotated[str, Parameter(help="The belief, in the same form.")]


@dataclass(kw_only=True)
class MeasureOptions:
    """How to measure and how to show it."""

    unit: Annotated[Literal["nats", "bits"], Parameter(help="nats or bits.")] = "nats"
    normalise: Annotated[
        bool, Parameter(help="Divide tables and weights by their sum.", negative="")
    ] = False
    draws: Annotated[int, Parameter(help="How many, where there is no exact way.")] = 10_000
    seed: Annotated[int, Parameter(help="Of the draws.")] = 0
    explain: Annotated[
        bool, Parameter(help="Write out formula, numbers and what they mean.", negative="")
    ] = False
    plot: Annotated[Path | None, Parameter(help="Draw it to this .svg file.")] = None
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False

    def check(self) -> None:
        """Raise a ValueError that says which option is wrong, if one is."""
        require(self.draws >= 4, "--draws", "at least 4", self.draws)
        require(0 <= self.seed < 2**63, "--seed", "an integer from 0 to 2^63 - 1", self.seed)
        if self.plot is not None:
            svg = self.plot.suffix.lower() == ".svg"
            require(svg, "--plot", "a .svg file", str(self.plot))
            new = self.force or not self.plot.exists()
            require(new, "--plot", "a file that does not exist", str(self.plot), "--force")


Options = Annotated[MeasureOptions | None, Parameter(name="*")]
