"""The calibration of the verdict: committed evidence judged anew, and counted on another seed."""

import dataclasses
import importlib
import math
from pathlib import Path

import pytest
import torch

from kullback.variational.diagnostics.evidence import Evidence, Shift
from kullback.variational.diagnostics.verdict import judge

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def verdicts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("verdicts")


def test_bounds_of_the_committed_evidence_hold(verdicts):
    """On the list that no limit was chosen on, bounds of "trust" and of "partly" hold in 95 %."""
    counted = verdicts.count(verdicts.read("counting"))
    for level in ("trust", "partly"):
        assert counted[level]["fits"] >= 50
        assert counted[level]["bounds_held"] >= 0.95
    assert counted["do not trust"]["fit_was_good"] <= 0.10


@pytest.mark.slow
def test_trust_holds_and_distrust_is_deserved(verdicts):
    generator = torch.Generator().manual_seed(77)
    small = [target for target in verdicts.targets("choosing", 77) if target.dims <= 5]
    rows = []
    for place, target in enumerate(small):
        fits = (*verdicts.FITS, verdicts.SPOILT[place % len(verdicts.SPOILT)])
        found = (verdicts.gathered(target, fit, generator) for fit in fits)
        rows += [row | {"evidence": verdicts.Evidence.from_dict(row["evidence"])} for row in found]
    counted = verdicts.count(rows)
    assert min(counted[level]["fits"] for level in ("trust", "do not trust")) > 50
    assert counted["trust"]["bounds_held"] >= 0.95
    assert counted["do not trust"]["fit_was_good"] <= 0.10


def an_evidence(*, bound, unreached, endless=False):
    """What is known of a fit whose pooled draws move a mean by `bound`, without an error bar."""
    moved = Shift(*(torch.tensor([x], dtype=torch.float64) for x in (bound, 0.0, 0.0, 0.0)))
    return Evidence(
        draws=4000,
        broken=0,
        empty=0,
        k_hat=0.3,
        ess_fraction=0.95,
        sd_log_weights=0.2,
        own=moved,
        pooled=moved,
        unreached=unreached,
        endless=endless,
        names=("x",),
        converged=True,
    )


@pytest.mark.parametrize(
    ("bound", "unreached", "level"),
    [
        (0.1, 0.01, "trust"),
        (0.1, 0.03, "partly"),  # the bound counts that mass; no draw of q is there
        (0.1, 0.2, "partly"),
        (0.3, 0.01, "partly"),
        (0.3, 0.03, "do not trust"),
        (0.7, 0.0, "do not trust"),
    ],
)
def test_mass_that_q_does_not_reach_is_partly_where_the_moments_are_known(bound, unreached, level):
    verdict = judge(an_evidence(bound=bound, unreached=unreached))
    assert verdict.level == level
    assert ("where 3% of p's mass is" in verdict.sentence) == (unreached == 0.03)
    improper = judge(an_evidence(bound=bound, unreached=unreached, endless=True))
    assert improper.level == "do not trust" and "improper" in improper.sentence
    assert float(improper.bounds.mean) == math.inf


@pytest.mark.parametrize(("share", "level"), [(0.4, "partly"), (0.6, "trust")])
def test_a_shape_is_judged_by_the_draws_that_count(share, level):
    """Scores and log weights far from linear, in a few draws; the rest is p's shape."""
    other = dataclasses.replace(
        an_evidence(bound=0.1, unreached=0.0),
        ess_fraction=share,
        sd_log_weights=3.0,
        residual=3.0,
    )
    assert judge(other).level == level
    alone = dataclasses.replace(other, pooled=None)
    assert judge(alone).level == "partly"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # in torch.func.hessian
def test_true_moments_of_regressions_are_those_of_a_grid(verdicts):
    """In two dimensions, where 1,200,000 draws err by 0.002 sd; up to 0.06 without p's moments."""
    small = [t for t in verdicts.targets("counting", 2026) if t.kind in ("logistic", "probit")]
    target = next(t for t in small if t.dims == 2)
    ends = [
        torch.linspace(float(m - 9 * s), float(m + 12 * s), 1201, dtype=torch.float64)
        for m, s in zip(*target.truth, strict=True)
    ]
    nodes = torch.cartesian_prod(*ends)
    share = target.log_density(nodes).softmax(0)
    mean = share @ nodes
    sd = (share @ (nodes - mean).square()).sqrt()
    assert float(((mean - target.mean) / sd).abs().max()) < 0.01
    assert float((sd / target.sd).log().abs().max()) < 0.01
