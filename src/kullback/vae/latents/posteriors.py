"""The approximate posterior q(z|x) of a batch of images: what an encoder makes of them.

Which to use: `Diagonal`, the usual family: N(mean, diag(sd²)). In `FullRank` and `LowRank` the
dimensions depend on each other; `InverseAutoregressive` is a normalising flow. A family turns an
encoder's outputs into a q of a batch: `DiagonalGaussian`, `FullGaussian` or `FlowPosterior`. Every
q has a reparameterised `draw`, `log_prob` at any z, the noise of a draw (`noise_of`), its
`moments`, and the KL to N(0, I) where it has a closed form.

The plain functions are those of the diagonal family and N(0, I): `draw` reparameterises,
`kl_to_standard_normal` is exact, `log_ratio_to_standard_normal` is its one-draw form, and
`draw_and_kl` does the first two with a hand-written gradient.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kullback.core import require
from kullback.exact import HALF_LOG_2PI

from ..networks import real

__all__ = [
    "Diagonal",
    "DiagonalGaussian",
    "Draws",
    "Encoded",
    "Family",
    "FlowPosterior",
    "FullGaussian",
    "FullRank",
    "InverseAutoregressive",
    "LowRank",
    "Posterior",
    "draw",
    "draw_and_kl",
    "extra_of",
    "kl_to_standard_normal",
    "log_ratio_to_standard_normal",
]


def draw(mean: Tensor, log_sd: Tensor, noise: Tensor) -> Tensor:
    """Return z = mean + sd · noise, differentiable in mean and log_sd.

    Reference: Kingma and Welling (2014), section 2.4.

    Args:
        mean: `[*batch, latent]`.
        log_sd: `[*batch, latent]`.
        noise: Standard normal, `[*draws, *batch, latent]`.

    Returns:
        `[*draws, *batch, latent]`.

    Example:
        >>> draw(torch.ones(2), torch.zeros(2), torch.tensor([0.5, -1.0]))
        tensor([1.5000, 0.0000])
    """
    return torch.addcmul(mean, log_sd.exp(), noise)


def kl_to_standard_normal(mean: Tensor, log_sd: Tensor) -> Tensor:
    """Return `KL(N(mean, sd²) ‖ N(0, 1)) = ½(mean² + sd² − 1) − log sd` per dimension, in nats.

    Exact, never negative: the part in sd is written `½(expm1(2 log sd) − 2 log sd)`, which keeps
    float32 accuracy near sd = 1.
    Reference: Kingma and Welling (2014), appendix B.

    Args:
        mean: Any shape.
        log_sd: The same shape.

    Returns:
        The same shape, in nats.

    Example:
        >>> kl_to_standard_normal(torch.tensor([0.0, 2.0]), torch.zeros(2))
        tensor([0., 2.])
    """
    twice = 2.0 * log_sd
    return 0.5 * (mean * mean + (torch.expm1(twice) - twice))


def log_ratio_to_standard_normal(z: Tensor, log_sd: Tensor, noise: Tensor) -> Tensor:
    """Return `log N(z; 0, I) − log q(z)` for `z = draw(mean, log_sd, noise)`, summed over latent.

    Its mean over draws is −KL(q ‖ N(0, I)).

    Args:
        z: `[*draws, *batch, latent]`.
        log_sd: `[*batch, latent]`.
        noise: `[*draws, *batch, latent]`, that z was drawn with.

    Returns:
        `[*draws, *batch]`, in nats.

    Example:
        >>> log_ratio_to_standard_normal(torch.tensor([3.0]), torch.zeros(1), torch.tensor([1.0]))
        tensor(-4.)
    """
    return (0.5 * (noise * noise - z * z) + log_sd).sum(-1)


def draw_and_kl(mean: Tensor, log_sd: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return `draw` and `kl_to_standard_normal` of the same arguments, as one operation.

    Args:
        mean: `[batch, latent]`.
        log_sd: `[batch, latent]`.
        noise: `[draws, batch, latent]`; no gradient flows to it.

    Returns:
        z `[draws, batch, latent]` and the KL `[batch, latent]`, in nats.

    Example:
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
        return mean + spread, kl_to_standard_normal(mean, log_sd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_z: Tensor, by_kl: Tensor) -> Any:
        mean, log_sd, spread = ctx.saved_tensors
        by_mean = torch.addcmul(by_z.sum(0), by_kl, mean)
        by_log_sd = torch.addcmul((by_z * spread).sum(0), by_kl, torch.expm1(2.0 * log_sd))
        return by_mean, by_log_sd, None


@dataclass(frozen=True, slots=True)
class Draws:
    """Reparameterised draws of q(z|x), `[*draws, *batch, latent]`.

    Args:
        z: The draws.
        noise: Standard normal numbers that they were made from, as z.
        log_det: log |det dz/dnoise|, `[*draws, *batch]` or `[*batch]`, in nats.
        units: Where q is Gaussian group by group: that of every group given those above it, in the
            units of the prior of the group, `[*draws, *batch, latent]`; else None.
    """

    z: Tensor
    noise: Tensor
    log_det: Tensor
    units: "DiagonalGaussian | None" = None

    @property
    def log_q(self) -> Tensor:
        """Return log q(z|x) at the draws, `[*draws, *batch]`, in nats."""
        squares = 0.5 * (self.noise * self.noise).sum(-1)
        return -squares - self.log_det - self.z.shape[-1] * HALF_LOG_2PI


class Posterior(Protocol):
    """q(z|x) of a batch of images; shapes are `[*batch, latent]`.

    `path_gradient`: whether `log_prob` at fixed parameters is one pass, so that gradients by the
    path of z are affordable.
    """

    path_gradient: bool

    @property
    def centre(self) -> Tensor:
        """A point where q has mass; the mean of a Gaussian."""
        ...

    def __getitem__(self, part: slice) -> "Posterior":
        """Return q of some of the images."""
        ...

    def draw(self, noise: Tensor) -> "Draws":
        """Return draws for standard normal noise `[*draws, *batch, latent]`."""
        ...

    def noise_of(self, z: Tensor) -> Tensor:
        """Return the noise that `draw` takes to z."""
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x), `[*draws, *batch]`, in nats."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of every dimension."""
        ...

    def detached(self) -> "Posterior":
        """Return this q without its graph."""
        ...

    def kl_to_standard_normal(self) -> Tensor | None:
        """Return KL(q ‖ N(0, I)): `[*batch, latent]` where it is a sum, `[*batch, 1]`, or None."""
        ...


