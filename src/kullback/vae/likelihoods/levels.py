"""Bits and levels: `Bernoulli`, `Categorical`, `BetaBinomial`, `DiscretisedLogistics`.

`Event` says where an event's numbers lie; `Likelihood` what a VAE asks of any likelihood.

Sums with a hand-written gradient, equal to their plain PyTorch form in fewer passes over memory:
`bernoulli_log_likelihood`, the log mass of a logistic between two edges, and, on a CPU with a C
compiler, the whole mixture of logistics (`step.c`, which `library` compiles).
"""

import copy
import ctypes
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from kullback.core import compiling

from ..limits import BETA_LOG_SHAPE
from ..networks import real

__all__ = [
    "SOURCE",
    "Bernoulli",
    "BetaBinomial",
    "Categorical",
    "DiscretisedLogistics",
    "Event",
    "Likelihood",
    "as_read",
    "bernoulli_log_likelihood",
    "bernoulli_total",
    "bernoulli_value",
    "in_c",
    "in_threads",
    "library",
    "log_mass",
]

SOURCE = Path(__file__).with_name("step.c")
_POINTER, _WHOLE, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "centre_bits": ([_POINTER] * 4 + [_WHOLE] * 2, None),
    "activate": ([_POINTER] * 3 + [_WHOLE] * 2 + [ctypes.c_int], None),
    "deactivate": ([_POINTER] * 3 + [_WHOLE] * 2 + [ctypes.c_int], None),
    "sample_latent": ([_POINTER] * 4 + [_WHOLE] * 2 + [_REAL], ctypes.c_double),
    "sample_latent_back": ([_POINTER] * 5 + [_WHOLE] * 2 + [_REAL] * 2, None),
    "bernoulli": ([_POINTER] * 4 + [_WHOLE] * 2 + [_REAL], ctypes.c_double),
    "squares": ([_POINTER, _WHOLE], ctypes.c_double),
    "adam": ([_POINTER] * 4 + [_WHOLE] * 4 + [ctypes.c_double] * 2 + [_REAL] * 5, None),
    "logistic_mixture": (
        [_POINTER] * 6 + [_WHOLE] * 9 + [_REAL] * 2 + [ctypes.c_int],
        ctypes.c_int,
    ),
    "bits_in_context": ([_POINTER] * 5 + [_WHOLE] * 6 + [ctypes.c_int], None),
    "bits_in_context_back": ([_POINTER] * 6 + [_WHOLE] * 7 + [ctypes.c_int], None),
    "scale_rows": ([_POINTER] * 3 + [_WHOLE] * 3 + [ctypes.c_int], None),
}


def library() -> ctypes.CDLL | None:
    """Return `step.c`, compiled, or None where that cannot be had."""
    loaded, _ = compiling.load(SOURCE)
    if loaded is not None:
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, result
    return loaded


