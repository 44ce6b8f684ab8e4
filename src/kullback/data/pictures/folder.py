"""A folder of pictures, nested as it likes, to one array; its split, and what is left out.

Which to use: `read_folder` for a data set, `read_file` for a single picture.
"""

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from kullback.core import DataError

from .. import limits
from ..examples import Channels, Examples, Fit, Fitting, Progress, Reading, plural
from ..file_listing import bytes_of, name_in, paths_under
from .decoding import FORMATS, FRAME_FORMATS, header_size_of, silent
from .many_files import read_files

__all__ = [
    "ARCHIVES",
    "FRAME_SUFFIXES",
    "SUFFIXES",
    "read_file",
    "read_folder",
]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib"})
_CONVERTERS = {
    "heif-convert (libheif)": "heic heif avif",
    "rsvg-convert": "svg",
    "djxl (libjxl)": "jxl",
    "dcraw or darktable-cli": "raw cr2 nef arw dng",
    "numpy.save of what pydicom or nibabel reads": "dcm nii",
    "magick (ImageMagick)": "jp2 j2k jpx ico ppm pgm pbm pnm tga psd exr hdr pcx",
}
_CONVERTER = {f".{kind}": by for by, kinds in _CONVERTERS.items() for kind in kinds.split()}
OTHER_PICTURES = frozenset(_CONVERTER)
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})
SPLIT_NAMES = frozenset(
    {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
)
FRAME_SUFFIXES = SUFFIXES | {".gif", ".tif", ".tiff", ".apng"}


def read_folder(
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    channels: Channels = "auto",
    progress: Progress | None = None,
    how: Reading | None = None,
) -> Examples:
    """Read every picture under `folder` as levels `[N, C, H, W]`, in the order of their paths.

    Levels are uint8, or int32 with a grid where all pictures are grey with 16 bits and use more
    than 256 levels of them: a depth of 12 bits is found whether the values end at 4,095 or are
    multiples of 16.

    C is 1 when every picture is grey, else 3 ("auto"). Without `size` all must have one size,
    which is kept while its shorter side is at most 64 and shrunk to that beyond. `train/` and
    `test/` sub-folders, where both exist, are the split; pictures beside them are left out.
    Raises `DataError`: no pictures, none readable, several sizes.
    """
    notes: list[str] = []
    how = how or Reading(frames="first", background="auto")
    paths, others = paths_under(folder, FRAME_SUFFIXES if how.frames else SUFFIXES)
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    if divided:
        inside = [p for p in paths if name_in(folder, p).startswith(("train/", "test/"))]
        if beside := len(paths) - len(inside):
            notes.append(f"{plural(beside, 'image')} outside train/ and test/ left out")
        paths = inside
    if not paths:
        raise DataError(_nothing_in(folder, others))
    notes += _left_out(others)
    if not divided:
        notes += _no_split(folder, paths)
    if not size:
        size = _size_of_first(paths, how, notes)
        examples = read_files(
            folder, paths, Fitting(size, fit, channels), progress, how, alike=True
        )
    else:
        examples = read_files(folder, paths, Fitting(size, fit, channels), progress, how)
    examples.notes[:0] = notes
    if divided:
        examples.split = "train/ and test/ folders"
        examples.is_test = np.array([name.startswith("test/") for name in examples.names])
    return examples


def read_file(
    path: Path,
    *,
    size: tuple[int, int],
    fit: Fit = "crop",
    channels: Channels = "auto",
    how: Reading | None = None,
) -> Examples:
    """Read a single picture as levels `[1, C, H, W]`. Raises `DataError` when it cannot be read."""
    how = how or Reading(frames="first", background="auto")
    return read_files(path.parent, [str(path)], Fitting(size, fit, channels), None, how)


def _size_of_first(paths: list[str], how: Reading, notes: list[str]) -> tuple[int, int] | None:
    """Return the size of the first picture that can be opened, at most 64 on the shorter side."""
    for path in paths:
        with suppress(DataError), silent():
            formats = FRAME_FORMATS if how.frames else FORMATS
            height, width = header_size_of(bytes_of(path), formats)
            if min(height, width) <= limits.SHORTER_SIDE:
                return height, width
            scale = limits.SHORTER_SIDE / min(height, width)
            small = (round(height * scale), round(width * scale))
            notes.append(f"no size was given: {height}x{width} became {small[0]}x{small[1]}")
            return small
    return None


def _nothing_in(folder: Path, others: Counter[str]) -> str:
    kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in others.most_common(5))
    instead = f"; it holds other files: {kinds}" if others else ""
    sounds = "" if not others else ", and no WAV, FLAC, OGG or MP3 sounds"
    return f"{folder}: no PNG, JPEG, WebP or BMP images found{sounds}{instead}{_conversion(others)}"


def _conversion(others: Iterable[str]) -> str:
    """Say how files of other kinds become ones that are read."""
    programs = dict.fromkeys(_CONVERTER[one] for one in sorted(others) if one in _CONVERTER)
    hints = [f"convert them to PNG by {', '.join(programs)}"] if programs else []
    hints += ["names that end in .png or .jpg"] if "no suffix" in others else []
    hints += ["unpack the archives"] if any(one in ARCHIVES for one in others) else []
    return f". Try: {', '.join(hints)}" if hints else ""


def _left_out(others: Counter[str]) -> list[str]:
    """Return a note on files beside the pictures that are pictures of other kinds, or archives."""
    known = {one: n for one, n in sorted(others.items()) if one in OTHER_PICTURES | ARCHIVES}
    if not known:
        return []
    kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in known.items())
    return [f"left out, since files of these kinds are not read: {kinds}{_conversion(known)}"]


def _no_split(folder: Path, paths: list[str]) -> list[str]:
    """Return a note where folders look like a split but are not called train/ and test/."""
    tops = {name_in(folder, path).partition("/")[0] for path in paths if os.sep in path}
    like = sorted(one for one in tops if one.lower() in SPLIT_NAMES and (folder / one).is_dir())
    if not like:
        return []
    named = " and ".join(f"{one}/" for one in like)
    split = "a split of your own is a folder train/ and a folder test/"
    return [f"{named} read as one set with what lies beside and split by SHA-256; {split}"]
