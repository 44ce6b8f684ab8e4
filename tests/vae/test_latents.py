"""Priors, each against quadrature, closed forms and enumeration of every x."""

import copy
import itertools
import json
import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from kullback.core import ArgumentValueError, Estimate
from kullback.data import Dataset
from kullback.report import evaluation_text
from kullback.vae import VAE, Architecture, Training, build, evaluate, resume, train
from kullback.vae.architecture import Spec
from kullback.vae.elbo_step import step_for
from kullback.vae.evaluation import collapse_of_rate
from kullback.vae.evidence import bounds
from kullback.vae.latents import (
    CouplingFlow,
    Diagonal,
    DiagonalGaussian,
    Encoded,
    FullGaussian,
    FullRank,
    GaussianComponents,
    InverseAutoregressive,
    LowRank,
    MixtureOfGaussians,
    StandardNormal,
    VampPrior,
    draw_with_kl,
    fixed,
    log_ratio,
)
from kullback.vae.loop import loss_terms
from kullback.vae.posterior import (
    Annealing,
    Refit,
    aggregate,
    aggregate_of,
    anneal,
    made_by,
    measure_gap,
)
from kullback.vae.state import FlatParameters, trainable
from kullback.variational import WeightedBound, objectives
from oracles import LinearGaussian

LEARNED = ("mixture", "vamp", "flow")
PRIORS = ("normal", *LEARNED)
DEPENDENT = ("full", "low_rank", "iaf")
PAIRS = [(prior, family) for prior in ("normal", "mixture", "flow") for family in DEPENDENT]
DOUBLE = torch.float64


def grid(latent: int, *, reach: float = 8.0, points: int = 101):
    """z on a lattice `[points^latent, latent]` and the log volume of a cell: the trapezoid rule."""
    line = torch.linspace(-reach, reach, points, dtype=DOUBLE)
    z = torch.stack(torch.meshgrid(*[line] * latent, indexing="ij"), -1).reshape(-1, latent)
    return z, latent * math.log(float(line[1] - line[0]))


@torch.no_grad()
def evidence(model, x, **options):
    """log p(x) by the trapezoid rule, spectrally accurate for these smooth densities."""
    z, volume = grid(model.prior.latent, **options)
    parameters = model.parameters_of(z)
    log_p = [model.likelihood.log_prob(parameters.unsqueeze(1), one[None]) for one in x]
    return torch.logsumexp(torch.cat(log_p, 1) + model.prior.log_prob(z)[:, None], 0) + volume


def shaken(model, seed=0, scale=0.4):
    """The model in float64 with every parameter of prior and family moved: nothing at its start."""
    model, generator = model.double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("prior.", "family.")):
                noise = torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
                parameter.add_(scale * noise)
    return model


def tiny(prior, kind="binary", *, dims=3, latent=1, levels=256, seed=0, family="diagonal"):
    torch.manual_seed(seed)
    architecture = Architecture(
        network="mlp",
        hidden=(5,),
        latent=latent,
        components=2,
        prior=prior,
        prior_components=3,
        posterior=family,
        rank=1,
    )
    model = shaken(build((dims,), kind, architecture, levels=levels, scale=1.0))
    with torch.no_grad():
        for weight in model.decoder.net.weights:
            weight.mul_(1.5)
    return model


def linear_gaussian(prior, *, latent=2):
    """The oracle's model with another prior: q(z|x) is off, the evidence known by quadrature."""
    oracle = LinearGaussian(dims=4, latent=latent, sd=0.9, seed=2)
    model = oracle.vae(torch.full((latent,), -0.4, dtype=DOUBLE), tilt=0.2)
    generator = torch.Generator().manual_seed(4)
    if prior == "mixture":
        torch.manual_seed(1)
        model.prior = MixtureOfGaussians(latent, 3)
    elif prior == "vamp":
        inputs = torch.randn(3, oracle.dims, generator=generator, dtype=DOUBLE)
        model.prior = VampPrior(model.encoder, inputs, latent=latent)
    elif prior == "flow":
        torch.manual_seed(1)
        model.prior = CouplingFlow(latent, layers=4, hidden=8)
    return oracle, shaken(model)


class Telling(torch.nn.Module):
    """Another encoder's outputs, and linear maps of x as the extra ones."""

    def __init__(self, encoder, dims, extra):
        super().__init__()
        self.encoder = encoder
        generator = torch.Generator().manual_seed(8)
        self.extra = torch.randn(dims, extra, generator=generator, dtype=DOUBLE)

    def forward(self, x):
        mean, log_sd = self.encoder(x)
        return mean, log_sd, 0.3 * (x @ self.extra) + 0.5


