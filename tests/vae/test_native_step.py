"""The step in C is the step by hand, in float64 and in PyTorch, up to float32's rounding."""

import pytest
import torch

from kullback.vae import Architecture, Training, build
from kullback.vae.elbo_step import library, step_for
from kullback.vae.limits import ADAM_BLOCK
from kullback.vae.state import FlatParameters, State, checkpoint

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler here")
SETTINGS = Training(steps=1)


def gradients(activation, dtype, **options):
    """Return (loss, ELBO and rate, flat gradient) of one step from the same weights and noise."""
    loss, figures, flat = step_taken(activation, dtype, **options)
    return loss, figures, flat.gradient


def step_taken(activation, dtype, *, size, hidden, latent, batch, gain, beta):
    """Return (loss, ELBO and rate, flat parameters) after such a step."""
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
    return loss, figures, flat


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


@pytest.mark.parametrize("factor", [1.0, 0.03])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e8])
def test_adam_is_that_of_pytorch_in_float64(scale, factor):
    torch.manual_seed(0)
    model = torch.nn.Linear(37, 5)
    exact = torch.nn.Linear(37, 5, dtype=torch.float64)
    exact.load_state_dict(model.state_dict())
    groups = [
        {"params": [exact.weight], "weight_decay": 20.0},
        {"params": [exact.bias], "weight_decay": 0.0},
    ]
    truth = torch.optim.AdamW(groups)
    state = State.start(model, SETTINGS)
    generator = torch.Generator().manual_seed(1)
    rates = [1e-3, 4e-3, 0.0, 1e-2, 2e-3]
    for rate in rates:
        gradient = scale * torch.randn(5 * 38, generator=generator)
        state.flat.gradient.copy_(gradient)
        state.update(rate, 20.0 * rate, factor)
        gradient = gradient.double() * factor
        exact.weight.grad = gradient[: 5 * 37].view(5, 37)
        exact.bias.grad = gradient[5 * 37 :]
        for group in truth.param_groups:
            group["lr"] = rate
        truth.step()
    ours = torch.cat([p.detach().flatten() for p in (model.weight, model.bias)])
    exactly = torch.cat([p.detach().flatten() for p in (exact.weight, exact.bias)])
    # a step rounds a weight below 1 three times, and a ratio below 4 of moments twenty times
    bound = 2**-24 * sum(3.0 + 20.0 * 4.0 * rate for rate in rates)
    assert (ours.double() - exactly).abs().max() <= bound


@pytest.mark.parametrize("matrices", [0, 5000, 10_001])
def test_adam_in_parts_is_adam(matrices):
    tensors = torch.rand(4, 10_001, generator=torch.Generator().manual_seed(0))
    again = tensors.clone()
    constants = (10_001, matrices, 0.9, 0.999, 0.5, 0.99, 1e-3, 1.5, 1e-8)
    library().adam(*(tensor.data_ptr() for tensor in tensors), 0, 3, *constants)
    for first, last in ((2, 3), (0, 2)):
        library().adam(*(tensor.data_ptr() for tensor in again), first, last, *constants)
    assert ADAM_BLOCK == 4096
    assert torch.equal(tensors, again)


@pytest.mark.parametrize("gain", [1.0, 0.0, float("nan")])
def test_the_norm_is_that_of_the_gradient(gain):
    shape = {"size": 784, "hidden": (200, 200), "latent": 50, "batch": 100}
    flat = step_taken("tanh", torch.float32, **shape, gain=gain, beta=1.0)[2]
    exact = torch.linalg.vector_norm(flat.gradient.double())
    norm = flat.norm().double()
    # blocks of 1,024 squares in float32
    torch.testing.assert_close(norm, exact, rtol=1024 * 2**-24, atol=0.0, equal_nan=True)
    assert flat.squares is not None
    flat.differentiate(sum(p.sum() for p in flat.parameters))
    assert float(flat.norm()) == pytest.approx(len(flat.vector) ** 0.5, rel=1024 * 2**-24)


def test_bits_of_any_dtype_give_the_same_step():
    torch.manual_seed(0)
    mean = torch.linspace(0.1, 0.9, 33)
    model = build((33,), "binary", Architecture(network="mlp", hidden=(4,), latent=2), mean=mean)
    flat = FlatParameters(model)
    step = step_for(model, flat, SETTINGS)
    bits = torch.bernoulli(torch.full((5, 33), 0.5)).to(torch.uint8)
    noise = torch.randn(1, 5, 2)
    found = []
    for x in (bits, bits.float(), bits.t().contiguous().t()):
        step(x, noise, 1.0)
        found.append(flat.gradient.clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_naming_the_state_before_the_first_step_leaves_the_optimiser_empty():
    """As several processes do when they begin: the first step then makes the moments."""
    model = build((4,), "binary", Architecture(network="mlp", hidden=(2,), latent=1))
    state = State.start(model, Training(steps=1))
    assert "vector" in checkpoint._tensors(state)
    state.flat.gradient.fill_(1.0)
    before = state.flat.vector.clone()
    state.update(1e-3, 0.0)
    torch.testing.assert_close(state.flat.vector, before - 1e-3, rtol=0, atol=1e-6)
