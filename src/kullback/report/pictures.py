"""Images of a model or a data set as one picture, and clips of sound to look at and to hear.

Which to use: `grid` for samples, `pairs` for reconstructions, `save` to write either to a PNG that
does not exist yet. Of sound: `spectrograms` for pictures of clips, `save_spectrograms` and
`save_wavs` to write them, `players` for what a page plays, `reconstructed` for reconstructions.
Pillow is imported only when a picture is made.
"""

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kullback.core import RunError, describe, require, require_type, write_atomic
from kullback.data import PADDING, wav_of
from kullback.vae import VAE

from .limits import LOUDNESS_RANGE, SPECTROGRAM_BANDS, SPECTROGRAM_FRAMES

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Player",
    "compose",
    "grid",
    "pairs",
    "players",
    "reconstructed",
    "save",
    "save_spectrograms",
    "save_wavs",
    "spectrogram_grid",
    "spectrograms",
    "to_levels",
]

_SPANS = {"binary": (0.0, 1.0), "8-bit": (0.0, 255.0)}
_KINDS = ("binary", "8-bit", "continuous", "levels")


def grid(
    images: Tensor,
    *,
    kind: str,
    columns: int | None = None,
    gap: int = 2,
    scale: int = 1,
    levels: int = 256,
) -> "Image":
    """Lay images out in rows, left to right and top to bottom, on white.

    Levels are rounded, so 8-bit data are exact.

    Args:
        images: `[N, C, H, W]`, N ≥ 1, C = 1 (a grey picture) or 3 (RGB), in the data's units.
        kind: "binary" (0 … 1, probabilities included), "8-bit" (0 … 255), "levels" (0 … `levels` −
            1) or "continuous", which is shown from its least value (black) to its greatest (white).
        columns: Images a row; ⌈√N⌉ if None.
        gap: White pixels between images.
        scale: How often every pixel is repeated, a whole number.
        levels: Number of levels, for kind "levels".

    Returns:
        The picture. Of "continuous" the range is in `picture.info["range"]`, and `save` keeps it.

    Raises:
        ArgumentTypeError: For anything but a tensor.
        ArgumentValueError: For vectors, other channels, values outside the kind's range or not
            finite, or a layout that is no whole number.

    Example:
        >>> grid(torch.zeros(5, 1, 28, 28), kind="binary", columns=3).size
        (88, 58)
    """
    shown, note = to_levels(images, kind=kind, levels=levels)
    columns = math.ceil(math.sqrt(len(shown))) if columns is None else columns
    return _on_white(compose(shown, columns=columns, gap=gap), scale, note)


def pairs(
    originals: Tensor,
    reconstructions: Tensor,
    *,
    kind: str,
    columns: int = 8,
    gap: int = 2,
    scale: int = 1,
    levels: int = 256,
) -> "Image":
    """Lay originals out in rows, each row of them above the row of their reconstructions.

    A continuous pair shares one range. A row of originals stands `gap` above its reconstructions
    and 3·`gap` below those of the row before.

    Args:
        originals: `[N, C, H, W]`, as in `grid`.
        reconstructions: The same shape.
        kind: As in `grid`.
        columns: Originals a row.
        gap: White pixels between images.
        scale: How often every pixel is repeated, a whole number.
        levels: Number of levels, for kind "levels".

    Returns:
        The picture, as in `grid`.

    Raises:
        ArgumentTypeError: For anything but tensors.
        ArgumentValueError: As in `grid`, and when the two shapes differ.

    Example:
        >>> pairs(torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 4, 4), kind="binary", gap=1).size
        (14, 9)
    """
    require_type(originals, Tensor, "originals")
    require_type(reconstructions, Tensor, "reconstructions")
    same = originals.shape == reconstructions.shape
    shape = list(originals.shape)
    require(same, "reconstructions", f"the originals' shape {shape}", describe(reconstructions))
    both = torch.cat([originals.float(), reconstructions.float()])
    shown, note = to_levels(both, kind=kind, levels=levels)
    return _on_white(interleave(shown, columns=min(columns, len(originals)), gap=gap), scale, note)


