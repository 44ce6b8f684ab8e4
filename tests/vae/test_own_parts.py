"""A user's own modules: trained into a run folder, resumed, reported, and refused with reasons."""

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kullback import report
from kullback.core import ArgumentTypeError, ArgumentValueError, Estimate, RunError
from kullback.data import Dataset, load
from kullback.vae import (
    VAE,
    Architecture,
    Parts,
    Training,
    build,
    evaluate,
    image_bounds,
    resume,
    train,
)
from kullback.vae.latents import (
    FullRank,
    MixtureOfGaussians,
    StandardNormal,
    draw_with_kl,
    fixed,
    has_closed_form,
    is_standard_normal,
    log_ratio,
)
from kullback.vae.likelihoods import Bernoulli
from kullback.vae.model import with_parts
from oracles import LinearGaussian


class Encoder(nn.Module):
    def __init__(self, into=6, latent=3):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(into, 16), nn.Tanh())
        self.mean, self.log_sd = nn.Linear(16, latent), nn.Linear(16, latent)

    def forward(self, x):
        h = self.net(x)
        return self.mean(h), self.log_sd(h)


def decoder(latent=3, out=6):
    return nn.Sequential(nn.Linear(latent, 16), nn.Tanh(), nn.Linear(16, out))


def parts(**more):
    torch.manual_seed(0)
    return {"encoder": Encoder(), "decoder": decoder()} | more


def bits(n=90, shape=(6,)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (n, *shape), generator=generator, dtype=torch.uint8)
    protocol = {
        "source": "bits",
        "sha256": {"train": "", "test": ""},
        "skipped": {"count": 0, "files": []},
        "notes": [],
        "event_shape": list(shape),
        "kind": "binary",
    }
    names = tuple(map(str, range(n)))
    return Dataset(x[:60], x[60:], "binary", False, protocol, names[:60], names[60:])


QUICK = Training(steps=12, batch_size=20)


@pytest.mark.slow
@pytest.mark.parametrize("prior", [None, "mixture"])
def test_a_run_of_own_modules_is_kept_resumed_and_loaded(prior, tmp_path):
    def fresh():
        own = parts()
        return own if prior is None else own | {"prior": MixtureOfGaussians(3, 4)}

    data, mine = bits(), fresh()
    whole = train(data, **mine, training=QUICK, folder=tmp_path / "a")
    assert whole.finished and whole.model.encoder.module is mine["encoder"]
    count = itertools.count()
    mine = fresh()
    stopped = {"folder": tmp_path / "b", "stop": lambda: next(count) == 4}
    train(data, **mine, training=QUICK, **stopped)
    torch.manual_seed(99)
    other = Encoder(), decoder(), MixtureOfGaussians(3, 4) if prior else None  # other weights
    again = Parts(encoder=other[0], decoder=other[1], prior=other[2])
    found = resume(tmp_path / "b", data=data, parts=again)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name]), name
    loaded = VAE.load(tmp_path / "a", parts=Parts(**fresh()))
    assert evaluate(loaded, data.test, draws=20) == evaluate(whole.model, data.test, draws=20)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["model"]["own"]["encoder"].endswith("test_own_parts.Encoder")
    assert config["model"]["architecture"]["latent"] == 3
    page = report.write(tmp_path / "a", model=whole.model, data=data).read_text()
    assert "parts of its author" in page and "test_own_parts.Encoder" in page
    assert "kullback.vae.train(" in page
    page = report.write(tmp_path / "a", data=data).read_text()
    assert "kullback.report.write(RUN, model=...)" in page
    for call in (VAE.load, resume):
        with pytest.raises(RunError, match="expected its own parts, encoder"):
            call(tmp_path / "a")
    with pytest.raises(RunError, match="got encoder"):
        VAE.load(tmp_path / "a", parts=Parts(encoder=Encoder()))


def test_own_modules_are_trained_themselves_and_loaded(tmp_path):
    mine = parts()
    found = train(bits(), **mine, training=QUICK, folder=tmp_path / "a")
    assert found.finished and found.model.encoder.module is mine["encoder"]
    loaded = VAE.load(tmp_path / "a", parts=Parts(**parts()))
    x = bits().test
    assert torch.equal(loaded.elbo(x, draws=3), found.model.elbo(x, draws=3))
    with pytest.raises(RunError, match="expected its own parts, encoder"):
        VAE.load(tmp_path / "a")


