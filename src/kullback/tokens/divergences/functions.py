"""Exact divergences between next-token distributions: one value a position.

Which to use: `kl` for one direction, `compare` for both directions, agreement, entropies and the
log-probabilities of given tokens in the same pass; `js` where either side may ban tokens the other
uses, or a bounded number is wanted; `jeffreys` for both directions as one number; `entropy`,
`cross_entropy` and `log_prob` for the usual losses and reports.

An argument is a tensor of logits, or a source that says what else is at hand (`sources`):
`HiddenStates(hidden, head)` where the logits would not fit, `Sharded(logits, group)` where the
vocabulary is cut over processes. Both sides are of one kind; hidden states also meet logits.
A `TopK` list does not determine a divergence: `kl` of it is a pair of `Bounds`, the others refuse.

Everything here is a sum over the vocabulary that is really done (MATH 5.7): no draws, no error bar,
in nats. Logits are `[*batch, vocab]`, values `[*batch]`, float64 for float64 logits and float32
for float32, bfloat16 and float16, in which all sums are computed. Gradients flow to either side or
both; they are written down, not recorded, and no backend but "reference" can differentiate twice.

These rules hold for all of them:

- **temperature**: both sides are softmax(logits / temperature). The gradient is that of the value;
  no temperature² is multiplied in.
- **mask**: bool `[*batch]`, True where a position counts. Elsewhere the value is 0 (False for
  agreement), the gradient is 0, and the logits may be anything. For a mean divide by `mask.sum()`.
- **Tokens without mass** (logit −inf): neither side has it: nothing. Only q: its mass counts. Only
  p: KL(p‖q) is +inf. An infinite term is a constant to the gradient, an infinite log-probability
  too; other terms keep theirs.
- **No distribution** (no finite logit, or NaN, +inf or one beyond 5e9 temperatures among them, where
  rounding leaves none; "reference" takes the last): `ArgumentValueError`; with
  nan="pass" values and gradients are NaN at that position, and nowhere else. "refuse" looks at the
  values, and so waits for a GPU; "pass" does not.
- **Rounding**: KL in float32 is exact to 6e-8 of itself up to 128 tokens, to 1e-6 up to some 4,000
  and to 3e-7 beyond (the largest of thousands of rows, for values from 1e-7 to 14); an entropy to
  2e-7 nats, so where nearly all mass is on one token it has few digits. Float64 logits have all.
- **Half precision**: where rounding the logits to bfloat16 or float16 may have moved a divergence
  by a tenth or more, `PrecisionWarning` says so, once (not with nan="pass"). `rounding_floor`
  gives by how much, for every position.
- **Probabilities** given for logits: where all rows are non-negative and sum to 1, `InputWarning`
  says that logits or log-probabilities are meant (on a GPU not with nan="pass"). Log-probabilities
  are logits.
- **align**: two vocabulary sizes are an error unless align="crop" says that the larger one is only
  padded: the tokens beyond the smaller are then left out, and the rest normalised without them.
- **backend**: "auto", or the name of one (`kullback.tokens.usable` says which can work here).
"""

from typing import NamedTuple, TypedDict, Unpack, overload

from torch import Tensor

from kullback.core import renamed
from kullback.exact import Bounds
from kullback.tokens.backends.interface import Task, Value

from .sources import Source, bounds, measure, measure_one
from .top_k import TopK

__all__ = [
    "Comparison",
    "compare",
    "cross_entropy",
    "entropy",
    "jeffreys",
    "js",
    "kl",
    "log_prob",
]


class _Options(TypedDict, total=False):
    temperature: float
    mask: Tensor | None
    align: str | None
    nan: str
    backend: str


_Side = Tensor | Source


@overload
def kl(p: _Side, q: _Side, **options: Unpack[_Options]) -> Tensor: ...


@overload
def kl(p: TopK, q: _Side | TopK, **options: Unpack[_Options]) -> Bounds: ...


@overload
def kl(p: _Side, q: TopK, **options: Unpack[_Options]) -> Bounds: ...


