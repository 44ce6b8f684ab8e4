"""Examples held out of training, and the best weights on them.

Which to use: `hold_out`, or `validation_of` where labels are wanted too; `BestLook` is the look
with the highest objective on held-out examples, on disk as well.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kullback.core import DataError, RunError, make_folder
from kullback.data import Dataset, Rows, binarize_all

from ..limits import FEW_IMAGES
from ..state import load_tensors, save_tensors

__all__ = [
    "BestLook",
    "Validation",
    "different_examples",
    "digests_of_examples",
    "hold_out",
    "validation_of",
]


@dataclass(frozen=True, slots=True)
class Validation:
    """What is kept from training, `[n, *event]`, its labels where there are any, and the rest."""

    rest: Dataset
    held: Tensor | None = None
    labels: Tensor | None = None


def hold_out(data: Dataset, share: float, *, seed: int = 0) -> tuple[Dataset, Tensor | None]:
    """Keep a share of the different training examples from training, by their digests.

    Copies stay on one side. Where bits are drawn afresh, those held out are drawn once.

    Args:
        data: The data set.
        share: Of its different training examples, 0 to 1; 0 holds out nothing.
        seed: Of the bits.

    Returns:
        The rest, and what was held out, `[n, *event]` or None.

    Raises:
        DataError: Too few different examples to leave one on each side.

    Example:
        >>> from kullback.data import load
        >>> rest, held = hold_out(load(size=8), 0.1)
        >>> len(rest.train), len(held)
        (9000, 1000)
    """
    kept = validation_of(data, share, seed=seed)
    return kept.rest, kept.held


def validation_of(
    data: Dataset, share: float, *, seed: int = 0, digests: list[bytes] | None = None
) -> Validation:
    """Return what `hold_out` does, with the labels of what it keeps from training.

    digests: of the training examples, where they have been made already.
    """
    if share == 0:
        return Validation(data)
    flags = _held_out(digests_of_examples(data) if digests is None else digests, share)
    train = data.train
    kept = train.keep(~flags) if isinstance(train, Rows) else train[~flags]
    held = train.index_select(0, flags.nonzero()[:, 0].to(train.device))
    if data.dynamic:
        held = binarize_all(held, seed=seed, label="validation")
    names = tuple(n for n, flag in zip(data.train_names, flags.tolist(), strict=True) if not flag)
    labels = data.train_labels
    left = None if labels is None else labels[~flags]
    rest = replace(data, train=kept, train_names=names, train_labels=left)
    return Validation(rest, held, None if labels is None else labels[flags])


def different_examples(data: Dataset) -> int:
    """Count the training examples that differ; of 5,000 and more only how many there are.

    Below that many some are held out by default, for which copies are of no use.

    Args:
        data: The data set.

    Returns:
        The count.

    Example:
        >>> from kullback.data import load
        >>> different_examples(load(size=8))
        10000
    """
    n = len(data.train)
    return n if n >= FEW_IMAGES[1] else len(set(digests_of_examples(data)))


def digests_of_examples(data: Dataset) -> list[bytes]:
    """Return the SHA-256 of every training example, by which `hold_out` goes."""
    rows = (row for block in data.blocks() for row in block.cpu().flatten(1).numpy())
    return [hashlib.sha256(b"validation" + row.tobytes()).digest() for row in rows]


def _held_out(digests: list[bytes], share: float) -> Tensor:
    """Return which training examples are held out, `[N]`, or raise a DataError."""
    ranked = sorted(set(digests))
    wanted = max(2, round(share * len(ranked)))
    if wanted >= len(ranked):
        raise DataError(
            f"validation: expected 3 or more different training examples and a share that leaves "
            f"some; got {len(ranked):,} and {share:g}. Try: more data"
        )
    limit = ranked[wanted]
    return torch.tensor([digest < limit for digest in digests])


BEST = "checkpoints/best.safetensors"


@dataclass(slots=True)
class BestLook:
    """The look with the highest objective on held-out examples, and the looks that were worse.

    step: of that look. train_elbo: the training's average then. terms: the objective of each
    example, `[n]`. weights: of the model then; empty where none are picked. below: the steps of
    later looks that were worse by several standard errors, in a row.
    """

    step: int
    train_elbo: float
    terms: Tensor
    weights: Tensor
    below: list[int]

    def save(self, folder: Path) -> None:
        """Write `checkpoints/best.safetensors`."""
        path = folder / BEST
        make_folder(path.parent)
        numbers = torch.tensor([self.step, self.train_elbo, *self.below], dtype=torch.float64)
        tensors = {"numbers": numbers, "terms": self.terms, "weights": self.weights}
        save_tensors(path, tensors)

    @classmethod
    def load(cls, folder: Path, step: int) -> "BestLook | None":
        """Read what `save` wrote at or before a step; later looks will be made again."""
        if not (folder / BEST).exists():
            return None
        held = load_tensors(folder / BEST)
        if {"numbers", "terms", "weights"} != set(held) or len(held["numbers"]) < 2:
            raise RunError(f"{folder / BEST}: not the best look of a run")
        best, train_elbo, *below = held["numbers"].tolist()
        if best > step:
            return None
        kept = [int(one) for one in below if one <= step]
        return cls(int(best), train_elbo, held["terms"], held["weights"], kept)
