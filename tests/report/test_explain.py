"""Code words, explanations and pictures of divergences, against the numbers they must show."""

import math
import warnings
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import distributions as d
from torch.distributions import constraints

from kullback import exact
from kullback.core import ArgumentValueError
from kullback.report.divergence_plot import estimators, plot, profile
from kullback.report.explain_fit import exact_posterior, exact_posterior_draws, explain_fit
from kullback.report.explain_named import explain_estimators
from kullback.report.explain_tables import explain_table, huffman_words
from kullback.report.text_layout import number
from kullback.variational import Target, fit


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_huffman_words_are_a_best_prefix_code(size):
    pytest.importorskip("constriction")
    seed = torch.Generator().manual_seed(size)
    masses = torch.rand(size, generator=seed, dtype=torch.float64)
    masses = masses.masked_fill(masses < 0.2, 0) + 0.0
    masses[0] += 0.1
    p = masses / masses.sum()
    words = huffman_words(p.tolist())
    live = sorted(word for word in words if word is not None)
    assert [word is None for word in words] == (p == 0).tolist()
    assert not any(after.startswith(before) for before, after in pairwise(live))
    peer = exact.codes.huffman_code(p)
    ours, theirs = (
        sum(m * len(w or "") for m, w in zip(p.tolist(), c, strict=True)) for c in (words, peer)
    )
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_code_words_of_the_notes():
    assert huffman_words([0.5, 0.25, 0.25]) == ["0", "10", "11"]
    assert huffman_words([0.25, 0.5, 0.25]) == ["10", "0", "11"]


def test_explanations_say_what_is_infinite_and_what_is_left_out():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    text = explain_table("kl", p, q, labels=("rain", "sun", "snow"), unit="bits")
    assert "rain" in text
    assert "none" in text
    assert "no length is enough" in text
    many = torch.ones(100) / 100
    assert "and 84 more" in explain_table("entropy", many, unit="nats")


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]),
        ([0.7, 0.2, 0.1], [0.1, 0.2, 0.7]),
        ([0.5, 0.3, 0.2, 0.0], [0.4, 0.1, 0.2, 0.3]),  # Q has mass that P lacks: E_P[r] = 0.7
        ([0.9, 0.1 - 1e-6, 1e-6], [0.5, 0.4, 0.1]),  # a heavy ratio
    ],
)
@pytest.mark.parametrize("unit", ["nats", "bits"])
def test_the_estimators_of_a_table_have_the_means_and_variances_of_enumeration(p, q, unit):
    tables = [torch.tensor(one, dtype=torch.float64) for one in (p, q)]
    text = explain_table("kl", *tables, unit=unit)
    rows = [(a, math.log(b / a), b / a) for a, b in zip(p, q, strict=True) if a > 0]
    mean = lambda f: math.fsum(w * f(l, r) for w, l, r in rows)  # noqa: E731, E741
    m, level = mean(lambda _, r: r), mean(lambda l, _: l)  # noqa: E741
    spread = mean(lambda _, r: (r - m) ** 2)
    best = mean(lambda l, r: (l - level) * (r - m)) / spread  # noqa: E741
    one = 1.0 if unit == "nats" else math.log(2)
    terms = {
        "k1": lambda l, _: -l / one,  # noqa: E741
        "k2": lambda l, _: l * l / 2 / one,  # noqa: E741
        "k3": lambda l, r: (r - m - l) / one,  # noqa: E741
        "λ*": lambda l, r: (best * (r - m) - l) / one,  # noqa: E741
    }
    table = text.split("variance, ")[1].splitlines()[1:]
    said = {line.split()[0]: line.split()[-2:] for line in table[:4]}
    for name, term in terms.items():
        level = mean(term)
        variance = mean(lambda l, r: (term(l, r) - level) ** 2)  # noqa: B023, E741
        shown = [float(figure) for figure in said[name]]
        assert shown == pytest.approx([level, variance], abs=6e-5, rel=6e-4)  # four digits
    assert f"λ* = Cov(ln r, r) / Var(r) = {number(best)}," in text
    h, cross, kl = (
        float(v) / one
        for v in (
            exact.entropy(tables[0]),
            exact.cross_entropy(*tables),
            exact.kl(*tables),
        )
    )
    assert f"H(P, Q) = H(P) + KL(P‖Q):  {number(cross)} = {number(h)} + {number(kl)} {unit}" in text
    assert cross == pytest.approx(h + kl, rel=1e-14)


