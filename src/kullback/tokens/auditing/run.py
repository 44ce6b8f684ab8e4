"""The audit itself. Which to use: `audit`, as `kullback.tokens.audit`."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import torch

from kullback.core import require

from .calls import Caller, Form
from .findings import Audit
from .looking import look
from .matching import Group, Match
from .response import response
from .words import notes, verdict
from .worlds import World, build, worlds

__all__ = ["audit"]


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

    loss: any callable on sampled sequences. What it is given is decided by the names of its
    parameters: `logp`, `ref_logp`, `behaviour_logp` `[batch, T]` (log-probabilities of the sampled
    tokens, in nats), `logits`, `ref_logits` `[batch, T, V]`, `tokens`, `labels`, `mask`,
    `advantages` (zeros) and the usual other spellings of these; `names={"x": "logp"}` adds more.
    `bool_mask` (or names={"mask": "bool_mask"}) is a mask of bools. It returns a scalar, or one
    value a token or a sequence, which are added up; of a tuple the first, of an object its `loss`.
    form: "loss" is differentiated; "penalty" is what is subtracted from the reward, and "reward"
    what is added to it, in a policy-gradient term; "auto" goes by the callable's name, where
    `reward` or `penalty` in it decides. credit: for those two, whose score a token's penalty
    multiplies: its own ("token"), also all earlier tokens' ("to-go"), or everyone's ("sequence").
    importance: by what that is weighted off-policy: "none", each token's ratio policy/behaviour
    ("token"), or the whole sequence's ("sequence"). batch: sequences at a time, for losses that
    mix them (leave-one-out baselines); larger ones are audited in the smallest worlds only.

    The worlds are 16: vocabularies of 2 to 12 tokens, sequences of 1 to 4, policy and reference
    near and far, samples on- and off-policy (behaviour 0.8 nats in standard deviation from the
    policy's logits). Every expectation is a sum over all sequences in float64: exact up to
    rounding. Named are: KL either way, JSD(β), skewed KLs, total variation, ½E[log²], χ², entropy,
    KLs to the behaviour policy, and sums of these; a name is given when the largest relative error
    over worlds is below 1e-5, one factor for each length being free. Advantages are zero, so that
    only the divergence is seen. Gradients of inf or NaN are reported, never left out.

    Errors: `ValueError` for a parameter that is not understood, a result of another shape or one
    that does not depend on the policy; `TypeError` for a result that is no tensor. What the loss
    itself raises comes through, with a note of what it was called with.
    Reference: MATH 5.4, 5.7, 5.8; Tang and Munos (2025), "On a few pitfalls in KL divergence
    gradient estimation for RL".

    >>> def k3(logp, ref_logp):
    ...     return (ref_logp - logp).exp() - 1 - (ref_logp - logp)
    >>> found = audit(k3)
    >>> found.on_policy.descends, found.on_policy.value
    ('KL(ref‖policy)', 'KL(policy‖ref)')
    """
    caller = _caller(loss, form, credit, importance, batch, dict(names or {}))
    roles = caller.roles()
    every = worlds(batch=batch)
    on, on_rows, match = look(caller, every, on_policy=True)
    off, off_rows, _ = look(caller, every, on_policy=False)
    has_mask = bool({"mask", "bool_mask", "labels"} & set(roles.values()))
    lengths, padding = _different_lengths(caller, match) if has_mask else (None, False)
    rows = (*on_rows, *off_rows)
    found = Audit(
        _name(loss),
        caller.form,
        credit,
        importance,
        batch,
        roles,
        on,
        off,
        rows,
        tuple(response(caller)),
        lengths,
        padding,
        verdict(on, off),
        (),
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
    for option, value, allowed in (
        ("form", form, get_args(Form)),
        ("credit", credit, ("token", "to-go", "sequence")),
        ("importance", importance, ("none", "token", "sequence")),
    ):
        require(value in allowed, option, " or ".join(allowed), repr(value))
    require(batch in (1, 2, 3), "batch", "1, 2 or 3 sequences at a time", batch)
    return Caller(loss, form, credit, importance, batch, names)  # type: ignore[arg-type]


def _name(loss: Callable[..., Any]) -> str:
    while isinstance(loss, functools.partial):
        loss = loss.func
    return getattr(loss, "__name__", type(loss).__name__)


def _different_lengths(caller: Caller, match: Match | None) -> tuple[float | None, bool]:
    """Return the error in a world where sequences end early, and whether padding is pushed."""
    world: World = build(3, 3, distance="near", on_policy=True, ends=True)
    seen = caller.enumerate(world)
    padded = seen.pushes[~world.mask[seen.members]]
    pushed = bool((padded != 0).any())
    if match is None or not match.exact:
        return None, pushed
    group = Group([world], [seen.expected])
    slopes = torch.stack([c * group.slopes(target)[0] for c, target in match.terms]).sum(0)
    field = group.fields[0]
    factor = float((field * slopes).sum() / (slopes * slopes).sum())
    return float((field - factor * slopes).norm() / (factor * slopes).norm()), pushed
