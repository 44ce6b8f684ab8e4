"""Training: settings, objectives, the flat vector, exact resumption, and what stops it."""

import itertools
import json
import math
import os
import random
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from kullback.core import DataError, Estimate, MissingExtraError, RunError
from kullback.data import Dataset
from kullback.data.dataset import sha256_of
from kullback.vae import VAE, Architecture, Training, build, evaluate, pick_threads, resume, train
from kullback.vae.evaluation import collapse_warning
from kullback.vae.evidence import bounds
from kullback.vae.loop import batches, fit, loss_terms
from kullback.vae.posterior import aggregate_of
from kullback.vae.state import FlatParameters, State, load_tensors
from kullback.vae.training import preset, too_short

SMALL = Architecture(hidden=(16,), latent=3)


def toy(n=64, kind="binary", dynamic=True):
    """A data set in memory: two blobs of bits with grey edges."""
    generator = torch.Generator().manual_seed(0)
    half = torch.tensor([[255, 255, 255, 40, 0, 0], [0, 0, 40, 255, 255, 255]], dtype=torch.uint8)
    grey = half[torch.randint(2, (n + 16,), generator=generator)]
    test = (grey[n:] > 127).to(torch.uint8)
    train = grey[:n] if dynamic else (grey[:n] > 127).to(torch.uint8)
    protocol = {
        "source": "toy",
        "counts": {"train": n, "test": 16},
        "sha256": {"train": sha256_of(train), "test": sha256_of(test)},
    }
    names = tuple(f"train[{i}]" for i in range(n))
    return Dataset(train, test, kind, dynamic, protocol, names, names[:16])


def steps_of(model, data, settings, state, n):
    loop = fit(model, data, settings, state)
    for _ in range(n):
        next(loop)


@pytest.mark.slow
def test_a_trained_models_bound_is_its_evidence_by_quadrature(tmp_path):
    """One latent dimension, 64 outcomes: Σ_x p(x) = 1, and L_K meets log p(x) from below."""
    data = toy(dynamic=False)
    outcome = train(
        data,
        architecture=Architecture(hidden=(16,), latent=1),
        training=Training(steps=600, batch_size=32, learning_rate=1e-2),
        folder=tmp_path / "run",
    )
    model = outcome.model.double()
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64).reshape(-1, 1)
    log_prior = -0.5 * z[:, 0] ** 2 - 0.5 * math.log(2 * math.pi) + math.log(18 / 4000)
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    with torch.no_grad():
        parameters = model.parameters_of(z.expand(-1, 64).reshape(-1, 64, 1))
        evidence = torch.logsumexp(model.likelihood.log_prob(parameters, x) + log_prior[:, None], 0)
    assert evidence.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    seen = data.test[:1].double()
    row = int((x == seen).all(1).nonzero())
    truth = evidence[row].item()
    assert -2.0 < truth < -0.5
    generator = torch.Generator().manual_seed(0)
    weighted = bounds(model, seen.expand(50, -1), draws=2000, generator=generator)
    estimate = Estimate.from_terms(weighted.importance_weighted)
    assert abs(estimate.value - truth) <= 4.5 * estimate.standard_error + 1e-3


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_the_loss_is_minus_the_objective(objective):
    data = toy(dynamic=False)
    model = build((6,), "binary", SMALL)
    x, noise = data.train[:8].float(), torch.randn(4, 8, 3, generator=torch.Generator())
    settings = Training(objective=objective, draws=4, steps=1)
    loss, (elbo, rate) = loss_terms(model, x, noise, settings)
    likelihood, ratio, kl = model.terms(x, noise)
    torch.testing.assert_close(rate, kl.sum(-1).mean())
    torch.testing.assert_close(elbo, (likelihood.mean(0) - kl.sum(-1)).mean())
    weights = (likelihood + ratio).double()
    truth = weights.exp().mean(0).log().mean() if objective == "iwae" else elbo.double()
    assert loss.item() == pytest.approx(-truth.item(), rel=1e-5)


