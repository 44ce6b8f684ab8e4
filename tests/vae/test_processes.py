"""Several processes against one: the same steps, figures, files and messages.

In the fast tier threads play the processes: what each sends is summed as gloo would. The slow tier
starts the command with torchrun, on 127.0.0.1.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from kullback.cli import main as main_module
from kullback.core import ArgumentValueError
from kullback.core.processes import LostProcessError, Processes
from kullback.data import Dataset
from kullback.vae import Architecture, Bounds, Training, build, image_bounds, summarise
from kullback.vae.loop import NonFiniteError, SharedStep, fit, require_equal_shares
from kullback.vae.state import (
    FlatParameters,
    ReducedBackward,
    State,
    checkpoint,
    flat_parameters,
    load_tensors,
    make_moments,
)
from torchrun import ENVIRONMENT, WAIT, ended, figures_of, started, wait_for, workers


@dataclass
class Table:
    """Where the threads of one group lay what they send."""

    size: int
    slots: dict = field(default_factory=dict)

    def __post_init__(self):
        self.barrier = threading.Barrier(self.size)

    def all(self, rank, value):
        self.slots[rank] = value
        self.barrier.wait(WAIT)
        found = [self.slots[n] for n in range(self.size)]
        self.barrier.wait(WAIT)
        return found


class Thread(Processes):
    """A process that is a thread; `lost` is the number of the sum at which another is gone."""

    def __init__(self, rank, table, lost=None):
        super().__init__(rank, table.size)
        self.table, self.lost = table, lost

    def sum_(self, values):
        self.calls += 1
        self.sent += values.numel() * values.element_size()
        if self.calls == self.lost:
            raise LostProcessError("processes: gone")
        parts = self.table.all(self.rank, values.clone())
        return values.copy_(torch.stack(parts).sum(0))

    def copy_first_(self, values):
        return values.copy_(self.table.all(self.rank, values.clone())[0])

    def reduce_(self, values, owner):
        found = self.sum_(values.clone())
        values.copy_(found if self.rank == owner else torch.full_like(values, math.nan))

    def all_gather_(self, whole, own):
        self.calls += 1
        self.sent += whole.numel() * whole.element_size()
        whole.copy_(torch.cat(self.table.all(self.rank, own.clone())))

    def collect(self, own):
        found = self.table.all(self.rank, own.clone())
        room = torch.empty_like(own)  # one for all, as gloo's
        for part in found if self.first else ():
            yield room.copy_(part)

    def hand_out(self, own, parts):
        own.copy_(self.table.all(self.rank, list(parts))[0][self.rank])


def together(size, work, **more):
    """Return what `work(group)` gives in every thread; the first error is raised."""
    table, results, errors = Table(size), [None] * size, []

    def run(rank):
        try:
            results[rank] = work(Thread(rank, table, **more))
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append((rank, error))
            if not isinstance(error, LostProcessError):  # which all meet at the same sum
                table.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT)
    if errors:
        raise next((e for _, e in errors if not isinstance(e, threading.BrokenBarrierError)))
    return results


def some(kind, shape, n=96, *, dynamic=False, labels=0):
    """Training and test examples of a kind, at random."""
    draw = torch.Generator().manual_seed(0)
    levels = {"binary": 2, "8-bit": 256, "counts": 9}
    if kind == "continuous":
        x = torch.randn((n + 30, *shape), generator=draw)
    else:
        top = 256 if dynamic else levels[kind]
        x = torch.randint(top, (n + 30, *shape), generator=draw)
        x = x.to(torch.int32 if kind == "counts" else torch.uint8)
    y = torch.randint(max(1, labels), (n + 30,), generator=draw)
    names = tuple(f"train[{i}]" for i in range(n))
    test = (x[n:] > 127).to(torch.uint8) if dynamic else x[n:]
    protocol = {"labels": [str(one) for one in range(labels)]} if labels else {}
    more = {"train_labels": y[:n], "test_labels": y[n:]} if labels else {}
    return Dataset(x[:n], test, kind, dynamic, protocol, names, names[:30], **more)


SMALL = {"latent": 4, "components": 1}
MLP = SMALL | {"network": "mlp", "hidden": (8,)}
CASES = {
    "bits": ("binary", (6,), MLP, {}),
    "bits drawn afresh": ("binary", (6,), MLP, {"dynamic": True}),
    "several draws": ("binary", (6,), MLP, {"objective": "iwae", "draws": 3}),
    "tightened": ("binary", (6,), MLP, {"tighten": 0.5, "draws": 2}),
    "free bits": ("binary", (6,), MLP, {"free_bits": 0.2}),
    "balanced layers": (
        "binary",
        (6,),
        MLP | {"layers": 2, "latent": 4},
        {"balance": True, "warmup": 0.8, "free_bits": 0.02},
    ),
    "pictures": ("8-bit", (1, 8, 8), SMALL | {"hidden": (8, 16)}, {}),
    "colours": ("8-bit", (3, 8, 8), SMALL | {"hidden": (8, 16)}, {"warmup": 0.5}),
    "counts": ("counts", (5,), MLP | {"likelihood": "poisson"}, {}),
    "labels": ("binary", (6,), MLP, {"labels": 3}),
    "vamp": ("binary", (6,), MLP | {"prior": "mixture", "prior_components": 3}, {}),
    "numbers": ("continuous", (5,), MLP, {"precision": "float32"}),
}


def parts_of(case):
    """Return data, settings, and a function that builds the model and its state."""
    kind, shape, architecture, given = CASES[case]
    given = dict(given)
    more = {name: given.pop(name) for name in ("dynamic", "labels") if name in given}
    data = some(kind, shape, **more)
    settings = Training(**({"steps": 5, "batch_size": 16} | given))

    def made():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            labels = tuple(data.protocol.get("labels", ()))
            model = build(shape, kind, Architecture(**architecture), labels=labels)
        return model, State.start(model, settings)

    return data, settings, made


ULP = torch.finfo(torch.float32).eps


@dataclass
class Played:
    """What one process had after some steps: figures of every step, the first gradient, weights."""

    figures: torch.Tensor
    gradient: torch.Tensor
    state: State


def played(data, settings, made, group=None, **how):
    """Train to the end of the budget as one process of a group."""
    model, state = made
    figures, gradient = [], None
    for _ in fit(model, data, settings, state, shared=group and SharedStep(group), **how):
        figures.append(state.totals.clone())
        gradient = state.flat.gradient.clone() if gradient is None else gradient
    return Played(torch.stack(figures), gradient, state)


def played_by(size, data, settings, made, **how):
    several = [made() for _ in range(size)]  # torch's global generator is one for all threads
    return together(size, lambda group: played(data, settings, several[group.rank], group, **how))


@pytest.mark.sweep(3)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_equal_shares_make_the_step_of_the_whole_batch(case, size):
    """Every term of a gradient or figure is rounded the same; only the order of sums differs.

    A sum of n terms is off by at most n/2 ulps of the sum of magnitudes, on either side; here
    n is at most 16 items, and the figures follow the weights of at most five steps.
    """
    data, settings, made = parts_of(case)
    one = played(data, settings, made())
    found = played_by(size, data, settings, made)
    for each in found:
        assert torch.equal(each.state.flat.vector, found[0].state.flat.vector)
        assert torch.equal(each.state.generator.get_state(), one.state.generator.get_state())
        assert (each.state.step, len(each.figures)) == (5, 5)
    off = (found[0].gradient - one.gradient).abs().max()
    assert off <= 16 * ULP * one.gradient.abs().max()
    assert torch.allclose(found[0].figures, one.figures, rtol=5 * 16 * ULP, atol=1e-5)


def test_several_processes_send_one_sum_a_step():
    """Gradient, loss, ELBO, rate, clock and stop together; free bits send a mean KL more."""
    data, settings, made = parts_of("bits")
    several = [made() for _ in range(2)]
    groups = together(2, lambda g: (played(data, settings, several[g.rank], g), g)[1])
    weights = several[0][1].flat.vector.numel()
    assert {(g.calls, g.sent) for g in groups} == {(5, 5 * 4 * (weights + 5))}
    data, settings, made = parts_of("free bits")
    several = [made() for _ in range(2)]
    groups = together(2, lambda g: (played(data, settings, several[g.rank], g), g)[1])
    assert {(g.calls, g.sent) for g in groups} == {(10, 5 * 4 * (weights + 5 + 4))}


def test_a_budget_of_minutes_ends_all_at_the_same_step():
    """Every process has a clock of its own; the first one's counts, and the rate follows it."""
    data, _, made = parts_of("bits")
    settings = Training(minutes=1 / 60, batch_size=16)
    several = [made() for _ in range(3)]
    settings = replace(settings, batch_size=15)

    def run(group):
        ticks = iter(range(10_000))
        speed = (0.01, 0.5, 0.0001)[group.rank]
        found = played(
            data, settings, several[group.rank], group, clock=lambda: next(ticks) * speed
        )
        return found.state

    states = together(3, run)
    assert {state.step for state in states} == {states[0].step}
    assert 30 < states[0].step < 110  # a second of two ticks of 0.01 a step, seen a step later
    assert all(torch.equal(one.flat.vector, states[0].flat.vector) for one in states)


