"""From the enumerated gradients of a regime to what the loss descends there, and the rows.

Which to use: `look`.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .calls import Caller, Enumeration
from .closed import gradient_of
from .findings import Finding, Likeness, Row
from .matching import EXACT, Group, Match, closest, family, fit, mixture, single
from .targets import FORWARD, REVERSE, TARGETS, Target, best_estimator, value
from .worlds import World

__all__ = ["look"]

ZERO = 1e-6  # of the size of single gradients: a mean below it is zero
SHOWN = (REVERSE, FORWARD, "JSD(½)")
VALUES = (REVERSE, FORWARD, "JSD(½)", "TV(policy, ref)", "½E[log²(policy/ref)]")


def look(
    caller: Caller, worlds: Sequence[World], *, on_policy: bool
) -> tuple[Finding, list[Row], Match | None]:
    """Return the finding of one regime, its rows, and the match behind it."""
    mine = [world for world in worlds if world.on_policy == on_policy]
    seen = [caller.enumerate(world) for world in mine]
    group = Group(mine, [one.expected for one in seen])
    value_name = _value_of(mine, seen)
    if not all(bool(field.isfinite().all()) for field in group.fields):
        kind, match = "not finite", None
    elif all(_is_zero(one) for one in seen):
        kind, match = "zero", None
    elif all(_is_zero(one) for w, one in zip(mine, seen, strict=True) if w.distance == "near"):
        kind, match = "near zero", None
    else:
        kind, match = _matched(group, on_policy=on_policy)
    if match is None:
        none: dict[str, Any] = {"ascends": False, "gradient_of": "", "value": value_name}
        finding = Finding(on_policy, kind, "", "", 1.0, 0.0, 1.0, {}, **none)
    else:
        of = gradient_of(caller, on_policy=on_policy) if kind == "none" else ""
        finding = _finding(kind, match, group, on_policy=on_policy, value_name=value_name, of=of)
    rows = [
        _row(world, one, _errors(match, i), _compared(group, i), match)
        for i, (world, one) in enumerate(zip(mine, seen, strict=True))
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
        on_policy,
        kind,
        _sum_text(match.terms),
        match.target.level,
        match.error,
        match.cosine,
        max(near),
        dict(match.scale),
        ascends,
        of,
        value_name,
    )


def _sum_text(terms: tuple[tuple[float, Target], ...]) -> str:
    """Write a sum of divergences, without the sign where there is only one."""
    if len(terms) == 1:
        return terms[0][1].name
    parts = []
    for coefficient, target in terms:
        size = "" if abs(abs(coefficient) - 1) < 1e-5 else f"{abs(coefficient):.4g}·"
        parts.append(f"{'−' if coefficient < 0 else '+'} {size}{target.name}")
    return " ".join(parts).removeprefix("+ ")


def _is_zero(seen: Enumeration) -> bool:
    square = (seen.gradient**2).sum((-1, -2))
    size = float((seen.probability * square).sum()) ** 0.5
    return bool(seen.expected.norm() <= ZERO * size)


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
    world: World, seen: Enumeration, bias: float, compared: list[Likeness], match: Match | None
) -> Row:
    noise, best = _noise(world, seen, match)
    bad = (~seen.gradient.isfinite()).any(-1).any(-1)
    reverse = next(t for t in TARGETS if t.name == REVERSE and t.level == "sequence")
    return Row(
        world.vocabulary,
        world.length,
        world.distance,
        world.on_policy,
        float(value(reverse, world)),
        float((seen.probability * seen.value).sum()),
        bias,
        noise,
        best,
        *_dead(world, seen),
        float((seen.probability * bad).sum()),
        tuple(compared),
    )


def _noise(
    world: World, seen: Enumeration, match: Match | None
) -> tuple[float | None, float | None]:
    """Return the noise and the best known noise, in lengths of the divergence's gradient."""
    spread = ((seen.gradient - seen.expected) ** 2).sum((-1, -2))
    noise = float((seen.probability * spread).sum()) ** 0.5
    if match is None:
        return None, None
    scale = abs(match.scale[world.length])
    size = float(seen.expected.norm()) / max(1e-300, scale)
    best = None
    if len(match.terms) == 1:
        slope = Group([world], [seen.expected]).slopes(match.target)[0]
        size = float(slope.norm())
        optimal = best_estimator(match.target, world)
        if optimal is not None and size > 0:
            squares = ((optimal - slope) ** 2).sum((-1, -2))
            chances = world.probabilities(world.behaviour)
            best = max(0.0, float((chances * squares).sum())) ** 0.5 / size
    return noise / max(1e-300, scale * size), best


def _dead(world: World, seen: Enumeration) -> tuple[float, float, float]:
    """Return the shares of tokens and sequences without gradient, and of the reference's tokens."""
    counted = world.mask[seen.members]
    taken = (world.rows, world.tokens)
    differ = (world.policy.log_softmax(-1) - world.ref.log_softmax(-1))[taken].abs() > 1e-9
    still = (seen.pushes == 0).all(-1) & counted & differ[seen.members]
    quiet = (seen.gradient == 0).all(-1).all(-1)
    chance = seen.probability
    written = world.probabilities(world.ref)[seen.members].prod(-1)

    def share(weight: torch.Tensor) -> float:
        return float((weight * still.sum((-1, -2))).sum() / (weight * counted.sum((-1, -2))).sum())

    return share(chance), float((chance * quiet).sum()), share(written)


def _value_of(worlds: Sequence[World], seen: Sequence[Enumeration]) -> str:
    """Name the divergence that the loss's expected value is a multiple of, or nothing."""
    means = [float((one.probability * one.value).sum()) for one in seen]
    for target in TARGETS:
        if target.name not in VALUES or target.level not in ("token", "sequence"):
            continue
        ratios: dict[int, list[float]] = {}
        for world, mean in zip(worlds, means, strict=True):
            ratios.setdefault(world.length, []).append(mean / float(value(target, world)))
        if all(abs(r - many[0]) <= EXACT * abs(many[0]) for many in ratios.values() for r in many):
            return target.name if all(many[0] > 0 for many in ratios.values()) else ""
    return ""
