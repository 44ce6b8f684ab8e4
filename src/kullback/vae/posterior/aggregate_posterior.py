"""The aggregate posterior q(z) = E_x q(z|x): how far it is from the prior, and I(x; z).

The rate E_x KL(q(z|x) ‖ p(z)) is I(x; z) + KL(q(z) ‖ p(z)) (Hoffman and Johnson 2016, "ELBO
surgery"). `aggregate` bounds both parts from both sides with the exact mixture over N items, which
biases them in known directions: with the item's own component in the mixture KL(q(z) ‖ p(z)) is too
high and I(x; z) too low (at most log N); without it the other way round.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kullback.core import Estimate, require
from kullback.exact import HALF_LOG_2PI
from kullback.sampled import log_mean_exp

from ..latents import (
    DiagonalGaussian,
    Encoded,
    InverseAutoregressive,
    Posterior,
    Prior,
    Quantised,
    TopDown,
    exact_kl,
    fixed,
    is_standard_normal,
    numbers_of,
)
from ..limits import (
    ACTIVE_KL,
    AGGREGATE_FLOW_ITEMS,
    AGGREGATE_ITEMS,
    AGGREGATE_PAIRS,
    DECODER_OUTPUTS,
    IMAGES_PER_BLOCK,
    INFORMATION_ITEMS,
)
from ..model import VAE, names_own_parts

__all__ = ["Aggregate", "aggregate", "aggregate_of", "aggregate_remarks", "information_of"]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """KL(q(z) ‖ p(z)) and I(x; z) of the population that N items are a sample of, in nats.

    Args:
        rate: E_x KL(q(z|x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ p(z)), exact for each item where the prior
            has a formula, else log q(z|x) − log p(z) at its draw.
        kl_low: A lower bound on KL(q(z) ‖ p(z)) by mixtures that leave the item out: where p has
            independent dimensions the sum over dimensions of KL(q(z_d) ‖ p(z_d)), else of all
            dimensions together, which is lower.
        kl_high: The rate less `information_low`.
        information_low: E log q(z|x)/q_N(z), at most log N.
        information_high: The rate less `kl_low`.
        rate_each: Rate per dimension, `[latent]`; this and what follows is None where dimensions of
            prior or q depend on each other, so that the KL is no sum over them.
        kl_low_each: KL(q(z_d) ‖ p(z_d)) per dimension from below, `[latent]`.
        kl_high_each: From above, `[latent]`.
        information_low_each: Rate less `kl_high_each`, I(x; z_d) from below, `[latent]`.
        information_high_each: Rate less `kl_low_each`, from above, `[latent]`.
        items: N.
    """

    rate: Estimate
    kl_low: Estimate
    kl_high: Estimate
    information_low: Estimate
    information_high: Estimate
    rate_each: Estimate | None
    kl_low_each: Estimate | None
    kl_high_each: Estimate | None
    information_low_each: Estimate | None
    information_high_each: Estimate | None
    items: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {k: v.to_dict() if isinstance(v, Estimate) else v for k, v in fields.items()}


@names_own_parts
def aggregate(model: VAE, x: Tensor, *, seed: int = 0) -> Aggregate:
    """Bound KL(q(z) ‖ p(z)) and I(x; z) with the mixture of q(z|x) over the first 2,000 items of x.

    With an inverse autoregressive flow or several layers over the first 300: their density takes
    several passes.

    Args:
        model: The model.
        x: `[n, *event]`, at least 3.
        seed: Of the draws, one of q(z|x) an item.

    Returns:
        The bounds, with errors over items.

    Raises:
        ArgumentValueError: Fewer than 3 items, a quantised posterior, or x does not fit the model.

    Example:
        >>> from ..model import build
        >>> x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
        >>> aggregate(build((2,), "binary"), x).items
        4
    """
    x = model.check(x)
    continuous = not isinstance(model.family, Quantised)
    require(continuous, "posterior", "a density q(z|x)", "quantised: one code for each x")
    most = AGGREGATE_ITEMS
    if isinstance(model.family, InverseAutoregressive | TopDown):  # log q takes several passes
        most = AGGREGATE_FLOW_ITEMS
    x = x[:most]
    with torch.no_grad():
        q = model.family(_encoded(model, x))
        generator = torch.Generator(x.device).manual_seed(seed)
        prior = fixed(model.prior)
        if isinstance(q, DiagonalGaussian):
            return aggregate_of(q.mean, q.log_sd, prior=prior, generator=generator)
        return _aggregate_jointly(q, prior, generator)


def information_of(
    model: VAE, x: Tensor, *, labels: Tensor | None = None, seed: int = 0
) -> Aggregate | None:
    """Return `aggregate` over the first 500 items, where it costs little beside an evaluation.

    Args:
        model: The model.
        x: `[n, *event]`.
        labels: Of x; with labels I(x; z) is not measured.
        seed: Of the draws.

    Returns:
        None where I(x; z) is not measured: with labels, fewer than 3 items, quantised codes, or q
        whose density takes several passes (a flow, several layers), which `aggregate` takes.

    Example:
        >>> from ..model import build
        >>> information_of(build((2,), "binary"), torch.ones(2, 2)) is None
        True
    """
    costly = isinstance(model.family, InverseAutoregressive | TopDown | Quantised)
    if costly or labels is not None or len(x) < 3:
        return None
    return aggregate(model, x[:INFORMATION_ITEMS], seed=seed)


def _encoded(model: VAE, x: Tensor) -> Encoded:
    """Return what the encoder gives for all of x, by blocks."""
    parts = [model.encoded(block) for block in torch.split(x, IMAGES_PER_BLOCK)]
    extra = [one.extra for one in parts if one.extra is not None]
    return Encoded(
        torch.cat([one.mean for one in parts]),
        torch.cat([one.log_sd for one in parts]),
        torch.cat(extra) if extra else None,
    )


def _aggregate_jointly(q: Posterior, prior: Prior, generator: torch.Generator) -> Aggregate:
    """Do what `aggregate` does for q whose dimensions depend on each other."""
    items = len(q.centre)
    require(items >= 3, "x", "at least 3 items", items)
    noise = torch.randn(q.centre.shape, generator=generator, device=q.centre.device)
    drawn = q.draw(noise.to(q.centre.dtype))
    rows = max(1, AGGREGATE_PAIRS // items)
    blocks = [q.log_prob(z.unsqueeze(1)) for z in torch.split(drawn.z, rows)]
    joint, own = torch.cat(blocks).double(), drawn.log_q.double()
    joint.diagonal().copy_(own)  # the same number without the rounding of an inverse
    within, without = _mixed(joint)
    log_p, kl = prior.log_prob(drawn.z).double(), exact_kl(prior, q)
    rate = own - log_p if kl is None else kl.double().sum(-1)
    most = _steadier(rate + log_p - without, own - without)
    return _of_dependent(rate, most, own - within, items)


def aggregate_of(
    mean: Tensor, log_sd: Tensor, *, prior: Prior | None = None, generator: torch.Generator
) -> Aggregate:
    """Do what `aggregate` does for q(z|x_n) = N(mean_n, sd_n²) and p(z), by default N(0, I).

    The error of each is that of a mean over items of the log ratio at a draw: to first order in
    1/N the mixture's own error does not add to it.

    Args:
        mean: `[items, latent]`, at least 3 items.
        log_sd: As `mean`.
        prior: p(z).
        generator: Source of the draws.

    Returns:
        The bounds.

    Raises:
        ArgumentValueError: Fewer than 3 items.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> found = aggregate_of(torch.zeros(5, 2), torch.zeros(5, 2), generator=generator)
        >>> abs(found.information_low.value) < 1e-12
        True
    """
    items = len(mean)
    require(items >= 3, "x", "at least 3 items", items)
    dtype, mean, log_sd = mean.dtype, mean.double(), log_sd.double()
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=torch.float64)
    z = mean + log_sd.exp() * noise
    joint, others, low, high = _mixtures(mean, log_sd, z)
    own_each = -0.5 * noise.square() - log_sd  # log q(z_d|x) without ½ log 2π, as all below
    own = own_each.sum(-1)
    information = own - joint
    if prior is not None and not is_standard_normal(prior):
        log_p = _log_density(prior, z.to(dtype))
        return _of_dependent(own - log_p, own - others, information, items)
    log_p = -0.5 * z.square()
    twice = 2 * log_sd
    rate = 0.5 * (mean.square() + torch.expm1(twice) - twice)
    total, most_each = rate.sum(-1), _steadier(rate - low + log_p, own_each - low)
    above = rate - most_each + high - low
    most = _steadier(total - (low - log_p).sum(-1), own - low.sum(-1))
    ceiling = f"the mixture is over {items:,} items, so it is at most log {items:,}"
    other = "the mixture leaves the item out and dimensions are taken one by one"
    without, within = "the mixture leaves the item out", "the mixture has the item itself"
    return Aggregate(
        rate=_over(total),
        kl_low=_over(total - most, bias="low", why=other),
        kl_high=_over(total - information, bias="high", why=ceiling),
        information_low=_over(information, bias="low", why=ceiling),
        information_high=_over(most, bias="high", why=other),
        rate_each=_over(rate.T),
        kl_low_each=_over((rate - most_each).T, bias="low", why=without),
        kl_high_each=_over(above.T, bias="high", why=within),
        information_low_each=_over((rate - above).T, bias="low", why=within),
        information_high_each=_over(most_each.T, bias="high", why=without),
        items=items,
    )


def _steadier(first: Tensor, second: Tensor) -> Tensor:
    """Return that of two estimates of the same mean whose terms over items vary less.

    log q(z|x) less its exact mean, and log p(z) less that of q, both have mean 0. Where all q(z|x)
    are alike the first cancels the noise of the mixture, where q(z) is near p(z) the second does.
    """
    return torch.where(first.var(0) <= second.var(0), first, second)


def _log_density(prior: Prior, z: Tensor) -> Tensor:
    """Return log p(z) + ½ log 2π a dimension, float64 `[items]`, a block of rows at a time."""
    rows = max(1, DECODER_OUTPUTS // numbers_of(prior))
    log_p = torch.cat([prior.log_prob(part) for part in torch.split(z, rows)])
    return log_p.double() + z.shape[1] * HALF_LOG_2PI


def _of_dependent(rate: Tensor, most: Tensor, information: Tensor, items: int) -> Aggregate:
    """Return the bounds where the KL is no sum over dimensions, from `[items]` each.

    rate: KL(q(z|x) ‖ p(z)), or log q(z|x) − log p(z) at a draw; most: log q(z|x) − log q(z) by
    mixtures that leave the item out; information: by those that have it.
    """
    ceiling = f"the mixture is over {items:,} items, so it is at most log {items:,}"
    other = "the mixture leaves the item out"
    return Aggregate(
        rate=_over(rate),
        kl_low=_over(rate - most, bias="low", why=other),
        kl_high=_over(rate - information, bias="high", why=ceiling),
        information_low=_over(information, bias="low", why=ceiling),
        information_high=_over(most, bias="high", why=other),
        rate_each=None,
        kl_low_each=None,
        kl_high_each=None,
        information_low_each=None,
        information_high_each=None,
        items=items,
    )


def _over(terms: Tensor, **more: Any) -> Estimate:
    return Estimate.from_terms(terms.cpu(), **more)


def _mixtures(mean: Tensor, log_sd: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log q(z) with and without the item itself `[N]`, and per dimension without and with.

    Without the constant ½ log 2π a dimension.
    """
    items, latent = mean.shape
    joint = z.new_zeros(items, items)
    low, high = torch.empty_like(z), torch.empty_like(z)
    for d in range(latent):
        scaled = (z[:, d, None] - mean[:, d]) * (-log_sd[:, d]).exp()
        log_density = -0.5 * scaled.square() - log_sd[:, d]
        joint += log_density
        high[:, d] = log_mean_exp(log_density)
        log_density.fill_diagonal_(-math.inf)
        low[:, d] = torch.logsumexp(log_density, -1) - math.log(items - 1)
    within, without = _mixed(joint)
    return within, without, low, high


def _mixed(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Return log mean of `[items, items]` densities, with and without the item itself."""
    within = log_mean_exp(joint)
    without = torch.logsumexp(joint.fill_diagonal_(-math.inf), -1) - math.log(len(joint) - 1)
    return within, without


def aggregate_remarks(found: Aggregate) -> list[str]:
    """Say what the aggregate posterior means: what I(x; z) is between, and which dimensions rest.

    Args:
        found: From `aggregate`.

    Returns:
        Sentences.

    Example:
        >>> found = aggregate_of(torch.zeros(5, 2), torch.zeros(5, 2), generator=torch.Generator())
        >>> aggregate_remarks(found)[-1][:20]
        '2 of 2 dimensions ca'
    """
    said = []
    if found.information_high.value - found.information_low.value > 1.0:
        said.append(
            f"I(x; z) from below is limited by log {found.items:,} = {math.log(found.items):.2f} "
            "nats, the most that so many items can tell apart."
        )
    if found.rate_each is None:
        said.append(
            "The KL to the prior is no sum over latent dimensions: there is none of a single one."
        )
        return said
    return [*said, *_unused_dimensions(found.rate_each.value, found.information_high_each)]


def _unused_dimensions(rates: Tensor, information: Estimate | None) -> list[str]:
    """Count the dimensions that say nothing about x, and what is paid for them."""
    carried = rates if information is None else information.value
    unused = carried < ACTIVE_KL
    count, latent = int(unused.sum()), len(rates)
    if not count:
        return []
    rest = f": --latent {latent - count} would hold the same code" if count < latent else ""
    paid = float(rates[unused].sum())
    return [
        f"{count} of {latent} dimensions carry less than {ACTIVE_KL:g} nats about x each; "
        f"their rate is {paid:.2g} nats together{rest}."
    ]