def test_named_distributions_show_the_coefficient_of_their_samples():
    """λ* of N(0, 1) and N(1/2, 1): log r = x/2 − 1/8, Cov = 1/4, Var(r) = e^(1/4) − 1."""
    p, q = d.Normal(torch.tensor(0.0), 1.0), d.Normal(torch.tensor(0.5), 1.0)
    text = explain_estimators(p, q, unit="nats", draws=100_000, seed=0, exact=0.125)
    low, high = (float(x) for x in text.split("λ* = ")[2].rstrip(".").split(".\n")[0].split(" to "))
    best = 0.25 / (math.exp(0.25) - 1)
    assert low == pytest.approx(best, rel=0.05)
    assert high == pytest.approx(best, rel=0.05)
    inside = d.Uniform(torch.tensor(0.0), 1.0), d.Uniform(torch.tensor(0.0), 2.0)
    text = explain_estimators(*inside, unit="nats", draws=100, seed=0, exact=math.log(2))
    assert "every λ gives the same value" in text
    assert "heavy tail)" not in text


def test_without_a_best_coefficient_none_is_given():
    table = torch.tensor([0.5, 0.5]).double()
    assert "for every λ" in explain_table("kl", table, table, unit="nats")
    outside = explain_table("kl", table, torch.tensor([1.0, 0.0]).double(), unit="nats")
    assert "There is no λ*" in outside
    flat = explain_table(
        "kl", torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.4, 0.5, 0.1]), unit="nats"
    )
    assert (
        flat.split("λ*  ")[1].splitlines()[0].split()[-1] == "0"
    )  # two outcomes: a line fits both


@pytest.mark.parametrize(
    ("quantity", "p", "q", "truth"),
    [
        ("kl", d.Normal(0.0, 1.0), d.Normal(1.0, 1.0), 0.5),
        ("kl", d.Exponential(1.0), d.Exponential(4.0), 3 - torch.tensor(4.0).log()),
        ("kl", d.Cauchy(0.0, 1.0), d.Cauchy(2.0, 1.0), torch.tensor(2.0).log()),
        ("kl", d.Normal(0.0, 1.0), d.Normal(100.0, 1.0), 5000.0),
        ("kl", d.Poisson(3.0), d.Poisson(2.0), 3 * torch.tensor(1.5).log() - 1),
        ("entropy", d.Laplace(0.0, 1.0), None, 1 + torch.tensor(2.0).log()),
    ],
)
def test_the_area_under_the_curve_is_the_number(quantity, p, q, truth):
    assert profile(quantity, p, q, unit="nats").total == pytest.approx(float(truth), rel=1e-3)


@pytest.mark.slow
def test_pictures_hold_the_numbers_and_are_the_same_twice():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    drawable = [d.Categorical(p), d.Categorical(q)]
    pictures = [
        plot("kl", p, q, unit="bits", drawable=drawable, draws=50, labels=("a", "b", "c"))
        for _ in range(2)
    ]
    assert pictures[0] == pictures[1]
    words = "".join(ET.fromstring(pictures[0]).itertext())
    assert "KL(P‖Q) = 0.2500 bits" in words
    assert "200 repeats of 50 draws" in words


