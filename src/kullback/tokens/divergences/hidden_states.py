"""Divergences over a vocabulary from hidden states: no `[positions, vocab]` tensor ever exists.

`from_hidden` is what `sources.HiddenStates` calls. The vocabulary is walked in blocks of positions
× tokens; the logits of each are made, summed at once, and dropped:

- `Side` writes the logits of a block into a given room; `Gradients` takes their gradient back to
  hidden states, head and bias. Sums run in `dtype`, float32 or float64, whatever the inputs are.
- `FromHidden` joins the sums of each block to those of the whole vocabulary (`slices`), once more
  where a divergence needs the normalisers first (`Pointwise`: the products of the forward pass are
  done twice). The backward pass multiplies again, which is cheaper than keeping.

Memory above the inputs and their gradients does not grow with vocabulary, and with positions by
some numbers each (MATH 5.7).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.core import ArgumentTypeError, describe, message, require, require_type
from kullback.tokens import limits
from kullback.tokens.backends import interface
from kullback.tokens.backends.choose import choose
from kullback.tokens.backends.interface import Sum, Task, transformed

from . import slices
from .logits import Ask, check_dense, check_options, refuse_nan, spread_ids, spread_mask
from .slices import Pointwise, Whole

__all__ = [
    "FromHidden",
    "Given",
    "Gradients",
    "Rows",
    "Side",
    "Work",
    "from_hidden",
    "whole_logits",
]

Rows = slice | Tensor


@dataclass(frozen=True, slots=True)
class Side:
    """hidden `[T, H]`, head `[V, H]`, bias `[V]`: logits `cap tanh((h·w + b) / cap) / temperature`.

    cap: None for none. dtype: what is computed in. A bias of −inf bans a token, cap or no cap.
    """

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    cap: float | None
    temperature: float
    dtype: torch.dtype

    @property
    def bans(self) -> bool:
        """Whether a token is banned by a bias of −inf."""
        return self.bias is not None and bool(torch.isneginf(self.bias).any())

    @property
    def converts(self) -> bool:
        """Whether hidden states and head are copied to `dtype`, block by block, to be multiplied.

        A CUDA device multiplies bfloat16 into float32 by itself, and exactly.
        """
        half = self.hidden.dtype == self.head.dtype == torch.bfloat16 and self.head.is_cuda
        ready = half and self.dtype == torch.float32 and hasattr(torch.ops.aten.mm, "dtype")
        return not (ready or self.hidden.dtype == self.head.dtype == self.dtype)

    def positions(self, rows: Rows) -> Tensor:
        """Return the hidden states of some positions, ready to be multiplied."""
        return self._ready(self.hidden[rows])

    def tokens(self, columns: slice) -> Tensor:
        """Return the head's rows for some tokens, ready to be multiplied."""
        return self._ready(self.head[columns])

    def logits(self, states: Tensor, weights: Tensor, columns: slice, out: Tensor) -> Tensor:
        """Write the logits `[positions, tokens]` of a block into `out` and return it."""
        multiply(states, weights.t(), out)
        if self.bias is not None:
            out += self.bias[columns].to(self.dtype)
        if self.cap is not None:
            out.div_(self.cap).tanh_().mul_(self.cap)
        if self.temperature != 1.0:
            out.div_(self.temperature)
        if self.cap is not None and self.bias is not None:
            out.masked_fill_(torch.isneginf(self.bias[columns]), -torch.inf)
        return out

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return d logit / d (h·w + b) times the temperature, for a block; None if it is 1."""
        if self.cap is None:
            return None
        tanh = (logits * (self.temperature / self.cap)).clamp_(min=-1.0)  # −inf: slope 0
        return tanh.mul_(tanh).neg_().add_(1.0)

    def _ready(self, block: Tensor) -> Tensor:
        return block.to(self.dtype) if self.converts else block


class Gradients:
    """Where the gradients of one side's hidden states, head and bias are summed; None: not wanted.

    They are zero at first, in the dtype of what they belong to, but the bias's in `dtype`.
    """

    def __init__(self, side: Side, wanted: Sequence[bool]) -> None:
        self.side, self.any = side, any(wanted)
        self.hidden = torch.zeros_like(side.hidden) if wanted[0] else None
        self.head = torch.zeros_like(side.head) if wanted[1] else None
        bias = side.bias if wanted[2] else None
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=side.dtype)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients in the dtypes of what they belong to."""
        bias = self.bias
        if bias is not None and self.side.bias is not None:
            bias = bias.to(self.side.bias.dtype)
        return self.hidden, self.head, bias

    def add(
        self,
        grad: Tensor,
        states: Tensor,
        weights: Tensor,
        columns: slice,
        summed: Tensor,
    ) -> None:
        """Add what the gradient `[positions, tokens]` of a block means for all that is wanted.

        summed: `[positions, H]`, in `dtype`, to which that of the hidden states is added.
        """
        if self.bias is not None:
            self.bias[columns] += grad.sum(0)
        grad = grad.to(weights.dtype)
        if self.hidden is not None:
            multiply(grad, weights, summed, add=True)
        if self.head is None:
            return
        target = self.head[columns]
        if target.dtype == self.side.dtype:
            multiply(grad.t(), states, target, add=True)
        else:
            target += multiply(grad.t(), states, summed.new_empty(target.shape))


