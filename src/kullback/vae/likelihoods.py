"""Likelihoods p(x|z): what the decoder's output means, for data of a given kind.

Which to use: `Bernoulli` for binary data; `kullback.vae.likelihoods.DiscretisedLogistics` for 8-bit
data (a probability for each of 256 levels which knows that neighbouring levels are alike);
`Categorical` for 8-bit data with no such assumption (256 outputs a pixel); `Gaussian` for
continuous data only: as a density on 8-bit data it would have no finite maximum, and
`kullback.vae.architecture.choose`, which picks by the kind of data, refuses it.

Shapes: an event is `[C, *spatial]`, or a vector `[D]` which counts as one channel of D places. The
decoder gives `parameters`, `[*lead, channels, places]`, where `channels` is what the likelihood
asks for and `places` the product of the spatial sizes. Log-likelihoods are summed over the event.

Two sums have a hand-written gradient, equal to their plain PyTorch form in fewer passes over
memory: `bernoulli_log_likelihood`, and the log mass of a logistic between two edges.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from kullback.exact import HALF_LOG_2PI

from .networks import real

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiscretisedLogistics",
    "Event",
    "Gaussian",
    "Likelihood",
    "bernoulli_log_likelihood",
    "bernoulli_total",
    "bernoulli_value",
    "log_mass",
]


class Event:
    """An event `[C, *spatial]` as C colours at some places; a vector `[D]` is one colour, D places.

    Example:
        >>> Event((3, 8, 8)).places
        64
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        self.shape = tuple(event_shape)
        self.colours = event_shape[0] if len(event_shape) > 1 else 1
        self.places = math.prod(event_shape) // self.colours

    def split(self, x: Tensor) -> Tensor:
        """Reshape `[batch, *event]` to `[batch, colours, places]`; one event becomes a batch."""
        return x.reshape(-1, self.colours, self.places)

    def join(self, x: Tensor) -> Tensor:
        """Reshape `[*lead, colours, places]` to `[*lead, *event]`."""
        return x.reshape(*x.shape[:-2], *self.shape)


class Likelihood(Protocol):
    """What a VAE asks of a likelihood; any object with these members serves."""

    channels: int

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats, from x `[batch, *event]`."""
        ...

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the expected x, `[*lead, *event]`, in the data's units."""
        ...

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x, `[*lead, *event]`, in the data's units."""
        ...

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return the decoder's best constant output `[channels, places]` for data of this mean."""
        ...


class Bernoulli:
    """Independent bits: `log p(x|z) = Σ_d x_d l_d − log(1 + e^{l_d})` from logits l.

    x is 0 or 1 everywhere (with grey targets this is no likelihood: `VAE.check` refuses them). One
    channel of logits per colour.

    Args:
        event_shape: `[C, *spatial]` or `[D]`.

    Example:
        >>> Bernoulli((1, 1, 2)).log_prob(torch.zeros(1, 1, 2), torch.ones(1, 1, 1, 2)).exp()
        tensor([0.2500])
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        self.event = Event(event_shape)
        self.channels = self.event.colours

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats."""
        return bernoulli_log_likelihood(parameters.flatten(-2), x.flatten(1))

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the probability of a one, `[*lead, *event]`."""
        return self.event.join(torch.sigmoid(real(parameters)))

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw bits, floats 0 and 1, `[*lead, *event]`."""
        return torch.bernoulli(self.mean(parameters), generator=generator)

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return the logit of the mean, held within ±5 where a bit never changes."""
        return torch.logit(self.event.split(mean)[0].clamp(0.0067, 0.9933))


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Return `Σ_d x_d l_d − log(1 + e^{l_d})`, the Bernoulli log-probability, in nats.

    Exact up to rounding, also for large |l|; the gradient to the logits is `x − sigmoid(l)`, none
    flows to x.

    Args:
        logits: `[*draws, batch, D]`.
        x: 0 and 1, `[batch, D]`.

    Returns:
        `[*draws, batch]`.

    Example:
        >>> bernoulli_log_likelihood(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])).exp()
        tensor([0.2500])
    """
    out: Tensor = _Bernoulli.apply(logits, x)  # type: ignore[no-untyped-call]
    return out


