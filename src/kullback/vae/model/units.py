"""The units in which a model of continuous data works: mean and deviation of the training data."""

import torch
from torch import Tensor

from kullback.core import DataError
from kullback.data import Moments, moments_of

from ..limits import FLOAT32_RESOLUTION, NAMED_COLUMNS

__all__ = ["location_and_spread", "location_and_spread_of"]


def location_and_spread(train: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean `[*event]` and standard deviation `[*event]` of `[N, *event]`, in float32.

    Vectors have a deviation for each column; images one for each channel, at every pixel, around
    each pixel's own mean. The deviation has N below. Nothing overflows within float32's range.

    Args:
        train: Training examples alone, `[N, *event]`.

    Returns:
        Mean and deviation.

    Raises:
        DataError: Floats have columns or channels that are constant (a density on a constant has
            no finite maximum) or that float32 cannot resolve (values of one apart around 1e8).

    Example:
        >>> location_and_spread(torch.tensor([[1.0, 0.0], [3.0, 1e-6]]))
        (tensor([2.0000e+00, 5.0000e-07]), tensor([1.0000e+00, 5.0000e-07]))
    """
    return location_and_spread_of(moments_of(train), floats=train.is_floating_point())


def location_and_spread_of(moments: Moments, *, floats: bool) -> tuple[Tensor, Tensor]:
    """Return what `location_and_spread` does, of examples whose moments are known.

    floats: whether the examples are continuous, of which no column may be constant.
    """
    over = tuple(range(1, moments.mean.ndim))
    rows = moments.squares / moments.count
    spread = (rows.mean(over, keepdim=True) if over else rows).sqrt()
    if floats:
        _require_resolved(spread.flatten(), moments)
    return moments.mean.float(), spread.expand(moments.mean.shape).float().contiguous()


def _require_resolved(spread: Tensor, moments: Moments) -> None:
    """Refuse what is constant or below float32's resolution, by name."""
    what = "column" if moments.mean.ndim == 1 else "channel"
    over = tuple(range(1, moments.mean.ndim))
    extreme = torch.maximum(moments.low.abs(), moments.high.abs())
    extreme = (extreme.amax(over) if over else extreme).float()
    infinite = torch.full_like(extreme, torch.inf)
    ulp = torch.nextafter(extreme, infinite).double() - extreme.double()
    tiny = ~(spread >= torch.finfo(torch.float32).tiny) | spread.isinf()
    same = (moments.low == moments.high).reshape(len(spread), -1)
    constant = (spread == 0) | same.all(1)
    if bool(constant.any()):
        raise DataError(
            f"{_named(constant, what)} constant in the {moments.count:,} training examples: a "
            f"density on a constant has no finite maximum. Try: leave {what}s like that out"
        )
    coarse = (ulp > FLOAT32_RESOLUTION * spread) | tiny
    if bool(coarse.any()):
        worst = int(coarse.nonzero()[0])
        raise DataError(
            f"{_named(coarse, what)} too fine for float32: {what} {worst} varies by "
            f"{float(spread[worst]):.2g} around {float(extreme[worst]):.6g}. "
            "Try: subtract its mean, or scale it, before saving"
        )


def _named(flags: Tensor, what: str) -> str:
    found = flags.nonzero().flatten().tolist()
    more = f" and {len(found) - NAMED_COLUMNS:,} more" if len(found) > NAMED_COLUMNS else ""
    verb = "is" if len(found) == 1 else "are"
    plural = what if len(found) == 1 else f"{what}s"
    return f"{plural} {', '.join(map(str, found[:NAMED_COLUMNS]))}{more} {verb}"