@dataclass(frozen=True, slots=True)
class DiagonalGaussian:
    """q(z|x) = N(mean, diag(sd²)) of a batch.

    Args:
        mean: `[*batch, latent]`.
        log_sd: `[*batch, latent]`.

    Example:
        >>> q = DiagonalGaussian(torch.ones(1, 2), torch.zeros(1, 2))
        >>> q.draw(torch.zeros(1, 1, 2)).log_q.exp()  # 1/(2π)
        tensor([[0.1592]])
    """

    mean: Tensor
    log_sd: Tensor
    path_gradient = True

    @property
    def centre(self) -> Tensor:
        """The mean."""
        return self.mean

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation, exact."""
        return self.mean, self.log_sd

    def __getitem__(self, part: slice) -> "DiagonalGaussian":
        """Return q of some of the images."""
        return DiagonalGaussian(self.mean[part], self.log_sd[part])

    def draw(self, noise: Tensor) -> Draws:
        """Return z = mean + sd·noise for noise `[*draws, *batch, latent]`."""
        return Draws(draw(self.mean, self.log_sd, noise), noise, self.log_sd.sum(-1))

    def noise_of(self, z: Tensor) -> Tensor:
        """Return the noise that `draw` takes to z, `[*draws, *batch, latent]`."""
        return (z - self.mean) / self.log_sd.exp()

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x), `[*draws, *batch]`, in nats."""
        return Draws(z, self.noise_of(z), self.log_sd.sum(-1)).log_q

    def detached(self) -> "DiagonalGaussian":
        """Return this q without its graph."""
        return DiagonalGaussian(self.mean.detach(), self.log_sd.detach())

    def kl_to_standard_normal(self) -> Tensor:
        """Return the exact KL(q ‖ N(0, I)) of every latent dimension, `[*batch, latent]`."""
        return kl_to_standard_normal(self.mean, self.log_sd)


