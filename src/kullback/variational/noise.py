"""Fixed standard-normal noise that is better than random: low discrepancy, exact first moments.

Which to use: `fixed_normals` for an objective that is to be a function (deterministic fits).
"""

import torch
from torch import Tensor

from kullback.core import require

__all__ = ["fixed_normals"]


def fixed_normals(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """Return n points `[n, dim]` (float64) that stand for N(0, I): Sobol, antithetic, whitened.

    Scrambled Sobol points through the normal quantile function (above 21,201 dimensions, where
    there are none, pseudo-random normals), and their mirror images, so that the mean and every odd
    moment are zero. Where n ≥ 4·dim they are then transformed so that their
    covariance is the identity, which makes averages of quadratics *exact*: a Gaussian target is
    fitted to rounding whatever n. With fewer points each axis alone is scaled to variance 1.
    n: rounded up to an even number. Errors: `ArgumentValueError` for n < 2.

    >>> points = fixed_normals(64, 2, torch.Generator().manual_seed(0))
    >>> torch.allclose(points.mT @ points / 64, torch.eye(2, dtype=torch.float64))
    True
    """
    require(n >= 2, "n", "at least 2 draws", n)
    half = (n + 1) // 2
    seed = int(torch.randint(2**31, (), generator=generator))
    if dim > torch.quasirandom.SobolEngine.MAXDIM:  # Joe and Kuo's direction numbers end there
        own = torch.Generator().manual_seed(seed)
        points = torch.randn(half, dim, generator=own, dtype=torch.float64)
    else:
        engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        uniform = engine.draw(half, dtype=torch.float64)
        uniform = uniform.clamp(2.0**-32, 1 - 2.0**-32)
        points = torch.special.ndtri(uniform)
    if 2 * half >= 4 * dim:
        root = torch.linalg.cholesky(points.mT @ points / half)
        points = torch.linalg.solve_triangular(root, points.mT, upper=False).mT
    else:
        points = points / points.square().mean(0).sqrt()
    return torch.cat([points, -points])