def save(image: "Image", path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a picture as PNG, whole or not at all.

    Args:
        image: A picture, as from `grid` or `pairs`.
        path: Where to write it; it ends in .png.
        overwrite: Replace a file that exists.

    Returns:
        The path.

    Raises:
        ArgumentTypeError: For a path that is none.
        ArgumentValueError: For a name that does not end in .png.
        RunError: When the file exists already (unless `overwrite`) or the disk refuses.

    Example:
        >>> save(grid(torch.zeros(4, 1, 8, 8), kind="8-bit"), "four.png").name
        'four.png'
    """
    require_type(path, (str, Path), "path")
    path = Path(path)
    require(path.suffix.lower() == ".png", "path", "a name that ends in .png", repr(str(path)))
    if path.exists() and not overwrite:
        raise RunError(f"{path} exists already and is never overwritten. Try: another name")
    write_atomic(path, _png(image))
    return path


def to_levels(images: Tensor, *, kind: str, levels: int = 256) -> tuple[Tensor, str]:
    """Turn images in the data's units into uint8 `[N, H, W, C]`, and say which range was shown.

    Args:
        images: `[N, C, H, W]`, as in `grid`.
        kind: As in `grid`.
        levels: Number of levels, for kind "levels".

    Returns:
        The levels, uint8 `[N, H, W, C]`, and a note of the range, "" unless kind is "continuous".

    Raises:
        ArgumentTypeError: For anything but a tensor.
        ArgumentValueError: As in `grid`.

    Example:
        >>> images = torch.tensor([-1.0, 3.0]).reshape(1, 1, 1, 2)
        >>> levels, note = to_levels(images, kind="continuous")
        >>> levels.flatten().tolist(), note
        ([0, 255], 'black is -1, white is 3')
    """
    require_type(images, Tensor, "images")
    require(kind in _KINDS, "kind", f"one of {', '.join(_KINDS)}", repr(kind))
    hint = "vectors have no picture; a single grey one is x[None, None]" if images.ndim == 2 else ""
    shaped = images.ndim == 4 and images.shape[1] in (1, 3) and images.numel() > 0
    require(shaped, "images", "[N, C, H, W] with C = 1 or 3", describe(images), hint)
    values = images.detach().cpu().double()
    require(bool(torch.isfinite(values).all()), "images", "finite values", "NaN or infinity")
    found = float(values.min()), float(values.max())
    low, high = (0.0, max(1.0, levels - 1)) if kind == "levels" else _SPANS.get(kind, found)
    slack = 1e-4 * (high - low)  # rounding in a sum of 256 levels
    within = low - slack <= found[0] and found[1] <= high + slack
    require(
        within, "images", f"{kind} values in [{low:g}, {high:g}]", f"[{found[0]:g}, {found[1]:g}]"
    )
    span = high - low if high > low else 1.0
    shown = ((values - low) * (255.0 / span)).round().clamp(0, 255).to(torch.uint8)
    note = f"black is {low:.4g}, white is {high:.4g}" if kind == "continuous" else ""
    return shown.permute(0, 2, 3, 1), note


def compose(
    levels: Tensor, *, columns: int, gap: int, block: int = 1, shown: Tensor | None = None
) -> "Image":
    """Place images on a transparent picture, mode LA or RGBA.

    After every `block` rows the gap is three times as wide, unless `block` is 1.

    Args:
        levels: `[N, H, W, C]`, uint8, C = 1 or 3.
        columns: Images a row, ≥ 1.
        gap: Transparent pixels between images, ≥ 0.
        block: Rows that belong together.
        shown: Bool `[N]`, which of the places are filled; the others stay transparent. All if None.

    Returns:
        The picture.

    Raises:
        ArgumentValueError: For columns or a gap that are no such whole numbers.

    Example:
        >>> compose(torch.zeros(2, 4, 4, 1, dtype=torch.uint8), columns=1, gap=1).getbbox()
        (0, 0, 4, 9)
    """
    from PIL import Image

    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (columns, gap))
    require(whole and columns >= 1, "columns", "a whole number of at least 1", columns)
    require(whole and gap >= 0, "gap", "a whole number of pixels, at least 0", gap)
    n, height, width, colours = levels.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    extra = [2 * gap * (row // block) if block > 1 else 0 for row in range(rows)]
    size = rows * (height + gap) - gap + extra[-1], columns * (width + gap) - gap
    canvas = torch.zeros(*size, colours + 1, dtype=torch.uint8)
    for index in range(n):
        if shown is None or shown[index]:
            row, column = divmod(index, columns)
            top, left = row * (height + gap) + extra[row], column * (width + gap)
            place = canvas[top : top + height, left : left + width]
            place[..., :-1] = levels[index]
            place[..., -1] = 255
    return Image.fromarray(canvas.numpy())


def interleave(levels: Tensor, *, columns: int, gap: int) -> "Image":
    """Place N originals and N reconstructions (`[2N, H, W, C]`, uint8) row above row.

    >>> interleave(torch.zeros(4, 4, 4, 1, dtype=torch.uint8), columns=1, gap=1).size
    (4, 21)
    """
    require(isinstance(columns, int) and columns >= 1, "columns", "at least 1", columns)
    n = len(levels) // 2
    rows = math.ceil(n / columns)
    order = [
        row * columns + column + side * n if row * columns + column < n else -1
        for row in range(rows)
        for side in (0, 1)
        for column in range(columns)
    ]
    index = torch.tensor(order)
    return compose(levels[index], columns=columns, gap=gap, block=2, shown=index >= 0)


def _on_white(picture: "Image", scale: int, note: str) -> "Image":
    """Flatten a transparent picture onto white, `scale` times as large."""
    from PIL import Image

    require(isinstance(scale, int) and scale >= 1, "scale", "a whole number of at least 1", scale)
    mode = picture.mode.removesuffix("A")
    paper = Image.new(mode, picture.size, "white")
    paper.paste(picture.convert(mode), mask=picture.getchannel("A"))
    if scale > 1:
        size = picture.width * scale, picture.height * scale
        paper = paper.resize(size, Image.Resampling.NEAREST)
    if note:
        paper.info["range"] = note
    return paper


def _png(image: "Image") -> bytes:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if "range" in image.info:
        text.add_text("range", str(image.info["range"]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, pnginfo=text)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Player:
    """A clip as an `<audio>` element holds it: the WAV file in base64, and its name."""

    source: str
    name: str


def rate_of(model: VAE) -> int:
    """Return a model's samples a second."""
    return 1 if model.spec is None or model.spec.sound is None else model.spec.sound["rate"]


@torch.no_grad()
def reconstructed(model: VAE, x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a sound from p(x|z) at z = the mean of q(z|x), for each clip x, as long as the clip.

    Args:
        model: Of sound.
        x: Clips `[N, 1, T]`, samples and `PADDING`.
        generator: Of the draws.

    Returns:
        Clips `[N, 1, T]`, with the padding of x.

    Example:
        >>> from kullback.vae import Architecture, build
        >>> known = {"rate": 8000, "step": 1, "clip": 3}
        >>> model = build((1, 3), "sound", Architecture(hidden=(4,)), levels=65536, sound=known)
        >>> x = torch.tensor([[[5.0, -2.0, PADDING]]])
        >>> reconstructed(model, x, torch.Generator().manual_seed(0)).shape
        torch.Size([1, 1, 3])
    """
    drawn = model.likelihood.sample(model.parameters_of(model.encode(x)[0]), generator)
    return torch.where(x == PADDING, x, drawn)


def spectrograms(clips: Tensor) -> Tensor:
    """Return log power over time and frequency, white where loudest, 70 dB above black.

    Low frequencies are at the bottom. All clips share one scale; padding is black.

    Args:
        clips: `[N, 1, T]`, samples and `PADDING`.

    Returns:
        `[N, bands, frames, 1]`, uint8, at most 128 frames.

    Example:
        >>> spectrograms(torch.zeros(2, 1, 8000)).shape
        torch.Size([2, 129, 127, 1])
    """
    x = torch.where(clips == PADDING, 0.0, clips.float())[:, 0]
    width = 2 * SPECTROGRAM_BANDS
    hop = max(1, math.ceil(x.shape[-1] / SPECTROGRAM_FRAMES))
    window = torch.hann_window(width)
    x = torch.nn.functional.pad(x, (width // 2, width // 2))
    power = torch.stft(x, width, hop, window=window, center=False, return_complex=True)
    decibels = 20 * torch.log10(power.abs() + 1.0)  # of one level's amplitude
    top = max(float(decibels.max()), LOUDNESS_RANGE)
    shade = ((decibels - top) / LOUDNESS_RANGE + 1).clamp(0, 1)
    return (255 * shade).round().to(torch.uint8).flip(1).unsqueeze(-1)


def save_wavs(model: VAE, clips: Tensor, names: list[Path]) -> None:
    """Write each clip, without its padding, as a mono 16-bit WAV file of the model's rate.

    Args:
        model: Of sound; its rate is the files'.
        clips: `[N, 1, T]`, samples and `PADDING`.
        names: N files to write; those that exist are replaced.
    """
    for clip, name in zip(clips, names, strict=True):
        write_atomic(name, _wav(model, clip))


def spectrogram_grid(clips: Tensor, below: Tensor | None = None) -> "Image":
    """Place the spectrograms of clips side by side, four a row, those of `below` under them.

    Args:
        clips: `[N, 1, T]`, samples and `PADDING`.
        below: N clips of the same shape, such as reconstructions; all share one scale of grey.

    Returns:
        The picture.

    Example:
        >>> spectrogram_grid(torch.zeros(3, 1, 8000)).size
        (389, 129)
    """
    columns = min(4, len(clips))
    if below is None:
        return compose(spectrograms(clips), columns=columns, gap=4)
    return interleave(spectrograms(torch.cat([clips, below])), columns=columns, gap=4)


def save_spectrograms(
    clips: Tensor, out: Path, *, below: Tensor | None = None, overwrite: bool
) -> None:
    """Write what `spectrogram_grid` places as one PNG on white.

    Args:
        clips: As there.
        out: A name that ends in `.png`.
        below: As there.
        overwrite: Replace an existing file.
    """
    save(_on_white(spectrogram_grid(clips, below), 1, ""), out, overwrite=overwrite)


def players(model: VAE, clips: Tensor, *, budget: int, first: int = 1) -> list[Player]:
    """Return as many clips, from the first on, as fit into a budget of bytes in a page.

    Args:
        model: Of sound; its rate is the players'.
        clips: `[N, 1, T]`, samples and `PADDING`.
        budget: Bytes of base64 in all.
        first: Number of the first clip; the numbers are the names.

    Returns:
        A WAV file as a data URI, and a name, for each.

    Example:
        >>> from kullback.vae import Architecture, build
        >>> known = {"rate": 8000, "step": 1, "clip": 3}
        >>> model = build((1, 3), "sound", Architecture(hidden=(4,)), levels=65536, sound=known)
        >>> [one.name for one in players(model, torch.zeros(5, 1, 3), budget=200)]
        ['1', '2']
    """
    found: list[Player] = []
    for number, clip in enumerate(clips, start=first):
        source = base64.b64encode(_wav(model, clip)).decode()
        budget -= len(source)
        if budget < 0:
            break
        found.append(Player(f"data:audio/wav;base64,{source}", str(number)))
    return found


def _wav(model: VAE, clip: Tensor) -> bytes:
    real = clip[clip != PADDING]
    return wav_of(real.round().clamp(-32768, 32767).to(torch.int16).numpy(), rate_of(model))
