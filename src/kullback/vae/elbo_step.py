"""The ELBO's gradient for perceptrons and bits, without an autograd graph.

The hand-written gradients of `networks`, `latents` and `likelihoods`, chained by hand: for small
layers, where building and walking a graph costs as much as the arithmetic. `step_for` says whether
a model and its settings are such a case; everything else is differentiated by autograd, and the
tests compare the two. On a CPU in float32 the passes between matrix products are in C (`step.c`,
class `NativeStep`), where it compiles: one sweep over memory where torch makes several, nothing
allocated, and a tenth of the calls.

`CapturedSteps` is for every model on a GPU: a step of a small network is some hundreds of kernels
of a few microseconds each, between which the GPU waits for Python. They are recorded once and
replayed as a CUDA graph: the same kernels in the same order.
"""

import ctypes
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from kullback.core import compiling

from .latents import Diagonal, StandardNormal
from .likelihoods import SOURCE, Bernoulli, bernoulli_total, library
from .limits import LOG_SD_LIMIT
from .model import VAE
from .networks import Mlp, MlpDecoder, MlpEncoder, mlp_backward, mlp_forward, real
from .state import FlatParameters
from .training import Training

__all__ = ["CapturedSteps", "ElboStep", "Layers", "NativeStep", "compiled_state", "step_for"]

hardtanh_backward = torch.ops.aten.hardtanh_backward
KINDS = {"tanh": 0, "relu": 1, "silu": 2}


def compiled_state() -> str:
    """Return "in use" where the compiled `step.c` is used, else the reason why it is not.

    Returns:
        "in use", or the reason in words.

    Example:
        >>> isinstance(compiled_state(), str)
        True
    """
    return compiling.load(SOURCE)[1] or "in use"


@dataclass(frozen=True, slots=True)
class Layers:
    """A perceptron's weights `[out, in]` and biases, and where the gradient of each is written."""

    weights: list[Tensor]
    biases: list[Tensor]
    by_weights: list[Tensor]
    by_biases: list[Tensor]
    activation: str


