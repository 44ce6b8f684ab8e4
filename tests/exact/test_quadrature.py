"""Quadrature: against closed forms, the linear-Gaussian model, and itself on a coarser grid."""

import math

import pytest
import torch
import torch.distributions as D

from kullback.exact import LinearGaussian, closed_forms, quadrature


def linear_gaussian(latent):
    generator = torch.Generator().manual_seed(latent)
    weight = torch.randn(3, latent, generator=generator, dtype=torch.float64)
    x = torch.randn(3, generator=generator, dtype=torch.float64)
    return LinearGaussian(weight, torch.zeros(3).double(), torch.tensor(0.8).double()), x


@pytest.mark.parametrize("latent", [1, 2])
def test_a_linear_gaussian_model_in_one_and_two_dimensions(latent):
    model, x = linear_gaussian(latent)
    box = {"lower": [-9.0] * latent, "upper": [9.0] * latent}
    found = quadrature.posterior(lambda z: model.log_joint(x, z), **box)
    truth = model.posterior(x)
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(found.log_evidence, model.log_evidence(x), **close)
    torch.testing.assert_close(found.mean, truth.mean, **close)
    torch.testing.assert_close(found.covariance, truth.covariance_matrix, **close)
    assert found.error < 1e-9
    q = D.MultivariateNormal(truth.mean + 0.3, truth.covariance_matrix * 1.5)
    torch.testing.assert_close(found.kl_to(q.log_prob), closed_forms.kl(truth, q), **close)
    torch.testing.assert_close(found.kl_from(q.log_prob), closed_forms.kl(q, truth), **close)
    gap = model.log_evidence(x) - model.elbo(x, q)  # MATH 2.1
    torch.testing.assert_close(found.kl_from(q.log_prob), gap, **close)


def test_the_error_tells_when_the_grid_is_too_coarse():
    sharp = D.Normal(torch.tensor(0.3).double(), torch.tensor(0.1).double())
    coarse, fine = (
        quadrature.posterior(lambda z: sharp.log_prob(z[:, 0]), lower=-5, upper=5, nodes=n)
        for n in (40, 400)
    )
    assert coarse.error > abs(coarse.log_evidence.item()) / 10 > 1e-3
    assert fine.error < 1e-10
    assert abs(fine.log_evidence.item()) < 1e-10


def test_the_evidence_is_differentiable():
    """d log p(x) / dm of z ~ N(m, 1), x|z ~ N(z, 1) is (x − m)/2."""
    m = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def log_joint(z):
        return (D.Normal(m, 1.0).log_prob(z) + D.Normal(z, 1.0).log_prob(torch.tensor(2.0)))[:, 0]

    found = quadrature.posterior(log_joint, lower=-9, upper=11)
    (gradient,) = torch.autograd.grad(found.log_evidence, m)
    assert gradient.item() == pytest.approx(0.8, rel=1e-12)


def test_kl_of_disjoint_and_bounded_densities():
    left, right = D.Uniform(0.0, 1.0, validate_args=False), D.Uniform(0.5, 2.0, validate_args=False)
    as_log = lambda d: lambda z: d.log_prob(z[:, 0])  # noqa: E731
    assert quadrature.kl(as_log(left), as_log(right), lower=0, upper=2) == math.inf
    inside = quadrature.kl(as_log(left), as_log(D.Uniform(0.0, 2.0)), lower=0, upper=1).item()
    assert inside == pytest.approx(math.log(2) - 1 + 0.5)  # q's mass in (1, 2) is not seen


FLAT = lambda z: 0 * z[:, 0]  # noqa: E731
REFUSED = [
    (lambda: quadrature.posterior(FLAT, lower=1, upper=0), ValueError, "lower < upper"),
    (lambda: quadrature.posterior(FLAT, lower=0, upper=math.inf), ValueError, "finite"),
    (lambda: quadrature.grid([0, 0, 0], [1, 1, 1]), ValueError, "one or two dimensions"),
    (lambda: quadrature.grid([0, 0], 1), ValueError, "one or two dimensions"),
    (lambda: quadrature.posterior(FLAT, lower=0, upper=1, nodes=2), ValueError, "nodes: expected"),
    (
        lambda: quadrature.posterior(lambda z: z, lower=0, upper=1),
        ValueError,
        r"return float \[200\]",
    ),
    (
        lambda: quadrature.posterior(lambda z: 1.0, lower=0, upper=1),
        TypeError,
        "log_joint: expected",
    ),
    (lambda: quadrature.posterior(lambda z: FLAT(z) / 0, lower=0, upper=1), ValueError, "no NaN"),
    (
        lambda: quadrature.posterior(lambda z: FLAT(z) - math.inf, lower=0, upper=1),
        ValueError,
        "some mass in the box",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), REFUSED)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_two_nodes_integrate_a_cubic():
    points, log_weights = quadrature.grid(1.0, 3.0, nodes=2)
    assert float((points[:, 0] ** 3 * log_weights.exp()).sum()) == pytest.approx(20.0, rel=1e-14)
    with pytest.raises(ValueError, match="nodes: expected at least 2 a dimension; got 1"):
        quadrature.grid(1.0, 3.0, nodes=1)
