"""Location and spread of training data: the units in which a model of continuous data works.

Which to use: `location_and_spread`. Both are found in the training examples alone.
"""

import torch
from torch import Tensor

from kullback.core import DataError

from .limits import UNRESOLVED

__all__ = ["location_and_spread"]

NAMED = 5  # columns named in one message


def location_and_spread(train: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean `[*event]` and standard deviation `[*event]` of `[N, *event]`, in float32.

    Vectors have a deviation for each column; images one for each channel, at every pixel, around
    each pixel's own mean. The deviation has N below. Nothing overflows within float32's range.
    Errors, for floats: DataError for columns or channels that are constant (a density on a constant
    has no finite maximum) or that float32 cannot resolve (values of one apart around 1e8).

    >>> location_and_spread(torch.tensor([[1.0, 0.0], [3.0, 1e-6]]))
    (tensor([2.0000e+00, 5.0000e-07]), tensor([1.0000e+00, 5.0000e-07]))
    """
    largest = train.abs().amax(0).double()
    mean = train.mean(0, dtype=torch.float64).clamp(-largest, largest).float()
    centred = train - mean
    over = (0, *range(2, train.ndim))
    reach = centred.abs().amax(over, keepdim=True).double().clamp(min=1e-300)
    squares = (centred / reach).square().mean(over, keepdim=True, dtype=torch.float64)
    spread = (reach * squares.sqrt())[0]
    if train.is_floating_point():
        _judge(spread.flatten(), train.abs().amax(over), train)
    return mean, spread.expand(mean.shape).float().contiguous()


def _judge(spread: Tensor, extreme: Tensor, train: Tensor) -> None:
    """Refuse what is constant or below float32's resolution, by name."""
    what = "column" if train.ndim == 2 else "channel"
    infinite = torch.full_like(extreme, torch.inf)
    ulp = torch.nextafter(extreme.float(), infinite.float()).double() - extreme.double()
    tiny = ~(spread >= torch.finfo(torch.float32).tiny) | spread.isinf()
    same = (train.amin(0) == train.amax(0)).reshape(len(spread), -1)
    constant = (spread == 0) | same.all(1)
    if bool(constant.any()):
        raise DataError(
            f"{_named(constant, what)} constant in the {len(train):,} training examples: a density "
            f"on a constant has no finite maximum. Try: leave {what}s like that out"
        )
    coarse = (ulp > UNRESOLVED * spread) | tiny
    if bool(coarse.any()):
        worst = int(coarse.nonzero()[0])
        raise DataError(
            f"{_named(coarse, what)} too fine for float32: {what} {worst} varies by "
            f"{float(spread[worst]):.2g} around {float(extreme[worst]):.6g}. "
            "Try: subtract its mean, or scale it, before saving"
        )


def _named(flags: Tensor, what: str) -> str:
    found = flags.nonzero().flatten().tolist()
    more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    verb = "is" if len(found) == 1 else "are"
    plural = what if len(found) == 1 else f"{what}s"
    return f"{plural} {', '.join(map(str, found[:NAMED]))}{more} {verb}"
