"""KL(p‖q) by parts: a vocabulary cut into pieces, each seen once, joined by the chain rule.

Which to use: `of_logits` of one piece of both logits, `joined` of what many pieces gave, `value` of
the whole, `gradient` of one piece once the whole is known. This is how a vocabulary is summed in
blocks (`hidden`), in splits (`triton_kernels`) and over processes (`parallel`), in one pass and
never below zero:

    KL(p‖q) = KL(P‖Q) + Σ_i P_i KL(p(·|i) ‖ q(·|i)),   P_i, Q_i the masses of piece i.

Every sum is of terms `q − p + p log(p/q)` ≥ 0, written without cancellation, so that a KL of 1e-6
keeps its digits in float32, and a normaliser that is off by ε costs only ε²/2 (MATH 5.7).

Tokens that p has and q lacks make the KL +inf; they are *lost*. They are left out of every sum and
only their mass is kept: the gradient, which treats an infinite term as a constant, needs it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Parts", "gradient", "joined", "of_logits", "value"]

_LOWEST = -1e30  # stands for log 0: its exponential is 0, its multiples by 0 are not NaN


class Parts(NamedTuple):
    """What is kept of one piece, each `[*batch]` in float64; or of several, `[*batch, pieces]`.

    log_p, log_q: logsumexp of the piece's logits, p's without the lost tokens; −inf for none.
    kl: KL(p‖q) within the piece, of what is not lost. log_lost: logsumexp of p over lost tokens.
    """

    log_p: Tensor
    log_q: Tensor
    kl: Tensor
    log_lost: Tensor


def of_logits(
    p: Tensor, q: Tensor, *, rooms: tuple[Tensor, ...] = (), banned: bool = True
) -> Parts:
    """Return the `Parts` of one piece of logits, using up p and q.

    p, q: `[*batch, n]`, float32 or float64, overwritten. rooms: two tensors of that shape to work
    in. banned: whether a logit may be −inf; if it may not, some passes over memory are saved.
    Exact up to rounding. NaN stays NaN.

    >>> logits = torch.tensor([2.0, 1.0, 1.0]).log()
    >>> of_logits(logits.clone(), logits.roll(1)).kl
    tensor(0.1733, dtype=torch.float64)
    """
    first, second = rooms or (torch.empty_like(p), torch.empty_like(q))
    lost = (q == -math.inf) & (p > -math.inf) if banned else None
    log_lost = None
    if lost is not None:
        log_lost = _log_sum(second.copy_(p).masked_fill_(~lost, -math.inf), first)
        p = p.masked_fill_(lost, -math.inf)
    log_p, log_q = _log_sum(p, first), _log_sum(q, first)
    mass, step, other = _compared(p, q, log_p, log_q, first, banned=banned)
    torch.clamp(step, max=1.0, out=second).expm1_().sub_(step).mul_(mass)
    kl = second.sum(-1).double()
    kl += other.sub_(mass, alpha=math.e).clamp_(min=0.0).sum(-1)
    log_lost = torch.full_like(log_p, -math.inf) if log_lost is None else log_lost
    return Parts(log_p, log_q, kl, log_lost)


def joined(parts: Parts) -> Parts:
    """Join pieces `[*batch, pieces]` into the `Parts` `[*batch]` of their union.

    The masses of the pieces are compared as if they were tokens; to that is added what p expects
    of the KL within.

    >>> logits = torch.tensor([[2.0, 1.0], [1.0, 4.0]], dtype=torch.float64).log()
    >>> pieces = of_logits(logits.clone(), logits.flip(0))
    >>> whole = of_logits(logits.flatten(), logits.flip(0).flatten())
    >>> torch.allclose(joined(pieces).kl, whole.kl)
    True
    """
    between = of_logits(parts.log_p.clone(), parts.log_q.clone())
    weights = (parts.log_p - _finite(between.log_p)[..., None]).exp()
    within = torch.where(parts.log_p == -math.inf, 0.0, weights * parts.kl).sum(-1)
    log_lost = _log_sum(parts.log_lost, torch.empty_like(parts.log_lost))
    return Parts(between.log_p, between.log_q, between.kl + within, log_lost)


def value(whole: Parts) -> Tensor:
    """Return KL(p‖q) `[*batch]`: +inf where something is lost, NaN where a side has no token.

    >>> logits = torch.tensor([0.0, 0.0])
    >>> value(of_logits(logits.clone(), torch.tensor([0.0, -torch.inf])))
    tensor(inf, dtype=torch.float64)
    """
    lost = whole.log_lost > -math.inf
    kl = whole.kl.masked_fill(lost, math.inf)
    none = (whole.log_q == -math.inf) | ((whole.log_p == -math.inf) & ~lost)
    return kl.masked_fill(none, math.nan)


def gradient(
    p: Tensor,
    q: Tensor,
    whole: Parts,
    *,
    rooms: tuple[Tensor, ...] = (),
    banned: bool = True,
    to_p: bool = True,
    to_q: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dKL/dp and dKL/dq for one piece of logits, using up p and q.

    p, q, rooms, banned: as in `of_logits`. whole: the `Parts` of all pieces together. The results
    lie in the memory of p, q or the rooms: `p (log(p/q) − KL)` and `q − p`, exact up to rounding
    also where q is near p; 0 for a token that its side cannot give. An infinite term is a constant:
    lost tokens keep their mass s in p, and `p (−KL')`, `(1 − s) q − p` are what is left.

    >>> logits = torch.tensor([2.0, 1.0, 1.0]).log()
    >>> whole = of_logits(logits.clone(), logits.roll(1))
    >>> gradient(logits.clone(), logits.roll(1), whole)
    (tensor([ 0.2599, -0.2166, -0.0433]), tensor([-0.2500,  0.2500,  0.0000]))
    """
    first, second = rooms or (torch.empty_like(p), torch.empty_like(q))
    lost = (q == -math.inf) & (p > -math.inf) if banned else None
    log_p, kl, kept = _with_lost(whole) if banned else (whole.log_p, whole.kl, None)
    mass, step, other = _compared(p, q, log_p, whole.log_q, first, banned=banned)
    if lost is not None:
        step.masked_fill_(lost, 0.0)
    grad_q = grad_p = None
    if to_q:
        grad_q = torch.clamp(step, max=1.0, out=second).expm1_().mul_(mass)
        if kept is not None:
            grad_q -= other * (1.0 - kept).to(other.dtype)[..., None]
        grad_q += other.sub_(mass, alpha=math.e).clamp_(min=0.0)
    if to_p:
        grad_p = step.add_(kl.to(step.dtype)[..., None]).neg_().mul_(mass)
    return grad_p, grad_q