def with_family(model, family, *, dims, latent=2):
    torch.manual_seed(3)
    families = {
        "full": FullRank(latent),
        "low_rank": LowRank(latent, 1),
        "iaf": InverseAutoregressive(latent, hidden=8, context=3),
    }
    model.family = families[family]
    model.encoder = Telling(model.encoder, dims, model.family.extra)
    return shaken(model, seed=5)


def data_of(model, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        z = model.prior.sample(n, generator).double()
        mean = model.parameters_of(z)[:, 0]
    noise = torch.randn(mean.shape, generator=generator, dtype=DOUBLE)
    return mean + model.likelihood.log_sd.exp() * noise, z


def within(terms, value=0.0):
    found = Estimate.from_terms(terms)
    return abs(found.value - value) <= 4.5 * found.standard_error


def below(terms):
    found = Estimate.from_terms(terms)
    return found.value <= 4.5 * found.standard_error


@pytest.mark.sweep(4)
@pytest.mark.parametrize(("prior", "family"), [*((p, "diagonal") for p in PRIORS), *PAIRS])
def test_bounds_hold_the_evidence_on_a_linear_gaussian_model(prior, family):
    """elbo ≤ L_K ≤ log p(x), and the mean weight is p(x), where log p(x) is known."""
    oracle, model = linear_gaussian(prior)
    if family != "diagonal":
        with_family(model, family, dims=oracle.dims)
    x, _ = data_of(model, 60)
    truth = evidence(model, x)
    generator = torch.Generator().manual_seed(5)
    one = bounds(model, x, draws=40, generator=generator)
    assert below(one.elbo - one.importance_weighted)
    assert below(one.importance_weighted - truth)
    assert float((truth - one.elbo).mean()) > 0.05  # q is off: there is something to measure
    assert within((one.importance_weighted - truth).exp(), 1.0)
    torch.testing.assert_close(one.elbo + one.rate + one.distortion, torch.zeros_like(truth))


def test_a_mixtures_evidence_is_the_closed_form():
    """p(x) = Σ w_c N(x; W m_c + b, W S_c Wᵀ + σ²I): the quadrature's own oracle."""
    for prior in ("mixture", "vamp"):
        oracle, model = linear_gaussian(prior)
        x, _ = data_of(model, 5)
        parts = fixed(model.prior)
        noise = oracle.sd**2 * torch.eye(oracle.dims, dtype=DOUBLE)
        each = []
        for weight, mean, log_sd in zip(parts.log_weights, parts.mean, parts.log_sd, strict=True):
            covariance = oracle.w @ torch.diag((2 * log_sd).exp()) @ oracle.w.T + noise
            law = torch.distributions.MultivariateNormal(oracle.w @ mean + oracle.b, covariance)
            each.append(weight + law.log_prob(x))
        truth = torch.logsumexp(torch.stack(each), 0)
        torch.testing.assert_close(evidence(model, x), truth, rtol=1e-9, atol=1e-9)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("prior", LEARNED)
@pytest.mark.parametrize(("kind", "levels"), [("binary", 2), ("levels", 3)])
def test_probabilities_of_every_x_sum_to_one(prior, kind, levels):
    """Bits and levels: pseudo-inputs are real numbers, and p(x) is a probability all the same."""
    model = tiny(prior, kind, dims=3, levels=levels if kind == "levels" else 256)
    every = torch.tensor(list(itertools.product(range(levels), repeat=3)), dtype=DOUBLE)
    truth = evidence(model, every, reach=40.0, points=2001)
    assert float(torch.logsumexp(truth, 0)) == pytest.approx(0.0, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    x = every.repeat_interleave(60, 0)
    found = bounds(model, x, draws=30, generator=generator)
    gap = truth.repeat_interleave(60)
    assert below(found.elbo - found.importance_weighted)
    assert below(found.importance_weighted - gap)
    ratio = (found.importance_weighted - gap).exp().reshape(len(every), -1)
    assert within(ratio.mean(0), 1.0)  # over 60 repetitions, all x together


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prior", "family"), [*((p, "diagonal") for p in LEARNED), *(("normal", f) for f in DEPENDENT)]
)
def test_annealed_bounds_bracket_the_evidence(prior, family):
    """Annealing needs log p(z) and its gradient; exact draws of p(z|x) give the other side."""
    oracle, model = linear_gaussian(prior)
    if family != "diagonal":
        with_family(model, family, dims=oracle.dims)
    x, z = data_of(model, 30)
    generator = torch.Generator().manual_seed(1)
    settings = Annealing(chains=8, temperatures=30, pilots=4)
    found = anneal(model, x, exact=z, settings=settings, generator=generator)
    truth = evidence(model, x)
    assert below(found.lower - truth) and below(truth - found.upper)
    assert float((truth - found.lower).mean()) < 0.05
    assert within((found.log_weights - truth[:, None]).exp().mean(-1), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("prior", LEARNED)
def test_the_gap_is_split_with_any_prior(prior):
    _, model = linear_gaussian(prior)
    model.check = lambda data: data
    x, z = data_of(model, 20)
    quick = {
        "annealing": Annealing(chains=4, temperatures=10, pilots=2),
        "refitting": Refit(steps=60),
    }
    gap = measure_gap(model, x, exact=z, **quick)
    truth = evidence(model, x)
    each = gap.per_image
    assert below(each.elbo - truth) and below(each.refitted_elbo - truth)
    assert gap.amortisation.value > 0.05  # q is off, and refitting mends it
    assert gap.kl_lower.value <= gap.kl_upper.value + 4.5 * gap.width.standard_error


@pytest.mark.sweep(5)
@pytest.mark.parametrize(
    ("prior", "family"),
    [*((p, "diagonal") for p in LEARNED), ("normal", "low_rank"), ("normal", "iaf")],
)
def test_expected_gradients_of_both_objectives_are_those_of_the_exact_ones(prior, family):
    """All pairs of nodes of a lattice: the expectation over two draws is a finite sum.

    L_2 with doubly reparameterised gradients against L_2 differentiated plainly, for encoder,
    decoder and prior; the KL by draws against the integral of q log q/p over z.
    """
    model = tiny(prior, family=family)
    x = torch.tensor([[1.0, 0.0, 1.0]], dtype=DOUBLE)
    nodes, weights = normal_lattice()
    pairs = torch.cartesian_prod(nodes, nodes).T.unsqueeze(-1)  # [2, n², 1]
    mass = torch.cartesian_prod(weights, weights).prod(-1)
    many = x.expand(len(mass), -1)
    parameters = dict(model.named_parameters())
    doubly = (mass * model.tight_terms(many, pairs)[2]).sum()
    likelihood, ratio, _ = model.terms(many, pairs)
    plain = (mass * objectives.iwae(likelihood + ratio)).sum()
    compare(doubly, plain, parameters)
    q = model.approximate_posterior(x)
    by_draws = -(weights[:, None] * log_ratio(model.prior, q, q.draw(nodes[:, None, None]))).sum()
    z, volume = grid(1, reach=30.0, points=6001)
    log_q = q.log_prob(z.unsqueeze(1))[:, 0]
    exact = (log_q.exp() * (log_q - model.prior.log_prob(z))).sum() * math.exp(volume)
    compare(by_draws, exact, parameters)


@pytest.mark.parametrize("family", ["diagonal", "full", "low_rank"])
def test_a_path_gradient_has_the_expectation_of_the_elbos(family):
    """Sticking the landing (K = 1) in two dimensions, over all nodes of a lattice."""
    model = tiny("mixture", latent=2, family=family)
    x = torch.tensor([[1.0, 0.0, 1.0]], dtype=DOUBLE)
    nodes, weights = normal_lattice(points=69)
    noise = torch.cartesian_prod(nodes, nodes)[None]
    mass = torch.cartesian_prod(weights, weights).prod(-1)
    many, parameters = x.expand(len(mass), -1), dict(model.named_parameters())
    path = (mass * model.tight_terms(many, noise)[2]).sum()
    likelihood, ratio, _ = model.terms(many, noise)
    compare(path, (mass * (likelihood + ratio)).sum(), parameters)


def normal_lattice(points=161, reach=8.5):
    """Nodes and weights of the trapezoid rule for expectations over N(0, 1)."""
    nodes = torch.linspace(-reach, reach, points, dtype=DOUBLE)
    weights = (-0.5 * nodes.square()).exp()
    return nodes, weights / weights.sum()


def compare(one, other, parameters):
    assert float(one.detach()) == pytest.approx(float(other.detach()), rel=1e-6, abs=1e-7)
    options = {"allow_unused": True, "retain_graph": True}
    ours = torch.autograd.grad(one, list(parameters.values()), **options)
    theirs = torch.autograd.grad(other, list(parameters.values()), **options)
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_the_flow_is_a_density(latent):
    """Push and pull are inverse, the determinant is autograd's, and it integrates to 1."""
    torch.manual_seed(0)
    flow = shaken(CouplingFlow(latent, layers=3, hidden=6), scale=0.3)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    z = torch.randn(7, latent, dtype=DOUBLE)
    noise, log_det = flow.pull(z)
    torch.testing.assert_close(flow.push(noise), z, rtol=1e-10, atol=1e-10)
    for row, value in zip(z, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: flow.pull(one[None])[0][0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], value)
    if latent == 1:
        points, volume = grid(latent, reach=60.0, points=6001)
        mass = torch.logsumexp(flow.log_prob(points).detach(), 0) + volume
        assert float(mass) == pytest.approx(0.0, abs=1e-9)
    drawn = flow.sample(4000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        base, _ = flow.pull(drawn)  # draws are pushed noise: what comes back is N(0, I)
    assert within(base.flatten()) and within(base.flatten().square(), 1.0)


def test_a_new_flow_is_the_standard_normal():
    z = torch.randn(5, 4)
    torch.testing.assert_close(CouplingFlow(4).log_prob(z), StandardNormal(4).log_prob(z))


def test_mixtures_are_torchs():
    for prior in ("mixture", "vamp"):
        model = tiny(prior, latent=2)
        parts = fixed(model.prior)
        law = MixtureSameFamily(
            Categorical(logits=parts.log_weights),
            Independent(Normal(parts.mean, parts.log_sd.exp()), 1),
        )
        z = torch.randn(6, 4, 2, dtype=DOUBLE)
        torch.testing.assert_close(model.prior.log_prob(z), law.log_prob(z))
        drawn = model.prior.sample(4000, torch.Generator().manual_seed(0))
        assert not drawn.requires_grad
        for found, mean, variance in zip(drawn.T, law.mean, law.variance, strict=True):
            assert within(found, mean.item())
            assert within((found - mean).square(), variance.item())
    inside = model.prior.pseudo_inputs
    mean, log_sd = model.encoder(inside)
    torch.testing.assert_close(parts.mean, mean.detach())
    torch.testing.assert_close(parts.log_sd, log_sd.detach())


PARTS = [{"prior": p} for p in LEARNED] + [{"posterior": f, "rank": 2} for f in DEPENDENT]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("settings", [{}, {"objective": "iwae", "draws": 3}])
def test_a_steps_gradient_is_autograds(parts, settings):
    """The encoder is used twice with a VampPrior; its gradient buffers hold one use."""
    torch.manual_seed(0)
    architecture = Architecture(network="mlp", hidden=(7, 5), latent=3, prior_components=4, **parts)
    model = build((6,), "binary", architecture).double()
    x = torch.bernoulli(torch.full((9, 6), 0.4, dtype=DOUBLE))
    training = Training(steps=1, beta=0.7, **settings)
    noise = torch.randn(training.draws, 9, 3, dtype=DOUBLE)
    plain = copy.deepcopy(model)
    loss, _ = loss_terms(plain, x, noise, training)
    expected = torch.autograd.grad(loss, [one for _, one in trainable(plain)])
    flat = FlatParameters(model)
    assert step_for(model, flat, training) is None
    loss, _ = loss_terms(model, x, noise, training)
    flat.differentiate(loss)
    for name, ours, theirs in zip(flat.names, flat.views_of(flat.gradient), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10, msg=name)
    flat.decay(0.5)
    kept = dict(zip(flat.names, flat.views_of(flat.vector), strict=True))
    for name, parameter in plain.named_parameters():
        shrunk = parameter.ndim >= 2 and not name.startswith("prior.")
        torch.testing.assert_close(kept[name], parameter.detach() * (0.5 if shrunk else 1.0))


OBJECTIVES = [
    {"objective": "stl", "draws": 2},
    {"objective": "renyi", "draws": 2, "alpha": 0.3},
    {"objective": "ciwae", "draws": 2, "alpha": 0.3},
    {"objective": "miwae", "draws": 2, "groups": 2},
    {"objective": "iwae", "draws": 2},
    {"objective": "iwae_plain", "draws": 2},
]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("family", ["diagonal", "iaf"])
@pytest.mark.parametrize("settings", OBJECTIVES)
def test_a_models_objective_has_the_gradient_of_its_bound(family, settings):
    """Expected over all nodes, with the KL weighed by 0.6 as in a warm-up."""
    model = tiny("normal", family=family)
    x = torch.tensor([[1.0, 0.0, 1.0]], dtype=DOUBLE)
    nodes, weights = normal_lattice(points=121)
    pairs = torch.cartesian_prod(nodes, nodes).T.unsqueeze(-1)
    mass = torch.cartesian_prod(weights, weights).prod(-1)
    many, parameters = x.expand(len(mass), -1), dict(model.named_parameters())
    training = Training(steps=1, **settings)
    bound = WeightedBound(training.bound_at(1.0), training.alpha, training.groups)
    ours = (mass * model.tight_terms(many, pairs, 0.6, bound)[2]).sum()
    likelihood, ratio, _ = model.terms(many, pairs)
    plain = (mass * bound.value(likelihood + 0.6 * ratio)).sum()
    compare(ours, plain, parameters)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    "settings", [*OBJECTIVES, {"objective": "piwae", "draws": 4, "groups": 2}], ids=str
)
def test_every_objective_trains(settings, tmp_path):
    architecture = Architecture(network="mlp", hidden=(8,), latent=3)
    data, training = bits(), Training(steps=6, batch_size=20, beta=0.9, **settings)
    found = train(data, architecture=architecture, training=training, folder=tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["training"]["objective"] == settings["objective"]
    assert found.finished
    assert math.isfinite(float(evaluate(found.model, data.test, draws=5).elbo.value))


def test_a_steps_piwae_leaves_the_decoder_what_iwae_does():
    torch.manual_seed(0)
    model = build((6,), "binary", Architecture(network="mlp", hidden=(7,), latent=3)).double()
    x = torch.bernoulli(torch.full((9, 6), 0.4, dtype=DOUBLE))
    noise = torch.randn(4, 9, 3, dtype=DOUBLE)
    found = []
    for name in ("piwae", "iwae", "miwae"):
        training = Training(steps=1, objective=name, draws=4, groups=1 if name == "iwae" else 2)
        one = copy.deepcopy(model)
        flat = FlatParameters(one)
        loss, _ = loss_terms(one, x, noise, training)
        flat.differentiate(loss)
        found.append(dict(zip(flat.names, flat.views_of(flat.gradient), strict=True)))
    for name, gradient in found[0].items():
        same = found[1] if name.startswith("decoder") else found[2]
        torch.testing.assert_close(gradient, same[name], rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"objective": "dreg"}, "objective: expected one of elbo, stl, iwae"),
        ({"objective": "miwae", "draws": 4, "groups": 3}, "groups: expected a divisor of the 4"),
        ({"objective": "ciwae", "alpha": 1.5}, "alpha: expected a finite number, 0 to 1 for ciwae"),
        ({"objective": "renyi", "alpha": math.inf}, "alpha: expected a finite number"),
        ({"objective": "stl", "free_bits": 0.1}, "free_bits: expected 0 with objective stl"),
    ],
)
def test_training_refuses(settings, text):
    with pytest.raises(ArgumentValueError, match=text):
        Training(steps=1, **settings)


