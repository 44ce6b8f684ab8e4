"""A lower-triangular matrix with a positive diagonal, as a module with packed parameters."""

import torch
from torch import Tensor, nn

__all__ = ["Lower"]


class Lower(nn.Module):
    """The factor L `[*batch, d, d]`: logs of the diagonal and what lies below it; it starts at I.

    >>> Lower(2)()
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64, grad_fn=<IndexPutBackward0>)
    """

    def __init__(self, dim: int, *, batch: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.rows, self.columns = torch.tril_indices(dim, dim, -1)
        self.log_diagonal = nn.Parameter(torch.zeros(*batch, dim, dtype=torch.float64))
        self.below = nn.Parameter(torch.zeros(*batch, len(self.rows), dtype=torch.float64))

    @torch.no_grad()
    def start_at(self, factor: Tensor) -> None:
        """Set the matrix to a given lower-triangular factor `[*batch, d, d]`."""
        self.log_diagonal.copy_(factor.diagonal(dim1=-2, dim2=-1).log())
        self.below.copy_(factor[..., self.rows, self.columns])

    def forward(self) -> Tensor:
        """Return the matrix, `[*batch, d, d]`."""
        matrix = torch.diag_embed(self.log_diagonal.exp())
        if matrix.ndim == 2:
            return matrix.index_put((self.rows, self.columns), self.below)
        which = torch.arange(len(matrix))[:, None]
        return matrix.index_put((which, self.rows, self.columns), self.below)
