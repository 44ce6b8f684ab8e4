"""Draws of a wider law: its density, what it corrects, and whose tails it names."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, StudentT

from kullback.sampled import pareto_k
from kullback.variational import fit
from kullback.variational.diagnostics.defensive_sampling import bends, draw_wider, pooled
from kullback.variational.diagnostics.diagnose import diagnose, ridges_of
from kullback.variational.diagnostics.evidence import Sample, by_weights, tail_ratio
from kullback.variational.families.family import Frame

F64 = torch.float64
Z = 4.5


def gaussian_draws(n, scale, seed=0):
    noise = torch.randn(n, len(scale), generator=torch.Generator().manual_seed(seed), dtype=F64)
    q = MultivariateNormal(torch.zeros(len(scale), dtype=F64), scale_tril=scale)
    return noise @ scale.mT, q.log_prob


@pytest.mark.parametrize("dim", [1, 3, 25])
def test_draws_and_density_are_of_one_law(dim):
    """E[f / wide] = 1 for any normalised f: normal ones, narrower, wider and off to a side."""
    scale = torch.eye(dim, dtype=F64) + 0.5 * torch.ones(dim, dim, dtype=F64).tril(-1)
    z, log_q = gaussian_draws(1000, scale)
    wide = draw_wider(log_q, log_q, z, generator=torch.Generator().manual_seed(1), number=20_000)
    for size, to in ((0.9, 0.0), (1.05, 0.0), (1.0, 0.3)):
        f = MultivariateNormal(to * scale[:, 0], scale_tril=size * scale)
        weights = (f.log_prob(wide.draws) - wide.there).exp()
        error = float(weights.std()) / math.sqrt(len(weights))
        assert abs(float(weights.mean()) - 1.0) < Z * error < 0.1


@pytest.mark.parametrize("shrink", [0.6, 1.5])
def test_pooled_weights_find_what_a_wrong_width_hides(shrink):
    """P is N(0, I) in 5 dimensions and q's sd is `shrink`, so that the shift is known."""
    z, log_q = gaussian_draws(4000, shrink * torch.eye(5, dtype=F64))
    log_p = MultivariateNormal(torch.zeros(5, dtype=F64), torch.eye(5, dtype=F64)).log_prob
    wide = draw_wider(log_p, log_q, z, generator=torch.Generator().manual_seed(1))
    draws, logs = pooled(z, log_p(z), log_q(z), wide)
    shift = by_weights(draws, logs, against=z)
    truth = -(z.std(0)).log()
    assert bool(((shift.log_sd - truth).abs() <= Z * shift.log_sd_error).all())
    assert bool((shift.log_sd_error < 0.06).all())
    assert float(pareto_k(logs)) < 0.5


@pytest.mark.sweep(4)
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("dims", [3, 5, 8])
def test_p_is_followed_where_it_bends(rate, dims):
    """x[0] is normal, the others N(exp(rate x[0]), 1); q has p's mean and covariance."""

    def log_p(z):
        return -0.5 * (z[:, 0] ** 2 + (z[:, 1:] - (rate * z[:, :1]).exp()).square().sum(1))

    mean = torch.full((dims,), math.exp(rate**2 / 2), dtype=F64)
    covariance = torch.full((dims, dims), (math.exp(rate**2) - 1) * math.exp(rate**2), dtype=F64)
    covariance += torch.eye(dims, dtype=F64)
    covariance[0], covariance[:, 0] = rate * mean, rate * mean
    mean[0], covariance[0, 0] = 0.0, 1.0
    q = MultivariateNormal(mean, covariance)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = q.sample((4000,))
    points = z.clone().requires_grad_()
    slope = torch.autograd.grad(log_p(points).sum(), points)[0]
    seen = Sample(draws=z, log_p=log_p(z), log_q=q.log_prob(z), scores=(slope, slope))
    ridges = ridges_of(log_p, seen)
    assert ridges
    seed = torch.Generator().manual_seed(1)
    wide = draw_wider(log_p, q.log_prob, z, ridges=ridges, generator=seed)
    draws, logs = pooled(z, seen.log_p, seen.log_q, wide)
    shift = by_weights(draws, logs, against=z)
    truth = (covariance.diagonal().sqrt() / z.std(0, correction=0)).log()
    assert bool(((shift.log_sd - truth).abs() <= Z * shift.log_sd_error).all())
    off = (mean - z.mean(0)) / z.std(0, correction=0)
    assert bool(((shift.mean - off).abs() <= Z * shift.mean_error).all())


def test_the_tails_that_are_wrong_are_named():
    """The second of two coordinates is t with 3 degrees of freedom, whose tail is known."""
    heavy = StudentT(torch.tensor(3.0, dtype=F64))

    def log_p(z):
        return -0.5 * z[:, 0] ** 2 + heavy.log_prob(z[:, 1])

    z, log_q = gaussian_draws(4000, torch.eye(2, dtype=F64))
    seed = torch.Generator().manual_seed(1)
    wide = draw_wider(log_p, log_q, z, generator=seed)
    draws, logs = pooled(z, log_p(z), log_q(z), wide)
    ratio = tail_ratio(draws, logs, z, share=0.01)
    t = 2.326
    inner = math.atan(t / math.sqrt(3)) + (t / math.sqrt(3)) / (1 + t * t / 3)
    truth = (0.5 - inner / math.pi) / 0.01
    error = truth * math.sqrt(2 / 40)  # 40 draws of q beyond either quantile
    assert abs(float(ratio[1]) - truth) < Z * error
    found = diagnose(z, log_p(z), log_q(z), wide=wide, names=("a", "b"))
    assert "do not trust the tails of b" in found.verdict or found.level == "do not trust"
    assert float(found.tails[0]) < 1.7 < float(found.tails[1])


def test_nan_far_out_is_not_used():
    z, log_q = gaussian_draws(400, torch.eye(1, dtype=F64))
    wide = draw_wider(lambda z: torch.where(z[:, 0] > 3, math.nan, log_q(z)), log_q, z)
    assert diagnose(z, log_q(z), log_q(z), wide=wide).tails is None


def test_equal_draws_have_equal_bends():
    """Bit for bit, whatever lies in memory: what begins in the last digit grows in a flow."""
    z = gaussian_draws(2000, torch.eye(6, dtype=F64))[0]
    score = -z + 0.1 * z.roll(1, 1) ** 2
    first, kept = bends(Frame.of_draws(z), z, score), []
    for k in range(30):
        kept.append(torch.full((37 * k + 5,), k, dtype=torch.int32))
        assert torch.equal(bends(Frame.of_draws(z), z, score), first)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [6, 18])
def test_a_funnel_is_not_trusted_whatever_few_weights_say(seed):
    """Neal's funnel in 10 dimensions, to a Gaussian: the narrow end is all that it reaches."""

    def funnel(z):
        x = -0.5 * z[1:].square().sum() * torch.exp(-z[0]) - 0.5 * (len(z) - 1) * z[0]
        return x - 0.5 * (z[0] / 1.5) ** 2

    found = fit(
        funnel,
        10,
        family="full_rank",
        generator=torch.Generator().manual_seed(seed),
        progress=False,
    )
    assert found.diagnosis.level == "do not trust"