def bits(n=90):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (n, 6), generator=generator, dtype=torch.uint8)
    protocol = {
        "source": "bits",
        "sha256": {"train": "", "test": ""},
        "skipped": {"count": 0, "files": []},
        "notes": [],
    }
    names = tuple(map(str, range(n)))
    return Dataset(x[:60], x[60:], "binary", False, protocol, names[:60], names[60:])


@pytest.mark.sweep(3)
@pytest.mark.parametrize("parts", PARTS)
def test_a_run_is_kept_resumed_and_measured(parts, tmp_path):
    architecture = Architecture(network="mlp", hidden=(8,), latent=3, prior_components=4, **parts)
    data, training = bits(), Training(steps=12, batch_size=20, beta=0.9)
    whole = train(data, architecture=architecture, training=training, folder=tmp_path / "a")
    count = itertools.count()
    train(
        data,
        architecture=architecture,
        training=training,
        folder=tmp_path / "b",
        stop=lambda: next(count) == 4,
    )
    again = resume(tmp_path / "b", data=data)
    assert again.finished
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    loaded = VAE.load(tmp_path / "a")
    assert loaded.spec.architecture.prior == architecture.prior
    found, same = (evaluate(one, data.test, draws=30) for one in (whole.model, loaded))
    assert found == same
    assert found.active_units is None and found.kl_per_dimension == ()
    assert found.exact_rate == (architecture.posterior in ("full", "low_rank"))
    text = evaluation_text.evaluation_table(found, {"event_shape": [6]}, color=False)
    assert "varying units" in text
    assert ("no formula for the KL" in " ".join(text.split())) != found.exact_rate
    rows = [json.loads(row) for row in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert "kl_per_dimension" not in rows[-1] and "varying_units" in rows[-1]
    assert loaded.sample(3).shape == (3, 6)
    whole = aggregate(loaded, data.test)
    assert whole.rate_each is None
    assert whole.information_low.value <= whole.information_high.value
    sums = whole.kl_high.value + whole.information_low.value
    assert sums == pytest.approx(whole.rate.value, abs=1e-9)
    assert loaded.encode(data.test.float())[0].shape == (30, 3)


def test_pseudo_inputs_start_at_training_examples(tmp_path):
    architecture = Architecture(
        network="mlp", hidden=(8,), latent=3, prior="vamp", prior_components=70
    )
    model = train(
        bits(),
        architecture=architecture,
        training=Training(steps=1, learning_rate=1e-9),
        folder=tmp_path / "a",
    ).model
    x = model.prior.pseudo_inputs * model.scale + model.shift  # 70 of 60: some twice
    torch.testing.assert_close(x, x.round(), rtol=0, atol=1e-5)
    torch.testing.assert_close(x[60:], x[:10])


def test_a_description_without_a_prior_is_of_the_standard_normal():
    spec = build((4,), "binary").spec
    fields = spec.to_dict()
    for name in ("prior", "prior_components"):
        del fields["architecture"][name]
    assert Spec.from_dict(fields) == spec
    assert isinstance(build((4,), "binary").prior, StandardNormal)


def linear_codes(items):
    """q(z|x) = N(x, sd²), x ~ N(0.3, 1.2²): q(z) is a Gaussian, p(z) a mixture of two."""
    generator = torch.Generator().manual_seed(items)
    noise = torch.randn(items, 2, generator=generator, dtype=DOUBLE)
    mean, sd = 0.3 + 1.2 * noise, torch.tensor([0.5, 0.9], dtype=DOUBLE)
    prior = GaussianComponents(
        torch.tensor([0.3, 0.7], dtype=DOUBLE).log(),
        torch.tensor([[-1.0, 1.0], [1.0, 0.5]], dtype=DOUBLE),
        torch.tensor([[0.1, -0.3], [0.2, 0.4]], dtype=DOUBLE),
    )
    return mean, sd.log().expand_as(mean), prior, generator


@pytest.mark.sweep(3)
@pytest.mark.parametrize("items", [10, 100, 800])
def test_aggregate_bounds_hold_with_a_dependent_prior(items):
    mean, log_sd, prior, generator = linear_codes(items)
    whole = DiagonalGaussian(
        torch.full((1, 2), 0.3, dtype=DOUBLE), 0.5 * (1.44 + (2 * log_sd[:1]).exp()).log()
    )
    z, volume = grid(2, reach=14.0, points=401)
    log_q = whole.log_prob(z.unsqueeze(1))[:, 0]
    truth = float((log_q.exp() * (log_q - prior.log_prob(z))).sum() * math.exp(volume))
    information = float((whole.log_sd - log_sd[:1]).sum())
    found = aggregate_of(mean, log_sd, prior=prior, generator=generator)
    for low, high, value in (
        (found.kl_low, found.kl_high, truth),
        (found.information_low, found.information_high, information),
    ):
        assert low.value - 4.5 * low.standard_error <= value
        assert value <= high.value + 4.5 * high.standard_error
    if items == 800:
        assert found.kl_high.value - found.kl_low.value < 0.6


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ArgumentValueError, match="prior: expected one of normal, mixture, vamp"):
        Architecture(prior="gauss")
    with pytest.raises(ArgumentValueError, match="prior_components: expected at least 1"):
        Architecture(prior_components=0)
    architecture = Architecture(network="mlp", hidden=(4,), latent=2, prior="mixture")
    with pytest.raises(ArgumentValueError, match="no KL of a single latent dimension"):
        train(
            bits(),
            architecture=architecture,
            training=Training(steps=1, free_bits=0.1),
            folder=tmp_path / "a",
        )
    with pytest.raises(ArgumentValueError, match="another with posterior iaf"):
        train(
            bits(),
            architecture=Architecture(network="mlp", hidden=(4,), latent=2, posterior="iaf"),
            training=Training(steps=1, objective="piwae", draws=4, groups=2),
            folder=tmp_path / "a",
        )
    assert not (tmp_path / "a").exists()
    with pytest.raises(ArgumentValueError, match="posterior: expected one of diagonal, full"):
        Architecture(posterior="flow")
    with pytest.raises(ArgumentValueError, match="rank: expected from 1 to latent = 3; got 4"):
        Architecture(latent=3, posterior="low_rank")
    with pytest.raises(ArgumentValueError, match="expected diagonal with prior vamp"):
        Architecture(prior="vamp", posterior="full")
    model = build((4,), "binary", Architecture(network="mlp", hidden=(3,), latent=4))
    model.family = FullRank(4)
    with pytest.raises(ArgumentValueError, match="and 6 more numbers for this posterior; got mean"):
        model.elbo(torch.ones(2, 4))


