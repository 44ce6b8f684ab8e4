"""A fit on disk: `fit.json` and `fit.safetensors` in a folder; nothing is ever unpickled.

Which to use: `save` and `load`. The target itself is a function and is not saved: `load` takes it
again, and holds it to the log densities that were stored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from kullback.core import RunError, __version__
from kullback.core.files import read_json, write_atomic, write_json

from .diagnosis import Diagnosis
from .summary import Fitted, summarise
from .target import Target

__all__ = ["Saved", "load", "save"]

FORMAT = 1
SHAPES = {"draws": 2, "log_p": 1, "log_q": 1, "score_p": 2, "score_q": 2}
WORDS = ("method", "direction", "objective", "reason", "chosen")
CHECKED = 8  # stored draws at which a target given to `load` must agree


@dataclass(frozen=True, slots=True)
class Saved:
    """A fit read back: draws `[n, d]` of q with log p, log q `[n]` and scores, and its record.

    It can be assessed, summarised, resampled and exported like the fit it was, but q itself, a
    network perhaps, is not there to draw more from. record: the content of `fit.json`.
    """

    target: Target
    draws: Tensor
    log_p: Tensor
    log_q: Tensor
    scores: tuple[Tensor, Tensor]
    converged: bool
    record: dict[str, Any]


def save(fit: Fitted, folder: str | Path, diagnosis: Diagnosis, *, force: bool = False) -> Path:
    """Write a fit's draws, log densities, scores, summary and diagnosis to a folder; return it.

    Two files, each whole or not at all. Errors: `RunError` when the folder has a fit and `force` is
    not set, or when the disk refuses.

    >>> from kullback.variational import fit
    >>> from kullback.variational.summary import assess
    >>> found = fit(lambda z: -0.5 * (z * z).sum(), 2)
    >>> kept = save(found, "normal", assess(found))
    >>> load("normal", found.target).draws.equal(found.draws)
    True
    """
    folder = Path(folder)
    if (folder / "fit.json").exists() and not force:
        raise RunError(f"{folder} has a fit already. Try: another folder, or force=True")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror or error}") from error
    names = ("draws", "log_p", "log_q", "score_p", "score_q")
    tensors = (fit.draws, fit.log_p, fit.log_q, *fit.scores)
    plain = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in zip(names, tensors, strict=True)
    }
    write_atomic(folder / "fit.safetensors", safetensors.torch.save(plain))
    words = {name: str(getattr(fit, name)) for name in WORDS if hasattr(fit, name)}
    record = {
        "format": FORMAT,
        "kullback": __version__,
        "names": list(fit.target.names),
        "converged": bool(fit.converged),
        **words,
        "summary": summarise(fit, diagnosis).to_dict(),
        "diagnosis": diagnosis.to_dict(),
    }
    write_json(folder / "fit.json", record)
    return folder


def load(folder: str | Path, target: Target) -> Saved:
    """Read a fit back for the target it was fitted to.

    Errors: `RunError`, naming the file, when one is missing, damaged or of another format, when
    names, shapes or numbers do not fit together, or when log p of this target at the stored draws
    is not what was stored (by more than 1e-6 relative to the largest): then it is another target.
    """
    folder = Path(folder)
    record = _record(folder / "fit.json")
    path = folder / "fit.safetensors"
    tensors = _tensors(path)
    if record["names"] != list(target.names):
        raise RunError(f"{folder}: a fit of {record['names'][:4]}…, the target has {target.names}")
    if tensors["draws"].shape[1] != target.dim:
        raise RunError(f"{path}: draws: expected [n, {target.dim}]; got another shape")
    with torch.no_grad():
        again = target.log_density(tensors["draws"][:CHECKED])
    stored = tensors["log_p"][:CHECKED]
    close = (again - stored).abs() <= 1e-6 * stored.abs().max().clamp_min(1.0)
    if not bool((close | (again == stored)).all()):
        raise RunError(f"{folder}: log p of this target differs: the fit is of another one")
    scores = (tensors["score_p"], tensors["score_q"])
    parts = (tensors["draws"], tensors["log_p"], tensors["log_q"])
    return Saved(target, *parts, scores, bool(record["converged"]), record)


def _record(path: Path) -> dict[str, Any]:
    record = read_json(path)
    known = isinstance(record, dict) and record.get("format") == FORMAT
    names = record.get("names") if known else None
    whole = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not whole or not isinstance(record.get("converged"), bool):
        raise RunError(f"{path}: not the record of a fit, of format {FORMAT}")
    return dict(record)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path}: not a readable safetensors file ({error})") from error
    if set(tensors) != set(SHAPES):
        raise RunError(f"{path}: expected {', '.join(SHAPES)}; got {', '.join(sorted(tensors))}")
    rows = len(tensors["log_p"]) if tensors["log_p"].ndim else 0
    for name, axes in SHAPES.items():
        one = tensors[name]
        good = one.ndim == axes and len(one) == rows > 0 and one.is_floating_point()
        if not good or bool(one.isnan().any()):
            raise RunError(f"{path}: {name}: expected {axes} axes, {rows} rows, no NaN")
    return tensors