class NativeStep:
    """Computes what `ElboStep` does, for batches of n images in float32 on the CPU.

    Call with x and x centred, both `[n, D]`, noise `[n, latent]` and β; it writes the gradient
    where the layers say and returns (log-likelihood, rate), batch means in nats. squares: the sum
    of squares of that gradient.
    """

    def __init__(self, encoder: Layers, decoder: Layers, n: int, functions: ctypes.CDLL) -> None:
        latent = decoder.weights[0].shape[1]
        self.n, self.latent, self.functions = n, latent, functions
        self.encoder, self.decoder = (_Pass(net, n, functions) for net in (encoder, decoder))
        self.z, self.by_z = (torch.empty(n, latent) for _ in range(2))
        self.by_code = torch.empty(n, 2 * latent)
        self.squares = 0.0
        # each its own allocation: on some CPUs a matrix at another address has other last digits
        self.x, self.less = (torch.empty(n, encoder.weights[0].shape[1]) for _ in range(2))

    def centred(self, bits: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return uint8 bits `[n, D]` in float32, and the same less shift: this step's own room."""
        pointers, (rows, width) = _at(bits, shift, self.x, self.less), bits.shape
        self.functions.centre_bits(*pointers, rows, width)
        return self.x, self.less

    def __call__(
        self, x: Tensor, centred: Tensor, noise: Tensor, beta: float
    ) -> tuple[float, float]:
        """Return the batch means (log-likelihood, rate) in nats; leave the gradient."""
        n, encoder, decoder = self.n, self.encoder, self.decoder
        code = encoder.forward(centred)
        last, by_last = encoder.last_bias
        pointers = _at(code, last, noise, self.z)
        rate = self.functions.sample_latent(*pointers, n, self.latent, LOG_SD_LIMIT) / n
        logits = decoder.forward(self.z)
        last, by_last_out = decoder.last_bias
        pointers = _at(logits, last, x, by_last_out)
        likelihood = self.functions.bernoulli(*pointers, n, logits.shape[1], 1.0 / n) / n

        torch.mm(decoder.backward(logits), decoder.layers.weights[0], out=self.by_z)
        pointers = _at(self.by_z, code, noise, self.by_code, by_last)
        self.functions.sample_latent_back(*pointers, n, self.latent, LOG_SD_LIMIT, beta / n)
        encoder.backward(self.by_code)
        self.squares = encoder.squares() + decoder.squares()
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
        self.of_weights = 0.0

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
        self.of_weights = 0.0
        for i in reversed(range(len(self.layers.weights))):
            by_weight = torch.mm(grad.t(), self.inputs[i], out=self.layers.by_weights[i])
            self.of_weights += self.functions.squares(by_weight.data_ptr(), by_weight.numel())
            if i > 0:
                grad = torch.mm(grad, self.layers.weights[i], out=self.by_before[i - 1])
                pointers = _at(grad, self.before[i - 1], self.layers.by_biases[i - 1])
                self.functions.deactivate(*pointers, self.n, grad.shape[1], self.kind)
        return grad

    def squares(self) -> float:
        """Return the sum of squares of the gradient; the weights' were taken when written."""
        total = self.of_weights
        for by in self.layers.by_biases:
            total += float(self.functions.squares(by.data_ptr(), by.numel()))
        return total


def _at(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def step_for(model: VAE, flat: FlatParameters, settings: Training) -> "ElboStep | None":
    """Return the step by hand where there is one: perceptrons, bits, the plain ELBO, one draw.

    A class derived from one of these may compute something else, and a frozen or shared weight has
    no place of its own in the gradient: those are left to autograd.
    """
    kinds = (MlpEncoder, MlpDecoder, Bernoulli, StandardNormal, Diagonal)
    these = (model.encoder, model.decoder, model.likelihood, model.prior, model.family)
    parts = all(type(one) is kind for one, kind in zip(these, kinds, strict=True))
    parts = parts and not (model.spec is not None and model.spec.labels)
    owned = [id(one) for net in (model.encoder, model.decoder) for one in net.parameters()]
    parts = parts and len(set(owned)) == len(owned) and set(owned) <= set(map(id, flat.parameters))
    plain = settings.objective == "elbo" and settings.draws_at(0.0) == 1 and not settings.free_bits
    return ElboStep(model, flat) if parts and plain and not settings.tighten else None


class ElboStep:
    """Computes loss, ELBO and rate of a batch and writes the gradient into the flat vector.

    Call with x `[batch, *event]` (0 and 1, of any dtype), noise `[1, batch, latent]` and β; it
    returns the loss and (ELBO, rate) exactly as `loop.loss_terms` does.
    """

    def __init__(self, model: VAE, flat: FlatParameters) -> None:
        self.flat = flat
        self.shift, self.scale = model.shift.flatten().contiguous(), float(model.scale)
        weights = dict(zip(map(id, flat.parameters), flat.views_of(flat.working), strict=True))
        gradients = dict(zip(map(id, flat.parameters), flat.rounded_views, strict=True))

        def layers(net: Mlp) -> Layers:
            every = list(map(id, (*net.weights, *net.biases)))
            values, places = [weights[i] for i in every], [gradients[i] for i in every]
            n = len(net.weights)
            return Layers(values[:n], values[n:], places[:n], places[n:], net.activation)

        nets = [net for net in (model.encoder.net, model.decoder.net) if isinstance(net, Mlp)]
        self.encoder, self.decoder = (layers(net) for net in nets)
        single = flat.working.dtype == torch.float32 and flat.working.device.type == "cpu"
        self.functions = library() if single else None
        self.native: NativeStep | None = None
        parts = [part for net in (self.encoder, self.decoder) for part in net.by_weights]
        parts += [part for net in (self.encoder, self.decoder) for part in net.by_biases]
        self.whole = sum(part.numel() for part in parts) == flat.numbers

    @torch.no_grad()
    def __call__(self, x: Tensor, noise: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Return the loss and (ELBO, rate), batch means in nats; leave the gradient in `flat`."""
        x, noise = x.flatten(1).contiguous(), noise[0].contiguous()
        if self.functions is None:
            x, centred = self._centred(x)
            likelihood, rate = self._in_torch(x, centred, noise, beta)
            return beta * rate - likelihood, torch.stack([likelihood - rate, rate])
        if self.native is None or self.native.n != len(x):
            self.native = NativeStep(self.encoder, self.decoder, len(x), self.functions)
        bits = x.dtype == torch.uint8 and self.scale == 1.0 and len(self.shift) == x.shape[1]
        x, centred = self.native.centred(x, self.shift) if bits else self._centred(x)
        reward, cost = self.native(x, centred, noise, beta)
        self.flat.squares = self.native.squares if self.whole else None
        return torch.tensor(beta * cost - reward), torch.tensor([reward - cost, cost])

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = real(x)
        return x, x - self.shift if self.scale == 1.0 else (x - self.shift) / self.scale

    def _in_torch(
        self, x: Tensor, centred: Tensor, noise: Tensor, beta: float
    ) -> tuple[Tensor, Tensor]:
        """Return (log-likelihood, rate); leave the gradient in `flat`."""
        n, dtype = len(x), self.flat.working.dtype
        encoder, decoder = self.encoder, self.decoder
        code, inputs_in, kept_in = _forward(encoder, centred.to(dtype))
        mean, raw = real(code).chunk(2, -1)
        log_sd = torch.nn.functional.hardtanh(raw, -LOG_SD_LIMIT, LOG_SD_LIMIT)
        spread, excess = log_sd.exp().mul_(noise), torch.expm1(2.0 * log_sd)
        z = (mean + spread).to(dtype)
        rate = (0.5 * (torch.addcmul(excess, mean, mean).sum()) - log_sd.sum()) / n
        logits, inputs_out, kept_out = _forward(decoder, z)
        logits = real(logits)
        probability = torch.sigmoid(logits)
        likelihood = bernoulli_total(logits, x, probability) / n

        by_logits = probability.sub_(x).mul_(1.0 / n).to(dtype)
        grad = _backward(decoder, by_logits, inputs_out, kept_out)
        by_z = real(grad @ decoder.weights[0])
        by_mean = torch.add(by_z, mean, alpha=beta / n)
        by_log_sd = by_z.mul_(spread).add_(excess, alpha=beta / n)
        by_log_sd = hardtanh_backward(by_log_sd, raw, -LOG_SD_LIMIT, LOG_SD_LIMIT)
        by_code = torch.cat([by_mean, by_log_sd], -1).to(dtype)
        _backward(encoder, by_code, inputs_in, kept_in)
        self.flat.unround_gradient()
        return likelihood, rate


def _forward(net: Layers, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return mlp_forward(x, net.weights, net.biases, net.activation)


def _backward(net: Layers, grad: Tensor, inputs: list[Tensor], kept: list[Tensor]) -> Tensor:
    out = [*net.by_weights, *net.by_biases]
    return mlp_backward(grad, inputs, kept, net.weights, net.activation, out)[1]


Compute = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_WARM_UPS = 3  # calls before a recording: algorithms are chosen and workspaces made in them


@dataclass(frozen=True, slots=True)
class _Recording:
    """A CUDA graph, the tensors that it reads, and those that it writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    noise: Tensor
    loss: Tensor
    figures: Tensor


class CapturedSteps:
    """Calls a step's gradient, on a GPU by a recording of the call.

    A call is `compute(x, noise)`, which leaves a gradient in tensors that stay where they are and
    returns the loss and figures. It may depend on nothing else that changes between calls with the
    same key, and may not wait for the GPU. A call that cannot be recorded is made as it is.

    Example:
        >>> steps = CapturedSteps()
        >>> steps("elbo", lambda x, noise: (x.sum(), noise), torch.ones(2), torch.zeros(1))
        (tensor(2.), tensor([0.]))
    """

    def __init__(self) -> None:
        self.recordings: dict[Hashable, _Recording | None] = {}

    def __call__(
        self, key: Hashable, compute: Compute, x: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what compute does; the tensors are written again by the next call."""
        if not x.is_cuda:
            return compute(x, noise)
        key = (key, x.shape, x.dtype, noise.shape)
        if key not in self.recordings:
            self.recordings.clear()  # a run goes on to another key for good: its memory is free
            with torch.cuda.device(x.device):  # a stream of another records nothing
                self.recordings[key] = _recorded(compute, x, noise)
        known = self.recordings[key]
        if known is None:
            return compute(x, noise)
        known.x.copy_(x)
        known.noise.copy_(noise)
        known.graph.replay()
        return known.loss, known.figures


def _recorded(compute: Compute, x: Tensor, noise: Tensor) -> _Recording | None:
    """Return a recording of compute, or None where there can be none."""
    x, noise = x.clone(), noise.clone()
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            compute(x, noise)
    torch.cuda.current_stream().wait_stream(stream)
    try:
        # other threads, as one that reads rows ahead, may call CUDA meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            loss, figures = compute(x, noise)
    except RuntimeError:  # it waits for the GPU, or memory for the recording is refused
        torch.cuda.synchronize()
        return None
    return _Recording(graph, x, noise, loss.detach(), figures)
