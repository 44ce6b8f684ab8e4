"""Training a VAE: one loop, and what watches it.

`fit` is the loop, a generator that yields after every step; `kullback.vae.run.train` wraps it in a
run directory with checkpoints. A copy of `fit` is a fine start for a loop of your own. `Monitor`
writes the rows of the logs, the figures of the progress bar, and warnings, and picks the best
weights on examples that `hold_out` kept from training; `diagnose` says where a loss or a gradient
stopped being finite.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kullback.core import (
    DataError,
    Estimate,
    RunError,
    import_extra,
    make_folder,
    processes,
    require,
)
from kullback.data import Dataset, Rows, binarize_all
from kullback.variational import WeightedBound, objectives

from .elbo_step import CapturedSteps, step_for
from .evaluation import (
    active_units,
    bounds_given,
    collapse_of_information,
    collapse_of_rate,
    collapse_warning,
    kl_of_dimensions,
    kl_of_layers,
    unused_layers,
    varying_units,
)
from .evidence import over_images
from .latents import InverseAutoregressive, Quantised, draw_with_kl
from .limits import (
    AVERAGE_STEPS,
    CALLBACK_SECONDS,
    COLLAPSE_AFTER,
    FEW_IMAGES,
    LOG_STEPS,
    LOOK_PASSES,
    LOOK_STEPS,
    LOOKS_A_RUN,
    MONITORED_IMAGES,
    OVERFIT_ERRORS,
    OVERFIT_LOOKS,
    TEST_STEPS,
)
from .model import VAE, evaluating
from .posterior import information_of
from .state import (
    FIGURES,
    FlatParameters,
    FullShard,
    State,
    WeightVector,
    checkpoint,
    load_tensors,
    save_tensors,
)
from .training import Training

__all__ = [
    "Batch",
    "BestLook",
    "Board",
    "Monitor",
    "NonFiniteError",
    "Progress",
    "SharedStep",
    "Validation",
    "balance_weights",
    "diagnose",
    "different_examples",
    "digests_of_examples",
    "fit",
    "hold_out",
    "loss_terms",
    "require_equal_shares",
    "validation_of",
]


class NonFiniteError(RunError):
    """A loss or a gradient stopped being finite; the weights are still those before the step."""


def loss_terms(
    model: VAE,
    x: Tensor,
    noise: Tensor,
    settings: Training,
    progress: float = 1.0,
    *,
    group: processes.Processes | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss and (ELBO, rate), batch means in nats, for noise `[draws, batch, latent]`.

    The loss is minus the objective of this point of the run; the ELBO and the rate, `[2]` and
    without gradient, are what they say whatever β is. group: processes that have equal shares of
    the batch; what depends on a mean over the whole batch then gets it, and all else is of x.
    """
    beta = settings.beta_at(progress)
    name = settings.bound_at(progress)
    if name != "elbo":
        bound = WeightedBound(name, settings.alpha, settings.groups_at(progress))
        likelihood, kl, objective = model.tight_terms(x, noise, beta, bound)
    else:
        likelihood, kl = model.elbo_terms(x, noise)
        balanced = settings.balance and progress < settings.warmup
        free = settings.free_bits
        means = _mean_of_all(kl, group) if balanced or free else None
        if balanced:
            weights = balance_weights(kl if means is None else means[None], model.layer_sizes)
            kl_charged, means = kl * weights, None if means is None else means * weights
        else:
            kl_charged = kl
        objective = objectives.beta_elbo(
            likelihood, kl_charged, beta=beta, free_bits=free, means=means
        )
    with torch.no_grad():
        rate = kl.sum() / len(x)
        elbo = likelihood.sum() / likelihood.numel() - rate
    return -objective.mean(), torch.stack([elbo, rate])


@torch.no_grad()
def _mean_of_all(kl: Tensor, group: processes.Processes | None) -> Tensor | None:
    """Return the mean over the batches of all processes, `[latent]`; None where there is one."""
    if group is None or group.size == 1:
        return None
    return group.sum_(kl.mean(0)) / group.size


