"""Values from logits: the arguments checked and brought to one shape, through a backend and back.

`measure` is what the functions of `functions` call for logits. It checks, broadcasts, chooses the
backend, and refuses or lets through rows without a distribution. `Ask` holds what is asked of the
other sources, which share the checks.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kullback.core import (
    ArgumentTypeError,
    ArgumentValueError,
    describe,
    message,
    require,
    require_type,
    warn_caller,
)
from kullback.tokens import limits
from kullback.tokens.backends import interface
from kullback.tokens.backends.choose import choose, direct
from kullback.tokens.backends.interface import Rows, Task, in_memory, transformed

from .rounding import warn_of_rounding
from .slices import Pointwise

__all__ = [
    "Ask",
    "InputWarning",
    "check_dense",
    "check_logits",
    "check_memory",
    "check_options",
    "common",
    "measure",
    "plain_kl",
    "refuse_nan",
    "slopes_of",
    "spread_ids",
    "spread_mask",
    "values_of",
    "warn_of_probabilities",
]

_LOOKED_AT = 8  # numbers of the first row, most often enough to tell logits


class InputWarning(UserWarning):
    """The inputs look like another quantity than the one that the argument is.

    Example:
        >>> issubclass(InputWarning, UserWarning)
        True
    """


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a source: the task's values, or `what` instead, and the options.

    The options are those of the public functions (`functions`).
    """

    task: Task
    what: Pointwise | None = None
    ids: Tensor | None = None
    mask: Tensor | None = None
    align: str | None = None
    nan: str = "refuse"
    backend: str = "auto"


def check_logits(logits: Tensor, name: str) -> Tensor:
    """Return dense float logits `[*batch, vocab]` with a token, without a negative bit."""
    require_type(logits, Tensor, name, "torch.as_tensor(...)")
    if not logits.is_floating_point():
        got, to_float = describe(logits), "real" if logits.is_complex() else "float()"
        to_float = "dequantize()" if logits.is_quantized else to_float
        raise ArgumentTypeError(message(name, "a float tensor", got, f"{name}.{to_float}"))
    if logits.dtype.itemsize == 1:
        got, hint = describe(logits), f"{name}.float(), with their scale"
        raise ArgumentTypeError(message(name, "a float tensor of 16 bits or more", got, hint))
    check_dense(logits, name)
    if not logits.ndim or not logits.shape[-1]:
        text = "a tensor [*batch, vocab] with at least one token"
        raise ArgumentValueError(message(name, text, describe(logits)))
    return logits.resolve_neg()


def check_dense(x: Tensor, name: str) -> None:
    """Require a tensor that is neither sparse nor nested nor of another layout."""
    if x.is_nested:
        hint = "torch.nested.to_padded_tensor(...), and mask="
        raise ArgumentTypeError(message(name, "a dense tensor", "a nested one", hint))
    if x.layout is not torch.strided:
        got = f"one of layout {x.layout}"
        raise ArgumentTypeError(message(name, "a dense tensor", got, f"{name}.to_dense()"))


def check_memory(logits: Tensor, name: str) -> Tensor:
    """Return what `check_logits` does; require numbers in memory, and no transform of them."""
    logits = check_logits(logits, name)
    expected = "a tensor whose numbers lie in memory, outside of torch.func and forward mode"
    hint = "logits themselves (tokens.kl(p_logits, q_logits)), which may be transformed"
    require(in_memory(logits), name, expected, type(logits).__name__, hint)
    return logits


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
    if p.shape == q.shape and p.device == q.device:
        return p, q
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
    return p.expand((*a.shape, -1)), q.expand((*b.shape, -1))


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
    if not transformed(ids) and bool(wrong.any()):
        hint = "mask= for positions that have no token (-100, padding)"
        expected = f"token ids from 0 to {logits.shape[-1] - 1}"
        raise ArgumentValueError(message("ids", expected, int(ids[wrong][0]), hint))
    return ids


