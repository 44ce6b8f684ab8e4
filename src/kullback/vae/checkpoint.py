"""The state of a training and its files: everything a run needs to go on as if never stopped.

`FlatParameters` holds a model's parameters as one vector, `State` adds the optimiser, the generator
and the counts. Of a sharded state each process has a slice, and `ReducedBackward` sums gradients at
their owners during the backward pass (ZeRO stage 2, FSDP's SHARD_GRAD_OP). `save` and `load` write
and read a state as one safetensors file, replaced atomically. The run's two logs (`metrics.jsonl`,
`timing.jsonl`) only grow; a checkpoint remembers their lengths, and resuming cuts off what was
written after it. `save_tensors` and `load_tensors` write and read any tensors: whole or not at all,
with a hash, compared with what is expected, never a pickle. `write_config` and `read_config` do so
for the description of a run. `averaged_weights` returns the weights that a model of an unfinished
run has.
"""

import bisect
import ctypes
import itertools
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kullback.core import (
    RunError,
    check_file_hash,
    make_folder,
    not_written,
    processes,
    read_json,
    require,
    write_atomic,
    write_hashed,
    write_json,
)

from .likelihoods import in_threads, library
from .limits import ADAM_BLOCK, ADAM_NUMBERS, BUCKET_NUMBERS, RUN_FORMAT
from .networks import Mlp
from .training import Training

__all__ = [
    "LOGS",
    "FlatParameters",
    "ReducedBackward",
    "State",
    "append_row",
    "averaged_weights",
    "copy_first",
    "extend_last_row",
    "load",
    "load_tensors",
    "read_config",
    "refuse_to_overwrite",
    "save",
    "save_tensors",
    "saved_step",
    "write_config",
]

LOGS = ("metrics.jsonl", "timing.jsonl")
NAME = "checkpoints/last.safetensors"
NO_HASH = "0" * 64
FIGURES = 5  # of a step, after the gradient: see `loop.SharedStep`
BUFFER = "buffer."  # begins the names of a model's buffers in a checkpoint


