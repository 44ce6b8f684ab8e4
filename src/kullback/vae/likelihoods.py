"""Likelihoods p(x|z): what the decoder's output means, for data of a given kind.

Which to use: `Bernoulli` for binary data; `kullback.vae.logistics.DiscretisedLogistics` for 8-bit
data (a probability for each of 256 levels which knows that neighbouring levels are alike);
`Categorical` for 8-bit data with no such assumption (256 outputs a pixel); `Gaussian` for
continuous data only: as a density on 8-bit data it would have no finite maximum, and
`kullback.vae.kinds.choose`, which picks by the kind of data, refuses it.

Shapes: an event is `[C, *spatial]`, or a vector `[D]` which counts as one channel of D places. The
decoder gives `parameters`, `[*lead, channels, places]`, where `channels` is what the likelihood
asks for and `places` the product of the spatial sizes. Log-likelihoods are summed over the event.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from .events import Event, real
from .fused import bernoulli_log_likelihood

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
]


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

    event_shape: `[C, *spatial]` or `[D]`; x is 0 or 1 everywhere (grey targets are not a
    likelihood: `VAE.check` refuses them). One channel of logits per colour.

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


class Categorical:
    """A free probability for each of `levels` values: `log p(x|z) = Σ_d log softmax(l_d)[x_d]`.

    event_shape: `[C, *spatial]` or `[D]`; x holds integers 0 … levels − 1. Exact. `levels` outputs
    per colour and place.

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
        index = index.expand(*table.shape[:-2], 1, table.shape[-1])
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

    m is the decoder's output. location, spread: the units in which it speaks, `[*event]`, fixed
    numbers (the training data's mean and deviation), so that the model sees standardised data
    while x, its mean, draws and density are in the caller's units: log p(x) is that of the
    standardised x less Σ log spread_d. sd is then one number a column or channel. Without them
    they are 0 and 1, and sd is one number for all.
    event_shape: `[C, *spatial]` or `[D]`; x is continuous. `log_sd` is a parameter, learned unless
    `learned=False`, and never below −7. For continuous data only: on 8-bit data its likelihood
    grows without bound as sd → 0.

    >>> wide = Gaussian((1,), learned=False, location=torch.zeros(1), spread=torch.full((1,), 2.0))
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
        density = (-0.5 * error**2 - log_sd - 0.5 * math.log(2.0 * math.pi)).sum(-1)
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
