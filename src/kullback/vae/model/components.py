"""What an architecture means for data of a shape and kind: networks, likelihood, q(z|x) and prior.

`components_of` makes all but the prior, which `put_prior` then gives to the composed model: a
VampPrior reads its encoder.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kullback.core import require

from ..architecture import COUNTS, Architecture, Spec
from ..latents import (
    CodePrior,
    CouplingFlow,
    Diagonal,
    Family,
    FullRank,
    InverseAutoregressive,
    LowRank,
    MixtureOfGaussians,
    Quantised,
    TopDown,
    TopDownPrior,
    VampPrior,
    layer_sizes,
)
from ..likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    ContinuousBernoulli,
    Counts,
    DiscretisedLogistics,
    Event,
    Gaussian,
    Likelihood,
    Neighbours,
    WithContext,
)
from ..limits import CATEGORICAL_LEVELS
from ..networks import ConvDecoder, ConvEncoder, MlpDecoder, MlpEncoder, PatchDecoder, patch_side
from ..sound import AutoregressiveLogistics, SoundDecoder, SoundEncoder
from .composed import Composed

__all__ = ["Components", "Statistics", "components_of", "put_prior"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the training data say of a model before it is trained; see `build` for each.

    Args:
        mean: `[*event]`.
        scale: What the centred input is divided by.
        spread: `[*event]`, instead of a scale.
        moments: Of sound.
        shares: Of sound.
    """

    mean: Tensor | None = None
    scale: float | None = None
    spread: Tensor | None = None
    moments: Tensor | None = None
    shares: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Components:
    """All of a model but its prior.

    Args:
        encoder: See `Composed`, as the rest.
        decoder: As above.
        likelihood: As above.
        family: Of q(z|x).
        shift: None for 0.
        scale: A number, or `[*event]`.
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Likelihood
    family: Family
    shift: Tensor | None
    scale: float | Tensor


def components_of(spec: Spec, known: Statistics) -> Components:
    """Return fresh networks and likelihood; weights come from torch's global generator.

    Args:
        spec: With its architecture resolved.
        known: Of the training data.

    Returns:
        The components.

    Raises:
        ArgumentValueError: As `build`.

    Example:
        >>> given = Architecture(latent=2).resolved((4,), "binary")
        >>> type(components_of(Spec((4,), "binary", given), Statistics()).likelihood).__name__
        'Bernoulli'
    """
    if spec.kind == "sound":
        return _of_sound(spec, known)
    shape, kind, architecture = spec.event_shape, spec.kind, spec.architecture
    shift, width = _usual_units(spec)
    mean = torch.full(shape, shift) if known.mean is None else known.mean.float()
    spread = None if known.spread is None else known.spread.float()
    likelihood = _likelihood(spec, mean, spread)
    bias = likelihood.initial_bias(mean)
    family = _family(architecture)
    encoder, decoder = _networks(spec, likelihood, bias, family)
    scale = width if known.scale is None else known.scale
    require(math.isfinite(scale) and scale > 0, "scale", "a positive number", scale)
    centre = mean.log1p() if kind == "counts" else mean
    divide_by = scale if spread is None else spread
    return Components(encoder, decoder, likelihood, family, centre, divide_by)


def _usual_units(spec: Spec) -> tuple[float, float]:
    """Return what x is centred at and divided by where nothing is known of the data."""
    top = spec.levels - 1
    usual = {"binary": (0.5, 1.0), "8-bit": (127.5, 64.0), "continuous": (0.0, 1.0)}
    usual |= {"levels": (top / 2, max(1.0, top / 4)), "counts": (1.0, 1.0)}
    return usual[spec.kind]


def _networks(
    spec: Spec, likelihood: Any, bias: Tensor, family: Family
) -> tuple[nn.Module, nn.Module]:
    """Return a fresh encoder and decoder; the decoder reads z and which label it is."""
    shape, architecture = spec.event_shape, spec.architecture
    hidden, latent, act = architecture.hidden, architecture.latent, architecture.activation
    codes = latent + len(spec.labels)
    if architecture.network == "mlp":
        encoder = MlpEncoder(shape, hidden, latent, activation=act, extra=family.extra)
        return encoder, MlpDecoder(codes, hidden[::-1], bias, activation=act)
    conv = ConvEncoder(shape, hidden, latent, extra=family.extra)
    return conv, _conv_decoder(spec, likelihood, bias, codes)


def _family(architecture: Architecture) -> Family:
    """Return the family of q(z|x) of an architecture."""
    latent = architecture.latent
    layers = architecture.layers
    sizes = layer_sizes(latent, layers) if isinstance(layers, int) else layers
    if len(sizes) > 1:
        return TopDown(TopDownPrior(sizes))
    if architecture.posterior == "full":
        return FullRank(latent)
    if architecture.posterior == "low_rank":
        return LowRank(latent, architecture.rank)
    if architecture.posterior == "quantised":
        return Quantised(CodePrior(latent, architecture.codes))
    return InverseAutoregressive(latent) if architecture.posterior == "iaf" else Diagonal()


def put_prior(model: Composed, examples: Tensor | None) -> None:
    """Give a model the prior of its description; "vamp" looks at the encoder and at examples.

    Args:
        model: With a description, and the family and encoder that it is to keep.
        examples: As in `build`.
    """
    spec = model.spec
    if spec is None:
        return
    kind, latent = spec.architecture.prior, spec.architecture.latent
    count = spec.architecture.prior_components
    if isinstance(model.family, TopDown | Quantised):
        model.prior = model.family.prior
    elif kind == "mixture":
        model.prior = MixtureOfGaussians(latent, count)
    elif kind == "flow":
        model.prior = CouplingFlow(latent)
    elif kind == "vamp":
        inputs = torch.randn(count, *spec.event_shape)
        if examples is not None:
            rows = torch.arange(count) % len(examples)
            first = model.at(torch.tensor(0)) if spec.labels else model
            inputs = first.encoder_input(examples.float()[rows])
        model.prior = VampPrior(model.encoder, inputs, latent=latent)


def _of_sound(spec: Spec, known: Statistics) -> Components:
    """Return the components for clips of integer samples, whose deviation is the scale."""
    format_ = spec.sound or {}
    good = len(spec.event_shape) == 2 and spec.event_shape[0] == 1
    require(good, "event_shape", "(1, T) for sound", spec.event_shape)
    samples, (width,) = spec.event_shape[1], spec.architecture.hidden
    latent = spec.architecture.latent
    likelihood = AutoregressiveLogistics(
        samples,
        width=width,
        components=spec.architecture.components,
        levels=spec.levels,
        step=format_.get("step", 1),
        moments=known.moments,
        shares=known.shares,
        context=tuple(one for one in spec.architecture.context if one),
    )
    family = _family(spec.architecture)
    encoder = SoundEncoder(samples, width, latent, extra=family.extra)
    decoder = SoundDecoder(latent + len(spec.labels), width)
    scale = 1.0 if known.scale is None else known.scale
    return Components(encoder, decoder, likelihood, family, None, scale)


def _conv_decoder(spec: Spec, likelihood: Any, bias: Tensor, codes: int) -> nn.Module:
    shape, hidden = spec.event_shape, spec.architecture.hidden
    if spec.architecture.network == "conv":
        return ConvDecoder(shape, codes, hidden, bias)
    patched = likelihood.event.patch > 0
    return PatchDecoder(shape, codes, hidden, bias, patched=patched)


_LAWS = {"gaussian": "normal", "laplace": "laplace", "student": "student"}


def _likelihood(spec: Spec, mean: Tensor, spread: Tensor | None) -> Any:
    architecture, shape = spec.architecture, spec.event_shape
    beside, context = architecture.neighbours, architecture.context
    if architecture.likelihood == "logistics":
        event = Event(shape)
        units = {} if spread is None else {"centre": mean, "spread": spread}
        split = {name: event.split(value)[0] for name, value in units.items()}
        patched = architecture.network == "patch" and spread is None
        own = "0 where levels are in units of the data's own spread"
        require(spread is None or not beside, "neighbours", own, beside)
        own = own.replace("0", "none", 1)
        require(spread is None or not context, "context", own, context)
        mixture = DiscretisedLogistics(
            shape,
            components=architecture.components,
            levels=spec.levels,
            centre=split.get("centre"),
            spread=split.get("spread"),
            patch=patch_side(shape) if patched else 0,
        )
        return _given_pixels(mixture, architecture)
    if architecture.likelihood in _LAWS:
        location = None if spread is None else mean
        law = _LAWS[architecture.likelihood]
        return Gaussian(shape, location=location, spread=spread, law=law)
    if architecture.likelihood in COUNTS:
        return Counts(shape, law=architecture.likelihood, typical=mean[-1] if spec.sizes else None)
    if architecture.likelihood == "continuous_bernoulli":
        return ContinuousBernoulli(shape)
    if architecture.likelihood == "beta_binomial":
        return BetaBinomial(shape, levels=spec.levels)
    if architecture.likelihood == "categorical":
        few = spec.levels <= CATEGORICAL_LEVELS
        require(
            few, "likelihood", f"logistics for more than {CATEGORICAL_LEVELS} levels", "categorical"
        )
        return Categorical(shape, levels=spec.levels)
    return _given_pixels(Bernoulli(shape), architecture)


def _given_pixels(likelihood: Any, architecture: Architecture) -> Any:
    """Return a likelihood of pixels that depend on those before them, where they are to."""
    if architecture.context:
        return WithContext(likelihood, architecture.context)
    if architecture.neighbours:
        return Neighbours(likelihood, architecture.neighbours)
    return likelihood
