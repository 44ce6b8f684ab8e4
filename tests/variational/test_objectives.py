"""Objectives against direct sums, quadrature and finite differences."""

import math

import numpy as np
import pytest
import torch

from kullback.vae import latents as diagonal_gaussian
from kullback.variational import beta_elbo, doubly_reparameterised, elbo, iwae
from kullback.variational.objectives import log_weights

WEIGHTS = torch.tensor([[0.5, 2.0, 1e-3], [1.5, 0.1, 4.0]], dtype=torch.float64)


def test_against_direct_sums():
    torch.testing.assert_close(elbo(WEIGHTS.log()), WEIGHTS.log().mean(0))
    torch.testing.assert_close(iwae(WEIGHTS.log()), WEIGHTS.mean(0).log())
    likelihood, ratio = WEIGHTS.log(), WEIGHTS.sqrt().log()
    torch.testing.assert_close(log_weights(likelihood, ratio, beta=0.5), likelihood + 0.5 * ratio)


def test_one_draw_makes_them_equal():
    one = WEIGHTS[:1].log()
    torch.testing.assert_close(elbo(one), iwae(one))


def test_infinite_and_nan_weights():
    logs = torch.tensor([[-math.inf, math.nan, 0.0], [0.0, 0.0, 0.0]])
    assert elbo(logs)[0] == -math.inf
    assert iwae(logs)[0].item() == pytest.approx(-math.log(2))
    assert torch.isnan(elbo(logs)[1])
    assert torch.isnan(iwae(logs)[1])


def test_beta_elbo_is_the_elbo_at_one():
    likelihood = torch.tensor([[-3.0, -5.0], [-4.0, -6.0]])
    kl = torch.tensor([[0.5, 0.1], [0.2, 0.3]])
    torch.testing.assert_close(beta_elbo(likelihood, kl), likelihood.mean(0) - kl.sum(-1))
    torch.testing.assert_close(
        beta_elbo(likelihood, kl, beta=4.0), likelihood.mean(0) - 4 * kl.sum(-1)
    )


def test_free_bits_charge_at_least_the_allowance_and_stop_the_gradient_below_it():
    kl = torch.tensor([[0.5, 0.1], [0.3, 0.3]], requires_grad=True)  # means 0.4 and 0.2
    value = beta_elbo(torch.zeros(1, 2), kl, free_bits=0.25)
    assert value.mean().item() == pytest.approx(-(0.4 + 0.25))
    value.mean().backward()
    torch.testing.assert_close(kl.grad, torch.tensor([[-0.5, 0.0], [-0.5, 0.0]]))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: elbo(torch.zeros(3)), "log_weights: expected"),
        (lambda: iwae(torch.zeros(3)), "log_weights: expected"),
        (lambda: beta_elbo(torch.zeros(1, 1), torch.zeros(1, 1), beta=-1.0), "beta: expected"),
        (lambda: beta_elbo(torch.zeros(1, 1), torch.zeros(1, 1), free_bits=-1.0), "free_bits"),
        (lambda: beta_elbo(torch.zeros(1, 1), torch.zeros(1)), "kl: expected"),
    ],
)
def test_refusals(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_the_closed_form_kl_is_torchs_and_accurate_near_zero():
    mean = torch.tensor([0.0, 1e-4, -3.0, 2.0], dtype=torch.float64)
    log_sd = torch.tensor([0.0, -1e-4, 1.5, -20.0], dtype=torch.float64)
    q = torch.distributions.Normal(mean, log_sd.exp())
    p = torch.distributions.Normal(torch.zeros(4).double(), 1.0)
    exact = torch.distributions.kl_divergence(q, p)
    ours = diagonal_gaussian.kl_to_standard_normal(mean, log_sd)
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-15)
    single = diagonal_gaussian.kl_to_standard_normal(mean.float(), log_sd.float())
    torch.testing.assert_close(single.double(), ours, rtol=1e-3, atol=1e-12)
    assert (single >= 0).all()


def test_the_log_ratio_is_the_difference_of_log_densities():
    generator = torch.Generator().manual_seed(0)
    mean, log_sd = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(7, 5, 3, generator=generator, dtype=torch.float64)
    z = diagonal_gaussian.draw(mean, log_sd, noise)
    normal = torch.distributions.Normal
    truth = normal(0.0, 1.0).log_prob(z) - normal(mean, log_sd.exp()).log_prob(z)
    ours = diagonal_gaussian.log_ratio_to_standard_normal(z, log_sd, noise)
    torch.testing.assert_close(ours, truth.sum(-1), rtol=1e-12, atol=1e-12)


def gradient_by_quadrature(estimator):
    """E[∂L_2/∂(mean, log sd, θ)] over both draws, by 60x60 Gauss-Hermite points, in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    grid = torch.cartesian_prod(torch.tensor(nodes), torch.tensor(nodes))
    mass = torch.cartesian_prod(torch.tensor(weights), torch.tensor(weights)).prod(-1)
    mass = mass / mass.sum()
    mean, log_sd, theta = (torch.tensor(v, dtype=torch.float64) for v in (0.4, -0.3, 0.7))
    leaves = [v.requires_grad_() for v in (mean, log_sd, theta)]
    noise = grid.T.unsqueeze(-1)  # [2 draws, points as the batch, 1 latent]
    bound = estimator(noise, *leaves)
    return torch.stack(torch.autograd.grad((bound * mass).sum(), leaves))


def joint(z, theta):
    """log p(x, z) of a model that is not Gaussian in z."""
    return (-0.5 * z**2 - torch.log1p((z - theta) ** 2) - 0.1 * (theta * z) ** 4).sum(-1)


def plain(noise, mean, log_sd, theta):
    z = mean + log_sd.exp() * noise
    log_q = (-0.5 * noise**2 - log_sd).sum(-1)
    return iwae(joint(z, theta) - log_q)


def doubly(noise, mean, log_sd, theta):
    z = mean + log_sd.exp() * noise
    held = (z - mean.detach()) / log_sd.detach().exp()
    log_q = (-0.5 * held**2 - log_sd.detach()).sum(-1)
    return doubly_reparameterised(joint(z, theta) - log_q, z)


def test_the_doubly_reparameterised_gradient_has_the_right_expectation():
    exact = gradient_by_quadrature(plain)
    assert exact.abs().min() > 0.01
    torch.testing.assert_close(gradient_by_quadrature(doubly), exact, rtol=1e-7, atol=1e-9)


def test_its_value_is_the_bound_and_its_variance_lower():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 4000, 1, generator=generator, dtype=torch.float64)
    spread = []
    for estimator in (plain, doubly):
        mean = torch.full((4000, 1), 0.4, dtype=torch.float64, requires_grad=True)
        log_sd = torch.full((4000, 1), -0.3, dtype=torch.float64, requires_grad=True)
        theta = torch.tensor(0.7, dtype=torch.float64)
        bound = estimator(noise, mean, log_sd, theta)
        spread.append(torch.autograd.grad(bound.sum(), mean)[0].var().item())
        spread.append(bound.detach())
    torch.testing.assert_close(spread[1], spread[3], rtol=1e-14, atol=1e-14)
    assert spread[2] < 0.5 * spread[0]
