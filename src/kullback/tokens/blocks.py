"""Logits made from hidden states a block at a time: summed, used for a gradient, dropped.

Which to use: nothing here directly; `hidden` is the face. `FromHidden` walks over positions ×
tokens: the sums of each block are joined to those of the whole vocabulary (`slices`), once more
where a divergence needs the normalisers first (`pointwise`), and the backward pass multiplies
again, which is cheaper than keeping.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.core import require

from . import algebra, pointwise, slices
from .backends import choose
from .heads import Gradients, Rows, Side
from .pointwise import Pointwise
from .task import Sum, Task

__all__ = ["MEMORY", "FromHidden", "Work"]

MEMORY = 48 << 20  # bytes of scratch, by default
_POSITIONS = 1024  # at most so many together: enough for a matrix product to run at full speed
_CELLS = 1 << 20  # positions × tokens together: their scratch stays in a processor's cache
_FEWEST = 256  # tokens together
_ROOMS = 4  # two blocks of logits and two to work in


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done besides the tensors: options, positions kept, memory to stay below.

    task: what is summed in one pass; what: a divergence that takes a second, instead, or None.
    """

    task: Task
    what: Pointwise | None
    caps: tuple[float | None, float | None]
    temperature: float
    dtype: torch.dtype
    vocab: int
    kept: Tensor | None
    memory: int
    backend: str

    def check(self) -> None:
        """Require positive numbers, and a backend that sums."""
        numbers = {"temperature": (self.temperature,), "soft_cap": self.caps}
        for name, number in ((name, each) for name, all_ in numbers.items() for each in all_):
            good = number is None or 0.0 < number < math.inf
            require(good, name, "a positive, finite number", number)
        require(self.memory >= 1, "memory", "a number of bytes", self.memory)
        sums = self.backend != "reference"
        require(sums, "backend", "one that works in blocks", "'reference'", "'auto'")

    def blocks(self, tensors: Sequence[Any]) -> "Blocks":
        """Return the six tensors, hidden states, head and bias of p and of q, cut into blocks."""
        p, q = (
            Side(hidden, head, bias, cap, self.temperature, self.dtype)
            for (hidden, head, bias), cap in zip((tensors[:3], tensors[3:]), self.caps, strict=True)
        )
        return Blocks.of(p, q, self)


class FromHidden(torch.autograd.Function):
    """The values of a `Work`, `[wants, n]`, from hidden states `[n, H]`, heads and biases."""

    @staticmethod
    def forward(ctx: Any, work: Work, ids: Tensor | None, *tensors: Tensor | None) -> Tensor:
        """Sum block by block; ids: `[n]`, or None."""
        blocks = work.blocks(tensors)
        count, device = len(blocks.p.hidden), blocks.p.hidden.device
        wants = len(work.task.wants) if work.what is None else 1
        value = torch.zeros(wants, count, dtype=work.dtype, device=device)
        sums = torch.zeros(len(Sum), count, dtype=torch.float64, device=device)
        found = torch.zeros(3, count, dtype=torch.float64, device=device)
        for rows in blocks.rows():
            sums[:, rows] = whole = _summed(blocks, rows, ids, work)
            if work.what is None:
                value[:, rows] = algebra.values(whole, work.task).to(work.dtype)
            else:
                each = (pointwise.sums_of(b.p, b.q, whole, work.what) for b in blocks.over(rows))
                found[:, rows] = total = sum(each, whole.new_zeros(()))
                value[:, rows] = total[:1].to(work.dtype)
        ctx.save_for_backward(sums, found, ids, *tensors)
        ctx.work = work
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Make every block again, and multiply its gradient by what it was made from."""
        sums, found, ids, *tensors = ctx.saved_tensors
        blocks, wanted = ctx.work.blocks(tensors), ctx.needs_input_grad[2:]
        both = Gradients(blocks.p, wanted[:3]), Gradients(blocks.q, wanted[3:])
        for rows in blocks.rows():
            at = None if ids is None else ids[rows]
            scale = upstream[:, rows].double() / ctx.work.temperature
            pulled = _Pulled(ctx.work, sums[:, rows], found[:, rows], scale, at)
            _pull(blocks, rows, pulled, both)
        return None, None, *both[0].result(), *both[1].result()


class _Pulled(NamedTuple):
    """What a block needs for its gradient: the sums of the whole, upstream, ids; of some rows."""

    work: Work
    sums: Tensor
    found: Tensor
    scale: Tensor
    ids: Tensor | None

    def into(self, block: "Block", out: tuple[Tensor | None, Tensor | None]) -> None:
        """Fill the gradients with respect to a block's logits."""
        task, p, q = self.work.task, block.p, block.q
        if self.work.what is not None:
            pointwise.gradient(p, q, self.sums, self.found, self.scale[0], self.work.what, out)
            return
        c = algebra.coefficients(self.sums, self.scale, task)
        given = p, q, _local(self.ids, block.columns), None
        slices.slopes(given, task, self.sums, c, out, choose(self.work.backend, p, q, task))