def test_a_request_to_stop_at_one_process_stops_all_at_the_same_step():
    data, settings, made = parts_of("bits")
    settings = replace(settings, steps=50)
    several = [made() for _ in range(4)]

    def run(group):
        model, state = several[group.rank]
        shared = SharedStep(group)
        for _ in fit(model, data, settings, state, shared=shared):
            if shared.agreed(group.rank == 2 and state.step >= 7):
                break
        return state.step

    assert together(4, run) == [8] * 4


def test_a_nonfinite_loss_is_named_as_by_one_process(tmp_path):
    data, settings, made = parts_of("numbers")
    poisoned = data.train.clone()
    poisoned[7] = 2e19  # its square overflows
    data = replace(data, train=poisoned)
    with pytest.raises(NonFiniteError) as one:
        played(data, replace(settings, steps=50), made())
    with pytest.raises(NonFiniteError) as found:
        played_by(2, data, replace(settings, steps=50), made)
    assert str(found.value) == str(one.value)
    assert "1 of 16 batch items (train[7])" in str(one.value)


@pytest.mark.parametrize("case", ["bits drawn afresh", "free bits"])
def test_a_lost_process_leaves_the_state_before_the_step(case):
    """So that the checkpoint goes on as if nothing had happened."""
    data, settings, made = parts_of(case)
    whole = played_by(2, data, settings, made)[0]
    several = [made() for _ in range(2)]
    with pytest.raises(LostProcessError):
        together(2, lambda g: played(data, settings, several[g.rank], g), lost=4)
    assert several[0][1].step in (1, 3)
    found = together(2, lambda g: played(data, settings, several[g.rank], g))[0]
    assert torch.equal(found.state.flat.vector, whole.state.flat.vector)


