"""Which divergence a field of gradients is the gradient of: one, a sum of some, or none.

A loss may be a multiple of a divergence, and the multiple may depend on the length (means over
tokens), so one factor is fitted for each length, over all worlds together. What still differs is
the relative error.

Which to use: `Group` holds the fields of some worlds; `single`, `mixture` and `family` look for one
target, a sum, or a member of a parametric family that fits exactly; `closest` for the nearest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .targets import BASIS, FORWARD, REVERSE, TARGETS, Target, gradient, js, skew
from .worlds import World

__all__ = ["EXACT", "Group", "Match", "closest", "family", "fit", "mixture", "single"]

EXACT = 1e-5  # relative error below which a match is one; float32 inside a loss costs 1e-6
MEANT = (REVERSE, FORWARD, "JSD(½)", "TV(policy, ref)")
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Match:
    """A sum of targets beside a field: coefficients, factors, and what remains.

    terms: coefficient and target; the first coefficient is 1 or −1. scale: factor by length T.
    errors, cosines: of each world of the group, ‖field − fit‖/‖fit‖ and the cosine between them.

    >>> Match(((1.0, TARGETS[0]),), {1: 0.5}, (1e-16,), (1.0,)).exact
    True
    """

    terms: tuple[tuple[float, Target], ...]
    scale: Mapping[int, float]
    errors: tuple[float, ...]
    cosines: tuple[float, ...]

    @property
    def error(self) -> float:
        """The largest relative error."""
        return max(self.errors)

    @property
    def cosine(self) -> float:
        """The smallest cosine."""
        return min(self.cosines)

    @property
    def exact(self) -> bool:
        """Whether it is the same field in every world."""
        return self.error < EXACT

    @property
    def target(self) -> Target:
        """The first target."""
        return self.terms[0][1]


@dataclass(frozen=True, slots=True)
class Group:
    """The expected gradients of a loss in some worlds."""

    worlds: Sequence[World]
    fields: Sequence[Tensor]

    def slopes(self, target: Target) -> list[Tensor]:
        """Return the target's gradient in each world."""
        return [gradient(target, world) for world in self.worlds]

    def only(self, keep: Callable[[World], bool]) -> "Group":
        """Return the part of the group whose worlds pass."""
        both = [(w, f) for w, f in zip(self.worlds, self.fields, strict=True) if keep(w)]
        return Group([w for w, _ in both], [f for _, f in both])

    @property
    def lengths(self) -> list[int]:
        """The lengths T of the group's worlds, each once."""
        return sorted({world.length for world in self.worlds})


def fit(group: Group, target: Target, scale: Mapping[int, float] | None = None) -> Match | None:
    """Fit a multiple of one target, or take `scale`; None where the target is flat everywhere."""
    slopes = group.slopes(target)
    if max(float(slope.norm()) for slope in slopes) < 1e-12:
        return None
    if scale is None:
        scale = {
            length: _ratio(
                [
                    (f, s)
                    for w, f, s in zip(group.worlds, group.fields, slopes, strict=True)
                    if w.length == length
                ]
            )
            for length in group.lengths
        }
    fitted = [scale[w.length] * s for w, s in zip(group.worlds, slopes, strict=True)]
    signs = {value < 0 for value in scale.values()}
    sign = -1.0 if signs == {True} else 1.0
    scale = {length: sign * value for length, value in scale.items()}
    return _match(((sign, target),), scale, group, fitted)


def single(group: Group) -> Match | None:
    """Return the first target of the list whose gradient the field is, exactly; or None."""
    shortest = group.only(lambda world: world.length == group.lengths[0])
    hopeless: set[str] = set()  # with one token a sequence all levels are the same
    for target in TARGETS:
        if target.name in hopeless:
            continue
        match = fit(shortest, target)
        if match is None or not match.exact:
            hopeless.add(target.name)
            continue
        match = fit(group, target)
        if match is not None and match.exact:
            return match
    return None


def closest(group: Group) -> Match:
    """Return the divergence from the reference whose gradient makes the smallest angle on average.

    Of those a loss is likely to be meant for: KL either way, JSD(½), total variation.
    """
    likely = [t for t in TARGETS if t.name in MEANT and t.level in ("token", "sequence")]
    found = [fit(group, target) for target in likely]
    return max((m for m in found if m is not None), key=lambda m: abs(sum(m.cosines)))