def bernoulli_value(logits: Tensor, x: Tensor) -> Tensor:
    """Return the value of `bernoulli_log_likelihood`, for x of the same dtype."""
    out: Tensor = torch.linalg.vecdot(x, logits) - _sum_of_softplus(logits)
    return out


def _sum_of_softplus(logits: Tensor) -> Tensor:
    """Return `Σ log(1 + e^l)` over the last axis.

    As `Σ max(l, 0) − Σ log σ(|l|)`, where σ(|l|) ≥ ½ lets up to a hundred factors be multiplied
    before one logarithm is taken: half the time of softplus, which takes one each.
    """
    group = _group(logits.shape[-1])
    if not group:
        return torch.nn.functional.softplus(logits, threshold=40.0).sum(-1)  # exact in float64 too
    factors = logits.abs().sigmoid_().reshape(*logits.shape[:-1], -1, group)
    out: Tensor = torch.clamp(logits, min=0.0).sum(-1) - factors.prod(-1).log_().sum(-1)
    return out


def bernoulli_total(logits: Tensor, x: Tensor, probability: Tensor) -> Tensor:
    """Return the sum of `bernoulli_value` over the batch, given σ(logits) as well.

    σ(|l|) is the larger of σ(l) and 1 − σ(l), so nothing is exponentiated again.
    """
    group = _group(logits.shape[-1])
    if not group:
        return bernoulli_value(logits, x).sum()
    factors = (probability - 0.5).abs_().add_(0.5).reshape(-1, group)
    linear = torch.dot(logits.reshape(-1), x.reshape(-1)) - torch.clamp(logits, min=0.0).sum()
    return linear + factors.prod(-1).log_().sum()


def _group(length: int) -> int:
    """Return how many factors of at least ½ to multiply at a time, a divisor of length, or 0."""
    return next((n for n in range(100, 15, -1) if length % n == 0), 0)


