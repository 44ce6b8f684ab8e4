"""The audit itself: `audit`, as `kullback.tokens.audit`.

`look` goes from the enumerated gradients of one regime to what the loss descends there.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import torch

from kullback.core import require
from kullback.tokens import limits

from .findings import Audit, Finding, Likeness, Row, notes, verdict
from .matching import (
    FORWARD,
    REVERSE,
    TARGETS,
    Group,
    Match,
    Target,
    best_estimator,
    closest,
    family,
    fit,
    mixture,
    single,
    value,
)
from .worlds import Caller, Enumeration, Form, World, build, gradient_of, response, worlds

__all__ = ["audit", "look"]

SHOWN = (REVERSE, FORWARD, "JSD(½)")
VALUES = (REVERSE, FORWARD, "JSD(½)", "TV(policy, ref)", "½E[log²(policy/ref)]")


def look(
    caller: Caller, worlds: Sequence[World], *, on_policy: bool
) -> tuple[Finding, list[Row], Match | None]:
    """Return the finding of one regime, its rows, and the match behind it."""
    mine = [world for world in worlds if world.on_policy == on_policy]
    outcomes = [caller.enumerate(world) for world in mine]
    group = Group(mine, [one.expected for one in outcomes])
    value_name = _value_of(mine, outcomes)
    if not all(bool(field.isfinite().all()) for field in group.fields):
        kind, match = "not finite", None
    elif all(_is_zero(one) for one in outcomes):
        kind, match = "zero", None
    elif all(_is_zero(one) for w, one in zip(mine, outcomes, strict=True) if w.distance == "near"):
        kind, match = "near zero", None
    else:
        kind, match = _matched(group, on_policy=on_policy)
    if match is None:
        finding = Finding(on_policy=on_policy, kind=kind, value=value_name)
    else:
        of = gradient_of(caller, on_policy=on_policy) if kind == "none" else ""
        finding = _finding(kind, match, group, on_policy=on_policy, value_name=value_name, of=of)
    rows = [
        _row(world, one, _errors(match, i), _compared(group, i), match)
        for i, (world, one) in enumerate(zip(mine, outcomes, strict=True))
    ]
    return finding, rows, match


def _matched(group: Group, *, on_policy: bool) -> tuple[str, Match]:
    """Name the field: exactly everywhere, as a sum, near only, or by what is closest."""
    found = single(group)
    if found is not None:
        return "exact", found
    near = single(group.only(lambda world: world.distance == "near"))
    if near is not None:
        return "near", _refitted(group, near)
    for attempt in (mixture(group, behaviour=not on_policy), family(group)):
        if attempt is not None:
            return ("exact" if len(attempt.terms) == 1 else "sum"), attempt
    return "none", closest(group)


def _refitted(group: Group, near: Match) -> Match:
    """Return a match of near worlds, with its factors, measured in all worlds."""
    sign = near.terms[0][0]
    again = fit(group, near.target, {t: sign * s for t, s in near.scale.items()})
    return near if again is None else again


def _finding(
    kind: str, match: Match, group: Group, *, on_policy: bool, value_name: str, of: str
) -> Finding:
    near = [e for e, w in zip(match.errors, group.worlds, strict=True) if w.distance == "near"]
    ascends = len(match.terms) == 1 and match.terms[0][0] < 0
    return Finding(
        on_policy=on_policy,
        kind=kind,
        value=value_name,
        descends=_sum_text(match.terms),
        level=match.target.level,
        error=match.error,
        cosine=match.cosine,
        near_error=max(near),
        scale=dict(match.scale),
        ascends=ascends,
        gradient_of=of,
    )


def _sum_text(terms: tuple[tuple[float, Target], ...]) -> str:
    """Write a sum of divergences, without the sign where there is only one."""
    if len(terms) == 1:
        return terms[0][1].name
    parts = []
    for coefficient, target in terms:
        size = "" if abs(abs(coefficient) - 1) < limits.EXACT_MATCH else f"{abs(coefficient):.4g}·"
        parts.append(f"{'−' if coefficient < 0 else '+'} {size}{target.name}")
    return " ".join(parts).removeprefix("+ ")


def _is_zero(outcome: Enumeration) -> bool:
    square = (outcome.gradient**2).sum((-1, -2))
    size = float((outcome.probability * square).sum()) ** 0.5
    return bool(outcome.expected.norm() <= limits.ZERO_GRADIENT * size)


def _errors(match: Match | None, at: int) -> float:
    return 1.0 if match is None else match.errors[at]


def _compared(group: Group, at: int) -> list[Likeness]:
    """Compare one world with the divergences shown, their factors fitted where it is as near."""
    world = group.worlds[at]
    alike = group.only(lambda w: (w.distance, w.length) == (world.distance, world.length))
    place = next(i for i, w in enumerate(alike.worlds) if w is world)
    found = []
    for target in TARGETS:
        levels = ("token", "sequence") if world.length > 1 else ("token",)
        match = fit(alike, target) if target.name in SHOWN and target.level in levels else None
        if match is not None:
            error, cosine = match.errors[place], match.cosines[place]
            found.append(Likeness(target.name, target.level, error, cosine))
    return found


def _row(
    world: World, outcome: Enumeration, bias: float, compared: list[Likeness], match: Match | None
) -> Row:
    noise, best = _noise(world, outcome, match)
    dead = _dead(world, outcome)
    if _is_zero(outcome):  # rounding has no direction
        compared = [replace(one, error=1.0, cosine=0.0) for one in compared]
    bad = (~outcome.gradient.isfinite()).any(-1).any(-1)
    reverse = next(t for t in TARGETS if t.name == REVERSE and t.level == "sequence")
    return Row(
        vocabulary=world.vocabulary,
        length=world.length,
        distance=world.distance,
        on_policy=world.on_policy,
        kl=float(value(reverse, world)),
        value=float((outcome.probability * outcome.value).sum()),
        bias=bias,
        noise=noise,
        best_noise=best,
        dead_tokens=dead.tokens,
        dead_sequences=dead.sequences,
        dead_where_ref=dead.where_ref,
        not_finite=float((outcome.probability * bad).sum()),
        comparisons=tuple(compared),
    )


def _noise(
    world: World, outcome: Enumeration, match: Match | None
) -> tuple[float | None, float | None]:
    """Return the noise and the best known noise, in lengths of the divergence's gradient."""
    spread = ((outcome.gradient - outcome.expected) ** 2).sum((-1, -2))
    noise = float((outcome.probability * spread).sum()) ** 0.5
    if match is None:
        return None, None
    scale = abs(match.scale[world.length])
    size = float(outcome.expected.norm()) / max(1e-300, scale)
    best = None
    if len(match.terms) == 1:
        slope = Group([world], [outcome.expected]).slopes(match.target)[0]
        size = float(slope.norm())
        optimal = best_estimator(match.target, world)
        if optimal is not None and size > 0:
            squares = ((optimal - slope) ** 2).sum((-1, -2))
            chances = world.probabilities(world.behaviour)
            best = max(0.0, float((chances * squares).sum())) ** 0.5 / size
    return noise / max(1e-300, scale * size), best


