"""The step in C is the step by hand, in float64 and in PyTorch, up to float32's rounding."""

import pytest
import torch

from kullback.vae import Architecture, Training, build
from kullback.vae.checkpoint import FlatParameters
from kullback.vae.elbo_step import library, step_for

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler here")
SETTINGS = Training(steps=1)


def gradients(activation, dtype, *, size, hidden, latent, batch, gain, beta):
    """Return (loss, ELBO and rate, flat gradient) of one step from the same weights and noise."""
    architecture = Architecture(
        network="mlp", hidden=hidden, latent=latent, activation=activation, likelihood="auto"
    )
    torch.manual_seed(0)
    model = build((size,), "binary", architecture, mean=torch.full((size,), 0.3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain)
    model = model.to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.bernoulli(torch.full((batch, size), 0.4), generator=generator).to(dtype)
    noise = torch.randn(1, batch, latent, generator=generator).to(dtype)
    flat = FlatParameters(model)
    step = step_for(model, flat, SETTINGS)
    assert (step.functions is not None) == (dtype == torch.float32)
    loss, figures = step(x, noise, beta)
    return loss, figures, flat.gradient


@pytest.mark.sweep(4)
@pytest.mark.parametrize("activation", ["relu", "silu", "tanh"])
@pytest.mark.parametrize(
    "shape",
    [
        {"size": 784, "hidden": (200, 200), "latent": 50, "batch": 100},
        {"size": 1, "hidden": (1,), "latent": 1, "batch": 1},
        {"size": 113, "hidden": (17, 3, 33), "latent": 5, "batch": 7},
    ],
)
@pytest.mark.parametrize(("gain", "beta"), [(1.0, 1.0), (0.0, 0.3), (0.5, 0.0)])
def test_it_is_the_step_in_float64(activation, shape, gain, beta):
    exact = gradients(activation, torch.float64, **shape, gain=gain, beta=beta)
    ours = gradients(activation, torch.float32, **shape, gain=gain, beta=beta)
    for value, truth in zip(ours, exact, strict=True):
        # a few hundred roundings of sums whose terms are at most the largest component's size
        bound = 300 * 2**-24 * max(1.0, float(truth.abs().max()))
        assert (value.double() - truth).abs().max() <= bound


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1e4])
def test_the_bernoulli_pass_at_extreme_logits(scale):
    logits = scale * torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    x = torch.bernoulli(torch.full((5, 300), 0.3), generator=torch.Generator().manual_seed(1))
    exact = logits.double()
    truth = (x * exact + torch.nn.functional.logsigmoid(-exact)).sum()
    slope, bias, by_bias = torch.sigmoid(exact) - x, torch.zeros(300), torch.full((300,), 9.0)
    pointers = [tensor.data_ptr() for tensor in (logits, bias, x, by_bias)]
    total = library().bernoulli(*pointers, 5, 300, 0.5)
    assert abs(total - truth) <= 300 * 2**-24 * (exact.abs().sum() + exact.numel())
    assert (logits - 0.5 * slope).abs().max() <= 8 * 2**-24
    assert (by_bias - 0.5 * slope.sum(0)).abs().max() <= 40 * 2**-24


def test_what_is_not_finite_stays_so():
    _, _, clean = gradients("tanh", torch.float32, **SMALL, gain=1.0, beta=1.0)
    loss, _, bad = gradients("tanh", torch.float32, **SMALL, gain=float("nan"), beta=1.0)
    assert clean.isfinite().all()
    assert loss.isnan()
    assert bad.isnan().any()


SMALL = {"size": 30, "hidden": (8,), "latent": 2, "batch": 4}


def test_a_batch_of_another_size_is_another_step():
    torch.manual_seed(0)
    model = build((6,), "binary", Architecture(network="mlp", hidden=(4,), latent=2))
    step = step_for(model, FlatParameters(model), SETTINGS)
    whole = torch.bernoulli(torch.full((5, 6), 0.5))
    noise = torch.randn(1, 5, 2)
    first = step(whole, noise, 1.0)[1]
    step(whole[:3], noise[:, :3], 1.0)
    assert torch.equal(step(whole, noise, 1.0)[1], first)
