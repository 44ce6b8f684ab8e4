"""The folder of a run and its `config.json`: what is written there, and read back with suspicion.

Which to use: `new_folder` and `described_run` for a run that begins, `read_settings` for one that
goes on; `spec_of` is the description of its model.
"""

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kullback.core import RunError, __version__, make_folder, require
from kullback.data import Dataset

from ..architecture import Spec
from ..limits import MAX_THREADS
from ..model import VAE
from ..training import Training
from .machine import pick_precision

__all__ = ["START", "WEIGHTS", "described_run", "new_folder", "read_settings", "spec_of"]

WEIGHTS = "model.safetensors"

START = "start.safetensors"  # the weights of another run, from which this one starts


def new_folder(folder: str | Path | None, data: Dataset) -> Path:
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


def described_run(
    model: VAE, data: Dataset, training: Training, device: torch.device, threads: int
) -> dict[str, Any]:
    """Return what `config.json` holds: enough to go on with the run, and to judge its figures."""
    return {
        "model": spec_of(model).to_dict(),
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


def spec_of(model: VAE) -> Spec:
    """Return the description of a model that `build` made; a RunError for any other."""
    if model.spec is None:
        raise RunError("only models from `build` can be trained in a run directory")
    return model.spec


def read_settings(config: dict[str, Any], folder: Path) -> tuple[Training, torch.dtype, int]:
    """Read back what `described_run` wrote, with suspicion."""
    try:
        training = Training(**config["training"])
        precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config["precision"]]
        threads = int(config["threads"])
    except (TypeError, ValueError, KeyError) as error:
        raise RunError(f"{folder / 'config.json'}: its settings are damaged: {error}") from error
    if not 1 <= threads <= MAX_THREADS:
        raise RunError(f"{folder / 'config.json'}: threads: expected 1 or more; got {threads}")
    return training, precision, threads
