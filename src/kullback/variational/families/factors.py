"""Square roots of a Gaussian's covariance, as modules: a triangle, or a diagonal.

Which to use: `Lower` where coordinates depend on each other, `Diagonal` where they do not, or where
d² numbers are too many. Both begin at the identity and keep a positive diagonal.
"""

import torch
from torch import Tensor, nn

__all__ = ["Diagonal", "Lower"]


class Lower(nn.Module):
    """The factor L `[*batch, d, d]`: logs of the diagonal and what lies below it, packed.

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

    def outwards(self, noise: Tensor) -> Tensor:
        """Return L e for every row e of `[n, d]` or `[*batch, n, d]`."""
        matrix: Tensor = self()
        return noise @ matrix.mT

    def squares(self, u: Tensor, means: Tensor) -> Tensor:
        """Return `‖L⁻¹(u − mean)‖²`, u rows of `[n, d]`, means `[*batch, d]`: `[*batch, n]`."""
        whole = (u - means.unsqueeze(-2)).mT
        solved: Tensor = torch.linalg.solve_triangular(self(), whole, upper=False)
        return solved.square().sum(-2)

    def forward(self) -> Tensor:
        """Return the matrix, `[*batch, d, d]`."""
        matrix = torch.diag_embed(self.log_diagonal.exp())
        if matrix.ndim == 2:
            return matrix.index_put((self.rows, self.columns), self.below)
        which = torch.arange(len(matrix))[:, None]
        return matrix.index_put((which, self.rows, self.columns), self.below)


class Diagonal(nn.Module):
    """The factor diag(sd), `[*batch, d]` numbers.

    >>> Diagonal(2).outwards(torch.ones(1, 2, dtype=torch.float64))
    tensor([[1., 1.]], dtype=torch.float64, grad_fn=<MulBackward0>)
    """

    def __init__(self, dim: int, *, batch: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.log_diagonal = nn.Parameter(torch.zeros(*batch, dim, dtype=torch.float64))

    @torch.no_grad()
    def start_at(self, sd: Tensor) -> None:
        """Set the deviations, `[*batch, d]`."""
        self.log_diagonal.copy_(sd.log())

    def outwards(self, noise: Tensor) -> Tensor:
        """Return sd ∘ e for every row e of `[n, d]` or `[*batch, n, d]`."""
        return noise * self.log_diagonal.exp().unsqueeze(-2)

    def squares(self, u: Tensor, means: Tensor) -> Tensor:
        """Return `‖(u − mean)/sd‖²` for rows u of `[n, d]` and means `[*batch, d]`: `[*batch, n]`.

        Multiplied out, so that it costs two matrix products and no array of `[*batch, n, d]`.
        """
        weight = (-2 * self.log_diagonal).exp()
        shifted = weight * means
        whole = weight @ u.square().mT - 2 * (shifted @ u.mT)
        return whole + (shifted * means).sum(-1, keepdim=True)
