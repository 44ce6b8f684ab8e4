"""Several stochastic layers, against a linear-Gaussian ladder in closed form and enumeration."""

import copy
import itertools
import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from kullback.core import ArgumentValueError, Estimate
from kullback.data import Dataset
from kullback.report.training_runs.run_page import command
from kullback.vae import (
    VAE,
    Architecture,
    Evaluation,
    Parts,
    Training,
    build,
    evaluate,
    resume,
    train,
)
from kullback.vae.evaluation import image_bounds, kl_of_layers, summarise, unused_layers
from kullback.vae.evidence import bounds
from kullback.vae.latents import (
    Encoded,
    StandardNormal,
    TopDown,
    TopDownPrior,
    held_log_ratio,
    kl_of_draws,
    layer_sizes,
    log_ratio,
)
from kullback.vae.likelihoods import Gaussian
from kullback.vae.loop import balance_weights, loss_terms
from kullback.vae.posterior import Annealing, Refit, aggregate, anneal, made_by, measure_gap
from kullback.variational import WeightedBound
from oracles import LinearGaussian

DOUBLE = torch.float64


class Affine(nn.Module):
    """Mean linear in the groups above, log sd constant; deaf to a context."""

    def __init__(self, weight, mean, log_sd):
        super().__init__()
        self.weight, self.mean = nn.Parameter(weight), nn.Parameter(mean)
        self.log_sd = nn.Parameter(log_sd)

    def forward(self, above, context=None):
        mean = above @ self.weight.T + self.mean
        return torch.cat([mean, self.log_sd.expand_as(mean)], -1)


class Ladder:
    """z_l | z_>l linear and Gaussian, x | z as well: evidence, posterior and KL in closed form.

    z = T u + t with u ~ N(0, I) and T lower triangular, so that `LinearGaussian` in u is the same
    model. Groups of one dimension: every Gaussian q(u|x) is a product of q(u_l | u_>l, x).
    """

    def __init__(self, layers=3, dims=4, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape):
            return torch.randn(*shape, generator=generator, dtype=DOUBLE)

        self.layers, self.dims = layers, dims
        self.couple = [0.7 * drawn(1, above) for above in range(1, layers)]
        self.shift = [0.5 * drawn(1) for _ in range(1, layers)]
        self.log_sd = [0.3 * drawn(1) - 0.2 for _ in range(1, layers)]
        self.t, self.root = torch.zeros(layers, dtype=DOUBLE), torch.eye(layers, dtype=DOUBLE)
        for k, (w, m, s) in enumerate(zip(self.couple, self.shift, self.log_sd, strict=True), 1):
            self.root[k, :k] = w @ self.root[:k, :k]
            self.root[k, k] = s.exp()
            self.t[k] = w @ self.t[:k] + m
        self.oracle = LinearGaussian(dims, layers, 0.8, seed=seed + 1)
        self.read, self.bias = self.oracle.w.clone(), self.oracle.b.clone()  # x given z
        self.oracle.w = self.read @ self.root
        self.oracle.b = self.bias + self.read @ self.t

    def vae(self, tilt=0.0, widen=0.0):
        """The model, with the exact posterior for q where nothing is moved."""
        nets = [Affine(*one) for one in zip(self.couple, self.shift, self.log_sd, strict=True)]
        prior = TopDownPrior([1] * self.layers, nets)
        _, covariance = self.oracle.posterior(torch.zeros(1, self.dims, dtype=DOUBLE))
        root = torch.linalg.cholesky(covariance)
        self.q_root = root * math.exp(widen)
        self.weights = [root[k, :k] @ torch.linalg.inv(root[:k, :k]) for k in range(self.layers)]
        nets, zero = [], torch.zeros(1, dtype=DOUBLE)
        for k in range(1, self.layers):
            by_z = self.weights[k] @ torch.linalg.inv(self.root[:k, :k])
            nets.append(Affine(by_z[None], -by_z @ self.t[:k] + zero, zero.clone()))
        ladder, log_sd = self, root.diagonal().log() + widen

        class Encoder(nn.Module):
            def forward(self, x):
                mean = ladder.q_mean(x, tilt)
                rest = [mean[:, k] - mean[:, :k] @ ladder.weights[k] for k in range(ladder.layers)]
                return torch.stack(rest, -1), log_sd.expand_as(mean), x

        class Decoder(nn.Module):
            def forward(self, z):
                return (z @ ladder.read.T + ladder.bias).unsqueeze(1)

        likelihood = Gaussian((self.dims,), log_sd=math.log(0.8), learned=False).double()
        likelihood.log_sd.data = torch.tensor(math.log(0.8), dtype=DOUBLE)
        family = TopDown(prior, nets, context=self.dims)
        return VAE(Encoder(), Decoder(), likelihood, prior, family=family).double()

    def q_mean(self, x, tilt):
        return self.oracle.posterior(x)[0] + tilt

    def kl(self, x, tilt):
        """KL(q ‖ p(z)) and KL(q ‖ p(z|x)), by the formula of two Gaussians in u."""
        mean, q_cov = self.q_mean(x, tilt), self.q_root @ self.q_root.T
        centre, covariance = self.oracle.posterior(x)
        zero, one = torch.zeros_like(mean), torch.eye(self.layers, dtype=DOUBLE)
        return gaussian_kl(mean, q_cov, zero, one), gaussian_kl(mean, q_cov, centre, covariance)


