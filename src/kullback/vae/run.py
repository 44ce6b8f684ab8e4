"""A run: training in a directory of its own that can be killed, resumed, evaluated and sent on.

`train` starts one, `resume` goes on with one. A run directory holds `config.json` (every setting,
the data's protocol, versions), `metrics.jsonl` (a function of the settings alone), `timing.jsonl`
(the clock), `checkpoints/`, and at the end `model.safetensors` with the averaged weights.
"""

import hashlib
import math
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kullback.core import (
    DataError,
    RunError,
    __version__,
    import_extra,
    make_folder,
    memory_kept,
    only_writer,
    processes,
    remove_temporaries,
    require,
    write_json,
)
from kullback.data import PADDING, Dataset, Rows, load, reload, settings_like

from .architecture import COUNTS, Architecture, Spec
from .latents import Prior
from .likelihoods import ContinuousBernoulli, Likelihood
from .limits import FEW_IMAGES, MAX_THREADS, NAMED_DIFFERENCES, THREADS_GAIN, UNIT_SCALE_LEVELS
from .loop import (
    Board,
    Monitor,
    NonFiniteError,
    Progress,
    SharedStep,
    Validation,
    digests_of_examples,
    fit,
    require_equal_shares,
    require_parts_fit,
    validation_of,
)
from .model import (
    VAE,
    OwnDecoder,
    OwnEncoder,
    Parts,
    build,
    location_and_spread_of,
    require_own,
    with_parts,
)
from .sound import second_moments, shift_shares
from .state import State, checkpoint, load_tensors, require_shardable, save_tensors
from .state.checkpoint import is_hashed, read_config, write_config
from .training import Preset, Training, too_short
from .training import preset as find_preset

__all__ = [
    "Outcome",
    "architecture_of",
    "matmul_gflops",
    "pick_device",
    "pick_precision",
    "pick_threads",
    "reading_of",
    "resume",
    "start_in_words",
    "train",
]

CHECKPOINT_SECONDS = 15.0
WEIGHTS = "model.safetensors"
START = "start.safetensors"  # the weights of another run, from which this one starts


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