@renamed(p="p_logits", q="q_logits")
def kl(
    p: Tensor | Source | TopK,
    q: Tensor | Source | TopK,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    align: str | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor | Bounds:
    """Return `KL(p‖q) = Σ p log p/q` at every position (MATH 3.5, 5.7), in nats, ≥ 0.

    Exact up to rounding, also where p ≈ q: the sum is of `p (e^l − 1 − l)`, `l = log q/p`, whose
    terms cannot be negative. The rules for every option are at the head of this module.

    Args:
        p: Logits `[*batch, vocab]`, or another source (`HiddenStates`, `Sharded`, `TopK`).
        q: Likewise; batches of logits are broadcast.
        temperature: Both sides are softmax(logits / temperature).
        mask: Bool `[*batch]`, True where a position counts; elsewhere value and gradient are 0.
        align: "crop" where the larger vocabulary is only padded.
        nan: "refuse" rows without a distribution, or "pass" NaN.
        backend: "auto", or a name (`kullback.tokens.usable`).

    Returns:
        `[*batch]`; `Bounds` of two where a side is a `TopK` (`kl_bounds`), which takes no options.

    Raises:
        ValueError: Shapes, options or rows that are none; the message names the argument.
        TypeError: Anything but float tensors and sources, or two sources of kinds that cannot meet.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
        >>> kl(p, q)
        tensor(0.1733)
        >>> kl(torch.zeros(3), torch.tensor([0.0, 0.0, -torch.inf]))
        tensor(inf)
    """
    if isinstance(p, TopK) or isinstance(q, TopK):
        return bounds(
            p, q, temperature=temperature, mask=mask, align=align, nan=nan, backend=backend
        )
    task = Task(("kl",), temperature)
    return measure_one(p, q, task, mask=mask, align=align, nan=nan, backend=backend)


@renamed(p="p_logits", q="q_logits")
def js(
    p: Tensor | Source,
    q: Tensor | Source,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    align: str | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return `β KL(p‖m) + (1−β) KL(q‖m)`, `m = β p + (1−β) q`: Jensen-Shannon, in nats.

    Always finite: at most the entropy of (β, 1−β), which disjoint sides reach. As β → 0, js/β tends
    to KL(p‖q); as β → 1, js/(1−β) tends to KL(q‖p).
    Reference: Lin (1991), section IV; Agarwal et al. (2024), "On-policy distillation", eq. 1.

    Args:
        p: Logits `[*batch, vocab]`, or another source (`HiddenStates`, `Sharded`).
        q: Likewise; batches of logits are broadcast.
        beta: Weight of p in the mixture, strictly between 0 and 1.
        temperature: Both sides are softmax(logits / temperature).
        mask: Bool `[*batch]`, True where a position counts; elsewhere value and gradient are 0.
        align: "crop" where the larger vocabulary is only padded.
        nan: "refuse" rows without a distribution, or "pass" NaN.
        backend: "auto", or a name (`kullback.tokens.usable`).

    Returns:
        `[*batch]`.

    Raises:
        ValueError: Shapes, options or rows that are none; the message names the argument.
        TypeError: Anything but float tensors and sources, or two sources of kinds that cannot meet.

    Example:
        >>> import torch
        >>> js(torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf, 0.0]))  # log 2
        tensor(0.6931)
    """
    task = Task(("js",), temperature, beta)
    return measure(p, q, task, mask=mask, align=align, nan=nan, backend=backend)[0]


@renamed(p="p_logits", q="q_logits")
def jeffreys(
    p: Tensor | Source,
    q: Tensor | Source,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    align: str | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return `KL(p‖q) + KL(q‖p)` at every position, in nats, ≥ 0, symmetric.

    Args:
        p: Logits `[*batch, vocab]`, or another source (`HiddenStates`, `Sharded`).
        q: Likewise; batches of logits are broadcast.
        temperature: Both sides are softmax(logits / temperature).
        mask: Bool `[*batch]`, True where a position counts; elsewhere value and gradient are 0.
        align: "crop" where the larger vocabulary is only padded.
        nan: "refuse" rows without a distribution, or "pass" NaN.
        backend: "auto", or a name (`kullback.tokens.usable`).

    Returns:
        `[*batch]`; +inf as soon as one side lacks a token that the other has.

    Raises:
        ValueError: Shapes, options or rows that are none; the message names the argument.
        TypeError: Anything but float tensors and sources, or two sources of kinds that cannot meet.

    Example:
        >>> import torch
        >>> jeffreys(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())
        tensor(0.2747)
    """
    task = Task(("kl", "reverse_kl"), temperature)
    return measure(p, q, task, mask=mask, align=align, nan=nan, backend=backend).sum(0)


