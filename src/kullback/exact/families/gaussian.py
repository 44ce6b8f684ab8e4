"""Closed forms between Gaussians on vectors: diagonal, full, low rank, in any combination.

Which to use: `PAIRS` through `closed_forms.kl`; `Gaussian` and its functions for mixtures.
A low-rank covariance `diag(d) + W Wᵀ` is never formed: its inverse and determinant go through the
small matrix `I + Wᵀ D⁻¹ W` (Woodbury).
"""

import math
from typing import Any, NamedTuple

import torch
import torch.distributions as families
from torch import Tensor

from kullback.core import ArgumentTypeError
from kullback.core.checks import message
from kullback.exact.excess import log_excess

from .continuous import normal_kl
from .pair import Pair
from .triangular import log_diagonal, solve_lower

__all__ = ["PAIRS", "Gaussian", "entropy", "gaussian_kl", "gaussian_of", "log_overlap"]


class Gaussian(NamedTuple):
    """A mean `[*batch, n]` and a scale: deviations `[*batch, n]`, or Cholesky `[*batch, n, n]`."""

    loc: Tensor
    scale: Tensor
    full: bool

    def diagonal(self) -> Tensor:
        """Return the diagonal of the Cholesky factor, `[*batch, n]`."""
        return self.scale.diagonal(dim1=-2, dim2=-1) if self.full else self.scale

    def dense(self) -> Tensor:
        """Return the Cholesky factor, `[*batch, n, n]`."""
        return self.scale if self.full else torch.diag_embed(self.scale)

    def at(self, axis: int) -> "Gaussian":
        """Insert a batch axis of length 1, counted from the end of the batch shape."""
        shape = (*self.loc.shape, self.loc.shape[-1]) if self.full else self.loc.shape
        scale = self.scale.expand(shape).unsqueeze(axis - 2 if self.full else axis - 1)
        return Gaussian(self.loc.unsqueeze(axis - 1), scale, self.full)


def gaussian_of(distribution: Any) -> Gaussian | None:
    """Return a Normal (as one dimension), Independent Normal or MultivariateNormal as a `Gaussian`.

    Returns None for anything else.
    """
    if isinstance(distribution, families.Normal):
        return Gaussian(distribution.loc[..., None], distribution.scale[..., None], full=False)
    if isinstance(distribution, families.MultivariateNormal):
        return Gaussian(distribution.loc, distribution._unbroadcasted_scale_tril, full=True)
    one_axis = getattr(distribution, "reinterpreted_batch_ndims", 0) == 1
    base = getattr(distribution, "base_dist", None)
    if one_axis and isinstance(base, families.Normal):
        return Gaussian(base.loc, base.scale, full=False)
    return None


def not_gaussian(p: Any, q: Any) -> Exception | None:
    """Return the error for a pair of which one is no Gaussian over one vector axis, else None."""
    low_rank = families.LowRankMultivariateNormal
    for distribution in (p, q):
        if not isinstance(distribution, low_rank) and gaussian_of(distribution) is None:
            text = message("p and q", "Gaussians over one vector axis", f"{p}, {q}")
            return ArgumentTypeError(text)
    return None


def gaussian_kl(p: Gaussian, q: Gaussian) -> Tensor:
    """`½ Σ(m² − 1 − log m²) + ½|M below its diagonal|² + ½|L_q⁻¹(μ_p − μ_q)|²`, M = L_q⁻¹ L_p.

    m is M's diagonal; every part is ≥ 0.
    """
    if not (p.full or q.full):
        return normal_kl(p.loc, p.scale, q.loc, q.scale).sum(-1)
    log_ratio = p.diagonal().log() - q.diagonal().log()
    below = _whiten(q, p.dense()).tril(-1)
    gap = _whiten(q, (p.loc - q.loc)[..., None])
    squares = below.square().sum((-1, -2)) + gap.square().sum((-1, -2))
    return 0.5 * (log_excess(2 * log_ratio).sum(-1) + squares)


def entropy(p: Gaussian) -> Tensor:
    """`n/2 (1 + log 2π) + log det L`."""
    size = p.loc.shape[-1]
    return 0.5 * size * (1 + math.log(2 * math.pi)) + p.diagonal().log().sum(-1)


def log_overlap(p: Gaussian, q: Gaussian) -> Tensor:
    """`log ∫ p q = log N(μ_p; μ_q, Σ_p + Σ_q)`."""
    if p.full or q.full:
        dense_p, dense_q = p.dense(), q.dense()
        total = dense_p @ dense_p.mT + dense_q @ dense_q.mT
        both = Gaussian(q.loc, torch.linalg.cholesky(total), full=True)
    else:
        both = Gaussian(q.loc, (p.scale**2 + q.scale**2).sqrt(), full=False)
    gap = _whiten(both, (p.loc - q.loc)[..., None])[..., 0]
    size = p.loc.shape[-1] * math.log(2 * math.pi)
    return -0.5 * (size + gap.square().sum(-1)) - both.diagonal().log().sum(-1)