def train(
    data: Any = None,
    *,
    architecture: Architecture | None = None,
    training: Training | None = None,
    preset: str | Preset = "",
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    likelihood: Likelihood | None = None,
    prior: Prior | None = None,
    start: str | Path | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    tensorboard: bool = False,
    shard: bool | str = False,
) -> Outcome:
    """Train a VAE from scratch in a new run directory and return it.

    In a `torch.distributed` group every process calls it with the same settings and data, and
    takes an equal share of every batch (docs/scale.md).

    Args:
        data: A `Dataset`, or anything `kullback.data.load` takes: paths, shards, tensors, PyTorch
            data sets, iterables. By default those of `start`, unchanged, else "fashion".
        architecture: What to build; by default `Architecture()`, or that of `start`.
        training: How to train; by default `Training()`, two minutes.
        preset: A name of `kullback.vae.PRESETS`, or one of your own: values for all that
            architecture and training leave at the default.
        encoder: A module of your own instead of the architecture's, see `Parts`; it is trained
            itself, not a copy of it.
        decoder: As `encoder`.
        likelihood: As `encoder`.
        prior: As `encoder`.
        start: Another run of the same architecture, from whose weights (and units) this one starts;
            its optimiser is fresh. The run keeps a copy of them and says where they are from. Data
            that are no `Dataset` are read as that run's were.
        folder: By default `runs/<data>-<UTC time>`; it must not exist.
        device: "auto", "cpu", "cuda" or "mps".
        progress: Called a few times a second.
        stop: Asked after every step; True saves a checkpoint and ends early.
        checkpoint_seconds: How much work a crash may cost.
        tensorboard: Write the rows of `metrics.jsonl` for TensorBoard too, to `tensorboard` in the
            folder (extra `tensorboard`); `resume` then goes on with it.
        shard: Whether the processes of the group each keep a slice of gradient, running average and
            moments instead of all (ZeRO stage 2, FSDP's SHARD_GRAD_OP); "full": of the weights too,
            by PyTorch's `fully_shard` (stage 3, FULL_SHARD; docs/scale.md). Of one process it
            changes nothing.

    Returns:
        The folder, the model with averaged weights, the data, and whether the run finished.

    Raises:
        DataError: The data cannot be used.
        ArgumentValueError: The settings do not fit the data, or `start` has another architecture.
        MissingExtraError: `tensorboard` is asked for and not installed.
        RunError: The folder exists, another process writes to it, or the loss is no longer finite.

    Example:
        >>> from kullback.vae import Architecture, Training
        >>> small = Architecture(network="mlp", hidden=(8,), latent=2, components=1)
        >>> found = train("fashion", architecture=small, training=Training(steps=2), folder="run")
        >>> found.finished, found.model.sample(3).shape
        (True, torch.Size([3, 1, 28, 28]))
    """
    sharding = _sharding(shard)
    if tensorboard:  # told before anything is read or written
        import_extra("tensorboard", "tensorboard")
    origin = None if start is None else Origin.read(start)
    if architecture is None and origin is not None:
        architecture = origin.spec.architecture
    chosen = preset if isinstance(preset, Preset) else find_preset(preset or "default")
    architecture = chosen.architecture_with(architecture)
    levels = "counts" if architecture.likelihood in COUNTS else "auto"
    usual: dict[str, Any] = {"levels": levels}
    if data is None and origin is not None:
        data = origin.data()
    elif origin is not None and "data" in origin.config:
        usual = settings_like(origin.config["data"])
    source = "fashion" if data is None else data
    dataset = source if isinstance(source, Dataset) else load(source, **usual)
    own = Parts(encoder, decoder, likelihood, prior)
    few = training is None and len(dataset.train) < FEW_IMAGES[1]
    digests = digests_of_examples(dataset) if few else None  # made once, also to hold some out
    training = chosen.training_with(
        training,
        dataset.kind,
        dataset.event_shape,
        examples=len(dataset.train) if digests is None else len(set(digests)),
        plain=architecture.is_default and origin is None and not own.named(),
    )
    where = pick_device(device)
    processes.own_gpu(str(where))  # told before anything is written
    threads = pick_threads() if where.type == "cpu" else torch.get_num_threads()
    kept = validation_of(dataset, training.validation, seed=training.seed, digests=digests)
    parts = own if own.named() else None
    model = _fresh_model(kept.rest, architecture, training.seed, None, parts=parts)
    require_parts_fit(model, training)
    weights = None if origin is None else origin.weights_for(model)
    if isinstance(model.likelihood, ContinuousBernoulli):  # of which not every x is an outcome
        for block in dataset.blocks():
            model.check(block)
        model.check(dataset.test)
    group = processes.current()
    require_equal_shares(model, training, len(kept.rest.train), group)
    if sharding == "full" and group.size > 1:
        require_shardable(model)
    config = _describe(model, dataset, training, where, threads)
    if preset:
        config["preset"] = chosen.record(architecture, training)
    same = {name: config[name] for name in ("model", "training", "data", "precision")}
    if origin is not None:
        config["start"] = origin.described(dataset)
        same["start"] = config["start"]
    group.require_same("settings and data", same)
    path = _new_folder(folder, dataset) if group.first else None
    path = Path(group.told(str(path)))
    watch = Watch(progress, stop, checkpoint_seconds, group, sharding)
    with _writing(path, group):
        if group.first:
            write_config(path, config)
            if tensorboard:
                make_folder(path / Board.FOLDER)
            if weights is not None:
                save_tensors(path / START, weights)
        if weights is not None:
            model.load_state_dict(weights)
        group.wait()
        return _drive(path, model, dataset, kept, read_config(path), watch)