def test_the_elbo_gradient_is_that_of_the_elbo_by_finite_differences():
    model = build((6,), "binary", Architecture(hidden=(4,), latent=2, activation="tanh")).double()
    data = toy(dynamic=False)
    x = data.train[:3].double()
    noise = torch.randn(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flat = FlatParameters(model)
    settings = Training(draws=5, steps=1, beta=0.7)
    flat.differentiate(loss_terms(model, x, noise, settings)[0])
    gradient = flat.gradient.clone()
    for index in range(0, len(gradient), 17):
        values = []
        for step in (-1e-5, 1e-5):
            flat.vector[index] += step
            values.append(loss_terms(model, x, noise, settings)[0].item())
            flat.vector[index] -= step
        assert (values[1] - values[0]) / 2e-5 == pytest.approx(gradient[index].item(), abs=1e-7)


def test_tightening_begins_when_it_should():
    settings = Training(steps=100, tighten=0.25, draws=4)
    assert [settings.draws_at(p) for p in (0.0, 0.74, 0.75, 1.0)] == [1, 1, 4, 4]
    assert not settings.importance_weighted_at(0.74)
    assert settings.importance_weighted_at(0.75)
    assert Training(steps=1, draws=3).draws_at(0.0) == 3


def test_flat_parameters_share_and_average():
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    before = [p.detach().clone() for p in model.parameters()]
    flat = FlatParameters(model)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    model(x).sum().backward()
    ordered = [model[0].weight, model[2].weight, model[0].bias, model[2].bias]
    plain = torch.cat([p.grad.reshape(-1) for p in ordered])
    assert flat.matrices == 8
    flat.differentiate(model(x).sum())
    torch.testing.assert_close(flat.gradient, plain)
    torch.testing.assert_close(flat.norm(), plain.norm())
    for parameter, kept in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)
    flat.decay(0.5)
    torch.testing.assert_close(model[0].weight, 0.5 * before[0])
    torch.testing.assert_close(model[0].bias, before[1])
    flat.vector[: flat.matrices].mul_(2.0)
    flat.vector.add_(1.0)
    flat.update_average(0.25)
    with flat.averaged():
        torch.testing.assert_close(model[0].weight, before[0] + 0.25)
    torch.testing.assert_close(model[0].weight, before[0] + 1.0)


def test_every_epoch_visits_every_item_once():
    data = toy(n=60)
    settings = Training(steps=1, batch_size=10)
    state = State.start(build((6,), "binary", SMALL), settings)
    source, seen = batches(data, settings, state), []
    for _ in range(12):
        seen.append(next(source))
        state.step += 1
    assert torch.cat(seen[:6]).sort().values.tolist() == list(range(60))
    assert torch.cat(seen[6:]).sort().values.tolist() == list(range(60))
    assert not torch.equal(torch.cat(seen[:6]), torch.cat(seen[6:]))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(folder):
    return {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors")}


@pytest.mark.parametrize(
    "stops",
    [(1,), *(pytest.param(stops, marks=pytest.mark.slow) for stops in ((57, 58), (100, 299)))],
)
def test_a_stopped_and_resumed_run_is_bit_identical(stops, tmp_path):
    data = toy()
    settings = Training(steps=300, batch_size=16, objective="iwae", draws=2, warmup=0.5)
    train(data, architecture=SMALL, training=settings, folder=tmp_path / "whole")

    def until(step):
        calls = iter(range(1, 10_000))
        return lambda: next(calls) >= step

    folder = tmp_path / "parts"
    outcome = train(
        data, architecture=SMALL, training=settings, folder=folder, stop=until(stops[0])
    )
    for earlier, later in itertools.pairwise(stops):
        assert not outcome.finished
        outcome = resume(folder, data=data, stop=until(later - earlier))
    outcome = resume(folder, data=data)
    assert outcome.finished
    whole, parts = files_of(tmp_path / "whole"), files_of(folder)
    for name in ("metrics.jsonl", "model.safetensors"):
        assert whole[name] == parts[name], name


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    data = toy()
    train(
        data, architecture=SMALL, training=Training(steps=5, batch_size=16), folder=tmp_path / "r"
    )
    before = files_of(tmp_path / "r")
    assert resume(tmp_path / "r").finished
    assert files_of(tmp_path / "r") == before


def test_the_model_and_data_in_memory_are_those_on_disk(tmp_path):
    """What a training returns gives the very figures that reading its folder again gives."""
    quick = Training(steps=3, batch_size=16, precision="bfloat16")
    data, small = toy(dynamic=True), Architecture(hidden=(4,), latent=1)
    outcome = train(data, architecture=small, training=quick, folder=tmp_path / "run")
    assert outcome.data.train.equal(data.train)
    figures = evaluate(outcome.model, outcome.data.test, draws=4)
    assert figures == evaluate(VAE.load(outcome.folder), data.test, draws=4)
    assert resume(outcome.folder).data is None


def test_resume_refuses_other_data(tmp_path):
    settings = Training(steps=50, batch_size=16)
    train(toy(), architecture=SMALL, training=settings, folder=tmp_path / "r", stop=lambda: True)
    with pytest.raises(DataError, match="the hashes differ"):
        resume(tmp_path / "r", data=toy(n=48))


@pytest.mark.sweep(3)
@pytest.mark.parametrize("part", ["metrics.jsonl", "checkpoints/last.safetensors", "config.json"])
def test_resume_refuses_a_damaged_run(part, tmp_path):
    settings = Training(steps=500, batch_size=16)
    calls = iter(range(1000))
    train(
        toy(),
        architecture=SMALL,
        training=settings,
        folder=tmp_path / "r",
        stop=lambda: next(calls) > 20,
    )
    path = tmp_path / "r" / part
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RunError, match=part.rpartition("/")[2]):
        resume(tmp_path / "r", data=toy())


