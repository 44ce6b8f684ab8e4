"""Bounds for Gaussian mixtures: true on both sides, exact where they should be."""

import itertools
import math

import pytest
import torch
import torch.distributions as D

from kullback.exact import closed_forms, mixture_kl_bounds, quadrature


def mixture(weights, locs, scales):
    parts = D.Normal(*(torch.tensor(v, dtype=torch.float64) for v in (locs, scales)))
    return D.MixtureSameFamily(D.Categorical(torch.tensor(weights, dtype=torch.float64)), parts)


PAIRS = [
    (mixture([0.5, 0.5], [-2.0, 2.0], [1.0, 0.5]), mixture([0.3, 0.7], [-1.0, 2.0], [1.0, 1.0])),
    (mixture([0.9, 0.1], [0.0, 5.0], [1.0, 0.3]), mixture([0.5, 0.5], [0.0, 4.0], [2.0, 1.0])),
    (mixture([1.0], [0.0], [1.0]), mixture([0.2, 0.3, 0.5], [0.0, 1.0, -1.0], [1.0, 2.0, 3.0])),
    (mixture([0.2, 0.8], [0.0, 1.0], [0.1, 0.1]), mixture([0.2, 0.8], [0.0, 1.0], [0.1, 0.1])),
    (mixture([0.0, 1.0], [9.0, 1.0], [0.1, 0.1]), mixture([0.2, 0.8], [0.0, 1.0], [0.1, 0.1])),
]


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_the_truth_lies_between(p, q):
    truth = quadrature.kl(
        lambda z: p.log_prob(z[:, 0]), lambda z: q.log_prob(z[:, 0]), lower=-12, upper=12, nodes=400
    ).item()
    bounds = mixture_kl_bounds(p, q)
    assert 0 <= bounds.lower.item() <= truth + 1e-9
    assert truth - 1e-9 <= bounds.upper.item()
    matching = [mixture_kl_bounds(p, q, iterations=n).upper.item() for n in (0, 1, 5, 40)]
    assert all(later <= sooner + 1e-12 for sooner, later in itertools.pairwise(matching))


def test_one_component_each_and_equal_mixtures_are_exact_above():
    p, q = (
        D.Normal(torch.tensor(0.0), torch.tensor(1.0)),
        D.Normal(torch.tensor(1.0), torch.tensor(2.0)),
    )
    assert mixture_kl_bounds(p, q).upper.item() == pytest.approx(closed_forms.kl(p, q).item())
    same = PAIRS[3][0]
    assert mixture_kl_bounds(same, same, iterations=500).upper.item() == pytest.approx(0, abs=1e-6)


def test_vectors_batches_and_gradients():
    """Diagonal and full components of the same covariances give the same bounds."""
    generator = torch.Generator().manual_seed(0)
    loc, std = torch.randn(2, 3, 4, 2, generator=generator).double(), torch.rand(3, 4, 2) + 0.5
    logits = torch.randn(2, 3, 4, generator=generator).double()
    std = std.double()
    diagonal, full = (
        [
            D.MixtureSameFamily(D.Categorical(logits=w), make(mean))
            for w, mean in zip(logits, loc, strict=True)
        ]
        for make in (
            lambda mean: D.Independent(D.Normal(mean, std), 1),
            lambda mean: D.MultivariateNormal(mean, torch.diag_embed(std**2)),
        )
    )
    bounds = mixture_kl_bounds(*diagonal)
    assert bounds.lower.shape == (3,)
    for ours, theirs in zip(bounds, mixture_kl_bounds(*full), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(bounds, mixture_kl_bounds(diagonal[0], full[1]), strict=True):
        torch.testing.assert_close(ours, theirs)
    draws = diagonal[0].sample((20_000,))
    terms = diagonal[0].log_prob(draws) - diagonal[1].log_prob(draws)
    error = 4.5 * terms.std(0) / draws.shape[0] ** 0.5
    assert (bounds.lower <= terms.mean(0) + error).all()
    assert (bounds.upper >= terms.mean(0) - error).all()
    leaf = loc[0].clone().requires_grad_()
    parts = D.Independent(D.Normal(leaf, std), 1)
    value = mixture_kl_bounds(
        D.MixtureSameFamily(D.Categorical(logits=logits[0]), parts), diagonal[1]
    )
    (gradient,) = torch.autograd.grad(sum(value).sum(), leaf)
    assert torch.isfinite(gradient).all()


def test_components_may_share_one_covariance():
    loc, tril = torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    weights = D.Categorical(torch.tensor([0.4, 0.6]))
    shared, apart = (
        D.MixtureSameFamily(weights, D.MultivariateNormal(loc, scale_tril=scale))
        for scale in (tril, tril.repeat(2, 1, 1))
    )
    other = D.MultivariateNormal(torch.ones(2), torch.eye(2))
    for ours, theirs in zip(
        mixture_kl_bounds(shared, other), mixture_kl_bounds(apart, other), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_refusals_and_the_way_here():
    p = PAIRS[0][0]
    with pytest.raises(TypeError, match="mixture_kl_bounds"):
        closed_forms.kl(p, p)
    with pytest.raises(TypeError, match="q: expected a mixture of Gaussians"):
        mixture_kl_bounds(p, D.Gamma(torch.tensor(1.0), torch.tensor(1.0)))
    with pytest.raises(TypeError, match="p: expected Distribution; got int"):
        mixture_kl_bounds(1, p)
    with pytest.raises(ValueError, match="iterations: expected at least 0"):
        mixture_kl_bounds(p, p, iterations=-1)
    plane = D.MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="the same event size"):
        mixture_kl_bounds(p, plane)


def test_components_too_far_apart_to_say_are_infinite():
    p = D.Normal(torch.tensor(0.0), torch.tensor(1.0))
    q = D.Normal(torch.tensor(0.0), torch.tensor(1e-30))
    assert mixture_kl_bounds(p, q).upper == math.inf


def test_no_iteration_is_allowed_and_fewer_are_not():
    with pytest.raises(ValueError, match="iterations: expected at least 0; got -1"):
        mixture_kl_bounds(*PAIRS[0], iterations=-1)
