"""The prior p(z) over the latent space, and the KL and log ratio of q(z|x) to it.

Which to use: `StandardNormal`, N(0, I), is the usual one and has a closed form of the KL, dimension
by dimension. `MixtureOfGaussians` learns its components. `VampPrior` is the mixture of q(z|u) over
learned pseudo-inputs u, so that the prior is near the codes of all images together.
`CouplingFlow` is a normalising flow. (`TopDownPrior` in `hierarchy` is that of several stochastic
layers.) Any object with `latent`, `log_prob` and `sample` is a prior;
one whose dimensions are independent and which has the KL from a diagonal Gaussian in closed form is
`Factorised` as well, unless a derived class has another `log_prob`. For every other the KL is
estimated by log q(z|x) − log p(z) at draws of q, and there is no KL of a single dimension.

The flow is this project's own affine coupling, not zuko's: a run then loads without an extra, its
file has names that no other package can change, and importing zuko switches off the argument checks
of torch's distributions.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from kullback.exact import HALF_LOG_2PI

from ..limits import LOG_SD_LIMIT
from ..networks import Mlp, real
from .codes import CodePrior
from .hierarchy import TopDownGaussian, TopDownPrior
from .posteriors import (
    DiagonalGaussian,
    Draws,
    Posterior,
    draw_and_kl,
    kl_to_standard_normal,
    log_ratio_to_standard_normal,
)

__all__ = [
    "CouplingFlow",
    "Factorised",
    "GaussianComponents",
    "MixtureOfGaussians",
    "Prior",
    "StandardNormal",
    "VampPrior",
    "draw_with_kl",
    "exact_kl",
    "fixed",
    "has_closed_form",
    "held_log_ratio",
    "is_standard_normal",
    "kl_given_above",
    "kl_of_draws",
    "log_ratio",
    "numbers_of",
    "place_of",
]


class Prior(Protocol):
    """What a VAE asks of a prior; any object with these members serves."""

    @property
    def latent(self) -> int:
        """How many dimensions z has."""
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z), `[*lead]`, in nats, for z `[*lead, latent]`."""
        ...

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `[n, latent]` on the generator's device, without a graph."""
        ...


