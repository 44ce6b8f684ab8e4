"""Every registered pair against textbook formulas in mpmath: parameters 1e-6 to 1e6, p ≈ q.

The pairs are those of `closed_forms.pairs()`: a new one without a line in `textbook` fails here.
"""

import itertools
import math
import random
import warnings

import mpmath as mp
import pytest
import torch
import torch.distributions as D

from kullback.exact import closed_forms
from textbook import BUILD, SIZE, SPECIAL, P, Q, kl

RELATIVE = 1e-6  # the matrices' condition numbers, up to 1e8, times eps are below it
ROWS = [row for row in closed_forms.pairs() if row.quantity == "kl"]
GENERIC = {("Independent", "Independent"), ("TransformedDistribution", "TransformedDistribution")}
FINITE = [(r.p, r.q) for r in ROWS if "+inf" not in r.source and (r.p, r.q) not in GENERIC]
MATRICES = {"Independent", "MultivariateNormal", "LowRankMultivariateNormal", "Wishart"}


def size(rng, low=-6.0, high=6.0):
    return 10 ** rng.uniform(low, high)


def place(rng):
    return rng.choice((0.0, rng.choice((-1, 1)) * size(rng)))


def chance(rng):
    return rng.choice((size(rng, -6, -0.01), 1 - size(rng, -6, -0.01)))


def interval(rng):
    low = place(rng)
    return [low, low + size(rng)]


def inner(rng):
    low, high = sorted((chance(rng), chance(rng)))
    return [low, high] if low < high else [0.0, 1.0]


def tril(rng, n):
    return [
        (size(rng, -2, 2) if i == j else rng.gauss(0, 1)) for i in range(n) for j in range(i + 1)
    ]


SAMPLE = {
    **{
        name: lambda rng: [place(rng), size(rng)]
        for name in ("Normal", "Laplace", "Gumbel", "Cauchy")
    },
    **{
        name: lambda rng: [size(rng), size(rng)]
        for name in ("Gamma", "Beta", "InverseGamma", "Weibull", "InverseGaussian", "Pareto")
    },
    **{
        name: lambda rng: [size(rng)]
        for name in ("Exponential", "HalfNormal", "HalfCauchy", "Poisson", "LKJCholesky")
    },
    **{
        name: lambda rng: [chance(rng)]
        for name in ("Bernoulli", "Binomial", "Geometric", "NegativeBinomial")
    },
    **{
        name: lambda rng: [size(rng, -6, 0) for _ in range(4)]
        for name in ("Categorical", "OneHotCategorical", "Multinomial")
    },
    "ContinuousBernoulli": lambda rng: [rng.choice((-1, 1)) * size(rng)],
    "Uniform": interval,
    "VonMises": lambda rng: [rng.uniform(-3, 3), size(rng)],
    "Dirichlet": lambda rng: [size(rng) for _ in range(3)],
    "Wishart": lambda rng: [1 + size(rng, -3, 6), *tril(rng, 2)],
    "Independent": lambda rng: (
        [rng.gauss(0, 1) for _ in range(SIZE)] + [size(rng, -2, 2) for _ in range(SIZE)]
    ),
    "MultivariateNormal": lambda rng: [rng.gauss(0, 1) for _ in range(SIZE)] + tril(rng, SIZE),
    "LowRankMultivariateNormal": lambda rng: (
        [rng.gauss(0, 1) for _ in range(2 * SIZE)] + [size(rng, -2, 2) for _ in range(SIZE)]
    ),
}


def moments(first, p):
    one = P[first](*map(mp.mpf, p))
    return float(one.m1), float(mp.sqrt(max(one.m2 - one.m1**2, mp.mpf(10) ** -300)))


def matched(first, second, p, rng):
    """Parameters of the second family that come close to p."""
    if second == "Poisson":
        return [p[0]]
    if second in MATRICES:
        return close_gaussian(first, second, p)
    if second == "ContinuousBernoulli":
        if first == "Beta":
            return [p[0] - p[1] if 1 < p[0] < p[1] or p[0] > p[1] else -p[1]]
        return [rng.choice((-1, 1)) * size(rng, -6, 0)]
    mean, sd = moments(first, p)
    if second in ("Normal", "Laplace"):
        return [mean, sd]
    if second == "Gumbel":
        scale = sd * 6**0.5 / math.pi
        return [mean - 0.5772156649 * scale, scale]
    if second == "Gamma":
        return [mean**2 / sd**2, mean / sd**2]
    if second == "Exponential":
        return [1 / mean]
    if second == "Beta":
        return [1 + 0.5 * rng.random(), 1 + 0.5 * rng.random()]
    if second == "Pareto":
        return [p[0] if p[0] > 0 else size(rng), size(rng)]
    if second == "Uniform":
        return [-size(rng, -9, 0) if rng.random() < 0.5 else 0.0, 1 + size(rng, -9, 0)]
    raise AssertionError(second)


