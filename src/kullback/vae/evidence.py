"""Bounds on log p(x), image by image, in memory that does not grow with the number of draws.

The encoder runs once per image; the decoder runs in blocks of rows small enough for the cache.
Nothing here keeps a graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kullback.core import Estimate, require
from kullback.sampled import effective_sample_size, log_mean_exp

from .latents import (
    Codes,
    Posterior,
    Prior,
    exact_kl,
    fixed,
    kl_given_above,
    log_ratio,
    numbers_of,
)
from .likelihoods import Likelihood
from .limits import DECODER_OUTPUTS, DECODER_OUTPUTS_ON_GPU

__all__ = ["Bounds", "bounds", "over_images", "skip_noise"]


class LatentVariableModel(Protocol):
    """The four things a bound needs of a model."""

    likelihood: Likelihood
    prior: Prior

    def approximate_posterior(self, x: Tensor) -> Posterior:
        """Return q(z|x)."""
        ...

    def parameters_of(self, z: Tensor) -> Tensor:
        """Return the likelihood's parameters at z."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """Per-image figures, `[n]` each, in nats; `draws` draws of q(z|x) an image.

    Args:
        elbo: Mean log-likelihood less the rate, a lower bound on log p(x) in expectation.
        importance_weighted: `L_K = log mean w`, the tighter one.
        rate: KL(q(z|x) ‖ p(z)): exact where the prior has a formula, else from the draws, unbiased
            (see `latents.kl_of_draws`).
        distortion: Minus the mean log-likelihood.
        effective_draws: Kong's effective sample size, of the K draws.
        mean: Of q(z|x), `[n, latent]`, as `moments` of it gives them.
        log_sd: As `mean`.
        draws: K.
        exact_rate: Whether the rate has no error from the draws.
        kl: With the rate as its sum, `[n, latent]`, or `[n, 1]` where it is no sum over dimensions;
            None in bounds made by hand.
    """

    elbo: Tensor
    importance_weighted: Tensor
    rate: Tensor
    distortion: Tensor
    effective_draws: Tensor
    mean: Tensor
    log_sd: Tensor
    draws: int
    exact_rate: bool = True
    kl: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Draws of q(z|x) for each x, rows the decoder takes at once, and the source of noise."""

    draws: int
    rows: int
    generator: torch.Generator


