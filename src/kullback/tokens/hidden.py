"""KL(p‖q) over a vocabulary from hidden states: no `[positions, vocab]` tensor ever exists.

Which to use: `kl_from_hidden` when both models' last hidden states and heads are at hand and the
logits would not fit; the functions from logits when they are there anyway. The vocabulary is
walked in blocks, each multiplied once and summed at once (`parts`), so that the forward pass does
the matrix products that must be done and no others; the backward pass multiplies again, which is
cheaper than keeping. Memory above the inputs and their gradients does not grow with positions or
vocabulary (MATH 5.7).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.core import ArgumentTypeError, require, require_type
from kullback.core.checks import describe, message

from .arguments import refuse_nan
from .heads import Gradients, Rows, Side
from .kernels import gradient, of_logits
from .parts import Parts, joined
from .parts import value as value_of

__all__ = ["kl_from_hidden"]

MEMORY = 48 << 20  # bytes of scratch, by default
_POSITIONS = 1024  # at most so many together: enough for a matrix product to run at full speed
_CELLS = 1 << 20  # positions × tokens together: their scratch stays in a processor's cache
_FEWEST = 256  # tokens together
_NAMES = ("p_hidden", "p_head", "p_bias", "q_hidden", "q_head", "q_bias")
_ROOMS = 4  # two blocks of logits and two to work in


def kl_from_hidden(
    p_hidden: Tensor,
    p_head: Tensor,
    q_hidden: Tensor,
    q_head: Tensor,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    align: str | None = None,
    nan: str = "refuse",
    memory: int = MEMORY,
    backend: str = "auto",
) -> Tensor:
    """Return KL(p‖q) = Σ_v p_v log(p_v/q_v) at every position, logits being `hidden @ head.T`.

    p_hidden `[*batch, H_p]`, p_head `[vocab, H_p]`, q_hidden `[*batch, H_q]`, q_head `[vocab,
    H_q]`, p_bias and q_bias `[vocab]`: any floating types, H_p and H_q may differ. The result is
    `[*batch]`, in nats, float32 (float64 if an input is). Logits are `hidden·head + bias`, then
    `c tanh(·/c)` with `soft_cap` c (a pair for p and q), then divided by `temperature`.
    mask: bool `[*batch]`; where False nothing is computed, value and gradients are 0.
    align, nan, backend: as in the functions from logits (`divergences`); the backend works on the
    logits of a block, the products are PyTorch's.
    memory: bytes of scratch to stay below; more makes larger blocks, which a GPU likes.

    Exact up to rounding: products and sums in float32 at least, terms ≥ 0, so never negative.
    Gradients flow to hidden states, heads and biases of either side, by first derivatives only;
    those of half precision are summed in float32, a head's over 1024 positions at a time.

    A bias of −inf bans a token, with or without a cap. Banned by both: no part in it. Banned by q
    alone: +inf, a constant to the gradient.
    Errors: `ValueError` for shapes that do not fit, a temperature or cap that is not positive, NaN;
    `TypeError` for anything but tensors of floats, or a mask that is not bool.
    Reference: MATH 5.7; Cover and Thomas (2006), theorem 2.5.3, the chain rule that joins blocks.

    >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> head = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> kl_from_hidden(hidden, head, hidden, head.roll(1, 0))
    tensor([0.3642, 1.3610])
    """
    given = (p_hidden, p_head, p_bias, q_hidden, q_head, q_bias)
    _check(given)
    wide = any(x is not None and x.dtype == torch.float64 for x in given)
    work = _Work(
        soft_cap if isinstance(soft_cap, tuple) else (soft_cap, soft_cap),
        temperature,
        torch.float64 if wide else torch.float32,
        _vocab(len(p_head), len(q_head), align),
        _kept(mask, p_hidden.shape[:-1]),
        memory,
        backend,
    )
    work.check()
    require(nan in ("refuse", "pass"), "nan", "'refuse' or 'pass'", repr(nan))
    p_flat, q_flat = (x.reshape(-1, x.shape[-1]) for x in (p_hidden, q_hidden))
    tensors = (p_flat, p_head, p_bias, q_flat, q_head, q_bias)
    value: Tensor = _KL.apply(work, *tensors)  # type: ignore[no-untyped-call]
    value = value.reshape(p_hidden.shape[:-1])
    if nan == "refuse":
        refuse_nan(value.detach()[None], "p_hidden and q_hidden")
    return value


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be done besides the tensors: options, positions kept, memory to stay below."""

    caps: tuple[float | None, float | None]
    temperature: float
    dtype: torch.dtype
    vocab: int
    kept: Tensor | None
    memory: int
    backend: str

    def check(self) -> None:
        """Require positive numbers."""
        numbers = {"temperature": (self.temperature,), "soft_cap": self.caps}
        for name, number in ((name, each) for name, all_ in numbers.items() for each in all_):
            good = number is None or 0.0 < number < math.inf
            require(good, name, "a positive, finite number", number)
        require(self.memory >= 1, "memory", "a number of bytes", self.memory)

    def blocks(self, tensors: Sequence[Any]) -> "_Blocks":
        """Return the six tensors, hidden states, head and bias of p and of q, cut into blocks."""
        p, q = (
            Side(hidden, head, bias, cap, self.temperature, self.dtype)
            for (hidden, head, bias), cap in zip((tensors[:3], tensors[3:]), self.caps, strict=True)
        )
        return _Blocks.of(p, q, self)


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, *tensors: Tensor | None) -> Tensor:
        blocks = work.blocks(tensors)
        count = len(blocks.p.hidden)
        value = blocks.p.hidden.new_zeros(count, dtype=work.dtype)
        sums = blocks.p.hidden.new_zeros(4, count, dtype=torch.float64)
        for rows in blocks.rows():
            pieces = [of_logits(b.p, b.q, **b.how) for b in blocks.over(rows)]
            whole = joined(Parts(*(torch.stack(each, -1) for each in zip(*pieces, strict=True))))
            value[rows] = value_of(whole).to(work.dtype)
            sums[:, rows] = torch.stack(whole)
        ctx.save_for_backward(sums, *tensors)
        ctx.work = work
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        sums, *tensors = ctx.saved_tensors
        blocks = ctx.work.blocks(tensors)
        wanted = ctx.needs_input_grad[1:]
        found = Gradients(blocks.p, wanted[:3]), Gradients(blocks.q, wanted[3:])
        for rows in blocks.rows():
            scale = upstream[rows] / ctx.work.temperature
            _pull(blocks, rows, Parts(*sums[:, rows]), scale, found)
        return None, *found[0].result(), *found[1].result()


