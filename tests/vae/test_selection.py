"""Held-out training examples: how they are split, and which weights are picked on them."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kullback.core import DataError, RunError
from kullback.data import Dataset, load
from kullback.data.dataset import sha256_of
from kullback.vae import Architecture, Training, build, resume, train
from kullback.vae.evidence import bounds
from kullback.vae.loop import BestLook, Monitor, different_examples, held_out, hold_out
from kullback.vae.run import train_and_resume
from kullback.vae.state import State

WIDE = Architecture(network="mlp", hidden=(64,), latent=4)


def noise_bits(n=24, dims=30):
    """Few vectors of pure noise: what is learned beyond the mean is learned by heart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (n + 200, dims), generator=generator).to(torch.uint8)
    train, test = x[:n], x[n:]
    protocol = {
        "source": "noise",
        "counts": {"train": n, "test": 200},
        "sha256": {"train": sha256_of(train), "test": sha256_of(test)},
    }
    names = tuple(f"train[{i}]" for i in range(n))
    return Dataset(
        train,
        test,
        "binary",
        dynamic=False,
        protocol=protocol,
        train_names=names,
        test_names=tuple(f"test[{i}]" for i in range(200)),
    )


@pytest.fixture(autouse=True)
def frequent_looks(monkeypatch):
    monkeypatch.setattr("kullback.vae.loop.monitor.TEST_STEPS", 20)


def rows_of(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def settings(**more):
    given = {"steps": 200, "batch_size": 12, "learning_rate": 1e-2, "weight_decay": 0.0}
    return Training(**(given | more))


def test_held_out_examples_are_a_share_and_copies_stay_on_one_side():
    data = noise_bits(60)
    twice = Dataset(
        torch.cat([data.train, data.train]),
        data.test,
        "binary",
        False,
        {},
        ("",) * 120,
        ("",) * 200,
    )
    rest, held = hold_out(twice, 0.2)
    assert len(held) == 24 and len(rest.train) == len(rest.train_names) == 96
    rows = {bytes(row.numpy()) for row in held}
    assert len(rows) == 12
    assert not rows & {bytes(row.numpy()) for row in rest.train}
    again, _ = hold_out(twice, 0.2, seed=3)  # the split is a function of the examples alone
    assert torch.equal(again.train, rest.train)
    assert hold_out(twice, 0.0) == (twice, None)


def test_held_out_grey_levels_become_bits_once():
    grey = torch.arange(50, dtype=torch.uint8)[:, None].expand(-1, 4).contiguous()
    data = Dataset(grey, grey, "binary", True, {}, ("",) * 50, ("",) * 50)
    rest, held = hold_out(data, 0.2, seed=1)
    assert set(held.unique().tolist()) <= {0, 1} and rest.train.max() > 1
    assert torch.equal(held, hold_out(data, 0.2, seed=1)[1])


def test_labels_go_with_their_examples_and_each_is_hashed_once(monkeypatch):
    data = noise_bits()
    data = replace(data, train_labels=data.train[:, 0].long())  # one that can be read off x
    hashed, sha256 = [], held_out.hashlib.sha256
    spy = lambda row: hashed.append(row) or sha256(row)  # noqa: E731
    monkeypatch.setattr(held_out, "hashlib", SimpleNamespace(sha256=spy))
    kept = held_out.validation_of(data, 0.25)
    assert len(hashed) == len(data.train)
    assert torch.equal(kept.labels, kept.held[:, 0].long())
    assert torch.equal(kept.rest.train_labels, kept.rest.train[:, 0].long())
    assert (len(kept.held), len(kept.rest.train)) == (6, 18)


def test_at_least_two_examples_are_held_out():
    for n in (3, 10):
        rest, held = hold_out(noise_bits(n), 0.05)
        assert (len(rest.train), len(held)) == (n - 2, 2)


def test_too_few_examples_are_refused():
    with pytest.raises(DataError, match="3 or more"):
        hold_out(noise_bits(2), 0.5)


@pytest.mark.slow
def test_the_best_look_is_kept_and_is_better_than_the_last(tmp_path):
    data = noise_bits()
    run = {"architecture": WIDE, "training": settings(validation=0.4)}
    outcome = train(data, folder=tmp_path / "run", **run)
    rows = [json.loads(line) for line in rows_of(tmp_path / "run")]
    looks = {row["step"]: row["validation_objective"] for row in rows if "test_elbo" in row}
    best = max(looks, key=looks.get)
    assert looks[best] > looks[200]  # it has overfitted
    assert f"step {best} of 200" in outcome.selection
    assert json.loads((tmp_path / "run/selection.json").read_text())["weights"] == outcome.selection
    _, held = hold_out(data, 0.4)
    figures = bounds(
        outcome.model, held.float(), draws=1, generator=torch.Generator().manual_seed(0)
    )
    assert math.isclose(float(figures.elbo.double().mean()), looks[best], rel_tol=1e-5)


@pytest.mark.parametrize(
    ("budget", "held", "every"),
    [
        ({"steps": 5}, True, 100),  # only at the end
        ({"steps": 300}, True, 100),
        ({"steps": 2000}, True, 200),  # a tenth of the run
        ({"steps": 100_000}, True, 500),
        ({"steps": 300}, False, 500),
        ({"epochs": 20.0}, True, 300),  # of 140 steps: 280, at the next row
        ({"minutes": 2.0}, True, 500),  # and each tenth of the time
    ],
)
def test_how_often_held_out_examples_are_looked_at(budget, held, every, tmp_path, monkeypatch):
    monkeypatch.setattr("kullback.vae.loop.monitor.TEST_STEPS", 500)
    data = noise_bits(1400)
    training = Training(batch_size=10, **budget)
    model = build((30,), "binary", WIDE)
    state = State.start(model, training)
    held = data.train[:20] if held else None
    monitor = Monitor(tmp_path, model, data, training, state, None, validation=held)
    assert monitor.test_every == every
    monitor.looked = (101, 0.1)
    assert monitor._look_is_due(201, 0.2) == ("minutes" in budget)
    assert not monitor._look_is_due(201, 0.15)
    assert not monitor._look_is_due(151, 0.5)
    assert monitor._look_is_due(2 * every, 0.15)


def test_copies_are_counted_once_and_hold_nothing_out_by_default(tmp_path):
    few = (torch.arange(300) % 3)[:, None, None, None].expand(-1, 1, 8, 8)
    alike = load(few.to(torch.uint8).contiguous())
    assert different_examples(alike) <= 2  # at least one is for testing
    small = Architecture(network="mlp", hidden=(4,), latent=2)
    assert train(alike, architecture=small, folder=tmp_path / "r", stop=lambda: True)


def test_overfitting_is_noticed_on_test_images_too_and_changes_no_weights(tmp_path):
    data = noise_bits()
    outcome = train(data, architecture=WIDE, training=settings(), folder=tmp_path / "run")
    (warning,) = [one for one in outcome.warnings if one.startswith("overfitting")]
    assert "--validation 0.1" in warning and "200 test examples" in warning
    assert outcome.selection == "" and not (tmp_path / "run/selection.json").exists()


def test_no_overfitting_is_seen_where_there_is_none(tmp_path):
    data = noise_bits(400)
    outcome = train(
        data,
        architecture=Architecture(network="mlp", hidden=(4,), latent=1),
        training=settings(steps=200, batch_size=100),
        folder=tmp_path / "run",
    )
    assert not [one for one in outcome.warnings if one.startswith("overfitting")]


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(50,), (130, 131, 170)])
def test_a_stopped_and_resumed_run_picks_the_same_weights(stops, tmp_path):
    data, how = noise_bits(), settings(validation=0.4)
    whole = train(data, architecture=WIDE, training=how, folder=tmp_path / "whole")
    calls, plan = [0], list(stops)

    def stop():
        calls[0] += 1
        if plan and calls[0] == plan[0]:
            plan.pop(0)
            return True
        return False

    part = train(data, architecture=WIDE, training=how, folder=tmp_path / "part", stop=stop)
    while not part.finished:
        part = resume(tmp_path / "part", data=data, stop=stop)
    assert part.selection == whole.selection
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(part.model.state_dict()[name], tensor), name
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "part")]
    assert logs[0] == logs[1]


