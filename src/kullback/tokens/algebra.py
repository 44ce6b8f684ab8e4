"""From a row's sums to its values, and from gradients of values to a row's coefficients.

Which to use: none of this directly; `measure` does, for every backend that offers `sums` and
`slopes` (see `task`). With K = −Σ p l over the tokens that both have, R = Σ q l, and S the mass of
one side on the tokens of the other, the gradients of the finite terms with respect to the logits
over the temperature are

    KL(p‖q):  p (−l − K)  and  S_p q − p        H(p):      p (−log p − H)
    KL(q‖p):  S_q p − q   and  q (l − R)        log p(id): [id] − p
    js:       β p (−x − KL(p‖m))  and  (1−β) q (−y − KL(q‖m))
"""

import math

import torch
from torch import Tensor

from .task import Slope, Sum, Task

__all__ = ["coefficients", "fill_log_probs", "values"]


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
    same = (sums[Sum.P_TOP] == sums[Sum.Q_TOP]) + 0 * (sums[Sum.P_LOG] + sums[Sum.Q_LOG])
    found = {
        "kl": sums[Sum.KL].masked_fill(sums[Sum.P_ALONE] > 0, math.inf),
        "reverse_kl": sums[Sum.REVERSE_KL].masked_fill(sums[Sum.Q_ALONE] > 0, math.inf),
        "js": task.beta * sums[Sum.JS_P] + (1 - task.beta) * sums[Sum.JS_Q],
        "entropy": sums[Sum.P_ENTROPY],
        "q_entropy": sums[Sum.Q_ENTROPY],
        "log_prob": sums[Sum.P_AT],
        "q_log_prob": sums[Sum.Q_AT],
        "same_top": same,
    }
    return torch.stack([found[want] for want in task.wants])


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
