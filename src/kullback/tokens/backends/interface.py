"""What a backend is asked, and what it must offer.

Which to use: none of this to measure something (`kullback.tokens.kl` and its like are the face);
this file is for whoever writes a backend.

A backend is a module of this folder, named in `backends.py`. It offers

    refusal(p, q, task) -> str
        Why it cannot do this (dtype, device, no compiler), or "" when it can. Raises nothing.
    sums(p, q, keep, task) -> Tensor [len(Sum), n], float64
        What one needs to know of every row: see `Sum`. Rows of the result that `task.needs` does
        not name may be left as they are.
    slopes(rows, task, sums, coefficients, grad_p, grad_q) -> None
        Fills `grad_p` and `grad_q`, either of which may be None (not wanted): see `Slope`. rows:
        the `Rows` p, q, ids, keep.

or, like `reference`, one function that autograd differentiates:

    values(p, q, ids, keep, task) -> Tensor [len(task.wants), n]

with

    p: `[n, vocab]` logits, float, the last axis contiguous, rows any distance apart (also 0, where
        one row was broadcast); q: the same shape, another dtype if need be, or None when no value
        asks for it. ids: int64 `[n]` in range, or None. keep: bool `[n]`, or None for all; a row
        that is not kept may have any sums, and gets the gradient 0, whatever its logits are.
    grad_p, grad_q: `[n, vocab]` in the dtype of p and of q, the last axis contiguous, to be filled.

How sums become values, and gradients of values coefficients, is in `algebra`, once for all.

From a row's sums to its values, and from gradients of values to a row's coefficients.

Which to use: none of this directly; `measure` does, for every backend that offers `sums` and
`slopes` (see `task`). With K = −Σ p l over the tokens that both have, R = Σ q l, and S the mass of
one side on the tokens of the other, the gradients of the finite terms with respect to the logits
over the temperature are

    KL(p‖q):  p (−l − K)  and  S_p q − p        H(p):      p (−log p − H)
    KL(q‖p):  S_q p − q   and  q (l − R)        log p(id): [id] − p
    js:       β p (−x − KL(p‖m))  and  (1−β) q (−y − KL(q‖m))
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kullback.core import require

__all__ = [
    "Rows",
    "Slope",
    "Sum",
    "Task",
    "Value",
    "coefficients",
    "fill_log_probs",
    "for_backward",
    "freed",
    "in_memory",
    "refuse_mapped",
    "transformed",
    "values",
]

Value = Literal[
    "kl",  # KL(p‖q)
    "reverse_kl",  # KL(q‖p)
    "js",  # β KL(p‖m) + (1−β) KL(q‖m), m = β p + (1−β) q
    "entropy",  # H(p)
    "q_entropy",  # H(q)
    "log_prob",  # log p(id)
    "q_log_prob",  # log q(id)
    "same_top",  # 1 where p and q have the same most probable token, else 0; no gradient
]


class Sum(IntEnum):
    """The sums over one row of logits, float64; `x = (logit − P_MAX) / temperature`, `l = log q/p`.

    A row without a distribution (no finite logit, or NaN or +inf) has a log-normaliser NaN.
    Sums over both sides run over the tokens that both have, where nothing else is said.

    >>> int(Sum.KL)
    6
    """

    P_MAX = 0  # the largest logit of p (or one near it, unless `same_top` is wanted)
    P_LOG = 1  # log Σ e^x over p, so that log p = x − P_LOG
    Q_MAX = 2
    Q_LOG = 3
    P_ENTROPY = 4  # −Σ p log p
    Q_ENTROPY = 5
    KL = 6  # Σ p (e^l − 1 − l), plus q where only q has the token
    REVERSE_KL = 7  # Σ q (e^−l − 1 + l), plus p where only p has the token
    P_ALONE = 8  # how many tokens only p has (logit of q −inf, of p not)
    Q_ALONE = 9
    P_LOST = 10  # the mass of p on those tokens
    Q_LOST = 11
    JS_P = 12  # KL(p‖m), m = β p + (1−β) q, over every token that either has
    JS_Q = 13  # KL(q‖m)
    P_TOP = 14  # the first id of the largest logit
    Q_TOP = 15
    P_AT = 16  # log p(id) and log q(id), which `algebra` fills in, not the backend
    Q_AT = 17
    NOTE = 18  # whatever a backend wants to tell its own slopes


class Slope(IntEnum):
    """Coefficients `[n]` of a row's gradients, float64; zero where keep is False.

    With `d = q − p`, `x = log m/p`, `y = log m/q`, and l = 0 where only one side has the token:

        grad_p = p (P_ONE + P_RATIO l + P_LOG log p + P_MIX x) + P_STEP d, and P_AT more at the id
        grad_q = q (Q_ONE + Q_RATIO l + Q_LOG log q + Q_MIX y) + Q_STEP d, and Q_AT more at the id

    and 0 at a token that the side itself lacks. NaN coefficients make a row of NaN.

    >>> Slope.Q_ONE - Slope.P_ONE
    6
    """

    P_ONE = 0
    P_RATIO = 1
    P_LOG = 2
    P_MIX = 3
    P_STEP = 4
    P_AT = 5
    Q_ONE = 6
    Q_RATIO = 7
    Q_LOG = 8
    Q_MIX = 9
    Q_STEP = 10
    Q_AT = 11


@dataclass(frozen=True, slots=True)
class Task:
    """Which values to compute, of softmax(p / temperature) and softmax(q / temperature), in nats.

    >>> Task(("kl", "same_top")).asks("js")
    False
    """

    wants: tuple[Value, ...]
    temperature: float = 1.0
    beta: float = 0.5
    # whether gradients may be asked for; if not, JS_P and JS_Q may be any whose weighted sum is js
    slopes: bool = True

    def asks(self, *values: Value) -> bool:
        """Say whether any of `values` is wanted."""
        return any(value in self.wants for value in values)


@dataclass(frozen=True, slots=True)
class Rows:
    """Logits p, q `[n, vocab]`, q or None, with ids and keep `[n]`, or None.

    >>> Rows(torch.zeros(1, 2)).q is None
    True
    """

    p: Tensor
    q: Tensor | None = None
    ids: Tensor | None = None
    keep: Tensor | None = None


_PLAIN, _DENSE = (Tensor, torch.nn.Parameter), torch.strided
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def in_memory(x: Tensor) -> bool:
    """Say whether the numbers of x lie at `x.data_ptr()`, by its strides, and are all it holds.

    Not so: a negative bit (`resolve_neg` removes it), no dense layout, no numbers (meta), memory
    that was freed, a subclass with its own dispatch, and what `transformed` names.

    >>> in_memory(torch.zeros(2)), in_memory(torch.zeros(2, device="meta"))
    (True, False)
    """
    if type(x) not in _PLAIN and type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    if x.layout is not _DENSE or x.is_nested or x.is_neg() or _is_wrapped(x):
        return False
    if forward_ad._current_level >= 0 and transformed(x):
        return False
    return x.data_ptr() != 0 or not (x.numel() or x.is_meta)


def _tangent(x: Tensor) -> Tensor | None:
    found: Tensor | None = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
    return found


def transformed(x: Tensor) -> bool:
    """Say whether x is inside a transform of `torch.func`, or carries a forward-mode derivative.

    >>> torch.vmap(lambda x: torch.zeros(()) if transformed(x) else x)(torch.ones(2))
    tensor([0., 0.])
    """
    if _is_wrapped(x):
        return True
    return forward_ad._current_level >= 0 and _tangent(x) is not None


def freed(x: Tensor) -> bool:
    """Say whether the storage of x was given back (as sharded training does between steps).

    >>> freed(torch.zeros(2))
    False
    """
    plain = type(x) in _PLAIN and not (x.is_meta or transformed(x))
    return plain and x.numel() > 0 and x.untyped_storage().nbytes() == 0


def refuse_mapped(x: Any, name: str, hint: str = "") -> None:
    """Require that x is not inside `vmap`, where no number may be looked at.

    >>> refuse_mapped(torch.zeros(2), "x")
    """
    if not isinstance(x, Tensor):
        return
    mapped, inner = torch._C._functorch.is_legacy_batchedtensor(x), x
    while not mapped and _is_wrapped(inner):
        mapped = torch._C._functorch.is_batchedtensor(inner)
        inner = torch._C._functorch.get_unwrapped(inner)
    hint = hint or "without vmap: it takes any batch"
    require(not mapped, name, "a tensor outside of vmap", "one inside", hint)


def for_backward(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return what a backward pass may keep: copies of tensors made in inference mode.

    >>> with torch.inference_mode():
    ...     teacher = torch.zeros(2)
    >>> for_backward(teacher)[0].is_inference()
    False
    """
    return [x.clone() if x is not None and x.is_inference() else x for x in tensors]