def gaussian_kl(mean, cov, centre, other):
    inverse = torch.linalg.inv(other)
    move = mean - centre
    quadratic = torch.einsum("ni,ij,nj->n", move, inverse, move)
    trace = (inverse @ cov).trace() - len(cov) + torch.logdet(other) - torch.logdet(cov)
    return 0.5 * (trace + quadratic)


def made(ladder, n, seed=0):
    x, z = made_by(ladder.vae(), n, seed=seed)
    return x.double(), z.double()


def hermite(dims, nodes):
    """Nodes `[n, dims]` and weights of Gauss-Hermite quadrature for N(0, I)."""
    import numpy as np

    line, weight = np.polynomial.hermite_e.hermegauss(nodes)
    line, weight = torch.tensor(line), torch.tensor(weight / weight.sum())
    points = torch.cartesian_prod(*[line] * dims).reshape(-1, dims)
    return points, torch.cartesian_prod(*[weight] * dims).reshape(-1, dims).prod(-1)


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_the_exact_posterior_leaves_no_gap(layers):
    ladder = Ladder(layers)
    x, _ = made(ladder, 6)
    truth = ladder.oracle.log_evidence(x)
    found = bounds(ladder.vae(), x, draws=7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.importance_weighted, truth, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.effective_draws, torch.full_like(truth, 7.0))


@pytest.mark.parametrize("layers", [2, 3])
def test_kl_and_elbo_are_the_closed_forms(layers):
    """By quadrature over the noise of q, exact for polynomials: the KL of the groups together."""
    ladder, tilt = Ladder(layers), torch.linspace(-0.4, 0.6, layers, dtype=DOUBLE)
    x, _ = made(ladder, 5)
    model = ladder.vae(tilt, widen=0.3)
    to_prior, to_posterior = ladder.kl(x, tilt)
    nodes, weight = hermite(layers, 4)
    q = model.approximate_posterior(x)
    drawn = q.draw(nodes.unsqueeze(1).expand(-1, len(x), -1))
    each = torch.einsum("k,knd->nd", weight, drawn.units.kl_to_standard_normal())
    torch.testing.assert_close(each.sum(-1), to_prior, rtol=1e-10, atol=1e-10)
    ratio = log_ratio(model.prior, q, drawn)
    torch.testing.assert_close(ratio, model.prior.log_prob(drawn.z) - drawn.log_q)
    torch.testing.assert_close(-(weight @ ratio), to_prior, rtol=1e-10, atol=1e-10)
    likelihood = model.likelihood.log_prob(model.parameters_of(drawn.z), x)
    elbo = weight @ likelihood - to_prior
    torch.testing.assert_close(elbo + to_posterior, ladder.oracle.log_evidence(x))
    found = bounds(model, x, draws=4000, generator=torch.Generator().manual_seed(1))
    assert float((found.kl.sum(-1) - found.rate).abs().max()) < 1e-12
    gap = ladder.oracle.log_evidence(x) - found.importance_weighted
    assert bool((found.elbo <= found.importance_weighted + 0.05).all())
    assert float(gap.mean()) == pytest.approx(0.0, abs=0.05)


