"""The arguments that every function of this folder takes, checked and brought to one shape.

Which to use: none of this directly; `measure` calls it.
"""

import math
import warnings

import torch
from torch import Tensor

from kullback.core import ArgumentTypeError, ArgumentValueError, require, require_type
from kullback.core.checks import describe, message

from . import limits
from .task import Task

__all__ = [
    "InputWarning",
    "check_logits",
    "check_options",
    "common",
    "refuse_nan",
    "spread_ids",
    "spread_mask",
    "warn_of_probabilities",
]

_LOOKED_AT = 8  # numbers of the first row, most often enough to tell logits


class InputWarning(UserWarning):
    """The inputs look like another quantity than the one that the argument is.

    >>> issubclass(InputWarning, UserWarning)
    True
    """


def check_logits(logits: Tensor, name: str) -> None:
    """Require a float tensor `[*batch, vocab]` with a token."""
    require_type(logits, Tensor, name, "torch.as_tensor(...)")
    if not logits.is_floating_point():
        got = describe(logits)
        raise ArgumentTypeError(message(name, "a float tensor", got, f"{name}.float()"))
    full = logits.ndim >= 1 and logits.shape[-1] >= 1
    require(full, name, "a tensor [*batch, vocab] with at least one token", describe(logits))


def check_options(task: Task, nan: str, align: str | None) -> None:
    """Require sensible numbers in the task, and known words for the options."""
    for name, value in (("temperature", task.temperature), ("beta", task.beta)):
        require_type(value, (int, float), name)
    good = 0.0 < task.temperature < math.inf
    require(good, "temperature", "a positive, finite number", task.temperature)
    hint = "kl(p, q) or kl(q, p), which are the limits of js / beta and js / (1 - beta)"
    between = 0.0 < task.beta < 1.0
    require(between, "beta", "a number strictly between 0 and 1", task.beta, hint)
    require(nan in ("refuse", "pass"), "nan", "'refuse' or 'pass'", repr(nan))
    require(align in (None, "crop"), "align", "None or 'crop'", repr(align))


def common(p: Tensor, q: Tensor, align: str | None) -> tuple[Tensor, Tensor]:
    """Return both logits over the same tokens and the same batch, as views."""
    sizes = p.shape[-1], q.shape[-1]
    if align == "crop":
        p, q = p[..., : min(sizes)], q[..., : min(sizes)]
    else:
        got = f"{sizes[0]} and {sizes[1]}"
        hint = "align='crop', if the larger one is only padded: it drops the tokens beyond"
        require(sizes[0] == sizes[1], "p_logits and q_logits", "one vocabulary size", got, hint)
    same = p.device == q.device
    require(same, "p_logits and q_logits", "one device", f"{p.device} and {q.device}")
    try:
        a, b = torch.broadcast_tensors(p[..., 0], q[..., 0])  # type: ignore[no-untyped-call]
    except RuntimeError:
        got = f"{list(p.shape[:-1])} and {list(q.shape[:-1])}"
        text = message("p_logits and q_logits", "batches that broadcast", got)
        raise ArgumentValueError(text) from None
    return p.expand(*a.shape, -1), q.expand(*b.shape, -1)


