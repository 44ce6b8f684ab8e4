"""A normalising flow: for banana and funnel shapes (zuko; the extra `flows`)."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback.core import import_extra, require
from kullback.variational import limits

from .family import Draws, Family, Frame, normal_log_prob

__all__ = ["Flow"]

LOG_SLOPE = math.log(1e-3)  # zuko's bound of a layer's log scale (MonotonicAffineTransform)


class Flow(Family):
    """`z = T(e)`, e ~ N(0, I), through coupling layers of neural networks that move half of z each.

    Density and draws are exact, each in one pass. The networks have two layers, and their outputs
    grow linearly far out. The flow starts as the identity in its frame; a dense one is turned so
    that coordinates on which most others depend come first. In one dimension there is nothing to
    condition on and the flow is affine.
    Reference: Dinh et al. (2017), "Density estimation using Real NVP".

    Args:
        frame: the coordinates, in which it begins as N(0, I).
        layers: coupling transforms, in alternation.
        hidden: width of the networks.
        seed: of the networks' first weights; the global state of random numbers is left as it was.

    Raises:
        MissingExtraError: without zuko.
        ArgumentValueError: for options out of range.

    Example:
        >>> from kullback.variational.families.family import Frame
        >>> Flow(Frame.identity(2)).sample(3).shape
        torch.Size([3, 2])
    """

    name, dense = "flow", True
    chosen = ("layers", "hidden")
    turn: Tensor | None
    bend: Tensor

    def __init__(
        self,
        frame: Frame,
        *,
        layers: int = 6,
        hidden: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(frame)
        require(layers >= 1, "layers", "at least 1", layers)
        require(hidden >= 1, "hidden", "at least 1", hidden)
        zuko = _zuko()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.flow = zuko.flows.NICE(
                self.dim,
                transforms=layers,
                hidden_features=(hidden, hidden),
                activation=torch.nn.SiLU,
            ).to(self.shift.dtype)
        with torch.no_grad():
            for part in self.flow.transform.transforms:
                last = list(part.hyper)[-1] if hasattr(part, "hyper") else None
                for parameter in last.parameters() if last is not None else part.parameters():
                    parameter.zero_()
        self.layers, self.hidden = layers, hidden
        self.register_buffer("turn", hubs_first(self.scale) if frame.is_dense else None)
        self.register_buffer("bend", self.shift.new_zeros(()))

    def widen(self, h: float) -> None:
        """Give the base heavier tails, of variance 1 still: `e → sinh(h e)`, scaled; 0 for none.

        A flow fitted by KL(q‖p) is nearly right where it has mass and too light far out, where a
        few draws then carry large weights p/q. With this base a nearly right flow has weights that
        *fall* with the distance. It costs about h⁴/3 nats a dimension, and at h = 0.3 some per cent
        of standard deviations.

        Args:
            h: 0 to 1.

        Raises:
            ArgumentValueError: for any other h.
        """
        require(0 <= h <= 1, "h", "0 to 1", h)
        self.bend.fill_(h)

    def _push(self, noise: Tensor) -> Draws:
        base, log_base = bent(noise, float(self.bend))
        inner, log_det = self._through(base, inverse=True)
        turned = inner if self.turn is None else inner @ self.turn.mT
        return Draws(turned, log_base - log_det, None)

    def _through(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply the coupling layers to x `[n, d]`, or undo them; return log |det| as well.

        As zuko's transform does, but the halves of x, every other coordinate, are put together at
        the end only, and nothing is made anew for each call.
        """
        if self.dim == 1:
            whole = self.flow().transform
            result: tuple[Tensor, Tensor] = (whole.inv if inverse else whole).call_and_ladj(x)
            return result
        layers = list(self.flow.transform.transforms)
        halves, log_det = [x[:, ::2], x[:, 1::2]], x.new_zeros(len(x))
        for i, layer in reversed([*enumerate(layers)]) if inverse else enumerate(layers):
            shift, raw = layer.hyper(halves[i % 2]).unflatten(-1, (-1, 2)).unbind(-1)
            log_scale = raw / (1 + (raw / LOG_SLOPE).abs())
            moved = halves[1 - i % 2]
            if inverse:
                halves[1 - i % 2], sign = (moved - shift) / log_scale.exp(), -1.0
            else:
                halves[1 - i % 2], sign = moved * log_scale.exp() + shift, 1.0
            log_det = log_det + sign * log_scale.sum(-1)
        joined = x.new_empty(x.shape)
        joined[:, ::2], joined[:, 1::2] = halves
        return joined, log_det

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._push(self.noise(n, generator)).z

    def _log_prob(self, u: Tensor) -> Tensor:
        turned = u if self.turn is None else u @ self.turn
        base, log_det = self._through(turned, inverse=False)
        value: Tensor = bent(straight(base, float(self.bend)), float(self.bend))[1] + log_det
        return value

    def _entropy(self) -> None:
        return None

    def _absorb(self) -> None:
        return None


