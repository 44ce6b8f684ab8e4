"""Encoder and decoder networks: `[batch, *event]` to a Gaussian, `[rows, latent]` to parameters.

Which to use: `Mlp` for small images, vectors and the classic models (784-200-200-50 with tanh is
Burda et al. 2016); the convolutional pair for images: better figures in the same time;
`PatchDecoder` instead of `ConvDecoder` for larger and colour images. An encoder returns
`(mean, log_sd)`, each `[batch, latent]`; a decoder returns `[rows, channels, places]`, the
parameters of the likelihood (or the axes of its `Event`). Any module that does so can take their
place.

`mlp` is the perceptron as one operation with a hand-written gradient: equal to its plain PyTorch
form (the tests compare them) in fewer passes over memory, since activations are overwritten in
place, no temporaries are kept, and it costs one node in the graph. Matrix products run in the dtype
of the weights. First derivatives only.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kullback.core import require

from .limits import LOG_SD_LIMIT

__all__ = [
    "ACTIVATIONS",
    "ConvDecoder",
    "ConvEncoder",
    "Mlp",
    "MlpDecoder",
    "MlpEncoder",
    "PatchDecoder",
    "forward_blocks",
    "gaussian",
    "mlp",
    "mlp_backward",
    "mlp_forward",
    "patch_side",
    "real",
    "weights_held",
]


def real(x: Tensor) -> Tensor:
    """Return x as float32, or as it is when it is float64: sums of logs need that much.

    Example:
        >>> real(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x if x.dtype == torch.float64 else x.float()


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

    Gradients flow to x, weights and biases. Equal to the eager form up to rounding.

    Args:
        x: `[rows, in]`; it is brought to the dtype of the weights.
        weights: `[out_i, in_i]` each.
        biases: `[out_i]` each.
        activation: One of `ACTIVATIONS`.
        buffers: Where the gradients of weights, then biases, are written (and returned), so that a
            training step need not copy them; overwritten by every backward pass.

    Returns:
        `[rows, out_n]`.

    Raises:
        ArgumentValueError: An unknown activation.

    Example:
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


class Mlp(nn.Module):
    """Linear layers of the given sizes with an activation between them, as one fused operation.

    Weights start as in Glorot and Bengio (2010), biases at 0.

    Args:
        sizes: `(in, hidden, …, out)`.
        activation: "tanh", "silu" or "relu".

    Example:
        >>> Mlp((4, 8, 2))(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(self, sizes: Sequence[int], activation: str = "tanh") -> None:
        super().__init__()
        pairs = list(itertools.pairwise(sizes))
        self.activation = activation
        self.weights = nn.ParameterList([torch.empty(out, into) for into, out in pairs])
        self.biases = nn.ParameterList([torch.zeros(out) for _, out in pairs])
        self.buffers_of_gradient: list[Tensor] | None = None  # see `FlatParameters`
        for weight in self.weights:
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[rows, in]` to `[rows, out]`."""
        weights, biases = list(self.weights), list(self.biases)
        return mlp(x, weights, biases, self.activation, buffers=self.buffers_of_gradient)


def gaussian(output: Tensor, extra: int = 0) -> tuple[Tensor, ...]:
    """Split an encoder's output `[batch, 2·latent + extra]` into mean, log sd and what is left.

    Example:
        >>> [part.shape[1] for part in gaussian(torch.zeros(1, 7), 1)]
        [3, 3, 1]
    """
    latent = (output.shape[-1] - extra) // 2
    mean, log_sd, more = torch.split(real(output), [latent, latent, extra], -1)
    bounded = log_sd.clamp(-LOG_SD_LIMIT, LOG_SD_LIMIT)
    return (mean, bounded, more) if extra else (mean, bounded)


class MlpEncoder(nn.Module):
    """q(z|x) from a flat x: `[batch, *event]` to mean and log sd, `[batch, latent]` each.

    Args:
        event_shape: Of x.
        hidden: Widths of the hidden layers.
        latent: Dimensions of z.
        activation: As in `Mlp`.
        extra: Outputs besides, `[batch, extra]`, for families of q that need them.

    Example:
        >>> MlpEncoder((1, 2, 2), (8,), 3)(torch.zeros(5, 1, 2, 2))[0].shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden: Sequence[int],
        latent: int,
        *,
        activation: str = "tanh",
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.extra = extra
        self.net = Mlp((math.prod(event_shape), *hidden, 2 * latent + extra), activation)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return mean and log sd, `[batch, latent]` each, and the extra outputs if there are."""
        return gaussian(self.net(x.flatten(1)), self.extra)


class MlpDecoder(nn.Module):
    """Parameters of p(x|z): `[rows, latent]` to `[rows, channels, places]`.

    Args:
        latent: Dimensions of z.
        hidden: Widths of the hidden layers.
        bias: `[channels, places]`, the output to start from (`Likelihood.initial_bias`).
        activation: As in `Mlp`.

    Example:
        >>> MlpDecoder(3, (8,), torch.zeros(1, 4))(torch.zeros(5, 3)).shape
        torch.Size([5, 1, 4])
    """

    def __init__(
        self, latent: int, hidden: Sequence[int], bias: Tensor, *, activation: str = "tanh"
    ) -> None:
        super().__init__()
        self.shape = tuple(bias.shape)
        self.net = Mlp((latent, *hidden, bias.numel()), activation)
        with torch.no_grad():
            self.net.biases[-1].copy_(bias.flatten())

    def forward(self, z: Tensor) -> Tensor:
        """Return parameters, `[rows, channels, places]`."""
        out: Tensor = self.net(z).reshape(-1, *self.shape)
        return out


class _Residual(nn.Module):
    """A stack of residual 3x3 convolutions, `x + conv(silu(x))`, at one resolution."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([_scaled(_conv(width, width), 0.7) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(F.silu(x))
        return x


def _conv(into: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)


def _scaled(layer: nn.Module, gain: float) -> nn.Module:
    """Start a layer's weights with standard deviation gain/√fan_in and its biases at zero."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    nn.init.normal_(weight, std=gain / math.sqrt(weight[0].numel()))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class _Patches:
    """Square patches of an image as the channels of a small grid, and back.

    The patch is the size / 7 (at least 2, at most 8): 28x28 becomes 7x7 of 4x4, 64x64 8x8 of 8x8.
    Sizes that do not divide are padded with zeros, and cut again.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        conv_only = "[C, H, W] for conv"
        require(len(event_shape) == 3, "event_shape", conv_only, list(event_shape), "network=mlp")
        self.colours, self.height, self.width = (int(size) for size in event_shape)
        self.side = max(2, min(8, max(self.height, self.width) // 7))
        self.grid = (-(-self.height // self.side), -(-self.width // self.side))

    def split(self, x: Tensor) -> Tensor:
        """Turn `[batch, C, H, W]` into `[batch, C·side², rows, columns]`."""
        rows, columns = self.grid
        missing = (0, columns * self.side - self.width, 0, rows * self.side - self.height)
        x = F.pixel_unshuffle(F.pad(x, missing) if any(missing) else x, self.side)
        return x.contiguous(memory_format=torch.channels_last)

    def join(self, x: Tensor) -> Tensor:
        """Turn `[batch, channels·side², rows, columns]` into `[batch, channels, H·W]`."""
        full = F.pixel_shuffle(x, self.side)[..., : self.height, : self.width]
        return full.flatten(2)


def patch_side(event_shape: Sequence[int]) -> int:
    """Return the side of the patches that an image `[C, H, W]` divides into, or 0 if it does not.

    Example:
        >>> patch_side((3, 64, 64)), patch_side((3, 64, 50))
        (8, 0)
    """
    patches = _Patches(event_shape)
    whole = patches.height % patches.side == 0 and patches.width % patches.side == 0
    return patches.side if whole else 0


class ConvEncoder(nn.Module):
    """q(z|x) from patches: residual convolutions on a small grid, then a hidden layer.

    Working on patches of 4x4 or so costs a sixteenth of convolving pixels, which is what makes it
    affordable on a CPU.

    Args:
        event_shape: `(C, H, W)`.
        hidden: (width of the grid, …, width of the hidden layer); each width but the last stands
            for one residual convolution, so (32, 32, 32, 256) is three of 32 channels.
        latent: Dimensions of z.
        extra: As in `MlpEncoder`.

    Example:
        >>> ConvEncoder((1, 28, 28), (8, 8, 16), 3)(torch.zeros(2, 1, 28, 28))[1].shape
        torch.Size([2, 3])
    """

    def __init__(
        self, event_shape: Sequence[int], hidden: Sequence[int], latent: int, *, extra: int = 0
    ) -> None:
        super().__init__()
        self.extra = extra
        width, depth, top = _grid_widths(hidden)
        self.patches = _Patches(event_shape)
        cells = math.prod(self.patches.grid)
        patch = self.patches.colours * self.patches.side**2
        self.first = _scaled(_conv(patch, width), 1.15)
        self.body = _Residual(width, depth)
        self.hidden = _scaled(nn.Linear(width * cells, top), 1.41)
        self.last = _scaled(nn.Linear(top, 2 * latent + extra), 0.58)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return mean and log sd, `[batch, latent]` each, and the extra outputs if there are."""
        weight: Tensor = self.last.weight  # type: ignore[assignment]
        h = self.body(self.first(self.patches.split(x.to(weight.dtype))))
        h = self.hidden(F.silu(h).permute(0, 2, 3, 1).flatten(1))
        return gaussian(self.last(F.silu(h)), self.extra)


class ConvDecoder(nn.Module):
    """Parameters of p(x|z): a hidden layer, residual convolutions on a small grid, then patches.

    Args:
        event_shape: `(C, H, W)`.
        latent: Dimensions of z.
        hidden: As given to the encoder.
        bias: `[channels, places]`, the output to start from.

    Example:
        >>> ConvDecoder((1, 28, 28), 3, (8, 8, 16), torch.zeros(1, 784))(torch.zeros(2, 3)).shape
        torch.Size([2, 1, 784])
    """

    def __init__(
        self, event_shape: Sequence[int], latent: int, hidden: Sequence[int], bias: Tensor
    ) -> None:
        super().__init__()
        width, depth, top = _grid_widths(hidden)
        self.patches = _Patches(event_shape)
        cells = math.prod(self.patches.grid)
        self.hidden = _scaled(nn.Linear(latent, top), 1.41)
        self.spread = _scaled(nn.Linear(top, width * cells), 1.41)
        self.body = _Residual(width, depth)
        self.last = _scaled(_conv(width, bias.shape[0] * self.patches.side**2), 0.29)
        self.bias = nn.Parameter(bias.clone())

    def forward(self, z: Tensor) -> Tensor:
        """Return parameters, `[rows, channels, places]`."""
        h = self.spread(F.silu(self.hidden(z.to(self.bias.dtype))))
        h = h.reshape(z.shape[0], *self.patches.grid, -1).permute(0, 3, 1, 2)  # channels last
        return self.patches.join(self.last(F.silu(self.body(h)))) + self.bias


class PatchDecoder(nn.Module):
    """Parameters of p(x|z) as `ConvDecoder`, each patch a linear function of its own cell.

    A 3x3 convolution into the pixels of a patch costs nine times as much and is most of a
    `ConvDecoder`'s time where images are large. Where images divide into patches, their pixels
    stay together in memory: `[rows, patches, channels, side²]`, the axes of `Event(…, patch=side)`.

    Args:
        event_shape: `(C, H, W)`.
        latent: Dimensions of z.
        hidden: As given to `ConvEncoder`.
        bias: `[channels, places]`, the output to start from; its mean over places is used.
        patched: Whether pixels stay together; `patch_side` must then be more than 0.

    Example:
        >>> bias = torch.zeros(1, 784)
        >>> PatchDecoder((1, 28, 28), 3, (8, 8, 16), bias)(torch.zeros(2, 3)).shape
        torch.Size([2, 1, 784])
        >>> PatchDecoder((1, 28, 28), 3, (8, 16), bias, patched=True)(torch.zeros(2, 3)).shape
        torch.Size([2, 49, 1, 16])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent: int,
        hidden: Sequence[int],
        bias: Tensor,
        *,
        patched: bool = False,
    ) -> None:
        super().__init__()
        width, depth, top = _grid_widths(hidden)
        self.patches, self.patched = _Patches(event_shape), patched
        cells, pixels = math.prod(self.patches.grid), self.patches.side**2
        self.hidden = _scaled(nn.Linear(latent, top), 1.41)
        self.spread = _scaled(nn.Linear(top, width * cells), 1.41)
        self.body = _Residual(width, depth)
        self.last = _scaled(nn.Linear(width, bias.shape[0] * pixels), 0.29)
        with torch.no_grad():
            start: Tensor = self.last.bias  # type: ignore[assignment]
            start.copy_(bias.mean(-1).repeat_interleave(pixels))

    def forward(self, z: Tensor) -> Tensor:
        """Return parameters, with pixels in the order that `patched` says."""
        start: Tensor = self.last.bias  # type: ignore[assignment]
        h: Tensor = self.spread(F.silu(self.hidden(z.to(start.dtype))))
        h = h.reshape(z.shape[0], *self.patches.grid, -1).permute(0, 3, 1, 2)  # channels last
        h = self.last(F.silu(self.body(h)).permute(0, 2, 3, 1))
        if self.patched:
            return h.reshape(z.shape[0], math.prod(self.patches.grid), -1, self.patches.side**2)
        return self.patches.join(h.permute(0, 3, 1, 2))


def forward_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the layers of a deep network whose weights are used by their own forward pass alone.

    Their weights can then be taken away between two passes. Other networks have none.

    Example:
        >>> len(forward_blocks(ConvEncoder((1, 28, 28), (8, 8, 16), 3)))
        3
    """
    if type(network) not in (ConvEncoder, ConvDecoder, PatchDecoder):
        return []  # one derived from them may use them otherwise
    within = ("body.convs.", "hidden", "spread")
    found = network.named_modules()
    return [one for name, one in found if name.startswith(within) and "weight" in one._parameters]


def _grid_widths(hidden: Sequence[int]) -> tuple[int, int, int]:
    """Read (width, …, width, top) as the grid's width, its depth, and the hidden layer's width."""
    ok = len(hidden) >= 2 and len(set(hidden[:-1])) == 1
    require(ok, "hidden", "equal widths, then one more, such as 32,32,32,256", tuple(hidden))
    return hidden[0], len(hidden) - 1, hidden[-1]


@contextmanager
def weights_held(*modules: object) -> Iterator[None]:
    """Let no gradient flow to the parameters of modules inside a `with` block."""
    every = [one for one in modules if isinstance(one, nn.Module)]
    weights = [weight for one in every for weight in one.parameters()]
    wanted = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad = False
    try:
        yield
    finally:
        for weight, flag in zip(weights, wanted, strict=True):
            weight.requires_grad = flag
