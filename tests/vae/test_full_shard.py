"""Weights in slices (`fully_shard`): gradients of one process; runs that any number goes on with.

The fast tier makes a group of one process, in which FSDP does all it does but send.
"""

import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from torch import distributed, nn

from kullback.core import ArgumentTypeError, ArgumentValueError
from kullback.core.processes import LostProcessError, Processes
from kullback.vae import Architecture, Training, build, train
from kullback.vae.loop import loss_terms
from kullback.vae.networks import forward_blocks
from kullback.vae.state import (
    FlatParameters,
    FullShard,
    State,
    checkpoint,
    load_tensors,
    make_moments,
    save_tensors,
)
from torchrun import ended, figures_of, started, wait_for, workers

ULP = torch.finfo(torch.float32).eps
SMALL = {
    "deep": {"hidden": (8, 8, 16), "layers": 2, "latent": 4, "components": 2},
    "vamp": {"hidden": (8, 16), "prior": "vamp", "prior_components": 3, "latent": 3},
    "flow": {"network": "mlp", "hidden": (8,), "posterior": "iaf", "prior": "flow", "latent": 4},
}


@pytest.fixture
def group():
    """A group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield Processes()
    distributed.destroy_process_group()


def made(name, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build((1, 8, 8), "8-bit", Architecture(**SMALL[name]), **more)


def batch_of(model, draws=2):
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(256, (6, 1, 8, 8), generator=draw).float()
    return x, torch.randn(draws, 6, model.prior.latent, generator=draw)


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_is_that_of_whole_weights(name, objective, group):
    """The same operations in the same order, but for sums of a weight's uses: to a few ulps.

    Twice, with other weights: what the optimiser writes into the vector is what FSDP uses.
    """
    model, other = made(name), made(name)
    settings = Training(steps=1, objective=objective, draws=1 if objective == "elbo" else 2)
    x, noise = batch_of(model, settings.draws)
    flat = FlatParameters(model)
    full = FullShard(other, precision=torch.float32, over=group)
    assert not any(one.numel() for one in other.parameters())  # the model holds none of them
    for _ in range(2):
        assert torch.equal(torch.cat([*full.slices(full.vector)]), flat.vector)
        loss, figures = loss_terms(model, x, noise, settings)
        flat.differentiate(loss)
        found = full.differentiate(lambda one: loss_terms(one, x, noise, settings))
        assert torch.allclose(found[0], loss.detach(), rtol=4 * ULP)
        assert torch.allclose(found[1], figures, rtol=16 * ULP)
        off = (full.gradient - flat.gradient).abs().max()
        assert off <= 64 * ULP * flat.gradient.abs().max()
        assert full.norms_of_slices(1).item() == pytest.approx(float(flat.norm()), rel=1e-5)
        for one in (flat, full):
            one.vector.mul_(0.9)
            one.refresh()


def test_the_model_holds_weights_only_where_it_is_looked_at(group):
    model, truth = made("deep"), made("deep")
    full = FullShard(model, precision=torch.float32, over=group)
    expected = truth.state_dict()

    def same():
        found = model.state_dict()
        return all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    full.vector.mul_(2.0)
    full.gather_average()
    with full.averaged():
        assert same()
    assert not any(one.numel() for one in model.parameters())
    full.vector.div_(2.0)
    with full.whole():
        assert same()
    full.gather_average(everywhere=True)
    full.release(model)
    assert same()


def test_a_buffer_that_a_module_replaces_is_that_of_the_model(group):
    model = made("deep")
    full = FullShard(model, precision=torch.float32, over=group)
    full.root.model.scale = torch.tensor(7.0)  # in the copy that trains
    assert model.scale == 7.0


def test_blocks_are_layers_that_only_their_forward_pass_uses():
    encoder, decoder = (getattr(made("deep"), name) for name in ("encoder", "decoder"))
    assert [type(one).__name__ for one in forward_blocks(encoder)] == ["Conv2d"] * 2 + ["Linear"]
    assert [type(one).__name__ for one in forward_blocks(decoder)] == ["Linear"] * 2 + [
        "Conv2d"
    ] * 2

    class Other(type(encoder)):
        pass

    encoder.__class__ = Other  # which may use its layers otherwise
    assert not forward_blocks(encoder)


def test_what_cannot_be_cut_is_refused_in_one_line(group):
    def refused(parameter, error=ArgumentValueError):
        model = made("deep")
        model.extra = parameter
        with pytest.raises(error) as found:
            FullShard(model, precision=torch.float32, over=group)
        assert "\n" not in str(found.value)
        return str(found.value)

    text = "shard: expected parameters with an axis to cut; got extra: one number"
    assert text in refused(nn.Parameter(torch.tensor(1.0)))
    assert "parameters of one dtype; got" in refused(nn.Parameter(torch.ones(2).double()))

    class Fixed(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle this")

    text = "shard: expected modules that copy.deepcopy can copy; got cannot pickle this"
    assert text in refused(Fixed(1, 1), ArgumentTypeError)
    with pytest.raises(
        ArgumentValueError, match="shard: expected False, True or 'full'; got 'all'"
    ):
        train("fashion", training=Training(steps=1), shard="all")


def test_a_parameter_without_a_gradient_is_named(group):
    model = made("deep")
    model.extra = nn.Parameter(torch.ones(2))
    full = FullShard(model, precision=torch.float32, over=group)
    x, noise = batch_of(model, 1)
    with pytest.raises(ArgumentValueError, match=r"that the loss depends on.*extra"):
        full.differentiate(lambda one: loss_terms(one, x, noise, Training(steps=1)))


def test_only_errors_of_sending_are_those_of_a_lost_process():
    group = Processes(0, 2)
    with pytest.raises(LostProcessError, match="another of the 2 has ended"), group.watched():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    with pytest.raises(RuntimeError, match="sizes of tensors"), group.watched():
        raise RuntimeError("sizes of tensors must match")


def test_a_shared_weight_is_in_a_checkpoint_once_and_old_ones_are_read(tmp_path):
    def shared():
        model = made("deep")
        model.again = model.encoder.hidden
        return model

    model = shared()
    state = State.start(model, Training(steps=3))
    state.step = 1
    make_moments(state)
    checkpoint.save(tmp_path, state)
    path = tmp_path / checkpoint.NAME
    tensors = load_tensors(path)
    twice = state.trained - set(state.flat.names)
    assert twice == {"again.weight", "again.bias"}
    assert not [name for name in twice if f"buffer.{name}" in tensors]
    weights = model.state_dict()
    old = tensors | {f"buffer.{name}": weights[name] for name in twice}
    save_tensors(path, old, note='{"step": 1, "seconds": 0.0, "lengths": [0, 0]}')
    again = State.start(shared(), Training(steps=3))
    again.flat.vector.zero_()
    checkpoint.load(tmp_path, again, hashed=True)
    assert torch.equal(again.flat.vector, state.flat.vector)


# --- torchrun

STEPS = 16
GIVEN = f"--steps {STEPS} --batch-size 12 --validation 0.1 --seed 3 --layers 2 --latent 6"
GIVEN = f"{GIVEN} --hidden 8,8,16 --warmup 0.3 --tighten 0.4 --draws 2 --precision float32".split()


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """Grey pictures: 97 to train on, so that no number of processes divides the rest of a pass."""
    path = tmp_path_factory.mktemp("data") / "pixels.npz"
    values = np.random.default_rng(0).integers(0, 256, (130, 12, 12), dtype=np.uint8)
    np.savez(path, x_train=values[:97], x_test=values[97:])
    return path


@pytest.fixture(scope="module")
def alone(pixels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    often = ["--checkpoint-seconds", "0.05"]
    code, _, error = ended(started(1, "train", pixels, *GIVEN, *often, "--out", folder))
    assert code == 0, error
    return folder


def assert_same_run(found, truth):
    """Each step's figures are off by sums of 12 terms in another order, and by weights that are."""
    ours, theirs = figures_of(found), figures_of(truth)
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one[1:] == pytest.approx(other[1:], rel=STEPS * 12 * ULP, abs=1e-5)
    assert (found / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_torchrun_with_weights_in_slices_trains_as_one_process(size, pixels, alone, tmp_path):
    """Looks, weights picked on held-out examples, an evaluation, a start from another run."""
    run, after = tmp_path / "run", tmp_path / "after"
    given = ["train", pixels, *GIVEN, "--full-shard", "--checkpoint-seconds", "0.05"]
    code, _, error = ended(started(size, *given, "--out", run))
    assert code == 0, error
    assert "a slice of the training state, weights too" in error
    assert "warning:" not in error
    assert_same_run(run, alone)
    kept = load_tensors(alone / "checkpoints" / "last.safetensors", hashed=True)
    load_tensors(run / "checkpoints" / "last.safetensors", like=kept, hashed=True)
    code, _, error = ended(started(size, *given, "--from", alone, "--out", after))
    assert code == 0, error


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["--full-shard", "--shard", ""])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_any_number_of_processes_goes_on_with_a_stopped_run(size, kind, pixels, alone, tmp_path):
    """Stopped by weights in slices after some steps; the rest in another way."""
    run = tmp_path / "run"
    first = random.Random(size).choice([2, 3, 4])
    given = ["train", pixels, *GIVEN, "--full-shard", "--checkpoint-seconds", "0.01"]
    process = started(first, *given, "--out", run)
    wait_for((run / "checkpoints" / "last.safetensors").exists, process)
    process.send_signal(signal.SIGTERM)
    _, _, error = ended(process)
    if not (run / "model.safetensors").exists():  # else it had been done by then
        assert 0 < checkpoint.saved_step(run) <= STEPS
        code, _, error = ended(started(size, "train", "--resume", run, *([kind] if kind else [])))
        assert code == 0, error
    assert_same_run(run, alone)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_leaves_a_message_and_the_last_checkpoint(rank, pixels, tmp_path):
    run, kept = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.safetensors"
    steps = [one if one != str(STEPS) else "100000" for one in GIVEN]
    given = ["train", pixels, *steps, "--full-shard", "--checkpoint-seconds", "0.05"]
    process = started(3, *given, "--out", run)
    wait_for(kept.exists, process)
    os.kill(workers(run)[rank], signal.SIGKILL)
    code, _, error = ended(process)
    assert code != 0
    step = checkpoint.saved_step(run)
    (line,) = [one for one in error.splitlines() if "has ended or was killed" in one]
    assert f"the last checkpoint is kept, of step {step:,}" in line
    assert f"Try: kullback train --resume {run}" in line
    shutil.copytree(run, tmp_path / "copy")
    process = started(2, "train", "--resume", tmp_path / "copy", "--checkpoint-seconds", "0.05")
    wait_for(lambda: checkpoint.saved_step(tmp_path / "copy") > step, process)
    process.send_signal(signal.SIGTERM)
    ended(process)
