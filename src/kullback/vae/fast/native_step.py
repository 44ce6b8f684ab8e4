"""The step by hand with its passes between matrix products in C: `step.c`, where it compiles.

A translation of `by_hand`, held to it by the tests: one sweep over memory where torch makes
several, nothing allocated, and a tenth of the calls.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback.core.compiling import load
from kullback.vae.networks import LOG_SD_LIMIT

__all__ = ["Layers", "NativeStep", "compiled_state", "library"]

SOURCE = Path(__file__).with_name("step.c")
KINDS = {"tanh": 0, "relu": 1, "silu": 2}
_POINTER, _WHOLE, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "activate": ([_POINTER] * 3 + [_WHOLE] * 2 + [ctypes.c_int], None),
    "deactivate": ([_POINTER] * 3 + [_WHOLE] * 2 + [ctypes.c_int], None),
    "draw": ([_POINTER] * 4 + [_WHOLE] * 2 + [_REAL], ctypes.c_double),
    "draw_back": ([_POINTER] * 5 + [_WHOLE] * 2 + [_REAL] * 2, None),
    "bernoulli": ([_POINTER] * 4 + [_WHOLE] * 2 + [_REAL], ctypes.c_double),
}


def library() -> ctypes.CDLL | None:
    """Return `step.c`, compiled, or None where that cannot be had."""
    loaded, _ = load(SOURCE)
    if loaded is not None:
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, result
    return loaded


def compiled_state() -> str:
    """Return "in use", or why `step.c` is not."""
    return load(SOURCE)[1] or "in use"


@dataclass(frozen=True, slots=True)
class Layers:
    """A perceptron's weights `[out, in]` and biases, and where the gradient of each is written."""

    weights: list[Tensor]
    biases: list[Tensor]
    by_weights: list[Tensor]
    by_biases: list[Tensor]
    activation: str


class NativeStep:
    """Computes what `by_hand.ElboStep` does, for batches of n images in float32 on the CPU.

    Call with x and x centred, both `[n, D]`, noise `[n, latent]` and β; it writes the gradient
    where the layers say and returns (log-likelihood, rate), batch means in nats.
    """

    def __init__(self, encoder: Layers, decoder: Layers, n: int, functions: ctypes.CDLL) -> None:
        latent = decoder.weights[0].shape[1]
        self.n, self.latent, self.functions = n, latent, functions
        self.encoder, self.decoder = (_Pass(net, n, functions) for net in (encoder, decoder))
        self.z, self.by_z = torch.empty(2, n, latent)
        self.by_code = torch.empty(n, 2 * latent)

    def __call__(
        self, x: Tensor, centred: Tensor, noise: Tensor, beta: float
    ) -> tuple[float, float]:
        """Return the batch means (log-likelihood, rate) in nats; leave the gradient."""
        n, encoder, decoder = self.n, self.encoder, self.decoder
        code = encoder.forward(centred)
        shape = (n, self.latent, LOG_SD_LIMIT)
        last, by_last = encoder.last_bias
        rate = self.functions.draw(*_at(code, last, noise, self.z), *shape) / n
        logits = decoder.forward(self.z)
        last, by_last_out = decoder.last_bias
        pointers = _at(logits, last, x, by_last_out)
        likelihood = self.functions.bernoulli(*pointers, n, logits.shape[1], 1.0 / n) / n

        torch.mm(decoder.backward(logits), decoder.layers.weights[0], out=self.by_z)
        pointers = _at(self.by_z, code, noise, self.by_code, by_last)
        self.functions.draw_back(*pointers, *shape, beta / n)
        encoder.backward(self.by_code)
        return likelihood, rate


class _Pass:
    """One perceptron's buffers for n rows, and the way through it, forward and back."""

    def __init__(self, layers: Layers, n: int, functions: ctypes.CDLL) -> None:
        self.layers, self.n, self.functions = layers, n, functions
        self.kind = KINDS[layers.activation]
        self.last_bias = layers.biases[-1], layers.by_biases[-1]
        widths = [len(bias) for bias in layers.biases]
        self.before = [torch.empty(n, width) for width in widths]
        apart = layers.activation == "silu"  # what its gradient needs is not its output
        self.after = [torch.empty_like(t) if apart else t for t in self.before[:-1]]
        self.by_before = [torch.empty_like(t) for t in self.before[:-1]]
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return the last layer's product, its bias not yet added."""
        self.inputs = [x, *self.after]
        for i, weight in enumerate(self.layers.weights):
            before = torch.mm(self.inputs[i], weight.t(), out=self.before[i])
            if i < len(self.after):
                pointers = _at(before, self.layers.biases[i], self.after[i])
                self.functions.activate(*pointers, self.n, before.shape[1], self.kind)
        return self.before[-1]

    def backward(self, grad: Tensor) -> Tensor:
        """Write the gradients of all but the last bias; return that by the first product."""
        for i in reversed(range(len(self.layers.weights))):
            torch.mm(grad.t(), self.inputs[i], out=self.layers.by_weights[i])
            if i > 0:
                grad = torch.mm(grad, self.layers.weights[i], out=self.by_before[i - 1])
                pointers = _at(grad, self.before[i - 1], self.layers.by_biases[i - 1])
                self.functions.deactivate(*pointers, self.n, grad.shape[1], self.kind)
        return grad


def _at(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
