"""Entropies and divergences of probability tables, exact: sums that are really done.

Which to use: `entropy`, `cross_entropy` and `kl` for codes and likelihoods (nats; divide by ln 2
for bits); `js` when either table may lack mass the other has, or a symmetric, bounded number is
wanted; `jeffreys` for both directions at once; `total_variation` and `hellinger` for distances;
`renyi`, `tsallis` and `chi2` for the family around KL. `kullback.exact.joint` has joint tables.

Every function takes tables `[*batch, outcomes]`, broadcast over leading axes, and returns
`[*batch]`. `form` names what they hold: "probs" (the default), "log_probs" or "logits". Rows must
sum to 1 (within √eps of their dtype, or 1e-6); `normalise=True` divides by the sum instead. Half
precision is computed and returned in float32.

Conventions, everywhere: 0·log 0 = 0. Mass that p has and q lacks gives +inf where the mathematics
says so, never NaN. **Gradients** are those of the finite terms: an outcome whose table entry is
exactly zero, and a term that is infinite, count as constants, so their entries get gradient 0. For
logits this is the true gradient wherever the value is finite. Divergences are summed in Bregman
form (`p·log(p/q) − p + q` for KL), so with respect to *probabilities* their gradient is the
textbook one plus a constant, zero at p = q; along the simplex, and for logits, there is no
difference. When no gradient is asked for, rows are worked off in blocks that fit in the cache.

The checks read the values: they wait for a GPU, and cannot run inside `torch.vmap`.
"""

import math

import torch
from torch import Tensor

from kullback.core import require, require_type

from .table_sums import Form, alpha_sum, by_rows, cross_sum, jeffreys_sum, js_sum, renyi_sum

__all__ = [
    "chi2",
    "cross_entropy",
    "entropy",
    "hellinger",
    "jeffreys",
    "js",
    "kl",
    "perplexity",
    "renyi",
    "surprisal",
    "total_variation",
    "tsallis",
]


def surprisal(p: Tensor, *, form: Form = "probs", normalise: bool = False) -> Tensor:
    """Return the surprisal of each outcome, `log 1/p(x)` (MATH 3.1), in nats.

    The result has the same shape. An outcome without mass has surprisal +inf and gradient 0.

    Args:
        p: `[*batch, outcomes]`, a table.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch, outcomes]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions.

    Example:
        >>> surprisal(torch.tensor([0.5, 0.25, 0.25, 0.0])) / math.log(2)
        tensor([1., 2., 2., inf])
    """
    return by_rows(lambda p: -p.log, form=form, normalise=normalise, p=p)


def entropy(p: Tensor, *, form: Form = "probs", normalise: bool = False) -> Tensor:
    """Return `H(p) = Σ p log 1/p` (MATH 3.2), in nats.

    Zero masses add nothing.

    Args:
        p: `[*batch, outcomes]`, a table.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions.

    Example:
        >>> entropy(torch.tensor([0.5, 0.25, 0.25])) / math.log(2)
        tensor(1.5000)
    """
    return by_rows(lambda p: cross_sum(p, p), form=form, normalise=normalise, p=p)


def cross_entropy(p: Tensor, q: Tensor, *, form: Form = "probs", normalise: bool = False) -> Tensor:
    """Return `H(p, q) = Σ p log 1/q` (MATH 3.4), in nats.

    The mean code length when data from p are coded for q. Mass where q has none gives +inf.

    Args:
        p: `[*batch, outcomes]`, a table.
        q: `[*batch, outcomes]`, a table of the same outcomes.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Example:
        >>> p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
        >>> cross_entropy(p, q) / math.log(2)
        tensor(1.7500)
    """
    return by_rows(cross_sum, form=form, normalise=normalise, p=p, q=q)


