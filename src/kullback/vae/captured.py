"""`CapturedSteps`: the kernels of a training step on a GPU, recorded once and replayed.

A step of a small network is some hundreds of kernels of a few microseconds each; a GPU waits for
Python between them. Replaying them as one CUDA graph leaves that out. The values are those of the
step itself: the same kernels in the same order.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CapturedSteps"]

Compute = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_WARM_UPS = 3  # calls before a recording: algorithms are chosen and workspaces made in them


@dataclass(frozen=True, slots=True)
class _Recording:
    """A CUDA graph, the tensors that it reads, and those that it writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    noise: Tensor
    loss: Tensor
    figures: Tensor


class CapturedSteps:
    """Calls a step's gradient, on a GPU by a recording of the call.

    A call is `compute(x, noise)`, which leaves a gradient in tensors that stay where they are and
    returns the loss and figures. It may depend on nothing else that changes between calls with the
    same key, and may not wait for the GPU. A call that cannot be recorded is made as it is.

    Example:
        >>> steps = CapturedSteps()
        >>> steps("elbo", lambda x, noise: (x.sum(), noise), torch.ones(2), torch.zeros(1))
        (tensor(2.), tensor([0.]))
    """

    def __init__(self) -> None:
        self.recordings: dict[Hashable, _Recording | None] = {}

    def __call__(
        self, key: Hashable, compute: Compute, x: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what compute does; the tensors are written again by the next call."""
        if not x.is_cuda:
            return compute(x, noise)
        key = (key, x.shape, x.dtype, noise.shape)
        if key not in self.recordings:
            self.recordings[key] = _recorded(compute, x, noise)
        known = self.recordings[key]
        if known is None:
            return compute(x, noise)
        known.x.copy_(x)
        known.noise.copy_(noise)
        known.graph.replay()
        return known.loss, known.figures


def _recorded(compute: Compute, x: Tensor, noise: Tensor) -> _Recording | None:
    """Return a recording of compute, or None where there can be none."""
    x, noise = x.clone(), noise.clone()
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            compute(x, noise)
    torch.cuda.current_stream().wait_stream(stream)
    try:
        with torch.cuda.graph(graph, stream=stream):
            loss, figures = compute(x, noise)
    except RuntimeError:  # it waits for the GPU, or memory for the recording is refused
        torch.cuda.synchronize()
        return None
    return _Recording(graph, x, noise, loss.detach(), figures)
