"""The ELBO's gradient for perceptrons and bits, without an autograd graph.

The same pieces as `fused`, chained by hand: for small layers, where building and walking a graph
costs as much as the arithmetic. `step_for` says whether a model and its settings are such a case;
everything else is differentiated by autograd, and the tests hold one to the other.
"""

import torch
from torch import Tensor

from kullback.vae.events import real
from kullback.vae.likelihoods import Bernoulli
from kullback.vae.model import VAE
from kullback.vae.networks import LOG_SD_LIMIT, Mlp, MlpDecoder, MlpEncoder
from kullback.vae.priors import StandardNormal
from kullback.vae.training import Training

from .flat import FlatParameters
from .fused import bernoulli_total, mlp_backward, mlp_forward
from .native_step import Layers, NativeStep, library

__all__ = ["ElboStep", "step_for"]

hardtanh_backward = torch.ops.aten.hardtanh_backward


def step_for(model: VAE, flat: FlatParameters, settings: Training) -> "ElboStep | None":
    """Return the step by hand where there is one: perceptrons, bits, the plain ELBO, one draw."""
    parts = isinstance(model.encoder, MlpEncoder) and isinstance(model.decoder, MlpDecoder)
    parts = parts and isinstance(model.likelihood, Bernoulli)
    parts = parts and isinstance(model.prior, StandardNormal)
    plain = settings.objective == "elbo" and settings.draws_at(0.0) == 1 and not settings.free_bits
    return ElboStep(model, flat) if parts and plain and not settings.tighten else None


class ElboStep:
    """Computes loss, ELBO and rate of a batch and writes the gradient into the flat vector.

    Call with x `[batch, *event]` (0 and 1), noise `[1, batch, latent]` and β; it returns the loss
    and (ELBO, rate) exactly as `loop.loss_terms` does.
    """

    def __init__(self, model: VAE, flat: FlatParameters) -> None:
        self.flat = flat
        self.shift, self.scale = model.shift.flatten(), float(model.scale)
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

    @torch.no_grad()
    def __call__(self, x: Tensor, noise: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Return the loss and (ELBO, rate), batch means in nats; leave the gradient in `flat`."""
        x, noise = x.flatten(1), noise[0]
        centred = x - self.shift if self.scale == 1.0 else (x - self.shift) / self.scale
        if self.functions is None:
            likelihood, rate = self._in_torch(x, centred, noise, beta)
            return beta * rate - likelihood, torch.stack([likelihood - rate, rate])
        if self.native is None or self.native.n != len(x):
            self.native = NativeStep(self.encoder, self.decoder, len(x), self.functions)
        reward, cost = self.native(x, centred, noise, beta)
        return torch.tensor(beta * cost - reward), torch.tensor([reward - cost, cost])

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