@dataclass(frozen=True, slots=True)
class FullGaussian:
    """q(z|x) = N(mean, L Lᵀ) of a batch, L lower triangular.

    Args:
        mean: `[*batch, latent]`.
        log_diagonal: Logs of L's diagonal, as `mean`.
        lower: L below its diagonal, zeros elsewhere, `[*batch, latent, latent]`.

    Example:
        >>> q = FullGaussian(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2, 2))
        >>> q.kl_to_standard_normal()
        tensor([[0.]])
    """

    mean: Tensor
    log_diagonal: Tensor
    lower: Tensor
    path_gradient = True

    @property
    def centre(self) -> Tensor:
        """The mean."""
        return self.mean

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of every dimension, exact."""
        variance = (2.0 * self.log_diagonal).exp() + self.lower.square().sum(-1)
        return self.mean, 0.5 * variance.log()

    def __getitem__(self, part: slice) -> "FullGaussian":
        """Return q of some of the images."""
        return FullGaussian(self.mean[part], self.log_diagonal[part], self.lower[part])

    def draw(self, noise: Tensor) -> Draws:
        """Return z = mean + L·noise for noise `[*draws, *batch, latent]`."""
        turned = (self.lower.to(noise.dtype) @ noise.unsqueeze(-1)).squeeze(-1)
        z = self.mean + self.log_diagonal.exp() * noise + turned
        return Draws(z, noise, self.log_diagonal.sum(-1))

    def noise_of(self, z: Tensor) -> Tensor:
        """Return L⁻¹(z − mean), `[*draws, *batch, latent]`."""
        root = self.lower + torch.diag_embed(self.log_diagonal.exp())
        error = (z - self.mean).unsqueeze(-1)
        noise: Tensor = torch.linalg.solve_triangular(root, error, upper=False).squeeze(-1)
        return noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x), `[*draws, *batch]`, in nats."""
        return Draws(z, self.noise_of(z), self.log_diagonal.sum(-1)).log_q

    def detached(self) -> "FullGaussian":
        """Return this q without its graph."""
        return FullGaussian(self.mean.detach(), self.log_diagonal.detach(), self.lower.detach())

    def kl_to_standard_normal(self) -> Tensor:
        """Return the exact KL(q ‖ N(0, I)), `[*batch, 1]`: `½(‖L‖² + ‖mean‖² − d) − log det L`.

        It is no sum over latent dimensions. Every term of the sum is at least 0.
        """
        diagonal = kl_to_standard_normal(self.mean, self.log_diagonal).sum(-1, keepdim=True)
        return diagonal + 0.5 * self.lower.square().sum((-1, -2)).unsqueeze(-1)


@dataclass(frozen=True, slots=True)
class FlowPosterior:
    """q(z|x) of a batch: a diagonal Gaussian pushed through steps of an autoregressive flow.

    Args:
        base: The Gaussian it starts from.
        context: What the encoder tells every step, `[*batch, context]`.
        flow: The steps.
    """

    base: DiagonalGaussian
    context: Tensor
    flow: "InverseAutoregressive"
    path_gradient = False

    @property
    def centre(self) -> Tensor:
        """Where the mean of the base goes; not the mean of q."""
        return self.draw(torch.zeros_like(self.base.mean)).z

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation by 256 draws from the same noise for every image.

        They have no closed form. Common noise makes differences between images exact where q does
        not differ.
        """
        device, dtype = self.base.mean.device, self.base.mean.dtype
        shape = (_MOMENT_DRAWS // 2, *[1] * (self.base.mean.ndim - 1), self.base.mean.shape[-1])
        half = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        noise = torch.cat([half, -half]).to(device, dtype)
        z = self.draw(noise.expand(-1, *self.base.mean.shape)).z
        return z.mean(0), 0.5 * z.var(0).log()

    def __getitem__(self, part: slice) -> "FlowPosterior":
        """Return q of some of the images."""
        return FlowPosterior(self.base[part], self.context[part], self.flow)

    def draw(self, noise: Tensor) -> Draws:
        """Return draws for noise `[*draws, *batch, latent]`."""
        z, log_det = self.flow.push(self.base.draw(noise).z, self.context)
        return Draws(z, noise, log_det + self.base.log_sd.sum(-1))

    def noise_of(self, z: Tensor) -> Tensor:
        """Return the noise that `draw` takes to z: one pass for every dimension and step."""
        return self.base.noise_of(self.flow.pull(z, self.context))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x), `[*draws, *batch]`, in nats, by `noise_of`."""
        return self.draw(self.noise_of(z)).log_q

    def detached(self) -> "FlowPosterior":
        """Return this q without the encoder's graph; the flow's parameters keep theirs."""
        return FlowPosterior(self.base.detached(), self.context.detach(), self.flow)

    def kl_to_standard_normal(self) -> None:
        """Return None: there is no formula."""
        return


