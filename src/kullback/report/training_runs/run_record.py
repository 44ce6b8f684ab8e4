"""What a run directory holds, read and checked: a `Record`."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kullback import data as kdata
from kullback.core import DataError, RunError, read_json, require_type
from kullback.data import Dataset
from kullback.vae import VAE, Evaluation

__all__ = ["Record", "evaluation_of", "read"]


@dataclass(frozen=True, slots=True)
class Record:
    """One run as the report sees it; `missing` maps "model", "data", "evaluation" to a reason."""

    folder: Path
    config: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    evaluation: Evaluation | None
    evaluated: Mapping[str, Any]  # the protocol of the data that were evaluated
    model: VAE | None
    data: Dataset | None
    missing: Mapping[str, str]

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The protocol of the data that the run was trained on."""
        protocol: Mapping[str, Any] = self.config["data"]
        return protocol


def read(folder: str | Path, *, model: VAE | None = None, data: Dataset | None = None) -> Record:
    """Read everything a run directory holds, checked as it is read.

    The description must be there; weights, data and evaluation may be missing, and `missing` says
    why in a sentence for the reader of the report.

    Args:
        folder: The run directory.
        model: The run's own, where it is in memory; else it is read.
        data: The run's own, where they are in memory; else they are read.

    Returns:
        The run, with its model on the CPU.

    Raises:
        RunError: The folder has no run's `config.json`, or a damaged file.
        DataError: The data given are not those of the run (their hashes differ).
    """
    require_type(folder, (str, Path), "run")
    folder = Path(folder)
    config = read_json(folder / "config.json")
    for key in ("model", "training", "data"):
        if not isinstance(config, dict) or not isinstance(config.get(key), dict):
            raise RunError(f"{folder / 'config.json'}: not the description of a run: no {key!r}")
    missing: dict[str, str] = {}
    evaluation, evaluated = evaluation_of(folder, missing)
    return Record(
        folder,
        config,
        _log_rows(folder / "metrics.jsonl"),
        _log_rows(folder / "timing.jsonl"),
        evaluation,
        evaluated,
        _model_of(folder, model, missing, own=bool(config["model"].get("own"))),
        _dataset_of(folder, config["data"], data, missing),
        missing,
    )


def _model_of(
    folder: Path, given: VAE | None, missing: dict[str, str], *, own: bool = False
) -> VAE | None:
    if given is not None:
        ready = not given.training and all(one.is_cpu for one in given.parameters())
        return given if ready else copy.deepcopy(given).cpu().eval()
    if own:
        missing["model"] = (
            "It has parts of its author's: kullback.report.write(RUN, model=...) in Python shows "
            "what they make."
        )
        return None
    if (folder / "model.safetensors").exists():
        return VAE.load(folder)
    missing["model"] = "The training has not finished: kullback train --resume RUN"
    return None


def _dataset_of(
    folder: Path, protocol: dict[str, Any], given: Dataset | None, missing: dict[str, str]
) -> Dataset | None:
    """Return the data given, or those of the protocol when they can be read again unchanged."""
    hashes = protocol.get("sha256")
    if given is not None:
        if given.protocol.get("sha256") != hashes:
            raise DataError(f"{folder}: these are not the run's data: the hashes differ")
        return given
    try:
        dataset = kdata.reload(protocol)
    except DataError as error:
        missing["data"] = f"The data could not be read again: {error}"
        return None
    if dataset.protocol["sha256"] != hashes:
        missing["data"] = "The data have changed since the training: their hashes differ."
        return None
    return dataset


def evaluation_of(
    folder: Path, missing: dict[str, str]
) -> tuple[Evaluation | None, Mapping[str, Any]]:
    """Return the evaluation that a run holds and the protocol of its data; or note it missing."""
    path = folder / "evaluation.json"
    if not path.exists():
        missing["evaluation"] = "Not evaluated yet: kullback evaluate RUN"
        return None, {}
    stored = read_json(path)
    try:
        return Evaluation.from_dict(stored["evaluation"]), dict(stored["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not an evaluation of this library: {error}") from error


def _log_rows(path: Path) -> list[dict[str, Any]]:
    """Read a log of JSON lines; a last line without its end was cut off and is left out."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    whole, _, _ = text.rpartition("\n")
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            _ = float(row["step"]), [float(v) for v in row.values() if not isinstance(v, list)]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}: line {number} is not a row of a log") from error
        rows.append(row)
    return _without_repeats(rows)


def _without_repeats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join rows of one step: runs once ended with a second row whose training figures were 0."""
    joined: list[dict[str, Any]] = []
    for row in rows:
        if joined and joined[-1]["step"] == row["step"]:
            joined[-1] = row | joined[-1]
        else:
            joined.append(row)
    return joined
