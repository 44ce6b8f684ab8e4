"""Two operations on Cholesky factors `[*batch, n, n]`, shared by the families that have one."""

import torch
from torch import Tensor

__all__ = ["log_diagonal", "solve_lower"]


def solve_lower(tril: Tensor, columns: Tensor) -> Tensor:
    """Return `L⁻¹ X` for lower triangular L `[*batch, n, n]` and X `[*batch, n, k]`."""
    solution: Tensor = torch.linalg.solve_triangular(tril, columns, upper=False)
    return solution


def log_diagonal(tril: Tensor) -> Tensor:
    """Return `log det L`, `[*batch]`."""
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
