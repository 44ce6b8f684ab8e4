"""Closed forms between Gaussians on vectors: diagonal, full, low rank, in any combination.

Which to use: `PAIRS` through `closed_forms.kl`; `Gaussian` and its functions for mixtures.
A low-rank covariance `diag(d) + W Wᵀ` is formed against a full partner only: its inverse and
determinant go through the QR of I over `D^−½ W` (Woodbury, without its differences of squares).

Bounds on the KL between two Gaussian mixtures, which has no closed form.

Which to use: `mixture_kl_bounds`. Both sides are true bounds, not approximations.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributions as families
from torch import Tensor

from kullback.core import ArgumentTypeError, message, require, require_type
from kullback.exact import limits
from kullback.exact.bregman import HALF_LOG_2PI, NORMAL_ENTROPY, log_excess, log_ratio

from .continuous import normal_kl
from .pair import Pair, float_dtype, scores_as, solve_lower

__all__ = [
    "PAIRS",
    "Bounds",
    "Gaussian",
    "entropy",
    "gaussian_kl",
    "gaussian_of",
    "log_overlap",
    "mixture_kl_bounds",
]


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

    def double(self) -> "Gaussian":
        """Return the same in float64, where the device has it."""
        if self.loc.device.type == "mps":
            return self
        return Gaussian(self.loc.double(), self.scale.double(), self.full)

    def at(self, axis: int) -> "Gaussian":
        """Insert a batch axis of length 1, counted from the end of the batch shape."""
        shape = (*self.loc.shape, self.loc.shape[-1]) if self.full else self.loc.shape
        scale = self.scale.expand(shape).unsqueeze(axis - 2 if self.full else axis - 1)
        return Gaussian(self.loc.unsqueeze(axis - 1), scale, self.full)


def gaussian_of(distribution: Any) -> Gaussian | None:
    """Return a Normal (as one dimension), Independent Normal or MultivariateNormal as a `Gaussian`.

    Returns None for anything else.
    """
    if _is(distribution, families.Normal):
        return Gaussian(distribution.loc[..., None], distribution.scale[..., None], full=False)
    if _is(distribution, families.MultivariateNormal):
        return Gaussian(distribution.loc, distribution._unbroadcasted_scale_tril, full=True)
    one_axis = getattr(distribution, "reinterpreted_batch_ndims", 0) == 1
    base: Any = getattr(distribution, "base_dist", None)
    if one_axis and _is(base, families.Normal):
        return Gaussian(base.loc, base.scale, full=False)
    return None


def _is(distribution: Any, family: Any) -> bool:
    return isinstance(distribution, family) and scores_as(distribution, family)


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

    m is M's diagonal; every part is ≥ 0. Below the diagonal M is `L_q⁻¹ (L_p − L_q)`, which does
    not cancel for nearly equal p and q.
    """
    if not (p.full or q.full):
        return normal_kl(p.loc, p.scale, q.loc, q.scale).sum(-1)
    log_steps = log_ratio(p.diagonal(), q.diagonal())
    below = _whiten(q, p.dense() - q.dense()).tril(-1)
    gap = _whiten(q, (p.loc - q.loc)[..., None])
    squares = below.square().sum((-1, -2)) + gap.square().sum((-1, -2))
    return 0.5 * (log_excess(2 * log_steps).sum(-1) + squares)


def entropy(p: Gaussian) -> Tensor:
    """`n/2 (1 + log 2π) + log det L`."""
    size = p.loc.shape[-1]
    return size * NORMAL_ENTROPY + p.diagonal().log().sum(-1)


def log_overlap(p: Gaussian, q: Gaussian) -> Tensor:
    """`log ∫ p q = log N(μ_p; μ_q, Σ_p + Σ_q)`."""
    if p.full or q.full:
        dense_p, dense_q = p.dense(), q.dense()
        total = dense_p @ dense_p.mT + dense_q @ dense_q.mT
        both = Gaussian(q.loc, torch.linalg.cholesky(total), full=True)
    else:
        both = Gaussian(q.loc, (p.scale**2 + q.scale**2).sqrt(), full=False)
    gap = _whiten(both, (p.loc - q.loc)[..., None])[..., 0]
    size = 2 * p.loc.shape[-1] * HALF_LOG_2PI
    return -0.5 * (size + gap.square().sum(-1)) - both.diagonal().log().sum(-1)