def _spread(x: Tensor, logits: Tensor, name: str) -> Tensor:
    batch, device = logits.shape[:-1], logits.device
    require(x.device == device, name, f"a tensor on {device}, with the logits", x.device)
    try:
        return x.expand(batch).contiguous().resolve_neg()
    except RuntimeError:
        expected = f"a tensor that broadcasts to the batch {list(batch)}"
        raise ArgumentValueError(message(name, expected, describe(x))) from None


def refuse_nan(found: Tensor, name: str) -> None:
    """Require values `[wants, *batch]` without NaN: every row had a distribution."""
    bad = found.isnan()
    if not bad.any():
        return
    bad = bad.any(0)
    first = tuple(bad.nonzero()[0].tolist())
    got = f"{int(bad.sum())} positions of {bad.numel()} that are not, the first at {first}"
    expected = "at every position some finite logit, none NaN, +inf or beyond 5e9 temperatures"
    hint = "mask= to leave them out, or nan='pass' to get NaN there"
    raise ArgumentValueError(message(name, expected, got, hint))


def warn_of_probabilities(logits: dict[str, Tensor], keep: Tensor | None) -> None:
    """Warn of logits `[*batch, vocab]` of which all rows that count are probabilities.

    Rows of a single 1 and 0s say so only where both sides are of that kind. Looks at some numbers
    of the first row, and further only where these leave it open.
    """
    if any(map(transformed, logits.values())):  # inside a transform no number is at hand
        return
    found = {name: x for name, x in logits.items() if _are_probabilities(x.detach(), keep)}
    if found and len(found) < len(logits):
        found = {name: x for name, x in found.items() if not _are_one_hot(x.detach(), keep)}
    if found:
        names, remedies = " and ".join(found), ", ".join(f"{name}.log()" for name in found)
        text = (
            f"{names}: every row is non-negative and sums to 1, as probabilities do, and softmax "
            f"is taken of it as of logits. Try: {remedies}, if probabilities are meant"
        )
        warn_caller(text, InputWarning)