def test_a_small_rate_is_called_a_collapse():
    assert collapse_of_rate(0.2, 4.0).startswith("posterior collapse: the KL is 0.2 nats")
    assert "free-bits" not in collapse_of_rate(0.2, 4.0) and "smaller --beta" in collapse_of_rate(
        0.2, 4.0
    )


def test_the_kl_by_draws_has_no_dimensions():
    q = DiagonalGaussian(torch.zeros(5, 2), torch.zeros(5, 2))
    assert draw_with_kl(StandardNormal(2), q, torch.zeros(4, 5, 2))[1].shape == (5, 2)
    assert draw_with_kl(CouplingFlow(2), q, torch.zeros(4, 5, 2))[1].shape == (5, 1)


# Posteriors


def some_q(family, latent=4, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    families = {
        "diagonal": Diagonal(),
        "full": FullRank(latent),
        "low_rank": LowRank(latent, min(2, latent)),
        "iaf": InverseAutoregressive(latent, hidden=7, context=5),
    }
    made = families[family]
    if isinstance(made, torch.nn.Module):
        made = made.double()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.4 * torch.randn_like(parameter))
    numbers = [
        torch.randn(batch, size, generator=generator, dtype=DOUBLE)
        for size in (latent, latent, made.extra)
    ]
    return made(Encoded(numbers[0], 0.5 * numbers[1], numbers[2])), numbers


