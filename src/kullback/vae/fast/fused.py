"""The three hot pieces of a VAE step with hand-written gradients.

`mlp` is a stack of linear layers and activations, `draw_and_kl` the reparameterised draw with its
KL, `bernoulli_log_likelihood` a sum of Bernoulli log-probabilities from logits. Each equals its
plain PyTorch form (the tests hold them to it) and does fewer passes over memory: activations are
overwritten in place, no temporaries are kept, and each costs one node in the graph. Matrix
products run in the dtype of the weights. First derivatives only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kullback.core import require
from kullback.vae import diagonal_gaussian
from kullback.vae.events import real

__all__ = ["ACTIVATIONS", "bernoulli_log_likelihood", "draw_and_kl", "mlp"]


def _tanh(bias: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype == torch.float32 and x.device.type == "cpu":
        # 2σ(2l) − 1 is within four roundings of tanh l and, in torch, four times as fast
        out = torch.addmm(bias, x, weight.t(), beta=2.0, alpha=2.0).sigmoid_()
        out = torch.add(_MINUS_ONE, out, alpha=2.0, out=out)
    else:
        out = torch.addmm(bias, x, weight.t()).tanh_()
    return out, out


def _silu(bias: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    pre = torch.addmm(bias, x, weight.t())
    return torch.nn.functional.silu(pre), pre


def _relu(bias: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.addmm(bias, x, weight.t()).relu_()
    return out, out


_MINUS_ONE = torch.tensor(-1.0)

# name -> ((bias, x, weight) to (a(Wx + b), what the backward pass needs),
#          (gradient, that) to the gradient of Wx + b)
ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "tanh": (_tanh, torch.ops.aten.tanh_backward),
    "silu": (_silu, torch.ops.aten.silu_backward),
    "relu": (_relu, lambda grad, out: torch.ops.aten.threshold_backward(grad, out, 0)),
}


def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    *,
    buffers: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return `W_n a(… a(W_1 x + b_1) …) + b_n`: linear layers with an activation between them.

    x: `[rows, in]`; weights `[out_i, in_i]`; biases `[out_i]`; the result `[rows, out_n]`.
    Gradients flow to x, weights and biases. Equal to the eager form up to rounding. x is brought
    to the dtype of the weights. buffers: where the gradients of weights, then biases, are written
    (and returned), so that a training step need not copy them; overwritten by every backward pass.
    Errors: ValueError for an unknown activation.

    >>> one = torch.ones(1, 1)
    >>> mlp(one, [one, one], [torch.zeros(1)] * 2, "relu")
    tensor([[1.]])
    """
    require(activation in ACTIVATIONS, "activation", f"one of {sorted(ACTIVATIONS)}", activation)
    flat = (*weights, *biases)
    out: Tensor = _Mlp.apply(x, activation, buffers, *flat)  # type: ignore[no-untyped-call]
    return out


