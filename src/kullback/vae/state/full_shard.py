"""Weights, gradients and optimiser state cut over processes (ZeRO stage 3, FSDP's FULL_SHARD).

`FullShard` hands a copy of a model to PyTorch's `fully_shard`, block by block.
"""

import copy
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kullback.core import ArgumentTypeError, message, processes, require

from ..networks import forward_blocks
from .weight_vector import WeightVector, decays, trainable

__all__ = ["FullShard", "require_shardable"]

Loss = Callable[[nn.Module], tuple[Tensor, Tensor]]


class FullShard(WeightVector):
    """The weights of a model cut over processes: each has rows of every parameter.

    vector: this process's rows of all parameters, of each an equal number, zeros where there are
    fewer. FSDP works on views of it and adds gradients to views of `gradient`, in a copy of the
    model, which shares buffers with it. The model itself holds no weights, except inside `averaged`
    and `whole` and after `release`. So the first process can evaluate alone.

    A block's weights are whole while its forward or its backward pass runs, those outside of blocks
    in the whole step. Reference: Zhao et al. (2023), "PyTorch FSDP"; Rajbhandari et al. (2020).

    Args:
        model: With `encoder` and `decoder`, on its device.
        precision: Of the matrix products; gradients are summed in float32.
        over: The processes, each of which makes one; a `torch.distributed` group of all is there.

    Raises:
        ArgumentValueError: As `require_shardable`.
        ArgumentTypeError: As `require_shardable`.
    """

    def __init__(
        self, model: nn.Module, *, precision: torch.dtype, over: processes.Processes
    ) -> None:
        super().__init__(model, over)
        require_shardable(model)
        for parameter in self.parameters:  # a user's may differ, and be in another order in memory
            parameter.data = over.copy_first_(parameter.detach().contiguous())
        self.rows = [-(-shape[0] // over.size) for shape in self.shapes]
        self.lengths = [n * math.prod(s[1:]) for n, s in zip(self.rows, self.shapes, strict=True)]
        named = zip(self.names, self.parameters, self.lengths, strict=True)
        self.matrices = sum(length for n, p, length in named if decays(n, p))
        self.used: list[bool] = []
        self.root = _sharded_copy(model, precision, over.size)
        self._hold(self.parameters[0].new_zeros(sum(self.lengths)))
        self._take_shards()
        self.average.copy_(self.vector)
        self._point_back()

    @torch.no_grad()
    def _take_shards(self) -> None:
        """Move FSDP's shards into the vector, and let it add gradients to views of `gradient`."""
        from torch.distributed.tensor import DTensor

        model = self.root.model
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                places.setdefault(id(parameter), []).append((module, name))
        shards = dict(model.named_parameters())
        ends = itertools.accumulate(self.lengths)
        every = zip(self.names, self.rows, self.lengths, ends, strict=True)
        for place, (name, rows, length, end) in enumerate(every):
            weights, slope = (one[end - length : end] for one in (self.vector, self.gradient))
            shard: Any = shards[name]
            local = shard.to_local()
            shape = (rows, *shard.shape[1:])
            weights.view(shape)[: len(local)] = local
            how = {"device_mesh": shard.device_mesh, "placements": shard.placements}
            how |= {"shape": shard.shape, "stride": shard.stride()}
            new: Any = nn.Parameter(DTensor.from_local(weights.view(shape), **how))
            new.grad = DTensor.from_local(slope.view(shape)[: len(local)], **how)
            new.register_post_accumulate_grad_hook(partial(self._arrived, place))
            for module, within in places[id(shard)]:
                setattr(module, within, new)

    def _arrived(self, place: int, _: Tensor) -> None:
        self.used[place] = True

    def differentiate(self, loss_of: Loss) -> tuple[Tensor, Tensor]:
        """Write this process's slice of the gradient's mean over all into `gradient`.

        Args:
            loss_of: The loss of this process's share of a batch and its figures, of a model.

        Returns:
            What loss_of does, without graphs.
        """
        self.squares = None
        self.gradient.zero_()
        self.used = [False] * len(self.names)
        with self.over.watched():
            loss, figures = self.root(loss_of)
            loss.backward()
        self._require_all(self.used)
        return loss.detach(), figures

    def refresh(self) -> None:
        """Do nothing: FSDP gathers what is in the vector."""

    def divide_gradient(self, size: int) -> None:
        """Do nothing: FSDP has made a mean of the sum."""

    def norms_of_slices(self, size: int) -> Tensor:
        """Return the norm of this process's slice in its place among zeros."""
        norms = self.gradient.new_zeros(size)
        norms[self.over.rank] = torch.linalg.vector_norm(self.gradient)
        return norms

    def first_bad(self) -> str:
        """Name the first parameter whose gradient is not finite, or return ""; all call it."""
        parts = torch.split(self.gradient, self.lengths)
        bad = (n for n, part in enumerate(parts) if not bool(torch.isfinite(part).all()))
        firsts = torch.full((self.over.size,), 0)
        firsts[self.over.rank] = next(bad, len(parts))
        first = int(self.over.sum_(firsts).min())
        return self.names[first] if first < len(parts) else ""

    def slices(self, own: Tensor) -> Iterator[Tensor]:
        """Yield in the first process the whole of which `own` is a slice, in parts; all call it."""
        for part, size in zip(torch.split(own, self.lengths), self.sizes, strict=True):
            left = size
            for rows in self.over.collect(part):
                yield rows[:left]
                left = max(0, left - len(rows))

    def hand_out(self, own: Tensor, whole: Tensor | None) -> None:
        """Fill every process's slice from the whole that the first one has; all call it."""
        wholes = itertools.repeat(None) if whole is None else torch.split(whole, self.sizes)
        for part, values in zip(torch.split(own, self.lengths), wholes, strict=False):
            room = part.new_zeros(self.over.size * len(part))
            if values is not None:
                room[: len(values)] = values
            self.over.hand_out(part, torch.split(room, len(part)))

    def gather_average(self, *, everywhere: bool = False) -> None:
        """Make the average whole in the first process, or in all; all call it."""
        if everywhere:
            self.gathered = self._gathered(self.average)
            return
        self.gathered = self.average.new_empty(self.numbers if self.over.first else 0)
        at = 0
        for part in self.slices(self.average):
            self.gathered[at : at + len(part)] = part
            at += len(part)

    def _gathered(self, own: Tensor) -> Tensor:
        """Return the whole of which `own` is a slice, in all processes."""
        whole = own.new_empty(self.numbers)
        parts = torch.split(own, self.lengths)
        for part, values in zip(parts, torch.split(whole, self.sizes), strict=True):
            room = part.repeat(self.over.size)
            self.over.all_gather_(room, part)
            values.copy_(room[: len(values)])
        return whole

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Let the model hold the weights of this step inside a `with` block; all call it."""
        self._point(self._gathered(self.vector))
        try:
            yield
        finally:
            self._point_back()

    def release(self, model: nn.Module) -> None:
        """Leave the model with the averaged weights, on its own."""
        self._point(self.whole_average)

    def _point_back(self) -> None:
        """Take the weights from the model."""
        for parameter in self.parameters:
            parameter.data = parameter.data.new_empty(0)


def require_shardable(model: nn.Module) -> None:
    """Refuse a model whose weights cannot be cut over processes.

    Raises:
        ArgumentValueError: A parameter is a single number, their dtypes differ, or this PyTorch has
            no `fully_shard`.
        ArgumentTypeError: A module cannot be copied.
    """
    there = importlib.util.find_spec("torch.distributed.fsdp._fully_shard") is not None
    require(there, "shard", "PyTorch with fully_shard", torch.__version__, "shard=True")
    named = trainable(model)
    single = ", ".join([name for name, one in named if one.ndim == 0][:3])
    hint = "shape [1], or shard=True"
    require(not single, "shard", "parameters with an axis to cut", f"{single}: one number", hint)
    kinds = {str(one.dtype).removeprefix("torch."): name for name, one in named}
    got = ", ".join(f"{name} in {kind}" for kind, name in kinds.items())
    require(len(kinds) == 1, "shard", "parameters of one dtype", got, "model.float()")
    _copied(model)


class _Root(nn.Module):
    """FSDP's root module: all weights are used within its forward pass."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss_of: Loss) -> tuple[Tensor, Tensor]:
        return loss_of(self.model)


def _sharded_copy(model: nn.Module, precision: torch.dtype, size: int) -> _Root:
    """Return a copy of a model whose parameters are FSDP's; buffers are those of the model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    copied, every = _copied(model), list(model.parameters())
    mesh = init_device_mesh(every[0].device.type, (size,))
    rounded = None if precision == torch.float32 else precision
    summed = None if rounded is None else torch.float32
    policy = MixedPrecisionPolicy(rounded, summed, cast_forward_inputs=False)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    frozen = {one for one in every if not one.requires_grad}
    if frozen:
        options["ignored_params"] = frozen
    for unit in _units(copied):
        unit.register_forward_hook(_without_views)
        fully_shard(unit, reshard_after_forward=True, **options)
    root = _Root(copied)
    fully_shard(root, reshard_after_forward=False, **options)
    return root


def _copied(model: nn.Module) -> Any:
    """Return a copy that shares parameters and buffers, also those that a module will replace."""
    try:
        copied = copy.deepcopy(model, {id(one): one for one in model.parameters()})
    except (TypeError, RuntimeError) as error:
        text = message("shard", "modules that copy.deepcopy can copy", str(error), "shard=True")
        raise ArgumentTypeError(text) from error
    for ours, theirs in zip(copied.modules(), model.modules(), strict=True):
        ours._buffers = theirs._buffers
    return copied


def _without_views(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
    """Copy what a module returns that is a view: changed in place, FSDP would miss its gradient."""
    if isinstance(outputs, Tensor):
        return outputs.clone() if outputs._is_view() else outputs
    return tuple(_without_views(_module, _inputs, one) for one in outputs)


def _units(model: Any) -> list[nn.Module]:
    """Return the modules that are sharded apart, inner ones first: no other uses their weights."""
    parts = (model.encoder, model.decoder)
    units = [unit for part in parts for unit in (*forward_blocks(part), part)]
    return [unit for unit in units if _is_apart(unit, model)]


def _is_apart(unit: nn.Module, model: nn.Module) -> bool:
    """Say whether a module has trained parameters, and no module outside of it has one of them."""
    inside = {id(module) for module in unit.modules()}
    owned = {id(one) for one in unit.parameters()}
    others = (module for module in model.modules() if id(module) not in inside)
    shared = any(id(one) in owned for module in others for one in module.parameters(recurse=False))
    return any(one.requires_grad for one in unit.parameters()) and not shared
