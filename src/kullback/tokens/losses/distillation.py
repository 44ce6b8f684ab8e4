"""Distillation: a student brought to a teacher by a divergence that is summed over the vocabulary.

Two steps, so that every source of terms meets every way of adding them up:

1. terms, one a position: `distill_terms` from both models' logits, or from `HiddenStates` without
   any logits, or from `Sharded` logits; `distill_terms_top_k` from the teacher's stored top-k;
2. `distill_loss` adds them up: masks, normalisation by name, labels, and whose samples they are.

Which divergence to pick: "forward", KL(teacher‖student), covers every mode the teacher has;
"reverse", KL(student‖teacher), seeks the modes it can hold and writes nothing the teacher would not
(MATH 4.1, 4.2); "jsd" lies between and is bounded; "skew_forward" and "skew_reverse" have bounded
gradients where the other has no mass; "tv" counts misplaced probability. Nothing here is sampled:
the terms have no error bar. All are in nats (total variation: a pure number) and differentiable in
the student; the teacher is a constant.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from kullback.core import describe, require, require_type
from kullback.exact import tables
from kullback.sampled import is_sentinel
from kullback.tokens import limits
from kullback.tokens.backends.interface import Task, Value, refuse_mapped
from kullback.tokens.divergences.logits import (
    check_logits,
    common,
    refuse_nan,
    spread_mask,
    warn_of_probabilities,
)
from kullback.tokens.divergences.slices import Pointwise
from kullback.tokens.divergences.sources import Source, constant, matched, measure, measure_one

from .policy_terms import attach
from .sampled_tokens import ahead, check
from .sequence_sums import row_scale

__all__ = [
    "DIVERGENCES",
    "check_options",
    "distill_loss",
    "distill_terms",
    "distill_terms_top_k",
]

_NAMES = ("student_logits", "teacher_logits")
DIVERGENCES = ("forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tv")


def distill_terms(
    student_logits: Tensor | Source,
    teacher_logits: Tensor | Source,
    *,
    divergence: str = "forward",
    weight: float = 0.5,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    mask: Tensor | None = None,
    align: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return D(teacher, student) = Σ over the vocabulary, one value a position, `[*batch]`.

    With p the teacher and q the student, both softmax(logits / temperature):

    - "forward": KL(p‖q); "reverse": KL(q‖p);
    - "jsd": β KL(p‖m) + (1−β) KL(q‖m), m = β p + (1−β) q, β = `weight`, the teacher's;
    - "skew_forward": KL(p‖w p + (1−w) q); "skew_reverse": KL(q‖w q + (1−w) p), w = `weight`;
    - "tv": ½ Σ |p − q|.

    Exact up to rounding; float32 for half precision. A token banned (−inf) by both has no part in
    it; by one alone: +inf for the KL that cannot have it, finite for the others. No gradient flows
    to the teacher. Skewed KLs and total variation of logits are PyTorch's operations; of hidden
    states all but "forward" and "reverse" do the products of the forward pass twice.

    Args:
        student_logits: `[*batch, vocab]`, or another source: `HiddenStates` where the logits would
            not fit, `Sharded`.
        teacher_logits: Likewise.
        divergence: One of the names above.
        weight: β or w, strictly between 0 and 1.
        temperature: Both sides are softmax(logits / temperature).
        temperature_squared: Multiply by temperature², which keeps the gradient with respect to
            logits of one size as the temperature rises (Hinton et al. 2015); False: the divergence
            itself. Never done silently, here or elsewhere in kullback.
        mask: Bool `[*batch]`; where False value and gradient are 0 and logits may be anything.
        align: "crop" where the larger vocabulary is only padded.
        backend: "auto", or a name (`kullback.tokens.usable`).

    Returns:
        `[*batch]`, in nats (total variation: a pure number), differentiable in the student.

    Raises:
        ValueError: Shapes or options that cannot be; the message names the argument.
        TypeError: Anything but float tensors and sources.

    Reference: MATH 4; Agarwal et al. (2024), "On-policy distillation of language models", eq. 1;
    Ko et al. (2024), "DistiLLM".

    Example:
        >>> student, teacher = torch.tensor([0.25, 0.75]).log(), torch.tensor([0.5, 0.5]).log()
        >>> distill_terms(student, teacher), distill_terms(student, teacher, divergence="tv")
        (tensor(0.1438), tensor(0.2500))
    """
    check_options(divergence, weight, temperature)
    student, teacher = _hidden(student_logits, mask), constant(_hidden(teacher_logits, mask))
    student_is_p = divergence in ("reverse", "skew_reverse")
    first, second = (student, teacher) if student_is_p else (teacher, student)
    names = _NAMES if student_is_p else _NAMES[::-1]
    if isinstance(first, Source) or isinstance(second, Source):
        first, second = matched(first, second)
        student, teacher = (first, second) if student_is_p else (second, first)
    options: dict[str, Any] = {"mask": mask, "align": align, "backend": backend, "names": names}
    if divergence in ("forward", "reverse", "jsd"):
        value: Value = "js" if divergence == "jsd" else "kl"
        beta = weight if divergence == "jsd" else 0.5
        terms = measure_one(first, second, Task((value,), temperature, beta), **options)
    elif isinstance(first, Source):
        kind = "tv" if divergence == "tv" else "skew_forward"
        what = Pointwise(kind, weight, temperature)
        terms = measure(first, second, Task(("kl",), temperature), **options, what=what)[0]
    else:
        first, second, mask = _alike(first, second, names, mask, align)
        first, second = _widened([first, second], temperature)
        if divergence == "tv":
            terms = _total_variation(first, second, names)
        else:
            terms = _skewed(first, second, weight, names)
    terms = terms * temperature**2 if temperature_squared else terms
    return terms if mask is None else terms.masked_fill(~mask, 0.0)


