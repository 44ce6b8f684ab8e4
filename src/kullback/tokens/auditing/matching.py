"""The divergences a loss may descend, with their exact gradients in a world, and their best noise.

A target is a divergence between next-token tables or between whole sequences:

- level "token": Σ over prefixes h of w(h)·D(policy(·|h), ref(·|h)) with the weights held fixed:
  what a sum of per-token terms over samples can be the gradient of. The w(h) are how often the
  behaviour passes h, or the policy, or the reference ("token, policy's prefixes", …).
- level "sequence": D between the two distributions over whole sequences, which also counts that
  the policy decides which prefixes come. With one token a sequence the levels agree.

The second half asks which divergence a field of gradients is the gradient of: one, a sum, or none.
A loss may be a multiple of a divergence, and the multiple may depend on the length (means over
tokens), so one factor is fitted for each length, over all worlds together. What still differs is
the relative error.

Which to use: `TARGETS` for the list, `gradient` for one, `best_estimator` for the least noisy
unbiased estimator of one that we know: the sum over the vocabulary instead of the sampled token
(Rao-Blackwell, MATH 5.7). `Group` holds the fields of some worlds; `single`, `mixture` and `family`
look for one target, a sum, or a member of a parametric family that fits exactly; `closest` for the
nearest.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kullback.exact import tables
from kullback.tokens import limits

from .worlds import World

__all__ = [
    "BASIS",
    "FORWARD",
    "REVERSE",
    "TARGETS",
    "Group",
    "Match",
    "Target",
    "best_estimator",
    "closest",
    "family",
    "fit",
    "gradient",
    "js",
    "mixture",
    "single",
    "skew",
    "value",
]

Divergence = Callable[[Tensor, Tensor], Tensor]


def _entropy(p: Tensor, _: Tensor) -> Tensor:
    return -tables.entropy(p, form="logits")


def _half_square(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return 0.5 * (log_p.exp() * (log_p - log_q) ** 2).sum(-1)


def _of(function: Callable[..., Tensor], *, swapped: bool = False) -> Divergence:
    if swapped:
        return lambda p, q: function(q, p, form="logits")
    return lambda p, q: function(p, q, form="logits")


DIVERGENCES: dict[str, Divergence] = {
    "KL(policy‖ref)": _of(tables.kl),
    "KL(ref‖policy)": _of(tables.kl, swapped=True),
    "JSD(½)": _of(tables.js),
    "TV(policy, ref)": _of(tables.total_variation),
    "½E[log²(policy/ref)]": _half_square,
    "χ²(policy‖ref)": _of(tables.chi2),
    "χ²(ref‖policy)": _of(tables.chi2, swapped=True),
    "−H(policy)": _entropy,
    "KL(behaviour‖policy)": _of(tables.kl, swapped=True),
    "KL(policy‖behaviour)": _of(tables.kl),
}
REVERSE, FORWARD = "KL(policy‖ref)", "KL(ref‖policy)"
BASIS = tuple(list(DIVERGENCES)[:2] + list(DIVERGENCES)[3:8])  # of which sums are tried
LEVELS = ("token", "sequence", "token, policy's prefixes", "token, ref's prefixes")


@dataclass(frozen=True, slots=True)
class Target:
    """A divergence by name, its level, and the function of two tables of logits that it is.

    >>> print(Target("KL(policy‖ref)", "token", DIVERGENCES["KL(policy‖ref)"]))
    KL(policy‖ref) [token]
    """

    name: str
    level: str
    divergence: Divergence

    def __str__(self) -> str:
        return f"{self.name} [{self.level}]"

    def other(self, world: World) -> Tensor:
        """Return the logits the policy is compared with."""
        return world.behaviour if "behaviour" in self.name else world.ref


TARGETS = tuple(Target(name, level, d) for level in LEVELS for name, d in DIVERGENCES.items())


def js(beta: float, level: str) -> Target:
    """Return the generalised Jensen-Shannon divergence, β the weight of the reference.

    β·KL(ref‖m) + (1 − β)·KL(policy‖m), m = β·ref + (1 − β)·policy (Agarwal et al. 2024, eq. 1).
    """
    return Target(
        f"JSD({beta:.6g})", level, lambda p, q: tables.js(q, p, weight=beta, form="logits")
    )


def skew(alpha: float, level: str, *, reverse: bool = False) -> Target:
    """Return KL(ref‖α·ref + (1 − α)·policy), or with the two exchanged (Ko et al. 2024)."""

    def skewed(p: Tensor, q: Tensor) -> Tensor:
        first, second = (
            (p.softmax(-1), q.softmax(-1)) if reverse else (q.softmax(-1), p.softmax(-1))
        )
        return tables.kl(first, alpha * first + (1 - alpha) * second, normalise=True)

    names = ("policy", "ref") if reverse else ("ref", "policy")
    return Target(f"KL({names[0]}‖{alpha:.6g}·{names[0]} + …·{names[1]})", level, skewed)


def value(target: Target, world: World, policy: Tensor | None = None) -> Tensor:
    """Return what the target is in a world, in nats a sequence, differentiable in `policy`."""
    logits = world.policy if policy is None else policy
    other = target.other(world)
    if target.level == "sequence":
        return target.divergence(world.log_probabilities(logits), world.log_probabilities(other))
    prefixes = world.reach(_drawing(world)[target.level])
    return (prefixes * target.divergence(logits, other)).sum()


def _drawing(world: World) -> dict[str, Tensor]:
    """Return the policy that draws the prefixes at each token level."""
    tables = (world.behaviour, world.policy, world.ref)
    return dict(zip([level for level in LEVELS if level != "sequence"], tables, strict=True))


@functools.lru_cache(maxsize=4096)
def gradient(target: Target, world: World) -> Tensor:
    """Return the target's exact gradient with respect to the policy's logits, `[rows + 1, V]`."""
    leaf = world.policy.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(target, world, leaf), leaf)
    return found


def best_estimator(target: Target, world: World) -> Tensor | None:
    """Return the least noisy unbiased gradient of one sampled sequence that we know, or None.

    `[N, rows + 1, V]`, one a sequence of the world: at every prefix that was passed the exact
    gradient of that prefix's term, weighted by how much rarer the behaviour passes it than it
    should; for KL(policy‖ref) of sequences also the scores of the tokens that led there.
    Known for the token levels, and for both KLs of sequences.
    """
    of_sequences = {REVERSE: world.policy, FORWARD: world.ref}
    source = _drawing(world).get(target.level, of_sequences.get(target.name))
    if source is None:
        return None
    leaf = world.policy.clone().requires_grad_()
    terms = target.divergence(leaf, target.other(world))
    (slopes,) = torch.autograd.grad(terms.sum(), leaf)
    weight = _prefix_weight(world, source)
    found = _at_rows(world, weight[..., None] * slopes[world.rows])
    if target.level == "sequence" and target.name == REVERSE:
        later = (weight * terms.detach()[world.rows] * world.mask).flip(-1).cumsum(-1).flip(-1)
        to_come = later - weight * terms.detach()[world.rows] * world.mask
        found = found + _at_rows(world, to_come[..., None] * scores(world))
    return found


def scores(world: World) -> Tensor:
    """Return ∇ log policy(token|prefix) with respect to that prefix's logits, `[N, T, V]`."""
    one_hot = torch.nn.functional.one_hot(world.tokens, world.vocabulary)
    return one_hot - world.policy.softmax(-1)[world.rows]