def test_a_later_look_than_the_checkpoint_is_made_again(tmp_path):
    BestLook(40, -1.0, torch.zeros(3), torch.zeros(0), [60, 80]).save(tmp_path)
    assert BestLook.load(tmp_path, 39) is None
    assert BestLook.load(tmp_path, 60).below == [60]
    assert BestLook.load(tmp_path / "none", 60) is None


def test_a_damaged_best_look_is_refused(tmp_path):
    BestLook(40, -1.0, torch.zeros(3), torch.zeros(0), []).save(tmp_path)
    (tmp_path / "checkpoints/best.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError):
        BestLook.load(tmp_path, 50)


def test_tightened_runs_are_judged_by_the_tighter_bound(tmp_path):
    """The ELBO falls when training turns to L_K; that is no overfitting, and not what is picked."""
    how = settings(steps=60, validation=0.4, tighten=0.5, draws=3)
    train(noise_bits(), architecture=WIDE, training=how, folder=tmp_path / "run")
    look = BestLook.load(tmp_path / "run", 60)
    rows = [json.loads(line) for line in rows_of(tmp_path / "run")]
    best = max(row.get("validation_objective", -math.inf) for row in rows)
    assert math.isclose(best, float(look.terms.mean()), rel_tol=1e-12)


def test_the_hashes_of_few_examples_are_made_once(tmp_path, monkeypatch):
    """They say how many examples differ, and which are held out."""
    made = []
    digests = held_out.digests_of_examples
    for module in (held_out, train_and_resume):
        spy = lambda data: made.append(len(data.train)) or digests(data)  # noqa: E731
        monkeypatch.setattr(module, "digests_of_examples", spy)
    x = np.random.default_rng(0).integers(0, 256, (300, 1, 6, 6), dtype=np.uint8)
    found = train(
        {"x_train": x[:250], "x_test": x[250:]},
        architecture=Architecture(network="mlp", hidden=(4,), latent=2),
        folder=tmp_path / "a",
        stop=lambda: True,
    )
    assert made == [250]
    assert not found.finished
