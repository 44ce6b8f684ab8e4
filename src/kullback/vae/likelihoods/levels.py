"""Bits and levels with a parameter or a few a value: `Bernoulli`, `Categorical`, `BetaBinomial`.

`bernoulli_log_likelihood` has a hand-written gradient, equal to its plain PyTorch form in fewer
passes over memory. Levels by a mixture of logistics: `logistics`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..limits import BETA_LOG_SHAPE
from ..networks import real
from .events import Event

__all__ = [
    "Bernoulli",
    "BetaBinomial",
    "Categorical",
    "bernoulli_log_likelihood",
    "bernoulli_total",
    "bernoulli_value",
]


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
