"""Charts: marks stand where the numbers say."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

from kullback.report.figures import PAGE_COLORS, page_figure, round_ticks
from kullback.report.limits import CURVE_POINTS
from kullback.report.training_runs.run_charts import Series, kl_bars, latent_scatter, learning_curve


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-2683.2, -1897.1), (0, 1e6), (1e-4, 3e-4), (-0.5, 0.5), (7, 7.003)]
)
def test_ticks_are_round_even_and_inside(low, high):
    with page_figure() as figure:
        panel = figure.subplots()
        panel.set_xlim(low, high)
        round_ticks(panel.xaxis)
        found = [t for t in panel.get_xticks() if low - 1e-9 <= t <= high + 1e-9]
    assert 3 <= len(found) <= 11
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-5


def group(svg, title):
    """The element whose title is this."""
    return next(g for g in ET.fromstring(svg).iter("g") if g.findtext("title") == title)


def points(svg, title="train"):
    path = group(svg, title).find("path").get("d")
    pairs = re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path)
    return [(float(x), float(y)) for x, y in pairs]


def test_a_line_is_an_affine_picture_of_its_values():
    values = [-9.0, -4.0, -5.0, -1.0]
    svg = learning_curve([Series("train", [10, 20, 30, 40], values)], label="x")
    drawn = points(svg)
    across = [x for x, _ in drawn]
    gaps = [b - a for a, b in itertools.pairwise(across)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.021)  # places are rounded to 0.01
    ups = [y for _, y in drawn]
    for value, up in zip(values, ups, strict=True):
        fraction = (value - values[0]) / (values[-1] - values[0])
        assert up == pytest.approx(ups[0] + fraction * (ups[-1] - ups[0]), abs=0.021)
    assert "steps" in svg
    assert "nats" in svg
    assert 'aria-label="x"' in svg


def test_errors_are_drawn_as_bars_of_one_standard_error():
    svg = learning_curve([Series("test", [1, 2], [0.0, 1.0], [0.25, 0.5], "b")], label="x")
    (_, low), (_, high) = points(svg, "test")
    up = high - low  # of one nat
    bars = re.findall(r'd="M ([\d.]+) ([\d.]+)\s+L ([\d.]+) ([\d.]+)[^>]*stroke: var\(--b\)', svg)
    lengths = sorted((float(bar[3]) - float(bar[1]) for bar in bars if bar[0] == bar[2]), key=abs)
    assert lengths == pytest.approx([0.5 * up, up], abs=0.021)


def test_long_curves_are_thinned_and_keep_their_last_point():
    steps = list(range(1, 10_001))
    svg = learning_curve([Series("train", steps, [math.log(s) for s in steps])], label="x")
    assert len(points(svg)) <= CURVE_POINTS
    edge = max(float(x) for x in re.findall(r"L (\d+\.?\d*) ", svg))
    assert points(svg)[-1][0] == edge  # the right end of the frame
    assert len(svg) < 12_000


def test_values_that_are_not_finite_are_left_out():
    series = Series("train", [1, 2, 3], [1.0, math.nan, 3.0])
    assert len(points(learning_curve([series], label="x"))) == 2


def heights(svg):
    drawn = {}
    for g in ET.fromstring(svg).iter("g"):
        if (title := g.findtext("title") or "").startswith("rank"):
            ups = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", g.find("path").get("d"))]
            drawn[title] = (max(ups) - min(ups), g.find("path").get("style"))
    return drawn


def test_bars_are_as_high_as_their_values():
    svg = kl_bars([4.0, 2.0, 1.0], active=2, label="x", of=3)
    drawn = heights(svg)
    assert list(drawn) == ["rank 1: 4 nats", "rank 2: 2 nats", "rank 3: 1 nats"]
    high = [height for height, _ in drawn.values()]
    assert high[0] / high[1] == pytest.approx(2, abs=1e-3)
    assert high[0] / high[2] == pytest.approx(4, abs=1e-3)
    assert ["--a" in style for _, style in drawn.values()] == [True, True, False]
    assert "2 of 3 active" in svg
    assert "latent dimensions, sorted" in svg


@pytest.mark.parametrize("active", [0, 5])
def test_bars_of_a_collapsed_and_of_a_full_posterior(active):
    assert f"{active} of 5 active" in kl_bars([0.0] * 5, active=active, label="x", of=5)


def test_bars_cut_off_still_count_all():
    chart = kl_bars([1.0] * 3, active=7, label="x", of=9)
    assert "7 of 9 active" in chart
    assert sum("--a" in style for _, style in heights(chart).values()) == 3


def test_names_are_escaped():
    assert "<b>" not in latent_scatter([], reach=1, label="<b>", names=("<b>", "<b>"))
    assert "$x^$" in latent_scatter([], reach=1, label="x", names=("$x^$", "y"))


def test_charts_take_their_colours_from_the_page_and_are_the_same_twice():
    one, two = (latent_scatter([(0, 1)], reach=2, label="l", names=("x", "y")) for _ in range(2))
    assert one == two
    assert "var(--a)" in one
    assert not any(color in one for color in PAGE_COLORS.values())
    for word in ("http", "font-family", "metadata", "<style"):
        assert word not in one