def write_config(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write `config.json` with its hash."""
    write_json(folder / "config.json", {"format": RUN_FORMAT, **fields}, hashed=True)


def read_config(folder: Path, *required: str) -> dict[str, Any]:
    """Read `config.json`; its hash must be right, and there, except in a run made before.

    Errors: RunError when it is missing, damaged, changed, of another format or lacks a key.
    """
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") not in (1, RUN_FORMAT):
        raise RunError(f"{path}: not a model of format 1 or {RUN_FORMAT} of this library")
    if config["format"] == RUN_FORMAT and "file_sha256" not in config:
        raise RunError(f"{path}: damaged: it has lost its hash (file_sha256)")
    for key in required:
        if key not in config and "model_type" in config:
            hint = f"kullback train DATA --from {shlex.quote(str(folder))}"
            raise RunError(
                f"{folder}: an exported run, which holds no training to go on with. Try: {hint}"
            )
        if key not in config:
            raise RunError(f"{path}: not the description of a run: no {key!r}")
    return config


def is_hashed(config: Mapping[str, Any]) -> bool:
    """Say whether the weights that belong to a `config.json` have hashes."""
    return bool(config["format"] == RUN_FORMAT)


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters in the order of the flat vector: those that decay first."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return sorted(named, key=lambda pair: not _decays(pair[0], pair[1]))  # stable


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Say whether weight decay shrinks a parameter: matrices and filters, none of the prior's."""
    return parameter.ndim >= 2 and not name.startswith("prior.")


class ReducedBackward:
    """Leaves in each process its slice of the sum over all of a gradient that none holds whole.

    A bucket is a range of consecutive numbers of the flat vector that one process owns. Once each
    of its parameters has a gradient, it is summed at the owner and freed. All processes sum the
    buckets in the same order, whatever the order in which gradients come: that in which the first
    process had them complete in the first pass (in which modules made last are first). A bucket
    that is complete before its turn waits. So does PyTorch's DDP (Li et al. 2020, section 4.2).

    Args:
        parameters: In the order of the flat vector, which model and gradient share.
        made: The place of each in the order in which the model registered them.
        gradient: This process's slice of it, which is written.
        group: The processes, all of which run it at once.
        numbers: Of the largest bucket.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        made: Sequence[int],
        gradient: Tensor,
        group: processes.Processes,
        numbers: int = BUCKET_NUMBERS,
    ) -> None:
        self.parameters, self.gradient, self.group = parameters, gradient, group
        sizes = [parameter.numel() for parameter in parameters]
        self.starts = [0, *itertools.accumulate(sizes)]
        length, end = len(gradient), self.starts[-1]
        edges = {*range(0, end, length), end}
        edges |= {at + k for at in range(0, end, length) for k in range(0, length, numbers)}
        self.edges = sorted(edge for edge in edges if edge <= end)
        self.whole = [0] * (len(self.edges) - 1)  # parameters in each bucket
        earliest = [len(made)] * len(self.whole)
        for place, registered in enumerate(made):
            for bucket in self._buckets_of(place):
                self.whole[bucket] += 1
                earliest[bucket] = min(earliest[bucket], registered)
        self.turns = sorted(range(len(self.whole)), key=lambda bucket: -earliest[bucket])
        self.known = False  # whether turns are those of a pass
        self.missing: list[int] = []
        self.complete: list[int] = []
        self.next = 0
        self.rooms: dict[int, Tensor] = {}

    def run(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate a scalar loss by the parameters; None stands for those without a part."""
        self.missing, self.complete, self.next = list(self.whole), [], 0
        self.rooms.clear()
        hooks = [
            parameter.register_hook(partial(self._arrived, place))  # type: ignore[no-untyped-call]
            for place, parameter in enumerate(self.parameters)
        ]
        try:
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        if not self.known:
            self.turns, self.known = self.group.told(self.complete), True
        return found

    def _buckets_of(self, place: int) -> range:
        """Return the buckets in which a parameter has numbers."""
        start, end = self.starts[place], self.starts[place + 1]
        first = bisect.bisect_right(self.edges, start) - 1
        return range(first, first if start == end else bisect.bisect_left(self.edges, end))

    def _arrived(self, place: int, gradient: Tensor) -> Tensor:
        """Put a parameter's gradient into its buckets and sum what is complete.

        Returns a zero that stands for it, so that autograd keeps no gradient.
        """
        start, end = self.starts[place], self.starts[place + 1]
        for bucket in self._buckets_of(place):
            low, high = self.edges[bucket], self.edges[bucket + 1]
            a, b = max(low, start), min(high, end)
            if bucket not in self.rooms:  # the gradient itself may be another tensor's too
                self.rooms[bucket] = self.gradient.new_zeros(high - low)
            self.rooms[bucket][a - low : b - low] = _part_of(gradient, a - start, b - start)
            self.missing[bucket] -= 1
            if self.missing[bucket] == 0:
                self.complete.append(bucket)
            self._sum_complete()
        return gradient.new_zeros(()).expand_as(gradient)

    def _sum_complete(self) -> None:
        """Sum the buckets whose turn it is and that are complete."""
        while self.next < len(self.turns) and self.missing[self.turns[self.next]] == 0:
            bucket = self.turns[self.next]
            room, low = self.rooms.pop(bucket), self.edges[bucket]
            owner, place = divmod(low, len(self.gradient))
            self.group.reduce_(room, owner)
            if owner == self.group.rank:
                self.gradient[place : place + len(room)] = room
            self.next += 1


def _part_of(tensor: Tensor, start: int, end: int) -> Tensor:
    """Return a range of a tensor's numbers, of a transposed one without a copy of the whole."""
    if tensor.ndim < 2 or tensor.is_contiguous():
        return tensor.reshape(-1)[start:end]
    width = tensor.numel() // len(tensor)
    first, last = start // width, -(-end // width)
    return tensor[first:last].reshape(-1)[start - first * width : end - first * width]


class FlatParameters:
    """All trainable parameters of a model, moved into one vector that the model then shares.

    vector: the weights, in float32 or float64, with `gradient` of the same shape; matrices and
    filters come first, so that weight decay can leave the rest and the prior alone. sums: the
    gradient and room for the figures of a step, which several processes sum at once. average: the
    running average of the weights, to evaluate with. With `precision` bfloat16 the model itself
    works on a rounded copy of the vector, renewed by `refresh`.

    over: processes over which the state is sharded. Vector, gradient and average are then one of
    equal slices of the whole, which is filled up with zeros to a multiple of their number. Only
    `working`, with which the model works, is whole in every process. Methods that say so are called
    by all. (Rajbhandari et al. 2020, "ZeRO", stage 2.)

    Example:
        >>> model = nn.Linear(2, 1)
        >>> flat = FlatParameters(model)
        >>> _ = flat.vector.fill_(1.0)
        >>> flat.refresh()
        >>> model.bias
        Parameter containing:
        tensor([1.], requires_grad=True)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: torch.dtype = torch.float32,
        over: processes.Processes | None = None,
    ) -> None:
        named = trainable(model)
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.over = processes.Processes() if over is None else over
        self.numbers = sum(parameter.numel() for parameter in self.parameters)
        whole = self.over.copy_first_(_padded(self.parameters, self.over.size))
        rounded = precision != torch.float32
        self.working = whole.to(precision) if rounded else whole
        own = self.over.share(len(whole))
        self.vector = whole[own] if self.sharded else whole
        if self.sharded and rounded:
            self.vector = self.vector.clone()  # so that the whole is free
        self.sums = self.vector.new_zeros(self.vector.numel() + FIGURES)
        self.gradient = self.sums[:-FIGURES]
        self.average = self.vector.clone()
        self.gathered: Tensor | None = None  # the average, whole, after `gather_average`
        self.squares: float | None = None
        matrices = sum(p.numel() for n, p in named if _decays(n, p))
        self.start = own.start
        self.matrices = min(max(matrices - own.start, 0), len(self.vector))
        self._point(self.working)
        if self.sharded:
            places = {name: k for k, (name, _) in enumerate(model.named_parameters())}
            made = [places[name] for name in self.names]
            self.reduced = ReducedBackward(self.parameters, made, self.gradient, self.over)
        _take_back_buffers(model)  # those of a state before
        if not self.sharded:
            self._lend_buffers(model)

    @property
    def sharded(self) -> bool:
        """Whether this process has a slice of the state only."""
        return self.over.size > 1

    @cached_property
    def rounded_gradient(self) -> Tensor:
        """The gradient as products write it: whole, also where this process keeps a slice of it."""
        plain = self.working is self.vector
        return self.gradient if plain else torch.zeros_like(self.working)

    @cached_property
    def rounded_views(self) -> list[Tensor]:
        """That gradient in the shapes of the parameters."""
        return self.views_of(self.rounded_gradient)

    def decay(self, share: float) -> None:
        """Shrink the matrices, and nothing else, by a share of themselves."""
        if share:
            self.vector[: self.matrices].mul_(1.0 - share)

    def differentiate(self, loss: Tensor) -> None:
        """Write the gradient of a scalar loss into `gradient`; if sharded, summed over all."""
        self.squares = None
        if self.sharded:
            self._require_all(self.reduced.run(loss))
            return
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self._require_all(gradients)
        for gradient, view in zip(gradients, self.rounded_views, strict=True):
            if gradient.data_ptr() != view.data_ptr():  # not written there to begin with
                view.copy_(gradient)
        self.unround_gradient()

    def _require_all(self, gradients: Sequence[Tensor | None]) -> None:
        """Refuse a parameter that a training step's loss does not depend on."""
        pairs = zip(self.names, gradients, strict=True)
        unused = [name for name, gradient in pairs if gradient is None]
        if unused:
            what = "parameters that the loss depends on, also in training mode and in every step"
            require(False, "parts", what, ", ".join(unused[:3]), "requires_grad_(False) on them")  # noqa: FBT003

    def unround_gradient(self) -> None:
        """Bring the gradient up to date after its rounded copy was written."""
        if self.rounded_gradient is not self.gradient and not self.sharded:
            self.gradient.copy_(self.rounded_gradient)

    def reduce_gradient(self) -> None:
        """Leave a sharded state's slice of the sum over all, of whole gradients; all call it."""
        if not self.sharded:
            return
        for rank, part in enumerate(torch.split(self.rounded_gradient, len(self.vector))):
            values = part.to(self.gradient.dtype)
            self.over.reduce_(values, rank)
            if rank == self.over.rank:
                self.gradient.copy_(values)

    def norms_of_slices(self, size: int) -> Tensor:
        """Return the norm of each of `size` slices of the gradient; zeros where it is elsewhere."""
        norms, length = self.gradient.new_zeros(size), -(-self.numbers // size)
        for rank in [self.over.rank] if self.sharded else range(size):
            low, high = (min(k * length, self.numbers) for k in (rank, rank + 1))
            norms[rank] = torch.linalg.vector_norm(
                self.gradient[low - self.start : high - self.start]
            )
        return norms

    def norm(self) -> Tensor:
        """Return the gradient's Euclidean norm."""
        if self.squares is not None:
            return torch.tensor(math.sqrt(self.squares))
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        return norm

    def refresh(self) -> None:
        """Bring the model's working copy up to date after the vector has changed; all call it."""
        if self.sharded:
            self.over.all_gather_(self.working, self.vector.to(self.working.dtype))
        elif self.working is not self.vector:
            self.working.copy_(self.vector)

    def update_average(self, weight: float) -> None:
        """Move the average towards the vector by a weight in (0, 1]."""
        self.average.lerp_(self.vector, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold the averaged weights, unrounded, inside a `with` block."""
        self._point(self.whole_average)
        try:
            yield
        finally:
            self._point(self.working)

    def release(self, model: nn.Module) -> None:
        """Leave the model with the averaged weights, on its own."""
        self._point(self.whole_average)
        _take_back_buffers(model)

    def first_bad(self) -> str:
        """Name the first parameter whose gradient is not finite, or return ""; all call it."""
        bad = torch.nonzero(~torch.isfinite(self.gradient))[:1, 0]
        firsts = torch.full((self.over.size,), 0)
        firsts[self.over.rank] = self.start + int(bad) if len(bad) else self.numbers
        first = int(self.over.sum_(firsts).min())
        ends = itertools.accumulate(parameter.numel() for parameter in self.parameters)
        return next((n for n, end in zip(self.names, ends, strict=True) if first < end), "")

    def slices(self, own: Tensor) -> Iterator[Tensor]:
        """Yield in the first process the whole of which `own` is a slice, in parts; all call it."""
        start = 0
        for part in self.over.collect(own):
            yield part[: max(0, self.numbers - start)]
            start += len(part)

    def gather_average(self, *, everywhere: bool = False) -> None:
        """Make the average whole in the first process, or in all; all call it."""
        if not self.sharded:
            return
        here = everywhere or self.over.first
        whole = self.average.new_empty(self.over.size * len(self.average) if here else 0)
        if everywhere:
            self.over.all_gather_(whole, self.average)
        else:
            for place, part in enumerate(self.over.collect(self.average)):
                whole[place * len(part) : (place + 1) * len(part)] = part
        self.gathered = whole

    @property
    def whole_average(self) -> Tensor:
        """The average; of a sharded state as `gather_average` found it."""
        if not self.sharded:
            return self.average
        if self.gathered is None:
            raise RuntimeError("the average is not gathered")
        return self.gathered[: self.numbers]

    def hand_out(self, own: Tensor, whole: Tensor | None) -> None:
        """Fill every process's slice from the whole that the first one has; all call it."""
        parts = () if whole is None else torch.split(whole, len(own))
        padded = (nn.functional.pad(part, (0, len(own) - len(part))) for part in parts)
        empty = itertools.repeat(own.new_zeros(len(own)), self.over.size - len(parts))
        self.over.hand_out(own, itertools.chain(padded, empty))

    def _lend_buffers(self, model: nn.Module) -> None:
        """Let each `Mlp` write its gradients where they belong, if the places are its alone."""
        place = {id(p): view for p, view in zip(self.parameters, self.rounded_views, strict=True)}
        nets = [module for module in model.modules() if isinstance(module, Mlp)]
        weights = [[id(p) for p in (*net.weights, *net.biases)] for net in nets]
        uses = Counter(one for every in weights for one in every)
        for net, every in zip(nets, weights, strict=True):
            if all(one in place and uses[one] == 1 for one in every):
                net.buffers_of_gradient = [place[one] for one in every]

    def views_of(self, vector: Tensor) -> list[Tensor]:
        """Return a vector of this size in the shapes of the parameters, sharing its memory."""
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = torch.split(vector[: self.numbers], sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def _point(self, vector: Tensor) -> None:
        for parameter, view in zip(self.parameters, self.views_of(vector), strict=True):
            parameter.data = view


def _take_back_buffers(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Mlp):
            module.buffers_of_gradient = None


def _padded(parameters: list[nn.Parameter], size: int) -> Tensor:
    """Return all in one vector, filled up with zeros to a multiple of some size."""
    values = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    return nn.functional.pad(values, (0, -len(values) % size)) if size > 1 else values


@dataclass(slots=True)
class State:
    """All that the next step needs; what a checkpoint holds.

    totals: sums over the steps since the last reading of (ELBO, rate). model: what it holds besides
    its trained parameters is kept too, so that a checkpoint alone is a whole model.
    """

    flat: FlatParameters
    optimiser: torch.optim.AdamW
    generator: torch.Generator
    model: nn.Module
    step: int = 0
    seconds: float = 0.0
    totals: Tensor = field(default_factory=lambda: torch.zeros(2))

    @classmethod
    def start(
        cls,
        model: nn.Module,
        settings: Training,
        *,
        precision: torch.dtype = torch.float32,
        over: processes.Processes | None = None,
    ) -> "State":
        """Make the state of a run that has not begun, on the model's device.

        over: processes that shard it, each of which calls this.
        """
        flat = FlatParameters(model, precision=precision, over=over)
        weights = nn.Parameter(flat.vector)
        weights.grad = flat.gradient
        optimiser = torch.optim.AdamW([weights], weight_decay=0.0, fused=True)
        device = flat.vector.device
        generator = torch.Generator(device).manual_seed(settings.seed)
        totals = torch.zeros(2, device=device)
        return cls(flat, optimiser, generator, model, totals=totals)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What the model holds now besides the vector; a module may have put others in place."""
        trained = set(self.flat.names)
        return {n: t for n, t in self.model.state_dict().items() if n not in trained}

    @torch.no_grad()
    def update(self, rate: float, decay: float, factor: float = 1.0) -> None:
        """Take one step of Adam: matrices shrink by a share `decay`, the gradient has a factor.

        On a CPU in float32 it is one sweep in C, where that compiles, equal up to rounding.
        """
        flat, settings = self.flat, self.optimiser.param_groups[0]
        settings["lr"] = rate
        single = flat.vector.dtype == torch.float32 and flat.vector.device.type == "cpu"
        functions = library() if single else None
        if functions is not None:
            self._update_in_c(functions, decay, factor)
        else:
            if factor != 1.0:
                flat.gradient.mul_(factor)
            flat.decay(decay)
            self.optimiser.step()
        flat.refresh()

    def _update_in_c(self, functions: ctypes.CDLL, decay: float, factor: float) -> None:
        flat, settings = self.flat, self.optimiser.param_groups[0]
        if not self.optimiser.state:
            _make_moments(self)
        moments = self.optimiser.state[settings["params"][0]]
        moments["step"] += 1
        steps, (beta1, beta2) = float(moments["step"]), settings["betas"]
        tensors = (flat.vector, flat.gradient, moments["exp_avg"], moments["exp_avg_sq"])
        pointers = [tensor.data_ptr() for tensor in tensors]
        rate, root = settings["lr"] / (1.0 - beta1**steps), (1.0 - beta2**steps) ** -0.5
        numbers, blocks = flat.vector.numel(), -(-flat.vector.numel() // ADAM_BLOCK)
        shrunk = (numbers, flat.matrices)
        constants = (beta1, beta2, factor, 1.0 - decay, rate, root, settings["eps"])

        def work(first: int, last: int) -> None:
            functions.adam(*pointers, first, last, *shrunk, *constants)

        if numbers < ADAM_NUMBERS:
            work(0, blocks)
        else:
            in_threads(work, blocks)


def copy_first(
    state: State, group: processes.Processes, wholes: Mapping[str, Tensor] | None = None
) -> None:
    """Give every process the state of the first one; wholes: what `load` returned there."""
    if group.size == 1:
        return
    begun = bool(group.told(len(state.optimiser.state) > 0))
    if begun and not state.optimiser.state:
        _make_moments(state)
    sliced = _sliced(state)
    for name, tensor in _tensors(state).items():
        if name not in sliced:
            group.copy_first_(tensor)
        elif begun:  # else it is a function of the weights, which all have
            state.flat.hand_out(tensor, (wholes or {}).get(name))
        if name == "generator":
            state.generator.set_state(tensor)
    state.flat.refresh()
    state.step, state.seconds = group.told([state.step, state.seconds])


def append_row(folder: Path, log: str, row: dict[str, Any]) -> None:
    """Append one JSON line to a log of the run."""
    try:
        with (folder / log).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
    except OSError as error:
        raise not_written(folder / log, error) from error


def extend_last_row(folder: Path, log: str, more: dict[str, Any]) -> None:
    """Add fields to the last row of a log: figures that came after the row was written."""
    path = folder / log
    before, _, last = path.read_text("utf-8").rstrip("\n").rpartition("\n")
    row = json.dumps(json.loads(last) | more, allow_nan=False)
    write_atomic(path, f"{before}\n{row}\n".lstrip("\n").encode())


def save(folder: Path, state: State) -> None:
    """Write the state; the one before it stays until this one is whole.

    Of a sharded state all processes call it, and the first one writes one slice after the other.
    """
    if not state.step:
        return  # nothing has happened that starting again would not do
    flat, sliced = state.flat, _sliced(state)
    tensors = _in_order_of_file(_tensors(state))
    parts = (p for n, one in tensors.items() for p in (flat.slices(one) if n in sliced else (one,)))
    if not flat.over.first:
        for _ in parts:  # sends this process's slices
            pass
        return
    shapes = {name: (flat.numbers,) if name in sliced else t.shape for name, t in tensors.items()}
    lengths = [_length(folder / log) for log in LOGS]
    note = {"step": state.step, "seconds": state.seconds, "lengths": lengths}
    make_folder((folder / NAME).parent)
    header = {name: (t.dtype, tuple(shapes[name])) for name, t in tensors.items()}
    _write_tensors(folder / NAME, header, parts, note=json.dumps(note))


def load(folder: Path, state: State, *, hashed: bool = False) -> dict[str, Tensor]:
    """Put a saved state into a fresh one of the same model; without a checkpoint leave it fresh.

    hashed: whether the checkpoint must have a hash.
    Returns the tensors of which a sharded state has slices, whole: for `copy_first`.
    Errors: RunError when the file is damaged or belongs to another model.
    """
    path = folder / NAME
    if not path.exists():
        _cut(folder, [0] * len(LOGS))
        return {}
    _make_moments(state)
    here, sliced = _tensors(state), _sliced(state)
    numbers = torch.empty(state.flat.numbers, dtype=state.flat.vector.dtype, device="meta")
    here |= dict.fromkeys(sliced, numbers)
    tensors, metadata = _read_tensors(path)
    if not any(name.startswith(BUFFER) for name in tensors):  # a checkpoint of format 1
        here = {name: tensor for name, tensor in here.items() if not name.startswith(BUFFER)}
    _compare(path, tensors, here)
    _require_hash(path, metadata, hashed=hashed)
    note = _parse_note(metadata, path)
    for name, tensor in tensors.items():
        if name not in sliced:
            here[name].copy_(tensor)
    state.generator.set_state(tensors["generator"])
    if not state.flat.sharded:
        state.flat.refresh()
    state.step, state.seconds = int(note["step"]), float(note["seconds"])
    _cut(folder, note["lengths"])
    return {name: tensors[name] for name in sliced}


def _tensors(state: State) -> dict[str, Tensor]:
    """Name every tensor of the state; the optimiser's moments exist after its first step."""
    flat = state.flat
    tensors = {"vector": flat.vector, "average": flat.average, "totals": state.totals}
    tensors["generator"] = state.generator.get_state()
    for number, group in enumerate(state.optimiser.param_groups):
        moments = state.optimiser.state.get(group["params"][0], {})  # reading must not make it
        tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in moments.items()}
    return tensors | {BUFFER + name: tensor for name, tensor in state.buffers.items()}


def _sliced(state: State) -> list[str]:
    """Name the tensors of which this process has a slice."""
    if not state.flat.sharded:
        return []
    moments = [n for n in _tensors(state) if n.startswith("optimiser.") and ".exp_avg" in n]
    return ["vector", "average", *moments]


def saved_step(folder: Path) -> int:
    """Return the step of a run's last checkpoint; 0 without one."""
    if not (folder / NAME).exists():
        return 0
    with safe_open(folder / NAME, "pt") as file:
        return int(_parse_note(file.metadata() or {}, folder / NAME)["step"])


def averaged_weights(
    folder: Path, model: nn.Module, *, hashed: bool = False
) -> tuple[dict[str, Tensor], str]:
    """Return the averaged weights of a run's last checkpoint by name, and a sentence about them.

    model: of the same architecture, on any device; its own weights are not read.
    Errors: RunError when there is no checkpoint, or it is damaged, without the model's buffers (one
    written before checkpoints had them), or of another model.
    """
    path, expected = folder / NAME, model.state_dict()
    if not path.exists():
        weights = folder / "model.safetensors"
        raise RunError(f"{weights}: no such file, and the run has no checkpoint yet")
    tensors, metadata = _read_tensors(path)
    _require_hash(path, metadata, hashed=hashed)
    note = _parse_note(metadata, path)
    found = {n.removeprefix(BUFFER): t for n, t in tensors.items() if n.startswith(BUFFER)}
    if not found:
        hint = f"kullback train --resume {shlex.quote(str(folder))}"
        raise RunError(f"{path}: of an earlier version, without the data's mean. Try: {hint}")
    named, average = trainable(model), tensors.get("average", torch.zeros(0))
    sizes = [parameter.numel() for _, parameter in named]
    if sum(sizes) != average.numel():
        raise RunError(f"{path}: average: expected {sum(sizes):,} numbers; got {average.numel():,}")
    parts = torch.split(average, sizes)
    places = {id(p): part.reshape(p.shape) for (_, p), part in zip(named, parts, strict=True)}
    every = model.named_parameters(remove_duplicate=False)  # a shared one has several names
    found |= {n: places[id(p)] for n, p in every if id(p) in places}
    _compare(path, found, expected)
    said = f"the training is not finished: these are its averaged weights after {note['step']:,} "
    return found, f"{folder}: {said}steps ({note['seconds']:.0f} s)"


def _make_moments(state: State) -> None:
    """Give the optimiser the empty moments it would make at its first step."""
    for group in state.optimiser.param_groups:
        part = group["params"][0]
        step = torch.zeros((), device=part.device if part.is_cuda else "cpu")
        moments = {"step": step, "exp_avg": torch.zeros_like(part.data)}
        state.optimiser.state[part] = moments | {"exp_avg_sq": torch.zeros_like(part.data)}


def _parse_note(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        note = json.loads(metadata["note"])
        _ = int(note["step"]), float(note["seconds"]), [int(n) for n in note["lengths"]]
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(f"{path}: its header is damaged ({error})") from error
    return dict(note)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cut(folder: Path, lengths: list[int]) -> None:
    for log, length in zip(LOGS, lengths, strict=True):
        path = folder / log
        if _length(path) < length:
            raise RunError(f"{path}: shorter than its checkpoint says; it was changed by hand")
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(length)


def refuse_to_overwrite(path: Path) -> None:
    """Raise RunError when something is there already."""
    if path.exists():
        raise RunError(f"{path} exists already and is never overwritten. Try: another folder")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, note: str = "") -> None:
    """Write tensors as safetensors with a hash, atomically; `note` travels in the file's header.

    Errors: RunError when the disk refuses; the file that was there stays as it was.
    """
    tensors = _in_order_of_file(tensors)
    header = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    _write_tensors(path, header, iter(tensors.values()), note=note)


def _in_order_of_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the widest numbers first, so that each begins at a multiple of them."""
    order = sorted(tensors.items(), key=lambda pair: (-pair[1].element_size(), pair[0]))
    return dict(order)


def _write_tensors(
    path: Path,
    header: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    parts: Iterator[Tensor],
    *,
    note: str,
) -> None:
    """Write a safetensors file part by part, so that no second copy of all is in memory."""
    metadata = {"file_sha256": NO_HASH} | ({"note": note} if note else {})
    fields: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in header.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": _dtype_name(dtype), "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = len(text).to_bytes(8, "little") + text
    write_hashed(path, begin, map(_bytes_of, parts))


def _bytes_of(tensor: Tensor) -> memoryview:
    numbers: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(numbers)  # read in place


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    """Return how safetensors calls a dtype."""
    content = safetensors.torch.save({"x": torch.empty(0, dtype=dtype)})
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return str(header["x"]["dtype"])


def load_tensors(
    path: Path, *, like: Mapping[str, Tensor] | None = None, hashed: bool = False
) -> dict[str, Tensor]:
    """Read a safetensors file and, given `like`, hold it to the same names, shapes and dtypes.

    hashed: whether it must have a hash, which is checked in any case.
    Errors: RunError when the file is missing, truncated, damaged, or does not match; the message
    names the first difference.
    """
    tensors, metadata = _read_tensors(path)
    if like is not None:
        _compare(path, tensors, like)
    _require_hash(path, metadata, hashed=hashed)
    return tensors


def _require_hash(path: Path, metadata: Mapping[str, str], *, hashed: bool) -> None:
    if hashed and "file_sha256" not in metadata:
        raise RunError(f"{path}: damaged or of another run: it has no hash (file_sha256)")


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file; a hash that is there is checked."""
    try:
        content = path.read_bytes()
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = dict(header.get("__metadata__", {}))
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file") from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path}: not a readable safetensors file ({error})") from error
    check_file_hash(content, path, required="file_sha256" in metadata)
    return tensors, metadata


def _compare(path: Path, tensors: dict[str, Tensor], like: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(set(like) - set(tensors)), sorted(set(tensors) - set(like))
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has an unknown {extra[0]!r}"
        raise RunError(f"{path}: {what}: it does not belong to this model")
    for name, wanted in like.items():
        got = tensors[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            expected = f"{list(wanted.shape)} {wanted.dtype}"
            raise RunError(
                f"{path}: {name}: expected {expected}; got {list(got.shape)} {got.dtype}"
            )
        if got.is_floating_point() and not bool(torch.isfinite(got).all()):
            raise RunError(f"{path}: {name} holds NaN or infinity")
