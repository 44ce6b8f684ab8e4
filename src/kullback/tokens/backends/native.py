"""A loop in C++, compiled at first use: one pass of memory forward, one back, on all cores.

Which to use: `backend="auto"` takes it on the CPU wherever it is compiled, and compiles it from
2^16 logits up, for float32, float64, bfloat16 and float16, also two of them, if there is a C++
compiler; without one, `chunked` does the same some six times slower. The first use on a machine
compiles for about eight seconds (`core.compiling`), for the widest vectors of its processor; the
first in a process loads for some tens of milliseconds. It runs on up to `torch.get_num_threads()`
threads, on one where there is little to do, and needs no memory but the gradients.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback.core import compiling
from kullback.tokens import limits

from .interface import Rows, Sum, Task

__all__ = ["kl", "kl_slopes", "ready", "refusal", "slopes", "sums"]

SOURCE = Path(__file__).with_name("native.cpp")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
STEPS = {  # ε² / 24 over the share of a value that rounding may be
    dtype: torch.finfo(dtype).eps ** 2 / 24 / limits.ROUNDING_SHARE if dtype.itemsize < 4 else 0.0
    for dtype in DTYPES
}
ASK_KL, ASK_MORE, ASK_JS, ASK_TOP, ASK_ENTROPY, ASK_HALVES = 1, 2, 4, 8, 16, 32  # as in native.cpp


class _Call(ctypes.Structure):
    """The arguments of both passes, as native.cpp has them; strides in bytes."""

    _fields_ = (
        ("p", ctypes.c_void_p),
        ("q", ctypes.c_void_p),
        ("p_stride", ctypes.c_int64),
        ("q_stride", ctypes.c_int64),
        ("ids", ctypes.c_void_p),
        ("keep", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("vocab", ctypes.c_int64),
        ("temperature", ctypes.c_double),
        ("beta", ctypes.c_double),
        ("p_dtype", ctypes.c_int32),
        ("q_dtype", ctypes.c_int32),
        ("asks", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class _Slopes(ctypes.Structure):
    """What the backward pass reads and writes besides, as native.cpp has it."""

    _fields_ = (
        ("sums", ctypes.c_void_p),
        ("coefficients", ctypes.c_void_p),
        ("grad_p", ctypes.c_void_p),
        ("grad_q", ctypes.c_void_p),
        ("p_stride", ctypes.c_int64),
        ("q_stride", ctypes.c_int64),
    )


def refusal(p: Tensor, q: Tensor | None, task: Task) -> str:
    """Say why it cannot do this: device, dtype, or no compiler; "" when it can.

    >>> refusal(torch.zeros(1, 2, device="meta"), None, Task(("entropy",)))
    'it takes float32, float64, bfloat16 or float16 on the CPU'
    """
    fits = p.dtype in DTYPES and p.device.type == "cpu"
    if not fits or not (q is None or (q.dtype in DTYPES and q.device.type == "cpu")):
        return "it takes float32, float64, bfloat16 or float16 on the CPU"
    return compiling.load(SOURCE)[1]


def ready() -> bool:
    """Say whether it is compiled: whether calling it costs no more than loading."""
    return compiling.compiled(SOURCE)


def sums(p: Tensor, q: Tensor | None, keep: Tensor | None, task: Task) -> Tensor:
    """Return the sums `[len(Sum), n]` of rows p, q `[n, vocab]` (see `task`).

    >>> from kullback.tokens import usable
    >>> p = torch.zeros(1, 4)
    >>> usable(p)["native"] != "" or bool(sums(p, None, None, Task(("log_prob",)))[0] == 0)
    True
    """
    out = torch.zeros(len(Sum), len(p), dtype=torch.float64, device="cpu")
    asks = ASK_KL * task.asks("kl") | ASK_JS * task.asks("js") | ASK_TOP * task.asks("same_top")
    asks |= ASK_MORE * task.asks("reverse_kl", "entropy", "q_entropy")
    asks |= ASK_ENTROPY * task.asks("entropy") | ASK_HALVES * task.slopes
    call = _call(Rows(p, q, keep=keep), task, asks)
    _library().kullback_sums(ctypes.byref(call), ctypes.c_void_p(out.data_ptr()))
    return out


def kl(p: Tensor, q: Tensor, temperature: float) -> tuple[Tensor, Tensor, bool] | None:
    """Return KL(p‖q) `[*batch]` of contiguous logits, the sums, and whether rounding may matter.

    None where a row has no distribution, or the logits may be probabilities: then the general way
    has something to say.

    >>> kl(torch.ones(4), torch.ones(4), 1.0) is None
    True
    """
    p_dtype, q_dtype = p.dtype, q.dtype
    wide = torch.float64 in (p_dtype, q_dtype)
    *batch, vocab = p.shape
    rows = p.numel() // vocab
    values = torch.empty(batch, dtype=torch.float64 if wide else torch.float32, device="cpu")
    sums = torch.empty(len(Sum), rows, dtype=torch.float64, device="cpu")
    status = _kl()(
        p.data_ptr(), q.data_ptr(), rows, vocab, temperature, DTYPES[p_dtype], DTYPES[q_dtype],
        torch.get_num_threads(), STEPS[p_dtype], STEPS[q_dtype], sums.data_ptr(), values.data_ptr(),
    )  # fmt: skip
    return None if status & 1 else (values, sums, status > 1)


@cache
def _kl() -> Any:
    function = _library().kullback_kl
    sizes: list[Any] = (
        [ctypes.c_int64] * 2 + [ctypes.c_double] + [ctypes.c_int] * 3 + [ctypes.c_double] * 2
    )
    function.argtypes = [ctypes.c_void_p] * 2 + sizes + [ctypes.c_void_p] * 2
    return function


def kl_slopes(
    p: Tensor, q: Tensor, temperature: float, sums: Tensor, grads: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients by p and by q of what `kl` returned, None for a side not wanted.

    grads: those of the values, in their dtype.
    """
    rows, vocab, grads = sums.shape[1], p.shape[-1], grads.contiguous()
    to_p = torch.empty_like(p) if wanted[0] else None
    to_q = torch.empty_like(q) if wanted[1] else None
    _kl_slopes()(
        p.data_ptr(), q.data_ptr(), rows, vocab, temperature, DTYPES[p.dtype], DTYPES[q.dtype],
        torch.get_num_threads(), sums.data_ptr(), grads.data_ptr(), _pointer(to_p), _pointer(to_q),
    )  # fmt: skip
    return [to_p, to_q]


