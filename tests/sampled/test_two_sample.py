"""KL, JS and information from draws: scikit-learn, infomeasure, direct counts, known truths."""

import math

import infomeasure
import numpy as np
import pytest
import torch
from scipy.special import digamma
from sklearn.feature_selection._mutual_info import _compute_mi_cc, _compute_mi_cd
from sklearn.linear_model import LogisticRegression

from kullback.sampled import js_from_draws, kl_from_draws, mutual_information_from_draws, two_sample
from kullback.sampled.nearest_neighbours import lonely
from kullback.sampled.two_sample import held_out_log_ratio
from kullback.sampled.two_sample_checks import find_grid


def normals(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(seed, n=300, shift=1.0, d=1):
    return normals(seed, n, d), normals(seed + 1, n, d) + shift / math.sqrt(d)


def whitened_within(x, y):
    """In units of the mean of the two covariances (Cholesky: any root of its inverse will do)."""
    a, b = x.numpy(), y.numpy()
    within = 0.5 * (np.atleast_2d(np.cov(a.T)) + np.atleast_2d(np.cov(b.T)))
    root = np.linalg.cholesky(np.linalg.inv(within))
    return a @ root, b @ root


@pytest.mark.sweep(2)
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("k", [1, 3])
def test_kl_neighbours_against_direct_distances(d, k):
    x, y = pair(0, d=d)
    a, b = whitened_within(x, y)
    own = np.sort(np.linalg.norm(a[:, None] - a[None], axis=-1), axis=1)[:, k]
    other = np.sort(np.linalg.norm(a[:, None] - b[None], axis=-1), axis=1)[:, k - 1]
    direct = d * np.log(other / own).mean() + digamma(301) - digamma(300)
    assert kl_from_draws(x, y, neighbours=k).value == pytest.approx(direct, rel=1e-12)


@pytest.mark.parametrize("k", [2, 4])
def test_kl_neighbours_against_infomeasure(k):
    """infomeasure subtracts an entropy from a cross-entropy, with logarithms for digammas."""
    x, y = pair(2)
    theirs = float(
        infomeasure.kld(x[:, 0].numpy(), y[:, 0].numpy(), approach="metric", k=k, base="e")
    )
    assert abs(kl_from_draws(x, y, neighbours=k).value - theirs) < 3.5 / 300


@pytest.mark.parametrize("k", [1, 3, 7])
def test_information_against_scikit_learn(k):
    x = normals(3, 400, 1)
    y = 0.8 * x + 0.6 * normals(4, 400, 1)
    a, b = ((z / z.std(0))[:, 0].numpy() for z in (x, y))
    theirs = _compute_mi_cc(a, b, k)
    found = mutual_information_from_draws(x, y, neighbours=k)
    assert theirs > 0
    assert found.value == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_js_against_scikit_learn(k):
    """The information of a point on the label of its sample (Ross 2014)."""
    x, y = pair(5, n=250)
    points = torch.cat([x, y])[:, 0].numpy()
    theirs = _compute_mi_cd(points, np.repeat([0, 1], 250), k)
    assert js_from_draws(x, y, neighbours=k).value == pytest.approx(theirs, rel=1e-12)


def test_the_classifier_against_scikit_learn():
    """The fold's own choice of terms and penalty, fitted and evaluated by scikit-learn."""
    x, y = pair(6, n=200, d=2)
    at_x, at_y = held_out_log_ratio(x, y)
    data = two_sample._Labelled.of(x, y)
    held, validation = data.place % 5 == 2, data.place % 5 == 3
    choice = two_sample._best(data, ~(held | validation), validation)
    a, b = x.numpy(), y.numpy()
    kept = np.arange(200) % 5 != 2
    within = 0.5 * (np.cov(a[kept].T) + np.cov(b[kept].T))
    both, fit = np.concatenate([a, b]), np.tile(kept, 2)
    scale = both[fit].std(0, ddof=1)
    size, turn = np.linalg.eigh(within / np.outer(scale, scale))
    z = ((both - both[fit].mean(0)) / scale @ turn / np.sqrt(size)).clip(-5, 5)
    if choice.quadratic:
        z = np.stack([z[:, 0], z[:, 1], z[:, 0] ** 2, z[:, 0] * z[:, 1], z[:, 1] ** 2], 1)
    z = (z - z[fit].mean(0)) / z[fit].std(0, ddof=1)
    labels = np.repeat([1, 0], 200)
    peer = LogisticRegression(C=1.0 / choice.penalty, tol=1e-10, max_iter=10_000)
    theirs = peer.fit(z[fit], labels[fit]).decision_function(z[~fit])
    ours = torch.cat([at_x, at_y]).numpy()[~fit]
    most = 0.5 * math.log(200)
    np.testing.assert_allclose(ours, theirs.clip(-most, most), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", ["neighbours", "classifier"])
def test_known_truths(method, seed):
    """Where both biases are far below the error bar; z ≤ 4.5."""
    x, y = pair(10 * seed, n=600, shift=0.3)
    found = kl_from_draws(x, y, method=method)
    assert abs(found.value - 0.045) < 4.5 * found.standard_error
    x, y = pair(10 * seed, n=600, shift=0.5)
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    p, q = torch.exp(-0.5 * z**2), torch.exp(-0.5 * (z - 0.5) ** 2)
    middle = 0.5 * (p + q)
    density = 0.5 * (p * (p / middle).log() + q * (q / middle).log()) / math.sqrt(2 * math.pi)
    js = torch.trapezoid(density.nan_to_num(), z).item()
    found = js_from_draws(x, y, method=method)
    assert abs(found.value - js) < 4.5 * found.standard_error
    other = 0.5 * x + math.sqrt(0.75) * normals(10 * seed + 5, 600, 1)
    found = mutual_information_from_draws(x, other, method=method)
    assert abs(found.value + 0.5 * math.log(0.75)) < 4.5 * found.standard_error


@pytest.mark.sweep(2)
@pytest.mark.parametrize("method", ["neighbours", "classifier"])
def test_nothing_is_clipped_at_zero(method):
    values = []
    for seed in range(4):
        x, y = pair(100 + seed, n=100, shift=0.0)
        values += [f(x, y, method=method).value for f in (kl_from_draws, js_from_draws)]
    assert min(values) < 0


def test_the_bias_is_stated():
    x, y = pair(0)
    assert kl_from_draws(x, y).bias == "unknown"
    for function in (kl_from_draws, js_from_draws, mutual_information_from_draws):
        bound = function(x, y, method="classifier")
        assert bound.bias == "low"
        assert "lower bound" in bound.why
        assert bound.warnings == ()


@pytest.mark.parametrize(
    ("draws", "reason"),
    [
        ({"shift": 3.0}, "have hardly any y near"),
        ({"d": 8, "shift": 0.5}, "8 dimensions, above 3"),
        ({"n": 100, "shift": 0.0}, "100 draws, below 200"),
    ],
)
def test_no_error_bar_where_the_bias_may_exceed_it(draws, reason):
    found = kl_from_draws(*pair(0, **draws))
    assert math.isnan(found.standard_error)
    assert reason in found.no_error
    assert "±" not in str(found)


def test_an_error_bar_where_the_densities_are_near():
    found = kl_from_draws(*pair(0, n=400, shift=0.0))
    assert found.no_error == ""
    assert found.warnings == ()
    assert found.standard_error > 0


@pytest.mark.slow
def test_no_error_bar_for_one_number_of_neighbours_and_strong_dependence():
    assert "leave out `neighbours`" in kl_from_draws(*pair(0), neighbours=3).no_error
    ridge = normals(3, 200, 1)
    near = mutual_information_from_draws(ridge, ridge + 0.05 * normals(4, 200, 1))
    assert "neighbours are not near" in near.no_error
    many = mutual_information_from_draws(normals(3, 200, 2), normals(4, 200, 1))
    assert "3 dimensions, above 2" in many.no_error
    assert "3 dimensions, above 2" in js_from_draws(*pair(0, d=3)).no_error


def test_which_x_are_out_of_reach():
    x, y = normals(1, 200, 1), normals(2, 200, 1)
    assert lonely(x, x + 0.0, k=3).item() == 0.0
    assert lonely(x, y + 50.0, k=3).item() == 1.0


@pytest.mark.slow
def test_units_and_order_of_draws_do_not_matter():
    x, y = pair(7, d=2)
    units = torch.tensor([1e-6, 1e4], dtype=torch.float64)
    mixed = torch.tensor([[1.0, 3.0], [-2.0, 1.0]], dtype=torch.float64)
    for function in (kl_from_draws, js_from_draws, mutual_information_from_draws):
        one, two = function(x, y), function(1 + x * units, 1 + y * units)
        assert one.value == pytest.approx(two.value, rel=1e-6)
        assert function(x @ mixed, y @ mixed).value == pytest.approx(one.value, rel=1e-9)
    one = kl_from_draws(x, y)
    assert kl_from_draws(x.flip(0), y).value == pytest.approx(one.value, rel=1e-12)


@pytest.mark.slow
def test_batches_and_randomness():
    x, y = normals(0, 2, 200, 1), normals(1, 2, 200, 1) + 0.3
    together = kl_from_draws(x, y)
    assert together.value.shape == (2,)
    alone = kl_from_draws(x[1], y[1])
    assert together.value[1].item() == pytest.approx(alone.value, rel=1e-12)
    assert together.standard_error[1].item() == pytest.approx(alone.standard_error, rel=1e-10)
    seeded = kl_from_draws(x[1], y[1], generator=torch.Generator().manual_seed(5))
    assert seeded.value == alone.value
    assert seeded.standard_error != alone.standard_error
    before = torch.get_rng_state()
    mutual_information_from_draws(x[0], y[0], method="classifier")
    assert torch.equal(torch.get_rng_state(), before)


def copies():
    """Samples that are not independent draws, by kind: name, x, y."""
    x, y = normals(1, 300, 2), normals(2, 300, 2)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    again = torch.randint(300, (300,), generator=torch.Generator().manual_seed(4))
    noise = normals(5, 300, 2)
    yield "the same", x, x
    yield "one column", x[:, :1], x[:, :1]
    yield "permuted", x, x[order]
    yield "a subset", x, x[:120]
    yield "half shared", x, torch.cat([x[:150], y[:150]])
    yield "one row", x, torch.cat([y, x[:1]])
    yield "float32", x.float(), x.float()[order]
    yield "noise of 1e-9", x, x + 1e-9 * noise
    yield "half with noise of 1e-4", x, torch.cat([x[:150] + 1e-4 * noise[:150], y[:150]])
    yield "one column, noise of 1e-7", x[:, :1], x[:, :1] + 1e-7 * noise[:, :1]
    yield "each row twice", torch.cat([x, x]), y
    yield "each row twice with noise", torch.cat([x, x + 1e-6 * noise]), y
    yield "a bootstrap sample", x[again], y
    yield "a bootstrap sample against its source", x[again], x
    yield "a column copied", x, torch.stack([x[:, 0], y[:, 1]], 1)
    yield "one decimal", x.mul(10).round() / 10, x[order].mul(10).round() / 10
    yield "four decimals", x.mul(1e4).round() / 1e4, x[order].mul(1e4).round() / 1e4
    yield "integers", x[:, :1].mul(9).round(), x[order, :1].mul(9).round()


@pytest.mark.sweep(9)
@pytest.mark.parametrize("method", ["neighbours", "classifier"])
@pytest.mark.parametrize(("x", "y"), [c[1:] for c in copies()], ids=[c[0] for c in copies()])
def test_rows_that_are_not_independent_draws_are_refused(x, y, method):
    for function in (kl_from_draws, js_from_draws):
        with pytest.raises(ValueError, match=r"expected (samples|rows) drawn independently|copies"):
            function(x, y, method=method)


def test_the_message_counts_the_shared_rows():
    x = normals(1, 300, 2)
    with pytest.raises(
        ValueError, match=r"share 100 of the 300 values of column 0 of x\. Try: draw"
    ):
        kl_from_draws(x, torch.cat([x[:100], normals(2, 200, 2)]))


def lawful():
    """Independent draws that tie by their law: name, x, y, and KL(p‖q) by a sum over the values."""
    x, y = normals(11, 600, 1), normals(12, 600, 1) + 0.2
    edges = torch.arange(-80, 81, dtype=torch.float64) / 10 - 0.05

    def masses(shift):
        return torch.special.ndtr(edges - shift).diff()

    p, q = masses(0.0), masses(0.2)
    rounded = torch.where(p > 0, p * (p / q).log(), 0.0).nansum().item()
    yield "one decimal", x.mul(10).round() / 10, y.mul(10).round() / 10, rounded
    yield "float16", x.half(), y.half(), 0.02
    yield "bfloat16", x.bfloat16(), y.bfloat16(), 0.02
    yield "float32", x.float(), y.float(), 0.02
    yield "four decimals", x.mul(1e4).round() / 1e4, y.mul(1e4).round() / 1e4, 0.02
    seed = torch.Generator().manual_seed(6)
    rates = torch.full((600, 1), 3.0, dtype=torch.float64)
    counts = [torch.poisson(rates * by, generator=seed) for by in (1.0, 1.2)]
    poisson = 3.0 * (0.2 - math.log(1.2))
    yield "counts", *counts, poisson
    yield "codes without a grid", *(torch.exp(c) for c in counts), poisson
    labels = [
        torch.bernoulli(torch.full_like(rates, chance), generator=seed) for chance in (0.5, 0.6)
    ]
    both = 0.02 + 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)
    yield (
        "a label beside a number",
        *(torch.cat(z, 1) for z in zip((x, y), labels, strict=True)),
        both,
    )


@pytest.mark.sweep(8)
@pytest.mark.parametrize(("x", "y", "kl"), [c[1:] for c in lawful()], ids=[c[0] for c in lawful()])
def test_rounded_and_discrete_draws(x, y, kl):
    """The noise that undoes rounding leaves KL as it is: against a sum over values, z ≤ 4.5."""
    found = kl_from_draws(x, y)
    assert found.no_error == ""
    assert abs(found.value - kl) < 4.5 * found.standard_error
    tied = len(torch.cat([x, y])[:, -1].unique()) < 1200
    assert ("uniform noise of one step" in found.how) == tied
    bound = kl_from_draws(x, y, method="classifier")
    assert bound.value - 4.5 * bound.standard_error < kl


def others():
    """Draws without a density to estimate, by kind: name, x, y, message."""
    x, y = normals(1, 300, 3), normals(2, 300, 3)
    gap = x.clone()
    gap[7:9, 1] = math.nan
    yield "NaN", gap, y, r"x: expected finite rows; got 2 of 300 .* \(the first is row 7\)"
    gap = y.clone()
    gap[5, 0] = math.inf
    yield "infinite", x, gap, r"y: expected finite rows; got 1 of 300 .* \(the first is row 5\)"
    yield "atom", x.relu(), y.relu(), "column 0: .*150 of 600|values that repeat others.*part atoms"
    fixed = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    yield (
        "constant in one",
        x.abs() * fixed,
        y,
        "x, column 1: expected values that vary; got only 0",
    )
    plane = x.clone()
    plane[:, 2] = plane[:, 0] - 2 * plane[:, 1]
    yield "a plane in one", plane, y, "samples that fill 2 and 3 of 3 dimensions"
    yield "two planes", plane, plane + torch.tensor([0.0, 0.0, 1.0]), "drawn independently|fill one"
    angle = 6 * torch.rand(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, two = (torch.stack([a.cos(), a.sin()], 1) for a in angle)
    yield "a circle", one, two, "than 2-dimensional draws"


@pytest.mark.parametrize(
    ("x", "y", "text"), [c[1:] for c in others()], ids=[c[0] for c in others()]
)
def test_draws_without_a_density_are_refused(x, y, text):
    for function in (kl_from_draws, js_from_draws):
        with pytest.raises(ValueError, match=text):
            function(x, y)


def test_constant_and_collinear_columns_are_left_out():
    x, y = normals(1, 300, 2), normals(2, 300, 2)
    plain = kl_from_draws(x, y)
    more = [torch.cat([z, torch.full((300, 1), 7.0), z.sum(1, keepdim=True)], 1) for z in (x, y)]
    found = kl_from_draws(*more)
    assert found.value == pytest.approx(plain.value, rel=1e-6)
    assert "column 2 is constant" in found.how
    assert "1 collinear left out" in found.how


@pytest.mark.parametrize("method", ["neighbours", "classifier"])
def test_pairs_that_are_no_independent_draws(method):
    x, y = normals(1, 300, 1), normals(2, 300, 1)
    cases = (
        (x, 2 * x + 1, "information is infinite"),
        (torch.cat([x, x]), torch.cat([y, y]), "repeat others"),
        (x, y * math.nan, "300 of 300 with NaN"),
        (0 * x, y, "constants only"),
    )
    for one, other, text in cases:
        with pytest.raises(ValueError, match=text):
            mutual_information_from_draws(one, other, method=method)
    if method == "neighbours":
        with pytest.raises(ValueError, match="nearer to other pairs than 2-dimensional draws"):
            mutual_information_from_draws(x, x**3)


def test_information_of_discrete_pairs():
    """A binary symmetric channel, and a label with a number: against sums, z ≤ 4.5."""
    seed = torch.Generator().manual_seed(0)
    x = torch.randint(2, (600, 1), generator=seed).double()
    flip = torch.rand(600, 1, generator=seed) < 0.2
    y = torch.where(flip, 1 - x, x)
    found = mutual_information_from_draws(x, y)
    truth = math.log(2) + 0.2 * math.log(0.2) + 0.8 * math.log(0.8)
    assert abs(found.value - truth) < 4.5 * found.standard_error


@pytest.mark.slow
def test_issue_values():
    """Shared points were −0.49 ± 0.02; the classifier −14 to −4e15; ρ = 0.99 across 3.1 for 9."""
    x = normals(0, 1000, 1)
    with pytest.raises(ValueError, match="share 1000 of the 1000"):
        kl_from_draws(x, x)
    with pytest.raises(ValueError, match="share 500 of the 1000"):
        kl_from_draws(x, torch.cat([x[:500], normals(1, 500, 1)]))
    for n in (300, 500):
        x, y = normals(2, n, 20), normals(3, n, 20) + 0.2
        kl, js = (f(x, y, method="classifier") for f in (kl_from_draws, js_from_draws))
        assert 0.0 < kl.value < 0.4 + 4.5 * kl.standard_error
        assert 0.0 < js.value < math.log(2.0)
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=torch.float64))
    shift = torch.tensor([0.3, -0.3], dtype=torch.float64)  # KL = ½ 0.18 / 0.01 = 9
    x, y = normals(4, 500, 2) @ root.T, normals(5, 500, 2) @ root.T + shift
    found = kl_from_draws(x, y)
    assert math.isnan(found.standard_error)
    assert "hardly any y near" in found.no_error


