"""Sound to look at and to hear: spectrograms as pictures, clips as WAV files.

Which to use: `spectrograms` for pictures of clips, `save_spectrograms` and `save_wavs` to write
them, `players` for what a page plays, `rebuilt` for reconstructions.
"""

import base64
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kullback.core import write_atomic
from kullback.data import PADDING, wav_of
from kullback.vae import VAE

from .limits import LOUDNESS_RANGE, SPECTROGRAM_BANDS, SPECTROGRAM_FRAMES
from .pictures import compose, interleave, on_white, save

__all__ = [
    "Player",
    "players",
    "rebuilt",
    "save_spectrograms",
    "save_wavs",
    "spectrograms",
]


@dataclass(frozen=True, slots=True)
class Player:
    """A clip as an `<audio>` element holds it: the WAV file in base64, and its name."""

    source: str
    name: str


def rate_of(model: VAE) -> int:
    """Return a model's samples a second."""
    return 1 if model.spec is None or model.spec.sound is None else model.spec.sound["rate"]


@torch.no_grad()
def rebuilt(model: VAE, x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw x from p(x|z) at the mean code of each clip, as long as the clip."""
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
        torch.Size([2, 129, 126, 1])
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
    """Write each clip, without its padding, as a mono 16-bit WAV file of the model's rate."""
    for clip, name in zip(clips, names, strict=True):
        write_atomic(name, _wav(model, clip))


def save_spectrograms(
    model: VAE, clips: Tensor, out: Path, *, below: Tensor | None = None, overwrite: bool
) -> None:
    """Write the spectrograms of clips as one PNG, those of `below` under them."""
    del model
    both = clips if below is None else torch.cat([clips, below])
    levels = spectrograms(both)
    columns = min(4, len(clips))
    if below is None:
        picture = compose(levels, columns=columns, gap=4)
    else:
        picture = interleave(levels, columns=columns, gap=4)
    save(on_white(picture, 1, ""), out, overwrite=overwrite)


def players(model: VAE, clips: Tensor, *, budget: int, first: int = 1) -> list[Player]:
    """Return as many clips, from the first on, as fit into a budget of bytes in a page."""
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
