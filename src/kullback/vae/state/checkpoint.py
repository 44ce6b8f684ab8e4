"""The files of a run: all that it needs to go on as if never stopped.

`save` and `load` write and read the state of a training as one safetensors file, replaced
atomically. The run's two logs (`metrics.jsonl`, `timing.jsonl`) only grow; a checkpoint remembers
their lengths, and resuming cuts off what was written after it. `write_config` and `read_config`
write and read the description of a run. `averaged_weights` returns the weights that a model of an
unfinished run has. Tensors in other files: `tensor_files`.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from kullback.core import (
    RunError,
    make_folder,
    not_written,
    processes,
    read_json,
    write_atomic,
    write_json,
)

from ..limits import RUN_FORMAT
from .tensor_files import compare, in_order_of_file, read_tensors, require_hash, write_tensors
from .training_state import State, make_moments
from .weight_vector import trainable

__all__ = [
    "LOGS",
    "append_row",
    "averaged_weights",
    "copy_first",
    "extend_last_row",
    "is_hashed",
    "load",
    "read_config",
    "refuse_to_overwrite",
    "save",
    "saved_step",
    "write_config",
]

LOGS = ("metrics.jsonl", "timing.jsonl")
NAME = "checkpoints/last.safetensors"
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


def copy_first(
    state: State, group: processes.Processes, wholes: Mapping[str, Tensor] | None = None
) -> None:
    """Give every process the state of the first one; wholes: what `load` returned there."""
    if group.size == 1:
        return
    begun = bool(group.told(len(state.optimiser.state) > 0))
    if begun and not state.optimiser.state:
        make_moments(state)
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
    tensors = in_order_of_file(_tensors(state))
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
    write_tensors(folder / NAME, header, parts, note=json.dumps(note))


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
    make_moments(state)
    here, sliced = _tensors(state), _sliced(state)
    numbers = torch.empty(state.flat.numbers, dtype=state.flat.vector.dtype, device="meta")
    here |= dict.fromkeys(sliced, numbers)
    tensors, metadata = read_tensors(path)
    for name in state.trained:  # an earlier version wrote a shared one again under its other names
        tensors.pop(BUFFER + name, None)
    if not any(name.startswith(BUFFER) for name in tensors):  # a checkpoint of format 1
        here = {name: tensor for name, tensor in here.items() if not name.startswith(BUFFER)}
    compare(path, tensors, here)
    require_hash(path, metadata, hashed=hashed)
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
    tensors, metadata = read_tensors(path)
    require_hash(path, metadata, hashed=hashed)
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
    compare(path, found, expected)
    said = f"the training is not finished: these are its averaged weights after {note['step']:,} "
    return found, f"{folder}: {said}steps ({note['seconds']:.0f} s)"


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
