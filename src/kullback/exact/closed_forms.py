"""Closed forms between named families, given as torch distributions: exact, in nats.

Which to use: `kl(p, q)` first; `find(p, q)` to ask whether it has an answer; `cross_entropy` and
`entropy` for codes and likelihoods (`find_entropy` asks); `renyi` for the family around KL;
`mixture_kl_bounds` between Gaussian mixtures, where only bounds exist; `pairs` to see what is
known; `register_with_torch` to have `torch.distributions.kl_divergence` use them.
`docs/closed_forms.md` lists every pair with its source. For a pair that is not there:
`quadrature.kl` in one or two dimensions, or an estimate from draws.

All are computed in float64 and returned in the parameters' dtype, in terms that do not cancel: ≥ 0,
0 for equal parameters, +inf where support, tails or overflow say so, never NaN, and within 1e-6 of
the value for parameters from 1e-6 to 1e6 and relative differences down to 1e-12. Of torch's own
registry nothing is used; pairs that users registered are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.distributions as families
from torch import Tensor
from torch.distributions import kl as registered

from kullback.core import ArgumentTypeError, ArgumentValueError, message, require, require_type

from .families.continuous import PAIRS as CONTINUOUS
from .families.continuous import InverseGaussian
from .families.crossed import CROSSED
from .families.discrete import PAIRS as DISCRETE
from .families.entropies import ENTROPIES
from .families.gaussian import PAIRS as GAUSSIAN
from .families.gaussian import Bounds, mixture_kl_bounds
from .families.pair import Pair, scores_as
from .families.renyi import RENYI

__all__ = [
    "Bounds",
    "InverseGaussian",
    "Pair",
    "Row",
    "cross_entropy",
    "entropy",
    "find",
    "find_entropy",
    "kl",
    "mixture_kl_bounds",
    "pairs",
    "register_with_torch",
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

    Exact up to rounding, as said above. +inf where p has mass that q lacks, and where the exact
    value overflows. Gradients flow to the parameters; for masked logits and probabilities of 0 they
    are as in `tables.kl`; where the value overflows they may be infinite, as the exact ones are.

    Args:
        p: A torch distribution.
        q: A torch distribution of the same event shape; batch shapes broadcast.

    Returns:
        `[*batch]`, in nats.

    Raises:
        ArgumentTypeError: For anything but distributions, or a pair without a closed form.
        ArgumentValueError: For event shapes that differ.

    Example:
        >>> from torch import tensor
        >>> kl(families.Normal(tensor(0.0), tensor(1.0)), families.Normal(tensor(1.0), tensor(1.0)))
        tensor(0.5000)
    """
    pair = find(p, q)
    if pair is None:
        raise _unknown(_candidates(_with_registered(), p, q), p, q, "kl")
    return pair.function(p, q)


def find(p: Any, q: Any) -> Pair | None:
    """Return the closed form of `KL(p‖q)`, or None where none is known; no value is computed.

    The pair of nearest ancestors decides, out of the table of `pairs` and of what was registered by
    `torch.distributions.register_kl` for other classes; of two that are equally near, the table.

    Args:
        p: A torch distribution.
        q: A torch distribution of the same event shape.

    Returns:
        The `Pair`, or None: no pair of these families is known, or the pair's condition does not
        hold (transforms that differ, unequal counts, inner distributions without a closed form).

    Raises:
        ArgumentTypeError: For anything but distributions.
        ArgumentValueError: For event shapes that differ.

    Example:
        >>> from torch import tensor
        >>> normal = families.Normal(tensor(0.0), tensor(1.0))
        >>> find(normal, normal).source
        'Gil, Alajaji and Linder 2013, table 2'
        >>> find(normal, families.StudentT(tensor(3.0))) is None
        True
    """
    return _first(_candidates(_with_registered(), p, q), p, q)


