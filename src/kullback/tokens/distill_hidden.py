"""Distillation terms from hidden states: the divergences of `distill`, and no logits held.

Which to use: `distill_terms_from_hidden` where student's and teacher's logits would not fit;
`distill_loss` adds its terms up like any others.
"""

from torch import Tensor

from .blocks import MEMORY
from .distill import check_options
from .hidden import Given, Options, from_hidden
from .pointwise import Pointwise
from .task import Task

__all__ = ["distill_terms_from_hidden"]


def distill_terms_from_hidden(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    divergence: str = "forward",
    weight: float = 0.5,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    mask: Tensor | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    align: str | None = None,
    memory: int = MEMORY,
    backend: str = "auto",
) -> Tensor:
    """Return D(teacher, student) of logits `hidden @ head.T`, one value a position, `[*batch]`.

    student_hidden `[*batch, H_s]`, student_head `[vocab, H_s]`, teacher_hidden `[*batch, H_t]`,
    teacher_head `[vocab, H_t]`, biases `[vocab]`; soft_cap: a pair is the student's, the teacher's.
    divergence, weight, temperature, temperature_squared, mask: as in `distill_terms`; align,
    memory, backend: as in `kl_from_hidden`, whose cost "forward" and "reverse" have. The others
    need both normalisers first, and do the products of the forward pass twice.

    Exact up to rounding; tokens without mass as in `distill_terms`. Gradients flow to the student's
    hidden states, head and bias; the teacher is a constant.
    Errors: those of `distill_terms` and of `kl_from_hidden`, which calls the two sides p and q.
    Reference: MATH 4, 5.7.

    >>> import torch
    >>> hidden = torch.tensor([[1.0, 0.0]])
    >>> student, teacher = torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> distill_terms_from_hidden(hidden, student, hidden, teacher, divergence="tv")
    tensor([0.4621])
    """
    check_options(divergence, weight, temperature)
    bias = None if teacher_bias is None else _constant(teacher_bias)
    ours = student_hidden, student_head, student_bias
    theirs = _constant(teacher_hidden), _constant(teacher_head), bias
    caps = soft_cap if isinstance(soft_cap, tuple) else (soft_cap, soft_cap)
    first = divergence in ("reverse", "skew_reverse")  # whether the student is p
    given = Given(*ours, *theirs) if first else Given(*theirs, *ours)
    how = Options(
        caps if first else (caps[1], caps[0]),
        temperature,
        mask,
        align,
        memory=memory,
        backend=backend,
    )
    kind = {"skew_reverse": "skew_forward"}.get(divergence, divergence)
    what = None if divergence in ("forward", "reverse") else Pointwise(kind, weight)
    terms = from_hidden(given, Task(("kl",)), what, None, how)[0]
    return terms * temperature**2 if temperature_squared else terms


def _constant(x: Tensor) -> Tensor:
    return x.detach() if isinstance(x, Tensor) else x  # what is wrong with it is said where used
