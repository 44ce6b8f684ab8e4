"""Several searches that evaluate log p together: one call of the density serves them all.

A call of few points costs as much as one of hundreds, where the density is a recursion or solves an
equation. A search is written as a generator: it yields the points at which it wants log p and its
gradient, and is sent both. Which to use: `together` for several searches of one density, `alone`
for one, `first_true` where one answer is enough. `crossing` is a search that others consist of.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from kullback.variational import limits

__all__ = ["Score", "Search", "alone", "crossing", "first_true", "together", "within"]

Score = Callable[[Tensor], tuple[Tensor, Tensor]]  # z `[n, d]`: log p `[n]`, its gradient `[n, d]`
Result = TypeVar("Result")
Search = Generator[Tensor, tuple[Tensor, Tensor], Result]  # yields points, is sent their scores


def together(score: Score, searches: Sequence[Search[Result]]) -> list[Result]:
    """Run searches to their ends, with one call of `score` a round; return what each returns.

    >>> def climb(z):
    ...     for _ in range(2):
    ...         value, slope = yield z
    ...         z = z + slope
    ...     return float(z)
    >>> def bowl(z):
    ...     return -z.square().sum(1) / 4, -z / 2
    >>> together(bowl, [climb(torch.ones(1, 1)), climb(torch.ones(1, 1))])
    [0.25, 0.25]
    """
    results: dict[int, Result] = {}
    for results in _rounds(score, searches):  # noqa: B007
        pass
    return [results[k] for k in range(len(searches))]


def first_true(score: Score, searches: Sequence[Search[bool]]) -> int | None:
    """Return the index of the first search, in their order, that returns True; None if none does.

    The others end once it is known: this costs no more rounds than one after the other.
    """
    for results in _rounds(score, searches):
        for k in range(len(searches)):
            if results.get(k) is None:
                break  # still searching
            if results[k]:
                return k
    return None


def _rounds(score: Score, searches: Sequence[Search[Result]]) -> Iterator[dict[int, Result]]:
    """Yield the results so far after every call of the density, by index."""
    results: dict[int, Result] = {}
    asked: dict[int, Tensor] = {}

    def resume(k: int, answer: tuple[Tensor, Tensor] | None) -> None:
        try:
            asked[k] = next(searches[k]) if answer is None else searches[k].send(answer)
        except StopIteration as end:
            asked.pop(k, None)
            results[k] = end.value

    for k in range(len(searches)):
        resume(k, None)
    yield results
    while asked:
        which, sizes = [*asked], [len(points) for points in asked.values()]
        value, slope = score(torch.cat([*asked.values()]))
        parts = zip(which, torch.split(value, sizes), torch.split(slope, sizes), strict=True)
        for k, values, slopes in parts:
            resume(k, (values, slopes))
        yield results


def alone(score: Score, search: Search[Result]) -> Result:
    """Run one search to its end; return what it returns."""
    return together(score, [search])[0]


def crossing(
    asked: Callable[[Tensor], Tensor],
    rise: Callable[[Tensor, Tensor], Tensor],
    ends: tuple[Tensor, Tensor],
    tolerance: float,
) -> Search[Tensor]:
    """Find where a function comes to be above 0, within intervals `[*s]`; return the middles.

    asked: the points `[k n, d]` for places `[k, *s]`. rise: the function from places and slopes at
    their points `[k n, d]`. tolerance: of what is left of an interval, by the whole. Each round
    looks at the quarters of what is left, which need no smoothness, and on both sides close by the
    zero of its chord: a smooth function soon crosses 0 between.

    >>> def root(z, slope):
    ...     return slope - 2.0
    >>> ends = torch.zeros(1), torch.full((1,), 8.0)
    >>> search = crossing(lambda z: z.reshape(-1, 1), root, ends, 1e-6)
    >>> round(float(alone(lambda z: (z[:, 0], z), search)), 4)
    2.0
    """
    low, high = ends
    spacing = 2 * torch.finfo(low.dtype).eps
    enough = tolerance * (high - low)
    below, over = torch.full_like(low, -math.inf), torch.full_like(low, math.inf)
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=low.dtype).view(3, *low.ndim * [1])
    for _ in range(math.ceil(-math.log2(tolerance) / 2)):
        chord = (below / (below - over)).nan_to_num(0.5).clamp(0, 1)
        near = torch.stack([chord - limits.CHORD_MARGIN, chord + limits.CHORD_MARGIN]).clamp(0, 1)
        places = torch.lerp(low, high, torch.cat([quarters.expand(3, *low.shape), near]))
        _, slopes = yield asked(places)
        value = rise(places, slopes)
        above = value > 0
        first = torch.where(above, places, math.inf).min(0)
        over = torch.where(first.values < high, value.gather(0, first.indices[None])[0], over)
        high = first.values.minimum(high)
        last = torch.where(~above & (places < high), places, -math.inf).max(0)
        below = torch.where(last.values > low, value.gather(0, last.indices[None])[0], below)
        low = last.values.maximum(low)
        if bool((high - low <= enough.maximum(spacing * low.abs())).all()):
            break
    return (low + high) / 2


def within(search: Search[Result], centre: Tensor, moving: Tensor) -> Search[Result]:
    """Run a search of the coordinates `moving` `[k]`; the others stay at the centre `[d]`."""
    answer = None
    while True:
        try:
            z = next(search) if answer is None else search.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result
        whole = centre.repeat(len(z), 1)
        whole[:, moving] = z
        value, slope = yield whole
        answer = (value, slope[:, moving])
