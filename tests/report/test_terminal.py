"""The terminal's table: the figures as the estimates print, the protocol, the warnings in words."""

import re
from dataclasses import replace

import pytest
import torch

from kullback.core import Estimate
from kullback.data import describe_protocol
from kullback.report.evaluation_text import evaluation_table, plain, remarks
from kullback.vae import Evaluation, build, evaluate

from .conftest import in_memory, noise

DATA = in_memory(noise(2, 1, 4, 4), noise(12, 1, 4, 4), "8-bit")


@pytest.fixture(scope="module")
def figures():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return evaluate(build((1, 4, 4), "8-bit"), DATA.test, draws=16)


def test_every_figure_is_there_as_its_estimate_prints(figures):
    table = evaluation_table(figures, DATA.protocol, color=False)
    for name in ("elbo", "log_likelihood", "gap", "rate", "distortion", "bits_per_dim"):
        estimate = getattr(figures, name)
        assert str(estimate).startswith(plain(estimate))
        assert plain(estimate) in table
    assert re.search(r"^L_16 ", table, re.MULTILINE)
    assert f"{figures.active_units}/{figures.latent}" in table
    assert describe_protocol(DATA.protocol) in table
    assert "lower bounds on log p(x): higher is better" in table


def test_the_smaller_bound_of_what_z_says_stands_first(figures):
    """Each is the mean of other draws, so that chance may leave the lower one above the upper."""
    low, high = (Estimate(value, 0.1, 48, "nats") for value in (0.0582, 0.0466))
    crossed = replace(figures, information_low=low, information_high=high)
    assert "0.0466 to 0.0582" in evaluation_table(crossed, DATA.protocol, color=False)
    crossed = replace(figures, information_low=high, information_high=replace(low, value=-0.1))
    assert "0 to 0.0466" in evaluation_table(crossed, DATA.protocol, color=False)


def test_colour_changes_nothing_but_colour(figures):
    bare = evaluation_table(figures, DATA.protocol, color=False)
    coloured = evaluation_table(figures, DATA.protocol, color=True)
    assert "\x1b" not in bare
    assert re.sub(r"\x1b\[\d+m", "", coloured) == bare
    assert coloured != bare


def test_columns_line_up(figures):
    lines = evaluation_table(figures, DATA.protocol, color=False).splitlines()
    head = lines[0].index("unit")
    for line in lines[1 : lines.index("")]:
        assert line[head - 4 : head] == "    "
        assert line[head] != " "


def test_sentences_are_wrapped(figures):
    figures = replace(figures, loose=0.62)
    table = evaluation_table(figures, DATA.protocol, color=False, width=40)
    sentences = table[table.index("ELBO and L_16") :].splitlines()
    assert max(map(len, sentences)) <= 40


@pytest.mark.parametrize(
    ("loose", "words"),
    [
        (0.62, "62 % of images"),
        (1.0, "100 % of images"),
        (0.004, "under 1 %"),
        (0.999, "over 99 %"),
    ],
)
def test_loose_bounds_are_said(figures, loose, words):
    said = " ".join(remarks(replace(figures, loose=loose)))
    assert f"{words}" in said
    assert (
        "rest on fewer than 10 effective draws: their bound is loose; kullback evaluate --sandwich"
        in said
    )


def test_where_annealing_was_done_its_bound_is_said_instead(figures):
    above = Estimate(12.5, 1.25, draws=8, bias="low", why="from below")
    annealed = replace(figures, draws=20, loose=1.0, annealed=above, annealed_settled=6)
    table = evaluation_table(annealed, DATA.protocol, color=False, width=200)
    assert "100 %" not in table and "loose" not in table
    assert "log p(x) - L_20" in table and "12.5 ± 1.2" in table
    said = " ".join(remarks(annealed))
    assert "at least 12.5 ± 1.2 nats above L_20 on the first 8 test images (settled for 6" in said
    assert Evaluation.from_dict(annealed.to_dict()) == annealed


def test_what_is_well_is_not_said(figures):
    assert remarks(replace(figures, loose=0.0, active_units=3)) == [
        "ELBO and L_16 are lower bounds on log p(x): higher is better."
    ]


def test_warnings_of_estimates_and_collapse_are_said_once(figures):
    doubtful = figures.elbo.warn("heavy tails")
    said = remarks(replace(figures, active_units=0, elbo=doubtful, gap=doubtful))
    assert said.count("heavy tails") == 1
    assert any("collapsed" in sentence for sentence in said)


def test_what_has_no_bits_and_no_protocol(figures):
    table = evaluation_table(replace(figures, bits_per_dim=None), {}, color=False)
    assert "bits/dim" not in table
    assert "no protocol was stored" in table


def test_figures_survive_json(figures):
    table = evaluation_table(figures, DATA.protocol, color=False)
    again = Evaluation.from_dict(figures.to_dict())
    assert evaluation_table(again, DATA.protocol, color=False) == table
