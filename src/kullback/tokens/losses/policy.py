"""KL between a policy and its reference from sampled tokens, as a loss with the right gradient.

An estimator's value and its gradient are different things (MATH 5.8): k3, the best cheap value of
KL(π‖π_ref), differentiated as it stands descends KL(π_ref‖π); k2, biased as a value, has the right
gradient on-policy only. Here the loss *is* the value, and its gradient is put on separately: always
that of the divergence named, on-policy or off, whatever estimator the value takes.

Which to use:

- `policy_kl_loss` from log-probabilities of the tokens alone, or with the exact KL of every
  next-token distribution as a baseline;
- `rao_blackwell_kl_loss` where that exact KL carries a graph, which takes the sampled token out of
  value and gradient;
- `kl_penalty_to_go` to subtract from an advantage: complete, and with the least variance;
  `kl_penalties` where a library wants one number a token and sums them itself, and `reward_to_go`
  for that sum. All three are without a graph.

A penalty works through the score: `Σ_t penalty_t · ∇ log π_t` has to have the gradient of the
divergence as its mean. With `log π/π_ref` (k1) summed over the token and all after it, it has; with
k2 or k3 of the token itself it has not (MATH 5.8). What lies *ahead* of a token may come from any
unbiased estimator, so there k3 or the exact KL has less variance.

    advantage = reward_to_go(rewards) - coefficient * kl_penalty_to_go(...)
    loss = -(advantage * log_current).sum() / sequences

What losses are divided by is in `sequence_sums`, what they report in `policy_kl`.
"""

import math

import torch
from torch import Tensor

from kullback.core import require, require_type
from kullback.sampled import Estimator, coefficients
from kullback.tokens.backends.interface import refuse_mapped, transformed

from .compiled import policy_kl
from .input_checks import mismatch, refuse_infinite, report
from .policy_kl import PolicyKL
from .policy_terms import attach, detached, exact_terms, policy_kl_of
from .sampled_tokens import (
    Request,
    Sampled,
    ahead,
    at_prefixes,
    check,
    drawn_from,
    masked,
    slope_of,
)
from .sequence_sums import row_scale

__all__ = [
    "kl_penalties",
    "kl_penalty_to_go",
    "policy_kl_loss",
    "rao_blackwell_kl_loss",
    "reward_to_go",
]

_UNCHECKED = "without vmap, or with missing='keep' (and on_mismatch='ignore'): nothing is looked at"


