"""When does `± standard error` lie? The tests behind every warning on a sampled number.

A mean's error bar is the normal law's, and that law needs three things which the draws themselves
can deny: enough draws; none of them carrying the sum (the skewness of the *mean*, `γ / √n`, costs
a 95 % interval about `γ²/(4n)` of its coverage by Edgeworth's expansion, and is underestimated
exactly when the tail has not been seen yet, hence a limit several times stricter than the 0.28 at
which two percent are lost); and a finite variance (Pareto `k̂ < 1/2`). Where an identity is known,
such as `E_p[q/p] = 1`, draws that break it have missed something.

Reference: Hall (1992), "The Bootstrap and Edgeworth Expansion", section 2.6, for the first; Vehtari
et al. (2024) for k̂. The limits are checked by benchmarks/coverage.py.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import Estimate
from kullback.core.estimate import Bias

from .pareto import fit_tail, tail_length

__all__ = [
    "Doubt",
    "about_bias",
    "about_identity",
    "about_terms",
    "about_unseen",
    "judged",
    "mean_of",
]

FEW, UNSEEN = 20, 500
SKEWED = 0.08  # skewness of the mean
HEAVY, JUDGED = 0.5, 200  # k̂, and the draws below which it is too noisy to act on
FELT = 0.01  # skewness of the mean below which a tail, however shaped, carries no weight
BROKEN = 4.0  # standard errors between a known mean and the draws'
ROUNDING = 4e-16  # terms that differ by less than this, relatively, are one number
BIASED = 0.3  # standard errors of bias: a 95 % interval then covers 94 %


class Doubt(NamedTuple):
    """One reason to doubt an error bar: how large (`[*batch]`), where (bool), in which words."""

    size: Tensor
    where: Tensor
    words: str

    def only(self, part: Tensor) -> "Doubt":
        """Return the same doubt about this part of the batch only."""
        return self._replace(where=self.where & part)


def about_terms(draws: int, skewness: Tensor, k_hat: Tensor) -> list[Doubt]:
    """Doubt a mean by its number of draws, the skewness `Σδ³/(Σδ²)^{3/2}` and the tail's k̂."""
    everywhere = torch.ones_like(skewness, dtype=torch.bool)
    few = torch.full_like(skewness, draws)
    return [
        Doubt(few, everywhere & (draws < FEW), "only {:.0f} draws: too few for an error bar"),
        Doubt(
            skewness.abs(),
            skewness.abs() > SKEWED,
            "a few draws carry the sum (skewness of the mean {:.2f}, above 0.08): "
            "the error bar is too short on the tail's side; draw more",
        ),
        Doubt(
            k_hat,
            may_be_heavy(k_hat, draws) & (skewness.abs() > FELT),
            "heavy tail (Pareto k-hat {:.2f}, which does not exclude 0.5): the variance may be "
            "infinite and the error bar means little",
        ),
    ]


def may_be_heavy(k_hat: Tensor, draws: int) -> Tensor:
    """Say where the variance may be infinite: k̂ and its own standard error reach ½.

    k̂ of M tail values scatters by `(1 + k) / √M`. Below 200 draws it says too little: nowhere.
    """
    scatter = (1 + k_hat) / math.sqrt(max(tail_length(draws), 1))
    return (k_hat + scatter > HEAVY) & (draws >= JUDGED)


def about_identity(
    name: str, gap: Tensor, error: Tensor, skewness: Tensor, heavy: Tensor
) -> list[Doubt]:
    """Doubt draws under which `name`, whose mean is known to be 1, is off, or itself skewed.

    heavy: bool, where its variance may be infinite.
    """
    off = torch.where(gap == 0, 0.0, gap.abs() / error)
    return [
        Doubt(
            off,
            off > BROKEN,
            f"the mean of {name} is {{:.1f}} standard errors from 1: the draws miss part of it, "
            "or a log density is not normalised or not absolutely continuous",
        ),
        Doubt(
            skewness.abs(),
            (skewness.abs() > SKEWED) | (heavy & (skewness.abs() > FELT)),
            f"a few draws carry the mean of {name} (skewness {{:.2f}}, or a heavy tail): "
            "what has not been drawn yet may matter",
        ),
    ]


def about_unseen(draws: int, like: Tensor) -> Doubt:
    """Doubt a mean with so few draws that an event of a chance up to 3/draws may not be among them.

    For terms in which `r − 1` cancels `log r`: what is left at the draws seen says nothing then
    about the others.
    """
    words = (
        "only {:.0f} draws: what happens once in {:.0f} may not have been drawn yet, "
        "and r − 1 hides how much that is; draw 500, or use k1"
    )
    few = torch.full_like(like, draws)
    return Doubt(few, few < UNSEEN, words.replace("{:.0f} may", f"{draws / 3:.0f} may"))


def about_bias(bias: Tensor, error: Tensor, words: str) -> Doubt:
    """Doubt an error bar that a bias, known to about this size, rivals."""
    size = torch.where(bias == 0, 0.0, bias.abs() / error)
    return Doubt(size, size > BIASED, words)


def judged(
    value: Tensor,
    error: Tensor,
    draws: int,
    k_hat: Tensor | None,
    doubts: list[Doubt],
    bias: Bias,
    why: str,
) -> Estimate:
    """Write the `Estimate` in nats, floats for an empty batch, with the doubts that apply.

    An infinite value has an infinite error and no doubts; the words give the worst size.
    """
    error = torch.where(value.isinf(), math.inf, error)
    if value.dim():
        found = Estimate(value, error, draws, bias=bias, why=why, k_hat=k_hat)
    else:
        tail = None if k_hat is None else float(k_hat)
        found = Estimate(float(value), float(error), draws, bias=bias, why=why, k_hat=tail)
    for doubt in doubts:
        where = (doubt.where & value.isfinite()).expand(value.shape)
        if bool(where.any()):
            text = doubt.words.format(doubt.size.expand(value.shape)[where].max().item())
            part = f"in {int(where.sum())} of {where.numel()}: " if where.dim() else ""
            found = found.warn(part + text, where=where if where.dim() else None)
    return found


def mean_of(influence: Tensor, size: Tensor) -> tuple[Tensor, list[Doubt], Tensor]:
    """Judge the mean of centred terms `[*batch, draws]`: its error, doubts and k̂.

    size: `[*batch]`, of what the terms are differences; below its rounding they are all one.
    """
    draws = influence.shape[-1]
    second, third = (influence**2).sum(-1), (influence**3).sum(-1)
    flat = second <= draws * (ROUNDING * size) ** 2
    second = torch.where(flat, 0.0, second)
    skewness = torch.where(flat, 0.0, third / second**1.5)
    k_hat = torch.full_like(second, math.nan)
    if tail_length(draws) >= 5:
        top = torch.stack([influence, -influence]).topk(tail_length(draws) + 1, -1).values.flip(-1)
        k_hat = fit_tail(top[..., 1:] - top[..., :1])[0].amax(0)
    error = (second / (draws * (draws - 1))).sqrt()
    return error, about_terms(draws, skewness, k_hat), k_hat
