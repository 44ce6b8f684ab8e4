"""How fast a density falls off at an end of its support, and which expectations are infinite then.

Which to use: `Tail` and its constructors (`power`, `log_normal`, `stretched`, `double_exponential`)
to describe an end; `finite_kl` and `finite_ratio` to compare two of them; `supports.compare` for
whole distributions.

Every end is brought to y → ∞: y is the distance from the origin at an infinite end and one over the
distance to the end at a finite one. There the survival function is `exp(−G(y))` with
`G = rate · L(y)^order`, up to factors of lower order; L is the `level`-fold iterated logarithm
(level 1: log y; level 0: y itself; level −1: e^y). KL and E_p[(q/p)²] do not change under a
monotone map of x, so G is all that they depend on: `KL < ∞` at the end when `E_p[G_q(Y)] < ∞`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Tail",
    "double_exponential",
    "exponentiated",
    "finite_kl",
    "finite_ratio",
    "log_normal",
    "power",
    "powered",
    "scaled",
    "stretched",
]


@dataclass(frozen=True, slots=True)
class Tail:
    """`−log P(Y > y) ~ rate · L(y)^order`, L the `level`-fold logarithm; float64, one shape."""

    level: Tensor
    order: Tensor
    rate: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tail":
        """Return the tail with a function applied to its three tensors (a shape operation)."""
        return Tail(function(self.level), function(self.order), function(self.rate))

    def where(self, mask: Tensor, other: "Tail") -> "Tail":
        """Return this tail where `mask` holds, elsewhere the other."""
        return Tail(
            torch.where(mask, self.level, other.level),
            torch.where(mask, self.order, other.order),
            torch.where(mask, self.rate, other.rate),
        )


def _tail(level: float, order: Tensor | float, rate: Tensor | float) -> Tail:
    given = [torch.as_tensor(part, dtype=torch.float64) for part in (order, rate)]
    both = torch.broadcast_tensors(given[0], given[1])  # type: ignore[no-untyped-call]
    return Tail(torch.full_like(both[0], level), both[0], both[1])


def power(index: Tensor | float) -> Tail:
    """Return `P(Y > y) ~ y^−index`: Pareto tails; a density `u^(index − 1)` at a finite end.

    Args:
        index: The exponent, > 0; any shape.

    Returns:
        The `Tail`, of the shape of `index`.

    Example:
        >>> float(power(2.5).rate)
        2.5
    """
    return _tail(1, 1.0, index)


def log_normal(rate: Tensor | float) -> Tail:
    """Return `P(Y > y) ~ exp(−rate · log² y)`, the tail of a log-normal distribution.

    Args:
        rate: > 0; `1/(2σ²)` for a log-normal of scale σ; any shape.

    Returns:
        The `Tail`, of the shape of `rate`.

    Example:
        >>> float(log_normal(0.5).order)
        2.0
    """
    return _tail(1, 2.0, rate)


def stretched(order: Tensor | float, rate: Tensor | float) -> Tail:
    """Return `P(Y > y) ~ exp(−rate · y^order)`: order 1 exponential, 2 Gaussian.

    Args:
        order: The exponent of y, > 0; any shape.
        rate: > 0; `1/(2σ²)` for a Gaussian of scale σ; broadcast with `order`.

    Returns:
        The `Tail`, of the shape that both broadcast to.

    Example:
        >>> float(stretched(2.0, 0.5).rate)
        0.5
    """
    return _tail(0, order, rate)


def double_exponential(order: Tensor | float) -> Tail:
    """Return `P(Y > y) ~ exp(−C e^(order · y))`: the left end of a Gumbel distribution.

    Args:
        order: > 0, one over the scale; any shape.

    Returns:
        The `Tail`, of the shape of `order`; its rate C is set to 1.

    Example:
        >>> float(double_exponential(2.0).level)
        -1.0
    """
    return _tail(-1, order, 1.0)


def scaled(tail: Tail, factor: Tensor) -> Tail:
    """Return the tail of `factor · Y`.

    Args:
        tail: The tail of Y.
        factor: > 0; broadcast with the tail.

    Returns:
        The `Tail`, of the shape that both broadcast to.

    Example:
        >>> tail = scaled(stretched(1.0, 3.0), torch.tensor(2.0))  # Exponential(3) times 2
        >>> round(float(tail.rate), 6)
        1.5
    """
    log = factor.log()
    rate = torch.where(tail.level == 0, (tail.rate.log() - tail.order * log).exp(), tail.rate)
    order = torch.where(tail.level == -1, tail.order / factor, tail.order)
    return Tail(tail.level + 0 * log, order, rate + 0 * log)


def powered(tail: Tail, exponent: Tensor) -> Tail:
    """Return the tail of `Y^exponent`; a double exponential has none of this form.

    Args:
        tail: The tail of Y, of level 0 or above.
        exponent: > 0; broadcast with the tail.

    Returns:
        The `Tail`, of the shape that both broadcast to.

    Example:
        >>> float(powered(power(3.0), torch.tensor(2.0)).rate)
        1.5
    """
    order = torch.where(tail.level == 0, tail.order / exponent, tail.order)
    shrunk = tail.rate * exponent**-tail.order
    return Tail(tail.level + 0 * order, order, torch.where(tail.level == 1, shrunk, tail.rate))


def exponentiated(tail: Tail, times: int = 1) -> Tail:
    """Return the tail of `e^Y` (times = 1), or of `log Y` (times = −1).

    Args:
        tail: The tail of Y.
        times: How often the exponential is taken; negative for logarithms.

    Returns:
        The `Tail`, its level raised by `times`.

    Example:
        >>> float(exponentiated(stretched(1.0, 3.0)).level)  # e^Exponential(3) is Pareto
        1.0
    """
    return Tail(tail.level + times, tail.order, tail.rate)


def finite_kl(p: Tail, q: Tail, *, moment: float = 1.0) -> Tensor:
    """Return whether `E_p[G_q(Y)^moment] < ∞`; at moment 1, whether KL(p‖q) is finite at this end.

    `Z = G_p(Y)` is exponential of rate 1, so that with `L_p = (Z/rate)^(1/order)` the question is
    whether `∫ G_q e^−z dz` converges: always where q is at the same or a slower level; one level
    faster, `G_q = rate · exp(order_q · L_p)`, where `order_p > 1`, or `= 1` and
    `moment · order_q < rate_p`; two levels faster never.

    Args:
        p: The tail of p at the end.
        q: The tail of q at the same end.
        moment: The exponent of `G_q`, > 0.

    Returns:
        Bool, of the shape that both tails broadcast to.

    Example:
        >>> finite_kl(power(1.0), stretched(2.0, 0.5))  # Cauchy against normal
        tensor(False)
        >>> finite_kl(power(2.5), stretched(2.0, 0.5))  # Student's t of 2.5 degrees: E x² is finite
        tensor(True)
    """
    gap = p.level - q.level
    edge = (p.order == 1) & (moment * q.order < p.rate)
    return (gap <= 0) | ((gap == 1) & ((p.order > 1) | edge))


def finite_ratio(p: Tail, q: Tail, *, moment: float = 2.0) -> Tensor:
    """Return whether `E_p[(q/p)^m] = ∫ q^m p^(1 − m)` is finite at the end, m the moment.

    It is where `m G_q − (m − 1) G_p → ∞`. At equal double-exponential ends it is not decided: True.

    Args:
        p: The tail of p at the end.
        q: The tail of q at the same end.
        moment: m, > 1.

    Returns:
        Bool, of the shape that both tails broadcast to.

    Example:
        >>> finite_ratio(power(5.0), power(2.0))
        tensor(False)
    """
    level, order = p.level == q.level, p.order == q.order
    lighter = (q.level < p.level) | (level & (q.order > p.order))
    same = level & order & ((moment * q.rate > (moment - 1) * p.rate) | (p.level < 0))
    return lighter | same
