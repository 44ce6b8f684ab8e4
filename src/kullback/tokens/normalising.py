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
"""

import torch
from torch import Tensor

from kullback.core import require

__all__ = ["NORMALISATIONS", "check_normalise", "row_scale"]

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
