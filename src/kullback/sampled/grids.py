"""Rounded and discrete columns: which grid their values lie on, and how to undo the rounding.

Adding uniform noise as wide as a value's own cell, the same cells in both samples, turns a
discrete law into a continuous one and changes no KL, Jensen-Shannon divergence or information:
each density is constant over a cell, so the ratios of the densities are those of the
probabilities (Theis, van den Oord and Bethge 2016, section 3.1).
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from . import limits

__all__ = ["Grid", "find_grid", "tally"]

_FORMATS = (  # dtype, bits of its fraction, name
    (torch.bfloat16, 7, "bfloat16"),
    (torch.float16, 10, "float16"),
    (torch.float32, 23, "float32"),
    (torch.float64, 52, "float64"),
)


@dataclass(frozen=True)
class Grid:
    """Cells of one column: `values [n]` and the `width` of each value's cell, `[n]` or `[]`.

    tie: chance that two draws fall into one cell, were the law spread over a few deviations.
    rounded: ties beyond that chance are not rounding, but atoms or copies (floating-point formats).
    name: what the values are, for messages.
    """

    values: Tensor
    width: Tensor
    tie: float
    rounded: bool
    name: str

    def explains(self, values: Tensor) -> bool:
        """Say whether rounding explains how many of the values, `[n]`, are equal to another."""
        counts = tally(values)[2].double()
        rounding = limits.PEAKED * self.tie * len(values) ** 2
        most = rounding + limits.TIE_SDS * math.sqrt(rounding)
        return not self.rounded or float((counts * (counts - 1)).sum() / 2) <= most

    def dequantised(self, generator: Generator) -> Tensor:
        """Return the values plus uniform noise over each one's cell."""
        noise = torch.rand(
            self.values.shape, generator=generator, dtype=torch.float64, device=generator.device
        )
        return self.values + self.width * (noise.to(self.values.device) - 0.5)


def tally(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct rows (or numbers), which of them each one is, and their counts.

    >>> [z.tolist() for z in tally(torch.tensor([3.0, 1.0, 3.0]))]
    [[1.0, 3.0], [1, 0, 1], [1, 2]]
    """
    distinct, which, counts = rows.unique(  # type: ignore[no-untyped-call]
        dim=0, return_inverse=True, return_counts=True
    )
    return distinct, which, counts


def find_grid(values: Tensor, resolution: float) -> Grid | None:
    """Return the grid that a column with repeated values lies on, None where there is none.

    values: `[n]`, float64, both samples together. resolution: relative spacing of the dtype that
    they came in. Tried in turn: equal steps most of which were drawn, a floating-point format,
    equal steps, and codes of a few values drawn many times each.
    """
    distinct, which, _ = tally(values)
    step = _step(distinct, resolution)
    spread = float(values.std())
    equal = None
    if step:
        width = values.new_tensor(step)
        equal = Grid(
            values, width, min(1.0, step / spread), rounded=False, name=f"a grid of step {step:.6g}"
        )
        if (distinct[-1] - distinct[0]) / step * limits.DENSE_GRID <= len(distinct):
            return equal
    codes = len(distinct) * limits.DRAWS_PER_CODE <= len(values)
    rounded = None if codes else _format(values, spread)
    if rounded and (rounded.explains(values) or not equal):
        return rounded
    if equal:
        return equal
    if not codes:
        return None
    name = f"{len(distinct)} distinct values"
    return Grid(which.double(), values.new_tensor(1.0), 1.0, rounded=False, name=name)


def _format(values: Tensor, spread: float) -> Grid | None:
    """Return the spacing of the coarsest floating-point format that holds every value."""
    for dtype, bits, name in _FORMATS:
        if torch.equal(values.to(dtype).double(), values):
            smallest = float(torch.finfo(dtype).tiny)
            width = torch.exp2(values.abs().clamp_min(smallest).log2().floor() - bits)
            tie = min(1.0, float(width.mean()) / spread)
            return Grid(values, width, tie, rounded=True, name=f"rounded to {name}")
    return None


def _step(distinct: Tensor, resolution: float) -> float:
    """Return the step of an equally spaced grid that holds every value, 0 where there is none."""
    offsets = distinct - distinct[0]
    smallest = float(offsets.diff().min())
    rounding = 4 * resolution * float(distinct.abs().max())
    for parts in range(1, 11):
        step = smallest / parts
        sites = round(float(offsets[-1]) / step) if step > 0 else 0
        if not 0 < sites < 2**52:
            return 0.0
        step = float(offsets[-1]) / sites  # the ends are known better than the smallest gap
        off = (offsets / step - (offsets / step).round()).abs().max()
        allowed = rounding / step + 1e-6
        if allowed < 0.1 and float(off) <= allowed:
            return step if math.isfinite(step) else 0.0
    return 0.0
