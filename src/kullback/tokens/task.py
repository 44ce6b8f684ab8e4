"""What a backend is asked, and what it must offer.

Which to use: none of this to measure something (`kullback.tokens.kl` and its like are the face);
this file is for whoever writes a backend.

A backend is a module of this folder, named in `backends.py`. It offers

    refusal(p, q, task) -> str
        Why it cannot do this (dtype, device, no compiler), or "" when it can. Cheap, and raises
        nothing.
    forward(p, q, ids, keep, task) -> (values, saved)
    backward(p, q, ids, keep, task, saved, grads, grad_p, grad_q) -> None
        Fills `grad_p` and `grad_q`, each a tensor or None (not wanted), with the gradient of
        `(grads * values).sum()` with respect to the logits as they were given, unscaled by the
        temperature.

or, like `reference`, one function that autograd differentiates:

    values(p, q, ids, keep, task) -> values

with

    p: `[n, vocab]` logits, float, the last axis contiguous, rows any distance apart (also 0, where
        one row was broadcast); q: the same shape, another dtype if need be, or None when no value
        asks for it. ids: int64 `[n]` in range, or None. keep: bool `[n]`, or None for all; a row
        that is not kept has values and gradients 0, whatever its logits are (NaN too).
    values: `[len(task.wants), n]`, float64 if p or q is, else float32.
    saved: float64 `[any, n]`, the backend's own notes to its backward pass.
    grads: `[len(task.wants), n]`, as values. grad_p, grad_q: `[n, vocab]`, in the dtype of p and
        of q, the last axis contiguous, uninitialised.

The meaning of every value, and of its gradient where the value is infinite, is `reference`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["PAIRED", "Backward", "Forward", "Task", "Value"]

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

PAIRED = frozenset({"kl", "reverse_kl", "js", "q_entropy", "q_log_prob", "same_top"})

Forward = Callable[..., tuple[Tensor, Tensor]]
Backward = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Task:
    """Which values to compute, of softmax(p / temperature) and softmax(q / temperature), in nats.

    >>> Task(("kl", "same_top")).temperature
    1.0
    """

    wants: tuple[Value, ...]
    temperature: float = 1.0
    beta: float = 0.5
