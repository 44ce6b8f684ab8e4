"""From a run's last checkpoint to its end: step, watch, save, and leave the folder consistent.

Which to use: `drive`, within `writing`, which holds the folder's lock; `Watch` is how a caller
follows and interrupts it, `Outcome` what it leaves.
"""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kullback.core import memory_kept, only_writer, processes, remove_temporaries, write_json
from kullback.data import Dataset

from ..loop import Monitor, NonFiniteError, Progress, SharedStep, Validation, fit
from ..model import VAE, OwnDecoder, OwnEncoder
from ..state import State, checkpoint, save_tensors
from ..state.checkpoint import is_hashed
from ..training import Training, too_short
from .description import WEIGHTS, read_settings
from .machine import pick_device, pick_threads
from .origin import on_same_data, start_in_words

__all__ = ["Outcome", "Watch", "drive", "writing"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training left.

    Args:
        folder: The run's.
        model: With averaged weights, in evaluation mode.
        finished: Whether the budget was spent.
        warnings: Sentences, such as that the posterior collapsed.
        selection: Which weights were picked and on what; "" where the last ones were kept.
        short: That the run was too short for its data, and how long it should be; "" else.
        data: What it was trained on; None where a finished run was only read.
    """

    folder: Path
    model: VAE
    finished: bool
    warnings: tuple[str, ...] = ()
    data: Dataset | None = None
    selection: str = ""
    short: str = ""


@dataclass(frozen=True, slots=True)
class Watch:
    """How a caller follows and interrupts a run, how often it is saved, and by how many it is made.

    group: the processes of the run, of which the first one alone writes and calls `progress`.
    shard: which parts of its state they share: "", "state" or "full".
    """

    progress: Callable[[Progress], None] | None
    stop: Callable[[], bool] | None
    checkpoint_seconds: float
    group: processes.Processes
    shard: str = ""


def drive(
    folder: Path,
    model: VAE,
    data: Dataset,
    kept: Validation,
    config: dict[str, Any],
    watch: Watch,
) -> Outcome:
    """Run the loop from the folder's last checkpoint and leave the folder consistent.

    The caller holds the folder's lock.
    """
    group = watch.group
    group.require_same("shard", watch.shard)
    if group.first:
        for place in (folder, folder / "checkpoints"):
            remove_temporaries(place)
    device = torch.device(processes.own_gpu(str(pick_device(config["device"]))))
    settings, precision, threads = read_settings(config, folder)
    model, rest = model.to(device), kept.rest.to(device)
    held = None if kept.held is None else kept.held.to(device)
    labels = None if kept.labels is None else kept.labels.to(device)
    own = [m for m in model.modules() if isinstance(m, OwnEncoder | OwnDecoder)]
    for module in own:
        module.products = precision
    working = torch.float32 if own else precision  # a user's modules round by autocast
    over = group if watch.shard else None
    full = watch.shard == "full"
    state = State.start(model, settings, precision=working, over=over, full=full)
    monitor, wholes = None, {}
    if group.first:
        wholes = checkpoint.load(folder, state, hashed=is_hashed(config))
        more: Any = {"validation": held, "held_labels": labels}
        monitor = Monitor(folder, model, rest, settings, state, watch.progress, **more)
    checkpoint.copy_first(state, group, wholes)
    del wholes
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with memory_kept(wanted=device.type == "cpu" and not state.flat.sharded):
            finished = _loop(model, rest, state, monitor, settings, folder=folder, watch=watch)
        if not finished:
            _save(folder, state, group)
        state.flat.gather_average(everywhere=True)
    except NonFiniteError:
        _save(folder, state, group)  # the weights are those before the step that failed
        raise
    except processes.LostProcessError as error:
        raise _lost(error, folder, state, group) from error
    finally:
        torch.set_num_threads(before)
    selection = short = ""
    if finished:
        examples = len(rest.train)
        short = too_short(settings, state.step, state.seconds, examples, kind=rest.kind)
    if monitor is not None:
        selection = _ended(folder, monitor, finished=finished)
    if finished:
        group.copy_first_(state.flat.whole_average)  # which the first one may have picked
    state.flat.release(model)
    if finished and group.first:  # from here on the run counts as finished
        save_tensors(folder / WEIGHTS, model.state_dict())
    found = () if monitor is None else tuple(monitor.warnings)
    start = config.get("start")
    if start and not on_same_data(start):
        found = (f"this run {start_in_words(start)}", *found)
    return Outcome(folder, model.eval(), finished, found, data.to(device), selection, short)


def _ended(folder: Path, monitor: Monitor, *, finished: bool) -> str:
    """Write the last rows and pick the weights, of a run that is finished; close the logs."""
    selection = ""
    if finished:
        monitor.finish()
        selection = monitor.select()
        if selection:
            write_json(folder / "selection.json", {"format": 1, "weights": selection})
    if monitor.board is not None:
        monitor.board.close()
    return selection


def _save(folder: Path, state: State, group: processes.Processes) -> None:
    """Write a checkpoint: the first process's work, of a sharded state that of all."""
    if group.first or state.flat.sharded:
        checkpoint.save(folder, state)


def _lost(
    error: processes.LostProcessError, folder: Path, state: State, group: processes.Processes
) -> processes.LostProcessError:
    """Save what the run has come to when another process is gone, and say how to go on."""
    if group.first and not state.flat.sharded:
        checkpoint.save(folder, state)
        kept = f"saved at step {state.step:,}"
    else:
        step = checkpoint.saved_step(folder)
        kept = f"the last checkpoint is kept, of step {step:,}" if step else "no checkpoint yet"
        if state.flat.sharded:
            held = "it held a slice of the training state"
            kept = f"step {state.step:,} cannot be saved: {held}; {kept}"
    again = f"kullback train --resume {shlex.quote(str(folder))}"
    hint = f"{again}, with this or another number of processes"
    return processes.LostProcessError(f"{error}; {kept}. Try: {hint}")


@contextmanager
def writing(folder: Path, group: processes.Processes) -> Iterator[None]:
    """Hold the folder's lock, if this process writes to it."""
    if not group.first:
        yield
        return
    with only_writer(folder):
        yield


def _loop(
    model: VAE,
    data: Dataset,
    state: State,
    monitor: Monitor | None,
    settings: Training,
    *,
    folder: Path,
    watch: Watch,
) -> bool:
    """Step, watch and save until the budget is spent (True) or the caller says stop (False).

    monitor: None in all processes but the first one.
    """
    saved = time.monotonic()

    def late() -> bool:
        return time.monotonic() - saved > watch.checkpoint_seconds

    def needs() -> tuple[bool, bool]:
        return monitor is not None and monitor.due(), late()

    shared, flat = SharedStep(watch.group, needs), state.flat
    kept = folder if watch.group.first else None
    for _ in fit(model, data, settings, state, folder=kept, shared=shared):
        if shared.look:
            flat.gather_average()
        if monitor is not None:
            monitor.after_step()
        flat.gathered = None
        if shared.agreed(watch.stop is not None and watch.stop()):
            return False
        if shared.save if flat.sharded else late():
            _save(folder, state, watch.group)
            if settings.budget[0] == "minutes" and flat.vector.device.type == "cpu":
                torch.set_num_threads(pick_threads())  # the machine may be busier by now, or less
            saved = time.monotonic()
    return True
