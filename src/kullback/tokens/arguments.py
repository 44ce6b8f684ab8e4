"""The arguments that every function of this folder takes, checked and brought to one shape.

Which to use: none of this directly; `measure` calls it.
"""

import math

import torch
from torch import Tensor

from kullback.core import ArgumentTypeError, ArgumentValueError, require, require_type
from kullback.core.checks import describe, message

from .task import Task

__all__ = ["check_logits", "check_options", "common", "refuse_nan", "spread_ids", "spread_mask"]


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