def test_a_run_never_overwrites_another(tmp_path):
    with pytest.raises(RunError, match="no run overwrites another"):
        train(toy(), architecture=SMALL, training=Training(steps=1), folder=tmp_path)


def stopped_after(steps, folder, data=None):
    """A run that was stopped, as by Ctrl-C."""
    calls = iter(range(1, 10_000))
    settings = Training(steps=300, batch_size=16)
    return train(
        data or toy(),
        architecture=SMALL,
        training=settings,
        folder=folder,
        stop=lambda: next(calls) >= steps,
    )


def test_an_unfinished_run_has_the_model_that_the_stopped_training_left(tmp_path):
    outcome = stopped_after(40, tmp_path / "r")
    with pytest.warns(UserWarning, match=r"not finished: .* averaged weights after 40 steps"):
        model = VAE.load(tmp_path / "r")
    assert "40 steps" in model.unfinished
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    figures = evaluate(model, toy().test, draws=4)
    assert figures == evaluate(outcome.model, toy().test, draws=4)
    resume(tmp_path / "r", data=toy())
    assert VAE.load(tmp_path / "r").unfinished == ""


def test_a_run_without_a_checkpoint_has_no_model(tmp_path):
    stopped_after(1, tmp_path / "r")
    (tmp_path / "r" / "checkpoints" / "last.safetensors").unlink()
    with pytest.raises(RunError, match="no such file, and the run has no checkpoint yet"):
        VAE.load(tmp_path / "r")


@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", range(4))
def test_no_mutation_of_weights_checkpoint_or_config_loads(seed, tmp_path):
    """Bits anywhere in the files: 33 of 100 loaded without hashes."""
    chance = random.Random(seed)
    stopped_after(3, tmp_path / "stopped")
    settings = Training(steps=3, batch_size=16)
    train(toy(), architecture=SMALL, training=settings, folder=tmp_path / "whole")
    names = [("whole", "model.safetensors"), ("stopped", "checkpoints/last.safetensors")]
    for folder, name in [*names, ("whole", "config.json"), ("stopped", "config.json")]:
        path = tmp_path / folder / name
        content = path.read_bytes()
        for _ in range(25):
            changed = bytearray(content)
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(RunError):
                VAE.load(tmp_path / folder)
        path.write_bytes(content)


