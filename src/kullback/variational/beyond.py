"""A diagnosis that looks beyond q: for peaks that it has missed, and at its tails by a wider law.

Which to use: `diagnose_beyond`, through `assess`, where log p can be evaluated anywhere at the cost
of some ten thousand points; `diagnose` for draws that are all there is.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .diagnosis import Diagnosis, diagnose
from .probe import Probed, probe
from .wide import Wide, widely

__all__ = ["diagnose_beyond"]

WIDE, WIDER = 2, 8  # draws of the wider law, for each of q's, at first and at a second look
MANY = 8  # dimensions above which the first may be too few

LogDensity = Callable[[Tensor], Tensor]


def diagnose_beyond(
    log_density: LogDensity,
    log_prob: LogDensity | None,
    draws: Tensor,
    log_p: Tensor,
    log_q: Tensor,
    *,
    scores: tuple[Tensor, Tensor] | None = None,
    of: LogDensity | None = None,
    names: Sequence[str] = (),
    converged: bool = True,
    generator: torch.Generator | None = None,
) -> Diagnosis:
    """Diagnose q by its draws, by climbs of log p from far away, and by draws of a wider law.

    log_density, log_prob: log p (unnormalised) and log q, `[n, d]` to `[n]`; without log q there is
    no wider law. The rest is as in `diagnose`. The search costs 120 gradients of 32 points, the
    wider law twice as many draws as q has. In more than eight dimensions these are few: a verdict
    that is not "trust" is given by four times as many instead. Where log p raises so far out, the
    diagnosis is that of q's own draws, with a warning.

    >>> def normal(z):
    ...     return -0.5 * z.square().sum(-1) - 0.919
    >>> z = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> diagnose_beyond(normal, normal, z, normal(z), normal(z)).level
    'trust'
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    def look(probed: Probed | None = None, wide: Wide | None = None) -> Diagnosis:
        options = {"scores": scores, "of": of, "names": names, "converged": converged}
        return diagnose(draws, log_p, log_q, probed=probed, wide=wide, **options)  # type: ignore[arg-type]

    def far(log_prob: LogDensity, times: int) -> Wide:
        return widely(log_density, log_prob, draws, number=times * len(draws), generator=generator)

    probed = None
    try:
        probed = probe(log_density, draws, log_p, log_q, generator=generator)
        if log_prob is None:
            return look(probed)
        found = look(probed, far(log_prob, WIDE))
        if found.level == "trust" or draws.shape[1] <= MANY:
            return found
        return look(probed, far(log_prob, WIDER))
    except (RuntimeError, ValueError) as error:  # a user's function may refuse far points
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"other peaks and tails were not looked for: {reason}", stacklevel=3)
        return look(probed)