@cache
def _kl_slopes() -> Any:
    function = _library().kullback_kl_slopes
    sizes: list[Any] = [ctypes.c_int64] * 2 + [ctypes.c_double] + [ctypes.c_int] * 3
    function.argtypes = [ctypes.c_void_p] * 2 + sizes + [ctypes.c_void_p] * 4
    function.restype = None
    return function


def rounding(
    x: Tensor, log_norms: Tensor, temperature: float, keep: Tensor | None = None
) -> Tensor:
    """Return `rounding_floor` of rows of half precision `[n, vocab]`, in one pass, float64.

    log_norms: `[2, n]`, the rows' `Sum.P_MAX` and `Sum.P_LOG`, float64. keep: bool `[n]`, the rows
    to look at, or None for all; others may hold anything.
    """
    out = torch.empty(len(x), dtype=torch.float64, device="cpu")
    x = x if x.stride(-1) == 1 else x.contiguous()
    call = _call(Rows(x, keep=keep), Task((), temperature), 0)
    known = log_norms.contiguous()
    pointer = ctypes.c_void_p(known.data_ptr())
    _library().kullback_rounding(ctypes.byref(call), pointer, ctypes.c_void_p(out.data_ptr()))
    step = torch.finfo(x.dtype).eps / temperature
    return out * (step * step / 24)


def slopes(
    rows: Rows,
    task: Task,
    sums: Tensor,
    coefficients: Tensor,
    grad_p: Tensor | None,
    grad_q: Tensor | None,
) -> None:
    """Fill `grad_p` and `grad_q`, `[n, vocab]` or None, with the gradients (see `task`).

    >>> from kullback.tokens import kl, usable
    >>> p = torch.zeros(4, requires_grad=True)
    >>> kl(torch.zeros(4), p, backend="auto" if usable(p)["native"] else "native").backward()
    >>> p.grad
    tensor([0., 0., 0., 0.])
    """
    asks = ASK_JS * task.asks("js") | ASK_ENTROPY * task.asks("entropy", "q_entropy")
    call = _call(rows, task, asks)
    sums, coefficients = sums.contiguous(), coefficients.contiguous()
    out = _Slopes(
        sums=sums.data_ptr(),
        coefficients=coefficients.data_ptr(),
        grad_p=_pointer(grad_p),
        grad_q=_pointer(grad_q),
        p_stride=_stride(grad_p),
        q_stride=_stride(grad_q),
    )
    _library().kullback_slopes(ctypes.byref(call), ctypes.byref(out))


def _library() -> ctypes.CDLL:
    library, reason = compiling.load(SOURCE)
    if library is None:
        raise OSError(reason)
    return library


def _call(rows: Rows, task: Task, asks: int) -> _Call:
    p, q = rows.p, rows.q
    return _Call(
        p=p.data_ptr(),
        q=_pointer(q),
        p_stride=_stride(p),
        q_stride=_stride(q),
        ids=_pointer(rows.ids),
        keep=_pointer(rows.keep),
        rows=p.shape[0],
        vocab=p.shape[1],
        temperature=task.temperature,
        beta=task.beta,
        p_dtype=DTYPES[p.dtype],
        q_dtype=DTYPES[p.dtype if q is None else q.dtype],
        asks=asks,
        threads=torch.get_num_threads(),
    )


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _stride(x: Tensor | None) -> int:
    """Return the bytes from one row to the next."""
    return 0 if x is None else x.stride(0) * x.element_size()
