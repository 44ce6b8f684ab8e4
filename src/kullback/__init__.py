"""The Kullback-Leibler divergence, measured, minimised and paid.

`kl(p, q)` is exact where it can be, sampled where not, and says which; `fit(log_density)` finds a
q(z) and says how far to trust it. `exact` and `sampled` hold the numbers without and with an error
bar, `tokens` next-token distributions over a whole vocabulary, losses on them and the audit of a
loss, `variational` fits and their objectives, `data` reads data sets, `vae` trains and evaluates
variational autoencoders, `report` shows what came of it, `core` has the `Estimate` that every
sampled number is. Everything loads on first use: `import kullback`
imports no torch.
"""

from typing import TYPE_CHECKING

from kullback.core import __version__
from kullback.core.lazy import lazy
from kullback.core.moved import install

if TYPE_CHECKING:
    from . import core, data, exact, report, sampled, tokens, vae, variational
    from .core import Estimate, KullbackError
    from .sampled.divergences import kl
    from .variational import Fit, fit

__all__ = [
    "Estimate",
    "Fit",
    "KullbackError",
    "__version__",
    "core",
    "data",
    "exact",
    "fit",
    "kl",
    "report",
    "sampled",
    "tokens",
    "vae",
    "variational",
]

_FOLDERS = ("core", "data", "exact", "report", "sampled", "tokens", "vae", "variational")

install()

__getattr__, __dir__ = lazy(
    "kullback",
    {
        "Estimate": "kullback.core",
        "KullbackError": "kullback.core",
        "kl": "kullback.sampled.divergences",
        "Fit": "kullback.variational",
        "fit": "kullback.variational",
    }
    | {name: f"kullback.{name}" for name in _FOLDERS},
)