@runtime_checkable
class Factorised(Protocol):
    """A prior of independent dimensions with a closed form of its KL from a diagonal Gaussian."""

    def kl(self, mean: Tensor, log_sd: Tensor) -> Tensor:
        """Return the exact KL(q ‖ p) per latent dimension, `[*batch, latent]`, in nats."""
        ...

    def draw_and_kl(self, mean: Tensor, log_sd: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return z = mean + sd·noise `[draws, batch, latent]` and `kl`, as one operation."""
        ...

    def log_ratio(self, z: Tensor, log_sd: Tensor, noise: Tensor) -> Tensor:
        """Return log p(z) − log q(z) at `z = mean + sd·noise`, `[*draws, *batch]`, in nats."""
        ...


class StandardNormal:
    """The prior p(z) = N(0, I) in `latent` dimensions (MATH 1.1).

    Args:
        latent: How many dimensions z has.

    Example:
        >>> StandardNormal(2).kl(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([[0., 0.]])
    """

    def __init__(self, latent: int) -> None:
        self.latent = latent

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z), `[*lead]`, in nats."""
        return -0.5 * (z * z).sum(-1) - self.latent * HALF_LOG_2PI

    def kl(self, mean: Tensor, log_sd: Tensor) -> Tensor:
        """Return the exact KL(q ‖ p) per latent dimension, `[*batch, latent]`, in nats."""
        return kl_to_standard_normal(mean, log_sd)

    def draw_and_kl(self, mean: Tensor, log_sd: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return z = mean + sd·noise `[draws, batch, latent]` and `kl`, as one operation."""
        return draw_and_kl(mean, log_sd, noise)

    def log_ratio(self, z: Tensor, log_sd: Tensor, noise: Tensor) -> Tensor:
        """Return log p(z) − log q(z) at `z = mean + sd·noise`, `[*draws, *batch]`, in nats."""
        return log_ratio_to_standard_normal(z, log_sd, noise)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `[n, latent]` on the generator's device."""
        return torch.randn(n, self.latent, generator=generator, device=generator.device)


@dataclass(frozen=True, slots=True)
class GaussianComponents:
    """A mixture of diagonal Gaussians with given numbers, itself a prior.

    Args:
        log_weights: `[components]`, normalised.
        mean: `[components, latent]`.
        log_sd: As `mean`.

    Example:
        >>> one = GaussianComponents(torch.zeros(1), torch.zeros(1, 2), torch.zeros(1, 2))
        >>> one.log_prob(torch.zeros(1, 2)).exp()  # 1/(2π)
        tensor([0.1592])
    """

    log_weights: Tensor
    mean: Tensor
    log_sd: Tensor

    @property
    def latent(self) -> int:
        """How many dimensions z has."""
        return self.mean.shape[-1]

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log Σ_c w_c N(z; mean_c, sd_c²), `[*lead]`, in nats.

        Distances are taken dimension by dimension: expanding the square into products of matrices
        is faster and loses log p to rounding where sd is small against the mean.
        """
        scaled = (z.unsqueeze(-2) - self.mean) * torch.exp(-self.log_sd)
        each = -0.5 * (scaled * scaled).sum(-1) - self.log_sd.sum(-1)
        return torch.logsumexp(self.log_weights + each, -1) - self.latent * HALF_LOG_2PI

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw a component, then from it, `[n, latent]`."""
        picked = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.latent, generator=generator, device=generator.device)
        return self.mean[picked] + self.log_sd[picked].exp() * noise.to(self.mean)


class MixtureOfGaussians(nn.Module):
    """A mixture of diagonal Gaussians whose weights, means and deviations are learned.

    It starts near N(0, I): means with deviation ½, components with variance ¾.

    Args:
        latent: How many dimensions z has.
        components: How many Gaussians.

    Example:
        >>> MixtureOfGaussians(2, 3).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, latent: int, components: int) -> None:
        super().__init__()
        self.latent = latent
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(0.5 * torch.randn(components, latent))
        self.log_sd = nn.Parameter(torch.full((components, latent), 0.5 * math.log(0.75)))

    def components(self) -> GaussianComponents:
        """Return the mixture's numbers, differentiable in its parameters."""
        log_sd = real(self.log_sd).clamp(-LOG_SD_LIMIT, LOG_SD_LIMIT)
        return GaussianComponents(torch.log_softmax(real(self.logits), 0), real(self.mean), log_sd)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z), `[*lead]`, in nats."""
        return self.components().log_prob(z)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `[n, latent]`."""
        return self.components().sample(n, generator)


class VampPrior(nn.Module):
    """p(z) = (1/C) Σ_c q(z|u_c): the encoder's own q at C learned pseudo-inputs u.

    Pseudo-inputs are real numbers in the units in which the encoder reads x (centred and scaled),
    also where the data are bits or levels: the encoder is a function of real numbers, so p(z) is a
    mixture of Gaussians for any u, and p(x) sums to 1. They need not be possible x.
    Reference: Tomczak and Welling (2018), "VAE with a VampPrior", eq. 9.

    Args:
        encoder: Pseudo-inputs `[C, *event]` to mean and log sd, `[C, latent]` each; the model's
            own, whose parameters stay the model's.
        pseudo_inputs: Where they start, `[C, *event]`.
        latent: How many dimensions z has.

    Example:
        >>> from ..networks import MlpEncoder
        >>> prior = VampPrior(MlpEncoder((4,), (8,), 2), torch.randn(3, 4), latent=2)
        >>> prior.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], tuple[Tensor, Tensor]],
        pseudo_inputs: Tensor,
        *,
        latent: int,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.clone())
        self._encoder = (encoder,)  # in a tuple: its parameters are not this module's

    def components(self) -> GaussianComponents:
        """Return the mixture's numbers, differentiable in pseudo-inputs and encoder."""
        (encoder,) = self._encoder
        with _without_buffers(encoder):
            mean, log_sd = encoder(real(self.pseudo_inputs))
        weights = mean.new_full((len(mean),), -math.log(len(mean)))
        return GaussianComponents(weights, mean, log_sd)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z), `[*lead]`, in nats."""
        return self.components().log_prob(z)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `[n, latent]`."""
        with torch.no_grad():
            return self.components().sample(n, generator)


@contextmanager
def _without_buffers(encoder: object) -> Iterator[None]:
    """Let each `Mlp` of an encoder give its gradient in a new tensor inside a `with` block.

    A step uses the encoder twice, for x and for pseudo-inputs; were both gradients written to the
    same place, the second would replace the first.
    """
    modules = encoder.modules() if isinstance(encoder, nn.Module) else ()
    nets = [module for module in modules if isinstance(module, Mlp)]
    kept = [net.buffers_of_gradient for net in nets]
    for net in nets:
        net.buffers_of_gradient = None
    try:
        yield
    finally:
        for net, buffers in zip(nets, kept, strict=True):
            net.buffers_of_gradient = buffers


