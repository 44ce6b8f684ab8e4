"""Old names of what functions of `kullback.tokens` do with `HiddenStates`: aliases that warn."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from .divergences.functions import Comparison, compare, js, kl
from .divergences.sources import HiddenStates
from .losses.distillation import distill_terms

__all__ = ["compare_from_hidden", "distill_terms_from_hidden", "js_from_hidden", "kl_from_hidden"]

T = TypeVar("T")
_Caps = float | tuple[float | None, float | None] | None


def _alias(new: Callable[..., T]) -> Callable[..., T]:
    """Return the old `NAME_from_hidden` of a function of two sources."""

    def alias(
        p_hidden: Tensor,
        p_head: Tensor,
        q_hidden: Tensor,
        q_head: Tensor,
        *,
        p_bias: Tensor | None = None,
        q_bias: Tensor | None = None,
        soft_cap: _Caps = None,
        memory: int | None = None,
        **options: Any,
    ) -> T:
        _warn(alias.__name__, new.__name__)
        caps = _both(soft_cap)
        p = HiddenStates(p_hidden, p_head, bias=p_bias, softcap=caps[0], memory=memory)
        q = HiddenStates(q_hidden, q_head, bias=q_bias, softcap=caps[1], memory=memory)
        return new(p, q, **options)

    alias.__name__ = alias.__qualname__ = f"{new.__name__}_from_hidden"
    alias.__doc__ = f"Return `{new.__name__}` of two `HiddenStates`; deprecated."
    return alias


kl_from_hidden: Callable[..., Tensor] = _alias(kl)
js_from_hidden: Callable[..., Tensor] = _alias(js)
compare_from_hidden: Callable[..., Comparison] = _alias(compare)


def distill_terms_from_hidden(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    soft_cap: _Caps = None,
    memory: int | None = None,
    **options: Any,
) -> Tensor:
    """Return `distill_terms` of two `HiddenStates`; deprecated."""
    _warn("distill_terms_from_hidden", "distill_terms")
    caps = _both(soft_cap)
    student = HiddenStates(
        student_hidden, student_head, bias=student_bias, softcap=caps[0], memory=memory
    )
    teacher = HiddenStates(
        teacher_hidden, teacher_head, bias=teacher_bias, softcap=caps[1], memory=memory
    )
    return distill_terms(student, teacher, **options)


def _both(soft_cap: _Caps) -> tuple[float | None, float | None]:
    return soft_cap if isinstance(soft_cap, tuple) else (soft_cap, soft_cap)


def _warn(old: str, new: str) -> None:
    text = (
        f"{old} is now {new} of two sources: "
        f"{new}(HiddenStates(hidden, head, bias=, softcap=, memory=), HiddenStates(...))"
    )
    warnings.warn(text, DeprecationWarning, stacklevel=3)
