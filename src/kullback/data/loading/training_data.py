"""A data set to train and evaluate on, from anything that a user has.

Which to use: `load`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from kullback.core import require, require_type

from ..arrays import read_given
from ..dataset import Dataset
from ..examples import Fit, Progress, as_size
from ..given import arrays_of, shards_in
from ..pictures import (
    finish,
    fit_images,
)
from ..quantisation import Grid
from .sources import (
    RULES,
    array_label,
    check_choices,
    check_pictures,
    folder_labels,
    hear,
    known_sizes,
    listening_to,
    read_source,
    reading_of,
)
from .split import Binarize, assemble, from_disk, require_plain

__all__ = [
    "load",
]


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
    listening = None if shards or objects else listening_to(source, rate, clip, channels)
    if listening is None:
        check_choices(fit, channels)
    known = binarize in get_args(Binarize)
    require(known, "binarize", "none, static or dynamic", repr(binarize))
    fraction_ok = isinstance(test_fraction, int | float) and 0 < test_fraction < 1
    require(fraction_ok, "test_fraction", "a number between 0 and 1", test_fraction)
    require_type(seed, int, "seed")
    wanted, how = as_size(size), replace(reading_of(levels, rules), grid=grid)
    of_arrays = objects or shards is not None
    named = label if of_arrays else array_label(label, source)
    how = replace(how, size_factors=known_sizes(size_factors), label=named)
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
        require_plain(plain, binarize, shards, how.label)
        split = float(test_fraction), whole
        more: Any = {"binarize": binarize, "seed": seed, "split": split, "progress": progress}
        return from_disk(shards, how, asked, **more)
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
        examples = hear(Path(source), replace(listening, label=named), progress)
    else:
        if rules > 2:
            how = replace(how, background=background, frames=frames)
        check_pictures(background, frames)
        colours: Any = channels
        examples = read_source(source, wanted, fit, colours, progress, how)
    if label and not how.label:
        examples.labels = folder_labels(examples.names, str(source))
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