def test_bounds_are_ordered_in_expectation():
    """E ELBO ≤ E L_2 ≤ E L_8 ≤ log p(x) by 4.5 standard errors, and the first gap is the KL."""
    ladder, tilt = Ladder(2), torch.tensor([0.5, -0.4], dtype=DOUBLE)
    x, _ = made(ladder, 1)
    model = ladder.vae(tilt, widen=0.25)
    many = x.expand(3000, -1)
    truth, (_, to_posterior) = ladder.oracle.log_evidence(x), ladder.kl(x, tilt)
    found = [
        bounds(model, many, draws=draws, generator=torch.Generator().manual_seed(draws))
        for draws in (1, 2, 8)
    ]
    terms = [found[0].elbo, found[1].importance_weighted, found[2].importance_weighted]
    gaps = [Estimate.from_terms(truth - one) for one in terms]
    assert abs(gaps[0].value - float(to_posterior)) <= 4.5 * gaps[0].standard_error
    for tighter, looser in itertools.pairwise(gaps[::-1]):
        difference = looser - tighter
        assert difference.value > 4.5 * difference.standard_error
    assert gaps[-1].value > -4.5 * gaps[-1].standard_error


@pytest.mark.slow
def test_annealing_over_the_joint_latent_brackets_the_evidence():
    ladder, tilt = Ladder(2), torch.tensor([0.6, -0.5], dtype=DOUBLE)
    x, z = made(ladder, 30)
    model = ladder.vae(tilt, widen=0.4)
    how = Annealing(chains=4, temperatures=20)
    generator = torch.Generator().manual_seed(0)
    found = anneal(model, x, settings=how, exact=z, generator=generator)
    truth = ladder.oracle.log_evidence(x)
    low, high = Estimate.from_terms(truth - found.lower), Estimate.from_terms(found.upper - truth)
    assert low.value > -4.5 * low.standard_error and high.value > -4.5 * high.standard_error
    assert low.value < 0.1 and high.value < 0.1


def random_ladder(sizes, *, seed=0, dims=3, kind="binary"):
    """A model of nets, every parameter of prior and family moved from its start, in float64."""
    torch.manual_seed(seed)
    architecture = Architecture(
        network="mlp", hidden=(5,), latent=sum(sizes), layers=len(sizes), components=2
    )
    model, generator = build((dims,), kind, architecture).double(), torch.Generator().manual_seed(1)
    assert model.layer_sizes == tuple(sizes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("prior.", "family.")):
                noise = torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
                parameter.add_(noise * (0.25 / math.sqrt(parameter.shape[-1])))
    return model


def every_x(dims=3):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=dims)), dtype=DOUBLE)


def lattice(latent, *, reach=12.0, points=121):
    line = torch.linspace(-reach, reach, points, dtype=DOUBLE)
    z = torch.cartesian_prod(*[line] * latent).reshape(-1, latent)
    return z, latent * math.log(float(line[1] - line[0]))


