"""Divergences from distances to nearest neighbours, of batches of point sets at once.

These are bare terms, one a point, `[*batch, points]`, whose mean is the divergence; `two_sample`
gives it an error bar and words.
Distances are brute force, a block of rows at a time: `O(n² d)` work, bounded memory.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "extrapolated_kl",
    "js_neighbours",
    "kl_neighbours",
    "lonely",
    "mutual_information_neighbours",
    "nearest",
]

_NUMBERS = 1 << 22  # distances held at a time


def kl_neighbours(x: Tensor, y: Tensor, *, k: int) -> Tensor:
    """Return `d log(ν_i/ρ_i) + ψ(m + 1) − ψ(n)`, the terms of the nearest-neighbour KL(p‖q).

    x `[*batch, n, d]` from p, y `[*batch, m, d]` from q; ρ_i and ν_i are the distances from x_i to
    its k-th neighbour among the other x and among y. Wang, Kulkarni and Verdú (2009), eq. 14, but
    with the digammas that their logarithms `log(m / (n − 1))` approximate.

    >>> points = torch.arange(8.0, dtype=torch.float64)[:, None]
    >>> round(kl_neighbours(points, points + 0.25, k=1).mean().item(), 3)
    -1.261
    """
    return _kl_by_k(x, y, k)[..., -1]


def extrapolated_kl(x: Tensor, y: Tensor, *, most: int) -> Tensor:
    """Return the terms of `kl_neighbours` extrapolated from k = 1 … most to neighbourhoods of none.

    The mean over the points for k neighbours is `KL + b (k/n)^a + …`: a = 1/d by the radius of the
    neighbourhood, and ½ at most, as where the ys thin out (in one dimension). The value at k = 0 is
    a weighted sum `Σ w_k D_k` with `Σ w_k = 1` and `Σ w_k k^a = 0`, of least variance where D_k
    varies as 1/k. Moon, Sricharan, Greenewald and Hero (2018), "Ensemble estimation of information
    divergence", section III, with these weights.

    >>> seed = torch.Generator().manual_seed(0)
    >>> u, v = torch.rand(2, 2000, 1, generator=seed, dtype=torch.float64)
    >>> print(f"{extrapolated_kl(u, 2 * v, most=20).mean().item():.1f}")
    0.7
    """
    weights = _weights(most, x.shape[-1]).to(x.device)
    return _kl_by_k(x, y, most) @ weights


def _weights(most: int, dimensions: int) -> Tensor:
    k = torch.arange(1, most + 1, dtype=torch.float64)
    if most < 3:
        return torch.nn.functional.one_hot(torch.tensor(most - 1), most).double()
    inverse = torch.linalg.inv(1.0 / torch.maximum(k[:, None], k))
    rules = torch.stack([torch.ones_like(k), k ** min(1.0 / dimensions, 0.5)])
    wanted = torch.tensor([1.0, 0.0], dtype=torch.float64)
    weights: Tensor = inverse @ rules.T @ torch.linalg.solve(rules @ inverse @ rules.T, wanted)
    return weights


def _kl_by_k(x: Tensor, y: Tensor, most: int) -> Tensor:
    """Return the terms of the nearest-neighbour KL for k = 1 … most, `[*batch, n, most]`."""
    n, size = x.shape[-2:]
    own, other = nearest(x, x, most + 1)[0][..., 1:], nearest(x, y, most)[0]
    return size * (other.log() - own.log()) + _digamma(y.shape[-2] + 1) - _digamma(n)


def nearest(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the distances and numbers of the k nearest rows of b, `[*batch, n, k]`, nearest first.

    >>> points = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    >>> nearest(points, points, 2)[0].tolist()
    [[0.0, 1.0], [0.0, 1.0], [0.0, 2.0]]
    """
    found = [_distances(a[..., rows, :], b).topk(k, -1, largest=False) for rows in _blocks(a, b)]
    return torch.cat([f.values for f in found], -2), torch.cat([f.indices for f in found], -2)