def _are_probabilities(x: Tensor, keep: Tensor | None) -> bool:
    """Say whether all rows `[*batch, vocab]` that count are non-negative and sum to 1."""
    vocab = x.shape[-1]
    if vocab < 2 or not x.numel():
        return False
    if keep is None and x[(0,) * x.ndim].item() < 0:
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
    same. The arguments are those of the public functions (`functions`). names: what p and q are
    called in messages; p alone is "logits".

    >>> measure(torch.zeros(3, 2), torch.zeros(2), Task(("kl",)))
    tensor([[0., 0., 0.]])
    """
    name = "logits" if q is None else names[0]
    p = check_logits(p, name)
    check_options(task, nan, align)
    given = {name: p}
    if q is not None:
        p, q = common(p, check_logits(q, names[1]), align)
        given = {name: p, names[1]: q}
    if any(map(transformed, given.values())):  # by "reference": others are taken by `compiled`
        hint = "nan='pass', or another backend"
        require(nan == "pass", "nan", "'pass' with 'reference' inside torch.func", repr(nan), hint)
    keep = spread_mask(mask, p)
    if nan == "refuse" or p.device.type == "cpu":
        warn_of_probabilities(given, keep)
    ids = spread_ids(ids, keep, p)
    module = choose(backend, p, q, task)
    found: Tensor
    sums: list[Tensor] = []
    if hasattr(module, "values"):
        found = module.values(p, q, ids, keep, task)
    else:
        a, b = (x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (p, q))
        ask = Ask(task, ids=ids, mask=keep)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (a, b)):
            found = _Rows.apply(a, b, ask, module, sums)  # type: ignore[no-untyped-call]
        else:
            values_only = replace(ask, task=replace(task, slopes=False))
            found, sums, _ = values_of(a, b, values_only, module)
    if len(task.wants) > 1:
        found = found.masked_fill(found.detach().isnan().any(0), math.nan)
    if nan == "refuse":
        refuse_nan(found.detach(), f"{name} and {names[1]}" if q is not None else name)
        if q is not None:
            warn_of_rounding(p, q, found.detach(), task, sums, module)
    return found


def plain_kl(p: Tensor, q: Tensor, temperature: float, nan: str, backend: str) -> Tensor | None:
    """Return KL(p‖q) `[*batch]` where nothing but one call of the backend is needed.

    None for all that is not plain: strides, two shapes, a row without a distribution, arguments to
    be refused. What it saves is a hundred microseconds with the gradient, most of a call of few
    logits.

    >>> plain_kl(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 3.0]), 1.0, "refuse", "chunked")
    tensor(0.)
    """
    plain = (
        not torch.compiler.is_compiling()
        and in_memory(p)
        and in_memory(q)
        and p.shape == q.shape
        and p.is_floating_point()
        and q.is_floating_point()
        and min(p.dtype.itemsize, q.dtype.itemsize) > 1
        and p.is_contiguous()
        and q.is_contiguous()
        and p.numel() > 0
        and p.ndim > 0
        and backend in ("auto", "native", "chunked")
        and nan in ("refuse", "pass")
        and type(temperature) in (float, int)
        and 0.0 < temperature < math.inf
    )
    module = direct(backend, p, q) if plain else None
    found = None if module is None else module.kl(p, q, temperature)
    if found is None:
        return None
    values: Tensor
    values, sums, coarse = found
    if coarse and nan == "refuse":
        warn_of_rounding(p, q, values[None], Task(("kl",), temperature), [sums], module)
    if (p.requires_grad or q.requires_grad) and torch.is_grad_enabled():
        found = values, sums, module
        values = _Direct.apply(p, q, temperature, found)  # type: ignore[no-untyped-call]
    return values


class _Direct(torch.autograd.Function):
    """The gradients of KL(p‖q) of contiguous logits, whose values and sums are known."""

    @staticmethod
    def forward(
        ctx: Any, p: Tensor, q: Tensor, temperature: float, found: tuple[Tensor, Tensor, Any]
    ) -> Tensor:
        """Return the values; found: them, the sums, and the backend's module."""
        ctx.save_for_backward(*interface.for_backward(p, q))
        ctx.temperature, ctx.found = temperature, found[1:]
        return found[0]

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> Any:
        p, q = ctx.saved_tensors
        sums, module = ctx.found
        grads = _readable(grads)
        both = module.kl_slopes(p, q, ctx.temperature, sums, grads, ctx.needs_input_grad[:2])
        if torch.is_grad_enabled():
            both = _once(both, (p, q))
        return both[0], both[1], None, None


def _readable(grads: Tensor) -> Tensor:
    """Return gradients of values without a negative bit; refuse many of them at a time."""
    interface.refuse_mapped(grads, "grads", "torch.func.jacrev, or one gradient at a time")
    return grads.resolve_neg()


def values_of(
    p: Any, q: Tensor | None, ask: Ask, module: Any
) -> tuple[Tensor, list[Tensor], list[tuple[int, ...]]]:
    """Return the values `[len(wants), *batch]`, the sums of every piece, and the pieces."""
    task = ask.task
    wide = torch.float64 in (p.dtype, None if q is None else q.dtype)
    dtype = torch.float64 if wide else torch.float32
    pieces, saved = list(_pieces(p, q)), []
    found = torch.empty((len(task.wants), *p.shape[:-1]), dtype=dtype, device=p.device)
    for piece in pieces:
        a, b, at, live = _part(piece, p, q, ask.ids, ask.mask)
        sums = module.sums(a, b, live, task)
        interface.fill_log_probs(sums, a, b, at, task)
        values = interface.values(sums, task)
        values = values if live is None else values.masked_fill(~live, 0)
        part = found[_all_of(piece)] if piece else found
        part.view(values.shape).copy_(values)
        saved.append(sums)
    return found, saved, pieces


