"""The Kullback-Leibler divergence, measured, minimised and paid.

`kl(p, q)`, `js`, `entropy` and their kin take tables, distributions and text; the `Measured` result
is exact where it can be, sampled where not, and says which. `kl_from_log_probs` and `kl_from_draws`
take what was sampled. `fit(log_density)` finds a q(z) and says how far to trust it. `measure` holds
these functions, `exact` and `sampled` the numbers without and with an error bar, `tokens`
next-token distributions over a whole vocabulary, losses on them and the audit of a loss,
`variational` fits and their objectives, `data` reads data sets, `vae` trains and evaluates
variational autoencoders, `report` shows what came of it, `core` has the `Estimate` that every
sampled number is. Everything loads on first use: `import kullback` imports no torch.
"""

from typing import TYPE_CHECKING

from kullback.core import __version__, install, lazy

if TYPE_CHECKING:
    from . import core, data, exact, measure, report, sampled, tokens, vae, variational
    from .core import Estimate, KullbackError
    from .measure import (
        cross_entropy,
        entropy,
        jeffreys,
        js,
        kl,
        kl_from_draws,
        kl_from_log_probs,
        mutual_information,
        renyi,
    )
    from .sampled import Measured
    from .variational import Fit, fit

__all__ = [
    "Estimate",
    "Fit",
    "KullbackError",
    "Measured",
    "__version__",
    "core",
    "cross_entropy",
    "data",
    "entropy",
    "exact",
    "fit",
    "jeffreys",
    "js",
    "kl",
    "kl_from_draws",
    "kl_from_log_probs",
    "measure",
    "mutual_information",
    "renyi",
    "report",
    "sampled",
    "tokens",
    "vae",
    "variational",
]

_FOLDERS = ("core", "data", "exact", "measure", "report", "sampled", "tokens", "vae", "variational")
_FRONT = (
    "cross_entropy",
    "entropy",
    "jeffreys",
    "js",
    "kl",
    "kl_from_draws",
    "kl_from_log_probs",
    "mutual_information",
    "renyi",
)

install()

__getattr__, __dir__ = lazy(
    "kullback",
    {
        "Estimate": "kullback.core",
        "KullbackError": "kullback.core",
        "Measured": "kullback.sampled",
        "Fit": "kullback.variational",
        "fit": "kullback.variational",
    }
    | dict.fromkeys(_FRONT, "kullback.measure")
    | {name: f"kullback.{name}" for name in _FOLDERS},
)
