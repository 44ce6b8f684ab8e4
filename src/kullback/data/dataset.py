"""`Dataset`: training and test tensors, their binarisation, and the protocol of every figure.

Which to use: `load` (in `kullback.data`) makes a `Dataset`; `describe_protocol` writes its
protocol in one line, to be printed beside every figure that depends on it; `binarize` draws bits
`x ~ Bernoulli(pixel / 255)` for one batch, `binarize_all` for a whole set once.

Reference: Salakhutdinov and Murray (2008) binarise once (static); Burda et al. (2016) afresh for
each batch (dynamic). The two protocols differ by about two nats on MNIST and must not be compared.
"""

import ctypes
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kullback.core import DataError, compiling, describe, require, require_type

from .moments import Moments, moments_of
from .quantisation import Grid
from .stored import Rows

__all__ = ["Dataset", "Kind", "binarize", "binarize_all", "describe_protocol", "sha256_of"]

_LEVELS_PER_PIXEL = 65536 / 255
_PIECE = 32_000  # below this torch starts no threads, which here cost more than they save
_PIXELS_AT_ONCE = 4_194_304

Kind = Literal["binary", "8-bit", "levels", "counts", "continuous", "sound"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dataset:
    """Training and test examples, whole, as a model sees them.

    Args:
        train: `[N, *event]`: levels as uint8 (int32 when they are more than 256), or float32 when
            kind is "continuous". Images are `[N, C, H, W]`, vectors `[N, D]`. `Rows` where the
            examples stay on disk.
        test: `[M, *event]`, of the same dtype; binarised already, once, whenever kind is "binary".
        kind: "binary" (values 0 and 1, or drawn so by `batch`), "8-bit" (0..255), "levels"
            (0..`levels` − 1, see `grid` for what they stand for), "counts" (whole numbers from 0,
            with a size factor in the last column where `protocol["sizes"]` says so), "continuous"
            or "sound" (clips `[N, 1, T]` of signed integers, `PADDING` after the end of a short
            one).
        dynamic: `train` holds grey levels and every `batch` draws its bits afresh.
        protocol: JSON-ready; see `describe_protocol`.
        train_names: One a row of `train`.
        test_names: One a row of `test`.
        train_labels: One a row of `train`, int64 places in `protocol["labels"]`; None without.
        test_labels: As `train_labels`, of `test`.

    Example:
        >>> from kullback.data import load
        >>> data = load("fashion", binarize="dynamic")
        >>> data.train.shape, data.kind, data.event_shape
        (torch.Size([10000, 1, 28, 28]), 'binary', (1, 28, 28))
        >>> bits = data.batch(torch.tensor([5, 17]), torch.Generator().manual_seed(0))
        >>> bits.shape, int(bits.max())
        (torch.Size([2, 1, 28, 28]), 1)
    """

    train: Tensor | Rows
    test: Tensor
    kind: Kind
    dynamic: bool
    protocol: dict[str, Any]
    train_names: Sequence[str]
    test_names: Sequence[str]
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one example: `(C, H, W)` or `(D,)`."""
        return tuple(self.train.shape[1:])

    @property
    def levels(self) -> int:
        """How many levels the values have: 2, 256 or `protocol["levels"]`; 0 without an end."""
        fixed = {"binary": 2, "8-bit": 256, "continuous": 0, "counts": 0}
        return fixed[self.kind] if self.kind in fixed else int(self.protocol["levels"])

    @property
    def grid(self) -> Grid | None:
        """What the levels stand for in the caller's units; None where they are those units."""
        stored = self.protocol.get("grid")
        return None if stored is None else Grid.from_dict(stored)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Gather training rows, with fresh bits when dynamic.

        Nothing is drawn from `generator` unless `dynamic`, so its state alone resumes a run.

        Args:
            indices: Rows of `train`, `[B]`.
            generator: Source of the bits.

        Returns:
            `[B, *event]`.
        """
        rows = self.train.index_select(0, indices)
        return binarize(rows, generator) if self.dynamic else rows

    def moments(self) -> Moments:
        """Return mean, squares and range of the training rows, the same in memory as on disk."""
        return self.train.summed() if isinstance(self.train, Rows) else moments_of(self.train)

    def blocks(self) -> Iterator[Tensor]:
        """Yield the training rows in their order, in blocks where they stay on disk."""
        yield from self.train.blocks() if isinstance(self.train, Rows) else (self.train,)

    def expect(self, indices: Tensor) -> None:
        """Say which training rows are asked for next, so that the system may read them ahead."""
        if isinstance(self.train, Rows):
            self.train.expect(indices)

    def __repr__(self) -> str:
        """Say what the set holds in one line: source, shapes and kind, no values.

        Example:
            >>> from kullback.data import load
            >>> load()
            Dataset(fashion: train uint8 [10000, 1, 28, 28], test uint8 [2000, 1, 28, 28], 8-bit)
        """
        kind = f"{self.levels} levels" if self.kind == "levels" else self.kind
        kind += " (drawn afresh)" if self.dynamic else ""
        source = self.protocol.get("source", "unnamed")
        shapes = f"train {_shown(self.train)}, test {describe(self.test)}"
        return f"Dataset({source}: {shapes}, {kind})"

    def to(self, device: torch.device | str) -> "Dataset":
        """Return the same data set with its tensors on `device`."""
        tensors = ("train", "test", "train_labels", "test_labels")
        held = {name: getattr(self, name) for name in tensors}
        moved: dict[str, Any] = {n: None if t is None else t.to(device) for n, t in held.items()}
        return replace(self, **moved)


def _shown(rows: Tensor | Rows) -> str:
    return repr(rows) if isinstance(rows, Rows) else describe(rows)


def sha256_of(values: Tensor) -> str:
    """Return the SHA-256 of a tensor's values in row order, as 64 hexadecimal digits.

    Args:
        values: A tensor of any shape and dtype that NumPy has.

    Returns:
        64 hexadecimal digits; shape and dtype are not part of the hash, only the bytes.

    Example:
        >>> sha256_of(torch.zeros(2, dtype=torch.uint8)) == hashlib.sha256(bytes(2)).hexdigest()
        True
    """
    return hashlib.sha256(values.detach().cpu().contiguous().numpy().data).hexdigest()


def describe_protocol(protocol: dict[str, Any]) -> str:
    """Write a protocol as one line: source, counts, shape, binarisation, hash of the test set.

    Two figures are comparable when these lines agree.

    Args:
        protocol: As in `Dataset.protocol`.

    Returns:
        One line, without its end.

    Raises:
        DataError: The dictionary is no protocol, such as one from a damaged file.

    Example:
        >>> from kullback.data import load
        >>> line = describe_protocol(load("fashion", binarize="dynamic").protocol)
        >>> line[:79]
        'fashion: 10,000 train / 2,000 test, 28x28 grey, dynamic binarisation (seed 0), '
    """
    try:
        counts, binarised = protocol["counts"], protocol["binarize"]
        parts = [f"{counts['train']:,} train / {counts['test']:,} test"]
        sizes = protocol.get("sizes", "")
        shape = protocol["event_shape"]
        parts.append(_shape_in_words([shape[0] - 1] if sizes else shape))
        seeded = f"{binarised} binarisation (seed {protocol['seed']})"
        kind = protocol["kind"]
        kind = f"{int(protocol['levels']):,} levels" if kind == "levels" else kind
        kind += f", size factors: {sizes}" if sizes else ""
        if kind == "sound":
            kind = f"{protocol['sound']['rate']:,} Hz, {int(protocol['levels']):,} levels"
        parts.append(kind if binarised == "none" else seeded)
        if labels := protocol.get("labels"):
            parts.append(f"{len(labels):,} labels")
        if skipped := protocol["skipped"]["count"]:
            parts.append(f"{skipped:,} skipped")
        parts.append(f"test sha256 {protocol['sha256']['test'][:8]}…")
        return f"{protocol['source']}: {', '.join(parts)}"
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"protocol: expected what load() stores; wrong or missing: {error}"
        ) from error


def _shape_in_words(event_shape: list[int]) -> str:
    if len(event_shape) == 2:
        return f"clips of {event_shape[1]:,} samples"
    if len(event_shape) == 1:
        return f"vectors of {event_shape[0]:,}"
    channels, height, width = event_shape
    return f"{height}x{width} {'RGB' if channels == 3 else 'grey'}"


def binarize(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw bits `b ~ Bernoulli(x / 255)`, independently for every pixel.

    Each bit is one 16-bit draw compared with x·65536/255 rounded to an integer, so a probability
    is off by less than 2^-17; 0 is never set and 255 always. The same generator state gives the
    same bits on every device when the generator lives on the CPU (its draws are moved to x).
    No gradient.

    Args:
        x: Grey pixels, uint8, any shape.
        generator: Source of the bits.

    Returns:
        uint8 with values 0 and 1, of x's shape and device.

    Raises:
        ArgumentTypeError: No tensor, or no generator.
        ArgumentValueError: Another dtype.

    Example:
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
    pixels = x.resolve_neg().contiguous().view(-1)  # as the loop in C reads them
    bits = torch.empty(count, dtype=torch.bool, device=x.device)
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
    library, _ = compiling.load(Path(__file__).with_name("binary.c"))
    if library is None:
        return None
    library.binarize.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64]
    library.binarize.restype = None
    return library.binarize


def binarize_all(x: Tensor, *, seed: int, label: str) -> Tensor:
    """Binarise a whole set `[N, *event]` once, from the seed and a label, on the CPU.

    The label separates the streams, so the bits of the test set depend on the seed and the test
    images alone, and on nothing else that is drawn from the same seed.

    Args:
        x: Grey pixels, uint8 `[N, *event]`.
        seed: Any integer.
        label: "train" or "test".

    Returns:
        uint8 with values 0 and 1, `[N, *event]`.

    Example:
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