def _summed(blocks: "Blocks", rows: Rows, ids: Tensor | None, work: Work) -> Tensor:
    """Return the sums `[len(Sum), n]` of some positions over the whole vocabulary."""
    count = len(rows) if isinstance(rows, Tensor) else len(range(len(blocks.p.hidden))[rows])
    whole, at = slices.nothing(count, blocks.scratch.device), None if ids is None else ids[rows]
    for b in blocks.over(rows):
        module = choose(work.backend, b.p, b.q, work.task)
        own = slices.sums_of(
            b.p,
            b.q,
            _local(at, b.columns),
            None,
            work.task,
            module,
            start=b.columns.start,
            banned=blocks.banned,
        )
        whole = slices.joined(whole, own, work.task)
    return slices.finished(whole, work.task)


def _local(ids: Tensor | None, columns: slice) -> Tensor | None:
    """Return ids counted from the start of a block, −1 where they lie in another."""
    if ids is None:
        return None
    inside = (ids >= columns.start) & (ids < columns.stop)
    return torch.where(inside, ids - columns.start, -1)


def _pull(
    blocks: "Blocks", rows: Rows, pulled: _Pulled, found: tuple[Gradients, Gradients]
) -> None:
    """Add what some positions have to say to every gradient that is wanted."""
    count = pulled.sums.shape[1]
    summed = [blocks.scratch.new_zeros(count, g.side.hidden.shape[1]) for g in found]
    for block in blocks.over(rows):
        steep = [g.side.slope(x) for g, x in zip(found, (block.p, block.q), strict=True)]
        first, second = (r if g.any else None for g, r in zip(found, block.rooms, strict=True))
        pulled.into(block, (first, second))
        for side, grad, slope, total, states, weights in zip(
            found, (first, second), steep, summed, block.states, block.weights, strict=True
        ):
            if grad is not None:
                grad = grad if slope is None else grad.mul_(slope)
                side.add(grad, states, weights, block.columns, total)
    for side, total in zip(found, summed, strict=True):
        if side.hidden is not None:
            side.hidden[rows] = total.to(side.hidden.dtype)


class Block(NamedTuple):
    """Logits of some positions and tokens, what they were multiplied from, and room to work in."""

    columns: slice
    states: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]
    p: Tensor
    q: Tensor
    rooms: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Positions × tokens, cut so that what one block needs fits into the memory allowed."""

    p: Side
    q: Side
    kept: Tensor | None
    vocab: int
    positions: int
    tokens: int
    scratch: Tensor
    banned: bool

    @classmethod
    def of(cls, p: Side, q: Side, work: Work) -> "Blocks":
        """Cut so that what is needed at a time stays below `work.memory`."""
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
        banned = p.bans or q.bans
        return cls(p, q, work.kept, work.vocab, positions, tokens, scratch, banned)

    def rows(self) -> Iterator[Rows]:
        """Yield the positions that are kept, some at a time."""
        if self.kept is not None:
            yield from (some for some in torch.split(self.kept, self.positions) if len(some))
        else:
            for start in range(0, len(self.p.hidden), self.positions):
                yield slice(start, start + self.positions)

    def over(self, rows: Rows) -> Iterator[Block]:
        """Yield the logits of some positions, some tokens at a time, in the same memory."""
        states = self.p.positions(rows), self.q.positions(rows)
        for start in range(0, self.vocab, self.tokens):
            columns = slice(start, min(start + self.tokens, self.vocab))
            shape = len(states[0]), columns.stop - columns.start
            rooms = [room[: math.prod(shape)].view(shape) for room in self.scratch]
            weights = self.p.tokens(columns), self.q.tokens(columns)
            p = self.p.logits(states[0], weights[0], columns, rooms[0])
            q = self.q.logits(states[1], weights[1], columns, rooms[1])
            yield Block(columns, states, weights, p, q, (rooms[2], rooms[3]))
