"""One side of `kl_from_hidden`: hidden states and a head, and the logits of a block of both.

Which to use: none of these directly; `hidden` is the face. A `Side` writes the logits of some
positions and some tokens into a given room; `Gradients` takes their gradient back to hidden
states, head and bias. Sums run in `dtype`, float32 or float64, whatever the inputs are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gradients", "Rows", "Side"]

Rows = slice | Tensor


@dataclass(frozen=True, slots=True)
class Side:
    """hidden `[T, H]`, head `[V, H]`, bias `[V]`: logits `cap tanh((h·w + b) / cap) / temperature`.

    cap: None for none. dtype: what is computed in. A bias of −inf bans a token, cap or no cap.
    """

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    cap: float | None
    temperature: float
    dtype: torch.dtype

    @property
    def bans(self) -> bool:
        """Whether a token is banned by a bias of −inf."""
        return self.bias is not None and bool(torch.isneginf(self.bias).any())

    @property
    def converts(self) -> bool:
        """Whether hidden states and head are copied to `dtype`, block by block, to be multiplied.

        A CUDA device multiplies bfloat16 into float32 by itself, and exactly.
        """
        half = self.hidden.dtype == self.head.dtype == torch.bfloat16 and self.head.is_cuda
        ready = half and self.dtype == torch.float32 and hasattr(torch.ops.aten.mm, "dtype")
        return not (ready or self.hidden.dtype == self.head.dtype == self.dtype)

    def positions(self, rows: Rows) -> Tensor:
        """Return the hidden states of some positions, ready to be multiplied."""
        return self._ready(self.hidden[rows])

    def tokens(self, columns: slice) -> Tensor:
        """Return the head's rows for some tokens, ready to be multiplied."""
        return self._ready(self.head[columns])

    def logits(self, states: Tensor, weights: Tensor, columns: slice, out: Tensor) -> Tensor:
        """Write the logits `[positions, tokens]` of a block into `out` and return it."""
        multiply(states, weights.t(), out)
        if self.bias is not None:
            out += self.bias[columns].to(self.dtype)
        if self.cap is not None:
            out.div_(self.cap).tanh_().mul_(self.cap)
        if self.temperature != 1.0:
            out.div_(self.temperature)
        if self.cap is not None and self.bias is not None:
            out.masked_fill_(torch.isneginf(self.bias[columns]), -torch.inf)
        return out

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return d logit / d (h·w + b) times the temperature, for a block; None if it is 1."""
        if self.cap is None:
            return None
        tanh = (logits * (self.temperature / self.cap)).clamp_(min=-1.0)  # −inf: slope 0
        return tanh.mul_(tanh).neg_().add_(1.0)

    def _ready(self, block: Tensor) -> Tensor:
        return block.to(self.dtype) if self.converts else block


class Gradients:
    """Where the gradients of one side's hidden states, head and bias are summed; None: not wanted.

    They are zero at first, in the dtype of what they belong to, but the bias's in `dtype`.
    """

    def __init__(self, side: Side, wanted: Sequence[bool]) -> None:
        self.side, self.any = side, any(wanted)
        self.hidden = torch.zeros_like(side.hidden) if wanted[0] else None
        self.head = torch.zeros_like(side.head) if wanted[1] else None
        bias = side.bias if wanted[2] else None
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=side.dtype)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients in the dtypes of what they belong to."""
        bias = self.bias
        if bias is not None and self.side.bias is not None:
            bias = bias.to(self.side.bias.dtype)
        return self.hidden, self.head, bias

    def add(
        self,
        grad: Tensor,
        states: Tensor,
        weights: Tensor,
        columns: slice,
        summed: Tensor,
    ) -> None:
        """Add what the gradient `[positions, tokens]` of a block means for all that is wanted.

        summed: `[positions, H]`, in `dtype`, to which that of the hidden states is added.
        """
        if self.bias is not None:
            self.bias[columns] += grad.sum(0)
        grad = grad.to(weights.dtype)
        if self.hidden is not None:
            multiply(grad, weights, summed, add=True)
        if self.head is None:
            return
        target = self.head[columns]
        if target.dtype == self.side.dtype:
            multiply(grad.t(), states, target, add=True)
        else:
            target += multiply(grad.t(), states, summed.new_empty(target.shape))


def multiply(x: Tensor, y: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Write or add the product of two matrices of one dtype to `out`, summed in its dtype.

    >>> multiply(torch.eye(2), torch.ones(2, 1), torch.ones(2, 1), add=True).flatten()
    tensor([2., 2.])
    """
    if x.dtype == out.dtype:
        return out.addmm_(x, y) if add else torch.mm(x, y, out=out)
    product = torch.mm(x, y, out_dtype=out.dtype)
    return out.add_(product) if add else out.copy_(product)
