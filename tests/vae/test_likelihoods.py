"""Likelihoods sum to one over every outcome of a tiny world, and draw what they say."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

from kullback.core import Estimate
from kullback.data import load
from kullback.vae import Architecture, Training, build, image_bounds, train
from kullback.vae.architecture import LIKELIHOODS, choose
from kullback.vae.evidence import bounds
from kullback.vae.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    ContinuousBernoulli,
    DiscretisedLogistics,
    Event,
    Gaussian,
    library,
    log_mass,
)


def outcomes(shape, levels):
    values = torch.arange(levels, dtype=torch.float64)
    grid = torch.cartesian_prod(*[values] * math.prod(shape))
    return grid.reshape(-1, *shape)


def parameters(likelihood, places, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, likelihood.channels, places)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


CASES = {
    "bernoulli": (Bernoulli((1, 2, 2)), (1, 2, 2), 2),
    "bernoulli vector": (Bernoulli((3,)), (3,), 2),
    "categorical": (Categorical((2, 1, 2), levels=3), (2, 1, 2), 3),
    "beta-binomial": (BetaBinomial((1, 1, 2), levels=5), (1, 1, 2), 5),
    "beta-binomial colour": (BetaBinomial((3, 1, 1), levels=4), (3, 1, 1), 4),
    "logistics": (DiscretisedLogistics((1, 1, 2), components=3, levels=5), (1, 1, 2), 5),
    "logistics colour": (DiscretisedLogistics((3, 1, 1), components=2, levels=6), (3, 1, 1), 6),
    "logistics colour, independent": (
        DiscretisedLogistics((3, 1, 1), components=2, levels=6, dependent=False),
        (3, 1, 1),
        6,
    ),
    "logistics vector": (DiscretisedLogistics((2,), components=2, levels=4), (2,), 4),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_probabilities_sum_to_one(name, scale):
    likelihood, shape, levels = CASES[name]
    x = outcomes(shape, levels)
    theta = parameters(likelihood, likelihood.event.places, scale).expand(len(x), -1, -1)
    total = likelihood.log_prob(theta, x).exp().sum().item()
    assert total == pytest.approx(1.0, abs=1e-12)


def test_logistics_with_256_levels_sum_to_one():
    likelihood = DiscretisedLogistics((1,), components=5)
    x = torch.arange(256.0, dtype=torch.float64).reshape(-1, 1)
    for seed in range(20):
        theta = parameters(likelihood, 1, 3.0, seed).expand(256, -1, -1)
        total = likelihood.log_prob(theta, x).exp().sum().item()
        assert total == pytest.approx(1.0, abs=1e-12)
        single = likelihood.log_prob(theta.float(), x).double().exp().sum().item()
        assert single == pytest.approx(1.0, abs=1e-4)


def test_log_mass_in_the_far_tail_matches_the_exact_difference():
    """σ(b) − σ(a) far from the mean, against mpmath."""
    mean, log_scale = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (0.9, -5.0))
    value, half = torch.full((1, 1, 1), -0.5, dtype=torch.float64), 1 / 255
    ours = log_mass(mean, log_scale, value, half).item()
    with mpmath.workdps(400):
        centre, width = mpmath.mpf(-0.5) - mpmath.mpf(0.9), mpmath.mpf(half)
        edges = [(centre + side * width) * mpmath.exp(5) for side in (-1, 1)]
        below, above = (1 / (1 + mpmath.exp(-edge)) for edge in edges)
        truth = float(mpmath.log(above - below))
    assert ours == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("levels", [2, 256])
def test_log_mass_gradient(levels):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    log_scale = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    value = torch.tensor([[-1.0, 1.0, 0.2, -0.4]], dtype=torch.float64).expand(2, 1, 4)
    half = 1 / (levels - 1)
    assert torch.autograd.gradcheck(lambda m, s: log_mass(m, s, value, half), (mean, log_scale))


@pytest.mark.parametrize("name", CASES)
def test_draws_have_the_enumerated_frequencies(name):
    likelihood, shape, levels = CASES[name]
    x = outcomes(shape, levels)
    theta = parameters(likelihood, likelihood.event.places)
    probability = likelihood.log_prob(theta.expand(len(x), -1, -1), x).exp()
    n = 40_000
    drawn = likelihood.sample(theta.expand(n, -1, -1), torch.Generator().manual_seed(1)).double()
    code = levels ** torch.arange(math.prod(shape) - 1, -1, -1)
    counts = torch.bincount((drawn.flatten(1) @ code.double()).long(), minlength=len(x))
    z = (counts - n * probability) / (n * probability * (1 - probability)).sqrt().clamp(min=1e-9)
    assert z[n * probability > 20].abs().max() <= 4.5


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "beta-binomial colour"])
def test_means_are_the_enumerated_means(name):
    likelihood, shape, levels = CASES[name]
    x = outcomes(shape, levels)
    theta = parameters(likelihood, likelihood.event.places)
    probability = likelihood.log_prob(theta.expand(len(x), -1, -1), x).exp()
    truth = (probability.reshape(-1, *[1] * len(shape)) * x).sum(0)
    torch.testing.assert_close(likelihood.mean(theta)[0].double(), truth, rtol=1e-6, atol=1e-6)


def test_gaussian_is_torchs_normal():
    likelihood = Gaussian((2, 1, 2), log_sd=-0.3)
    theta = parameters(likelihood, 2).float()
    x = torch.randn(1, 2, 1, 2, generator=torch.Generator().manual_seed(3))
    truth = torch.distributions.Normal(theta.reshape(1, 4), math.exp(-0.3)).log_prob(x.flatten(1))
    torch.testing.assert_close(likelihood.log_prob(theta, x), truth.sum(-1))


def test_draws_axis_broadcasts():
    likelihood, shape, levels = CASES["logistics colour"]
    theta = torch.randn(4, 5, likelihood.channels, 1, generator=torch.Generator().manual_seed(0))
    x = torch.randint(levels, (5, *shape), generator=torch.Generator().manual_seed(1))
    together = likelihood.log_prob(theta, x)
    apart = torch.stack([likelihood.log_prob(theta[i], x) for i in range(4)])
    torch.testing.assert_close(together, apart)
    assert likelihood.mean(theta).shape == (4, 5, *shape)


def test_initial_bias_gives_the_mean():
    mean = torch.tensor([0.1, 0.5, 0.9]).reshape(1, 1, 3)
    bias = Bernoulli((1, 1, 3)).initial_bias(mean)
    torch.testing.assert_close(torch.sigmoid(bias), mean[0])
    grey = torch.full((1, 1, 3), 100.0)
    likelihood = DiscretisedLogistics((1, 1, 3), components=3)
    start = likelihood.mean(likelihood.initial_bias(grey).unsqueeze(0))
    assert (start - grey).abs().max() < 1.0


def test_choose():
    assert choose("binary")[0] == "bernoulli"
    assert choose("8-bit", "categorical") == ("categorical", "as asked")
    assert choose("continuous")[0] == "gaussian"


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("8-bit", "bernoulli", "grey levels are not outcomes of a coin"),
        ("8-bit", "gaussian", "a continuous density on 8-bit levels has no maximum"),
        ("binary", "gaussian", "no maximum"),
        ("sound", "gaussian", "a continuous density at integer samples is no probability"),
        ("binary", "logistics", "use 'bernoulli'"),
        ("8-bit", "student", "a continuous density on 8-bit levels has no maximum"),
        ("levels", "continuous_bernoulli", "a continuous density on levels has no maximum"),
        ("continuous", "beta_binomial", "use 'gaussian'"),
        ("8-bit", "poisson", "for counts read the data with levels='counts'"),
        ("counts", "gaussian", "a continuous density at whole numbers is no probability"),
        ("counts", "student", "use 'negative_binomial'"),
        ("8-bit", "weibull", "likelihood: expected auto or one of"),
    ],
)
def test_choose_refuses_with_the_reason(kind, name, text):
    with pytest.raises(ValueError, match=text):
        choose(kind, name)


def test_the_table_of_likelihoods_is_complete():
    assert set(LIKELIHOODS) == {
        "bernoulli",
        "logistics",
        "categorical",
        "beta_binomial",
        "poisson",
        "negative_binomial",
        "zero_inflated_negative_binomial",
        "gaussian",
        "laplace",
        "student",
        "continuous_bernoulli",
        "autoregressive",
    }


@pytest.mark.parametrize("components", [1, 3])
def test_logistics_in_the_datas_units_begin_within_a_deviation_of_its_mean(components):
    """Levels 0 … 4 are −1 … 1: a deviation of 1 level is half a unit."""
    mean, sd = torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 0.5]])
    logistics = DiscretisedLogistics((2,), components=components, levels=5, centre=mean, spread=sd)
    bias = logistics.initial_bias(mean[0])
    _, means, log_scales, _ = logistics._unpack(bias)
    ends = torch.linspace(-1.0, 1.0, components)[:, None] if components > 1 else torch.zeros(1, 1)
    unit = torch.tensor([0.5, 0.25])
    torch.testing.assert_close(means[0], torch.tensor([0.0, 0.5]) + ends * unit)
    truth = (unit * math.sqrt(3) / math.pi).log().expand(components, 2)
    torch.testing.assert_close(log_scales[0], truth)


@pytest.mark.sweep(4)
@pytest.mark.skipif(library() is None, reason="no C compiler here")
@pytest.mark.parametrize(
    ("shape", "components", "levels", "patch"),
    [
        ((3, 8, 12), 3, 256, 4),
        ((3, 8, 8), 5, 256, 0),
        ((1, 5, 13), 1, 256, 0),
        ((2, 6, 6), 2, 7, 3),
        ((4, 4, 4), 2, 2, 2),
        ((1, 16, 16), 3, 65_536, 8),
        ((70,), 2, 33, 0),
    ],
)
@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
def test_the_compiled_mixture_is_the_plain_one_in_float64(shape, components, levels, patch, scale):
    """Value and gradient, at both end levels and at those between, for two draws of three items."""
    likelihood = DiscretisedLogistics(shape, components=components, levels=levels, patch=patch)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(levels, (3, *shape), generator=generator).double()
    x[0], x[1, ..., 0] = 0, levels - 1
    places = (likelihood.channels, likelihood.event.places)
    lead = (2, 3, math.prod(shape[1:]) // patch**2) if patch else (2, 3)
    theta = scale * torch.randn(*lead, *places, generator=generator, dtype=torch.float64)
    theta = theta.float().double().requires_grad_()
    weights = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    truth = likelihood.log_prob(theta, x)
    (by_theta,) = torch.autograd.grad((weights * truth).sum(), theta)
    single = theta.detach().float().requires_grad_()
    ours = likelihood.log_prob(single, x.float())
    assert type(ours.grad_fn).__name__ == "_MixtureBackward"
    # some roundings of each place's term, and of the standardised edges in it
    bound = 30 * 2**-24 * (truth.abs() + math.prod(shape))
    assert ((ours - truth).abs() <= bound).all()
    (gradient,) = torch.autograd.grad((weights.float() * ours).sum(), single)
    assert (gradient - by_theta).abs().max() <= 300 * 2**-24 * by_theta.abs().max()
    narrow = theta.detach().bfloat16().requires_grad_()
    (rounded,) = torch.autograd.grad((weights * likelihood.log_prob(narrow, x)).sum(), narrow)
    exact = narrow.detach().double().requires_grad_()
    (by_exact,) = torch.autograd.grad((weights * likelihood.log_prob(exact, x)).sum(), exact)
    assert (rounded - by_exact).abs().max() <= 2**-7 * by_exact.abs().max()


@pytest.mark.skipif(library() is None, reason="no C compiler here")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("channel", range(10))
def test_the_compiled_mixture_hides_no_nan(bad, channel):
    """Where the plain form is not finite the compiled one is not either."""
    likelihood = DiscretisedLogistics((3, 2, 2), components=1)
    x = torch.full((1, 3, 2, 2), 100.0)
    theta = torch.zeros(1, 10, 4)
    theta[0, channel, 2] = bad
    plain = likelihood.log_prob(theta.double(), x.double())
    compiled = likelihood.log_prob(theta.requires_grad_(), x)
    assert bool(compiled.isfinite()) == bool(plain.isfinite())


def test_patches_are_a_change_of_order():
    """Log-probability, mean and draws of patches are those of the pixels in rows."""
    shape, generator = (3, 4, 6), torch.Generator().manual_seed(0)
    plain = DiscretisedLogistics(shape, components=2)
    patched = DiscretisedLogistics(shape, components=2, patch=2)
    x = torch.randint(256, (5, *shape), generator=generator).double()
    theta = torch.randn(5, plain.channels, 4, 6, generator=generator, dtype=torch.float64)
    cells = Event((plain.channels, 4, 6), patch=2).split(theta)
    rows = theta.flatten(-2)
    assert torch.equal(Event(shape, patch=2).join(Event(shape, patch=2).split(x)), x)
    truth = plain.log_prob(rows, x)
    torch.testing.assert_close(patched.log_prob(cells, x), truth, rtol=1e-14, atol=0)
    torch.testing.assert_close(patched.mean(cells), plain.mean(rows), rtol=1e-14, atol=0)
    drawn = patched.sample(cells, generator)
    assert drawn.shape == x.shape
    sharp = cells.clone()
    sharp[..., 8:14, :] = -7.0  # log scales: draws lie within some levels of a component's mean
    sharp[..., 0, :] = 50.0  # and that is the first
    away = patched.sample(sharp, generator) - patched.mean(sharp)
    assert away.abs().median() <= 3.0


def test_the_beta_binomial_is_scipys():
    from scipy.stats import betabinom

    likelihood = BetaBinomial((1,))
    theta = torch.tensor([[[0.3], [-1.2]]], dtype=torch.float64)
    x = torch.arange(256.0, dtype=torch.float64).reshape(-1, 1)
    found = likelihood.log_prob(theta.expand(256, -1, -1), x)
    truth = betabinom(255, math.exp(0.3), math.exp(-1.2)).logpmf(x[:, 0].numpy())
    torch.testing.assert_close(found, torch.from_numpy(truth), rtol=1e-9, atol=1e-9)
    single = likelihood.log_prob(theta.float().expand(256, -1, -1), x.float())
    torch.testing.assert_close(single.double(), found, rtol=1e-6, atol=1e-6)
    narrow = torch.tensor([[[9.0], [9.0]]], dtype=torch.float64).expand(256, -1, -1)
    assert float(likelihood.log_prob(narrow, x).exp().sum()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("law", ["laplace", "student"])
def test_heavier_laws_are_torchs_in_the_datas_units(law):
    units = {"location": torch.tensor([3.0, -2.0]), "spread": torch.tensor([4.0, 0.1])}
    likelihood = Gaussian((2,), log_sd=-0.3, law=law, **units).double()
    theta = parameters(likelihood, 2)
    x = units["location"] + units["spread"] * torch.tensor([[0.4, -30.0]], dtype=torch.float64)
    mean = units["location"] + units["spread"] * theta[0, 0]
    scale = units["spread"] * math.exp(-0.3)
    laws = {
        "laplace": lambda: torch.distributions.Laplace(mean, scale),
        "student": lambda: torch.distributions.StudentT(10.0, mean, scale),
    }
    truth = laws[law]()
    torch.testing.assert_close(
        likelihood.log_prob(theta, x)[0], truth.log_prob(x).sum(), rtol=1e-6, atol=1e-6
    )
    drawn = likelihood.sample(theta.expand(40_000, -1, -1), torch.Generator().manual_seed(0))
    below = (drawn < mean + 0.7 * scale).double()
    below_truth = {"laplace": 1 - 0.5 * math.exp(-0.7), "student": 0.750_051_5}[law]
    for column in below.T:
        found = Estimate.from_terms(column)
        assert abs(found.value - below_truth) <= 4.5 * found.standard_error
    weights = [one for one in likelihood.parameters() if one.requires_grad]
    assert len(weights) == (2 if law == "student" else 1)

    def value(*given):
        names = dict(zip(dict(likelihood.named_parameters()), given, strict=True))
        return torch.func.functional_call(likelihood, names, (theta, x))

    likelihood.forward = likelihood.log_prob
    assert torch.autograd.gradcheck(value, tuple(one.detach().requires_grad_() for one in weights))


def test_a_student_of_many_degrees_of_freedom_is_normal_in_float32():
    likelihood = Gaussian((1,), law="student")
    with torch.no_grad():
        likelihood.log_freedom.fill_(20.0)  # held at 1,100
    x = torch.linspace(-3, 3, 7)[:, None]
    found = likelihood.log_prob(torch.zeros(7, 1, 1), x)
    freedom = torch.tensor(1.0 + math.exp(7.0), dtype=torch.float64)
    truth = torch.distributions.StudentT(freedom).log_prob(x.double())[:, 0]
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=2e-6)


LOGITS = torch.tensor([-300.0, -40.0, -3.0, -0.21, -0.19, -1e-4, 0.0, 1e-3, 0.2, 0.5, 7.0, 90.0])


def test_a_continuous_bernoulli_is_a_density_with_its_mean():
    """Against mpmath, and torch's own where that is accurate."""
    likelihood = ContinuousBernoulli((len(LOGITS),))
    theta = LOGITS.double().reshape(1, 1, -1)
    mean = likelihood.mean(theta)[0]
    for i, logit in enumerate(LOGITS.double().tolist()):
        one, exact = ContinuousBernoulli((1,)), mpmath.mpf(logit)
        with mpmath.workdps(40):
            constant = mpmath.log((mpmath.exp(exact) - 1) / exact) if logit else mpmath.mpf(0)
            middle = mpmath.mpf("0.5")
            if logit:
                middle = 1 / (1 - mpmath.exp(-exact)) - 1 / exact
            for x in (0.0, 0.3, 1.0):
                at = torch.tensor([[x]], dtype=torch.float64)
                found = one.log_prob(theta[..., i : i + 1], at)
                truth = float(exact * mpmath.mpf(x) - constant)
                assert float(found) == pytest.approx(truth, rel=1e-12, abs=1e-12)
                single = one.log_prob(theta[..., i : i + 1].float(), at.float())
                assert float(single) == pytest.approx(truth, rel=1e-6, abs=1e-6)
        assert float(mean[i]) == pytest.approx(float(middle), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(
        likelihood.mean(theta.float())[0].double(), mean, rtol=1e-5, atol=1e-6
    )
    start = ContinuousBernoulli((9,)).initial_bias(mean[2:11])
    torch.testing.assert_close(start[0], theta[0, 0, 2:11], rtol=1e-5, atol=1e-5)


def test_draws_of_a_continuous_bernoulli():
    likelihood = ContinuousBernoulli((len(LOGITS),))
    theta = LOGITS.reshape(1, 1, -1)
    drawn = likelihood.sample(theta.expand(20_000, -1, -1), torch.Generator().manual_seed(0))
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    found, truth = Estimate.from_terms(drawn.double().T), likelihood.mean(theta.double())[0]
    assert bool(((found.value - truth).abs() <= 4.5 * found.standard_error).all())


def test_gradients_of_the_new_likelihoods():
    theta = torch.tensor([-3.0, -0.21, -0.05, 0.0, 0.15, 7.0], dtype=torch.float64)
    x = torch.linspace(0, 1, 6, dtype=torch.float64)[None]
    one = ContinuousBernoulli((6,))
    call = lambda t: one.log_prob(t.reshape(1, 1, 6), x)  # noqa: E731
    assert torch.autograd.gradcheck(call, theta.clone().requires_grad_())
    two, levels = BetaBinomial((3,), levels=9), torch.tensor([[0.0, 4.0, 8.0]])
    call = lambda t: two.log_prob(t.reshape(1, 2, 3), levels)  # noqa: E731
    assert torch.autograd.gradcheck(call, theta.clone().requires_grad_())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("beta_binomial", "levels"),
        ("laplace", "continuous"),
        ("student", "continuous"),
        ("continuous_bernoulli", "continuous"),
    ],
)
def test_bounds_of_each_hold_the_exact_evidence(name, kind):
    """elbo ≤ L_K ≤ log p(x), and E[w] = p(x), by the trapezoid rule over one latent dimension."""
    torch.manual_seed(0)
    architecture = Architecture(network="mlp", hidden=(5,), latent=1, likelihood=name)
    levels = {"levels": 4} if kind == "levels" else {"spread": torch.ones(3)}
    model = build((3,), kind, architecture, mean=torch.full((3,), 0.4), **levels).double()
    drawn = model.sample(40, noise=True).double()
    x = model.check(drawn).double()
    z = torch.linspace(-10, 10, 2001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        joint = model.likelihood.log_prob(model.parameters_of(z).unsqueeze(1), x)
    truth = torch.logsumexp(joint + model.prior.log_prob(z)[:, None], 0) + math.log(0.01)
    found = bounds(model, x.repeat(30, 1), draws=20, generator=torch.Generator().manual_seed(1))
    truth = truth.repeat(30)
    for low, high in ((found.elbo, found.importance_weighted), (found.importance_weighted, truth)):
        difference = Estimate.from_terms(low - high)
        assert difference.value <= 4.5 * difference.standard_error
    ratio = Estimate.from_terms((found.importance_weighted - truth).exp().reshape(30, -1).mean(1))
    assert abs(ratio.value - 1) <= 4.5 * ratio.standard_error


def test_values_outside_the_unit_interval_are_refused():
    architecture = Architecture(network="mlp", likelihood="continuous_bernoulli")
    model = build((2,), "continuous", architecture)
    with pytest.raises(ValueError, match="values from 0 to 1 for a continuous Bernoulli; got"):
        model.elbo(torch.tensor([[0.5, 1.5]]))


def test_the_mean_of_a_colour_follows_the_earlier_ones():
    """Given red, green's mass moves by its weight; without dependence no colour says anything."""
    levels, theta = 9, torch.full((1, 1 + 3 + 3 + 3, 1), 0.0, dtype=torch.float64)
    theta[:, 4:7] = -1.5
    theta[:, 7:] = 2.0
    likelihood = DiscretisedLogistics((3, 1, 1), components=1, levels=levels)
    alone = DiscretisedLogistics((3, 1, 1), components=1, levels=levels, dependent=False)
    x = outcomes((3, 1, 1), levels)
    table = likelihood.log_prob(theta.expand(len(x), -1, -1), x).exp().reshape(levels, levels, -1)
    pair = table.sum(-1)
    mean = (pair * torch.arange(9.0, dtype=torch.float64)).sum(1) / pair.sum(1)
    assert bool((mean[1:] > mean[:-1] + 0.1).all())
    table = alone.log_prob(theta[:, :7].expand(len(x), -1, -1), x).exp().reshape(levels, levels, -1)
    margins = torch.einsum("i,j,k->ijk", *(table.sum(d) for d in ((1, 2), (0, 2), (0, 1))))
    torch.testing.assert_close(table, margins, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
def test_dependence_between_colours_gains_on_a_photograph(tmp_path):
    """Crops of 8x8 of the photograph that Matplotlib ships, equal steps, paired."""
    cbook, image = pytest.importorskip("matplotlib.cbook"), pytest.importorskip("PIL.Image")
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    pixels = np.asarray(image.open(path).convert("RGB"))[:600, :512]
    crops = pixels.reshape(75, 8, 64, 8, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 8, 8, 3)
    np.save(tmp_path / "a.npy", crops)
    data = load(tmp_path / "a.npy")
    found = {}
    for dependent in (True, False):
        likelihood = DiscretisedLogistics(data.event_shape, components=3, dependent=dependent)
        bias = likelihood.initial_bias(data.train.float().mean(0))
        torch.manual_seed(0)
        decoder = nn.Sequential(nn.Linear(16, 128), nn.SiLU(), nn.Linear(128, bias.numel()))
        with torch.no_grad():
            decoder[-1].bias.copy_(bias.flatten())
        run = train(
            data,
            architecture=Architecture(network="mlp", hidden=(128,), latent=16),
            training=Training(steps=200, batch_size=64, learning_rate=2e-3),
            decoder=decoder,
            likelihood=likelihood,
            folder=tmp_path / str(dependent),
        )
        found[dependent] = image_bounds(run.model, data.test, draws=20).importance_weighted
    gain = Estimate.from_terms((found[True] - found[False]) / (3 * 64 * math.log(2)))
    assert gain.value > 4.5 * gain.standard_error
