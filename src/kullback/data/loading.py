"""From what a user has to tensors: the embedded set, a folder of pictures, a NumPy file.

Which to use: `load` for a data set with a split and a protocol, to train and evaluate on;
`reload` for the data set of a protocol; `load_images` for everything in a source at once, brought
to the shape that a trained model takes. `assemble` turns examples into a `Dataset`: split,
binarisation, hashes, and notes on what makes a density of continuous values doubtful.
"""

import hashlib
import stat
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kullback.core import DataError, require, require_type

from . import limits
from .arrays import ARRAY_SUFFIXES, label_in, read_arrays, read_given
from .dataset import Dataset, Kind, binarize_all, sha256_of
from .examples import Channels, Examples, Fit, Progress, Reading, as_size, plural
from .file_listing import files_under
from .given import Shards, arrays_of, shards_in
from .pictures import (
    ARCHIVES,
    FRAME_SUFFIXES,
    as_asked,
    finish,
    fit_images,
    is_background,
    read_file,
    read_folder,
    read_picture,
)
from .quantisation import Grid
from .sounds import (
    SOUND_SUFFIXES,
    Listening,
    holds_clips,
    read_clips,
    read_sound_file,
    read_sound_folder,
)
from .stored import Pass, RowNames

__all__ = [
    "Binarize",
    "assemble",
    "doubts",
    "load",
    "load_images",
    "load_sounds",
    "reload",
    "settings_like",
]

Binarize = Literal["none", "static", "dynamic"]


def doubts(values: NDArray[Any]) -> list[str]:
    """Return a note for each property of `[N, *event]` that a Gaussian density does not suit.

    Looked for: columns of whole numbers or of few values, a point mass (a value that a share of
    rows above 5 % repeats exactly: a bound, a zero, a mark for missing values), and heavy tails.
    Images are looked at channel by channel.
    """
    rows = values[: limits.ROWS_FOR_DOUBTS]
    columns = rows if rows.ndim == 2 else np.moveaxis(rows, 1, -1).reshape(-1, rows.shape[1])
    columns = columns[: 10 * limits.ROWS_FOR_DOUBTS]
    notes: dict[str, list[str]] = {}
    what = "column" if values.ndim == 2 else "channel"
    for index, column in enumerate(columns.T):
        if said := _doubt(column.astype(np.float64)):
            notes.setdefault(said[0], []).append(f"{what} {index}{said[1]}")
    return [f"{_listed(named)}: {why}" for why, named in notes.items()]


def sameness(values: NDArray[Any]) -> list[str]:
    """Return notes on images `[N, C, H, W]` of one colour, and on examples that are all alike."""
    notes = []
    if len(values) > 1 and all((row == values[0]).all() for row in values):
        notes.append(
            f"all {plural(len(values), 'example')} are identical: a model of them learns that one"
        )
    if values.ndim == 4:
        step = limits.ROWS_FOR_MEAN_PICTURE
        parts = (values[start : start + step] for start in range(0, len(values), step))
        plain = sum(_of_one_colour(part) for part in parts)
        if plain:
            notes.append(f"{plural(plain, 'image')} of one colour everywhere")
    return notes


def _of_one_colour(images: NDArray[Any]) -> int:
    """Count the images that are one colour everywhere; most differ in two corners already."""
    alike = images[(images[:, :, 0, 0] == images[:, :, -1, -1]).all(1)]
    return int((alike == alike[:, :, :1, :1]).all((1, 2, 3)).sum())


def _doubt(column: NDArray[Any]) -> tuple[str, str] | None:
    """Return what is doubtful about a column, and its figure in words."""
    found, counts = np.unique(column, return_counts=True)
    few = len(found) * limits.REPEATS_PER_LEVEL <= len(column) and len(found) <= limits.FEW_VALUES
    if few and len(found) > 1:
        why = "so few values are levels, and a density on them has no finite maximum; "
        return why + "code them as a data set of their own", f" ({len(found)} values)"
    if len(found) > 1 and bool((column == np.rint(column)).all()):
        why = "whole numbers taken as continuous, since they have too many levels together"
        return why, ""
    share = float(counts.max()) / len(column)
    if len(found) > 1 and counts.max() > 2 and share > limits.POINT_MASS_SHARE:
        value = f" ({100 * share:.0f} % are exactly {found[counts.argmax()]:.6g})"
        why = "a value that repeats has no density (a bound, a zero, a mark for missing values?)"
        return why, value
    low, middle, high = np.quantile(column, [0.25, 0.5, 0.75])
    far = float(abs(column - middle).max())
    if high > low and far > limits.HEAVY_TAIL_RANGES * (high - low):
        why = "tails too heavy for a Gaussian density; a log, an asinh or ranks would suit it"
        return why, f" (as far as {far / (high - low):,.0f} interquartile ranges from the median)"
    return None


