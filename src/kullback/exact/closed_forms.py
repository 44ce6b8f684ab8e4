"""Closed forms between named families, given as torch distributions: exact, in nats.

Which to use: `kl(p, q)` first; `cross_entropy` and `entropy` for codes and likelihoods; `renyi` for
the family around KL; `mixture_kl_bounds` between Gaussian mixtures, where only bounds exist;
`pairs` to see what is known. `docs/closed_forms.md` lists every pair with its source. For a pair
that is not there: `quadrature.kl` in one or two dimensions, or an estimate from draws.

torch's own registry is used where it is right, and mended where it is not: scales so small that it
answers NaN for +inf, masked logits (an all-NaN gradient), probabilities of 0 and 1, float32
differences of log-gamma values, batches of Wisharts, transforms that cannot be inverted.
"""

from typing import Any, NamedTuple

import torch.distributions as families
from torch import Tensor

from kullback.core import ArgumentTypeError, require, require_type
from kullback.core.checks import message

from .families.continuous import PAIRS as CONTINUOUS
from .families.continuous import von_mises_entropy
from .families.discrete import PAIRS as DISCRETE
from .families.discrete import table_of
from .families.gaussian import PAIRS as GAUSSIAN
from .families.inverse_gaussian import InverseGaussian
from .families.mixture import Bounds, mixture_kl_bounds
from .families.orders import RENYI
from .families.pair import Pair
from .families.trusted import TRUSTED
from .row_sums import cross_sum

__all__ = [
    "Bounds",
    "InverseGaussian",
    "Row",
    "cross_entropy",
    "entropy",
    "kl",
    "mixture_kl_bounds",
    "pairs",
    "renyi",
]


class Row(NamedTuple):
    """One line of the table of closed forms."""

    quantity: str
    p: str
    q: str
    source: str


def kl(p: Any, q: Any) -> Tensor:
    """Return `KL(p‖q) = E_p[log p/q]` (MATH 3.5), p first, in nats, ≥ 0.

    p, q: torch distributions of the same event shape; batch shapes broadcast → `[*batch]`.
    Exact up to rounding. +inf where p has mass that q lacks, and where the true value overflows.
    Gradients flow to the parameters; for masked logits and probabilities of 0 they are as in
    `tables.kl`; where the value overflows they may be infinite, as the true ones are.
    Raises `ArgumentTypeError` for anything but distributions and for a pair without a closed form;
    `ArgumentValueError` for event shapes that differ.

    >>> from torch import tensor
    >>> kl(families.Normal(tensor(0.0), tensor(1.0)), families.Normal(tensor(1.0), tensor(1.0)))
    tensor(0.5000)
    """
    return _find(PAIRS, p, q, "kl").function(p, q)


def entropy(p: Any) -> Tensor:
    """Return `H(p) = −E_p[log p]` (MATH 3.2, 3.6), in nats; differential where p has a density.

    p: a torch distribution → `[*batch]`. torch's own, and the von Mises'.
    Raises `ArgumentTypeError` where there is no closed form (Poisson, negative binomial, inverse
    Gaussian, mixtures, most transformed distributions).

    >>> from torch import tensor
    >>> entropy(families.Uniform(tensor(0.0), tensor(2.0)))
    tensor(0.6931)
    """
    require_type(p, families.Distribution, "p")
    if isinstance(p, families.VonMises):
        return von_mises_entropy(p.loc, p.concentration)
    if isinstance(p, families.Bernoulli | families.Categorical | families.OneHotCategorical):
        return cross_sum(table_of(p), table_of(p))
    if isinstance(p, families.Independent):
        return _sum_last(entropy(p.base_dist), p.reinterpreted_batch_ndims)
    try:
        value: Tensor = p.entropy()
    except NotImplementedError as error:
        expected = "a distribution whose entropy has a closed form"
        raise ArgumentTypeError(message("p", expected, type(p).__name__, _TRY)) from error
    return value


def cross_entropy(p: Any, q: Any) -> Tensor:
    """Return `H(p, q) = −E_p[log q] = H(p) + KL(p‖q)` (MATH 3.4, 3.5), in nats.

    p, q: as in `kl`, where p's entropy has a closed form too → `[*batch]`.

    >>> from torch import tensor
    >>> p = families.Bernoulli(tensor(0.5))
    >>> cross_entropy(p, families.Bernoulli(tensor(0.25)))
    tensor(0.8370)
    """
    return entropy(p) + kl(p, q)


