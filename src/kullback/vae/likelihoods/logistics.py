"""`DiscretisedLogistics`: levels by a mixture of logistics, each integrated over a level's width.

The log mass of a logistic between two edges has a hand-written gradient, equal to its plain PyTorch
form in fewer passes over memory; on a CPU with a C compiler so has the whole mixture (`step.c`).
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from ..networks import real
from .compiled import as_read, in_c, in_threads, library
from .events import Event

__all__ = ["DiscretisedLogistics", "log_mass"]


class DiscretisedLogistics(nn.Module):
    """A mixture of K logistics, each integrated over the width of one of `levels` levels.

    `log p(x|z) = Σ_places log Σ_k π_k Π_c [σ(b_c) − σ(a_c)]`, where a and b are the standardised
    lower and upper edge of level x_c; the lowest level reaches to −∞, the highest to +∞, so the
    levels' probabilities sum to one exactly. Colours of one place share the component, and the
    mean of a later colour moves linearly with the earlier ones: that of green with red, that of
    blue with red and green.

    x holds integers 0 … levels − 1. Parameters per place: K mixture logits, K·C means, K·C
    log-scales (held within ±7, on a scale where all levels span 2; lower by log(levels/256) where
    there are more), and K·C(C−1)/2 colour weights.
    Exact: `log(σ(b) − σ(a)) = log σ(b) + log σ(−a) + log(1 − e^{a−b})` needs no floor
    and no approximation in the tails.
    Reference: Salimans et al. (2017), "PixelCNN++", section 2.1.

    Args:
        event_shape: `[C, *spatial]` or `[D]`.
        components: K.
        levels: How many values there are.
        centre: `[C, places]` in levels; means and scales are then in units of centre and spread,
            which a decoder needs where data fill a small part of many levels.
        spread: As `centre`.
        dependent: Whether a colour's mean moves with the earlier ones; without, colours share the
            component alone and there are no colour weights.
        patch: Of `Event`; parameters are then `[*lead, patches, channels, places in a patch]`.

    Example:
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
        patch: int = 0,
        dependent: bool = True,
    ) -> None:
        super().__init__()
        self.event = Event(event_shape, patch=patch)
        self.components, self.levels = components, levels
        colours = self.event.colours
        self.pairs = colours * (colours - 1) // 2 if dependent else 0
        self.channels = components * (1 + 2 * colours + self.pairs)
        self.least = -7.0 - max(0.0, math.log((levels - 1) / 255))
        unit = None if spread is None else spread * (2.0 / (levels - 1))
        self.register_buffer("centre", None if centre is None else self.unit(centre))
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
        for earlier in range(colour if self.pairs else 0):
            value = values[..., earlier, :].unsqueeze(-2)
            moved = moved + weights[..., first + earlier, :, :] * value
        return moved

    def unit(self, x: Tensor) -> Tensor:
        """Return levels 0 … n−1 as values in [−1, 1], the scale of the means."""
        return real(x) * (2.0 / (self.levels - 1)) - 1.0

    @property
    def moves(self) -> int:
        """How many parameters a place has that move with others' values: K logits, C means."""
        return self.components + self.event.colours

    def movers(self, values: Tensor) -> Tensor:
        """Return what each moves with, of `[..., C, places]`: the colours' mean, or its own."""
        grey = values.mean(-2, keepdim=True)
        return torch.cat([grey.expand(*values.shape[:-2], self.components, -1), values], -2)

    def moved(self, parameters: Tensor, shift: Tensor) -> Tensor:
        """Return parameters with shift `[*lead, K + C, places]`: of logits, of a colour's means."""
        k = self.components
        end = k * (1 + self.event.colours)
        logits, means, rest = torch.tensor_split(parameters, (k, end), -2)
        means = means + shift[..., k:, :].repeat_interleave(k, -2)
        return torch.cat([logits + shift[..., :k, :], means, real(rest)], -2)

    def at(self, places: int) -> "DiscretisedLogistics":
        """Return this mixture at as many places, of as many colours."""
        part = copy.copy(self)
        part.event = Event((self.event.colours, places))
        return part

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats.

        Without patches and where no gradient is asked for the plain form is used, so that runs made
        before the compiled one keep their figures to the last bit.
        """
        if self.compiles(parameters) and self.event.matches(parameters, self.channels, x):
            return self.compiled(parameters, x)
        log_pi, means, log_scales, weights = self._unpack(parameters)
        values = self.unit(self.event.split(x))
        half = 1.0 / (self.levels - 1)
        total = log_pi
        for colour in range(self.event.colours):
            here = values[..., colour, :].unsqueeze(-2)  # [batch, 1, places]
            mean = self._moved(means, weights, values, colour)
            total = total + log_mass(mean, log_scales[..., colour, :, :], here, half)
        each = torch.logsumexp(total, -2)
        return each.flatten(-2).sum(-1) if self.event.patch else each.sum(-1)

    def compiled(self, parameters: Tensor, x: Tensor, around: Tensor | None = None) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats, from the compiled form.

        Args:
            parameters: For which `compiles` and `Event.matches` hold; behind the mixture's own
                channels, where `around` is given, `moves` weights for each neighbour or feature.
            x: `[batch, *event]`.
            around: The neighbours' values as `unit` gives them, a neighbour after the other,
                `[batch, (patches,) neighbours * C, places]`; or features that all colours share,
                `[batch, (patches,) features, places]`.

        Returns:
            With a gradient to the parameters and to around.
        """
        out: Tensor = _Mixture.apply(parameters, self.event.split(x), around, self)  # type: ignore[no-untyped-call]
        return out

    def compiles(self, parameters: Tensor) -> bool:
        """Say whether `log_prob` takes the compiled form: on a CPU, in units of the levels."""
        if not (self.event.patch or (torch.is_grad_enabled() and parameters.requires_grad)):
            return False
        weighted = self.pairs > 0 or self.event.colours == 1  # it has the colour weights
        return self.spread is None and weighted and in_c(parameters)

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
        flat = Event(self.event.shape)
        bias = mean.new_zeros(self.channels, flat.places)
        if self.spread is not None:
            around = torch.linspace(-1.0, 1.0, k) if k > 1 else torch.zeros(1)
            around = around.to(mean.device).repeat(colours)
            bias[k : k + k * colours] = around[:, None]
            bias[k + k * colours : k + 2 * k * colours] = math.log(math.sqrt(3.0) / math.pi)
            return bias
        spread = torch.linspace(-0.6, 0.6, k, device=mean.device) if k > 1 else mean.new_zeros(1)
        centre = self.unit(flat.split(mean)[0])  # [colours, places]
        around = (centre.unsqueeze(1) + spread[:, None]).clamp(-1.0, 1.0)
        bias[k : k + k * colours] = around.reshape(k * colours, -1)
        bias[k + k * colours : k + 2 * k * colours] = -1.5
        return bias


