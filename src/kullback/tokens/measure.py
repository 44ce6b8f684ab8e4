"""From logits of any shape to rows, through a backend, and back.

Which to use: nothing here directly; `divergences` is the face. `measure` checks, broadcasts,
chooses the backend, and refuses or lets through rows without a distribution.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kullback.core import ArgumentValueError
from kullback.core.checks import message

from . import algebra
from .arguments import (
    check_logits,
    check_options,
    common,
    refuse_nan,
    spread_ids,
    spread_mask,
    warn_of_probabilities,
)
from .backends import choose
from .precision import warn_of_rounding
from .task import Task

__all__ = ["measure"]


def measure(
    p: Tensor,
    q: Tensor | None,
    task: Task,
    *,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    align: str | None = None,
    nan: str = "refuse",
    backend: str = "auto",
    names: tuple[str, str] = ("p_logits", "q_logits"),
) -> Tensor:
    """Return the values of `task` for logits of any shape, `[len(wants), *batch]`.

    p, q: `[*batch, vocab]`, broadcast over their batches; ids, mask: `[*batch]`, broadcast to the
    same. The arguments are those of the public functions (`divergences`). names: what p and q are
    called in messages; p alone is "logits".

    >>> measure(torch.zeros(3, 2), torch.zeros(2), Task(("kl",)))
    tensor([[0., 0., 0.]])
    """
    name = "logits" if q is None else names[0]
    check_logits(p, name)
    check_options(task, nan, align)
    given = {name: p}
    if q is not None:
        check_logits(q, names[1])
        p, q = common(p, q, align)
        given = {name: p, names[1]: q}
    keep = spread_mask(mask, p)
    if nan == "refuse" or p.device.type == "cpu":
        warn_of_probabilities(given, keep)
    ids = spread_ids(ids, keep, p)
    module = choose(backend, p, q, task)
    found: Tensor
    if hasattr(module, "values"):
        found = module.values(p, q, ids, keep, task)
    else:
        rows = (x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (p, q))
        found = _Rows.apply(*rows, ids, keep, task, module)  # type: ignore[no-untyped-call]
    found = found.masked_fill(found.detach().isnan().any(0), math.nan)
    if nan == "refuse":
        refuse_nan(found.detach(), f"{name} and {names[1]}" if q is not None else name)
        if q is not None:
            warn_of_rounding(p, q, found.detach(), task)
    return found


class _Rows(torch.autograd.Function):
    """A backend's forward and backward passes, over every piece of the batch that is a matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        q: Tensor | None,
        ids: Tensor | None,
        keep: Tensor | None,
        task: Task,
        module: Any,
    ) -> Tensor:
        wide = torch.float64 in (p.dtype, None if q is None else q.dtype)
        dtype = torch.float64 if wide else torch.float32
        found = torch.empty(len(task.wants), *p.shape[:-1], dtype=dtype, device=p.device)
        ctx.pieces, saved = list(_pieces(p, q)), []
        for piece in ctx.pieces:
            a, b, at, live = _part(piece, p, q, ids, keep)
            sums = module.sums(a, b, live, task)
            algebra.fill_log_probs(sums, a, b, at, task)
            values = algebra.values(sums, task)
            values = values if live is None else values.masked_fill(~live, 0)
            found[:, *piece] = values.view(found[:, *piece].shape)
            saved.append(sums)
        ctx.save_for_backward(p, q, ids, keep, *saved)
        ctx.task, ctx.module = task, module
        return found

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> Any:
        with torch.no_grad():
            both = _Rows.slopes(ctx, grads)
        if torch.is_grad_enabled():  # somebody asked for create_graph=True
            inputs = ctx.saved_tensors[:2]
            both = [
                x if x is None else _Once.apply(x, logits)  # type: ignore[no-untyped-call]
                for x, logits in zip(both, inputs, strict=True)
            ]
        return *both, None, None, None, None

    @staticmethod
    def slopes(ctx: Any, grads: Tensor) -> list[Tensor | None]:
        """Return the gradients by p and by q, None for a side that wants none."""
        p, q, ids, keep, *saved = ctx.saved_tensors
        both = [
            torch.empty(x.shape, dtype=x.dtype, device=x.device) if wanted else None
            for x, wanted in zip((p, q), ctx.needs_input_grad[:2], strict=True)
        ]
        for piece, sums in zip(ctx.pieces, saved, strict=True):
            a, b, at, live = _part(piece, p, q, ids, keep)
            slopes = grads[:, *piece].reshape(len(ctx.task.wants), -1)
            c = algebra.coefficients(sums, slopes, ctx.task)
            c = c if live is None else c.masked_fill(~live, 0)
            out = (_matrix(x, piece) for x in both)
            ctx.module.slopes(a, b, at, live, ctx.task, sums, c, *out)
        return both


class _Once(torch.autograd.Function):
    """A gradient that says so, instead of being a constant, when it is differentiated again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, logits: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        text = message("backend", "'reference', the one that differentiates twice", "another")
        raise ArgumentValueError(text)


def _pieces(p: Tensor, q: Tensor | None) -> Iterator[tuple[int, ...]]:
    """Yield the indices of leading axes that leave parts which can be seen as `[n, vocab]`."""
    if not p[..., 0].numel():
        return
    depth = 0
    while not all(x is None or _is_matrix(x[(0,) * depth]) for x in (p, q)):
        depth += 1
    yield from itertools.product(*map(range, p.shape[:depth]))


def _is_matrix(x: Tensor) -> bool:
    try:
        x.view(-1, x.shape[-1])
    except RuntimeError:  # view's way of saying that the axes do not merge
        return False
    return True


def _matrix(x: Any, piece: tuple[int, ...]) -> Any:
    return None if x is None else x[piece].view(-1, x.shape[-1])


def _part(piece: tuple[int, ...], p: Any, q: Any, ids: Any, keep: Any) -> tuple[Any, ...]:
    small = (None if x is None else x[piece].reshape(-1) for x in (ids, keep))
    return _matrix(p, piece), _matrix(q, piece), *small
