"""`VAE`, a model with its figures, samples and files; and `build`, which makes one for data."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from kullback.core import RunError, make_folder, require_count

from ..architecture import Architecture, Spec
from ..evidence import bounds
from ..latents import StandardNormal
from ..limits import UNIT_SCALE_LEVELS
from ..state import load_tensors, save_tensors
from ..state.checkpoint import (
    averaged_weights,
    is_hashed,
    read_config,
    refuse_to_overwrite,
    write_config,
)
from .components import Statistics, components_of, put_prior
from .composed import Composed
from .own_modules import names_own_parts
from .own_parts import Parts, fitted_with, require_own

__all__ = ["VAE", "build"]


class VAE(Composed):
    """A latent-variable model `p(x) = ∫ p(x|z) p(z) dz` with an approximate posterior q(z|x).

    Everywhere x is `[batch, *event]` in the data's own units: 0/1, levels 0 … K − 1, or continuous.
    What it is composed of, and the terms of its objectives: `Composed`, whose arguments it takes.

    Example:
        >>> model = build((1, 4, 4), "binary", Architecture(hidden=(8,), latent=2))
        >>> model.encode(torch.zeros(3, 1, 4, 4))[0].shape
        torch.Size([3, 2])
    """

    @classmethod
    def of(cls, spec: Spec, known: Statistics, examples: Tensor | None = None) -> Self:
        """Return the model of a description with fresh weights; see `build`.

        Args:
            spec: Whose architecture is resolved here.
            known: Of the training data.
            examples: As in `build`.

        Returns:
            The model.
        """
        resolved = spec.architecture.resolved(spec.event_shape, spec.kind)
        inside = known.spread is not None and spec.kind == "continuous"
        spec = replace(spec, architecture=resolved, standardised=inside)
        made = components_of(spec, known)
        model = cls(
            made.encoder,
            made.decoder,
            made.likelihood,
            StandardNormal(resolved.latent),
            shift=made.shift,
            scale=made.scale,
            spec=spec,
            family=made.family,
        )
        if spec.labels and spec.kind != "sound":
            model.label_inputs = nn.Parameter(torch.zeros(len(spec.labels), *spec.event_shape))
        put_prior(model, examples)
        return model

    def elbo(
        self, x: Tensor, *, draws: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return `E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))`, `[batch]`, in nats; higher is better.

        The expectation is a mean of `draws` draws, the KL is exact (MATH 2.3) where the prior has a
        formula, else an average over the same draws. A lower bound on log p(x) in expectation.

        Args:
            x: `[batch, *event]`, checked.
            draws: Of q(z|x) per x.
            generator: Source of the draws; by default one with seed 0.

        Returns:
            `[batch]`, without a graph.

        Raises:
            ArgumentValueError: x does not fit the model.
        """
        generator = generator or torch.Generator(self.scale.device).manual_seed(0)
        return bounds(self, self.check(x), draws=draws, generator=generator).elbo

    def log_likelihood(
        self, x: Tensor, *, draws: int = 1000, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the importance-weighted bound L_K on log p(x), `[batch]`, in nats (MATH 2.5).

        A lower bound in expectation that rises with `draws`.

        Args:
            x: `[batch, *event]`, checked.
            draws: K, of q(z|x) per x.
            generator: Source of the draws; by default one with seed 0.

        Returns:
            `[batch]`, without a graph.

        Raises:
            ArgumentValueError: x does not fit the model.
        """
        generator = generator or torch.Generator(self.scale.device).manual_seed(0)
        return bounds(self, self.check(x), draws=draws, generator=generator).importance_weighted

    @names_own_parts
    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator | None = None, noise: bool = True
    ) -> Tensor:
        """Draw n x's: z ~ p(z), then x ~ p(x|z), or its mean when `noise=False`.

        Args:
            n: How many.
            generator: Source of the draws; by default one with seed 0.
            noise: Whether x is drawn, or its mean given z is returned.

        Returns:
            `[n, *event]` in the data's units.

        Raises:
            ArgumentTypeError: n is no integer.
            ArgumentValueError: n is below 1.
        """
        generator = generator or torch.Generator(self.scale.device).manual_seed(0)
        parameters = self.parameters_of(self.prior.sample(require_count(n, "n"), generator))
        if noise:
            return self.likelihood.sample(parameters, generator)
        return self.likelihood.mean(parameters)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` (the description) and `model.safetensors` (the weights).

        Args:
            folder: Where to; made if need be.

        Raises:
            RunError: The parts are your own (save `state_dict()` yourself then), the folder holds a
                model already, or the system refuses.
        """
        if self.spec is None:
            raise RunError("this VAE was composed by hand: only models from `build` can be saved")
        folder = Path(folder)
        refuse_to_overwrite(folder / "config.json")
        make_folder(folder)
        save_tensors(folder / "model.safetensors", self.state_dict())
        write_config(folder, {"model": self.spec.to_dict()})

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        parts: Parts | None = None,
    ) -> "VAE":
        """Read a model from a run directory; nothing is unpickled, no code in it is run.

        Of a run that is not finished, the averaged weights of its last checkpoint are read; a
        warning says so, and the model's `unfinished` holds the same sentence.

        Args:
            folder: What `save` or `train` wrote.
            device: Where the weights go.
            parts: For a run of modules of your own: the same ones, into which the weights go.

        Returns:
            The model, in evaluation mode.

        Raises:
            RunError: A file is missing, damaged, changed (its hash differs), or does not match its
                description; or the run has parts of your own and they are not given.
        """
        folder = Path(folder)
        config = read_config(folder, "model")
        spec = Spec.from_dict(config["model"], source=str(folder / "config.json"))
        require_own(folder, spec, parts)
        with torch.device("meta"):
            units = torch.ones(spec.event_shape) if _has_units(spec) else None
            model = cls.of(replace(spec, own=None), Statistics(spread=units))
        if parts is not None:
            model = fitted_with(model.to_empty(device="cpu"), parts)
        expected = model.state_dict()
        path, hashed = folder / "model.safetensors", is_hashed(config)
        if path.exists():
            tensors = load_tensors(path, like=expected, hashed=hashed)
        else:
            tensors, model.unfinished = averaged_weights(folder, model, hashed=hashed)
            warnings.warn(model.unfinished, stacklevel=2)
        model.load_state_dict(tensors, assign=True)
        return model.to(device).eval()


