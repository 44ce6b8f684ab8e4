"""KL, JS and information from draws: scikit-learn, infomeasure, direct counts, known truths."""

import math

import infomeasure
import numpy as np
import pytest
import torch
from scipy.special import digamma
from sklearn.feature_selection._mutual_info import _compute_mi_cc, _compute_mi_cd
from sklearn.linear_model import LogisticRegression

from kullback.sampled import js_from_draws, kl_from_draws, mutual_information_from_draws
from kullback.sampled.classifier import held_out_log_ratio
from kullback.sampled.neighbours import lonely


def normals(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(seed, n=300, shift=1.0, d=1):
    return normals(seed, n, d), normals(seed + 1, n, d) + shift / math.sqrt(d)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("k", [1, 3])
def test_kl_neighbours_against_direct_distances(d, k):
    x, y = pair(0, d=d)
    scale = torch.cat([x, y]).std(0)
    a, b = (x / scale).numpy(), (y / scale).numpy()
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
    both = torch.cat([x, y])
    points = (both / both.std(0))[:, 0].numpy()
    theirs = _compute_mi_cd(points, np.repeat([0, 1], 250), k)
    assert js_from_draws(x, y, neighbours=k).value == pytest.approx(theirs, rel=1e-12)


def test_the_classifier_against_scikit_learn():
    x, y = pair(6, n=200, d=2)
    at_x, at_y = held_out_log_ratio(x, y)
    both = torch.cat([x, y])
    z = (both - both.mean(0)) / both.std(0)
    terms = torch.stack([z[:, 0], z[:, 1], z[:, 0] ** 2, z[:, 0] * z[:, 1], z[:, 1] ** 2], 1)
    terms = ((terms - terms.mean(0)) / terms.std(0)).numpy()
    labels = np.repeat([1, 0], 200)
    held = np.tile(np.arange(200) % 5 == 2, 2)
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(terms[~held], labels[~held])
    theirs = peer.decision_function(terms[held])
    ours = torch.cat([at_x, at_y]).numpy()[held]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", ["neighbours", "classifier"])
def test_known_truths(method, seed):
    """Half a nat and less, where both biases are far below the error bar; z ≤ 4.5."""
    x, y = pair(10 * seed, n=600, shift=0.5)
    found = kl_from_draws(x, y, method=method)
    assert abs(found.value - 0.125) < 4.5 * found.standard_error
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


@pytest.mark.parametrize("method", ["neighbours", "classifier"])
def test_nothing_is_clipped_at_zero(method):
    values = []
    for seed in range(4):
        x, y = pair(100 + seed, n=100, shift=0.0)
        values += [f(x, y, method=method).value for f in (kl_from_draws, js_from_draws)]
    assert min(values) < 0


def test_the_bias_is_stated():
    x, y = pair(0)
    assert kl_from_draws(x, y).bias == "low"
    for function in (kl_from_draws, js_from_draws, mutual_information_from_draws):
        bound = function(x, y, method="classifier")
        assert bound.bias == "low"
        assert any("what the classifier misses" in words for words in bound.warnings)


def test_what_is_out_of_reach_is_told():
    far = kl_from_draws(*pair(0, shift=3.0))
    assert any("in reach" in words for words in far.warnings)
    wide = kl_from_draws(*pair(0, d=8))
    assert any("nearest neighbours are not near" in words for words in wide.warnings)
    assert kl_from_draws(*pair(0, n=1000, shift=0.0)).warnings == ()
    ridge = normals(3, 200, 1)
    near = mutual_information_from_draws(ridge, ridge + 0.05 * normals(4, 200, 1))
    assert any("nearest neighbours are not near" in words for words in near.warnings)
    x, y = normals(1, 200, 1), normals(2, 200, 1)
    assert lonely(x, x + 0.0, k=3).item() == 0.0
    assert lonely(x, y + 50.0, k=3).item() == 1.0


def test_units_and_order_of_draws_do_not_matter():
    x, y = pair(7, d=2)
    units = torch.tensor([1e-6, 1e4], dtype=torch.float64)
    one, two = kl_from_draws(x, y), kl_from_draws(x * units, y * units)
    assert one.value == pytest.approx(two.value, rel=1e-9)
    assert kl_from_draws(x.flip(0), y).value == pytest.approx(one.value, rel=1e-12)


def test_batches_and_randomness():
    x, y = normals(0, 2, 100, 1), normals(1, 2, 100, 1) + 0.5
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


def test_nan_stays_nan():
    x, y = pair(0, n=100)
    x[3] = math.nan
    assert math.isnan(kl_from_draws(x, y).value)
    assert math.isnan(mutual_information_from_draws(x, y).value)


X = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: kl_from_draws([1.0], X), TypeError, "x: expected Tensor; got list"),
        (lambda: kl_from_draws(X[:, 0], X[:, 0]), ValueError, r"Try: x\[:, None\]"),
        (lambda: kl_from_draws(X, X[:, :1]), ValueError, "y: expected a shape that goes with x"),
        (lambda: kl_from_draws(X[:79], X), ValueError, "at least 80 draws; got 79"),
        (lambda: kl_from_draws(X, X, method="trees"), ValueError, "method: expected neighbours"),
        (lambda: kl_from_draws(X, X, neighbours=0), ValueError, "neighbours: expected"),
        (lambda: kl_from_draws(X, X, neighbours=1.5), TypeError, "neighbours: expected int"),
        (lambda: kl_from_draws(X.round(), X), ValueError, "distinct points; got one repeated"),
        (lambda: kl_from_draws(X[None], X[None], method="classifier"), ValueError, "x: expected"),
        (lambda: mutual_information_from_draws(X, X[:90]), ValueError, "y: expected a shape"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_the_estimate_is_of_the_right_size_far_out():
    """Disjoint samples: large and finite, never an infinity that draws alone cannot show."""
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
