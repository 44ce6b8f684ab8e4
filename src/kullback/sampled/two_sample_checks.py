"""Rounded and discrete columns: which grid their values lie on, and how to undo the rounding.

Adding uniform noise as wide as a value's own cell, the same cells in both samples, turns a
discrete law into a continuous one and changes no KL, Jensen-Shannon divergence or information:
each density is constant over a cell, so the ratios of the densities are those of the
probabilities (Theis, van den Oord and Bethge 2016, section 3.1).

Check that draws are what two-sample estimators need: finite, independent, of full rank.

`two_samples` and `paired_samples` refuse what is not, with the reason, and bring the rest to one
form: rounded columns dequantised (`grids`), constant and collinear columns left out, float64, and
whitened, so that no unit and no linear map of the columns changes an estimate.

Shared rows are found by counting. Two independent draws of p and q are equal with probability
`Σ p q ≤ √(Σp² Σq²)`, whatever the laws: more equal pairs across the samples than the equal pairs
within them allow mean that rows were copied. Rows copied with small noise show as nearest
distances far below the next ones, which independent draws do not have.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from kullback.core import require

from . import limits
from .error_bars import correlated_neighbours, monotone
from .nearest_neighbours import nearest

__all__ = [
    "Grid",
    "Samples",
    "covariance_of",
    "find_grid",
    "paired_samples",
    "tally",
    "two_samples",
    "whitened",
]

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
        rounding = limits.TIE_CHANCE_FACTOR * self.tie * len(values) ** 2
        most = rounding + limits.TIE_STANDARD_DEVIATIONS * math.sqrt(rounding)
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
        if (distinct[-1] - distinct[0]) / step * limits.MIN_GRID_SHARE <= len(distinct):
            return equal
    codes = len(distinct) * limits.MIN_DRAWS_PER_CODE <= len(values)
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
        if allowed < limits.MAX_GRID_TOLERANCE and float(off) <= allowed:
            return step if math.isfinite(step) else 0.0
    return 0.0


_DRAW = "draw x and y independently, or drop the shared rows from one of them"
_COPIES = "drop the copies (a bootstrap sample, or oversampling, repeats rows)"
_ATOMS = "method='classifier' for a law that is part atoms, part density"
_NEAR = (
    "drop rows copied with small noise; thin a chain; take coordinates along the curve or surface "
    "where all points lie on one of fewer dimensions"
)
_UNDONE = "uniform noise of one step added"


@dataclass(frozen=True)
class Samples:
    """Two samples `[*batch, n, d]` and `[*batch, m, e]` in float64, and what was done to them.

    chain: why their rows seem not to be independent, in words; empty where they do not.
    """

    x: Tensor
    y: Tensor
    notes: tuple[str, ...] = ()
    chain: str = ""


def two_samples(x: Tensor, y: Tensor, generator: Generator, *, continuous: bool = True) -> Samples:
    """Return x ~ p and y ~ q checked and whitened by the mean of their covariances.

    continuous: a density is needed, so rounding is undone and atoms are refused (neighbours); a
    classifier needs none.
    """
    found = _each(x, y, lambda a, b: _two(a, b, generator, continuous=continuous))
    return replace(found, chain=_in_a_chain(x, "x") or _in_a_chain(y, "y"))


def paired_samples(
    x: Tensor, y: Tensor, generator: Generator, *, continuous: bool = True
) -> Samples:
    """Return pairs (x_i, y_i) checked, x and y whitened each by its own covariance."""
    found = _each(x, y, lambda a, b: _paired(a, b, generator, continuous=continuous))
    # where one of both alone is a chain, the pairs are as good as drawn
    return replace(found, chain=_in_a_chain(x, "x") and _in_a_chain(y, "y"))


def _in_a_chain(points: Tensor, name: str) -> str:
    """Say which column of a sample `[*batch, n, d]` has neighbouring rows that are alike."""
    columns = points.detach().double().movedim(-2, -1)  # [*batch, d, n]
    spread = (columns - columns.median(-1, keepdim=True).values).abs()
    ordered = monotone(columns).any(-1)  # rows sorted by a column
    alike, size = correlated_neighbours(torch.stack([columns, spread]))
    alike = alike & ~ordered[..., None]
    if not bool(alike.any()):
        return ""
    most = float(torch.where(alike, size, 0.0).max())
    return (
        f"neighbouring rows of {name} are alike (correlation {most:.2f}), as the states of a chain "
        "are: thin it; shuffle rows that are independent and stand in an order of their own"
    )


def _each(x: Tensor, y: Tensor, prepared: Callable[[Tensor, Tensor], Samples]) -> Samples:
    """Prepare every element of a batch; all must keep the same columns."""
    for name, points in (("x", x), ("y", y)):
        _finite(points.reshape(-1, points.shape[-1]), name)
    batch = x.shape[:-2]
    pairs = zip(x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:]), strict=True)
    found = [prepared(a, b) for a, b in pairs]
    same = len({(each.x.shape, each.y.shape) for each in found}) == 1
    require(same, "x", "the same constant columns all over a batch", "others", "pass each alone")
    notes = dict.fromkeys(note for each in found for note in each.notes)
    a, b = (torch.stack([getattr(each, name) for each in found]) for name in ("x", "y"))
    return Samples(a.reshape(*batch, *a.shape[1:]), b.reshape(*batch, *b.shape[1:]), tuple(notes))


def _two(x: Tensor, y: Tensor, generator: Generator, *, continuous: bool) -> Samples:
    n, both = len(x), torch.cat([x, y]).double()
    resolution = max(torch.finfo(z.dtype).eps for z in (x, y))
    columns: list[Tensor] = []
    notes: list[str] = []
    tie = 1.0
    for j, column in enumerate(both.T):
        parts = {f"x, column {j}": column[:n], f"y, column {j}": column[n:]}
        if _constant(column):
            notes.append(f"column {j} is constant and left out")
            continue
        for name, part in parts.items():
            hint = "leave the column out: from one value to a density KL is infinite"
            require(not _constant(part), name, "values that vary", f"only {part[0]:g}", hint)
        grid = find_grid(column, resolution) if _repeated(column[:, None]) else None
        tie *= grid.tie if grid else 0.0
        if _repeated(column[:, None]):
            _independent(column[:, None], n, grid.tie if grid else 0.0, f"values of column {j}")
            if continuous:
                _explained(column, grid, f"x and y, column {j}")
        if continuous and grid:
            notes.append(f"column {j}: {grid.name}, {_UNDONE}")
            column = grid.dequantised(generator)
        columns.append(column)
    require(bool(columns), "x", "a column that varies", "constants only")
    _independent(both, n, tie, "rows")
    for name, rows in (("x", both[:n]), ("y", both[n:])):
        _distinct(rows, name, tie)
    _different(both, n)
    whole, more = _same_subspace(torch.stack(columns, -1), n)
    if not _repeated(whole):
        _near_duplicates(whole[:n], whole[n:], whole.shape[-1] if continuous else 1)
    return Samples(whole[:n], whole[n:], (*notes, *more))


def _paired(x: Tensor, y: Tensor, generator: Generator, *, continuous: bool) -> Samples:
    whole: list[Tensor] = []
    notes: list[str] = []
    tie = 1.0
    for name, points in (("x", x), ("y", y)):
        columns: list[Tensor] = []
        dtype = points.dtype
        for j, column in enumerate(points.double().T):
            if _constant(column):
                notes.append(f"column {j} of {name} is constant and left out")
                continue
            repeats = _repeated(column[:, None])
            grid = find_grid(column, torch.finfo(dtype).eps) if repeats else None
            tie *= grid.tie if grid else 0.0
            if continuous and repeats:
                _explained(column, grid, f"{name}, column {j}")
            if continuous and grid:
                notes.append(f"column {j} of {name}: {grid.name}, {_UNDONE}")
                column = grid.dequantised(generator)
            columns.append(column)
        require(bool(columns), name, "a column that varies", "constants only: information 0")
        rotated = whitened(torch.stack(columns, -1))
        if rotated.shape[-1] < len(columns):
            notes.append(_collinear(name, rotated.shape[-1], len(columns)))
        whole.append(rotated)
    _distinct(torch.cat([x.double(), y.double()], -1), "pairs", tie)
    joint = torch.cat(whole, -1)
    fixed = whitened(joint).shape[-1] < joint.shape[-1]
    require(not fixed, "y", "no linear function of x", "one: the information is infinite")
    if not _repeated(joint):
        dimensions = joint.shape[-1] if continuous else 1
        _refuse_near(_near_within(joint), dimensions, "pairs", "other pairs")
    return Samples(whole[0], whole[1], tuple(notes))


def _finite(points: Tensor, name: str) -> None:
    bad = ~points.isfinite().all(-1)
    first = int(bad.nonzero()[0, 0]) if bool(bad.any()) else 0
    got = f"{int(bad.sum())} of {len(points)} with NaN or infinity (the first is row {first})"
    require(not bool(bad.any()), name, "finite rows", got, "drop or impute them, and say so")


def _constant(column: Tensor) -> bool:
    return bool((column == column[0]).all())


def _repeated(rows: Tensor) -> int:
    return len(rows) - len(tally(rows)[0])


def _counts(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return how often each distinct row is among the first n and among the others."""
    distinct, which, _ = tally(rows)
    groups = len(distinct)
    first, second = (torch.bincount(part, minlength=groups) for part in (which[:n], which[n:]))
    return first.double(), second.double()


