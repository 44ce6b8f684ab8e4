"""KL(π‖π_ref) as a penalty on rewards, for policy gradients that weigh `∇ log π` by an advantage.

A penalty works through the score: `Σ_t penalty_t · ∇ log π_t` has to have the gradient of the
divergence as its mean. With `log π/π_ref` (k1) summed over the token and all after it, it has; with
k2 or k3 of the token itself it has not, whatever their virtues as values (MATH 5.8). What lies
*ahead* of a token may come from any unbiased estimator, so there k3 or the exact KL is better.

Which to use: `kl_penalty_to_go` to subtract from an advantage, complete and with the least scatter;
`kl_penalties` where a library wants one number a token and does the summing itself; `reward_to_go`
for that sum. All are without a graph; `policy_kl_loss(level="sequence")` is the same as a loss.

    advantage = reward_to_go(rewards) - coefficient * kl_penalty_to_go(...)
    loss = -(advantage * log_current).sum() / sequences
"""

import torch
from torch import Tensor

from kullback.core import require, require_type
from kullback.sampled.estimators import Estimator, coefficients

from .input_checks import check_on_mismatch, mismatch, refuse_infinite, report
from .sampled_tokens import at_prefixes, check, check_all, draw_up, looked_at, masked, slope_of

__all__ = ["kl_penalties", "kl_penalty_to_go", "reward_to_go"]


def kl_penalties(
    *,
    log_current: Tensor,
    log_reference: Tensor,
    mask: Tensor | None = None,
    missing: str = "refuse",
) -> Tensor:
    """Return `log π − log π_ref` of each token: nats to subtract from its reward.

    log_current, log_reference: `[batch, length]`; mask: bool, the tokens that count; the result is
    `[batch, length]`, 0 where masked, without a graph. Their sum over a sequence has mean
    KL(π‖π_ref) for tokens drawn from π. Single ones are negative; clipped, they would be biased.
    A policy gradient needs their sum over the token *and all after it* (`reward_to_go`).
    missing: as in `policy_kl_loss`; "skip" gives 0 where a value is no log-probability.
    π_ref = 0 at a drawn token: +inf, with missing="keep"; else refused.
    Errors: `TypeError`, `ValueError` that name the argument.
    Reference: MATH 5.1, 5.8.

    >>> kl_penalties(
    ...     log_current=torch.tensor([[-1.0, -2.0]]), log_reference=torch.tensor([[-1.5, -1.0]])
    ... )
    tensor([[ 0.5000, -1.0000]])
    """
    logs = check_all(
        log_current,
        log_reference,
        None,
        mask,
        direction="reverse",
        level="token",
        missing=missing,
    )
    mask = looked_at(logs, mask, missing).mask
    drawn = draw_up(logs, mask, direction="reverse", level="token")
    if missing != "keep":
        refuse_infinite(drawn, -drawn.log_ratio, -drawn.log_ratio, logs)
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
    terms of what it leads to. Arguments and errors as in `policy_kl_loss`; the result is
    `[batch, length]`, in nats, 0 where masked, without a graph.
    estimator: of the terms ahead, any unbiased one: "k1" is the usual reward-to-go; "k3" scatters
    less where the policies are close.
    exact_kl: the exact KL of each next-token distribution; it then is b_t and what lies ahead.
    log_behaviour: where given, all importance weights are in the penalties already.
    missing, on_mismatch: as in `policy_kl_loss`.
    Reference: MATH 5.7, 5.8; Tang and Munos (2025).

    >>> logs = {"log_current": torch.tensor([[-1.0, -2.0]])}
    >>> logs["log_reference"] = torch.tensor([[-1.5, -1.0]])
    >>> kl_penalty_to_go(**logs, estimator="k1")
    tensor([[-0.5000, -1.0000]])
    """
    names = {"direction": "reverse", "level": "sequence"}
    logs = check_all(
        log_current, log_reference, log_behaviour, mask, **names, truncate=truncate, missing=missing
    )
    check_on_mismatch(on_mismatch)
    mask = looked_at(logs, mask, missing).mask
    drawn = draw_up(logs, mask, **names, truncate=truncate)
    known = estimator not in ("k2", "best")
    require(known, "estimator", "'k1', 'k3' or a number λ", repr(estimator), "'k3'")
    baseline, terms = exact_kl, drawn.value_terms(coefficients(estimator))
    if exact_kl is not None:
        check({"log_current": log_current, "exact_kl": exact_kl}, mask)
        baseline = masked(exact_kl.detach().to(drawn.log_ratio.dtype), mask)
        terms = at_prefixes(drawn, baseline)
    penalties = masked(slope_of(drawn, terms, baseline), mask)
    if missing != "keep":
        refuse_infinite(drawn, terms, penalties, logs, exact_kl)
    if on_mismatch != "ignore":
        has_ratio = exact_kl is None and estimator != "k1"
        reason = mismatch(drawn, logs) or (mismatch(drawn, logs, ratio=True) if has_ratio else "")
        report(reason, "log_current", on_mismatch)
    return penalties


def reward_to_go(rewards: Tensor, *, mask: Tensor | None = None, discount: float = 1.0) -> Tensor:
    """Return `Σ_{u≥t} discount^{u−t} · reward_u`: what a token and all after it brought.

    rewards: `[batch, length]`; mask: bool, positions that count, others bring 0 and get 0 but take
    their step of the discount. discount: in (0, 1]. The result is `[batch, length]`, with a graph
    where the rewards have one.
    Errors: `TypeError`, `ValueError` that name the argument.

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
