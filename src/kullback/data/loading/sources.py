"""What a path stands for, and its reader: the embedded set, a folder, pictures, arrays or sound.

Which to use: `read_source` for pictures and arrays, `hear` for what `is_sound`; `reading_of`,
`listening_to` and the checks bring options to what readers take.
"""

import hashlib
import stat
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kullback.core import DataError, require, require_type

from .. import limits
from ..arrays import ARRAY_SUFFIXES, read_arrays
from ..examples import Channels, Examples, Fit, Progress, Reading, plural
from ..file_listing import files_under
from ..pictures import (
    ARCHIVES,
    FRAME_SUFFIXES,
    as_asked,
    fit_images,
    is_background,
    read_file,
    read_folder,
    read_picture,
)
from ..sounds import (
    SOUND_SUFFIXES,
    Listening,
    holds_clips,
    read_clips,
    read_sound_file,
    read_sound_folder,
)

__all__ = [
    "RULES",
    "array_label",
    "check_choices",
    "check_pictures",
    "folder_labels",
    "hear",
    "is_sound",
    "known_sizes",
    "listening_to",
    "read_fashion",
    "read_source",
    "reading_of",
    "skips_in_words",
]

TRAIN_COUNT, TEST_COUNT = 10_000, 2_000
_SHA256 = "67ac0de77cb2a9b5a6a638c2663b7e4f6cb555664a0cfd1063d3cb7b5eb6177f"
_REPAIR = "reinstall the package: pip install --force-reinstall --no-deps kullback"
RULES = 4  # of reading values; 3: the depth of 16-bit pictures looked for after resizing them; 2:
# transparency over black, no GIF or TIFF; 1: k/255 and whole numbers only, 16-bit pictures cut to
# 8 bits


def read_source(
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


def is_sound(source: str | Path) -> bool:
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


def listening_to(
    source: str | Path, rate: int | None, clip: float | None, channels: str
) -> Listening | None:
    """Return how sound is to be read, or None where the source is something else."""
    if not is_sound(source):
        given = {"rate": rate, "clip": clip}
        for name, value in given.items():
            require(value is None, name, "none for what is no sound", repr(value))
        return None
    return Listening(rate, clip, "mix" if channels == "auto" else channels)


def hear(path: Path, how: Listening, progress: Progress | None) -> Examples:
    """Send a source of sound to its reader."""
    if path.is_dir():
        return read_sound_folder(path, how, progress)
    return read_clips(path, how) if path.suffix.lower() == ".npz" else read_sound_file(path, how)


def reading_of(levels: Any, rules: int) -> Reading:
    """Return how values are to be read where these levels are asked for."""
    named = levels in ("auto", "none", "counts") and isinstance(levels, str)
    good = named or (type(levels) is int and 2 <= levels <= limits.MOST_LEVELS)
    require(
        good,
        "levels",
        f"auto, none or a number from 2 to {limits.MOST_LEVELS:,}, or counts",
        repr(levels),
    )
    return Reading(str(levels), rules=rules)


def known_sizes(size_factors: str) -> str:
    """Return where size factors are from, as it is, if there is such a choice."""
    known = size_factors in ("auto", "none", "total", "given")
    require(known, "size_factors", "auto, none, total or given", repr(size_factors))
    return size_factors


def check_pictures(background: str, frames: str) -> None:
    """Refuse another background, or other frames, than there are."""
    known = is_background(background)
    require(known, "background", "auto, white, black or #rrggbb", repr(background))
    require(frames in ("first", "all"), "frames", "first or all", repr(frames))


def check_choices(fit: str, channels: str) -> None:
    """Refuse another fit, or other channels, than there are."""
    require(fit in get_args(Fit), "fit", "crop or pad", repr(fit))
    require(channels in get_args(Channels), "channels", "auto, grey or rgb", repr(channels))


def array_label(label: str, source: str | Path) -> str:
    """Return the name of the array or column of labels, "" where they are names of folders."""
    arrays = Path(str(source)).suffix.lower() in ARRAY_SUFFIXES
    if label and source != "fashion":
        _what_is(Path(source))  # which says so where there is nothing
    fits = not label or (label == "folder") != arrays
    wanted = "the name of an array or a column" if arrays else "folder for pictures and sound"
    require(fits, "label", wanted, repr(label))
    return label if arrays else ""


def folder_labels(names: list[str], source: str) -> list[str]:
    """Return the name of the folder in which each picture or sound lies."""
    labels = [f"/{name}".rsplit("/", 2)[-2] for name in names]
    bare = next((k for k, one in enumerate(labels) if one in ("", "train", "test")), None)
    if bare is not None:
        raise DataError(
            f"{source}: expected every file in a folder named by its label; got {names[bare]}"
        )
    return labels


def skips_in_words(skipped: list[tuple[str, str]], what: str = "image") -> str:
    """Say which files were skipped, and why."""
    shown = "; ".join(f"{name}: {reason}" for name, reason in skipped[: limits.NAMED_SKIPS])
    more = (
        f"; and {len(skipped) - limits.NAMED_SKIPS:,} more"
        if len(skipped) > limits.NAMED_SKIPS
        else ""
    )
    return f"{plural(len(skipped), what)} skipped: {shown}{more}"
