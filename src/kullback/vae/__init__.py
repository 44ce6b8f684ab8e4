"""Floor 4, vae: variational autoencoders, trained, evaluated and used."""

from .architecture import Architecture
from .evaluate import Evaluation, evaluate
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
    "resume",
    "train",
]
