"""The three hot pieces of a VAE step with hand-written gradients.

`mlp` is a stack of linear layers and activations, `bernoulli_log_likelihood` a sum of Bernoulli
log-probabilities from logits. Each equals its plain PyTorch form (the tests hold them to it) and
does fewer passes over memory: activations are overwritten in place, no log-softmax temporaries are
kept, and a network costs one node in the graph. Matrix products run in the dtype of the weights.
First derivatives only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.core import require

from .events import real

__all__ = ["ACTIVATIONS", "bernoulli_log_likelihood", "mlp"]


def _tanh(pre: Tensor) -> tuple[Tensor, Tensor]:
    out = pre.tanh_()
    return out, out


def _silu(pre: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nn.functional.silu(pre), pre


def _relu(pre: Tensor) -> tuple[Tensor, Tensor]:
    out = pre.relu_()
    return out, out


# name -> (pre-activation to (output, what the backward pass needs), (gradient, that) to gradient)
ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "tanh": (_tanh, torch.ops.aten.tanh_backward),
    "silu": (_silu, torch.ops.aten.silu_backward),
    "relu": (_relu, lambda grad, out: torch.ops.aten.threshold_backward(grad, out, 0)),
}


def mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> Tensor:
    """Return `W_n a(… a(W_1 x + b_1) …) + b_n`: linear layers with an activation between them.

    x: `[rows, in]`; weights `[out_i, in_i]`; biases `[out_i]`; the result `[rows, out_n]`.
    Gradients flow to x, weights and biases. Equal to the eager form up to rounding. x is brought
    to the dtype of the weights.
    Errors: ValueError for an unknown activation.

    >>> one = torch.ones(1, 1)
    >>> mlp(one, [one, one], [torch.zeros(1)] * 2, "relu")
    tensor([[1.]])
    """
    require(activation in ACTIVATIONS, "activation", f"one of {sorted(ACTIVATIONS)}", activation)
    out: Tensor = _Mlp.apply(x, activation, len(weights), *weights, *biases)  # type: ignore[no-untyped-call]
    return out


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, n: int, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[:n], parameters[n:]
        ctx.dtype, x = x.dtype, x.to(weights[0].dtype)
        forward, _ = ACTIVATIONS[activation]
        inputs, kept = [x], []
        for i in range(n):
            x = torch.addmm(biases[i], x, weights[i].t())
            if i < n - 1:
                x, saved = forward(x)
                inputs.append(x)
                kept.append(saved)
        ctx.save_for_backward(*inputs, *kept, *weights)
        ctx.layers, ctx.activation = n, activation
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        n = ctx.layers
        saved = ctx.saved_tensors
        inputs, kept, weights = saved[:n], saved[n : 2 * n - 1], saved[2 * n - 1 :]
        _, backward = ACTIVATIONS[ctx.activation]
        grad = grad.to(weights[0].dtype)
        weight_grads: list[Tensor] = [grad] * n
        bias_grads: list[Tensor] = [grad] * n
        for i in reversed(range(n)):
            weight_grads[i] = grad.t() @ inputs[i]
            bias_grads[i] = grad.sum(0)
            if i > 0:
                grad = backward(grad @ weights[i], kept[i - 1])
        first = (grad @ weights[0]).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return first, None, None, *weight_grads, *bias_grads


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Return `Σ_d x_d l_d − log(1 + e^{l_d})`, the Bernoulli log-probability, in nats.

    logits: `[*draws, batch, D]`; x in {0, 1}: `[batch, D]`; the result `[*draws, batch]`.
    Exact up to rounding, also for large |l|; the gradient to the logits is `x − sigmoid(l)`, none
    flows to x.

    >>> bernoulli_log_likelihood(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])).exp()
    tensor([0.2500])
    """
    out: Tensor = _Bernoulli.apply(logits, x)  # type: ignore[no-untyped-call]
    return out


class _Bernoulli(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        logits = real(logits)
        x = x.to(logits.dtype)
        ctx.save_for_backward(logits, x)
        softplus = torch.nn.functional.softplus(logits, threshold=40.0)  # exact in float64 too
        out: Tensor = torch.linalg.vecdot(x, logits) - softplus.sum(-1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        return torch.sigmoid(logits).sub_(x).mul_(-grad.unsqueeze(-1)), None