def entropy(p: Any) -> Tensor:
    """Return `H(p) = −E_p[log p]` (MATH 3.2, 3.6), in nats; differential where p has a density.

    Args:
        p: A torch distribution.

    Returns:
        `[*batch]`, in nats, within 1e-6 of the exact value, relative or absolute.

    Raises:
        ArgumentTypeError: Where there is no closed form (Poisson, negative binomial, inverse
            Gaussian, mixtures, most transformed distributions).

    Example:
        >>> from torch import tensor
        >>> entropy(families.Uniform(tensor(0.0), tensor(2.0)))
        tensor(0.6931)
    """
    known = find_entropy(p)
    if known is None:
        expected = "a distribution whose entropy has a closed form"
        raise ArgumentTypeError(message("p", expected, type(p).__name__, _TRY))
    return known.function(p)


def find_entropy(p: Any) -> Pair | None:
    """Return the closed form of `H(p)`, or None where none is known; no value is computed.

    Args:
        p: A torch distribution.

    Returns:
        A `Pair` whose `function` takes p alone, or None. The `entropy` method of a class that
        defines one itself is used unchecked.

    Raises:
        ArgumentTypeError: For anything but a distribution.

    Example:
        >>> from torch import tensor
        >>> find_entropy(families.Poisson(tensor(1.0))) is None
        True
    """
    require_type(p, families.Distribution, "p")
    generic = (families.Distribution, families.ExponentialFamily)
    for ancestor in type(p).__mro__:
        if ancestor is families.Independent and scores_as(p, ancestor):
            return _independent_entropy(p) if find_entropy(p.base_dist) else None
        if ancestor in ENTROPIES and scores_as(p, ancestor):
            return ENTROPIES[ancestor]
        if "entropy" in vars(ancestor):
            return None if ancestor in generic else _OWN_ENTROPY
        if "log_prob" in vars(ancestor):
            return None  # the entropies of its ancestors are of another density
    return None


def cross_entropy(p: Any, q: Any) -> Tensor:
    """Return `H(p, q) = −E_p[log q] = H(p) + KL(p‖q)` (MATH 3.4, 3.5), in nats.

    Args:
        p: A torch distribution whose entropy has a closed form.
        q: A torch distribution of the same event shape; batch shapes broadcast.

    Returns:
        `[*batch]`, in nats.

    Raises:
        ArgumentTypeError: For anything but distributions, or where one of the two terms has no
            closed form.
        ArgumentValueError: For event shapes that differ.

    Example:
        >>> from torch import tensor
        >>> p = families.Bernoulli(tensor(0.5))
        >>> cross_entropy(p, families.Bernoulli(tensor(0.25)))
        tensor(0.8370)
    """
    return entropy(p) + kl(p, q)


def renyi(p: Any, q: Any, *, alpha: float) -> Tensor:
    """Return the Rényi divergence `D_α(p‖q) = log E_p[(p/q)^(α−1)] / (α − 1)`, in nats, ≥ 0.

    Computed in float64 as two KLs to a third member of the family.

    Args:
        p: A torch distribution.
        q: A torch distribution of the same event shape; batch shapes broadcast.
        alpha: The order, 0 < α < inf; 1 is `kl`.

    Returns:
        `[*batch]`, in nats; +inf where the integral diverges (α > 1 only).

    Raises:
        ArgumentTypeError: For anything but distributions, or a pair without a closed form.
        ArgumentValueError: For an order outside the range, or event shapes that differ.

    Example:
        >>> from torch import tensor
        >>> p, q = (families.Normal(tensor(m), tensor(1.0)) for m in (0.0, 1.0))
        >>> renyi(p, q, alpha=2)
        tensor(1.)
    """
    require_type(alpha, (int, float), "alpha")
    require(0 < alpha < float("inf"), "alpha", "a finite order above 0", alpha)
    if alpha == 1:
        return kl(p, q)
    candidates = _candidates(ORDERS, p, q)
    pair = _first(candidates, p, q)
    if pair is None:
        raise _unknown(candidates, p, q, "renyi")
    return pair.function(p, q, float(alpha))