# --- The state in slices


def joined_slices(flat, own):
    """Return a tensor whole in the first process, and empty elsewhere; all call it."""
    return torch.cat([torch.empty(0), *[part.clone() for part in flat.slices(own)]])


def whole_state(state):
    """Return every tensor of a state, whole, in the first process; all call it."""
    sliced = checkpoint._sliced(state)
    found = {}
    for name, tensor in checkpoint._tensors(state).items():
        found[name] = joined_slices(state.flat, tensor) if name in sliced else tensor.clone()
    return found


def trained(case, size, *, shard, precision=torch.float32, **given):
    """Return (figures, whole state, the model's weights, the processes) of one training."""
    data, settings, made = parts_of(case)
    settings = replace(settings, **given)
    models = [made()[0] for _ in range(size)]

    def work(group):
        model = models[group.rank]
        more = {"precision": precision, "over": group if shard else None}
        state = State.start(model, settings, **more)
        steps = fit(model, data, settings, state, shared=SharedStep(group))
        figures = torch.stack([each.totals.clone() for each in steps])
        return figures, whole_state(state), state.flat.working[: state.flat.numbers], state, group

    return together(size, work)


def assert_same_to_a_digit(found, truth):
    """The same bits, but for a few roundings of float32 in numbers of the largest one's size."""

    def same(one, other):
        if not one.is_floating_point():
            return torch.equal(one, other)
        size = float(other.abs().max()) if other.numel() else 0.0
        return one.shape == other.shape and bool(((one - other).abs() <= 8 * 2**-24 * size).all())

    assert same(found[0], truth[0])
    assert found[1].keys() == truth[1].keys()
    for name, tensor in truth[1].items():
        assert same(found[1][name], tensor), name
    assert same(found[2], truth[2])


