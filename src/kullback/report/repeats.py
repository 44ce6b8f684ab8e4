"""The estimators of MATH 5 side by side, on the same draws: k1, k2, k3 and the best λ.

Which to use: `estimators` for one lot of draws or for many lots at once.
"""

from torch import Generator
from torch.distributions import Distribution

from kullback.core import Estimate
from kullback.sampled import LogRatios
from kullback.sampled.densities import log_density
from kullback.sampled.draw_from import draw_from
from kullback.sampled.support import Support

__all__ = ["ESTIMATORS", "NAMES", "estimators"]

ESTIMATORS = ("k1", "k2", "k3", "best")
NAMES = {"k1": "k1", "k2": "k2", "k3": "k3", "best": "best λ"}
NUMBERS = 2_000_000  # draws times repeats that are held at a time


def estimators(
    p: Distribution,
    q: Distribution,
    *,
    draws: int,
    repeats: int = 1,
    generator: Generator | None = None,
) -> dict[str, Estimate]:
    """Estimate KL(p‖q) by every estimator on the same draws x ~ p; values `[repeats]`, in nats.

    p, q: of batch shape []. repeats · draws is at most about two million.

    >>> import torch
    >>> p, q = (torch.distributions.Normal(torch.tensor(m), 1.0) for m in (0.0, 0.1))
    >>> found = estimators(p, q, draws=100, generator=torch.Generator().manual_seed(0))
    >>> [*found], found["k3"].value.shape
    (['k1', 'k2', 'k3', 'best'], torch.Size([1]))
    """
    points = draw_from(p.expand((repeats,)), draws, generator=generator)
    log_p = log_density(p, points).double().movedim(0, -1)
    log_q = log_density(q, points).double().movedim(0, -1)
    pieces, support = LogRatios.of(log_p, log_q), Support.of(p.expand((repeats,)), q)
    return {
        name: support.settled(support.chosen(pieces, name, cross_fit=True)) for name in ESTIMATORS
    }
