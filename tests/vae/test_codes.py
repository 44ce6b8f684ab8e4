"""Quantised latents: the ELBO of a deterministic code, against sums over every code and every x."""

import copy
import itertools
import math

import pytest
import torch

from kullback import report
from kullback.core import ArgumentValueError, write_json
from kullback.data import Dataset
from kullback.report import evaluation_text
from kullback.vae import (
    VAE,
    Annealing,
    Architecture,
    Evaluation,
    Training,
    aggregate,
    anneal,
    build,
    evaluate,
    resume,
    train,
)
from kullback.vae.evidence import bounds
from kullback.vae.latents import CodePrior, Encoded, Quantised, StandardNormal
from kullback.vae.loop import loss_terms

DOUBLE = torch.float64


def tiny(latent=2, codes=3, dims=3, seed=0):
    """A model in float64, every parameter of its prior moved from its start."""
    torch.manual_seed(seed)
    how = Architecture(
        network="mlp", hidden=(6,), latent=latent, posterior="quantised", codes=codes
    )
    model = build((dims,), "binary", how).double()
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        for weight in (*model.encoder.net.weights, *model.decoder.net.weights):
            weight.mul_(2.0)
    return model


def every_code(prior):
    index = torch.tensor(list(itertools.product(range(prior.codes), repeat=prior.latent)))
    return prior.values_of(index)


def every_x(dims=3):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=dims)), dtype=DOUBLE)


@torch.no_grad()
@pytest.mark.parametrize(("latent", "codes"), [(1, 2), (2, 3), (3, 4), (5, 2)])
def test_the_elbo_is_one_term_of_the_sum_over_all_codes(latent, codes):
    """Σ_c p(c) = 1, Σ_x p(x) = 1, and log p(x|c(x)) + log p(c(x)) ≤ log p(x) for every x."""
    model, x = tiny(latent, codes), every_x()
    z = every_code(model.prior)
    log_p = model.prior.log_prob(z)
    assert float(torch.logsumexp(log_p, 0)) == pytest.approx(0.0, abs=1e-12)
    given = model.likelihood.log_prob(model.parameters_of(z).unsqueeze(1), x)
    truth = torch.logsumexp(given + log_p[:, None], 0)
    assert float(torch.logsumexp(truth, 0)) == pytest.approx(0.0, abs=1e-12)
    found = bounds(model, x, draws=3, generator=torch.Generator())
    at = [int((z == code).all(-1).nonzero()) for code in model.approximate_posterior(x).centre]
    terms = given[at, torch.arange(len(x))] + log_p[at]
    torch.testing.assert_close(found.elbo, terms)
    torch.testing.assert_close(found.importance_weighted, terms)  # all draws are the same
    torch.testing.assert_close(found.rate, -log_p[at])
    assert bool((found.elbo < truth).all()) and found.exact_rate
    assert bool((found.rate > 0).all())


def test_draws_of_the_prior_have_its_probabilities():
    prior = tiny(2, 3).prior
    drawn = prior.sample(20_000, torch.Generator().manual_seed(0))
    z = every_code(prior)
    p = prior.log_prob(z).exp().detach()
    share = torch.stack([(drawn == code).all(-1).double().mean() for code in z])
    assert bool(((share - p).abs() <= 4.5 * (p * (1 - p) / 20_000).sqrt()).all())


def test_a_dimension_does_not_depend_on_later_ones():
    prior = tiny(4, 3).prior
    z = torch.randn(1, 4, dtype=DOUBLE, requires_grad=True)
    logits = prior._logits(z)
    for d in range(4):
        (slope,) = torch.autograd.grad(logits[0, d].square().sum(), z, retain_graph=True)
        assert bool((slope[0, d:] == 0).all()), d
        assert d == 0 or bool((slope[0, :d] != 0).any())


@pytest.mark.parametrize("codes", [2, 3, 8, 255])
def test_codes_and_values_are_inverse(codes):
    prior = CodePrior(1, codes)
    index = torch.arange(codes)
    assert torch.equal(prior.index_of(prior.values_of(index)), index)
    assert prior.values_of(index)[[0, -1]].tolist() == [-2.0, 2.0]
    far = torch.tensor([-1e30, -2.1, 2.1, 1e30])
    assert prior.index_of(far).tolist() == [0, 0, codes - 1, codes - 1]


def test_rounding_passes_the_gradient_and_the_rate_teaches_the_prior_alone():
    prior = CodePrior(2, 3).double()
    mean = torch.tensor([[0.3, -1.2]], dtype=DOUBLE, requires_grad=True)
    q = Quantised(prior)(Encoded(mean, torch.zeros(1, 2)))
    drawn = q.draw(torch.zeros(4, 1, 2))
    assert torch.equal(drawn.z, prior.values_of(prior.index_of(2 * mean.tanh())).expand(4, 1, 2))
    assert torch.equal(drawn.log_q, torch.zeros(4, 1, dtype=DOUBLE))
    (slope,) = torch.autograd.grad(drawn.z[0].sum(), mean, retain_graph=True)
    torch.testing.assert_close(slope, 2 * (1 - mean.detach().tanh() ** 2))
    assert torch.equal(q.log_prob(drawn.z[0]), torch.zeros(1, dtype=DOUBLE))
    assert q.log_prob(drawn.z[0] + 1)[0] == -math.inf
    means = torch.randn(1000, 2, dtype=DOUBLE)
    many = Quantised(prior)(Encoded(means, torch.zeros(1000, 2)))
    assert torch.equal(many.z, many.value)
    broken = Quantised(prior)(Encoded(means * math.nan, torch.zeros(1000, 2)))
    assert bool(broken.z.isnan().all())
    model, x = tiny(), every_x()
    loss, figures = loss_terms(model, x, torch.zeros(1, 8, 2), Training())
    torch.testing.assert_close(loss.detach(), -figures[0])
    _, kl = model.elbo_terms(x, torch.zeros(1, 8, 2))
    nets = list(model.encoder.parameters())
    assert torch.autograd.grad(kl.sum(), nets, allow_unused=True) == (None,) * len(nets)


