"""The gradient by hand is autograd's, for every case it claims, and it claims no other."""

import pytest
import torch

from kullback.vae import Architecture, Training, build
from kullback.vae.elbo_step import step_for
from kullback.vae.likelihoods import Bernoulli
from kullback.vae.loop import loss_terms
from kullback.vae.state import FlatParameters, trainable

SETTINGS = Training(steps=1, beta=0.7)


def world(activation, dtype=torch.float64, scale=1.0):
    architecture = Architecture(
        network="mlp", hidden=(7, 5), latent=3, activation=activation, likelihood="auto"
    )
    torch.manual_seed(0)
    mean = torch.linspace(0.1, 0.9, 6)
    model = build((6,), "binary", architecture, mean=mean, scale=scale).to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.bernoulli(torch.full((9, 6), 0.4), generator=generator).to(dtype)
    return model, x, torch.randn(1, 9, 3, generator=generator).to(dtype)


@pytest.mark.parametrize("activation", ["relu", "silu", "tanh"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_it_is_autograds(activation, scale):
    model, x, noise = world(activation, scale=scale)
    flat = FlatParameters(model)
    loss, figures = loss_terms(model, x, noise, SETTINGS)
    flat.differentiate(loss)
    expected = flat.gradient.clone()
    flat.gradient.fill_(float("nan"))
    step = step_for(model, flat, SETTINGS)
    ours, our_figures = step(x, noise, 0.7)
    torch.testing.assert_close(flat.gradient, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours, loss.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_figures, figures, rtol=1e-6, atol=1e-6)


def test_a_held_log_sd_has_no_gradient():
    model, x, noise = world("tanh", torch.float32)
    with torch.no_grad():
        model.encoder.net.biases[-1][3:] = torch.tensor([50.0, -50.0, 0.1])
        model.decoder.net.weights[0].mul_(1e-6)
    flat = FlatParameters(model)
    loss, _ = loss_terms(model, x, noise, SETTINGS)
    flat.differentiate(loss)
    expected = flat.gradient.clone()
    step_for(model, flat, SETTINGS)(x, noise, 0.7)
    torch.testing.assert_close(flat.gradient, expected, rtol=1e-4, atol=1e-5)
    place = flat.names.index("encoder.net.biases.2")
    assert flat.views_of(flat.gradient)[place][3:5].abs().max() == 0


def test_in_bfloat16_it_is_near():
    model, x, noise = world("silu", torch.float32)
    exact = FlatParameters(model)
    step_for(model, exact, SETTINGS)(x, noise, 0.7)
    model, x, noise = world("silu", torch.float32)
    rounded = FlatParameters(model, precision=torch.bfloat16)
    step_for(model, rounded, SETTINGS)(x, noise, 0.7)
    difference = (rounded.gradient - exact.gradient).norm()
    assert 0 < difference <= 8 * 2**-8 * exact.gradient.norm()


@pytest.mark.parametrize(
    ("architecture", "kind", "settings"),
    [
        (Architecture(network="conv", hidden=(4, 8), latent=2), "binary", {}),
        (Architecture(network="mlp", hidden=(4,), latent=2), "8-bit", {}),
        (Architecture(network="mlp", hidden=(4,), latent=2), "binary", {"objective": "iwae"}),
        (Architecture(network="mlp", hidden=(4,), latent=2), "binary", {"draws": 2}),
        (Architecture(network="mlp", hidden=(4,), latent=2), "binary", {"free_bits": 0.1}),
        (Architecture(network="mlp", hidden=(4,), latent=2), "binary", {"tighten": 0.1}),
    ],
)
def test_it_claims_no_other_case(architecture, kind, settings):
    model = build((1, 8, 8), kind, architecture)
    assert step_for(model, FlatParameters(model), Training(steps=1, **settings)) is None


class Tripled(Bernoulli):
    def log_prob(self, parameters, x):
        return 3.0 * super().log_prob(parameters, x)


@pytest.mark.parametrize("kind", ["derived", "frozen", "shared"])
def test_it_leaves_derived_classes_and_frozen_or_shared_weights_to_autograd(kind):
    model, x, noise = world("tanh", torch.float64)
    own = model.decoder.net
    if kind == "derived":
        model.likelihood = Tripled((6,))
    elif kind == "frozen":
        own.weights[0].requires_grad_(False)
    else:
        own.biases[1] = model.encoder.net.biases[0]
    trained = trainable(model)
    loss = loss_terms(model, x, noise, SETTINGS)[0]
    expected = torch.autograd.grad(loss, [one for _, one in trained])
    flat = FlatParameters(model)
    assert step_for(model, flat, SETTINGS) is None
    flat.differentiate(loss_terms(model, x, noise, SETTINGS)[0])
    for ours, truth in zip(flat.views_of(flat.gradient), expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-14)
