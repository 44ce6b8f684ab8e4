"""An affine change of coordinates z = shift + scale · u, in which a target looks round.

Which to use: `Frame.diagonal(shift, sd)` or `Frame.dense(shift, factor)`. A family lives in the
coordinates u of its frame, so that one unit is about one standard deviation whatever the user's
units are: no learning rate has to be guessed, and a gradient is a distance in standard deviations.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.core import require
from kullback.core.checks import describe

__all__ = ["Frame"]


@dataclass(frozen=True, slots=True)
class Frame:
    """The map `z = shift + scale ∘ u` (scale `[d]`) or `z = shift + scale u` (`[d, d]`, lower).

    >>> frame = Frame.diagonal(torch.tensor([1.0]), torch.tensor([2.0]))
    >>> frame.outwards(torch.tensor([[3.0]])), frame.log_det
    (tensor([[7.]]), tensor(0.6931))
    """

    shift: Tensor
    scale: Tensor

    @classmethod
    def diagonal(cls, shift: Tensor, sd: Tensor) -> "Frame":
        """Make a frame from a centre `[d]` and positive deviations `[d]`."""
        same = shift.ndim == 1 and shift.shape == sd.shape
        require(same, "sd", f"{list(shift.shape)}, as the shift", describe(sd))
        return cls(shift, sd)

    @classmethod
    def dense(cls, shift: Tensor, factor: Tensor) -> "Frame":
        """Make a frame from a centre `[d]` and a lower-triangular factor `[d, d]`."""
        side = len(shift)
        require(factor.shape == (side, side), "factor", f"[{side}, {side}]", describe(factor))
        return cls(shift, factor)

    @classmethod
    def identity(cls, dim: int, *, dtype: torch.dtype = torch.float64) -> "Frame":
        """Make the frame that changes nothing."""
        return cls(torch.zeros(dim, dtype=dtype), torch.ones(dim, dtype=dtype))

    @property
    def is_dense(self) -> bool:
        """Whether the scale is a matrix."""
        return self.scale.ndim == 2

    @property
    def factor(self) -> Tensor:
        """The scale as a lower-triangular matrix `[d, d]`."""
        return self.scale if self.is_dense else torch.diag(self.scale)

    @property
    def sd(self) -> Tensor:
        """The deviation of every coordinate of z, u being N(0, I): `[d]`."""
        return self.scale.square().sum(1).sqrt() if self.is_dense else self.scale

    @property
    def log_det(self) -> Tensor:
        """`log |det scale|`, a scalar."""
        return (self.scale.diagonal() if self.is_dense else self.scale).log().sum()

    def outwards(self, u: Tensor) -> Tensor:
        """Map u to z, `[*batch, d]`."""
        if self.is_dense:
            return self.shift + u @ self.scale.mT
        return torch.addcmul(self.shift, self.scale, u)

    def inwards(self, z: Tensor) -> Tensor:
        """Map z to u, `[*batch, d]`."""
        if self.is_dense:
            whole = z.reshape(-1, len(self.shift)) - self.shift
            solved = torch.linalg.solve_triangular(self.scale, whole.mT, upper=False)
            u: Tensor = solved.mT.reshape(z.shape)
            return u
        return (z - self.shift) / self.scale

    def inside(self, other: "Frame") -> "Frame":
        """Return another frame as it looks from this one: `self.then(...)` undone."""
        shift = self.inwards(other.shift)
        if not (self.is_dense or other.is_dense):
            return Frame(shift, other.scale / self.scale)
        solved = torch.linalg.solve_triangular(self.factor, other.factor, upper=False)
        return Frame(shift, solved)

    def then(self, mean: Tensor, scale: Tensor) -> "Frame":
        """Return the frame that looks at `mean + scale · v` seen from this one.

        scale: `[d]` or lower-triangular `[d, d]`, as this one's own.
        """
        shift = self.outwards(mean)
        if scale.ndim == 1:
            return Frame(shift, self.scale * scale)
        return Frame(shift, self.scale @ scale if self.is_dense else self.scale[:, None] * scale)
