"""The calibration of the verdict: committed evidence judged anew, and counted on another seed."""

import importlib
from pathlib import Path

import pytest
import torch

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
