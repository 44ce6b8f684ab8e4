"""The tests of known means: what they see, what they must not see, and what they cannot."""

import math

import pytest
import torch
from scipy import stats

from kullback.sampled import entropy_identity, limits, ratio_identity, weight_identity
from kullback.sampled.identity import Known, known_mean, moments_of

INF, NAN = math.inf, math.nan


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def policy(seed=0, spread=2.0, tokens=50):
    logits = spread * torch.randn(tokens, generator=seeded(seed), dtype=torch.float64)
    return logits.log_softmax(-1)


def drawn(log_p, draws, seed=1):
    return torch.multinomial(log_p.exp(), draws, replacement=True, generator=seeded(seed))


def top_p(log_p, mass):
    """The nucleus of a distribution, renormalised, −inf outside."""
    ordered, order = log_p.sort(descending=True)
    kept = ordered.exp().cumsum(0) - ordered.exp() < mass
    cut = torch.full_like(log_p, -INF)
    cut[order[kept]] = log_p[order[kept]]
    return cut.log_softmax(-1)


def entropy(log_p):
    return -torch.special.entr(log_p.exp()).sum().neg()


@pytest.mark.parametrize(
    ("log_r", "refuted"),
    [
        (torch.tensor([0.95, 0.95, 0.85, 0.85]).log().repeat(250), True),  # top-p logs
        (torch.full((1000,), -0.0962), True),  # no error bar at all
        (torch.full((1000,), 0.05), True),  # above 1: not normalised
        (torch.full((1000,), 1e-9, dtype=torch.float64), True),  # above 1 by more than rounding
        (torch.full((1000,), 1e-17, dtype=torch.float64), False),
        (torch.full((20,), -0.0962), False),  # 0.09 of q may hide from 20 draws
        (torch.cat([torch.full((999,), -0.5), torch.tensor([math.log(400.0)])]), False),
        (torch.full((1000,), 20.0), True),  # Markov: a mean of 5e8
        (torch.zeros(1000), False),
        (torch.cat([torch.zeros(900), torch.full((100,), -INF)]), True),
        (torch.full((1000,), NAN), False),
    ],
)
def test_what_refutes_the_mean_of_a_ratio(log_r, refuted):
    for found in (ratio_identity(torch.zeros_like(log_r), log_r), weight_identity(log_r)):
        assert found.refuted == refuted
        assert bool(found) != refuted
        assert bool(found.reason) == refuted


def test_the_reason_lists_the_usual_causes():
    found = ratio_identity(torch.full((1000,), -1.0), torch.full((1000,), -1.0962))
    assert found.mean == pytest.approx(math.exp(-0.0962), rel=1e-6)
    for cause in ("top-p", "top-k", "q has mass where p has none", "shifted", "not normalised"):
        assert cause in found.reason


@pytest.mark.sweep(8)
@pytest.mark.parametrize("shift", [0.1, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("draws", [30, 300, 3000])
def test_a_true_identity_stands_however_heavy_its_tail(shift, draws):
    """E[r] = 1; at shift 3 the mean of r is below 0.5 in most samples, with a short error bar.

    There one sample in 400 is refuted, which has met nothing of the tail: z <= 4.5 of the count.
    """
    x = torch.randn(1000, draws, generator=seeded(), dtype=torch.float64)
    found = ratio_identity(torch.zeros_like(x), shift * x - shift**2 / 2)
    most = 2.5 + 4.5 * math.sqrt(2.5) if shift > 1 else 0
    assert int(found.refuted.sum()) <= most


@pytest.mark.parametrize("mass", [0.8, 0.9, 0.95])
def test_truncated_sampling_with_its_own_log_probabilities(mass):
    p = policy()
    q = (p.exp() * torch.linspace(0.8, 1.2, 50, dtype=torch.float64)).log().log_softmax(-1)
    ids = drawn(top_p(p, mass), 4000)
    assert ratio_identity(top_p(p, mass)[ids], q[ids]).refuted
    assert not ratio_identity(p[drawn(p, 4000)], q[drawn(p, 4000)]).refuted


def test_what_only_the_entropy_sees():
    """A temperature, and raw log-probabilities under top-p: the mean of q/p is 1 or nearly."""
    p = policy()
    hot = (p / 0.7).log_softmax(-1)
    for sampler in (hot, top_p(p, 0.9)):
        ids = drawn(sampler, 1000)
        assert entropy_identity(p[ids], entropy(p).expand(1000)).refuted
    ids = drawn(p, 1000)
    assert not entropy_identity(p[ids], entropy(p).expand(1000)).refuted
    assert not ratio_identity(hot[drawn(hot, 1000)], hot[drawn(hot, 1000)]).refuted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_refutes_nothing(dtype):
    """One side rounded, kept in its type or logged in float32; the values are the same policy."""
    p = policy()[drawn(policy(), 20_000)]
    for coarse in (p.to(dtype), p.to(dtype).float()):
        assert not ratio_identity(coarse, p.float()).refuted
        assert not ratio_identity(p.float(), coarse).refuted
    level = torch.full((5000,), -7.3)  # one value: all rounded the same way
    assert not ratio_identity(level.to(dtype).float(), level).refuted


def test_batches_are_judged_one_by_one_and_share_the_level():
    log_r = torch.tensor([[-0.1], [0.0], [0.1]]).expand(3, 1000)
    found = ratio_identity(torch.zeros(3, 1000), log_r)
    assert found.refuted.tolist() == [True, False, True]
    assert "in 2 of 3" in found.reason


def test_a_known_mass_of_q_takes_the_place_of_one():
    log_r = torch.full((1000,), math.log(0.9), dtype=torch.float64)
    assert not ratio_identity(torch.zeros_like(log_r), log_r, ratio_mean=0.9).refuted
    assert ratio_identity(torch.zeros_like(log_r), log_r).refuted


def test_refusals():
    with pytest.raises(ValueError, match="log_q: expected the shape of log_p"):
        ratio_identity(torch.zeros(4), torch.zeros(5))
    with pytest.raises(ValueError, match="entropies: expected the shape of log_p"):
        entropy_identity(torch.zeros(4), torch.zeros(5))
    with pytest.raises(TypeError, match="log_weights: expected Tensor"):
        weight_identity([0.0])


@pytest.mark.parametrize("values", [1, 3])
def test_the_level_is_split_over_the_batch(values):
    """What is refuted lies beyond Student's quantile of the level over the number of values."""
    limit = float(stats.t.isf(limits.TEST_LEVEL / values / 2, 999))
    zero = torch.zeros(values, dtype=torch.float64).squeeze()
    for z, refuted in ((0.999 * limit, False), (1.001 * limit, True)):
        known = Known(zero + 1 + 0.01 * z, zero + 0.01, zero, 1000, zero, zero)
        found = known_mean(known, "q/p").refuted
        assert bool(torch.as_tensor(found).all()) == bool(torch.as_tensor(found).any()) == refuted


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_scatter_below_the_rounding_of_the_terms_is_none(size):
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(50)
    for relative, scatters in ((2e-16, False), (1e-12, True)):
        mean, error, _ = moments_of(size * (1 + relative * signs))
        assert float(mean) == pytest.approx(size, rel=1e-15)
        assert bool(error > 0) == scatters
