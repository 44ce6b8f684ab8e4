"""Old names of what functions of `kullback.tokens` do with `HiddenStates`: aliases that warn."""

import warnings
from typing import Any

from torch import Tensor

from .divergences.functions import Comparison, compare, js, kl
from .divergences.sources import HiddenStates
from .losses.distillation import distill_terms

__all__ = ["compare_from_hidden", "distill_terms_from_hidden", "js_from_hidden", "kl_from_hidden"]


def kl_from_hidden(
    p_hidden: Tensor,
    p_head: Tensor,
    q_hidden: Tensor,
    q_head: Tensor,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    memory: int | None = None,
    **options: Any,
) -> Tensor:
    """Return `kl` of two `HiddenStates`; deprecated."""
    _warn("kl_from_hidden", "kl")
    caps = soft_cap if isinstance(soft_cap, tuple) else (soft_cap, soft_cap)
    p = HiddenStates(p_hidden, p_head, bias=p_bias, softcap=caps[0], memory=memory)
    q = HiddenStates(q_hidden, q_head, bias=q_bias, softcap=caps[1], memory=memory)
    return kl(p, q, **options)


def js_from_hidden(
    p_hidden: Tensor,
    p_head: Tensor,
    q_hidden: Tensor,
    q_head: Tensor,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    memory: int | None = None,
    **options: Any,
) -> Tensor:
    """Return `js` of two `HiddenStates`; deprecated."""
    _warn("js_from_hidden", "js")
    caps = soft_cap if isinstance(soft_cap, tuple) else (soft_cap, soft_cap)
    p = HiddenStates(p_hidden, p_head, bias=p_bias, softcap=caps[0], memory=memory)
    q = HiddenStates(q_hidden, q_head, bias=q_bias, softcap=caps[1], memory=memory)
    return js(p, q, **options)


def compare_from_hidden(
    p_hidden: Tensor,
    p_head: Tensor,
    q_hidden: Tensor,
    q_head: Tensor,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    memory: int | None = None,
    **options: Any,
) -> Comparison:
    """Return `compare` of two `HiddenStates`; deprecated."""
    _warn("compare_from_hidden", "compare")
    caps = soft_cap if isinstance(soft_cap, tuple) else (soft_cap, soft_cap)
    p = HiddenStates(p_hidden, p_head, bias=p_bias, softcap=caps[0], memory=memory)
    q = HiddenStates(q_hidden, q_head, bias=q_bias, softcap=caps[1], memory=memory)
    return compare(p, q, **options)


def distill_terms_from_hidden(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    memory: int | None = None,
    **options: Any,
) -> Tensor:
    """Return `distill_terms` of two `HiddenStates`; deprecated."""
    _warn("distill_terms_from_hidden", "distill_terms")
    caps = soft_cap if isinstance(soft_cap, tuple) else (soft_cap, soft_cap)
    student = HiddenStates(
        student_hidden, student_head, bias=student_bias, softcap=caps[0], memory=memory
    )
    teacher = HiddenStates(
        teacher_hidden, teacher_head, bias=teacher_bias, softcap=caps[1], memory=memory
    )
    return distill_terms(student, teacher, **options)


def _warn(old: str, new: str) -> None:
    text = (
        f"{old} is now {new} of two sources: "
        f"{new}(HiddenStates(hidden, head, bias=, softcap=, memory=), HiddenStates(...))"
    )
    warnings.warn(text, DeprecationWarning, stacklevel=3)
