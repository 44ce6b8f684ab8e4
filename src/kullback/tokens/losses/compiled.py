"""The policy loss as an operator that `torch.compile` keeps whole.

Which to use: nothing here directly; `policy_kl_loss` calls `policy_kl` while a graph is compiled,
and inside the transforms of `torch.func` (`vmap`, `grad`, `jacrev`).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kullback.core import require
from kullback.sampled import Estimator

from .policy_kl import PolicyKL
from .policy_terms import policy_kl_of
from .sampled_tokens import Drawn, Request, Sampled

__all__ = ["policy_kl"]


def policy_kl(
    sampled: Sampled,
    request: Request,
    estimator: Estimator,
    exact_kl: Tensor | None,
    log_limits: tuple[float, float] | None,
) -> PolicyKL:
    """Return what `policy_kl_loss` does, as a node of a compiled graph; arguments checked.

    missing="skip" is refused: which tokens count would not be known while compiling.
    """
    known = request.missing != "skip"
    where = "'refuse' or 'keep' inside torch.compile and torch.func"
    require(known, "missing", where, "'skip'", "a mask")
    given = sampled.current, sampled.reference, sampled.behaviour, sampled.mask, exact_kl
    options = _Options(request, estimator, log_limits)
    if torch.compiler.is_compiling():
        found = _policy_kl(*given, **options.named())
    else:
        found = _Transformed.apply(*given, options)  # type: ignore[no-untyped-call]
    loss, _, terms, log_ratio, log_weight, log_step, log_arrival, martingale = found
    off_policy = sampled.behaviour is not None
    weighted = off_policy or request.direction == "forward"
    drawn = Drawn(
        direction=request.direction,
        level=request.level,
        mask=sampled.mask,
        log_ratio=log_ratio,
        log_weight=log_weight if weighted else None,
        log_step=log_step if off_policy else None,
        log_arrival=log_arrival if weighted else None,
        truncate=request.truncate if weighted else None,
        vanishing=weighted,
        logs=tuple(log.detach() for log in sampled.logs),
    )
    return PolicyKL(
        loss=loss,
        drawn=drawn,
        terms=terms,
        normalise=request.normalise,
        estimator=estimator if exact_kl is None else "exact",
        martingale=None if exact_kl is None else martingale,
        log_limits=log_limits,
    )


@dataclass(frozen=True, slots=True)
class _Options:
    """The operator's options."""

    request: Request
    estimator: Estimator
    log_limits: tuple[float, float] | None

    def named(self) -> dict[str, Any]:
        """Return them as the operator takes them."""
        return asdict(self.request) | {
            "estimator": str(self.estimator),
            "log_limits": list(self.log_limits or ()),
        }


def _parts(
    current: Tensor,
    reference: Tensor,
    behaviour: Tensor | None,
    mask: Tensor | None,
    exact_kl: Tensor | None,
    *,
    direction: str,
    level: str,
    normalise: str,
    missing: str,
    on_mismatch: str,
    truncate: float | None,
    estimator: str,
    log_limits: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return loss, slopes, terms, the draws' four logs and the martingale; empty what is none."""
    sampled = Sampled(current, reference, behaviour, mask)
    request = Request(direction, level, normalise, truncate, missing, on_mismatch)
    named = estimator if estimator in ("k1", "k2", "k3", "best") else float(estimator)
    region = (log_limits[0], log_limits[1]) if log_limits else None
    kl, slope = policy_kl_of(sampled, request, named, exact_kl, region)
    drawn, none = kl.drawn, kl.terms.new_empty(0)
    arrival = drawn.log_arrival
    if arrival is None and drawn.log_weight is not None:  # no weight vanishes: nothing of a limit
        arrival = torch.full_like(drawn.log_ratio, -math.inf)
    logs = drawn.log_ratio, drawn.log_weight, drawn.log_step, arrival
    found = kl.loss, slope, kl.terms, *logs, kl.martingale
    copies = [none if x is None else x for x in found]
    a, b, c, d, e, f, g, h = (x.clone(memory_format=torch.contiguous_format) for x in copies)
    return a, b, c, d, e, f, g, h


_policy_kl = torch.library.custom_op("kullback::policy_kl", _parts, mutates_args=())


@_policy_kl.register_fake
def _(
    current: Tensor,
    reference: Tensor,
    behaviour: Tensor | None,
    mask: Tensor | None,
    exact_kl: Tensor | None,
    *,
    direction: str,
    **options: Any,
) -> Any:
    logs = [x for x in (current, reference, behaviour) if x is not None]
    dtype = functools.reduce(torch.promote_types, [torch.float32, *(x.dtype for x in logs)])
    weighted = behaviour is not None or direction == "forward"
    wanted = True, True, True, weighted, behaviour is not None, weighted, exact_kl is not None
    shapes = [current.shape if each else 0 for each in wanted]
    return tuple(current.new_empty(shape, dtype=dtype) for shape in ((), *shapes))


def _keep(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *rest: Any) -> Any:
    (slope,) = ctx.saved_tensors
    return (grad.to(slope.dtype) * slope).to(ctx.dtype), None, None, None, None


_policy_kl.register_autograd(_backward, setup_context=_keep)


class _Transformed(torch.autograd.Function):
    """`_policy_kl` inside `torch.func`, which takes no operator's own formulas."""

    @staticmethod
    def forward(
        current: Tensor,
        reference: Tensor,
        behaviour: Tensor | None,
        mask: Tensor | None,
        exact_kl: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, ...]:
        return _parts(current, reference, behaviour, mask, exact_kl, **options.named())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        _keep(ctx, inputs, {}, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return *_backward(ctx, *grads), None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> Any:
        *given, options = inputs
        rows = (
            [_at(x, dim, place) for x, dim in zip(given, in_dims, strict=False)]
            for place in range(info.batch_size)
        )
        each = [_Transformed.apply(*row, options) for row in rows]  # type: ignore[no-untyped-call]
        return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * len(each[0])


def _at(x: Tensor | None, dim: int | None, place: int) -> Tensor | None:
    return x if x is None or dim is None else x.select(dim, place)