def close_gaussian(first, second, p):
    """A Gaussian of another kind: the same mean, and deviations like p's."""
    loc, rest = p[:SIZE], p[SIZE:]
    spread = rest[-SIZE:] if first != "MultivariateNormal" else [rest[0], rest[2], rest[5]]
    if second == "Independent":
        return [*loc, *spread]
    if second == "MultivariateNormal":
        return [*loc, spread[0], 0.0, spread[1], 0.0, 0.0, spread[2]]
    return [*loc, 1e-3, 0.0, 1e-3, *(s**2 for s in spread)]


def near(values, delta, rng):
    return [v * (1 + delta * rng.choice((-1, 0, 1, rng.uniform(-1, 1)))) for v in values]


def fit_for(first, second, p):
    """Move a Uniform into the support of q."""
    if first == "Uniform" and second in ("Gamma", "Exponential"):
        return [abs(p[0]), abs(p[0]) + p[1] - p[0]]
    return p


def points(first, second, count, seed=0):
    """Parameters of p and q: far apart, and with relative differences of 1e-1 to 1e-12."""
    rng = random.Random(f"{first}{second}{seed}")
    for k in range(count):
        p = fit_for(first, second, SAMPLE[first](rng))
        if first == "Uniform" and second in ("Beta", "ContinuousBernoulli"):
            p = inner(rng) if k % 3 else [0.0 if k % 2 else size(rng, -12, -1), 1.0]
        if k % 2:
            yield p, SAMPLE[second](rng)
            continue
        q = list(p) if first == second else matched(first, second, p, rng)
        if all(map(math.isfinite, q)):
            yield p, near(q, 10 ** rng.uniform(-12, -1), rng)


def valid(second, q):
    if second in ("Bernoulli", "Binomial", "Geometric", "NegativeBinomial"):
        return 0 < q[0] < 1
    if second == "Uniform":
        return q[0] < q[1]
    if second in ("Normal", "Laplace", "Gumbel", "Cauchy", "VonMises"):
        return q[1] > 0
    if second in ("Gamma", "Exponential"):
        return min(q) > 0
    return True


def stored(distribution, given):
    """What the distribution holds of the given parameters: torch normalises probabilities."""
    inner_one = getattr(distribution, "_categorical", distribution)
    if isinstance(inner_one, D.Categorical):
        return [mp.mpf(v) for v in inner_one.probs.tolist()]
    return [mp.mpf(v) for v in given]


def built(name, values, dtype=torch.float64):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of itself in some constructors
        leaves = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in values]
        return BUILD[name](*leaves), leaves


def cases(first, second, count, seed=0, dtype=torch.float64):
    """Distributions, their parameters as numbers, and the leaves, where torch takes them."""
    for both in points(first, second, count, seed):
        p, q = ([float(torch.tensor(v, dtype=dtype)) for v in values] for values in both)
        if not (valid(first, p) and valid(second, q)):
            continue
        try:
            one, other = built(first, p, dtype), built(second, q, dtype)
        except (ValueError, torch.linalg.LinAlgError):  # refused by torch
            continue
        yield p, q, one, other


def compare(first, second, count, seed=0, dtype=torch.float64):
    wrong, compared = [], 0
    for p, q, (one, _), (other, _) in cases(first, second, count, seed, dtype):
        value = closed_forms.kl(one, other)
        assert value.dtype == dtype
        truth = kl(first, second, stored(one, p), stored(other, q))
        compared += 1
        if not agrees(value.item(), truth, torch.finfo(dtype)):
            wrong.append((p, q, value.item(), mp.nstr(truth, 12)))
    assert compared > count // 3, compared
    assert not wrong, f"{len(wrong)} of {compared}: {wrong[:3]}"


def agrees(value, truth, limits):
    if math.isnan(value) or value < 0:
        return False
    if truth > limits.max:
        return value == math.inf
    smallest = max(limits.tiny, 1e-65)  # what mpmath's 80 digits leave of terms of 1e15
    if truth < smallest:
        return value < 2 * smallest
    return abs(value - truth) <= RELATIVE * truth


def test_every_pair_has_a_textbook_formula():
    missing = [
        pair for pair in FINITE if pair not in SPECIAL and not (pair[0] in P and pair[1] in Q)
    ]
    assert missing == []


