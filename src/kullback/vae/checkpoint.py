"""Checkpoints: everything a run needs to go on as if it had never stopped.

One safetensors file, replaced atomically. The run's two logs (`metrics.jsonl`, `timing.jsonl`) only
grow; a checkpoint remembers their lengths, and resuming cuts off what was written after it.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from kullback.core import RunError, write_atomic

from . import store
from .loop import State

__all__ = ["LOGS", "append_row", "extend_last_row", "load", "save"]

LOGS = ("metrics.jsonl", "timing.jsonl")
NAME = "checkpoints/last.safetensors"


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
    store.save_tensors(folder / NAME, _tensors(state), note=json.dumps(note))


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
    tensors = store.load_tensors(path, like=here)
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
