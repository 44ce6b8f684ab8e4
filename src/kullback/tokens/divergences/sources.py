"""What a next-token distribution may be known by, besides logits: one class each.

- `HiddenStates`: last hidden states and a head; the logits are never held;
- `Sharded`: this process's slice of logits whose vocabulary is cut over processes;
- `TopK` (in `top_k`): the k most probable tokens; `kl` of such lists is a pair of `Bounds`.

`measure` is the one place where a source is asked; the functions of `functions` call it.

A further source (a stored file, a model) is one more class: a frozen dataclass that derives from
`Source` and has `measure` for two of its kind (or one alone), `constant` without gradient, and
`whole` if it can make all logits, by which it also meets logits and other such sources. No
function changes.
"""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from kullback.core import ArgumentTypeError, ArgumentValueError, describe, message
from kullback.exact import Bounds
from kullback.tokens.backends.interface import Task, in_memory

from . import logits
from .compiled import measured
from .hidden_states import Given, from_hidden, whole_logits
from .logits import Ask
from .sharded import measure_shards
from .slices import Pointwise
from .top_k import TopK, kl_bounds

__all__ = [
    "HiddenStates",
    "Sharded",
    "Source",
    "bounds",
    "constant",
    "matched",
    "measure",
    "measure_one",
]


