"""What every reader hands over: examples, names, digests, and what was done to them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kullback.core import require

from .limits import BYTE_LEVELS, MAX_SIDE, SOUND_LEVELS
from .quantisation import Grid

__all__ = [
    "Channels",
    "Examples",
    "Fit",
    "Fitting",
    "Progress",
    "Reading",
    "as_size",
    "digests_of",
    "plural",
]

Fit = Literal["crop", "pad"]
Channels = Literal["auto", "grey", "rgb"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Reading:
    """How values are to be read.

    levels: "auto" finds the grid they lie on; "none" takes them as continuous; a number quantises
    them to so many levels. grid: the levels of a trained model, for data that go into it. rules: 1
    for runs made before grids were looked for (k/255 and whole numbers only), 2 for those made
    before backgrounds and frames were chosen, 3 for those made before the depth of pictures was
    looked for before resizing, else 4. background: what transparent pictures are
    laid over; "auto" is white where what is seen of the picture is dark, else black. frames:
    "first" or "all" of GIF, TIFF and other files of several pictures; "" is the first, without GIF
    and TIFF files. size_factors: of counts, as in `load`. label: as in `load`, of
    arrays.
    """

    levels: str = "auto"
    grid: Grid | None = None
    rules: int = 4
    background: str = "black"
    frames: str = ""
    size_factors: str = "auto"
    label: str = ""


@dataclass(frozen=True, slots=True)
class Fitting:
    """The size (height, width) and the channels that pictures are brought to, and how."""

    size: tuple[int, int] | None
    fit: Fit
    channels: Channels


@dataclass(slots=True)
class Examples:
    """All examples of a source, before the split is applied.

    values: `[N, *event]`, levels (uint8, or int32 when more than 256) or float32; images are
    `[N, C, H, W]` with C = 1 or 3. grid: what the levels stand for; None for 0..255 as they are.
    names: one a row. digests: SHA-256 of the file or of the row, one a row, or empty.
    is_test: one flag a row where the source has a split of its own, else None.
    split: that split in words. skipped: (name, reason) of what could not be read. sound: of clips,
    their rate, step and length, and how many samples are no padding. counted: the values are
    counts. sizes: where the size factors in their last column are from, "total" or "given", or "".
    labels: one a row, or empty. own: nothing else uses the memory of the values, so that rows may
    be moved in it.

    Example:
        >>> Examples(np.zeros((2, 3), np.uint8), ["a[0]", "a[1]"]).skipped
        []
    """

    values: NDArray[Any]
    names: list[str]
    digests: list[bytes] = field(default_factory=list)
    is_test: NDArray[np.bool_] | None = None
    split: str = ""
    notes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    grid: Grid | None = None
    sound: dict[str, int] | None = None
    counted: bool = False
    sizes: str = ""
    labels: list[str] = field(default_factory=list)
    own: bool = False

    @property
    def levels(self) -> int:
        """How many levels the values have, where they are levels."""
        if self.sound is not None:
            return SOUND_LEVELS // self.sound["step"]
        return BYTE_LEVELS if self.grid is None else self.grid.count


def digests_of(values: NDArray[Any]) -> list[bytes]:
    """Return the SHA-256 of every row's bytes, `[N, *event]` → N digests.

    Example:
        >>> len(digests_of(np.zeros((2, 3), np.uint8))[0])
        32
    """
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    return [hashlib.sha256(row.data).digest() for row in rows]


def as_size(size: Any) -> tuple[int, int] | None:
    """Read a size: None, one side for squares, or a pair (height, width); sides from 1 to 4096.

    Example:
        >>> as_size(64), as_size((28, 32)), as_size(None)
        ((64, 64), (28, 32), None)
    """
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    good = len(pair) == 2 and all(type(side) is int and 1 <= side <= MAX_SIDE for side in pair)
    require(good, "size", "a side from 1 to 4096, or (height, width)", repr(size), "size=64")
    return pair[0], pair[1]


def plural(count: int, word: str) -> str:
    """Write a count with its noun: 1 image, 1,200 images.

    Example:
        >>> plural(1, "image"), plural(1200, "image")
        ('1 image', '1,200 images')
    """
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
