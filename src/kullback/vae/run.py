"""A run: training in a directory of its own that can be killed, resumed, evaluated and sent on.

`train` starts one, `resume` goes on with one. A run directory holds `config.json` (every setting,
the data's protocol, versions), `metrics.jsonl` (a function of the settings alone), `timing.jsonl`
(the clock), `checkpoints/`, and at the end `model.safetensors` with the averaged weights.
"""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
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
    only_writer,
    remove_temporaries,
    require,
    write_json,
)
from kullback.data import PADDING, Dataset, load, reload

from . import checkpoint
from .architecture import COUNTS, Architecture, Spec
from .checkpoint import State, is_hashed, read_config, write_config
from .latents import Prior
from .likelihoods import ContinuousBernoulli, Likelihood
from .limits import MAX_THREADS, THREADS_GAIN, UNIT_SCALE_LEVELS
from .loop import (
    Board,
    Monitor,
    NonFiniteError,
    Progress,
    fit,
    held_labels,
    hold_out,
    require_parts_fit,
)
from .model import VAE, Parts, build, location_and_spread, require_own, with_parts
from .networks import OwnDecoder, OwnEncoder
from .presets import Preset
from .presets import preset as find_preset
from .sound import second_moments, shift_shares
from .training import Training, too_short

__all__ = [
    "Outcome",
    "matmul_gflops",
    "pick_device",
    "pick_precision",
    "pick_threads",
    "resume",
    "train",
]

CHECKPOINT_SECONDS = 15.0
WEIGHTS = "model.safetensors"


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
    """How a caller follows and interrupts a run, and how often it is saved."""

    progress: Callable[[Progress], None] | None
    stop: Callable[[], bool] | None
    checkpoint_seconds: float


def train(
    data: Dataset | str | Path = "fashion",
    *,
    architecture: Architecture | None = None,
    training: Training | None = None,
    preset: str | Preset = "",
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    likelihood: Likelihood | None = None,
    prior: Prior | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    tensorboard: bool = False,
) -> Outcome:
    """Train a VAE from scratch in a new run directory and return it.

    Args:
        data: A `Dataset`, or anything `kullback.data.load` takes.
        architecture: What to build; by default `Architecture()`.
        training: How to train; by default `Training()`, two minutes.
        preset: A name of `kullback.vae.PRESETS`, or one of your own: values for all that
            architecture and training leave at the default.
        encoder: A module of your own instead of the architecture's, see `Parts`; it is trained
            itself, not a copy of it.
        decoder: As `encoder`.
        likelihood: As `encoder`.
        prior: As `encoder`.
        folder: By default `runs/<data>-<UTC time>`; it must not exist.
        device: "auto", "cpu", "cuda" or "mps".
        progress: Called a few times a second.
        stop: Asked after every step; True saves a checkpoint and ends early.
        checkpoint_seconds: How much work a crash may cost.
        tensorboard: Write the rows of `metrics.jsonl` for TensorBoard too, to `tensorboard` in the
            folder (extra `tensorboard`); `resume` then goes on with it.

    Returns:
        The folder, the model with averaged weights, the data, and whether the run finished.

    Raises:
        DataError: The data cannot be used.
        ArgumentValueError: The settings do not fit the data.
        MissingExtraError: `tensorboard` is asked for and not installed.
        RunError: The folder exists, another process writes to it, or the loss is no longer finite.

    Example:
        >>> from kullback.vae import Architecture, Training
        >>> small = Architecture(network="mlp", hidden=(8,), latent=2, components=1)
        >>> found = train("fashion", architecture=small, training=Training(steps=2), folder="run")
        >>> found.finished, found.model.sample(3).shape
        (True, torch.Size([3, 1, 28, 28]))
    """
    if tensorboard:  # told before anything is read or written
        import_extra("tensorboard", "tensorboard")
    chosen = preset if isinstance(preset, Preset) else find_preset(preset or "default")
    architecture = chosen.architecture_with(architecture)
    levels = "counts" if architecture.likelihood in COUNTS else "auto"
    dataset = data if isinstance(data, Dataset) else load(data, levels=levels)
    training = chosen.training_with(training, dataset.kind, dataset.event_shape)
    where = pick_device(device)
    threads = pick_threads() if where.type == "cpu" else torch.get_num_threads()
    rest, _ = hold_out(dataset, training.validation, seed=training.seed)
    own = Parts(encoder, decoder, likelihood, prior)
    parts = own if own.named() else None
    model = _fresh_model(rest, architecture, training.seed, None, parts=parts)
    require_parts_fit(model, training)
    if isinstance(model.likelihood, ContinuousBernoulli):  # of which not every x is an outcome
        model.check(dataset.train)
        model.check(dataset.test)
    config = _describe(model, dataset, training, where, threads)
    if preset:
        config["preset"] = chosen.record(architecture, training)
    path = _new_folder(folder, dataset)
    watch = Watch(progress, stop, checkpoint_seconds)
    with only_writer(path):
        write_config(path, config)
        if tensorboard:
            (path / Board.FOLDER).mkdir()
        return _drive(path, model, dataset, read_config(path), watch)


