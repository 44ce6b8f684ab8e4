"""Floor 4, vae: variational autoencoders, trained, evaluated and used.

`train` is the way in; `VAE.load` the way back to what it left; `build` and `VAE` for models of
your own; `evaluate` for figures with error bars. Loads on first use.

What a model is: `architecture` (names only), `networks`, `likelihoods`, `priors` (q(z|x) too),
`model`. How it is trained: `training` (settings and schedules), `loop` (the loop, its logs and
warnings), `elbo_step` and `step.c` (the gradient by hand), `checkpoint`, `run` (the run folder, the
device). How good it is: `evidence` (bounds image by image), `evaluation` (means with error bars,
active units, collapse). `limits`: the thresholds.
"""

from typing import TYPE_CHECKING

from kullback.core import lazy

if TYPE_CHECKING:
    from . import limits
    from .architecture import Architecture, choose
    from .elbo_step import compiled_state
    from .evaluation import Evaluation, evaluate
    from .loop import Progress
    from .model import VAE, build
    from .run import (
        Outcome,
        matmul_gflops,
        pick_device,
        pick_precision,
        pick_threads,
        resume,
        train,
    )
    from .training import Training

__all__ = [
    "VAE",
    "Architecture",
    "Evaluation",
    "Outcome",
    "Progress",
    "Training",
    "architecture",
    "build",
    "choose",
    "compiled_state",
    "evaluate",
    "limits",
    "matmul_gflops",
    "pick_device",
    "pick_precision",
    "pick_threads",
    "resume",
    "train",
]

_HOME = {
    "VAE": "model",
    "Architecture": "architecture",
    "Evaluation": "evaluation",
    "Outcome": "run",
    "Progress": "loop",
    "Training": "training",
    "build": "model",
    "choose": "architecture",
    "compiled_state": "elbo_step",
    "evaluate": "evaluation",
    "limits": "limits",
    "matmul_gflops": "run",
    "pick_device": "run",
    "pick_precision": "run",
    "pick_threads": "run",
    "resume": "run",
    "train": "run",
}
__getattr__, __dir__ = lazy(
    "kullback.vae", {name: f"kullback.vae.{home}" for name, home in _HOME.items()}
)