def resume(
    folder: str | Path,
    *,
    data: Any = None,
    parts: Parts | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    shard: bool | str = False,
) -> Outcome:
    """Go on with a run from its last checkpoint; on a CPU the result is bit for bit the same.

    (With `epochs` or `steps`; a budget in minutes follows the clock.) By another number of
    processes than before it is the same but for rounding.

    Args:
        folder: The run's.
        data: Needed only when the run was trained on a `Dataset` or an object in memory: the same.
        parts: Needed only when it trains modules of your own: the same ones.
        progress: As in `train`.
        stop: As in `train`.
        checkpoint_seconds: As in `train`.
        shard: As in `train`, whatever it was before.

    Returns:
        As `train`; of a finished run what it left, without its data.

    Raises:
        RunError: The folder holds no run, or a damaged one, or another process writes to it.
        DataError: The data are not those of the run (their hashes differ).
    """
    path, group, sharding = Path(folder), processes.current(), _sharding(shard)
    keys = ("model", "training", "data", "device", "threads", "precision")
    config = read_config(path, *keys)
    spec = Spec.from_dict(config["model"], source=str(path / "config.json"))
    if group.told((path / WEIGHTS).exists()):
        return Outcome(path, VAE.load(path, parts=parts), finished=True)
    require_own(path, spec, parts)
    with _writing(path, group):
        if group.told((path / WEIGHTS).exists()):  # another process has finished it meanwhile
            return Outcome(path, VAE.load(path, parts=parts), finished=True)
        dataset = data if isinstance(data, Dataset) else reload(config["data"], source=data)
        if dataset.protocol["sha256"] != config["data"]["sha256"]:
            what = "these are not the data the run was trained on"
            raise DataError(f"{path}: {what}: the hashes differ")
        settings, _, _ = _read_settings(config, path)
        kept = validation_of(dataset, settings.validation, seed=settings.seed)
        model = _fresh_model(kept.rest, spec.architecture, settings.seed, spec, parts=parts)
        require_equal_shares(model, settings, len(kept.rest.train), group, resumed=True)
        if sharding == "full" and group.size > 1:
            require_shardable(model)
        if config.get("start"):
            model.load_state_dict(load_tensors(path / START, like=model.state_dict()))
        watch = Watch(progress, stop, checkpoint_seconds, group, sharding)
        return _drive(path, model, dataset, kept, config, watch)


def _sharding(shard: bool | str) -> str:  # noqa: FBT001 - as `train` has it
    """Return which parts of a state are shared: "", "state" or "full"."""
    known = isinstance(shard, bool) or shard == "full"
    require(known, "shard", "False, True or 'full'", repr(shard))
    return shard if isinstance(shard, str) else "state" if shard else ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Another run, from whose weights a training starts: its description and where it is."""

    folder: Path
    spec: Spec
    config: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> "Origin":
        """Read a run's description; a RunError where the folder holds none."""
        path = Path(folder)
        config = read_config(path, "model")
        return cls(path, Spec.from_dict(config["model"], source=str(path / "config.json")), config)

    def data(self) -> Dataset:
        """Read the run's data again; a DataError where they cannot be read, or have changed."""
        protocol = self.config.get("data") or {}
        if "source" not in protocol:
            raise DataError(f"{self.folder}: says nothing about its data. Try: train(data, start=)")
        found = reload(protocol)
        if found.protocol["sha256"] != protocol.get("sha256"):
            what = f"these are not the data {self.folder} was trained on: the hashes differ"
            raise DataError(f"{protocol['source']}: {what}. Try: train(data, start=…)")
        return found

    def weights_for(self, model: VAE) -> dict[str, torch.Tensor]:
        """Return the run's weights for a model of the same description, or say what differs."""
        theirs, ours = self.spec.compared(), _spec(model).compared()
        apart = [name for name in ours if ours[name] != theirs.get(name)]
        got = ", ".join(f"{name} {ours[name]}" for name in apart[:NAMED_DIFFERENCES])
        wanted = ", ".join(f"{name} {theirs.get(name)}" for name in apart[:NAMED_DIFFERENCES])
        expected = f"the model of {self.folder}, with {wanted}"
        hint = "data and options as that run has, or leave --from out"
        require(not apart, "start", expected, got, hint)
        expect, hashed = model.state_dict(), is_hashed(self.config)
        if (self.folder / WEIGHTS).exists():
            return load_tensors(self.folder / WEIGHTS, like=expect, hashed=hashed)
        return checkpoint.averaged_weights(self.folder, model, hashed=hashed)[0]

    def described(self, data: Dataset) -> dict[str, Any]:
        """Return what a run's `config.json` holds about where its weights are from."""
        protocol = self.config.get("data") or {}
        finished = (self.folder / WEIGHTS).exists()
        name = WEIGHTS if finished else checkpoint.NAME
        content = (self.folder / name).read_bytes()
        return {
            "run": str(self.folder),
            "weights": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "source": str(protocol.get("source", "unknown data")),
            "same_data": protocol.get("sha256") == data.protocol["sha256"],
            **({"start": self.config["start"]} if self.config.get("start") else {}),
        }