_MOMENT_DRAWS = 256


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder gives for a batch: mean and log sd `[*batch, latent]`, and what else q needs.

    Args:
        mean: Of the Gaussian.
        log_sd: As `mean`.
        extra: `[*batch, extra]`, None where the family needs none.
    """

    mean: Tensor
    log_sd: Tensor
    extra: Tensor | None = None


class Family(Protocol):
    """What turns an encoder's outputs into q(z|x); `extra` is how many it needs besides."""

    extra: int

    def __call__(self, encoded: Encoded) -> Posterior:
        """Return q of a batch."""
        ...


class Diagonal:
    """The family of Gaussians with independent dimensions.

    Example:
        >>> Diagonal()(Encoded(torch.zeros(1, 2), torch.zeros(1, 2))).centre
        tensor([[0., 0.]])
    """

    extra = 0

    def __call__(self, encoded: Encoded) -> DiagonalGaussian:
        """Return q of a batch."""
        return DiagonalGaussian(encoded.mean, encoded.log_sd)


class FullRank:
    """The family of all Gaussians: L = diag(sd)(I + A), A strictly lower triangular.

    Args:
        latent: How many dimensions z has; the encoder gives latent(latent − 1)/2 entries of A, in
            units of 1/√latent, so that a row of A has length about 1 at first.

    Example:
        >>> FullRank(4).extra
        6
    """

    def __init__(self, latent: int) -> None:
        self.latent, self.extra = latent, latent * (latent - 1) // 2

    def __call__(self, encoded: Encoded) -> FullGaussian:
        """Return q of a batch."""
        entries = extra_of(encoded, self.extra)
        rows, columns = torch.tril_indices(self.latent, self.latent, -1, device=entries.device)
        lower = entries.new_zeros(*entries.shape[:-1], self.latent, self.latent)
        lower[..., rows, columns] = self.latent**-0.5 * entries
        scaled = encoded.log_sd.exp().unsqueeze(-1) * lower
        return FullGaussian(encoded.mean, encoded.log_sd, scaled)


class LowRank:
    """The family of Gaussians of covariance diag(sd)(I + F Fᵀ)diag(sd), F `[latent, rank]`.

    The encoder gives F in units of 1/√latent.

    Args:
        latent: How many dimensions z has.
        rank: Columns of F, at most `latent`.

    Example:
        >>> LowRank(4, 2).extra
        8
    """

    def __init__(self, latent: int, rank: int) -> None:
        require(1 <= rank <= latent, "rank", f"from 1 to latent = {latent}", rank)
        self.latent, self.rank, self.extra = latent, rank, latent * rank

    def __call__(self, encoded: Encoded) -> FullGaussian:
        """Return q of a batch."""
        entries = extra_of(encoded, self.extra)
        entries = self.latent**-0.5 * entries
        factor = entries.reshape(*entries.shape[:-1], self.latent, self.rank)
        eye = torch.eye(self.latent, dtype=factor.dtype, device=factor.device)
        root = torch.linalg.cholesky(eye + factor @ factor.mT)
        diagonal = encoded.log_sd + root.diagonal(dim1=-1, dim2=-2).log()
        lower = encoded.log_sd.exp().unsqueeze(-1) * root.tril(-1)
        return FullGaussian(encoded.mean, diagonal, lower)


def extra_of(encoded: Encoded, wanted: int) -> Tensor:
    """Return the extra outputs of an encoder, or say with both shapes that they do not fit."""
    extra = encoded.mean.new_empty(len(encoded.mean), 0) if wanted == 0 else encoded.extra
    got = "mean and log_sd alone" if extra is None else f"{extra.shape[-1]} more"
    hint = "an encoder built with extra=family.extra"
    expected = f"mean, log_sd and {wanted} more numbers for this posterior"
    fits = extra is not None and extra.shape[-1] == wanted
    require(fits, "encoder", expected, got, hint)
    return encoded.mean.new_empty(0) if extra is None else real(extra)