def test_one_process_at_a_time_trains_a_run(tmp_path):
    """While a training runs, a second one in the same folder is refused and the first goes on."""
    refused = []

    def second():
        if not refused:
            with pytest.raises(RunError, match="another process writes here") as error:
                resume(tmp_path / "r", data=toy())
            refused.append(error)
        return False

    settings = Training(steps=20, batch_size=16)
    outcome = train(
        toy(), architecture=SMALL, training=settings, folder=tmp_path / "r", stop=second
    )
    assert outcome.finished
    assert refused
    assert not (tmp_path / "r" / ".lock").exists()


def test_the_rest_of_a_killed_write_goes_at_the_next_start(tmp_path):
    stopped_after(5, tmp_path / "r")
    rest = tmp_path / "r" / "checkpoints" / ".last.safetensors.0123abcd.tmp"
    rest.write_bytes(b"half")
    resume(tmp_path / "r", data=toy())
    assert not rest.exists()


def test_a_nonfinite_loss_is_named_and_kept(tmp_path):
    """One poisoned training item: the step stops before the weights change, and says which."""
    data = toy(kind="continuous", dynamic=False)
    poisoned = data.train.float()
    poisoned[7] = 2e19  # its square overflows
    data = replace(data, train=poisoned)
    model = build((6,), "continuous", SMALL)
    settings = Training(steps=100, batch_size=16)
    state = State.start(model, settings)
    with pytest.raises(RunError) as error:
        for _ in fit(model, data, settings, state, folder=tmp_path):
            before = state.flat.vector.clone()
    text = str(error.value)
    assert f"step {state.step}: " in text
    assert "in log p(x|z) for 1 of 16 batch items (train[7])" in text
    assert "lower --learning-rate" in text
    if state.step:
        assert torch.equal(state.flat.vector, before)
    (repro,) = tmp_path.glob("nonfinite-step-*.safetensors")
    assert str(repro) in text
    kept = load_tensors(repro)
    assert kept["x"].max() == 2e19
    assert torch.equal(kept["weights"], state.flat.vector)
    assert repro.stat().st_size < 100_000


def test_a_nonfinite_gradient_names_its_parameter():
    model = build((6,), "binary", SMALL)
    data = toy()
    settings = Training(steps=10, batch_size=16, free_bits=1e-6)
    state = State.start(model, settings)
    model.decoder.net.weights[0].register_hook(lambda grad: grad * math.nan)
    with pytest.raises(RunError, match=r"the gradient of decoder\.net\.weights\.0"):
        steps_of(model, data, settings, state, 1)


def test_a_failed_run_keeps_its_last_good_checkpoint(tmp_path, monkeypatch):
    """The gradient breaks at step 20: the state before it is on the disk and can be loaded."""
    real = FlatParameters.norm

    def poisoned(self):
        norm = real(self)
        poisoned.calls += 1
        return norm * math.nan if poisoned.calls > 20 else norm

    poisoned.calls = 0
    monkeypatch.setattr(FlatParameters, "norm", poisoned)
    settings = Training(steps=40, batch_size=16)
    with pytest.raises(RunError, match="step 20"):
        train(toy(), architecture=SMALL, training=settings, folder=tmp_path / "r")
    monkeypatch.undo()
    assert resume(tmp_path / "r", data=toy()).finished
    train(toy(), architecture=SMALL, training=settings, folder=tmp_path / "whole")
    assert (
        files_of(tmp_path / "r")["metrics.jsonl"] == files_of(tmp_path / "whole")["metrics.jsonl"]
    )


