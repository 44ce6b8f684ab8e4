"""Pixels that depend on those before them, against enumeration and the factors written out."""

import itertools
import math

import numpy as np
import pytest
import torch

from kullback.core import ArgumentValueError
from kullback.data import load
from kullback.vae import Architecture, Training, build, run
from kullback.vae.architecture import Spec
from kullback.vae.likelihoods import (
    OFFSETS,
    Bernoulli,
    DiscretisedLogistics,
    Event,
    Neighbours,
)
from kullback.vae.likelihoods.compiled import library
from oracles import check_frequencies


def made(kind, shape, count, patch=0):
    if kind == "bits":
        return Neighbours(Bernoulli(shape), count), 2
    dependent = kind != "colours apart"
    mixture = DiscretisedLogistics(shape, components=2, levels=3, patch=patch, dependent=dependent)
    return Neighbours(mixture, count), 3


def outputs(likelihood, rows=1, seed=0, scale=1.0):
    event = likelihood.event
    lead = (rows, math.prod(event.shape[1:]) // event.places) if event.patch else (rows,)
    generator = torch.Generator().manual_seed(seed)
    shape = (*lead, likelihood.channels, event.places)
    return scale * torch.randn(shape, generator=generator)


def every(shape, levels):
    values = itertools.product(range(levels), repeat=math.prod(shape))
    return torch.tensor(list(values)).reshape(-1, *shape).float()


SMALL = [("bits", (1, 2, 3)), ("bits", (2, 2, 2)), ("levels", (1, 2, 3)), ("levels", (2, 1, 3))]
SMALL += [("colours apart", (2, 1, 3))]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(("kind", "shape"), SMALL)
def test_the_probabilities_of_all_images_sum_to_one(kind, shape, count):
    likelihood, levels = made(kind, shape, count)
    x = every(shape, levels)
    parameters = outputs(likelihood).expand(len(x), -1, -1).double()
    total = likelihood.log_prob(parameters, x.double()).logsumexp(0)
    assert abs(float(total)) < 1e-12


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(("kind", "shape"), [("bits", (1, 3, 4)), ("levels", (2, 3, 4))])
def test_it_is_the_product_of_its_factors(kind, shape, count):
    likelihood, levels = made(kind, shape, count)
    inner = likelihood.likelihood
    x = torch.randint(levels, (5, *shape), generator=torch.Generator().manual_seed(1)).double()
    parameters = outputs(likelihood, rows=5).double()
    own = parameters[:, : inner.channels].reshape(5, -1, *shape[1:])
    weights = parameters[:, inner.channels :].reshape(5, count, inner.moves, *shape[1:])
    unit = 2.0 * x / (levels - 1) - 1.0
    total = torch.zeros(5).double()
    for row, column in itertools.product(range(shape[1]), range(shape[2])):
        shift = torch.zeros(5, inner.moves, 1).double()
        for n, (right, down) in enumerate(OFFSETS[:count]):
            if row + down >= 0 and 0 <= column + right < shape[2]:
                value = unit[:, :, row + down, column + right]
                if kind == "levels":  # two logits, then a mean for each colour
                    value = torch.cat([value.mean(1, keepdim=True)] * 2 + [value], 1)
                shift[..., 0] += weights[:, n, :, row, column] * value
        pixel = inner.at(1)
        here = inner.moved(own[:, :, row, column].unsqueeze(-1), shift)
        total += pixel.log_prob(here, x[:, :, row, column].unsqueeze(-1))
    # sums of 24 terms of some nats
    assert torch.allclose(likelihood.log_prob(parameters, x), total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "shape"), SMALL)
def test_draws_have_the_probabilities_it_gives(kind, shape):
    likelihood, levels = made(kind, shape, 4)
    x = every(shape, levels)
    parameters = outputs(likelihood)
    expected = likelihood.log_prob(parameters.expand(len(x), -1, -1), x).exp()
    draws, generator = 20_000, torch.Generator().manual_seed(0)
    drawn = likelihood.sample(parameters.expand(draws, -1, -1), generator)
    check_frequencies(drawn, expected, levels)


def test_patches_are_only_another_order():
    plain, _ = made("levels", (2, 4, 6), 4)
    patched, _ = made("levels", (2, 4, 6), 4, patch=2)
    parameters = outputs(plain, rows=3)
    split = Event((plain.channels, 4, 6), patch=2).split(parameters.reshape(3, -1, 4, 6))
    x = torch.randint(3, (3, 2, 4, 6), generator=torch.Generator().manual_seed(2)).float()
    assert torch.equal(patched.event.in_rows(split), parameters)
    assert torch.allclose(plain.log_prob(parameters, x), patched.log_prob(split, x), rtol=1e-5)
    assert torch.equal(plain.mean(parameters), patched.mean(split))
    one, other = (torch.Generator().manual_seed(3) for _ in range(2))
    assert torch.equal(plain.sample(parameters, one), patched.sample(split, other))


