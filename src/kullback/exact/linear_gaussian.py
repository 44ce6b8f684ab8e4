"""The model whose evidence and posterior are known: Gaussian latent, linear map, Gaussian noise.

Which to use: `LinearGaussian`, the exact oracle in any number of dimensions (MATH 1.4): for it
`log p(x) = ELBO(q) + KL(q‖posterior)` (MATH 2.1) can be checked to the last digit.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from kullback.core import describe, require

from .closed_forms import kl
from .families.pair import solve_lower

__all__ = ["LinearGaussian"]


@dataclass(frozen=True, slots=True)
class LinearGaussian:
    """The model `z ~ N(0, I)`, `x = W z + b + σ·noise` with its exact evidence and posterior.

    weight: W, `[data, latent]`; bias: b, `[data]`; scale: σ > 0, `[data]` or a scalar tensor, all
    of one float dtype. Data are `[*batch, data]`, latents `[*batch, latent]`. A general Gaussian
    prior is the same model: put its mean into b and its Cholesky factor into W.
    Raises `ArgumentValueError` for shapes that do not fit and for a scale that is not positive.
    Reference: Bishop (2006), "Pattern Recognition and Machine Learning", section 2.3.3.

    >>> one = torch.ones(1)
    >>> model = LinearGaussian(torch.ones(1, 1), bias=0 * one, scale=one)
    >>> model.posterior(2 * one).mean
    tensor([1.0000])
    >>> model.log_evidence(2 * one)
    tensor(-2.2655)
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        flat = self.weight.ndim == 2
        require(flat, "weight", "a matrix [data, latent]", describe(self.weight))
        data = self.weight.shape[0]
        fits = tuple(self.bias.shape) == (data,)
        require(fits, "bias", f"a vector [{data}]", describe(self.bias))
        fits = tuple(self.scale.shape) in ((), (data,))
        require(fits, "scale", f"a scalar or a vector [{data}]", describe(self.scale))
        positive = bool((self.scale > 0).all())
        require(positive, "scale", "positive numbers", self.scale.min().item())

    @property
    def prior(self) -> MultivariateNormal:
        """The prior `N(0, I)` over latents."""
        zero = self.weight.new_zeros(self.weight.shape[1])
        return _gaussian(zero, torch.eye(zero.shape[0], dtype=zero.dtype, device=zero.device))

    @property
    def evidence(self) -> MultivariateNormal:
        """The marginal over data, `N(b, W Wᵀ + σ²I)`."""
        noise = torch.diag_embed(self.scale.square().expand(self.bias.shape))
        covariance = self.weight @ self.weight.mT + noise
        return _gaussian(self.bias, torch.linalg.cholesky(covariance))

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return `log p(x)` for data `[*batch, data]` → `[*batch]`, in nats."""
        self._check(x)
        value: Tensor = self.evidence.log_prob(x)  # type: ignore[no-untyped-call]
        return value

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return `p(z|x) = N(S Wᵀσ⁻²(x − b), S)`, `S = (I + Wᵀσ⁻²W)⁻¹`, batch shape `[*batch]`."""
        self._check(x)
        scaled = self.weight / self.scale.expand(self.bias.shape)[:, None]
        size = self.weight.shape[1]
        identity = torch.eye(size, dtype=scaled.dtype, device=scaled.device)
        root = torch.linalg.cholesky(identity + scaled.mT @ scaled)
        pull = scaled.mT @ ((x - self.bias) / self.scale)[..., None]
        inverse = solve_lower(root, identity)
        mean = (inverse.mT @ (inverse @ pull))[..., 0]
        return _gaussian(mean, torch.linalg.cholesky(inverse.mT @ inverse))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Return `log p(x, z)` for `[*batch, data]` and `[*batch, latent]`, broadcast, in nats."""
        self._check(x)
        value: Tensor = self._log_likelihood(x, z) + self.prior.log_prob(z)  # type: ignore[no-untyped-call]
        return value

    def elbo(self, x: Tensor, q: MultivariateNormal) -> Tensor:
        """Return `E_q[log p(x|z)] − KL(q‖p(z))` (MATH 2.3), exact for a Gaussian q → `[*batch]`."""
        self._check(x)
        spread = self.weight @ q.scale_tril / self.scale.expand(self.bias.shape)[:, None]
        expected = self._log_likelihood(x, q.loc) - 0.5 * spread.square().sum((-1, -2))
        return expected - kl(q, self.prior)

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        noise: Any = Normal(z @ self.weight.mT + self.bias, self.scale)
        value: Tensor = noise.log_prob(x).sum(-1)
        return value

    def _check(self, x: Tensor) -> None:
        data = self.weight.shape[0]
        fits = x.ndim >= 1 and x.shape[-1] == data
        require(fits, "x", f"data [*batch, {data}]", describe(x))


def _gaussian(mean: Tensor, tril: Tensor) -> MultivariateNormal:
    return MultivariateNormal(mean, scale_tril=tril)
