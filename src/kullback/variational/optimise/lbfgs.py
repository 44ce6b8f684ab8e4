"""L-BFGS with a line search, for smooth functions of a flat vector.

Which to use: `minimise` yields a `Step` after every iteration, so that the caller watches, stops
and shows progress. torch's own optimiser hides the line search and the reason why it stopped.
Reference: Nocedal and Wright (2006), "Numerical Optimization", algorithms 7.4 and 3.5.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Step", "minimise"]

Objective = Callable[[Tensor], tuple[float, Tensor]]


@dataclass(frozen=True, slots=True)
class Step:
    """Where an iteration ended: the point, its loss, its gradient, and evaluations so far.

    stuck: whether the line search found no lower point, so that there is no next step.
    """

    x: Tensor
    loss: float
    gradient: Tensor
    evaluations: int
    stuck: bool = False


def minimise(objective: Objective, x: Tensor, *, memory: int = 20) -> Iterator[Step]:
    """Go downhill from x `[d]`, yielding the start and then every iteration's `Step`, without end.

    objective: x to loss and gradient `[d]`; a loss that is not finite counts as infinitely high.
    The last step has `stuck` set when rounding or a wall leaves no lower point in reach.

    >>> import torch
    >>> bowl = lambda x: (float(x.square().sum()), 2 * x)
    >>> steps = minimise(bowl, torch.ones(2, dtype=torch.float64))
    >>> [round(next(steps).loss, 9) for _ in range(3)]
    [2.0, 0.171572875, 0.0]
    """
    loss, gradient = objective(x)
    step = Step(x, loss, gradient, 1)
    yield step
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=memory)
    while not step.stuck:
        direction = _direction(step.gradient, pairs)
        if not bool((direction @ step.gradient) < 0):
            pairs.clear()
            direction = -step.gradient
        first = 1.0 if pairs else min(1.0, 1.0 / (float(step.gradient.norm()) + 1e-300))
        new = _search(objective, step, direction, first)
        if new.stuck and pairs:  # forget the curvature and try straight downhill, once
            pairs.clear()
            continue
        change, turn = new.x - step.x, new.gradient - step.gradient
        curvature = change @ turn
        if bool(curvature > 1e-10 * change.norm() * turn.norm()):
            pairs.append((change, turn, 1.0 / curvature))
        step = new
        yield step


def _direction(gradient: Tensor, pairs: "deque[tuple[Tensor, Tensor, Tensor]]") -> Tensor:
    """Multiply minus the gradient by the inverse Hessian that the last steps tell of."""
    direction, shares = -gradient, []
    for change, turn, inverse in reversed(pairs):
        share = inverse * (change @ direction)
        direction = direction - share * turn
        shares.append(share)
    if pairs:
        _, turn, inverse = pairs[-1]
        direction = direction / (inverse * (turn @ turn))
    for (change, turn, inverse), share in zip(pairs, reversed(shares), strict=True):
        direction = direction + (share - inverse * (turn @ direction)) * change
    return direction


def _search(objective: Objective, step: Step, direction: Tensor, length: float) -> Step:
    """Find a point that satisfies the weak Wolfe conditions by bisection and doubling."""
    slope = float(direction @ step.gradient)
    low, high, evaluations = 0.0, float("inf"), step.evaluations
    best: Step | None = None
    for _ in range(40):
        x = step.x + length * direction
        loss, gradient = objective(x)
        evaluations += 1
        if not loss <= step.loss + 1e-4 * length * slope:  # also where it is NaN
            high = length
        else:
            best = Step(x, loss, gradient, evaluations)
            if float(direction @ gradient) >= 0.9 * slope:
                return best
            low = length
        length = 2 * low if high == float("inf") else 0.5 * (low + high)
        if best is not None and evaluations - step.evaluations > 8:
            return best
    return Step(step.x, step.loss, step.gradient, evaluations, stuck=True)
