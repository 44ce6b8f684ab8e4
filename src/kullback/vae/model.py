"""`VAE`: an encoder, a decoder, a likelihood and a prior, composed; and `build`, which does so.

`build` makes one from an `Architecture` and the data's shape and kind; `VAE(...)` takes any parts
you have written yourself. `VAE.load` reads a run directory. Figures come back per image: `elbo`
and `log_likelihood` are lower bounds, higher is better; `kullback.vae.evaluate` puts error bars
on their averages. `location_and_spread` finds the units in which a model of continuous data works.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kullback.core import DataError, RunError, describe, require, require_count
from kullback.data import PADDING
from kullback.variational import objectives

from .architecture import Architecture, Spec
from .checkpoint import (
    averaged_weights,
    is_hashed,
    load_tensors,
    read_config,
    refuse_to_overwrite,
    save_tensors,
    write_config,
)
from .evidence import bounds
from .likelihoods import (
    Bernoulli,
    Categorical,
    DiscretisedLogistics,
    Event,
    Gaussian,
    Likelihood,
)
from .limits import CATEGORICAL_LEVELS, FLOAT32_RESOLUTION, NAMED_COLUMNS, UNIT_SCALE_LEVELS
from .networks import ConvDecoder, ConvEncoder, MlpDecoder, MlpEncoder
from .priors import StandardNormal, draw
from .sound import AutoregressiveLogistics, SoundDecoder, SoundEncoder

__all__ = ["VAE", "build", "location_and_spread"]


class VAE(nn.Module):
    """A latent-variable model `p(x) = ∫ p(x|z) p(z) dz` with an approximate posterior q(z|x).

    Everywhere x is `[batch, *event]` in the data's own units: 0/1, levels 0 … K − 1, or continuous.

    Args:
        encoder: `[batch, *event]` floats to (mean, log_sd), `[batch, latent]` each.
        decoder: `[rows, latent]` to `[rows, channels, places]`.
        likelihood: See `kullback.vae.likelihoods`.
        prior: See `kullback.vae.priors`.
        shift: x enters the encoder (and only it) as (x − shift) / scale; a number or `[*event]`.
        scale: As `shift`, positive.
        spec: The description that `save` writes; None for parts of your own.

    Example:
        >>> model = build((1, 4, 4), "binary", Architecture(hidden=(8,), latent=2))
        >>> model.encode(torch.zeros(3, 1, 4, 4))[0].shape
        torch.Size([3, 2])
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: StandardNormal,
        *,
        shift: Tensor | None = None,
        scale: float | Tensor = 1.0,
        spec: Spec | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.likelihood, self.prior = likelihood, prior
        self.register_buffer("shift", torch.zeros(()) if shift is None else shift.clone())
        scale = scale.clone() if isinstance(scale, Tensor) else torch.tensor(float(scale))
        self.register_buffer("scale", scale)
        self.spec = spec
        self.unfinished = ""  # by `load`: a sentence, where these are weights of a checkpoint

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log standard deviation of q(z|x), `[batch, latent]` each."""
        if self.spec is not None and self.spec.kind == "sound":
            x = torch.where(x == PADDING, self.shift, x)
        encoded: tuple[Tensor, Tensor] = self.encoder((x - self.shift) / self.scale)
        return encoded

    def parameters_of(self, z: Tensor) -> Tensor:
        """Decode z `[*lead, latent]` to likelihood parameters `[*lead, channels, places]`."""
        flat: Tensor = self.decoder(z.reshape(-1, z.shape[-1]))
        return flat.reshape(*z.shape[:-1], *flat.shape[1:])

    def decode(self, z: Tensor) -> Tensor:
        """Return the expected x given z: `[*lead, latent]` to `[*lead, *event]`."""
        return self.likelihood.mean(self.parameters_of(z))

    def tight_terms(
        self, x: Tensor, noise: Tensor, beta: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `elbo_terms` and L_K with its doubly reparameterised gradient, `[batch]`, in nats.

        Args:
            x: `[batch, *event]`.
            noise: Standard normal, `[draws, batch, latent]`.
            beta: Weight of log p(z) − log q(z|x).

        Returns:
            log p(x|z) `[draws, batch]`, the KL `[batch, latent]`, and L_K `[batch]`; see
            `variational.doubly_reparameterised`.
        """
        mean, log_sd = self.encode(x)
        z = draw(mean, log_sd, noise)
        likelihood = self.likelihood.log_prob(self.parameters_of(z), x)
        held = (mean.detach(), log_sd.detach())
        ratio = self.prior.log_ratio(z, held[1], (z - held[0]) / held[1].exp())
        weights = objectives.log_weights(likelihood, ratio, beta=beta)
        bound = objectives.doubly_reparameterised(weights, z)
        return likelihood, self.prior.kl(mean, log_sd), bound

    def terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what every objective is made of, in nats, for noise `[draws, batch, latent]`.

        log p(x|z) `[draws, batch]`; log p(z) − log q(z|x) `[draws, batch]`; the exact
        KL(q(z|x) ‖ p(z)) per latent dimension `[batch, latent]`. Differentiable.
        """
        mean, log_sd = self.encode(x)
        z, kl = self.prior.draw_and_kl(mean, log_sd, noise)
        log_likelihood = self.likelihood.log_prob(self.parameters_of(z), x)
        return log_likelihood, self.prior.log_ratio(z, log_sd, noise), kl

    def elbo_terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and the last of `terms`: all that the ELBO needs."""
        mean, log_sd = self.encode(x)
        z, kl = self.prior.draw_and_kl(mean, log_sd, noise)
        return self.likelihood.log_prob(self.parameters_of(z), x), kl

    def check(self, x: Tensor) -> Tensor:
        """Return x as floats ready for the model, or refuse it.

        Args:
            x: `[batch, *event]`, any dtype.

        Returns:
            x as float32.

        Raises:
            ArgumentValueError: The shape is not `[batch, *event]`, a binary model gets anything but
                0 and 1, an 8-bit model anything but integers 0 … 255, a model of K levels anything
                but 0 … K − 1, a model of sound anything but its signed levels followed by
                `PADDING`, or x is not finite.

        Example:
            >>> build((2,), "binary").check(torch.tensor([[0, 1]], dtype=torch.uint8))
            tensor([[0., 1.]])
        """
        if self.spec is not None:
            wanted = ["batch", *self.spec.event_shape]
            ok = tuple(x.shape[1:]) == self.spec.event_shape
            require(ok, "x", f"shape {wanted}".replace("'", ""), describe(x))
        x = x.float()
        require(bool(torch.isfinite(x).all()), "x", "finite values", "NaN or infinity")
        kind = None if self.spec is None else self.spec.kind
        span = f"values in [{x.min():.4g}, {x.max():.4g}]" if x.numel() else "nothing"
        if kind == "binary":
            ok = bool(((x == 0) | (x == 1)).all())
            require(ok, "x", "0 and 1 only", span, "binarise the data first")
        if self.spec is not None and kind in ("8-bit", "levels"):
            top = self.spec.levels - 1
            ok = bool(((x == x.round()) & (x >= 0) & (x <= top)).all())
            hint = "pass uint8 images" if kind == "8-bit" else "pass levels, see kullback.data.Grid"
            require(ok, "x", f"integers 0 to {top}", span, hint)
        if self.spec is not None and self.spec.sound is not None:
            _check_sound(x, self.spec, span)
        return x

    def elbo(
        self, x: Tensor, *, draws: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return `E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))`, `[batch]`, in nats; higher is better.

        The expectation is a mean of `draws` draws, the KL is exact (MATH 2.3). A lower bound on
        log p(x) in expectation.

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
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / "model.safetensors", self.state_dict())
        write_config(folder, {"model": self.spec.to_dict()})

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> "VAE":
        """Read a model from a run directory; nothing is unpickled, no code in it is run.

        Of a run that is not finished, the averaged weights of its last checkpoint are read; a
        warning says so, and the model's `unfinished` holds the same sentence.

        Args:
            folder: What `save` or `train` wrote.
            device: Where the weights go.

        Returns:
            The model, in evaluation mode.

        Raises:
            RunError: A file is missing, damaged, changed (its hash differs), or does not match its
                description.
        """
        folder = Path(folder)
        config = read_config(folder, "model")
        spec = Spec.from_dict(config["model"], source=str(folder / "config.json"))
        with torch.device("meta"):
            units = torch.ones(spec.event_shape) if _has_units(spec) else None
            model = build(
                spec.event_shape,
                spec.kind,
                spec.architecture,
                levels=spec.levels,
                grid=spec.grid,
                spread=units,
                sound=spec.sound,
            )
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
) -> VAE:
    """Build a VAE for events of a shape and kind; weights come from torch's global generator.

    Args:
        event_shape: `(C, H, W)`, `(D,)`, or `(1, T)` for sound.
        kind: "binary", "8-bit", "levels", "continuous" or "sound".
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

    Returns:
        The model, with fresh weights.

    Raises:
        ArgumentValueError: As `Architecture` and `choose`, and for conv networks on vectors.

    Example:
        >>> build((1, 28, 28), "8-bit").spec.architecture.likelihood
        'logistics'
    """
    architecture = (architecture or Architecture()).resolved(tuple(event_shape), kind)
    inside = spread is not None and kind == "continuous"
    spec = Spec(
        tuple(event_shape), kind, architecture, levels, grid, standardised=inside, sound=sound
    )
    if kind == "sound":
        return _of_sound(spec, scale, moments)
    top = levels - 1
    usual = {"binary": (0.5, 1.0), "8-bit": (127.5, 64.0), "continuous": (0.0, 1.0)}
    usual["levels"] = (top / 2, max(1.0, top / 4))
    shift, width = usual[kind]
    mean = torch.full(spec.event_shape, shift) if mean is None else mean.float()
    spread = None if spread is None else spread.float()
    likelihood = _likelihood(spec, mean, spread)
    bias = likelihood.initial_bias(mean)
    hidden, latent = architecture.hidden, architecture.latent
    if architecture.network == "mlp":
        act = architecture.activation
        encoder: nn.Module = MlpEncoder(event_shape, hidden, latent, activation=act)
        decoder: nn.Module = MlpDecoder(latent, hidden[::-1], bias, activation=act)
    else:
        encoder = ConvEncoder(event_shape, hidden, latent)
        decoder = ConvDecoder(event_shape, latent, hidden, bias)
    scale = width if scale is None else scale
    require(math.isfinite(scale) and scale > 0, "scale", "a positive number", scale)
    divide_by = scale if spread is None else spread
    prior = StandardNormal(latent)
    return VAE(encoder, decoder, likelihood, prior, shift=mean, scale=divide_by, spec=spec)