@pytest.mark.slow
def test_metrics_are_json_without_the_clock(tmp_path):
    outcome = train(
        toy(),
        architecture=SMALL,
        training=Training(steps=1100, batch_size=8, warmup=0.5, beta=2.0),
        folder=tmp_path / "r",
    )
    rows = rows_of(outcome.folder / "metrics.jsonl")
    assert [row["step"] for row in rows][:2] == [8, 16]
    assert rows[-1]["beta"] == 2.0
    assert rows[0]["beta"] < 0.1
    assert {"test_elbo", "active_units", "kl_per_dimension"} <= set(rows[503 // 8 + 0])
    assert not any("seconds" in row for row in rows)
    for row in rows:
        assert row["elbo"] == pytest.approx(-row["rate"] - row["distortion"], abs=1e-4)


class Scalars:
    """Stands for TensorBoard's writer: keeps what it is given."""

    written: ClassVar[dict[str, list]] = {}

    def __init__(self, folder, purge_step):
        self.rows = self.written.setdefault(folder, [])
        self.rows[:] = [row for row in self.rows if purge_step is None or row[2] < purge_step]

    def add_scalar(self, name, value, step):
        self.rows.append((name, value, step))

    def flush(self):
        pass

    close = flush


@pytest.mark.sweep(3)
@pytest.mark.parametrize("stop_at", [None, 5, 7])
def test_tensorboard_shows_every_number_of_the_log(stop_at, tmp_path, monkeypatch):
    """The rows are those of metrics.jsonl, also of a run that was stopped and resumed."""
    monkeypatch.setattr(Scalars, "written", {})
    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    fake = SimpleNamespace(SummaryWriter=Scalars)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    data, calls = toy(), itertools.count(1)
    train(
        data,
        architecture=SMALL,
        training=Training(epochs=4.5, batch_size=16),
        folder=tmp_path / "run",
        stop=lambda: next(calls) == stop_at,
        tensorboard=True,
    )
    resume(tmp_path / "run", data=data)
    rows = rows_of(tmp_path / "run" / "metrics.jsonl")
    numbers = [
        (name, value, row["step"])
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and name != "step"
    ]
    assert Scalars.written == {str(tmp_path / "run" / "tensorboard"): numbers}
    assert {"elbo", "test_elbo", "active_units"} <= {name for name, _, _ in numbers}


def test_without_the_extra_tensorboard_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kullback\[tensorboard\]'"):
        train(toy(), training=Training(steps=1), folder=tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.integration
def test_tensorboard_reads_its_file(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = Training(steps=8, batch_size=16)
    train(toy(), architecture=SMALL, training=settings, folder=tmp_path / "run", tensorboard=True)
    found = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    rows = rows_of(tmp_path / "run" / "metrics.jsonl")
    read = {event.step: event.value for event in found.Scalars("elbo")}
    assert read == pytest.approx({row["step"]: row["elbo"] for row in rows})


def test_collapse_is_noticed():
    text = collapse_warning([1e-4, 2e-3], 0, Training())
    assert "posterior collapse" in text
    assert "--free-bits" in text
    assert "smaller --beta" in collapse_warning([1e-4], 0, Training(beta=50.0))
    assert collapse_warning([0.0, 3.0], 1, Training()) == ""
    used = collapse_warning([1e-4], 0, Training(warmup=0.5, free_bits=0.5))
    assert "--warmup" not in used
    assert "larger --free-bits (now 0.5)" in used


def test_collapse_is_judged_by_information_where_it_is_known():
    """A rate of 11.5 nats that a constant shift of q takes says nothing about x."""
    shifted, told = torch.full((400, 32), 0.85), torch.randn(400, 32)
    generator = torch.Generator().manual_seed(0)
    found = aggregate_of(shifted, torch.zeros(400, 32), generator=generator)
    kl = found.rate_each.value.tolist()
    assert sum(kl) == pytest.approx(32 * 0.85**2 / 2, rel=1e-6)
    assert abs(found.information_high.value) < 1e-9 and abs(found.information_low.value) < 1e-9
    assert collapse_warning(kl, 1, Training(free_bits=0.5)) == ""  # by the rate alone
    said = collapse_warning(kl, 1, Training(free_bits=0.5), found.information_high)
    assert "I(x; z) is at most 0 nats of a rate of 11.6" in said
    assert "Try: --free-bits 0 (now 0.5), --warmup 0.3 or a lower --learning-rate" in said
    of_sound = collapse_warning(kl, 1, Training(), found.information_high, kind="sound")
    assert "Try" not in of_sound and "docs/sound.md" in of_sound
    found = aggregate_of(told, torch.full((400, 32), -1.0), generator=generator)
    assert collapse_warning([3.0] * 32, 32, Training(), found.information_high) == ""


@pytest.mark.slow
def test_collapse_is_reported_while_training(tmp_path):
    readings = []
    outcome = train(
        toy(n=640),
        architecture=SMALL,
        training=Training(steps=1100, batch_size=16, beta=1000.0),
        folder=tmp_path / "r",
        progress=readings.append,
    )
    assert any("posterior collapse" in warning for warning in outcome.warnings)
    assert readings[0].step >= 1


@pytest.mark.slow
def test_minutes_end_the_run(tmp_path):
    outcome = train(
        toy(), architecture=SMALL, training=Training(minutes=0.02), folder=tmp_path / "r"
    )
    assert outcome.finished
    rows = rows_of(outcome.folder / "timing.jsonl")
    assert rows[-1]["seconds"] < 3.0
    assert isinstance(outcome.model, VAE)


def test_schedules():
    settings = Training(steps=1000, learning_rate=1.0, beta=4.0, warmup=0.5)
    assert settings.learning_rate_at(0.0, 0) == pytest.approx(1 / 200)
    assert settings.learning_rate_at(0.5, 500) == pytest.approx(0.5)
    assert settings.learning_rate_at(1.0, 1000) == pytest.approx(0.0)
    assert settings.beta_at(0.25) == pytest.approx(2.0)
    assert settings.beta_at(0.75) == 4.0
    assert Training(epochs=2).progress(10, 0.0, 10) == 0.5
    assert Training(minutes=2).progress(0, 60.0, 10) == 0.5


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"objective": "vae"}, "objective: expected one of elbo, stl, iwae"),
        ({"draws": 0}, "draws"),
        ({"beta": -1.0}, "beta"),
        ({"free_bits": 0.1, "objective": "iwae"}, "free_bits"),
        ({"steps": 1, "epochs": 1}, "budget: expected one of"),
        ({"minutes": 0}, "budget: expected a positive"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"precision": "int8"}, "precision"),
        ({"clip": 0.0}, "clip"),
    ],
)
def test_settings_refuse(settings, text):
    with pytest.raises(ValueError, match=text):
        Training(**settings)


