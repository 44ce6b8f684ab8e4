"""1/τ for effects of any law is improper: p(y | τ = 0) > 0, so that ∫ dτ/τ = ∞ there."""

import math

import pytest
import torch
from torch.distributions import constraints

from kullback.variational import Parameter, Target, fit
from kullback.variational.diagnostics.collapsing_scales import collapsing_scale
from kullback.variational.optimise.starts import find_start

F64 = torch.float64
softplus = torch.nn.functional.softplus
LAWS = {  # log densities of the effects up to a constant, all unimodal
    "normal": lambda u: -0.5 * u**2,
    "cauchy": lambda u: -torch.log1p(u**2),
    "t2": lambda u: -1.5 * torch.log1p(u**2 / 2),
    "t4": lambda u: -2.5 * torch.log1p(u**2 / 4),
    "laplace": lambda u: -u.abs(),
    "logistic": lambda u: -u - 2 * softplus(-u),
    "asymmetric laplace": lambda u: torch.where(u > 0, -u, 3 * u),
    "gumbel": lambda u: -u - (-u).exp(),
}
PRIORS = {  # log densities of log τ, all proper
    "half-cauchy": lambda v: v - torch.log1p((2 * v).exp()),
    "half-normal": lambda v: v - 0.5 * (2 * v).exp(),
    "uniform on [0, 100], nearly": lambda v: v - 100 * softplus(20 * (v - math.log(100))),
    "variance inverse-gamma(0.001, 0.001)": lambda v: -0.002 * v - 0.001 * (-2 * v).exp(),
    "gamma(0.1, 0.1)": lambda v: 0.1 * v - 0.1 * v.exp(),
    "gamma(0.01, 0.01)": lambda v: 0.01 * v - 0.01 * v.exp(),
    "log-normal, sd 30": lambda v: -0.5 * (v / 30) ** 2,
    "1/(tau (1 + log² tau))": lambda v: -torch.log1p(v**2),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(v):
    return 0 * v


def effects(law, prior=flat, coordinate="tau", count=8, rows=1, scales=1):
    """Means of `rows` data of sd 1 for each effect, effects about mu; prior: of log tau."""
    generator = seeded(count)
    y = 1.0 + torch.randn(count, generator=generator, dtype=F64)
    y = y + torch.randn(count, generator=generator, dtype=F64) / math.sqrt(rows)

    def log_density(mu, s, theta):
        log_tau, jacobian = {
            "tau": (s.log(), -s.log().sum()),
            "variance": (0.5 * s.log(), -s.log().sum()),
            "precision": (-0.5 * s.log(), -s.log().sum()),
            "log tau": (s, 0.0),
        }[coordinate]
        total = -0.5 * (mu / 5) ** 2 + prior(log_tau).sum() + jacobian
        for v, these in zip(log_tau.unbind(), theta.unbind(), strict=True):
            total = total + (LAWS[law]((these - mu) * (-v).exp()) - v).sum()
            total = total - 0.5 * rows * (y - these).square().sum()
        return total

    real = coordinate == "log tau"
    scale = (scales,) if real else Parameter((scales,), constraints.positive)
    return log_density, {"mu": (), "s": scale, "theta": (scales, count)}


def scanned(log_density, parameters):
    """What is found at the start of a fit: the sign of the way of every coordinate, or None."""
    target = Target.of(log_density, parameters)
    frame = find_start(target, seeded())[0].frame
    draws = frame.outwards(torch.randn(256, target.dim, generator=seeded(), dtype=F64))
    way = collapsing_scale(target.score, draws)
    return None if way is None else way.sign().tolist()


@pytest.mark.slow
@pytest.mark.sweep(18)
@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("law", LAWS)
def test_effects_of_any_law_under_1_over_tau_are_improper(law, count):
    assert scanned(*effects(law, count=count)) == [0.0, -1.0] + [0.0] * count


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("coordinate", ["variance", "precision", "log tau"])
@pytest.mark.parametrize("law", ["t4", "laplace"])
def test_they_are_however_the_scale_is_declared(law, coordinate, rows):
    way = 1.0 if coordinate == "precision" else -1.0
    assert scanned(*effects(law, coordinate=coordinate, rows=rows)) == [0.0, way] + [0.0] * 8


@pytest.mark.slow
@pytest.mark.sweep(18)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("law", ["t2", "t4", "laplace", "gumbel"])
def test_proper_priors_of_their_scale_are_not_improper(law, prior):
    assert scanned(*effects(law, PRIORS[prior])) is None


@pytest.mark.slow
def test_the_slope_of_a_sharp_likelihood_hides_nothing():
    """300 rows an effect pull with 10⁴ nats a unit where the rays begin."""
    assert scanned(*effects("t2", coordinate="log tau", count=30, rows=300)) is not None


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("law", ["t4", "laplace"])
def test_effects_of_counts_are_followed_although_their_likelihood_overflows(law):
    """exp(θ) overflows on the way to the place where effects are looked for."""
    counts = torch.tensor([3.0, 5, 2, 8, 1, 0, 4, 6], dtype=F64)

    def log_density(mu, s, theta):
        prior = -0.5 * (mu / 5) ** 2 - s.log() + (LAWS[law]((theta - mu) / s) - s.log()).sum()
        return prior + (counts * theta - theta.exp()).sum()

    parameters = {"mu": (), "s": constraints.positive, "theta": (8,)}
    assert scanned(log_density, parameters) == [0.0, -1.0] + [0.0] * 8


@pytest.mark.slow
@pytest.mark.parametrize("law", ["t2", "laplace"])
def test_a_fit_is_not_made_of_effects_under_1_over_tau(law):
    found = fit(*effects(law), generator=seeded(), progress=False)
    assert found.improper and not found.converged
    assert "s[1] goes to -infinity" in found.summary.verdict
    assert "do not trust" in found.summary.verdict.lower()
