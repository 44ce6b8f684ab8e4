"""Everything in a source at once, unsplit, brought to the shape that a trained model takes.

Which to use: `load_images` for pictures and arrays, `load_sounds` for sound.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import DataError, require

from ..arrays import ARRAY_SUFFIXES, label_in, read_given
from ..examples import Channels, Fit, Progress, Reading
from ..given import shards_in
from ..pictures import (
    finish,
    fit_images,
)
from ..quantisation import Grid
from ..sounds import (
    Listening,
)
from .sources import (
    check_choices,
    check_pictures,
    hear,
    is_sound,
    known_sizes,
    read_source,
    skips_in_words,
)

__all__ = [
    "load_images",
    "load_sounds",
]


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
    check_choices(fit, channels)
    shards = shards_in(source, "memory")
    arrays = shards is not None or Path(source).suffix.lower() in ARRAY_SUFFIXES
    how = Reading("none") if kind == "continuous" and arrays else Reading(grid=grid)
    how = Reading(rules=1) if kind in ("8-bit", "binary") and grid is None else how
    how = Reading("counts", size_factors=known_sizes(size_factors)) if kind == "counts" else how
    check_pictures(background, frames)
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
        examples = read_source(source, (shape[1], shape[2]), fit, channels, progress, how)
    elif arrays:
        examples = read_source(source, None, fit, "auto", progress, how)
    else:
        raise DataError(f"{source}: expected a .npy or .npz of vectors {list(shape)}; got images")
    if examples.values.shape[1:] != shape:
        found = list(examples.values.shape[1:])
        raise DataError(f"{source}: expected examples of shape {list(shape)}; got {found}")
    for note in examples.notes:
        say(note)
    if examples.skipped:
        say(skips_in_words(examples.skipped))
    finish()
    return torch.from_numpy(np.ascontiguousarray(examples.values)), tuple(examples.names)


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
    if not is_sound(source):
        raise DataError(
            f"{source}: expected a sound file, a folder of them, or an .npz with samples and "
            "offset; got something else"
        )
    mixed = "mix" if channels == "auto" else channels
    how = Listening(sound["rate"], None, mixed, length=sound["clip"], step=sound["step"])
    examples = hear(Path(source), how, progress)
    for note in examples.notes:
        say(note)
    if examples.skipped:
        say(skips_in_words(examples.skipped, "sound"))
    return torch.from_numpy(examples.values), tuple(examples.names)