def policy_kl_loss(
    *,
    log_current: Tensor,
    log_reference: Tensor,
    log_behaviour: Tensor | None = None,
    mask: Tensor | None = None,
    direction: str = "reverse",
    level: str = "token",
    normalise: str = "sequence",
    estimator: Estimator = "k3",
    exact_kl: Tensor | None = None,
    truncate: float | None = None,
    trust_region: tuple[float, float] | None = None,
    missing: str = "refuse",
    on_mismatch: str = "warn",
) -> PolicyKL:
    """Return a loss that estimates, and descends, KL(π‖π_ref) or KL(π_ref‖π) from sampled tokens.

    Exact: the expected gradient, over draws from μ, is that of the divergence to rounding, with
    neither `truncate` nor `trust_region`; the expected value too, but for k2. How often those two
    act, and what truncation adds to the value, is in the result; nothing else is clamped.
    π_ref = 0 at a drawn token (reverse): the loss is +inf, as the divergence is, and refused unless
    missing="keep". π = 0 at one (off-policy): weight 0. Nothing counts: loss 0, gradient 0.
    It looks at the loss, and so waits for a GPU; with missing="keep" and on_mismatch="ignore" not.

    Args:
        log_current: `[batch, length]`, log-probabilities in nats of the tokens drawn, under the
            policy π that is trained.
        log_reference: The same under the reference.
        log_behaviour: The same under the policy μ that drew them (with its temperature; top-p and
            top-k must not cut what π gives mass). None: on-policy, μ = π.
        mask: Bool `[batch, length]`, the tokens that count; others may hold anything, NaN too.
        direction: "reverse", KL(π‖π_ref), or "forward", KL(π_ref‖π) (MATH 4.1, 4.2).
        level: "token": the sum over positions of the KL of next-token distributions, with the
            prefixes taken as they were drawn; or "sequence": the KL of whole sequences, of which
            the former is only a part of the gradient, since a token also decides what comes after.
        normalise: "sequence" (nats/sequence), "batch", "token" or "sequence_mean" (see
            `sequence_sums`); at level "sequence" one of the first two.
        estimator: Of the value, and of what lies ahead at level "sequence": "k1", "k2" (biased;
            level "token" only), "k3", a number λ, "best" (cross-fitted over sequences).
        exact_kl: `[batch, length]`, the exact KL in this direction of each next-token distribution
            at the drawn prefixes, used without its graph: the value then is its weighted sum, and
            the reverse gradient has it as baseline, with less variance.
        truncate: Cut importance weights at this number.
        trust_region: (low, high); tokens whose π/μ is outside keep their value but get no gradient.
        missing: What to do about values that are no log-probabilities (positive, NaN, −9999 and
            other numbers for "not scored", a column one position late; `sampled.check_log_probs`)
            and about a loss that is not finite: "refuse" raises and says where; "skip" leaves such
            tokens out and counts them in the result; "keep" takes everything as given.
        on_mismatch: What to do where draws show that they do not come from what was scored, since
            the mean of π/μ (on-policy, for estimators with r, of π_ref/π) is not 1: "warn"
            (`InputWarning`), "raise" or "ignore". `estimate()` then has no standard error.

    Returns:
        A `PolicyKL`; its `loss` is the scalar to call `backward` on.

    Raises:
        ValueError: An option, a shape, or values that cannot be; the message names the argument.
        TypeError: Anything but tensors of floats.

    Reference: MATH 5.7, 5.8; Schulman (2020); Tang and Munos (2025) on sequences.

    Example:
        >>> current = torch.tensor([[-1.0, -2.0], [-0.5, -1.5]], requires_grad=True)
        >>> reference = torch.tensor([[-1.1, -1.8], [-0.7, -1.6]])
        >>> kl = policy_kl_loss(log_current=current, log_reference=reference)
        >>> kl.loss.backward()
        >>> round(kl.loss.item(), 4), kl.divergence
        (0.0249, 'KL(policy ‖ reference) of each token, at the prefixes drawn, nats/sequence')
        >>> current.grad  # (log π − log π_ref) / sequences: each token's own
        tensor([[ 0.0500, -0.1000],
                [ 0.1000,  0.0500]])
    """
    sampled = Sampled(log_current, log_reference, log_behaviour, mask)
    request = Request(direction, level, normalise, truncate, missing, on_mismatch)
    request.check(sampled)
    region = _log_limits(trust_region, log_behaviour)
    if torch.compiler.is_compiling() or any(map(transformed, sampled.logs)):
        return policy_kl(sampled, request, estimator, exact_kl, region)
    return policy_kl_of(sampled, request, estimator, exact_kl, region)[0]


