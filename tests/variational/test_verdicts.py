"""The calibration of the verdict, counted anew on targets of another seed (slow)."""

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_trust_holds_and_distrust_is_deserved(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    verdicts = importlib.import_module("verdicts")
    generator = torch.Generator().manual_seed(77)
    small = [target for target in verdicts.targets(77) if target.dims <= 5]
    rows = [verdicts.judged(target, fit, generator) for target in small for fit in verdicts.FITS]
    counted = verdicts.count(rows)
    assert min(counted[level]["fits"] for level in ("trust", "do not trust")) > 50
    assert counted["trust"]["bounds_held"] >= 0.95
    assert counted["do not trust"]["fit_was_good"] <= 0.10
