"""Objectives and expected gradients of random combinations of parts, by sums over a lattice.

What is compared with shares only the decoder and the likelihood: log q is the Jacobian of a draw
(autograd's), log p(z) is torch.distributions', gradients are differences of the sum in float64.
"""

import copy
import math
import random

import pytest
import torch
from torch import distributions as law

from kullback.vae import Architecture, build
from kullback.vae.latents import MixtureOfGaussians, TopDownPrior, VampPrior
from kullback.variational import WeightedBound

DOUBLE = torch.float64
KINDS = {
    "binary": ["bernoulli"],
    "levels": ["logistics", "categorical", "beta_binomial"],
    "8-bit": ["logistics", "categorical", "beta_binomial"],
    "counts": ["poisson", "negative_binomial", "zero_inflated_negative_binomial"],
    "continuous": ["gaussian", "student"],
}
SHAPES = [(1, 1, 1), (1, 3, 5), (3, 1, 1), (1,), (3,), (2, 2, 2)]
PARTS = [
    {},
    {"prior": "mixture", "prior_components": 2},
    {"prior": "vamp", "prior_components": 3},
    {"posterior": "full"},
    {"posterior": "low_rank", "rank": 1, "prior": "mixture", "prior_components": 1},
    {"posterior": "iaf"},
    {"layers": 2, "latent": 2},
]
BOUNDS = ["stl", "iwae", "iwae_plain", "renyi", "ciwae", "miwae", "piwae"]


def random_model(chosen):
    """A small model with random weights, with a label given if it has any, and x `[1, *event]`."""
    kind = chosen.choice(list(KINDS))
    shape = chosen.choice(SHAPES) if kind != "counts" else (chosen.choice([1, 2]),)
    given = {"latent": 1} | chosen.choice(PARTS) | {"likelihood": chosen.choice(KINDS[kind])}
    before = given["likelihood"] in ("bernoulli", "logistics") and len(shape) == 3
    given |= chosen.choice([{"neighbours": 2}, {"context": (4, 4)}]) if before else {}
    levels = chosen.choice([2, 3, 7]) if kind == "levels" else 256
    labels = chosen.choice([(), ("cat", "dog")])
    small = Architecture(network="mlp", hidden=(4,), activation="tanh", components=2, **given)
    model = build(shape, kind, small, levels=levels, labels=labels).double()
    for parameter in model.parameters():
        wide = max(1.0, (parameter.shape[-1] if parameter.ndim > 1 else 16) / 4)
        parameter.data += 0.3 * torch.randn_like(parameter) / math.sqrt(wide)
    top = {"continuous": 2, "counts": 4, "binary": 2}.get(kind, levels)
    x = torch.randint(top, (1, *shape)).to(DOUBLE)
    return (model.at(torch.tensor([1])) if labels else model), x


def lattice(dims):
    """Nodes `[n, dims]` and weights of the trapezoid rule for expectations over N(0, I)."""
    nodes = torch.linspace(-8.5, 8.5, 141, dtype=DOUBLE)
    weights = torch.exp(-0.5 * nodes.square())
    grid = torch.cartesian_prod(*[nodes] * dims).reshape(-1, dims)
    mass = torch.cartesian_prod(*[weights] * dims).reshape(-1, dims).prod(-1)
    kept = mass > 1e-14
    return grid[kept], mass[kept] / mass[kept].sum()


def many(model, x, rows):
    """The model and x for as many rows."""
    one = copy.copy(model)
    one.label = None if model.label is None else model.label.expand(rows)
    return one, x.expand(rows, *x.shape[1:])


def log_prior(model, z):
    prior = model.prior
    if isinstance(prior, TopDownPrior):  # two groups of one dimension
        mean, log_sd = prior.nets[0](z[..., :1]).unbind(-1)
        top = law.Normal(0.0, 1.0).log_prob(z[..., 0])
        return top + law.Normal(mean, log_sd.exp()).log_prob(z[..., 1])
    if isinstance(prior, MixtureOfGaussians):
        mean, log_sd, logits = prior.mean, prior.log_sd, prior.logits
    elif isinstance(prior, VampPrior):
        mean, log_sd = model.encoder(prior.pseudo_inputs)
        logits = torch.zeros(len(mean), dtype=DOUBLE)
    else:
        return law.Normal(0.0, 1.0).log_prob(z).sum(-1)
    parts = law.Independent(law.Normal(mean, log_sd.exp()), 1)
    return law.MixtureSameFamily(law.Categorical(logits=logits), parts).log_prob(z)


def terms(model, x, noise):
    """log p(x|z) and log p(z) − log q(z|x) at draws for noise `[draws, rows, latent]`."""
    noise = noise.detach().requires_grad_()
    z = model.approximate_posterior(x).draw(noise).z
    rows = [torch.autograd.grad(one.sum(), noise, retain_graph=True)[0] for one in z.unbind(-1)]
    log_q = law.Normal(0.0, 1.0).log_prob(noise).sum(-1)
    log_q = log_q - torch.linalg.slogdet(torch.stack(rows, -2))[1]
    with torch.no_grad():
        likelihood = model.likelihood.log_prob(model.parameters_of(z), x)
        return likelihood, log_prior(model, z) - log_q


