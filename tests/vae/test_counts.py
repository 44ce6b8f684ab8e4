"""Likelihoods of counts against SciPy, mpmath, sums over all counts and quadrature over z."""

import itertools
import json
import math

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

from kullback import report
from kullback.cli.main import main
from kullback.core import ArgumentValueError, DataError
from kullback.data import load, reload
from kullback.vae import VAE, Architecture, Parts, Training, build, evaluate, resume, train
from kullback.vae.architecture import COUNTS, Spec, choose
from kullback.vae.evidence import bounds
from kullback.vae.latents import StandardNormal
from kullback.vae.likelihoods import Counts

scipy_stats = pytest.importorskip("scipy.stats")
EXTREME = [0, 1, 2, 17, 300, 65_537, 1_000_000, 2**24]
RATES = [1e-8, 1e-3, 0.5, 3.0, 250.0, 1e6, 1e8]
DISPERSIONS = [1e-5, 0.1, 1.0, 30.0, 1e5]
EPS = np.finfo(np.float64).eps


def slow_but(first, rest):
    return [first, *(pytest.param(one, marks=pytest.mark.slow) for one in rest)]


def one(law, rate, *, dispersion=1.0, logit=0.0, x, size=None):
    """log p of single counts x at one rate, float64."""
    x = torch.tensor(x, dtype=torch.float64).reshape(-1, 1)
    typical = None if size is None else torch.tensor(1.0)
    likelihood = Counts((1,) if size is None else (2,), law=law, typical=typical).double()
    if law != "poisson":
        likelihood.log_dispersion.data.fill_(math.log(dispersion))
    theta = torch.tensor([math.log(rate), logit][: likelihood.channels], dtype=torch.float64)
    if size is not None:
        x = torch.cat([x, torch.full_like(x, size)], 1)
    out = likelihood.log_prob(theta.reshape(1, -1, 1).expand(len(x), -1, -1), x)
    return out.detach().numpy()


def largest_term(rate, x, dispersion=1.0):
    """Size of what is added: rounding of a sum is some ulps of its largest term."""
    x = np.asarray(x, float)
    lgamma = np.vectorize(math.lgamma)
    return 1 + rate + lgamma(x + 1 + dispersion) + abs(x * math.log(rate)) + abs(lgamma(dispersion))


@pytest.mark.parametrize("rate", RATES)
def test_poisson_is_scipys(rate):
    truth = scipy_stats.poisson.logpmf(EXTREME, rate)
    error = abs(one("poisson", rate, x=EXTREME) - truth)
    assert (error <= 16 * EPS * largest_term(rate, EXTREME)).all()


@pytest.mark.parametrize("dispersion", DISPERSIONS)
@pytest.mark.parametrize("rate", RATES)
def test_negative_binomial_is_mpmaths_and_scipys(rate, dispersion):
    found = one("negative_binomial", rate, dispersion=dispersion, x=EXTREME)
    with mpmath.workdps(60):
        m, r = mpmath.mpf(rate), mpmath.mpf(dispersion)
        truth = [
            mpmath.loggamma(x + r)
            - mpmath.loggamma(r)
            - mpmath.loggamma(x + 1)
            + r * mpmath.log(r / (r + m))
            + x * mpmath.log(m / (r + m))
            for x in EXTREME
        ]
    size = largest_term(rate, EXTREME, dispersion) + abs(np.log(dispersion)) * (
        np.array(EXTREME) + dispersion
    )
    assert (abs(found - np.array(truth, float)) <= 64 * EPS * size).all()
    if 0.1 <= dispersion <= 30 and 0.5 <= rate <= 250:
        scipys = scipy_stats.nbinom.logpmf(
            EXTREME[:5], dispersion, dispersion / (dispersion + rate)
        )
        np.testing.assert_allclose(found[:5], scipys, rtol=1e-9)


