"""A folder of pictures, nested as it likes, to one array; what cannot be read is named, not fatal.

Which to use: `read_folder` for a data set, `read_file` for a single picture.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kullback.core import DataError

from .examples import Channels, Examples, Fit, Progress, plural
from .picture import Picture, header_size, read_picture

__all__ = ["SUFFIXES", "picture_files", "read_file", "read_folder"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib"})
_SHORTER_SIDE = 64
_MAX_BYTES = 2**28


def read_folder(
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    channels: Channels = "auto",
    progress: Progress | None = None,
) -> Examples:
    """Read every picture under `folder` as uint8 `[N, C, H, W]`, in the order of their paths.

    C is 1 when every picture is grey, else 3 ("auto"). Without `size` all must have one size,
    which is kept while its shorter side is at most 64 and shrunk to that beyond. `train/` and
    `test/` sub-folders, where both exist, are the split; pictures beside them are left out.
    Raises `DataError`: no pictures, none readable, several sizes.
    """
    notes: list[str] = []
    paths, others = picture_files(folder)
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    if divided:
        inside = [p for p in paths if p.relative_to(folder).parts[0] in ("train", "test")]
        if beside := len(paths) - len(inside):
            notes.append(f"{plural(beside, 'image')} outside train/ and test/ left out")
        paths = inside
    if not paths:
        raise DataError(_nothing_in(folder, others))
    size = size or _common_size(folder, paths, notes)
    examples = _read(folder, paths, size, fit, channels, progress)
    examples.notes[:0] = notes
    if divided:
        examples.split = "train/ and test/ folders"
        examples.is_test = np.array([name.startswith("test/") for name in examples.names])
    return examples


def read_file(
    path: Path, *, size: tuple[int, int], fit: Fit = "crop", channels: Channels = "auto"
) -> Examples:
    """Read a single picture as uint8 `[1, C, H, W]`. Raises `DataError` when it cannot be read."""
    return _read(path.parent, [path], size, fit, channels, None)


def picture_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return the picture files under `folder`, sorted, and a count of the other file types.

    Hidden files and folders are passed over. Linked folders are followed, each real folder once,
    so circles of links end. Raises `DataError` when a folder cannot be listed.
    """
    pictures: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in here.iterdir():
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(entry)
                elif entry.suffix.lower() in SUFFIXES:
                    pictures.append(entry)
                else:
                    others[entry.suffix.lower() or "no suffix"] += 1
        except OSError as error:
            raise DataError(f"{here}: cannot be listed: {error.strerror or error}") from error
    return sorted(pictures, key=lambda path: path.as_posix()), others


def _read(
    folder: Path,
    paths: list[Path],
    size: tuple[int, int] | None,
    fit: Fit,
    channels: Channels,
    progress: Progress | None,
) -> Examples:
    """Decode every file, name what cannot be read, and stack the rest."""
    names, digests, pictures, skipped = [], [], [], []
    for done, path in enumerate(paths, start=1):
        name = path.relative_to(folder).as_posix()
        try:
            data = _bytes_of(path)
            picture = read_picture(data, size=size, fit=fit, channels=channels)
        except DataError as error:
            skipped.append((name, str(error)))
        else:
            names.append(name)
            digests.append(hashlib.sha256(data).digest())
            pictures.append(picture)
        if progress is not None:
            progress(done, len(paths))
    if not pictures:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped[:3])
        raise DataError(f"{folder}: no image of {len(paths):,} can be read. {reasons}")
    values = _stack(pictures, channels)
    notes = _what_was_done(pictures, values)
    return Examples(values, names, digests, None, "files by SHA-256", notes, skipped)


def _bytes_of(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise DataError("not a regular file, or a link to nothing")
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"larger than {_MAX_BYTES // 2**20} MB")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error


def _common_size(folder: Path, paths: list[Path], notes: list[str]) -> tuple[int, int] | None:
    """Find the one size of all pictures from their headers, at most 64 on the shorter side."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths:
        try:
            sizes[header_size(_bytes_of(path))] += 1
        except DataError:
            continue  # named when it is read
    if len(sizes) > 1:
        common = sizes.most_common(5)
        found = ", ".join(f"{h}x{w} ({plural(n, 'image')})" for (h, w), n in common)
        more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
        advice = "Try: a size, for instance --size 64 (fit='crop' or 'pad')"
        raise DataError(
            f"{folder}: images of different sizes (height x width): {found}{more}. {advice}"
        )
    if not sizes or min(next(iter(sizes))) <= _SHORTER_SIDE:
        return next(iter(sizes), None)
    height, width = next(iter(sizes))
    scale = _SHORTER_SIDE / min(height, width)
    small = (round(height * scale), round(width * scale))
    notes.append(f"no size was given: {height}x{width} became {small[0]}x{small[1]}")
    return small


def _stack(pictures: list[Picture], channels: Channels) -> NDArray[np.uint8]:
    """Stack to `[N, C, H, W]`, with three channels if asked for or if any picture has colour."""
    coloured = channels == "rgb" or any(picture.pixels.ndim == 3 for picture in pictures)
    height, width = pictures[0].pixels.shape[:2]
    values = np.empty((len(pictures), 3 if coloured else 1, height, width), np.uint8)
    for row, picture in zip(values, pictures, strict=True):
        pixels = picture.pixels
        row[...] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    return values


def _what_was_done(pictures: list[Picture], values: NDArray[Any]) -> list[str]:
    height, width = values.shape[2:]
    fitted = Counter(picture.fitted for picture in pictures if picture.fitted)
    notes = [f"{plural(n, 'image')} {words} to {height}x{width}" for words, n in fitted.items()]
    counts = {
        "with transparency laid over black": sum(p.transparent for p in pictures),
        "turned from colour to grey": sum(p.recoloured for p in pictures),
    }
    if values.shape[1] == 3:
        counts["grey, repeated in three channels"] = sum(p.pixels.ndim == 2 for p in pictures)
    return notes + [f"{plural(n, 'image')} {words}" for words, n in counts.items() if n]


def _nothing_in(folder: Path, others: Counter[str]) -> str:
    kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in others.most_common(5))
    instead = f"; it holds other files: {kinds}" if others else ""
    return f"{folder}: no PNG, JPEG, WebP or BMP images found{instead}"