def _pull(
    blocks: "_Blocks", rows: Rows, whole: Parts, scale: Tensor, found: tuple[Gradients, Gradients]
) -> None:
    """Add what some positions have to say to every gradient that is wanted."""
    p, q = found
    summed = [blocks.scratch.new_zeros(len(scale), g.side.hidden.shape[1]) for g in found]
    for block in blocks.over(rows):
        slopes = p.side.slope(block.p), q.side.slope(block.q)
        pair = gradient(block.p, block.q, whole, scale, **block.how, to_p=p.any, to_q=q.any)
        for side, grad, slope, total, states, weights in zip(
            found, pair, slopes, summed, block.states, block.weights, strict=True
        ):
            if grad is None:
                continue
            grad = grad if slope is None else grad.mul_(slope)
            side.add(grad, states, weights, block.columns, total)
    for side, total in zip(found, summed, strict=True):
        if side.hidden is not None:
            side.hidden[rows] = total.to(side.hidden.dtype)


class _Block(NamedTuple):
    """Logits of some positions and tokens, what they were multiplied from, and room to work in."""

    columns: slice
    states: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]
    p: Tensor
    q: Tensor
    how: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Positions × tokens, cut so that what one block needs fits into the memory allowed."""

    p: Side
    q: Side
    kept: Tensor | None
    vocab: int
    positions: int
    tokens: int
    scratch: Tensor
    banned: bool
    backend: str

    @classmethod
    def of(cls, p: Side, q: Side, work: _Work) -> "_Blocks":
        count = len(p.hidden) if work.kept is None else len(work.kept)
        item, width = work.dtype.itemsize, p.hidden.shape[1] + q.hidden.shape[1]
        a_position = 2 * width * item  # the states, their gradients
        a_token = 2 * width * item if p.converts or q.converts else 0  # weights, their gradients
        a_cell = item * (_ROOMS + sum(cap is not None for cap in work.caps)) + 4
        positions = max(1, min(count, _POSITIONS, work.memory // (4 * a_position)))
        left = work.memory - positions * a_position
        tokens = min(work.vocab, left // (positions * a_cell + a_token))
        if not p.head.is_cuda:
            tokens = min(tokens, max(_FEWEST, _CELLS // positions))
        tokens = max(1, tokens)
        scratch = p.hidden.new_empty(_ROOMS, positions * tokens, dtype=work.dtype)
        return cls(
            p, q, work.kept, work.vocab, positions, tokens, scratch, p.bans or q.bans, work.backend
        )

    def rows(self) -> Iterator[Rows]:
        """Yield the positions that are kept, some at a time."""
        if self.kept is not None:
            yield from (some for some in torch.split(self.kept, self.positions) if len(some))
        else:
            for start in range(0, len(self.p.hidden), self.positions):
                yield slice(start, start + self.positions)

    def over(self, rows: Rows) -> Iterator[_Block]:
        """Yield the logits of some positions, some tokens at a time, in the same memory."""
        states = self.p.positions(rows), self.q.positions(rows)
        for start in range(0, self.vocab, self.tokens):
            columns = slice(start, min(start + self.tokens, self.vocab))
            shape = len(states[0]), columns.stop - columns.start
            rooms = [room[: math.prod(shape)].view(shape) for room in self.scratch]
            weights = self.p.tokens(columns), self.q.tokens(columns)
            p = self.p.logits(states[0], weights[0], columns, rooms[0])
            q = self.q.logits(states[1], weights[1], columns, rooms[1])
            how = {"rooms": tuple(rooms[2:]), "banned": self.banned, "backend": self.backend}
            yield _Block(columns, states, weights, p, q, how)


def _check(given: Sequence[Any]) -> None:
    """Require six float tensors on one device whose shapes fit together."""
    first = given[0]
    for name, x in zip(_NAMES, given, strict=True):
        if x is None and name.endswith("bias"):
            continue
        require_type(x, Tensor, name, "torch.as_tensor(...)")
        if not x.is_floating_point():
            raise ArgumentTypeError(message(name, "a float tensor", describe(x), f"{name}.float()"))
        require(x.device == first.device, name, f"a tensor on {first.device}", x.device)
    for name, (hidden, head, bias) in (("p", given[:3]), ("q", given[3:])):
        full = hidden.ndim >= 1 and hidden.shape[-1] >= 1
        require(full, f"{name}_hidden", "a tensor [*batch, width]", describe(hidden))
        fits = head.ndim == 2 and len(head) >= 1 and head.shape[1] == hidden.shape[-1]
        wanted = f"a tensor [vocab, {hidden.shape[-1]}], as wide as {name}_hidden"
        require(fits, f"{name}_head", wanted, describe(head), f"the transpose of {name}_head?")
        if bias is not None:
            fits = bias.shape == head.shape[:1]
            require(fits, f"{name}_bias", f"a tensor [{len(head)}]", describe(bias))
    batches = [list(x.shape[:-1]) for x in (given[0], given[3])]
    got = f"{batches[0]} and {batches[1]}"
    require(batches[0] == batches[1], "p_hidden and q_hidden", "the same positions", got)


def _vocab(p: int, q: int, align: str | None) -> int:
    """Return how many tokens are compared."""
    require(align in (None, "crop"), "align", "None or 'crop'", repr(align))
    hint = "align='crop', if the larger one is only padded: it drops the tokens beyond"
    same = p == q or align == "crop"
    require(same, "p_head and q_head", "one vocabulary size", f"{p} and {q}", hint)
    return min(p, q)


def _kept(mask: Tensor | None, batch: torch.Size) -> Tensor | None:
    """Return the places of the positions that count, None for all."""
    if mask is None:
        return None
    require_type(mask, Tensor, "mask", "torch.as_tensor(...)")
    if mask.dtype != torch.bool:
        raise ArgumentTypeError(message("mask", "a bool tensor", describe(mask), "mask.bool()"))
    fits = mask.shape == batch
    require(fits, "mask", f"the positions' shape, {list(batch)}", list(mask.shape))
    return mask.reshape(-1).nonzero()[:, 0]