class InverseAutoregressive(nn.Module):
    """The family of an inverse autoregressive flow: a diagonal Gaussian through gated steps.

    A step takes z to `σ(s) z + (1 − σ(s)) m`, where m and s of a dimension depend on the dimensions
    before it and on the context that the encoder gives; the order turns around after each step.
    Draws and their log q are one pass a step. log q at a given z takes one pass a dimension.
    Reference: Kingma et al. (2016), "Improving variational inference with inverse autoregressive
    flow", eq. 10 and 14.

    Args:
        latent: How many dimensions z has.
        steps: Of the flow.
        hidden: Width of the network of a step, which has one hidden layer.
        context: Numbers that the encoder tells every step.

    Example:
        >>> family = InverseAutoregressive(3)
        >>> q = family(Encoded(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, family.extra)))
        >>> q.draw(torch.zeros(5, 1, 3)).z.shape
        torch.Size([5, 1, 3])
    """

    def __init__(self, latent: int, *, steps: int = 2, hidden: int = 64, context: int = 16) -> None:
        super().__init__()
        self.latent, self.extra = latent, context
        self.steps = nn.ModuleList(_MaskedStep(latent, hidden, context) for _ in range(steps))

    def __call__(self, encoded: Encoded) -> FlowPosterior:
        """Return q of a batch."""
        base = DiagonalGaussian(encoded.mean, encoded.log_sd)
        return FlowPosterior(base, extra_of(encoded, self.extra), self)

    def push(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the steps take z `[*draws, *batch, latent]`, and log |det|."""
        log_det = z.new_zeros(z.shape[:-1])
        for step in self.steps:
            move, log_gate = step(z, context)
            gate = log_gate.exp()
            z = (gate * z + (1.0 - gate) * move).flip(-1)
            log_det = log_det + log_gate.sum(-1)
        return z, log_det

    def pull(self, z: Tensor, context: Tensor) -> Tensor:
        """Return what `push` takes to z, a dimension at a time."""
        z = z + context.new_zeros(*context.shape[:-1], 1).to(z.dtype)  # one row a context
        for step in reversed(self.steps):
            after, z = z.flip(-1), torch.zeros_like(z)
            for d in range(self.latent):
                move, log_gate = step(z, context)
                gate = log_gate[..., d].exp()
                known = (after[..., d] - (1.0 - gate) * move[..., d]) / gate
                z = torch.cat([z[..., :d], known.unsqueeze(-1), z[..., d + 1 :]], -1)
        return z


class _MaskedStep(nn.Module):
    """m and log σ(s) of a step: a masked network in which dimension d sees those before d.

    Reference: Germain et al. (2015), "MADE".
    """

    into: Tensor
    out: Tensor

    def __init__(self, latent: int, hidden: int, context: int) -> None:
        super().__init__()
        degree = torch.arange(hidden) % max(1, latent - 1)  # sees dimensions 0 … degree
        place = torch.arange(latent)
        self.register_buffer("into", (place[None] <= degree[:, None]).float())
        below = (degree[None] < place[:, None]).float()
        self.register_buffer("out", below.repeat(2, 1))
        self.first = nn.Parameter(torch.randn(hidden, latent) / math.sqrt(latent))
        self.told = nn.Linear(context, hidden)
        self.last = nn.Parameter(torch.zeros(2 * latent, hidden))
        self.straight = nn.Linear(context, 2 * latent)
        nn.init.zeros_(self.straight.weight)
        nn.init.zeros_(self.straight.bias)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and log σ(s + 2), `[*draws, *batch, latent]` each."""
        dtype = self.first.dtype
        context = context.to(dtype)
        seen = z.to(dtype) @ (self.into.to(dtype) * self.first).T
        inner = nn.functional.silu(seen + self.told(context))
        outer = inner @ (self.out.to(dtype) * self.last).T + self.straight(context)
        move, raw = real(outer).chunk(2, -1)
        return move, nn.functional.logsigmoid(raw + 2.0)