@pytest.mark.sweep(13)
@pytest.mark.parametrize("numbers", [2**22, 7])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_slices_of_a_state_are_those_of_whole_states(case, size, precision, numbers, monkeypatch):
    """Clipped, decayed, averaged, of any bucket; sums are in the same order.

    Gradients are written elsewhere, and without AVX-512 the address decides a product's last digit.
    """
    monkeypatch.setattr(
        flat_parameters, "ReducedBackward", partial(ReducedBackward, numbers=numbers)
    )
    how = {"precision": precision, "clip": 0.5}
    truth = trained(case, size, shard=False, **how)
    found = trained(case, size, shard=True, **how)
    assert_same_to_a_digit(found[0], truth[0])
    for each in found[1:]:
        assert torch.equal(each[2], found[0][2])
        assert len(each[1]["vector"]) == 0  # only the first has it whole
    flat = found[1][3].flat
    length = -(-flat.numbers // size)
    owned = (flat.vector, flat.gradient, flat.average)
    assert {len(one) for one in owned} == {length}


@pytest.mark.slow
def test_a_step_of_slices_sends_what_a_whole_one_does_and_the_weights():
    """The gradient once (N buckets), 7 + N figures, the weights once; at first their order too."""
    for size in (2, 4):
        *_, state, group = trained("several draws", size, shard=True)[0]
        numbers, padded = state.flat.numbers, size * len(state.flat.vector)
        *_, again = trained("several draws", size, shard=True, steps=15)[0]
        assert again.sent - group.sent == 10 * 4 * (numbers + padded + 7 + size)
        assert again.calls - group.calls == 10 * (size + 2)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("shapes", [[(1,)], [(2, 1), (1,)], [(3, 2), (2,), ()], [(0,), (5, 3)]])
def test_any_number_of_weights_in_any_number_of_slices(shapes, size):
    """Also fewer weights than processes, none in a parameter, and gradients by rows transposed."""

    def model():
        draw = torch.Generator().manual_seed(0)
        whole = (torch.randint(1, 99, shape, generator=draw).float() for shape in shapes)
        return nn.ParameterList(nn.Parameter(values) for values in whole)

    def loss(parts, rank):
        return sum(((rank + 1) * part.t().contiguous().square()).sum() for part in parts)

    def work(group):
        flat = FlatParameters(models[group.rank], over=group)
        flat.differentiate(loss(flat.parameters, group.rank))
        gradient = joined_slices(flat, flat.gradient)
        flat.vector.add_(1.0)
        flat.refresh()
        flat.gather_average(everywhere=True)
        return gradient, flat.working[: flat.numbers], flat.whole_average, flat.matrices

    models = [model() for _ in range(size)]
    alone = FlatParameters(model())
    first, *others = together(size, work)
    total = size * (size + 1) / 2
    assert torch.equal(first[0], 2.0 * total * alone.vector)  # integers: exact
    for gradient, working, average, _ in [first, *others]:
        assert torch.equal(working, alone.vector + 1.0)
        assert torch.equal(average, alone.vector)
        assert len(gradient) in (0, alone.numbers)
    assert sum(one[3] for one in [first, *others]) == alone.matrices


def test_a_gradient_that_two_weights_have_is_summed_for_each():
    """Autograd passes on one tensor to both terms of a sum."""

    def work(group):
        flat = FlatParameters(models[group.rank], over=group)
        first, second = flat.parameters
        flat.differentiate((first + second).square().sum())
        return joined_slices(flat, flat.gradient)

    models = [nn.ParameterList([torch.full((3,), 2.0), torch.ones(3)]) for _ in range(2)]
    assert together(2, work)[0].tolist() == 6 * [12.0]


def test_a_weight_outside_of_the_loss_is_refused_in_slices_as_alone():
    def work(group):
        flat = FlatParameters(models[group.rank], over=group if group.size > 1 else None)
        with pytest.raises(ArgumentValueError, match=r"that the loss depends on.*got bias"):
            flat.differentiate(flat.parameters[0].sum())

    models = [nn.Linear(2, 3) for _ in range(2)]
    work(Processes())
    together(2, work)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), (1, 4), (4, 2)])
