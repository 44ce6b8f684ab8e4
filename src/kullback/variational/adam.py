"""Adam's steps: about one step size an entry, whatever the scale of the gradient.

Which to use: `Adam`, where the curvature is not known. PyTorch's own, when first made, imports a
compiler, which costs two seconds of CPU.
Reference: Kingma and Ba (2015), "Adam: a method for stochastic optimization", algorithm 1.
"""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Adam"]

FAST, SLOW = 0.9, 0.99  # the memories, of gradients and of their squares


@dataclass
class Adam:
    """Running means of the gradient and of its square, for one tensor of any shape.

    >>> import torch
    >>> Adam().step(torch.tensor([3.0, -0.001]), 0.1)
    tensor([-0.1000,  0.1000])
    """

    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    count: int = 0

    def step(self, gradient: Tensor, rate: float) -> Tensor:
        """Return the step to add to what has this gradient, to go down."""
        self.count += 1
        self.first = FAST * self.first + (1 - FAST) * gradient
        self.second = SLOW * self.second + (1 - SLOW) * gradient.square()
        root = (self.second / (1 - SLOW**self.count)).sqrt() + 1e-12
        return -rate / (1 - FAST**self.count) * self.first / root
