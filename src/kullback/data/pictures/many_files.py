"""Many picture files to one array: in processes or threads, by way of the cache.

Which to use: `read_files`. What cannot be read is named, not fatal.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from kullback.core import DataError

from .. import limits
from ..examples import Channels, Examples, Fitting, Progress, Reading, plural
from ..file_listing import bytes_of, name_in
from . import cache, workers
from .bit_depth import as_asked, depth_of
from .decoding import FORMATS, FRAME_FORMATS, NO_PIXELS, Picture, frames_of, header_size_of, silent

__all__ = ["read_files"]


class _File(NamedTuple):
    """What one file gave: its frames and digest, or the reason why it is skipped."""

    name: str
    frames: list[Picture]
    digest: bytes = b""
    skipped: str = ""


class _Packed(NamedTuple):
    """Files with all their pixels in one array, which is sent to another process at once.

    pixels: `[frames, C, H, W]` of 8 bits, which are then no longer in the files; None where not all
    have 8 bits and one size.
    """

    files: list[_File]
    pixels: NDArray[np.uint8] | None


class _Stacked:
    """The pixels of many pictures as they come, `[rows, C, H, W]`, in one array from the start."""

    def __init__(self, expected: int, *, coloured: bool) -> None:
        self.expected, self.rows, self.array = expected, 0, np.empty((0, 1, 0, 0), np.uint8)
        self.coloured = coloured

    def add(self, pixels: NDArray[np.uint8]) -> None:
        end = self.rows + len(pixels)
        self.coloured |= pixels.shape[1] == 3
        shape = (3 if self.coloured else 1, *pixels.shape[2:])
        if end > len(self.array) or shape != self.array.shape[1:]:
            larger = max(self.expected, len(self.array), end if end <= self.expected else 2 * end)
            before, self.array = self.array, _room(larger, shape)
            if self.rows:
                self.array[: self.rows] = before[: self.rows]
        self.array[self.rows : end] = pixels
        self.rows = end

    def values(self) -> NDArray[np.uint8]:
        return self.array[: self.rows]


def _room(rows: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Reserve memory for so many pictures; it is used as they are written into it."""
    try:
        return np.empty((rows, *shape), np.uint8)
    except MemoryError as error:
        need = f"{rows * math.prod(shape) / 2**30:,.1f} GB"
        found = f"{plural(rows, 'image')} of {shape[1]}x{shape[2]}, which take {need}"
        raise DataError(f"not enough memory for {found}. Try: a smaller --size") from error


def read_files(
    folder: Path,
    paths: list[str],
    fitting: Fitting,
    progress: Progress | None,
    how: Reading,
    *,
    alike: bool = False,
) -> Examples:
    """Decode every file, or take them from the cache; name what cannot be read.

    alike: whether pictures of several sizes are refused.
    """
    key = cache.key_of(folder, paths, fitting, how)
    kept = None if key is None else cache.fetch(key)
    if kept is not None:
        if progress is not None:
            progress(len(paths), len(paths))
        return kept
    files: list[_File] = []
    sizes: set[tuple[int, int]] = set()
    stacked = _Stacked(len(paths), coloured=fitting.channels == "rgb")
    entry = None if key is None else cache.Entry(key, len(paths))
    try:
        for part in _decoded(folder, paths, fitting, how):
            for file in part.files:
                files.append(file)
                sizes |= {frame.shown for frame in file.frames}
                if alike and len(sizes) > 1:
                    raise _of_several_sizes(folder, paths, how)
                if progress is not None:
                    progress(len(files), len(paths))
            if part.pixels is not None:
                stacked.add(part.pixels)
                if entry is not None:
                    entry.add(part.pixels)
        pixels = stacked.values()
        examples = _examples_of(folder, files, pixels, fitting.channels, how)
        if entry is not None:
            entry.close(examples, given=examples.values is pixels)
    except BaseException:
        if entry is not None:
            entry.discard()
        raise
    return examples


def _decoded(folder: Path, paths: list[str], fitting: Fitting, how: Reading) -> Iterator[_Packed]:
    """Decode files in the order of their paths: many in processes, few in threads."""
    cores = workers.available_cores()
    state = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    decode = partial(_decode_files, folder, fitting, how, state)
    step = limits.FILES_PER_TASK
    tasks = [paths[start : start + step] for start in range(0, len(paths), step)]
    if len(paths) >= limits.FILES_FOR_PROCESSES and cores > 1:
        yield from workers.in_processes(decode, tasks, min(limits.READING_PROCESSES, cores))
        return
    threads = min(limits.READING_THREADS, len(tasks), cores)
    with silent():
        if threads == 1:
            yield from map(decode, tasks)
            return
        with ThreadPoolExecutor(threads) as pool:
            try:
                yield from pool.map(decode, tasks)
            except BaseException:  # Ctrl-C, or sizes that differ: what is not begun is left
                pool.shutdown(cancel_futures=True)
                raise


