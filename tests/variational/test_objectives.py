"""Objectives against direct sums, quadrature and finite differences."""

import math

import numpy as np
import pytest
import torch

from kullback.core import Estimate
from kullback.vae import latents as diagonal_gaussian
from kullback.variational import (
    WeightedBound,
    beta_elbo,
    ciwae,
    doubly_reparameterised,
    elbo,
    iwae,
    miwae,
    piwae,
    with_path_gradient,
)
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


def gradient_by_quadrature(estimator, points=60):
    """E[∂L_2/∂(mean, log sd, θ)] over both draws, by Gauss-Hermite points², in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
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


BETAS = (1.0, 0.4)
CASES = [
    WeightedBound("stl"),
    WeightedBound("iwae"),
    WeightedBound("renyi", alpha=0.5),
    WeightedBound("renyi", alpha=-1.0),
    WeightedBound("renyi", alpha=1.0),
    WeightedBound("renyi", alpha=2.0),
    WeightedBound("ciwae", alpha=0.0),
    WeightedBound("ciwae", alpha=0.3),
    WeightedBound("miwae", groups=1),
    WeightedBound("miwae", groups=2),
]


def logs(noise, mean, log_sd, theta, *, beta, held=False, z=None):
    """log w with the prior N(0, 1): log p(x|z) + β (log p(z) − log q(z))."""
    z = mean + log_sd.exp() * noise if z is None else z
    if held:
        mean, log_sd = mean.detach(), log_sd.detach()
        noise = (z - mean) / log_sd.exp()
    ratio = (-0.5 * z**2 + 0.5 * noise**2 + log_sd).sum(-1)
    return log_weights(joint(z, theta), ratio, beta=beta)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("bound", CASES, ids=str)
@pytest.mark.parametrize("beta", BETAS)
def test_a_path_gradient_has_the_right_expectation(bound, beta):
    """By all pairs of nodes, also where β is not 1 and the weights are none of p(x)."""

    def by_path(noise, mean, log_sd, theta):
        z = mean + log_sd.exp() * noise
        weights = logs(noise, mean, log_sd, theta, beta=beta, held=True, z=z)
        return with_path_gradient(weights, z, bound, beta=beta)

    def plainly(noise, *leaves):
        return bound.value(logs(noise, *leaves, beta=beta))

    points = 240 if bound.alpha < 0 else 60  # weights to a power above 1 are narrower
    exact = gradient_by_quadrature(plainly, points)
    found = gradient_by_quadrature(by_path, points)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("beta", BETAS)
def test_piwae_learns_q_from_groups_and_the_rest_from_all_draws(beta):
    def partly(noise, mean, log_sd, theta):
        z = mean + log_sd.exp() * noise
        leaf = z.detach().requires_grad_()
        weights = logs(noise, mean, log_sd, theta, beta=beta, held=True, z=leaf)
        return piwae(weights, leaf, z, 2, beta=beta)

    found = gradient_by_quadrature(partly)
    groups = gradient_by_quadrature(lambda n, *leaves: miwae(logs(n, *leaves, beta=beta), 2))
    whole = gradient_by_quadrature(lambda n, *leaves: iwae(logs(n, *leaves, beta=beta)))
    torch.testing.assert_close(found[:2], groups[:2], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[2], whole[2], rtol=1e-6, atol=1e-8)
    assert float((groups[:2] - whole[:2]).abs().min()) > 1e-3


def test_bounds_between_the_elbo_and_the_importance_weighted_one():
    weights = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for groups in (1, 2, 3, 4, 6, 12):
        direct = torch.stack([weights[m::1][: 12 // groups] for m in range(0, 12, 12 // groups)])
        direct = direct.exp().mean(1).log().mean(0)
        torch.testing.assert_close(miwae(weights, groups), direct)
        assert bool((elbo(weights) <= direct + 1e-12).all())
        assert bool((direct <= iwae(weights) + 1e-12).all())
    torch.testing.assert_close(miwae(weights, 12), elbo(weights))
    for share in (0.0, 0.25, 1.0):
        expected = share * elbo(weights) + (1 - share) * iwae(weights)
        torch.testing.assert_close(ciwae(weights, share), expected)
    with pytest.raises(ValueError, match="groups: expected a divisor of the 12 draws; got 5"):
        miwae(weights, 5)
    with pytest.raises(ValueError, match="share: expected 0 to 1"):
        ciwae(weights, 1.5)
    with pytest.raises(ValueError, match="objective: expected one of stl, iwae"):
        WeightedBound("vimco")


def line_gradients(bound, draws, n, *, mean=0.8, log_sd=-0.2, path=True, seed=0):
    """Gradients `[n]` to q's mean and to θ of x = 1 under z ~ N(θ, 1), x|z ~ N(z, 1), θ = 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, n, 1, generator=generator, dtype=torch.float64)
    mean = torch.full((n, 1), mean, dtype=torch.float64, requires_grad=True)
    theta = torch.zeros(n, 1, dtype=torch.float64, requires_grad=True)
    z = mean + math.exp(log_sd) * noise
    at = mean.detach() if path else mean
    log_q = (-0.5 * ((z - at) / math.exp(log_sd)) ** 2 - log_sd).sum(-1)
    log_p = (-0.5 * (z - theta) ** 2 - 0.5 * (1.0 - z) ** 2).sum(-1) - 0.5 * math.log(2 * math.pi)
    weights = log_p - log_q
    value = with_path_gradient(weights, z, bound) if path else bound.value(weights)
    return [one[:, 0] for one in torch.autograd.grad(value.sum(), (mean, theta))]