def _of_sound(spec: Spec, scale: float | None, moments: Tensor | None) -> VAE:
    """Build a VAE of clips of integer samples; `scale` is their deviation."""
    known = spec.sound or {}
    good = len(spec.event_shape) == 2 and spec.event_shape[0] == 1
    require(good, "event_shape", "(1, T) for sound", spec.event_shape)
    samples, (width,) = spec.event_shape[1], spec.architecture.hidden
    latent = spec.architecture.latent
    likelihood = AutoregressiveLogistics(
        samples,
        width=width,
        components=spec.architecture.components,
        levels=spec.levels,
        step=known.get("step", 1),
        moments=moments,
    )
    encoder, decoder = SoundEncoder(samples, width, latent), SoundDecoder(latent, width)
    scale = 1.0 if scale is None else scale
    return VAE(encoder, decoder, likelihood, StandardNormal(latent), scale=scale, spec=spec)


def _check_sound(x: Tensor, spec: Spec, span: str) -> None:
    """Refuse clips that are not levels of the model followed by padding."""
    step, half = (spec.sound or {}).get("step", 1), spec.levels // 2
    levels, padded = x / step, x == PADDING
    ok = padded | ((levels == levels.round()) & (levels >= -half) & (levels < half))
    expected = f"integers {-half * step} to {(half - 1) * step}"
    expected += f", multiples of {step}" if step > 1 else ""
    require(bool(ok.all()), "x", expected, span, "read them with kullback.data.load_sounds")
    ends = bool((padded[..., 1:] >= padded[..., :-1]).all()) and not bool(padded[..., 0].any())
    require(ends, "x", "padding after the samples only, and one sample at least", "padding within")


