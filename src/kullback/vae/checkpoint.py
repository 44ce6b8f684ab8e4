"""The state of a training and its files: everything a run needs to go on as if never stopped.

`FlatParameters` holds a model's parameters as one vector, `State` adds the optimiser, the generator
and the counts. `save` and `load` write and read a state as one safetensors file, replaced
atomically. The run's two logs (`metrics.jsonl`, `timing.jsonl`) only grow; a checkpoint remembers
their lengths, and resuming cuts off what was written after it. `save_tensors` and `load_tensors`
write and read any tensors: whole or not at all, compared with what is expected, never a pickle.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kullback.core import RunError, write_atomic

from .networks import Mlp
from .training import Training

__all__ = [
    "LOGS",
    "FlatParameters",
    "State",
    "append_row",
    "extend_last_row",
    "load",
    "load_tensors",
    "refuse_to_overwrite",
    "save",
    "save_tensors",
]

LOGS = ("metrics.jsonl", "timing.jsonl")
NAME = "checkpoints/last.safetensors"


class FlatParameters:
    """All trainable parameters of a model, moved into one vector that the model then shares.

    vector: the weights, in float32 or float64, with `gradient` of the same shape; matrices and
    filters come first, so that weight decay can leave the rest alone. average: their running
    average, the weights to evaluate with. With `precision` bfloat16 the model itself works on a
    rounded copy of the vector, renewed by `refresh`.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> flat = FlatParameters(model)
        >>> _ = flat.vector.fill_(1.0)
        >>> flat.refresh()
        >>> model.bias
        Parameter containing:
        tensor([1.], requires_grad=True)
    """

    def __init__(self, model: nn.Module, *, precision: torch.dtype = torch.float32) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        named.sort(key=lambda pair: pair[1].ndim < 2)  # stable: matrices first
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.vector = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.gradient = torch.zeros_like(self.vector)
        self.average = self.vector.clone()
        self.matrices = sum(p.numel() for p in self.parameters if p.ndim >= 2)
        rounded = precision != torch.float32
        self.working = self.vector.to(precision) if rounded else self.vector
        self._point(self.working)
        self.rounded_gradient = torch.zeros_like(self.working) if rounded else self.gradient
        self.rounded_views = self.views_of(self.rounded_gradient)
        self._lend_buffers(model)

    def decay(self, share: float) -> None:
        """Shrink the matrices, and nothing else, by a share of themselves."""
        if share:
            self.vector[: self.matrices].mul_(1.0 - share)

    def differentiate(self, loss: Tensor) -> None:
        """Write the gradient of a scalar loss into `gradient`."""
        gradients = torch.autograd.grad(loss, self.parameters)
        for gradient, view in zip(gradients, self.rounded_views, strict=True):
            if gradient.data_ptr() != view.data_ptr():  # not written there to begin with
                view.copy_(gradient)
        self.unround_gradient()

    def unround_gradient(self) -> None:
        """Bring the gradient up to date after its rounded copy was written."""
        if self.rounded_gradient is not self.gradient:
            self.gradient.copy_(self.rounded_gradient)

    def norm(self) -> Tensor:
        """Return the gradient's Euclidean norm."""
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        return norm

    def refresh(self) -> None:
        """Bring the model's working copy up to date after the vector has changed."""
        if self.working is not self.vector:
            self.working.copy_(self.vector)

    def update_average(self, weight: float) -> None:
        """Move the average towards the vector by a weight in (0, 1]."""
        self.average.lerp_(self.vector, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold the averaged weights, unrounded, inside a `with` block."""
        self._point(self.average)
        try:
            yield
        finally:
            self._point(self.working)

    def release(self, model: nn.Module) -> None:
        """Leave the model with the averaged weights, on its own."""
        self._point(self.average)
        for module in model.modules():
            if isinstance(module, Mlp):
                module.buffers_of_gradient = None

    def first_bad(self) -> str:
        """Name the first parameter whose gradient is not finite, or return an empty string."""
        for name, part in zip(self.names, self.views_of(self.gradient), strict=True):
            if not bool(torch.isfinite(part).all()):
                return name
        return ""

    def _lend_buffers(self, model: nn.Module) -> None:
        """Let each `Mlp` write its gradients where they belong."""
        place = {id(p): view for p, view in zip(self.parameters, self.rounded_views, strict=True)}
        for module in model.modules():
            if isinstance(module, Mlp):
                parameters = [*module.weights, *module.biases]
                module.buffers_of_gradient = [place[id(p)] for p in parameters]

    def views_of(self, vector: Tensor) -> list[Tensor]:
        """Return a vector of this size in the shapes of the parameters, sharing its memory."""
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = torch.split(vector, sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def _point(self, vector: Tensor) -> None:
        for parameter, view in zip(self.parameters, self.views_of(vector), strict=True):
            parameter.data = view


@dataclass(slots=True)
class State:
    """All that the next step needs; what a checkpoint holds.

    totals: sums over the steps since the last reading of (ELBO, rate).
    """

    flat: FlatParameters
    optimiser: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0
    seconds: float = 0.0
    totals: Tensor = field(default_factory=lambda: torch.zeros(2))

    @classmethod
    def start(
        cls, model: nn.Module, settings: Training, *, precision: torch.dtype = torch.float32
    ) -> "State":
        """Make the state of a run that has not begun, on the model's device."""
        flat = FlatParameters(model, precision=precision)
        weights = nn.Parameter(flat.vector)
        weights.grad = flat.gradient
        optimiser = torch.optim.AdamW([weights], weight_decay=0.0, fused=True)
        device = flat.vector.device
        generator = torch.Generator(device).manual_seed(settings.seed)
        return cls(flat, optimiser, generator, totals=torch.zeros(2, device=device))


def append_row(folder: Path, log: str, row: dict[str, Any]) -> None:
    """Append one JSON line to a log of the run."""
    try:
        with (folder / log).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(f"{folder / log}: cannot be written: {error.strerror or error}") from error


def extend_last_row(folder: Path, log: str, more: dict[str, Any]) -> None:
    """Add fields to the last row of a log: figures that came after the row was written."""
    path = folder / log
    before, _, last = path.read_text("utf-8").rstrip("\n").rpartition("\n")
    row = json.dumps(json.loads(last) | more, allow_nan=False)
    write_atomic(path, f"{before}\n{row}\n".lstrip("\n").encode())


def save(folder: Path, state: State) -> None:
    """Write the state; the one before it stays until this one is whole."""
    lengths = [_length(folder / log) for log in LOGS]
    note = {"step": state.step, "seconds": state.seconds, "lengths": lengths}
    if not state.step:
        return  # nothing has happened that starting again would not do
    (folder / NAME).parent.mkdir(exist_ok=True)
    save_tensors(folder / NAME, _tensors(state), note=json.dumps(note))


def load(folder: Path, state: State) -> None:
    """Put a saved state into a fresh one of the same model; without a checkpoint leave it fresh.

    Errors: RunError when the file is damaged or belongs to another model.
    """
    path = folder / NAME
    if not path.exists():
        _cut(folder, [0] * len(LOGS))
        return
    _make_moments(state)
    here = _tensors(state)
    tensors = load_tensors(path, like=here)
    note = _note(path)
    for name, tensor in tensors.items():
        here[name].copy_(tensor)
    state.generator.set_state(tensors["generator"])
    state.flat.refresh()
    state.step, state.seconds = int(note["step"]), float(note["seconds"])
    _cut(folder, note["lengths"])


def _tensors(state: State) -> dict[str, Tensor]:
    """Name every tensor of the state; the optimiser's moments exist after its first step."""
    flat = state.flat
    tensors = {"vector": flat.vector, "average": flat.average, "totals": state.totals}
    tensors["generator"] = state.generator.get_state()
    for number, group in enumerate(state.optimiser.param_groups):
        moments = state.optimiser.state[group["params"][0]]
        tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in moments.items()}
    return tensors


def _make_moments(state: State) -> None:
    """Give the optimiser the empty moments it would make at its first step."""
    for group in state.optimiser.param_groups:
        part = group["params"][0]
        step = torch.zeros((), device=part.device if part.is_cuda else "cpu")
        moments = {"step": step, "exp_avg": torch.zeros_like(part.data)}
        state.optimiser.state[part] = moments | {"exp_avg_sq": torch.zeros_like(part.data)}


def _note(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {})["note"])
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
    """Write tensors as safetensors, atomically; `note` travels in the file's header.

    Errors: RunError when the disk refuses; the file that was there stays as it was.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain, metadata={"note": note} if note else None))


def load_tensors(path: Path, *, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Read a safetensors file and, given `like`, hold it to the same names, shapes and dtypes.

    Errors: RunError when the file is missing, truncated, damaged, or does not match; the message
    names the first difference.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file") from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path}: not a readable safetensors file ({error})") from error
    if like is not None:
        _compare(path, tensors, like)
    return tensors


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