class Source:
    """What a distribution over the vocabulary is known by, at every position; see the module."""

    __slots__ = ()

    def measure(self, q: Self | None, ask: Ask) -> Tensor:
        """Return the values that are asked for, `[wants, *batch]`, with this side as p."""
        raise NotImplementedError

    def whole(self) -> Tensor | None:
        """Return all logits `[*batch, vocab]`, or None where they cannot be made."""
        return None

    def constant(self) -> Self:
        """Return the same without gradient."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False)
class HiddenStates(Source):
    """Logits `hidden @ head.T + bias` that are made a block at a time and never held.

    Two of them are compared block by block: memory above the inputs and their gradients does not
    grow with the vocabulary. Their widths and dtypes may differ. Against logits, which are held
    anyway, the logits of this side are made whole.

    Exact up to rounding: products and sums in float32 at least (float64 if an input is). Gradients
    flow to hidden states, heads and biases of either side, by first derivatives only; those of half
    precision are summed in float32, a head's over 1024 positions at a time. Costs one product of
    hidden states and head a side forward (two where a mixture is asked for: `js`), and backward one
    again and one for every gradient that is wanted.

    Args:
        hidden: Last hidden states, `[*batch, width]`, any floating type.
        head: One row a token, `[vocab, width]`.
        bias: `[vocab]`, or None. −inf bans a token, with or without a cap.
        softcap: c of `c tanh(logits / c)`, which comes before the temperature; None for no cap.
        memory: Bytes of scratch to stay below, 48 MiB if None. More makes larger blocks, which
            suits a GPU. Of two sides the smaller holds.

    Raises:
        ValueError: Where it is used: shapes that do not fit, a cap that is not positive.
        TypeError: Where it is used: anything but tensors of floats.

    Reference: MATH 5.7; Cover and Thomas (2006), theorem 2.5.3, the chain rule that joins blocks.

    Example:
        >>> import torch
        >>> from kullback import tokens
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> head = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> tokens.kl(HiddenStates(hidden, head), HiddenStates(hidden, head.roll(1, 0)))
        tensor([0.3642, 1.3610])
    """

    hidden: Tensor
    head: Tensor
    _: KW_ONLY
    bias: Tensor | None = None
    softcap: float | None = None
    memory: int | None = None

    def measure(self, q: Self | None, ask: Ask) -> Tensor:
        """Return the values that are asked for, `[wants, *batch]`, block by block."""
        limits = [x.memory for x in (self, q) if x is not None and x.memory is not None]
        other = None if q is None else q._given()
        return from_hidden(self._given(), other, ask, min(limits, default=None))

    def whole(self) -> Tensor:
        """Return all logits, `[*batch, vocab]`, float32 (float64 if an input is).

        Example:
            >>> import torch
            >>> HiddenStates(torch.ones(1, 1), torch.eye(2, 1), softcap=0.5).whole()
            tensor([[0.4820, 0.0000]])
        """
        return whole_logits(self._given())

    def constant(self) -> Self:
        """Return the same without gradient."""
        bias = None if self.bias is None else constant(self.bias)
        return replace(self, hidden=constant(self.hidden), head=constant(self.head), bias=bias)

    def _given(self) -> Given:
        return Given(self.hidden, self.head, self.bias, self.softcap)


@dataclass(frozen=True, slots=True, eq=False)
class Sharded(Source):
    """This process's slice of logits whose vocabulary is cut over the processes of a group.

    Both sides must be cut alike. Every process calls the same function and gets the same values;
    the gradient is that of its own slice, whole: it must be neither averaged nor summed over the
    group. Two all-reduces of a few numbers a position forward (three for `js`), none backward.
    Token ids count over the whole vocabulary, whose slices lie in the order of ranks. Probabilities
    given for logits and the rounding of half precision are not looked at.

    Args:
        logits: `[*batch, slice]`. Slices may differ in size from process to process, the batch
            (and a mask) may not.
        group: A `torch.distributed` process group, None for the default one.

    Raises:
        ValueError: Where it is used: no process group, two groups, `align=`.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from kullback import tokens
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> tokens.kl(Sharded(p), Sharded(q))
        tensor(0.1438)
        >>> dist.destroy_process_group()
    """

    logits: Tensor
    group: Any = None

    def measure(self, q: Self | None, ask: Ask) -> Tensor:
        """Return the values that are asked for, `[wants, *batch]`, of all slices together."""
        if q is not None and q.group is not self.group:
            raise ArgumentValueError(message("p and q", "slices of one group", "two groups"))
        return measure_shards(self.logits, None if q is None else q.logits, ask, self.group)

    def constant(self) -> Self:
        """Return the same without gradient."""
        return replace(self, logits=constant(self.logits))


def measure(
    p: Any,
    q: Any,
    task: Task,
    *,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    align: str | None = None,
    nan: str = "refuse",
    backend: str = "auto",
    names: tuple[str, str] = ("p_logits", "q_logits"),
    what: Pointwise | None = None,
) -> Tensor:
    """Return the values of `task`, `[wants, *batch]`, for logits or other sources; q: or None.

    names: what logits are called in messages. what: of two sources, not logits, this divergence
    instead of the values of `task`.
    """
    if q is None and not _OF_ONE.issuperset(task.wants):
        raise ArgumentTypeError(message(names[1], "logits or another source", "None"))
    if isinstance(p, _OTHERS) or isinstance(q, _OTHERS):
        p, q = matched(p, q)
        if isinstance(p, Source):
            if task.asks("js"):
                what = Pointwise("jsd", task.beta, task.temperature)
                task = replace(task, wants=("kl",))
            return p.measure(q, Ask(task, what, ids, mask, align, nan, backend))
    if backend != "reference" and (torch.compiler.is_compiling() or _elsewhere(p, q, ids, mask)):
        return measured(p, q, Ask(task, None, ids, mask, align, nan, backend))
    return logits.measure(
        p, q, task, ids=ids, mask=mask, align=align, nan=nan, backend=backend, names=names
    )


def _elsewhere(*given: Any) -> bool:
    """Say whether the numbers of some dense tensor are not in memory as they stand."""
    dense = (x for x in given if isinstance(x, Tensor) and x.layout is torch.strided)
    return any(not x.is_neg() and not in_memory(x) for x in dense)


def measure_one(
    p: Any,
    q: Any,
    task: Task,
    *,
    mask: Tensor | None = None,
    align: str | None = None,
    nan: str = "refuse",
    backend: str = "auto",
    names: tuple[str, str] = ("p_logits", "q_logits"),
) -> Tensor:
    """Return the one value of `task`, `[*batch]`; as `measure`, and KL of plain logits faster."""
    plain = mask is None and align is None and task.wants == ("kl",)
    if plain and isinstance(p, Tensor) and isinstance(q, Tensor):
        found = logits.plain_kl(p, q, task.temperature, nan, backend)
        if found is not None:
            return found
    options: dict[str, Any] = {"align": align, "nan": nan, "backend": backend, "names": names}
    return measure(p, q, task, mask=mask, **options)[0]


_OTHERS = (Source, TopK)
_OF_ONE = frozenset({"entropy", "log_prob"})  # the values that need no q


def matched(p: Any, q: Any) -> tuple[Any, Any]:
    """Return two sources of one kind, or the logits of both; q: or None.

    Raises:
        TypeError: Two kinds that cannot meet, or a `TopK`.
    """
    for name, x in (("p", p), ("q", q)):
        if isinstance(x, TopK):
            expected = "what gives every token a probability: logits, HiddenStates or Sharded"
            hint = "kl(p, q), which bounds KL(p‖q)"
            raise ArgumentTypeError(message(name, expected, "a TopK list", hint))
    if q is None or type(p) is type(q):
        return p, q
    return _whole(p, q), _whole(q, p)


def _whole(x: Any, other: Any) -> Any:
    if not isinstance(x, Source):
        return x
    found = x.whole()
    if found is None:
        kind = type(x).__name__
        got = f"{kind} and {_kind(other)}"
        raise ArgumentTypeError(message("p and q", f"two {kind}", got, f"{kind}(...) of both"))
    return found


def _kind(x: Any) -> str:
    return type(x).__name__ if isinstance(x, Source | TopK) else f"logits ({describe(x)})"


def bounds(p: Any, q: Any, **options: Any) -> Bounds:
    """Return bounds on KL(p‖q) `[*batch]`, where a side is a `TopK`.

    Args:
        p: A `TopK`, logits, or another source that can make them.
        q: Likewise.
        options: Those of `kl`, none of which may be other than what it is by itself.
    """
    for name, default in _PLAIN.items():
        given = options[name]
        if given is not default and given != default:
            got = describe(given) if isinstance(given, Tensor) else repr(given)
            text = message(name, f"{default!r} with a TopK list", got)
            raise ArgumentValueError(text)
    return kl_bounds(_known(p, q), _known(q, p))


_PLAIN = {"temperature": 1.0, "mask": None, "align": None, "nan": "refuse", "backend": "auto"}


def _known(x: Any, other: Any) -> TopK | Tensor:
    if isinstance(x, TopK):
        return x
    whole = _whole(x, other)
    logits.check_logits(whole, "logits")
    log_probs: Tensor = whole.detach().double().log_softmax(-1)
    return log_probs


def constant(x: Any) -> Any:
    """Return logits or another source without gradient; other things are refused where used."""
    if isinstance(x, Source):
        return x.constant()
    return x.detach() if isinstance(x, Tensor) else x
