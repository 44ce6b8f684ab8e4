"""Pixels that depend on features of those before them, against enumeration and float64."""

import copy
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from kullback.core import ArgumentValueError
from kullback.data import load
from kullback.vae import VAE, Architecture, Parts, Training, build, run
from kullback.vae.architecture import Spec
from kullback.vae.likelihoods import (
    Bernoulli,
    CausalFeatures,
    DiscretisedLogistics,
    Event,
    Neighbours,
    WithContext,
    library,
)
from kullback.vae.limits import CONTEXT_REACH
from kullback.vae.model import with_parts
from oracles import check_frequencies

compiled = pytest.mark.skipif(library() is None, reason="no C compiler here")
SMALL = [("bits", (1, 2, 3)), ("bits", (2, 2, 2)), ("levels", (1, 2, 3)), ("levels", (2, 1, 3))]


def made(kind, shape, widths=(3, 3), patch=0):
    torch.manual_seed(0)
    if kind == "bits":
        return WithContext(Bernoulli(shape), widths), 2
    mixture = DiscretisedLogistics(shape, components=2, levels=3, patch=patch)
    return WithContext(mixture, widths), 3


def outputs(likelihood, rows=1, seed=0):
    event = likelihood.event
    lead = (rows, math.prod(event.shape[1:]) // event.places) if event.patch else (rows,)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((*lead, likelihood.channels, event.places), generator=generator)


def every(shape, levels):
    values = itertools.product(range(levels), repeat=math.prod(shape))
    return torch.tensor(list(values)).reshape(-1, *shape).float()


@pytest.mark.parametrize("widths", [(1,), (4, 4), (2, 2, 2)])
@pytest.mark.parametrize(("kind", "shape"), SMALL)
def test_the_probabilities_of_all_images_sum_to_one(kind, shape, widths):
    likelihood, levels = made(kind, shape, widths)
    x = every(shape, levels)
    parameters = outputs(likelihood).expand(len(x), -1, -1).double()
    total = likelihood.double().log_prob(parameters, x.double()).logsumexp(0)
    assert abs(float(total.detach())) < 1e-12


@pytest.mark.parametrize(("depth", "colours"), [(1, 1), (2, 3), (5, 1)])
def test_a_feature_reads_only_what_comes_before_it(depth, colours):
    torch.manual_seed(0)
    features = CausalFeatures(colours, (4,) * depth)
    x = torch.randn(1, colours, 7, 9, requires_grad=True)
    found = features(x)
    for row, column in ((0, 0), (0, 5), (3, 4), (6, 8)):
        (by,) = torch.autograd.grad(found[..., row, column].sum(), x, retain_graph=True)
        read = by.abs().sum((0, 1)).nonzero()
        assert all(r < row or (r == row and c < column) for r, c in read.tolist())
        assert len(read) > 0 or (row, column) == (0, 0)


@pytest.mark.sweep(4)
@pytest.mark.parametrize(("kind", "shape"), SMALL)
def test_draws_have_the_probabilities_it_gives(kind, shape):
    likelihood, levels = made(kind, shape)
    x, parameters = every(shape, levels), outputs(likelihood)
    with torch.no_grad():
        expected = likelihood.log_prob(parameters.expand(len(x), -1, -1), x).exp()
        draws, generator = 20_000, torch.Generator().manual_seed(0)
        drawn = likelihood.sample(parameters.expand(draws, -1, -1), generator)
    check_frequencies(drawn, expected, levels)


def test_drawing_in_fronts_is_drawing_pixel_by_pixel():
    """The mean of a pixel, given the means before it, one pixel at a time over a larger image."""
    likelihood, _ = made("bits", (1, 6, 11))
    parameters = outputs(likelihood, rows=2)
    with torch.no_grad():
        fronts = likelihood.mean(parameters)
        own, weights = likelihood.apart(parameters)
        slow = torch.zeros(2, 1, 6, 11)
        for row, column in itertools.product(range(6), range(11)):
            features = likelihood.features(2.0 * slow - 1.0)
            # pixels that are not taken yet are 0 in units, not −1: only those before are read
            here, seen = row * 11 + column, features[:, :, row, column]
            shift = sum(w[..., here] * seen[:, j, None] for j, w in enumerate(weights))
            slow[..., row, column] = torch.sigmoid(own[..., here] + shift)
    assert torch.allclose(fronts, slow, atol=1e-6)


class AllAgain(WithContext):
    """The slow form: in each front the features of all pixels, from the start."""

    def before(self, values):
        def at(x, y):
            image = values[..., CONTEXT_REACH:, CONTEXT_REACH:-CONTEXT_REACH].clone()
            return list(self.features(image)[..., y, x].split(1, 1))

        return at


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("kind", "shape", "widths", "rows"),
    [
        ("bits", (1, 1, 9), (3,), 1),
        ("levels", (1, 9, 1), (4, 4), 3),
        ("levels", (3, 4, 5), (2, 2, 2), 1),
        ("bits", (3, 5, 7), (4, 4), 5),
        ("levels", (2, 3, 6), (3,), 0),
    ],
)
def test_features_computed_once_draw_what_features_computed_in_every_front_do(
    kind, shape, widths, rows
):
    likelihood, _ = made(kind, shape, widths)
    for module in likelihood.features.parameters():
        module.data.add_(0.3)  # biases too
    likelihood, again = likelihood.double(), copy.deepcopy(likelihood).double()
    again.__class__ = AllAgain
    parameters = outputs(likelihood, rows).double()
    with torch.no_grad():
        drawn, slow = (
            one.sample(parameters, torch.Generator().manual_seed(1)) for one in (likelihood, again)
        )
        assert torch.equal(drawn, slow) and drawn.shape == (rows, *shape)
        assert torch.allclose(likelihood.mean(parameters), again.mean(parameters), rtol=1e-12)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("rows", [1, 3])
