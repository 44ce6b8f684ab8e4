"""Grey pixels to bits: `x ~ Bernoulli(pixel / 255)`, seeded.

Which to use: `binarize` for one batch (it is fast enough for a training loop); `binarize_all` for
a whole set once, in pieces, from a seed and a label.

Reference: Salakhutdinov and Murray (2008) binarise once (static); Burda et al. (2016) afresh for
each batch (dynamic). The two protocols differ by about two nats on MNIST and must not be compared.
"""

import ctypes
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback.core import compiling, describe, require, require_type

__all__ = ["binarize", "binarize_all"]

_LEVELS_PER_PIXEL = 65536 / 255
_PIECE = 32_000  # below this torch starts no threads, which here cost more than they save
_PIXELS_AT_ONCE = 4_194_304


def binarize(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw bits `b ~ Bernoulli(x / 255)`, independently for every pixel.

    x: uint8, any shape; the result has its shape and device, uint8 with values 0 and 1.
    Each bit is one 16-bit draw compared with x·65536/255 rounded to an integer, so a probability
    is off by less than 2^-17; 0 is never set and 255 always. The same generator state gives the
    same bits on every device when the generator lives on the CPU (its draws are moved to x).
    No gradient. Raises `ArgumentTypeError` for what is no tensor or generator, `ArgumentValueError`
    for another dtype.

    >>> x = torch.tensor([0, 0, 255, 255], dtype=torch.uint8)
    >>> binarize(x, torch.Generator().manual_seed(0))
    tensor([0, 0, 1, 1], dtype=torch.uint8)
    """
    require_type(x, Tensor, "x")
    require_type(generator, torch.Generator, "generator", "torch.Generator().manual_seed(0)")
    _require_bytes(x)
    count = x.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)  # without bounds the top bit stays 0
    draws = words.view(torch.int16)[:count].to(x.device)
    pixels, bits = x.reshape(-1), torch.empty(count, dtype=torch.bool, device=x.device)
    if x.device.type == "cpu" and (compare := _compiled()) is not None:
        compare(pixels.data_ptr(), draws.data_ptr(), bits.data_ptr(), count)
    else:
        _compare(pixels, draws, bits)
    return bits.view(torch.uint8).view(x.shape)


def _compare(pixels: Tensor, draws: Tensor, bits: Tensor) -> None:
    count = len(pixels)
    piece = _PIECE if pixels.device.type == "cpu" else max(1, count)
    for start in range(0, count, piece):
        part = slice(start, start + piece)
        # draws are whole, so draw < level − 1/2 is draw < round(level)
        level = pixels[part].to(torch.float32).mul_(_LEVELS_PER_PIXEL).sub_(32768.5)
        torch.lt(draws[part], level, out=bits[part])


@cache
def _compiled() -> Any:
    """Return `_compare` in C, or None."""
    library, _ = load(Path(__file__).with_name("binary.c"))
    if library is None:
        return None
    library.binarize.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64]
    library.binarize.restype = None
    return library.binarize


def binarize_all(x: Tensor, *, seed: int, label: str) -> Tensor:
    """Binarise a whole set `[N, *event]` once, from the seed and a label, on the CPU.

    The label ("train", "test") separates the streams, so the bits of the test set depend on the
    seed and the test images alone, and on nothing else that is drawn from the same seed.

    >>> x = torch.full((2, 3), 128, dtype=torch.uint8)
    >>> bool((binarize_all(x, seed=0, label="a") == binarize_all(x, seed=0, label="a")).all())
    True
    """
    digest = hashlib.sha256(f"binarize {label} {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    rows = max(1, _PIXELS_AT_ONCE * len(x) // max(1, x.numel()))
    return torch.cat([binarize(piece, generator) for piece in torch.split(x, rows)])


def _require_bytes(x: Any) -> None:
    hint = "pixels as torch.uint8, 0 to 255"
    require(x.dtype == torch.uint8, "x", "a uint8 tensor", describe(x), hint)