def test_a_checkpoint_of_slices_is_one_of_a_whole_state(before, after, precision, tmp_path):
    """The same file from any number of processes, sharded or not, and read by any."""
    _, settings, made = parts_of("balanced layers")

    def state_of(group):
        over = group if group.size > 1 else None
        return State.start(models[group.rank], settings, precision=precision, over=over)

    def write(group):
        state = state_of(group)
        state.step, state.seconds = 3, 1.5
        make_moments(state)
        draw = torch.Generator().manual_seed(5)
        for name in checkpoint._sliced(state) or ["vector", "average"]:
            whole = torch.randn(state.flat.numbers, generator=draw)
            state.flat.hand_out(checkpoint._tensors(state)[name], whole if group.first else None)
        state.flat.refresh()
        checkpoint.save(folder, state)
        return whole_state(state)

    def read(group):
        state = state_of(group)
        wholes = checkpoint.load(folder, state) if group.first else None
        checkpoint.copy_first(state, group, wholes)
        return whole_state(state), state.flat.working[: state.flat.numbers], state.step

    folder, models = tmp_path, [made()[0] for _ in range(before)]
    written = together(before, write)[0] if before > 1 else write(Processes())
    models = [made()[0] for _ in range(after)]
    found = together(after, read) if after > 1 else [read(Processes())]
    held = load_tensors(folder / checkpoint.NAME, like=written, hashed=True)
    for name, tensor in held.items():
        assert torch.equal(tensor, written[name]), name
        assert torch.equal(tensor, found[0][0][name]), name
    for each in found:
        assert torch.equal(each[1], held["vector"].to(precision))
        assert each[2] == 3


def test_a_nonfinite_step_of_slices_is_named_and_kept_as_by_one_process(tmp_path):
    data, settings, made = parts_of("numbers")
    poisoned = data.train.clone()
    poisoned[7] = 2e19
    data, settings = replace(data, train=poisoned), replace(settings, steps=50)
    models, one = [made()[0] for _ in range(2)], made()
    with pytest.raises(NonFiniteError) as alone:
        played(data, settings, one)

    def work(group):
        state = State.start(models[group.rank], settings, over=group)
        folder = tmp_path if group.first else None
        steps = fit(
            models[group.rank], data, settings, state, shared=SharedStep(group), folder=folder
        )
        with pytest.raises(NonFiniteError) as error:
            list(steps)
        checkpoint.save(tmp_path, state)
        return str(error.value), state.step

    (text, step), (other, _) = together(2, work)
    assert text.startswith(str(alone.value))
    assert other == str(alone.value)
    kept = load_tensors(tmp_path / f"nonfinite-step-{step}.safetensors")
    if step:
        saved = load_tensors(tmp_path / checkpoint.NAME)
        assert torch.equal(kept["weights"], saved["vector"])
    torch.testing.assert_close(kept["weights"], one[1].flat.vector, rtol=1e-4, atol=1e-5)