def build(
    event_shape: tuple[int, ...],
    kind: str,
    architecture: Architecture | None = None,
    *,
    mean: Tensor | None = None,
    scale: float | None = None,
    levels: int = 256,
    grid: dict[str, Any] | None = None,
    spread: Tensor | None = None,
    sound: dict[str, int] | None = None,
    moments: Tensor | None = None,
    shares: Tensor | None = None,
    examples: Tensor | None = None,
    sizes: str = "",
    labels: tuple[str, ...] = (),
) -> VAE:
    """Build a VAE for events of a shape and kind; weights come from torch's global generator.

    Args:
        event_shape: `(C, H, W)`, `(D,)`, or `(1, T)` for sound.
        kind: "binary", "8-bit", "levels", "counts", "continuous" or "sound".
        architecture: By default `Architecture()`.
        mean: The training data's mean `[*event]` in its own units: it centres the encoder's input
            and is the decoder's first output.
        scale: What the centred input is divided by.
        levels: How many the data have, where they are levels.
        grid: What those stand for, see `Spec`.
        spread: The training data's deviation `[*event]`, all positive, instead of a scale:
            continuous data are then standardised inside the model, and more than 256 levels have
            it for their unit, while x and every figure stay in the data's units.
        sound: Rate, step and clip length, for sound; see `Spec`.
        moments: Of the training data's sound, `kullback.vae.sound.second_moments`.
        shares: Of the training data's sound, `kullback.vae.sound.shift_shares`.
        examples: Training examples `[n, *event]` at which the pseudo-inputs of a "vamp" prior
            start, repeated where they are fewer; without them they are standard normal, in the
            encoder's units.
        labels: On which the model is to be conditional, by name: see `VAE.at`.
        sizes: Of counts, "total" or "given" where the last column is a size factor; see `Spec`.

    Returns:
        The model, with fresh weights.

    Raises:
        ArgumentValueError: As `Architecture` and `choose`, and for conv networks on vectors.

    Example:
        >>> build((1, 28, 28), "8-bit").spec.architecture.likelihood
        'logistics'
    """
    known = Statistics(mean, scale, spread, moments, shares)
    shape = tuple(event_shape)
    given = architecture or Architecture()
    spec = Spec(shape, kind, given, levels, grid, sound=sound, sizes=sizes, labels=labels)
    return VAE.of(spec, known, examples)


def _has_units(spec: Spec) -> bool:
    """Say whether a model of this description holds the data's spread."""
    return spec.standardised or (spec.kind == "levels" and spec.levels > UNIT_SCALE_LEVELS)