def mixture(group: Group, *, behaviour: bool) -> Match | None:
    """Return the sum of divergences, with the same proportions at every length, that fits exactly.

    behaviour: whether divergences from the behaviour policy may take part. None where none fits.
    """
    names = (*BASIS, "KL(behaviour‖policy)", "KL(policy‖behaviour)") if behaviour else BASIS
    shortest = group.only(lambda world: world.length == group.lengths[0])
    basis = [t for t in TARGETS if t.level == "token" and t.name in names]
    if _sum_of(shortest, basis) is None:
        return None
    for level in dict.fromkeys(target.level for target in TARGETS):
        basis = [t for t in TARGETS if t.level == level and t.name in names]
        found = _sum_of(group, basis)
        if found is not None:
            return found
    return None


def family(group: Group) -> Match | None:
    """Return the member of a parametric family that fits exactly: JSD(β), skewed KLs; or None."""
    for level in ("token", "sequence"):
        for make in (js, skew, partial(skew, reverse=True)):
            parameter = _searched(group, partial(make, level=level))
            if parameter is not None:
                match = fit(group, make(parameter, level=level))
                if match is not None and match.exact:
                    return match
    return None


def _searched(group: Group, make: Callable[..., Target]) -> float | None:
    """Return the parameter that fits best in one of the worlds; None where none comes near."""
    few = group.only(lambda world: world.distance == "far" and world.length == group.lengths[0])

    def badness(parameter: float) -> float:
        match = fit(few, make(parameter))
        return float("inf") if match is None else sum(match.errors)

    start = min((0.02 + 0.12 * i for i in range(9)), key=badness)
    if badness(start) > 0.5:
        return None
    low, high = max(1e-4, start - 0.12), min(1 - 1e-4, start + 0.12)
    while high - low > 1e-9:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if badness(left) < badness(right) else (left, high)
        if high - low < 1e-2 and badness((low + high) / 2) > 0.1:
            return None
    return round((low + high) / 2, 7)


def _sum_of(group: Group, basis: Sequence[Target]) -> Match | None:
    """Fit a sum of the basis at every length; return it if exact, and of the same proportions."""
    slopes = [group.slopes(target) for target in basis]
    by_length = {}
    for length in group.lengths:
        at = [i for i, world in enumerate(group.worlds) if world.length == length]
        columns = torch.stack([torch.cat([s[i].flatten() for i in at]) for s in slopes], -1)
        field = torch.cat([group.fields[i].flatten() for i in at])
        by_length[length] = torch.linalg.lstsq(columns, field, driver="gelsd").solution
    shares = torch.stack(list(by_length.values()))
    lead = int(shares.abs().mean(0).argmax())
    shares = shares / shares[:, lead : lead + 1]
    coefficients = shares.mean(0)
    if not bool((shares - coefficients).abs().max() < 1e-5):
        return None
    kept = [i for i in range(len(basis)) if abs(float(coefficients[i])) > 1e-5]
    kept.sort(key=lambda i: float(coefficients[i]) * float(by_length[group.lengths[0]][lead]) < 0)
    sign = -1.0 if all(float(c[lead]) < 0 for c in by_length.values()) else 1.0
    scale = {length: sign * float(c[lead]) for length, c in by_length.items()}
    terms = tuple((sign * round(float(coefficients[i]), 6), basis[i]) for i in kept)
    fitted = []
    for i, world in enumerate(group.worlds):
        parts = [c * slopes[basis.index(target)][i] for c, target in terms]
        fitted.append(scale[world.length] * torch.stack(parts).sum(0))
    match = _match(terms, scale, group, fitted)
    return match if match.exact else None


def _match(
    terms: tuple[tuple[float, Target], ...],
    scale: Mapping[int, float],
    group: Group,
    fitted: Sequence[Tensor],
) -> Match:
    pairs = list(zip(group.fields, fitted, strict=True))
    errors = tuple(_error(f, g) for f, g in pairs)
    return Match(terms, scale, errors, tuple(_cosine(f, g) for f, g in pairs))


def _ratio(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    below = sum(float((s * s).sum()) for _, s in pairs)
    return sum(float((f * s).sum()) for f, s in pairs) / below if below > 0 else 0.0


def _error(field: Tensor, fitted: Tensor) -> float:
    return float((field - fitted).norm() / fitted.norm().clamp_min(1e-300))


def _cosine(field: Tensor, fitted: Tensor) -> float:
    sizes = float(field.norm() * fitted.norm())
    return float((field * fitted).sum()) / sizes if sizes > 0 else 0.0
