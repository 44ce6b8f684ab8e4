"""Floor 4, vae: variational autoencoders, trained, evaluated and used."""

from .architecture import Architecture
from .model import VAE, build

__all__ = ["VAE", "Architecture", "build"]
