"""Run folders written before levels were looked for and data standardised: same figures, same data.

`old_runs/` holds three, as they were written then: pictures k/255, pictures (k/255 − ½)/½ read as
continuous values, and a table of numbers. `unfinished` was stopped after 7 of 16 steps, under other
usual settings; `whole.safetensors` are the weights of the same run without the stop.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from kullback import report
from kullback.data import reload
from kullback.report.training_runs.run_page import read
from kullback.vae import VAE, Evaluation, Training, evaluate, resume
from kullback.vae.state import load_tensors
from kullback.vae.state.checkpoint import read_config

OLD = Path(__file__).parent / "old_runs"


@pytest.fixture(params=["grey", "normalised", "table"])
def run(request, tmp_path, monkeypatch):
    """A copy of an old run in the folder in which its data lie."""
    folder = shutil.copytree(OLD / request.param, tmp_path / request.param)
    monkeypatch.chdir(folder)
    return folder


def test_an_old_run_keeps_its_data_and_figures(run):
    config = json.loads((run / "config.json").read_text())
    stored = json.loads((run / "evaluation.json").read_text())
    data = reload(config["data"])
    assert data.protocol == config["data"]
    before = Evaluation.from_dict(stored["evaluation"])
    after = evaluate(VAE.load(run), data.test, draws=30)
    for name in ("elbo", "log_likelihood", "gap", "rate", "distortion", "bits_per_dim", "loose"):
        # one rounding of float32 in a sum, where another machine adds in another order
        old, new = getattr(before, name), getattr(after, name)
        if old is None:
            assert new is None
        else:
            value = lambda e: float(getattr(e, "value", e))  # noqa: E731
            assert value(new) == pytest.approx(value(old), rel=1e-5)
    assert after.varying_units == before.active_units
    assert before.varying_units is None


@pytest.mark.slow
@pytest.mark.sweep(3)
def test_an_old_run_renders_without_its_false_row(run):
    """The second row of the last step held an ELBO of 0; the test figures of it are kept."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == rows[-2]["step"] == 21
    assert rows[-1]["elbo"] == 0
    shown = read(run).metrics
    assert [row["step"] for row in shown] == sorted({row["step"] for row in rows})
    assert shown[-1]["elbo"] == rows[-2]["elbo"]
    assert shown[-1]["test_elbo"] == rows[-1]["test_elbo"]
    assert report.write(run).exists()


def test_an_old_run_goes_on_as_it_was(run):
    """From its description alone: the model is built in the units of then."""
    (run / "model.safetensors").unlink()
    config = json.loads((run / "config.json").read_text())
    config["training"]["steps"] = 2
    (run / "config.json").write_text(json.dumps(config))
    outcome = resume(run)
    assert outcome.finished
    assert not outcome.model.spec.standardised
    assert outcome.model.scale.ndim == 0
    torch.testing.assert_close(VAE.load(run).state_dict(), outcome.model.state_dict())


def test_an_unfinished_run_goes_on_by_the_settings_that_it_began_with(tmp_path, monkeypatch):
    """Begun when the usual learning rate was 0.004 and the weight decay 0.1; then 0.008 and 0.3."""
    folder = shutil.copytree(OLD / "unfinished", tmp_path / "unfinished")
    monkeypatch.chdir(folder)
    before = read_config(folder, "training")["training"]
    assert (before["learning_rate"], before["weight_decay"]) == (0.004, 0.1)
    usual = Training.usual("8-bit", (1, 6, 6), examples=118, plain=True)
    assert (usual.learning_rate, usual.weight_decay) == (0.008, 0.3)
    found = resume(folder)
    assert found.finished and read_config(folder, "training")["training"] == before
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps)) and steps[-1] == 16
    whole = load_tensors(folder / "whole.safetensors", like=found.model.state_dict())
    # 10 steps of at most 0.004 apart, had they another rate; in another order of sums 1e-6
    torch.testing.assert_close(found.model.state_dict(), whole, rtol=1e-4, atol=1e-5)
