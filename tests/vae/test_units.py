"""What a model is told about its data: levels of any grid, and units of any size."""

import json
import math

import numpy as np
import pytest
import torch

from kullback.core import DataError
from kullback.data import Dataset, Grid, load
from kullback.vae import VAE, Architecture, Training, build, evaluate, train
from kullback.vae.evaluation import active_units, collapse_warning, varying_units
from kullback.vae.evidence import bounds
from kullback.vae.likelihoods import DiscretisedLogistics, Gaussian
from kullback.vae.model import location_and_spread
from oracles import LinearGaussian

TINY = Architecture(network="mlp", hidden=(8,), latent=2, components=2)


def table(n=300):
    """Rows of a linear-Gaussian model, whose evidence is known."""
    oracle = LinearGaussian(dims=4, latent=2, sd=0.5)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return oracle, (z @ oracle.w.T + oracle.b + 0.5 * noise).float()


def trained(x, folder, *, steps=60, kind="continuous", **protocol):
    n = len(x) * 2 // 3
    protocol |= {"sha256": {}, "event_shape": list(x.shape[1:]), "kind": kind, "notes": []}
    names = tuple(map(str, range(n)))
    data = Dataset(x[:n], x[n:], kind, False, protocol, names, names[: len(x) - n])
    settings = Training(steps=steps, precision="float32", batch_size=100)
    outcome = train(data, architecture=TINY, training=settings, folder=folder, device="cpu")
    return outcome, data.test


AFFINE = {
    "a power of two": (2.0**20, 0.0),
    "millions": (1e6, 0.0),
    "millionths": (1e-6, 0.0),
    "negative": (-3.0, 100.0),
    "mixed": (torch.tensor([1.0, 1e3, 1e-4, 1e6]), torch.tensor([5.0, 2e3, 0.0, -1e6])),
    "the ends of float32": (torch.tensor([1e30, 1e-30, 1.0, 1e15]), 0.0),
}


@pytest.fixture(scope="module")
def unscaled(tmp_path_factory):
    return trained(table()[1], tmp_path_factory.mktemp("unscaled") / "a")


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", AFFINE)
def test_the_evidence_of_scaled_data_is_less_by_the_log_determinant(tmp_path, name, unscaled):
    """log p(ax + b) = log p(x) − Σ log |a|, whatever the units: the same training to rounding."""
    a, b = AFFINE[name]
    _, x = table()
    first, test = unscaled
    second, scaled = trained(x * a + b, tmp_path / "b")
    volume = torch.as_tensor(a, dtype=torch.float64).abs().log().expand(4).sum().item()
    before, after = (
        bounds(o.model, t, draws=50, generator=torch.Generator().manual_seed(0))
        for o, t in ((first, test), (second, scaled))
    )
    difference = (after.importance_weighted - before.importance_weighted).double() + volume
    if name == "a power of two":  # exact arithmetic but for the last sum
        assert float(difference.abs().max()) < 1e-4
    if name == "negative":  # another training: the paired difference is within its error
        error = float(difference.std()) / len(difference) ** 0.5
        assert abs(float(difference.mean())) < 4.5 * error
        return
    # elsewhere standardised inputs differ by some ulps, which 60 steps of training spread
    assert abs(float(difference.mean())) < 0.01
    again = VAE.load(tmp_path / "b")
    assert torch.equal(again.sample(5), second.model.sample(5))
    middle = second.model.likelihood.location
    drawn = again.sample(500, noise=True).double()
    apart = (drawn.mean(0) - middle).abs() / second.model.likelihood.spread
    assert float(apart.max()) < 1.0
    codes = [o.model.encode(t)[0] for o, t in ((first, test), (second, scaled))]
    torch.testing.assert_close(*codes, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_the_evidence_in_mixed_units_is_the_known_one(tmp_path):
    oracle, x = table(3000)
    a, b = AFFINE["mixed"]
    outcome, test = trained(x * a + b, tmp_path / "r", steps=2500)
    truth = oracle.log_evidence(x[2000:].double()).mean().item() - float(a.log().sum())
    found = evaluate(outcome.model, test, draws=100).log_likelihood
    assert found.value < truth + 0.05
    assert found.value > truth - 0.15  # an encoder of 8 hidden units, and 2,000 rows to learn from


def test_gaussian_in_units_is_torchs_normal():
    location, spread = torch.randn(2, 2, 2), torch.tensor([3.0, 1e-4]).reshape(2, 1, 1)
    spread = spread.expand(2, 2, 2)
    likelihood = Gaussian((2, 2, 2), location=location, spread=spread)
    likelihood.log_sd.data = torch.tensor([0.3, -0.5])
    theta = torch.randn(7, 2, 4)
    inside = theta.reshape(7, 2, 2, 2)
    sd = spread * likelihood.log_sd.exp().reshape(2, 1, 1)
    law = torch.distributions.Normal(location + spread * inside, sd)
    x = law.sample()
    torch.testing.assert_close(
        likelihood.log_prob(theta, x), law.log_prob(x).flatten(1).sum(1), rtol=1e-3, atol=2e-3
    )
    torch.testing.assert_close(likelihood.mean(theta), law.mean)
    drawn = likelihood.sample(theta[:1].expand(20_000, -1, -1), torch.Generator().manual_seed(0))
    # the deviation of 20,000 normals is known to 0.5 %: 4.5 of it
    torch.testing.assert_close(drawn.std(0) / sd, torch.ones(2, 2, 2), rtol=0, atol=0.0225)


@pytest.mark.parametrize("levels", [257, 4096, 65536])
def test_many_levels_sum_to_one(levels):
    likelihood = DiscretisedLogistics(
        (1,),
        components=3,
        levels=levels,
        centre=torch.tensor([[levels / 3]]),
        spread=torch.tensor([[levels / 50]]),
    ).double()
    theta = torch.randn(1, likelihood.channels, 1, dtype=torch.float64)
    x = torch.arange(levels, dtype=torch.float64).reshape(-1, 1)
    total = likelihood.log_prob(theta.expand(levels, -1, -1), x).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-10)
    single = likelihood.float().log_prob(theta.float().expand(levels, -1, -1), x.float())
    assert float(single.double().exp().sum()) == pytest.approx(1.0, abs=1e-3)