def rao_blackwell_kl_loss(
    exact_kl: Tensor,
    *,
    log_current: Tensor,
    log_reference: Tensor,
    log_behaviour: Tensor | None = None,
    mask: Tensor | None = None,
    direction: str = "reverse",
    level: str = "sequence",
    normalise: str = "sequence",
    truncate: float | None = None,
    missing: str = "refuse",
    on_mismatch: str = "warn",
) -> PolicyKL:
    """Return the KL from exact next-token KLs at drawn prefixes, with its complete gradient.

    The value is `Σ_t W_<t · KL_t` with W_<t the weight of the prefix (1 on-policy, and at level
    "token"); its gradient is that of the KL_t, and at level "sequence" in the reverse direction
    also the part that autograd of such a sum misses: `Σ_t ∇ log π_t · Σ_{u>t} W_<u · KL_u`, for the
    tokens lead to the prefixes. The token drawn at a position plays no part in that position's own
    term (Rao-Blackwell, MATH 5.7), and that term, in value and gradient, never has more variance
    than any unbiased one by the token drawn. For a *sum* over several positions this is no law: a
    token's term may cancel what the token leads to. It nearly always has less variance;
    `estimate("best")` weighs it against k1, and with the best weight that never has more variance
    than either. Exact in expectation, as `policy_kl_loss`; edge cases are as there.

    Args:
        exact_kl: `[batch, length]`, KL(π‖π_ref) (or of the other `direction`) of the next-token
            distribution at each drawn prefix, in nats, with its graph: `kullback.tokens.kl`
            computes it from logits.
        log_current: As in `policy_kl_loss`.
        log_reference: As in `policy_kl_loss`.
        log_behaviour: As in `policy_kl_loss`.
        mask: As in `policy_kl_loss`.
        direction: As in `policy_kl_loss`.
        level: As in `policy_kl_loss`.
        normalise: As in `policy_kl_loss`.
        truncate: As in `policy_kl_loss`.
        missing: As in `policy_kl_loss`.
        on_mismatch: As in `policy_kl_loss`.

    Returns:
        A `PolicyKL`; its `loss` is the scalar to call `backward` on.

    Raises:
        ValueError: As in `policy_kl_loss`; besides, an exact KL without a graph where log_current
            has one: half the gradient would be missing.
        TypeError: Anything but tensors of floats.

    Reference: MATH 5.7; Amini et al. (2025), "Better estimation of the KL divergence between
    language models".

    Example:
        >>> logits = torch.zeros(1, 2, 3, requires_grad=True)
        >>> log_p = logits.log_softmax(-1)
        >>> log_q = torch.tensor([0.5, 0.25, 0.25]).log()
        >>> kl = rao_blackwell_kl_loss(
        ...     (log_p.exp() * (log_p - log_q)).sum(-1),
        ...     log_current=log_p[..., 0],
        ...     log_reference=log_q[0].expand(1, 2),
        ... )
        >>> round(kl.loss.item(), 4)
        0.1133
    """
    sampled = Sampled(log_current, log_reference, log_behaviour, mask)
    request = Request(direction, level, normalise, truncate, missing, on_mismatch)
    request.check(sampled)
    if (missing, on_mismatch) != ("keep", "ignore"):
        refuse_mapped(log_current, "log_current", _UNCHECKED)
    check({"log_current": log_current, "exact_kl": exact_kl}, mask)
    trained = torch.is_grad_enabled() and log_current.requires_grad
    lost = trained and direction == "reverse" and not exact_kl.requires_grad
    hint = "compute it from logits outside of no_grad, or policy_kl_loss(exact_kl=…), without one"
    require(not lost, "exact_kl", "a tensor with its graph", "one without", hint)
    drawn = drawn_from(sampled, request)
    mask = drawn.mask
    scale = row_scale(mask, drawn.log_ratio, normalise)
    wide = exact_kl if mask is None else torch.where(mask, exact_kl, 0.0)
    wide = wide.to(drawn.log_ratio.dtype)
    terms, martingale = exact_terms(drawn, wide.detach())
    value = (at_prefixes(drawn, wide) * scale).sum()
    if level == "sequence" and direction == "reverse":
        slope = masked(ahead(terms), mask) * scale
        value = attach(value, log_current, slope)
    kl = PolicyKL(
        loss=value,
        drawn=drawn,
        terms=terms,
        normalise=normalise,
        estimator="exact",
        martingale=martingale,
    )
    if missing != "keep":
        refuse_infinite(drawn, terms, terms, exact_kl=exact_kl, loss=value)
    if on_mismatch != "ignore":
        report(kl.mismatch("exact"), "log_current", on_mismatch)
    return kl


def kl_penalties(
    *,
    log_current: Tensor,
    log_reference: Tensor,
    mask: Tensor | None = None,
    missing: str = "refuse",
) -> Tensor:
    """Return `log π − log π_ref` of each token: nats to subtract from its reward.

    Their sum over a sequence has mean KL(π‖π_ref) for tokens drawn from π. Single ones are
    negative; clipped, they would be biased. A policy gradient needs their sum over the token *and
    all after it* (`reward_to_go`). π_ref = 0 at a drawn token: +inf with missing="keep", else
    refused.

    Args:
        log_current: `[batch, length]`, log-probabilities of the tokens drawn, under the policy.
        log_reference: The same under the reference.
        mask: Bool `[batch, length]`, the tokens that count.
        missing: As in `policy_kl_loss`; "skip" gives 0 where a value is no log-probability.

    Returns:
        `[batch, length]`, 0 where masked, without a graph.

    Raises:
        ValueError: An option, a shape, or values that cannot be; the message names the argument.
        TypeError: Anything but tensors of floats.

    Reference: MATH 5.1, 5.8.

    Example:
        >>> kl_penalties(
        ...     log_current=torch.tensor([[-1.0, -2.0]]), log_reference=torch.tensor([[-1.5, -1.0]])
        ... )
        tensor([[ 0.5000, -1.0000]])
    """
    sampled, request = Sampled(log_current, log_reference, mask=mask), Request(missing=missing)
    request.check(sampled)
    if missing != "keep":
        refuse_mapped(log_current, "log_current", _UNCHECKED)
    drawn = drawn_from(sampled, request)
    if missing != "keep":
        refuse_infinite(drawn, -drawn.log_ratio, -drawn.log_ratio)
    return -drawn.log_ratio


