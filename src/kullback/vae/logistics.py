"""The mixture of discretised logistics: the likelihood for 8-bit data and other levels."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from .events import Event, real

__all__ = ["DiscretisedLogistics"]


class DiscretisedLogistics(nn.Module):
    """A mixture of K logistics, each integrated over the width of one of `levels` levels.

    `log p(x|z) = Σ_places log Σ_k π_k Π_c [σ(b_c) − σ(a_c)]`, where a and b are the standardised
    lower and upper edge of level x_c; the lowest level reaches to −∞, the highest to +∞, so the
    levels' probabilities sum to one exactly. Colours of one place share the component, and the
    mean of a later colour moves linearly with the earlier ones.

    event_shape: `[C, *spatial]` or `[D]`; x holds integers 0 … levels − 1. Per place: K mixture
    logits, K·C means, K·C log-scales (held within ±7, on a scale where all levels span 2; lower
    by log(levels/256) where there are more), and K·C(C−1)/2 colour weights. centre, spread:
    `[C, places]` in levels; means and scales are then in these units, which a decoder needs where
    data fill a small part of many levels.
    Exact: `log(σ(b) − σ(a)) = log σ(b) + log σ(−a) + log(1 − e^{a−b})` needs no floor
    and no approximation in the tails.
    Reference: Salimans et al. (2017), "PixelCNN++", section 2.1.

    >>> logistics = DiscretisedLogistics((1,), components=1, levels=2)
    >>> logistics.log_prob(torch.zeros(1, 3, 1), torch.tensor([[1]])).exp()
    tensor([0.5000])
    """

    centre: Tensor | None
    spread: Tensor | None

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        components: int = 5,
        levels: int = 256,
        centre: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.event = Event(event_shape)
        self.components, self.levels = components, levels
        colours = self.event.colours
        self.pairs = colours * (colours - 1) // 2
        self.channels = components * (1 + 2 * colours + self.pairs)
        self.least = -7.0 - max(0.0, math.log((levels - 1) / 255))
        unit = None if spread is None else spread * (2.0 / (levels - 1))
        self.register_buffer("centre", None if centre is None else self._to_unit(centre))
        self.register_buffer("spread", unit)

    def _unpack(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        k, colours = self.components, self.event.colours
        lead = parameters.shape[:-2]
        parts = torch.split(real(parameters), [k, k * colours, k * colours, k * self.pairs], -2)
        log_pi = torch.log_softmax(parts[0], -2)  # [*lead, K, places]
        means = parts[1].reshape(*lead, colours, k, self.event.places)
        log_scales = parts[2].reshape(*lead, colours, k, self.event.places)
        if self.spread is not None and self.centre is not None:
            spread = self.spread.unsqueeze(-2)
            means = self.centre.unsqueeze(-2) + spread * means
            log_scales = log_scales + spread.log()
        log_scales = log_scales.clamp(self.least, 7.0)
        weights = torch.tanh(parts[3]).reshape(*lead, self.pairs, k, self.event.places)
        return log_pi, means, log_scales, weights

    def _moved(self, means: Tensor, weights: Tensor, values: Tensor, colour: int) -> Tensor:
        """Add to the mean of one colour what the earlier colours say: `[*lead, K, places]`."""
        moved = means[..., colour, :, :]
        first = colour * (colour - 1) // 2
        for earlier in range(colour):
            value = values[..., earlier, :].unsqueeze(-2)
            moved = moved + weights[..., first + earlier, :, :] * value
        return moved

    def _to_unit(self, x: Tensor) -> Tensor:  # levels 0 … n−1 to [−1, 1]
        return real(x) * (2.0 / (self.levels - 1)) - 1.0

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats."""
        log_pi, means, log_scales, weights = self._unpack(parameters)
        values = self._to_unit(self.event.split(x))
        half = 1.0 / (self.levels - 1)
        total = log_pi
        for colour in range(self.event.colours):
            here = values[:, colour].unsqueeze(-2)  # [batch, 1, places]
            mean = self._moved(means, weights, values, colour)
            total = total + _log_mass(mean, log_scales[..., colour, :, :], here, half)
        return torch.logsumexp(total, -2).sum(-1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the mixture's mean level, `[*lead, *event]`, before the cut at both ends."""
        log_pi, means, _, weights = self._unpack(parameters)
        values = torch.zeros_like(means[..., 0, :])
        for colour in range(self.event.colours):
            moved = self._moved(means, weights, values, colour)
            values = values.clone()
            values[..., colour, :] = (log_pi.exp() * moved).sum(-2).clamp(-1.0, 1.0)
        return self.event.join((values + 1.0) * (0.5 * (self.levels - 1)))

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw levels, as floats, `[*lead, *event]`: a logistic draw rounded to its level."""
        log_pi, means, log_scales, weights = self._unpack(parameters)
        pi = log_pi.exp().movedim(-2, -1)
        drawn = torch.multinomial(pi.reshape(-1, self.components), 1, generator=generator)
        pick = drawn.reshape(pi.shape[:-1]).unsqueeze(-2)  # [*lead, 1, places]
        values = torch.zeros_like(means[..., 0, :])
        for colour in range(self.event.colours):
            mean = self._moved(means, weights, values, colour).gather(-2, pick).squeeze(-2)
            scale = log_scales[..., colour, :, :].gather(-2, pick).squeeze(-2).exp()
            u = torch.rand(mean.shape, generator=generator, device=mean.device)
            raw = mean + scale * torch.logit(u, eps=1e-7)
            step = 2.0 / (self.levels - 1)
            values[..., colour, :] = ((raw.clamp(-1.0, 1.0) + 1.0) / step).round() * step - 1.0
        return self.event.join(((values + 1.0) * (0.5 * (self.levels - 1))).round())

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return means spread around the data's mean, with wide scales.

        Where the units are the data's own, the means are within one of them and the scale is that
        of a logistic with their deviation.
        """
        k, colours = self.components, self.event.colours
        bias = mean.new_zeros(self.channels, self.event.places)
        if self.spread is not None:
            around = torch.linspace(-1.0, 1.0, k) if k > 1 else torch.zeros(1)
            around = around.to(mean.device).repeat(colours)
            bias[k : k + k * colours] = around[:, None]
            bias[k + k * colours : k + 2 * k * colours] = math.log(math.sqrt(3.0) / math.pi)
            return bias
        spread = torch.linspace(-0.6, 0.6, k, device=mean.device) if k > 1 else mean.new_zeros(1)
        centre = self._to_unit(self.event.split(mean)[0])  # [colours, places]
        around = (centre.unsqueeze(1) + spread[:, None]).clamp(-1.0, 1.0)
        bias[k : k + k * colours] = around.reshape(k * colours, -1)
        bias[k + k * colours : k + 2 * k * colours] = -1.5
        return bias


def _log_mass(mean: Tensor, log_scale: Tensor, value: Tensor, half: float) -> Tensor:
    """Return the log mass that logistics give the level around `value`, a width of 2·half.

    mean, log_scale: `[*lead, batch, K, places]`; value: `[batch, 1, places]` in [−1, 1].
    """
    out: Tensor = _LogMass.apply(mean, log_scale, value, half)  # type: ignore[no-untyped-call]
    return out


class _LogMass(torch.autograd.Function):
    """`log[σ(b) − σ(a)]` with its gradient by hand: a third of the passes over memory."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_scale: Tensor, value: Tensor, half: float) -> Tensor:
        sharpness = torch.exp(-log_scale)
        centred = (value - mean).mul_(sharpness)
        width = sharpness.mul_(2.0 * half)
        below = (value < 1.0 - half).to(mean.dtype)  # the top level reaches to +∞
        above = (value > half - 1.0).to(mean.dtype)  # the lowest to −∞
        ctx.save_for_backward(centred, width, below, above)
        ctx.half = half
        out = torch.log(torch.expm1(-width).neg_()).mul_(below * above)
        out.sub_(softplus(torch.add(centred, width, alpha=0.5).neg_(), threshold=40.0).mul_(below))
        out.sub_(softplus(torch.add(centred, width, alpha=-0.5), threshold=40.0).mul_(above))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        centred, width, below, above = ctx.saved_tensors
        upper = torch.add(centred, width, alpha=0.5).neg_().sigmoid_().mul_(below)
        lower = torch.add(centred, width, alpha=-0.5).sigmoid_().mul_(above)
        by_width = torch.expm1(width).reciprocal_().mul_(below * above)
        by_width.add_(upper + lower, alpha=0.5).mul_(width)
        by_centre = upper.sub_(lower)
        by_log_scale = by_width.addcmul_(by_centre, centred).mul_(grad).neg_()
        by_mean = by_centre.mul_(width).mul_(grad).div_(-2.0 * ctx.half)
        return by_mean, by_log_scale, None, None
