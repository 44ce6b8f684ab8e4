"""What a backend is asked, and what it must offer.

Which to use: none of this to measure something (`kullback.tokens.kl` and its like are the face);
this file is for whoever writes a backend.

A backend is a module of this folder, named in `backends.py`. It offers

    refusal(p, q, task) -> str
        Why it cannot do this (dtype, device, no compiler), or "" when it can. Raises nothing.
    sums(p, q, keep, task) -> Tensor [len(Sum), n], float64
        What one needs to know of every row: see `Sum`. Rows of the result that `task.needs` does
        not name may be left as they are.
    slopes(p, q, ids, keep, task, sums, coefficients, grad_p, grad_q) -> None
        Fills `grad_p` and `grad_q`, either of which may be None (not wanted): see `Slope`.

or, like `reference`, one function that autograd differentiates:

    values(p, q, ids, keep, task) -> Tensor [len(task.wants), n]

with

    p: `[n, vocab]` logits, float, the last axis contiguous, rows any distance apart (also 0, where
        one row was broadcast); q: the same shape, another dtype if need be, or None when no value
        asks for it. ids: int64 `[n]` in range, or None. keep: bool `[n]`, or None for all; a row
        that is not kept may have any sums, and gets the gradient 0, whatever its logits are.
    grad_p, grad_q: `[n, vocab]` in the dtype of p and of q, the last axis contiguous, to be filled.

How sums become values, and gradients of values coefficients, is in `algebra`, once for all.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

__all__ = ["Slope", "Sum", "Task", "Value"]

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
    """The sums over one row of logits, float64; `x = (logit − max) / temperature`, `l = log q/p`.

    A row without a distribution (no finite logit, or NaN or +inf) has a log-normaliser NaN.
    Sums over both sides run over the tokens that both have, where nothing else is said.

    >>> int(Sum.KL)
    6
    """

    P_MAX = 0  # the largest logit of p, not divided by the temperature
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

    def asks(self, *values: Value) -> bool:
        """Say whether any of `values` is wanted."""
        return any(value in self.wants for value in values)
