"""The divergences of logits as operators that `torch.compile` keeps whole: values and gradients.

Which to use: nothing here directly; `sources.measure` calls `measured` while a graph is compiled.
Outside of one, operators cost more than the calculation of few logits.
"""

from typing import Any

import torch
from torch import Tensor

from kullback.tokens.backends.choose import choose
from kullback.tokens.backends.interface import Sum, Task

from .logits import (
    Ask,
    check_logits,
    check_options,
    common,
    refuse_nan,
    slopes_of,
    spread_ids,
    spread_mask,
    values_of,
    warn_of_probabilities,
)
from .rounding import warn_of_rounding

__all__ = ["measured"]


def measured(p: Tensor, q: Tensor | None, ask: Ask) -> Tensor:
    """Return the values of `ask.task`, `[len(wants), *batch]`, as a node of a compiled graph."""
    check_logits(p, "logits" if q is None else "p_logits")
    check_options(ask.task, ask.nan, ask.align)
    if q is not None:
        check_logits(q, "q_logits")
        p, q = common(p, q, ask.align)
    options = {"nan": ask.nan, "backend": ask.backend}
    task = ask.task
    given = {"wants": ",".join(task.wants), "temperature": task.temperature, "beta": task.beta}
    found: Tensor = _measure(p, q, ask.ids, ask.mask, **given, **options)[0]
    return found


def _ask(p: Tensor, ids: Tensor | None, mask: Tensor | None, given: dict[str, Any]) -> Ask:
    """Return the task, with ids and mask `[positions]`."""
    task = Task(tuple(given["wants"].split(",")), given["temperature"], given["beta"])
    keep = spread_mask(mask, p)
    at = spread_ids(ids, keep, p)
    at, keep = (None if x is None else x.reshape(-1) for x in (at, keep))
    return Ask(task, ids=at, mask=keep)


def _matrices(*sides: Tensor | None) -> list[Any]:
    """Return logits as `[positions, vocab]`, the last axis contiguous."""
    flat = (x if x is None else x.reshape(-1, x.shape[-1]) for x in sides)
    return [x if x is None or x.stride(-1) == 1 else x.contiguous() for x in flat]


@torch.library.custom_op("kullback::measure", mutates_args=())
def _measure(
    p: Tensor,
    q: Tensor | None,
    ids: Tensor | None,
    mask: Tensor | None,
    *,
    wants: str,
    temperature: float,
    beta: float,
    nan: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Return the values `[len(wants), *batch]` and the sums `[len(Sum), positions]`."""
    ask = _ask(p, ids, mask, {"wants": wants, "temperature": temperature, "beta": beta})
    a, b = _matrices(p, q)
    if nan == "refuse" or p.device.type == "cpu":
        sides = {"p_logits": a, "q_logits": b}
        warn_of_probabilities({name: x for name, x in sides.items() if x is not None}, ask.mask)
    module = choose(backend, a, b, ask.task)
    found, saved, _ = values_of(a, b, ask, module)
    found = found.masked_fill(found.isnan().any(0), torch.nan)
    shaped = found.view(len(ask.task.wants), *p.shape[:-1])
    if nan == "refuse":
        refuse_nan(shaped, "logits" if q is None else "p_logits and q_logits")
        if q is not None:
            warn_of_rounding(a, b, found, ask.task, saved, module)
    none = torch.zeros(len(Sum), len(a), dtype=torch.float64, device=p.device)
    return shaped, saved[0] if saved else none


@_measure.register_fake
def _(p: Tensor, q: Any, ids: Any, mask: Any, *, wants: str, **options: Any) -> Any:
    wide = torch.float64 in (p.dtype, p.dtype if q is None else q.dtype)
    dtype = torch.float64 if wide else torch.float32
    batch = p.shape[:-1]
    positions = 1
    for size in batch:
        positions = positions * size
    return (
        p.new_empty((len(wants.split(",")), *batch), dtype=dtype),
        p.new_empty((len(Sum), positions), dtype=torch.float64),
    )


@torch.library.custom_op("kullback::measure_slopes", mutates_args=())
def _slopes(
    p: Tensor,
    q: Tensor | None,
    ids: Tensor | None,
    mask: Tensor | None,
    sums: Tensor,
    grads: Tensor,
    *,
    wants: str,
    temperature: float,
    beta: float,
    backend: str,
    to_p: bool,
    to_q: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the values by p and by q; empty for a side that is not wanted."""
    ask = _ask(p, ids, mask, {"wants": wants, "temperature": temperature, "beta": beta})
    a, b = _matrices(p, q)
    module = choose(backend, a, b, ask.task)
    pieces = [((), sums)] if a.numel() else []
    flat = grads.reshape(grads.shape[0], -1)
    both = slopes_of(a, b, ask, module, pieces, flat, wanted=(to_p, to_q))
    shaped = (x if x is None else x.view(p.shape) for x in both)
    gp, gq = (p.new_empty(0) if x is None else x for x in shaped)
    return gp, gq


@_slopes.register_fake
def _(p: Tensor, q: Any, *rest: Any, to_p: bool, to_q: bool, **options: Any) -> Any:
    gp = p.new_empty(p.shape if to_p else 0)
    gq = p.new_empty(0) if q is None or not to_q else q.new_empty(q.shape)
    return gp, gq


def _keep(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.options = {name: x for name, x in keyword_only_inputs.items() if name != "nan"}


def _backward(ctx: Any, grads: Tensor, _sums: Tensor) -> Any:
    p, q, ids, mask, sums = ctx.saved_tensors
    to_p, to_q = ctx.needs_input_grad[:2]
    both = _slopes(p, q, ids, mask, sums, grads, **ctx.options, to_p=to_p, to_q=to_q)
    pairs = zip(both, (to_p, to_q), strict=True)
    return *(x if wanted else None for x, wanted in pairs), None, None


_measure.register_autograd(_backward, setup_context=_keep)
