"""Fits that an earlier version saved load and are judged as they were.

`old_fits/` holds one of each Gaussian family, a mixture and a Student-t, with 120 draws, of the
density with two peaks below, written before the files of this package were put in order.
"""

import math
import re
from pathlib import Path

import pytest
import torch

from kullback.variational import Target, assess, load, save

OLD = Path(__file__).parent / "old_fits"
LOW = round(100 / (1 + math.exp(0.7)))  # % of p in the lower peak


def two_peaks(z):
    return torch.logaddexp(-0.5 * ((z - 4) ** 2).sum(), -0.5 * ((z + 4) ** 2).sum() - 0.7)


def wording(verdict):
    """A verdict without its numbers: bounds come from other random draws than they did.

    And without how far peaks were searched for, which verdicts in two dimensions did not say.
    """
    return re.sub(r"\d+(\.\d+)?", "#", verdict).partition("; of other peaks")[0].rstrip(".")


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", sorted(path.name for path in OLD.iterdir()))
def test_an_old_fit_loads_and_is_judged_as_it_was(name, tmp_path):
    found = load(OLD / name, Target.of(two_peaks, 2))
    assert found.family.name == name
    diagnosis, before = assess(found), found.record["diagnosis"]
    assert diagnosis.level == before["level"]
    share = re.search(r"about (\d+)% of p", diagnosis.verdict)
    assert share is None or int(share[1]) == LOW
    assert wording(diagnosis.verdict) == wording(before["verdict"])
    assert math.isclose(diagnosis.elbo.value, before["elbo"]["value"], rel_tol=1e-12)
    again = load(save(found, tmp_path / name, diagnosis), found.target)
    assert again.draws.equal(found.draws)
    assert again.sample(3).shape == (3, 2)