def _independent(rows: Tensor, n: int, tie: float, what: str) -> None:
    """Refuse more rows shared by the samples than independent draws of any law share.

    tie: the chance that rounding makes two draws equal, 0 where nothing was rounded.
    """
    in_x, in_y = _counts(rows, n)
    across = float((in_x * in_y).sum())
    allowed, deviations = 1.0, limits.TIE_STANDARD_DEVIATIONS
    for counts in (in_x, in_y):
        pairs = float((counts * (counts - 1)).sum() / 2)
        rounding = limits.TIE_CHANCE_FACTOR * tie * float(counts.sum()) ** 2
        allowed *= pairs + deviations * math.sqrt(pairs) + min(deviations, rounding)
    most = 2 * math.sqrt(allowed)
    lawful = across <= most + deviations * math.sqrt(most)
    got = f"samples that share {int(in_x[in_y > 0].sum())} of the {n} {what} of x"
    require(lawful, "x, y", "samples drawn independently", got, _DRAW)


def _explained(column: Tensor, grid: Grid | None, name: str) -> None:
    """Refuse a column with repeated values that no rounding explains."""
    lawful = grid is not None and grid.explains(column)
    got = f"{_repeated(column[:, None])} of {len(column)} values that repeat others, on no grid"
    require(lawful, name, "distinct values, or values on a grid", got, f"{_COPIES}; {_ATOMS}")


