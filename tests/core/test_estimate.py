"""Estimate: arithmetic against simulation-free truths, units, bias and printing."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from kullback import Estimate


def test_from_terms_is_the_textbook_mean_and_standard_error():
    terms = np.array([1.0, 4.0, 2.0, 7.0])
    estimate = Estimate.from_terms(terms)
    assert estimate.value == terms.mean()
    assert estimate.standard_error == pytest.approx(terms.std(ddof=1) / 2.0, rel=1e-15)
    assert estimate.draws == 4


def test_the_error_is_unbiased_by_enumeration():
    """Over all 3^3 equally likely samples the mean squared error bar is Var/n, exactly."""
    support = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    samples = torch.cartesian_prod(support, support, support)
    estimate = Estimate.from_terms(samples)
    assert (estimate.standard_error**2).mean().item() == pytest.approx(
        support.var(unbiased=False).item() / 3, rel=1e-14
    )
    assert estimate.value.mean().item() == pytest.approx(2.0, rel=1e-14)


def test_batched_terms_keep_their_batch():
    terms = torch.arange(12.0).reshape(3, 4)
    estimate = Estimate.from_terms(terms)
    assert estimate.value.tolist() == [1.5, 5.5, 9.5]


def test_infinite_and_nan_terms():
    assert Estimate.from_terms(torch.tensor([1.0, math.inf])).standard_error == math.inf
    nan = Estimate.from_terms(torch.tensor([1.0, math.nan]))
    assert math.isnan(nan.value)
    assert math.isnan(nan.standard_error)
    batch = Estimate.from_terms(torch.tensor([[1.0, math.inf], [1.0, 1.0]]))
    assert batch.standard_error.tolist() == [math.inf, 0.0]


def test_independent_errors_add_in_quadrature():
    a, b = Estimate(3.0, 0.3, draws=10), Estimate(1.0, 0.4, draws=5)
    assert (a + b).value == 4.0
    assert (a - b).value == 2.0
    assert (a + b).standard_error == pytest.approx(0.5)
    assert (a - b).standard_error == pytest.approx(0.5)
    assert (a + b).draws == 5
    assert (1.0 - a).value == -2.0
    assert (-2 * a).standard_error == pytest.approx(0.6)
    assert (a / 3).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("left", "right", "total", "difference"),
    [
        ("none", "none", "none", "none"),
        ("low", "none", "low", "low"),
        ("none", "low", "low", "high"),
        ("low", "low", "low", "unknown"),
        ("low", "high", "unknown", "low"),
    ],
)
def test_bias_is_carried(left, right, total, difference):
    a, b = Estimate(0.0, 1.0, 2, bias=left), Estimate(0.0, 1.0, 2, bias=right)
    assert (a + b).bias == total
    assert (a - b).bias == difference
    assert (-1.0 * a).bias == {"low": "high", "high": "low"}.get(left, left)


def test_units():
    one = Estimate(math.log(2.0), 0.5 * math.log(2.0), draws=3)
    assert one.bits().value == pytest.approx(1.0, rel=1e-15)
    assert one.bits().unit == "bits"
    assert one.bits().nats().value == pytest.approx(one.value, rel=1e-15)
    rate = one.per(784, "dim").bits()
    assert (rate.unit, rate.value) == ("bits/dim", pytest.approx(1 / 784, rel=1e-14))
    with pytest.raises(ValueError, match="unit: expected both in 'nats'; got 'bits'"):
        one + one.bits()
    with pytest.raises(ValueError, match="unit: expected nats or bits; got ''"):
        Estimate(1.0, 0.1, 2, unit="").bits()


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-89.4234, 0.1134, "-89.42 ± 0.11 nats"),
        (0.000123, 0.0000456, "0.000123 ± 0.000046 nats"),
        (12345.678, 123.4, "12346 ± 120 nats"),
        (1.0, 0.0, "1 ± 0 nats"),
        (math.inf, math.inf, "inf ± inf nats"),
        (math.nan, math.nan, "nan ± nan nats"),
        (2.0, 0.0996, "2.00 ± 0.10 nats"),
        (2.0, 0.994, "2.00 ± 0.99 nats"),
        (2.0, 0.996, "2.0 ± 1.0 nats"),
    ],
)
def test_printing(value, error, text):
    assert str(Estimate(value, error, draws=9)) == text


def test_printing_says_bias_first_to_last():
    assert str(Estimate(1.0, 0.1, 9, bias="low")) == "1.00 ± 0.10 nats, biased low"
    assert str(Estimate(1.0, 0.1, 9, unit="", bias="unknown")) == "1.00 ± 0.10, bias unknown"


def test_json_round_trip_keeps_infinities_and_warnings():
    estimate = Estimate(math.inf, math.inf, 7, why="x", bias="high").warn(
        "heavy tail", "heavy tail"
    )
    assert estimate.warnings == ("heavy tail",)
    again = Estimate.from_dict(json.loads(json.dumps(estimate.to_dict(), allow_nan=False)))
    assert again == estimate


def test_the_tail_of_a_sum_is_the_heavier_one():
    light, heavy, unknown = (Estimate(1.0, 0.1, 9, k_hat=k) for k in (0.1, 0.8, math.nan))
    plain = Estimate(1.0, 0.1, 9)
    assert (light + heavy).k_hat == (heavy - light).k_hat == (2 * heavy + plain).k_hat == 0.8
    assert math.isnan((light + unknown).k_hat)
    assert math.isnan((unknown + light).k_hat)
    assert (plain + plain).k_hat is None
    batch = Estimate(torch.zeros(2), torch.ones(2), 9, k_hat=torch.tensor([0.5, 0.9]))
    assert (batch + heavy).k_hat.tolist() == (heavy + batch).k_hat.tolist()
    assert (batch + heavy).k_hat.tolist() == pytest.approx([0.8, 0.9])
    assert Estimate.from_dict(json.loads(json.dumps(heavy.to_dict()))) == heavy
    old = {key: value for key, value in plain.to_dict().items() if key not in ("k_hat", "where")}
    assert Estimate.from_dict(old) == plain


def test_a_warning_can_be_about_part_of_a_batch():
    plain = Estimate(torch.zeros(3), torch.ones(3), 9)
    first, last = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    some = plain.warn("few", where=first)
    assert plain.warned.tolist() == [False, False, False]
    assert plain.warn() is plain
    assert some.warned is first
    assert some.warn("heavy", where=last).warned.tolist() == [True, False, True]
    assert (plain + some).warned.tolist() == (-some + plain).warned.tolist() == first.tolist()
    assert (some + plain.warn("all")).warned.tolist() == [True, True, True]
    assert some.warn("all").warned.tolist() == [True, True, True]
    unknown = Estimate(np.array([1.0, math.nan]), np.ones(2), 9)
    assert (unknown.warned.tolist(), unknown.warn("all").warned.tolist()) == (
        [False] * 2,
        [True] * 2,
    )
    assert some.to_dict()["where"] == [True, False, False]


@pytest.mark.parametrize("draws", [2, 3, 4, 5, 10, 30, 1000])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_interval_is_students(draws, level):
    low, high = Estimate(1.0, 2.0, draws=draws).interval(level)
    errors = scipy.stats.t.ppf(0.5 + level / 2, draws - 1)
    assert (high - 1) / 2 == pytest.approx(errors, rel=2e-3 if draws < 10 else 1e-4)
    assert 1.0 - low == pytest.approx(high - 1.0, rel=1e-14)


def test_intervals_cover_exactly_as_often_as_they_say():
    """Means of ten normal draws: 20,000 repeats, z ≤ 4.5 of the binomial law around 0.95."""
    seed = torch.Generator().manual_seed(0)
    found = Estimate.from_terms(torch.randn(20_000, 10, generator=seed, dtype=torch.float64))
    low, high = found.interval()
    covered = ((low < 0) & (high > 0)).double().mean().item()
    assert abs(covered - 0.95) < 4.5 * math.sqrt(0.95 * 0.05 / 20_000)


def test_warnings_are_printed_and_what_was_done_is_kept():
    found = Estimate(1.0, 0.1, 9, how="best λ = 0.5").warn("heavy tail", "few draws")
    assert str(found) == "1.00 ± 0.10 nats\n  warning: heavy tail\n  warning: few draws"
    assert found.brief == "1.00 ± 0.10 nats"
    assert (2 * found).how == found.how
    assert (found + Estimate(1.0, 0.1, 9, how="k1")).how == "best λ = 0.5; k1"
    assert Estimate.from_dict(found.to_dict()).how == found.how


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Estimate.from_terms(torch.tensor(1.0)), ValueError, "an array"),
        (lambda: Estimate.from_terms(torch.tensor([1.0])), ValueError, "at least 2 draws"),
        (lambda: Estimate(1.0, 1.0, 2) * "2", TypeError, "factor: expected int or float; got str"),
        (lambda: Estimate(1.0, 1.0, 2).interval(1.5), ValueError, "level: expected"),
        (lambda: Estimate(1.0, 1.0, 2).per(0, "dim"), ValueError, "count: expected"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_value_without_an_error_bar_is_printed_without_one():
    found = Estimate(0.5, 0.1, draws=9).without_error("the variance is infinite")
    assert math.isnan(found.standard_error)
    assert str(found) == "0.5 nats\n  no error bar: the variance is infinite"
    assert all(math.isnan(end) for end in found.interval())
    assert Estimate.from_dict(found.to_dict()).no_error == found.no_error
    both = found + Estimate(1.0, 0.1, draws=9)
    assert math.isnan(both.standard_error)
    assert both.no_error == found.no_error


def test_part_of_a_batch_can_be_without_an_error_bar():
    batch = Estimate(torch.zeros(2), torch.ones(2), draws=9)
    found = batch.without_error("an infinite mean", where=torch.tensor([True, False]))
    assert found.standard_error.isnan().tolist() == [True, False]


def test_the_rounding_floor_widens_the_interval_and_is_shown():
    found = Estimate(1.0, 0.1, draws=10_000, rounding=0.05)
    low, high = found.interval()
    assert high - low == pytest.approx(2 * (1.9602 * 0.1 + 0.05), rel=1e-3)
    assert "rounding of the inputs: up to 0.05" in str(found)
    assert (2 * found).rounding == pytest.approx(0.1)
    assert (found + found).rounding == pytest.approx(0.1)
    assert Estimate.from_dict(found.to_dict()).rounding == 0.05


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ([0.5, 0.25], [0.01, 0.1], "[0.500 ± 0.010, 0.25 ± 0.10] nats"),
        ([1.0] * 7, [0.125] * 7, "[7] values from 1 to 1, ± 0.12 to 0.12 nats"),
        (
            [[1.0, 2.0]],
            [[0.5, 0.5]],
            "[1, 2] values from 1 to 2, ± 0.5 to 0.5 nats",
        ),
    ],
)
def test_a_batch_prints_in_a_line(value, error, text):
    assert str(Estimate(torch.tensor(value), torch.tensor(error), draws=9)) == text
    assert str(Estimate(np.array(value), np.array(error), draws=9)) == text


def test_a_batch_shows_where_there_is_no_error():
    found = Estimate(torch.tensor([0.5, 0.25]), torch.tensor([0.25, 0.25]), draws=9)
    found = found.without_error("heavy", where=torch.tensor([True, False]))
    assert str(found).split("\n")[0] == "[0.5, 0.25 ± 0.25] nats"
    many = Estimate(torch.zeros(3, 3), torch.full((3, 3), math.nan), draws=9, no_error="heavy")
    assert str(many).split("\n")[0] == "[3, 3] values from 0 to 0 nats"