def log_mean(logs, dim):
    return torch.logsumexp(logs, dim) - math.log(logs.shape[dim])


def value(bound, logs):
    """The bound, written from its formula, of log-weights `[draws, rows]`."""
    if bound.name == "renyi" and bound.alpha != 1:
        return log_mean((1 - bound.alpha) * logs, 0) / (1 - bound.alpha)
    if bound.name == "miwae":
        return log_mean(logs.reshape(bound.groups, -1, logs.shape[-1]), 1).mean(0)
    share = {"stl": 1.0, "renyi": 1.0, "ciwae": bound.alpha}.get(bound.name, 0.0)
    return share * logs.mean(0) + (1 - share) * log_mean(logs, 0)


def of_q(name):
    return name.startswith(("encoder", "family", "label_inputs"))


@pytest.mark.sweep(30)
@pytest.mark.parametrize("seed", range(30))
def test_a_random_models_objectives_are_the_sums_they_should_be(seed):
    chosen, beta = random.Random(seed), 1.0 if seed % 3 else 0.6
    torch.manual_seed(seed)
    model, x = random_model(chosen)
    latent = model.prior.latent
    draws = 1 if latent == 2 else 2
    groups = chosen.choice([1, draws])
    bound = WeightedBound(chosen.choice(BOUNDS), chosen.choice([0.0, 0.3, 1.0]), groups)
    if bound.name == "piwae":  # q learns from another bound: where no parameter is q's and p's
        whole = {"layers", "vamp"} & {
            "layers" if latent == 2 else "",
            model.spec.architecture.prior,
        }
        learns = {of_q: WeightedBound("miwae", groups=groups), lambda n: not of_q(n): bound}
        apart = not whole and model.spec.architecture.posterior != "iaf"
        bound, learns = (bound, learns) if apart else (WeightedBound(), None)
    else:
        learns = None
    learns = learns or {lambda _: True: bound}
    grid, mass = lattice(latent * draws)
    noise = grid.reshape(-1, draws, latent).transpose(0, 1)
    rows, xs = many(model, x, len(grid))

    def truth(one):
        likelihood, ratio = terms(rows, xs, noise)
        return float((mass * value(one, likelihood + beta * ratio)).sum())

    ours = (mass * rows.tight_terms(xs, noise, beta, bound)[2]).sum()
    assert float(ours.detach()) == pytest.approx(truth(bound), rel=1e-9, abs=1e-9)
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    slopes = torch.autograd.grad(ours, [one for _, one in named], allow_unused=True)
    for learning, objective in learns.items():
        picked = [(one, g) for (name, one), g in zip(named, slopes, strict=True) if learning(name)]
        ways = [torch.randn_like(one) for one, _ in picked]
        pairs = zip(picked, ways, strict=True)
        along = sum(float((g * way).sum()) for (_, g), way in pairs if g is not None)
        ends = []
        for step in (1e-5, -2e-5, 1e-5):  # up, down, and back
            with torch.no_grad():
                for (one, _), way in zip(picked, ways, strict=True):
                    one.add_(step * way)
            ends.append(truth(objective) if len(ends) < 2 else 0.0)
        size = math.sqrt(sum(float(g.square().sum()) for _, g in picked if g is not None))
        assert along == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=2e-5 * (size + 0.01))


@pytest.mark.sweep(10)
@pytest.mark.parametrize("seed", range(100, 120))
def test_bounds_of_a_random_model_are_in_their_order_below_its_evidence(seed):
    """ELBO ≤ L_2 ≤ log p(x | y), the KL and the KL of each layer, by sums over a lattice."""
    torch.manual_seed(seed)
    model, x = random_model(random.Random(seed))
    latent = model.prior.latent
    grid, mass = lattice(latent)
    rows, xs = many(model, x, len(grid))
    likelihood, ratio = terms(rows, xs, grid[None])
    log_weights = (likelihood + ratio)[0]
    evidence = float(torch.logsumexp(log_weights + mass.log(), 0))  # E_q p(x, z)/q(z|x)
    with torch.no_grad():
        found, kl = rows.elbo_terms(xs, grid[None])
    elbo = float((mass * (found[0] - kl.sum(-1))).sum())
    assert float((mass * kl.sum(-1)).sum()) == pytest.approx(-float((mass * ratio[0]).sum()), 1e-6)
    assert elbo == pytest.approx(float((mass * log_weights).sum()), rel=1e-6)
    assert elbo <= evidence + 1e-9 * abs(evidence)
    if latent == 1:
        pairs = torch.logaddexp(log_weights[:, None], log_weights) - math.log(2)
        two = float(mass @ pairs @ mass)
        assert elbo <= two + 1e-9 * abs(two) and two <= evidence + 1e-9 * abs(evidence)
    else:
        mean, log_sd = (
            float(one[0, 0].detach()) for one in model.encoder(model.encoder_input(x))[:2]
        )
        top = 0.5 * (mean**2 + math.exp(2 * log_sd) - 1) - log_sd
        assert float((mass * kl[:, 0]).sum()) == pytest.approx(top, rel=1e-6)
