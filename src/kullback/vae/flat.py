"""A model's parameters as one flat vector: one optimiser update, one norm, one average."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["FlatParameters"]


class FlatParameters:
    """All trainable parameters of a model, moved into one vector that the model then shares.

    vector: an `nn.Parameter` with its gradient always allocated; changing it changes the model.
    average: the running average of the vector, the weights to evaluate with.

    >>> model = nn.Linear(2, 1)
    >>> flat = FlatParameters(model)
    >>> with torch.no_grad():
    ...     _ = flat.vector.fill_(1.0)
    >>> model.bias
    Parameter containing:
    tensor([1.], requires_grad=True)
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.names = [n for n, p in model.named_parameters() if p.requires_grad]
        vector = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        start = 0
        for parameter in self.parameters:
            view = vector[start : start + parameter.numel()]
            parameter.data = view.view_as(parameter)
            start += parameter.numel()
        self.vector = nn.Parameter(vector)
        self.vector.grad = torch.zeros_like(vector)
        self.average = vector.detach().clone()

    def differentiate(self, loss: Tensor) -> Tensor:
        """Write the gradient of a scalar loss into `vector.grad` and return its norm."""
        gradients = torch.autograd.grad(loss, self.parameters)
        gradient = self.vector.grad
        torch.cat([g.reshape(-1) for g in gradients], out=gradient)
        norm: Tensor = torch.linalg.vector_norm(gradient)
        return norm

    def update_average(self, weight: float) -> None:
        """Move the average towards the vector by a weight in (0, 1]."""
        self.average.lerp_(self.vector.detach(), weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold the averaged weights inside a `with` block."""
        kept = self.vector.detach().clone()
        self.vector.data.copy_(self.average)
        try:
            yield
        finally:
            self.vector.data.copy_(kept)

    def first_bad(self) -> str:
        """Name the first parameter whose gradient is not finite, or return an empty string."""
        start = 0
        for name, parameter in zip(self.names, self.parameters, strict=True):
            part = self.vector.grad[start : start + parameter.numel()]  # type: ignore[index]
            if not bool(torch.isfinite(part).all()):
                return name
            start += parameter.numel()
        return ""
