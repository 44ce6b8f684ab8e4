"""A model's parameters as one flat vector: one optimiser update, one norm, one average."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kullback.vae.networks import Mlp

__all__ = ["FlatParameters"]


class FlatParameters:
    """All trainable parameters of a model, moved into one vector that the model then shares.

    vector: the weights, in float32 or float64, with `gradient` of the same shape; matrices and
    filters come first, so that weight decay can leave the rest alone. average: their running
    average, the weights to evaluate with. With `precision` bfloat16 the model itself works on a
    rounded copy of the vector, renewed by `refresh`.

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
        self.rounded_gradient = torch.zeros_like(self.working) if rounded else self.gradient
        self.rounded_views = self.views_of(self.rounded_gradient)
        self._lend_buffers(model)

    def decay(self, share: float) -> None:
        """Shrink the matrices, and nothing else, by a share of themselves."""
        if share:
            self.vector[: self.matrices].mul_(1.0 - share)

    def differentiate(self, loss: Tensor) -> None:
        """Write the gradient of a scalar loss into `gradient`."""
        gradients = torch.autograd.grad(loss, self.parameters)
        for gradient, view in zip(gradients, self.rounded_views, strict=True):
            if gradient.data_ptr() != view.data_ptr():  # not written there to begin with
                view.copy_(gradient)
        self.unround_gradient()

    def unround_gradient(self) -> None:
        """Bring the gradient up to date after its rounded copy was written."""
        if self.rounded_gradient is not self.gradient:
            self.gradient.copy_(self.rounded_gradient)

    def norm(self) -> Tensor:
        """Return the gradient's Euclidean norm."""
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

    def release(self, model: nn.Module) -> None:
        """Leave the model with the averaged weights, on its own."""
        self._point(self.average)
        for module in model.modules():
            if isinstance(module, Mlp):
                module.buffers_of_gradient = None

    def first_bad(self) -> str:
        """Name the first parameter whose gradient is not finite, or return an empty string."""
        for name, part in zip(self.names, self.views_of(self.gradient), strict=True):
            if not bool(torch.isfinite(part).all()):
                return name
        return ""

    def _lend_buffers(self, model: nn.Module) -> None:
        """Let each `Mlp` write its gradients where they belong."""
        place = {id(p): view for p, view in zip(self.parameters, self.rounded_views, strict=True)}
        for module in model.modules():
            if isinstance(module, Mlp):
                parameters = [*module.weights, *module.biases]
                module.buffers_of_gradient = [place[id(p)] for p in parameters]

    def views_of(self, vector: Tensor) -> list[Tensor]:
        """Return a vector of this size in the shapes of the parameters, sharing its memory."""
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = torch.split(vector, sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def _point(self, vector: Tensor) -> None:
        for parameter, view in zip(self.parameters, self.views_of(vector), strict=True):
            parameter.data = view