def distill_terms_top_k(
    student_logits: Tensor,
    teacher_log_probs: Tensor,
    teacher_ids: Tensor,
    *,
    divergence: str = "forward",
    weight: float = 0.5,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Return D between teacher and student over k tokens and one bucket of all others.

    Exact for the k + 1 outcomes, and so a lower bound, ≥ 0, of the divergence over the vocabulary:
    a sum cut off after k tokens is neither, and can be lowered by moving mass into the tail. The
    mass that is missing from the list is the teacher's tail; the student's tail is summed over its
    own other tokens.

    Args:
        student_logits: `[*batch, vocab]`.
        teacher_log_probs: `[*batch, k]`, the stored log-probabilities in nats, of the full
            vocabulary, not renormalised over the k. One that means "not among the top k" (−9999 and
            the like, see `TopK`) puts its token into the tail.
        teacher_ids: `[*batch, k]`, int64, their tokens, each once.
        divergence: As in `distill_terms`.
        weight: As in `distill_terms`.
        temperature: That at which the teacher's log-probabilities were taken; only the student's
            logits are divided by it, since a stored tail cannot be brought to another one.
        temperature_squared: As in `distill_terms`.
        mask: Bool `[*batch]`; where False value and gradient are 0.

    Returns:
        `[*batch]`, in nats (total variation: a pure number), differentiable in the student.

    Raises:
        ValueError: Shapes, ids outside the vocabulary, mass above 1 by more than rounding.
        TypeError: Anything but tensors.

    Reference: the data processing inequality (Cover and Thomas 2006, section 2.8).

    Example:
        >>> student = torch.tensor([0.25, 0.25, 0.5]).log()
        >>> teacher, ids = torch.tensor([0.5]).log(), torch.tensor([0])
        >>> distill_terms_top_k(student, teacher, ids)  # KL of (½, ½) and (¼, ¾)
        tensor(0.1438)
    """
    check_options(divergence, weight, temperature)
    for name, x in (("student_logits", student_logits), ("teacher_log_probs", teacher_log_probs)):
        refuse_mapped(x, name)
    _check_stored(student_logits, teacher_log_probs, teacher_ids, mask)
    (logits,) = _widened([_hidden(student_logits, mask)], temperature)
    ids = teacher_ids if mask is None else teacher_ids.masked_fill(~mask[..., None], 0)
    log_q = logits.log_softmax(-1)
    log_p = _hidden(teacher_log_probs, mask).detach().to(log_q.dtype)
    unlisted = is_sentinel(log_p)  # such tokens belong to the tail
    log_p = log_p.masked_fill(unlisted, -math.inf)
    rest = torch.ones_like(log_q, dtype=torch.bool).scatter(-1, ids, unlisted)
    q_tail = _log_sum(log_q, rest)
    p_tail = torch.log1p(-log_p.exp().sum(-1).clamp_max(1.0))
    p_tail = torch.where(rest.any(-1), p_tail, -math.inf)
    listed = log_q.gather(-1, ids).masked_fill(unlisted, -math.inf)
    student = _hidden(torch.cat([listed, q_tail[..., None]], -1), mask)
    teacher = _hidden(torch.cat([log_p, p_tail[..., None]], -1), mask)
    terms = distill_terms(student, teacher, divergence=divergence, weight=weight, mask=mask)
    return terms * temperature**2 if temperature_squared else terms


def distill_loss(
    terms: Tensor,
    *,
    mask: Tensor | None = None,
    normalise: str = "token",
    samples: str = "fixed",
    log_current: Tensor | None = None,
    log_labels: Tensor | None = None,
    label_weight: float = 0.5,
) -> Tensor:
    """Return the loss: Σ of the terms, normalised, with the gradient that their samples call for.

    Exact: an expected gradient without bias for the sum named; no clamps. Nothing counts: 0.

    Args:
        terms: `[batch, length]` with its graph, one divergence a position (`distill_terms`).
        mask: Bool `[batch, length]`.
        normalise: "token", "sequence", "batch" or "sequence_mean", as in
            `kullback.tokens.losses.sequence_sums`.
        samples: Whose tokens the prefixes are made of.
            "fixed", anyone's (a corpus, the teacher's, or the student's own taken as given): the
            gradient is that of the terms, the prefixes being data. It is complete whenever the
            student did not write them.
            "student", drawn from the student as it is now (on-policy): the loss also descends by
            writing prefixes whose terms are smaller, by the scores of the tokens `log_current`
            times the terms they lead to. For "reverse" terms and "sequence" or "batch"
            normalisation that is the complete gradient of KL(student‖teacher) of whole sequences;
            the value is not changed.
        log_current: `[batch, length]`, log-probabilities of the tokens drawn, under the student,
            with their graph; for samples="student".
        log_labels: `[batch, length]`, the student's log-probabilities of labels, in nats: the loss
            is (1 − label_weight)·divergence + label_weight·cross-entropy; None for the divergence
            alone.
        label_weight: From 0 to 1.

    Returns:
        A scalar, differentiable in the terms, log_current and log_labels.

    Raises:
        ValueError: Shapes, names, or samples="student" without log_current.
        TypeError: Anything but tensors of floats.

    Reference: MATH 5.7, 5.8; Agarwal et al. (2024) for "fixed" with the student's samples; Gu et
    al. (2024), "MiniLLM", for "student".

    Example:
        >>> terms = torch.tensor([[0.2, 0.4], [0.6, 0.0]])
        >>> distill_loss(terms), distill_loss(terms, normalise="sequence")
        (tensor(0.3000), tensor(0.6000))
    """
    given = {"terms": terms}
    given |= {} if log_labels is None else {"log_labels": log_labels}
    check(given if log_current is None else given | {"log_current": log_current}, mask)
    require(samples in ("fixed", "student"), "samples", "'fixed' or 'student'", repr(samples))
    needed = samples == "fixed" or log_current is not None
    hint = "log_current=, the student's log-probabilities of the tokens it drew, with their graph"
    require(needed, "log_current", "given where samples='student'", None, hint)
    scale = row_scale(mask, terms.detach(), normalise)
    own = terms if mask is None else torch.where(mask, terms, 0.0)
    loss = (own.sum(-1, keepdim=True) * scale).sum()
    if samples == "student" and log_current is not None:
        slope = ahead(own.detach()) * scale
        slope = slope if mask is None else slope.masked_fill(~mask, 0.0)
        loss = attach(loss, log_current, slope.to(log_current.dtype))
    if log_labels is None:
        return loss
    require(0.0 <= label_weight <= 1.0, "label_weight", "a number from 0 to 1", label_weight)
    labels = log_labels if mask is None else torch.where(mask, log_labels, 0.0)
    entropy = -(labels.sum(-1, keepdim=True) * scale).sum()
    return (1.0 - label_weight) * loss + label_weight * entropy


def _alike(
    first: Any, second: Any, names: tuple[str, str], mask: Tensor | None, align: str | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return both logits checked, over the same tokens and batch, 0 where masked, and the mask."""
    first, second = (check_logits(x, name) for x, name in zip((first, second), names, strict=True))
    first, second = common(first, second, align)
    keep = spread_mask(mask, first)
    warn_of_probabilities(dict(zip(names, (first, second), strict=True)), keep)
    return _hidden(first, keep), _hidden(second, keep), keep


def _total_variation(first: Tensor, second: Tensor, names: tuple[str, str]) -> Tensor:
    """Return ½ Σ |p − q| of logits; a row without a distribution is refused as by `measure`."""
    given = dict(zip(names, (first, second), strict=True))
    for name in _NAMES:
        refuse_mapped(given[name], name)
    refuse_nan(0 * (first.logsumexp(-1) + second.logsumexp(-1)).detach()[None], " and ".join(names))
    return tables.total_variation(first, second, form="logits")


def _skewed(first: Tensor, second: Tensor, weight: float, names: tuple[str, str]) -> Tensor:
    """Return KL(first‖w·first + (1−w)·second) of logits, as logits of a mixture."""
    logs = [x.log_softmax(-1) for x in (first, second)]
    banned = (logs[0] == -math.inf) & (logs[1] == -math.inf)
    a, b = (x.masked_fill(banned, 0.0) for x in logs)
    mixture = torch.logaddexp(a + math.log(weight), b + math.log1p(-weight))
    mixture = mixture.masked_fill(banned, -math.inf)
    return measure_one(logs[0], mixture, Task(("kl",)), names=names)


def _log_sum(logs: Tensor, kept: Tensor) -> Tensor:
    """Return log Σ exp over what is kept, −inf without gradient where nothing is left."""
    left = logs.masked_fill(~kept, -math.inf)
    empty = (left == -math.inf).all(-1)
    return left.masked_fill(empty[..., None], 0.0).logsumexp(-1).masked_fill(empty, -math.inf)


def _widened(logits: list[Tensor], temperature: float) -> list[Tensor]:
    """Return logits over the temperature in one type, float32 or wider, in which they are divided.

    Divided in half precision, every quotient is rounded to 8 or 11 bits.
    """
    wide = functools.reduce(torch.promote_types, [x.dtype for x in logits], torch.float32)
    return [x.to(wide) / temperature for x in logits]


def _hidden(x: Any, mask: Tensor | None) -> Any:
    """Return `[*batch, n]` with zeros where the mask is False, so that nothing there can spread."""
    if mask is None or not isinstance(x, Tensor) or mask.dtype != torch.bool:
        return x  # refused where they are used
    return x if mask.shape != x.shape[:-1] else x.masked_fill(~mask[..., None], 0.0)


def check_options(divergence: str, weight: float, temperature: float) -> None:
    """Require a divergence of the table, a weight inside (0, 1), a positive temperature."""
    require(divergence in DIVERGENCES, "divergence", " or ".join(DIVERGENCES), repr(divergence))
    hint = "divergence='forward' or 'reverse' for the ends"
    between = isinstance(weight, int | float) and 0.0 < weight < 1.0
    require(between, "weight", "a number strictly between 0 and 1", weight, hint)
    good = isinstance(temperature, int | float) and 0.0 < temperature < math.inf
    require(good, "temperature", "a positive, finite number", temperature)


def _check_stored(logits: Tensor, log_probs: Tensor, ids: Tensor, mask: Tensor | None) -> None:
    for name, value in (
        ("student_logits", logits),
        ("teacher_log_probs", log_probs),
        ("teacher_ids", ids),
    ):
        require_type(value, Tensor, name, "torch.as_tensor(...)")
    batch = list(logits.shape[:-1])
    wanted = f"a tensor {[*batch, 'k']}, k ≤ {logits.shape[-1]}"
    for name, value in (("teacher_log_probs", log_probs), ("teacher_ids", ids)):
        fits = list(value.shape[:-1]) == batch and 1 <= value.shape[-1] <= logits.shape[-1]
        require(fits, name, wanted, describe(value))
    require(log_probs.shape == ids.shape, "teacher_ids", describe(log_probs), describe(ids))
    require(ids.dtype == torch.int64, "teacher_ids", "int64 token ids", describe(ids), "ids.long()")
    kept = ids if mask is None else ids.masked_fill(~mask[..., None], 0)
    inside = bool(((kept >= 0) & (kept < logits.shape[-1])).all())
    expected = f"ids from 0 to {logits.shape[-1] - 1} where the mask is True"
    require(inside, "teacher_ids", expected, "one outside")
    mass = log_probs.detach().double().exp().sum(-1)
    mass = mass if mask is None else mass.masked_fill(~mask, 0.0)
    most = float(mass.max()) if mass.numel() else 0.0
    slack = limits.STORED_SLACK + log_probs.shape[-1] * torch.finfo(log_probs.dtype).eps
    expected = "log-probabilities whose sum of probabilities is at most 1"
    probabilities = bool((log_probs >= 0).all()) and bool((log_probs <= 1).all())
    hint = "teacher_log_probs.log(): these look like probabilities" if probabilities else ""
    hint = hint or "log_softmax over all tokens"
    require(most <= 1 + slack, "teacher_log_probs", expected, most, hint)