@torch.no_grad()
def bounds(
    model: LatentVariableModel, x: Tensor, *, draws: int, generator: torch.Generator
) -> Bounds:
    """Return `L_K(x) = log (1/K) Σ_k p(x, z_k)/q(z_k|x)` and its parts for every x (MATH 2.5).

    Memory: one block of decoder rows and the K log-weights of a few images.
    Reference: Burda, Grosse and Salakhutdinov (2016), "Importance weighted autoencoders", eq. 8.

    Args:
        model: Any with an encoder, a decoder, a likelihood and a prior.
        x: `[n, *event]` in the data's units.
        draws: K ≥ 1.
        generator: Source of the draws, taken in order of the images.

    Returns:
        Figures per image.

    Raises:
        ArgumentValueError: No draws.

    Example:
        >>> from .model import build
        >>> model = build((4,), "binary")
        >>> figures = bounds(model, torch.ones(3, 4), draws=8, generator=torch.Generator())
        >>> figures.importance_weighted.shape
        torch.Size([3])
    """
    require(draws >= 1, "draws", "at least 1", draws)
    q, prior = model.approximate_posterior(x), fixed(model.prior)
    kl, (mean, log_sd) = exact_kl(prior, q), q.moments()
    rows = _rows(model, prior, q)
    images = max(1, rows // draws)  # images a block of log-weights covers
    blocks = _Blocks(draws, rows, generator)
    elbo, weighted, effective, ratios, layered = [], [], [], [], []
    for start in range(0, len(x), images):
        part = slice(start, start + images)
        likelihood, ratio, given_above = _log_terms(model, prior, x[part], q[part], blocks)
        if given_above is not None:
            layered.append(given_above)
        log_weights = likelihood + ratio
        ratios.append(ratio.mean(0))
        elbo.append(likelihood.mean(0))
        weighted.append(log_mean_exp(log_weights, dim=0))
        effective.append(effective_sample_size(log_weights, dim=0))
    log_likelihood, exact = torch.cat(elbo), kl is not None
    kl = torch.cat(layered) if layered and kl is None else kl
    kl = -torch.cat(ratios).unsqueeze(-1) if kl is None else kl
    rate = kl.sum(-1)
    return Bounds(
        elbo=log_likelihood - rate,
        importance_weighted=torch.cat(weighted),
        rate=rate,
        distortion=-log_likelihood,
        effective_draws=torch.cat(effective),
        mean=mean,
        log_sd=log_sd,
        draws=draws,
        exact_rate=exact or isinstance(q, Codes),
        kl=kl,
    )


def _rows(model: LatentVariableModel, prior: Prior, q: Posterior) -> int:
    """Return how many rows decoder and prior should take at once, at least one."""
    most = DECODER_OUTPUTS_ON_GPU if q.centre.is_cuda else DECODER_OUTPUTS
    return max(1, most // max(numbers_of(prior), outputs_of(model, q)))


def outputs_of(model: LatentVariableModel, q: Posterior) -> int:
    """Return the most numbers that decoder and likelihood compute of one row, at least 1."""
    numbers = getattr(model.likelihood, "numbers", 0)  # what a likelihood computes besides
    return max(1, numbers, model.parameters_of(q.centre[:1]).numel())


def _log_terms(
    model: LatentVariableModel,
    prior: Prior,
    x: Tensor,
    q: Posterior,
    blocks: _Blocks,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return log p(x|z) and log p(z) − log q(z|x), `[draws, batch]` each, by blocks of draws.

    And `kl_given_above` of all draws, `[batch, latent]` or None.
    """
    draws, given_above = blocks.draws, None
    likelihood = q.centre.new_empty(draws, len(x))
    ratio = q.centre.new_empty(draws, len(x))
    start = 0
    for noise in _noise(q.centre.shape, blocks):
        count = len(noise)
        drawn = q.draw(noise.to(q.centre.dtype))
        part = slice(start, start + count)
        start += count
        likelihood[part] = model.likelihood.log_prob(model.parameters_of(drawn.z), x)
        ratio[part] = log_ratio(prior, q, drawn)
        kl = kl_given_above(prior, q, drawn)
        if kl is not None:
            kl = kl * (count / draws)
            given_above = kl if given_above is None else given_above + kl
    return likelihood, ratio, given_above


def _noise(shape: torch.Size, blocks: _Blocks) -> Iterator[Tensor]:
    """Yield the noise of all draws for images of a `shape` `[batch, latent]`, by blocks."""
    generator, block = blocks.generator, max(1, blocks.rows // shape[0])
    for start in range(0, blocks.draws, block):
        count = min(block, blocks.draws - start)
        yield torch.randn((count, *shape), generator=generator, device=generator.device)


@torch.no_grad()
def skip_noise(
    model: LatentVariableModel, x: Tensor, *, draws: int, generator: torch.Generator
) -> None:
    """Take from the generator what `bounds` would take of it, and compute nothing else.

    Args:
        model: As in `bounds`.
        x: As in `bounds`; of its values nothing depends.
        draws: As in `bounds`.
        generator: As in `bounds`; the next bounds are then the same as if these had been computed.
    """
    q, prior = model.approximate_posterior(x[:1]), fixed(model.prior)
    rows = _rows(model, prior, q)
    images, blocks = max(1, rows // draws), _Blocks(draws, rows, generator)
    for start in range(0, len(x), images):
        count = min(images, len(x) - start)
        for _ in _noise(torch.Size((count, *q.centre.shape[1:])), blocks):
            pass


def over_images(terms: Tensor, **more: Any) -> Estimate:
    """Return `Estimate.from_terms`, or for a single image its value without an error."""
    if len(terms) > 1:
        return Estimate.from_terms(terms, **more)
    alone = Estimate(float(terms[0]), 0.0, 1, **more)
    return alone.without_error("there is one example only, and errors are over examples")