def test_the_first_parameter_with_a_bad_gradient_is_named_from_any_slice():
    def work(group):
        flat = FlatParameters(models[group.rank], over=group)
        found = [flat.first_bad()]
        for place in (40, 7, 3):
            if flat.start <= place < flat.start + len(flat.vector):
                flat.gradient[place - flat.start] = math.nan
            found.append(flat.first_bad())
        return found

    models = [nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 8)) for _ in range(4)]
    assert together(4, work) == [["", "1.bias", "1.weight", "0.weight"]] * 4


@pytest.mark.sweep(4)
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("n", "labels"), [(250, 0), (250, 3), (90, 0), (301, 2)])
def test_evaluation_over_uneven_shares_is_that_of_one_process(n, labels, size):
    """The same terms of each image, to the bit, and so the same means and errors."""
    data = some("binary", (6,), n=4, labels=labels)
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(2, (n, 6), generator=draw).to(torch.uint8)
    y = torch.randint(labels, (n,), generator=draw) if labels else None
    names = tuple(map(str, range(labels)))
    model = build((6,), "binary", Architecture(**MLP), labels=names)
    one = image_bounds(model, x, draws=3, labels=y)
    several = together(size, lambda g: image_bounds(model, x, draws=3, labels=y, group=g))
    for found in several:
        for name in ("elbo", "importance_weighted", "rate", "kl", "mean", "effective_draws"):
            assert torch.equal(getattr(found, name), getattr(one, name)), name
        assert (found.draws, found.exact_rate) == (one.draws, one.exact_rate)
    assert summarise(model, x, several[0], labels=y) == summarise(model, x, one, labels=y)
    assert data.event_shape == (6,)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("architecture", "outputs"), [({"layers": 2}, 5000), ({"prior": "mixture"}, 5000), ({}, 100)]
)
def test_skipped_noise_is_what_many_draws_would_take(architecture, outputs, monkeypatch):
    """Also where the draws of a few images are cut into blocks of rows."""
    module = sys.modules[Bounds.__module__]
    monkeypatch.setattr(module, "DECODER_OUTPUTS", outputs)
    model = build((6,), "binary", Architecture(**(MLP | architecture)))
    x = torch.randint(2, (103, 6), generator=torch.Generator().manual_seed(1))
    one = image_bounds(model, x, draws=5)
    several = together(2, lambda g: image_bounds(model, x, draws=5, group=g))
    assert torch.equal(several[1].importance_weighted, one.importance_weighted)


