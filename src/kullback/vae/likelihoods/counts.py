"""Likelihoods of counts 0, 1, 2, … without an upper end: Poisson and negative binomial.

Which to use: `Counts` with law "negative_binomial" for what varies more than a Poisson law does
(sequencing reads, events, words); "zero_inflated_negative_binomial" where zeros have a cause of
their own; "poisson" where the variance is the mean. All in float64, exact up to rounding.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from kullback.core import require

from ..limits import COUNT_LOG_DISPERSION, COUNT_LOG_RATE, COUNT_RARE_RATE
from ..networks import real

__all__ = ["COUNT_LAWS", "Counts"]

COUNT_LAWS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")


class Counts(nn.Module):
    """Independent counts with rates `μ_d = s/s₀ · e^{η_d}` from outputs η and a size factor s.

    - poisson: `log p(x|z) = Σ_d x_d log μ_d − μ_d − log x_d!`;
    - negative_binomial: `Σ_d log Γ(x_d+θ_d) − log Γ(θ_d) − log x_d! + θ_d log(θ_d/(θ_d+μ_d)) +
      x_d log(μ_d/(θ_d+μ_d))`, of variance μ + μ²/θ; θ_d is learned, one for each column;
    - zero_inflated_negative_binomial: 0 with probability π_d = σ(second output), else that.

    With size factors an event is `[D + 1]`, its last column is s, and log p is `log p(x | z, s)`:
    of the counts with s given. s itself has no probability here. So such figures cannot be compared
    with those of a model without size factors, and where s was computed from x (its total) they
    are no probabilities of x alone. Rates are held within e^−30 and e^20, θ within e^±15.
    Reference: Lopez et al. (2018), "Deep generative modeling for single-cell transcriptomics",
    Methods, where θ is one a gene and s the observed library size.

    Args:
        event_shape: `[D]`, or `[D + 1]` with size factors.
        law: "poisson", "negative_binomial" or "zero_inflated_negative_binomial".
        typical: s₀, the size factor at which means and draws are given; None without size factors.

    Raises:
        ArgumentValueError: Another law, or an event that is no vector.

    Example:
        >>> Counts((1,)).log_prob(torch.zeros(1, 1, 1), torch.tensor([[2.0]]))  # −1 − log 2!
        tensor([-1.6931])
        >>> sized = Counts((2,), typical=torch.tensor(10.0))
        >>> sized.log_prob(torch.zeros(1, 1, 1), torch.tensor([[0.0, 30.0]]))  # a rate of 3
        tensor([-3.])
    """

    typical: Tensor | None

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        law: str = "poisson",
        typical: Tensor | None = None,
    ) -> None:
        super().__init__()
        require(law in COUNT_LAWS, "law", f"one of {', '.join(COUNT_LAWS)}", repr(law))
        sized = typical is not None
        good = len(event_shape) == 1 and event_shape[0] > sized
        require(good, "event_shape", "a vector of counts, [D]", list(event_shape))
        self.law, self.places = law, event_shape[0] - sized
        self.channels = 2 if law == "zero_inflated_negative_binomial" else 1
        if law != "poisson":
            self.log_dispersion = nn.Parameter(torch.zeros(self.places))
        self.register_buffer("typical", None if typical is None else typical.float().clone())

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), or log p(x | z, s) with size factors, `[*draws, batch]`, in nats."""
        parameters, x = real(parameters), x.double()
        log_rate = parameters[..., 0, :].double()
        if self.typical is not None:
            log_rate = log_rate + (x[:, -1:] / self.typical).log()
            x = x[:, :-1]
        log_rate = log_rate.clamp(*COUNT_LOG_RATE)
        if self.law == "poisson":
            terms = x * log_rate - log_rate.exp() - torch.lgamma(x + 1)
        else:
            terms = self._log_negative_binomial(log_rate, x)
        if self.channels > 1:
            logit = parameters[..., 1, :].double()
            counted = terms - softplus(logit, threshold=40.0)
            inflated = torch.logaddexp(-softplus(-logit, threshold=40.0), counted)
            terms = torch.where(x == 0, inflated, counted)
        return terms.sum(-1).to(parameters.dtype)

    def _log_negative_binomial(self, log_rate: Tensor, x: Tensor) -> Tensor:
        log_dispersion = self._log_dispersion()
        dispersion, apart = log_dispersion.exp(), log_rate - log_dispersion
        ways = torch.lgamma(x + dispersion) - torch.lgamma(dispersion) - torch.lgamma(x + 1)
        none = dispersion * softplus(apart, threshold=40.0)  # θ log(1 + μ/θ)
        return ways - none - x * softplus(-apart, threshold=40.0)

    def _log_dispersion(self) -> Tensor:
        return self.log_dispersion.double().clamp(*COUNT_LOG_DISPERSION)

    def _rates(self, parameters: Tensor) -> Tensor:
        """Return the rates at the typical size, `[*lead, D]`."""
        return real(parameters)[..., 0, :].double().clamp(*COUNT_LOG_RATE).exp()

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the expected counts at the typical size (a last column), `[*lead, *event]`."""
        rates = self._rates(parameters)
        if self.channels > 1:
            rates = rates * torch.sigmoid(-real(parameters)[..., 1, :].double())
        return self._with_size(rates)

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw counts at the typical size (a last column), as floats, `[*lead, *event]`."""
        rates = self._rates(parameters).detach()
        if self.law != "poisson":
            shape = self._log_dispersion().detach().exp().expand(rates.shape).contiguous()
            rates = rates * (torch._standard_gamma(shape, generator=generator) / shape)
        counts = torch.poisson(rates, generator=generator)
        if self.channels > 1:
            share = torch.sigmoid(-real(parameters)[..., 1, :].detach())
            counts = counts * torch.bernoulli(share, generator=generator)
        return self._with_size(counts)

    def _with_size(self, counts: Tensor) -> Tensor:
        if self.typical is not None:
            size = self.typical.double().expand(*counts.shape[:-1], 1)
            counts = torch.cat([counts, size], -1)
        return counts.float()

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return log rates of the data's mean counts, and a share of 5 % of zeros of their own."""
        counts = mean if self.typical is None else mean[:-1]
        log_rate = counts.double().clamp(min=COUNT_RARE_RATE).log().float().unsqueeze(0)
        return torch.cat([log_rate, torch.full_like(log_rate, -3.0)][: self.channels])
