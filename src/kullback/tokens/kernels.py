"""A block of both logits, by the fastest backend that can: its `Parts`, and its gradient.

Which to use: nothing here directly; `hidden` does. The `native` and `triton` backends read a block
once; where neither can work, `parts` does the same in PyTorch, some passes more.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kullback.core import require

from . import algebra, parts
from .backends import choose
from .parts import Parts
from .task import Sum, Task

__all__ = ["gradient", "of_logits"]

_TASK = Task(("kl",))  # the temperature is in the logits already
_TINY = 1e-300  # a mass that rounds to nothing, of tokens that are there


def of_logits(
    p: Tensor, q: Tensor, *, rooms: tuple[Tensor, ...], banned: bool, backend: str
) -> Parts:
    """Return the `Parts` of a block `[n, tokens]`; arguments as in `parts.of_logits`.

    >>> p = torch.zeros(1, 4)
    >>> of_logits(p, p.clone(), rooms=(), banned=False, backend="auto").kl
    tensor([0.], dtype=torch.float64)
    """
    module = _fast(backend, p, q)
    if module is None:
        return parts.of_logits(p, q, rooms=rooms, banned=banned)
    sums = module.sums(p, q, None, _TASK)
    if banned and bool(sums[[Sum.P_LOG, Sum.Q_LOG]].isnan().any()):
        # a block that a side bans whole is no distribution to a backend, but it is one here
        return parts.of_logits(p, q, rooms=rooms, banned=banned)
    log_p, log_q = sums[Sum.P_MAX] + sums[Sum.P_LOG], sums[Sum.Q_MAX] + sums[Sum.Q_LOG]
    if not banned:
        return Parts(log_p, log_q, sums[Sum.KL], torch.full_like(log_p, -math.inf))
    lost = torch.where(sums[Sum.P_ALONE] > 0, sums[Sum.P_LOST].clamp(_TINY, 1.0), 0.0)
    log_kept = torch.log1p(-lost)
    kl = torch.where(lost > 0, (sums[Sum.KL] - lost) / (1 - lost) - log_kept, sums[Sum.KL])
    kl = kl.masked_fill(lost == 1, 0.0)
    return Parts(log_p + log_kept, log_q, kl, log_p + lost.log())


def gradient(
    p: Tensor,
    q: Tensor,
    whole: Parts,
    scale: Tensor,
    *,
    rooms: tuple[Tensor, ...],
    banned: bool,
    backend: str,
    to_p: bool,
    to_q: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return `scale` times the gradient of a block; other arguments as in `parts.gradient`.

    scale: `[n]`.

    >>> p, q = torch.zeros(1, 2), torch.zeros(1, 2)
    >>> whole = parts.of_logits(p.clone(), q.clone())
    >>> how = {"rooms": (), "banned": False, "backend": "auto", "to_p": False, "to_q": True}
    >>> gradient(p, q, whole, torch.ones(1), **how)[1]
    tensor([[0., 0.]])
    """
    module = _fast(backend, p, q)
    if module is None:
        pair = parts.gradient(p, q, whole, rooms=rooms, banned=banned, to_p=to_p, to_q=to_q)
        a, b = (x if x is None else x.mul_(scale[:, None]) for x in pair)
        return a, b
    sums = _sums(whole, banned=banned)
    grad_p, grad_q = rooms[0] if to_p else None, rooms[1] if to_q else None
    c = algebra.coefficients(sums, scale[None], _TASK)
    module.slopes(p, q, None, None, _TASK, sums, c, grad_p, grad_q)
    return grad_p, grad_q


def _sums(whole: Parts, *, banned: bool) -> Tensor:
    """Return the `Sum`s that a backend's slopes need, from the `Parts` of a whole row."""
    log_p = torch.logaddexp(whole.log_p, whole.log_lost) if banned else whole.log_p
    sums = log_p.new_zeros(len(Sum), len(log_p))
    for top, log, norm in ((Sum.P_MAX, Sum.P_LOG, log_p), (Sum.Q_MAX, Sum.Q_LOG, whole.log_q)):
        sums[top] = (norm + 1e-3).float().double()  # not below any logit, and a float32
        sums[log] = norm - sums[top]
    sums[Sum.KL], sums[Sum.NOTE] = whole.kl, float(banned)
    if banned:
        lost, log_kept = (whole.log_lost - log_p).exp(), whole.log_p - log_p
        inner = torch.where(log_kept == -math.inf, 0.0, log_kept.exp() * (whole.kl + log_kept))
        sums[Sum.KL], sums[Sum.P_LOST] = lost + inner, lost
    return sums


def _fast(backend: str, p: Tensor, q: Tensor) -> Any:
    """Return the backend's module, None for PyTorch's own operations."""
    require(backend != "reference", "backend", "one that works in blocks", "'reference'", "'auto'")
    module = choose(backend, p, q, _TASK)
    return None if module.__name__.endswith("chunked") else module