class CouplingFlow(nn.Module):
    """z = T(e), e ~ N(0, I), through affine coupling layers: half of z moves, given the other half.

    Density and draws are exact, each in one pass. Layers take turns in which half moves; log scales
    are held within ±2 by a tanh. It starts as the identity, N(0, I). In one dimension there is
    nothing to condition on, and each layer is a learned shift and scale.
    Reference: Dinh, Sohl-Dickstein and Bengio (2017), "Density estimation using Real NVP", eq. 7.

    Args:
        latent: How many dimensions z has.
        layers: Coupling layers.
        hidden: Width of their networks, which have one hidden layer.

    Example:
        >>> flow = CouplingFlow(3)
        >>> torch.allclose(flow.log_prob(torch.ones(3)), StandardNormal(3).log_prob(torch.ones(3)))
        True
    """

    def __init__(self, latent: int, *, layers: int = 6, hidden: int = 64) -> None:
        super().__init__()
        self.latent, self.first = latent, latent // 2
        self.nets = nn.ModuleList()
        for layer in range(layers):
            given = self.first if layer % 2 == 0 else latent - self.first
            moved = latent - given
            if given == 0 or moved == 0:
                given, moved = 1, latent  # in one dimension: of a constant
            net = Mlp((given, hidden, 2 * moved), "silu")
            nn.init.zeros_(net.weights[-1])
            self.nets.append(net)

    def push(self, noise: Tensor) -> Tensor:
        """Return z = T(noise), `[rows, latent]`."""
        z = noise
        for layer, net in enumerate(self.nets):
            given, moved = self._halves(z, layer)
            shift, log_scale = self._shift_and_log_scale(net, given)
            z = self._joined(given, shift + log_scale.exp() * moved, layer)
        return z

    def pull(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise that `push` takes to z `[rows, latent]`, and log |det dnoise/dz|."""
        log_det = z.new_zeros(len(z))
        for layer in reversed(range(len(self.nets))):
            given, moved = self._halves(z, layer)
            shift, log_scale = self._shift_and_log_scale(self.nets[layer], given)
            z = self._joined(given, (moved - shift) * torch.exp(-log_scale), layer)
            log_det = log_det - log_scale.sum(-1)
        return z, log_det

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z), `[*lead]`, in nats."""
        noise, log_det = self.pull(z.reshape(-1, self.latent))
        log_p = log_det - 0.5 * (noise * noise).sum(-1) - self.latent * HALF_LOG_2PI
        return log_p.reshape(z.shape[:-1])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `[n, latent]`."""
        noise = torch.randn(n, self.latent, generator=generator, device=generator.device)
        return self.push(noise.to(torch.promote_types(noise.dtype, self._dtype())))

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _halves(self, z: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if self.latent == 1:
            return z[..., :0], z
        first, second = z[..., : self.first], z[..., self.first :]
        return (first, second) if layer % 2 == 0 else (second, first)

    def _joined(self, given: Tensor, moved: Tensor, layer: int) -> Tensor:
        parts = (given, moved) if layer % 2 == 0 or self.latent == 1 else (moved, given)
        return torch.cat(parts, -1)

    def _shift_and_log_scale(self, net: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
        given = given if given.shape[-1] else given.new_ones(len(given), 1)
        shift, raw = real(net(given)).chunk(2, -1)
        return shift, 2.0 * torch.tanh(0.5 * raw)


def has_closed_form(prior: Prior) -> TypeGuard[Factorised]:
    """Say whether the KL from a diagonal Gaussian has a closed form that is of this log_prob.

    It is not where a class overrides `log_prob` and inherits the closed form of another density.

    Args:
        prior: p(z).

    Returns:
        Whether `kl`, `draw_and_kl` and `log_ratio` may be used.

    Example:
        >>> class Wide(StandardNormal):
        ...     def log_prob(self, z):
        ...         return super().log_prob(z / 2) - self.latent * math.log(2)
        >>> has_closed_form(StandardNormal(1)), has_closed_form(Wide(1))
        (True, False)
    """
    formulas = ("kl", "draw_and_kl", "log_ratio")
    return isinstance(prior, Factorised) and all(_is_of_log_prob(prior, one) for one in formulas)


def is_standard_normal(prior: object) -> bool:
    """Say whether p(z) = N(0, I), also of a class derived from `StandardNormal`.

    Args:
        prior: p(z).

    Returns:
        False where a derived class has another `log_prob`.

    Example:
        >>> is_standard_normal(StandardNormal(1)), is_standard_normal(CouplingFlow(1))
        (True, False)
    """
    own = "log_prob" not in getattr(prior, "__dict__", {})
    return (
        isinstance(prior, StandardNormal)
        and own
        and type(prior).log_prob is StandardNormal.log_prob
    )


def _is_of_log_prob(prior: object, name: str) -> bool:
    """Say whether a formula is defined by the class that defines `log_prob`, or a derived one."""
    return place_of(prior, name) <= place_of(prior, "log_prob")


def place_of(part: object, name: str) -> int:
    """Return which class of a part defines an attribute: 0 for its own, 1 for the next base.

    Args:
        part: Any object.
        name: Of the attribute.

    Returns:
        The place in the order in which Python looks; −1 where no class defines it.

    Example:
        >>> place_of(StandardNormal(1), "log_prob"), place_of(StandardNormal(1), "latent")
        (0, -1)
    """
    classes = enumerate(type(part).__mro__)
    own = name in getattr(part, "__dict__", {})
    return -1 if own else next((k for k, one in classes if name in vars(one)), -1)


def exact_kl(prior: Prior, q: Posterior) -> Tensor | None:
    """Return the exact KL(q ‖ p), `[*batch, groups]` with the KL as their sum, or None.

    A group is a latent dimension where q and p have independent ones, else all of them together.

    Args:
        prior: p(z).
        q: q(z|x) of a batch.

    Returns:
        In nats; None without a formula.

    Example:
        >>> q = DiagonalGaussian(torch.zeros(1, 2), torch.zeros(1, 2))
        >>> exact_kl(StandardNormal(2), q), exact_kl(MixtureOfGaussians(2, 3), q)
        (tensor([[0., 0.]]), None)
    """
    if isinstance(q, DiagonalGaussian):
        return prior.kl(q.mean, q.log_sd) if has_closed_form(prior) else None
    return q.kl_to_standard_normal() if is_standard_normal(prior) else None


def log_ratio(prior: Prior, q: Posterior, drawn: Draws) -> Tensor:
    """Return log p(z) − log q(z|x) at draws of q, `[*draws, *batch]`, in nats.

    Args:
        prior: p(z).
        q: q(z|x) of a batch.
        drawn: What `q.draw` gave.

    Returns:
        Its mean over draws is −KL(q ‖ p).

    Example:
        >>> q = DiagonalGaussian(torch.zeros(1, 1), torch.zeros(1, 1))
        >>> log_ratio(StandardNormal(1), q, q.draw(torch.ones(3, 1, 1))).flatten()
        tensor([0., 0., 0.])
    """
    if isinstance(q, DiagonalGaussian) and has_closed_form(prior):
        return prior.log_ratio(drawn.z, q.log_sd, drawn.noise)
    units = _units(prior, q, drawn)
    if units is not None:
        z = units.draw(drawn.noise).z
        return log_ratio_to_standard_normal(z, units.log_sd, drawn.noise)
    return prior.log_prob(drawn.z) - drawn.log_q


def _units(prior: Prior, q: Posterior, drawn: Draws) -> DiagonalGaussian | None:
    """Return q of every group in the units of this prior, where it is one of several layers."""
    own = isinstance(q, TopDownGaussian) and q.family.prior is prior
    return drawn.units if own else None


def kl_given_above(prior: Prior, q: Posterior, drawn: Draws) -> Tensor | None:
    """Return the KL of every dimension given the groups above it, averaged over draws of those.

    Args:
        prior: p(z).
        q: q(z|x) of a batch.
        drawn: What `q.draw` gave, `[draws, batch, latent]`.

    Returns:
        `[batch, latent]`, in nats, unbiased; None where q is not one of several layers in the units
        of this prior.

    Example:
        >>> q = DiagonalGaussian(torch.zeros(5, 2), torch.zeros(5, 2))
        >>> kl_given_above(StandardNormal(2), q, q.draw(torch.zeros(3, 5, 2))) is None
        True
    """
    units = _units(prior, q, drawn)
    return None if units is None else units.kl_to_standard_normal().mean(0)


def kl_of_draws(prior: Prior, q: Posterior, drawn: Draws, ratio: Tensor) -> Tensor:
    """Return KL(q ‖ p) in nats, `[batch, groups]` with the KL as their sum.

    Exact where there is a formula. With several stochastic layers, of every dimension given the
    groups above, in closed form, averaged over the draws of those; else minus the mean of the
    log ratio over the draws. Both are unbiased.

    Args:
        prior: p(z).
        q: q(z|x) of a batch.
        drawn: What `q.draw` gave, `[draws, batch, latent]`.
        ratio: `log_ratio` of them.

    Returns:
        `[batch, latent]`, or `[batch, 1]` where the KL is no sum over dimensions.

    Example:
        >>> q, prior = DiagonalGaussian(torch.zeros(5, 2), torch.zeros(5, 2)), StandardNormal(2)
        >>> drawn = q.draw(torch.zeros(3, 5, 2))
        >>> kl_of_draws(prior, q, drawn, log_ratio(prior, q, drawn)).shape
        torch.Size([5, 2])
    """
    kl = exact_kl(prior, q)
    kl = kl_given_above(prior, q, drawn) if kl is None else kl
    return -ratio.mean(0).unsqueeze(-1) if kl is None else kl


def held_log_ratio(prior: Prior, q: Posterior, z: Tensor) -> Tensor:
    """Return log p(z) − log q(z|x), `[*draws, *batch]`, through z alone: q is held fixed.

    For gradients by the path of z (sticking the landing, doubly reparameterised). Parameters of the
    prior keep their gradient, also where they are the encoder's.

    Args:
        prior: p(z).
        q: q(z|x) of a batch.
        z: Reparameterised draws of q.

    Returns:
        The value of `log_ratio`.

    Example:
        >>> q = DiagonalGaussian(torch.zeros(1, 1), torch.zeros(1, 1, requires_grad=True))
        >>> held_log_ratio(StandardNormal(1), q, torch.ones(3, 1, 1)).requires_grad
        False
    """
    held = q.detached()
    if isinstance(held, DiagonalGaussian):
        return log_ratio(prior, held, Draws(z, held.noise_of(z), held.log_sd.sum(-1)))
    return prior.log_prob(z) - held.log_prob(z)


def draw_with_kl(prior: Prior, q: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return draws of q and KL(q ‖ p) in nats: exact where there is a formula, else from the draws.

    Args:
        prior: p(z).
        q: q(z|x) of a batch.
        noise: Standard normal, `[draws, batch, latent]`.

    Returns:
        z `[draws, batch, latent]`, and the KL as in `kl_of_draws`.

    Example:
        >>> q = DiagonalGaussian(torch.zeros(5, 2), torch.zeros(5, 2))
        >>> draw_with_kl(MixtureOfGaussians(2, 3), q, torch.zeros(4, 5, 2))[1].shape
        torch.Size([5, 1])
    """
    if isinstance(q, DiagonalGaussian) and has_closed_form(prior):
        return prior.draw_and_kl(q.mean, q.log_sd, noise)
    drawn = q.draw(noise)
    return drawn.z, kl_of_draws(prior, q, drawn, log_ratio(prior, q, drawn))


def fixed(prior: Prior) -> Prior:
    """Return the prior as it is now, with what does not depend on z computed once.

    Args:
        prior: p(z).

    Returns:
        For mixtures their components, without a graph; else the prior.

    Example:
        >>> type(fixed(MixtureOfGaussians(2, 3))).__name__
        'GaussianComponents'
    """
    if isinstance(prior, MixtureOfGaussians | VampPrior) and _is_of_log_prob(prior, "components"):
        with torch.no_grad():
            found = prior.components()
        return GaussianComponents(
            found.log_weights.detach(), found.mean.detach(), found.log_sd.detach()
        )
    return prior


def numbers_of(prior: Prior) -> int:
    """Return how many numbers `log_prob` computes for one z: what limits the rows of a block.

    Args:
        prior: p(z), as `fixed` gives it.

    Returns:
        The count.

    Example:
        >>> numbers_of(StandardNormal(2)), numbers_of(fixed(MixtureOfGaussians(2, 3)))
        (2, 6)
    """
    if isinstance(prior, TopDownPrior | CodePrior):
        return prior.numbers
    return prior.mean.numel() if isinstance(prior, GaussianComponents) else prior.latent
