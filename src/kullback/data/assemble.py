"""Examples to a `Dataset`: the split, the binarisation, the hashes, the protocol.

Which to use: `assemble`.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kullback.core import DataError

from .binary import binarize_all
from .dataset import Dataset, Kind, sha256_of
from .doubts import doubts
from .examples import Examples, plural

__all__ = ["NAMED_SKIPS", "Binarize", "assemble"]

Binarize = Literal["none", "static", "dynamic"]
NAMED_SKIPS = 20


def assemble(
    examples: Examples,
    source: str,
    *,
    asked: dict[str, Any],
    binarize: Binarize,
    seed: int,
    test_fraction: float,
) -> Dataset:
    """Split, binarise, hash, and write the protocol down; `asked` goes into it as it is.

    The training hash is taken before binarisation, the test hash after. Raises `DataError` when
    a side is too small or continuous values cannot be binarised.
    """
    rules = asked.get("rules", 1)
    if binarize != "none":
        _to_eight_bits(examples, source)
    is_test = _split(examples, test_fraction, source)
    train, test = (torch.from_numpy(examples.values[flags]) for flags in (~is_test, is_test))
    kind, binarize = _judge(examples, binarize)
    if kind == "continuous" and rules > 1:
        examples.notes += doubts(examples.values[~is_test])
    levels, grid = examples.levels, examples.grid
    train_hash = sha256_of(train)
    if binarize != "none":
        kind, test = "binary", binarize_all(test, seed=seed, label="test")
    if binarize == "static":
        train = binarize_all(train, seed=seed, label="train")
    protocol = {
        "source": source,
        "split": examples.split,
        "counts": {"train": len(train), "test": len(test)},
        "event_shape": list(train.shape[1:]),
        "kind": kind,
        **({"levels": levels} if kind == "levels" else {}),
        **({"grid": grid.to_dict()} if grid is not None and binarize == "none" else {}),
        **asked,
        "binarize": binarize,
        "seed": seed,
        "test_fraction": test_fraction,
        "sha256": {"train": train_hash, "test": sha256_of(test)},
        "skipped": _skips(examples.skipped),
        "notes": examples.notes,
    }
    names = np.array(examples.names, dtype=object)
    train_names, test_names = tuple(names[~is_test]), tuple(names[is_test])
    return Dataset(train, test, kind, binarize == "dynamic", protocol, train_names, test_names)


def _to_eight_bits(examples: Examples, source: str) -> None:
    """Round levels or floats in 0..1 to 8 bits, so that they can be binarised."""
    if examples.values.dtype == np.float32:
        low, high = float(examples.values.min()), float(examples.values.max())
        if low < 0 or high > 1:
            found = f"{low:.6g} to {high:.6g}"
            hint = "binarize none, or scale the values"
            raise DataError(
                f"{source}: expected values in 0..1 to binarise; got {found}. Try: {hint}"
            )
        examples.values = np.rint(examples.values * 255).astype(np.uint8)
        examples.notes.append("continuous values in 0..1 rounded to 8 bits before binarisation")
    elif examples.levels not in (2, 256):
        top = examples.levels - 1
        examples.values = ((examples.values.astype(np.int64) * 510 + top) // (2 * top)).astype(
            np.uint8
        )
        examples.notes.append(
            f"levels 0 to {top:,} became probabilities 0 to 1, in 8 bits, before binarisation"
        )
        examples.grid = None


def _split(examples: Examples, test_fraction: float, source: str) -> NDArray[np.bool_]:
    """Return one flag a row, the source's own split or the split by digest, and judge it."""
    is_test = examples.is_test
    if is_test is None:
        is_test = _by_digest(examples, test_fraction, source)
    else:
        train = {d for d, flag in zip(examples.digests, is_test, strict=False) if not flag}
        copies = sum(
            flag and d in train for d, flag in zip(examples.digests, is_test, strict=False)
        )
        if copies:
            examples.notes.append(f"{plural(copies, 'test example')} also in the training set")
        held, total = int(is_test.sum()), len(is_test)
        if held < 2 or held == total:
            raise DataError(
                f"{source}: expected at least 1 training and 2 test examples; "
                f"got {total - held:,} and {held:,} ({examples.split}). Try: more data"
            )
    return is_test


def _by_digest(examples: Examples, test_fraction: float, source: str) -> NDArray[np.bool_]:
    """Hold out the examples whose digest is in the lowest `test_fraction` of all digests.

    Where chance leaves a side too small (none to train on, or fewer than two to test on), the
    lowest digests are held out instead, as many as the fraction asks for, at least two where
    three differ. Copies have one digest, so they stay on one side.
    """
    limit = test_fraction * 2**64
    keys = [int.from_bytes(digest[:8], "big") for digest in examples.digests]
    is_test = np.array([key < limit for key in keys])
    examples.split += f", test_fraction {test_fraction:g}"
    if 2 <= int(is_test.sum()) < len(keys):
        return is_test
    ranked = sorted(set(examples.digests))
    if len(ranked) < 2:
        raise DataError(
            f"{source}: expected at least 2 different examples, one to train on and one to test "
            f"on; got {plural(len(keys), 'example')}, all the same. Try: more data"
        )
    wanted = min(max(round(test_fraction * len(ranked)), 2), len(ranked) - 1)
    held = set(ranked[:wanted])
    examples.notes.append(
        f"the digests of {plural(len(keys), 'example')} left "
        f"{plural(int(is_test.sum()), 'test example')}: the {wanted} lowest digests are held out"
    )
    return np.array([digest in held for digest in examples.digests])


def _judge(examples: Examples, binarize: Binarize) -> tuple[Kind, Binarize]:
    """Say what the values are, and what is left to binarise."""
    values = examples.values
    if values.dtype == np.float32:
        return "continuous", binarize
    if examples.levels != 256 and examples.levels != 2:
        return "levels", binarize
    if int(values.max()) <= 1:
        if binarize != "none":
            examples.notes.append("values are 0 and 1 already: nothing to binarise")
        return "binary", "none"
    if binarize == "none" and bool(((values == 0) | (values == 255)).all()):
        examples.notes.append("values are only 0 and 255: binarize static makes them 0 and 1")
    return "8-bit", binarize


def _skips(skipped: list[tuple[str, str]]) -> dict[str, Any]:
    files = [{"name": name, "reason": reason} for name, reason in skipped[:NAMED_SKIPS]]
    return {"count": len(skipped), "files": files}
