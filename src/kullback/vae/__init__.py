"""Floor 4, vae: variational autoencoders, trained, evaluated and used.

`train` is the way in; `VAE.load` the way back to what it left; `build` and `VAE` for models of
your own; `evaluate` for figures with error bars. Loads on first use.
"""

from typing import TYPE_CHECKING

from kullback.core.lazy import lazy

if TYPE_CHECKING:
    from . import architecture, device, limits, monitor
    from .architecture import Architecture
    from .evaluation import Evaluation, evaluate
    from .fast.native_step import compiled_state
    from .model import VAE, build
    from .run import Outcome, resume, train
    from .training import Training

__all__ = [
    "VAE",
    "Architecture",
    "Evaluation",
    "Outcome",
    "Training",
    "architecture",
    "build",
    "compiled_state",
    "device",
    "evaluate",
    "limits",
    "monitor",
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
        "architecture": "kullback.vae.architecture",
        "build": "kullback.vae.model",
        "compiled_state": "kullback.vae.fast.native_step",
        "device": "kullback.vae.device",
        "evaluate": "kullback.vae.evaluation",
        "limits": "kullback.vae.limits",
        "monitor": "kullback.vae.monitor",
        "resume": "kullback.vae.run",
        "train": "kullback.vae.run",
    },
)
