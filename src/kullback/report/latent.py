"""The latent space as a plane: the two directions in which the codes of the data vary most.

Which to use: `codes` for q(z|x) of many images, `plane` for the directions, `nearest` for the map
of images on it, `traversal` for what the decoder makes of its points. Nothing is drawn here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.core import require
from kullback.vae import VAE

from .limits import LATENT_REACH, NO_VARIANCE

__all__ = ["Plane", "codes", "lattice", "nearest", "plane", "traversal"]

_VALUES = 1_000_000  # of images through a network at once


@dataclass(frozen=True, slots=True)
class Plane:
    """The plane of the two leading principal directions of the mean codes (one when latent is 1).

    origin `[latent]`: their mean. directions `[k, latent]`, k ≤ 2: orthonormal, each with its
    largest entry positive. deviation `[k]`: standard deviation of the codes along each. share
    `[k]`: of their total variance. places `[n, k]`: the codes, in standard deviations.
    """

    origin: Tensor
    directions: Tensor
    deviation: Tensor
    share: Tensor
    places: Tensor


@torch.no_grad()
def codes(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log standard deviation of q(z|x), `[n, latent]` each, a few images at once.

    >>> from kullback.vae import build
    >>> codes(build((4,), "binary"), torch.ones(3, 4))[0].shape
    torch.Size([3, 32])
    """
    parts = [model.encode(model.check(rows)) for rows in torch.split(x, _rows(x))]
    return torch.cat([mean for mean, _ in parts]), torch.cat([log_sd for _, log_sd in parts])


def plane(means: Tensor) -> Plane | None:
    """Find the plane of mean codes `[n, latent]`, n ≥ 2, by principal components in float64.

    None when the codes do not vary (a collapsed posterior): there is no direction to show.

    >>> found = plane(torch.tensor([[0.0, 3.0], [0.1, -3.0], [-0.1, 0.0]]))
    >>> found.directions[0].round().abs()
    tensor([0., 1.], dtype=torch.float64)
    """
    require(len(means) >= 2, "means", "at least 2 codes", len(means))
    values = means.detach().cpu().double()
    origin = values.mean(0)
    centred = values - origin
    variance, vectors = torch.linalg.eigh(centred.T @ centred / (len(values) - 1))
    kept = min(2, values.shape[1])
    variance, directions = variance.flip(0).clamp(min=0.0), vectors.flip(1).T[:kept]
    if not float(variance[0]) > NO_VARIANCE:
        return None
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    deviation = variance[:kept].sqrt().clamp(min=1e-6)
    places = centred @ directions.T / deviation
    return Plane(origin, directions, deviation, variance[:kept] / variance.sum(), places)


def lattice(columns: int, rows: int) -> Tensor:
    """Return the centres of a lattice over the map, `[rows·columns, 2]`, in standard deviations.

    Row by row from the top left; across is the first direction, up the second.

    >>> lattice(2, 1).tolist()
    [[-1.25, 0.0], [1.25, 0.0]]
    """
    across = (torch.arange(columns, dtype=torch.float64) + 0.5) * (2 * LATENT_REACH / columns) - LATENT_REACH
    up = LATENT_REACH - (torch.arange(rows, dtype=torch.float64) + 0.5) * (2 * LATENT_REACH / rows)
    return torch.stack([across.repeat(rows), up.repeat_interleave(columns)], 1)


def nearest(places: Tensor, *, columns: int, rows: int) -> Tensor:
    """Pick for every cell of the lattice the code nearest its centre among those inside the cell.

    places: `[n, k]` as in `Plane`. Returns indices `[rows·columns]`, −1 for an empty cell; no code
    is picked twice, so nothing overlaps.

    >>> nearest(torch.tensor([[-1.0, 0.0], [-1.2, 0.0]]), columns=2, rows=1).tolist()
    [1, -1]
    """
    across = places[:, 0].double()
    up = places[:, 1].double() if places.shape[1] > 1 else torch.zeros_like(across)
    column = torch.floor((across + LATENT_REACH) * (columns / (2 * LATENT_REACH))).long()
    row = torch.floor((LATENT_REACH - up) * (rows / (2 * LATENT_REACH))).long()
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    centres = lattice(columns, rows)
    picked = torch.full((rows * columns,), -1)
    best = [math.inf] * (rows * columns)
    for index in inside.nonzero().flatten().tolist():
        cell = int(row[index]) * columns + int(column[index])
        far = math.hypot(*(torch.stack([across[index], up[index]]) - centres[cell]).tolist())
        if far < best[cell]:
            best[cell], picked[cell] = far, index
    return picked


@torch.no_grad()
def traversal(model: VAE, found: Plane, *, columns: int, rows: int) -> Tensor:
    """Decode the centres of a lattice on the plane: the expected x, `[rows·columns, *event]`."""
    steps = lattice(columns, rows)[:, : len(found.deviation)] * found.deviation
    z = (found.origin + steps @ found.directions).float()
    first = model.decode(z[:1])
    rest = [model.decode(part) for part in torch.split(z[1:], _rows(first)) if len(part)]
    return torch.cat([first, *rest])


def _rows(x: Tensor) -> int:
    """Return how many images like those of x `[n, *event]` to take at once."""
    return max(1, min(200, _VALUES // max(1, x[0].numel())))