def _whiten(q: Gaussian, columns: Tensor) -> Tensor:
    if q.full:
        return solve_lower(q.scale, columns)
    return columns / q.scale[..., None]


def _dense_pair(p: Any, q: Any) -> Tensor:
    first, second = gaussian_of(p), gaussian_of(q)
    if first is None or second is None:
        raise ArgumentTypeError(message("p and q", "Gaussians over one vector axis", f"{p}, {q}"))
    dtype = float_dtype(first.loc.dtype, second.loc.dtype)
    return gaussian_kl(first.double(), second.double()).to(dtype)


class _Sum(NamedTuple):
    """A Gaussian in float64 with covariance `Σ = diag(d) + F Fᵀ`.

    top, rest, corner: `QR` of I over `G = d^−½ F`, whose residuals `Σ⁻¹ = d^−½ (I − Q₂Q₂ᵀ) d^−½`
    gives as sums of squares (least squares), where Woodbury's identity subtracts squares.
    """

    loc: Tensor
    diagonal: Tensor
    factor: Tensor
    top: Tensor
    rest: Tensor
    corner: Tensor

    def log_det(self) -> Tensor:
        """Return the log determinant of the covariance."""
        corner = self.corner.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        return self.diagonal.log().sum(-1) + 2 * corner

    def half_inverse(self) -> tuple[Tensor, Tensor]:
        """Return `d⁻¹` and C with `Σ⁻¹ = diag(d⁻¹) − C Cᵀ`."""
        return self.diagonal.reciprocal(), self.rest / self.diagonal.sqrt()[..., None]

    def precision_diagonal(self) -> Tensor:
        """Return the diagonal of `Σ⁻¹`, `[*batch, n]`."""
        return (1 - self.rest.square().sum(-1)) / self.diagonal

    def squares(self, columns: Tensor) -> Tensor:
        """Return the trace of `Xᵀ Σ⁻¹ X` for columns X `[*batch, n, k]`."""
        scaled = columns / self.diagonal.sqrt()[..., None]
        shared = self.rest.mT @ scaled
        residual = (scaled - self.rest @ shared).square().sum((-1, -2))
        return residual + (self.top @ shared).square().sum((-1, -2))


def _sum(loc: Tensor, diagonal: Tensor, factor: Tensor) -> _Sum:
    scaled = factor / diagonal.sqrt()[..., None]
    rank = scaled.shape[-1]
    identity = torch.eye(rank, dtype=scaled.dtype, device=scaled.device)
    both = torch.cat([identity.expand((*scaled.shape[:-2], rank, rank)), scaled], -2)
    turned, corner = torch.linalg.qr(both)
    return _Sum(loc, diagonal, factor, turned[..., :rank, :], turned[..., rank:, :], corner)


def _sum_of(distribution: Any) -> _Sum:
    if isinstance(distribution, families.LowRankMultivariateNormal):
        diagonal = distribution._unbroadcasted_cov_diag.double()
        factor = distribution._unbroadcasted_cov_factor.double()
        return _sum(distribution.loc.double(), diagonal, factor)
    dense = gaussian_of(distribution)
    if dense is None or dense.full:
        raise ArgumentTypeError(message("p and q", "diagonal and low rank", str(distribution)))
    scale = dense.scale.double()
    return _sum(dense.loc.double(), scale**2, scale.new_zeros(*scale.shape, 0))


def _full_of(distribution: Any) -> Gaussian:
    """Return the Gaussian with the Cholesky factor of its covariance, in float64."""
    if not isinstance(distribution, families.LowRankMultivariateNormal):
        dense = gaussian_of(distribution)
        if dense is None:
            raise ArgumentTypeError(message("p and q", "Gaussians", str(distribution)))
        return dense.double()
    part = _sum_of(distribution)
    covariance = part.factor @ part.factor.mT + torch.diag_embed(part.diagonal)
    return Gaussian(part.loc, torch.linalg.cholesky(covariance), full=True)


def _low_rank_pair(p: Any, q: Any) -> Tensor:
    """`½ |Σ_q^−½ (μ_p − μ_q)|²` and the covariances' share; no n × n matrix unless one is full."""
    dtype = float_dtype(p.mean.dtype, q.mean.dtype)
    if any(isinstance(d, families.MultivariateNormal) for d in (p, q)):
        return gaussian_kl(_full_of(p), _full_of(q)).to(dtype)
    first, second = _sum_of(p), _sum_of(q)
    gap = second.squares((first.loc - second.loc)[..., None])
    return (0.5 * gap + _covariance_kl(first, second)).to(dtype)


