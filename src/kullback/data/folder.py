"""A folder of pictures, nested as it likes, to one array; what cannot be read is named, not fatal.

Which to use: `read_folder` for a data set, `read_file` for a single picture.
"""

import hashlib
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kullback.core import DataError, require

from .examples import Channels, Examples, Fit, Progress, Reading, plural
from .grid import Grid, named
from .picture import Picture, header_size, read_picture

__all__ = ["SUFFIXES", "as_asked", "picture_files", "read_file", "read_folder"]

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
    examples = _read(folder, paths, size, fit, channels, progress, how or Reading())
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
    return _read(path.parent, [path], size, fit, channels, None, how or Reading())


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
    how: Reading,
) -> Examples:
    """Decode every file, name what cannot be read, and stack the rest."""
    names, digests, pictures, skipped = [], [], [], []
    for done, path in enumerate(paths, start=1):
        name = path.relative_to(folder).as_posix()
        try:
            data = _bytes_of(path)
            deep = how.rules > 1
            picture = read_picture(data, size=size, fit=fit, channels=channels, deep=deep)
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
    notes: list[str] = []
    pictures, grid = _depth_of(pictures, channels, notes, how)
    values = _stack(pictures, channels)
    notes = _what_was_done(pictures, values, how) + notes
    examples = Examples(values, names, digests, None, "files by SHA-256", notes, skipped, grid)
    return as_asked(examples, how)


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


def _depth_of(
    pictures: list[Picture], channels: Channels, notes: list[str], how: Reading
) -> tuple[list[Picture], Grid | None]:
    """Find the levels that 16-bit pictures use; where others have 8 bits, cut them to 8 bits."""
    deep = [picture.pixels for picture in pictures if picture.pixels.dtype == np.uint16]
    if not deep:
        return pictures, None
    largest = max(int(pixels.max()) for pixels in deep)
    step = math.gcd(*(int(v) for pixels in deep for v in np.unique(pixels))) or 1
    grid = how.grid or named(0.0, float(step), max(1, largest // step))
    bits = (grid.count - 1).bit_length()
    if len(deep) == len(pictures) and channels != "rgb":
        levels = [
            replace(p, pixels=_known(grid, p.pixels) if how.grid else p.pixels // step)
            for p in pictures
        ]
        if how.grid is None:
            said = "8-bit" if grid.count == 256 else f"{bits}-bit ({grid.count:,} levels)"
            every = "" if step == 1 else f", all multiples of {step},"
            notes.append(
                f"{plural(len(deep), 'image')} of 16 bits with values up to {largest:,}{every} "
                f"modelled as {said}"
            )
        return levels, grid
    top = grid.count - 1
    notes.append(
        f"{plural(len(deep), 'image')} of 16 bits, with {bits} bits in use, cut to 8 bits "
        "like the others"
    )

    def cut(picture: Picture) -> Picture:
        if picture.pixels.dtype != np.uint16:
            return picture
        level = (picture.pixels // step).astype(np.int64)
        return replace(picture, pixels=((level * 510 + top) // (2 * top)).astype(np.uint8))

    return [cut(picture) for picture in pictures], None


def _known(grid: Grid, pixels: NDArray[Any]) -> NDArray[Any]:
    levels: NDArray[Any] = grid.levels_of(pixels[None, None].astype(np.float64))[0, 0]
    return levels


def as_asked(examples: Examples, how: Reading) -> Examples:
    """Bring pictures to a model's levels, or to as many as were asked for, in place."""
    if how.grid is not None and examples.levels != how.grid.count:
        raise DataError(
            f"expected pictures of {how.grid.count:,} levels, as the model was trained on; "
            f"got {examples.levels:,}"
        )
    require(how.levels != "none", "levels", "auto or a number for pictures", "none")
    if how.levels == "auto":
        return examples
    before, count = examples.levels, int(how.levels)
    require(count <= before, "levels", f"at most the pictures' own {before:,}", count)
    grid = Grid(count, (0.0,), ((before - 1) / max(1, count - 1),))
    levels = examples.values.astype(np.int64) * count // before
    examples.values, examples.grid = levels.astype(grid.dtype), grid
    examples.notes.append(
        f"{before:,} levels cut to {count:,}, as asked: floor(k·{count}/{before})"
    )
    return examples


def _stack(pictures: list[Picture], channels: Channels) -> NDArray[Any]:
    """Stack to `[N, C, H, W]`, with three channels if asked for or if any picture has colour."""
    coloured = channels == "rgb" or any(picture.pixels.ndim == 3 for picture in pictures)
    height, width = pictures[0].pixels.shape[:2]
    wide = any(picture.pixels.max() > 255 for picture in pictures)
    shape = (len(pictures), 3 if coloured else 1, height, width)
    values = np.empty(shape, np.int32 if wide else np.uint8)
    for row, picture in zip(values, pictures, strict=True):
        pixels = picture.pixels
        row[...] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    return values


def _what_was_done(pictures: list[Picture], values: NDArray[Any], how: Reading) -> list[str]:
    height, width = values.shape[2:]
    fitted = Counter(picture.fitted for picture in pictures if picture.fitted)
    notes = [f"{plural(n, 'image')} {words} to {height}x{width}" for words, n in fitted.items()]
    counts = {
        "with transparency laid over black": sum(p.transparent for p in pictures),
        "turned from colour to grey": sum(p.recoloured for p in pictures),
    }
    if values.shape[1] == 3:
        counts["grey, repeated in three channels"] = sum(p.pixels.ndim == 2 for p in pictures)
    if how.rules > 1:
        counts |= {
            "with an alpha channel that was left out": sum(p.alpha for p in pictures),
            "turned or mirrored as their EXIF orientation says": sum(p.turned for p in pictures),
            "of 16 bits a colour cut to 8 bits": sum(p.cut for p in pictures),
        }
    notes += [f"{plural(n, 'image')} {words}" for words, n in counts.items() if n]
    moving, left = sum(p.frames > 0 for p in pictures), sum(p.frames for p in pictures)
    if moving and how.rules > 1:
        notes.append(f"{plural(moving, 'animation')}: first frames taken, {left:,} others left out")
    return notes


def _nothing_in(folder: Path, others: Counter[str]) -> str:
    kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in others.most_common(5))
    instead = f"; it holds other files: {kinds}" if others else ""
    return f"{folder}: no PNG, JPEG, WebP or BMP images found{instead}"