def kl_penalty_to_go(
    *,
    log_current: Tensor,
    log_reference: Tensor,
    log_behaviour: Tensor | None = None,
    mask: Tensor | None = None,
    estimator: Estimator = "k3",
    exact_kl: Tensor | None = None,
    truncate: float | None = None,
    missing: str = "refuse",
    on_mismatch: str = "warn",
) -> Tensor:
    """Return the penalties `g_t` for which `E[Σ_t g_t · ∇ log π_t]` is the gradient of KL(π‖π_ref).

    `g_t = W_t (log π_t − log π_ref,t − b_t) + Σ_{u>t} k_u`: the token's own log-ratio, and unbiased
    terms of what it leads to.

    Args:
        log_current: `[batch, length]`, log-probabilities of the tokens drawn, under the policy.
        log_reference: The same under the reference.
        log_behaviour: The same under the policy that drew them, None for the current one. All
            importance weights are in the penalties already.
        mask: Bool `[batch, length]`, the tokens that count.
        estimator: Of the terms ahead, any unbiased one: "k1" is the usual reward-to-go; "k3" has
            less variance where the policies are close.
        exact_kl: `[batch, length]`, the exact KL of each next-token distribution; it then is b_t
            and what lies ahead.
        truncate: Cut importance weights at this number.
        missing: As in `policy_kl_loss`.
        on_mismatch: As in `policy_kl_loss`.

    Returns:
        `[batch, length]`, in nats, 0 where masked, without a graph.

    Raises:
        ValueError: An option, a shape, or values that cannot be; the message names the argument.
        TypeError: Anything but tensors of floats.

    Reference: MATH 5.7, 5.8; Tang and Munos (2025).

    Example:
        >>> logs = {"log_current": torch.tensor([[-1.0, -2.0]])}
        >>> logs["log_reference"] = torch.tensor([[-1.5, -1.0]])
        >>> kl_penalty_to_go(**logs, estimator="k1")
        tensor([[-0.5000, -1.0000]])
    """
    sampled = Sampled(log_current, log_reference, log_behaviour, mask)
    request = Request(level="sequence", truncate=truncate, missing=missing, on_mismatch=on_mismatch)
    request.check(sampled)
    refuse_mapped(log_current, "log_current")
    drawn = drawn_from(sampled, request)
    known = estimator not in ("k2", "best")
    require(known, "estimator", "'k1', 'k3' or a number λ", repr(estimator), "'k3'")
    baseline, terms = exact_kl, drawn.value_terms(coefficients(estimator))
    if exact_kl is not None:
        baseline = detached(exact_kl, drawn)
        terms = at_prefixes(drawn, baseline)
    penalties = masked(slope_of(drawn, terms, baseline), drawn.mask)
    if missing != "keep":
        refuse_infinite(drawn, terms, penalties, exact_kl=exact_kl)
    if on_mismatch != "ignore":
        has_ratio = exact_kl is None and estimator != "k1"
        reason = mismatch(drawn) or (mismatch(drawn, ratio=True) if has_ratio else "")
        report(reason, "log_current", on_mismatch)
    return penalties


def reward_to_go(rewards: Tensor, *, mask: Tensor | None = None, discount: float = 1.0) -> Tensor:
    """Return `Σ_{u≥t} discount^{u−t} · reward_u`: what a token and all after it brought.

    Args:
        rewards: `[batch, length]`.
        mask: Bool `[batch, length]`, positions that count; others bring 0 and get 0 but take their
            step of the discount.
        discount: In (0, 1].

    Returns:
        `[batch, length]`, with a graph where the rewards have one.

    Raises:
        ValueError: A shape or discount that cannot be; the message names the argument.
        TypeError: Anything but tensors of floats, and a number.

    Example:
        >>> reward_to_go(torch.tensor([[1.0, 2.0, 4.0]]), discount=0.5)
        tensor([[3., 4., 4.]])
    """
    check({"rewards": rewards}, mask)
    require_type(discount, (int, float), "discount")
    require(0 < discount <= 1, "discount", "a number above 0, at most 1", discount)
    total, step = rewards if mask is None else torch.where(mask, rewards, 0.0), 1
    while step < rewards.shape[-1]:  # sums over 1, 2, 4, … places
        later = torch.nn.functional.pad(total[:, step:], (0, step))
        total, step = total + discount**step * later, 2 * step
    return total if mask is None else torch.where(mask, total, 0.0)


def _log_limits(
    limits: tuple[float, float] | None, log_behaviour: Tensor | None
) -> tuple[float, float] | None:
    """Check a trust region and return the logs of its ends."""
    if limits is None:
        return None
    known = log_behaviour is not None
    hint = "pass log_behaviour, or leave it out: on-policy every ratio is 1"
    require(known, "trust_region", "None where draws come from the policy itself", limits, hint)
    pair = isinstance(limits, tuple | list) and len(limits) == 2
    ordered = pair and all(isinstance(end, int | float) for end in limits)
    ordered = ordered and 0 <= limits[0] <= 1 <= limits[1]
    hint = "(0.8, 1.2)"
    require(ordered, "trust_region", "(low, high) with 0 ≤ low ≤ 1 ≤ high", repr(limits), hint)
    low, high = limits
    return (math.log(low) if low else -math.inf, math.log(high))