def _distinct(rows: Tensor, name: str, tie: float) -> None:
    """Refuse rows that were copied: all a multiple of times, or more than rounding explains.

    tie: the chance that rounding makes two draws equal. A few values drawn often are atoms.
    """
    counts = tally(rows)[2]
    repeated = counts[counts > 1]
    if len(repeated) <= limits.MAX_ATOMS:
        return
    multiple = math.gcd(*counts.tolist()) > 1
    lawful = len(repeated) <= limits.TIE_CHANCE_FACTOR * tie * len(rows) ** 2
    copied = multiple or (not lawful and float(repeated.double().mean()) < 3)
    got = f"{_repeated(rows)} of {len(rows)} that repeat others"
    require(not copied, name, "rows drawn independently", got, _COPIES)


def _different(rows: Tensor, n: int) -> None:
    """Refuse two discrete samples with the same counts: independent ones have a chance below 1e-6.

    The difference of two counts is 0 with probability about `1/√(2π (c_x + c_y))`.
    """
    in_x, in_y = _counts(rows, n)
    both = (in_x + in_y)[1:]
    chance = -0.5 * float((2 * math.pi * both).log().sum())
    same = torch.equal(in_x, in_y) and chance < math.log(limits.EQUAL_COUNTS_CHANCE)
    got = "the same values the same number of times"
    require(not same, "x, y", "samples drawn independently", got, _DRAW)