@pytest.mark.parametrize("logit", [-200.0, -40.0, -1.0, 0.0, 3.0, 40.0, 200.0])
def test_zero_inflation_is_the_formula(logit):
    rate, dispersion = 3.0, 0.7
    x = [0, 1, 50]
    found = one(COUNTS[2], rate, dispersion=dispersion, logit=logit, x=x)
    with mpmath.workdps(200):
        share = 1 / (1 + mpmath.exp(-mpmath.mpf(logit)))
        r, m = mpmath.mpf(dispersion), mpmath.mpf(rate)
        truth = []
        for k in x:
            mass = mpmath.rf(r, k) / mpmath.factorial(k)
            mass *= (r / (r + m)) ** r * (m / (r + m)) ** k
            truth.append(float(mpmath.log(share * (k == 0) + (1 - share) * mass)))
    np.testing.assert_allclose(found, truth, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("law", COUNTS)
@pytest.mark.parametrize("size", [None, 0.25, 7.0])
def test_probabilities_of_all_counts_sum_to_one_given_the_size(law, size):
    """At a rate of 2 times the size and a dispersion of 3 nothing is left above 2,000."""
    mass = np.exp(one(law, 2.0, dispersion=3.0, logit=-0.4, x=range(2000), size=size))
    assert mass.sum() == pytest.approx(1.0, abs=1e-12)
    mean = (mass * np.arange(2000)).sum()
    inflated = 1 / (1 + math.exp(-0.4)) if law == COUNTS[2] else 1.0
    assert mean == pytest.approx(2.0 * (size or 1.0) * inflated, rel=1e-12)


def random_counts(law, dims=2, sized=False):
    torch.manual_seed(0)
    typical = torch.tensor(4.0) if sized else None
    likelihood = Counts((dims + sized,), law=law, typical=typical).double()
    theta = torch.randn(1, likelihood.channels, dims, dtype=torch.float64)
    return likelihood, theta


@pytest.mark.parametrize("law", COUNTS)
def test_draws_have_the_probabilities_and_the_mean(law):
    likelihood, theta = random_counts(law, sized=True)
    n = 20_000
    drawn = likelihood.sample(theta.expand(n, -1, -1), torch.Generator().manual_seed(1))
    assert torch.equal(drawn[:, 2], torch.full((n,), 4.0))
    pairs = torch.cartesian_prod(*[torch.arange(6.0, dtype=torch.float64)] * 2)
    x = torch.cat([pairs, torch.full((len(pairs), 1), 4.0, dtype=torch.float64)], 1)
    mass = likelihood.log_prob(theta.expand(len(x), -1, -1), x).exp().detach()
    small = (drawn[:, :2] < 6).all(1)
    code = (drawn[small, 0] * 6 + drawn[small, 1]).long()
    z = (torch.bincount(code, minlength=36) - n * mass) / (n * mass * (1 - mass)).sqrt()
    assert z[n * mass > 20].abs().max() <= 4.5
    mean = likelihood.mean(theta)[0].detach()
    assert float(mean[2]) == 4.0
    error = drawn[:, :2].double().std(0) / math.sqrt(n)
    assert ((drawn[:, :2].double().mean(0) - mean[:2]) / error).abs().max() <= 4.5


@pytest.mark.slow
@pytest.mark.parametrize("law", COUNTS)
def test_gradients_are_those_of_differences(law):
    likelihood, theta = random_counts(law, dims=2, sized=True)
    x = torch.tensor([[0.0, 400.0, 2.0]], dtype=torch.float64)
    inputs = [theta.requires_grad_(), *likelihood.parameters()]
    assert torch.autograd.gradcheck(lambda t, *_: likelihood.log_prob(t, x), inputs)


@pytest.mark.parametrize("law", COUNTS)
@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_gradients_are_finite_at_the_ends(law, logit):
    likelihood, _ = random_counts(law, dims=2)
    theta = torch.full((1, likelihood.channels, 2), logit, requires_grad=True)
    x = torch.tensor([[0.0, 2.0**24]])
    value = likelihood.float().log_prob(theta, x)
    (slope,) = torch.autograd.grad(value.sum(), theta)
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(slope).all())


