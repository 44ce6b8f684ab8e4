"""The divergences of logits as operators that `torch.compile` keeps whole: values and gradients.

Which to use: nothing here directly; `sources.measure` calls `measured` while a graph is compiled,
and for logits that are not in memory as they stand (`interface.in_memory`): inside `vmap`, `grad`
and `jacrev` of `torch.func`, of a tensor subclass with its own dispatch, on the meta device.
Elsewhere operators cost more than the calculation of few logits.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from kullback.core import ArgumentValueError, message, require
from kullback.tokens.backends.choose import choose
from kullback.tokens.backends.interface import Sum, Task, for_backward, freed, in_memory

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
    p = check_logits(p, "logits" if q is None else "p_logits")
    check_options(ask.task, ask.nan, ask.align)
    if q is not None:
        p, q = common(p, check_logits(q, "q_logits"), ask.align)
    if torch.compiler.is_compiling():
        whole: Tensor = _measure(p, q, ask.ids, ask.mask, **_options(ask), nan=ask.nan)[0]
        return whole
    for x in (p, q):
        kept = x is None or not freed(x)
        require(kept, "logits", "a tensor with its memory", "one whose storage is freed")
    given = p, q, ask.ids, ask.mask
    found: Tensor = _Transformed.apply(*given, replace(ask, ids=None, mask=None))[0]  # type: ignore[no-untyped-call]
    return found


def _options(ask: Ask) -> dict[str, Any]:
    """Return the operators' options but `nan`."""
    task = ask.task
    given = {"wants": ",".join(task.wants), "temperature": task.temperature, "beta": task.beta}
    return given | {"backend": ask.backend}


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


def _values(
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


_measure = torch.library.custom_op("kullback::measure", _values, mutates_args=())


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


def _gradients(
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


_slopes = torch.library.custom_op("kullback::measure_slopes", _gradients, mutates_args=())


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


class _Transformed(torch.autograd.Function):
    """`_measure` inside the transforms of `torch.func`, which take no operator's own formulas."""

    @staticmethod
    def forward(
        p: Tensor, q: Tensor | None, ids: Tensor | None, mask: Tensor | None, ask: Ask
    ) -> tuple[Tensor, Tensor]:
        measure = _values if _are_here(p, q) else _measure
        return measure(p, q, ids, mask, **_options(ask), nan=ask.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*for_backward(*inputs[:4]), output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.ask = inputs[4]

    @staticmethod
    def backward(ctx: Any, grads: Tensor, _sums: Tensor) -> Any:
        wanted = ctx.needs_input_grad[:2]
        both = _Gradients.apply(*ctx.saved_tensors, grads, ctx.ask, wanted)  # type: ignore[no-untyped-call]
        pairs = zip(both, wanted, strict=True)
        return *(x if each else None for x, each in pairs), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_derivative()

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> Any:
        *given, ask = inputs
        return _over_batch(_Transformed.apply, info.batch_size, in_dims, given, ask)


class _Gradients(torch.autograd.Function):
    """`_slopes` there; a derivative of it is refused."""

    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, Tensor]:
        """Return them; given: p, q, ids, mask, sums, gradients of values, the `Ask`, and wanted."""
        p, q, ids, mask, sums, grads, ask, (to_p, to_q) = given
        options = {**_options(ask), "to_p": to_p, "to_q": to_q}
        slopes = _gradients if _are_here(p, q) else _slopes
        return slopes(p, q, ids, mask, sums, grads, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        _refuse_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_derivative()

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> Any:
        *given, ask, wanted = inputs
        return _slopes_over_batch(_Gradients.apply, info.batch_size, in_dims, given, ask, wanted)


def _are_here(*tensors: Tensor | None) -> bool:
    """Say whether an operator, whose first call imports for seconds, can be left out."""
    return all(x is None or in_memory(x) for x in tensors)


def _refuse_derivative() -> NoReturn:
    expected = "'reference', the one that differentiates twice and in forward mode"
    raise ArgumentValueError(message("backend", expected, "another"))


def _over_batch(
    call: Any, size: int, in_dims: Sequence[int | None], given: Sequence[Any], *rest: Any
) -> Any:
    """Return values and sums over a mapped axis, which comes first in the batch, and its place."""
    values, sums = call(*_batch_first(size, in_dims, given), *rest)
    return (values, sums.reshape(len(sums), size, -1)), (1, 1)


def _batch_first(
    size: int, in_dims: Sequence[int | None], given: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return p, q, ids and mask with the mapped axis, of this size, first; all need not have it."""
    sides = [_first(x, dim) for x, dim in zip(given, in_dims, strict=False)]
    logits = [x if x is None else x.expand(size, *x.shape[1:]) for x in sides[:2]]
    batch = 0 if logits[0] is None else logits[0].ndim - 1  # with the mapped axis
    small = [
        x if x is None else x.reshape(len(x), *(1,) * (batch - x.ndim), *x.shape[1:])
        for x in sides[2:4]
    ]
    return [*logits, *small]


def _first(x: Tensor | None, dim: int | None) -> Tensor | None:
    return x if x is None else x[None] if dim is None else x.movedim(dim, 0)


def _slopes_over_batch(
    call: Any, size: int, in_dims: Sequence[int | None], given: Sequence[Any], *rest: Any
) -> Any:
    """Return the gradients over a mapped axis, which comes first, and its place."""
    sums, grads = (
        x[:, None].expand(-1, size, *x.shape[1:]) if dim is None else x.movedim(dim, 1)
        for x, dim in zip(given[4:6], in_dims[4:6], strict=True)
    )
    logits = _batch_first(size, in_dims, given[:4])
    both = call(*logits, sums.reshape(len(sums), -1), grads, *rest)
    return both, tuple(0 if x.ndim > 1 else None for x in both)