class _Mixture(torch.autograd.Function):
    """`DiscretisedLogistics.log_prob` in C: value and gradient in one pass over the parameters.

    parameters: `[*lead, (patches,) channels, places]`; x: `[batch, (patches,) colours, places]`;
    around: None, or as in `DiscretisedLogistics.compiled`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        parameters: Tensor,
        x: Tensor,
        around: Tensor | None,
        mixture: DiscretisedLogistics,
    ) -> Tensor:
        parameters, x = as_read(parameters), as_read(x.float())
        around = None if around is None else as_read(around.float())
        value = torch.empty(parameters.shape[: -mixture.event.axes])
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[2])
        ctx.gradients = _mixture_pass(mixture, (parameters, x, around), wanted, value)
        ctx.save_for_backward(parameters, x, around)
        ctx.mixture, ctx.wanted, ctx.items = mixture, wanted, len(x)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        factor = as_read(grad.float())
        if ctx.gradients is None:  # a second time: the first one's are scaled
            value = torch.empty(factor.shape)
            ctx.gradients = _mixture_pass(ctx.mixture, ctx.saved_tensors, ctx.wanted, value)
        (by, around), ctx.gradients = ctx.gradients, None
        if by is not None:
            _scale(by, factor)
        if around is not None:
            each = around.reshape(-1, ctx.items, around[0].numel())  # draws, items
            summed = torch.einsum("dn,dni->ni", factor.reshape(each.shape[:2]), each)
            around = summed.reshape(-1, *around.shape[1:])
        return by, None, around, None


def _scale(by: Tensor, factor: Tensor) -> None:
    """Multiply every row's gradient by its factor, in place: by is as large as the parameters."""
    rows = factor.numel()
    pointers = [tensor.data_ptr() for tensor in (by, factor, by)]
    sizes = (by.numel() // rows, int(by.dtype == torch.bfloat16))
    in_threads(lambda a, b: library().scale_rows(*pointers, a, b, *sizes), rows)  # type: ignore[union-attr]


def _mixture_pass(
    mixture: DiscretisedLogistics,
    given: tuple[Tensor, Tensor, Tensor | None],
    wanted: tuple[bool, bool],
    value: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """Write the log-likelihood of every row into value; return its gradients, None if not wanted.

    given: parameters, x and around, as in `_Mixture`. The gradients are by parameters, and each
    row's by around.
    """
    event, (parameters, x, around) = mixture.event, given
    by = torch.empty_like(parameters) if wanted[0] else None
    by_around = None
    if around is not None and wanted[1]:
        by_around = torch.empty((value.numel(), *around.shape[1:]))
    count = (parameters.shape[-2] - mixture.channels) // mixture.moves
    each = 0 if around is None else around.shape[-2] // count
    tensors = (parameters, x, around, by, by_around, value)
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    runs = math.prod(parameters.shape[-event.axes : -2])
    sizes = (len(x), runs, event.places, mixture.components, event.colours, count, each)
    half, narrow = 1.0 / (mixture.levels - 1), int(parameters.dtype == torch.bfloat16)

    def work(first: int, last: int) -> int:
        code: int = library().logistic_mixture(  # type: ignore[union-attr]  # see `compiles`
            *pointers, first, last, *sizes, half, mixture.least, narrow
        )
        return code

    if any(in_threads(work, value.numel())):
        raise MemoryError("of a block of a likelihood's places")
    return by, by_around


def log_mass(
    mean: Tensor, log_scale: Tensor, value: Tensor, half: float, bound: float | Tensor = 1.0
) -> Tensor:
    """Return the log mass that logistics give the level around `value`, a width of 2·half.

    The levels at ±bound reach to infinity, so that the masses of all levels sum to 1.

    Args:
        mean: `[*lead, batch, K, places]`, or any shape to which that of `value` broadcasts.
        log_scale: Of the logistics, as `mean`.
        value: The centre of the level, in [−bound, bound].
        half: Half the distance between levels.
        bound: The centre of the highest level; the lowest is at −bound.

    Returns:
        The log mass, of the shape of `mean`.

    Example:
        >>> zero = torch.zeros(2)
        >>> log_mass(zero, zero, torch.tensor([-1.0, 1.0]), half=1.0).exp()
        tensor([0.5000, 0.5000])
    """
    out: Tensor = _LogMass.apply(  # type: ignore[no-untyped-call]
        mean, log_scale, value, half, bound
    )
    return out


class _LogMass(torch.autograd.Function):
    """`log[σ(b) − σ(a)]` with its gradient by hand: a third of the passes over memory."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, log_scale: Tensor, value: Tensor, half: float, bound: float | Tensor
    ) -> Tensor:
        sharpness = torch.exp(-log_scale)
        centred = (value - mean).mul_(sharpness)
        width = sharpness.mul_(2.0 * half)
        below = (value < bound - half).to(mean.dtype)  # the top level reaches to +∞
        above = (value > half - bound).to(mean.dtype)  # the lowest to −∞
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
        return by_mean, by_log_scale, None, None, None