class Linear(nn.Module):
    """Log rates w·z + b from a z of one dimension; the second output of zero inflation is −1."""

    def __init__(self, channels):
        super().__init__()
        self.w = torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64)
        self.b = torch.tensor([0.3, 1.0, -0.5], dtype=torch.float64)
        self.channels = channels

    def forward(self, z):
        rates = (z * self.w + self.b).unsqueeze(1)
        return torch.cat([rates, torch.full_like(rates, -1.0)][: self.channels], 1)


class Near(nn.Module):
    """q beside the posterior: 0.3 deviations off, 1.4 times as wide: bounded weights."""

    def __init__(self, mean, sd):
        super().__init__()
        self.moments = mean + 0.3 * sd, (1.4 * sd).log()

    def forward(self, x):
        return self.moments[0][:, None], self.moments[1][:, None]


@pytest.mark.parametrize("law", slow_but(COUNTS[2], COUNTS[:2]))
@pytest.mark.parametrize("sized", slow_but(True, [False]))
def test_bounds_lie_below_the_evidence_by_quadrature(law, sized):
    """E[ELBO] ≤ E[L_K] ≤ log p(x | s): the last by 4,001 points over z, error below 1e-12."""
    typical = torch.tensor(5.0) if sized else None
    likelihood = Counts((3 + sized,), law=law, typical=typical).double()
    decoder = Linear(likelihood.channels)
    rows = [[0.0, 2.0, 1.0], [4.0, 0.0, 9.0], [1.0, 30.0, 0.0]]
    x = torch.tensor([row + [12.0] * sized for row in rows], dtype=torch.float64)
    z = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    step = float(z[1] - z[0])
    with torch.no_grad():
        outputs = decoder(z[:, None])[:, None].expand(-1, 3, -1, -1)
        joint = likelihood.log_prob(outputs, x)
        joint = joint + torch.distributions.Normal(0.0, 1.0).log_prob(z)[:, None]
        truth = torch.logsumexp(joint, 0) + math.log(step)
        mass = (joint - truth).exp() * step
        mean = (mass * z[:, None]).sum(0)
        sd = (mass * (z[:, None] - mean) ** 2).sum(0).sqrt()
        encoder = Near(mean, sd)
        q = torch.distributions.Normal(encoder.moments[0], encoder.moments[1].exp())
        log_q = q.log_prob(z[:, None])
        gap = (log_q.exp() * (log_q + truth - joint)).sum(0) * step  # KL(q ‖ p(z|x))
    model = VAE(encoder, decoder, likelihood, StandardNormal(1)).double()
    draws = 4000
    found = bounds(model, x, draws=draws, generator=torch.Generator().manual_seed(0))
    error = ((draws / found.effective_draws - 1) / draws).sqrt()  # of log mean w: delta method
    assert ((found.importance_weighted - truth).abs() <= 4.5 * error).all()
    several = torch.Generator().manual_seed(1)
    few = [bounds(model, x, draws=4, generator=several) for _ in range(100)]
    elbo, tight = (
        torch.stack([getattr(one, name) for one in few]) for name in ("elbo", "importance_weighted")
    )
    elbo_error, tight_error = elbo.std(0) / 10, tight.std(0) / 10
    assert ((elbo.mean(0) - truth + gap).abs() <= 4.5 * elbo_error).all()
    assert (tight.mean(0) <= truth + 4.5 * tight_error).all()
    assert (tight.mean(0) >= truth - gap - 4.5 * tight_error).all()


def cells(n=120, genes=5, seed=0):
    g = np.random.default_rng(seed)
    x = g.negative_binomial(2, 0.05, (n, genes))
    x[:, 0] += 1
    return x


def sparse(path, x, **more):
    rows, columns = np.nonzero(x)
    indptr = np.searchsorted(rows, np.arange(len(x) + 1))
    arrays = {"format": np.array(b"csr"), "shape": np.array(x.shape), "data": x[rows, columns]}
    np.savez(path, **arrays, indices=columns.astype(np.int32), indptr=indptr, **more)


