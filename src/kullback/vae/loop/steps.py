"""The loop itself: a step is a batch, its gradient and an update of the weights.

Which to use: `fit`, a generator that yields after every step. A copy of it is a fine start for a
loop of your own. `batches` is the order of the training examples.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from kullback.core import processes
from kullback.data import Dataset

from ..elbo_step import CapturedSteps, step_for
from ..limits import AVERAGE_STEPS
from ..model import VAE
from ..state import FlatParameters, FullShard, State, WeightVector
from ..training import Training
from .losses import loss_terms, require_parts_fit
from .nonfinite import Batch, NonFiniteError, diagnose
from .shared_step import SharedStep, require_equal_shares

__all__ = ["batches", "fit"]


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """Return the order of the training items in one epoch: a function of seed and epoch alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def batches(data: Dataset, settings: Training, state: State) -> Iterator[Tensor]:
    """Yield index batches for ever from the state's step on; an incomplete last one is dropped."""
    n = len(data.train)
    size = min(settings.batch_size, n)
    per_epoch = n // size
    while True:
        epoch, first = divmod(state.step, per_epoch)
        order = epoch_order(settings.seed, epoch, n).to(data.train.device)
        for i in range(first, per_epoch):
            data.expect(order[(i + 1) * size : (i + 2) * size])
            yield order[i * size : (i + 1) * size]


def fit(
    model: VAE,
    data: Dataset,
    settings: Training,
    state: State,
    *,
    folder: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
    shared: "SharedStep | None" = None,
) -> Iterator[State]:
    """Train in place, yielding the state after every step until the budget is spent.

    Args:
        model: The model, whose weights `state` shares.
        data: On the model's device.
        settings: How to train.
        state: From `State.start`, or restored by `checkpoint.load`.
        folder: Where a batch is kept that makes the loss non-finite; None keeps none.
        clock: Seconds from any start.
        shared: Of the processes that each take an equal share of every batch; None: this one alone.

    Yields:
        The same state, after every step.

    Raises:
        ArgumentValueError: The settings ask for what the model's parts do not have.
        NonFiniteError: At the first non-finite loss or gradient, before it touches the weights,
            with the step, the batch items and the tensor.
        LostProcessError: Another process ended; the state is then that before the step.
    """
    require_parts_fit(model, settings)
    shared = SharedStep(processes.Processes()) if shared is None else shared
    require_equal_shares(model, settings, len(data.train), shared.group, resumed=state.step > 0)
    flat = state.flat
    per_epoch = max(1, len(data.train) // settings.batch_size)
    started = clock() - state.seconds
    gradient = _gradient(model, flat, settings, shared.group)
    for indices in batches(data, settings, state):
        state.seconds = shared.seconds_at(state.seconds, clock() - started)
        progress = settings.progress(state.step, state.seconds, per_epoch)
        if progress >= 1.0:
            return
        untouched = state.generator.get_state()
        own = shared.group.share(len(indices))
        x = _own_batch(data, indices, own, state.generator)
        shape = (settings.draws_at(progress), len(indices), model.prior.latent)
        noise = torch.randn(shape, generator=state.generator, device=x.device)
        given = _given(model, data, indices[own])
        try:
            loss, figures = gradient(given, x, noise[:, own], progress)
            loss, figures = shared.average(flat, loss, figures, clock() - started)
        except processes.LostProcessError:
            state.generator.set_state(untouched)
            raise
        norm = float(flat.norm())
        if not math.isfinite(norm + float(loss.detach())):
            state.generator.set_state(untouched)
            x = data.batch(indices, state.generator).float()
            names = [data.train_names[i] for i in indices.tolist()]
            state.generator.set_state(untouched)
            batch, given = Batch(x, noise, names), _given(model, data, indices)
            raise NonFiniteError(diagnose(given, state, batch, folder))
        rate = settings.learning_rate_at(progress, state.step)
        state.update(rate, rate * settings.weight_decay, _clipped(norm, settings.clip))
        state.step += 1
        if state.step % AVERAGE_STEPS == 0 or state.step < AVERAGE_STEPS:
            flat.update_average(min(1.0, AVERAGE_STEPS / (settings.average * state.step)))
        state.totals += figures
        yield state


def _own_batch(data: Dataset, indices: Tensor, own: slice, generator: torch.Generator) -> Tensor:
    """Return this process's rows of a batch; bits are drawn for all, so that they are the same."""
    if data.dynamic:
        return data.batch(indices, generator)[own]
    return data.batch(indices[own], generator)


def _given(model: VAE, data: Dataset, indices: Tensor) -> VAE:
    """Return the model given the labels of some training rows, where the data have any."""
    if data.train_labels is None:
        return model
    return model.at(data.train_labels.index_select(0, indices))


Gradient = Callable[[VAE, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _gradient(
    model: VAE, flat: WeightVector, settings: Training, group: processes.Processes
) -> Gradient:
    """Return how a step gets its gradient into `flat`: by hand where that is written, or autograd.

    The function takes the model (with the labels of x given, if it has any), x, noise and the
    progress of the run; it returns what `loss_terms` does.
    """
    if isinstance(flat, FullShard):
        return _sharded_gradient(flat, settings, group)
    if not isinstance(flat, FlatParameters):
        raise TypeError(type(flat).__name__)
    by_hand = step_for(model, flat, settings)
    known = model.spec is not None and not model.spec.own  # modules of one's own may do anything
    captured = CapturedSteps() if known and group.size == 1 else None

    def gradient(given: VAE, x: Tensor, noise: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        def compute(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            if by_hand is not None:
                found = by_hand(x, noise, settings.beta_at(progress))
                flat.reduce_gradient()
                return found
            loss, figures = loss_terms(given, x.float(), noise, settings, progress, group=group)
            flat.differentiate(loss)
            return loss, figures

        if captured is None or given is not model or progress < settings.warmup:
            return compute(x, noise)  # with labels, or a β of its own in every step
        return captured(settings.bound_at(progress), compute, x, noise)

    return gradient


def _sharded_gradient(flat: FullShard, settings: Training, group: processes.Processes) -> Gradient:
    """Return how a step gets its gradient where the model that is given holds no weights."""

    def gradient(given: VAE, x: Tensor, noise: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        def loss_of(model: nn.Module) -> tuple[Tensor, Tensor]:
            if not isinstance(model, VAE):
                raise TypeError(type(model).__name__)
            held = model if given.label is None else model.at(given.label)
            return loss_terms(held, x.float(), noise, settings, progress, group=group)

        return flat.differentiate(loss_of)

    return gradient


def _clipped(norm: float, largest: float) -> float:
    """Return the factor that brings a gradient's norm down to the largest one allowed."""
    return largest / norm if norm > largest else 1.0
