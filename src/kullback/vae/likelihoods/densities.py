"""Densities: `Gaussian`, with Laplace's and Student's law, and `ContinuousBernoulli`.

For continuous data only: a density on levels or counts has no finite maximum.
"""

import math

import torch
from torch import Tensor, nn

from kullback.core import require
from kullback.exact import HALF_LOG_2PI

from ..limits import CONTINUOUS_SERIES
from ..networks import real
from .events import Event

__all__ = ["ContinuousBernoulli", "Gaussian"]


class Gaussian(nn.Module):
    """Independent normals: `x_d ~ N(location_d + spread_d·m_d, (spread_d·sd_d)²)`, or heavier laws.

    With `law` "laplace" or "student" the density of x is that of Laplace's or Student's law with
    the same location, of scale spread_d·sd_d; the degrees of freedom of the latter are learned,
    above 1 so that there is a mean.

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
        law: "normal", "laplace" or "student".

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
        law: str = "normal",
    ) -> None:
        super().__init__()
        require(law in LAWS, "law", f"one of {', '.join(LAWS)}", repr(law))
        self.law = law
        self.event = Event(event_shape)
        self.channels = self.event.colours
        sizes = () if spread is None else (event_shape[0], *[1] * (len(event_shape) - 1))
        start = torch.full(sizes[:1], float(log_sd))
        self.sizes = sizes
        self.log_sd = nn.Parameter(start, requires_grad=learned)
        if law == "student":
            self.log_freedom = nn.Parameter(torch.full_like(start, FIRST_LOG_FREEDOM))
        self.register_buffer("location", None if location is None else location.clone())
        self.register_buffer("spread", None if spread is None else spread.clone())

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), a log density, `[*draws, batch]`, in nats."""
        log_sd, freedom = self._log_sd(), self._freedom()
        volume: Tensor | None = None
        if self.spread is not None and self.location is not None:
            x = (x - self.location) / self.spread
            volume = self.spread.double().log().sum().to(log_sd.dtype)
            log_sd = log_sd.expand(self.spread.shape).flatten()
            if freedom is not None:
                freedom = freedom.expand(self.spread.shape).flatten()
        error = (x.flatten(1) - parameters.flatten(-2)) * torch.exp(-log_sd)
        density = (self._log_density(error, freedom) - log_sd).sum(-1)
        return density if volume is None else density - volume

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the decoder's output in the caller's units, `[*lead, *event]`."""
        return self._outside(self.event.join(parameters))

    def _log_density(self, error: Tensor, freedom: Tensor | None) -> Tensor:
        """Return the log density of the law at errors in units of its scale."""
        if self.law == "laplace":
            return -error.abs() - math.log(2.0)
        if freedom is None:
            return -0.5 * error**2 - HALF_LOG_2PI
        v = freedom.double()  # differences of log Γ at large v lose all digits of float32
        constant = torch.lgamma(0.5 * (v + 1)) - torch.lgamma(0.5 * v) - 0.5 * (v * math.pi).log()
        tails = 0.5 * (freedom + 1) * torch.log1p(error**2 / freedom)
        return constant.to(error.dtype) - tails

    def _freedom(self) -> Tensor | None:
        """Return Student's degrees of freedom, above 1."""
        if self.law != "student":
            return None
        return 1.0 + real(self.log_freedom).clamp(max=MAX_LOG_FREEDOM).exp().reshape(self.sizes)

    def _noise(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        """Draw from the law with scale 1, as mean."""
        freedom, device = self._freedom(), mean.device
        if self.law == "laplace":
            u = torch.rand(mean.shape, generator=generator, device=device, dtype=torch.float64)
            return _laplace_of(u).to(mean.dtype)
        noise = torch.randn(mean.shape, generator=generator, device=device)
        if freedom is None:
            return noise
        half = (0.5 * freedom).detach().expand(mean.shape).contiguous()
        squared: Tensor = torch._standard_gamma(half, generator=generator) / half
        return noise * squared.rsqrt()

    def _log_sd(self) -> Tensor:
        return self.log_sd.clamp(min=-7.0).reshape(self.sizes)

    def _outside(self, standard: Tensor) -> Tensor:
        if self.spread is None or self.location is None:
            return standard
        return self.location + self.spread * standard

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x, `[*lead, *event]`."""
        mean = self.event.join(parameters)
        noise = self._noise(mean, generator)
        return self._outside(mean + self._log_sd().exp() * noise)

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return the data's mean, in the units in which the decoder speaks."""
        if self.spread is not None and self.location is not None:
            mean = (mean - self.location) / self.spread
        return self.event.split(mean)[0]


LAWS = ("normal", "laplace", "student")
FIRST_LOG_FREEDOM = math.log(9.0)  # ten degrees of freedom: tails a little above a normal's
MAX_LOG_FREEDOM = 7.0  # 1,100 degrees of freedom are a normal law


class ContinuousBernoulli:
    """Independent densities on [0, 1]: `log p(x|z) = Σ_d x_d l_d − log((e^{l_d} − 1)/l_d)`.

    l are logits. The Bernoulli formula at values between 0 and 1, with the constant that makes it a
    density; of continuous values only (on 256 levels a density has no maximum).
    Reference: Loaiza-Ganem and Cunningham (2019), "The continuous Bernoulli", eq. 5.

    Args:
        event_shape: `[C, *spatial]` or `[D]`.

    Example:
        >>> ContinuousBernoulli((2,)).log_prob(torch.zeros(1, 1, 2), torch.tensor([[0.3, 1.0]]))
        tensor([0.])
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        self.event = Event(event_shape)
        self.channels = self.event.colours

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), a log density, `[*draws, batch]`, in nats."""
        logits = real(parameters).flatten(-2)
        return ((x.flatten(1) - 0.5) * logits - _log_sinh_ratio(0.5 * logits)).sum(-1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the expected x, `1/(1 − e^{−l}) − 1/l`, `[*lead, *event]`."""
        return self.event.join(_continuous_mean(real(parameters)))

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x by the inverse of its distribution function, `[*lead, *event]`."""
        logits = real(parameters)
        u = torch.rand(logits.shape, generator=generator, device=logits.device)
        below, share = -logits.abs(), torch.where(logits > 0, 1.0 - u, u)
        small = below > -CONTINUOUS_SERIES
        safe = torch.where(small, -1.0, below)
        drawn = torch.log1p(share * torch.expm1(safe)) / safe
        drawn = torch.where(small, share + 0.5 * below * share * (1.0 - share), drawn)
        return self.event.join(torch.where(logits > 0, 1.0 - drawn, drawn).clamp(0.0, 1.0))

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return the logits whose mean is the data's, by bisection within ±50."""
        wanted = self.event.split(mean)[0]
        low, high = torch.full_like(wanted, -50.0), torch.full_like(wanted, 50.0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = _continuous_mean(middle) > wanted
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return 0.5 * (low + high)


def _laplace_of(u: Tensor) -> Tensor:
    """Return what Laplace's law of scale 1 has below it with probability u."""
    centred = u - 0.5
    return -centred.sign() * torch.log1p(-2.0 * centred.abs())


def _log_sinh_ratio(h: Tensor) -> Tensor:
    """Return log(sinh(h)/h), by its series near 0."""
    size = h.abs()
    small = size < CONTINUOUS_SERIES
    safe = torch.where(small, 1.0, size)
    direct = safe + torch.log1p(-torch.exp(-2.0 * safe)) - torch.log(2.0 * safe)
    square = torch.where(small, h * h, 0.0)
    return torch.where(small, square * (1 / 6 - square * (1 / 180 - square / 2835)), direct)


def _continuous_mean(logits: Tensor) -> Tensor:
    small = logits.abs() < 2 * CONTINUOUS_SERIES
    safe = torch.where(small, 1.0, logits)
    direct = torch.where(safe > 0, 1.0, torch.exp(safe)) / -torch.expm1(-safe.abs())
    direct = torch.where(safe > 0, direct, -direct) - 1.0 / safe
    near = torch.where(small, logits, 0.0)
    series = 0.5 + near * (1 / 12 - near**2 * (1 / 720 - near**2 / 30240))
    return torch.where(small, series, direct)