def spread_mask(mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """Return the mask, bool, over the logits' batch."""
    if mask is None:
        return None
    require_type(mask, Tensor, "mask", "torch.as_tensor(...)")
    if mask.dtype != torch.bool:
        raise ArgumentTypeError(message("mask", "a bool tensor", describe(mask), "mask.bool()"))
    return _spread(mask, logits, "mask")


def spread_ids(ids: Tensor | None, keep: Tensor | None, logits: Tensor) -> Tensor | None:
    """Return the ids, int64, over the logits' batch; 0 where they do not count."""
    if ids is None:
        return None
    require_type(ids, Tensor, "ids", "torch.as_tensor(...)")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ArgumentTypeError(message("ids", "an integer tensor", describe(ids), "ids.long()"))
    ids = _spread(ids.long(), logits, "ids")
    ids = ids if keep is None else ids.where(keep, 0)
    wrong = (ids < 0) | (ids >= logits.shape[-1])
    if bool(wrong.any()):
        hint = "mask= for positions that have no token (-100, padding)"
        expected = f"token ids from 0 to {logits.shape[-1] - 1}"
        raise ArgumentValueError(message("ids", expected, int(ids[wrong][0]), hint))
    return ids


def _spread(x: Tensor, logits: Tensor, name: str) -> Tensor:
    batch, device = logits.shape[:-1], logits.device
    require(x.device == device, name, f"a tensor on {device}, with the logits", x.device)
    try:
        return x.expand(batch).contiguous()
    except RuntimeError:
        expected = f"a tensor that broadcasts to the batch {list(batch)}"
        raise ArgumentValueError(message(name, expected, describe(x))) from None


def refuse_nan(found: Tensor, name: str) -> None:
    """Require values `[wants, *batch]` without NaN: every row had a distribution."""
    bad = found.isnan().any(0)
    if not bool(bad.any()):
        return
    first = tuple(bad.nonzero()[0].tolist())
    got = f"{int(bad.sum())} positions of {bad.numel()} that are not, the first at {first}"
    expected = "at every position some finite logit, none NaN or +inf"
    hint = "mask= to leave them out, or nan='pass' to get NaN there"
    raise ArgumentValueError(message(name, expected, got, hint))


def warn_of_probabilities(
    logits: dict[str, Tensor], keep: Tensor | None, *, stacklevel: int = 4
) -> None:
    """Warn of logits `[*batch, vocab]` of which all rows that count are probabilities.

    Rows of a single 1 and 0s say so only where both sides are of that kind. Looks at some numbers
    of the first row, and further only where these leave it open.
    """
    found = {name: x for name, x in logits.items() if _are_probabilities(x.detach(), keep)}
    if len(found) < len(logits):
        found = {name: x for name, x in found.items() if not _are_one_hot(x.detach(), keep)}
    if found:
        names, remedies = " and ".join(found), ", ".join(f"{name}.log()" for name in found)
        text = (
            f"{names}: every row is non-negative and sums to 1, as probabilities do, and softmax "
            f"is taken of it as of logits. Try: {remedies}, if probabilities are meant"
        )
        warnings.warn(text, InputWarning, stacklevel=stacklevel)


def _are_probabilities(x: Tensor, keep: Tensor | None) -> bool:
    """Say whether all rows `[*batch, vocab]` that count are non-negative and sum to 1."""
    vocab = x.shape[-1]
    if vocab < 2 or not x.numel():
        return False
    first = x[(0,) * (x.ndim - 1)]
    if keep is not None and keep.ndim:
        place = keep.reshape(-1).to(torch.uint8).argmax()
        first = x[torch.unravel_index(place, keep.shape)]
    slack = max(limits.PROBABILITY_SLACK, 2 * torch.finfo(x.dtype).eps)
    slack += vocab * torch.finfo(x.dtype).smallest_normal  # what was too small to be held
    if not all(0 <= number <= 1 + slack for number in first[:_LOOKED_AT].tolist()):
        return False
    if not _sum_to_one(first[None], slack):
        return False
    rows = x.reshape(-1, vocab) if keep is None else x[keep].reshape(-1, vocab)
    return len(rows) > 0 and _sum_to_one(rows, slack)


def _sum_to_one(rows: Tensor, slack: float) -> bool:
    off = (rows.sum(-1, dtype=torch.float64) - 1).abs() <= slack
    return bool((off & (rows.amin(-1) >= 0)).all())


def _are_one_hot(x: Tensor, keep: Tensor | None) -> bool:
    rows = x if keep is None else x[keep]
    return bool(((rows == 0) | (rows == 1)).all())
