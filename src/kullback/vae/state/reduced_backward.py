"""Gradients summed at their owners in the backward pass (ZeRO stage 2, FSDP's SHARD_GRAD_OP)."""

import bisect
import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kullback.core import processes

from ..limits import BUCKET_NUMBERS

__all__ = ["ReducedBackward"]


class ReducedBackward:
    """Leaves in each process its slice of the sum over all of a gradient that none holds whole.

    A bucket is a range of consecutive numbers of the flat vector that one process owns. Once each
    of its parameters has a gradient, it is summed at the owner and freed. All processes sum the
    buckets in the same order, whatever the order in which gradients come: that in which the first
    process had them complete in the first pass (in which modules made last are first). A bucket
    that is complete before its turn waits. So does PyTorch's DDP (Li et al. 2020, section 4.2).

    Args:
        parameters: In the order of the flat vector, which model and gradient share.
        made: The place of each in the order in which the model registered them.
        gradient: This process's slice of it, which is written.
        group: The processes, all of which run it at once.
        numbers: Of the largest bucket.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        made: Sequence[int],
        gradient: Tensor,
        group: processes.Processes,
        numbers: int = BUCKET_NUMBERS,
    ) -> None:
        self.parameters, self.gradient, self.group = parameters, gradient, group
        sizes = [parameter.numel() for parameter in parameters]
        self.starts = [0, *itertools.accumulate(sizes)]
        length, end = len(gradient), self.starts[-1]
        edges = {*range(0, end, length), end}
        edges |= {at + k for at in range(0, end, length) for k in range(0, length, numbers)}
        self.edges = sorted(edge for edge in edges if edge <= end)
        self.whole = [0] * (len(self.edges) - 1)  # parameters in each bucket
        earliest = [len(made)] * len(self.whole)
        for place, registered in enumerate(made):
            for bucket in self._buckets_of(place):
                self.whole[bucket] += 1
                earliest[bucket] = min(earliest[bucket], registered)
        self.turns = sorted(range(len(self.whole)), key=lambda bucket: -earliest[bucket])
        self.known = False  # whether turns are those of a pass
        self.missing: list[int] = []
        self.complete: list[int] = []
        self.next = 0
        self.rooms: dict[int, Tensor] = {}

    def run(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate a scalar loss by the parameters; None stands for those without a part."""
        self.missing, self.complete, self.next = list(self.whole), [], 0
        self.rooms.clear()
        hooks = [
            parameter.register_hook(partial(self._arrived, place))  # type: ignore[no-untyped-call]
            for place, parameter in enumerate(self.parameters)
        ]
        try:
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        if not self.known:
            self.turns, self.known = self.group.told(self.complete), True
        return found

    def _buckets_of(self, place: int) -> range:
        """Return the buckets in which a parameter has numbers."""
        start, end = self.starts[place], self.starts[place + 1]
        first = bisect.bisect_right(self.edges, start) - 1
        return range(first, first if start == end else bisect.bisect_left(self.edges, end))

    def _arrived(self, place: int, gradient: Tensor) -> Tensor:
        """Put a parameter's gradient into its buckets and sum what is complete.

        Returns a zero that stands for it, so that autograd keeps no gradient.
        """
        start, end = self.starts[place], self.starts[place + 1]
        for bucket in self._buckets_of(place):
            low, high = self.edges[bucket], self.edges[bucket + 1]
            a, b = max(low, start), min(high, end)
            if bucket not in self.rooms:  # the gradient itself may be another tensor's too
                self.rooms[bucket] = self.gradient.new_zeros(high - low)
            self.rooms[bucket][a - low : b - low] = _part_of(gradient, a - start, b - start)
            self.missing[bucket] -= 1
            if self.missing[bucket] == 0:
                self.complete.append(bucket)
            self._sum_complete()
        return gradient.new_zeros(()).expand_as(gradient)

    def _sum_complete(self) -> None:
        """Sum the buckets whose turn it is and that are complete."""
        while self.next < len(self.turns) and self.missing[self.turns[self.next]] == 0:
            bucket = self.turns[self.next]
            room, low = self.rooms.pop(bucket), self.edges[bucket]
            owner, place = divmod(low, len(self.gradient))
            self.group.reduce_(room, owner)
            if owner == self.group.rank:
                self.gradient[place : place + len(room)] = room
            self.next += 1


def _part_of(tensor: Tensor, start: int, end: int) -> Tensor:
    """Return a range of a tensor's numbers, of a transposed one without a copy of the whole."""
    if tensor.ndim < 2 or tensor.is_contiguous():
        return tensor.reshape(-1)[start:end]
    width = tensor.numel() // len(tensor)
    first, last = start // width, -(-end // width)
    return tensor[first:last].reshape(-1)[start - first * width : end - first * width]
