"""Tensors and JSON on disk: written whole or not at all, read with suspicion. Never a pickle."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from kullback.core import RunError, read_json, write_atomic, write_json

__all__ = ["load_tensors", "read_json", "refuse_to_overwrite", "save_tensors", "write_json"]


def refuse_to_overwrite(path: Path) -> None:
    """Raise RunError when something is there already."""
    if path.exists():
        raise RunError(f"{path} exists already and is never overwritten. Try: another folder")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, note: str = "") -> None:
    """Write tensors as safetensors, atomically; `note` travels in the file's header.

    Errors: RunError when the disk refuses; the file that was there stays as it was.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain, metadata={"note": note} if note else None))


def load_tensors(path: Path, *, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Read a safetensors file and, given `like`, hold it to the same names, shapes and dtypes.

    Errors: RunError when the file is missing, truncated, damaged, or does not match; the message
    names the first difference.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file") from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path}: not a readable safetensors file ({error})") from error
    if like is not None:
        _compare(path, tensors, like)
    return tensors


def _compare(path: Path, tensors: dict[str, Tensor], like: Mapping[str, Tensor]) -> None:
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
