"""The reference: every value in float64, by autograd, in memory that grows with the vocabulary.

Which to use: `kl(…, backend="reference")`, to check another backend or to differentiate twice.

KL is summed as `p (e^l − 1 − l)` with `l = log q/p`, every term of it ≥ 0: a sum that rounding
cannot make negative. The rules for tokens without mass (logit −inf), which all backends follow:
a token that neither has adds nothing; one that only q has adds its mass; one that only p has makes
the value +inf. **An infinite term is a constant**: the gradient is that of the other terms. A row
without any token, or with NaN or +inf, has no distribution: its values and gradients are NaN.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kullback.exact import log_excess

from .interface import Task

__all__ = ["refusal", "values"]


def refusal(p: Tensor, q: Tensor | None, task: Task) -> str:
    """Say "": the reference does everything.

    >>> refusal(torch.zeros(1, 2), None, Task(("entropy",)))
    ''
    """
    return ""


def values(
    p: Tensor, q: Tensor | None, ids: Tensor | None, keep: Tensor | None, task: Task
) -> Tensor:
    """Return the values of `task`, `[len(wants), *batch]`, computed in float64 (see `task`).

    p, q: `[*batch, vocab]` logits, any floating dtype; float64 if p or q is, else float32 comes
    back. Differentiable, any number of times.

    >>> p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    >>> values(p, q, None, None, Task(("kl",))) / math.log(2)
    tensor([[0.2500]])
    """
    lp = _log_softmax(p, keep, task)
    lq = lp if q is None else _log_softmax(q, keep, task)
    log_probs = {"log_prob": lp, "q_log_prob": lq}
    sums: dict[str, Callable[[], Tensor]] = {
        "kl": lambda: _kl(lp, lq),
        "reverse_kl": lambda: _kl(lq, lp),
        "js": lambda: _js(lp, lq, task.beta),
        "entropy": lambda: _entropy(lp),
        "q_entropy": lambda: _entropy(lq),
        "same_top": lambda: _same_top(p, p if q is None else q).to(lp.dtype),
    }
    found = torch.stack(
        [sums[want]() if want in sums else _at(log_probs[want], ids, keep) for want in task.wants]
    )
    wide = p.dtype == torch.float64 or (q is not None and q.dtype == torch.float64)
    found = found if keep is None else found.masked_fill(~keep, 0)
    return found if wide else found.float()


def _log_softmax(logits: Tensor, keep: Tensor | None, task: Task) -> Tensor:
    logits = logits.double() if keep is None else logits.double().where(keep[..., None], 0)
    return (logits / task.temperature).log_softmax(-1)


def _kl(lp: Tensor, lq: Tensor) -> Tensor:
    """Σ p (e^l − 1 − l), written `q − p − p l` where q > e p, lest e^l overflow."""
    has_p, has_q = lp != -math.inf, lq != -math.inf
    p, q = lp.exp(), lq.exp()
    l = torch.where(has_p & has_q, lq - lp, 0)  # noqa: E741
    terms = torch.where(l < 1, p * log_excess(l.clamp(max=1)), q - p - p * l)
    return torch.where(has_p & has_q, terms, torch.where(has_p, math.inf, q)).sum(-1)


def _js(lp: Tensor, lq: Tensor, beta: float) -> Tensor:
    """β KL(p‖m) + (1−β) KL(q‖m), each in the same form; every token of p and of q is one of m."""
    none = (lp == -math.inf) & (lq == -math.inf)  # where logaddexp has no gradient
    a, b = (x.masked_fill(none, 0) for x in (lp, lq))
    lm = torch.logaddexp(a + math.log(beta), b + math.log1p(-beta)).masked_fill(none, -math.inf)
    return beta * _kl(lp, lm) + (1 - beta) * _kl(lq, lm)


def _entropy(lp: Tensor) -> Tensor:
    return -(lp.exp() * lp.masked_fill(lp == -math.inf, 0)).sum(-1)


def _same_top(p: Tensor, q: Tensor) -> Tensor:
    found = (p.argmax(-1) == q.argmax(-1)).double()
    none = [x.detach().amax(-1).abs() == math.inf for x in (p, q)]
    nan = [x.detach().isnan().any(-1) for x in (p, q)]
    return found.masked_fill(none[0] | none[1] | nan[0] | nan[1], math.nan)


def _at(log_probs: Tensor, ids: Tensor | None, keep: Tensor | None) -> Tensor:
    at = torch.zeros_like(log_probs[..., 0], dtype=torch.int64) if ids is None else ids
    at = at if keep is None else at.where(keep, 0)
    found = log_probs.gather(-1, at[..., None])[..., 0]
    return torch.where(found == -math.inf, found.detach(), found)
