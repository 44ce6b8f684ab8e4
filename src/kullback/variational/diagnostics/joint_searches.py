"""Several searches that evaluate log p together: one call of the density serves them all.

A call of few points costs as much as one of hundreds, where the density is a recursion or solves an
equation. A search is written as a generator: it yields the points at which it wants log p and its
gradient, and is sent both. Which to use: `together` for several searches of one density, `alone`
for one, `first_true` where one answer is enough.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Score", "Search", "alone", "first_true", "together", "within"]

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
