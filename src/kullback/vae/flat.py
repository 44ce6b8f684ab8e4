"""A model's parameters as one flat vector: one optimiser update, one norm, one average."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["FlatParameters"]


class FlatParameters:
    """All trainable parameters of a model, moved into one vector that the model then shares.

    Matrices and filters come first, then biases and the like, so that each part can have its own
    weight decay. vector: the weights, in float32 or float64, with a gradient of the same shape.
    average: their running average, the weights to evaluate with. With `precision` bfloat16 the
    model itself works on a rounded copy of the vector, renewed by `refresh`.

    >>> model = nn.Linear(2, 1)
    >>> flat = FlatParameters(model)
    >>> _ = flat.vector.fill_(1.0)
    >>> flat.refresh()
    >>> model.bias
    Parameter containing:
    tensor([1.], requires_grad=True)
    """

    def __init__(self, model: nn.Module, *, precision: torch.dtype = torch.float32) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        named.sort(key=lambda pair: pair[1].ndim < 2)  # stable: matrices first
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.vector = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.gradient = torch.zeros_like(self.vector)
        self.average = self.vector.clone()
        self.matrices = sum(p.numel() for p in self.parameters if p.ndim >= 2)
        rounded = precision != torch.float32
        self.working = self.vector.to(precision) if rounded else self.vector
        self._point(self.working)

    def groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Return the vector as optimiser groups: matrices, which decay, and the rest."""
        parts = [(0, self.matrices, weight_decay), (self.matrices, len(self.vector), 0.0)]
        groups: list[dict[str, object]] = []
        for start, end, decay in parts:
            if end > start:
                part = nn.Parameter(self.vector[start:end])
                part.grad = self.gradient[start:end]
                groups.append({"params": [part], "weight_decay": decay})
        return groups

    def differentiate(self, loss: Tensor) -> Tensor:
        """Write the gradient of a scalar loss into `gradient` and return its norm."""
        gradients = torch.autograd.grad(loss, self.parameters)
        flat = [g.reshape(-1) for g in gradients]
        if self.working.dtype == self.vector.dtype:
            torch.cat(flat, out=self.gradient)
        else:
            self.gradient.copy_(torch.cat(flat))
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        return norm

    def refresh(self) -> None:
        """Bring the model's working copy up to date after the vector has changed."""
        if self.working is not self.vector:
            self.working.copy_(self.vector)

    def update_average(self, weight: float) -> None:
        """Move the average towards the vector by a weight in (0, 1]."""
        self.average.lerp_(self.vector, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold the averaged weights, unrounded, inside a `with` block."""
        self._point(self.average)
        try:
            yield
        finally:
            self._point(self.working)

    def first_bad(self) -> str:
        """Name the first parameter whose gradient is not finite, or return an empty string."""
        for name, part in zip(self.names, self._views(self.gradient), strict=True):
            if not bool(torch.isfinite(part).all()):
                return name
        return ""

    def _views(self, vector: Tensor) -> list[Tensor]:
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = torch.split(vector, sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def _point(self, vector: Tensor) -> None:
        for parameter, view in zip(self.parameters, self._views(vector), strict=True):
            parameter.data = view