class Centring(nn.Module):
    """An encoder that puts another tensor in the place of its buffer, as moving averages do."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.net(x - self.mean).chunk(2, -1)


class Transposed(nn.Module):
    """A decoder with the weights of another module."""

    def __init__(self, other):
        super().__init__()
        self.other, self.bias = other, nn.Parameter(torch.zeros(6))

    def forward(self, z):
        return torch.tanh(z @ self.other.weight[:3]) + self.bias


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", ["replaced", "shared"])
def test_a_checkpoint_has_replaced_buffers_and_the_average_of_shared_weights(kind, tmp_path):
    def fresh():
        torch.manual_seed(0)
        encoder = Centring()
        return {"encoder": encoder} | (
            {"decoder": decoder() if kind == "replaced" else Transposed(encoder.net)}
        )

    whole = train(bits(), **fresh(), training=QUICK, folder=tmp_path / "a")
    count = itertools.count()
    stopped = train(
        bits(), **fresh(), training=QUICK, folder=tmp_path / "b", stop=lambda: next(count) == 4
    )
    with pytest.warns(UserWarning, match="not finished"):
        loaded = VAE.load(tmp_path / "b", parts=Parts(**fresh())).state_dict()
    for name, value in stopped.model.state_dict().items():
        assert torch.equal(value, loaded[name]), name
    found = resume(tmp_path / "b", data=bits(), parts=Parts(**fresh()))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name]), name


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 2, (torch.float32, torch.float64)])
def test_parameters_of_half_precision_or_of_two_dtypes_are_refused(dtypes, tmp_path):
    own = {"encoder": Encoder().to(dtypes[0]), "decoder": decoder().to(dtypes[1])}
    with pytest.raises(ArgumentValueError, match="expected parameters of one dtype, float32 or"):
        train(bits(), **own, training=QUICK, folder=tmp_path / "a")


def test_a_decoder_may_give_any_shape_of_the_right_size(tmp_path):
    class Picture(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 64)

        def forward(self, z):
            return self.net(z).reshape(-1, 1, 8, 8)

    own = {"encoder": Encoder(64, 2), "decoder": Picture()}
    found = train(bits(shape=(1, 8, 8)), **own, training=QUICK, folder=tmp_path / "a")
    assert found.model.sample(3).shape == (3, 1, 8, 8)


def test_one_part_alone_and_the_usual_ones_besides(tmp_path):
    small = Architecture(network="mlp", hidden=(8,), latent=5)
    one = train(
        bits(), encoder=Encoder(), architecture=small, training=QUICK, folder=tmp_path / "a"
    )
    assert one.model.prior.latent == 3  # the encoder's, not the architecture's
    two = train(
        bits(), decoder=decoder(5), architecture=small, training=QUICK, folder=tmp_path / "b"
    )
    assert two.model.prior.latent == 5
    vamp = Architecture(network="mlp", hidden=(8,), prior="vamp", prior_components=3)
    three = train(bits(), **parts(), architecture=vamp, training=QUICK, folder=tmp_path / "c")
    assert math.isfinite(float(evaluate(three.model, bits().test, draws=5).elbo.value))
    assert VAE.load(tmp_path / "c", parts=Parts(**parts())).prior.latent == 3


def test_own_modules_train_in_bfloat16_and_with_normalisation(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder()
    encoder.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.SiLU())
    own = {"encoder": encoder, "decoder": decoder()}
    training = Training(steps=8, batch_size=20, precision="bfloat16")
    found = train(bits(), **own, training=training, folder=tmp_path / "a")
    assert found.finished and found.model.encoder.module.mean.weight.dtype == torch.float32
    assert not found.model.training


def test_the_bounds_of_own_modules_hold_the_exact_evidence(tmp_path):
    """A linear-Gaussian model as a user writes it: elbo ≤ L_K ≤ log p(x) after training."""
    oracle = LinearGaussian(dims=3, latent=2, sd=1.0)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    x = (z @ oracle.w.T + oracle.b + noise).float()
    np.save(tmp_path / "x.npy", x.numpy())
    data = load(tmp_path / "x.npy", levels="none")
    own = {"encoder": Encoder(3, 2), "decoder": nn.Linear(2, 3)}
    model = train(data, **own, training=Training(steps=60), folder=tmp_path / "a").model
    found = image_bounds(model, data.test, draws=50)
    weight = model.decoder.module.weight.detach().double()
    bias, gaussian = model.decoder.module.bias.detach().double(), model.likelihood
    spread, location = gaussian.spread.double(), gaussian.location.double()
    sd = gaussian.log_sd.detach().exp().double() * spread
    scaled = spread[:, None] * weight
    covariance = scaled @ scaled.T + torch.diag(sd**2)
    law = torch.distributions.MultivariateNormal(location + spread * bias, covariance)
    truth = law.log_prob(data.test.double())
    for low, high in ((found.elbo, found.importance_weighted), (found.importance_weighted, truth)):
        difference = Estimate.from_terms(low - high)
        assert difference.value <= 4.5 * difference.standard_error
    weights = Estimate.from_terms((found.importance_weighted - truth).exp())
    assert abs(weights.value - 1) <= 4.5 * weights.standard_error


def test_an_object_that_is_no_module_takes_the_place_of_one(tmp_path):
    """A likelihood and a prior need no parameters, also where the usual ones have some."""

    class Unit:
        channels = 1

        def log_prob(self, parameters, x):
            return -0.5 * (x.flatten(1) - parameters.flatten(-2)).square().sum(-1)

        def mean(self, parameters):
            return parameters.squeeze(-2)

        def sample(self, parameters, generator):
            return self.mean(parameters)

        def initial_bias(self, mean):
            return mean[None]

    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 6)).astype("float32"))
    data = load(tmp_path / "x.npy", levels="none")
    own = parts(likelihood=Unit(), prior=StandardNormal(3))
    mixture = Architecture(prior="mixture")
    found = train(data, **own, architecture=mixture, training=QUICK, folder=tmp_path / "a")
    assert found.model.likelihood is own["likelihood"] and found.model.prior is own["prior"]
    assert found.model.sample(4).shape == (4, 6)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = decoder()

    def forward(self, z):
        return self.net(z.detach())


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = decoder()

    def forward(self, z):
        with torch.no_grad():
            return self.net(z)


class Unequal(Encoder):
    def forward(self, x):
        mean, log_sd = super().forward(x)
        return mean, log_sd[:, :2]


class Spare(Encoder):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Bare(Encoder):
    def forward(self, x):
        return super().forward(x)[0]


class OddPrior(StandardNormal):
    def log_prob(self, z):
        return -0.5 * z * z

    kl = draw_and_kl = log_ratio = None


REFUSED = {
    "a prior of another shape": (
        {"prior": StandardNormal(5)},
        r"prior: expected one of 3 dimensions, as the encoder's mean \[2, 3\]; got 5 dimensions",
    ),
    "a decoder that detaches z": (
        {"decoder": Detached()},
        r"gradient in z; got \[2, 1, 6\] without",
    ),
    "a decoder without gradients": ({"decoder": Rounded()}, "decoder: expected an output with a"),
    "a decoder of another latent": (
        {"decoder": decoder(4)},
        r"decoder: expected a module that takes float32 \[2, 3\]; it fails: mat1 and mat2",
    ),
    "a decoder of another event": (
        {"decoder": decoder(3, 7)},
        r"decoder's output: expected \[2, 1, 6\], or the same numbers .*; got \[2, 7\]",
    ),
    "an encoder of another event": (
        {"encoder": Encoder(5)},
        r"encoder: expected a module that takes float32 \[2, 6\]; it fails: mat1 and mat2",
    ),
    "a mean and log sd of two shapes": (
        {"encoder": Unequal()},
        r"mean and log_sd of one shape \[batch, latent\]; got \[2, 3\] and \[2, 2\]",
    ),
    "a parameter without a part": ({"encoder": Spare()}, "got encoder.module.spare.weight"),
    "a prior whose log_prob is no sum": (
        {"prior": OddPrior(3)},
        r"prior: expected log_prob of \[2\]",
    ),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_both_shapes(name, tmp_path):
    changed, text = REFUSED[name]
    with pytest.raises(ArgumentValueError, match=text):
        train(bits(), **parts(**changed), training=QUICK, folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()


class Changed(nn.Linear):
    """A decoder whose output is another one while it trains."""

    def __init__(self, change):
        super().__init__(3, 6)
        self.change = change

    def forward(self, z):
        h = super().forward(z)
        return self.change(h) if self.training else h


def test_a_decoder_of_complex_numbers_is_refused(tmp_path):
    own = parts(decoder=nn.Sequential(decoder(), Cast(torch.complex64)))
    with pytest.raises(ArgumentValueError, match=r"decoder's output: expected real numbers; got"):
        train(bits(), **own, training=QUICK, folder=tmp_path / "a")


class Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


def test_a_parameter_without_a_part_in_training_alone_is_refused_by_name(tmp_path):
    own = parts(decoder=Changed(torch.detach))
    with pytest.raises(ArgumentValueError, match=r"in every step; got .*decoder\.module\.weight"):
        train(bits(), **own, training=QUICK, folder=tmp_path / "a")


def test_normalisation_over_a_batch_of_one_is_refused(tmp_path):
    own = parts(decoder=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 6)))
    with pytest.raises(ArgumentValueError, match="batch_size: expected 2 or more with decoder"):
        train(bits(), **own, training=Training(steps=2, batch_size=1), folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_encoder_that_returns_one_tensor_is_refused(tmp_path):
    with pytest.raises(ArgumentTypeError, match="encoder's output"):
        train(bits(), **parts(encoder=Bare()), training=QUICK, folder=tmp_path / "a")
    full = Architecture(posterior="full")
    with pytest.raises(ArgumentValueError, match="and 3 more numbers for this posterior; got mean"):
        train(bits(), **parts(), architecture=full, training=QUICK, folder=tmp_path / "a")
    assert FullRank(3).extra == 3


class Three(Encoder):
    def forward(self, x):
        mean, log_sd = super().forward(x)
        return mean, log_sd, mean


@pytest.mark.parametrize(
    ("name", "part", "text"),
    [
        ("encoder", Encoder, "encoder: expected a torch.nn.Module; got the class Encoder"),
        ("decoder", torch.sigmoid, "decoder: expected a torch.nn.Module; got builtin_function"),
        (
            "prior",
            torch.distributions.Normal(0.0, 1.0),
            "prior: expected .*; got Normal without l",
        ),
        ("likelihood", Bernoulli, "likelihood: expected .*; got .*Bernoulli"),
        ("likelihood", torch.distributions.Bernoulli, "got Bernoulli without channels"),
        ("encoder", Three(), r"mean and log_sd alone for this posterior; got \[\[2, 3\]\] besides"),
    ],
)
def test_what_is_no_part_is_refused_by_name(name, part, text, tmp_path):
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match=text):
        train(bits(), **parts(**{name: part}), training=QUICK, folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "vae.md").read_text()
    section = page[page.index("## Modules of your own") :]
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], {})
    assert "±" in capsys.readouterr().out
    assert "parts of its author" in (tmp_path / "mine" / "report.html").read_text()


class Laplace:
    """p(z) = Π ½ exp(−|z_d|), with a sampler of its own."""

    def __init__(self, latent):
        self.latent = latent

    def log_prob(self, z):
        return -(z.abs() + math.log(2)).sum(-1)

    def sample(self, n, generator):
        signs = torch.rand(n, self.latent, generator=generator) - 0.5
        return -signs.sign() * torch.log1p(-2 * signs.abs())


class InLaplace(StandardNormal):
    """A density of its own, and the closed forms of N(0, I)."""

    log_prob, sample = Laplace.log_prob, Laplace.sample


class InMixture(MixtureOfGaussians):
    """A density of its own, and the components of the mixture."""

    log_prob, sample = Laplace.log_prob, Laplace.sample


class Right(Laplace):
    """The same with the closed form of Laplace: E|z| of N(m, s²) in every dimension."""

    def kl(self, mean, log_sd):
        sd = log_sd.exp()
        distance = sd * math.sqrt(2 / math.pi) * torch.exp(-0.5 * (mean / sd) ** 2)
        distance = distance + mean * torch.erf(mean / sd / math.sqrt(2))
        return distance + math.log(2) - log_sd - 0.5 * math.log(2 * math.pi * math.e)

    def draw_and_kl(self, mean, log_sd, noise):
        return mean + log_sd.exp() * noise, self.kl(mean, log_sd)

    def log_ratio(self, z, log_sd, noise):
        own = -0.5 * noise**2 - log_sd - 0.5 * math.log(2 * math.pi)
        return self.log_prob(z) - own.sum(-1)


@pytest.mark.parametrize("prior", [InLaplace(3), InMixture(3, 2), Right(3)])
@pytest.mark.parametrize("posterior", ["diagonal", "full", "iaf"])
def test_a_closed_form_is_used_for_its_own_density_alone(prior, posterior):
    """The KL of a derived prior is that of the same prior written from nothing."""
    torch.manual_seed(0)
    model = build((6,), "binary", Architecture(latent=3, posterior=posterior, hidden=(8,)))
    noise, plain = torch.randn(4096, 5, 3), Laplace(3)
    with torch.no_grad():
        q = model.approximate_posterior(torch.bernoulli(torch.full((5, 6), 0.5)))
        drawn = q.draw(noise)
        ratio = plain.log_prob(drawn.z) - drawn.log_q
        found = draw_with_kl(prior, q, noise)[1].sum(-1)
        assert torch.allclose(log_ratio(prior, q, drawn), ratio, atol=1e-5)
        assert torch.equal(fixed(prior).log_prob(drawn.z), plain.log_prob(drawn.z))
        assert not is_standard_normal(prior)
    exact = isinstance(prior, Right) and posterior == "diagonal"
    assert has_closed_form(prior) == isinstance(prior, Right)
    error = 4.5 * ratio.std(0) / len(noise) ** 0.5 if exact else 1e-5
    assert bool(((found + ratio.mean(0)).abs() <= error).all())


class Half(Right):
    def kl(self, mean, log_sd):
        return 0.5 * super().kl(mean, log_sd)

    draw_and_kl = Right.draw_and_kl
    log_ratio = Right.log_ratio


class Shifted(Right):
    kl = Right.kl
    draw_and_kl = Right.draw_and_kl

    def log_ratio(self, z, log_sd, noise):
        return super().log_ratio(z, log_sd, noise) + 0.1


class Doubled(StandardNormal):
    def log_prob(self, z):
        return super().log_prob(2 * z) + self.latent * math.log(2)


class Sharper(Bernoulli):
    def log_prob(self, parameters, x):
        return super().log_prob(2 * parameters, x)


class Floored(StandardNormal):
    def kl(self, mean, log_sd):
        return super().kl(mean, log_sd).clamp(min=0.5)


DISAGREEING = {
    "density alone": (
        {"prior": Doubled(3)},
        "prior: expected sample of the same distribution as log_prob, which Doubled has; got that "
        "of StandardNormal",
    ),
    "density of one in two": ({"likelihood": Sharper((6,))}, "likelihood: expected mean of the"),
    "kl alone": ({"prior": Floored(3)}, "expected draw_and_kl of the same distribution as kl"),
    "half the kl": ({"prior": Half(3)}, r"kl and draw_and_kl = the mean .*; got .* ± .* by draws"),
    "another ratio": ({"prior": Shifted(3)}, r"log_ratio = log_prob\(z\) − log q\(z\)"),
}


@pytest.mark.parametrize("name", DISAGREEING)
def test_members_that_do_not_agree_are_refused(name):
    changed, text = DISAGREEING[name]
    model = build((6,), "binary", Architecture(latent=3))
    with pytest.raises(ArgumentValueError, match=text):
        with_parts(model, Parts(**parts(**changed)), torch.ones(2, 6))


@pytest.mark.parametrize("prior", [InLaplace(3), Right(3), Laplace(3), StandardNormal(3)])
def test_members_that_agree_are_taken(prior):
    model = build((6,), "binary", Architecture(latent=3))
    assert with_parts(model, Parts(**parts(prior=prior)), torch.ones(2, 6)).prior is prior