def test_in_float32_the_drawn_bits_are_the_same(rows):
    likelihood, _ = made("bits", (1, 14, 12), (8, 8))
    again = copy.deepcopy(likelihood)
    again.__class__ = AllAgain
    parameters = outputs(likelihood, rows)
    with torch.no_grad():
        drawn, slow = (
            one.sample(parameters, torch.Generator().manual_seed(1)) for one in (likelihood, again)
        )
    # a probability is rounded to some 1e-7, so that one of 500 bits differs in one of 20,000 tests
    assert torch.equal(drawn, slow)


def test_all_fronts_together_compute_every_feature_once(monkeypatch):
    likelihood, _ = made("bits", (1, 12, 10), (4, 4, 4))
    convolve, sizes = torch.nn.functional.conv2d, []

    def counted(*given, **options):
        out = convolve(*given, **options)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(torch.nn.functional, "conv2d", counted)
    with torch.no_grad():
        likelihood.sample(outputs(likelihood, rows=2), torch.Generator())
    assert sum(sizes) == 3 * 4 * (2 * 12 * 10)  # layers, features, pixels


def test_patches_are_only_another_order():
    plain, _ = made("levels", (2, 4, 6))
    patched, _ = made("levels", (2, 4, 6), patch=2)
    patched.load_state_dict(plain.state_dict())
    parameters = outputs(plain, rows=3)
    split = Event((plain.channels, 4, 6), patch=2).split(parameters.reshape(3, -1, 4, 6))
    x = torch.randint(3, (3, 2, 4, 6), generator=torch.Generator().manual_seed(2)).float()
    with torch.no_grad():
        assert torch.allclose(plain.log_prob(parameters, x), patched.log_prob(split, x), rtol=1e-5)
        assert torch.equal(plain.mean(parameters), patched.mean(split))


@compiled
@pytest.mark.parametrize(("shape", "width"), [((1, 9, 11), 1), ((2, 8, 8), 5), ((1, 28, 28), 16)])
@pytest.mark.parametrize("scale", [0.3, 6.0])
def test_the_compiled_bits_are_the_plain_ones_in_float64(shape, width, scale):
    likelihood, _ = made("bits", shape, (width, width))
    exact, _ = made("bits", shape, (width, width))
    exact = exact.double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(2, (3, *shape), generator=generator)
    theta = scale * torch.randn(2, 3, likelihood.channels, shape[1] * shape[2], generator=generator)
    factors = torch.randn(2, 3, generator=generator)
    for dtype, ulp in ((torch.float32, 2**-24), (torch.bfloat16, 2**-9)):
        given = theta.to(dtype).requires_grad_()
        wide = given.detach().double().requires_grad_()
        ours, truth = likelihood.log_prob(given, x.float()), exact.log_prob(wide, x.double())
        assert type(ours.grad_fn).__name__ == "_WeightedBitsBackward"
        # roundings of a logit of `width` terms, of each place's term, and of their sum
        size = float(wide.detach().abs().sum(-2).amax())
        bound = 30 * 2**-24 * (truth.abs() + math.prod(shape) * size**0.5)
        assert ((ours - truth).abs() <= bound).all()
        found = torch.autograd.grad((factors * ours).sum(), [given, *likelihood.parameters()])
        wanted = torch.autograd.grad((factors * truth).sum(), [wide, *exact.parameters()])
        for by, by_exact, one in zip(found, wanted, [ulp, *[2**-24] * len(wanted)], strict=False):
            assert (by - by_exact).abs().max() <= 300 * one * by_exact.abs().max()