@pytest.mark.slow
@torch.no_grad()
def test_enumeration_of_every_x_and_quadrature_over_z():
    """Σ_x p(x) = 1; the KL by the lattice is that of the draws; L_K is below and near log p(x)."""
    model, x = random_ladder((1, 1)), every_x()
    z, volume = lattice(2)
    log_p = model.prior.log_prob(z)
    assert float(torch.logsumexp(log_p, 0) + volume) == pytest.approx(0.0, abs=1e-9)
    parameters = model.parameters_of(z)
    likelihood = [model.likelihood.log_prob(parameters.unsqueeze(1), one[None]) for one in x]
    truth = torch.logsumexp(torch.cat(likelihood, 1) + log_p[:, None], 0) + volume
    assert float(torch.logsumexp(truth, 0)) == pytest.approx(0.0, abs=1e-9)
    q = model.approximate_posterior(x)
    log_q = q.log_prob(z.unsqueeze(1))
    mass = (log_q + volume).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(len(x), dtype=DOUBLE))
    kl = (mass * (log_q - log_p[:, None])).sum(0)
    drawn = q.draw(torch.randn(20_000, len(x), 2, dtype=DOUBLE))
    each = drawn.units.kl_to_standard_normal().sum(-1).T
    for terms, exact in zip(each, kl, strict=True):
        found = Estimate.from_terms(terms)
        assert abs(found.value - float(exact)) <= 4.5 * found.standard_error + 1e-9
    mean = torch.einsum("zn,zd->nd", mass, z)
    variance = torch.einsum("zn,znd->nd", mass, (z.unsqueeze(1) - mean) ** 2)
    ours, log_sd = q.moments()
    torch.testing.assert_close(ours[:, 0], mean[:, 0])
    torch.testing.assert_close(log_sd[:, 0].exp(), variance[:, 0].sqrt())
    assert float((ours - mean).abs().max()) < 0.1  # 64 draws of the group above
    found = bounds(model, x, draws=4000, generator=torch.Generator().manual_seed(0))
    error = (truth - found.importance_weighted) * found.effective_draws.sqrt()
    assert float(error.abs().max()) < 4.5


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (1, 1, 2), (1,) * 5])
def test_log_q_is_that_of_the_jacobian(sizes):
    model = random_ladder(sizes)
    q = model.approximate_posterior(every_x()[:2])
    noise = torch.randn(3, 2, sum(sizes), dtype=DOUBLE)
    drawn = q.draw(noise)
    torch.testing.assert_close(q.noise_of(drawn.z), noise)
    torch.testing.assert_close(q.log_prob(drawn.z), drawn.log_q)
    torch.testing.assert_close(q[1:].draw(noise[:, 1:]).z, drawn.z[:, 1:])
    one = q[:1]
    jacobian = torch.autograd.functional.jacobian(
        lambda e: one.draw(e[None, None]).z[0, 0], noise[0, 0]
    )
    log_q = StandardNormal(sum(sizes)).log_prob(noise[0, 0]) - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(drawn.log_q[0, 0], log_q)
    torch.testing.assert_close(
        log_ratio(model.prior, q, drawn), model.prior.log_prob(drawn.z) - drawn.log_q
    )
    pairs = q.log_prob(drawn.z[0].unsqueeze(1))  # every z under every item's q
    torch.testing.assert_close(pairs.diagonal(), drawn.log_q[0])


def test_draws_of_the_prior_have_its_moments():
    ladder = Ladder(3)
    z = ladder.vae().prior.sample(20_000, torch.Generator().manual_seed(0))
    found = Estimate.from_terms(z.double().T)
    assert bool(((found.value - ladder.t).abs() <= 4.5 * found.standard_error).all())
    covariance = ladder.root @ ladder.root.T
    centred = z.double() - ladder.t
    products = torch.einsum("ni,nj->ijn", centred, centred).reshape(9, -1)
    found = Estimate.from_terms(products)
    assert bool(((found.value - covariance.flatten()).abs() <= 4.5 * found.standard_error).all())


def test_a_new_hierarchy_is_one_layer():
    """At the start p(z) = N(0, I) and q is the encoder's diagonal Gaussian."""
    model, x = build((4,), "binary", Architecture(latent=5, layers=3)), torch.ones(2, 4)
    z = torch.randn(7, 5)
    torch.testing.assert_close(model.prior.log_prob(z), StandardNormal(5).log_prob(z))
    outputs = model.encoder(model.encoder_input(x))
    mean, log_sd = model.encode(x)
    torch.testing.assert_close(mean, outputs[0])
    torch.testing.assert_close(log_sd, outputs[1])
    q = model.approximate_posterior(x)
    drawn = q.draw(torch.randn(3, 2, 5))
    kl = kl_of_draws(model.prior, q, drawn, log_ratio(model.prior, q, drawn))
    torch.testing.assert_close(kl, StandardNormal(5).kl(*outputs[:2]))