def lonely(x: Tensor, y: Tensor, *, k: int) -> Tensor:
    """Return the share of the x, `[*batch]`, that are almost out of reach of any y.

    They must reach past `max(n/100, 4 k)` other x to find k of the y: the density ratio is
    then averaged over a neighbourhood that is not small.

    >>> points = torch.arange(100.0, dtype=torch.float64)[:, None]
    >>> lonely(points, points / 2, k=1).item()
    0.47
    """
    limit = max(x.shape[-2] / 100, 4 * k)
    return (_within(x, x, _kth(x, y, k)) - 1 > limit).double().mean(-1)


def js_neighbours(x: Tensor, y: Tensor, *, k: int) -> Tensor:
    """Return `ψ(2n) − ψ(n) + ψ(k) − ψ(m_i)`: Jensen-Shannon as the information on a label.

    x `[*batch, n, d]` and y `[*batch, m, d]`, in an order that says nothing; `2 min(n, m)` terms,
    one for each of the fewer and one for as many of the other kind. m_i counts all points no
    farther from point i than its k-th neighbour of its own kind. Ross (2014), eq. 2, for as many of
    each: the more are cut into lots as large as the fewer (the last made full with the first), and
    the terms averaged over the lots.

    >>> points = torch.arange(8.0, dtype=torch.float64)[:, None]
    >>> round(js_neighbours(points, points + 100.0, k=1).mean().item(), 3)
    0.725
    """
    fewer, more = (x, y) if x.shape[-2] <= y.shape[-2] else (y, x)
    n, m = fewer.shape[-2], more.shape[-2]
    lots = -(-m // n)
    index = torch.arange(lots * n, device=more.device).reshape(lots, n) % m
    more = more[..., index, :]
    fewer = fewer[..., None, :, :].expand(more.shape)
    both = torch.cat([fewer, more], -2)
    found = [_within(own, both, _kth(own, own, k + 1)) for own in (fewer, more)]
    terms = _digamma(2 * n) - _digamma(n) + _digamma(k) - torch.digamma(torch.cat(found, -1))
    return terms.mean(-2)


def mutual_information_neighbours(x: Tensor, y: Tensor, *, k: int) -> Tensor:
    """Return `ψ(n) + ψ(k) − ψ(n_x + 1) − ψ(n_y + 1)`: the terms of KSG's first estimator.

    x `[*batch, n, d]`, y `[*batch, n, e]`, pairs. The k-th neighbour is taken in the larger of the
    two Euclidean distances; n_x and n_y count what lies strictly nearer in each alone. Kraskov,
    Stögbauer and Grassberger (2004), eq. 8.

    >>> x = torch.arange(64.0, dtype=torch.float64)[:, None]
    >>> round(mutual_information_neighbours(x, 3 * x, k=3).mean().item(), 2)
    1.84
    """
    n, found = x.shape[-2], []
    for rows in _blocks(x, x):
        dx, dy = (_distances(z[..., rows, :], z) for z in (x, y))
        reach = _smallest(torch.maximum(dx, dy), k + 1)[..., None]
        # a point is 0 from itself, so the count of what is strictly nearer includes it: n_x + 1
        found.append([torch.digamma((d < reach).sum(-1).double()) for d in (dx, dy)])
    marginal = torch.cat([a + b for a, b in found], -1)
    return _digamma(n) + _digamma(k) - marginal


def _blocks(a: Tensor, b: Tensor) -> Iterator[slice]:
    step = max(1, _NUMBERS // max(1, a[..., 0, 0].numel() * b.shape[-2]))
    for start in range(0, a.shape[-2], step):
        yield slice(start, start + step)


def _kth(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Return each row of a's distance to its k-th nearest row of b, `[*batch, n]`."""
    found = []
    for rows in _blocks(a, b):
        found.append(_smallest(_distances(a[..., rows, :], b), k))
    return torch.cat(found, -1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # by differences: the faster way through products loses the digits of small distances
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _smallest(distances: Tensor, k: int) -> Tensor:
    return distances.topk(k, -1, largest=False, sorted=False).values.amax(-1)


def _within(a: Tensor, b: Tensor, reach: Tensor) -> Tensor:
    """Count the rows of b strictly nearer to each row of a than its reach."""
    found = []
    for rows in _blocks(a, b):
        near = _distances(a[..., rows, :], b) < reach[..., rows, None]
        found.append(near.sum(-1).double())
    return torch.cat(found, -1)


def _digamma(count: int) -> float:
    return float(torch.digamma(torch.tensor(float(count), dtype=torch.float64)))