def bent(e: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """Return `sinh(h e)/c`, c such that e ~ N(0, I) keeps variance 1, and its log density.

    Reference: Jones and Pewsey (2009), "Sinh-arcsinh distributions", eq. 2, without skewness.

    >>> bent(torch.tensor([[3.0]]), 0.27)[0]
    tensor([[3.2180]])
    """
    if h == 0:
        return e, normal_log_prob(e)
    scale = _deviation(h)
    log_slopes = (h * e).cosh().log().sum(-1) + e.shape[-1] * math.log(h / scale)
    return (h * e).sinh() / scale, normal_log_prob(e) - log_slopes


def straight(base: Tensor, h: float) -> Tensor:
    """Return the e that `bent` takes to base.

    >>> straight(bent(torch.tensor([[3.0]]), 0.27)[0], 0.27)
    tensor([[3.]])
    """
    return base if h == 0 else (_deviation(h) * base).asinh() / h


def _deviation(h: float) -> float:
    """Return the standard deviation of sinh(h e), e ~ N(0, 1)."""
    return math.sqrt(0.5 * math.expm1(2 * h * h))


def hubs_first(factor: Tensor) -> Tensor:
    """Return the rotation R for which `factor R` has a triangle with the hubs first, `[d, d]`.

    factor: `[d, d]`, of a covariance; above 300 dimensions no order is sought. A hub is what
    explains most of the variance of all that is left, as a hyperparameter does: given it, the
    others are nearly independent, and a layer of a flow that conditions on it sees one coordinate.

    >>> mean_last = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    >>> (mean_last @ hubs_first(mean_last)).round(decimals=2).abs()[-1]
    tensor([1.7300, 0.0000, 0.0000])
    """
    covariance = factor @ factor.mT
    sd = covariance.diagonal().sqrt()
    left = covariance / (sd[:, None] * sd)
    waiting, order = list(range(len(sd))), []
    if len(sd) > limits.MAX_DENSE_DIMENSIONS:
        waiting, order = [], waiting
    while waiting:
        block = left[waiting][:, waiting]
        explained = (
            block.square() / block.diagonal().clamp_min(limits.MIN_VARIANCE_LEFT)[:, None]
        ).sum(1)
        hub = waiting.pop(int(explained.argmax()))
        order.append(hub)
        if float(left[hub, hub]) > limits.MIN_VARIANCE_LEFT:
            left = left - torch.outer(left[:, hub], left[hub]) / left[hub, hub]
    # QR of the permuted factor's transpose: factor[order] = R' Q' with R' lower triangular
    turn, upper = torch.linalg.qr(factor[order].mT)
    first: Tensor = turn * upper.diagonal().sign()
    return first


def _zuko() -> Any:
    """Import zuko, which switches off the argument checks of all of torch's distributions."""
    checks = Distribution._validate_args
    try:
        return import_extra("zuko", "flows")
    finally:
        Distribution.set_default_validate_args(checks)
