"""On what a training runs: the device, the type of its matrix products, how many threads.

Which to use: `pick_device`, `pick_precision` and `pick_threads`; `matmul_gflops` is what the last
one measures.
"""

import os
import statistics
import time

import torch

from kullback.core import require

from ..limits import THREADS_GAIN

__all__ = ["matmul_gflops", "pick_device", "pick_precision", "pick_threads"]


def pick_device(name: str = "auto") -> torch.device:
    """Return the named device, or the best one present: CUDA, then Apple's MPS, then the CPU.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1", … or "mps".

    Returns:
        The device.

    Raises:
        ArgumentValueError: Another name, or a device that this machine lacks.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, here in present.items() if here), "cpu"))
    kind = name.partition(":")[0]
    known = kind in ("cpu", "cuda", "mps")
    require(known, "device", "auto, cpu, cuda or mps", repr(name))
    require(present.get(kind, True), "device", "one that this machine has", repr(name), "auto")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the matrix products: bfloat16 where "auto" finds hardware for it.

    That is CUDA with bfloat16 units, and CPUs with AVX512-BF16 or AMX.

    Args:
        name: "auto", "float32" or "bfloat16".
        device: Where the products are computed.

    Returns:
        `torch.float32` or `torch.bfloat16`.

    Example:
        >>> pick_precision("float32", torch.device("cpu"))
        torch.float32
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        fast = fast or (device.type == "cpu" and _cpu_has_bfloat16())
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _cpu_has_bfloat16() -> bool:
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(has.get("avx512_bf16", False) or has.get("amx_bf16", False))


def matmul_gflops(
    threads: int, *, size: int = 256, seconds: float = 0.05, dtype: torch.dtype = torch.float32
) -> float:
    """Measure the matrix-multiply rate with a number of threads: the median of short products.

    The thread count is restored.

    Args:
        threads: How many.
        size: Of the square matrices.
        seconds: How long to measure.
        dtype: Of the matrices.

    Returns:
        1e9 operations per second, 2·size³ a product.

    Example:
        >>> matmul_gflops(1, seconds=0.001) > 0
        True
    """
    before = torch.get_num_threads()
    a, out = torch.ones(size, size, dtype=dtype), torch.empty(size, size, dtype=dtype)
    torch.set_num_threads(threads)
    times: list[float] = []
    try:
        torch.mm(a, a, out=out)
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2.0 * size**3 / statistics.median(times) / 1e9


def pick_threads() -> int:
    """Return how many threads a training should use on this machine as loaded as it is now.

    It is measured: small matrix products on all cores against one. On a machine whose cores are
    busy, threads wait for each other and training can run tens of times slower than on one thread.

    Returns:
        The cores that this process may run on, at most what OMP_NUM_THREADS allows, or 1 where all
        of them are not enough faster than one.

    Example:
        >>> pick_threads() >= 1
        True
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))  # a share a process
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    most = min(cores, int(allowed)) if allowed.isdigit() and int(allowed) else cores
    return most if most > 1 and matmul_gflops(most) > THREADS_GAIN * matmul_gflops(1) else 1
