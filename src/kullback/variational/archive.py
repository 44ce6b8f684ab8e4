"""A fit on disk: `fit.json` and `fit.safetensors` in a folder; nothing is ever unpickled.

Which to use: `save` and `load`. Draws, their densities and q itself are kept, so that a fit that
comes back can be judged again and drawn from. The target is a function and is not saved: `load`
takes it again, and holds it to the log densities that were stored; q is held to them too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from kullback.core import (
    MissingExtraError,
    RunError,
    __version__,
    make_folder,
    read_json,
    write_atomic,
    write_json,
)

from . import limits
from .diagnostics.diagnose import Diagnosis
from .diagnostics.summary import Fitted, assess, summarise
from .families import NAMED, Family
from .families.family import Frame
from .fitted_posterior import FittedPosterior
from .optimise import IMPROPER
from .target.density import Target

__all__ = ["Saved", "load", "save"]

SHAPES = {"draws": 2, "log_p": 1, "log_q": 1, "score_p": 2, "score_q": 2}
WORDS = ("method", "direction", "objective", "reason", "chosen")
PART = "q."  # before the names of q's own tensors


@dataclass(frozen=True, slots=True)
class Saved(FittedPosterior):
    """A fit read back: assessed, summarised, resampled, saved and drawn from like a `Fit`.

    The draws are on the unconstrained space; `posterior` has them in the user's own parameters, by
    name.

    Attributes:
        target: p.
        family: q, or None where it was of a class that this package does not have.
        draws: `[n, d]`, of q.
        log_p: `[n]` at the draws, in nats.
        log_q: `[n]` at the draws, in nats.
        scores: the gradients of both, `[n, d]` each.
        converged: whether the method's own convergence test passed.
        improper: whether the fit was given up because p has no finite mass.
        declare: which constraints would remove the edges beyond which log p is −inf, "" if none.
        reason: why it stopped, in words.
        record: the content of `fit.json`.
    """

    target: Target
    family: Family | None
    draws: Tensor
    log_p: Tensor
    log_q: Tensor
    scores: tuple[Tensor, Tensor]
    converged: bool
    record: dict[str, Any]
    improper: bool = False
    declare: str = ""
    reason: str = ""


def save(
    fit: Fitted, folder: str | Path, diagnosis: Diagnosis | None = None, *, force: bool = False
) -> Path:
    """Write q, its draws, log densities, scores, summary and diagnosis to a folder; return it.

    Two files, each whole or not at all. q is kept where it is one of `kullback.variational`'s own
    families; of another class only the draws are.

    Args:
        fit: what `fit` or `load` returned.
        folder: is made where it does not exist.
        diagnosis: what `assess` says of the fit; by default the fit's own, or `assess(fit)`.
        force: replace a fit that is in the folder.

    Returns:
        The folder.

    Raises:
        RunError: when the folder has a fit and `force` is not set, or the disk refuses.

    Example:
        >>> from kullback.variational import fit
        >>> found = fit(lambda z: -0.5 * (z * z).sum(), 2)
        >>> kept = save(found, "normal")
        >>> again = load("normal", found.target)
        >>> again.draws.equal(found.draws), again.sample_posterior(1000)["z"].shape
        (True, torch.Size([1000, 2]))
    """
    folder = Path(folder)
    if (folder / "fit.json").exists() and not force:
        raise RunError(f"{folder} has a fit already. Try: another folder, or force=True")
    make_folder(folder)
    diagnosis = diagnosis or getattr(fit, "diagnosis", None) or assess(fit)
    names = ("draws", "log_p", "log_q", "score_p", "score_q")
    tensors = (fit.draws, fit.log_p, fit.log_q, *fit.scores)
    q = getattr(fit, "family", None)
    family = q if isinstance(q, Family) and NAMED.get(q.name) is type(q) else None
    every = dict(zip(names, tensors, strict=True)) | ({} if family is None else _state(family))
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in every.items()}
    write_atomic(folder / "fit.safetensors", safetensors.torch.save(plain))
    known = getattr(fit, "record", {})  # of a fit read back
    words = {name: str(getattr(fit, name, known.get(name, ""))) for name in WORDS}
    record = {
        "format": limits.FIT_FORMAT,
        "kullback": __version__,
        "names": list(fit.target.names),
        "converged": bool(fit.converged),
        "improper": bool(getattr(fit, "improper", False)),
        "declare": str(getattr(fit, "declare", "")),
        "family": None if family is None else {"name": family.name, "options": family.options},
        **words,
        "summary": summarise(fit, diagnosis).to_dict(),
        "diagnosis": diagnosis.to_dict(),
    }
    write_json(folder / "fit.json", record)
    return folder


def load(folder: str | Path, target: Target) -> Saved:
    """Read a fit back for the target it was fitted to.

    Args:
        folder: what `save` wrote.
        target: the one that was fitted.

    Returns:
        The fit.

    Raises:
        RunError: naming the file, when one is missing, damaged or of another format, when names,
            shapes or numbers do not fit together, or when log p of this target or log q of this q
            at the stored draws is not what was stored (by more than 1e-6 relative to the largest):
            then it is another target, or the file was changed.
        MissingExtraError: for a flow without zuko.

    Example:
        >>> from kullback.variational import fit
        >>> found = fit(lambda z: -0.5 * (z * z).sum(), 2)
        >>> folder = save(found, "one_normal", found.diagnosis)
        >>> load(folder, found.target).family.name
        'full_rank'
    """
    folder = Path(folder)
    record = _record(folder / "fit.json")
    path = folder / "fit.safetensors"
    tensors = _tensors(path)
    if record["names"] != list(target.names):
        raise RunError(f"{folder}: a fit of {record['names'][:4]}…, the target has {target.names}")
    if tensors["draws"].shape[1] != target.dim:
        raise RunError(f"{path}: draws: expected [n, {target.dim}]; got another shape")
    family = _family(record, tensors, path)
    some = tensors["draws"][: limits.CHECKED_DRAWS]
    with torch.no_grad():
        if not _close(target.log_density(some), tensors["log_p"]):
            raise RunError(f"{folder}: log p of this target differs: the fit is of another one")
        if family is not None and not _close(family.log_prob(some), tensors["log_q"]):
            raise RunError(
                f"{folder}: log q of the stored q differs from what was stored beside it"
            )
    reason = str(record.get("reason", ""))
    return Saved(
        target=target,
        family=family,
        draws=tensors["draws"],
        log_p=tensors["log_p"],
        log_q=tensors["log_q"],
        scores=(tensors["score_p"], tensors["score_q"]),
        converged=bool(record["converged"]),
        record=record,
        improper=bool(record.get("improper", reason.startswith(IMPROPER))),  # older ones: by words
        declare=str(record.get("declare", "")),
        reason=reason,
    )


def _close(again: Tensor, stored: Tensor) -> bool:
    stored = stored[: limits.CHECKED_DRAWS]
    near = (again - stored).abs() <= limits.CHECK_TOLERANCE * stored.abs().max().clamp_min(1.0)
    return bool((near | (again == stored)).all())


def _state(family: Family) -> dict[str, Tensor]:
    frame = {"shift": family.shift, "scale": family.scale}
    return {PART + name: value for name, value in (frame | family.state_dict()).items()}


def _family(record: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> Family | None:
    """Make q from its name, its options and its tensors."""
    said = record.get("family")
    if said is None:
        return None
    state = {name[len(PART) :]: one for name, one in tensors.items() if name.startswith(PART)}
    try:
        frame = Frame(state.pop("shift"), state.pop("scale"))
        family: Family = NAMED[said["name"]](frame, **said["options"])
        family.load_state_dict(state)
    except MissingExtraError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise RunError(f"{path}: its q cannot be made again ({error})") from error
    return family.requires_grad_(requires_grad=False)


def _record(path: Path) -> dict[str, Any]:
    record = read_json(path)
    known = isinstance(record, dict) and record.get("format") == limits.FIT_FORMAT
    names = record.get("names") if known else None
    whole = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not whole or not isinstance(record.get("converged"), bool):
        raise RunError(f"{path}: not the record of a fit, of format {limits.FIT_FORMAT}")
    return dict(record)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path}: not a readable safetensors file ({error})") from error
    found = {name for name in tensors if not name.startswith(PART)}
    if found != set(SHAPES):
        raise RunError(f"{path}: expected {', '.join(SHAPES)}; got {', '.join(sorted(found))}")
    rows = len(tensors["log_p"]) if tensors["log_p"].ndim else 0
    for name, axes in SHAPES.items():
        one = tensors[name]
        good = one.ndim == axes and len(one) == rows > 0 and one.is_floating_point()
        if not good or bool(one.isnan().any()):
            raise RunError(f"{path}: {name}: expected {axes} axes, {rows} rows, no NaN")
    return tensors
