"""Code words, explanations and pictures of divergences, against the numbers they must show."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
import torch
from torch import distributions as d

from kullback import exact
from kullback.core import ArgumentValueError
from kullback.report.divergence_plot import estimators, plot, profile
from kullback.report.explain_tables import explain_table, huffman_words
from kullback.report.text_layout import number


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