def classifier_grid():
    for n, d in ((80, 1), (200, 5)):
        for shift in (0.0, 0.5, 3.0):
            yield n, d, shift


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("n", "d", "shift"), list(classifier_grid()))
def test_the_classifier_gives_a_lower_bound(n, d, shift):
    """Its interval reaches below the truth, and no value is outside what is possible."""
    x, y = normals(n, n, d), normals(d, 2 * n, d) + shift / math.sqrt(d)
    check_bounds(x, y, shift**2 / 2)


def check_bounds(x, y, truth):
    kl, js = (f(x, y, method="classifier") for f in (kl_from_draws, js_from_draws))
    for found, most in ((kl, truth), (js, min(math.log(2.0), truth / 2))):  # JS ≤ J/4 (Lin 1991)
        error = 0.0 if found.no_error else found.standard_error
        assert found.value - 4.5 * error <= most
        assert found.value + 4.5 * error >= 0.0
    assert js.value <= math.log(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("d", [1, 5, 20, 50])
def test_the_classifier_gives_a_lower_bound_anywhere(d, seed):
    for n in (80, 300, 1000):
        for shift in (0.0, 0.5, 1.0, 3.0):
            x, y = normals(seed, n, d), normals(99 + seed, n // 2 + 60, d) + shift / math.sqrt(d)
            check_bounds(x, y, shift**2 / 2)
        one, two = (heavy(10 * seed + i, n, d) for i in (5, 7))
        check_bounds(one, two, 0.0)
        check_bounds(one.sigmoid(), 2.0 + two.sigmoid(), math.inf)  # disjoint supports


def heavy(seed, n, d):
    """Student's t with 2 degrees of freedom."""
    chi = normals(seed, n, d) ** 2 + normals(seed + 1, n, d) ** 2
    return normals(seed + 2, n, d) / (chi / 2).sqrt()


@pytest.mark.slow
def test_independent_draws_are_not_refused():
    """300 pairs of samples of many laws: a false refusal has a chance far below 1 in 1,000."""
    for seed in range(60):
        z = [normals(1000 * seed + i, 150, 1 + seed % 3) for i in range(4)]
        kl_from_draws(z[0], z[1])
        kl_from_draws(z[0].float(), 0.3 * z[1].float())
        kl_from_draws(z[0] / z[2], z[1] / z[3], neighbours=3)
        kl_from_draws(z[0].exp(), z[1].exp(), neighbours=3)
        kl_from_draws(z[0].mul(2).round(), z[1].mul(3).round(), neighbours=3)


X = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: kl_from_draws([1.0], X), TypeError, "x: expected Tensor; got list"),
        (lambda: kl_from_draws(X[:, 0], X[:, 0]), ValueError, r"Try: x\[:, None\]"),
        (lambda: kl_from_draws(X, X[:, :1]), ValueError, "y: expected a shape that goes with x"),
        (lambda: kl_from_draws(X[:79], X), ValueError, "at least 80 draws; got 79"),
        (lambda: kl_from_draws(X[:, :0], X), ValueError, "x: expected at least one column; got 0"),
        (lambda: kl_from_draws(X, X, method="trees"), ValueError, "method: expected neighbours"),
        (lambda: kl_from_draws(X, X, neighbours=0), ValueError, "neighbours: expected"),
        (lambda: kl_from_draws(X, X, neighbours=1.5), TypeError, "neighbours: expected int"),
        (lambda: kl_from_draws(X[None], X[None], method="classifier"), ValueError, "x: expected"),
        (lambda: mutual_information_from_draws(X, X[:90]), ValueError, "y: expected a shape"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_the_estimate_is_of_the_right_size_far_out():
    """Disjoint samples: large and finite, never an infinity that draws alone cannot show."""
    js = js_from_draws(*pair(0, shift=1000.0))
    assert 0 < abs(js.value - math.log(2.0)) < js.standard_error < 0.01
    found = kl_from_draws(*pair(0, shift=1000.0))
    assert 5 < found.value < 100


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(600, 200), (200, 600)])
def test_jensen_shannon_from_unequal_numbers(n, m):
    """Both kinds count one half, whatever their numbers; a batch against quadrature, z ≤ 4.5."""
    x, y = normals(11, 40, n, 1), normals(12, 40, m, 1) + 1.0
    found = js_from_draws(x, y)
    z = torch.linspace(-10, 11, 20_001, dtype=torch.float64)
    p, q = (torch.exp(-0.5 * (z - at) ** 2) / math.sqrt(2 * math.pi) for at in (0.0, 1.0))
    inner = 0.5 * (torch.xlogy(p, 2 * p / (p + q)) + torch.xlogy(q, 2 * q / (p + q)))
    truth = torch.trapezoid(inner, z)
    gap = found.value.mean() - truth
    assert gap.abs() < 4.5 * found.value.std() / math.sqrt(40)
    assert found.value.std() == pytest.approx(found.standard_error.mean().item(), rel=0.5)


