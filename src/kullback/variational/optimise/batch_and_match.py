"""Batch and match: a full-rank Gaussian by matching scores in closed form, without step sizes.

Which to use: `batch_and_match`, through `fit(method="batch_and_match")`: each iteration takes the
gradients of log p at a batch of draws and moves q, exactly, to where its own scores match them
best, held back by KL from the last q. No entropy, no objective to differentiate.
Reference: Cai et al. (2024), "Batch and match: black-box variational inference with a score-based
divergence", eqs. 7 to 11, here with one symmetric eigendecomposition between Cholesky factors.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kullback.exact import NORMAL_ENTROPY
from kullback.variational import limits
from kullback.variational.families import Family, FullRank
from kullback.variational.families.family import Frame
from kullback.variational.target.density import Target

from . import Progress
from .deterministic import fixed_normals, improper

__all__ = ["batch_and_match", "match"]


def match(frame: Frame, z: Tensor, scores: Tensor, regularizer: float) -> tuple[Tensor, Tensor]:
    """Return mean `[d]` and covariance `[d, d]` of the Gaussian that matches scores at draws best.

    frame: the present q, N(shift, scale scaleᵀ). z, scores: `[batch, d]`, draws of q and the
    gradients of log p there. regularizer: λ > 0, the batch's weight against the present q; as λ →
    ∞ scores alone count. Exact: for a Gaussian target and more draws than dimensions, λ → ∞ gives
    the target.
    """
    weight = regularizer / (1 + regularizer)
    centre, slope = z.mean(0), scores.mean(0)
    off, turn = z - centre, scores - slope
    u = regularizer * turn.mT @ turn / len(z) + weight * torch.outer(slope, slope)
    gap = frame.shift - centre
    v = frame.factor @ frame.factor.mT + regularizer * off.mT @ off / len(z)
    root = torch.linalg.cholesky(v + weight * torch.outer(gap, gap))
    values, vectors = torch.linalg.eigh(root.mT @ u @ root)
    half = (root @ vectors) * (2 / (1 + (1 + 4 * values.clamp_min(0)).sqrt())).sqrt()
    covariance = half @ half.mT
    mean = (1 - weight) * frame.shift + weight * (covariance @ slope + centre)
    return mean, covariance


def batch_and_match(
    family: Family,
    target: Target,
    generator: torch.Generator,
    *,
    draws: int,
    iterations: int = 200,
    tolerance: float = 0.01,
) -> Iterator[Progress]:
    """Yield `Progress` each iteration until q moves by less than `tolerance` of its sd, thrice.

    family: where to begin, a `FullRank`. The batch's weight is λ = draws · dim / iteration, as in
    the paper; draws are fresh every time, of low discrepancy.
    """
    frame, first, still = family.frame, family.frame, 0
    for count in range(1, iterations + 1):
        noise = fixed_normals(draws, target.dim, generator)
        z = frame.outwards(noise)
        log_p, scores = target.score(z)
        if not bool(scores.isfinite().all()):
            why = target.explain(z) or "the gradient of log_density is not finite"
            yield Progress(FullRank(frame), float("nan"), float("nan"), done=True, reason=why)
            return
        mean, covariance = match(frame, z, scores, draws * target.dim / count)
        new = Frame.dense(mean, torch.linalg.cholesky(covariance))
        moved = _distance(frame, new)
        loss = -float(log_p.mean() + frame.log_det) - target.dim * NORMAL_ENTROPY
        frame = new
        still = still + 1 if moved < tolerance else 0
        lost = improper(first, frame, target.names)
        done = bool(lost) or still >= limits.MAX_STILL_ITERATIONS or count == iterations
        state = (
            "converged"
            if still >= limits.MAX_STILL_ITERATIONS
            else f"stopped after {count} iterations"
        )
        reason = lost or f"{state}: q last moved by {moved:.1e} of its standard deviation"
        yield Progress(
            FullRank(frame),
            loss,
            moved,
            done,
            still >= limits.MAX_STILL_ITERATIONS and not lost,
            reason if done else "",
            improper=bool(lost),
        )
        if done:
            return


def _distance(old: Frame, new: Frame) -> float:
    """Return how far a Gaussian moved, seen from the old one: the largest entry."""
    shift = old.inwards(new.shift)
    shape = torch.linalg.solve_triangular(old.factor, new.factor, upper=False)
    shape = shape - torch.eye(len(shift), dtype=shift.dtype)
    return float(torch.maximum(shift.abs().max(), shape.abs().max()))