class _Dead(NamedTuple):
    """The shares of tokens, of sequences and of the reference's tokens without gradient."""

    tokens: float
    sequences: float
    where_ref: float


def _dead(world: World, outcome: Enumeration) -> _Dead:
    counted = world.mask[outcome.members]
    taken = (world.rows, world.tokens)
    apart = (world.policy.log_softmax(-1) - world.ref.log_softmax(-1))[taken].abs()
    differ = apart > limits.DIFFERENT
    still = (outcome.pushes == 0).all(-1) & counted & differ[outcome.members]
    quiet = (outcome.gradient == 0).all(-1).all(-1)
    chance = outcome.probability
    written = world.probabilities(world.ref)[outcome.members].prod(-1)

    def share(weight: torch.Tensor) -> float:
        return float((weight * still.sum((-1, -2))).sum() / (weight * counted.sum((-1, -2))).sum())

    return _Dead(share(chance), float((chance * quiet).sum()), share(written))


def _value_of(worlds: Sequence[World], outcomes: Sequence[Enumeration]) -> str:
    """Name the divergence that the loss's expected value is a multiple of, or nothing."""
    means = [float((one.probability * one.value).sum()) for one in outcomes]
    for target in TARGETS:
        if target.name not in VALUES or target.level not in ("token", "sequence"):
            continue
        ratios: dict[int, list[float]] = {}
        for world, mean in zip(worlds, means, strict=True):
            ratios.setdefault(world.length, []).append(mean / float(value(target, world)))
        if all(_alike(many) for many in ratios.values()):
            return target.name if all(many[0] > 0 for many in ratios.values()) else ""
    return ""


def _alike(ratios: list[float]) -> bool:
    """Whether all are the first, to rounding."""
    return all(abs(r - ratios[0]) <= limits.EXACT_MATCH * abs(ratios[0]) for r in ratios)