def architecture_of(folder: str | Path) -> Architecture:
    """Return the architecture of a run, as `train` can build it again.

    Args:
        folder: The run's.

    Returns:
        The architecture, nothing in it "auto".

    Raises:
        RunError: The folder holds no run.
    """
    return Origin.read(folder).spec.architecture


def reading_of(folder: str | Path) -> dict[str, Any]:
    """Return the options of `kullback.data.load` that read other data as those of a run were.

    Args:
        folder: The run's.

    Returns:
        Options by name; none where the run says nothing about its data.

    Raises:
        RunError: The folder holds no run.
    """
    config = Origin.read(folder).config
    return settings_like(config["data"]) if "data" in config else {}


def start_in_words(start: Mapping[str, Any]) -> str:
    """Say where a run's first weights are from, as `config.json` holds it under "start".

    Args:
        start: That part of `config.json`: "run", "sha256", "source" and "same_data".

    Returns:
        A clause that goes on from "this run".

    Example:
        >>> start_in_words({"run": "runs/a", "sha256": "ab" * 32, "source": "b", "same_data": True})
        'started from the weights of runs/a (sha256 abababab…), trained on the same data'
    """
    said = f"started from the weights of {start.get('run')} (sha256 {start.get('sha256', '')[:8]}…)"
    if not start.get("same_data"):
        return (
            f"{said}, trained on {start.get('source')}: test examples of this run may have been "
            "among its training examples"
        )
    said = f"{said}, trained on the same data"
    return said if _on_same_data(start) else f"{said}; that run {start_in_words(start['start'])}"


def _on_same_data(start: Mapping[str, Any] | None) -> bool:
    """Say whether all runs that a run goes back to were trained on its data."""
    return not start or (bool(start.get("same_data")) and _on_same_data(start.get("start")))


def _drive(
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
    settings, precision, threads = _read_settings(config, folder)
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
    if start and not _on_same_data(start):
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
def _writing(folder: Path, group: processes.Processes) -> Iterator[None]:
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


def _read_settings(config: dict[str, Any], folder: Path) -> tuple[Training, torch.dtype, int]:
    """Read back what `_describe` wrote, with suspicion."""
    try:
        training = Training(**config["training"])
        precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config["precision"]]
        threads = int(config["threads"])
    except (TypeError, ValueError, KeyError) as error:
        raise RunError(f"{folder / 'config.json'}: its settings are damaged: {error}") from error
    if not 1 <= threads <= MAX_THREADS:
        raise RunError(f"{folder / 'config.json'}: threads: expected 1 or more; got {threads}")
    return training, precision, threads