class Event:
    """An event `[C, *spatial]` as C colours at some places; a vector `[D]` is one colour, D places.

    patch: side of the square patches whose pixels lie side by side in memory, where it is not 0:
    the axes are then (patch, colour, place in the patch).

    Example:
        >>> Event((3, 8, 8)).places
        64
        >>> Event((3, 8, 8), patch=4).split(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 4, 3, 16])
    """

    def __init__(self, event_shape: tuple[int, ...], *, patch: int = 0) -> None:
        self.shape = tuple(event_shape)
        self.colours = event_shape[0] if len(event_shape) > 1 else 1
        self.patch = patch
        self.places = patch**2 or math.prod(event_shape) // self.colours
        self.axes = 3 if patch else 2

    def split(self, x: Tensor) -> Tensor:
        """Reshape `[batch, *event]` to `[batch, colours, places]`; one event becomes a batch."""
        if not self.patch:
            return x.reshape(-1, self.colours, self.places)
        rows, columns = (size // self.patch for size in self.shape[1:])
        cells = x.reshape(-1, self.colours, rows, self.patch, columns, self.patch)
        return cells.permute(0, 2, 4, 1, 3, 5).reshape(
            -1, rows * columns, *self.shape[:1], self.places
        )

    def matches(self, parameters: Tensor, channels: int, x: Tensor) -> bool:
        """Say whether parameters are `[*draws, batch, (patches,) channels, places]` for x's batch.

        That is how C reads them, without a look at their shape. An x of one event is for any batch.
        """
        batch, places = x.numel() // math.prod(self.shape), math.prod(self.shape[1:])
        patches = [places // self.places] if self.patch else []
        wanted = (*patches, channels, self.places)
        own = parameters.shape[-self.axes - 1] if parameters.dim() > self.axes else 1
        return parameters.shape[-self.axes :] == wanted and batch in (1, own)

    def join(self, x: Tensor) -> Tensor:
        """Reshape `[*lead, colours, places]` to `[*lead, *event]`."""
        lead = x.shape[: -self.axes]
        if not self.patch:
            return x.reshape(*lead, *self.shape)
        rows, columns = (size // self.patch for size in self.shape[1:])
        cells = x.reshape(-1, rows, columns, self.colours, self.patch, self.patch)
        return cells.permute(0, 3, 1, 4, 2, 5).reshape(*lead, *self.shape)

    def in_rows(self, parameters: Tensor) -> Tensor:
        """Bring `[*lead, (patches,) channels, places]` to `[*lead, channels, all places]`."""
        if not self.patch:
            return parameters
        lead, channels = parameters.shape[: -self.axes], parameters.shape[-2]
        rows, columns = (size // self.patch for size in self.shape[1:])
        cells = parameters.reshape(-1, rows, columns, channels, self.patch, self.patch)
        return cells.permute(0, 3, 1, 4, 2, 5).reshape(*lead, channels, math.prod(self.shape[1:]))


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

    def unit(self, x: Tensor) -> Tensor:
        """Return −1 and 1 for 0 and 1: what `Neighbours` weighs."""
        return 2.0 * real(x) - 1.0

    @property
    def moves(self) -> int:
        """How many parameters a place has that move with others' values: a logit a colour."""
        return self.channels

    def movers(self, values: Tensor) -> Tensor:
        """Return what each of them moves with: the same colour's value."""
        return values

    def moved(self, parameters: Tensor, shift: Tensor) -> Tensor:
        """Return logits with shift `[*lead, colours, places]` added."""
        return real(parameters) + shift

    def at(self, places: int) -> "Bernoulli":
        """Return bits at as many places, of as many colours."""
        return Bernoulli((self.event.colours, places))


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
    grouped = (*logits.shape[:-1], logits.shape[-1] // group, group)
    factors = logits.abs().sigmoid_().reshape(grouped)
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


class BetaBinomial:
    """Levels 0 … n as n coins whose bias is Beta(a, b): two outputs, log a and log b, a value.

    `log p(x|z) = Σ_d log C(n, x_d) + log B(x_d + a_d, n − x_d + b_d) − log B(a_d, b_d)`: exact, in
    float64. It has one peak, or two at both ends.
    Reference: Townsend, Bird and Barber (2019), "Practical lossless compression with latent
    variables using bits back coding", section 3.2.

    Args:
        event_shape: `[C, *spatial]` or `[D]`.
        levels: How many values there are, n + 1.

    Example:
        >>> BetaBinomial((1,), levels=4).log_prob(torch.zeros(1, 2, 1), torch.tensor([[3]])).exp()
        tensor([0.2500])
    """

    def __init__(self, event_shape: tuple[int, ...], levels: int = 256) -> None:
        self.event = Event(event_shape)
        self.top = levels - 1
        self.channels = 2 * self.event.colours

    def _shapes(self, parameters: Tensor) -> tuple[Tensor, Tensor]:  # [*lead, colours, places]
        low, high = BETA_LOG_SHAPE
        pair = real(parameters).double().clamp(low, high).exp().chunk(2, -2)
        return pair[0], pair[1]

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats."""
        a, b = self._shapes(parameters)
        up = self.event.split(x).double()
        down, whole = self.top - up, a + b
        ways = math.lgamma(self.top + 1) - torch.lgamma(up + 1) - torch.lgamma(down + 1)
        joint = torch.lgamma(up + a) + torch.lgamma(down + b) - torch.lgamma(whole + self.top)
        alone = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(whole)
        return (ways + joint - alone).flatten(-2).sum(-1).to(real(parameters).dtype)

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the exact expected level, `n a/(a + b)`, `[*lead, *event]`."""
        a, b = self._shapes(parameters)
        return self.event.join(self.top * a / (a + b)).to(real(parameters).dtype)

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw levels, as floats, `[*lead, *event]`."""
        a, b = (
            torch._standard_gamma(shape.detach().contiguous(), generator=generator)
            for shape in self._shapes(parameters)
        )
        bias = torch.where(a + b > 0, a / (a + b), 0.5)
        count = torch.full_like(bias, self.top)
        return self.event.join(torch.binomial(count, bias, generator=generator)).float()

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return log a and log b with the data's mean and a + b = 2."""
        share = self.event.split(mean)[0] / self.top
        share = share.clamp(0.01, 0.99)
        return torch.cat([(2 * share).log(), (2 * (1 - share)).log()])


class DiscretisedLogistics(nn.Module):
    """A mixture of K logistics, each integrated over the width of one of `levels` levels.

    `log p(x|z) = Σ_places log Σ_k π_k Π_c [σ(b_c) − σ(a_c)]`, where a and b are the standardised
    lower and upper edge of level x_c; the lowest level reaches to −∞, the highest to +∞, so the
    levels' probabilities sum to one exactly. Colours of one place share the component, and the
    mean of a later colour moves linearly with the earlier ones: that of green with red, that of
    blue with red and green.

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
        dependent: Whether a colour's mean moves with the earlier ones; without, colours share the
            component alone and there are no colour weights.
        patch: Of `Event`; parameters are then `[*lead, patches, channels, places in a patch]`.

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
        patch: int = 0,
        dependent: bool = True,
    ) -> None:
        super().__init__()
        self.event = Event(event_shape, patch=patch)
        self.components, self.levels = components, levels
        colours = self.event.colours
        self.pairs = colours * (colours - 1) // 2 if dependent else 0
        self.channels = components * (1 + 2 * colours + self.pairs)
        self.least = -7.0 - max(0.0, math.log((levels - 1) / 255))
        unit = None if spread is None else spread * (2.0 / (levels - 1))
        self.register_buffer("centre", None if centre is None else self.unit(centre))
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
        for earlier in range(colour if self.pairs else 0):
            value = values[..., earlier, :].unsqueeze(-2)
            moved = moved + weights[..., first + earlier, :, :] * value
        return moved

    def unit(self, x: Tensor) -> Tensor:
        """Return levels 0 … n−1 as values in [−1, 1], the scale of the means."""
        return real(x) * (2.0 / (self.levels - 1)) - 1.0

    @property
    def moves(self) -> int:
        """How many parameters a place has that move with others' values: K logits, C means."""
        return self.components + self.event.colours

    def movers(self, values: Tensor) -> Tensor:
        """Return what each moves with, of `[..., C, places]`: the colours' mean, or its own."""
        grey = values.mean(-2, keepdim=True)
        return torch.cat([grey.expand(*values.shape[:-2], self.components, -1), values], -2)

    def moved(self, parameters: Tensor, shift: Tensor) -> Tensor:
        """Return parameters with shift `[*lead, K + C, places]`: of logits, of a colour's means."""
        k = self.components
        end = k * (1 + self.event.colours)
        logits, means, rest = torch.tensor_split(parameters, (k, end), -2)
        means = means + shift[..., k:, :].repeat_interleave(k, -2)
        return torch.cat([logits + shift[..., :k, :], means, real(rest)], -2)

    def at(self, places: int) -> "DiscretisedLogistics":
        """Return this mixture at as many places, of as many colours."""
        part = copy.copy(self)
        part.event = Event((self.event.colours, places))
        return part

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats.

        Without patches and where no gradient is asked for the plain form is used, so that runs made
        before the compiled one keep their figures to the last bit.
        """
        if self.compiles(parameters) and self.event.matches(parameters, self.channels, x):
            return self.compiled(parameters, x)
        log_pi, means, log_scales, weights = self._unpack(parameters)
        values = self.unit(self.event.split(x))
        half = 1.0 / (self.levels - 1)
        total = log_pi
        for colour in range(self.event.colours):
            here = values[..., colour, :].unsqueeze(-2)  # [batch, 1, places]
            mean = self._moved(means, weights, values, colour)
            total = total + log_mass(mean, log_scales[..., colour, :, :], here, half)
        each = torch.logsumexp(total, -2)
        return each.flatten(-2).sum(-1) if self.event.patch else each.sum(-1)

    def compiled(self, parameters: Tensor, x: Tensor, around: Tensor | None = None) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats, from the compiled form.

        Args:
            parameters: For which `compiles` and `Event.matches` hold; behind the mixture's own
                channels, where `around` is given, `moves` weights for each neighbour or feature.
            x: `[batch, *event]`.
            around: The neighbours' values as `unit` gives them, a neighbour after the other,
                `[batch, (patches,) neighbours * C, places]`; or features that all colours share,
                `[batch, (patches,) features, places]`.

        Returns:
            With a gradient to the parameters and to around.
        """
        out: Tensor = _Mixture.apply(parameters, self.event.split(x), around, self)  # type: ignore[no-untyped-call]
        return out

    def compiles(self, parameters: Tensor) -> bool:
        """Say whether `log_prob` takes the compiled form: on a CPU, in units of the levels."""
        if not (self.event.patch or (torch.is_grad_enabled() and parameters.requires_grad)):
            return False
        weighted = self.pairs > 0 or self.event.colours == 1  # it has the colour weights
        return self.spread is None and weighted and in_c(parameters)

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
        flat = Event(self.event.shape)
        bias = mean.new_zeros(self.channels, flat.places)
        if self.spread is not None:
            around = torch.linspace(-1.0, 1.0, k) if k > 1 else torch.zeros(1)
            around = around.to(mean.device).repeat(colours)
            bias[k : k + k * colours] = around[:, None]
            bias[k + k * colours : k + 2 * k * colours] = math.log(math.sqrt(3.0) / math.pi)
            return bias
        spread = torch.linspace(-0.6, 0.6, k, device=mean.device) if k > 1 else mean.new_zeros(1)
        centre = self.unit(flat.split(mean)[0])  # [colours, places]
        around = (centre.unsqueeze(1) + spread[:, None]).clamp(-1.0, 1.0)
        bias[k : k + k * colours] = around.reshape(k * colours, -1)
        bias[k + k * colours : k + 2 * k * colours] = -1.5
        return bias


class _Mixture(torch.autograd.Function):
    """`DiscretisedLogistics.log_prob` in C: value and gradient in one pass over the parameters.

    parameters: `[*lead, (patches,) channels, places]`; x: `[batch, (patches,) colours, places]`;
    around: None, or as in `DiscretisedLogistics.compiled`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        parameters: Tensor,
        x: Tensor,
        around: Tensor | None,
        mixture: DiscretisedLogistics,
    ) -> Tensor:
        parameters, x = as_read(parameters), as_read(x.float())
        around = None if around is None else as_read(around.float())
        value = torch.empty(parameters.shape[: -mixture.event.axes])
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[2])
        ctx.gradients = _mixture_pass(mixture, (parameters, x, around), wanted, value)
        ctx.save_for_backward(parameters, x, around)
        ctx.mixture, ctx.wanted, ctx.items = mixture, wanted, len(x)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        factor = as_read(grad.float())
        if ctx.gradients is None:  # a second time: the first one's are scaled
            value = torch.empty(factor.shape)
            ctx.gradients = _mixture_pass(ctx.mixture, ctx.saved_tensors, ctx.wanted, value)
        (by, around), ctx.gradients = ctx.gradients, None
        if by is not None:
            _scale(by, factor)
        if around is not None:
            each = around.reshape(-1, ctx.items, around[0].numel())  # draws, items
            summed = torch.einsum("dn,dni->ni", factor.reshape(each.shape[:2]), each)
            around = summed.reshape(-1, *around.shape[1:])
        return by, None, around, None


def _scale(by: Tensor, factor: Tensor) -> None:
    """Multiply every row's gradient by its factor, in place: by is as large as the parameters."""
    rows = factor.numel()
    pointers = [tensor.data_ptr() for tensor in (by, factor, by)]
    sizes = (by.numel() // rows, int(by.dtype == torch.bfloat16))
    in_threads(lambda a, b: library().scale_rows(*pointers, a, b, *sizes), rows)  # type: ignore[union-attr]


def in_c(parameters: Tensor) -> bool:
    """Say whether `step.c` takes parameters: some numbers on a CPU, where it compiles."""
    known = parameters.dtype in (torch.float32, torch.bfloat16)
    plain = known and parameters.device.type == "cpu" and parameters.numel() > 0
    return plain and library() is not None


def as_read(x: Tensor) -> Tensor:
    """Return x as C reads it: contiguous, without a negative bit."""
    return x.resolve_neg().contiguous()


def _mixture_pass(
    mixture: DiscretisedLogistics,
    given: tuple[Tensor, Tensor, Tensor | None],
    wanted: tuple[bool, bool],
    value: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """Write the log-likelihood of every row into value; return its gradients, None if not wanted.

    given: parameters, x and around, as in `_Mixture`. The gradients are by parameters, and each
    row's by around.
    """
    event, (parameters, x, around) = mixture.event, given
    by = torch.empty_like(parameters) if wanted[0] else None
    by_around = None
    if around is not None and wanted[1]:
        by_around = torch.empty((value.numel(), *around.shape[1:]))
    count = (parameters.shape[-2] - mixture.channels) // mixture.moves
    each = 0 if around is None else around.shape[-2] // count
    tensors = (parameters, x, around, by, by_around, value)
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    runs = math.prod(parameters.shape[-event.axes : -2])
    sizes = (len(x), runs, event.places, mixture.components, event.colours, count, each)
    half, narrow = 1.0 / (mixture.levels - 1), int(parameters.dtype == torch.bfloat16)

    def work(first: int, last: int) -> int:
        code: int = library().logistic_mixture(  # type: ignore[union-attr]  # see `compiles`
            *pointers, first, last, *sizes, half, mixture.least, narrow
        )
        return code

    if any(in_threads(work, value.numel())):
        raise MemoryError("of a block of a likelihood's places")
    return by, by_around


def in_threads(work: Callable[[int, int], Any], rows: int) -> list[Any]:
    """Call work(first, last) on as many parts of the rows as PyTorch has threads."""
    threads = max(1, min(torch.get_num_threads(), rows))
    ends = [rows * k // threads for k in range(threads + 1)]
    if threads == 1:
        return [work(0, rows)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, ends[:-1], ends[1:]))


def log_mass(
    mean: Tensor, log_scale: Tensor, value: Tensor, half: float, bound: float | Tensor = 1.0
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
        ctx: Any, mean: Tensor, log_scale: Tensor, value: Tensor, half: float, bound: float | Tensor
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
