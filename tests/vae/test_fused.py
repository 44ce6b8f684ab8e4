"""The fused pieces against their plain forms, forward and backward, and against differences."""

import itertools

import pytest
import torch
from torch.nn.functional import linear, relu, silu

from kullback.vae import latents as diagonal_gaussian
from kullback.vae.latents import draw_and_kl
from kullback.vae.likelihoods import bernoulli_log_likelihood, bernoulli_total
from kullback.vae.networks import ACTIVATIONS, Mlp, mlp

PLAIN = {"tanh": torch.tanh, "silu": silu, "relu": relu}


def leaves(*shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes
    ]


def plain_mlp(x, weights, biases, activation):
    for weight, bias in list(zip(weights, biases, strict=True))[:-1]:
        x = PLAIN[activation](linear(x, weight, bias))
    return linear(x, weights[-1], biases[-1])


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("sizes", [(3, 2), (4, 5, 2), (1, 7, 3, 1)])
def test_mlp_is_the_plain_stack(activation, sizes):
    pairs = list(itertools.pairwise(sizes))
    x, *weights = leaves((6, sizes[0]), *[(out, into) for into, out in pairs])
    biases = leaves(*[(out,) for _, out in pairs], seed=1)
    every = [x, *weights, *biases]
    fused, plain = (f(x, weights, biases, activation) for f in (mlp, plain_mlp))
    torch.testing.assert_close(fused, plain, rtol=1e-14, atol=1e-14)
    cotangent = torch.randn(fused.shape, dtype=torch.float64, generator=torch.Generator())
    ours = torch.autograd.grad(fused, every, cotangent)
    theirs = torch.autograd.grad(plain, every, cotangent)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_mlp_passes_gradcheck():
    x, w1, w2 = leaves((3, 2), (4, 2), (2, 4))
    b1, b2 = leaves((4,), (2,), seed=1)
    assert torch.autograd.gradcheck(
        lambda *a: mlp(a[0], a[1:3], a[3:], "tanh"), (x, w1, w2, b1, b2)
    )


def test_mlp_writes_its_gradients_where_it_is_told():
    x, w1, w2 = leaves((3, 2), (4, 2), (2, 4))
    b1, b2 = leaves((4,), (2,), seed=1)
    every = [w1, w2, b1, b2]
    buffers = [torch.full_like(p, 7.0) for p in every]
    plain = torch.autograd.grad(mlp(x, [w1, w2], [b1, b2], "silu").sum(), every)
    lent = torch.autograd.grad(mlp(x, [w1, w2], [b1, b2], "silu", buffers=buffers).sum(), every)
    for ours, theirs, buffer in zip(lent, plain, buffers, strict=True):
        assert ours.data_ptr() == buffer.data_ptr()
        torch.testing.assert_close(ours, theirs)


def test_draw_and_kl_is_the_plain_pair():
    mean, log_sd = leaves((4, 3), (4, 3))
    noise = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z, kl = draw_and_kl(mean, log_sd, noise)
    torch.testing.assert_close(z, diagonal_gaussian.draw(mean, log_sd, noise))
    torch.testing.assert_close(kl, diagonal_gaussian.kl_to_standard_normal(mean, log_sd))
    assert torch.autograd.gradcheck(lambda m, s: draw_and_kl(m, s, noise), (mean, log_sd))


def test_mlp_in_bfloat16_is_near_float32():
    net = Mlp((8, 16, 4))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    net(x).square().sum().backward()
    kept = [p.grad.clone() for p in net.parameters()]
    net = net.bfloat16()
    net.zero_grad()
    low = net(x)
    low.float().square().sum().backward()
    assert low.dtype == torch.bfloat16
    for parameter, exact in zip(net.parameters(), kept, strict=True):
        # bfloat16 keeps 8 bits: a relative error of some 2^-8 per product, a few products deep
        assert (parameter.grad.float() - exact).norm() <= 4 * 2**-8 * exact.norm()


def test_mlp_refuses_an_unknown_activation():
    with pytest.raises(ValueError, match="activation: expected one of"):
        mlp(torch.ones(1, 1), [torch.ones(1, 1)], [torch.ones(1)], "gelu")


def test_bernoulli_is_the_log_of_the_probability():
    (logits,) = leaves((3, 4, 5))
    x = torch.bernoulli(
        torch.full((4, 5), 0.4), generator=torch.Generator().manual_seed(1)
    ).double()
    plain = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)
    ours = bernoulli_log_likelihood(logits, x)
    torch.testing.assert_close(ours, plain, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), logits), torch.autograd.grad(plain.sum(), logits)
    )
    assert torch.autograd.gradcheck(lambda ell: bernoulli_log_likelihood(ell, x), (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-4, 30.0, 80.0, 1e4])
def test_bernoulli_at_the_edges(dtype, size):
    """Large logits neither overflow nor lose the answer, and the gradient is x − σ(l)."""
    logits = torch.tensor([[size, -size]], dtype=dtype, requires_grad=True)
    x = torch.tensor([[1.0, 1.0]])
    value = bernoulli_log_likelihood(logits, x)
    exact = torch.nn.functional.logsigmoid(logits.detach().double()).sum(-1)
    torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    expected = 1.0 - torch.sigmoid(logits.detach().double())
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=2**-8)


@pytest.mark.parametrize("size", [1, 16, 98, 101, 784, 3 * 32 * 32])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e3])
def test_bernoulli_is_accurate_at_every_width(size, scale):
    """Products of up to a hundred factors: errors of some hundred roundings of the sum."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(20, size, generator=generator, dtype=torch.float64)
    x = torch.bernoulli(torch.full((20, size), 0.3, dtype=torch.float64), generator=generator)
    truth = (x * logits + torch.nn.functional.logsigmoid(-logits)).sum(-1)
    torch.testing.assert_close(bernoulli_log_likelihood(logits, x), truth, rtol=1e-13, atol=1e-12)
    single = bernoulli_log_likelihood(logits.float(), x.float()).double()
    bound = 200 * 2**-24 * (logits.abs().sum(-1) + size)
    assert ((single - truth).abs() <= bound).all()


@pytest.mark.parametrize("size", [784, 13])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 60.0])
def test_bernoulli_total_is_the_sum_of_values(size, scale):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(20, size, generator=generator, dtype=torch.float64)
    x = torch.bernoulli(torch.full((20, size), 0.3, dtype=torch.float64), generator=generator)
    truth = bernoulli_log_likelihood(logits, x).sum()
    total = bernoulli_total(logits, x, torch.sigmoid(logits))
    torch.testing.assert_close(total, truth, rtol=1e-12, atol=1e-12)
    single = bernoulli_total(logits.float(), x.float(), torch.sigmoid(logits.float())).double()
    assert (single - truth).abs() <= 200 * 2**-24 * (logits.abs().sum() + logits.numel())


def test_tanh_in_float32_is_tanh():
    x = torch.linspace(-12, 12, 20_001)
    exact = torch.tanh(x.double())
    one, zero = torch.ones(1, 1), torch.zeros(1)
    ours = ACTIVATIONS["tanh"][0](zero, x.unsqueeze(1), one)[0].squeeze(1).double()
    # σ within 1.5 roundings, doubled, and two roundings more
    assert (ours - exact).abs().max() <= 4 * 2**-24


def test_bernoulli_probabilities_sum_to_one_by_enumeration():
    (logits,) = leaves((1, 4))
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
    total = bernoulli_log_likelihood(logits.expand(16, 4), outcomes).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-14)