def test_which_grid_a_column_is_taken_to_lie_on():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, generator=draw)
    half = torch.rand(400, generator=draw) < 0.5
    columns = {
        "rounded to bfloat16": x.bfloat16(),
        "rounded to float32": 1 + x.sigmoid(),  # equally spaced as well, as all of [1, 2]
        "a grid of step 0.1": (10 * x.double()).round() / 10,
        "5 distinct values": x[torch.randint(5, (400,), generator=draw)],
    }
    for name, column in columns.items():
        assert find_grid(column.double(), torch.finfo(torch.float64).eps).name == name
    atoms = find_grid(x.bfloat16().masked_fill(half, 0.0).double(), 1e-16)
    assert atoms.name == "rounded to bfloat16"  # which does not explain the ties at 0
    assert not atoms.explains(atoms.values)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["neighbours", "classifier"])
def test_rows_of_a_chain_have_no_error_bar(method):
    """AR(1) of correlation 0.6: the classifier missed 0.125 in 7 of 20, by up to 12 errors."""
    x, y = normals(1, 400, 1), normals(2, 400, 1)
    for chained in (x, y):
        for row in range(1, len(chained)):
            chained[row] = 0.6 * chained[row - 1] + 0.8 * chained[row]
    found = kl_from_draws(x, y + 0.5, method=method)
    assert "neighbouring rows of x are alike" in found.no_error
    assert "neighbouring rows of y" in kl_from_draws(normals(3, 400, 1), y, method=method).no_error
    ordered = [z[z[:, 0].argsort()] for z in (normals(4, 400, 2), normals(5, 400, 2))]
    assert "alike" not in kl_from_draws(*ordered, method=method).no_error
    both = mutual_information_from_draws(x, y, method=method)
    assert "neighbouring rows" in both.no_error
    one = mutual_information_from_draws(x, normals(6, 400, 1), method=method)
    assert "alike" not in one.no_error