def test_the_path_gradient_has_the_expectation_of_the_elbos():
    """By the trapezoid rule over the noise, spectrally accurate, for every parameter."""
    model = random_ladder((1, 1), dims=2)
    nodes, _ = lattice(2, reach=8.0, points=41)
    weight = torch.softmax(-0.5 * nodes.square().sum(-1), 0)
    many = torch.tensor([[1.0, 0.0]], dtype=DOUBLE).expand(len(nodes), -1)
    likelihood, ratio, _ = model.terms(many, nodes[None])
    plain = (weight * (likelihood + ratio)).sum()
    _, _, value = model.tight_terms(many, nodes[None], 1.0, WeightedBound("stl"))
    path = (weight * value).sum()
    torch.testing.assert_close(plain, path)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(path, parameters)
    theirs = torch.autograd.grad(plain, parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_the_held_log_ratio_is_that_of_a_copy_without_gradients():
    """Through z, the prior and nothing else, as with q taken from a frozen copy of the model."""
    model, x = random_ladder((1, 2)), every_x()[:4]
    frozen = copy.deepcopy(model).requires_grad_(False)
    z = model.approximate_posterior(x).draw(torch.randn(2, 4, 3, dtype=DOUBLE)).z
    ours = held_log_ratio(model.prior, model.approximate_posterior(x), z)
    theirs = model.prior.log_prob(z) - frozen.approximate_posterior(x).log_prob(z)
    torch.testing.assert_close(ours, theirs)
    parameters = [one for name, one in model.named_parameters() if "decoder" not in name]
    for a, b in zip(
        torch.autograd.grad(ours.sum(), parameters, retain_graph=True),
        torch.autograd.grad(theirs.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert all(one.requires_grad for one in model.parameters())


def test_the_path_gradient_of_the_exact_posterior_is_zero():
    ladder = Ladder(3)
    model = ladder.vae()
    x, _ = made(ladder, 4)
    noise = torch.randn(1, 4, 3, dtype=DOUBLE)
    _, _, value = model.tight_terms(x, noise, 1.0, WeightedBound("stl"))
    slopes = torch.autograd.grad(value.sum(), list(model.family.parameters()))
    assert max(float(one.abs().max()) for one in slopes) < 1e-9


def test_balance_weights_are_shares_of_the_kl():
    kl = torch.rand(6, 5, dtype=DOUBLE)
    weights = balance_weights(kl, (2, 3))
    each = [kl[:, :2].mean(), kl[:, 2:].mean()]
    expected = torch.stack(each) / sum(each) * 2
    torch.testing.assert_close(weights, expected[[0, 0, 1, 1, 1]])
    torch.testing.assert_close(balance_weights(0 * kl, (2, 3)), torch.ones(5, dtype=DOUBLE))


def test_balance_changes_the_loss_of_the_warm_up_and_never_the_bound():
    model, x = random_ladder((1, 2)), every_x()
    noise = torch.randn(1, 8, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    plain, balanced = Training(warmup=0.5), Training(warmup=0.5, balance=True)
    likelihood, kl = model.elbo_terms(x, noise)
    weights = balance_weights(kl, (1, 2))
    assert float((weights - 1).abs().max()) > 0.5
    loss, figures = loss_terms(model, x, noise, balanced, 0.25)
    expected = (0.5 * (kl * weights).sum(-1) - likelihood[0]).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(figures, loss_terms(model, x, noise, plain, 0.25)[1])
    torch.testing.assert_close(figures[1], kl.sum(-1).mean())
    for progress in (0.5, 1.0):
        after = loss_terms(model, x, noise, balanced, progress)
        torch.testing.assert_close(after[0], loss_terms(model, x, noise, plain, progress)[0])
        torch.testing.assert_close(-after[0], after[1][0])  # the ELBO itself


def bits(n=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(2, (n, 6), generator=generator, dtype=torch.uint8)
    protocol = {
        "source": "bits",
        "sha256": {"train": "", "test": ""},
        "skipped": {"count": 0, "files": []},
        "notes": [],
    }
    names = tuple(map(str, range(n)))
    return Dataset(x[:60], x[60:], "binary", False, protocol, names[:60], names[60:])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"warmup": 0.5, "balance": True}, {"objective": "iwae"}])
def test_a_run_is_kept_resumed_and_measured(settings, tmp_path):
    architecture = Architecture(network="mlp", hidden=(8,), latent=4, layers=3)
    draws = 2 if "objective" in settings else 1
    data, training = bits(), Training(steps=12, batch_size=20, draws=draws, **settings)
    whole = train(data, architecture=architecture, training=training, folder=tmp_path / "a")
    count = itertools.count()
    options = {"architecture": architecture, "training": training, "folder": tmp_path / "b"}
    train(data, stop=lambda: next(count) == 4, **options)
    again = resume(tmp_path / "b", data=data)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    rows = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("a", "b")]
    assert rows[0] == rows[1] and '"kl_per_layer": [' in rows[0]
    moved = [one for one in whole.model.parameters() if float(one.detach().abs().max()) > 0]
    assert len(moved) == len(list(whole.model.parameters()))
    loaded = VAE.load(tmp_path / "a")
    assert evaluate(loaded, data.test, draws=4) == evaluate(whole.model, data.test, draws=4)
    assert loaded.layer_sizes == (1, 1, 2)
    assert loaded.sample(3).shape == (3, 6) and loaded.encode(data.test)[0].shape == (20, 4)
    assert loaded.decode(loaded.encode(data.test)[0]).shape == (20, 6)


def test_the_kl_of_the_layers_sums_to_the_rate():
    model, x = random_ladder((1, 2, 2)).float(), every_x().float()
    found = evaluate(model, x, draws=16)
    assert found.layer_sizes == (1, 2, 2) and len(found.kl_per_layer) == 3
    total = sum(one.value for one in found.kl_per_layer)
    assert total == pytest.approx(found.rate.value, abs=1e-6)
    assert sum(found.kl_per_dimension) == pytest.approx(total, abs=1e-6)
    assert found.rate.value + found.distortion.value == pytest.approx(-found.elbo.value, abs=1e-5)
    assert Evaluation.from_dict(found.to_dict()) == found and not found.exact_rate
    each = kl_of_layers(model, image_bounds(model, x, draws=16))
    expected = Estimate.from_terms(each[:, 1].double())
    assert found.kl_per_layer[1].standard_error == pytest.approx(expected.standard_error)
    alone = build((3,), "binary", Architecture(latent=2))
    assert evaluate(alone, x, draws=4).kl_per_layer == ()
    one = summarise(model, x[:1], image_bounds(model, x[:1], draws=4))
    assert math.isnan(one.kl_per_layer[0].standard_error)


def test_aggregate_bounds_are_of_the_joint_latent():
    found = aggregate(random_ladder((1, 1)).float(), every_x().float())
    assert found.rate_each is None and found.items == 8
    sums = found.kl_high.value + found.information_low.value
    assert sums == pytest.approx(found.rate.value, abs=1e-9)


def test_the_report_names_the_command_that_trains_it_again():
    architecture = Architecture(layers=3).resolved((6,), "binary")
    training = Training.usual("binary", (6,), steps=9, warmup=0.5, balance=True)
    config = {
        "model": {"architecture": asdict(architecture)},
        "training": training.to_dict(),
        "data": {"source": "bits.npy", "event_shape": [6], "kind": "binary"},
    }
    told = "kullback train bits.npy --layers 3 --warmup 0.5 --steps 9 --balance"
    assert command(config) == told


def test_unused_layers_are_named():
    assert "z_3 (0.01 nats), z_1 (0.05 nats)" in unused_layers([0.01, 4.0, 0.05])
    assert unused_layers([]) == "" and unused_layers([0.1, 5.0]) == ""


@pytest.mark.slow
def test_another_prior_than_the_familys_is_not_taken_for_it():
    """A model whose prior was replaced keeps right figures: from log-densities alone."""
    model, x = random_ladder((1, 1)), every_x()[:1]
    del model.prior
    model.prior = StandardNormal(2)
    assert not model.has_kl_per_dimension() and model.layer_sizes == (2,)
    z, volume = lattice(2, points=61)
    log_q = model.approximate_posterior(x).log_prob(z.unsqueeze(1))[:, 0]
    kl = float(((log_q + volume).exp() * (log_q - model.prior.log_prob(z))).sum().detach())
    found = bounds(model, x.expand(400, -1), draws=9, generator=torch.Generator().manual_seed(0))
    rate = Estimate.from_terms(found.rate.detach())
    assert abs(rate.value - kl) <= 4.5 * rate.standard_error


def test_sizes():
    assert layer_sizes(32, 2) == (16, 16) and layer_sizes(7, 3) == (2, 2, 3)
    for latent, layers in itertools.product(range(1, 9), range(1, 9)):
        if layers <= latent:
            sizes = layer_sizes(latent, layers)
            assert sum(sizes) == latent and sizes[-1] - sizes[0] in (0, 1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Architecture(layers=0), "layers: expected from 1 to 32"),
        (lambda: Architecture(latent=3, layers=4), "at most latent = 3; got 4"),
        (lambda: Architecture(layers=2, prior="vamp"), "prior normal and posterior diagonal"),
        (lambda: Architecture(layers=2, posterior="iaf"), "got 2 with normal, iaf"),
        (lambda: Training(balance=True), "balance: expected a warm-up"),
        (lambda: Training(balance=True, warmup=0.1, objective="iwae"), "balance: expected"),
        (lambda: TopDownPrior((3,)), "sizes: expected two groups or more"),
        (lambda: TopDownPrior((3, 0)), "sizes: expected two groups"),
        (lambda: TopDownPrior((1, 1, 1), [nn.Linear(1, 2)]), "nets: expected 2"),
        (
            lambda: TopDown(TopDownPrior((1, 1)))(Encoded(torch.zeros(1, 2), torch.zeros(1, 2))),
            "64 more numbers",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, text):
    with pytest.raises(ArgumentValueError, match=text):
        make()


def test_training_refuses_what_layers_have_not(tmp_path):
    one, several = (
        Architecture(hidden=(4,), latent=2),
        Architecture(hidden=(4,), latent=2, layers=2),
    )
    balanced = Training(steps=1, warmup=0.5, balance=True)
    with pytest.raises(ArgumentValueError, match="several stochastic layers"):
        train(bits(), architecture=one, training=balanced, folder=tmp_path / "a")
    with pytest.raises(ArgumentValueError, match="prior: expected the model's own"):
        train(bits(), architecture=several, prior=StandardNormal(2), folder=tmp_path / "b")


@pytest.mark.slow
def test_a_decoder_of_ones_own_reads_all_layers(tmp_path):
    several, how = Architecture(hidden=(4,), latent=2, layers=2), Training(steps=2)
    decoder = nn.Linear(2, 6)
    found = train(
        bits(), architecture=several, decoder=decoder, training=how, folder=tmp_path / "c"
    )
    again = VAE.load(tmp_path / "c", parts=Parts(decoder=nn.Linear(2, 6)))
    assert torch.equal(again.sample(4), found.model.sample(4))


@pytest.mark.slow
def test_refitting_finds_the_exact_posterior():
    """q of the family that is best for each x alone has no gap, from an encoder that is off."""
    ladder, tilt = Ladder(2), torch.tensor([0.5, -0.4], dtype=DOUBLE)
    x, z = made(ladder, 6)
    model = ladder.vae(tilt, widen=0.3)
    model.check = lambda data: data
    how = Annealing(chains=4, temperatures=10)
    gap = measure_gap(model, x, exact=z, annealing=how, refitting=Refit(steps=300))
    best = Estimate.from_terms(ladder.oracle.log_evidence(x) - gap.per_image.refitted_elbo)
    exact = ladder.kl(x, tilt)[1]
    ours = Estimate.from_terms(ladder.oracle.log_evidence(x) - gap.per_image.elbo - exact)
    assert abs(best.value) < 0.02 + 4.5 * best.standard_error
    assert abs(ours.value) < 4.5 * ours.standard_error + 1e-9 and float(exact.min()) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["8-bit", "continuous", "sound"])