class _Rows(torch.autograd.Function):
    """A backend's forward and backward passes, over every piece of the batch that is a matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        q: Tensor | None,
        ask: Ask,
        module: Any,
        summed: list[Tensor],
    ) -> Tensor:
        """Return the values; `summed` is given the sums of every piece."""
        found, saved, ctx.pieces = values_of(p, q, ask, module)
        summed.extend(saved)
        ctx.save_for_backward(*interface.for_backward(p, q, ask.ids, ask.mask), *saved)
        ctx.task, ctx.module = ask.task, module
        return found

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> Any:
        with torch.no_grad():
            both = _Rows.slopes(ctx, _readable(grads))
        return *_once(both, ctx.saved_tensors[:2]), None, None, None

    @staticmethod
    def slopes(ctx: Any, grads: Tensor) -> list[Tensor | None]:
        """Return the gradients by p and by q, None for a side that wants none."""
        p, q, ids, keep, *saved = ctx.saved_tensors
        ask = Ask(ctx.task, ids=ids, mask=keep)
        pieces = zip(ctx.pieces, saved, strict=True)
        return slopes_of(p, q, ask, ctx.module, pieces, grads, wanted=ctx.needs_input_grad[:2])


def slopes_of(
    p: Tensor,
    q: Tensor | None,
    ask: Ask,
    module: Any,
    pieces: Iterable[tuple[tuple[int, ...], Tensor]],
    grads: Tensor,
    *,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients by p and by q, None for a side that is not wanted.

    pieces: parts of the batch with their sums; grads: `[len(wants), *batch]`.
    """
    both = [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if want and x is not None else None
        for x, want in zip((p, q), wanted, strict=True)
    ]
    for piece, sums in pieces:
        a, b, at, live = _part(piece, p, q, ask.ids, ask.mask)
        slopes = grads[_all_of(piece)].reshape(len(ask.task.wants), -1)
        c = interface.coefficients(sums, slopes, ask.task)
        c = c if live is None else c.masked_fill(~live, 0)
        to_p, to_q = (_matrix(x, piece) for x in both)
        module.slopes(Rows(a, b, at, live), ask.task, sums, c, to_p, to_q)
    return both


def _once(both: Sequence[Tensor | None], logits: Sequence[Tensor | None]) -> list[Any]:
    """Return the gradients; where somebody asked for create_graph=True, as `_Once`."""
    if not torch.is_grad_enabled():
        return list(both)
    return [
        x if x is None else _Once.apply(x, side)  # type: ignore[no-untyped-call]
        for x, side in zip(both, logits, strict=True)
    ]


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
    if not p.numel():
        return
    if p.ndim == 2 and (q is None or q.ndim == 2):
        yield ()
        return
    depth = 0
    while not all(x is None or _is_matrix(x[(0,) * depth]) for x in (p, q)):
        depth += 1
    yield from itertools.product(*map(range, p.shape[:depth]))


def _all_of(piece: tuple[int, ...]) -> Any:
    """Return the index of a piece in values `[len(wants), *batch]`."""
    return (slice(None), *piece)


def _is_matrix(x: Tensor) -> bool:
    try:
        x.view(-1, x.shape[-1])
    except RuntimeError:  # view's way of saying that the axes do not merge
        return False
    return True


def _matrix(x: Any, piece: tuple[int, ...]) -> Any:
    return x if x is None or x.ndim == 2 else x[piece].view(-1, x.shape[-1])


def _part(piece: tuple[int, ...], p: Any, q: Any, ids: Any, keep: Any) -> tuple[Any, ...]:
    small = (None if x is None else x[piece].reshape(-1) for x in (ids, keep))
    return _matrix(p, piece), _matrix(q, piece), *small