@pytest.mark.sweep(15)
@pytest.mark.parametrize(("first", "second"), FINITE)
def test_every_pair_against_its_textbook_formula(first, second):
    compare(first, second, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), FINITE)
def test_every_pair_on_the_large_grid(first, second):
    compare(first, second, 300, seed=1)


@pytest.mark.sweep(5)
@pytest.mark.parametrize(("first", "second"), FINITE)
def test_equal_distributions_are_at_zero_with_zero_gradient(first, second):
    if first != second or first in ("Uniform", "Pareto"):  # these have one-sided slopes: see below
        return
    rng = random.Random(first)
    for _ in range(4):
        values = SAMPLE[first](rng)
        (p, leaves_p), (q, leaves_q) = built(first, values), built(second, values)
        value = closed_forms.kl(p, q)
        gradients = torch.autograd.grad(value, [*leaves_p, *leaves_q], allow_unused=True)
        assert value.item() == 0.0
        assert all(g is None or g.abs().item() == 0.0 for g in gradients), gradients


@pytest.mark.sweep(9)
@pytest.mark.parametrize(("first", "second"), FINITE)
def test_every_pair_in_float32_is_the_float64_value_rounded(first, second):
    compare(first, second, 6, seed=2, dtype=torch.float32)


def slope(first, second, p, q, side, index):
    """The derivative of the textbook KL by one parameter: a difference over 1e-20 of it."""
    values = [list(p), list(q)]
    step = abs(values[side][index]) * mp.mpf(10) ** -20 or mp.mpf(10) ** -25
    found = []
    for sign in (1, -1):
        moved = [list(p), list(q)]
        moved[side][index] += sign * step
        found.append(kl(first, second, *moved))
    return (found[0] - found[1]) / (2 * step)


@pytest.mark.sweep(15)
@pytest.mark.parametrize(("first", "second"), FINITE)
def test_gradients_of_every_pair_against_the_textbooks(first, second):
    """In units of the parameters, every slope to 1e-6 of the largest one.

    Near a minimum the slope itself is rounded: 1e-13 of the value (a thousand eps, for means a
    thousand deviations from 0), and 9 eps where torch normalises the probabilities.
    """
    rounding = 2e-15 if hasattr(built(first, SAMPLE[first](random.Random(0)))[0], "logits") else 0
    for p, q, (one, leaves_p), (other, leaves_q) in cases(first, second, 4, seed=3):
        value = closed_forms.kl(one, other)
        ends = "Uniform" in (first, second) and bool({0.0, 1.0} & {*p, *q})
        large = max(map(abs, (*p, *q))) > 1e7  # beyond the range that is promised
        if not value.isfinite() or value < 1e-30 or ends or large:
            continue
        leaves = [*leaves_p, *leaves_q]
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        found = [0.0 if g is None else g.item() for g in found]
        given = [mp.mpf(v) for v in p], [mp.mpf(v) for v in q]
        places = [(side, i) for side in (0, 1) for i in range(len(given[side]))]
        truth = [slope(first, second, *given, side, i) for side, i in places]
        sizes = [abs(given[side][i]) or 1 for side, i in places]
        scaled = [abs(t * size) for t, size in zip(truth, sizes, strict=True)]
        if max(scaled) > 1e300:
            continue
        for g, t, size in zip(found, truth, sizes, strict=True):
            allowed = RELATIVE * max(scaled) + 1e-13 * value.item() + rounding
            assert abs(g - t) * size <= allowed, (p, q, found, truth)


@pytest.mark.sweep(9)
@pytest.mark.parametrize(("first", "second"), FINITE)
def test_batches_of_every_pair_broadcast(first, second):
    drawn = [(p, q) for p, q, _, _ in itertools.islice(cases(first, second, 12, seed=4), 3)]
    ps, qs = (
        [torch.tensor(row, dtype=torch.float64) for row in zip(*rows, strict=True)]
        for rows in zip(*drawn, strict=True)
    )
    vector = first in MATRICES | {"Categorical", "OneHotCategorical", "Multinomial", "Dirichlet"}
    if vector:  # their builders stack along the first axis
        return
    p, q = BUILD[first](*ps), BUILD[second](*(row[:, None] for row in qs))
    try:
        value = closed_forms.kl(p, q)
    except ValueError:
        return
    assert value.shape == (3, 3)
    for i, j in itertools.product(range(3), repeat=2):
        one, other = built(first, drawn[j][0])[0], built(second, drawn[i][1])[0]
        alone = closed_forms.kl(one, other)
        torch.testing.assert_close(value[i, j], alone, rtol=1e-12, atol=1e-300)