def perplexity(
    p: Tensor, q: Tensor | None = None, *, form: Form = "probs", normalise: bool = False
) -> Tensor:
    """Return `exp H(p, q)`, or `exp H(p)` without q: the number of equal choices of that entropy.

    A pure number ≥ 1. Mass where q has none gives +inf.

    Args:
        p: `[*batch, outcomes]`, a table.
        q: `[*batch, outcomes]`, a table of the same outcomes; p if None.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Example:
        >>> perplexity(torch.full((6,), 1 / 6))
        tensor(6.0000)
    """
    if q is None:
        return torch.exp(entropy(p, form=form, normalise=normalise))
    return torch.exp(cross_entropy(p, q, form=form, normalise=normalise))


def kl(p: Tensor, q: Tensor, *, form: Form = "probs", normalise: bool = False) -> Tensor:
    """Return `KL(p‖q) = Σ p log(p/q)` (MATH 3.5), p first, in nats, ≥ 0.

    Exact up to rounding, also where p ≈ q: the sum is of `p·log(p/q) − p + q`, every term of it ≥
    0. Mass where q has none gives +inf, with the gradient of the finite terms (module docstring);
    with q as logits it is `q − p`.

    Args:
        p: `[*batch, outcomes]`, a table.
        q: `[*batch, outcomes]`, a table of the same outcomes.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Example:
        >>> p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
        >>> kl(p, q) / math.log(2)
        tensor(0.2500)
        >>> kl(p, torch.tensor([0.5, 0.5, 0.0]))
        tensor(inf)
    """
    return _divergence(p, q, 1.0, form=form, normalise=normalise)


def jeffreys(p: Tensor, q: Tensor, *, form: Form = "probs", normalise: bool = False) -> Tensor:
    """Return `KL(p‖q) + KL(q‖p) = Σ (p − q) log(p/q)`, in nats, ≥ 0, symmetric.

    +inf as soon as one table lacks mass the other has.

    Args:
        p: `[*batch, outcomes]`, a table.
        q: `[*batch, outcomes]`, a table of the same outcomes.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Reference: Jeffreys (1946), "An invariant form for the prior probability".

    Example:
        >>> jeffreys(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])) / math.log(3)
        tensor(0.2500)
    """
    return by_rows(jeffreys_sum, form=form, normalise=normalise, p=p, q=q)


def js(
    p: Tensor,
    q: Tensor,
    *,
    weight: float = 0.5,
    form: Form = "probs",
    normalise: bool = False,
) -> Tensor:
    """Return `w·KL(p‖m) + (1−w)·KL(q‖m)`, `m = w·p + (1−w)·q`: Jensen-Shannon, in nats.

    Always finite: at most the entropy of (w, 1−w), which disjoint tables reach.

    Args:
        p: `[*batch, outcomes]`, a table.
        q: `[*batch, outcomes]`, a table of the same outcomes.
        weight: W, strictly between 0 and 1.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Reference: Lin (1991), "Divergence measures based on the Shannon entropy", section IV.

    Example:
        >>> js(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) / math.log(2)
        tensor(1.)
    """
    require_type(weight, (int, float), "weight")
    require(0.0 < weight < 1.0, "weight", "a number strictly between 0 and 1", weight)
    return by_rows(lambda p, q: js_sum(p, q, weight), form=form, normalise=normalise, p=p, q=q)


def renyi(
    p: Tensor, q: Tensor, *, alpha: float, form: Form = "probs", normalise: bool = False
) -> Tensor:
    """Return the Rényi divergence `D_α(p‖q) = log Σ p^α q^(1−α) / (α − 1)`, in nats, ≥ 0.

    For α ≥ 1 mass where q has none gives +inf; below 1 only disjoint tables do.

    Args:
        p: `[*batch, outcomes]`, a table.
        q: `[*batch, outcomes]`, a table of the same outcomes.
        alpha: 0 ≤ α ≤ inf; 1 is KL(p‖q), 0 is `−log q(p > 0)`, inf is `log max p/q`.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Reference: van Erven and Harremoës (2014), "Rényi divergence and Kullback-Leibler divergence".

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
        >>> [round(float(renyi(p, q, alpha=a)), 4) for a in (0, 0.5, 1, 2, math.inf)]
        [0.0, 0.2231, 0.5108, 1.0217, 1.6094]
    """
    require_type(alpha, (int, float), "alpha")
    require(alpha >= 0, "alpha", "an order of at least 0", alpha)
    return by_rows(lambda p, q: renyi_sum(p, q, alpha), form=form, normalise=normalise, p=p, q=q)


