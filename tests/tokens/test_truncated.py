"""Bounds and estimates from top-k lists, against distributions that are known whole."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback import exact
from kullback.tokens.divergences.top_k import Bounds, TopK, kl_bounds, kl_estimate

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


@pytest.mark.slow
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


def test_equal_sides_may_be_equal_however_little_mass_is_unlisted():
    for rest in (1e-2, 1e-5, 1e-9):
        p = torch.tensor([1 - rest, 0.6 * rest, 0.3 * rest, 0.1 * rest], dtype=FLOAT).log()
        for k in (1, 2, 3):
            for bounds in (kl_bounds(p, listed(p, k)), kl_bounds(listed(p, k), p)):
                assert 0 <= float(bounds.lower) <= 64 * torch.finfo(FLOAT).eps * rest
                assert float(bounds.upper) > 0


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_worst_rounding_of_one_side_is_allowed_for(side, sign):
    """Every log-probability of one side is off by all of its rounding, in the same direction."""
    pair_of_logs = [torch.tensor(x, dtype=FLOAT).log() for x in ([0.5, 0.3, 0.2], [0.1, 0.2, 0.7])]
    kl = exact.kl(*pair_of_logs, form="log_probs")
    known = [listed(x, 3, vocab=3) for x in pair_of_logs]
    moved = known[side].log_probs + 4.9e-4 * sign
    known[side] = TopK(known[side].ids, moved, vocab=3, rounding=5e-4)
    assert_holds(kl_bounds(*known), kl)


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


def test_a_list_that_is_whole_has_no_tail():
    p = TopK(torch.tensor([0, 1, 2]), torch.tensor([0.9, 0.1, 0.0]).log())
    q = TopK(torch.tensor([0, 1, 5]), torch.tensor([0.8, 0.1, 0.04]).log())
    bounds = kl_bounds(p, q)
    truth = 0.9 * math.log(0.9 / 0.8)  # 0.1060
    assert float(bounds.lower) == pytest.approx(truth, abs=1e-5)  # float32 lists: 4 ulps a log
    assert float(bounds.upper) == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize("sentinel", [-9999.0, -1e30, -100.0])
def test_a_sentinel_is_a_token_that_is_not_listed(sentinel):
    given = TopK(torch.tensor([0, 1]), torch.tensor([math.log(0.9), sentinel], dtype=FLOAT))
    meant = TopK(torch.tensor([0]), torch.tensor([0.9], dtype=FLOAT).log())
    q = torch.tensor([0.5, 0.3, 0.2], dtype=FLOAT).log()
    for one, other in ((given, q), (q, given), (given, given)):
        a, b = (meant if x is given else x for x in (one, other))
        assert kl_bounds(one, other) == kl_bounds(a, b)
    twice = TopK(torch.tensor([0, 0]), torch.tensor([math.log(0.9), sentinel], dtype=FLOAT))
    assert kl_bounds(twice, q) == kl_bounds(meant, q)


@pytest.mark.sweep(19)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1, 2, 5, 8])
@pytest.mark.parametrize("zeros", [0, 1, 3])
def test_bounds_of_every_kind_of_list_hold_and_are_no_nan(dtype, vocab, zeros):
    """Lists with −inf and sentinels, whole on p, on q, on both, on neither, disjoint, k of 1."""
    draw = torch.Generator().manual_seed(vocab)
    for _ in range(2):
        p, q = (2 * torch.randn(2, vocab, generator=draw, dtype=FLOAT)).unbind()
        banned = [torch.randperm(vocab, generator=draw)[: min(zeros, vocab - 1)] for _ in "pq"]
        p, q = (x.index_fill(0, at, -math.inf) for x, at in zip((p, q), banned, strict=True))
        p, q = (x.log_softmax(-1).to(dtype) for x in (p, q))
        wide = [x.double() for x in (p, q)]
        # bfloat16: the truth is of log-probabilities that are off by an ulp
        off = (
            4
            * torch.finfo(dtype).eps
            * (1 + sum(float(x[x > -math.inf].abs().sum()) for x in wide))
        )
        kl = float(exact.kl(*[x.log_softmax(-1) for x in wide], form="log_probs"))
        for k in {1, (vocab + 1) // 2, vocab}:
            for j in {1, (vocab + 1) // 2, vocab}:
                for top in (True, False):
                    known = {"top": top, "vocab": vocab if k % 2 else None}
                    a, b = listed(p, k, **known), listed(q, j, top=top)
                    for bounds in (kl_bounds(a, b), kl_bounds(a, q), kl_bounds(p, b)):
                        lower, upper = map(float, bounds)
                        assert not math.isnan(lower) and not math.isnan(upper)
                        assert 0 <= lower <= kl + off and upper >= kl - off
        both = kl_bounds(listed(p, vocab, vocab=vocab), listed(q, vocab, vocab=vocab))
        if math.isfinite(kl):
            assert max(abs(float(x) - kl) for x in both) <= 8 * off  # bounds allow 4 ulps a log
        else:
            assert float(both.lower) == float(both.upper) == math.inf


def test_probabilities_for_log_probabilities_are_named():
    p = torch.tensor([0.5, 0.3, 0.2])
    with pytest.raises(ValueError, match=r"masses of at most 1.*Try: log_probs.log\(\)"):
        TopK(torch.arange(3), p)
    with pytest.raises(ValueError, match=r"Try: log_probs\.log"):
        kl_bounds(p, p)
    with pytest.raises(ValueError, match="NaN at 1 of 2 places"):
        TopK(torch.arange(2), torch.tensor([-0.5, math.nan]))


def test_an_estimate_refuses_sentinels_at_its_draws():
    p = TopK(torch.tensor([0]), torch.tensor([0.9]).log())
    log_p, log_q = torch.full((50,), -0.1), torch.full((50,), -0.2)
    log_q[7] = log_q[9] = -9999.0
    with pytest.raises(ValueError, match=r"log_q: .* 2 of 50 values that mean 'not scored'"):
        kl_estimate(p, p, torch.zeros(50, dtype=torch.int64), log_p, log_q)


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