@pytest.mark.slow
def test_pictures_of_infinite_and_of_large_tables():
    text = plot("kl", torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert "+∞: Q has no mass" in text
    many = torch.rand(500, generator=torch.Generator().manual_seed(0))
    assert "H(P)" in plot("entropy", many / many.sum())
    with pytest.raises(ArgumentValueError, match="single numbers"):
        plot("entropy", d.Dirichlet(torch.ones(3)))


@pytest.mark.slow
def test_estimators_share_their_draws_and_are_unbiased_but_for_k2():
    p, q = d.Normal(torch.tensor(0.0), 1.0), d.Normal(torch.tensor(1.0), 1.0)
    seed = torch.Generator().manual_seed(0)
    found = estimators(p, q, draws=400, repeats=400, generator=seed)
    for name, truth in {"k1": 0.5, "k2": 0.625, "k3": 0.5, "best": 0.5}.items():
        values = found[name].value
        assert abs(values.mean() - truth) <= 4.5 * values.std() / 20, name


def test_small_and_large_numbers_keep_their_digits():
    shown = [number(v) for v in (0.25, -1.5, 1e-9, 123456.0, float("inf"))]
    assert shown == ["0.2500", "-1.5000", "1e-09", "123456.0000", "inf"]


def numbers_after(text, *heads):
    """The number at the end of the line that begins with each head."""
    lines = [line.strip() for line in text.splitlines()]
    found = (next(line for line in lines if line.startswith(head)) for head in heads)
    return [float(line.split()[-1].replace("−", "-")) for line in found]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("family", ["full_rank", "mixture"])
@pytest.mark.parametrize("dim", [1, 2])
def test_a_fit_is_explained_by_three_integrals_that_add_up(family, dim):
    """p factorises: its evidence is log 7 and d times the log of an integral that scipy does."""

    def log_density(z):
        return math.log(7.0) - 0.125 * z.square().sum() - 0.01 * z.pow(4).sum()

    found = fit(log_density, dim, family=family, progress=False)
    truth = exact_posterior(found.target)
    text = explain_fit(found, found.diagnosis, truth)
    elbo, kl, total, evidence = numbers_after(text, "ELBO(q)", "KL(q‖p)", "sum", "log p(x)  log")
    half = 4e-4  # figures are printed with four digits
    one = scipy.integrate.quad(lambda z: math.exp(-0.125 * z**2 - 0.01 * z**4), -20, 20)[0]
    assert evidence == pytest.approx(math.log(7.0) + dim * math.log(one), abs=half)
    assert total == pytest.approx(evidence, abs=half)
    assert elbo + kl == pytest.approx(total, abs=half)
    error = 4.5 * float(found.elbo.standard_error)
    assert elbo == pytest.approx(float(found.elbo.value), abs=error + half)
    assert ("true p(z|x)" in text) == (dim == 1)


def test_a_fit_in_more_dimensions_is_explained_by_its_draws():
    found = fit(lambda z: -0.5 * z.square().sum(), 3, progress=False)
    assert exact_posterior(found.target) is None
    text = explain_fit(found, found.diagnosis, None)
    assert "estimated from the same draws" in text and "quadrature on" not in text
    assert f"{1.5 * math.log(2 * math.pi):.4f}"[:4] in text


@pytest.mark.slow
def test_where_q_has_mass_and_p_none_no_sum_is_claimed():
    """Half a normal: the ELBO of any Gaussian is −inf."""

    def half(z):
        return torch.where(z[0] > 0, -0.5 * z[0] ** 2, -math.inf)

    with warnings.catch_warnings(action="ignore"):
        found = fit(half, 1, family="full_rank", progress=False)
        text = explain_fit(found, found.diagnosis, exact_posterior(found.target))
    assert "They add up: sum" not in text


def test_a_q_with_mass_outside_the_box_is_explained_by_its_draws():
    """A Student's t has more than a millionth of its mass beyond where a Gaussian p ends."""
    found = fit(lambda z: -0.5 * z[0] ** 2, 1, family="student_t", progress=False)
    text = explain_fit(found, found.diagnosis, exact_posterior(found.target))
    assert "estimated from" in text and "true p(z|x)" in text


def test_a_density_without_a_box_is_explained_by_draws():
    """A Cauchy's tails do not fit into one."""
    found = fit(lambda z: -torch.log1p(z[0] ** 2), 1, family="student_t", progress=False)
    assert exact_posterior(found.target) is None
    assert "estimated from" in explain_fit(found, found.diagnosis, None)


def test_a_density_that_is_nan_far_out_is_explained_by_draws():
    """inf − inf beyond |z| = 6, where a Gaussian fit of N(0, 1) hardly goes."""

    def torn(z):
        return torch.where(z[0].abs() < 6, -0.5 * z[0] ** 2, math.nan)

    assert exact_posterior(Target.of(torn, 1)) is None


def test_the_draws_of_the_truth_are_its_quantiles():
    target = Target.of(lambda rate: 8 * rate.log() - 3 * rate, {"rate": constraints.positive})
    draws = exact_posterior_draws(target, exact_posterior(target))["rate"].numpy()
    levels = np.array([0.01, 0.5, 0.99])
    exact = scipy.stats.gamma(9, scale=1 / 3).ppf(levels)
    # half a cell and linear interpolation err by h²/8 |∂ log p/∂z| each, h = 0.0424, 8.4 at 99 %
    assert np.quantile(draws, levels) == pytest.approx(exact, rel=0.0424**2 / 4 * 8.4)