def fill_log_probs(
    sums: Tensor, p: Tensor, q: Tensor | None, ids: Tensor | None, task: Task
) -> None:
    """Write log p(id) and log q(id) into the sums `[len(Sum), n]`; p, q: `[n, vocab]`.

    >>> sums = torch.zeros(len(Sum), 1, dtype=torch.float64)
    >>> fill_log_probs(sums, torch.zeros(1, 2), None, torch.tensor([1]), Task(("log_prob",)))
    >>> float(sums[Sum.P_AT])
    0.0
    """
    if ids is None:
        return
    for logits, top, log, at in (
        (p, Sum.P_MAX, Sum.P_LOG, Sum.P_AT),
        (q, Sum.Q_MAX, Sum.Q_LOG, Sum.Q_AT),
    ):
        if logits is not None:
            logit = logits.gather(-1, ids[:, None])[:, 0].double()
            sums[at] = (logit - sums[top]) / task.temperature - sums[log]


def values(sums: Tensor, task: Task) -> Tensor:
    """Return the values `[len(wants), n]` that the sums `[len(Sum), n]` make, float64.

    >>> values(torch.zeros(len(Sum), 1, dtype=torch.float64), Task(("kl", "same_top")))
    tensor([[0.],
            [1.]], dtype=torch.float64)
    """
    return torch.stack([_value(sums, want, task.beta) for want in task.wants])