def _covariance_kl(p: _Sum, q: _Sum) -> Tensor:
    """`½[tr Σ_q⁻¹Σ_p − n − log det Σ_q⁻¹Σ_p]`, by the path below where little is left of it."""
    trace = (p.diagonal * q.precision_diagonal()).sum(-1) + q.squares(p.factor)
    direct = 0.5 * (trace - p.diagonal.shape[-1] + q.log_det() - p.log_det())
    near = direct.abs() < limits.MAX_PATH_KL
    return torch.where(near, _along_the_path(p, q), direct) if bool(near.any()) else direct


def _along_the_path(p: _Sum, q: _Sum) -> Tensor:
    """`½ ∫₀¹ t tr(Σ_t⁻¹ Δ Σ_q⁻¹ Δ) dt`, `Σ_t = Σ_q + t Δ`, Δ = Σ_p − Σ_q: every value ≥ 0.

    Δ is `diag(δ) + X Yᵀ + Y Xᵀ` with `X = ½(F_p − F_q)`, `Y = F_p + F_q`.
    """
    ranks = [d.factor.shape[-1] for d in (p, q)]
    pads = [torch.nn.functional.pad(d.factor, (0, max(ranks) - d.factor.shape[-1])) for d in (p, q)]
    change = _Change(p.diagonal - q.diagonal, (pads[0] - pads[1]) / 2, pads[0] + pads[1])
    nodes, weights = np.polynomial.legendre.leggauss(limits.PATH_NODES)
    value = torch.zeros((), dtype=torch.float64, device=p.loc.device)
    last = change.after(q)
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        wide = torch.broadcast_tensors(pads[0], pads[1])  # type: ignore[no-untyped-call]
        factor = torch.cat([math.sqrt(t) * wide[0], math.sqrt(1 - t) * wide[1]], -1)
        middle = _sum(q.loc, q.diagonal + t * change.diagonal, factor)
        value = value + weight * t * change.after(middle).trace_with(last)
    return 0.5 * value


class _Change(NamedTuple):
    """The symmetric matrix `diag(δ) + X Yᵀ + Y Xᵀ`."""

    diagonal: Tensor
    left: Tensor
    right: Tensor

    def after(self, gaussian: _Sum) -> "_Product":
        """Return `Σ⁻¹ Δ` as a diagonal and a product of thin matrices."""
        inverse, shared = gaussian.half_inverse()
        turned = self.diagonal[..., None] * shared
        turned = turned + self.left @ (self.right.mT @ shared)
        turned = turned + self.right @ (self.left.mT @ shared)
        columns = inverse[..., None]
        left = _joined([columns * self.left, columns * self.right, -shared])
        return _Product(inverse * self.diagonal, left, _joined([self.right, self.left, turned]))


class _Product(NamedTuple):
    """The matrix `diag(a) + U Vᵀ`."""

    diagonal: Tensor
    left: Tensor
    right: Tensor

    def trace_with(self, other: "_Product") -> Tensor:
        """Return the trace of the product with another."""
        own = (self.diagonal * other.diagonal).sum(-1)
        crossed = (self.diagonal * (other.left * other.right).sum(-1)).sum(-1)
        crossed = crossed + (other.diagonal * (self.left * self.right).sum(-1)).sum(-1)
        thin = (self.right.mT @ other.left) * (other.right.mT @ self.left).mT
        return own + crossed + thin.sum((-1, -2))


def _joined(parts: list[Tensor]) -> Tensor:
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))  # type: ignore[no-untyped-call]
    return torch.cat([part.expand((*shape, part.shape[-1])) for part in parts], -1)


_DENSE = (families.Independent, families.MultivariateNormal)
_LOW = families.LowRankMultivariateNormal
_TRIANGLES = "Gaussian KL, through Cholesky factors"
_WOODBURY = "Gaussian KL, through Woodbury's identity; no n × n matrix without a full partner"

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


class Bounds(NamedTuple):
    """A value lies between `lower` and `upper`, both `[*batch]`, in nats."""

    lower: Tensor
    upper: Tensor


