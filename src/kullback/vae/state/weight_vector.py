"""What every form of a model's weights has, whole or in slices: one vector, gradient and average.

`WeightVector` is abstract, `FlatParameters` and `FullShard` are its forms. `trainable` returns the
parameters in the order of the vector.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from kullback.core import processes, require

__all__ = ["FIGURES", "WeightVector", "decays", "trainable"]

FIGURES = 5  # of a step, after the gradient: see `loop.SharedStep`


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters in the order of the flat vector: those that decay first."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return sorted(named, key=lambda pair: not decays(pair[0], pair[1]))  # stable


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Say whether weight decay shrinks a parameter: matrices and filters, none of the prior's."""
    return parameter.ndim >= 2 and not name.startswith("prior.")


class WeightVector(ABC):
    """All trainable parameters of a model as one vector, of which a process may have a part.

    vector: the weights, in float32 or float64, with `gradient` of the same shape; matrices and
    filters come first, so that weight decay can leave the rest and the prior alone. sums: the
    gradient and room for the figures of a step, which several processes sum at once. average: the
    running average of the weights, to evaluate with. numbers: how many weights the whole has.
    Methods that say so are called by all processes of `over`.
    """

    vector: Tensor
    sums: Tensor
    gradient: Tensor
    average: Tensor
    matrices: int  # at the beginning of the vector, which decay

    def __init__(self, model: nn.Module, over: processes.Processes) -> None:
        named = trainable(model)
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.shapes = [parameter.shape for parameter in self.parameters]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.numbers = sum(self.sizes)
        self.over = over
        self.gathered: Tensor | None = None  # the average, whole, after `gather_average`
        self.squares: float | None = None

    def _hold(self, vector: Tensor) -> None:
        """Take this process's weights, and make room for their gradient and average."""
        self.vector = vector
        self.sums = vector.new_zeros(vector.numel() + FIGURES)
        self.gradient = self.sums[:-FIGURES]
        self.average = vector.clone()

    @property
    def sharded(self) -> bool:
        """Whether this process has a slice of the state only."""
        return self.over.size > 1

    @property
    def whole_average(self) -> Tensor:
        """The average; of a sharded state as `gather_average` found it."""
        if not self.sharded:
            return self.average
        if self.gathered is None:
            raise RuntimeError("the average is not gathered")
        return self.gathered[: self.numbers]

    def decay(self, share: float) -> None:
        """Shrink the matrices, and nothing else, by a share of themselves."""
        if share:
            self.vector[: self.matrices].mul_(1.0 - share)

    def norm(self) -> Tensor:
        """Return the gradient's Euclidean norm."""
        if self.squares is not None:
            return torch.tensor(math.sqrt(self.squares))
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        return norm

    def update_average(self, weight: float) -> None:
        """Move the average towards the vector by a weight in (0, 1]."""
        self.average.lerp_(self.vector, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold the averaged weights, unrounded, inside a `with` block."""
        self._point(self.whole_average)
        try:
            yield
        finally:
            self._point_back()

    @abstractmethod
    def whole(self) -> AbstractContextManager[None]:
        """Let the model hold the weights of this step inside a `with` block; all call it."""

    @abstractmethod
    def release(self, model: nn.Module) -> None:
        """Leave the model with the averaged weights, on its own."""

    @abstractmethod
    def refresh(self) -> None:
        """Bring the model's working copy up to date after the vector has changed; all call it."""

    @abstractmethod
    def divide_gradient(self, size: int) -> None:
        """Make this process's slice of the gradient a mean over `size` processes."""

    @abstractmethod
    def norms_of_slices(self, size: int) -> Tensor:
        """Return the norm of each of `size` slices of the gradient; zeros where it is elsewhere."""

    @abstractmethod
    def first_bad(self) -> str:
        """Name the first parameter whose gradient is not finite, or return ""; all call it."""

    @abstractmethod
    def slices(self, own: Tensor) -> Iterator[Tensor]:
        """Yield in the first process the whole of which `own` is a slice, in parts; all call it.

        A part is overwritten when the next one is asked for.
        """

    @abstractmethod
    def gather_average(self, *, everywhere: bool = False) -> None:
        """Make the average whole in the first process, or in all; all call it."""

    @abstractmethod
    def hand_out(self, own: Tensor, whole: Tensor | None) -> None:
        """Fill every process's slice from the whole that the first one has; all call it."""

    @abstractmethod
    def _point_back(self) -> None:
        """Let the model hold again what it holds in a step."""

    def views_of(self, vector: Tensor) -> list[Tensor]:
        """Return a whole vector in the shapes of the parameters, sharing its memory."""
        parts = torch.split(vector[: self.numbers], self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _point(self, vector: Tensor) -> None:
        for parameter, view in zip(self.parameters, self.views_of(vector), strict=True):
            parameter.data = view

    def _require_all(self, used: Sequence[bool]) -> None:
        """Refuse a parameter that a training step's loss does not depend on."""
        unused = [name for name, one in zip(self.names, used, strict=True) if not one]
        if unused:
            what = "parameters that the loss depends on, also in training mode and in every step"
            require(False, "parts", what, ", ".join(unused[:3]), "requires_grad_(False) on them")  # noqa: FBT003
