"""`step.c`, compiled at first use: where likelihoods take it, how it gets tensors, threads."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback.core import compiling

__all__ = ["SOURCE", "as_read", "in_c", "in_threads", "library"]

SOURCE = Path(__file__).with_name("step.c")
_POINTER, _WHOLE, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "centre_bits": ([_POINTER] * 4 + [_WHOLE] * 2, None),
    "activate": ([_POINTER] * 3 + [_WHOLE] * 2 + [ctypes.c_int], None),
    "deactivate": ([_POINTER] * 3 + [_WHOLE] * 2 + [ctypes.c_int], None),
    "sample_latent": ([_POINTER] * 4 + [_WHOLE] * 2 + [_REAL], ctypes.c_double),
    "sample_latent_back": ([_POINTER] * 5 + [_WHOLE] * 2 + [_REAL] * 2, None),
    "bernoulli": ([_POINTER] * 4 + [_WHOLE] * 2 + [_REAL], ctypes.c_double),
    "squares": ([_POINTER, _WHOLE], ctypes.c_double),
    "adam": ([_POINTER] * 4 + [_WHOLE] * 4 + [ctypes.c_double] * 2 + [_REAL] * 5, None),
    "logistic_mixture": (
        [_POINTER] * 6 + [_WHOLE] * 9 + [_REAL] * 2 + [ctypes.c_int],
        ctypes.c_int,
    ),
    "bits_in_context": ([_POINTER] * 5 + [_WHOLE] * 6 + [ctypes.c_int], None),
    "bits_in_context_back": ([_POINTER] * 6 + [_WHOLE] * 7 + [ctypes.c_int], None),
    "scale_rows": ([_POINTER] * 3 + [_WHOLE] * 3 + [ctypes.c_int], None),
}


def library() -> ctypes.CDLL | None:
    """Return `step.c`, compiled, or None where that cannot be had."""
    loaded, _ = compiling.load(SOURCE)
    if loaded is not None:
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, result
    return loaded


def in_c(parameters: Tensor) -> bool:
    """Say whether `step.c` takes parameters: some numbers on a CPU, where it compiles."""
    known = parameters.dtype in (torch.float32, torch.bfloat16)
    plain = known and parameters.device.type == "cpu" and parameters.numel() > 0
    return plain and library() is not None


def as_read(x: Tensor) -> Tensor:
    """Return x as C reads it: contiguous, without a negative bit."""
    return x.resolve_neg().contiguous()


def in_threads(work: Callable[[int, int], Any], rows: int) -> list[Any]:
    """Call work(first, last) on as many parts of the rows as PyTorch has threads."""
    threads = max(1, min(torch.get_num_threads(), rows))
    ends = [rows * k // threads for k in range(threads + 1)]
    if threads == 1:
        return [work(0, rows)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, ends[:-1], ends[1:]))
