"""A policy loss's terms and slopes in one sweep over memory in C: `policy.c`, where it compiles.

Which to use: `policy_kl_loss` takes it by itself for the ordinary case, the token-level reverse KL
by a fixed estimator, in float32 on the CPU from `limits.FEWEST_SWEPT` tokens up. For everything
else, and without a C compiler, the plain form in `policy` does the same in a dozen sweeps. The
first use on a machine compiles for about half a second (`core.compiling`).
"""

import ctypes
import math
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.core import compiling
from kullback.tokens import limits
from kullback.tokens.backends.interface import in_memory

from .sampled_tokens import Drawn, Request, Sampled
from .sequence_sums import NORMALISATIONS

__all__ = ["Swept", "sweep"]

SOURCE = Path(__file__).with_name("policy.c")
_NUMBERS = {name: number for number, name in enumerate(NORMALISATIONS)}
_CALL = struct.Struct("@ 4P 6q 4P 6f i")  # `Call` in policy.c; packed, as ctypes' own costs 5 µs
_GIVEN_UP, _ODD_WEIGHT, _ODD_RATIO = 1, 2, 4  # what `policy_terms` returns, a set of bits


class Swept(NamedTuple):
    """What a sweep leaves: the tokens as drawn, value terms, and value and slopes normalised.

    terms, slope: `[batch, length]`, 0 where masked. martingale: as `PolicyKL` has it.
    odd: whether the mean of π/μ or of π_ref/π is far from 1 (`UnitSums.odd`); None where it was not
        the sweep in C that made it, and looked at them.
    """

    drawn: Drawn
    terms: Tensor
    slope: Tensor
    value: Tensor | float
    martingale: Tensor | None = None
    odd: bool | None = None


def sweep(
    sampled: Sampled,
    request: Request,
    form: tuple[float, float, float],
    *,
    log_limits: tuple[float, float] | None = None,
) -> Swept | None:
    """Return a loss's parts; None where the plain form has to work them out.

    sampled, request: checked; form: coefficients of the estimator; log_limits: of the trust region,
    in logs. None: not the ordinary case (see above), a log-ratio that is NaN, infinite or beyond
    ±80, or columns that `looks_odd` wants to have checked.

    >>> few = Sampled(torch.zeros(2, 3), torch.zeros(2, 3))
    >>> sweep(few, Request(), (0.0, 1.0, 0.0)) is None
    True
    """
    if (request.direction, request.level) != ("reverse", "token"):
        return None
    first, step_from, mask = sampled.current, sampled.behaviour, sampled.mask
    function = _function() if first.numel() >= limits.FEWEST_SWEPT else None
    if function is None or not all(map(_ordinary, sampled.logs)):
        return None
    if mask is not None and not (mask.is_cpu and mask.stride(1) == 1 and in_memory(mask)):
        return None
    starts, strides = zip(*map(_where, (first, sampled.reference, step_from, mask)), strict=True)
    log_ratio, terms, slope = (first.new_empty(first.shape) for _ in range(3))
    log_step = None if step_from is None else first.new_empty(first.shape)
    written = [0 if x is None else x.data_ptr() for x in (log_ratio, log_step, terms, slope)]
    most = math.inf if request.truncate is None else request.truncate
    rest = (*form, most, *(log_limits or (-math.inf, math.inf)), _NUMBERS[request.normalise])
    value = ctypes.c_double()
    call = _CALL.pack(*starts, *strides, *first.shape, *written, *rest)
    flags = function(call, ctypes.byref(value))
    if flags & _GIVEN_UP:
        return None
    drawn = Drawn(
        direction=request.direction,
        level=request.level,
        mask=mask,
        log_ratio=log_ratio,
        log_weight=log_step,
        log_step=log_step,
        truncate=request.truncate,
        logs=sampled.logs,
    )
    odd = bool(flags & (_ODD_WEIGHT | _ODD_RATIO))
    return Swept(drawn, terms, slope, value.value, odd=odd)


@cache
def _function() -> Callable[..., int] | None:
    library = compiling.load(SOURCE)[0]
    return None if library is None else library.policy_terms


def _ordinary(log: Tensor) -> bool:
    return log.dtype is torch.float32 and log.is_cpu and in_memory(log) and log.stride(1) == 1


def _where(x: Tensor | None) -> tuple[int, int]:
    """Return where x's rows begin and how far apart they are, in elements."""
    return (0, 0) if x is None else (x.data_ptr(), x.stride(0))
