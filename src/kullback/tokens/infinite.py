"""A loss or penalty that is not finite: where, by which values, and what to do about it.

Which to use: `refuse_infinite`, after a loss was worked out and unless missing="keep".
"""

import math

import torch
from torch import Tensor

from kullback.core import require

from .drawn import NAMES, Drawn

__all__ = ["refuse_infinite"]


def refuse_infinite(
    drawn: Drawn,
    terms: Tensor,
    slope: Tensor,
    logs: list[Tensor],
    exact_kl: Tensor | None = None,
    loss: Tensor | None = None,
) -> None:
    """Require finite terms, slopes and loss; say where, and with which values, one is not.

    terms, slope: `[batch, length]`; logs: what `drawn` was made of; loss: their sum, if there is
    one. It waits for a GPU.
    """
    total = terms.sum() if loss is None else loss.detach()
    if math.isfinite(float(total.detach() + 0 * slope.sum())):
        return
    bad = ~terms.isfinite()
    bad = bad if bool(bad.any()) else ~slope.isfinite()  # slopes hold the terms of later tokens too
    if not bool(bad.any()) and bool(total.isfinite()):
        return  # only the sum that this check takes overflows
    place = int(torch.where(bad, math.inf, terms.abs()).argmax())
    at = [place // terms.shape[1], place % terms.shape[1]]
    known = zip(NAMES, logs, strict=False)
    words = ", ".join(f"{name} = {float(log[*at].detach()):g}" for name, log in known)
    name, cause, hint = _why_infinite(drawn, at, logs, exact_kl)
    count = f"{max(int(bad.sum()), 1)} of {bad.numel()} positions"
    got = f"{float(total):g}: at {at} ({count}) {words}, {cause}"
    require(False, name, "a loss and gradient that are finite", got, hint)  # noqa: FBT003


def _why_infinite(
    drawn: Drawn, at: list[int], logs: list[Tensor], exact_kl: Tensor | None
) -> tuple[str, str, str]:
    """Return the argument, the cause and what to try, of a term that is not finite."""
    row, column = at
    keep = "missing='keep' returns it as it is"
    if exact_kl is not None and not bool(exact_kl[row, column].isfinite()):
        cause = f"exact_kl = {float(exact_kl[row, column].detach()):g}"
        return "exact_kl", cause, f"mask= to leave such positions out; {keep}"
    for name, log in zip(NAMES, logs, strict=False):
        if not bool(log[row, column].isfinite()):
            cause = "a probability of 0 at a token that was drawn"
            hint = "mask= or missing='skip' to leave such tokens out; probabilities that ban none"
            return name, cause, f"{hint}; {keep}"
    own = drawn.log_own_weight
    gap = float(drawn.log_ratio[row, column])
    aligned = "check that columns stand at the same tokens and hold no fill value (−100)"
    weight = 0.0 if drawn.log_weight is None else float(drawn.log_weight[row, column])
    if own is not None and weight > max(gap, 0.0):
        kind = "of the sequence up to there " if drawn.level == "sequence" else ""
        cause = f"and the importance weight {kind}e^{weight:.4g} overflows"
        hint = f"truncate=, which cuts weights, or level='token'; {aligned}; {keep}"
        return "log_behaviour" if len(logs) > 2 else "log_reference", cause, hint
    cause = f"and the ratio e^{gap:.4g} overflows {str(drawn.log_ratio.dtype)[6:]}"
    hint = (
        "estimator='k1', which takes no exponential (the token's own gradient is the same), "
        f"or mask= to leave the token out; {aligned}; {keep}"
    )
    return "log_current", cause, hint