def _whiten(q: Gaussian, columns: Tensor) -> Tensor:
    if q.full:
        return solve_lower(q.scale, columns)
    return columns / q.scale[..., None]


def _dense_pair(p: Any, q: Any) -> Tensor:
    first, second = gaussian_of(p), gaussian_of(q)
    if first is None or second is None:
        raise ArgumentTypeError(message("p and q", "Gaussians over one vector axis", f"{p}, {q}"))
    return gaussian_kl(first, second)


class _Sum(NamedTuple):
    """A Gaussian in float64 with covariance `diag(d) + F Fᵀ`.

    corner: the Cholesky factor of `I + Fᵀ D⁻¹ F`; None when d = 0 and F is triangular.
    """

    loc: Tensor
    diagonal: Tensor
    factor: Tensor
    corner: Tensor | None

    def log_det(self) -> Tensor:
        """Return the log determinant of the covariance."""
        if self.corner is None:
            return 2 * log_diagonal(self.factor)
        return self.diagonal.log().sum(-1) + 2 * log_diagonal(self.corner)

    def squares(self, columns: Tensor) -> Tensor:
        """Return the trace of `Xᵀ Σ⁻¹ X` for columns X `[*batch, n, k]`."""
        if self.corner is None:
            whitened = solve_lower(self.factor, columns)
            return whitened.square().sum((-1, -2))
        shared = self.factor.mT @ (columns / self.diagonal[..., None])
        shared = solve_lower(self.corner, shared)
        own = columns.square() / self.diagonal[..., None]
        return own.sum((-1, -2)) - shared.square().sum((-1, -2))

    def precision_diagonal(self) -> Tensor:
        """Return the diagonal of `Σ⁻¹`, `[*batch, n]`."""
        if self.corner is None:
            identity = torch.eye(self.loc.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
            inverse = solve_lower(self.factor, identity)
            return inverse.square().sum(-2)
        scaled = (self.factor / self.diagonal[..., None]).mT
        shared = solve_lower(self.corner, scaled)
        return self.diagonal.reciprocal() - shared.square().sum(-2)


def _sum_of(distribution: Any) -> _Sum:
    if isinstance(distribution, families.LowRankMultivariateNormal):
        diagonal = distribution._unbroadcasted_cov_diag.double()
        factor = distribution._unbroadcasted_cov_factor.double()
        small = factor.mT @ (factor / diagonal[..., None])
        small = small + torch.eye(factor.shape[-1], dtype=small.dtype, device=small.device)
        return _Sum(distribution.loc.double(), diagonal, factor, torch.linalg.cholesky(small))
    dense = gaussian_of(distribution)
    if dense is None:
        raise ArgumentTypeError(message("p and q", "Gaussians over one axis", str(distribution)))
    loc, scale = dense.loc.double(), dense.scale.double()
    if dense.full:
        return _Sum(loc, torch.zeros_like(loc), scale, None)
    return _Sum(loc, scale**2, scale.new_zeros(*scale.shape, 0), scale.new_zeros(0, 0))


def _low_rank_pair(p: Any, q: Any) -> Tensor:
    """`½[log det Σ_q/Σ_p − n + tr Σ_q⁻¹Σ_p + (μ_p − μ_q)ᵀ Σ_q⁻¹ (μ_p − μ_q)]`, in float64."""
    first, second = _sum_of(p), _sum_of(q)
    gap = second.squares((first.loc - second.loc)[..., None])
    trace = (first.diagonal * second.precision_diagonal()).sum(-1) + second.squares(first.factor)
    rest = second.log_det() - first.log_det() - first.loc.shape[-1]
    return 0.5 * (rest + trace + gap).to(torch.promote_types(p.mean.dtype, q.mean.dtype))


_DENSE = (families.Independent, families.MultivariateNormal)
_LOW = families.LowRankMultivariateNormal
_TRIANGLES = "Gaussian KL, through Cholesky factors"
_WOODBURY = "Gaussian KL, through Woodbury's identity; no n × n matrix but a full partner's own"

PAIRS: dict[tuple[type, type], Pair] = {
    **{
        (p, q): Pair(_dense_pair, _TRIANGLES, not_gaussian)
        for p in _DENSE
        for q in _DENSE
        if (p, q) != (families.Independent, families.Independent)
    },
    **{(p, _LOW): Pair(_low_rank_pair, _WOODBURY, not_gaussian) for p in (*_DENSE, _LOW)},
    **{(_LOW, q): Pair(_low_rank_pair, _WOODBURY, not_gaussian) for q in _DENSE},
}