@pytest.mark.sweep(2)
@pytest.mark.parametrize("family", ["diagonal", *DEPENDENT])
@pytest.mark.parametrize("latent", [1, 2, 4])
def test_log_q_is_that_of_the_jacobian(family, latent):
    q, _ = some_q(family, latent)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 3, latent, generator=generator, dtype=DOUBLE)
    drawn = q.draw(noise)
    torch.testing.assert_close(q.noise_of(drawn.z), noise, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(q.log_prob(drawn.z), drawn.log_q, rtol=1e-8, atol=1e-8)
    for k in range(2):
        for i in range(3):
            one = q[i : i + 1]
            jacobian = torch.autograd.functional.jacobian(
                lambda e, one=one: one.draw(e[None]).z[0], noise[k, i]
            )
            log_det = torch.linalg.slogdet(jacobian)[1]
            base = Normal(0.0, 1.0).log_prob(noise[k, i]).sum()
            torch.testing.assert_close(drawn.log_q[k, i], base - log_det)


@pytest.mark.parametrize("family", ["full", "low_rank"])
def test_gaussians_are_torchs(family):
    q, (mean, log_sd, extra) = some_q(family)
    root = q.lower + torch.diag_embed(q.log_diagonal.exp())
    law = torch.distributions.MultivariateNormal(mean, scale_tril=root)
    z = torch.randn(5, 3, 4, dtype=DOUBLE)
    torch.testing.assert_close(q.log_prob(z), law.log_prob(z))
    torch.testing.assert_close(q.moments()[1], 0.5 * law.variance.log())
    standard = torch.distributions.MultivariateNormal(mean.new_zeros(4), torch.eye(4, dtype=DOUBLE))
    kl = torch.distributions.kl_divergence(law, standard)
    torch.testing.assert_close(q.kl_to_standard_normal()[:, 0], kl)
    if family == "low_rank":
        factor = extra.reshape(3, 4, 2) / 2.0  # in units of 1/√latent
        sd = (0.5 * log_sd).exp()[..., None]
        wanted = sd * (torch.eye(4, dtype=DOUBLE) + factor @ factor.mT) * sd.mT
        torch.testing.assert_close(law.covariance_matrix, wanted)


def test_moments_of_a_flow_are_those_of_its_draws():
    q, _ = some_q("iaf", latent=2)
    with torch.no_grad():
        mean, log_sd = q.moments()
        noise = torch.randn(40_000, 3, 2, generator=torch.Generator().manual_seed(9)).double()
        drawn = q.draw(noise).z
    error = log_sd.exp() / 256**0.5  # of the moments' own draws, which are not independent
    assert bool(((mean - drawn.mean(0)).abs() <= 4.5 * error).all())
    assert bool(((log_sd - drawn.std(0).log()).abs() <= 4.5 * (2 / 256) ** 0.5).all())


class Given(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def gap_of(oracle, model, x):
    """log p(x) − ELBO in closed form for a Gaussian q: KL(q ‖ p(z|x))."""
    centre, covariance = oracle.posterior(x)
    truth = torch.distributions.MultivariateNormal(centre, covariance)
    q = model.approximate_posterior(x)
    if isinstance(q, FullGaussian):
        root = q.lower + torch.diag_embed(q.log_diagonal.exp())
    else:
        root = torch.diag_embed(q.log_sd.exp())
    law = torch.distributions.MultivariateNormal(q.centre, scale_tril=root)
    return torch.distributions.kl_divergence(law, truth)


def test_the_best_full_gaussian_has_no_gap_and_the_best_diagonal_one_the_known_one():
    """With L the posterior's factor every weight is p(x): elbo = L_K = log p(x) to rounding."""
    oracle = LinearGaussian(dims=5, latent=3, sd=0.8)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    _, covariance = oracle.posterior(x)
    root = torch.linalg.cholesky(covariance)
    diagonal = root.diagonal()
    below = (root / diagonal[:, None])[tuple(torch.tril_indices(3, 3, -1))] * 3**0.5
    model = oracle.vae(diagonal.log())
    model.family = FullRank(3)
    plain = model.encoder
    model.encoder = Given(lambda one: (*plain(one), below.expand(len(one), 3)))
    found = bounds(model, x, draws=7, generator=torch.Generator().manual_seed(1))
    truth = oracle.log_evidence(x)
    torch.testing.assert_close(found.importance_weighted, truth, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gap_of(oracle, model, x), torch.zeros(6, dtype=DOUBLE))
    precision = torch.linalg.inv(covariance)
    best = oracle.vae(-0.5 * precision.diagonal().log())
    known = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    torch.testing.assert_close(gap_of(oracle, best, x), known.expand(6))
    assert known > 0.2
    figures = bounds(best, x.repeat(40, 1), draws=50, generator=torch.Generator().manual_seed(2))
    assert within(truth.repeat(40) - figures.elbo - known)


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.parametrize(("family", "most"), [("full", 0.01), ("low_rank", 0.01), ("iaf", 0.06)])
def test_refitting_finds_the_best_q_of_the_family(family, most):
    """In two dimensions all three families hold the posterior, or nearly: the gap goes to 0."""
    oracle = LinearGaussian(dims=5, latent=2, sd=0.8)
    model = oracle.vae(torch.tensor([-0.5, -0.5], dtype=DOUBLE), tilt=0.3)
    with_family(model, family, dims=5)
    model.check = lambda data: data
    x, z = made_by(model, 16, seed=3)
    quick = {
        "annealing": Annealing(chains=2, temperatures=2, pilots=2),
        "refitting": Refit(steps=200),
    }
    gap = measure_gap(model, x, exact=z, **quick)
    left = Estimate.from_terms(oracle.log_evidence(x) - gap.per_image.refitted_elbo)
    assert -4.5 * left.standard_error <= left.value <= most + 4.5 * left.standard_error
    assert gap.amortisation.value > 0.1


def test_aggregate_bounds_hold_with_a_full_posterior():
    """q(z|x) = N(x, Σ), x ~ N(0.3, 1.2²): q(z) is a Gaussian."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + 1.2 * torch.randn(400, 2, generator=generator, dtype=DOUBLE)
    model = LinearGaussian(dims=2, latent=2, sd=1.0).vae(torch.zeros(2, dtype=DOUBLE))
    model.family, model.check = FullRank(2), lambda data: data
    log_sd, more = torch.tensor([-0.5, -0.2], dtype=DOUBLE), torch.tensor([1.1], dtype=DOUBLE)
    model.encoder = Given(lambda one: (one, log_sd.expand_as(one), more.expand(len(one), 1)))
    q = model.approximate_posterior(x[:1])
    root = q.lower[0] + q.log_diagonal[0].exp().diag()
    eye = torch.eye(2, dtype=DOUBLE)
    whole = torch.distributions.MultivariateNormal(
        torch.full((2,), 0.3), 1.44 * eye + root @ root.T
    )
    standard = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=DOUBLE), eye)
    kl = torch.distributions.kl_divergence(whole, standard)
    information = 0.5 * torch.logdet(whole.covariance_matrix) - root.diagonal().log().sum()
    found = aggregate(model, x)
    for low, high, truth in (
        (found.kl_low, found.kl_high, kl),
        (found.information_low, found.information_high, information),
    ):
        assert low.value - 4.5 * low.standard_error <= truth
        assert truth <= high.value + 4.5 * high.standard_error
    assert found.information_high.value - found.information_low.value < 0.2