def resume(
    folder: str | Path,
    *,
    data: Dataset | None = None,
    parts: Parts | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Outcome:
    """Go on with a run from its last checkpoint; on a CPU the result is bit for bit the same.

    (With `epochs` or `steps`; a budget in minutes follows the clock.)

    Args:
        folder: The run's.
        data: Needed only when the run was trained on a `Dataset` made in memory.
        parts: Needed only when it trains modules of your own: the same ones.
        progress: As in `train`.
        stop: As in `train`.
        checkpoint_seconds: As in `train`.

    Returns:
        As `train`; of a finished run what it left, without its data.

    Raises:
        RunError: The folder holds no run, or a damaged one, or another process writes to it.
        DataError: The data are not those of the run (their hashes differ).
    """
    path = Path(folder)
    keys = ("model", "training", "data", "device", "threads", "precision")
    config = read_config(path, *keys)
    spec = Spec.from_dict(config["model"], source=str(path / "config.json"))
    if (path / WEIGHTS).exists():
        return Outcome(path, VAE.load(path, parts=parts), finished=True)
    require_own(path, spec, parts)
    with only_writer(path):
        if (path / WEIGHTS).exists():  # another process has finished it meanwhile
            return Outcome(path, VAE.load(path, parts=parts), finished=True)
        dataset = data or reload(config["data"])
        if dataset.protocol["sha256"] != config["data"]["sha256"]:
            what = "these are not the data the run was trained on"
            raise DataError(f"{path}: {what}: the hashes differ")
        settings, _, _ = _read_settings(config, path)
        rest, _ = hold_out(dataset, settings.validation, seed=settings.seed)
        model = _fresh_model(rest, spec.architecture, settings.seed, spec, parts=parts)
        watch = Watch(progress, stop, checkpoint_seconds)
        return _drive(path, model, dataset, config, watch)


def _drive(
    folder: Path,
    model: VAE,
    data: Dataset,
    config: dict[str, Any],
    watch: Watch,
) -> Outcome:
    """Run the loop from the folder's last checkpoint and leave the folder consistent.

    The caller holds the folder's lock.
    """
    for place in (folder, folder / "checkpoints"):
        remove_temporaries(place)
    device = pick_device(config["device"])
    settings, precision, threads = _read_settings(config, folder)
    rest, held = hold_out(data, settings.validation, seed=settings.seed)
    model, rest = model.to(device), rest.to(device)
    labels = held_labels(data, settings.validation)
    held = None if held is None else held.to(device)
    labels = None if labels is None else labels.to(device)
    own = [m for m in model.modules() if isinstance(m, OwnEncoder | OwnDecoder)]
    for module in own:
        module.products = precision
    working = torch.float32 if own else precision  # a user's modules round by autocast
    state = State.start(model, settings, precision=working)
    checkpoint.load(folder, state, hashed=is_hashed(config))
    monitor = Monitor(
        folder, model, rest, settings, state, watch.progress, validation=held, held_labels=labels
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        finished = _loop(model, rest, state, monitor, watch)
    except NonFiniteError:
        checkpoint.save(folder, state)  # the weights are those before the step that failed
        raise
    finally:
        torch.set_num_threads(before)
    selection = short = ""
    if finished:
        monitor.finish()
        examples = len(rest.train)
        short = too_short(settings, state.step, state.seconds, examples, kind=rest.kind)
        selection = monitor.select()
        if selection:
            write_json(folder / "selection.json", {"format": 1, "weights": selection})
    else:
        checkpoint.save(folder, state)
    if monitor.board is not None:
        monitor.board.close()
    state.flat.release(model)
    if finished:  # from here on the run counts as finished; until here it can be resumed
        checkpoint.save_tensors(folder / WEIGHTS, model.state_dict())
    found = tuple(monitor.warnings)
    return Outcome(folder, model.eval(), finished, found, data.to(device), selection, short)


def _loop(model: VAE, data: Dataset, state: State, monitor: Monitor, watch: Watch) -> bool:
    """Step, watch and save until the budget is spent (True) or the caller says stop (False)."""
    folder, settings = monitor.folder, monitor.settings
    saved = time.monotonic()
    for _ in fit(model, data, settings, state, folder=folder):
        monitor.after_step()
        if watch.stop is not None and watch.stop():
            return False
        if time.monotonic() - saved > watch.checkpoint_seconds:
            checkpoint.save(folder, state)
            if settings.budget[0] == "minutes" and state.flat.vector.device.type == "cpu":
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
    mean, spread = location_and_spread(data.train) if units else (None, None)
    scale = 1.0
    sound = data.protocol.get("sound")
    if sound is not None:
        scale = _deviation_of(data.train)
    elif mean is None:
        train = data.train.float()
        mean = train.mean(0)
        if data.kind == "counts" and len(train) > 1:
            scale = float((train.log1p() - mean.log1p()).std())
        elif data.kind != "binary":
            scale = float((train - mean).std()) if len(train) > 1 else 1.0
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
            moments=None if sound is None else second_moments(data.train, step=int(sound["step"])),
            shares=None if sound is None else shift_shares(data.train, step=int(sound["step"])),
            examples=examples,
            sizes=str(data.protocol.get("sizes", "")),
            labels=tuple(data.protocol.get("labels", ())),
        )
        if parts is None:
            return model
        bits = torch.Generator(data.train.device).manual_seed(seed)
        few = torch.arange(min(2, len(data.train)), device=data.train.device)
        return with_parts(model, parts, data.batch(few, bits).cpu(), examples=examples)


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
        path.mkdir(parents=True, exist_ok=False)
    except FileExistsError as error:
        hint = "another --out"
        raise RunError(f"{path} exists already; no run overwrites another. Try: {hint}") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be made: {error.strerror or error}") from error
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
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    most = min(cores, int(allowed)) if allowed.isdigit() and int(allowed) else cores
    return most if most > 1 and matmul_gflops(most) > THREADS_GAIN * matmul_gflops(1) else 1
