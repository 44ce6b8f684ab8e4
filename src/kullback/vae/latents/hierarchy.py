"""Several stochastic layers: groups z_L, …, z_1 of the latent code, from the top down.

z is one vector, its groups side by side, the top one first, so that encoder, decoder and bounds
need not know of them. `TopDownPrior` is p(z) = p(z_L) Π p(z_l | z_>l), autoregressive over groups.
`TopDown` is the family q(z|x) = q(z_L|x) Π q(z_l | z_>l, x), in the units of the prior: its means
and deviations are shifts and factors of those of p(z_l | z_>l), as in NVAE, so that the KL of a
group given those above it has a closed form, dimension by dimension. The decoder reads all groups.
At its start this is a VAE of one layer: p(z) = N(0, I), and q has independent dimensions.

References: Burda, Grosse and Salakhutdinov (2016), section 5, two stochastic layers; Sønderby et
al. (2016), "Ladder variational autoencoders"; Vahdat and Kautz (2020), "NVAE", section 3.2.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kullback.core import require

from ..limits import LOG_SD_LIMIT
from ..networks import real, weights_held
from .posteriors import DiagonalGaussian, Draws, Encoded, extra_of

__all__ = ["GroupNet", "TopDown", "TopDownGaussian", "TopDownPrior", "layer_sizes"]

_MOMENT_DRAWS = 64


def layer_sizes(latent: int, layers: int) -> tuple[int, ...]:
    """Split the dimensions of z evenly over layers, the top one first; the lower ones get the rest.

    Args:
        latent: Dimensions of z.
        layers: At most as many.

    Returns:
        The dimensions of each layer.

    Example:
        >>> layer_sizes(32, 3)
        (10, 11, 11)
    """
    require(1 <= layers <= latent, "layers", f"from 1 to latent = {latent}", layers)
    least, more = divmod(latent, layers)
    return tuple(least + (place >= layers - more) for place in range(layers))


class GroupNet(nn.Module):
    """Mean and log sd of one group, side by side, from the groups above and from a context.

    One hidden layer; the last layer starts at zero.

    Args:
        above: Dimensions of the groups above.
        size: Dimensions of the group.
        hidden: Width of the hidden layer.
        context: Numbers that the encoder gives, 0 for none.

    Example:
        >>> GroupNet(3, 2, hidden=8)(torch.zeros(5, 3)).shape
        torch.Size([5, 4])
    """

    def __init__(self, above: int, size: int, *, hidden: int, context: int = 0) -> None:
        super().__init__()
        self.above = nn.Linear(above, hidden)
        self.context = nn.Linear(context, hidden, bias=False) if context else None
        self.last = nn.Linear(hidden, 2 * size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, above: Tensor, context: Tensor | None = None) -> Tensor:
        """Map `[*lead, above]`, and `[*batch, context]`, to `[*lead, 2·size]`."""
        dtype = self.last.weight.dtype
        inner = self.above(above.to(dtype))
        if self.context is not None and context is not None:
            inner = inner + self.context(context.to(dtype))
        return real(self.last(nn.functional.silu(inner)))


class TopDownPrior(nn.Module):
    """p(z) = N(z_L; 0, I) Π_l N(z_l; mean_l(z_>l), sd_l(z_>l)²): autoregressive over groups.

    Args:
        sizes: Dimensions of every group, the top one first; at least two groups.
        nets: For every group but the top one a module from the groups above `[*lead, above]` to
            mean and log sd side by side, `[*lead, 2·size]`; by default a `GroupNet`.
        hidden: Width of those.

    Example:
        >>> prior = TopDownPrior((2, 3))
        >>> prior.log_prob(torch.zeros(4, 5)).shape, prior.latent
        (torch.Size([4]), 5)
    """

    def __init__(
        self, sizes: Sequence[int], nets: Sequence[nn.Module] | None = None, *, hidden: int = 128
    ) -> None:
        super().__init__()
        self.sizes = _checked(sizes, nets)
        ends = tuple(itertools.accumulate(self.sizes))
        self.latent = ends[-1]
        self.parts = tuple(slice(end - n, end) for end, n in zip(ends, self.sizes, strict=True))
        if nets is None:
            nets = [GroupNet(one.start, one.stop - one.start, hidden=hidden) for one in self.lower]
        self.nets = nn.ModuleList(nets)
        self.numbers = max(hidden, self.latent)

    @property
    def lower(self) -> tuple[slice, ...]:
        """Where every group but the top one lies in z."""
        return self.parts[1:]

    def given(self, group: int, above: Tensor) -> DiagonalGaussian:
        """Return p(z_l | z_>l) of the group counted from the top, for `[*lead, above]`."""
        if group == 0:
            nothing = above.new_zeros(self.sizes[0])
            return DiagonalGaussian(nothing, nothing)
        mean, log_sd = self.nets[group - 1](above).chunk(2, -1)
        return DiagonalGaussian(mean, log_sd.clamp(-LOG_SD_LIMIT, LOG_SD_LIMIT))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z), `[*lead]`, in nats."""
        total = z.new_zeros(z.shape[:-1])
        for group, part in enumerate(self.parts):
            total = total + self.given(group, z[..., : part.start]).log_prob(z[..., part])
        return total

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `[n, latent]`, group by group from the top."""
        noise = torch.randn(n, self.latent, generator=generator, device=generator.device)
        dtype = next((one.dtype for one in self.parameters()), noise.dtype)
        noise = noise.to(torch.promote_types(noise.dtype, dtype))
        z = noise[:, :0]
        for group, part in enumerate(self.parts):
            z = torch.cat([z, self.given(group, z).draw(noise[:, part]).z], -1)
        return z


def _checked(sizes: Sequence[int], nets: Sequence[nn.Module] | None) -> tuple[int, ...]:
    """Return the sizes of groups, or say what is wrong with them."""
    good = len(sizes) >= 2 and all(size >= 1 for size in sizes)
    require(good, "sizes", "two groups or more, of 1 dimension or more each", list(sizes))
    fits = nets is None or len(nets) == len(sizes) - 1
    many = 0 if nets is None else len(nets)
    require(fits, "nets", f"{len(sizes) - 1}, one for every group but the top one", many)
    return tuple(sizes)


class TopDown(nn.Module):
    """The family q(z|x) = Π_l N(z_l; m_l + s_l·mean_l, (s_l·sd_l)²), with p(z) = Π_l N(m_l, s_l²).

    m_l and s_l depend on the groups above. mean_l and log sd_l are what the encoder gives for the
    group plus a function of the groups above and of a context, which the encoder gives as well.
    Where they are 0, q is the prior.
    Reference: Vahdat and Kautz (2020), "NVAE", eq. 3, with the shift in units of s_l.

    Args:
        prior: The model's own, whose parameters stay the model's.
        nets: For every group but the top one a module from the groups above `[*lead, above]` and
            the context `[*batch, context]` to `[*lead, 2·size]`; by default a `GroupNet`.
        hidden: Width of those.
        context: Numbers of the context.

    Example:
        >>> family = TopDown(TopDownPrior((1, 2)))
        >>> q = family(Encoded(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, family.extra)))
        >>> q.draw(torch.zeros(5, 1, 3)).z.shape
        torch.Size([5, 1, 3])
    """

    def __init__(
        self,
        prior: TopDownPrior,
        nets: Sequence[nn.Module] | None = None,
        *,
        hidden: int = 128,
        context: int = 64,
    ) -> None:
        super().__init__()
        _checked(prior.sizes, nets)
        self._prior = (prior,)  # in a tuple: its parameters are not this module's
        self.latent, self.extra = prior.latent, context
        if nets is None:
            widths = [(one.start, one.stop - one.start) for one in prior.lower]
            nets = [GroupNet(above, n, hidden=hidden, context=context) for above, n in widths]
        self.nets = nn.ModuleList(nets)

    @property
    def prior(self) -> TopDownPrior:
        """The prior in whose units q is."""
        return self._prior[0]

    def __call__(self, encoded: Encoded) -> "TopDownGaussian":
        """Return q of a batch."""
        extra = extra_of(encoded, self.extra)
        return TopDownGaussian(Encoded(encoded.mean, encoded.log_sd, extra), self)

    def residual(self, group: int, above: Tensor, encoded: Encoded) -> DiagonalGaussian:
        """Return q(z_l | z_>l, x) of a group in the units of p(z_l | z_>l)."""
        part = self.prior.parts[group]
        mean, log_sd = encoded.mean[..., part], encoded.log_sd[..., part]
        if group == 0:
            return DiagonalGaussian(mean, log_sd)
        shift, log_factor = self.nets[group - 1](above, encoded.extra).chunk(2, -1)
        log_sd = (log_sd + log_factor).clamp(-LOG_SD_LIMIT, LOG_SD_LIMIT)
        return DiagonalGaussian(mean + shift, log_sd)


@dataclass(frozen=True, slots=True)
class _Group:
    """One group of a draw: p(z_l | z_>l), q in its units, the noise, and z_l."""

    prior: DiagonalGaussian
    units: DiagonalGaussian
    noise: Tensor
    z: Tensor


@dataclass(frozen=True, slots=True)
class TopDownGaussian:
    """q(z|x) of a batch: Gaussian group by group, each given the groups above it.

    Args:
        encoded: What the encoder gives.
        family: What makes q of it.
        held: Whether the parameters of family and prior are held fixed in q.
    """

    encoded: Encoded
    family: TopDown
    held: bool = False
    path_gradient = True

    @property
    def centre(self) -> Tensor:
        """The mean of every group, given the means of those above it."""
        return self.draw(torch.zeros_like(self.encoded.mean)).z

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation: exact for the top group, else from 64 draws.

        Those are means over draws of the moments given the groups above, from the same noise for
        every image.
        """
        mean = self.encoded.mean
        shape = (_MOMENT_DRAWS // 2, *[1] * (mean.ndim - 1), mean.shape[-1])
        half = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        noise = torch.cat([half, -half]).to(mean.device, mean.dtype).expand(-1, *mean.shape)
        means, variances = [], []
        for one in self._groups(noise, from_noise=True):
            centre = one.prior.draw(one.units.mean).z.expand_as(one.z)
            log_sd = (one.prior.log_sd + one.units.log_sd).expand_as(one.z)
            means.append(centre.mean(0))
            variances.append((2 * log_sd).exp().mean(0) + centre.var(0, correction=0))
        return torch.cat(means, -1), 0.5 * torch.cat(variances, -1).log()

    def __getitem__(self, part: slice) -> "TopDownGaussian":
        """Return q of some of the images."""
        mean, log_sd, extra = self.encoded.mean, self.encoded.log_sd, self.encoded.extra
        extra = None if extra is None else extra[part]
        return TopDownGaussian(Encoded(mean[part], log_sd[part], extra), self.family, self.held)

    def draw(self, noise: Tensor) -> Draws:
        """Return draws for noise `[*draws, *batch, latent]`."""
        return _joined(self._groups(noise, from_noise=True))

    def noise_of(self, z: Tensor) -> Tensor:
        """Return the noise that `draw` takes to z, `[*draws, *batch, latent]`: one pass a group."""
        return _joined(self._groups(z, from_noise=False)).noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x), `[*draws, *batch]`, in nats."""
        return _joined(self._groups(z, from_noise=False)).log_q

    def detached(self) -> "TopDownGaussian":
        """Return this q with its encoder's outputs and all its parameters held fixed."""
        one = self.encoded
        extra = None if one.extra is None else one.extra.detach()
        encoded = Encoded(one.mean.detach(), one.log_sd.detach(), extra)
        return TopDownGaussian(encoded, self.family, held=True)

    def kl_to_standard_normal(self) -> None:
        """Return None: there is no formula."""
        return

    def _groups(self, given: Tensor, *, from_noise: bool) -> list[_Group]:
        """Go down the groups of noise, or of z, `[*draws, *batch, latent]`."""
        family, prior, found = self.family, self.family.prior, []
        z = given[..., :0]
        with weights_held(*((family, prior) if self.held else ())):
            for group, part in enumerate(prior.parts):
                p, q = prior.given(group, z), family.residual(group, z, self.encoded)
                here = given[..., part]
                if from_noise:
                    one = _Group(p, q, here, p.draw(q.draw(here).z).z)
                else:
                    one = _Group(p, q, q.noise_of(p.noise_of(here)), here)
                found.append(one)
                z = torch.cat([z, one.z], -1)
        return found


def _joined(groups: list[_Group]) -> Draws:
    """Put groups side by side."""
    means = [one.units.mean.expand_as(one.noise) for one in groups]
    log_sds = [one.units.log_sd.expand_as(one.noise) for one in groups]
    log_sd = torch.cat(log_sds, -1)
    log_det = log_sd.sum(-1)
    for one in groups:
        log_det = log_det + one.prior.log_sd.sum(-1)
    return Draws(
        torch.cat([one.z for one in groups], -1),
        torch.cat([one.noise for one in groups], -1),
        log_det,
        units=DiagonalGaussian(torch.cat(means, -1), log_sd),
    )