@pytest.mark.parametrize(
    ("batch", "examples", "size", "resumed", "text"),
    [
        (64, 1000, 3, False, "got 64. Try: batch_size=63, or --nproc-per-node 2 or 4"),
        (64, 1000, 3, True, "got 64. Try: --nproc-per-node 2 or 4"),
        (128, 90, 4, False, "got 90 (all training examples). Try: batch_size=88, or"),
        (7, 100, 2, False, "got 7. Try: batch_size=6, or --nproc-per-node 1 or 7"),
        (2, 100, 4, False, "got 2. Try: batch_size=4, or --nproc-per-node 2"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(batch, examples, size, resumed, text):
    settings, group = Training(batch_size=batch), Processes(1, size)
    with pytest.raises(ArgumentValueError) as error:
        require_equal_shares(nn.Identity(), settings, examples, group, resumed=resumed)
    assert f"batch_size: expected a multiple of the {size} processes; {text}" in str(error.value)
    require_equal_shares(nn.Identity(), settings, examples, Processes())


def test_batch_norm_is_refused_with_several_processes():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ArgumentValueError, match="no BatchNorm with several processes"):
        require_equal_shares(model, Training(batch_size=4), 8, Processes(0, 2))
    require_equal_shares(model, Training(batch_size=4), 8, Processes())


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 14])
def test_shares_are_all_items_once_in_order(size, count):
    parts = [list(range(count))[Processes(rank, size).share(count)] for rank in range(size)]
    assert [one for part in parts for one in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_others_settings_are_told_in_all_and_what_the_first_says_reaches_all():
    def run(group):
        said = group.told({"rank": group.rank, "x": [0.1, None, "é"]})
        group.require_same("settings", {"a": 1, "b": 2})
        with pytest.raises(ArgumentValueError, match="the same data in all 3; got others"):
            group.require_same("data", int(group.rank == 2))
        return said

    assert together(3, run) == [{"rank": 0, "x": [0.1, None, "é"]}] * 3


# --- The command under torchrun

ARGUMENTS = "--steps 12 --batch-size 24 --network mlp --hidden 16 --latent 3 --binarize dynamic"
OFTEN = ["--checkpoint-seconds", "0.05"]


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """A small file of grey images."""
    np = pytest.importorskip("numpy")
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (400, 4, 4), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def alone(pixels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    code, _, error = ended(started(1, "train", pixels, *ARGUMENTS.split(), "--out", folder))
    assert code == 0, error
    return folder


def test_one_of_several_processes_leaves_without_the_interpreters_end():
    code = "import atexit\nfrom kullback.core import processes\natexit.register(print, 'ended')\n"
    code += "print('said', end=' ')\nprocesses.leave(3)"
    found = []
    for size in ("1", "2"):
        variables = ENVIRONMENT | {"WORLD_SIZE": size}
        given = {"env": variables, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, "-c", code], **given, check=False)
        found.append((done.returncode, done.stdout))
    assert found == [(3, "said ended\n"), (3, "said ")]


PLACES = [
    ({"TORCHELASTIC_RUN_ID": "a", "RANK": "0"}, "entropy takes one process: the first of 3"),
    ({"TORCHELASTIC_RUN_ID": "a", "RANK": "2"}, None),
    ({"RANK": "2"}, ""),  # of another launcher, whose shell this may be
]


@pytest.mark.parametrize(("variables", "said"), PLACES)
def test_which_process_takes_a_verb_of_one(variables, said, monkeypatch, capsys):
    for name in ("TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables | {"WORLD_SIZE": "3"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(main_module.processes, "leave", sys.exit)
    with pytest.raises(SystemExit) as stop:
        main_module.main(["entropy", "1/2,1/2", "--unit", "bits"])
    assert stop.value.code == 0
    out, error = capsys.readouterr()
    assert bool(out) == (said is not None)
    assert (said or "") in error


@pytest.mark.slow
@pytest.mark.parametrize(("variables", "said"), PLACES)
def test_a_verb_of_one_process_is_the_work_of_torchruns_first(variables, said):
    command = [sys.executable, "-m", "kullback", "entropy", "1/2,1/2", "--unit", "bits"]
    given = {"env": ENVIRONMENT | variables | {"WORLD_SIZE": "3"}, "capture_output": True}
    done = subprocess.run(command, text=True, **given, check=False)
    assert done.returncode == 0
    assert bool(done.stdout) == (said is not None)
    assert (said or "") in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_torchrun_trains_and_evaluates_as_one_process(size, pixels, alone, tmp_path):
    run = tmp_path / "run"
    given = ["train", pixels, *ARGUMENTS.split(), "--json", "--out", run]
    code, out, error = ended(started(size, *given))
    assert code == 0, error
    assert json.loads(out)["run"] == str(run)  # printed once
    assert error.count("likelihood: bernoulli") == 1
    for found, one in zip(figures_of(run), figures_of(alone), strict=True):
        assert found[0] == one[0]
        assert math.isclose(found[1], one[1], rel_tol=12 * 24 * ULP)
        assert math.isclose(found[2], one[2], rel_tol=12 * 24 * ULP, abs_tol=1e-6)
    if size == 2:
        return
    written = json.loads((run / "evaluation.json").read_text())
    code, out, error = ended(started(1, "evaluate", run, "--draws", "500", "--json"))
    assert code == 0, error
    assert json.loads(out)["evaluation"] == written["evaluation"]


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_another_number_finishes(pixels, tmp_path):
    run = tmp_path / "run"
    steps = ARGUMENTS.replace("--steps 12", "--steps 100000").split()
    process = started(2, "train", pixels, *steps, *OFTEN, "--out", run)
    wait_for((run / "checkpoints" / "last.safetensors").exists, process)
    os.kill(workers(run)[1], signal.SIGKILL)
    code, _, error = ended(process)
    assert code != 0
    (line,) = [line for line in error.splitlines() if line.startswith("kullback: ")]
    assert "another of the 2 has ended or was killed; saved at step" in line
    assert f"Try: kullback train --resume {run}" in line
    process = started(3, "train", "--resume", run, *OFTEN)
    before = (run / "checkpoints" / "last.safetensors").stat().st_mtime_ns
    wait_for(
        lambda: (run / "checkpoints" / "last.safetensors").stat().st_mtime_ns > before, process
    )
    process.send_signal(signal.SIGTERM)
    code, _, error = ended(process)
    assert f"saved; go on with: kullback train --resume {run}" in error


@pytest.mark.slow
def test_slices_by_gloo_make_the_run_of_two_whole_states_and_any_number_goes_on(pixels, tmp_path):
    """The sum of two numbers has one order: bit for bit, with looks, checkpoints and clips."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    given = ["train", pixels, *ARGUMENTS.split(), "--clip", "1", *OFTEN]
    for folder, more in ((whole, []), (run, ["--shard"])):
        code, _, error = ended(started(2, *given, *more, "--out", folder))
        assert code == 0, error
    assert "and a slice of the training state" in error
    for name in ("metrics.jsonl", "model.safetensors", "checkpoints/best.safetensors"):
        ours, theirs = (folder / name for folder in (run, whole))
        if name.endswith("jsonl"):
            assert ours.read_bytes() == theirs.read_bytes()
        else:
            kept = load_tensors(theirs)
            for key, tensor in load_tensors(ours, like=kept).items():
                assert torch.equal(tensor, kept[key]), (name, key)


@pytest.mark.slow
def test_a_killed_process_with_a_slice_leaves_the_last_checkpoint(pixels, tmp_path):
    """Its slice is lost with it: the message says which step is kept, and that step goes on."""
    run, kept = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.safetensors"
    steps = ARGUMENTS.replace("--steps 12", "--steps 100000").split()
    process = started(4, "train", pixels, *steps, *OFTEN, "--shard", "--out", run)
    wait_for(kept.exists, process)
    os.kill(workers(run)[1], signal.SIGKILL)
    code, _, error = ended(process)
    assert code != 0
    lines = [line for line in error.splitlines() if line.startswith("kullback: ")]
    (line,) = [line for line in lines if not line.startswith("kullback: process ")]  # the first's
    assert "of the 4 has ended or was killed; step " in line
    step = checkpoint.saved_step(run)
    assert "cannot be saved: it held a slice of the training state; " in line
    assert f"state; the last checkpoint is kept, of step {step:,}" in line
    assert f"Try: kullback train --resume {run}" in line
    process = started(2, "train", "--resume", run, "--shard", *OFTEN)
    wait_for(lambda: checkpoint.saved_step(run) > step, process)
    process.send_signal(signal.SIGTERM)
    code, _, error = ended(process)
    assert f"saved; go on with: kullback train --resume {run}" in error
    assert checkpoint.saved_step(run) > step


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_with_a_message(pixels, tmp_path):
    run = tmp_path / "run"
    steps = ARGUMENTS.replace("--steps 12", "--steps 100000").split()
    given = ["train", pixels, *steps, *OFTEN, "--out", run]
    process = started(2, *given, KULLBACK_COLLECTIVE_SECONDS="20")
    wait_for((run / "checkpoints" / "last.safetensors").exists, process)
    held = workers(run)[1]
    os.kill(held, signal.SIGSTOP)
    first = workers(run)[0]
    wait_for(
        lambda: not Path(f"/proc/{first}").exists() or first not in workers(run).values(), process
    )
    os.kill(held, signal.SIGKILL)
    code, _, error = ended(process)
    assert code != 0
    assert "another of the 2 did not answer in 20 s; saved at step" in error
