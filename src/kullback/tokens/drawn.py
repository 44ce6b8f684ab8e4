"""Sampled tokens as a divergence sees them: log ratios and importance weights, checked and masked.

KL(p‖q) with p the first argument of the direction named: "reverse" is KL(π‖π_ref), p = current and
q = reference; "forward" is KL(π_ref‖π), p = reference and q = current. Tokens come from the
behaviour policy μ, so a term carries the weight p/μ: of its own token at level "token", where the
drawn prefixes are taken as they are; of all tokens up to and with its own at level "sequence",
where prefixes are p's as well.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import require, require_type
from kullback.sampled.terms import bregman_together

__all__ = ["DIRECTIONS", "LEVELS", "Drawn", "draw_up", "shifted"]

DIRECTIONS = {"reverse": "KL(policy ‖ reference)", "forward": "KL(reference ‖ policy)"}
LEVELS = ("token", "sequence")


class Drawn(NamedTuple):
    """log q/p and log-weights of tokens `[batch, length]`, 0 where masked; nothing has a graph.

    log_weight: log p/μ, of the token or of all up to it; None where it is 0 everywhere (p = μ).
    log_step: log π/μ of the token alone; None on-policy.
    log_arrival: log q/μ of the token with p/μ of those before it: what the weight times r tends to
        where p is 0; None where log_weight is.
    truncate: what weights are cut at, None for never.
    """

    direction: str
    level: str
    mask: Tensor | None
    log_ratio: Tensor
    log_weight: Tensor | None
    log_step: Tensor | None
    log_arrival: Tensor | None
    truncate: float | None

    def weight(self, *, truncated: bool = True) -> Tensor | None:
        """Return the importance weight of each token's term; None for 1 everywhere."""
        if self.log_weight is None:
            return None
        return self.cut(self.log_weight.exp()) if truncated else self.log_weight.exp()

    def cut(self, weight: Tensor) -> Tensor:
        """Return weights cut at `truncate`, if any."""
        return weight if self.truncate is None else weight.clamp_max(self.truncate)

    def feature(self, column: int, weight: Tensor | None) -> Tensor:
        """Return `log r`, `r − 1 − log r` or `½ log² r` of each token, times its weight.

        Where p is 0 the products tend to 0, (q/μ) and 0.
        """
        plain = self.log_ratio
        if column == 1:
            plain = torch.empty_like(self.log_ratio, memory_format=torch.contiguous_format)
            bregman_together(self.log_ratio.reshape(-1), plain.view(-1))
        elif column == 2:
            plain = (0.5 * self.log_ratio).mul_(self.log_ratio)
        if weight is None or self.log_weight is None or self.log_arrival is None:
            return plain
        limit = self.cut(self.log_arrival.exp()) if column == 1 else plain.new_zeros(())
        return torch.where(self.log_weight == -math.inf, limit, weight * plain)

    def value_terms(self, form: tuple[Tensor | float, ...]) -> Tensor:
        """Return the terms `form · features`, `[batch, length]`; form: numbers or `[batch, 1]`."""
        weight, total = self.weight(), None
        for column, factor in enumerate(form):
            if isinstance(factor, Tensor) or factor:
                part = self.feature(column, weight)
                part = part if isinstance(factor, float) and factor == 1 else part * factor
                total = part if total is None else total + part
        return torch.zeros_like(self.log_ratio) if total is None else total


def shifted(x: Tensor) -> Tensor:
    """Return x `[batch, length]` one place later, with 0 before: of the tokens up to the last."""
    return torch.nn.functional.pad(x[:, :-1], (1, 0)) if x.shape[-1] else x


def draw_up(
    log_current: Tensor,
    log_reference: Tensor,
    log_behaviour: Tensor | None,
    mask: Tensor | None,
    *,
    direction: str,
    level: str,
    truncate: float | None = None,
) -> Drawn:
    """Check, detach and mask log-probabilities `[batch, length]`; half precision becomes float32.

    Errors: `TypeError` and `ValueError` that name the argument.
    """
    logs = {"log_current": log_current, "log_reference": log_reference}
    logs |= {} if log_behaviour is None else {"log_behaviour": log_behaviour}
    check(logs, mask)
    _check_names(direction, level, truncate)
    wide = {name: _wide(log) for name, log in logs.items()}
    current, reference = wide["log_current"], wide["log_reference"]
    behaviour = wide.get("log_behaviour")
    hidden = None if mask is None else ~mask
    p, q = (current, reference) if direction == "reverse" else (reference, current)
    log_ratio = _masked(q - p, hidden)
    log_step = None if behaviour is None else _masked(current - behaviour, hidden)
    if direction == "reverse":
        own, arrival = log_step, None if behaviour is None else reference - behaviour
    else:
        base = current if behaviour is None else behaviour
        own, arrival = _masked(reference - base, hidden), current - base
    if own is None or arrival is None:
        cuts = truncate is None
        hint = "pass log_behaviour, or leave truncate out: on-policy every weight is 1"
        require(cuts, "truncate", "None where draws come from the policy itself", truncate, hint)
        return Drawn(direction, level, mask, log_ratio, None, None, None, None)
    log_weight, log_arrival = own, _masked(arrival, hidden)
    if level == "sequence":
        log_weight = own.cumsum(-1)
        log_arrival = log_arrival + shifted(log_weight)
    return Drawn(direction, level, mask, log_ratio, log_weight, log_step, log_arrival, truncate)


def check(tensors: dict[str, Tensor], mask: Tensor | None) -> None:
    """Check that all are floating `[batch, length]` of one shape, and the mask bool of it too."""
    shape = None
    for name, value in tensors.items():
        require_type(value, Tensor, name, "pass a torch tensor [batch, length]")
        fits = value.dim() == 2 and value.is_floating_point()
        expected = "a floating-point tensor [batch, length]"
        got = f"{value.dtype} {list(value.shape)}".removeprefix("torch.")
        require(fits, name, expected, got, "gather the tokens' log-probabilities")
        shape = shape or value.shape
        require(value.shape == shape, name, f"the shape {list(shape)} of the others", got)
    if mask is not None:
        require_type(mask, Tensor, "mask", "pass a bool tensor [batch, length]")
        got = f"{mask.dtype} {list(mask.shape)}".removeprefix("torch.")
        fits = mask.dtype == torch.bool and mask.shape == shape
        require(fits, "mask", f"a bool tensor {list(shape or ())}", got, "mask.bool()")


def _check_names(direction: str, level: str, truncate: float | None) -> None:
    require(direction in DIRECTIONS, "direction", "'reverse' or 'forward'", repr(direction))
    require(level in LEVELS, "level", "'token' or 'sequence'", repr(level))
    if truncate is not None:
        require(truncate > 0, "truncate", "a positive number, the largest weight", truncate)


def _wide(log: Tensor) -> Tensor:
    log = log.detach()
    return log.float() if log.dtype in (torch.float16, torch.bfloat16) else log


def _masked(x: Tensor, hidden: Tensor | None) -> Tensor:
    return x if hidden is None else x.masked_fill_(hidden, 0.0)
