"""The divergences a loss may descend, with their exact gradients in a world, and their best noise.

A target is a divergence between next-token tables or between whole sequences:

- level "token": Σ over prefixes h of w(h)·D(policy(·|h), ref(·|h)) with the weights held fixed:
  what a sum of per-token terms over samples can be the gradient of. The w(h) are how often the
  behaviour passes h, or the policy, or the reference ("token, policy's prefixes", …).
- level "sequence": D between the two distributions over whole sequences, which also counts that
  the policy decides which prefixes come. With one token a sequence the levels agree.

Which to use: `TARGETS` for the list, `gradient` for one, `best_estimator` for the least noisy
unbiased estimator of one that we know: the sum over the vocabulary instead of the sampled token
(Rao-Blackwell, MATH 5.7).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.exact import tables

from .worlds import World

__all__ = [
    "BASIS",
    "FORWARD",
    "REVERSE",
    "TARGETS",
    "Target",
    "best_estimator",
    "gradient",
    "js",
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
        pair = world.log_probabilities(logits), world.log_probabilities(other)
        return target.divergence(*pair)
    prefixes = {
        "token": world.behaviour,
        "token, policy's prefixes": world.policy,
        "token, ref's prefixes": world.ref,
    }[target.level]
    return (world.reach(prefixes) * target.divergence(logits, other)).sum()


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
    source = {
        "token": world.behaviour,
        "token, policy's prefixes": world.policy,
        "token, ref's prefixes": world.ref,
    }.get(target.level)
    if source is None:
        source = {REVERSE: world.policy, FORWARD: world.ref}.get(target.name)
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