def mixture_kl_bounds(p: Any, q: Any, *, iterations: int = 20) -> Bounds:
    """Bound `KL(p‖q)` between Gaussian mixtures from both sides: `lower ≤ KL(p‖q) ≤ upper`.

    `E_p[log p]` and `E_p[log q]` are each bounded below variationally and above by Jensen's
    inequality (the product of Gaussians); together they bound the difference. The upper side is the
    smaller of that and of the variational upper bound, a matching of the components, which is the
    KL itself for one component each; the lower side is at least 0.
    Reference: Hershey and Olsen (2007), "Approximating the Kullback Leibler divergence between
    Gaussian mixture models"; Durrieu, Thiran and Kelly (2012), "Lower and upper bounds for
    approximation of the Kullback-Leibler divergence between Gaussian mixture models".

    Args:
        p: `MixtureSameFamily` of `Normal`, `Independent(Normal, 1)` or `MultivariateNormal`
            components, or a single Gaussian. A weight of 0 counts as the smallest positive float.
        q: Likewise, over the same event; batch shapes broadcast.
        iterations: How often the matching of the components is improved, ≥ 0.

    Returns:
        `Bounds(lower, upper)`, each `[*batch]`, in nats, differentiable.

    Raises:
        ArgumentTypeError: For anything but such mixtures.
        ArgumentValueError: For event sizes that differ, or negative iterations.

    Example:
        >>> def mixture(loc):
        ...     parts = families.Normal(torch.tensor([-loc, loc]), torch.ones(2))
        ...     return families.MixtureSameFamily(families.Categorical(torch.ones(2)), parts)
        >>> lower, upper = mixture_kl_bounds(mixture(3.0), mixture(2.0))
        >>> bool(0 <= lower <= upper)
        True
    """
    require(iterations >= 0, "iterations", "at least 0", iterations)
    (log_p, parts_p), (log_q, parts_q) = _components(p, "p"), _components(q, "q")
    events = (parts_p.loc.shape[-1], parts_q.loc.shape[-1])
    require(events[0] == events[1], "p and q", "the same event size", events)
    rows = parts_p.at(-1)
    inside, across = gaussian_kl(rows, parts_p.at(-2)), gaussian_kl(rows, parts_q.at(-2))
    own, to_p, to_q = entropy(parts_p), log_p[..., None, :], log_q[..., None, :]
    below_p = (to_p - inside).logsumexp(-1) - own
    below_q = (to_q - across).logsumexp(-1) - own
    above_p = (to_p + log_overlap(rows, parts_p.at(-2))).logsumexp(-1)
    above_q = (to_q + log_overlap(rows, parts_q.at(-2))).logsumexp(-1)
    weights = log_p.exp()
    lower = (weights * (below_p - above_q)).sum(-1).clamp(min=0)
    upper = (weights * (above_p - below_q)).sum(-1)
    return Bounds(lower, torch.minimum(upper, _matched(log_p, log_q, across, iterations)))


def _components(distribution: Any, name: str) -> tuple[Tensor, Gaussian]:
    """Return the log weights `[*batch, K]` and the components with batch shape `[*batch, K]`."""
    require_type(distribution, families.Distribution, name)
    if _is(distribution, families.MixtureSameFamily):
        parts = gaussian_of(distribution.component_distribution)
        log_weights = distribution.mixture_distribution.probs.log()
    else:
        single = gaussian_of(distribution)
        parts = single and single.at(-1)
        log_weights = distribution.mean.new_zeros(*distribution.batch_shape, 1)
    if parts is None:
        raise ArgumentTypeError(message(name, "a mixture of Gaussians", str(distribution)))
    return log_weights.clamp(min=math.log(torch.finfo(log_weights.dtype).tiny)), parts


def _matched(log_p: Tensor, log_q: Tensor, pairwise: Tensor, iterations: int) -> Tensor:
    """Return `Σ φ (log φ/ψ + KL_ab)`, Σ_b φ_ab = p_a, Σ_a ψ_ab = q_b, after alternating updates."""
    largest = torch.finfo(pairwise.dtype).max / 8
    pairwise = pairwise.clamp(max=largest)
    log_p, log_q = log_p[..., :, None], log_q[..., None, :]
    log_phi = log_psi = log_p + log_q
    for _ in range(iterations):
        log_psi = log_q + log_phi - log_phi.logsumexp(-2, keepdim=True)
        moved = log_psi - pairwise
        log_phi = log_p + moved - moved.logsumexp(-1, keepdim=True)
    value = (log_phi.exp() * (log_phi - log_psi + pairwise)).sum((-1, -2))
    return value.masked_fill(value > largest / 2, math.inf)