_ROWS: dict[str, Sum] = {
    "kl": Sum.KL,
    "reverse_kl": Sum.REVERSE_KL,
    "entropy": Sum.P_ENTROPY,
    "q_entropy": Sum.Q_ENTROPY,
    "log_prob": Sum.P_AT,
    "q_log_prob": Sum.Q_AT,
}
_ALONE: dict[str, Sum] = {"kl": Sum.P_ALONE, "reverse_kl": Sum.Q_ALONE}  # tokens: then infinite


def _value(sums: Tensor, want: str, beta: float) -> Tensor:
    if want == "js":
        return beta * sums[Sum.JS_P] + (1 - beta) * sums[Sum.JS_Q]
    if want == "same_top":
        nan = 0 * (sums[Sum.P_LOG] + sums[Sum.Q_LOG])
        return (sums[Sum.P_TOP] == sums[Sum.Q_TOP]) + nan
    found = sums[_ROWS[want]]
    if want not in _ALONE:
        return found
    whole = ~(sums[Sum.P_LOG] + sums[Sum.Q_LOG]).isnan()  # rows without a distribution stay NaN
    return found.masked_fill((sums[_ALONE[want]] > 0) & whole, math.inf)


def coefficients(sums: Tensor, grads: Tensor, task: Task) -> Tensor:
    """Return the coefficients `[len(Slope), n]`, float64; grads `[len(wants), n]`.

    >>> sums = torch.zeros(len(Sum), 1, dtype=torch.float64)
    >>> coefficients(sums, torch.ones(1, 1), Task(("kl",)))[Slope.Q_STEP]
    tensor([1.], dtype=torch.float64)
    """
    c = torch.zeros(len(Slope), sums.shape[-1], dtype=torch.float64, device=sums.device)
    for want, grad in zip(task.wants, grads, strict=True):
        _add(c, want, grad.double() / task.temperature, sums, task.beta)
    return c


def _add(c: Tensor, want: str, g: Tensor, sums: Tensor, beta: float) -> None:
    if want == "kl":
        c[Slope.P_RATIO] -= g
        c[Slope.P_ONE] -= g * (sums[Sum.KL] - sums[Sum.P_LOST])
        c[Slope.Q_STEP] += g
        c[Slope.Q_ONE] -= g * sums[Sum.P_LOST]
    elif want == "reverse_kl":
        c[Slope.Q_RATIO] += g
        c[Slope.Q_ONE] -= g * (sums[Sum.REVERSE_KL] - sums[Sum.Q_LOST])
        c[Slope.P_STEP] -= g
        c[Slope.P_ONE] -= g * sums[Sum.Q_LOST]
    elif want == "js":
        c[Slope.P_MIX] -= g * beta
        c[Slope.P_ONE] -= g * beta * sums[Sum.JS_P]
        c[Slope.Q_MIX] -= g * (1 - beta)
        c[Slope.Q_ONE] -= g * (1 - beta) * sums[Sum.JS_Q]
    elif want == "entropy":
        c[Slope.P_LOG] -= g
        c[Slope.P_ONE] -= g * sums[Sum.P_ENTROPY]
    elif want == "q_entropy":
        c[Slope.Q_LOG] -= g
        c[Slope.Q_ONE] -= g * sums[Sum.Q_ENTROPY]
    elif want in ("log_prob", "q_log_prob"):
        one, at, found = (
            (Slope.P_ONE, Slope.P_AT, Sum.P_AT)
            if want == "log_prob"
            else (Slope.Q_ONE, Slope.Q_AT, Sum.Q_AT)
        )
        g = g.masked_fill(sums[found] == -math.inf, 0)
        c[one] -= g
        c[at] += g
