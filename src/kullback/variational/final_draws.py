"""The draws at the end of a fit, and what they show: no finite mass, or rounding to float32.

Which to use: `evaluated` for log p and its gradient there, then `infinite_mass` and
`coarse_rounding` for what is said of the target.
"""

import math
import time

import torch
from torch import Tensor

from . import limits
from .diagnostics.propriety import improper
from .optimise import IMPROPER, Progress
from .target.density import Target

__all__ = ["coarse_rounding", "evaluated", "infinite_mass"]


def evaluated(target: Target, z: Tensor, seconds: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return draws of q, log p and its gradient there; fewer draws where they take too long."""
    if seconds == math.inf:
        return (z, *target.score(z))
    begin, few = time.monotonic(), min(len(z), limits.MIN_DRAWS)
    parts = [target.score(z[:few])]
    each = (time.monotonic() - begin) / few
    room = max(few, int(limits.EVALUATION_SHARE * seconds / max(each, 1e-12)))
    if few < min(room, len(z)):
        parts.append(target.score(z[few:room]))
    return z[:room], torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def infinite_mass(target: Target, last: Progress, z: Tensor) -> str:
    """Say that q has run away, or where log p does not decay; nothing if neither."""
    if not last.converged and (away := _away(target, z)):
        return f"{IMPROPER}: {away}"
    return improper(target, z)


def coarse_rounding(target: Target, z: Tensor, log_p: Tensor, *, converged: bool) -> str:
    """Say that log p rounds z to float32, where that is coarse or the fit has not converged.

    Then log p is the same at z and at z (1 + 1e-10), for all draws but those beside a boundary.
    """
    far = z.abs().amax(0) * torch.finfo(torch.float32).eps / z.std(0).clamp_min(1e-300)
    if target.rows is not None or (converged and float(far.max()) < limits.COARSE_ROUNDING):
        return ""
    some = slice(limits.MIN_DRAWS)
    with torch.no_grad():
        same = target.log_density(z[some] * (1 + 1e-10)) == log_p[some]
    rounds = int((~same).sum()) <= limits.BESIDE_BOUNDARIES
    if not rounds or float(log_p[some].std()) == 0:
        return ""
    worst = int(far.argmax())
    return (
        f"log_density rounds z to float32, {float(far[worst]):.1g} sd of {target.names[worst]} "
        "here, and gradients with it: evaluate it in float64"
    )


def _away(target: Target, z: Tensor) -> str:
    """Say which coordinates of q's draws have run away; nothing if none has."""
    reach = z.nan_to_num(math.inf).abs().amax(0)
    places = (
        (reach > limits.MAX_COORDINATE).nonzero().flatten().tolist()[: limits.SHOWN_COORDINATES]
    )
    which = ", ".join(target.names[i] for i in places)
    return f"q({which}) runs to {float(reach.max()):.0e} and on" if places else ""
