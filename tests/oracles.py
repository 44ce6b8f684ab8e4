"""Slow, obviously right truths that fast code is held to."""

import math

import torch
from torch import Tensor, nn

from kullback.vae.latents import StandardNormal
from kullback.vae.likelihoods import Gaussian
from kullback.vae.model import VAE


class LinearGaussian:
    """z ~ N(0, I), x|z ~ N(Wz + b, sd²): evidence and posterior in closed form, float64."""

    def __init__(self, dims: int, latent: int, sd: float, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.w = torch.randn(dims, latent, generator=generator, dtype=torch.float64)
        self.b = torch.randn(dims, generator=generator, dtype=torch.float64)
        self.sd, self.latent, self.dims = sd, latent, dims

    def log_evidence(self, x: Tensor) -> Tensor:
        covariance = self.w @ self.w.T + self.sd**2 * torch.eye(self.dims, dtype=torch.float64)
        law = torch.distributions.MultivariateNormal(self.b, covariance)
        return law.log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [n, latent] and covariance [latent, latent] of p(z|x)."""
        precision = torch.eye(self.latent, dtype=torch.float64) + self.w.T @ self.w / self.sd**2
        covariance = torch.linalg.inv(precision)
        return (x - self.b) @ self.w @ covariance / self.sd**2, covariance

    def kl_to_posterior(self, mean: Tensor, log_sd: Tensor, x: Tensor) -> Tensor:
        """KL(N(mean, diag sd²) ‖ p(z|x)) for each row, by the textbook formula."""
        centre, covariance = self.posterior(x)
        precision = torch.linalg.inv(covariance)
        variance = (2 * log_sd).exp()
        difference = centre - mean
        trace = (variance * precision.diagonal()).sum(-1)
        quadratic = torch.einsum("ni,ij,nj->n", difference, precision, difference)
        return 0.5 * (
            trace + quadratic - self.latent + torch.logdet(covariance) - 2 * log_sd.sum(-1)
        )

    def expected_log_likelihood(self, mean: Tensor, log_sd: Tensor, x: Tensor) -> Tensor:
        """E_q[log p(x|z)] exactly, for a diagonal Gaussian q."""
        error = x - self.b - mean @ self.w.T
        spread = (2 * log_sd).exp() @ (self.w**2).sum(0)
        constant = -0.5 * self.dims * math.log(2 * math.pi * self.sd**2)
        return constant - 0.5 * ((error**2).sum(-1) + spread) / self.sd**2

    def vae(self, log_sd: Tensor, tilt: float = 0.0) -> VAE:
        """This model as a VAE: the encoder gives the exact posterior mean (plus a tilt)."""
        oracle = self

        class Encoder(nn.Module):
            def forward(self, x):
                mean, _ = oracle.posterior(x)
                return mean + tilt, log_sd.expand_as(mean)

        class Decoder(nn.Module):
            def forward(self, z):
                return (z @ oracle.w.T + oracle.b).unsqueeze(1)

        likelihood = Gaussian((self.dims,), log_sd=math.log(self.sd), learned=False).double()
        likelihood.log_sd.data = torch.tensor(math.log(self.sd), dtype=torch.float64)
        return VAE(Encoder(), Decoder(), likelihood, StandardNormal(self.latent)).double()


def check_frequencies(drawn, expected, levels):
    """Assert that draws `[n, *event]` of 0 … levels − 1 have the probabilities of all events.

    Pearson's χ² over events expected five times or more, the others counted as one; expected:
    `[levels^numbers]`, the last number of an event changing first.
    """
    draws, flat = len(drawn), drawn.flatten(1).long()
    base = levels ** torch.arange(flat.shape[1] - 1, -1, -1)
    counts = torch.bincount((flat * base).sum(1), minlength=len(expected))
    often = expected * draws >= 5
    rest = expected[~often].sum() * draws
    terms = (counts[often] - draws * expected[often]).square() / (draws * expected[often])
    left = (counts[~often].sum() - rest).square() / rest if rest > 5 else torch.zeros(())
    degrees = int(often.sum()) - 1 + int(rest > 5)
    assert float(terms.sum() + left - degrees) < 4.5 * math.sqrt(2 * degrees)
