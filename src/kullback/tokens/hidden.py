"""Divergences over a vocabulary from hidden states: no `[positions, vocab]` tensor ever exists.

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

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core import ArgumentTypeError, require, require_type
from kullback.core.checks import describe, message

from .arguments import check_options, refuse_nan, spread_ids, spread_mask
from .blocks import MEMORY, FromHidden, Work
from .divergences import Comparison
from .pointwise import Pointwise
from .task import Task, Value

__all__ = [
    "Given",
    "Options",
    "compare_from_hidden",
    "from_hidden",
    "js_from_hidden",
    "kl_from_hidden",
]

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
