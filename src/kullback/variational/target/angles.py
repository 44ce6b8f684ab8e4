"""Angles of other programs' models: log p has period 2π in them, and they run over all reals.

As reals they are improper: a von Mises prior of Pyro or PyMC has the same mass in every turn. Here
an angle gets one turn, θ = location + 2π (sigmoid(z) − ½), wrapped to [−π, π) as the prior's own
samples are. The turn is cut opposite to the location, where the prior is least.

Which to use: `is_angle` and `Turn` for a distribution of Pyro, `in_one_turn` for a PyMC model.
NumPyro gives its angles the interval from −π to π itself.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn.functional import logsigmoid

from kullback.core import import_extra
from kullback.variational import limits

__all__ = ["Turn", "in_one_turn", "is_angle"]

TURN = 2 * math.pi


class Turn(Transform):
    """Reals to angles in [−π, π), through one turn around a location; by entries."""

    domain = constraints.real
    codomain = constraints.interval(-math.pi, math.pi)  # type: ignore[no-untyped-call]
    bijective = True

    def __init__(self, location: Tensor | float = 0.0) -> None:
        super().__init__()
        self.location = location

    @classmethod
    def around(cls, law: Any) -> "Turn":
        """Return the turn around a distribution's mean; around 0 where it has none."""
        try:
            return cls(law.mean)
        except (AttributeError, NotImplementedError):
            return cls()

    def _call(self, x: Tensor) -> Tensor:
        return _wrapped(self.location + TURN * (x.sigmoid() - 0.5))

    def _inverse(self, y: Tensor) -> Tensor:
        share = torch.as_tensor(y - self.location + math.pi).remainder(TURN) / TURN
        return share.logit(eps=torch.finfo(share.dtype).eps)

    def log_abs_det_jacobian(self, x: Tensor, _: Tensor) -> Tensor:
        """Return log |dθ/dz| of every entry."""
        return math.log(TURN) + logsigmoid(x) + logsigmoid(-x)


def _wrapped(angle: Tensor) -> Tensor:
    return (angle + math.pi).remainder(TURN) - math.pi


def is_angle(law: Any, value: Tensor) -> bool:
    """Say whether a distribution over reals has period 2π in every entry, tried at a value.

    >>> from torch.distributions import Normal, VonMises
    >>> at = torch.tensor(0.5, dtype=torch.float64)
    >>> is_angle(VonMises(at, at), at + 1), is_angle(Normal(at, at), at + 1)
    (True, False)
    """
    support = law.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is not constraints.real:
        return False
    with torch.no_grad():
        here, next_turn, between = (law.log_prob(value + step) for step in (0.0, TURN, 1.0))
    close = limits.SAME_TURN * (1 + here.abs())
    same = bool(((next_turn - here).abs() <= close).all())
    return same and bool(((between - here).abs() > close).any())  # not flat


@contextlib.contextmanager
def in_one_turn(model: Any) -> Iterator[None]:
    """Let a PyMC model's angles have one turn within a block; its own transform is the identity."""
    own = import_extra("pymc.distributions.transforms", "pymc").circular
    angles = [rv for rv, way in model.rvs_to_transforms.items() if way is own]
    model.rvs_to_transforms.update({rv: _turn_of_pytensor() for rv in angles})
    try:
        yield
    finally:
        model.rvs_to_transforms.update(dict.fromkeys(angles, own))


def _turn_of_pytensor() -> Any:
    """Return `Turn` around a distribution's first parameter, as a transform of PyMC."""
    tensor = import_extra("pytensor.tensor", "pymc")
    base = import_extra("pymc.logprob.transforms", "pymc").Transform

    class OneTurn(base):  # type: ignore[misc, valid-type]
        """The same in PyTensor; `inputs` are a generator, a size and the parameters."""

        name = "circular"

        def backward(self, value: Any, *inputs: Any) -> Any:
            """Return the angle of a real."""
            angle = inputs[2] + TURN * (tensor.sigmoid(value) - 0.5)
            return tensor.mod(angle + math.pi, TURN) - math.pi

        def forward(self, value: Any, *inputs: Any) -> Any:
            """Return the real of an angle."""
            share = tensor.mod(value - inputs[2] + math.pi, TURN) / TURN
            least = torch.finfo(torch.float64).eps
            share = tensor.clip(share, least, 1 - least)
            return tensor.log(share) - tensor.log1p(-share)

        def log_jac_det(self, value: Any, *_: Any) -> Any:
            """Return log |dθ/dz|."""
            return math.log(TURN) - tensor.softplus(value) - tensor.softplus(-value)

    return OneTurn()
