"""The backend for a GPU: logits are read once forward and once more backward, by Triton kernels.

Which to use: nothing here directly; `backend="auto"` takes it for logits on a CUDA device when
Triton is installed, as it is with PyTorch's own wheels for Linux. The kernels are compiled on first
use, some seconds for each dtype and each set of values, and kept on disk by Triton. With
`TRITON_INTERPRET=1` set before Python starts they run on the CPU, slowly, one operation at a time.

Sums are in float32. Of a row, or of each cut of it where rows are few, one program reads tiles.
"""

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from .interface import Rows, Sum, Task

__all__ = ["refusal", "slopes", "sums"]

_TILE = 1024  # logits of each side that one program holds at a time
# and where gradients are written, by bytes of a logit (0.83 and 0.92 of a copy's speed on an H100)
_SLOPE_TILES = {2: 1024, 4: 2048}
# registers of a thread that sums divergences; entropies besides; the top besides: enough for all
# sums of a tile, not for what is done with care, which is rare. The more, the fewer programs a
# processor runs at once (an H100's eight of 64, four of 128)
_REGISTERS, _WITH_ENTROPY, _WITH_TOP = 64, 80, 128
_FUSED = {
    "enable_fp_fusion": True
}  # products and sums in one rounding; Triton 3.9 warns without it
_PROGRAMS = 1024  # rows are cut until there are so many: several for each processor of a large GPU


def refusal(p: Tensor, q: Tensor | None, task: Task) -> str:
    """Say why it cannot: no Triton, no CUDA device, or float64.

    >>> refusal(torch.zeros(1, 2, dtype=torch.float64), None, Task(("entropy",)))
    'it sums in float32, and the logits are float64'
    """
    if torch.float64 in (p.dtype, p.dtype if q is None else q.dtype):
        return "it sums in float32, and the logits are float64"
    if not p.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it needs a CUDA device, and the logits are on {p.device}"
    return "" if _installed() else "Triton is not installed (pip install triton)"


def sums(p: Tensor, q: Tensor | None, keep: Tensor | None, task: Task) -> Tensor:
    """Return the sums `[len(Sum), n]` of rows p, q `[n, vocab]` (see `task`)."""
    from . import triton_kernels

    rows, vocab = p.shape
    out = torch.zeros(len(Sum), rows, dtype=torch.float64, device=p.device)
    if not rows:
        return out
    q = p if q is None else q
    tile = _tile(_TILE, vocab)
    cut, cuts = _cuts(rows, vocab, tile)
    warps = _warps(tile)
    entropy, top = task.asks("entropy", "q_entropy"), task.asks("same_top")
    registers = _WITH_TOP if top else _WITH_ENTROPY if entropy else _REGISTERS
    limit = _FUSED if torch.version.hip else {"maxnreg": registers, **_FUSED}
    scale = 1.0 / task.temperature
    state = torch.empty(rows, cuts, triton_kernels.STATE.value, device=p.device)
    strides = p.stride(0), q.stride(0)
    triton_kernels.forward[(rows, cuts)](
        p, q, state, *strides, vocab, cut, scale,
        BACK=task.asks("reverse_kl"), ENTROPY=entropy, TOP=top, TILE=tile, num_warps=warps,
        **limit,
    )  # fmt: skip
    triton_kernels.finish[(rows,)](state, out, rows, cuts, scale, num_warps=1, **_FUSED)
    if task.asks("js"):
        parts = torch.empty(2, rows, cuts, device=p.device)
        triton_kernels.js[(rows, cuts)](
            p, q, out, parts, *strides, vocab, rows, cut, scale, task.beta, TILE=tile,
            num_warps=warps, **_FUSED,
        )  # fmt: skip
        out[Sum.JS_P : Sum.JS_Q + 1] = parts.sum(-1, dtype=torch.float64)
    return out


def slopes(
    rows: Rows,
    task: Task,
    sums: Tensor,
    coefficients: Tensor,
    grad_p: Tensor | None,
    grad_q: Tensor | None,
) -> None:
    """Fill `grad_p` and `grad_q`, `[n, vocab]` or None, with the gradients (see `task`)."""
    from . import triton_kernels

    p, q = rows.p, rows.p if rows.q is None else rows.q
    count, vocab = p.shape
    if not count:
        return
    tile = _tile(_SLOPE_TILES.get(max(p.element_size(), q.element_size()), _TILE), vocab)
    to_p, to_q = (p if grad is None else grad for grad in (grad_p, grad_q))
    triton_kernels.slopes[(count, -(-vocab // tile))](
        p, q, sums, coefficients, rows.ids, rows.keep, to_p, to_q,
        p.stride(0), q.stride(0), to_p.stride(0), to_q.stride(0),
        vocab, count, 1.0 / task.temperature, task.beta,
        TO_P=grad_p is not None, TO_Q=grad_q is not None,
        KL=task.asks("kl"), BACK=task.asks("reverse_kl"), P_LOG=task.asks("entropy"),
        Q_LOG=task.asks("q_entropy"), MIX=task.asks("js"),
        AT=rows.ids is not None, KEEP=rows.keep is not None, TILE=tile,
        num_warps=_warps(tile), **_FUSED,
    )  # fmt: skip


def _tile(largest: int, vocab: int) -> int:
    """Return how many logits a program holds at a time, a power of two."""
    return min(largest, max(16, 1 << (vocab - 1).bit_length()))


def _cuts(rows: int, vocab: int, tile: int) -> tuple[int, int]:
    """Return the size of a cut of a row, and how many cuts a row has."""
    tiles = -(-vocab // tile)
    wanted = max(1, min(-(-_PROGRAMS // rows), tiles // 2))
    cut = -(-tiles // wanted) * tile
    return cut, -(-vocab // cut)


def _warps(tile: int) -> int:
    return max(1, min(8, tile // 256))


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
