"""One side of `kl_from_hidden`: hidden states and a head, and the logits of a block of both.

Which to use: none of these directly; `hidden` is the face. A `Side` writes the logits of some
positions and some tokens into a given room; `Gradients` takes their gradient back to hidden
states, head and bias. Sums run in `dtype`, float32 or float64, whatever the inputs are.

Logits made from hidden states a block at a time: summed, used for a gradient, dropped.

Which to use: nothing here directly; `hidden` is the face. `FromHidden` walks over positions ×
tokens: the sums of each block are joined to those of the whole vocabulary (`slices`), once more
where a divergence needs the normalisers first (`pointwise`), and the backward pass multiplies
again, which is cheaper than keeping.

Divergences over a vocabulary from hidden states: no `[positions, vocab]` tensor ever exists.

Which to use: these when both models' last hidden states and heads are at hand and the logits would
not fit; the functions from logits when they are there anyway. `kl_from_hidden` for one direction,
`compare_from_hidden` for both directions, entropies, agreement and the log-probabilities of given
tokens (Jeffreys is `kl + reverse_kl`, cross-entropy `p_entropy + kl`), `js_from_hidden` where a
side may ban tokens the other uses; `from_hidden` is what they and `distill_terms_from_hidden`
share. The vocabulary is walked in blocks, each multiplied once and summed at once (`blocks`): the
forward pass does the matrix products that must be done and no others, but those of Jensen-Shannon
twice. Memory above the inputs and their gradients does not grow with vocabulary, and with positions
by some numbers each (MATH 5.7).
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
from kullback.tokens.backends import interface
from kullback.tokens.backends.choose import choose
from kullback.tokens.backends.interface import Sum, Task, Value

from . import pointwise, slices
from .logits import Comparison, check_options, refuse_nan, spread_ids, spread_mask
from .pointwise import Pointwise

__all__ = [
    "MEMORY",
    "FromHidden",
    "Given",
    "Gradients",
    "Options",
    "Rows",
    "Side",
    "Work",
    "compare_from_hidden",
    "from_hidden",
    "js_from_hidden",
    "kl_from_hidden",
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
                value[:, rows] = interface.values(whole, work.task).to(work.dtype)
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
        c = interface.coefficients(self.sums, self.scale, task)
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


_NAMES = ("p_hidden", "p_head", "p_bias", "q_hidden", "q_head", "q_bias")


class Given(NamedTuple):
    """Both sides' hidden states `[*batch, H]`, head `[vocab, H]` and bias `[vocab]`."""

    p_hidden: Tensor
    p_head: Tensor
    p_bias: Tensor | None
    q_hidden: Tensor
    q_head: Tensor
    q_bias: Tensor | None


class Options(NamedTuple):
    """The options of `kl_from_hidden`, by its names."""

    soft_cap: float | tuple[float | None, float | None] | None = None
    temperature: float = 1.0
    mask: Tensor | None = None
    align: str | None = None
    nan: str = "refuse"
    memory: int = MEMORY
    backend: str = "auto"


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
    Costs one product of hidden states and head a side forward, and backward one again and one for
    every gradient that is wanted.

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
    given = Given(p_hidden, p_head, p_bias, q_hidden, q_head, q_bias)
    how = Options(soft_cap, temperature, mask, align, nan, memory, backend)
    return from_hidden(given, Task(("kl",)), None, None, how)[0]


def js_from_hidden(
    p_hidden: Tensor,
    p_head: Tensor,
    q_hidden: Tensor,
    q_head: Tensor,
    *,
    beta: float = 0.5,
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
    """Return `β KL(p‖m) + (1−β) KL(q‖m)`, `m = β p + (1−β) q`, at every position, in nats.

    beta: strictly between 0 and 1; everything else as in `kl_from_hidden`. Always finite. The
    mixture needs both normalisers: the products of the forward pass are done twice.
    Reference: Lin (1991), section IV.

    >>> hidden, head = torch.zeros(1, 1), torch.zeros(2, 1)
    >>> left, right = torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf, 0.0])
    >>> js_from_hidden(hidden, head, hidden, head, p_bias=left, q_bias=right)  # log 2
    tensor([0.6931])
    """
    given = Given(p_hidden, p_head, p_bias, q_hidden, q_head, q_bias)
    how = Options(soft_cap, temperature, mask, align, nan, memory, backend)
    task = Task(("kl",), beta=beta)
    return from_hidden(given, task, Pointwise("jsd", beta), None, how)[0]


def compare_from_hidden(
    p_hidden: Tensor,
    p_head: Tensor,
    q_hidden: Tensor,
    q_head: Tensor,
    *,
    ids: Tensor | None = None,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    align: str | None = None,
    nan: str = "refuse",
    memory: int = MEMORY,
    backend: str = "auto",
) -> Comparison:
    """Return KL both ways, agreement, entropies and log-probabilities of `ids` in one pass.

    ids: integers `[*batch]`, the tokens that came, or None; everything else as in
    `kl_from_hidden`. The result is that of `kullback.tokens.compare`, each value with its gradient
    but `same_top`.

    >>> hidden, head = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> found = compare_from_hidden(hidden, head, hidden, head.flip(0), ids=torch.tensor([1]))
    >>> found.kl, found.same_top, found.p_log_prob
    (tensor([0.4621]), tensor([False]), tensor([-1.3133]))
    """
    given = Given(p_hidden, p_head, p_bias, q_hidden, q_head, q_bias)
    how = Options(soft_cap, temperature, mask, align, nan, memory, backend)
    wants: tuple[Value, ...] = ("kl", "reverse_kl", "same_top", "entropy", "q_entropy")
    wants = wants if ids is None else (*wants, "log_prob", "q_log_prob")
    found = from_hidden(given, Task(wants), None, ids, how)
    there, back, same, p_entropy, q_entropy, *at = found
    p_at, q_at = at if at else (None, None)
    return Comparison(there, back, same.detach() == 1, p_entropy, q_entropy, p_at, q_at)


def from_hidden(
    given: Given, task: Task, what: Pointwise | None, ids: Tensor | None, how: Options
) -> Tensor:
    """Return the values of `task`, or of `what` if it is not None, `[wants, *batch]`.

    The temperatures of `task` and `what` stay 1: that of `how` is in the logits.
    """
    _check(given)
    check_options(task, how.nan, how.align)
    p, q = given.p_hidden, given.q_hidden
    caps, vocab = how.soft_cap, _vocab(len(given.p_head), len(given.q_head), how.align)
    keep = spread_mask(how.mask, p)
    ids = spread_ids(ids, keep, p[..., :1].expand(*p.shape[:-1], vocab))
    work = Work(
        task,
        what,
        caps if isinstance(caps, tuple) else (caps, caps),
        how.temperature,
        torch.float64 if any(x.dtype == torch.float64 for x in _there(given)) else torch.float32,
        vocab,
        None if keep is None else keep.reshape(-1).nonzero()[:, 0],
        how.memory,
        how.backend,
    )
    work.check()
    flat = given._replace(p_hidden=p.reshape(-1, p.shape[-1]), q_hidden=q.reshape(-1, q.shape[-1]))
    value: Tensor = FromHidden.apply(work, None if ids is None else ids.reshape(-1), *flat)  # type: ignore[no-untyped-call]
    value = value.reshape(len(value), *p.shape[:-1])
    if how.nan == "refuse":
        refuse_nan(value.detach(), "p_hidden and q_hidden")
    return value


def _there(given: Given) -> list[Tensor]:
    return [x for x in given if x is not None]


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
