"""Begin a run, or go on with one: `train` and `resume`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kullback.core import DataError, import_extra, make_folder, processes, require
from kullback.data import Dataset, load, reload, settings_like

from ..architecture import COUNTS, Architecture, Spec
from ..latents import Prior
from ..likelihoods import ContinuousBernoulli, Likelihood
from ..limits import FEW_IMAGES
from ..loop import (
    Board,
    Progress,
    digests_of_examples,
    require_equal_shares,
    require_parts_fit,
    validation_of,
)
from ..model import VAE, Parts, require_own
from ..state import load_tensors, require_shardable, save_tensors
from ..state.checkpoint import read_config, write_config
from ..training import Preset, Training
from ..training import preset as find_preset
from .description import START, WEIGHTS, described_run, new_folder, read_settings
from .machine import pick_device, pick_threads
from .new_model import fresh_model
from .origin import Origin
from .with_checkpoints import Outcome, Watch, drive, writing

__all__ = ["resume", "train"]

CHECKPOINT_SECONDS = 15.0


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
    model = fresh_model(kept.rest, architecture, training.seed, None, parts=parts)
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
    config = described_run(model, dataset, training, where, threads)
    if preset:
        config["preset"] = chosen.record(architecture, training)
    same = {name: config[name] for name in ("model", "training", "data", "precision")}
    if origin is not None:
        config["start"] = origin.described(dataset)
        same["start"] = config["start"]
    group.require_same("settings and data", same)
    path = new_folder(folder, dataset) if group.first else None
    path = Path(group.told(str(path)))
    watch = Watch(progress, stop, checkpoint_seconds, group, sharding)
    with writing(path, group):
        if group.first:
            write_config(path, config)
            if tensorboard:
                make_folder(path / Board.FOLDER)
            if weights is not None:
                save_tensors(path / START, weights)
        if weights is not None:
            model.load_state_dict(weights)
        group.wait()
        return drive(path, model, dataset, kept, read_config(path), watch)


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
    with writing(path, group):
        if group.told((path / WEIGHTS).exists()):  # another process has finished it meanwhile
            return Outcome(path, VAE.load(path, parts=parts), finished=True)
        dataset = data if isinstance(data, Dataset) else reload(config["data"], source=data)
        if dataset.protocol["sha256"] != config["data"]["sha256"]:
            what = "these are not the data the run was trained on"
            raise DataError(f"{path}: {what}: the hashes differ")
        settings, _, _ = read_settings(config, path)
        kept = validation_of(dataset, settings.validation, seed=settings.seed)
        model = fresh_model(kept.rest, spec.architecture, settings.seed, spec, parts=parts)
        require_equal_shares(model, settings, len(kept.rest.train), group, resumed=True)
        if sharding == "full" and group.size > 1:
            require_shardable(model)
        if config.get("start"):
            model.load_state_dict(load_tensors(path / START, like=model.state_dict()))
        watch = Watch(progress, stop, checkpoint_seconds, group, sharding)
        return drive(path, model, dataset, kept, config, watch)


def _sharding(shard: bool | str) -> str:  # noqa: FBT001 - as `train` has it
    """Return which parts of a state are shared: "", "state" or "full"."""
    known = isinstance(shard, bool) or shard == "full"
    require(known, "shard", "False, True or 'full'", repr(shard))
    return shard if isinstance(shard, str) else "state" if shard else ""