@renamed(p="logits")
def entropy(
    p: Tensor | Source,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return `H(p) = Σ p log 1/p` at every position (MATH 3.2), in nats.

    Args:
        p: Logits `[*batch, vocab]`, or another source (`HiddenStates`, `Sharded`).
        temperature: Both sides are softmax(logits / temperature).
        mask: Bool `[*batch]`, True where a position counts; elsewhere value and gradient are 0.
        nan: "refuse" rows without a distribution, or "pass" NaN.
        backend: "auto", or a name (`kullback.tokens.usable`).

    Returns:
        `[*batch]`; tokens without mass add nothing.

    Raises:
        ValueError: Shapes, options or rows that are none; the message names the argument.
        TypeError: Anything but float tensors and sources, or two sources of kinds that cannot meet.

    Example:
        >>> import torch
        >>> entropy(torch.tensor([0.0, 0.0, -torch.inf]))
        tensor(0.6931)
    """
    task = Task(("entropy",), temperature)
    return measure(p, None, task, mask=mask, nan=nan, backend=backend)[0]


@renamed(p="p_logits", q="q_logits")
def cross_entropy(
    p: Tensor | Source,
    q: Tensor | Source,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    align: str | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return `H(p, q) = Σ p log 1/q = H(p) + KL(p‖q)` at every position (MATH 3.4), in nats.

    A soft label's loss. For hard labels use `-log_prob(logits, ids)`.

    Args:
        p: What the data follow: logits `[*batch, vocab]`, or `HiddenStates`, or `Sharded`.
        q: What they are coded with, likewise; batches of logits are broadcast.
        temperature: Both sides are softmax(logits / temperature).
        mask: Bool `[*batch]`, True where a position counts; elsewhere value and gradient are 0.
        align: "crop" where the larger vocabulary is only padded.
        nan: "refuse" rows without a distribution, or "pass" NaN.
        backend: "auto", or a name (`kullback.tokens.usable`).

    Returns:
        `[*batch]`; +inf where q lacks a token that p has.

    Raises:
        ValueError: Shapes, options or rows that are none; the message names the argument.
        TypeError: Anything but float tensors and sources, or two sources of kinds that cannot meet.

    Example:
        >>> import torch
        >>> cross_entropy(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())
        tensor(0.8370)
    """
    task = Task(("entropy", "kl"), temperature)
    return measure(p, q, task, mask=mask, align=align, nan=nan, backend=backend).sum(0)


@renamed(p="logits")
def log_prob(
    p: Tensor | Source,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Tensor:
    """Return `log p(id)` at every position, in nats, ≤ 0.

    Args:
        p: Logits `[*batch, vocab]`, or another source (`HiddenStates`, `Sharded`).
        ids: Integers `[*batch]` from 0 to vocab − 1, anything where the mask is False.
        temperature: Both sides are softmax(logits / temperature).
        mask: Bool `[*batch]`, True where a position counts; elsewhere value and gradient are 0.
        nan: "refuse" rows without a distribution, or "pass" NaN.
        backend: "auto", or a name (`kullback.tokens.usable`).

    Returns:
        `[*batch]`; −inf at a token without mass.

    Raises:
        ValueError: Shapes, options or rows that are none; the message names the argument.
        TypeError: Anything but float tensors and sources, or two sources of kinds that cannot meet.

    Example:
        >>> import torch
        >>> log_prob(torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log(), torch.tensor([0, 1]))
        tensor([-0.6931, -0.2877])
    """
    task = Task(("log_prob",), temperature)
    return measure(p, None, task, ids=ids, mask=mask, nan=nan, backend=backend)[0]


class Comparison(NamedTuple):
    """What `compare` finds: values `[*batch]` in nats, `same_top` bool.

    Example:
        >>> Comparison._fields[:3]
        ('kl', 'reverse_kl', 'same_top')
    """

    kl: Tensor  # KL(p‖q)
    reverse_kl: Tensor  # KL(q‖p)
    same_top: Tensor  # whether p and q have the same most probable token (the first, of equals)
    p_entropy: Tensor  # H(p)
    q_entropy: Tensor  # H(q)
    p_log_prob: Tensor | None  # log p(id), None without ids
    q_log_prob: Tensor | None  # log q(id)


@renamed(p="p_logits", q="q_logits")
def compare(
    p: Tensor | Source,
    q: Tensor | Source,
    *,
    ids: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    align: str | None = None,
    nan: str = "refuse",
    backend: str = "auto",
) -> Comparison:
    """Return KL both ways, agreement, entropies and log-probabilities of `ids` in one pass.

    Args:
        p: Logits `[*batch, vocab]`, or another source (`HiddenStates`, `Sharded`).
        q: Likewise; batches of logits are broadcast.
        ids: Integers `[*batch]` from 0 to vocab − 1, the tokens that
            came, or None. With align="crop" they lie in the smaller vocabulary.
        temperature: Both sides are softmax(logits / temperature).
        mask: Bool `[*batch]`, True where a position counts; elsewhere value and gradient are 0.
        align: "crop" where the larger vocabulary is only padded.
        nan: "refuse" rows without a distribution, or "pass" NaN.
        backend: "auto", or a name (`kullback.tokens.usable`).

    Returns:
        A `Comparison` of `[*batch]`; every value has its gradient but `same_top`.

    Raises:
        ValueError: Shapes, options or rows that are none; the message names the argument.
        TypeError: Anything but float tensors and sources, or two sources of kinds that cannot meet.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
        >>> found = compare(p, q, ids=torch.tensor(1))
        >>> found.kl, found.same_top, found.q_log_prob
        (tensor(0.1733), tensor(False), tensor(-0.6931))
    """
    wants: tuple[Value, ...] = ("kl", "reverse_kl", "same_top", "entropy", "q_entropy")
    if ids is not None:
        wants = (*wants, "log_prob", "q_log_prob")
    task = Task(wants, temperature)
    found = measure(p, q, task, ids=ids, mask=mask, align=align, nan=nan, backend=backend)
    kl, reverse, same, h_p, h_q, *log_probs = found
    at_p, at_q = log_probs if log_probs else (None, None)
    return Comparison(kl, reverse, same.detach() == 1, h_p, h_q, at_p, at_q)
