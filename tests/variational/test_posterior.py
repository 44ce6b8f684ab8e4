"""Draws in the user's own parameters, and q as a torch distribution, against the truth."""

import json
import math

import pytest
import torch
import torch.distributions as D
from torch.distributions import constraints

import kullback
from kullback.core import RunError
from kullback.variational import (
    FamilyDistribution,
    Parameter,
    Target,
    assess,
    fit,
    load,
    save,
    to_arviz,
)
from kullback.variational.archive import WORDS
from kullback.variational.families import NAMED, FullRank
from kullback.variational.families.family import Frame, as_distribution
from kullback.variational.target.parameters import ordered

Z = 4.5
F64 = torch.float64
PARAMETERS = {
    "rate": constraints.positive,
    "mu": (2, 3),
    "share": Parameter((3,), constraints.simplex),
    "p": constraints.unit_interval,
    "cov": Parameter((2, 2), constraints.positive_definite),
    "cuts": Parameter((3,), ordered),
}


def log_joint(rate, mu, share, p, cov, cuts):
    """Gamma(9, 3) rate, N(2, 1) mu, Dirichlet(4, 3, 5) share, Beta(5, 4) p; Wishart-like cov."""
    logs = 8 * rate.log() - 3 * rate - 0.5 * (mu - 2).square().sum()
    logs = logs + 3 * share[0].log() + 2 * share[1].log() + 4 * share[2].log()
    logs = logs + 4 * p.log() + 3 * (1 - p).log()
    return logs + 3 * torch.logdet(cov) - cov.trace() - 0.5 * cuts.square().sum()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def found():
    return fit(log_joint, PARAMETERS, family="full_rank", progress=False)


@pytest.mark.slow
def test_the_posterior_is_the_constraining_map_of_the_draws(found):
    post, n = found.posterior, len(found.draws)
    assert list(post) == list(PARAMETERS)
    shapes = {"rate": (), "mu": (2, 3), "share": (3,), "p": (), "cov": (2, 2), "cuts": (3,)}
    assert {name: tuple(v.shape) for name, v in post.items()} == {
        name: (n, *shape) for name, shape in shapes.items()
    }
    mapped = found.target.constrain(found.draws)
    assert all(post[name].equal(mapped[name]) and not post[name].requires_grad for name in post)
    # the maps themselves, written out
    z, width = found.draws, 1 + 6
    assert post["rate"].equal(z[:, 0].exp())
    assert post["mu"].equal(z[:, 1:width].reshape(n, 2, 3))
    torch.testing.assert_close(post["p"], torch.sigmoid(z[:, width + 2]), rtol=1e-15, atol=0)
    assert bool((post["share"] > 0).all())
    torch.testing.assert_close(post["share"].sum(-1), torch.ones(n, dtype=F64))
    assert bool((torch.linalg.eigvalsh(post["cov"]) > 0).all())
    assert bool((post["cuts"].diff(dim=-1) > 0).all())


@pytest.mark.slow
def test_means_agree_with_the_known_posterior(found):
    """Within the bound that the fit itself states, and the error of 4,000 draws."""
    truth = {
        "rate": torch.tensor(3.0, dtype=F64),
        "mu": torch.full((2, 3), 2.0, dtype=F64),
        "share": torch.tensor([4.0, 3.0, 5.0], dtype=F64) / 12,
        "p": torch.tensor(5 / 9, dtype=F64),
    }
    bounds, start = assess(found).mean_bound, 0
    for name, value in found.posterior.items():
        size = value[0].numel()
        bound = bounds[start : start + size].reshape(value.shape[1:])
        start += size
        if name in truth:
            off = (value.mean(0) - truth[name]).abs() / value.std(0)
            assert bool((off <= bound + Z / math.sqrt(len(value))).all()), name


def test_new_draws_are_those_of_sample(found):
    new = found.sample_posterior(50, generator=seeded(3))
    mapped = found.target.constrain(found.sample(50, seeded(3)))
    assert all(new[name].equal(mapped[name]) for name in PARAMETERS)
    assert new["mu"].shape == (50, 2, 3)
    with pytest.raises(ValueError, match="n: expected at least 1; got 0"):
        found.sample_posterior(0)


def test_names_and_shapes_are_those_that_arviz_gets(found):
    pytest.importorskip("arviz_base")
    tree = to_arviz(found)["posterior"]
    assert list(tree.data_vars) == list(found.posterior)
    for name, value in found.posterior.items():
        assert tree[name].shape == (1, *value.shape)
        assert torch.from_numpy(tree[name].values[0]).equal(value)


def test_parameters_without_names_are_called_z():
    found = fit(lambda z: -0.5 * (z - 1).square().sum(), 2, progress=False)
    assert list(found.posterior) == ["z"]
    assert found.posterior["z"].equal(found.draws)


def test_a_fit_read_back_has_the_same_posterior(found, tmp_path):
    again = load(save(found, tmp_path / "fit", assess(found, search=False)), found.target)
    for name, value in found.posterior.items():
        assert again.posterior[name].equal(value)
        assert again.sample_posterior(9, generator=seeded())[name].equal(
            found.sample_posterior(9, generator=seeded())[name]
        )
    assert repr(again.distribution) == repr(found.distribution)
    assert again.distribution.log_prob(found.draws).equal(found.distribution.log_prob(found.draws))
    assert {"posterior", "distribution"} <= set(dir(again))