def test_location_and_spread_by_numpy():
    x = np.random.default_rng(0).normal(size=(50, 3)) * [1, 1e-20, 1e20] + [3, 0, 1e21]
    mean, spread = location_and_spread(torch.from_numpy(x).float())
    assert mean.double().numpy() == pytest.approx(x.mean(0), rel=1e-6)
    assert spread.double().numpy() == pytest.approx(x.std(0), rel=1e-5)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (torch.full((30,), 5.0), "column 1 is constant in the 30 training examples"),
        (torch.zeros(30), "column 1 is constant"),
        (1e8 + torch.arange(30.0) % 2 * 8, "column 1 is too fine for float32"),
        (1e-42 * torch.arange(30.0), "column 1 is too fine for float32"),
    ],
)
def test_columns_without_a_density_are_refused(tmp_path, column, words):
    x = torch.randn(30, 3)
    x[:, 1] = column
    with pytest.raises(DataError, match=words):
        location_and_spread(x)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("name", "x", "count"),
    [
        ("8-bit", lambda k: ((k % 256) / 255 - 0.5) / 0.5, 256),
        ("levels", lambda k: (k % 17) / 16, 17),
        ("levels", lambda k: k % 4096, 4096),
    ],
)
def test_levels_are_trained_on_and_kept_in_the_callers_units(tmp_path, name, x, count):
    """The protocol, the model and its file agree on the levels; bits come from the integers."""
    k = np.random.default_rng(0).integers(0, 4096, (90, 1, 4, 4))
    values = x(k).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    data = load(tmp_path / "a.npy", test_fraction=0.3)
    assert data.kind == name
    assert data.levels == count
    run = train(data, architecture=TINY, training=Training(steps=3), folder=tmp_path / "run")
    model = VAE.load(run.folder)
    assert model.spec.levels == count
    assert model.spec.kind == name
    grid = Grid.from_dict(model.spec.grid)
    assert grid.levels_of(values).tolist() == (k % count).tolist()
    found = evaluate(model, data.test, draws=20)
    nats = -found.log_likelihood.value / 16 / math.log(2)
    assert found.bits_per_dim.value == pytest.approx(nats)
    # three steps in, the model knows the marginal roughly: near log2 K, never a density
    assert 0.3 * math.log2(count) < found.bits_per_dim.value < 2 * math.log2(count)
    assert found.levels == count
    drawn = model.sample(20, noise=True)
    assert float(drawn.max()) <= count - 1
    assert torch.equal(drawn, drawn.round())
    stored = json.loads((run.folder / "config.json").read_text())
    assert stored["model"].get("levels", 256) == count


def test_a_model_refuses_other_levels():
    model = build((2,), "levels", TINY, levels=5)
    assert model.check(torch.tensor([[0, 4]])).tolist() == [[0, 4]]
    with pytest.raises(ValueError, match="integers 0 to 4"):
        model.check(torch.tensor([[0, 5]]))


def test_loose_is_not_known_from_few_draws():
    model = build((4,), "binary", TINY)
    x = torch.bernoulli(torch.full((30, 4), 0.5))
    assert evaluate(model, x, draws=2).loose is None
    assert evaluate(model, x, draws=19).loose is None
    few, many = evaluate(model, x, draws=20), evaluate(model, x, draws=200)
    assert 0 <= few.loose <= 1
    assert many.loose == 0.0
    stored = few.to_dict() | {"draws": 10, "loose": 0.0}
    assert type(few).from_dict(stored).loose is None


def test_one_image_has_figures_without_an_error():
    figures = evaluate(build((4,), "binary", TINY), torch.ones(1, 4), draws=20)
    assert math.isnan(figures.elbo.standard_error)
    assert "one example" in figures.elbo.no_error
    assert math.isfinite(figures.elbo.value)


def test_active_units_need_information_not_variance_alone():
    """32 dimensions with 0.05 nats each vary by 0.1 in the mean, which Burda's rule counts."""
    means = torch.randn(1000, 32, generator=torch.Generator().manual_seed(0)) * 0.1**0.5
    kl = torch.full((32,), 0.053)
    assert varying_units(means) == 32
    assert active_units(means, kl) == 0
    assert active_units(means, torch.full((32,), 0.1)) == 32
    assert "posterior collapse: 0 of 32" in collapse_warning(kl.tolist(), 0, Training(beta=50.0))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("steps", [12, 13, 20])
@pytest.mark.parametrize("batch", [8, 100])
def test_the_log_has_one_row_a_step_and_ends_with_the_test_figures(tmp_path, steps, batch):
    x = torch.randn(96, 3, generator=torch.Generator().manual_seed(0))
    settings = Training(steps=steps, batch_size=batch, precision="float32")
    names = tuple(map(str, range(96)))
    data = Dataset(x, x[:9], "continuous", False, {"sha256": {}}, names, names[:9])
    outcome = train(data, architecture=TINY, training=settings, folder=tmp_path / "r")
    lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    at = [row["step"] for row in rows]
    assert at == sorted(set(at))
    assert at[-1] == steps
    assert all(row["elbo"] != 0 for row in rows)
    assert "test_elbo" in rows[-1]
