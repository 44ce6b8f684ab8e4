"""What a model refuses as x: another shape, values outside of its levels, no counts, no sound."""

import torch
from torch import Tensor

from kullback.core import describe, require
from kullback.data import MOST_COUNT, PADDING

from ..architecture import Spec
from ..likelihoods import ContinuousBernoulli

__all__ = ["checked"]


def checked(x: Tensor, spec: Spec | None, likelihood: object) -> Tensor:
    """Return x `[batch, *event]` as float32, or refuse it: see `Composed.check`.

    Args:
        x: Of any dtype.
        spec: Of the model; None for parts of one's own, of which only NaN and infinity are refused.
        likelihood: The model's.

    Returns:
        As float32.

    Raises:
        ArgumentValueError: x does not fit.

    Example:
        >>> checked(torch.tensor([[1]]), None, None)
        tensor([[1.]])
    """
    if spec is not None:
        wanted = ["batch", *spec.event_shape]
        ok = tuple(x.shape[1:]) == spec.event_shape
        require(ok, "x", f"shape {wanted}".replace("'", ""), describe(x))
    x = x.float()
    require(bool(torch.isfinite(x).all()), "x", "finite values", "NaN or infinity")
    kind = None if spec is None else spec.kind
    span = f"values in [{x.min():.4g}, {x.max():.4g}]" if x.numel() else "nothing"
    if kind == "binary":
        ok = bool(((x == 0) | (x == 1)).all())
        require(ok, "x", "0 and 1 only", span, "binarise the data first")
    if spec is not None and kind in ("8-bit", "levels"):
        top = spec.levels - 1
        ok = bool(((x == x.round()) & (x >= 0) & (x <= top)).all())
        hint = "pass uint8 images" if kind == "8-bit" else "pass levels, see kullback.data.Grid"
        require(ok, "x", f"integers 0 to {top}", span, hint)
    if spec is not None and kind == "counts":
        _check_counts(x, spec, span)
    unit = spec is not None and isinstance(likelihood, ContinuousBernoulli)
    inside = not unit or bool(((x >= 0) & (x <= 1)).all())
    require(inside, "x", "values from 0 to 1 for a continuous Bernoulli", span, "gaussian")
    if spec is not None and spec.sound is not None:
        _check_sound(x, spec, span)
    return x


def _check_sound(x: Tensor, spec: Spec, span: str) -> None:
    """Refuse clips that are not levels of the model followed by padding."""
    step, half = (spec.sound or {}).get("step", 1), spec.levels // 2
    levels, padded = x / step, x == PADDING
    ok = padded | ((levels == levels.round()) & (levels >= -half) & (levels < half))
    expected = f"integers {-half * step} to {(half - 1) * step}"
    expected += f", multiples of {step}" if step > 1 else ""
    require(bool(ok.all()), "x", expected, span, "read them with kullback.data.load_sounds")
    ends = bool((padded[..., 1:] >= padded[..., :-1]).all()) and not bool(padded[..., 0].any())
    require(ends, "x", "padding after the samples only, and one sample at least", "padding within")


def _check_counts(x: Tensor, spec: Spec, span: str) -> None:
    """Refuse what is no count, and size factors that are not positive."""
    counts = x[:, :-1] if spec.sizes else x
    ok = bool(((counts == counts.round()) & (counts >= 0) & (counts <= MOST_COUNT)).all())
    require(ok, "x", f"whole numbers from 0 to {MOST_COUNT:,}", span, "raw counts, no logarithms")
    sized = not spec.sizes or bool((x[:, -1] > 0).all())
    require(sized, "x", "positive size factors in the last column", span, "drop items of total 0")