def _has_units(spec: Spec) -> bool:
    """Say whether a model of this description holds the data's spread."""
    return spec.standardised or (spec.kind == "levels" and spec.levels > UNIT_SCALE_LEVELS)


def _likelihood(spec: Spec, mean: Tensor, spread: Tensor | None) -> Any:
    architecture, shape = spec.architecture, spec.event_shape
    if architecture.likelihood == "logistics":
        event = Event(shape)
        units = {} if spread is None else {"centre": mean, "spread": spread}
        split = {name: event.split(value)[0] for name, value in units.items()}
        components = architecture.components
        return DiscretisedLogistics(shape, components=components, levels=spec.levels, **split)
    if architecture.likelihood == "gaussian":
        location = None if spread is None else mean
        return Gaussian(shape, location=location, spread=spread)
    if architecture.likelihood == "categorical":
        few = spec.levels <= CATEGORICAL_LEVELS
        require(
            few, "likelihood", f"logistics for more than {CATEGORICAL_LEVELS} levels", "categorical"
        )
        return Categorical(shape, levels=spec.levels)
    return Bernoulli(shape)


def location_and_spread(train: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean `[*event]` and standard deviation `[*event]` of `[N, *event]`, in float32.

    Vectors have a deviation for each column; images one for each channel, at every pixel, around
    each pixel's own mean. The deviation has N below. Nothing overflows within float32's range.

    Args:
        train: Training examples alone, `[N, *event]`.

    Returns:
        Mean and deviation.

    Raises:
        DataError: Floats have columns or channels that are constant (a density on a constant has
            no finite maximum) or that float32 cannot resolve (values of one apart around 1e8).

    Example:
        >>> location_and_spread(torch.tensor([[1.0, 0.0], [3.0, 1e-6]]))
        (tensor([2.0000e+00, 5.0000e-07]), tensor([1.0000e+00, 5.0000e-07]))
    """
    largest = train.abs().amax(0).double()
    mean = train.mean(0, dtype=torch.float64).clamp(-largest, largest).float()
    centred = train - mean
    over = (0, *range(2, train.ndim))
    reach = centred.abs().amax(over, keepdim=True).double().clamp(min=1e-300)
    squares = (centred / reach).square().mean(over, keepdim=True, dtype=torch.float64)
    spread = (reach * squares.sqrt())[0]
    if train.is_floating_point():
        _require_resolved(spread.flatten(), train.abs().amax(over), train)
    return mean, spread.expand(mean.shape).float().contiguous()


def _require_resolved(spread: Tensor, extreme: Tensor, train: Tensor) -> None:
    """Refuse what is constant or below float32's resolution, by name."""
    what = "column" if train.ndim == 2 else "channel"
    infinite = torch.full_like(extreme, torch.inf)
    ulp = torch.nextafter(extreme.float(), infinite.float()).double() - extreme.double()
    tiny = ~(spread >= torch.finfo(torch.float32).tiny) | spread.isinf()
    same = (train.amin(0) == train.amax(0)).reshape(len(spread), -1)
    constant = (spread == 0) | same.all(1)
    if bool(constant.any()):
        raise DataError(
            f"{_named(constant, what)} constant in the {len(train):,} training examples: a density "
            f"on a constant has no finite maximum. Try: leave {what}s like that out"
        )
    coarse = (ulp > FLOAT32_RESOLUTION * spread) | tiny
    if bool(coarse.any()):
        worst = int(coarse.nonzero()[0])
        raise DataError(
            f"{_named(coarse, what)} too fine for float32: {what} {worst} varies by "
            f"{float(spread[worst]):.2g} around {float(extreme[worst]):.6g}. "
            "Try: subtract its mean, or scale it, before saving"
        )


def _named(flags: Tensor, what: str) -> str:
    found = flags.nonzero().flatten().tolist()
    more = f" and {len(found) - NAMED_COLUMNS:,} more" if len(found) > NAMED_COLUMNS else ""
    verb = "is" if len(found) == 1 else "are"
    plural = what if len(found) == 1 else f"{what}s"
    return f"{plural} {', '.join(map(str, found[:NAMED_COLUMNS]))}{more} {verb}"