def multiply(x: Tensor, y: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Write or add the product of two matrices of one dtype to `out`, summed in its dtype.

    >>> multiply(torch.eye(2), torch.ones(2, 1), torch.ones(2, 1), add=True).flatten()
    tensor([2., 2.])
    """
    if x.dtype == out.dtype:
        return out.addmm_(x, y) if add else torch.mm(x, y, out=out)
    product = torch.mm(x, y, out_dtype=out.dtype)
    return out.add_(product) if add else out.copy_(product)


_ROOMS = 2  # a side: a block of logits, and one to work in


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done besides the tensors: options, positions kept, memory to stay below.

    task: what is summed in one pass; what: a divergence that takes a second, instead, or None.
    """

    task: Task
    what: Pointwise | None
    caps: tuple[float | None, ...]
    temperature: float
    dtype: torch.dtype
    vocab: int
    kept: Tensor | None
    memory: int
    backend: str

    def check(self) -> None:
        """Require positive numbers, and a backend that sums."""
        numbers = {"temperature": (self.temperature,), "softcap": self.caps}
        for name, number in ((name, each) for name, all_ in numbers.items() for each in all_):
            good = number is None or 0.0 < number < math.inf
            require(good, name, "a positive, finite number", number)
        require(self.memory >= 1, "memory", "a number of bytes", self.memory)
        sums = self.backend != "reference"
        require(sums, "backend", "one that works in blocks", "'reference'", "'auto'")

    def blocks(self, tensors: Sequence[Any]) -> "Blocks":
        """Return hidden states, head and bias of p, and of q if there is one, cut into blocks."""
        sides = [
            Side(hidden, head, bias, cap, self.temperature, self.dtype)
            for (hidden, head, bias), cap in zip(_threes(tensors), self.caps, strict=True)
        ]
        return Blocks.of(sides, self)


def _threes(x: Sequence[Any]) -> list[Sequence[Any]]:
    """Return what belongs to p's hidden states, head and bias, then what belongs to q's."""
    return [x[first : first + 3] for first in range(0, len(x), 3)]


class FromHidden(torch.autograd.Function):
    """The values of a `Work`, `[wants, n]`, from hidden states `[n, H]`, heads and biases."""

    @staticmethod
    def forward(ctx: Any, work: Work, ids: Tensor | None, *tensors: Tensor | None) -> Tensor:
        """Sum block by block; ids: `[n]`, or None."""
        blocks = work.blocks(tensors)
        count, device = len(blocks.sides[0].hidden), blocks.scratch.device
        wants = len(work.task.wants) if work.what is None else 1
        value = torch.zeros(wants, count, dtype=work.dtype, device=device)
        sums = torch.zeros(len(Sum), count, dtype=torch.float64, device=device)
        found = torch.zeros(3, count, dtype=torch.float64, device=device)
        for rows in blocks.rows():
            sums[:, rows] = whole = _summed(blocks, rows, ids, work)
            if work.what is None:
                value[:, rows] = interface.values(whole, work.task).to(work.dtype)
            else:
                each = (
                    slices.pointwise_sums(b.logits[0], b.logits[1], whole, work.what)
                    for b in blocks.over(rows)
                )
                found[:, rows] = total = sum(each, whole.new_zeros(()))
                value[:, rows] = total[:1].to(work.dtype)
        ctx.save_for_backward(sums, found, *interface.for_backward(ids, *tensors))
        ctx.work = work
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Make every block again, and multiply its gradient by what it was made from."""
        sums, found, ids, *tensors = ctx.saved_tensors
        blocks, wanted = ctx.work.blocks(tensors), ctx.needs_input_grad[2:]
        sides = zip(blocks.sides, _threes(wanted), strict=True)
        both = [Gradients(side, asked) for side, asked in sides]
        for rows in blocks.rows():
            at = None if ids is None else ids[rows]
            scale = upstream[:, rows].double() / ctx.work.temperature
            pulled = _Pulled(ctx.work, sums[:, rows], found[:, rows], scale, at)
            _pull(blocks, rows, pulled, both)
        return None, None, *(grad for side in both for grad in side.result())


class _Pulled(NamedTuple):
    """What a block needs for its gradient: the sums of the whole, upstream, ids; of some rows."""

    work: Work
    sums: Tensor
    found: Tensor
    scale: Tensor
    ids: Tensor | None

    def into(self, block: "Block", out: tuple[Tensor | None, Tensor | None]) -> None:
        """Fill the gradients with respect to a block's logits."""
        task, (p, q) = self.work.task, block.pair
        if self.work.what is not None and q is not None:
            whole = Whole(self.sums, self.found)
            slices.pointwise_gradient(p, q, whole, self.scale[0], self.work.what, out)
            return
        c = interface.coefficients(self.sums, self.scale, task)
        ids = slices.local(self.ids, block.columns.start, block.columns.stop)
        slices.slopes(
            (p, q, ids, None), task, self.sums, c, out, choose(self.work.backend, p, q, task)
        )


def _summed(blocks: "Blocks", rows: Rows, ids: Tensor | None, work: Work) -> Tensor:
    """Return the sums `[len(Sum), n]` of some positions over the whole vocabulary."""
    count = len(blocks.sides[0].hidden)
    count = len(rows) if isinstance(rows, Tensor) else len(range(count)[rows])
    whole, at = slices.nothing(count, blocks.scratch.device), None if ids is None else ids[rows]
    for b in blocks.over(rows):
        (p, q), start = b.pair, b.columns.start
        module = choose(work.backend, p, q, work.task)
        own = slices.sums_of(
            p, q, slices.local(at, start, b.columns.stop), None, work.task, module,
            start=start, banned=blocks.banned,
        )  # fmt: skip
        whole = slices.joined(whole, own, work.task)
    return slices.finished(whole, work.task)


def _pull(blocks: "Blocks", rows: Rows, pulled: _Pulled, found: Sequence[Gradients]) -> None:
    """Add the part of some positions to every gradient that is wanted."""
    count = pulled.sums.shape[1]
    summed = [blocks.scratch.new_zeros(count, g.side.hidden.shape[1]) for g in found]
    for block in blocks.over(rows):
        steep = [g.side.slope(x) for g, x in zip(found, block.logits, strict=True)]
        grads = [r if g.any else None for g, r in zip(found, block.rooms, strict=True)]
        pulled.into(block, (grads[0], grads[1] if len(grads) == 2 else None))
        for side, grad, slope, total, states, weights in zip(
            found, grads, steep, summed, block.states, block.weights, strict=True
        ):
            if grad is not None:
                grad = grad if slope is None else grad.mul_(slope)
                side.add(grad, states, weights, block.columns, total)
    for side, total in zip(found, summed, strict=True):
        if side.hidden is not None:
            side.hidden[rows] = total.to(side.hidden.dtype)


class Block(NamedTuple):
    """Logits of some positions and tokens, what they were multiplied from, and room to work in.

    Every list has an entry a side: p's, and q's if there is one.
    """

    columns: slice
    states: Sequence[Tensor]
    weights: Sequence[Tensor]
    logits: Sequence[Tensor]
    rooms: Sequence[Tensor]

    @property
    def pair(self) -> tuple[Tensor, Tensor | None]:
        """The logits of p, and those of q or None."""
        return self.logits[0], self.logits[1] if len(self.logits) == 2 else None


@dataclass(frozen=True, slots=True)
class Blocks:
    """Positions × tokens, cut so that what one block needs fits into the memory allowed."""

    sides: Sequence[Side]
    kept: Tensor | None
    vocab: int
    positions: int
    tokens: int
    scratch: Tensor
    banned: bool

    @classmethod
    def of(cls, sides: Sequence[Side], work: Work) -> "Blocks":
        """Cut so that what is needed at a time stays below `work.memory`."""
        first, converts = sides[0], any(side.converts for side in sides)
        count = len(first.hidden) if work.kept is None else len(work.kept)
        item, width = work.dtype.itemsize, sum(side.hidden.shape[1] for side in sides)
        rooms = _ROOMS * len(sides)
        a_position = 2 * width * item  # the states, their gradients
        a_token = 2 * width * item if converts else 0  # weights, their gradients
        a_cell = item * (rooms + sum(cap is not None for cap in work.caps)) + 4
        positions = max(1, min(count, limits.POSITIONS, work.memory // (4 * a_position)))
        left = work.memory - positions * a_position
        tokens = min(work.vocab, left // (positions * a_cell + a_token))
        if not first.head.is_cuda:
            tokens = min(tokens, max(limits.FEWEST_TOKENS, limits.CELLS // positions))
        tokens = max(1, tokens)
        scratch = first.hidden.new_empty(rooms, positions * tokens, dtype=work.dtype)
        banned = any(side.bans for side in sides)
        return cls(sides, work.kept, work.vocab, positions, tokens, scratch, banned)

    def rows(self) -> Iterator[Rows]:
        """Yield the positions that are kept, some at a time."""
        if self.kept is not None:
            yield from (some for some in torch.split(self.kept, self.positions) if len(some))
        else:
            for start in range(0, len(self.sides[0].hidden), self.positions):
                yield slice(start, start + self.positions)

    def over(self, rows: Rows) -> Iterator[Block]:
        """Yield the logits of some positions, some tokens at a time, in the same memory."""
        states = [side.positions(rows) for side in self.sides]
        for start in range(0, self.vocab, self.tokens):
            columns = slice(start, min(start + self.tokens, self.vocab))
            shape = len(states[0]), columns.stop - columns.start
            rooms = [room[: math.prod(shape)].view(shape) for room in self.scratch]
            weights = [side.tokens(columns) for side in self.sides]
            count = len(self.sides)
            logits = [
                side.logits(x, w, columns, room)
                for side, x, w, room in zip(self.sides, states, weights, rooms[:count], strict=True)
            ]
            yield Block(columns, states, weights, logits, rooms[count:])


class Given(NamedTuple):
    """One side's hidden states `[*batch, H]`, head `[vocab, H]`, bias `[vocab]` and cap."""

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    cap: float | None


def from_hidden(p: Given, q: Given | None, ask: Ask, memory: int | None = None) -> Tensor:
    """Return the values that are asked for, `[wants, *batch]`; memory: bytes of scratch.

    The logits of a block are divided by the temperature as they are made; what is summed has 1.
    """
    names, given = ("p_", "q_") if q is not None else ("",), [p] if q is None else [p, q]
    _check(names, given)
    hint = "HiddenStates(...).whole(), the logits, which may be transformed"
    free = not any(transformed(x) for side in given for x in side[:3] if x is not None)
    require(free, f"{names[0]}hidden", "tensors outside of torch.func", "transformed ones", hint)
    check_options(ask.task, ask.nan, ask.align)
    hidden = p.hidden
    vocab = _vocab([len(side.head) for side in given], ask.align)
    keep = spread_mask(ask.mask, hidden)
    ids = spread_ids(ask.ids, keep, hidden[..., :1].expand((*hidden.shape[:-1], vocab)))
    there = [x for side in given for x in side[:3] if x is not None]
    what = ask.what
    work = Work(
        replace(ask.task, temperature=1.0),
        None if what is None else what._replace(temperature=1.0),
        tuple(side.cap for side in given),
        ask.task.temperature,
        torch.float64 if any(x.dtype == torch.float64 for x in there) else torch.float32,
        vocab,
        None if keep is None else keep.reshape(-1).nonzero()[:, 0],
        limits.MEMORY if memory is None else memory,
        ask.backend,
    )
    work.check()
    flat = [x for side in given for x in (_rows(side.hidden), side.head, side.bias)]
    value: Tensor = FromHidden.apply(work, None if ids is None else ids.reshape(-1), *flat)  # type: ignore[no-untyped-call]
    value = value.reshape(len(value), *hidden.shape[:-1])
    if ask.nan == "refuse":
        refuse_nan(value.detach(), " and ".join(f"{name}hidden" for name in names))
    return value


def whole_logits(side: Given) -> Tensor:
    """Return the logits of all positions and tokens, `[*batch, vocab]`, before the temperature."""
    _check(("",), [side])
    hidden, head, bias, cap = side
    good = cap is None or 0.0 < cap < math.inf
    require(good, "softcap", "a positive, finite number", cap)
    wide = any(x is not None and x.dtype == torch.float64 for x in side[:3])
    dtype = torch.float64 if wide else torch.float32
    found = hidden.to(dtype) @ head.to(dtype).t()
    found = found if bias is None else found + bias.to(dtype)
    if cap is None:
        return found
    found = (found / cap).tanh() * cap
    return found if bias is None else found.masked_fill(torch.isneginf(bias), -torch.inf)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _check(names: Sequence[str], given: Sequence[Given]) -> None:
    """Require float tensors on one device whose shapes fit together."""
    first = given[0].hidden
    for before, side in zip(names, given, strict=True):
        for name, x in zip(("hidden", "head", "bias"), side[:3], strict=True):
            if not (x is None and name == "bias"):
                _check_floats(x, before + name, first)
    for before, (hidden, head, bias, _) in zip(names, given, strict=True):
        full = hidden.ndim >= 1 and hidden.shape[-1] >= 1
        require(full, f"{before}hidden", "a tensor [*batch, width]", describe(hidden))
        fits = head.ndim == 2 and len(head) >= 1 and head.shape[1] == hidden.shape[-1]
        wanted = f"a tensor [vocab, {hidden.shape[-1]}], as wide as {before}hidden"
        require(fits, f"{before}head", wanted, describe(head), f"the transpose of {before}head?")
        if bias is not None:
            fits = bias.shape == head.shape[:1]
            require(fits, f"{before}bias", f"a tensor [{len(head)}]", describe(bias))
    batches = [list(side.hidden.shape[:-1]) for side in given]
    got = " and ".join(map(str, batches))
    require(batches[0] == batches[-1], "p_hidden and q_hidden", "the same positions", got)


def _check_floats(x: Any, name: str, first: Tensor) -> None:
    require_type(x, Tensor, name, "torch.as_tensor(...)")
    if not x.is_floating_point():
        raise ArgumentTypeError(message(name, "a float tensor", describe(x), f"{name}.float()"))
    check_dense(x, name)
    require(x.device == first.device, name, f"a tensor on {first.device}", x.device)


def _vocab(sizes: Sequence[int], align: str | None) -> int:
    """Return how many tokens are compared."""
    hint = "align='crop', if the larger one is only padded: it drops the tokens beyond"
    same = len(set(sizes)) == 1 or align == "crop"
    got = " and ".join(map(str, sizes))
    require(same, "p_head and q_head", "one vocabulary size", got, hint)
    return min(sizes)