def test_figures_say_what_they_are():
    model, x = tiny().float(), every_x().float()
    found = evaluate(model, x, draws=30)
    assert found.coded and found.exact_rate and found.loose is None
    assert found.gap.value == pytest.approx(0.0, abs=1e-6)
    assert Evaluation.from_dict(found.to_dict()) == found
    text = evaluation_text.evaluation_table(found, {"event_shape": [3]}, color=False)
    assert "length of the code, -log p(c)" in text and "KL(" not in text and "L_30" not in text
    assert "z is a deterministic code" in text and "loose" not in text
    bits = found.rate.value / math.log(2)
    assert f"{bits:.3g}" in text
    mean, log_sd = model.encode(x)
    assert bool((log_sd == -math.inf).all()) and bool((mean.abs() <= 2).all())
    again = copy.deepcopy(model)
    assert again.family.prior is again.prior


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Architecture(codes=1), "codes: expected from 2 to 1,024"),
        (lambda: Architecture(codes=1025), "codes: expected from 2 to 1,024"),
        (lambda: CodePrior(2, 1), "codes: expected at least 2"),
        (lambda: Architecture(posterior="quantised", prior="flow"), "prior over codes; got 'flow'"),
        (lambda: Architecture(posterior="quantised", layers=2), "layers: expected 1, or"),
        (
            lambda: anneal(
                tiny(), every_x(), settings=Annealing(chains=2), generator=torch.Generator()
            ),
            "posterior: expected a density",
        ),
        (lambda: aggregate(tiny().float(), every_x()), "posterior: expected a density"),
    ],
)
def test_what_needs_a_density_is_refused(make, text):
    with pytest.raises(ArgumentValueError, match=text):
        make()


def bits(n=80):
    x = torch.randint(2, (n, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    protocol = {
        "source": "bits",
        "sha256": {"train": "", "test": ""},
        "skipped": {"count": 0, "files": []},
        "notes": [],
    }
    names = tuple(map(str, range(n)))
    return Dataset(x[:60], x[60:], "binary", False, protocol, names[:60], names[60:])


@pytest.mark.sweep(3)
@pytest.mark.parametrize("wrong", [{"objective": "iwae"}, {"draws": 2}, {"tighten": 0.5}])
def test_objectives_of_several_draws_are_refused(wrong, tmp_path):
    how = Architecture(hidden=(4,), latent=2, posterior="quantised")
    with pytest.raises(ArgumentValueError, match="whose draws are all the same"):
        train(bits(), architecture=how, training=Training(steps=1, **wrong), folder=tmp_path / "a")


def test_another_prior_is_refused(tmp_path):
    how = Architecture(hidden=(4,), latent=2, posterior="quantised")
    with pytest.raises(ArgumentValueError, match="prior: expected the model's own"):
        train(bits(), architecture=how, prior=StandardNormal(2), folder=tmp_path / "b")


@pytest.mark.slow
def test_a_run_is_kept_resumed_and_measured(tmp_path):
    how = Architecture(network="mlp", hidden=(8,), latent=4, posterior="quantised", codes=3)
    data, training = bits(), Training(steps=12, batch_size=20)
    whole = train(data, architecture=how, training=training, folder=tmp_path / "a")
    count = itertools.count()
    options = {"architecture": how, "training": training, "folder": tmp_path / "b"}
    train(data, stop=lambda: next(count) == 4, **options)
    again = resume(tmp_path / "b", data=data)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert float(whole.model.prior.last.detach().abs().max()) > 0
    loaded = VAE.load(tmp_path / "a")
    assert evaluate(loaded, data.test, draws=4) == evaluate(whole.model, data.test, draws=4)
    codes = loaded.encode(data.test)[0]
    assert torch.equal(loaded.prior.values_of(loaded.prior.index_of(codes)), codes)
    assert loaded.sample(3).shape == (3, 6)


@pytest.mark.slow
def test_the_page_of_quantised_pixels_has_bits_and_no_gap(tmp_path):
    x = torch.randint(0, 256, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    how = Architecture(network="mlp", hidden=(8,), latent=4, posterior="quantised", codes=3)
    found = train(
        x.to(torch.uint8), architecture=how, training=Training(steps=3), folder=tmp_path / "a"
    )
    evaluation = evaluate(found.model, found.data.test, draws=4)
    fields = {"evaluation": evaluation.to_dict(), "data": found.data.protocol}
    write_json(tmp_path / "a" / "evaluation.json", {"format": 1, "unit": "nats", **fields})
    page = report.write(tmp_path / "a", model=found.model, data=found.data).read_text()
    assert evaluation.coded and "bits/dim" in page and ">gap<" not in page