def _prefix_weight(world: World, source: Tensor) -> Tensor:
    """Return source(prefix) / behaviour(prefix) for every token of every sequence, `[N, T]`."""
    steps = (source.log_softmax(-1) - world.behaviour.log_softmax(-1))[world.rows, world.tokens]
    before = torch.where(world.mask, steps, 0.0).cumsum(-1).roll(1, -1)
    before[:, 0] = 0.0
    return before.exp()


def _at_rows(world: World, slopes: Tensor) -> Tensor:
    """Put `[N, T, V]` at the rows of the tables, `[N, rows + 1, V]`, leaving padding out."""
    found = world.policy.new_zeros(len(world.tokens), *world.policy.shape)
    which = torch.arange(len(world.tokens))[:, None].expand_as(world.rows)
    found.index_put_((which, world.rows), slopes * world.mask[..., None], accumulate=True)
    return found


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
        return self.error < limits.EXACT_MATCH

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
    if max(float(slope.norm()) for slope in slopes) < limits.CONSTANT:
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
    ruled_out: set[str] = set()  # with one token a sequence all levels are the same
    for target in TARGETS:
        if target.name in ruled_out:
            continue
        match = fit(shortest, target)
        if match is None or not match.exact:
            ruled_out.add(target.name)
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

    step = limits.PARAMETER_STEP
    start = min((0.02 + step * i for i in range(9)), key=badness)
    if badness(start) > limits.NO_GUESS:
        return None
    low, high = max(1e-4, start - step), min(1 - 1e-4, start + step)
    while high - low > limits.PARAMETER_WIDTH:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if badness(left) < badness(right) else (left, high)
        if high - low < limits.FIT_WIDTH and badness((low + high) / 2) > limits.NO_FIT:
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
    if not bool((shares - coefficients).abs().max() < limits.EXACT_MATCH):
        return None
    kept = [i for i in range(len(basis)) if abs(float(coefficients[i])) > limits.EXACT_MATCH]
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