def test_the_same_counts_from_every_kind_of_file(tmp_path):
    x = cells()
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", x.astype(np.float16))
    sparse(tmp_path / "c.npz", x)
    head = "cell," + ",".join(f"g{k}" for k in range(x.shape[1]))
    lines = [f"c{k}," + ",".join(map(str, row)) for k, row in enumerate(x.tolist())]
    (tmp_path / "d.csv").write_text("\n".join([head, *lines]) + "\n")
    (tmp_path / "e.tsv").write_text("\n".join("\t".join(map(str, row)) for row in x.tolist()))
    names = ["a.npy", "b.npy", "c.npz", "d.csv", "e.tsv"]
    found = [load(tmp_path / name, levels="counts") for name in names]
    for one in found:
        assert one.kind == "counts" and one.levels == 0 and one.event_shape == (5,)
        assert torch.equal(one.train, found[0].train) and torch.equal(one.test, found[0].test)
    assert load(tmp_path / "c.npz").kind == "counts"  # sparse: nothing else is meant
    assert load(tmp_path / "a.npy").kind != "counts"


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr"])
def test_sparse_matrices_are_scipys(kind, tmp_path):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    x = cells()
    scipy_sparse.save_npz(tmp_path / "a.npz", scipy_sparse.coo_array(x).asformat(kind))
    if kind == "bsr":
        with pytest.raises(DataError, match="csr, csc or coo matrix; got 'bsr'"):
            load(tmp_path / "a.npz")
        return
    data = load(tmp_path / "a.npz")
    rows = torch.cat([data.train, data.test]).numpy()
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, x.tolist()))


def test_size_factors_become_the_last_column(tmp_path):
    x, sizes = cells(), np.random.default_rng(1).gamma(2.0, 1.0, 120)
    sparse(tmp_path / "a.npz", x, size_factors=sizes)
    data = load(tmp_path / "a.npz")
    assert data.event_shape == (6,) and data.protocol["sizes"] == "given"
    rows = {tuple(row[:-1].tolist()): float(row[-1]) for row in torch.cat([data.train, data.test])}
    for row, size in zip(x, sizes, strict=True):
        assert rows[tuple(row.astype(float).tolist())] == pytest.approx(size, rel=1e-6)
    data = load(tmp_path / "a.npz", size_factors="total")
    assert torch.equal(data.train[:, -1], data.train[:, :-1].sum(1).to(data.train.dtype))
    assert load(tmp_path / "a.npz", size_factors="none").event_shape == (5,)
    text = "\n".join(["g0,size_factor,g1", *(f"{a},{0.5 + a},{b}" for a, b in x[:, :2])])
    (tmp_path / "b.csv").write_text(text)
    data = load(tmp_path / "b.csv", levels="counts")
    assert data.protocol["sizes"] == "given"
    assert torch.equal(data.test[:, 2], data.test[:, 0] + 0.5)
    np.savez(tmp_path / "c.npz", x_train=x[:80], x_test=x[80:], size_factors=sizes)
    data = load(tmp_path / "c.npz", levels="counts")
    assert torch.equal(data.test[:, -1], torch.tensor(sizes[80:], dtype=torch.float32))