def renyi(p: Any, q: Any, *, alpha: float) -> Tensor:
    """Return the Rényi divergence `D_α(p‖q) = log E_p[(p/q)^(α−1)] / (α − 1)`, in nats, ≥ 0.

    p, q: as in `kl` → `[*batch]`. alpha: 0 < α < inf; 1 is `kl`. +inf where the integral diverges
    (α > 1 only). Computed in float64; the error grows like eps/|α − 1|.

    >>> from torch import tensor
    >>> p, q = (families.Normal(tensor(m), tensor(1.0)) for m in (0.0, 1.0))
    >>> renyi(p, q, alpha=2)
    tensor(1.)
    """
    require_type(alpha, (int, float), "alpha")
    require(0 < alpha < float("inf"), "alpha", "a finite order above 0", alpha)
    if alpha == 1:
        return kl(p, q)
    return _find(ORDERS, p, q, "renyi").function(p, q, float(alpha))


def pairs() -> list[Row]:
    """List every closed form known here: quantity, family of p, family of q, source.

    >>> [row.source for row in pairs() if row.p == row.q == "Cauchy"]
    ['Chyzak and Nielsen 2019, theorem 1']
    """
    rows = [
        Row(quantity, p.__name__, q.__name__, pair.source)
        for quantity, known in (("kl", PAIRS), ("renyi", ORDERS))
        for (p, q), pair in known.items()
    ]
    return sorted(rows)


def _find(known: dict[tuple[type, type], Pair], p: Any, q: Any, quantity: str) -> Pair:
    """Find the closed form of the nearest ancestors, and check the event shapes."""
    require_type(p, families.Distribution, "p")
    require_type(q, families.Distribution, "q")
    ancestors = [(a, b) for a in type(p).__mro__ for b in type(q).__mro__]
    near = {
        pair: type(p).__mro__.index(pair[0]) + type(q).__mro__.index(pair[1])
        for pair in ancestors
        if pair in known
    }
    if not near:
        got = f"({type(p).__name__}, {type(q).__name__})"
        expected = f"a pair whose {quantity} has a closed form"
        raise ArgumentTypeError(message("p and q", expected, got, _TRY))
    shapes = tuple(p.event_shape), tuple(q.event_shape)
    require(
        shapes[0] == shapes[1], "p and q", "the same event shape", f"{shapes[0]} and {shapes[1]}"
    )
    return known[min(near, key=near.__getitem__)]


def _independent_kl(p: Any, q: Any) -> Tensor:
    return _sum_last(kl(*_bases(p, q)), p.reinterpreted_batch_ndims)


def _independent_renyi(p: Any, q: Any, alpha: float) -> Tensor:
    return _sum_last(renyi(*_bases(p, q), alpha=alpha), p.reinterpreted_batch_ndims)


def _shared_kl(p: Any, q: Any) -> Tensor:
    return kl(*_before_transforms(p, q))


def _shared_renyi(p: Any, q: Any, alpha: float) -> Tensor:
    return renyi(*_before_transforms(p, q), alpha=alpha)


def _bases(p: Any, q: Any) -> tuple[Any, Any]:
    axes = (p.reinterpreted_batch_ndims, q.reinterpreted_batch_ndims)
    require(axes[0] == axes[1], "p and q", "as many independent axes in both", axes)
    return p.base_dist, q.base_dist


def _before_transforms(p: Any, q: Any) -> tuple[Any, Any]:
    """Return the distributions under one shared invertible transform, which KL does not see."""
    same = p.transforms == q.transforms and all(t.bijective for t in p.transforms)
    if not same:
        expected = "the same invertible transforms in both"
        got = f"{p.transforms} and {q.transforms}"
        raise ArgumentTypeError(message("p and q", expected, got, _TRY))
    return p.base_dist, q.base_dist


def _sum_last(value: Tensor, axes: int) -> Tensor:
    return value.flatten(value.ndim - axes).sum(-1) if axes else value


_TRY = "quadrature.kl in one or two dimensions, an estimate from draws, or mixture_kl_bounds"
_INDEPENDENT = (families.Independent, families.Independent)
_SHARED = (families.TransformedDistribution, families.TransformedDistribution)
_NO_CHANGE = "invertible maps change no divergence; the same transforms in both"

PAIRS: dict[tuple[type, type], Pair] = {
    **TRUSTED,
    **DISCRETE,
    **CONTINUOUS,
    **GAUSSIAN,
    _INDEPENDENT: Pair(_independent_kl, "sum over independent axes"),
    _SHARED: Pair(_shared_kl, _NO_CHANGE),
}
ORDERS: dict[tuple[type, type], Pair] = {
    **RENYI,
    _INDEPENDENT: Pair(_independent_renyi, "sum over independent axes"),
    _SHARED: Pair(_shared_renyi, _NO_CHANGE),
}