def test_layers_go_with_every_kind_of_data_and_bfloat16(kind):
    generator = torch.Generator().manual_seed(0)
    sound = kind == "sound"
    shape, more = (1, 8, 8), {}
    if sound:
        shape, more = (1, 300), {"sound": {"rate": 8000, "step": 1, "clip": 300}, "levels": 65536}
    architecture = Architecture(latent=6, layers=3, hidden=(8,) if sound else (4, 8))
    model = build(shape, kind, architecture, **more)
    x = torch.randint(0, 255, (4, *shape), generator=generator).float()
    x = x / 255 if kind == "continuous" else x
    noise = torch.randn(1, 4, 6, generator=generator)
    model.train()
    if not sound:
        model.encoder.to(torch.bfloat16), model.decoder.to(torch.bfloat16)
        model.prior.to(torch.bfloat16), model.family.to(torch.bfloat16)
    loss, _ = loss_terms(model, x, noise, Training(objective="iwae"))
    slopes = torch.autograd.grad(loss, [*model.prior.parameters(), *model.family.parameters()])
    assert math.isfinite(float(loss.detach())) and all(bool(one.isfinite().all()) for one in slopes)
    model.float()
    found = evaluate(model, x, draws=3)
    total = sum(one.value for one in found.kl_per_layer)
    assert total == pytest.approx(found.rate.value, rel=1e-5)
    assert model.sample(2).shape == (2, *shape)