@pytest.mark.parametrize(
    ("x", "more", "text"),
    [
        ([[0.5, 1], [2, 3]], {}, "whole numbers from 0 to 16,777,216; got 0.5 in row 0"),
        ([[1, 1], [2, -3]], {}, "got -3 in row 1. Try: the raw counts"),
        ([[1, 1], [2, 2**24 + 1]], {}, "got 1.67772e[+]07 in row 1"),
        ([[[1, 1]], [[2, 3]]], {}, r"as vectors \[n, D\]; got \[2, 1, 1, 2\]"),
        ([[0, 0], [1, 2]], {"size_factors": "total"}, "positive size factors; got 0 in row 0"),
        ([[0, 5], [1, 2]], {"size_factors": "given"}, "size factors in an array size_factors"),
        ([[0, 5], [1, 2]], {"binarize": "static"}, "images to binarise; got counts"),
    ],
)
def test_what_is_no_count_is_refused(x, more, text, tmp_path):
    np.save(tmp_path / "a.npy", np.array(x))
    with pytest.raises(DataError, match=text):
        load(tmp_path / "a.npy", levels="counts", **more)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ([1.0, 2.0, 3.0], "size_factors: expected 120 numbers, one a row"),
        ([1e-50] * 120, "got 1e-50 in row 0"),
        ([0.0] * 120, "got 0 in row 0, the first of 120 rows"),
        ([math.nan] * 120, "got nan in row 0"),
        ([math.inf] * 120, "got inf in row 0"),
        ([-1.0] * 120, "got -1 in row 0"),
    ],
)
def test_wrong_size_factors_are_refused(sizes, text, tmp_path):
    sparse(tmp_path / "a.npz", cells(), size_factors=np.array(sizes))
    with pytest.raises(DataError, match=text):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"indptr": np.arange(3)}, "indptr does not fit"),
        ({"indices": np.array([99])}, "indices do not fit"),
        ({"shape": np.array([5])}, "not a sparse matrix"),
        ({"shape": np.array([10**7, 10**7])}, "(indptr does not fit|GB)"),
        ({"format": np.array("dia")}, "csr, csc or coo"),
        ({"data": np.array(["a"])}, "not a sparse matrix"),
    ],
)
def test_damaged_sparse_matrices_are_refused(change, text, tmp_path):
    arrays = {
        "format": np.array("csr"),
        "shape": np.array([2, 2]),
        "data": np.array([3]),
        "indices": np.array([1]),
        "indptr": np.array([0, 0, 1]),
    }
    np.savez(tmp_path / "a.npz", **(arrays | change))
    with pytest.raises(DataError, match=text):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,x\n", "row 3: expected numbers; got 'x'"),
        ("1,2\n3\n", "row 2: expected 2 numbers; got 1"),
        ("", "expected rows of numbers; got none"),
        ("a,b\n", "expected rows of numbers; got none"),
        ("1,2\n3,inf\n", "got inf in row 1"),
        ("1,2\n3,1e300\n", "got 1e[+]300 in row 1"),
        ("1,2\n3,nan\n", "NaN, infinity|whole numbers"),
    ],
)
def test_damaged_tables_are_refused(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.csv", levels="counts")


def test_integers_of_too_many_levels_are_counts(tmp_path):
    """They were refused: expected integers in 0..255."""
    x = cells()
    x[3, 1] = 70_001
    np.save(tmp_path / "a.npy", x)
    data = load(tmp_path / "a.npy")
    assert data.kind == "counts" and choose(data.kind)[0] == "negative_binomial"
    np.save(tmp_path / "b.npy", -x)
    with pytest.raises(DataError, match=r"expected integers in 0\.\.255"):
        load(tmp_path / "b.npy")


TINY = Architecture(hidden=(8,), latent=2, likelihood="negative_binomial")


@pytest.mark.sweep(4)
@pytest.mark.parametrize("likelihood", ["gaussian", "student", "laplace", "logistics"])
def test_other_likelihoods_refuse_counts(likelihood, tmp_path):
    sparse(tmp_path / "a.npz", cells())
    with pytest.raises(ArgumentValueError, match="one that fits counts data"):
        train(tmp_path / "a.npz", architecture=Architecture(likelihood=likelihood))


@pytest.mark.slow
@pytest.mark.parametrize("law", COUNTS)
@pytest.mark.parametrize("size_factors", ["none", "total"])
def test_a_run_of_counts_is_resumed_loaded_and_reported(law, size_factors, tmp_path):
    sparse(tmp_path / "a.npz", cells())
    data = load(tmp_path / "a.npz", size_factors=size_factors)
    architecture = Architecture(hidden=(8,), latent=2, likelihood=law)
    settings = {"architecture": architecture, "training": Training(steps=8, batch_size=20)}
    whole = train(data, **settings, folder=tmp_path / "whole")
    count = itertools.count()
    train(data, **settings, folder=tmp_path / "b", stop=lambda: next(count) == 3)
    again = resume(tmp_path / "b")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    loaded = VAE.load(tmp_path / "whole")
    found = evaluate(loaded, data.test, draws=20)
    assert found == evaluate(whole.model, data.test, draws=20)
    assert found.bits_per_dim is None and found.levels == 0
    assert ("its own total count" in found.given) == (size_factors == "total")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert Spec.from_dict(config["model"]) == loaded.spec
    assert reload(config["data"]).protocol["sha256"] == data.protocol["sha256"]
    page = report.write(tmp_path / "whole").read_text()
    assert f"--likelihood {law}" in page or law == "negative_binomial"
    assert ("--size-factors total" in page) == (size_factors == "total")
    drawn = loaded.sample(3)
    assert torch.equal(loaded.check(drawn), drawn)


def test_a_model_checks_what_it_is_given():
    model = build((6,), "counts", TINY, sizes="total")
    good = torch.tensor([[0.0, 3.0, 1.0, 2.0**24, 0.0, 7.0]])
    assert torch.equal(model.check(good), good)
    for x, text in (
        (good * 1.5, "whole numbers from 0 to 16,777,216"),
        (torch.cat([good[:, :-1], 0 * good[:, -1:]], 1), "positive size factors in the last"),
        (good[:, :-1], "shape"),
    ):
        with pytest.raises(ArgumentValueError, match=text):
            model.check(x)


@pytest.mark.slow
def test_a_decoder_of_your_own_gives_log_rates(tmp_path):
    sparse(tmp_path / "a.npz", cells())
    data = load(tmp_path / "a.npz", size_factors="total")
    own = {"decoder": nn.Linear(2, 5)}
    found = train(data, architecture=TINY, training=Training(steps=2), folder=tmp_path / "a", **own)
    loaded = VAE.load(tmp_path / "a", parts=Parts(decoder=nn.Linear(2, 5)))
    assert evaluate(loaded, data.test, draws=5) == evaluate(found.model, data.test, draws=5)


@pytest.mark.slow
def test_the_command_from_counts_to_samples(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code

    monkeypatch.chdir(tmp_path)
    sparse(tmp_path / "c.npz", cells())
    np.save("plain.npy", cells())
    fast = "--hidden 8 --latent 2 --steps 4"
    assert run(*f"train plain.npy --likelihood poisson {fast} --out p".split()) == 0
    assert "vectors of 5, counts" in capsys.readouterr().out
    assert run(*f"train c.npz --size-factors total {fast} --out r".split()) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "log p(x) is conditional on the size factor of each item" in said
    assert run("train", "c.npz", "--likelihood", "gaussian") == 2
    assert "a continuous density at whole numbers is no probability" in capsys.readouterr().err
    assert run("sample", "r", "-n", 7, "--noise", "--out", "x.npy") == 0
    drawn = np.load("x.npy")
    assert drawn.shape == (7, 5) and (drawn == np.rint(drawn)).all()  # without the size factor
    assert run("encode", "r", "c.npz") == 0 and np.load("latent.npz")["mean"].shape == (120, 2)
    assert "120 vectors: latent.npz" in capsys.readouterr().err
    how = ("--items", 2, "--chains", 2, "--temperatures", 4, "--draws", 5)
    assert run("evaluate", "r", "--sandwich", *how) == 0
    assert run("evaluate", "r", "--data", "plain.npy", "--draws", 5) == 0
    capsys.readouterr()
    x = cells()
    x[0] = 0
    np.save("empty.npy", x)
    assert run("evaluate", "r", "--data", "empty.npy", "--draws", 5) == 3
    assert "positive size factors; got 0 in row 0" in capsys.readouterr().err