def test_gradients_are_those_of_the_plain_form():
    patched, _ = made("levels", (3, 4, 4), 3, patch=2)  # compiled where a compiler is at hand
    x = torch.randint(3, (2, 3, 4, 4), generator=torch.Generator().manual_seed(4)).float()
    single = outputs(patched, rows=2).requires_grad_()
    double = single.detach().double().requires_grad_()
    for one in (single, double):
        patched.log_prob(one, x).sum().backward()
    assert torch.allclose(single.grad.double(), double.grad, rtol=1e-4, atol=1e-5)


def test_several_draws_share_an_image():
    likelihood, _ = made("levels", (1, 3, 3), 4)
    parameters = torch.stack([outputs(likelihood, rows=2, seed=s) for s in range(3)])
    x = torch.randint(3, (2, 1, 3, 3), generator=torch.Generator().manual_seed(5)).float()
    each = torch.stack([likelihood.log_prob(one, x) for one in parameters])
    assert torch.allclose(likelihood.log_prob(parameters, x), each, rtol=1e-6)
    assert likelihood.sample(parameters, torch.Generator()).shape == (3, 2, 1, 3, 3)


def test_without_weight_it_is_the_likelihood_itself():
    likelihood, _ = made("levels", (2, 3, 4), 4)
    inner = likelihood.likelihood
    parameters = outputs(likelihood, rows=3)
    parameters[:, inner.channels :] = 0.0
    x = torch.randint(3, (3, 2, 3, 4), generator=torch.Generator().manual_seed(6)).float()
    own = parameters[:, : inner.channels]
    assert torch.allclose(likelihood.log_prob(parameters, x), inner.log_prob(own, x), rtol=1e-6)
    # pixels are taken in other groups, whose exponentials differ in the last bit: 2 components
    roundings = 8 * torch.finfo(torch.float32).eps * 2
    assert torch.allclose(likelihood.mean(parameters), inner.mean(own), rtol=0, atol=roundings)
    bias = likelihood.initial_bias(torch.ones(2, 3, 4))
    assert not bias[inner.channels :].any()


def test_which_models_have_them():
    resolved = Architecture().resolved
    assert resolved((1, 28, 28), "8-bit").neighbours == 4
    assert resolved((3, 64, 64), "8-bit").neighbours == 4
    assert resolved((1, 28, 28), "binary").neighbours == 0
    assert resolved((1, 28, 28), "levels").neighbours == 0
    assert resolved((1, 4, 4), "8-bit").neighbours == 0
    assert resolved((10,), "8-bit").neighbours == 0
    assert Architecture(likelihood="categorical").resolved((1, 28, 28), "8-bit").neighbours == 0
    assert Architecture(network="mlp").resolved((1, 28, 28), "8-bit").neighbours == 0
    assert Architecture(neighbours=2).resolved((1, 28, 28), "binary").neighbours == 2


def test_models_made_before_have_none():
    spec = Spec((1, 28, 28), "8-bit", Architecture().resolved((1, 28, 28), "8-bit"))
    fields = spec.to_dict()
    assert Spec.from_dict(fields) == spec
    del fields["architecture"]["neighbours"]
    assert Spec.from_dict(fields).architecture.neighbours == 0


@pytest.mark.parametrize("count", [5, -2, 1.0, True])
def test_another_number_is_refused(count):
    with pytest.raises(ArgumentValueError, match=r"neighbours: expected 0 to 4"):
        Architecture(neighbours=count)


@pytest.mark.parametrize(
    ("shape", "kind", "likelihood"),
    [
        ((10,), "8-bit", "auto"),
        ((10,), "binary", "auto"),
        ((1, 28, 28), "8-bit", "categorical"),
        ((1, 28, 28), "8-bit", "beta_binomial"),
        ((1, 28, 28), "continuous", "auto"),
        ((1, 100), "sound", "auto"),
    ],
)
def test_what_has_no_neighbours_is_refused(shape, kind, likelihood):
    asked = Architecture(neighbours=2, likelihood=likelihood)
    with pytest.raises(ArgumentValueError, match=r"neighbours: expected 0 with likelihood"):
        asked.resolved(shape, kind)


