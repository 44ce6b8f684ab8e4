"""From examples to a `Dataset`: split, labels, binarisation, hashes and protocol.

Which to use: `assemble` for examples in memory, `from_disk` for rows that stay on disk, whose
options `require_plain` checks.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kullback.core import DataError, require

from .. import limits
from ..dataset import Dataset, Kind, binarize_all, sha256_of
from ..examples import Examples, Progress, Reading, plural
from ..given import Shards
from ..pictures import (
    finish,
)
from ..stored import Pass, RowNames
from .data_checks import doubts, sameness

__all__ = [
    "Binarize",
    "assemble",
    "from_disk",
    "require_plain",
]

Binarize = Literal["none", "static", "dynamic"]


def assemble(
    examples: Examples,
    source: str,
    *,
    asked: dict[str, Any],
    binarize: Binarize,
    seed: int,
    test_fraction: float,
    whole: bool = False,
) -> Dataset:
    """Split, binarise, hash, and write the protocol down; `asked` goes into it as it is.

    whole: without a split of its own, all of the source is for testing. The training hash is taken
    before binarisation, the test hash after. Raises `DataError` when a side is too small or
    continuous values cannot be binarised.
    """
    rules = asked.get("rules", 1)
    if binarize != "none" and examples.sound is not None:
        raise DataError(f"{source}: expected images to binarise; got sound. Try: binarize none")
    if binarize != "none" and examples.counted:
        raise DataError(f"{source}: expected images to binarise; got counts. Try: binarize none")
    if binarize != "none":
        _to_eight_bits(examples, source)
    whole = whole and examples.is_test is None
    if whole:
        examples.split, is_test = "all examples", np.ones(len(examples.values), bool)
    else:
        is_test = _split(examples, test_fraction, source)
    kind, binarize = _judge(examples, binarize)
    if kind == "continuous" and rules > 1 and not whole:
        examples.notes += doubts(examples.values[~is_test])
    if rules > 2:
        examples.notes += sameness(examples.values)
    levels, grid = examples.levels, examples.grid
    train, test = _divided(examples, is_test)
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
        **({"levels": levels} if kind in ("levels", "sound") else {}),
        **({"sound": examples.sound} if examples.sound is not None else {}),
        **({"sizes": examples.sizes} if examples.sizes else {}),
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
    data = Dataset(train, test, kind, binarize == "dynamic", protocol, train_names, test_names)
    return _labelled(data, examples.labels, is_test, source) if examples.labels else data


def _divided(examples: Examples, is_test: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Return training and test rows; where the memory is the examples' own, that of all rows.

    A second copy of 100,000 pictures would take as long as to hash them three times: a system
    hands out new memory slowly.
    """
    values, places = examples.values, np.flatnonzero(~is_test)
    if not examples.own or not values.flags.writeable:
        return torch.from_numpy(values[places]), torch.from_numpy(values[is_test])
    finish()  # which reads the values
    test = values[is_test]
    for start in range(0, len(places), limits.ROWS_MOVED):
        part = places[start : start + limits.ROWS_MOVED]  # none lies before its new place
        values[start : start + len(part)] = values[part]
    return torch.from_numpy(values[: len(places)]), torch.from_numpy(test)


def _labelled(data: Dataset, labels: list[str], is_test: NDArray[np.bool_], source: str) -> Dataset:
    """Give a data set its labels, as places in the protocol's list of them."""
    known = data.protocol.get("labels")
    found = [str(one) for one in known] if known else _in_order(set(labels))
    if not 2 <= len(found) <= limits.MOST_LABELS:
        most = f"2 to {limits.MOST_LABELS:,} different labels"
        raise DataError(f"{source}: expected {most}; got {len(found):,}")
    place = {name: k for k, name in enumerate(found)}
    new = next((one for one in labels if one not in place), None)
    if new is not None:
        raise DataError(f"{source}: expected labels {', '.join(found[:10])}, …; got {new!r}")
    codes = np.array([place[one] for one in labels], dtype=np.int64)
    train, test = torch.from_numpy(codes[~is_test]), torch.from_numpy(codes[is_test])
    missing = sorted(set(test.tolist()) - set(train.tolist())) if len(train) else []
    if missing:
        named = ", ".join(found[k] for k in missing[:5])
        raise DataError(
            f"{source}: expected training examples of every label; none of {named}. "
            "Try: leave those out, or another --test-fraction"
        )
    data.protocol["labels"] = found
    data.protocol["sha256"]["labels"] = sha256_of(torch.cat([train, test]))
    return replace(data, train_labels=train, test_labels=test)


def _in_order(labels: set[str]) -> list[str]:
    """Sort labels, as numbers where all are."""
    whole = all(one.lstrip("-").isdigit() for one in labels)
    return sorted(labels, key=int) if whole else sorted(labels)


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
        same = ", all the same" if len(keys) > 1 else ""
        raise DataError(
            f"{source}: expected at least 2 different examples, one to train on and one to test "
            f"on; got {plural(len(keys), 'example')}{same}. Try: more data"
        )
    wanted = min(max(round(test_fraction * len(ranked)), 2), len(ranked) - 1)
    held = set(ranked[:wanted])
    examples.notes.append(
        f"the digests of {plural(len(keys), 'example')} left "
        f"{plural(int(is_test.sum()), 'test example')}: {_lowest(wanted)} held out"
    )
    return np.array([digest in held for digest in examples.digests])


