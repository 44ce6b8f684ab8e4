"""Whether a field of gradients is the gradient of anything at all.

The gradient of a function has a symmetric matrix of second derivatives; a field that has not is
the gradient of no function of the policy, in no coordinates. With the behaviour policy moving
along on-policy, and held where it is off-policy.

Which to use: `gradient_of`; `asymmetry` for the number behind it.
"""

import torch

from .calls import Caller
from .worlds import build

__all__ = ["asymmetry", "gradient_of"]

_STEP = 1e-3
OPEN = 1e-4  # asymmetry above which a field is the gradient of nothing


def gradient_of(caller: Caller, *, on_policy: bool) -> str:
    """Say of what the expected gradient is the gradient of some function.

    "sequences", of the policy over whole sequences; "tokens", of a single next-token table but not
    of sequences; or "nothing".
    """
    if asymmetry(caller, length=1, on_policy=on_policy) > OPEN:
        return "nothing"
    if caller.batch == 1 and asymmetry(caller, length=2, on_policy=on_policy) > OPEN:
        return "tokens"
    return "sequences"


def asymmetry(caller: Caller, *, length: int, on_policy: bool) -> float:
    """Return ‖J − Jᵀ‖/‖J + Jᵀ‖ of the expected gradient with few tokens: 0 for gradients.

    J has central differences of step 1e-3: what comes out below 1e-4 is 0.

    >>> k2 = Caller(lambda logp, ref_logp: 0.5 * (logp - ref_logp) ** 2)
    >>> asymmetry(k2, length=1, on_policy=True) < 1e-6
    True
    >>> asymmetry(k2, length=2, on_policy=True) > 0.01  # the prefixes move, uncounted
    True
    """
    world = build(4 - length, length, distance="near", on_policy=on_policy)
    centre = world.policy.flatten()
    columns = []
    for i in range(len(centre) - world.vocabulary):  # the last row is padding
        step = torch.zeros_like(centre)
        step[i] = _STEP
        up, down = (
            caller.enumerate(world.moved((centre + sign * step).view_as(world.policy))).expected
            for sign in (1, -1)
        )
        columns.append(((up - down) / (2 * _STEP)).flatten()[: -world.vocabulary])
    jacobian = torch.stack(columns, -1)
    size = float((jacobian + jacobian.T).norm())
    return float((jacobian - jacobian.T).norm()) / size if size > 0 else 0.0