def _listed(named: list[str]) -> str:
    more = (
        f" and {len(named) - limits.NAMED_COLUMNS} more"
        if len(named) > limits.NAMED_COLUMNS
        else ""
    )
    return ", ".join(named[: limits.NAMED_COLUMNS]) + more


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


TRAIN_COUNT, TEST_COUNT = 10_000, 2_000
_SHA256 = "67ac0de77cb2a9b5a6a638c2663b7e4f6cb555664a0cfd1063d3cb7b5eb6177f"
_REPAIR = "reinstall the package: pip install --force-reinstall --no-deps kullback"


def read_fashion() -> Examples:
    """Read the embedded set: 10,000 training and 2,000 test images, uint8 `[12000, 1, 28, 28]`.

    The first 1,000 images of each class for training and 200 for testing, kept as one grey PNG.
    Reference: Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST"; MIT licence, beside the file.
    Raises `DataError` when the file is missing or its pixels are not the ones that were shipped.

    Example:
        >>> read_fashion().values.shape
        (12000, 1, 28, 28)
    """
    file = resources.files("kullback.data") / "fashion" / "fashion.png"
    try:
        mosaic = read_picture(file.read_bytes(), size=None).pixels
    except (OSError, DataError) as error:
        raise DataError(f"the embedded data set cannot be read ({error}); {_REPAIR}") from error
    count = TRAIN_COUNT + TEST_COUNT
    if mosaic.shape != (count // 100 * 28, 2800):
        raise DataError(f"the embedded data set is damaged; {_REPAIR}")
    images = np.ascontiguousarray(mosaic.reshape(count // 100, 28, 100, 28).swapaxes(1, 2))
    if hashlib.sha256(images.data).hexdigest() != _SHA256:
        raise DataError(f"the embedded data set is damaged; {_REPAIR}")
    names = [f"train[{row}]" for row in range(TRAIN_COUNT)]
    names += [f"test[{row}]" for row in range(TEST_COUNT)]
    is_test = np.arange(count) >= TRAIN_COUNT
    values = images.reshape(count, 1, 28, 28)
    return Examples(values, names, is_test=is_test, split="embedded")


RULES = 4  # of reading values; 3: the depth of 16-bit pictures looked for after resizing them; 2:
# transparency over black, no GIF or TIFF; 1: k/255 and whole numbers only, 16-bit pictures cut to
# 8 bits


def load(
    source: Any = "fashion",
    *,
    size: int | tuple[int, int] | None = None,
    fit: Fit = "crop",
    channels: str = "auto",
    binarize: Binarize = "none",
    seed: int = 0,
    test_fraction: float = 0.1,
    levels: int | str = "auto",
    progress: Progress | None = None,
    rules: int = RULES,
    grid: Grid | None = None,
    rate: int | None = None,
    clip: float | None = None,
    whole: bool = False,
    background: str = "auto",
    frames: str = "first",
    size_factors: str = "auto",
    label: str = "",
    labels: tuple[str, ...] = (),
    storage: str = "auto",
) -> Dataset:
    """Read a data set whole: `Dataset(train [N, *event], test [M, *event], kind, protocol, …)`.

    Split: `train/` and `test/` folders or x_train and x_test where given; else an example is a
    test example when the SHA-256 of its file or row falls in the lowest `test_fraction`, which
    depends on nothing else and keeps copies on one side. Where that would leave a side without
    examples, the lowest hashes are held out, so two different examples are enough.

    Args:
        source: "fashion" (embedded, 10,000 + 2,000 images of 28x28), a folder of PNG, JPEG, WebP,
            BMP, GIF or TIFF images at any depth, a `.npy` or `.npz` file (names x_train and
            x_test, or one array, or a matrix of `scipy.sparse.save_npz`), or a `.csv` or `.tsv`
            table. A folder that is itself called fashion is written "./fashion". A
            folder with more WAV, FLAC, OGG or MP3 files than images is sound, and so is an `.npz`
            with `samples` and `offset` (extra `audio`).
        size: Height and width in pixels, or one number for squares; None keeps the images' own.
        fit: "crop" covers the size and cuts, "pad" fits inside and pads.
        channels: "auto" (grey when every image is), "grey" or "rgb". Of sound: "auto" or "mix" (the
            mean of a file's channels), or "each" (every channel a clip of its own).
        binarize: "static" draws train and test once from `seed`; "dynamic" draws test once, the
            same bits as static, and leaves train grey for `Dataset.batch`; "none" draws nothing.
            Values that are 0 and 1 stay so.
        seed: Of the binarisation.
        test_fraction: Share of examples to test on, where the source has no split of its own.
        levels: "auto" finds out whether the values lie on a grid of levels (k/255, (k/255 − ½)/½,
            12 bits in a 16-bit file) and keeps those levels; "none" takes floats as continuous all
            the same; "counts" takes whole numbers of vectors as counts without an upper end, which
            "auto" does for sparse matrices and for integers of more than 65,536 levels; a number
            from 2 to 65,536 quantises them to so many.
        progress: Called with (done, total) files.
        rules: Of reading values; `reload` passes those that a run was made with.
        grid: A trained model's levels, instead of those found.
        background: What transparent pictures are laid over: "white", "black", "#rrggbb", or "auto",
            for each picture that of white and black from which what is seen of it differs more.
        frames: Of GIF, TIFF, animated PNG and WebP files: "first", or "all" as images of their own,
            which stay on one side of the split.
        whole: All examples are for testing and none for training, unless the source has a split of
            its own.
        rate: Of sound: samples a second, to which others are resampled; by default the commonest.
        clip: Of sound: seconds of a clip, at most 60; by default 1, or the longest sound if that
            is shorter. Shorter sounds are padded, longer ones cut into consecutive clips.
        size_factors: Of counts: "total" (of each row), "given" (the array `size_factors` of an
            `.npz`, or `size_factors_train` and `size_factors_test`; a column of that name in a
            table or in `obs`), "none", or "auto": given ones if there are any. They become the last
            column.
        label: Where labels are from: "folder" (the folder in which a picture or a sound lies), or
            the name of an array of an `.npz` (`y`, or `y_train` and `y_test`) or of a column of a
            table; "" for none.
        labels: Those of a trained model, in its order, instead of those found.
        storage: Where training rows of arrays are: "memory", "disk" (read a batch at a time, of one
            `.npy` or of shards), or "auto": on disk for shards and for what memory has no room for.

    Returns:
        The data set. What was done (skipped, resized, left out) is in `protocol["notes"]` and
        `protocol["skipped"]`.

    Raises:
        DataError: The data cannot be used.
        ArgumentValueError: An option has another value than those above.

    Example:
        >>> data = load("fashion", size=16, binarize="static")
        >>> data.event_shape, data.kind, data.protocol["notes"]
        ((1, 16, 16), 'binary', ['12,000 images shrunk to 16x16'])
    """
    require(storage in ("auto", "memory", "disk"), "storage", "auto, memory or disk", repr(storage))
    shards = shards_in(source, storage)
    objects = shards is None and not isinstance(source, str | Path)
    listening = None if shards or objects else _listening(source, rate, clip, channels)
    if listening is None:
        _check_choices(fit, channels)
    known = binarize in get_args(Binarize)
    require(known, "binarize", "none, static or dynamic", repr(binarize))
    fraction_ok = isinstance(test_fraction, int | float) and 0 < test_fraction < 1
    require(fraction_ok, "test_fraction", "a number between 0 and 1", test_fraction)
    require_type(seed, int, "seed")
    wanted, how = as_size(size), replace(_reading(levels, rules), grid=grid)
    of_arrays = objects or shards is not None
    named = label if of_arrays else _array_label(label, source)
    how = replace(how, size_factors=_sizes(size_factors), label=named)
    asked: dict[str, Any] = {
        **({"rate": rate, "clip": clip} if listening is not None else {}),
        "size": list(wanted) if wanted else None,
        "fit": fit,
        "channels": channels,
        **({"reading": levels, "rules": rules} if rules > 1 else {}),
        **({"background": background, "frames": frames} if rules > 2 else {}),
        **({"size_factors": size_factors} if size_factors != "auto" else {}),
        **({"label": label, "labels": list(labels)} if label else {}),
        **({"storage": storage} if storage != "auto" else {}),
    }
    if shards is not None:
        asked |= shards.asked()
    if shards is not None and storage != "memory":
        plain = {"size": wanted, "channels": channels, "size_factors": size_factors}
        _require_plain(plain, binarize, shards, how.label)
        split = float(test_fraction), whole
        more: Any = {"binarize": binarize, "seed": seed, "split": split, "progress": progress}
        return _from_disk(shards, how, asked, **more)
    if objects or shards is not None:
        given = arrays_of(source, label) if shards is None else shards.in_memory(label)
        examples, source = read_given(given.arrays, Path(given.name), how), given.name
        examples.names = list(given.rows) or examples.names
        asked |= {"given": True} if objects else {}
        fit_images(examples, wanted, fit=fit, channels=cast(Any, channels))
    elif listening is not None:
        given_too = {"size": wanted, "levels": None if levels == "auto" else levels}
        for name, value in given_too.items():
            require(value is None, name, "none for sound", repr(value))
        examples = _hear(Path(source), replace(listening, label=named), progress)
    else:
        if rules > 2:
            how = replace(how, background=background, frames=frames)
        _check_pictures(background, frames)
        colours: Any = channels
        examples = _read(source, wanted, fit, colours, progress, how)
    if label and not how.label:
        examples.labels = _folder_labels(examples.names, str(source))
    uncounted = size_factors in ("auto", "none") or examples.counted
    require(uncounted, "size_factors", "auto for what is no counts", size_factors, "levels=counts")
    data = assemble(
        examples,
        str(source),
        asked=asked,
        binarize=binarize,
        seed=seed,
        test_fraction=float(test_fraction),
        whole=whole,
    )
    finish()  # written beside the split and its hashes
    return data


def _require_plain(options: dict[str, Any], binarize: str, shards: Shards, label: str) -> None:
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


def _from_disk(
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


def _listening(
    source: str | Path, rate: int | None, clip: float | None, channels: str
) -> Listening | None:
    """Return how sound is to be read, or None where the source is something else."""
    if not _is_sound(source):
        given = {"rate": rate, "clip": clip}
        for name, value in given.items():
            require(value is None, name, "none for what is no sound", repr(value))
        return None
    return Listening(rate, clip, "mix" if channels == "auto" else channels)


def _is_sound(source: str | Path) -> bool:
    """Say whether a source is a sound file, an `.npz` of clips, or a folder of mostly sounds."""
    if not isinstance(source, str | Path) or source == "fashion":
        return False
    path = Path(source)
    try:
        if path.is_dir():
            sounds, others = files_under(path, SOUND_SUFFIXES)
            return len(sounds) > sum(others[suffix] for suffix in FRAME_SUFFIXES)
        suffix = path.suffix.lower() if path.is_file() else ""
        return suffix in SOUND_SUFFIXES or (suffix == ".npz" and holds_clips(path))
    except (OSError, ValueError):
        return False  # the reader says why


def _hear(path: Path, how: Listening, progress: Progress | None) -> Examples:
    """Send a source of sound to its reader."""
    if path.is_dir():
        return read_sound_folder(path, how, progress)
    return read_clips(path, how) if path.suffix.lower() == ".npz" else read_sound_file(path, how)


def load_sounds(
    source: str | Path,
    *,
    sound: dict[str, int],
    channels: str = "auto",
    progress: Progress | None = None,
    say: Callable[[str], Any] | None = None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Read all sound in a source, unsplit, as the clips of a trained model, `[N, 1, T]`.

    Args:
        source: A sound file, a folder of them, or an `.npz` of clips.
        sound: The model's rate, step and clip, as in `Dataset.protocol["sound"]`.
        channels: As in `load`.
        progress: Called with (done, total) files.
        say: Called with one sentence for each thing done or left out; by default a Python warning.

    Returns:
        Integer samples with `PADDING` after the end of a clip, int32; and the names.

    Raises:
        DataError: The data cannot be used, or are no sound.
    """
    say = say or _warn
    if not _is_sound(source):
        raise DataError(
            f"{source}: expected a sound file, a folder of them, or an .npz with samples and "
            "offset; got something else"
        )
    mixed = "mix" if channels == "auto" else channels
    how = Listening(sound["rate"], None, mixed, length=sound["clip"], step=sound["step"])
    examples = _hear(Path(source), how, progress)
    for note in examples.notes:
        say(note)
    if examples.skipped:
        say(_skips_in_words(examples.skipped, "sound"))
    return torch.from_numpy(examples.values), tuple(examples.names)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)


def load_images(
    source: str | Path,
    *,
    event_shape: tuple[int, ...],
    fit: Fit = "crop",
    progress: Progress | None = None,
    say: Callable[[str], Any] = _warn,
    kind: str = "auto",
    grid: Grid | None = None,
    background: str = "auto",
    frames: str = "first",
    size_factors: str = "auto",
    label: str = "",
) -> tuple[Tensor, tuple[str, ...]]:
    """Read everything in a source, unsplit, as `[N, *event_shape]` with one name a row.

    Nothing is binarised.

    Args:
        source: As in `load`, or one image file; shards are read whole.
        event_shape: `(C, H, W)`, to which images are brought, or `(D,)`, which vectors must have.
        fit: As in `load`.
        progress: Called with (done, total) files.
        say: Called with one sentence for each thing done or left out; by default a Python warning.
        kind: Of a trained model, whose levels (or continuous values) arrays are read as, whatever
            grid these few lie on; "auto" finds it.
        grid: Of a trained model, as `kind`.
        background: As in `load`; for a trained model that of its data.
        frames: As in `load`.
        size_factors: As in `load`, of a trained model of counts.
        label: An array or a column of this name is left out, where there is one.

    Returns:
        uint8 `[N, *event_shape]`, or float32 for continuous arrays; and the names.

    Raises:
        DataError: The data cannot be used, or have another shape.

    Example:
        >>> images, names = load_images("fashion", event_shape=(1, 28, 28))
        >>> images.shape, names[0], names[-1]
        (torch.Size([12000, 1, 28, 28]), 'train[0]', 'test[1999]')
    """
    shape = tuple(event_shape)
    good = len(shape) == 1 or (len(shape) == 3 and shape[0] in (1, 3))
    good = good and all(type(side) is int and side >= 1 for side in shape)
    require(good, "event_shape", "(C, H, W) with C = 1 or 3, or (D,)", shape)
    channels: Channels = "grey" if shape[0] == 1 else "rgb"
    _check_choices(fit, channels)
    shards = shards_in(source, "memory")
    arrays = shards is not None or Path(source).suffix.lower() in ARRAY_SUFFIXES
    how = Reading("none") if kind == "continuous" and arrays else Reading(grid=grid)
    how = Reading(rules=1) if kind in ("8-bit", "binary") and grid is None else how
    how = Reading("counts", size_factors=_sizes(size_factors)) if kind == "counts" else how
    _check_pictures(background, frames)
    how = replace(how, background=background, frames=frames)
    if arrays and label:
        how = replace(
            how, label=label_in(Path(source) if shards is None else shards.paths[0], label)
        )
    size = (shape[1], shape[2]) if len(shape) == 3 else None
    if shards is not None:
        given = shards.in_memory(how.label)
        examples = read_given(given.arrays, Path(source), how)
        examples.names = list(given.rows)
        fit_images(examples, size, fit=fit, channels=channels if size else "auto")
    elif len(shape) == 3:
        examples = _read(source, (shape[1], shape[2]), fit, channels, progress, how)
    elif arrays:
        examples = _read(source, None, fit, "auto", progress, how)
    else:
        raise DataError(f"{source}: expected a .npy or .npz of vectors {list(shape)}; got images")
    if examples.values.shape[1:] != shape:
        found = list(examples.values.shape[1:])
        raise DataError(f"{source}: expected examples of shape {list(shape)}; got {found}")
    for note in examples.notes:
        say(note)
    if examples.skipped:
        say(_skips_in_words(examples.skipped))
    finish()
    return torch.from_numpy(np.ascontiguousarray(examples.values)), tuple(examples.names)


def _check_pictures(background: str, frames: str) -> None:
    known = is_background(background)
    require(known, "background", "auto, white, black or #rrggbb", repr(background))
    require(frames in ("first", "all"), "frames", "first or all", repr(frames))


def _check_choices(fit: str, channels: str) -> None:
    require(fit in get_args(Fit), "fit", "crop or pad", repr(fit))
    require(channels in get_args(Channels), "channels", "auto, grey or rgb", repr(channels))


def _reading(levels: Any, rules: int) -> Reading:
    named = levels in ("auto", "none", "counts") and isinstance(levels, str)
    good = named or (type(levels) is int and 2 <= levels <= limits.MOST_LEVELS)
    require(
        good,
        "levels",
        f"auto, none or a number from 2 to {limits.MOST_LEVELS:,}, or counts",
        repr(levels),
    )
    return Reading(str(levels), rules=rules)


def _array_label(label: str, source: str | Path) -> str:
    """Return the name of the array or column of labels, "" where they are names of folders."""
    arrays = Path(str(source)).suffix.lower() in ARRAY_SUFFIXES
    if label and source != "fashion":
        _what_is(Path(source))  # which says so where there is nothing
    fits = not label or (label == "folder") != arrays
    wanted = "the name of an array or a column" if arrays else "folder for pictures and sound"
    require(fits, "label", wanted, repr(label))
    return label if arrays else ""


def _folder_labels(names: list[str], source: str) -> list[str]:
    """Return the name of the folder in which each picture or sound lies."""
    labels = [f"/{name}".rsplit("/", 2)[-2] for name in names]
    bare = next((k for k, one in enumerate(labels) if one in ("", "train", "test")), None)
    if bare is not None:
        raise DataError(
            f"{source}: expected every file in a folder named by its label; got {names[bare]}"
        )
    return labels


def _sizes(size_factors: str) -> str:
    known = size_factors in ("auto", "none", "total", "given")
    require(known, "size_factors", "auto, none, total or given", repr(size_factors))
    return size_factors


def _read(
    source: str | Path,
    size: tuple[int, int] | None,
    fit: Fit,
    channels: Channels,
    progress: Progress | None,
    how: Reading,
) -> Examples:
    """Send the source to its reader."""
    require_type(source, (str, Path), "source", "'fashion', a folder, a .npy, .npz or .csv file")
    path = Path(source)
    what = "embedded" if source == "fashion" else _what_is(path)
    counted = how.levels == "counts" and what != "array"
    require(not counted, "levels", "auto or a number for pictures", "counts")
    if what == "folder":
        return read_folder(path, size=size, fit=fit, channels=channels, progress=progress, how=how)
    if what == "image" and size is not None:
        return read_file(path, size=size, fit=fit, channels=channels, how=how)
    if what not in ("embedded", "array"):
        raise DataError(_not_read(path))
    arrays = what == "array"
    examples = read_arrays(path, how) if arrays else as_asked(read_fashion(), how)
    try:
        fit_images(examples, size, fit=fit, channels=channels)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    return examples


def _not_read(path: Path) -> str:
    """Say that a file is of no kind that is read, and how to make it one."""
    kind = path.suffix.lower()
    if kind in (".h5", ".loom"):
        hint = "scipy.sparse.save_npz('counts.npz', adata.X), or numpy.savez of adata.X.toarray()"
        return f"{path}: expected .h5ad, .npz, .npy or .csv counts; got HDF5. Try: {hint}"
    hints = {
        **dict.fromkeys(ARCHIVES, "unpack it, and give the folder"),
        **dict.fromkeys((".hdf5", ".mat", ".pt", ".pth", ".pkl"), "numpy.save of the array in it"),
        **dict.fromkeys((".parquet", ".feather", ".xlsx", ".xls"), "save it as .csv"),
        **dict.fromkeys((".txt", ".dat"), "a table with commas, named .csv"),
        **dict.fromkeys(FRAME_SUFFIXES, "the folder that it lies in"),
    }
    hint = f". Try: {hints[kind]}" if kind in hints else ""
    return f"{path}: expected a folder of images, a .npy, .npz or .csv file{hint}"


def _what_is(path: Path) -> Literal["folder", "image", "array", "other"]:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = "'fashion' is the embedded set"
        raise DataError(f"{path}: cannot be read: {reason}; {hint}") from error
    if stat.S_ISDIR(mode):
        return "folder"
    suffix = path.suffix.lower() if stat.S_ISREG(mode) else ""
    return "image" if suffix in FRAME_SUFFIXES else "array" if suffix in ARRAY_SUFFIXES else "other"


def _skips_in_words(skipped: list[tuple[str, str]], what: str = "image") -> str:
    shown = "; ".join(f"{name}: {reason}" for name, reason in skipped[: limits.NAMED_SKIPS])
    more = (
        f"; and {len(skipped) - limits.NAMED_SKIPS:,} more"
        if len(skipped) > limits.NAMED_SKIPS
        else ""
    )
    return f"{plural(len(skipped), what)} skipped: {shown}{more}"


def reload(
    protocol: dict[str, Any],
    *,
    source: Any = None,
    whole: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Read again the data set that a protocol describes, with the same settings.

    Whether the data are still the same is for the caller to see: compare the hashes.

    Args:
        protocol: As in `Dataset.protocol`.
        source: Other data, read as those were: on the same grid of levels, or as continuous values
            where those were, whatever grid the others lie on. Objects in memory, as `load` takes
            them, are read by the settings of the protocol alone.
        whole: As in `load`.
        progress: As in `load`.

    Returns:
        The data set.

    Raises:
        DataError: The protocol is damaged or the source is gone.

    Example:
        >>> data = load("fashion", binarize="static", seed=3)
        >>> reload(data.protocol).protocol["sha256"] == data.protocol["sha256"]
        True
    """
    settings = _settings_of(protocol)
    if isinstance(source, str | Path):
        settings = settings_like(protocol)
    if source is None and protocol.get("given"):
        what = f"{protocol['source']}: made in memory, so it cannot be read again"
        raise DataError(f"{what}. Try: data=... in Python, the same object")
    own = source is None
    source = protocol.get("paths", protocol["source"]) if own else source
    shards = shards_in(source, settings["storage"]) if own and "shards" in protocol else None
    if shards is not None:
        shards.require(protocol["shards"])
    return load(source, progress=progress, whole=whole, **settings)


def settings_like(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `load` that read other data as a protocol's were read.

    On the same grid of levels, in the same size, with the same labels in the same order.

    Args:
        protocol: As in `Dataset.protocol`.

    Returns:
        Options of `load` by name.

    Raises:
        DataError: The protocol is damaged.

    Example:
        >>> found = settings_like(load("fashion", size=14, binarize="dynamic").protocol)
        >>> found["size"], found["binarize"]
        ((14, 14), 'dynamic')
    """
    return _settings_of(protocol) | _like(protocol) | {"storage": "auto"}


def _settings_of(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `load` that a protocol was made with."""
    names = ("size", "fit", "channels", "binarize", "seed", "test_fraction")
    try:
        settings = {name: protocol[name] for name in names}
        protocol["source"], protocol["kind"], protocol["event_shape"]
        size = settings["size"]
        settings["size"] = tuple(size) if size else None
        settings["levels"] = protocol.get("reading", "auto")
        settings["rules"] = int(protocol.get("rules", 1))
        settings["background"] = protocol.get("background", "black")
        settings["frames"] = protocol.get("frames", "first")
        settings["size_factors"] = protocol.get("size_factors", "auto")
        settings["label"] = str(protocol.get("label", ""))
        settings["labels"] = tuple(protocol.get("labels", ()))
        if protocol.get("kind") == "sound":
            settings |= {name: protocol.get(name) for name in ("rate", "clip")}
        settings["storage"] = str(protocol.get("storage", "auto"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"protocol: expected what load() stores; wrong or missing: {error}"
        ) from error
    return settings


def _like(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that bring other data to the values of these."""
    if protocol["kind"] == "sound":
        sound = protocol["sound"]
        return {"rate": int(sound["rate"]), "clip": sound["clip"] / sound["rate"]}
    if protocol["kind"] == "counts":
        sizes = str(protocol.get("sizes", "")) or "none"
        return {"levels": "counts", "rules": RULES, "size": None, "size_factors": sizes}
    if protocol["kind"] == "continuous":
        return {"levels": "none", "rules": RULES, "size": None}
    shape = protocol["event_shape"]
    found: dict[str, Any] = {"size": tuple(shape[1:]) or None}
    if len(shape) == 3:
        found["channels"] = "grey" if shape[0] == 1 else "rgb"
    return found | ({"grid": Grid.from_dict(protocol["grid"])} if "grid" in protocol else {})
