"""The Kullback-Leibler divergence, measured, minimised and paid.

`data` reads data sets, `vae` trains and evaluates variational autoencoders, `report` shows what
came of it, `sampled` and `variational` hold the estimators and objectives, `core` the `Estimate`
that every sampled number is. Everything loads on first use: `import kullback` imports no torch.
"""

from typing import TYPE_CHECKING

from kullback.core import __version__
from kullback.core.lazy import lazy

if TYPE_CHECKING:
    from . import core, data, exact, report, sampled, vae, variational
    from .core import Estimate, KullbackError

__all__ = [
    "Estimate",
    "KullbackError",
    "__version__",
    "core",
    "data",
    "exact",
    "report",
    "sampled",
    "vae",
    "variational",
]

_FOLDERS = ("core", "data", "exact", "report", "sampled", "vae", "variational")

__getattr__, __dir__ = lazy(
    "kullback",
    {"Estimate": "kullback.core", "KullbackError": "kullback.core"}
    | {name: f"kullback.{name}" for name in _FOLDERS},
)
