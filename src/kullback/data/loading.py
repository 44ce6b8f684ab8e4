"""From what a user has to tensors: the embedded set, a folder of pictures, a NumPy file.

Which to use: `load` for a data set with a split and a protocol, to train and evaluate on;
`load_images` for everything in a source at once, brought to the shape a trained model takes.
"""

import stat
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from kullback.core import DataError, require, require_type

from .arrays import read_arrays
from .assemble import NAMED_SKIPS, Binarize, assemble
from .dataset import Dataset
from .embedded import read_fashion
from .examples import Channels, Examples, Fit, Progress, Reading, as_size, plural
from .folder import SUFFIXES, as_asked, read_file, read_folder
from .grid import Grid
from .limits import MOST_LEVELS
from .resize import fit_images

__all__ = ["load", "load_images", "reload"]

RULES = 2  # of reading values; 1: k/255 and whole numbers only, 16-bit pictures cut to 8 bits


def load(
    source: str | Path = "fashion",
    *,
    size: int | tuple[int, int] | None = None,
    fit: Fit = "crop",
    channels: Channels = "auto",
    binarize: Binarize = "none",
    seed: int = 0,
    test_fraction: float = 0.1,
    levels: int | str = "auto",
    progress: Progress | None = None,
    rules: int = RULES,
    grid: Grid | None = None,
) -> Dataset:
    """Read a data set whole: `Dataset(train [N, *event], test [M, *event], kind, protocol, …)`.

    source: "fashion" (embedded, 10,000 + 2,000 images of 28x28), a folder of PNG, JPEG, WebP or
    BMP images at any depth, or a `.npy` or `.npz` file (names x_train and x_test, or one array).
    A folder that is itself called fashion is written "./fashion".
    size: height and width in pixels; `fit` "crop" covers it and cuts, "pad" fits inside and pads.
    channels: "auto" is grey when every image is. progress: called with (done, total) files.
    binarize: "static" draws train and test once from `seed`; "dynamic" draws test once, the same
    bits as static, and leaves train grey for `Dataset.batch`. Values that are 0 and 1 stay so.
    levels: "auto" finds out whether the values lie on a grid of levels (k/255, (k/255 − ½)/½, 12
    bits in a 16-bit file) and keeps those levels; "none" takes floats as continuous all the same;
    a number from 2 to 65,536 quantises them to so many. grid: a trained model's, instead. rules:
    of the reading; `reload` passes those that a run was made with.
    Split: `train/` and `test/` folders or x_train and x_test where given; else an example is a
    test example when the SHA-256 of its file or row falls in the lowest `test_fraction`, which
    depends on nothing else and keeps copies on one side. Where that would leave a side without
    examples, the lowest hashes are held out, so two different examples are enough.
    What was done (skipped, resized, left out) is in `protocol["notes"]` and
    `protocol["skipped"]`. Raises `DataError` when the data cannot be used.

    >>> data = load("fashion", size=16, binarize="static")
    >>> data.event_shape, data.kind, data.protocol["notes"]
    ((1, 16, 16), 'binary', ['12,000 images shrunk to 16x16'])
    """
    _check_choices(fit, channels)
    known = binarize in get_args(Binarize)
    require(known, "binarize", "none, static or dynamic", repr(binarize))
    fraction_ok = isinstance(test_fraction, int | float) and 0 < test_fraction < 1
    require(fraction_ok, "test_fraction", "a number between 0 and 1", test_fraction)
    require_type(seed, int, "seed")
    wanted, how = as_size(size), replace(_reading(levels, rules), grid=grid)
    examples = _read(source, wanted, fit, channels, progress, how)
    return assemble(
        examples,
        str(source),
        asked={
            "size": list(wanted) if wanted else None,
            "fit": fit,
            "channels": channels,
            **({"reading": levels, "rules": rules} if rules > 1 else {}),
        },
        binarize=binarize,
        seed=seed,
        test_fraction=float(test_fraction),
    )


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
) -> tuple[Tensor, tuple[str, ...]]:
    """Read everything in a source, unsplit, as `[N, *event_shape]` with one name a row.

    source: as in `load`, or one image file. Images are brought to the height, width and channels
    of `event_shape` `(C, H, W)`; vectors must have its length already. The result is uint8, or
    float32 for continuous arrays; nothing is binarised. kind, grid: of a trained model, whose
    levels (or continuous values) arrays are then read as, whatever grid these few lie on.
    `say` is called with one sentence for each thing done or left out (by default a Python
    warning). Raises `DataError`.

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
    arrays = Path(source).suffix.lower() in (".npy", ".npz")
    how = Reading("none") if kind == "continuous" and arrays else Reading(grid=grid)
    how = Reading(rules=1) if kind in ("8-bit", "binary") and grid is None else how
    if len(shape) == 3:
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
    return torch.from_numpy(np.ascontiguousarray(examples.values)), tuple(examples.names)


def _check_choices(fit: str, channels: str) -> None:
    require(fit in get_args(Fit), "fit", "crop or pad", repr(fit))
    require(channels in get_args(Channels), "channels", "auto, grey or rgb", repr(channels))


def _reading(levels: Any, rules: int) -> Reading:
    named = levels in ("auto", "none") and isinstance(levels, str)
    good = named or (type(levels) is int and 2 <= levels <= MOST_LEVELS)
    require(good, "levels", f"auto, none or a number from 2 to {MOST_LEVELS:,}", repr(levels))
    return Reading(str(levels), rules=rules)


def _read(
    source: str | Path,
    size: tuple[int, int] | None,
    fit: Fit,
    channels: Channels,
    progress: Progress | None,
    how: Reading,
) -> Examples:
    """Send the source to its reader."""
    require_type(source, (str, Path), "source", "'fashion', a folder, a .npy or .npz file")
    path = Path(source)
    what = "embedded" if source == "fashion" else _what_is(path)
    if what == "folder":
        return read_folder(path, size=size, fit=fit, channels=channels, progress=progress, how=how)
    if what == "image" and size is not None:
        return read_file(path, size=size, fit=fit, channels=channels, how=how)
    if what not in ("embedded", "array"):
        raise DataError(f"{path}: expected a folder of images, a .npy or an .npz file")
    arrays = what == "array"
    examples = read_arrays(path, how) if arrays else as_asked(read_fashion(), how)
    try:
        fit_images(examples, size, fit=fit, channels=channels)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    return examples


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
    return "image" if suffix in SUFFIXES else "array" if suffix in (".npy", ".npz") else "other"


def _skips_in_words(skipped: list[tuple[str, str]]) -> str:
    shown = "; ".join(f"{name}: {reason}" for name, reason in skipped[:NAMED_SKIPS])
    more = f"; and {len(skipped) - NAMED_SKIPS:,} more" if len(skipped) > NAMED_SKIPS else ""
    return f"{plural(len(skipped), 'image')} skipped: {shown}{more}"


def reload(protocol: dict[str, Any], *, source: str | None = None) -> Dataset:
    """Read again the data set that a protocol describes, with the same settings.

    protocol: as in `Dataset.protocol`. source: other data, read as those were: on the same grid of
    levels, or as continuous values where those were, whatever grid the others lie on.
    Whether the data are still the same is for the caller to see: compare the hashes. Raises
    `DataError` when the protocol is damaged or the source is gone.

    >>> data = load("fashion", binarize="static", seed=3)
    >>> reload(data.protocol).protocol["sha256"] == data.protocol["sha256"]
    True
    """
    names = ("size", "fit", "channels", "binarize", "seed", "test_fraction")
    try:
        settings = {name: protocol[name] for name in names}
        size = settings["size"]
        settings["size"] = tuple(size) if size else None
        settings["levels"] = protocol.get("reading", "auto")
        settings["rules"] = int(protocol.get("rules", 1))
        if source is not None:
            settings |= _like(protocol)
        source = protocol["source"] if source is None else source
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"protocol: expected what load() stores; wrong or missing: {error}"
        ) from error
    return load(source, **settings)


def _like(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that bring other data to the values of these."""
    if protocol["kind"] == "continuous":
        return {"levels": "none", "rules": RULES, "size": None}
    shape = protocol["event_shape"]
    found = {"size": tuple(shape[1:]) or None}
    return found | ({"grid": Grid.from_dict(protocol["grid"])} if "grid" in protocol else {})