def pairs() -> list[Row]:
    """List every closed form known here: quantity, family of p, family of q, source.

    Returns:
        Rows in alphabetical order, first those of "kl", then those of "renyi".

    Example:
        >>> [row.source for row in pairs() if row.p == row.q == "Cauchy"]
        ['Chyzak and Nielsen 2019, theorem 1']
    """
    rows = [
        Row(quantity, p.__name__, q.__name__, pair.source)
        for quantity, known in (("kl", PAIRS), ("renyi", ORDERS))
        for (p, q), pair in known.items()
    ]
    return sorted(rows)


def register_with_torch() -> None:
    """Make `torch.distributions.kl_divergence` use the closed forms of this module.

    Registers `kl` for every pair of `pairs()` with `torch.distributions.register_kl`. It is never
    done on import; calling it again changes nothing. What torch or you had registered for the same
    two classes is replaced, for the whole process; what you register for other classes, or
    afterwards, stays. Only for `Independent` and `TransformedDistribution` whose inner pair is not
    known here does torch answer as before.

    From then on `torch.distributions.kl_divergence` raises `NotImplementedError` where a pair's
    condition does not hold, as it does for unknown pairs, and `ArgumentValueError` for event shapes
    that differ.

    Example:
        >>> before = dict(registered._KL_REGISTRY)
        >>> p, q = (families.VonMises(0.0, k) for k in (1.0, 2.0))
        >>> register_with_torch()
        >>> families.kl_divergence(p, q) == kl(p, q)
        tensor(True)
        >>> registered._KL_REGISTRY.clear()  # undone, for the examples that follow
        >>> registered._KL_REGISTRY.update(before)
        >>> registered._KL_MEMOIZE.clear()
    """
    for classes in PAIRS:
        present = registered._KL_REGISTRY.get(classes)
        if getattr(present, "__module__", None) != __name__:
            inner = classes in (_INDEPENDENT, _SHARED)
            register: Any = families.register_kl
            register(*classes)(_for_torch(present if inner else None))


