"""Charts: marks stand where the numbers say."""

import itertools
import math
import re

import pytest

from kullback.report import charts
from kullback.report.charts import Series


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-2683.2, -1897.1), (0, 1e6), (1e-4, 3e-4), (-0.5, 0.5), (7, 7.003)]
)
def test_ticks_are_round_even_and_inside(low, high):
    found = charts.ticks(low, high)
    assert 3 <= len(found) <= 11
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-5
    assert low <= found[0] + 1e-9
    assert found[-1] <= high + 1e-9


def points(svg):
    path = re.search(r'class="line a" d="M([^"]*)"', svg).group(1)
    return [tuple(float(number) for number in pair.split()) for pair in path.split("L")]


def test_a_line_is_an_affine_picture_of_its_values():
    values = [-9.0, -4.0, -5.0, -1.0]
    svg = charts.lines([Series("train", [10, 20, 30, 40], values)], label="x")
    drawn = points(svg)
    across = [x for x, _ in drawn]
    assert [round(b - a, 1) for a, b in itertools.pairwise(across)] == [78.0] * 3
    ups = [y for _, y in drawn]
    for value, up in zip(values, ups, strict=True):
        fraction = (value - values[0]) / (values[-1] - values[0])
        assert up == pytest.approx(ups[0] + fraction * (ups[-1] - ups[0]), abs=0.11)  # 0.1 px each


def test_long_curves_are_thinned_and_keep_their_last_point():
    steps = list(range(1, 10_001))
    svg = charts.lines([Series("train", steps, [math.log(s) for s in steps])], label="x")
    assert len(points(svg)) <= charts.POINTS
    assert points(svg)[-1][0] == charts.WIDTH - charts.RIGHT
    assert len(svg) < 10_000


def test_values_that_are_not_finite_are_left_out():
    series = Series("train", [1, 2, 3], [1.0, math.nan, 3.0])
    assert len(points(charts.lines([series], label="x"))) == 2


def test_bars_are_as_high_as_their_values():
    svg = charts.bars([4.0, 2.0, 1.0], active=2, label="x", of=3)
    heights = [float(h) for h in re.findall(r'<rect class="bar[^>]* height="([0-9.]+)"', svg)]
    assert heights[0] / heights[1] == pytest.approx(2, abs=1e-3)
    assert heights[0] / heights[2] == pytest.approx(4, abs=1e-3)
    assert svg.count('class="bar a"') == 2
    assert "2 of 3 active" in svg


@pytest.mark.parametrize("active", [0, 5])
def test_bars_of_a_collapsed_and_of_a_full_posterior(active):
    assert f"{active} of 5 active" in charts.bars([0.0] * 5, active=active, label="x", of=5)


def test_bars_cut_off_still_count_all():
    chart = charts.bars([1.0] * 3, active=7, label="x", of=9)
    assert "7 of 9 active" in chart
    assert chart.count('class="bar a"') == 3


def test_names_are_escaped():
    assert "<b>" not in charts.scatter([], reach=1, label="<b>", names=("<b>", "<b>"))
