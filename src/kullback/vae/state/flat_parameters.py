"""A model's parameters as one vector, which the model then shares.

`FlatParameters` holds them with their gradient and their running average, whole or, over several
processes, in slices. `trainable` returns the parameters in the order of the vector.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from kullback.core import processes, require

from ..networks import Mlp
from .reduced_backward import ReducedBackward

__all__ = ["FIGURES", "FlatParameters", "trainable"]

FIGURES = 5  # of a step, after the gradient: see `loop.SharedStep`


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters in the order of the flat vector: those that decay first."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return sorted(named, key=lambda pair: not _decays(pair[0], pair[1]))  # stable


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Say whether weight decay shrinks a parameter: matrices and filters, none of the prior's."""
    return parameter.ndim >= 2 and not name.startswith("prior.")


class FlatParameters:
    """All trainable parameters of a model, moved into one vector that the model then shares.

    vector: the weights, in float32 or float64, with `gradient` of the same shape; matrices and
    filters come first, so that weight decay can leave the rest and the prior alone. sums: the
    gradient and room for the figures of a step, which several processes sum at once. average: the
    running average of the weights, to evaluate with. With `precision` bfloat16 the model itself
    works on a rounded copy of the vector, renewed by `refresh`.

    over: processes over which the state is sharded. Vector, gradient and average are then one of
    equal slices of the whole, which is filled up with zeros to a multiple of their number. Only
    `working`, with which the model works, is whole in every process. Methods that say so are called
    by all. (Rajbhandari et al. 2020, "ZeRO", stage 2.)

    Example:
        >>> model = nn.Linear(2, 1)
        >>> flat = FlatParameters(model)
        >>> _ = flat.vector.fill_(1.0)
        >>> flat.refresh()
        >>> model.bias
        Parameter containing:
        tensor([1.], requires_grad=True)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: torch.dtype = torch.float32,
        over: processes.Processes | None = None,
    ) -> None:
        named = trainable(model)
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.over = processes.Processes() if over is None else over
        self.numbers = sum(parameter.numel() for parameter in self.parameters)
        whole = self.over.copy_first_(_padded(self.parameters, self.over.size))
        rounded = precision != torch.float32
        self.working = whole.to(precision) if rounded else whole
        own = self.over.share(len(whole))
        self.vector = whole[own] if self.sharded else whole
        if self.sharded and rounded:
            self.vector = self.vector.clone()  # so that the whole is free
        self.sums = self.vector.new_zeros(self.vector.numel() + FIGURES)
        self.gradient = self.sums[:-FIGURES]
        self.average = self.vector.clone()
        self.gathered: Tensor | None = None  # the average, whole, after `gather_average`
        self.squares: float | None = None
        matrices = sum(p.numel() for n, p in named if _decays(n, p))
        self.start = own.start
        self.matrices = min(max(matrices - own.start, 0), len(self.vector))
        self._point(self.working)
        if self.sharded:
            places = {name: k for k, (name, _) in enumerate(model.named_parameters())}
            made = [places[name] for name in self.names]
            self.reduced = ReducedBackward(self.parameters, made, self.gradient, self.over)
        _take_back_buffers(model)  # those of a state before
        if not self.sharded:
            self._lend_buffers(model)

    @property
    def sharded(self) -> bool:
        """Whether this process has a slice of the state only."""
        return self.over.size > 1

    @cached_property
    def rounded_gradient(self) -> Tensor:
        """The gradient as products write it: whole, also where this process keeps a slice of it."""
        plain = self.working is self.vector
        return self.gradient if plain else torch.zeros_like(self.working)

    @cached_property
    def rounded_views(self) -> list[Tensor]:
        """That gradient in the shapes of the parameters."""
        return self.views_of(self.rounded_gradient)

    def decay(self, share: float) -> None:
        """Shrink the matrices, and nothing else, by a share of themselves."""
        if share:
            self.vector[: self.matrices].mul_(1.0 - share)

    def differentiate(self, loss: Tensor) -> None:
        """Write the gradient of a scalar loss into `gradient`; if sharded, summed over all."""
        self.squares = None
        if self.sharded:
            self._require_all(self.reduced.run(loss))
            return
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self._require_all(gradients)
        for gradient, view in zip(gradients, self.rounded_views, strict=True):
            if gradient.data_ptr() != view.data_ptr():  # not written there to begin with
                view.copy_(gradient)
        self.unround_gradient()

    def _require_all(self, gradients: Sequence[Tensor | None]) -> None:
        """Refuse a parameter that a training step's loss does not depend on."""
        pairs = zip(self.names, gradients, strict=True)
        unused = [name for name, gradient in pairs if gradient is None]
        if unused:
            what = "parameters that the loss depends on, also in training mode and in every step"
            require(False, "parts", what, ", ".join(unused[:3]), "requires_grad_(False) on them")  # noqa: FBT003

    def unround_gradient(self) -> None:
        """Bring the gradient up to date after its rounded copy was written."""
        if self.rounded_gradient is not self.gradient and not self.sharded:
            self.gradient.copy_(self.rounded_gradient)

    def reduce_gradient(self) -> None:
        """Leave a sharded state's slice of the sum over all, of whole gradients; all call it."""
        if not self.sharded:
            return
        for rank, part in enumerate(torch.split(self.rounded_gradient, len(self.vector))):
            values = part.to(self.gradient.dtype)
            self.over.reduce_(values, rank)
            if rank == self.over.rank:
                self.gradient.copy_(values)

    def norms_of_slices(self, size: int) -> Tensor:
        """Return the norm of each of `size` slices of the gradient; zeros where it is elsewhere."""
        norms, length = self.gradient.new_zeros(size), -(-self.numbers // size)
        for rank in [self.over.rank] if self.sharded else range(size):
            low, high = (min(k * length, self.numbers) for k in (rank, rank + 1))
            norms[rank] = torch.linalg.vector_norm(
                self.gradient[low - self.start : high - self.start]
            )
        return norms

    def norm(self) -> Tensor:
        """Return the gradient's Euclidean norm."""
        if self.squares is not None:
            return torch.tensor(math.sqrt(self.squares))
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        return norm

    def refresh(self) -> None:
        """Bring the model's working copy up to date after the vector has changed; all call it."""
        if self.sharded:
            self.over.all_gather_(self.working, self.vector.to(self.working.dtype))
        elif self.working is not self.vector:
            self.working.copy_(self.vector)

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
            self._point(self.working)

    def release(self, model: nn.Module) -> None:
        """Leave the model with the averaged weights, on its own."""
        self._point(self.whole_average)
        _take_back_buffers(model)

    def first_bad(self) -> str:
        """Name the first parameter whose gradient is not finite, or return ""; all call it."""
        bad = torch.nonzero(~torch.isfinite(self.gradient))[:1, 0]
        firsts = torch.full((self.over.size,), 0)
        firsts[self.over.rank] = self.start + int(bad) if len(bad) else self.numbers
        first = int(self.over.sum_(firsts).min())
        ends = itertools.accumulate(parameter.numel() for parameter in self.parameters)
        return next((n for n, end in zip(self.names, ends, strict=True) if first < end), "")

    def slices(self, own: Tensor) -> Iterator[Tensor]:
        """Yield in the first process the whole of which `own` is a slice, in parts; all call it."""
        start = 0
        for part in self.over.collect(own):
            yield part[: max(0, self.numbers - start)]
            start += len(part)

    def gather_average(self, *, everywhere: bool = False) -> None:
        """Make the average whole in the first process, or in all; all call it."""
        if not self.sharded:
            return
        here = everywhere or self.over.first
        whole = self.average.new_empty(self.over.size * len(self.average) if here else 0)
        if everywhere:
            self.over.all_gather_(whole, self.average)
        else:
            for place, part in enumerate(self.over.collect(self.average)):
                whole[place * len(part) : (place + 1) * len(part)] = part
        self.gathered = whole

    @property
    def whole_average(self) -> Tensor:
        """The average; of a sharded state as `gather_average` found it."""
        if not self.sharded:
            return self.average
        if self.gathered is None:
            raise RuntimeError("the average is not gathered")
        return self.gathered[: self.numbers]

    def hand_out(self, own: Tensor, whole: Tensor | None) -> None:
        """Fill every process's slice from the whole that the first one has; all call it."""
        parts = () if whole is None else torch.split(whole, len(own))
        padded = (nn.functional.pad(part, (0, len(own) - len(part))) for part in parts)
        empty = itertools.repeat(own.new_zeros(len(own)), self.over.size - len(parts))
        self.over.hand_out(own, itertools.chain(padded, empty))

    def _lend_buffers(self, model: nn.Module) -> None:
        """Let each `Mlp` write its gradients where they belong, if the places are its alone."""
        place = {id(p): view for p, view in zip(self.parameters, self.rounded_views, strict=True)}
        nets = [module for module in model.modules() if isinstance(module, Mlp)]
        weights = [[id(p) for p in (*net.weights, *net.biases)] for net in nets]
        uses = Counter(one for every in weights for one in every)
        for net, every in zip(nets, weights, strict=True):
            if all(one in place and uses[one] == 1 for one in every):
                net.buffers_of_gradient = [place[one] for one in every]

    def views_of(self, vector: Tensor) -> list[Tensor]:
        """Return a vector of this size in the shapes of the parameters, sharing its memory."""
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = torch.split(vector[: self.numbers], sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def _point(self, vector: Tensor) -> None:
        for parameter, view in zip(self.parameters, self.views_of(vector), strict=True):
            parameter.data = view


def _take_back_buffers(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Mlp):
            module.buffers_of_gradient = None


def _padded(parameters: list[nn.Parameter], size: int) -> Tensor:
    """Return all in one vector, filled up with zeros to a multiple of some size."""
    values = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    return nn.functional.pad(values, (0, -len(values) % size)) if size > 1 else values