def test_a_fit_read_back_knows_that_its_target_is_improper(tmp_path):
    """Also where an earlier version saved it, which wrote the reason alone."""
    found = fit(lambda z: -0.5 * z[0] ** 2, 2, progress=False)
    folder = save(found, tmp_path / "flat")
    assert found.improper and load(folder, found.target).improper
    assert assess(load(folder, found.target)).verdict == found.diagnosis.verdict
    record = json.loads((folder / "fit.json").read_text())
    assert record.pop("improper") is True and record.pop("declare") == ""
    (folder / "fit.json").write_text(json.dumps(record))
    again = load(folder, found.target)
    assert again.improper and again.declare == "" and again.reason == found.reason


def test_a_fit_read_back_knows_what_to_declare(tmp_path):
    target = Target.of(lambda z: torch.where(z >= 0, -z, -math.inf).sum(), 1)
    found = fit(target, evaluation_draws=500, progress=False)
    again = load(save(found, tmp_path / "edge", assess(found, search=False)), target)
    assert again.declare == found.declare == "declare z[1]: constraints.greater_than(0)"
    judged = assess(again)
    assert found.declare in judged.verdict and not again.improper
    twice = load(save(again, tmp_path / "twice", judged), target)
    assert twice.declare == found.declare
    assert all(twice.record[name] == getattr(found, name) for name in WORDS)


def test_a_family_that_was_not_saved_leaves_its_stored_posterior(found, tmp_path):
    class Mine(FullRank):
        name = "mine"

    target = Target.of(lambda z: -0.5 * z.square().sum(), 2)
    mine = fit(target, family=Mine, progress=False)
    again = load(save(mine, tmp_path / "mine", assess(mine, search=False)), target)
    assert again.posterior["z"].equal(mine.draws)
    for asked in (lambda: again.sample_posterior(3), lambda: again.distribution):
        with pytest.raises(RunError, match="was not saved"):
            asked()


def away_from_its_start(name):
    """A family with arbitrary parameters, in an oblique frame."""
    options = {"low_rank": {"rank": 2}, "mixture": {"components": 2}, "flow": {"layers": 2}}
    factor = torch.tensor([[1.0, 0, 0], [0.4, 0.9, 0], [0.2, -0.3, 0.8]], dtype=F64)
    frame = Frame.dense(torch.tensor([0.1, -0.2, 0.3], dtype=F64), factor)
    q, generator = NAMED[name](frame, **options.get(name, {})), seeded()
    for parameter in q.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=F64)
    return q


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_family_is_a_torch_distribution(name):
    if name == "flow":
        pytest.importorskip("zuko")
    q = away_from_its_start(name)
    z = q.sample(4000, seeded(1))
    for law in (as_distribution(q), FamilyDistribution(q)):
        assert isinstance(law, D.Distribution)
        assert (law.batch_shape, law.event_shape) == ((), (3,))
        # two ways to the same density: some ulps of its largest term
        torch.testing.assert_close(law.log_prob(z), q.log_prob(z), rtol=1e-12, atol=1e-12)
        assert law.log_prob(z.reshape(40, 100, 3)).shape == (40, 100)
        for shape in ((), (5,), (2, 3), (0,)):
            assert law.sample(shape).shape == (*shape, 3)
        with torch.random.fork_rng():
            torch.manual_seed(2)
            drawn = law.sample((4000,))
        error = Z * (z.var(0) / len(z) + drawn.var(0) / len(drawn)).sqrt()
        assert bool(((drawn.mean(0) - z.mean(0)).abs() <= error).all())
        terms = -q.log_prob(z).detach()
        if q.entropy() is None:
            with pytest.raises(NotImplementedError):
                law.entropy()
        else:
            off = abs(float(law.entropy().detach() - terms.mean()))
            assert off <= Z * float(terms.std()) / math.sqrt(len(terms))


def test_hostile_arguments_are_refused():
    law = FamilyDistribution(away_from_its_start("student_t"), validate_args=True)
    for value, message in ((torch.full((3,), math.nan), "support"), (torch.zeros(2), "size")):
        with pytest.raises(ValueError, match=message):
            law.log_prob(value.double())
    with pytest.raises(TypeError, match="family: expected"):
        FamilyDistribution(D.Normal(0.0, 1.0))


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"flow"}))
def test_gradients_reach_the_parameters_or_are_refused(name):
    """`∇ E_q[log q(z)]` through rsample: −∇ entropy, where it has a closed form."""
    q = away_from_its_start(name)
    law = FamilyDistribution(q)
    assert law.has_rsample == (name != "mixture")
    if name == "mixture":
        with pytest.raises(NotImplementedError, match="mixture"):
            law.rsample((2,))
        return
    mean = q.frame.outwards(q.mean)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = law.rsample((20_000,))
    assert z.shape == (20_000, 3)
    (by_mean,) = torch.autograd.grad(z.sum() / len(z), q.mean)
    (exact,) = torch.autograd.grad(mean.sum(), q.mean)
    torch.testing.assert_close(by_mean, exact)


def test_the_kl_between_two_fits_is_a_closed_form():
    """N(1, 4) to N(0, 1): log(1/2) + (4 + 1)/2 − 1/2, in two independent coordinates."""
    one = fit(lambda z: -0.125 * (z - 1).square().sum(), 2, family="full_rank", progress=False)
    two = fit(lambda z: -0.5 * z.square().sum(), 2, family="mean_field", progress=False)
    found = kullback.kl(one.distribution, two.distribution)
    exact = 2 * (2.0 - math.log(2.0))
    assert "closed form" in str(found)
    assert abs(float(found.value) - exact) < 1e-6