def audit(
    loss: Callable[..., Any],
    *,
    form: str = "auto",
    credit: str = "to-go",
    importance: str = "none",
    batch: int = 1,
    names: Mapping[str, str] | None = None,
) -> Audit:
    """Say which divergence a policy loss descends: E_behaviour[∇ loss], exactly, beside each ∇D.

    The worlds are 16: vocabularies of 2 to 12 tokens, sequences of 1 to 4, policy and reference
    near and far, samples on- and off-policy (behaviour 0.8 nats in standard deviation from the
    policy's logits). Every expectation is a sum over all sequences in float64: exact up to
    rounding. Named are: KL either way, JSD(β), skewed KLs, total variation, ½E[log²], χ², entropy,
    KLs to the behaviour policy, and sums of these; a name is given when the largest relative error
    over worlds is below 1e-5, one factor for each length being free. Advantages are zero, so that
    only the divergence is outcome. Gradients of inf or NaN are reported, never left out.

    Args:
        loss: Any callable on sampled sequences. What it is given is decided by the names of its
            parameters: `logp`, `ref_logp`, `behaviour_logp` `[batch, T]` (log-probabilities of the
            sampled tokens, in nats), `logits`, `ref_logits` `[batch, T, V]`, `tokens`, `labels`,
            `mask`, `bool_mask`, `advantages` (zeros) and the usual other spellings of these. It
            returns a scalar, or one value a token or a sequence, which are added up; of a tuple the
            first, of an object or a dictionary its `loss`. It must return the same for the same
            arguments.
        form: "loss" is differentiated; "penalty" is what is subtracted from the reward, and
            "reward" what is added to it, in a policy-gradient term; "auto" goes by the callable's
            name, where `reward` or `penalty` in it decides.
        credit: For those two, whose score a token's penalty multiplies: its own ("token"), also all
            earlier tokens' ("to-go"), or everyone's ("sequence").
        importance: By what that is weighted off-policy: "none", each token's ratio policy/behaviour
            ("token"), or the whole sequence's ("sequence").
        batch: Sequences at a time, 1 to 3, for losses that mix them (leave-one-out baselines);
            larger ones are audited in the smallest worlds only.
        names: Further names of parameters: `{"x": "logp"}` passes `logp` as x.

    Returns:
        An `Audit`; printed, it is the verdict in words.

    Raises:
        ValueError: A parameter that is not understood, a result of another shape or one that does
            not depend on the policy, or that is another one at the second call (dropout).
        TypeError: A result that is no tensor. What the loss itself raises comes through, with a
            note of what it was called with.

    Reference: MATH 5.4, 5.7, 5.8; Tang and Munos (2025), "On a few pitfalls in KL divergence
    gradient estimation for RL".

    Example:
        >>> def k3(logp, ref_logp):
        ...     return (ref_logp - logp).exp() - 1 - (ref_logp - logp)
        >>> found = audit(k3)
        >>> found.on_policy.descends, found.on_policy.value
        ('KL(ref‖policy)', 'KL(policy‖ref)')
    """
    caller = _caller(loss, form, credit, importance, batch, dict(names or {}))
    roles = caller.roles()
    every = worlds(batch=batch)
    caller.require_repeatable(every[0])
    on, on_rows, match = look(caller, every, on_policy=True)
    off, off_rows, _ = look(caller, every, on_policy=False)
    has_mask = bool({"mask", "bool_mask", "labels"} & set(roles.values()))
    lengths, padding = _different_lengths(caller, match) if has_mask else (None, False)
    found = Audit(
        name=_name(loss),
        form=caller.form,
        credit=credit,
        importance=importance,
        batch=batch,
        arguments=roles,
        on_policy=on,
        off_policy=off,
        rows=(*on_rows, *off_rows),
        response=tuple(response(caller)),
        lengths=lengths,
        padding=padding,
        verdict=verdict(on, off),
        notes=(),
    )
    return replace(found, notes=notes(found))


def _caller(
    loss: Callable[..., Any],
    form: str,
    credit: str,
    importance: str,
    batch: int,
    names: dict[str, str],
) -> Caller:
    require(callable(loss), "loss", "a callable", type(loss).__name__)
    if form == "auto":
        name = _name(loss).lower()
        form = next((word for word in ("penalty", "reward") if word in name), "loss")
    for option, given, allowed in (
        ("form", form, get_args(Form)),
        ("credit", credit, ("token", "to-go", "sequence")),
        ("importance", importance, ("none", "token", "sequence")),
    ):
        require(given in allowed, option, " or ".join(allowed), repr(given))
    require(batch in (1, 2, 3), "batch", "1, 2 or 3 sequences at a time", batch)
    return Caller(loss, form, credit, importance, batch, names)  # type: ignore[arg-type]


def _name(loss: Callable[..., Any]) -> str:
    while isinstance(loss, functools.partial):
        loss = loss.func
    return getattr(loss, "__name__", type(loss).__name__)


def _different_lengths(caller: Caller, match: Match | None) -> tuple[float | None, bool]:
    """Return the error in a world where sequences end early, and whether padding is pushed."""
    world: World = build(3, 3, distance="near", on_policy=True, ends=True)
    outcome = caller.enumerate(world)
    padded = outcome.pushes[~world.mask[outcome.members]]
    pushed = bool((padded != 0).any())
    if match is None or not match.exact:
        return None, pushed
    group = Group([world], [outcome.expected])
    slopes = torch.stack([c * group.slopes(target)[0] for c, target in match.terms]).sum(0)
    field = group.fields[0]
    factor = float((field * slopes).sum() / (slopes * slopes).sum())
    return float((field - factor * slopes).norm() / (factor * slopes).norm()), pushed