def test_sticking_the_landing_has_no_noise_at_the_posterior():
    """q = p(z|x) = N(½, ½): the path gradient of every draw is 0, the plain one is not."""
    at = {"mean": 0.5, "log_sd": 0.5 * math.log(0.5)}
    for bound in (WeightedBound("stl"), WeightedBound("iwae"), WeightedBound("renyi")):
        by_path, _ = line_gradients(bound, 4, 100, **at)
        assert float(by_path.abs().max()) < 1e-12
    plainly, _ = line_gradients(WeightedBound("stl"), 4, 100, path=False, **at)
    assert float(plainly.abs().max()) > 0.1


def test_bias_of_the_gradient_against_the_number_of_draws():
    """∂ log p(x)/∂θ = (x − θ)/2 = ½; the ELBO's is E_q[z] − θ = 0.8; L_K's goes to ½ as 1/K."""
    known = {"stl": 0.8}
    found = {}
    for draws in (1, 4, 16, 64):
        _, by_theta = line_gradients(WeightedBound("iwae"), draws, 20_000)
        found[draws] = Estimate.from_terms(by_theta)
    _, by_theta = line_gradients(WeightedBound("stl"), 8, 20_000)
    elbos = Estimate.from_terms(by_theta)
    assert abs(elbos.value - known["stl"]) <= 4.5 * elbos.standard_error
    assert abs(found[1].value - known["stl"]) <= 4.5 * found[1].standard_error
    bias = {draws: one.value - 0.5 for draws, one in found.items()}
    for few, many in ((1, 4), (4, 16), (16, 64)):
        error = 4.5 * (found[few].standard_error ** 2 + found[many].standard_error ** 2) ** 0.5
        assert bias[few] - bias[many] > error
    assert abs(64 * bias[64] - 16 * bias[16]) <= 4.5 * (
        64 * found[64].standard_error + 16 * found[16].standard_error
    )


@pytest.mark.slow
def test_signal_to_noise_against_the_number_of_draws():
    """Of q's gradient: it sinks with K plainly, and grows doubly reparameterised or in groups."""

    def ratio(bound, draws, path):
        by_mean, _ = line_gradients(bound, draws, 20_000, path=path)
        return float(by_mean.mean().abs() / by_mean.std())

    def grows(few, many):  # the variance of a mean over its deviation r is (1 + r²/2)/n
        return many - few > 4.5 * ((2 + few**2 / 2 + many**2 / 2) / 20_000) ** 0.5

    plainly = [ratio(WeightedBound("iwae"), draws, path=False) for draws in (1, 8, 64)]
    doubled = [ratio(WeightedBound("iwae"), draws, path=True) for draws in (1, 8, 64)]
    grouped = [
        ratio(WeightedBound("miwae", groups=draws // 4), draws, path=False) for draws in (4, 16, 64)
    ]
    assert grows(plainly[1], plainly[0]) and grows(plainly[2], plainly[1])
    assert grows(doubled[0], doubled[1]) and grows(doubled[1], doubled[2])
    assert grows(grouped[0], grouped[1]) and grows(grouped[1], grouped[2])


@pytest.mark.slow
def test_signal_to_noise_has_the_rates_of_theory():
    """From K = 64 to 256 it halves plainly and doubles doubly reparameterised (Rainforth 2018).

    Both have one expectation, taken from the second, which has less noise. Terms of order 1/K are
    left out of the rates: 1/64 of each.
    """

    def deviation(one):
        """The standard deviation and its relative error, by the fourth moment."""
        centred = one - one.mean()
        kurtosis = float((centred**4).mean() / (centred**2).mean() ** 2)
        return float(one.std()), ((kurtosis - 1) / (4 * len(one))) ** 0.5

    found = {}
    for draws in (64, 256):
        plainly, _ = line_gradients(WeightedBound("iwae_plain"), draws, 20_000, path=False)
        doubled, _ = line_gradients(WeightedBound("iwae"), draws, 20_000)
        signal = abs(float(doubled.mean()))
        of_signal = float(doubled.std()) / signal / 20_000**0.5
        for name, one in (("plain", plainly), ("doubled", doubled)):
            spread, error = deviation(one)
            found[name, draws] = math.log(signal / spread), math.hypot(error, of_signal)
    for name, power in (("plain", -0.5), ("doubled", 0.5)):
        (few, e_few), (many, e_many) = found[name, 64], found[name, 256]
        expected = power * math.log(4)
        assert abs(many - few - expected) <= 4.5 * math.hypot(e_few, e_many) + 1 / 64, name


def test_the_plain_gradient_is_not_taken_by_the_path():
    z = torch.zeros(2, 1, 1, requires_grad=True) * 1.0
    with pytest.raises(
        ValueError, match="bound: expected one whose gradient to q goes by the path"
    ):
        with_path_gradient(z.sum(-1), z, WeightedBound("iwae_plain"))
    logs_of_two = WEIGHTS.log()
    torch.testing.assert_close(WeightedBound("iwae_plain").value(logs_of_two), iwae(logs_of_two))
