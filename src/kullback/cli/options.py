"""The options that commands share, as dataclasses that cyclopts lays out; no torch here.

Defaults come from the library's own settings, so they are written once.
"""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from kullback.core import require
from kullback.vae.architecture import Architecture
from kullback.vae.training import Training

from .numerals import Real, Whole

__all__ = ["DataOptions", "ModelOptions", "TrainingOptions"]

ARCHITECTURE, TRAINING = Architecture(), Training()


def _help(text: str) -> Parameter:
    return Parameter(help=text, negative="")


@dataclass(kw_only=True)
class DataOptions:
    """How to read the data."""

    size: Annotated[
        str | None, _help("Bring images to this size: 64, or 48x64 (height x width).")
    ] = None
    fit: Annotated[
        str, _help("How: crop (cover, cut the rest) or pad (fit inside, add a border).")
    ] = "crop"
    channels: Annotated[str, _help("auto, grey or rgb.")] = "auto"
    binarize: Annotated[str, _help("none, static (once) or dynamic (afresh every epoch).")] = "none"
    levels: Annotated[
        str, _help("auto (found in the values), none (a density), or quantise to so many: 256.")
    ] = "auto"
    test_fraction: Annotated[Real, _help("Share kept for testing when the data have no split.")] = (
        0.1
    )

    def parsed_levels(self) -> int | str:
        """Return --levels as the library takes it."""
        return int(self.levels) if self.levels.isdigit() else self.levels

    def parsed_size(self) -> int | tuple[int, int] | None:
        """Return --size as the library takes it."""
        if self.size is None:
            return None
        parts = self.size.lower().split("x")
        good = len(parts) <= 2 and all(part.isdigit() and int(part) > 0 for part in parts)
        require(good, "--size", "64 or 48x64", repr(self.size))
        sizes = [int(part) for part in parts]
        return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


@dataclass(kw_only=True)
class ModelOptions:
    """What to train."""

    network: Annotated[str, _help("auto, mlp or conv.")] = ARCHITECTURE.network
    hidden: Annotated[
        str, _help("Widths such as 200,200 (conv: 32,32,32,256); default: usual.")
    ] = ""
    latent: Annotated[Whole, _help("Dimensions of z.")] = ARCHITECTURE.latent
    activation: Annotated[str, _help("silu, tanh or relu (mlp only).")] = ARCHITECTURE.activation
    likelihood: Annotated[str, _help("auto, bernoulli, logistics, categorical or gaussian.")] = (
        "auto"
    )
    components: Annotated[Whole, _help("Components of the mixture of logistics.")] = (
        ARCHITECTURE.components
    )

    def architecture(self) -> Architecture:
        """Return the library's settings; a ValueError says which option is wrong."""
        parts = self.hidden.split(",") if self.hidden else []
        good = all(part.strip().isdigit() for part in parts)
        require(good, "--hidden", "widths such as 200,200", repr(self.hidden))
        return Architecture(
            network=self.network,
            hidden=tuple(int(part) for part in parts),
            latent=self.latent,
            activation=self.activation,
            likelihood=self.likelihood,
            components=self.components,
        )


@dataclass(kw_only=True)
class TrainingOptions:
    """How to train it."""

    minutes: Annotated[Real | None, _help("Train for so long (default: 2).")] = None
    epochs: Annotated[Real | None, _help("Or for so many passes over the data.")] = None
    steps: Annotated[Whole | None, _help("Or for so many steps.")] = None
    objective: Annotated[str, _help("elbo or iwae.")] = TRAINING.objective
    draws: Annotated[Whole, _help("Draws of q(z|x) per image and step.")] = TRAINING.draws
    tighten: Annotated[Real, _help("Last share of the run on the tighter bound.")] = 0.0
    beta: Annotated[Real, _help("Weight of the KL; only 1 is the ELBO.")] = TRAINING.beta
    warmup: Annotated[Real, _help("First share of the run over which beta rises from 0.")] = (
        TRAINING.warmup
    )
    free_bits: Annotated[Real, _help("Nats per latent dimension left uncharged.")] = (
        TRAINING.free_bits
    )
    batch_size: Annotated[Whole, _help("Images per step.")] = TRAINING.batch_size
    learning_rate: Annotated[Real, _help("The peak of its schedule.")] = TRAINING.learning_rate
    weight_decay: Annotated[Real, _help("AdamW's.")] = TRAINING.weight_decay
    clip: Annotated[Real, _help("Largest gradient norm.")] = TRAINING.clip
    precision: Annotated[str, _help("auto, float32 or bfloat16 (of the matrix products).")] = (
        TRAINING.precision
    )
    seed: Annotated[Whole, _help("Of everything random: weights, order, bits, noise.")] = (
        TRAINING.seed
    )

    def training(self) -> Training:
        """Return the library's settings; a ValueError says which option is wrong."""
        return Training(**vars(self))
