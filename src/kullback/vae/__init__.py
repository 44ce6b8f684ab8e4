"""Floor 4, vae: variational autoencoders, trained, evaluated and used.

`train` is the way in; `VAE.load` the way back to what it left; `build` and `VAE` for models of
your own; `evaluate` for figures with error bars. Loads on first use.
"""

from typing import TYPE_CHECKING

from kullback.core.lazy import lazy

if TYPE_CHECKING:
    from . import limits
    from .architecture import Architecture
    from .evaluation import Evaluation, evaluate
    from .model import VAE, build
    from .run import Outcome, resume, train
    from .training import Training

__all__ = [
    "VAE",
    "Architecture",
    "Evaluation",
    "Outcome",
    "Training",
    "build",
    "evaluate",
    "limits",
    "resume",
    "train",
]

__getattr__, __dir__ = lazy(
    "kullback.vae",
    {
        "VAE": "kullback.vae.model",
        "Architecture": "kullback.vae.architecture",
        "Evaluation": "kullback.vae.evaluation",
        "Outcome": "kullback.vae.run",
        "Training": "kullback.vae.training",
        "build": "kullback.vae.model",
        "evaluate": "kullback.vae.evaluation",
        "limits": "kullback.vae.limits",
        "resume": "kullback.vae.run",
        "train": "kullback.vae.run",
    },
)