def _for_torch(before: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """Return `kl` with torch's error where no formula is known, or what torch had before."""

    def kl_or_before(p: Any, q: Any) -> Tensor:
        pair = find(p, q)
        if pair is not None:
            return pair.function(p, q)
        if before is not None:
            return before(p, q)
        raise NotImplementedError(str(_unknown(_candidates(PAIRS, p, q), p, q, "kl")))

    return kl_or_before


def _candidates(known: dict[tuple[type, type], Pair], p: Any, q: Any) -> list[Pair]:
    """Return the pairs of p's and q's ancestors, nearest first, after checking the event shapes."""
    require_type(p, families.Distribution, "p")
    require_type(q, families.Distribution, "q")
    shapes = tuple(p.event_shape), tuple(q.event_shape)
    got = f"{shapes[0]} and {shapes[1]}"
    steps_p, steps_q = list(enumerate(type(p).__mro__)), list(enumerate(type(q).__mro__))
    near = [
        (i + j, (a, b))
        for i, a in steps_p
        for j, b in steps_q
        if (a, b) in known and _holds(known[a, b], (p, a), (q, b))
    ]
    if near:
        require(shapes[0] == shapes[1], "p and q", "the same event shape", got)
    return [known[pair] for _, pair in sorted(near, key=lambda row: row[0])]


def _holds(pair: Pair, *instances: tuple[Any, type]) -> bool:
    """Say whether a formula of two classes is one of their instances p and q.

    Not where a subclass scores by a rule of its own; what users registered is theirs to answer for.
    """
    own = pair.source.startswith(_BY_USERS)
    return own or all(scores_as(instance, family) for instance, family in instances)


def _first(candidates: list[Pair], p: Any, q: Any) -> Pair | None:
    return next((pair for pair in candidates if pair.refuses(p, q) is None), None)


def _unknown(candidates: list[Pair], p: Any, q: Any, quantity: str) -> Exception:
    """Return the error of the nearest pair, or that there is none."""
    reasons = [reason for pair in candidates if (reason := pair.refuses(p, q)) is not None]
    got = f"({type(p).__name__}, {type(q).__name__})"
    expected = f"a pair whose {quantity} has a closed form"
    return (reasons or [ArgumentTypeError(message("p and q", expected, got, _TRY))])[0]


def _with_registered() -> dict[tuple[type, type], Pair]:
    """Return the table of closed forms and, for pairs not in it, what users registered."""
    users = {
        pair: Pair(function, f"{_BY_USERS}{function.__module__}.{function.__qualname__}")
        for pair, function in registered._KL_REGISTRY.items()
        if not function.__module__.startswith(("torch.distributions", __name__))
    }
    return {**users, **PAIRS}


def _independent_kl(p: Any, q: Any) -> Tensor:
    return _sum_last(kl(p.base_dist, q.base_dist), p.reinterpreted_batch_ndims)


def _independent_renyi(p: Any, q: Any, alpha: float) -> Tensor:
    value = renyi(p.base_dist, q.base_dist, alpha=alpha)
    return _sum_last(value, p.reinterpreted_batch_ndims)


def _shared_kl(p: Any, q: Any) -> Tensor:
    return kl(p.base_dist, q.base_dist)


def _shared_renyi(p: Any, q: Any, alpha: float) -> Tensor:
    return renyi(p.base_dist, q.base_dist, alpha=alpha)


def _other_axes(p: Any, q: Any, known: Any, quantity: str) -> Exception | None:
    axes = (p.reinterpreted_batch_ndims, q.reinterpreted_batch_ndims)
    if axes[0] != axes[1]:
        return ArgumentValueError(message("p and q", "as many independent axes in both", axes))
    return _unknown_inside(p, q, known, quantity)


def _other_transforms(p: Any, q: Any, known: Any, quantity: str) -> Exception | None:
    """Return the error unless both have one shared invertible transform, which KL does not see."""
    if p.transforms != q.transforms or not all(t.bijective for t in p.transforms):
        expected = "the same invertible transforms in both"
        got = f"{p.transforms} and {q.transforms}"
        return ArgumentTypeError(message("p and q", expected, got, _TRY))
    return _unknown_inside(p, q, known, quantity)


def _unknown_inside(p: Any, q: Any, known: Any, quantity: str) -> Exception | None:
    p, q = p.base_dist, q.base_dist
    candidates = _candidates(known(), p, q)
    return None if _first(candidates, p, q) else _unknown(candidates, p, q, quantity)


def _sum_last(value: Tensor, axes: int) -> Tensor:
    return value.flatten(value.ndim - axes).sum(-1) if axes else value


def _independent_entropy(p: Any) -> Pair:
    inner = find_entropy(p.base_dist)
    source = inner.source if inner else ""
    return Pair(lambda p: _sum_last(entropy(p.base_dist), p.reinterpreted_batch_ndims), source)


_BY_USERS = "registered by "
_OWN_ENTROPY = Pair(lambda p: p.entropy(), "the distribution's own `entropy`")

_TRY = "quadrature.kl in one or two dimensions, an estimate from draws, or mixture_kl_bounds"
_INDEPENDENT = (families.Independent, families.Independent)
_SHARED = (families.TransformedDistribution, families.TransformedDistribution)
_NO_CHANGE = "invertible maps change no divergence; the same transforms in both"
_AXES = "sum over independent axes"

PAIRS: dict[tuple[type, type], Pair] = {
    **CROSSED,
    **DISCRETE,
    **CONTINUOUS,
    **GAUSSIAN,
    _INDEPENDENT: Pair(
        _independent_kl, _AXES, lambda p, q: _other_axes(p, q, _with_registered, "kl")
    ),
    _SHARED: Pair(
        _shared_kl, _NO_CHANGE, lambda p, q: _other_transforms(p, q, _with_registered, "kl")
    ),
}
ORDERS: dict[tuple[type, type], Pair] = {
    **RENYI,
    _INDEPENDENT: Pair(
        _independent_renyi, _AXES, lambda p, q: _other_axes(p, q, lambda: ORDERS, "renyi")
    ),
    _SHARED: Pair(
        _shared_renyi, _NO_CHANGE, lambda p, q: _other_transforms(p, q, lambda: ORDERS, "renyi")
    ),
}
