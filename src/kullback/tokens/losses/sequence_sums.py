"""What a sum over sampled tokens is divided by, by name.

| name | the sum over tokens is | unit |
|---|---|---|
| "sequence" | divided by the number of sequences | nats/sequence |
| "batch" | not divided at all | nats/batch |
| "token" | divided by the number of tokens of the whole batch | nats/token |
| "sequence_mean" | first divided by each sequence's own tokens, then by sequences | nats/token |

Which to use: "sequence" keeps the gradient exactly that of the divergence named, whatever the
lengths. "batch" does too, and is the one for gradients accumulated over unequal micro-batches:
divide their sum once, by what all of them hold. The other two divide by lengths, which the policy
itself decides where sequences end by a token it chose: exact for fixed lengths; otherwise "token"
has a bias that falls like 1/sequences, and "sequence_mean" descends something else
(the tests measure both). Sequences without a token that counts are not counted.

Sums over tokens as draws: the sequences are independent, the tokens of one sequence are not.

Every error bar of a policy divergence is one over sequences. `ratios_of_rows` makes their sums the
features that `kullback.sampled` estimates from, with its best λ and its doubts; `mean_over` is the
plain mean of one number a sequence. A mean per token over sequences of unequal length is a ratio of
two means, with the delta method's error.
"""

import torch
from torch import Tensor

from kullback.core import Estimate, require
from kullback.sampled import (
    WEIGHT,
    Estimator,
    LogRatios,
    Moments,
    SummaryStats,
    Tails,
    error_bars,
)

__all__ = [
    "NORMALISATIONS",
    "check_normalise",
    "estimate_over",
    "mean_over",
    "ratios_of_rows",
    "row_scale",
]

NORMALISATIONS = {
    "sequence": "nats/sequence",
    "batch": "nats/batch",
    "token": "nats/token",
    "sequence_mean": "nats/token",
}


def check_normalise(normalise: str) -> None:
    """Raise `ValueError` for a name outside the table.

    >>> check_normalise("token")
    """
    expected = f"one of {', '.join(NORMALISATIONS)}"
    known = isinstance(normalise, str) and normalise in NORMALISATIONS
    require(known, "normalise", expected, repr(normalise))


def row_scale(mask: Tensor | None, like: Tensor, normalise: str) -> Tensor:
    """Return what a sequence's sum over tokens is multiplied by, `[]` or `[batch, 1]`.

    mask: bool `[batch, length]`, None for all; like: floating `[batch, length]`, for the device
    and type. A batch in which nothing counts has scale 1 (its sums are 0). "sequence", "batch",
    "token", "sequence_mean": the table above. Errors: `ValueError` for another name.

    >>> mask = torch.tensor([[True, True, False], [True, False, False]])
    >>> row_scale(mask, torch.zeros(2, 3), "sequence_mean").flatten().tolist()
    [0.25, 0.5]
    """
    check_normalise(normalise)
    batch, length = like.shape
    if mask is None or normalise == "batch":
        count = {"batch": 1, "sequence": batch}.get(normalise, batch * length)
        return like.new_tensor(1 / max(count, 1))
    if normalise == "token":
        return mask.sum(dtype=torch.int32).clamp_min_(1).to(like.dtype).reciprocal_()
    lengths = mask.sum(-1, keepdim=True)
    sequences = (lengths > 0).sum().clamp_min(1).to(like.dtype)
    return 1 / (sequences if normalise == "sequence" else lengths.clamp_min(1) * sequences)


def ratios_of_rows(rows: Tensor, lengths: Tensor | None = None) -> LogRatios:
    """Return the state of draws whose features are sums over a sequence, `[F, sequences]`.

    rows: sums of `log r`, `r − 1 − log r`, `½ log² r`, then of control variates, float64. lengths:
    `[sequences]`, what the mean is divided by the mean of, when it is a ratio.

    >>> ratios_of_rows(torch.ones(3, 4, dtype=torch.float64)).draws
    4
    """
    rows = rows if lengths is None else torch.cat([rows[:WEIGHT], lengths[None], rows[WEIGHT:]])
    halves, zero = (_summary(rows[:, ::2]), _summary(rows[:, 1::2])), rows.new_zeros(())
    return LogRatios(halves, zero, rows.new_zeros(2), lengths is not None)


def _summary(rows: Tensor) -> SummaryStats:
    """Remember moments and extremes: by −log r, by r − 1 − log r and by every further feature."""
    keys = torch.stack([(-rows[0]).clamp_min(0.0), rows[1].abs(), *rows[WEIGHT:].abs()]).log()
    places = torch.arange(rows.shape[-1], device=rows.device)
    return SummaryStats(Moments.of(rows), Tails.of(keys, places, rows, rows.shape[-1]))


def estimate_over(
    rows: Tensor,
    lengths: Tensor,
    estimator: Estimator,
    normalise: str,
    groups: Tensor | None = None,
) -> Estimate:
    """Estimate by features `[F, sequences]` as `ratios_of_rows` takes them, per token or not.

    lengths: `[sequences]`, tokens of each. groups: `[sequences]`, numbers from 0 of groups, which
    then are the draws. Errors: as `LogRatios.estimate`.

    >>> rows = torch.tensor([[-2.0, -1, -3, -2], [2, 1, 3, 2], [0, 0, 0, 0]], dtype=torch.float64)
    >>> estimate_over(rows, torch.full((4,), 2.0), "k1", "token").value
    1.0
    """
    rows, sizes = _over(rows, lengths, normalise, groups)
    if sizes is not None:
        state = ratios_of_rows(rows, sizes / sizes.mean())
        return state.averaged(estimator, self_normalise=True) / float(sizes.mean())
    return ratios_of_rows(rows).averaged(estimator)


def mean_over(
    rows: Tensor, lengths: Tensor, normalise: str, groups: Tensor | None = None
) -> Estimate:
    """Estimate the mean of one number a sequence `[sequences]`, per token or not.

    groups: as in `estimate_over`.

    Errors: `ValueError` below 2 sequences.

    >>> mean_over(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 2.0]), "token").value
    1.5
    """
    require(len(rows) >= 2, "mask", "at least 2 sequences with a token that counts", len(rows))
    rows, sizes = _over(rows, lengths, normalise, groups)
    if sizes is not None:
        value = rows.sum() / sizes.sum()
        error, doubts, k_hat = error_bars.mean_of((rows - value * sizes) / sizes.mean(), value)
        what = "sequences" if groups is None else "groups"
        why = f"a ratio of two means: bias of order 1/{what}"
        return error_bars.judged(value, error, len(rows), k_hat, doubts, bias="unknown", why=why)
    value = rows.mean()
    error, doubts, k_hat = error_bars.mean_of(rows - value, value)
    return error_bars.judged(value, error, len(rows), k_hat, doubts)


def _over(
    rows: Tensor, lengths: Tensor, normalise: str, groups: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return sums of the draws, `[…, draws]`, and what their mean is divided by the mean of.

    None for that: 1, the sums being divided by it already, since it is the same for all.
    """
    if normalise == "sequence_mean":
        rows = rows / lengths
    sizes = lengths if normalise == "token" else torch.ones_like(lengths)
    if groups is not None:
        count = int(groups.max()) + 1
        rows, sizes = (
            x.new_zeros(*x.shape[:-1], count).index_add(-1, groups, x) for x in (rows, sizes)
        )
    if bool((sizes == sizes[:1]).all()):
        return rows / sizes, None
    return rows, sizes
