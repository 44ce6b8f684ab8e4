"""Bounds and estimates from top-k lists, against distributions that are known whole."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback import exact
from kullback.tokens.truncated import Bounds, TopK, kl_bounds, kl_estimate

FLOAT = torch.float64


def pair(vocab, seed, *, apart=3.0, rows=3):
    draw = torch.Generator().manual_seed(seed)
    p = (3 * torch.randn(rows, vocab, generator=draw, dtype=FLOAT)).log_softmax(-1)
    q = (p + apart * torch.randn(rows, vocab, generator=draw, dtype=FLOAT)).log_softmax(-1)
    return p, q


def listed(log_probs, k, **known):
    values, ids = log_probs.topk(k, -1)
    return TopK(ids, values, **known)


def assert_holds(bounds, kl):
    assert isinstance(bounds, Bounds)
    off = 64 * torch.finfo(FLOAT).eps * (1 + kl)  # the truth's own rounding
    assert (bounds.lower >= 0).all() and (bounds.lower <= kl + off).all()
    assert (bounds.upper >= kl - off).all()


@settings(max_examples=80, deadline=None)
@given(
    vocab=st.integers(2, 9),
    ks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    apart=st.sampled_from([0.01, 0.3, 3.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 10_000),
)
def test_bounds_hold(vocab, ks, apart, dtype, seed):
    p, q = pair(vocab, seed, apart=apart)
    kl = exact.kl(p, q, form="log_probs")
    floor = float(q.min()) - 1e-5
    p, q = p.to(dtype), q.to(dtype)
    k, j = (min(each, vocab) for each in ks)
    assert_holds(kl_bounds(listed(p, k), listed(q, j)), kl)
    assert_holds(kl_bounds(listed(p, k, top=False), listed(q, j, top=False)), kl)
    for finite in (
        kl_bounds(listed(p, k, vocab=vocab), listed(q, j, floor=floor)),
        kl_bounds(listed(p, k), q),
        kl_bounds(p, listed(q, j, floor=floor)),
        kl_bounds(p, q),
    ):
        assert_holds(finite, kl)
        assert finite.upper.isfinite().all()


def test_rounded_services_are_believed_no_further_than_their_digits():
    for seed in range(50):
        p, q = pair(8, seed, apart=0.1)
        kl = exact.kl(p, q, form="log_probs")
        lists = [listed(x, 5, rounding=5e-4) for x in (p, q)]
        rounded = [TopK(x.ids, (x.log_probs * 1e3).round() / 1e3, rounding=5e-4) for x in lists]
        assert_holds(kl_bounds(*rounded), kl)


def test_everything_known_makes_the_bounds_meet():
    p, q = pair(7, 0)
    kl = exact.kl(p, q, form="log_probs")
    for bounds in (kl_bounds(p, q), kl_bounds(listed(p, 7, vocab=7), listed(q, 7, vocab=7))):
        torch.testing.assert_close(bounds.lower, kl, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(bounds.upper, kl, rtol=1e-12, atol=1e-13)


def test_the_lower_bound_is_the_least_kl_that_the_masses_allow():
    """A grid over all that q may be, given its two largest, with p known: 3 unknown masses."""
    p = torch.tensor([0.05, 0.05, 0.6, 0.25, 0.05], dtype=FLOAT)
    known, most, rest = (0.5, 0.2), 0.2, 0.3
    grid = torch.linspace(0, most, 401, dtype=FLOAT)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    z = rest - x - y
    q = torch.stack([torch.full_like(x, known[0]), torch.full_like(x, known[1]), x, y, z], -1)
    q = q[(z >= -1e-12) & (z <= most + 1e-12)].clamp(min=0)
    least = exact.kl(p.expand_as(q), q).min()
    bounds = kl_bounds(p.log(), TopK(torch.tensor([0, 1]), torch.tensor(known, dtype=FLOAT).log()))
    assert bounds.lower <= least + 1e-12
    assert bounds.lower >= least - 1e-3  # the grid's step
    assert bounds.upper == math.inf


def test_the_upper_bound_is_reached():
    q = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=FLOAT)
    worst = torch.tensor([0.6, 0.0, 0.0, 0.1, 0.3], dtype=FLOAT)  # 0.4 unknown, at most 0.3 each
    p = TopK(torch.tensor([0, 4]), torch.tensor([0.6, 0.3], dtype=FLOAT).log())
    torch.testing.assert_close(kl_bounds(p, q.log()).upper, exact.kl(worst, q))


def test_a_missing_token_is_known_to_be_rare():
    """p's favourite is not on q's list: the bucket says little, the least mass on the list much."""
    p = TopK(torch.tensor([3]), torch.tensor([0.9], dtype=FLOAT).log())
    ids, masses = torch.tensor([0, 1]), torch.tensor([0.7, 0.01], dtype=FLOAT).log()
    one_bucket = kl_bounds(p, TopK(ids, masses, top=False)).lower
    capped = kl_bounds(p, TopK(ids, masses)).lower
    assert one_bucket < 1.2 < 3 < capped


def test_masses_that_round_to_one_leave_no_nan():
    p = TopK(torch.tensor([0, 1]), torch.tensor([0.0, -25.0]))
    q = TopK(torch.tensor([0, 2]), torch.tensor([0.0, -22.0]))
    for bounds in (kl_bounds(p, q), kl_bounds(q, p)):
        assert 0 <= bounds.lower < 1e-5 and bounds.upper == math.inf


def test_padding_and_no_list_at_all():
    p = TopK(torch.tensor([[3, 5, -1]]), torch.tensor([[0.6, 0.3, 0.0]]).log())
    short = TopK(torch.tensor([[3, 5]]), torch.tensor([[0.6, 0.3]]).log())
    q = TopK(torch.tensor([[5, -1]]), torch.tensor([[0.5, math.nan]]).log())
    assert torch.equal(kl_bounds(p, q).lower, kl_bounds(short, q).lower)
    empty = TopK(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0))
    assert kl_bounds(empty, short) == (0, math.inf)


@pytest.mark.parametrize("estimator", ["k1", "k3", 0.4])
def test_the_estimate_is_unbiased_by_enumeration(estimator):
    """Its mean over all pairs of draws is the KL, whatever the lists know."""
    p, q = (x[0] for x in pair(5, 3, apart=1.0))
    kl = exact.kl(p, q, form="log_probs")
    ids = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    weights = p.exp()[ids].prod(-1)
    for k, j in ((2, 3), (1, 1), (5, 5), (4, 2)):
        lists = [
            TopK(x.ids.expand(25, -1), x.log_probs.expand(25, -1))
            for x in (listed(p, k), listed(q, j))
        ]
        found = kl_estimate(
            *lists, ids, p[ids], q[ids], estimator=estimator, full_support=estimator != "k1"
        )
        assert found.bias == "none"
        torch.testing.assert_close((weights * found.value).sum(), kl, rtol=1e-10, atol=1e-12)


def test_lists_take_variance_away():
    p, q = (x[0] for x in pair(200, 1, apart=0.5))
    ids = torch.multinomial(p.exp(), 400, True, generator=torch.Generator().manual_seed(0))
    nothing = TopK(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=FLOAT))
    bare = kl_estimate(nothing, nothing, ids, p[ids], q[ids], estimator="k1")
    some = kl_estimate(listed(p, 20), listed(q, 20), ids, p[ids], q[ids], estimator="k1")
    assert some.standard_error < 0.7 * bare.standard_error
    kl = exact.kl(p, q, form="log_probs")
    assert abs(some.value - kl) <= 4.5 * some.standard_error


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: TopK(torch.tensor([1, 1]), torch.tensor([-1.0, -2.0])), "every token once"),
        (lambda: TopK(torch.tensor([1, 2]), torch.tensor([-0.1, -0.2])), "masses of at most 1"),
        (lambda: TopK(torch.tensor([1]), torch.tensor([-1.0, -2.0])), "one shape"),
        (lambda: kl_bounds(torch.zeros(2, 1), torch.zeros(1)), "the same positions"),
    ],
)
def test_wrong_values(make, error):
    with pytest.raises(ValueError, match=error):
        make()


def test_wrong_types():
    with pytest.raises(TypeError, match="p: expected TopK or Tensor"):
        kl_bounds([0.5], torch.zeros(1))
    with pytest.raises(TypeError, match="integers and floats"):
        TopK(torch.tensor([1.0]), torch.tensor([-1.0]))