def _with_lost(whole: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Return p's logsumexp with the lost tokens, `Σ p log(p/q)` without them, the mass 1 − s."""
    log_p = torch.logaddexp(whole.log_p, whole.log_lost)
    log_kept = whole.log_p - _finite(log_p)
    kept = log_kept.exp()
    return log_p, torch.where(kept == 0, 0.0, kept * (whole.kl + log_kept)), kept


def _compared(
    p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor, room: Tensor, *, banned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return p, log(q/p) and q, the probabilities, in the memory of p's and q's logits and a room.

    The difference of the logits is taken first: between close logits it is exact.
    """
    log_p, log_q = _finite(log_p)[..., None], _finite(log_q)[..., None]
    other = torch.sub(q, log_q.to(q.dtype), out=room).exp_()
    if banned:
        p, q = p.clamp_(min=_LOWEST), q.clamp_(min=_LOWEST)
    step = q.sub_(p).sub_((log_q - log_p).to(q.dtype))
    return p.sub_(log_p.to(p.dtype)).exp_(), step, other


def _log_sum(logits: Tensor, room: Tensor) -> Tensor:
    """Return logsumexp over the last axis, its logarithm taken in float64."""
    top = _finite(logits.amax(-1))
    total = torch.sub(logits, top[..., None], out=room).exp_().sum(-1)
    return total.double().log() + top


def _finite(log_sum: Tensor) -> Tensor:
    return log_sum.masked_fill(log_sum == -math.inf, 0.0)