def test_units_of_the_data_are_refused():
    asked = Architecture(neighbours=2)
    mean, spread = torch.full((1, 8, 8), 900.0), torch.full((1, 8, 8), 10.0)
    with pytest.raises(ArgumentValueError, match="in units of the data's own spread"):
        build((1, 8, 8), "levels", asked, levels=2000, mean=mean, spread=spread)


@pytest.mark.slow
def test_a_run_learns_a_texture_that_z_cannot_hold(tmp_path):
    """Rows of one random grey each: 8 numbers an image, of which z has 2; the rest is copied."""
    rows = torch.randint(256, (600, 8, 1), generator=torch.Generator().manual_seed(0))
    images = rows.expand(-1, -1, 8).to(torch.uint8).numpy()
    np.savez(tmp_path / "rows.npz", x_train=images[:500], x_test=images[500:])
    data = load(tmp_path / "rows.npz")
    figures = []
    for neighbours in (0, 1):
        small = Architecture(hidden=(8, 16), latent=2, neighbours=neighbours)
        training = Training(steps=200, batch_size=50, learning_rate=0.01)
        out = run.train(
            data, architecture=small, training=training, folder=tmp_path / str(neighbours)
        )
        figures.append(out.model.elbo(data.test))
    gain = figures[1] - figures[0]
    assert gain.mean() > 4.5 * gain.std() / len(gain) ** 0.5


@pytest.mark.sweep(3)
@pytest.mark.skipif(library() is None, reason="no C compiler here")
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("shape", "components", "levels", "patch"),
    [
        ((3, 8, 12), 3, 256, 4),
        ((1, 5, 13), 1, 256, 0),
        ((2, 6, 6), 2, 7, 3),
        ((1, 16, 16), 5, 2, 8),
    ],
)
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_compiled_form_is_the_plain_one_in_float64(
    shape, components, levels, patch, count, scale
):
    """Value and gradient, at both end levels and at those between, for two draws of three items."""
    mixture = DiscretisedLogistics(shape, components=components, levels=levels, patch=patch)
    likelihood = Neighbours(mixture, count)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(levels, (3, *shape), generator=generator).double()
    x[0], x[1, ..., 0] = 0, levels - 1
    places = (likelihood.channels, likelihood.event.places)
    lead = (2, 3, math.prod(shape[1:]) // patch**2) if patch else (2, 3)
    theta = scale * torch.randn(*lead, *places, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    for dtype, ulp, often in ((torch.float32, 2**-24, 300), (torch.bfloat16, 2**-9, 4)):
        given = theta.to(dtype).requires_grad_()
        exact = given.detach().double().requires_grad_()
        truth, ours = likelihood.log_prob(exact, x), likelihood.log_prob(given, x.float())
        assert type(ours.grad_fn).__name__ == "_MixtureBackward"
        # some roundings of each place's term, of the edges in it and of what moves them
        bound = 30 * 2**-24 * (1 + count) * (truth.abs() + math.prod(shape))
        assert ((ours - truth).abs() <= bound).all()
        (by_exact,) = torch.autograd.grad((weights * truth).sum(), exact)
        (by_given,) = torch.autograd.grad((weights.float() * ours).sum(), given)
        assert (by_given - by_exact).abs().max() <= often * ulp * (1 + count) * by_exact.abs().max()


@pytest.mark.skipif(library() is None, reason="no C compiler here")
@pytest.mark.parametrize("channel", range(11))  # 3 of the mixture, then 2 for each neighbour
def test_the_compiled_form_hides_no_nan(channel):
    likelihood = Neighbours(DiscretisedLogistics((1, 3, 3), components=1), 4)
    theta = torch.zeros(1, likelihood.channels, 9)
    theta[0, channel, 4] = math.nan
    value = likelihood.log_prob(theta.requires_grad_(), torch.full((1, 1, 3, 3), 100.0))
    assert type(value.grad_fn).__name__ == "_MixtureBackward"
    assert not torch.isfinite(value).all()


@pytest.mark.skipif(library() is None, reason="no C compiler here")
def test_a_gradient_can_be_taken_twice_and_is_the_same_in_threads():
    likelihood = Neighbours(DiscretisedLogistics((3, 8, 8), components=2, patch=4), 4)
    theta = outputs(likelihood, rows=7).requires_grad_()
    x = torch.randint(256, (7, 3, 8, 8), generator=torch.Generator().manual_seed(1)).float()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            value = likelihood.log_prob(theta, x).square().sum()
            found += [torch.autograd.grad(value, theta, retain_graph=True)[0] for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)
