"""Joint tables: what two or more variables say about each other, exact, in nats.

Which to use: `conditional_entropy` for what is left to learn of X once Y is known;
`mutual_information` for what two variables share; `total_correlation` for more than two;
`kl_chain` to split the KL between two joint tables into the first variable's share and the rest's.

Tables are `[*batch, X, Y]` (or more variables where `variables` says so); `form`, `normalise`, half
precision and gradients are as in `kullback.exact.tables`, with the sum to 1 over all variables.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import describe, require, require_type

from .table_sums import Form, Table, alpha_sum, cross_sum, read

__all__ = ["KLChain", "conditional_entropy", "kl_chain", "mutual_information", "total_correlation"]


class KLChain(NamedTuple):
    """The two shares of a KL between joint tables, each ≥ 0, in nats; their sum is the whole."""

    marginal: Tensor
    conditional: Tensor


def conditional_entropy(
    joint: Tensor, *, given: int = -1, form: Form = "probs", normalise: bool = False
) -> Tensor:
    """Return `H(X|Y) = H(X, Y) − H(Y)`, or `H(Y|X)` with `given=-2`, in nats, ≥ 0.

    Computed as `Σ p(x, y) log p(y)/p(x, y)`, of which no term is negative.

    Args:
        joint: `[*batch, X, Y]`, a joint table.
        given: The axis of the variable that is known: −1 (Y) or −2 (X).
        form: What the table holds: "probs", "log_probs" or "logits".
        normalise: Divide by the sum instead of refusing one that is off.

    Returns:
        `[*batch]`, in nats, with gradients as in `kullback.exact.tables`.

    Raises:
        ArgumentTypeError: For anything but a float tensor.
        ArgumentValueError: For a table that is no distribution or has fewer than two axes, or
            another `given`.

    Example:
        >>> conditional_entropy(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
        tensor(0.)
        >>> conditional_entropy(torch.full((2, 2), 0.25)) / math.log(2)
        tensor(1.)
    """
    require(given in (-1, -2), "given", "-1 (Y, the last axis) or -2 (X)", given)
    logs = _read_joint(joint, 2, form=form, normalise=normalise, name="joint")
    inside = _conditional(logs, _marginal(logs, (-3 - given,)))
    return cross_sum(_flat(logs, 2), _flat(inside, 2))


def mutual_information(joint: Tensor, *, form: Form = "probs", normalise: bool = False) -> Tensor:
    """Return `I(X; Y) = KL(p(x, y) ‖ p(x) p(y))`, in nats, ≥ 0.

    Independent variables give 0 up to rounding.

    Args:
        joint: `[*batch, X, Y]`, a joint table.
        form: What the table holds: "probs", "log_probs" or "logits".
        normalise: Divide by the sum instead of refusing one that is off.

    Returns:
        `[*batch]`, in nats, with gradients as in `kullback.exact.tables`.

    Raises:
        ArgumentTypeError: For anything but a float tensor.
        ArgumentValueError: For a table that is no distribution or has fewer than two axes.

    Example:
        >>> mutual_information(torch.tensor([[0.5, 0.0], [0.0, 0.5]])) / math.log(2)
        tensor(1.)
    """
    return total_correlation(joint, variables=2, form=form, normalise=normalise)


def total_correlation(
    joint: Tensor, *, variables: int, form: Form = "probs", normalise: bool = False
) -> Tensor:
    """Return `KL(p(x₁, …, x_k) ‖ Π p(x_i))`, in nats, ≥ 0.

    Reference: Watanabe (1960), "Information theoretical analysis of multivariate correlation".

    Args:
        joint: `[*batch, X₁, …, X_k]`, a joint table.
        variables: k ≥ 1, the number of last axes.
        form: What the table holds: "probs", "log_probs" or "logits".
        normalise: Divide by the sum instead of refusing one that is off.

    Returns:
        `[*batch]`, in nats, with gradients as in `kullback.exact.tables`.

    Raises:
        ArgumentTypeError: For anything but a float tensor.
        ArgumentValueError: For a table that is no distribution or has fewer than k axes.

    Example:
        >>> three_copies = torch.zeros(2, 2, 2)
        >>> three_copies[0, 0, 0] = three_copies[1, 1, 1] = 0.5
        >>> total_correlation(three_copies, variables=3) / math.log(2)
        tensor(2.)
    """
    logs = _read_joint(joint, variables, form=form, normalise=normalise, name="joint")
    axes = range(-variables, 0)
    product = torch.zeros_like(logs)
    for kept in axes:
        product = product + _marginal(logs, tuple(axis for axis in axes if axis != kept))
    return alpha_sum(_flat(logs, variables), _flat(product, variables), 1.0)


def kl_chain(p: Tensor, q: Tensor, *, form: Form = "probs", normalise: bool = False) -> KLChain:
    """Split `KL(p(x, y)‖q(x, y)) = KL(p(x)‖q(x)) + Σ p(x) KL(p(y|x)‖q(y|x))`, in nats.

    Reference: Cover and Thomas (2006), "Elements of Information Theory", theorem 2.5.3.

    Args:
        p: `[*batch, X, Y]`, a joint table.
        q: `[*batch, X, Y]`, a joint table of the same outcomes; batches broadcast.
        form: What the tables hold: "probs", "log_probs" or "logits".
        normalise: Divide by the sum instead of refusing one that is off.

    Returns:
        `KLChain(marginal, conditional)`, each `[*batch]`, in nats, ≥ 0. Both are +inf where q lacks
        an x that p has, since q(y|x) does not exist there.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For tables that are no distributions, or other outcomes in q.

    Example:
        >>> p = torch.tensor([[0.4, 0.1], [0.1, 0.4]])
        >>> kl_chain(p, torch.full((2, 2), 0.25))
        KLChain(marginal=tensor(0.), conditional=tensor(0.1927))
    """
    log_p = _read_joint(p, 2, form=form, normalise=normalise, name="p")
    log_q = _read_joint(q, 2, form=form, normalise=normalise, name="q")
    same = log_p.shape[-2:] == log_q.shape[-2:]
    require(same, "p and q", "the same X and Y", f"{describe(p)} and {describe(q)}")
    log_p, log_q = torch.broadcast_tensors(log_p, log_q)  # type: ignore[no-untyped-call]
    first_p, first_q = _marginal(log_p, (-1,)), _marginal(log_q, (-1,))
    rows = alpha_sum(
        _table(_conditional(log_p, first_p)), _table(_conditional(log_q, first_q)), 1.0
    )
    first_p, first_q = first_p.squeeze(-1), first_q.squeeze(-1)
    weight = first_p.exp()
    infinite = (rows == math.inf) & (weight > 0)
    shares = weight * rows.masked_fill(rows == math.inf, 0)
    shares = shares.masked_fill(infinite, math.inf)
    return KLChain(alpha_sum(_table(first_p), _table(first_q), 1.0), shares.sum(-1))


def _read_joint(joint: Tensor, variables: int, *, form: Form, normalise: bool, name: str) -> Tensor:
    """Return the checked logs `[*batch, X₁, …, X_k]` of a joint table."""
    require_type(joint, Tensor, name)
    require(variables >= 1, "variables", "at least 1", variables)
    enough = joint.ndim >= variables
    require(enough, name, f"a table [*batch, …] of {variables} variables", describe(joint))
    flat = joint.flatten(joint.ndim - variables)
    logs = read(flat, form=form, normalise=normalise, name=name).log
    return logs.reshape(joint.shape)


def _marginal(logs: Tensor, summed: tuple[int, ...]) -> Tensor:
    """Return the log of the sum over some axes, kept as 1; no mass is −inf with gradient 0."""
    if not summed:
        return logs
    none = logs == -math.inf
    lowest = torch.finfo(logs.dtype).min / 4
    total = logs.masked_fill(none, lowest).logsumexp(summed, keepdim=True)
    return total.masked_fill(none.all(summed, keepdim=True), -math.inf)


def _conditional(logs: Tensor, known: Tensor) -> Tensor:
    return torch.where(logs > -math.inf, logs - known, -math.inf)


def _table(logs: Tensor) -> Table:
    return Table(logs, by_mass=False)


def _flat(logs: Tensor, variables: int) -> Table:
    return _table(logs.flatten(logs.ndim - variables))
