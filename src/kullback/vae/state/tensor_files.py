"""Tensors in a file: whole or not at all, with a hash, held to what is expected, never a pickle.

Which to use: `save_tensors` and `load_tensors` for tensors that are in memory. A checkpoint, whose
tensors may be in parts, is written with `write_tensors` and read with `read_tensors`, `compare` and
`require_hash`. The files are safetensors.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from kullback.core import NO_HASH, RunError, check_file_hash, write_hashed

__all__ = [
    "compare",
    "in_order_of_file",
    "load_tensors",
    "read_tensors",
    "require_hash",
    "save_tensors",
    "write_tensors",
]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, note: str = "") -> None:
    """Write tensors as safetensors with a hash, atomically; `note` travels in the file's header.

    Errors: RunError when the disk refuses; the file that was there stays as it was.
    """
    tensors = in_order_of_file(tensors)
    header = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(path, header, iter(tensors.values()), note=note)


def in_order_of_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the widest numbers first, so that each begins at a multiple of them."""
    order = sorted(tensors.items(), key=lambda pair: (-pair[1].element_size(), pair[0]))
    return dict(order)


def write_tensors(
    path: Path,
    header: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    parts: Iterator[Tensor],
    *,
    note: str,
) -> None:
    """Write a safetensors file part by part, so that no second copy of all is in memory."""
    metadata = {"file_sha256": NO_HASH} | ({"note": note} if note else {})
    fields: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in header.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": _dtype_name(dtype), "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = len(text).to_bytes(8, "little") + text
    write_hashed(path, begin, map(_bytes_of, parts))


def _bytes_of(tensor: Tensor) -> memoryview:
    numbers: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(numbers)  # read in place


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    """Return how safetensors calls a dtype."""
    content = safetensors.torch.save({"x": torch.empty(0, dtype=dtype)})
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return str(header["x"]["dtype"])


def load_tensors(
    path: Path, *, like: Mapping[str, Tensor] | None = None, hashed: bool = False
) -> dict[str, Tensor]:
    """Read a safetensors file and, given `like`, hold it to the same names, shapes and dtypes.

    hashed: whether it must have a hash, which is checked in any case.
    Errors: RunError when the file is missing, truncated, damaged, or does not match; the message
    names the first difference.
    """
    tensors, metadata = read_tensors(path)
    if like is not None:
        compare(path, tensors, like)
    require_hash(path, metadata, hashed=hashed)
    return tensors


def require_hash(path: Path, metadata: Mapping[str, str], *, hashed: bool) -> None:
    """Refuse a file without a hash where it must have one."""
    if hashed and "file_sha256" not in metadata:
        raise RunError(f"{path}: damaged or of another run: it has no hash (file_sha256)")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file; a hash that is there is checked."""
    try:
        content = path.read_bytes()
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = dict(header.get("__metadata__", {}))
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file") from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path}: not a readable safetensors file ({error})") from error
    check_file_hash(content, path, required="file_sha256" in metadata)
    return tensors, metadata


def compare(path: Path, tensors: dict[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Refuse tensors of a file that have other names, shapes or dtypes, or are not finite."""
    missing, extra = sorted(set(like) - set(tensors)), sorted(set(tensors) - set(like))
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has an unknown {extra[0]!r}"
        raise RunError(f"{path}: {what}: it does not belong to this model")
    for name, wanted in like.items():
        got = tensors[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            expected = f"{list(wanted.shape)} {wanted.dtype}"
            raise RunError(
                f"{path}: {name}: expected {expected}; got {list(got.shape)} {got.dtype}"
            )
        if got.is_floating_point() and not bool(torch.isfinite(got).all()):
            raise RunError(f"{path}: {name} holds NaN or infinity")