def tsallis(
    p: Tensor, q: Tensor, *, alpha: float, form: Form = "probs", normalise: bool = False
) -> Tensor:
    """Return the Tsallis relative entropy `(Σ p^α q^(1−α) − 1) / (α − 1)`, a pure number ≥ 0.

    For α ≥ 1 mass where q has none gives +inf; below 1 it is always finite.

    Args:
        p: `[*batch, outcomes]`, a table.
        q: `[*batch, outcomes]`, a table of the same outcomes.
        alpha: 0 ≤ α < inf; 1 is `kl`, 2 is `chi2`, ½ is `2·hellinger²`.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Reference: Tsallis (1998), "Generalized entropy-based criterion for consistent testing".

    Example:
        >>> tsallis(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), alpha=2)
        tensor(1.)
    """
    require_type(alpha, (int, float), "alpha")
    require(0 <= alpha < math.inf, "alpha", "a finite order of at least 0", alpha)
    return _divergence(p, q, float(alpha), form=form, normalise=normalise)


def chi2(p: Tensor, q: Tensor, *, form: Form = "probs", normalise: bool = False) -> Tensor:
    """Return Pearson's `χ²(p‖q) = Σ (p − q)²/q = Σ p²/q − 1`, a pure number ≥ 0.

    Mass where q has none gives +inf.

    Args:
        p: `[*batch, outcomes]`, a table.
        q: `[*batch, outcomes]`, a table of the same outcomes.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Example:
        >>> chi2(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
        tensor(0.3333)
    """
    return _divergence(p, q, 2.0, form=form, normalise=normalise)


def total_variation(
    p: Tensor, q: Tensor, *, form: Form = "probs", normalise: bool = False
) -> Tensor:
    """Return the total variation distance `½ Σ |p − q|`, a pure number in [0, 1].

    Disjoint tables are at 1. Where p(x) = q(x) the term's gradient is 0 (a subgradient).

    Args:
        p: `[*batch, outcomes]`, a table.
        q: `[*batch, outcomes]`, a table of the same outcomes.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Example:
        >>> total_variation(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
        tensor(0.2500)
    """
    return by_rows(
        lambda p, q: (p.prob - q.prob).abs().sum(-1) / 2, form=form, normalise=normalise, p=p, q=q
    )


def hellinger(p: Tensor, q: Tensor, *, form: Form = "probs", normalise: bool = False) -> Tensor:
    """Return the Hellinger distance `√(1 − Σ √(p q))`, a pure number in [0, 1].

    Disjoint tables are at 1. At p = q, where the distance has a kink, the gradient is 0.

    Args:
        p: `[*batch, outcomes]`, a table.
        q: `[*batch, outcomes]`, a table of the same outcomes.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide rows by their sum instead of refusing one that is off.

    Returns:
        `[*batch]`, with gradients as the module says.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Example:
        >>> hellinger(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75])) ** 2
        tensor(0.5000)
    """
    squared = _divergence(p, q, 0.5, form=form, normalise=normalise) / 2
    same = squared <= 0
    return torch.sqrt(squared.masked_fill(same, 1)).masked_fill(same, 0)


def _divergence(p: Tensor, q: Tensor, alpha: float, *, form: Form, normalise: bool) -> Tensor:
    return by_rows(lambda p, q: alpha_sum(p, q, alpha), form=form, normalise=normalise, p=p, q=q)