def _decode_files(
    folder: Path,
    fitting: Fitting,
    how: Reading,
    state: tuple[int | None, bool],
    paths: Sequence[str],
) -> _Packed:
    """Decode files under Pillow's settings `state`, which a process does not share."""
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = state
    return _packed([_decode_file(folder, path, fitting, how) for path in paths])


def _packed(files: list[_File]) -> _Packed:
    """Move the pixels of files into one array; of pictures that are then equal one is kept."""
    pictures = [picture for file in files for picture in file.frames]
    if len({(one.pixels.shape[:2], one.pixels.dtype == np.uint8) for one in pictures}) != 1:
        return _Packed(files, None)
    if pictures[0].pixels.dtype != np.uint8:
        return _Packed(files, None)
    pixels = _stack(pictures, coloured=any(one.pixels.ndim == 3 for one in pictures))
    told: dict[tuple[Any, ...], Picture] = {}

    def bare(picture: Picture) -> Picture:
        axes = picture.pixels.ndim
        key = (axes, *picture[1:])
        if key not in told:
            told[key] = picture._replace(pixels=NO_PIXELS[axes])
        return told[key]

    return _Packed([file._replace(frames=[bare(f) for f in file.frames]) for file in files], pixels)


def _with_pixels(pictures: list[Picture], stacked: NDArray[np.uint8]) -> list[Picture]:
    """Give pictures their pixels back, those whose pixels were packed."""
    rows = iter(stacked)

    def whole(picture: Picture) -> Picture:
        if picture.pixels.size:
            return picture
        row = next(rows)
        return picture._replace(
            pixels=row[0] if picture.pixels.ndim == 2 else np.moveaxis(row, 0, 2)
        )

    return [whole(picture) for picture in pictures]


def _decode_file(folder: Path, path: str, fitting: Fitting, how: Reading) -> _File:
    name = name_in(folder, path)
    try:
        data = bytes_of(path)
        frames = frames_of(data, fitting, how)
    except DataError as error:
        return _File(name, [], skipped=str(error))
    return _File(name, frames, hashlib.sha256(data).digest())


def _examples_of(
    folder: Path,
    files: list[_File],
    stacked: NDArray[np.uint8],
    channels: Channels,
    how: Reading,
) -> Examples:
    """Describe the frames of all files; those of one file share its digest, and so its side.

    stacked: the pixels that are no longer in the files.
    """
    skipped = [(file.name, file.skipped) for file in files if not file.frames]
    pictures = [picture for file in files for picture in file.frames]
    if not pictures:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped[:3])
        raise DataError(f"{folder}: no image of {len(files):,} can be read. {reasons}")
    names, digests = [], []
    for file in files:
        several = len(file.frames) > 1
        names += [f"{file.name}[{k}]" if several else file.name for k in range(len(file.frames))]
        digests += [file.digest] * len(file.frames)
    notes: list[str] = []
    values: NDArray[Any] = stacked
    grid = None
    if len(stacked) < len(pictures):  # some have 16 bits
        pictures, grid = depth_of(_with_pixels(pictures, stacked), channels, notes, how)
        coloured = channels == "rgb" or any(picture.pixels.ndim == 3 for picture in pictures)
        values = _stack(pictures, coloured=coloured)
    notes = _what_was_done(pictures, values, how) + notes
    moving = [len(file.frames) for file in files if len(file.frames) > 1]
    if moving:
        notes.append(f"{plural(len(moving), 'animation')}: all {sum(moving):,} frames taken")
    how_split = "files by SHA-256"
    examples = Examples(values, names, digests, None, how_split, notes, skipped, grid, own=True)
    return as_asked(examples, how)


def _of_several_sizes(folder: Path, paths: list[str], how: Reading) -> DataError:
    """Return the error that names the sizes of all pictures, from their headers."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths:
        with suppress(DataError), silent():  # what cannot be read is no size
            sizes[header_size_of(bytes_of(path), FRAME_FORMATS if how.frames else FORMATS)] += 1
    common = sizes.most_common(limits.NAMED_SIZES)
    left = len(sizes) - limits.NAMED_SIZES
    found = ", ".join(f"{h}x{w} ({plural(n, 'image')})" for (h, w), n in common)
    more = f" and {left} more" if left > 0 else ""
    advice = "Try: a size, for instance --size 64 (fit='crop' or 'pad')"
    return DataError(
        f"{folder}: images of different sizes (height x width): {found}{more}. {advice}"
    )


def _stack(pictures: list[Picture], *, coloured: bool) -> NDArray[Any]:
    """Stack to `[N, C, H, W]`, with three channels if coloured."""
    height, width = pictures[0].pixels.shape[:2]
    wide = any(p.pixels.dtype != np.uint8 and p.pixels.max() > limits.BYTE_MAX for p in pictures)
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
    laid = Counter(picture.background for picture in pictures if picture.transparent)
    counts = {
        **{f"with transparency laid over {name}": count for name, count in sorted(laid.items())},
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
