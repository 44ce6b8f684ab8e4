"""A model's parameters as one vector, which the model then shares.

`FlatParameters` holds them with their gradient and their running average, whole or, over several
processes, in slices.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn

from kullback.core import processes

from ..networks import Mlp
from .reduced_backward import ReducedBackward
from .weight_vector import WeightVector, decays

__all__ = ["FlatParameters"]


class FlatParameters(WeightVector):
    """All trainable parameters of a model, moved into one vector that the model then shares.

    With `precision` bfloat16 the model itself works on a rounded copy of the vector, renewed by
    `refresh`.

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
        super().__init__(model, processes.Processes() if over is None else over)
        whole = self.over.copy_first_(_padded(self.parameters, self.over.size))
        rounded = precision != torch.float32
        self.working = whole.to(precision) if rounded else whole
        own = self.over.share(len(whole))
        self.vector = whole[own] if self.sharded else whole
        if self.sharded and rounded:
            self.vector = self.vector.clone()  # so that the whole is free
        self._hold(self.vector)
        named = zip(self.names, self.parameters, strict=True)
        matrices = sum(p.numel() for n, p in named if decays(n, p))
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

    @cached_property
    def rounded_gradient(self) -> Tensor:
        """The gradient as products write it: whole, also where this process keeps a slice of it."""
        plain = self.working is self.vector
        return self.gradient if plain else torch.zeros_like(self.working)

    @cached_property
    def rounded_views(self) -> list[Tensor]:
        """That gradient in the shapes of the parameters."""
        return self.views_of(self.rounded_gradient)

    def differentiate(self, loss: Tensor) -> None:
        """Write the gradient of a scalar loss into `gradient`; if sharded, summed over all."""
        self.squares = None
        if self.sharded:
            self._require_all([one is not None for one in self.reduced.run(loss)])
            return
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self._require_all([one is not None for one in gradients])
        for gradient, view in zip(gradients, self.rounded_views, strict=True):
            if gradient.data_ptr() != view.data_ptr():  # not written there to begin with
                view.copy_(gradient)
        self.unround_gradient()

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

    def refresh(self) -> None:
        """Bring the model's working copy up to date after the vector has changed; all call it."""
        if self.sharded:
            self.over.all_gather_(self.working, self.vector.to(self.working.dtype))
        elif self.working is not self.vector:
            self.working.copy_(self.vector)

    def release(self, model: nn.Module) -> None:
        """Leave the model with the averaged weights, on its own."""
        self._point(self.whole_average)
        _take_back_buffers(model)

    def whole(self) -> AbstractContextManager[None]:
        """Let the model hold the weights of this step, which it does."""
        return nullcontext()

    def divide_gradient(self, size: int) -> None:
        """Make a sum over `size` processes a mean."""
        self.gradient.div_(size)

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

    def _point_back(self) -> None:
        self._point(self.working)


def _take_back_buffers(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Mlp):
            module.buffers_of_gradient = None


def _padded(parameters: list[nn.Parameter], size: int) -> Tensor:
    """Return all in one vector, filled up with zeros to a multiple of some size."""
    values = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    return nn.functional.pad(values, (0, -len(values) % size)) if size > 1 else values
