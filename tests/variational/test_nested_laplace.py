"""Laws that follow p along a scale parameter, against quadrature and closed forms."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from kullback.variational import Target, fit
from kullback.variational.diagnostics.defensive_sampling import (
    draw_wider,
    follow,
    follow_all,
    funnels,
    pooled,
)
from kullback.variational.diagnostics.diagnose import diagnose_beyond
from kullback.variational.diagnostics.evidence import Evidence, Sample
from kullback.variational.diagnostics.joint_searches import first_true
from kullback.variational.diagnostics.verdict import judge
from kullback.variational.families.family import Frame

F64 = torch.float64
Z = 4.5
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HITS = [18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7, 0]
TRIALS = 18 * [45] + [4]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def funnel(z):
    """v ~ N(0, 1), the others N(0, exp(2 v)): normalised."""
    v, x = z[:, :1], z[:, 1:]
    inner = -0.5 * (x * (-v).exp()).square() - v - 0.5 * math.log(2 * math.pi)
    return inner.sum(1) - 0.5 * v[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)


def with_score(z):
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        value = funnel(z)
        return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def ridge_of(dim):
    z = torch.randn(2000, dim, generator=seeded(), dtype=F64)
    standard = Frame.of_draws(0.5 * z)
    return follow(with_score, standard, standard.axes[0])


def test_the_heights_of_a_funnel_are_its_marginal():
    """Given v the others are Gaussian: Laplace's approximation is exact, −½ v² and a constant.

    Newton's method ends where at most 0.02 / 2 nats are left to gain.
    """
    ridge = ridge_of(5)
    v = ridge.frame.shift[0] + ridge.at * ridge.frame.factor[0].norm()
    truth = -0.5 * v**2
    torch.testing.assert_close(ridge.heights, truth - truth.max(), rtol=0, atol=0.011)


def test_directions_followed_together_are_those_followed_alone():
    """One call serves several searches: the same nodes, in fewer calls."""
    frame = Frame.of_draws(0.5 * torch.randn(2000, 4, generator=seeded(), dtype=F64))
    calls = []

    def counted(z):
        calls.append(len(z))
        return with_score(z)

    axes = [*frame.axes[:3]]
    together = follow_all(counted, frame, axes, [True, False, True])
    joint, calls[:] = len(calls), []
    for one, axis in zip(together, axes, strict=True):
        alone = follow(counted, frame, axis)
        for name in ("at", "modes", "tangents", "heights"):
            torch.testing.assert_close(getattr(one, name), getattr(alone, name))
    assert [ridge.scale for ridge in together] == [True, False, True]
    assert joint < len(calls)


def test_the_first_true_of_several_searches_ends_the_others():
    """The answer is that of one search after the other; the others end as soon as it is known."""
    calls = []

    def score(z):
        calls.append(len(z))
        return z[:, 0], z

    def search(rounds, answer):
        for _ in range(rounds):
            yield torch.zeros(1, 1)
        return answer

    for rounds, answers, first, cost in (
        ((2, 9), (True, True), 0, [2, 2]),
        ((3, 1), (True, True), 0, [2, 1, 1]),
        ((1, 2, 9), (False, True, False), 1, [3, 2]),
        ((1, 2), (False, False), None, [2, 1]),
        ((), (), None, []),
    ):
        calls.clear()
        searches = [search(*one) for one in zip(rounds, answers, strict=True)]
        assert first_true(score, searches) == first
        assert calls == cost


@pytest.mark.sweep(2)
@pytest.mark.parametrize("dim", [2, 5, 12])
def test_draws_and_density_of_a_ridge_are_of_one_law(dim):
    """E[f / ridge] = 1 for normalised f inside it: the funnel itself, and half of it."""
    ridge = ridge_of(dim)
    z = ridge.sample(20_000, seeded(1))
    for f in (funnel, lambda z: funnel(z) - 0.5 * z[:, 0] - 0.125):
        weights = (f(z) - ridge.log_prob(z)).exp()
        error = float(weights.std()) / math.sqrt(len(weights))
        assert abs(float(weights.mean()) - 1.0) < Z * error < 0.1


def test_pooled_weights_reach_the_narrow_end():
    """P(v < −2) of a funnel, from a q that stops at v = −1.5, in ten dimensions."""
    q = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(10, dtype=F64), torch.full((10,), 0.5, dtype=F64)), 1
    )
    torch.manual_seed(0)
    z = q.sample((4000,))
    standard = Frame.of_draws(z)
    log_p, score = with_score(z)
    assert funnels(standard, z, score)[0] == 0
    ridge = follow(with_score, standard, standard.axes[0])
    wide = draw_wider(funnel, q.log_prob, z, ridges=[ridge], generator=seeded(1))
    draws, logs = pooled(z, log_p, q.log_prob(z), wide)
    share = torch.softmax(logs, 0)
    inside = (draws[:, 0] < -2.0).double()
    truth = 0.5 * math.erfc(math.sqrt(2.0))
    found = float((share * inside).sum())
    error = float((share * (inside - found)).square().sum().sqrt())
    assert abs(found - truth) < Z * error < 0.02


def beta_binomial(monkeypatch):
    """The model of 18 groups of 45 and one of 4, and its moments by quadrature."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("verdict_targets").beta_binomial_of(HITS, TRIALS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3, 4))]
)
def test_a_gaussian_on_a_hierarchical_beta_binomial_is_not_trusted(seed, monkeypatch):
    """sd(kappa) is 0.888 and q's 0.65: q, and wider laws of its shape, miss the narrow end."""
    truth = beta_binomial(monkeypatch)
    assert float(truth.sd[1]) == pytest.approx(0.888, abs=5e-4)
    target = Target.of(lambda z: truth.log_density(z[None])[0], truth.dims)
    found = fit(target, family="full_rank", generator=seeded(seed), progress=False)
    sample = Sample(
        draws=found.draws,
        log_p=found.log_p,
        log_q=found.log_q,
        scores=found.scores,
        of=truth.values,
    )
    judged = diagnose_beyond(target.log_density, found.log_prob, sample)
    assert judged.level == "do not trust"
    values = truth.values(found.draws)
    mean_off = ((values.mean(0) - truth.mean) / values.std(0)).abs()
    sd_off = (truth.sd / values.std(0)).log().abs()
    assert float(sd_off[1]) > 0.2
    assert bool((mean_off <= judged.mean_bound).all()) and bool(
        (sd_off <= judged.log_sd_bound).all()
    )


@pytest.mark.slow
def test_a_verdict_is_a_function_of_evidence_that_can_be_kept():
    z = torch.randn(500, 3, generator=seeded(), dtype=F64)
    log_p, score = with_score(0.5 * z)
    log_q = -0.5 * z.square().sum(1)
    sample = Sample(draws=0.5 * z, log_p=log_p, log_q=log_q, scores=(score, -2 * z))
    found = diagnose_beyond(funnel, lambda z: -2 * z.square().sum(1), sample)
    kept = Evidence.from_dict(json.loads(json.dumps(found.evidence.to_dict())))
    again = judge(kept)
    assert (again.level, again.sentence, again.reasons) == (
        found.level,
        found.verdict,
        found.reasons,
    )
    assert again.bounds.mean.equal(found.mean_bound)