def _describe(
    model: VAE, data: Dataset, training: Training, device: torch.device, threads: int
) -> dict[str, Any]:
    """Return what `config.json` holds: enough to go on with the run, and to judge its figures."""
    return {
        "model": _spec(model).to_dict(),
        "training": training.to_dict(),
        "data": data.protocol,
        "device": str(device),
        "threads": threads,
        "precision": str(_precision(training, data, device)).removeprefix("torch."),
        "versions": {
            "kullback": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _precision(training: Training, data: Dataset, device: torch.device) -> torch.dtype:
    """Return the dtype of the matrix products; a prediction to one level of 16 bits needs 24."""
    if data.kind != "sound":
        return pick_precision(training.precision, device)
    good = training.precision != "bfloat16"
    require(good, "precision", "auto or float32 for sound", training.precision)
    return torch.float32


def _spec(model: VAE) -> Spec:
    if model.spec is None:
        raise RunError("only models from `build` can be trained in a run directory")
    return model.spec


def _fresh_model(
    data: Dataset,
    architecture: Architecture,
    seed: int,
    spec: Spec | None,
    *,
    parts: Parts | None = None,
) -> VAE:
    """Build the model for the data, its weights a function of the seed alone.

    spec: of a run to go on with, which may have been made before data were standardised.
    """
    inside = data.kind == "continuous" and (spec is None or spec.standardised)
    units = inside or (data.kind == "levels" and data.levels > UNIT_SCALE_LEVELS)
    sound, train = data.protocol.get("sound"), data.train
    mean = spread = None
    scale = 1.0
    if sound is not None:
        scale = _deviation_of(_in_memory(train))
    else:
        moments = data.moments()
        mean = moments.mean.float()
        if units:
            mean, spread = location_and_spread_of(moments, floats=data.kind == "continuous")
        elif data.kind == "counts" and len(train) > 1:
            scale = float((_in_memory(train).float().log1p() - mean.log1p()).std())
        elif data.kind != "binary":
            numbers = moments.count * mean.numel()
            scale = math.sqrt(float(moments.squares.sum()) / max(1, numbers - 1))
        if data.dynamic:
            mean = mean / 255.0
    latent = None if parts is None else parts.latent(data.train[:2].cpu().float())
    architecture = architecture if latent is None else replace(architecture, latent=latent)
    outputs = parts is not None and (parts.decoder is not None or parts.likelihood is not None)
    if outputs and architecture.neighbours < 0:  # what a decoder of one's own gives is its own
        architecture = replace(architecture, neighbours=0)
    examples = _examples(data, architecture, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(
            data.event_shape,
            data.kind,
            architecture,
            mean=mean,
            scale=scale or 1.0,
            levels=data.levels if data.kind in ("levels", "sound") else 256,
            grid=data.protocol.get("grid"),
            spread=None if spread is None else (spread if inside else spread.clamp(min=1.0)),
            sound=None if sound is None else {n: int(sound[n]) for n in ("rate", "step", "clip")},
            moments=None
            if sound is None
            else second_moments(_in_memory(train), step=int(sound["step"])),
            shares=None
            if sound is None
            else shift_shares(_in_memory(train), step=int(sound["step"])),
            examples=examples,
            sizes=str(data.protocol.get("sizes", "")),
            labels=tuple(data.protocol.get("labels", ())),
        )
        if parts is None:
            return model
        bits = torch.Generator(data.train.device).manual_seed(seed)
        few = torch.arange(min(2, len(data.train)), device=data.train.device)
        return with_parts(model, parts, data.batch(few, bits).cpu(), examples=examples)


def _in_memory(rows: torch.Tensor | Rows) -> torch.Tensor:
    return rows[:] if isinstance(rows, Rows) else rows


def _examples(data: Dataset, architecture: Architecture, seed: int) -> torch.Tensor | None:
    """Pick the training examples at which the pseudo-inputs of a "vamp" prior start."""
    if architecture.prior != "vamp":
        return None
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(data.train), generator=generator)[: architecture.prior_components]
    device = data.train.device
    bits = torch.Generator(device).manual_seed(seed)
    return data.batch(picked.to(device), bits).float().cpu()


def _deviation_of(clips: torch.Tensor) -> float:
    """Return the root mean square of all samples that are no padding."""
    squares, count = 0.0, 0
    for block in torch.split(clips, 256):
        real = block[block != PADDING].double()
        squares, count = squares + float(real.square().sum()), count + len(real)
    return math.sqrt(squares / max(1, count))


def _new_folder(folder: str | Path | None, data: Dataset) -> Path:
    """Make a new, empty directory for a run; never one that exists."""
    if folder is None:
        name = Path(str(data.protocol.get("source", "data"))).stem or "data"
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = Path("runs") / f"{name}-{stamp}"
    path = Path(folder)
    try:
        make_folder(path, new=True)
    except FileExistsError as error:
        hint = "another --out"
        raise RunError(f"{path} exists already; no run overwrites another. Try: {hint}") from error
    return path


def pick_device(name: str = "auto") -> torch.device:
    """Return the named device, or the best one present: CUDA, then Apple's MPS, then the CPU.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1", … or "mps".

    Returns:
        The device.

    Raises:
        ArgumentValueError: Another name, or a device that this machine lacks.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, here in present.items() if here), "cpu"))
    kind = name.partition(":")[0]
    known = kind in ("cpu", "cuda", "mps")
    require(known, "device", "auto, cpu, cuda or mps", repr(name))
    require(present.get(kind, True), "device", "one that this machine has", repr(name), "auto")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the matrix products: bfloat16 where "auto" finds hardware for it.

    That is CUDA with bfloat16 units, and CPUs with AVX512-BF16 or AMX.

    Args:
        name: "auto", "float32" or "bfloat16".
        device: Where the products are computed.

    Returns:
        `torch.float32` or `torch.bfloat16`.

    Example:
        >>> pick_precision("float32", torch.device("cpu"))
        torch.float32
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        fast = fast or (device.type == "cpu" and _cpu_has_bfloat16())
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _cpu_has_bfloat16() -> bool:
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(has.get("avx512_bf16", False) or has.get("amx_bf16", False))


def matmul_gflops(
    threads: int, *, size: int = 256, seconds: float = 0.05, dtype: torch.dtype = torch.float32
) -> float:
    """Measure the matrix-multiply rate with a number of threads: the median of short products.

    The thread count is restored.

    Args:
        threads: How many.
        size: Of the square matrices.
        seconds: How long to measure.
        dtype: Of the matrices.

    Returns:
        1e9 operations per second, 2·size³ a product.

    Example:
        >>> matmul_gflops(1, seconds=0.001) > 0
        True
    """
    before = torch.get_num_threads()
    a, out = torch.ones(size, size, dtype=dtype), torch.empty(size, size, dtype=dtype)
    torch.set_num_threads(threads)
    times: list[float] = []
    try:
        torch.mm(a, a, out=out)
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2.0 * size**3 / statistics.median(times) / 1e9


def pick_threads() -> int:
    """Return how many threads a training should use on this machine as loaded as it is now.

    It is measured: small matrix products on all cores against one. On a machine whose cores are
    busy, threads wait for each other and training can run tens of times slower than on one thread.

    Returns:
        The cores that this process may run on, at most what OMP_NUM_THREADS allows, or 1 where all
        of them are not enough faster than one.

    Example:
        >>> pick_threads() >= 1
        True
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))  # a share a process
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    most = min(cores, int(allowed)) if allowed.isdigit() and int(allowed) else cores
    return most if most > 1 and matmul_gflops(most) > THREADS_GAIN * matmul_gflops(1) else 1