def _lowest(count: int) -> str:
    return "the lowest digest is" if count == 1 else f"the {count} lowest digests are"


def _judge(examples: Examples, binarize: Binarize) -> tuple[Kind, Binarize]:
    """Say what the values are, and what is left to binarise."""
    values = examples.values
    if examples.sound is not None:
        return "sound", binarize
    if examples.counted:
        return "counts", binarize
    if values.dtype == np.float32:
        return "continuous", binarize
    if examples.levels != limits.BYTE_LEVELS and examples.levels != 2:
        return "levels", binarize
    step = limits.ROWS_FOR_MEAN_PICTURE
    parts = [values[start : start + step] for start in range(0, len(values), step)]
    if all(int(part.max()) <= 1 for part in parts):  # which ends at the first that is not
        if binarize != "none":
            examples.notes.append("values are 0 and 1 already: nothing to binarise")
        return "binary", "none"
    black_and_white = all(bool(((p == 0) | (p == limits.BYTE_MAX)).all()) for p in parts)
    if binarize == "none" and black_and_white:
        examples.notes.append("values are only 0 and 255: binarize static makes them 0 and 1")
    return "8-bit", binarize


def _skips(skipped: list[tuple[str, str]]) -> dict[str, Any]:
    files = [{"name": name, "reason": reason} for name, reason in skipped[: limits.NAMED_SKIPS]]
    return {"count": len(skipped), "files": files}


def require_plain(options: dict[str, Any], binarize: str, shards: Shards, label: str) -> None:
    """Refuse options that rows on disk do not have, unless the rows are so already."""
    hint = "storage memory"
    require(binarize != "static", "binarize", "dynamic or none for rows on disk", binarize, hint)
    usual = {"size": None, "channels": "auto", "size_factors": "auto"}
    changed = [name for name in options if options[name] != usual[name]]
    shape = shards.headers(label)[0].laid_out if changed else ()
    found: dict[str, Any] = {}
    if len(shape) == 3:
        found = {"size": shape[1:], "channels": "grey" if shape[0] == 1 else "rgb"}
    for name in changed:
        expected = f"{usual[name] or 'none'} for rows on disk"
        require(options[name] == found.get(name), name, expected, options[name], hint)


def from_disk(
    shards: Shards,
    how: Reading,
    asked: dict[str, Any],
    *,
    binarize: Binarize,
    seed: int,
    split: tuple[float, bool],
    progress: Progress | None,
) -> Dataset:
    """Make a `Dataset` whose training rows stay on disk, by one pass over all rows."""
    every, (fraction, whole) = shards.headers(how.label), split
    own, notes = shards.has_split(), list[str]()
    total = sum(one.rows * one.row_bytes for one in every)
    most = limits.STORED_TEST_BYTES / max(1, total)
    if fraction > most and not own and not whole:
        notes.append(f"test_fraction {fraction:g} lowered to {most:.3g}: test rows are in memory")
        fraction = most
    found = Pass.over(
        every, how, fraction=2.0 if whole else fraction, own_split=own, progress=progress
    )
    train, test = found.train(), torch.from_numpy(np.concatenate(found.test))
    source = shards.source
    if len(test) < 2 or (len(train) < 1 and not whole):
        raise DataError(
            f"{source}: expected at least 1 training and 2 test examples; got {len(train):,} and "
            f"{len(test):,}. Try: storage memory, or more data"
        )
    kind, binarize = found.kind(binarize, notes)
    if kind == "continuous" and not whole:
        notes += doubts(train[: limits.STORED_LOOK].numpy())
    if binarize == "dynamic":
        bytes_ = train.dtype == torch.uint8 and found.values.count == limits.BYTE_LEVELS
        good = "8-bit levels on disk to binarise"
        require(bytes_, "data", good, found.values.describe(), "storage memory")
        kind, test = "binary", binarize_all(test, seed=seed, label="test")
    grid = found.values.grid
    stay = [f"{plural(len(train), 'training row')} stay on disk"] if len(train) else []
    protocol = {
        "source": source,
        "split": "train/ and test/ folders"
        if own
        else f"rows by SHA-256, test_fraction {fraction:g}",
        "counts": {"train": len(train), "test": len(test)},
        "event_shape": list(train.shape[1:]),
        "kind": kind,
        **({"levels": found.values.count} if kind == "levels" else {}),
        **({"grid": grid.to_dict()} if grid is not None and binarize == "none" else {}),
        **asked,
        "binarize": binarize,
        "seed": seed,
        "test_fraction": split[0],
        "sha256": {"train": found.train_hash, "test": sha256_of(test)},
        "skipped": _skips([]),
        "notes": [*stay, *found.notes, *notes],
    }
    places = torch.from_numpy(np.flatnonzero(found.is_test))
    names, held = RowNames(every, train.numbers), tuple(RowNames(every, places))
    data = Dataset(train, test, kind, binarize == "dynamic", protocol, names, held)
    labels = [one for shard in every for one in shard.labels]
    return _labelled(data, labels, found.is_test, source) if how.label else data
