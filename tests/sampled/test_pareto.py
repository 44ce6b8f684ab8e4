"""Pareto tails: ArviZ's psislw on light and heavy weights, a known tail, edges."""

import math

import arviz_stats.base
import numpy as np
import pytest
import torch

from kullback.sampled import pareto_k, pareto_smooth
from kullback.sampled.tails import Tails


def weights_of(name, draws, seed):
    generator = np.random.default_rng(seed)
    return {
        "uniform": lambda: np.log(generator.uniform(size=draws)),
        "normal 0.1": lambda: 0.1 * generator.normal(size=draws),
        "normal 1": lambda: generator.normal(size=draws),
        "normal 3": lambda: 3 * generator.normal(size=draws),
        "pareto 0.3": lambda: 0.3 * generator.exponential(size=draws),
        "pareto 0.7": lambda: 0.7 * generator.exponential(size=draws),
        "pareto 1.5": lambda: 1.5 * generator.exponential(size=draws),
        "cauchy ratio": lambda: (
            -np.log1p(generator.normal(size=draws) ** 2) + 0.5 * generator.standard_t(2, size=draws)
        ),
        "shifted": lambda: 1e4 + generator.normal(size=draws),
    }[name]()


NAMES = ["uniform", "normal 0.1", "normal 1", "normal 3", "pareto 0.3", "pareto 0.7"]


@pytest.mark.sweep(4)
@pytest.mark.parametrize("draws", [25, 100, 226, 1000, 20_000])
@pytest.mark.parametrize("name", [*NAMES, "pareto 1.5", "cauchy ratio", "shifted"])
def test_against_arviz(name, draws):
    logs = weights_of(name, draws, seed=draws)
    smooth, k_hat = pareto_smooth(torch.from_numpy(logs))
    theirs, their_k = arviz_stats.base.array_stats.psislw(-logs)
    assert k_hat.item() == pytest.approx(float(their_k), abs=1e-3)
    ours = smooth - torch.logsumexp(smooth, -1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-9)


def test_a_pareto_tail_is_recovered():
    """k̂ of a Pareto weight is within 4.5 of its own standard errors of k, prior included."""
    generator = torch.Generator().manual_seed(0)
    for k in (0.2, 0.5, 0.9):
        levels = torch.rand(100_000, generator=generator, dtype=torch.float64)
        size = int(3 * math.sqrt(100_000))
        shrunk = (size * k + 5) / (size + 10)
        spread = (1 + k) / math.sqrt(size)
        assert abs(pareto_k(-k * levels.log()).item() - shrunk) < 4.5 * spread


def test_batches_and_dimensions():
    logs = torch.randn(3, 400, 2, generator=torch.Generator().manual_seed(0))
    smooth, k_hat = pareto_smooth(logs, dim=1)
    assert smooth.shape == logs.shape
    assert k_hat.shape == (3, 2)
    alone, k_alone = pareto_smooth(logs[1, :, 1])
    torch.testing.assert_close(smooth[1, :, 1], alone, rtol=1e-13, atol=1e-13)
    assert k_hat[1, 1].item() == pytest.approx(k_alone.item(), rel=1e-12)


def test_smoothing_keeps_order_and_bound():
    logs = 2 * torch.randn(500, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    smooth, _ = pareto_smooth(logs)
    assert (smooth.argsort() == logs.argsort()).all()
    assert smooth.max() <= logs.max()
    assert ((smooth != logs).sum() <= int(3 * math.sqrt(500))).item()


def test_edges():
    equal, k_hat = pareto_smooth(torch.full((50,), -3.0))
    assert (equal == -3.0).all()
    assert k_hat == -math.inf
    some_zero = torch.cat([torch.full((40,), -math.inf), torch.zeros(10)])
    assert pareto_k(some_zero).item() == -math.inf or pareto_k(some_zero).item() < 0
    assert math.isnan(pareto_k(torch.full((50,), -math.inf)).item())
    broken = torch.zeros(50)
    broken[3] = math.nan
    smooth, k_hat = pareto_smooth(broken)
    assert smooth.isnan().all()
    assert k_hat.isnan()
    with pytest.raises(ValueError, match="at least 25 draws along dim; got 24"):
        pareto_k(torch.zeros(24))


@pytest.mark.parametrize("draws", [40, 700, 3000])
def test_the_tails_of_kept_draws_have_the_k_hat_of_all_draws(draws):
    """Kept are the 513 greatest at each end, of which k-hat reads at most a fifth of the draws."""
    log_w = 1.5 * torch.randn(draws, generator=torch.Generator().manual_seed(3)).double()
    keys = torch.stack([-log_w, log_w])
    tails = Tails.of(keys, torch.arange(draws), keys, draws)
    for end, logs in enumerate(keys):
        assert float(tails.shape(end)) == pytest.approx(float(pareto_k(logs)), rel=1e-9)