@torch.no_grad()
def balance_weights(kl: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the weight of every latent dimension's KL, `[latent]`, of mean 1 over layers.

    The weight of a layer is proportional to its KL a dimension, on average over the batch: a layer
    that carries little is charged little, so that it is not given up before it is used. Where no
    layer has a KL every weight is 1.
    Reference: Vahdat and Kautz (2020), "NVAE", appendix A.

    Args:
        kl: `[batch, latent]`, in nats.
        sizes: Dimensions of every layer.

    Returns:
        Without a graph.

    Example:
        >>> balance_weights(torch.tensor([[3.0, 1.0, 1.0]]), (1, 2))
        tensor([1.5000, 0.5000, 0.5000])
    """
    means = torch.stack([part.mean() for part in torch.split(kl, list(sizes), -1)])
    total = means.sum()
    weights = torch.where(total > 0, len(sizes) * means / total, 1.0)
    return weights.repeat_interleave(torch.tensor(sizes, device=kl.device))


def require_parts_fit(model: VAE, settings: Training) -> None:
    """Raise an ArgumentValueError where settings ask for what the model's parts do not have."""
    known = not settings.free_bits or model.has_kl_per_dimension()
    why = "0 where there is no KL of a single latent dimension (a learned prior, a full q)"
    hint = "free_bits=0, or prior normal with posterior diagonal"
    require(known, "free_bits", why, settings.free_bits, hint)
    several = len(model.layer_sizes) > 1
    why = "several stochastic layers, between which the KL is balanced"
    require(several or not settings.balance, "balance", why, "one", "layers=2")
    plain = settings.objective == "elbo" and settings.draws == 1 and not settings.tighten
    coded = isinstance(model.family, Quantised)
    why = (
        "elbo with one draw and no tighten for a quantised posterior, whose draws are all the same"
    )
    require(plain or not coded, "objective", why, f"{settings.objective}, {settings.draws} draws")
    apart = settings.objective != "piwae" or not isinstance(model.family, InverseAutoregressive)
    why = "another with posterior iaf, whose log q at a given z takes many passes"
    require(apart, "objective", why, "piwae", "miwae")


def require_equal_shares(
    model: VAE,
    settings: Training,
    examples: int,
    group: processes.Processes,
    *,
    resumed: bool = False,
) -> None:
    """Raise an ArgumentValueError where a step's batch does not divide over the processes.

    resumed: whether the batch is that of a run begun, so that only the processes can change.
    """
    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
    mixes = next((n for n, one in model.named_modules() if isinstance(one, kinds)), "")
    why = "no BatchNorm with several processes, each of which sees a share of the batch"
    require(not mixes or group.size == 1, "modules", why, mixes, "GroupNorm or SyncBatchNorm")
    n, size = min(settings.batch_size, examples), group.size
    why = f"2 or more with {mixes}, which normalises over the batch"
    require(not mixes or n > 1, "batch_size", why, n, "GroupNorm, or more data")
    if n % size == 0:
        return
    sizes = [k for k in (n // size * size, (n // size + 1) * size) if 0 < k <= examples]
    counts = [k for k in range(1, n + 1) if n % k == 0]
    near = [max(k for k in counts if k < size), *[k for k in counts if k > size][:1]]
    hint = f"--nproc-per-node {' or '.join(map(str, near))}"
    if sizes and not resumed:
        hint = f"batch_size={sizes[0]}, or {hint}"
    few = " (all training examples)" if n < settings.batch_size else ""
    require(False, "batch_size", f"a multiple of the {size} processes", f"{n}{few}", hint)  # noqa: FBT003


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


class SharedStep:
    """What the processes of one training send each other in a step: one sum over all of them.

    With the gradient of its share of the batch every process sends its loss and figures, and
    whether it was asked to stop; the first one sends its clock. So all have the same weights and
    figures, and take the same decisions, without another message. With one process nothing is
    sent and nothing is delayed; with several, the clock and a request to stop take effect a step
    later. Of a sharded state the gradient is summed before, and the norms of the slices are sent
    with the figures; the first process then also tells what the others' slices are needed for
    after this step.

    Args:
        group: The processes.
        needs: Asked in the first process, of a sharded state: whether averaged weights are looked
            at after this step, and whether the state is saved.

    Example:
        >>> shared = SharedStep(processes.Processes())
        >>> shared.agreed(False), shared.agreed(True)
        (False, True)
    """

    def __init__(
        self,
        group: processes.Processes,
        needs: Callable[[], tuple[bool, bool]] | None = None,
    ) -> None:
        self.group, self.needs = group, needs
        self.asked = self.stop = self.look = self.save = False
        self.seconds = math.nan

    def seconds_at(self, before: float, now: float) -> float:
        """Return the clock of this step, the same in all: the first process's, as sent last."""
        if self.group.size == 1:
            return now
        return before if math.isnan(self.seconds) else self.seconds

    def agreed(self, asked: bool) -> bool:  # noqa: FBT001
        """Note whether this process was asked to stop; return whether all are to stop now."""
        self.asked = asked
        return asked if self.group.size == 1 else self.stop

    def average(
        self, flat: WeightVector, loss: Tensor, figures: Tensor, seconds: float
    ) -> tuple[Tensor, Tensor]:
        """Make gradient, loss and (ELBO, rate) those of the whole batch, from those of shares."""
        size = self.group.size
        if size == 1:
            return loss, figures
        more = flat.sums[len(flat.gradient) :]
        more[0], more[1:3] = loss.detach(), figures
        more[3] = seconds if self.group.first else 0.0
        more[4] = float(self.asked)
        if flat.sharded:
            flat.divide_gradient(size)
            more = torch.cat([more, self._needed(more), flat.norms_of_slices(size)])
            self.group.sum_(more)
        else:
            self.group.sum_(flat.sums)
            flat.divide_gradient(size)
        *means, self.seconds, asked = more[:FIGURES].tolist()
        self.stop = asked > 0
        norms = more[FIGURES + 2 :] if flat.sharded else flat.norms_of_slices(size)
        flat.squares = sum(norm * norm for norm in norms.tolist())
        if flat.sharded:
            self.look, self.save = map(bool, more[FIGURES : FIGURES + 2].tolist())
        loss, elbo, rate = (torch.tensor(one / size) for one in means)
        return loss, torch.stack([elbo, rate]).to(figures)

    def _needed(self, like: Tensor) -> Tensor:
        """Return what the first process needs after this step, as numbers; of others zeros."""
        asked = self.needs() if self.needs is not None and self.group.first else (False, False)
        return like.new_tensor([float(one) for one in asked])


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


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step saw: x `[batch, *event]`, noise `[draws, batch, latent]`, the items' names."""

    x: Tensor
    noise: Tensor
    names: Sequence[str]


def _bad_items(tensor: Tensor) -> Tensor:
    """Return which batch items (last-but-features axis first) hold NaN or infinity."""
    return ~torch.isfinite(tensor.detach().flatten(1)).all(1)


@torch.no_grad()
def _first_bad_tensor(model: VAE, x: Tensor, noise: Tensor) -> tuple[str, Tensor]:
    """Follow one batch through the model to the first tensor with a NaN or infinity."""
    encoded = model.encoded(x)
    z, kl = draw_with_kl(model.prior, model.family(encoded), noise)
    parameters = model.parameters_of(z)
    likelihood = model.likelihood.log_prob(parameters, x)
    for name, tensor in (
        ("the input x", x),
        ("the encoder's mean", encoded.mean),
        ("the encoder's log sd", encoded.log_sd),
        ("the latent draw z", z.movedim(0, 1)),
        ("the decoder's output", parameters.movedim(0, 1)),
        ("log p(x|z)", likelihood.movedim(0, 1)),
        ("KL(q(z|x) ‖ p(z))", kl),
    ):
        bad = _bad_items(tensor)
        if bool(bad.any()):
            return name, bad
    return "", torch.zeros(len(x), dtype=torch.bool)


def diagnose(model: VAE, state: State, batch: Batch, folder: Path | None) -> str:
    """Describe where the first NaN or infinity arose, and keep a repro file in `folder`.

    The repro is `nonfinite-step-N.safetensors` with x, noise and the weights of that step.
    Returns the message for the user.
    """
    step, x, names = state.step, batch.x, batch.names
    with state.flat.whole():
        tensor, bad = _first_bad_tensor(model, x, batch.noise)
    parameter, vector = state.flat.first_bad(), state.flat.vector
    parts = [part.clone() for part in state.flat.slices(vector)]  # of use until the next one
    weights = torch.cat([vector[:0], *parts])
    place = tensor or (f"the gradient of {parameter}" if parameter else "the sum over the batch")
    items = [names[i] for i in torch.nonzero(bad).flatten().tolist()] if tensor else []
    which = f" for {len(items)} of {len(x)} batch items ({', '.join(items[:5])})" if items else ""
    text = f"step {step}: the loss or its gradient is not finite; the first NaN or infinity is in "
    text += f"{place}{which}. Try: a lower --learning-rate or a smaller --clip"
    if folder is None:
        return text
    path = folder / f"nonfinite-step-{step}.safetensors"
    tensors = {"x": x, "noise": batch.noise, "weights": weights}
    save_tensors(path, tensors, note=text)
    return f"{text}. The batch is kept in {path}"


@dataclass(frozen=True, slots=True)
class Progress:
    """One reading of a running training; figures are training averages in nats, `nan` at first.

    Args:
        fraction: Of the budget that is spent.
        step: Steps so far.
        seconds: So far.
        seconds_left: Expected.
        images_per_second: Since the start of this process.
        elbo: In nats.
        rate: In nats.
        distortion: In nats.
        test_elbo: Of the averaged weights on test images; None before the first look.
        warning: The newest; "" without one.
    """

    fraction: float
    step: int
    seconds: float
    seconds_left: float
    images_per_second: float
    elbo: float
    rate: float
    distortion: float
    test_elbo: Estimate | None
    warning: str


@dataclass(frozen=True, slots=True)
class Validation:
    """What is kept from training, `[n, *event]`, its labels where there are any, and the rest."""

    rest: Dataset
    held: Tensor | None = None
    labels: Tensor | None = None


def hold_out(data: Dataset, share: float, *, seed: int = 0) -> tuple[Dataset, Tensor | None]:
    """Keep a share of the different training examples from training, by their digests.

    Copies stay on one side. Where bits are drawn afresh, those held out are drawn once.

    Args:
        data: The data set.
        share: Of its different training examples, 0 to 1; 0 holds out nothing.
        seed: Of the bits.

    Returns:
        The rest, and what was held out, `[n, *event]` or None.

    Raises:
        DataError: Too few different examples to leave one on each side.

    Example:
        >>> from kullback.data import load
        >>> rest, held = hold_out(load(size=8), 0.1)
        >>> len(rest.train), len(held)
        (9000, 1000)
    """
    kept = validation_of(data, share, seed=seed)
    return kept.rest, kept.held


def validation_of(
    data: Dataset, share: float, *, seed: int = 0, digests: list[bytes] | None = None
) -> Validation:
    """Return what `hold_out` does, with the labels of what it keeps from training.

    digests: of the training examples, where they have been made already.
    """
    if share == 0:
        return Validation(data)
    flags = _held_out(digests_of_examples(data) if digests is None else digests, share)
    train = data.train
    kept = train.keep(~flags) if isinstance(train, Rows) else train[~flags]
    held = train.index_select(0, flags.nonzero()[:, 0].to(train.device))
    if data.dynamic:
        held = binarize_all(held, seed=seed, label="validation")
    names = tuple(n for n, flag in zip(data.train_names, flags.tolist(), strict=True) if not flag)
    labels = data.train_labels
    left = None if labels is None else labels[~flags]
    rest = replace(data, train=kept, train_names=names, train_labels=left)
    return Validation(rest, held, None if labels is None else labels[flags])


def different_examples(data: Dataset) -> int:
    """Count the training examples that differ; of 5,000 and more only how many there are.

    Below that many some are held out by default, for which copies are of no use.

    Args:
        data: The data set.

    Returns:
        The count.

    Example:
        >>> from kullback.data import load
        >>> different_examples(load(size=8))
        10000
    """
    n = len(data.train)
    return n if n >= FEW_IMAGES[1] else len(set(digests_of_examples(data)))


def digests_of_examples(data: Dataset) -> list[bytes]:
    """Return the SHA-256 of every training example, by which `hold_out` goes."""
    rows = (row for block in data.blocks() for row in block.cpu().flatten(1).numpy())
    return [hashlib.sha256(b"validation" + row.tobytes()).digest() for row in rows]


def _held_out(digests: list[bytes], share: float) -> Tensor:
    """Return which training examples are held out, `[N]`, or raise a DataError."""
    ranked = sorted(set(digests))
    wanted = max(2, round(share * len(ranked)))
    if wanted >= len(ranked):
        raise DataError(
            f"validation: expected 3 or more different training examples and a share that leaves "
            f"some; got {len(ranked):,} and {share:g}. Try: more data"
        )
    limit = ranked[wanted]
    return torch.tensor([digest < limit for digest in digests])


@dataclass(slots=True)
class BestLook:
    """The look with the highest objective on held-out examples, and the looks that were worse.

    step: of that look. train_elbo: the training's average then. terms: the objective of each
    example, `[n]`. weights: of the model then; empty where none are picked. below: the steps of
    later looks that were worse by several standard errors, in a row.
    """

    step: int
    train_elbo: float
    terms: Tensor
    weights: Tensor
    below: list[int]

    def save(self, folder: Path) -> None:
        """Write `checkpoints/best.safetensors`."""
        path = folder / BEST
        make_folder(path.parent)
        numbers = torch.tensor([self.step, self.train_elbo, *self.below], dtype=torch.float64)
        tensors = {"numbers": numbers, "terms": self.terms, "weights": self.weights}
        save_tensors(path, tensors)

    @classmethod
    def load(cls, folder: Path, step: int) -> "BestLook | None":
        """Read what `save` wrote at or before a step; later looks will be made again."""
        if not (folder / BEST).exists():
            return None
        held = load_tensors(folder / BEST)
        if {"numbers", "terms", "weights"} != set(held) or len(held["numbers"]) < 2:
            raise RunError(f"{folder / BEST}: not the best look of a run")
        best, train_elbo, *below = held["numbers"].tolist()
        if best > step:
            return None
        kept = [int(one) for one in below if one <= step]
        return cls(int(best), train_elbo, held["terms"], held["weights"], kept)


BEST = "checkpoints/best.safetensors"


class Board:
    """The numbers of `metrics.jsonl` for TensorBoard, in the run's folder `tensorboard`.

    A run has one where that folder exists. What a killed training wrote after its last checkpoint
    is taken back when it goes on.

    Args:
        folder: The run's.
        step: From which it goes on; 0 for a new one.

    Raises:
        MissingExtraError: The extra `tensorboard` is not installed.
    """

    FOLDER = "tensorboard"

    def __init__(self, folder: Path, step: int) -> None:
        import_extra("tensorboard", "tensorboard")
        module = import_extra("torch.utils.tensorboard", "tensorboard")
        place = str(folder / self.FOLDER)
        self.writer = module.SummaryWriter(place, purge_step=step + 1 if step else None)

    def add(self, row: dict[str, Any], step: int) -> None:
        """Write every number of a row under its name."""
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Monitor:
    """Writes the logs of one run, calls its progress callback, and keeps the best weights.

    validation: held-out training examples, `[n, *event]`, to pick the best weights on; None picks
    none, and then overfitting is looked for on test images, for a warning alone. held_labels: of
    the former, where the data have labels.
    """

    def __init__(
        self,
        folder: Path,
        model: VAE,
        data: Dataset,
        settings: Training,
        state: State,
        progress: Callable[[Progress], None] | None,
        *,
        validation: Tensor | None = None,
        held_labels: Tensor | None = None,
    ) -> None:
        self.folder, self.model, self.settings, self.state = folder, model, settings, state
        self.progress, self.kind = progress, data.kind
        size = min(settings.batch_size, len(data.train))
        self.batch, self.per_epoch = size, len(data.train) // size
        self.log_every = min(LOG_STEPS, self.per_epoch)
        steps = float(TEST_STEPS)
        if validation is not None:  # weights are picked from what was looked at
            unit, amount = settings.budget
            total = {"steps": amount, "epochs": amount * self.per_epoch}.get(unit, math.inf)
            few = min(LOOK_PASSES * self.per_epoch, total / LOOKS_A_RUN)
            steps = min(steps, max(LOOK_STEPS, few))
        self.test_every = self.log_every * max(1, math.ceil(steps / self.log_every))
        self.test = model.check(data.test[:MONITORED_IMAGES])
        labels = data.test_labels
        self.test_labels = None if labels is None else labels[:MONITORED_IMAGES]
        self.held_labels = held_labels
        self.validation = None if validation is None else model.check(validation)
        self.best = BestLook.load(folder, state.step)
        self.looked = (state.step, settings.progress(state.step, state.seconds, self.per_epoch))
        self.warnings: list[str] = []
        self.warned: set[str] = set()
        self.latest: dict[str, float] = {}
        self.test_elbo: Estimate | None = None
        self.first = (state.step, state.seconds)
        self.called = -math.inf
        shown = (folder / Board.FOLDER).is_dir()
        self.board = Board(folder, state.step) if shown else None

    def after_step(self) -> None:
        """Log when a reading is due; call back at most ten times a second."""
        if self.state.step % self.log_every == 0:
            self._log()
        if self.progress is not None and time.monotonic() - self.called > CALLBACK_SECONDS:
            self.called = time.monotonic()
            self.progress(self._reading())

    def due(self) -> bool:
        """Say whether averaged weights will be looked at after the step that is being made."""
        step, seconds = self.state.step + 1, self.state.seconds
        spent = self.settings.progress(step, seconds, self.per_epoch)
        return step % self.log_every == 0 and self._look_is_due(step, spent)

    def finish(self) -> None:
        """Log what the last, shorter stretch brought, with a last look at the test images."""
        if self.state.step % self.log_every:
            self._log(last=True)
        elif self.state.step % self.test_every:  # the training row is written already
            spent = self.settings.progress(self.state.step, self.state.seconds, self.per_epoch)
            row = self._test(spent)
            checkpoint.extend_last_row(self.folder, "metrics.jsonl", row)
            if self.board is not None:
                self.board.add(row, self.state.step)

    def _log(self, *, last: bool = False) -> None:
        state = self.state
        count = state.step % self.log_every or self.log_every
        elbo, rate = (state.totals / count).tolist()
        state.totals.zero_()
        spent = self.settings.progress(state.step, state.seconds, self.per_epoch)
        self.latest = {"elbo": elbo, "rate": rate}
        self.latest["distortion"] = -self.latest["elbo"] - self.latest["rate"]
        row: dict[str, Any] = {"step": state.step, "epoch": state.step / self.per_epoch}
        row |= self.latest | {"beta": self.settings.beta_at(spent)}
        row["learning_rate"] = state.optimiser.param_groups[0]["lr"]
        if last or self._look_is_due(state.step, spent):
            row |= self._test(spent)
        checkpoint.append_row(self.folder, "metrics.jsonl", row)
        if self.board is not None:
            self.board.add(row, state.step)
        timing = {"step": state.step, "seconds": state.seconds}
        checkpoint.append_row(self.folder, "timing.jsonl", timing)

    def _look_is_due(self, step: int, spent: float) -> bool:
        """Say whether a row of this step has a look: every so many steps, or tenths of minutes.

        The latter where weights are picked from the looks of a budget in minutes.
        """
        last, share = self.looked
        timed = self.validation is not None and self.settings.budget[0] == "minutes"
        passed = step - last >= LOOK_STEPS and spent - share >= 1 / LOOKS_A_RUN
        return step % self.test_every == 0 or (timed and passed)

    def _test(self, spent: float) -> dict[str, Any]:
        """Measure the averaged weights on test images, with the same noise every time."""
        self.looked = (self.state.step, spent)
        generator = torch.Generator(self.test.device).manual_seed(self.settings.seed)
        with self.state.flat.averaged(), evaluating(self.model):
            figures = bounds_given(
                self.model, self.test, self.test_labels, draws=1, generator=generator
            )
            whole = information_of(self.model, self.test, labels=self.test_labels)
            more = self._look()
        each = kl_of_dimensions(self.model, figures)
        used: dict[str, Any] = {"varying_units": varying_units(figures.mean)}
        if each is None:
            coded = isinstance(self.model.family, Quantised)
            name = "length of the code" if coded else "KL"
            rate = float(figures.rate.mean())
            collapse = collapse_of_rate(rate, self.settings.beta, name=name)
            if not collapse and whole is not None:
                collapse = collapse_of_information(
                    rate, whole.information_high, self.settings, kind=self.kind
                )
        else:
            active, kl = active_units(figures.mean, each), each.tolist()
            most = None if whole is None else whole.information_high
            collapse = collapse_warning(kl, active, self.settings, most, kind=self.kind)
            used = {"active_units": active} | used | {"kl_per_dimension": kl}
        self.test_elbo = over_images(figures.elbo.double().cpu(), bias="low", why="a bound")
        error = float(self.test_elbo.standard_error)
        layers = kl_of_layers(self.model, figures)
        nats = [] if layers is None else layers.mean(0).tolist()
        if nats:
            used["kl_per_layer"] = nats
        if spent > max(COLLAPSE_AFTER, self.settings.warmup):
            self._warn("collapse", collapse)
            self._warn("layers", "" if collapse else unused_layers(nats))
        return {
            "test_elbo": self.test_elbo.value,
            **({"test_elbo_error": error} if math.isfinite(error) else {}),
            "test_images": len(self.test),
            **used,
            **more,
        }

    def _look(self) -> dict[str, Any]:
        """Compare the averaged weights with the best so far on held-out examples; keep the better.

        The noise is the same at every look, so differences are paired.
        """
        step, train_elbo = self.state.step, self.latest.get("elbo", math.nan)
        terms, picks = self._objective(), self.validation is not None
        row = {"validation_objective": float(terms.mean())} if picks else {}
        best = self.best
        if best is None or terms.mean() > best.terms.mean():
            average = self.state.flat.whole_average
            weights = average.detach().cpu().clone() if picks else torch.empty(0)
            self.best = BestLook(step, train_elbo, terms, weights, [])
        elif step > max(best.step, *best.below, 0):
            fall = over_images(best.terms - terms)
            worse = fall.value > OVERFIT_ERRORS * fall.standard_error
            best.below = [*best.below, step] if worse and train_elbo > best.train_elbo else []
            if len(best.below) >= OVERFIT_LOOKS:
                self._warn("overfitting", self._overfitting(best, fall))
        if self.best is not None:
            self.best.save(self.folder)
        return row

    def _objective(self) -> Tensor:
        """Return the objective at its final β for every held-out example, `[n]`, on the CPU.

        Of every bound that weighs its draws it is L_K.
        """
        x, settings = self.test if self.validation is None else self.validation, self.settings
        weighted = settings.importance_weighted_at(1.0)
        draws = settings.draws_at(1.0) if weighted else 1
        generator = torch.Generator(x.device).manual_seed(settings.seed)
        labels = self.test_labels if self.validation is None else self.held_labels
        figures = bounds_given(self.model, x, labels, draws=draws, generator=generator)
        plain = -figures.distortion - settings.beta * figures.rate
        return (figures.importance_weighted if weighted else plain).double().cpu()

    def _overfitting(self, best: BestLook, fall: Estimate) -> str:
        held = self.validation
        where = f"{len(self.test):,} test" if held is None else f"{len(held):,} held-out"
        remedy = (
            "The weights of the best step are kept"
            if held is not None
            else "Try: --validation 0.1, which keeps the weights of the best step, or a shorter run"
        )
        return (
            f"overfitting: on {where} examples the bound has fallen by {fall.brief} since step "
            f"{best.step:,}, while it rose on training examples. {remedy}"
        )

    def select(self) -> str:
        """Put the best weights in the place of the average; return which in words, or ""."""
        best = self.best
        if self.validation is None or best is None or not best.weights.numel():
            return ""
        average = self.state.flat.whole_average
        average.copy_(best.weights.to(average))
        return (
            f"weights: those of step {best.step:,} of {self.state.step:,}, the best on "
            f"{len(self.validation):,} held-out training examples; the test set was not used for it"
        )

    def _warn(self, kind: str, text: str) -> None:
        """Keep a warning, one of each kind."""
        if text and kind not in self.warned:
            self.warned.add(kind)
            self.warnings.append(text)

    def _reading(self) -> Progress:
        state = self.state
        steps, seconds = state.step - self.first[0], state.seconds - self.first[1]
        fraction = self.settings.progress(state.step, state.seconds, self.per_epoch)
        left = state.seconds * (1 - fraction) / fraction if fraction > 0 else math.nan
        nan = math.nan
        return Progress(
            fraction=fraction,
            step=state.step,
            seconds=state.seconds,
            seconds_left=left,
            images_per_second=(steps - 1) * self.batch / seconds if steps > 1 else nan,
            elbo=self.latest.get("elbo", nan),
            rate=self.latest.get("rate", nan),
            distortion=self.latest.get("distortion", nan),
            test_elbo=self.test_elbo,
            warning=self.warnings[-1] if self.warnings else "",
        )