@pytest.mark.parametrize(
    ("allowed", "threads"), [("", 2), ("0", 2), ("1", 1), ("3", 2), ("dynamic", 2)]
)
def test_threads_are_at_most_the_cores_of_this_process(allowed, threads, monkeypatch):
    def cores(process):
        return {0, 1} if process == 0 else {0, 1, 2, 3}  # 0: this process

    monkeypatch.setattr(os, "sched_getaffinity", cores, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    monkeypatch.setattr("kullback.vae.run.machine.matmul_gflops", float)
    assert pick_threads() == threads
    monkeypatch.setattr("kullback.vae.run.machine.matmul_gflops", lambda threads: 1.0)
    assert pick_threads() == 1


@pytest.mark.parametrize(
    ("settings", "step", "seconds", "examples", "advice"),
    [
        ({}, 27, 120.0, 5000, "--minutes 145"),  # 74 times as many steps, in that unit
        ({"minutes": 2}, 1999, 120.0, 10_000, "--minutes 3"),
        ({"steps": 100}, 100, 30.0, 10_000, "--steps 2000 (about 10 min)"),
        ({"epochs": 1}, 78, 30.0, 10_000, "--epochs 26 (about 13 min)"),
        ({"epochs": 10}, 40, 1.0, 500, "--epochs 49 (about 1 min)"),  # 50 passes come first
        ({}, 2000, 120.0, 1_000_000, ""),
        ({}, 200, 1.0, 128, ""),  # 200 passes
        ({}, 0, 0.0, 100, ""),
        ({"kind": "sound", "batch_size": 4}, 100, 60.0, 2400, "--minutes 4"),  # 400 steps
        ({"kind": "sound", "batch_size": 4}, 400, 60.0, 2400, ""),
        ({"kind": "sound", "batch_size": 4, "steps": 150}, 150, 60.0, 6, ""),  # 100 passes
    ],
)
def test_a_run_too_short_for_its_data_says_how_long_it_should_be(
    settings, step, seconds, examples, advice
):
    kind = settings.get("kind", "8-bit")
    given = Training(**{name: value for name, value in settings.items() if name != "kind"})
    said = too_short(given, step, seconds, examples, kind=kind)
    assert said.endswith(f"Try: {advice}" if advice else "")
    assert bool(said) == bool(advice)
    if advice:
        asked = float(advice.split()[1])
        unit, amount = given.budget
        spent = seconds / 60 if unit == "minutes" else amount
        steps = step * asked / spent
        assert not too_short(given, math.ceil(steps), seconds, examples, kind=kind)


@pytest.mark.parametrize(
    ("kind", "shape", "examples", "share"),
    [
        ("8-bit", (1, 28, 28), 99, 0.0),
        ("8-bit", (1, 28, 28), 100, 0.1),
        ("8-bit", (3, 64, 64), 300, 0.1),
        ("binary", (1, 28, 28), 4999, 0.1),
        ("8-bit", (1, 28, 28), 5000, 0.0),
        ("8-bit", (1, 28, 28), None, 0.0),
        ("continuous", (7,), 300, 0.0),
        ("sound", (1, 8000), 300, 0.0),
    ],
)
def test_of_few_images_a_tenth_is_held_out_by_default(kind, shape, examples, share):
    assert Training.usual(kind, shape, examples=examples).validation == share
    assert Training.usual(kind, shape, examples=examples, validation=0.0).validation == 0.0
    chosen = preset("tight").training_with(None, kind, shape, examples=examples)
    assert chosen.validation == share


@pytest.mark.parametrize(
    ("kind", "shape", "plain", "given", "tuned"),
    [
        ("8-bit", (1, 28, 28), True, {}, True),
        ("binary", (1, 28, 28), True, {"draws": 1}, True),
        ("8-bit", (3, 32, 32), True, {}, False),
        ("8-bit", (1, 28, 28), False, {}, False),
        ("8-bit", (1, 28, 28), True, {"objective": "iwae"}, False),
        ("8-bit", (1, 28, 28), True, {"batch_size": 16}, False),
        ("continuous", (1, 28, 28), True, {}, False),
        ("8-bit", (784,), True, {}, False),
    ],
)
def test_the_tuned_rate_is_for_what_it_was_tuned_on(kind, shape, plain, given, tuned):
    found = Training.usual(kind, shape, plain=plain, **given)
    expected = (8e-3, 0.3) if tuned else (4e-3, 0.1)
    assert (found.learning_rate, found.weight_decay) == expected
    assert Training.usual(kind, shape, plain=plain, examples=99, **given).learning_rate == 4e-3
    assert Training.usual(kind, shape, plain=plain, learning_rate=1e-3).learning_rate == 1e-3
    assert preset("tight").training_with(None, kind, shape, plain=plain).learning_rate == 4e-3


def test_the_usual_batch_is_smaller_for_larger_examples():
    shapes = {"8-bit": [(1, 28, 28), (3, 64, 64)], "continuous": [(7,)], "sound": [(1, 8000)]}
    found = [Training.usual(k, shape).batch_size for k, every in shapes.items() for shape in every]
    assert found == [64, 32, 128, 4]
    assert Training.usual("8-bit", (3, 64, 64), batch_size=5).batch_size == 5


def test_sound_has_no_free_bits_unless_they_are_asked_for():
    assert Training.usual("sound").free_bits == 0
    assert Training.usual("sound", free_bits=0.2).free_bits == 0.2
    assert preset("vamp").training_with(None, "sound").free_bits == 0


@pytest.mark.parametrize("objective", ["miwae", "piwae"])
def test_groups_wait_for_the_draws_of_the_tightened_part(objective):
    """Before it there is one draw, whose bound is the ELBO, and then the bound of the groups."""
    settings = Training(objective=objective, draws=4, groups=2, tighten=0.5, steps=4)
    model = build((4,), "binary", Architecture(hidden=(4,), latent=2))
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    noise = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(0))
    early, _ = loss_terms(model, x, noise[:1], settings, 0.0)
    likelihood, ratio, _ = model.terms(x, noise[:1])
    torch.testing.assert_close(early, -(likelihood + ratio).mean())
    late, _ = loss_terms(model, x, noise, settings, 0.5)
    whole = Training(objective=objective, draws=4, groups=2, steps=4)
    torch.testing.assert_close(late, loss_terms(model, x, noise, whole, 0.5)[0])