class _Bernoulli(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        logits = real(logits)
        x = x.to(logits.dtype)
        ctx.save_for_backward(logits, x)
        return bernoulli_value(logits, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        return torch.sigmoid(logits).sub_(x).mul_(-grad.unsqueeze(-1)), None


class Categorical:
    """A free probability for each of `levels` values: `log p(x|z) = Σ_d log softmax(l_d)[x_d]`.

    Exact. x holds integers 0 … levels − 1; `levels` outputs per colour and place.

    Args:
        event_shape: `[C, *spatial]` or `[D]`.
        levels: How many values there are.

    Example:
        >>> Categorical((1,), levels=4).log_prob(torch.zeros(1, 4, 1), torch.tensor([[3]])).exp()
        tensor([0.2500])
    """

    def __init__(self, event_shape: tuple[int, ...], levels: int = 256) -> None:
        self.event = Event(event_shape)
        self.levels = levels
        self.channels = levels * self.event.colours

    def _log_softmax(self, parameters: Tensor) -> Tensor:  # [*lead, colours, levels, places]
        shape = (*parameters.shape[:-2], self.event.colours, self.levels, self.event.places)
        return torch.log_softmax(real(parameters).reshape(shape), -2)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats."""
        table = self._log_softmax(parameters)
        index = self.event.split(x).long().unsqueeze(-2)
        index = index.expand((*table.shape[:-2], 1, table.shape[-1]))
        return table.gather(-2, index).flatten(-3).sum(-1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the exact expected level, `[*lead, *event]`."""
        levels = torch.arange(self.levels, device=parameters.device)
        return self.event.join((self._log_softmax(parameters).exp() * levels[:, None]).sum(-2))

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw levels, as floats, `[*lead, *event]`."""
        table = self._log_softmax(parameters).exp().movedim(-2, -1)
        drawn = torch.multinomial(table.reshape(-1, self.levels), 1, generator=generator)
        return self.event.join(drawn.reshape(table.shape[:-1]).float())

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return zeros: every level equally likely."""
        return mean.new_zeros(self.channels, self.event.places)


class Gaussian(nn.Module):
    """Independent normals: `x_d ~ N(location_d + spread_d·m_d, (spread_d·sd_d)²)`.

    m is the decoder's output, in units of location and spread, so that the model works on
    standardised data while x, its mean, draws and density are in the caller's units: log p(x) is
    that of the standardised x less Σ log spread_d. For continuous data only: on 8-bit data its
    likelihood grows without bound as sd → 0.

    Args:
        event_shape: `[C, *spatial]` or `[D]`.
        log_sd: Where log sd starts; it is held at −7 or more.
        learned: Whether it is a parameter that is trained.
        location: Fixed numbers `[*event]`, the training data's mean; 0 without it.
        spread: Fixed numbers `[*event]`, the training data's deviation; 1 without it. With it sd is
            one number a column or channel, else one for all.

    Example:
        >>> units = {"location": torch.zeros(1), "spread": torch.full((1,), 2.0)}
        >>> wide = Gaussian((1,), learned=False, **units)
        >>> wide.log_prob(torch.zeros(1, 1, 1), torch.zeros(1, 1))  # −½ log 2π − log 2
        tensor([-1.6121])
        >>> Gaussian((1,)).log_prob(torch.zeros(1, 1, 1), torch.zeros(1, 1))  # −½ log 2π
        tensor([-0.9189], grad_fn=<SumBackward1>)
    """

    location: Tensor | None
    spread: Tensor | None

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        log_sd: float = 0.0,
        learned: bool = True,
        location: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.event = Event(event_shape)
        self.channels = self.event.colours
        sizes = () if spread is None else (event_shape[0], *[1] * (len(event_shape) - 1))
        start = torch.full(sizes[:1], float(log_sd))
        self.sizes = sizes
        self.log_sd = nn.Parameter(start, requires_grad=learned)
        self.register_buffer("location", None if location is None else location.clone())
        self.register_buffer("spread", None if spread is None else spread.clone())

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), a log density, `[*draws, batch]`, in nats."""
        log_sd = self._log_sd()
        volume: Tensor | None = None
        if self.spread is not None and self.location is not None:
            x = (x - self.location) / self.spread
            volume = self.spread.double().log().sum().to(log_sd.dtype)
            log_sd = log_sd.expand(self.spread.shape).flatten()
        error = (x.flatten(1) - parameters.flatten(-2)) * torch.exp(-log_sd)
        density = (-0.5 * error**2 - log_sd - HALF_LOG_2PI).sum(-1)
        return density if volume is None else density - volume

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the decoder's output in the caller's units, `[*lead, *event]`."""
        return self._outside(self.event.join(parameters))

    def _log_sd(self) -> Tensor:
        return self.log_sd.clamp(min=-7.0).reshape(self.sizes)

    def _outside(self, standard: Tensor) -> Tensor:
        if self.spread is None or self.location is None:
            return standard
        return self.location + self.spread * standard

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x, `[*lead, *event]`."""
        mean = self.event.join(parameters)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return self._outside(mean + self._log_sd().exp() * noise)

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return the data's mean, in the units in which the decoder speaks."""
        if self.spread is not None and self.location is not None:
            mean = (mean - self.location) / self.spread
        return self.event.split(mean)[0]


class DiscretisedLogistics(nn.Module):
    """A mixture of K logistics, each integrated over the width of one of `levels` levels.

    `log p(x|z) = Σ_places log Σ_k π_k Π_c [σ(b_c) − σ(a_c)]`, where a and b are the standardised
    lower and upper edge of level x_c; the lowest level reaches to −∞, the highest to +∞, so the
    levels' probabilities sum to one exactly. Colours of one place share the component, and the
    mean of a later colour moves linearly with the earlier ones.

    x holds integers 0 … levels − 1. Parameters per place: K mixture logits, K·C means, K·C
    log-scales (held within ±7, on a scale where all levels span 2; lower by log(levels/256) where
    there are more), and K·C(C−1)/2 colour weights.
    Exact: `log(σ(b) − σ(a)) = log σ(b) + log σ(−a) + log(1 − e^{a−b})` needs no floor
    and no approximation in the tails.
    Reference: Salimans et al. (2017), "PixelCNN++", section 2.1.

    Args:
        event_shape: `[C, *spatial]` or `[D]`.
        components: K.
        levels: How many values there are.
        centre: `[C, places]` in levels; means and scales are then in units of centre and spread,
            which a decoder needs where data fill a small part of many levels.
        spread: As `centre`.

    Example:
        >>> logistics = DiscretisedLogistics((1,), components=1, levels=2)
        >>> logistics.log_prob(torch.zeros(1, 3, 1), torch.tensor([[1]])).exp()
        tensor([0.5000])
    """

    centre: Tensor | None
    spread: Tensor | None

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        components: int = 5,
        levels: int = 256,
        centre: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.event = Event(event_shape)
        self.components, self.levels = components, levels
        colours = self.event.colours
        self.pairs = colours * (colours - 1) // 2
        self.channels = components * (1 + 2 * colours + self.pairs)
        self.least = -7.0 - max(0.0, math.log((levels - 1) / 255))
        unit = None if spread is None else spread * (2.0 / (levels - 1))
        self.register_buffer("centre", None if centre is None else self._to_unit(centre))
        self.register_buffer("spread", unit)

    def _unpack(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        k, colours = self.components, self.event.colours
        lead = parameters.shape[:-2]
        parts = torch.split(real(parameters), [k, k * colours, k * colours, k * self.pairs], -2)
        log_pi = torch.log_softmax(parts[0], -2)  # [*lead, K, places]
        means = parts[1].reshape(*lead, colours, k, self.event.places)
        log_scales = parts[2].reshape(*lead, colours, k, self.event.places)
        if self.spread is not None and self.centre is not None:
            spread = self.spread.unsqueeze(-2)
            means = self.centre.unsqueeze(-2) + spread * means
            log_scales = log_scales + spread.log()
        log_scales = log_scales.clamp(self.least, 7.0)
        weights = torch.tanh(parts[3]).reshape(*lead, self.pairs, k, self.event.places)
        return log_pi, means, log_scales, weights

    def _moved(self, means: Tensor, weights: Tensor, values: Tensor, colour: int) -> Tensor:
        """Add to the mean of one colour what the earlier colours say: `[*lead, K, places]`."""
        moved = means[..., colour, :, :]
        first = colour * (colour - 1) // 2
        for earlier in range(colour):
            value = values[..., earlier, :].unsqueeze(-2)
            moved = moved + weights[..., first + earlier, :, :] * value
        return moved

    def _to_unit(self, x: Tensor) -> Tensor:  # levels 0 … n−1 to [−1, 1]
        return real(x) * (2.0 / (self.levels - 1)) - 1.0

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats."""
        log_pi, means, log_scales, weights = self._unpack(parameters)
        values = self._to_unit(self.event.split(x))
        half = 1.0 / (self.levels - 1)
        total = log_pi
        for colour in range(self.event.colours):
            here = values[:, colour].unsqueeze(-2)  # [batch, 1, places]
            mean = self._moved(means, weights, values, colour)
            total = total + log_mass(mean, log_scales[..., colour, :, :], here, half)
        return torch.logsumexp(total, -2).sum(-1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the mixture's mean level, `[*lead, *event]`, before the cut at both ends."""
        log_pi, means, _, weights = self._unpack(parameters)
        values = torch.zeros_like(means[..., 0, :])
        for colour in range(self.event.colours):
            moved = self._moved(means, weights, values, colour)
            values = values.clone()
            values[..., colour, :] = (log_pi.exp() * moved).sum(-2).clamp(-1.0, 1.0)
        return self.event.join((values + 1.0) * (0.5 * (self.levels - 1)))

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw levels, as floats, `[*lead, *event]`: a logistic draw rounded to its level."""
        log_pi, means, log_scales, weights = self._unpack(parameters)
        pi = log_pi.exp().movedim(-2, -1)
        drawn = torch.multinomial(pi.reshape(-1, self.components), 1, generator=generator)
        pick = drawn.reshape(pi.shape[:-1]).unsqueeze(-2)  # [*lead, 1, places]
        values = torch.zeros_like(means[..., 0, :])
        for colour in range(self.event.colours):
            mean = self._moved(means, weights, values, colour).gather(-2, pick).squeeze(-2)
            scale = log_scales[..., colour, :, :].gather(-2, pick).squeeze(-2).exp()
            u = torch.rand(mean.shape, generator=generator, device=mean.device)
            raw = mean + scale * torch.logit(u, eps=1e-7)
            step = 2.0 / (self.levels - 1)
            values[..., colour, :] = ((raw.clamp(-1.0, 1.0) + 1.0) / step).round() * step - 1.0
        return self.event.join(((values + 1.0) * (0.5 * (self.levels - 1))).round())

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return means spread around the data's mean, with wide scales.

        Where the units are the data's own, the means are within one of them and the scale is that
        of a logistic with their deviation.
        """
        k, colours = self.components, self.event.colours
        bias = mean.new_zeros(self.channels, self.event.places)
        if self.spread is not None:
            around = torch.linspace(-1.0, 1.0, k) if k > 1 else torch.zeros(1)
            around = around.to(mean.device).repeat(colours)
            bias[k : k + k * colours] = around[:, None]
            bias[k + k * colours : k + 2 * k * colours] = math.log(math.sqrt(3.0) / math.pi)
            return bias
        spread = torch.linspace(-0.6, 0.6, k, device=mean.device) if k > 1 else mean.new_zeros(1)
        centre = self._to_unit(self.event.split(mean)[0])  # [colours, places]
        around = (centre.unsqueeze(1) + spread[:, None]).clamp(-1.0, 1.0)
        bias[k : k + k * colours] = around.reshape(k * colours, -1)
        bias[k + k * colours : k + 2 * k * colours] = -1.5
        return bias


def log_mass(
    mean: Tensor, log_scale: Tensor, value: Tensor, half: float, bound: float = 1.0
) -> Tensor:
    """Return the log mass that logistics give the level around `value`, a width of 2·half.

    The levels at ±bound reach to infinity, so that the masses of all levels sum to 1.

    Args:
        mean: `[*lead, batch, K, places]`, or any shape to which that of `value` broadcasts.
        log_scale: Of the logistics, as `mean`.
        value: The centre of the level, in [−bound, bound].
        half: Half the distance between levels.
        bound: The centre of the highest level; the lowest is at −bound.

    Returns:
        The log mass, of the shape of `mean`.

    Example:
        >>> zero = torch.zeros(2)
        >>> log_mass(zero, zero, torch.tensor([-1.0, 1.0]), half=1.0).exp()
        tensor([0.5000, 0.5000])
    """
    out: Tensor = _LogMass.apply(  # type: ignore[no-untyped-call]
        mean, log_scale, value, half, bound
    )
    return out


class _LogMass(torch.autograd.Function):
    """`log[σ(b) − σ(a)]` with its gradient by hand: a third of the passes over memory."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, log_scale: Tensor, value: Tensor, half: float, bound: float
    ) -> Tensor:
        sharpness = torch.exp(-log_scale)
        centred = (value - mean).mul_(sharpness)
        width = sharpness.mul_(2.0 * half)
        below = (value < bound - half).to(mean.dtype)  # the top level reaches to +∞
        above = (value > half - bound).to(mean.dtype)  # the lowest to −∞
        ctx.save_for_backward(centred, width, below, above)
        ctx.half = half
        out = torch.log(torch.expm1(-width).neg_()).mul_(below * above)
        out.sub_(softplus(torch.add(centred, width, alpha=0.5).neg_(), threshold=40.0).mul_(below))
        out.sub_(softplus(torch.add(centred, width, alpha=-0.5), threshold=40.0).mul_(above))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        centred, width, below, above = ctx.saved_tensors
        upper = torch.add(centred, width, alpha=0.5).neg_().sigmoid_().mul_(below)
        lower = torch.add(centred, width, alpha=-0.5).sigmoid_().mul_(above)
        by_width = torch.expm1(width).reciprocal_().mul_(below * above)
        by_width.add_(upper + lower, alpha=0.5).mul_(width)
        by_centre = upper.sub_(lower)
        by_log_scale = by_width.addcmul_(by_centre, centred).mul_(grad).neg_()
        by_mean = by_centre.mul_(width).mul_(grad).div_(-2.0 * ctx.half)
        return by_mean, by_log_scale, None, None, None