def mlp_forward(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the output of `mlp`, every layer's input, and what the activations keep."""
    forward, _ = ACTIVATIONS[activation]
    inputs, kept = [x], []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x, saved = forward(bias, x, weight)
        inputs.append(x)
        kept.append(saved)
    return torch.addmm(biases[-1], x, weights[-1].t()), inputs, kept


def mlp_backward(
    grad: Tensor,
    inputs: Sequence[Tensor],
    kept: Sequence[Tensor],
    weights: Sequence[Tensor],
    activation: str,
    out: Sequence[Tensor | None],
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of weights, then biases, and that of the first layer's output.

    out: where to write each gradient, or None; the arguments are those of `mlp_forward`.
    """
    _, backward = ACTIVATIONS[activation]
    n = len(weights)
    gradients: list[Tensor] = [grad] * (2 * n)
    for i in reversed(range(n)):
        gradients[i] = torch.mm(grad.t(), inputs[i], out=out[i])
        gradients[n + i] = torch.sum(grad, 0, out=out[n + i])
        if i > 0:
            grad = backward(grad @ weights[i], kept[i - 1])
    return gradients, grad


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, activation: str, buffers: Sequence[Tensor] | None, *parameters: Tensor
    ) -> Tensor:
        n = len(parameters) // 2
        weights, biases = parameters[:n], parameters[n:]
        ctx.dtype, ctx.layers, ctx.activation, ctx.buffers = x.dtype, n, activation, buffers
        out, inputs, kept = mlp_forward(x.to(weights[0].dtype), weights, biases, activation)
        ctx.save_for_backward(*inputs, *kept, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        n, saved = ctx.layers, ctx.saved_tensors
        inputs, kept, weights = saved[:n], saved[n : 2 * n - 1], saved[2 * n - 1 :]
        out = ctx.buffers or [None] * (2 * n)
        grad = grad.to(weights[0].dtype)
        gradients, grad = mlp_backward(grad, inputs, kept, weights, ctx.activation, out)
        first = (grad @ weights[0]).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return first, None, None, *gradients


def draw_and_kl(mean: Tensor, log_sd: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return `gaussian.draw` and `gaussian.kl_to_standard_normal` of the same arguments.

    mean, log_sd: `[batch, latent]`; noise: `[draws, batch, latent]`, no gradient flows to it.

    >>> draw_and_kl(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 1, 1))
    (tensor([[[1.]]]), tensor([[0.5000]]))
    """
    z, kl = _DrawAndKl.apply(mean, log_sd, noise)  # type: ignore[no-untyped-call]
    return z, kl


class _DrawAndKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_sd: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        spread = log_sd.exp().mul(noise)  # sd · noise, the draw's derivative by log sd
        ctx.save_for_backward(mean, log_sd, spread)
        return mean + spread, diagonal_gaussian.kl_to_standard_normal(mean, log_sd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_z: Tensor, by_kl: Tensor) -> Any:
        mean, log_sd, spread = ctx.saved_tensors
        by_mean = torch.addcmul(by_z.sum(0), by_kl, mean)
        by_log_sd = torch.addcmul((by_z * spread).sum(0), by_kl, torch.expm1(2.0 * log_sd))
        return by_mean, by_log_sd, None


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


def bernoulli_value(logits: Tensor, x: Tensor) -> Tensor:
    """Return the value of `bernoulli_log_likelihood`, for x of the same dtype."""
    out: Tensor = torch.linalg.vecdot(x, logits) - _sum_of_softplus(logits)
    return out


def _sum_of_softplus(logits: Tensor) -> Tensor:
    """Return `Σ log(1 + e^l)` over the last axis.

    As `Σ max(l, 0) − Σ log σ(|l|)`, where σ(|l|) ≥ ½ lets up to a hundred factors be multiplied
    before one logarithm is taken: half the time of softplus, which takes one each.
    """
    group = _group(logits.shape[-1])
    if not group:
        return torch.nn.functional.softplus(logits, threshold=40.0).sum(-1)  # exact in float64 too
    factors = logits.abs().sigmoid_().reshape(*logits.shape[:-1], -1, group)
    out: Tensor = torch.clamp(logits, min=0.0).sum(-1) - factors.prod(-1).log_().sum(-1)
    return out


def bernoulli_total(logits: Tensor, x: Tensor, probability: Tensor) -> Tensor:
    """Return the sum of `bernoulli_value` over the batch, given σ(logits) as well.

    σ(|l|) is the larger of σ(l) and 1 − σ(l), so nothing is exponentiated again.
    """
    group = _group(logits.shape[-1])
    if not group:
        return bernoulli_value(logits, x).sum()
    factors = (probability - 0.5).abs_().add_(0.5).reshape(-1, group)
    linear = torch.dot(logits.reshape(-1), x.reshape(-1)) - torch.clamp(logits, min=0.0).sum()
    return linear + factors.prod(-1).log_().sum()


def _group(length: int) -> int:
    """Return how many factors of at least ½ to multiply at a time, a divisor of length, or 0."""
    return next((n for n in range(100, 15, -1) if length % n == 0), 0)


class _Bernoulli(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        logits = real(logits)
        x = x.to(logits.dtype)
        ctx.save_for_backward(logits, x)
        return bernoulli_value(logits, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        return torch.sigmoid(logits).sub_(x).mul_(-grad.unsqueeze(-1)), None