SHAPES = [
    ((1, 5, 13), 4, 1, 256, 0),
    ((3, 8, 12), 5, 3, 256, 4),
    ((2, 6, 6), 1, 2, 7, 3),
    ((3, 1, 3), 2, 2, 2, 0),
]


@pytest.mark.sweep(4)
@compiled
@pytest.mark.parametrize(("shape", "width", "components", "levels", "patch"), SHAPES)
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_the_compiled_levels_are_the_plain_ones_in_float64(
    shape, width, components, levels, patch, scale
):
    """Values and gradients of two draws of three items, which share their features."""
    torch.manual_seed(0)
    mixture = DiscretisedLogistics(shape, components=components, levels=levels, patch=patch)
    likelihood = WithContext(mixture, (width, width))
    exact = copy.deepcopy(likelihood).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(levels, (3, *shape), generator=generator)
    x[0], x[1, ..., 0] = 0, levels - 1
    lead = (2, 3, math.prod(shape[1:]) // patch**2) if patch else (2, 3)
    places = (likelihood.channels, likelihood.event.places)
    theta = scale * torch.randn(*lead, *places, generator=generator)
    factors = torch.randn(2, 3, generator=generator)
    for dtype, ulp, often in ((torch.float32, 2**-24, 300), (torch.bfloat16, 2**-9, 4)):
        given = theta.to(dtype).requires_grad_()
        wide = given.detach().double().requires_grad_()
        ours, truth = likelihood.log_prob(given, x.float()), exact.log_prob(wide, x.double())
        assert type(ours.grad_fn).__name__ == "_MixtureBackward"
        # some roundings of each place's term, of the edges in it and of what moves them
        bound = 30 * 2**-24 * (1 + width) * (truth.abs() + math.prod(shape))
        assert ((ours - truth).abs() <= bound).all()
        found = torch.autograd.grad((factors * ours).sum(), [given, *likelihood.parameters()])
        wanted = torch.autograd.grad((factors * truth).sum(), [wide, *exact.parameters()])
        roundings = [often * ulp, *[300 * 2**-24] * len(wanted)]
        for by, by_exact, one in zip(found, wanted, roundings, strict=False):
            assert (by - by_exact).abs().max() <= one * (1 + width) * by_exact.abs().max()


@compiled
@pytest.mark.parametrize(
    ("kind", "shape", "patch"), [("bits", (2, 4, 5), 0), ("levels", (3, 4, 4), 2)]
)
def test_the_compiled_gradient_is_a_difference_of_float64(kind, shape, patch):
    """Of parameters and weights of the features together, along one direction."""
    likelihood, levels = made(kind, shape, (3, 3), patch)
    exact = copy.deepcopy(likelihood).double()
    generator = torch.Generator().manual_seed(3)
    theta = outputs(likelihood, rows=4).requires_grad_()
    x = torch.randint(levels, (4, *shape), generator=generator).float()
    moved = [theta, *likelihood.parameters()]
    found = torch.autograd.grad(likelihood.log_prob(theta, x).sum(), moved)
    ways = [torch.randn(one.shape, generator=generator).double() for one in moved]
    step, sides = 1e-5, []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for one, start, way in zip(exact.parameters(), moved[1:], ways[1:], strict=True):
                one.copy_(start.double() + sign * step * way)
            there = theta.double() + sign * step * ways[0]
            sides.append(float(exact.log_prob(there, x.double()).sum()))
    expected = (sides[0] - sides[1]) / (2 * step)
    terms = [by.double() * way for by, way in zip(found, ways, strict=True)]
    size = sum(float(one.abs().sum()) for one in terms)
    # roundings of float32 in every term; differences of float64 are wrong by 1e-9 of their size
    assert abs(float(sum(one.sum() for one in terms)) - expected) <= 30 * 2**-24 * size


@compiled
def test_only_the_features_or_only_the_parameters_ask_for_a_gradient():
    likelihood, theta, x = case("levels in a context")
    wanted = torch.autograd.grad(
        likelihood.log_prob(theta.requires_grad_(), x).sum(), [theta, *likelihood.parameters()]
    )
    features = likelihood.log_prob(theta.detach(), x).sum()
    found = torch.autograd.grad(features, list(likelihood.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted[1:], strict=True))
    likelihood.requires_grad_(requires_grad=False)
    (by,) = torch.autograd.grad(likelihood.log_prob(theta, x).sum(), theta)
    assert torch.equal(by, wanted[0])


@compiled
@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_compiled_bits_hide_no_nan(place):
    likelihood, _ = made("bits", (1, 3, 3), (3,))
    theta = torch.zeros(1, likelihood.channels, 9)
    theta[0, place, 4] = math.nan
    assert torch.isnan(likelihood.log_prob(theta, torch.ones(1, 1, 3, 3))).all()


MIXTURE = {"components": 2, "levels": 5, "patch": 2}
KINDS = {
    "bits in a context": lambda: WithContext(Bernoulli((2, 4, 4)), (3, 3)),
    "levels in a context": lambda: WithContext(DiscretisedLogistics((2, 4, 4), **MIXTURE), (3,)),
    "levels and neighbours": lambda: Neighbours(DiscretisedLogistics((2, 4, 4), **MIXTURE), 2),
    "levels": lambda: DiscretisedLogistics((2, 4, 4), **MIXTURE),
    "bits and neighbours": lambda: Neighbours(Bernoulli((2, 4, 4)), 3),
}


def case(kind, rows=3):
    torch.manual_seed(0)
    likelihood = KINDS[kind]()
    event = likelihood.event
    lead = (rows, 4) if event.patch else (rows,)
    theta = torch.randn(*lead, likelihood.channels, event.places)
    return likelihood, theta, torch.randint(2, (rows, *event.shape)).float()


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_another_shape_are_never_read_as_if_they_fitted(kind):
    likelihood, theta, x = case(kind)
    theta.requires_grad_()
    for wrong in (theta[..., :-1, :], theta[..., :-1], theta[:2], theta.expand(2, *theta.shape)):
        data = x.expand(2, *x.shape) if wrong.dim() > theta.dim() else x  # six events, not three
        with pytest.raises(RuntimeError):
            likelihood.log_prob(wrong, data)


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_for_all_rows_and_one_row_for_all_images(kind):
    likelihood, theta, x = case(kind)
    theta.requires_grad_()
    each = torch.cat([likelihood.log_prob(row[None], x[:1]) for row in theta]).detach()
    assert torch.allclose(likelihood.log_prob(theta, x[:1]), each, rtol=1e-5)
    if kind == "bits in a context":
        each = torch.cat([likelihood.log_prob(theta[:1], one[None]) for one in x]).detach()
        assert torch.allclose(likelihood.log_prob(theta[:1], x), each, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_gives_no_image(kind):
    likelihood, theta, x = case(kind)
    assert likelihood.log_prob(theta[:0].requires_grad_(), x[:0]).shape == (0,)
    assert likelihood.sample(theta[:0], torch.Generator()).shape == x[:0].shape
    assert likelihood.mean(theta[:0]).shape == x[:0].shape


@pytest.mark.sweep(4)
@pytest.mark.parametrize("kind", KINDS)
def test_means_and_draws_of_double_precision_and_the_gradient_of_a_mean(kind):
    likelihood, theta, _ = case(kind, rows=1)
    single = likelihood.mean(theta)
    likelihood = likelihood.double() if isinstance(likelihood, torch.nn.Module) else likelihood
    theta = (0.3 * theta).double().requires_grad_()
    double = likelihood.mean(theta / 0.3)
    assert double.dtype == torch.float64 and torch.allclose(double.float(), single, rtol=1e-4)
    drawn = likelihood.sample(theta, torch.Generator().manual_seed(0))
    assert drawn.shape == double.shape
    (by,) = torch.autograd.grad(likelihood.mean(theta).square().sum(), theta)
    step = 1e-6 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        sides = [likelihood.mean(theta + sign * step).square().sum() for sign in (1, -1)]
    expected = float(sides[0] - sides[1]) / 2
    assert float((by * step).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-12)


@pytest.mark.slow
def test_a_decoder_of_ones_own_gives_the_weights():
    data = load(size=8, binarize="dynamic")
    small = Architecture(hidden=(8, 16), latent=3, context=(4, 4))
    model = build(data.event_shape, data.kind, small)
    again = with_parts(model, Parts(decoder=torch.nn.Linear(3, 5 * 64)), data.test[:3].float())
    z = torch.randn(3, 3)
    wanted = again.decoder.module(z).reshape(3, 5, 64)
    assert torch.equal(again.parameters_of(z), wanted)
    assert again.elbo(data.test[:3]).isfinite().all()
    with pytest.raises(ArgumentValueError, match=r"decoder.*: expected \[3, 5, 64\]"):
        with_parts(model, Parts(decoder=torch.nn.Linear(3, 4 * 64)), data.test[:3].float())


def test_a_context_of_ones_own_needs_a_decoder_that_gives_its_weights():
    plain = build((1, 8, 8), "binary", Architecture(hidden=(8, 16), latent=3))
    own = Parts(likelihood=WithContext(Bernoulli((1, 8, 8)), (4,)))
    with pytest.raises(ArgumentValueError, match=r"likelihood: expected one of 1 channels.*got 5"):
        with_parts(plain, own, torch.zeros(2, 1, 8, 8))


def test_which_models_have_one():
    resolved = Architecture(context=(8, 8)).resolved
    assert resolved((1, 28, 28), "8-bit").neighbours == 0
    assert resolved((1, 28, 28), "binary").context == (8, 8)
    assert Architecture().resolved((3, 64, 64), "8-bit").context == ()


def test_models_made_before_have_none():
    spec = Spec((1, 28, 28), "binary", Architecture(context=(4,)).resolved((1, 28, 28), "binary"))
    fields = spec.to_dict()
    assert Spec.from_dict(fields) == spec
    del fields["architecture"]["context"]
    assert Spec.from_dict(fields).architecture.context == ()


@pytest.mark.parametrize("widths", [(0, 0), (8, 4), (-1,), (1.5,), (8,) * 33])
def test_other_widths_are_refused(widths):
    with pytest.raises(ArgumentValueError, match="context: expected up to 32 equal"):
        Architecture(context=widths)


def test_neighbours_beside_it_are_refused():
    with pytest.raises(ArgumentValueError, match="neighbours: expected 0 with a context"):
        Architecture(context=(8,), neighbours=4)


@pytest.mark.parametrize(
    ("shape", "kind", "likelihood"),
    [
        ((10,), "binary", "auto"),
        ((1, 28, 28), "8-bit", "categorical"),
        ((1, 28, 28), "continuous", "auto"),
    ],
)
def test_what_has_none_is_refused(shape, kind, likelihood):
    asked = Architecture(context=(8,), likelihood=likelihood)
    with pytest.raises(ArgumentValueError, match="context: expected none with likelihood"):
        asked.resolved(shape, kind)


def test_units_of_the_data_are_refused():
    moments = {"mean": torch.full((1, 8, 8), 900.0), "spread": torch.full((1, 8, 8), 10.0)}
    with pytest.raises(ArgumentValueError, match="none where levels are in units of the data's"):
        build((1, 8, 8), "levels", Architecture(context=(4,)), levels=2000, **moments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "8-bit"])
def test_a_run_with_one_can_be_read_again(kind, tmp_path):
    data = load(size=8, binarize="dynamic" if kind == "binary" else "none")
    small = Architecture(hidden=(8, 16), latent=3, context=(4, 4))
    training = Training(steps=4, batch_size=8, tighten=0.5, draws=2)
    out = run.train(data, architecture=small, training=training, folder=tmp_path / "run")
    again = VAE.load(tmp_path / "run")
    x = data.test[:5]
    assert torch.equal(again.elbo(x), out.model.elbo(x))
    assert again.sample(2).shape == (2, 1, 8, 8)


@compiled
def test_a_second_backward_pass_gives_the_same_gradient_and_leaves_the_first():
    likelihood, levels = made("levels", (1, 2, 3))
    parameters = outputs(likelihood, rows=2).requires_grad_()
    x = torch.randint(levels, (2, 1, 2, 3), generator=torch.Generator().manual_seed(3)).float()
    value = likelihood.log_prob(parameters, x) @ torch.tensor([2.0, -0.5])
    first = torch.autograd.grad(value, (parameters, likelihood.features.first), retain_graph=True)
    kept = [one.clone() for one in first]
    second = torch.autograd.grad(value, (parameters, likelihood.features.first))
    for one, other, copied in zip(first, second, kept, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, copied)


@pytest.mark.parametrize("colours", [1, 3])
def test_features_are_those_of_values_padded_above_and_beside(colours):
    torch.manual_seed(0)
    features = CausalFeatures(colours, (4, 4)).double()
    x = torch.randn(2, colours, 5, 6, dtype=torch.float64)
    window, further = features.first.clone(), features.further[0].clone()
    window[..., -1, CONTEXT_REACH:] = 0.0
    further[..., -1, 2:] = 0.0
    h = F.conv2d(F.pad(x, (CONTEXT_REACH, CONTEXT_REACH, CONTEXT_REACH, 0)), window)
    h = h + F.conv2d(F.pad(F.silu(h), (1, 1, 1, 0)), further)
    assert torch.allclose(features(x), F.silu(h), rtol=0, atol=1e-12)
