"""What the rounding of logits does to a divergence, and the warning about it.

Which to use: `rounding_floor`, to know how large a KL rounding alone makes, or how far rounding may
have moved a KL. The divergences warn where it is a large part of what they return.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import warn_caller
from kullback.tokens import limits
from kullback.tokens.backends.interface import Sum, Task

__all__ = ["PrecisionWarning", "rounding_floor", "warn_of_rounding"]


class PrecisionWarning(UserWarning):
    """The inputs are too coarse for the number computed from them.

    Example:
        >>> issubclass(PrecisionWarning, UserWarning)
        True
    """


def rounding_floor(
    logits: Tensor, q_logits: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """Return how large a KL rounding makes, or how far it may have moved KL(p‖q).

    u is the distance of the numbers of a dtype around a logit, over the temperature; rounding moves
    a logit by an independent, uniform error of variance u²/12. Logits that a model *computes* in
    half precision are off by more than their rounding. Where q is p but for less than u their
    errors are nearly equal and cancel, and the bound is pessimistic. It takes some thirty passes
    over the logits in float64.

    Args:
        logits: `[*batch, vocab]`, of any float dtype. Alone: the KL between these logits and the
            same before they were rounded to their dtype, `½ Σ p (1 − p) u²/12`.
        q_logits: `[*batch, vocab]`; with it, logits are p's, and the result is a bound on
            `|KL(p‖q) − KL before rounding|` that holds for 99 % of positions: the mean of the
            second-order error and 3 standard deviations of it and of the first-order error
            `Σ p (l − KL) δ_p + Σ (q − p) δ_q`, with l = log p/q.
        temperature: As in `kl`.

    Returns:
        `[*batch]`, in nats.

    Example:
        >>> logits = torch.tensor([16.0, 16.0])
        >>> for coarse in (logits.bfloat16(), logits.half(), logits):
        ...     print(f"{rounding_floor(coarse):.1e}")
        3.3e-04
        5.1e-06
        7.6e-14
        >>> p, q = torch.tensor([16.0, 16.0]).bfloat16(), torch.tensor([16.0, 15.0]).bfloat16()
        >>> print(f"{rounding_floor(p, q):.1e}")
        5.7e-02
    """
    if q_logits is None:
        scaled, variance = _scaled(logits, temperature)
        p = torch.softmax(scaled, -1)
        return (p * (1 - p) * variance).sum(-1) / 2
    p, q = torch.broadcast_tensors(logits.detach(), q_logits.detach())  # type: ignore[no-untyped-call]
    rows = max(1, limits.CELLS // max(p.shape[-1], 1))
    pairs = zip(
        p.reshape(-1, p.shape[-1]).split(rows), q.reshape(-1, q.shape[-1]).split(rows), strict=True
    )
    return torch.cat([_floor(a, b, temperature) for a, b in pairs]).view(p.shape[:-1])


def _scaled(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return logits over the temperature, and the variance of their rounding, float32 at least."""
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    exponent = torch.frexp(wide.where(wide.isfinite(), 0)).exponent - 1
    step = torch.finfo(logits.dtype).eps / temperature * torch.exp2(exponent.to(wide.dtype))
    return wide / temperature, step.square() / 12


def _floor(p_logits: Tensor, q_logits: Tensor, temperature: float) -> Tensor:
    """Return how far rounding may have moved KL(p‖q), `[n]`, of logits `[n, vocab]`."""
    (a, p_off), (b, q_off) = (
        [part.double() for part in _scaled(x, temperature)] for x in (p_logits, q_logits)
    )
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    p_less, q_less = -log_p.expm1(), -log_q.expm1()  # 1 − p, with its digits where p is near 1
    x, y = _pull(p, log_p - log_q), q - p
    curved = (p * p_less + x.abs()) * p_off + q * q_less * q_off
    # variances: of Σ x δ_p + y δ_q, and of ½ δᵀ (diag p − p pᵀ) δ with δ = δ_p − δ_q
    first = (x.square() * p_off + y.square() * q_off).sum(-1)
    off = p_off + q_off
    each = p.square() * off
    largest, at = each.max(-1, keepdim=True)
    rest = each.scatter(-1, at, 0.0).sum(-1)
    squares = rest * (2 * largest[..., 0] + rest) + (p * p_less * off).square().sum(-1)
    error = (first + squares / 2).sqrt()
    step = (12 * (p * p_off + q * q_off).sum(-1)).sqrt()  # ratios change by up to its exponential
    found = (curved.sum(-1) / 2 + limits.ROUNDING_ERRORS * error) * step.exp()
    return found if torch.float64 in (p_logits.dtype, q_logits.dtype) else found.float()


