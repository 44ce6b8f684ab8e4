"""Quantised latents: q(z|x) puts all its mass on one code, and a prior over codes is learned.

Every dimension of z takes one of a few values on a fixed grid, to which the encoder's output is
rounded (finite scalar quantisation, a vector quantiser whose codebook is a lattice). z is then a
deterministic code c(x), and log p(x) = log Σ_c p(c) p(x|c) ≥ log p(x|c(x)) + log p(c(x)): the ELBO
of a deterministic q. Its rate −log p(c(x)) is the length of the code under the learned prior, in
nats; it is no KL between densities. L_K is the ELBO for every K, as all draws of q are the same.

Reference: Mentzer et al. (2024), "Finite scalar quantization: VQ-VAE made simple"; van den Oord,
Vinyals and Kavukcuoglu (2017), "Neural discrete representation learning", for the learned prior.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kullback.core import require

from ..networks import real
from .posteriors import Draws, Encoded

__all__ = ["CodePrior", "Codes", "Quantised"]

_REACH = 2.0  # the outermost values of a dimension: deviations near 1, as of N(0, I)


class CodePrior(nn.Module):
    """p(c) = Π_d p(c_d | c_<d) over codes, `codes` values a dimension, by a masked network.

    It starts as the uniform distribution.
    Reference: Germain et al. (2015), "MADE".

    Args:
        latent: Dimensions of z.
        codes: Values that each of them takes, at least 2.
        hidden: Width of the network, which has one hidden layer.

    Example:
        >>> prior = CodePrior(3, 4)
        >>> z = prior.sample(5, torch.Generator())
        >>> torch.allclose(prior.log_prob(z), torch.full((5,), -3 * math.log(4)))
        True
    """

    into: Tensor
    out: Tensor

    def __init__(self, latent: int, codes: int, *, hidden: int = 128) -> None:
        super().__init__()
        require(codes >= 2, "codes", "at least 2 values a dimension", codes)
        self.latent, self.codes, self.numbers = latent, codes, latent * codes
        degree = torch.arange(hidden) % max(1, latent - 1)  # sees dimensions 0 … degree
        place = torch.arange(latent)
        self.register_buffer("into", (place[None] <= degree[:, None]).float())
        self.register_buffer("out", (degree[None] < place[:, None]).float())
        self.first = nn.Linear(latent, hidden)
        self.last = nn.Parameter(torch.zeros(latent, codes, hidden))
        self.bias = nn.Parameter(torch.zeros(latent, codes))

    def values_of(self, index: Tensor) -> Tensor:
        """Return z of codes 0 … codes − 1."""
        return _REACH * (2.0 * index.to(self._dtype()) / (self.codes - 1) - 1.0)

    def index_of(self, z: Tensor) -> Tensor:
        """Return the nearest code of every dimension, 0 … codes − 1."""
        place = (0.5 * (z / _REACH + 1.0) * (self.codes - 1)).round()
        return place.clamp(0, self.codes - 1).long()

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(c), `[*lead]`, in nats, of the codes nearest to z; no gradient goes to z."""
        z = z.detach()
        log_p = torch.log_softmax(self._logits(z), -1)
        return log_p.gather(-1, self.index_of(z).unsqueeze(-1)).squeeze(-1).sum(-1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `[n, latent]`, one dimension after the other."""
        z = torch.zeros(n, self.latent, dtype=self._dtype(), device=generator.device)
        for d in range(self.latent):
            share = torch.softmax(self._logits(z)[:, d], -1)
            picked = torch.multinomial(share, 1, generator=generator)[:, 0]
            z[:, d] = self.values_of(picked)
        return z

    def _logits(self, z: Tensor) -> Tensor:
        """Return `[*lead, latent, codes]`; those of a dimension depend on the ones before it."""
        dtype = self.last.dtype
        weight = self.into.to(dtype) * self.first.weight
        inner = nn.functional.silu(nn.functional.linear(z.to(dtype), weight, self.first.bias))
        weights = self.out.to(dtype).unsqueeze(1) * self.last
        return real(torch.einsum("...h,dch->...dc", inner, weights) + self.bias)

    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.last.dtype == torch.float64 else torch.float32


class Quantised:
    """The family of deterministic codes: the encoder's mean m goes to the value nearest 2 tanh(m).

    The gradient goes through the rounding as if it were not there (straight-through), and only that
    of log p(x|z) does: −log p(c) teaches the prior alone.

    Args:
        prior: The model's own, for its grid.

    Example:
        >>> q = Quantised(CodePrior(2, 3))(Encoded(torch.tensor([[9.0, 0.1]]), torch.zeros(1, 2)))
        >>> q.centre
        tensor([[2., 0.]])
    """

    extra = 0

    def __init__(self, prior: CodePrior) -> None:
        self.prior = prior

    def __call__(self, encoded: Encoded) -> "Codes":
        """Return q of a batch."""
        prior = self.prior
        smooth = _REACH * torch.tanh(encoded.mean)
        code = prior.values_of(prior.index_of(smooth.detach()))
        return Codes(code + (smooth - smooth.detach()), code)  # the code itself, to the bit


@dataclass(frozen=True, slots=True)
class _CodeDraws(Draws):
    """Draws of a q with all its mass on one code."""

    @property
    def log_q(self) -> Tensor:
        """Return log 1."""
        return self.z.new_zeros(self.z.shape[:-1])


@dataclass(frozen=True, slots=True)
class Codes:
    """q(z|x) of a batch: probability 1 for one code.

    Args:
        z: The codes, `[*batch, latent]`, with the gradient of what they were rounded from.
        value: The codes without a gradient.
    """

    z: Tensor
    value: Tensor
    path_gradient = False

    @property
    def centre(self) -> Tensor:
        """The code."""
        return self.value

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the code and the log of its standard deviation, −inf."""
        return self.value, torch.full_like(self.value, -math.inf)

    def __getitem__(self, part: slice) -> "Codes":
        """Return q of some of the images."""
        return Codes(self.z[part], self.value[part])

    def draw(self, noise: Tensor) -> Draws:
        """Return the code for any noise `[*draws, *batch, latent]`."""
        z = self.z.expand(noise.shape)
        return _CodeDraws(z, noise, z.new_zeros(z.shape[:-1]))

    def noise_of(self, z: Tensor) -> Tensor:
        """Return zeros: no noise is in a code."""
        return torch.zeros_like(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log probability of codes: 0 for this one, −inf for every other."""
        same = (z == self.value).all(-1)
        return torch.where(same, 0.0, -math.inf).to(z.dtype)

    def detached(self) -> "Codes":
        """Return this q without its graph."""
        return Codes(self.value, self.value)

    def kl_to_standard_normal(self) -> None:
        """Return None: a code has no density."""
        return
