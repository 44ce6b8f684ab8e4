"""What the rounding of half-precision logits does to a divergence, and the warning about it.

Which to use: `rounding_floor`, to know how large a KL rounding alone makes; the divergences
themselves ask it and warn.
"""

import warnings

import torch
from torch import Tensor

from .task import Task

__all__ = ["PrecisionWarning", "rounding_floor", "warn_of_rounding"]

ROWS = 4  # how many positions the warning looks at


class PrecisionWarning(UserWarning):
    """The inputs are too coarse for the number computed from them.

    >>> issubclass(PrecisionWarning, UserWarning)
    True
    """


def rounding_floor(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the KL that rounding these logits to their dtype makes: `½ Σ p (1 − p) u²/12`.

    logits: `[*batch, vocab]`, of any float dtype → `[*batch]`, in nats. u is the distance of the
    numbers of that dtype around a logit, over the temperature: rounding moves a logit by a uniform
    error of variance u²/12, and KL between two close distributions is half the variance, under p,
    of the log ratio. Two sides that were rounded independently have the sum of their floors.

    >>> logits = torch.tensor([16.0, 16.0])
    >>> for coarse in (logits.bfloat16(), logits.half(), logits):
    ...     print(f"{rounding_floor(coarse):.1e}")
    3.3e-04
    5.1e-06
    7.6e-14
    """
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    p = torch.softmax(wide / temperature, -1)
    exponent = torch.frexp(wide.where(wide.isfinite(), 0)).exponent - 1
    step = torch.finfo(logits.dtype).eps / temperature * torch.exp2(exponent.to(wide.dtype))
    return (p * (1 - p) * step**2).sum(-1) / 24


def warn_of_rounding(p: Tensor, q: Tensor, found: Tensor, task: Task) -> None:
    """Warn if the mean of a few values lies below what rounding half-precision logits makes.

    p, q: `[*batch, vocab]`; found: `[len(wants), *batch]`. It looks at a few positions whose value
    is positive and finite, evenly spaced, and only where half precision and a divergence are at
    hand. Python shows a warning once for every place in the code that it comes from.

    >>> warn_of_rounding(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 1), Task(("kl",)))
    """
    coarse = [x for x in (p, q) if torch.finfo(x.dtype).bits < 32]
    scale = {"kl": 1.0, "reverse_kl": 1.0, "js": task.beta * (1 - task.beta)}
    number = next((i for i, want in enumerate(task.wants) if want in scale), None)
    if not coarse or number is None:
        return
    good = ((found[number] > 0) & found[number].isfinite()).nonzero()
    if not len(good):
        return
    at = good[:: max(1, len(good) // ROWS)][:ROWS].unbind(-1)
    floor = sum(rounding_floor(x.detach()[at], temperature=task.temperature).mean() for x in coarse)
    if floor * scale[task.wants[number]] > found[number][at].mean():
        name = str(coarse[0].dtype).removeprefix("torch.")
        text = (
            f"the logits are {name}, and rounding alone makes divergences larger than these: "
            "compute the logits in float32 to see a difference this small"
        )
        warnings.warn(text, PrecisionWarning, stacklevel=4)  # the caller of kl, js, …
