"""The run from whose weights another one starts.

Which to use: `Origin` in a training, `architecture_of` and `reading_of` to prepare one,
`start_in_words` to say where weights are from.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kullback.core import DataError, require
from kullback.data import Dataset, reload, settings_like

from ..architecture import Architecture, Spec
from ..limits import NAMED_DIFFERENCES
from ..model import VAE
from ..state import checkpoint, load_tensors
from ..state.checkpoint import is_hashed, read_config
from .description import WEIGHTS, spec_of

__all__ = ["Origin", "architecture_of", "on_same_data", "reading_of", "start_in_words"]


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
        theirs, ours = self.spec.compared(), spec_of(model).compared()
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
    return said if on_same_data(start) else f"{said}; that run {start_in_words(start['start'])}"


def on_same_data(start: Mapping[str, Any] | None) -> bool:
    """Say whether all runs that a run goes back to were trained on its data."""
    return not start or (bool(start.get("same_data")) and on_same_data(start.get("start")))