def covariance_of(points: Tensor) -> Tensor:
    """Return the covariance `[d, d]` of points `[n, d]`.

    >>> covariance_of(torch.tensor([[0.0], [2.0]])).tolist()
    [[2.0]]
    """
    return points.T.cov().reshape(points.shape[-1], -1)


def whitened(
    points: Tensor, covariance: Tensor | None = None, like: Tensor | None = None
) -> Tensor:
    """Return the points in the directions that have spread, each of unit variance.

    covariance: `[d, d]`, of what is to have unit variance; of the points where None.
    like: `[k, d]`, the points whose mean becomes 0 and whose scale decides what has no spread; the
    points themselves where None.

    >>> points = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    >>> list(whitened(points).shape)
    [3, 1]
    """
    like = points if like is None else like
    scale = like.std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    points = (points - like.mean(0)) / scale
    if covariance is None:
        covariance = covariance_of(points)
    else:
        covariance = covariance / torch.outer(scale, scale)
    size, directions = torch.linalg.eigh(covariance)
    kept = size > limits.MIN_RELATIVE_EIGENVALUE * size[-1]
    rotated: Tensor = points @ directions[:, kept] / size[kept].sqrt()
    return rotated


def _same_subspace(points: Tensor, n: int) -> tuple[Tensor, tuple[str, ...]]:
    """Whiten two samples by the mean of their covariances, in the subspace that both fill."""
    d = points.shape[-1]
    few = min(n, len(points) - n)
    require(few > d + 1, "x, y", f"more draws than {d + 1}, for {d} columns", few)
    within = 0.5 * (covariance_of(points[:n]) + covariance_of(points[n:]))
    ranks = [whitened(z).shape[-1] for z in (points, points[:n], points[n:])]
    got = f"samples that fill {ranks[1]} and {ranks[2]} of {ranks[0]} dimensions"
    hint = (
        "on different subspaces KL is infinite; leave out the columns that are functions of others"
    )
    require(len(set(ranks)) == 1, "x, y", "samples that fill one subspace", got, hint)
    notes = (_collinear("x and y", ranks[0], d),) if ranks[0] < d else ()
    return whitened(points, within), notes


def _collinear(name: str, rank: int, columns: int) -> str:
    return f"{name} fill {rank} of {columns} dimensions: {columns - rank} collinear left out"


def _near_duplicates(x: Tensor, y: Tensor, dimensions: int) -> None:
    """Refuse rows copied with small noise, across the samples or within one.

    dimensions: at least how many the points fill; 1 where they may lie on curves.
    A nearest row of y is close when it is far nearer than the next row of its own sample is to
    either of the two.
    """
    own, others = (nearest(z, z, 2)[0][:, 1] for z in (x, y))
    across, rows = (found[:, 0] for found in nearest(x, y, 1))
    _refuse_near(across / torch.minimum(own, others[rows]), dimensions, "x, y", "rows of y")
    for name, points in (("x", x), ("y", y)):
        _refuse_near(_near_within(points), dimensions, name, f"other rows of {name}")


def _near_within(points: Tensor) -> Tensor:
    """Return each point's distance to the nearest other over that to the next."""
    distances = nearest(points, points, 3)[0]
    return distances[:, 1] / distances[:, 2]


def _refuse_near(ratio: Tensor, dimensions: int, name: str, what: str) -> None:
    for near in limits.NEAR_DUPLICATE_DISTANCES:
        lawful = len(ratio) * near**dimensions
        most = lawful + limits.NEAR_DUPLICATE_DEVIATIONS * math.sqrt(lawful)
        most += limits.NEAR_DUPLICATE_EXTRA
        found = int((ratio < near).sum())
        got = f"{found} of {len(ratio)} nearer to {what} than {dimensions}-dimensional draws"
        require(found <= most, name, "rows drawn independently", got, _NEAR)