def _pull(p: Tensor, log_ratio: Tensor) -> Tensor:
    """Return p (l − Σ p l), the derivative by logits, 0 where l is not finite."""
    l = torch.where(log_ratio.isfinite(), log_ratio, 0.0)  # noqa: E741
    return p * (l - (p * l).sum(-1, keepdim=True))


def warn_of_rounding(
    p: Tensor, q: Tensor, found: Tensor, task: Task, sums: Sequence[Tensor] = (), module: Any = None
) -> None:
    """Warn if rounding half-precision logits is a large part of the mean of a few values.

    p, q: `[*batch, vocab]`; found: `[len(wants), *batch]`. It looks at a few positions whose value
    is positive and finite, evenly spaced, and only where half precision and a divergence are at
    hand. Python shows a warning once for every place in the code that it comes from. sums, module:
    what a backend found, if one did: where a bound by the normalisers says that rounding is too
    small everywhere, nothing is read again; else the backend sums the floors, if it can.

    >>> warn_of_rounding(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 1), Task(("kl",)))
    """
    coarse = {i: x for i, x in enumerate((p, q)) if x.dtype.itemsize < torch.float32.itemsize}
    scale = {"kl": 1.0, "reverse_kl": 1.0, "js": task.beta * (1 - task.beta)}
    number = next((i for i, want in enumerate(task.wants) if want in scale), None)
    if not coarse or number is None:
        return
    norms = _log_norms(sums, p, q)
    weight = scale[task.wants[number]]
    if norms is not None and not _may_matter(coarse, norms, found[number], task, weight):
        return
    good = ((found[number] > 0) & found[number].isfinite()).nonzero()
    if not len(good):
        return
    rows = limits.ROUNDING_ROWS
    at = good[:: max(1, len(good) // rows)][:rows].unbind(-1)
    if norms is not None and hasattr(module, "rounding"):
        keep = torch.zeros(found[number].shape, dtype=torch.bool, device=found[number].device)
        keep[at] = True
        matrices = {side: x.detach().reshape(-1, x.shape[-1]) for side, x in coarse.items()}
        floors = [
            module.rounding(x, norms[side].reshape(2, -1), task.temperature, keep.view(-1))
            for side, x in matrices.items()
        ]
        floors = [each[keep.view(-1)].mean() for each in floors]
    else:
        plain = (
            rounding_floor(x.detach()[at], temperature=task.temperature) for x in coarse.values()
        )
        floors = [each.mean() for each in plain]
    floor = torch.stack(floors).sum() * weight
    value = found[number][at].mean()
    if floor > limits.ROUNDING_SHARE * value:
        name = str(next(iter(coarse.values())).dtype).removeprefix("torch.")
        text = (
            f"the logits are {name}: rounding alone makes a divergence of {float(floor):.2g} "
            f"on average, beside values of {float(value):.2g} (tokens.rounding_floor(p_logits, "
            "q_logits) bounds the error of every position). Try: logits in float32"
        )
        warn_caller(text, PrecisionWarning)


def _log_norms(sums: Sequence[Tensor], p: Tensor, q: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return largest logit and log-normaliser of p and of q, `[2, *batch]` each, if known."""
    if not sums:
        return None
    rows = sums[0] if len(sums) == 1 else torch.cat(list(sums), dim=-1)
    shape = (2, *p.shape[:-1])
    return rows[Sum.P_MAX : Sum.Q_MAX].view(shape), rows[Sum.Q_MAX : Sum.P_ENTROPY].view(shape)


def _may_matter(
    coarse: Mapping[int, Tensor],
    norms: tuple[Tensor, Tensor],
    values: Tensor,
    task: Task,
    weight: float,
) -> bool:
    """Say whether rounding may be a share of some value that is worth a warning.

    With A the log of the sum of e^(logit / τ), a logit is τ (A + log p), the distance of the
    numbers around it at most ε times it, and E log² p ≤ log²(V + e) by Jensen, as log²(e + x) is
    concave: so the floor is at most ε²/24 (|A| + log(V + e))², and without 2 A log(V + e) where
    A > 0, as log p ≤ 0.
    """
    bound = 0.0
    for side, x in coarse.items():
        top, log = norms[side].cpu().numpy()
        all_of, most = top / task.temperature + log, math.log(x.shape[-1] + math.e)
        square = all_of**2 + most**2 - 2 * most * np.minimum(all_of, 0.0)
        bound = bound + torch.finfo(x.dtype).eps ** 2 * square / 24
    found = values.cpu().numpy()
    return bool(((bound * weight > limits.ROUNDING_SHARE * found) & (found > 0)).any())
