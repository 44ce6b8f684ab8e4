"""Models of NumPyro, Pyro and PyMC: the same log p, gradients, values and fits as our own."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import HalfCauchy, Normal, constraints

from kullback.core import ArgumentTypeError, ArgumentValueError, MissingExtraError, RunError
from kullback.variational import Target, fit
from kullback.variational.target.programs import Model
from kullback.variational.target.simulation import Simulation, _labels

pytestmark = pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS")
F64 = torch.float64
EFFECTS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])  # Rubin 1981
ERRORS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
X = np.random.default_rng(0).normal(size=(40, 3))
Y = (np.random.default_rng(1).random(40) < 1 / (1 + np.exp(-X @ [1.0, -1.0, 0.5]))).astype(float)


def own_schools():
    y, sigma = torch.tensor(EFFECTS), torch.tensor(ERRORS)

    def log_density(mu, tau, eta):
        prior = Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(T(5.0)).log_prob(tau)
        effects = Normal(0.0, 1.0).log_prob(eta).sum()
        return prior + effects + Normal(mu + tau * eta, sigma).log_prob(y).sum()

    return Target.of(log_density, {"mu": (), "tau": constraints.positive, "eta": (8,)})


def own_logistic():
    x, y = torch.tensor(X), torch.tensor(Y)

    def log_density(a, b):
        logits = a + x @ b
        likelihood = (y * logits - torch.nn.functional.softplus(logits)).sum()
        return Normal(0.0, 2.0).log_prob(a) + Normal(0.0, 1.0).log_prob(b).sum() + likelihood

    return Target.of(log_density, {"a": (), "b": (3,)})


def T(*numbers):
    return torch.tensor(numbers if len(numbers) > 1 else numbers[0], dtype=F64)


OWN = {"schools": own_schools, "logistic": own_logistic}
EXTRA = {"schools": {"theta": (8,)}, "logistic": {"odds": (3,)}}  # deterministic sites


def numpyro_target(name):
    numpyro = pytest.importorskip("numpyro")
    import jax.numpy as jnp

    dist = numpyro.distributions

    def schools(sigma, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("J", 8):
            eta = numpyro.sample("eta", dist.Normal(0, 1))
            theta = numpyro.deterministic("theta", mu + tau * eta)
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def logistic(x, y=None):
        a = numpyro.sample("a", dist.Normal(0, 2))
        b = numpyro.sample("b", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.deterministic("odds", jnp.exp(b))
        numpyro.sample("y", dist.Bernoulli(logits=a + x @ b), obs=y)

    if name == "schools":
        return Target.from_numpyro(schools, ERRORS, y=EFFECTS)
    return Target.from_numpyro(logistic, X, Y)


def pyro_target(name):
    pyro = pytest.importorskip("pyro")
    dist = pyro.distributions

    def schools(sigma, y=None):
        mu = pyro.sample("mu", dist.Normal(0, 5))
        tau = pyro.sample("tau", dist.HalfCauchy(5))
        with pyro.plate("J", 8):
            eta = pyro.sample("eta", dist.Normal(0, 1))
            theta = pyro.deterministic("theta", mu + tau * eta)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def logistic(x, y=None):
        a = pyro.sample("a", dist.Normal(0, 2))
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1).to_event(1))
        pyro.deterministic("odds", b.exp())
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=a + x @ b), obs=y)

    if name == "schools":  # whole numbers: float32 data lose nothing
        return Target.from_pyro(schools, torch.tensor(ERRORS).float(), y=torch.tensor(EFFECTS))
    return Target.from_pyro(logistic, torch.tensor(X), torch.tensor(Y))


def pymc_or_skip():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        return pytest.importorskip("pymc")


def pymc_target(name):
    pm = pymc_or_skip()
    with pm.Model() as model:
        if name == "schools":
            mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
            eta = pm.Normal("eta", 0, 1, shape=8)
            theta = pm.Deterministic("theta", mu + tau * eta)
            pm.Normal("y", theta, ERRORS, observed=EFFECTS)
        else:
            a, b = pm.Normal("a", 0, 2), pm.Normal("b", 0, 1, shape=3)
            pm.Deterministic("odds", pm.math.exp(b))
            pm.Bernoulli("y", logit_p=a + X @ b, observed=Y)
    return Target.from_pymc(model)


MAKERS = {"numpyro": numpyro_target, "pyro": pyro_target, "pymc": pymc_target}
CASES = [(program, name) for program in MAKERS for name in OWN]


def on(other, own, z):
    """The own target's z at the other's, whose parameters may come in another order."""
    place = {name: k for k, name in enumerate(other.names)}
    return z[:, [place[name] for name in own.names]]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(("program", "name"), CASES)
def test_a_model_of_another_program_is_the_same_model(program, name):
    other, own = MAKERS[program](name), OWN[name]()
    assert sorted(other.names) == sorted(own.names)
    assert other.layout.shapes == own.layout.shapes | EXTRA[name]
    z = torch.randn(70, own.dim, generator=torch.Generator().manual_seed(0), dtype=F64)
    (value, gradient), (wanted, slopes) = other.score(z), own.score(on(other, own, z))
    torch.testing.assert_close(value - value[0], wanted - wanted[0], rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(on(other, own, gradient), slopes, rtol=1e-12, atol=1e-10)
    values, same = other.constrain(z), own.constrain(on(other, own, z))
    for key, part in same.items():
        torch.testing.assert_close(values[key], part, rtol=1e-12, atol=1e-12)
    if name == "schools":
        theta = same["mu"][:, None] + same["tau"][:, None] * same["eta"]
        torch.testing.assert_close(values["theta"], theta, rtol=1e-12, atol=1e-12)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(("program", "name"), CASES)
def test_it_is_fitted_and_trusted(program, name):
    found, own = (fit(target, progress=False) for target in (MAKERS[program](name), OWN[name]()))
    assert found.diagnosis.level == own.diagnosis.level == "trust"
    for key, mean in own.mean.items():  # each within the bound of "trust", 0.2 sd
        torch.testing.assert_close(
            found.mean[key] / own.sd[key], mean / own.sd[key], rtol=0, atol=0.4
        )


@pytest.mark.integration
@pytest.mark.slow
def test_numpyro_models_that_are_refused():
    numpyro = pytest.importorskip("numpyro")
    import jax

    dist = numpyro.distributions

    def counts(y):
        k = numpyro.sample("k", dist.Poisson(3.0))
        numpyro.sample("y", dist.Normal(k, 1.0), obs=y)

    def part(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", 100, subsample_size=10):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=numpyro.subsample(y, 0))

    def prior():
        numpyro.sample("x", dist.Uniform(0, numpyro.sample("top", dist.LogNormal(0, 1))))

    with pytest.raises(ArgumentValueError, match=r"continuous parameters; got discrete \['k'\]"):
        Target.from_numpyro(counts, 1.0)
    with pytest.raises(ArgumentValueError, match="all its rows"):
        Target.from_numpyro(part, np.zeros(100))
    with pytest.raises(ArgumentTypeError, match="counts"):
        Target.from_numpyro(counts)
    with pytest.raises(ArgumentValueError, match="sample sites"):
        Target.from_numpyro(lambda y: y, 1.0)
    with pytest.raises(ArgumentValueError, match="a function"):
        Target.from_numpyro("model.py")
    with pytest.warns(UserWarning, match="prior"):  # bounds that depend on a parameter
        target = Target.from_numpyro(prior)
    values = target.constrain(torch.randn(9, 2, dtype=F64))
    assert bool((values["x"] < values["top"]).all())
    assert not jax.config.jax_enable_x64


@pytest.mark.integration
@pytest.mark.slow
def test_pyro_models_that_are_refused():
    pyro = pytest.importorskip("pyro")
    dist = pyro.distributions

    def counts(y):
        k = pyro.sample("k", dist.Poisson(3.0))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y)

    def part(y):
        mu = pyro.sample("mu", dist.Normal(0, 1))
        with pyro.plate("rows", 100, subsample_size=10) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    def prior():
        pyro.sample("x", dist.Uniform(0, pyro.sample("top", dist.LogNormal(0, 1))))

    with pytest.raises(ArgumentValueError, match=r"continuous parameters; got discrete \['k'\]"):
        Target.from_pyro(counts, torch.tensor(1.0))
    with pytest.raises(ArgumentValueError, match="all its rows"):
        Target.from_pyro(part, torch.zeros(100))
    with pytest.raises(ArgumentTypeError, match="counts"):
        Target.from_pyro(counts)
    with pytest.raises(ArgumentValueError, match="sample sites"):
        Target.from_pyro(lambda y: y, 1.0)
    with pytest.warns(UserWarning, match="prior"):  # bounds that depend on a parameter
        target = Target.from_pyro(prior)
    z = torch.randn(9, 2, dtype=F64)
    values = target.constrain(z)
    top, x = values["top"], values["x"]
    assert bool((x < top).all())
    share = x / top  # p(x, top) dx dtop/dz: uniform, log-normal, two Jacobians
    wanted = -0.5 * top.log() ** 2 + (share * (1 - share)).log()
    log_p = target.log_density(z)
    torch.testing.assert_close(log_p - log_p[0], wanted - wanted[0], rtol=1e-10, atol=1e-10)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.integration
@pytest.mark.slow
def test_a_pyro_model_that_branches_is_evaluated_point_by_point():
    pyro = pytest.importorskip("pyro")
    dist = pyro.distributions

    def hinge(y):
        x = pyro.sample("x", dist.Normal(0, 1))
        pyro.sample("y", dist.Normal(x if x > 0 else 2 * x, 1.0), obs=y)

    with pytest.warns(UserWarning, match="one point at a time"):
        target = Target.from_pyro(hinge, torch.tensor(1.0))
    z = T(-1.0, 0.5)[:, None]
    wanted = -0.5 * T(1.0, 0.25) - 0.5 * T(9.0, 0.25)
    log_p, values = target.log_density(z), target.constrain(z)
    torch.testing.assert_close(log_p - log_p[0], wanted - wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values["x"], z[:, 0])


@pytest.mark.integration
@pytest.mark.slow
def test_pymc_models_that_are_refused():
    pm = pymc_or_skip()
    with pm.Model() as counts:
        pm.Normal("y", pm.Poisson("k", 3.0), 1.0, observed=1.0)
    with pytest.raises(ArgumentValueError, match=r"continuous parameters; got discrete \['k'\]"):
        Target.from_pymc(counts)
    with pm.Model() as part:
        rows = pm.Minibatch(np.zeros(100), batch_size=10)
        pm.Normal("y", pm.Normal("mu"), 1.0, observed=rows, total_size=100)
    with pytest.raises(ArgumentValueError, match="all its rows"):
        Target.from_pymc(part)
    with pytest.raises(ArgumentValueError, match="parameters to fit"):
        Target.from_pymc(pm.Model())
    with pytest.raises(ArgumentTypeError, match="expected Model; got function"):
        Target.from_pymc(pymc_target)


def pymc_models(pm):
    """With parts of a vector, vectors filled by a number, and determinants."""
    walk = np.cumsum(np.random.default_rng(2).normal(size=8))
    with pm.Model() as mixture:
        w, mu = pm.Dirichlet("w", np.ones(3)), pm.Normal("mu", 0, 2, shape=3)
        pm.NormalMixture("y", w=w, mu=mu, sigma=pm.HalfNormal("sd"), observed=EFFECTS)
    with pm.Model() as random_walk:
        z = pm.GaussianRandomWalk(
            "z", sigma=pm.HalfNormal("sd"), init_dist=pm.Normal.dist(), shape=8
        )
        pm.Normal("y", z, 0.5, observed=walk)
    with pm.Model() as covariance:
        sd = pm.Exponential.dist(1.0)
        chol, _, _ = pm.LKJCholeskyCov("chol", n=2, eta=2.0, sd_dist=sd)
        pm.MvNormal("y", pm.Normal("mu", shape=2), chol=chol, observed=X[:, :2])
    with pm.Model() as correlation:
        pm.LKJCorr("corr", n=3, eta=2.0)
    return mixture, random_walk, covariance, correlation


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:model. nothing is observed")
def test_pymc_models_are_evaluated_in_few_calls(monkeypatch):
    """The density is PyMC's at every point, and few operations are loops over points."""
    pm = pymc_or_skip()
    loops = []

    def seen(*args, compiled=pm.pytensorf.compile, **kwargs):
        function = compiled(*args, **kwargs)
        nodes = function.maker.fgraph.toposort()
        loops.append(
            {type(node.op.core_op).__name__ for node in nodes if hasattr(node.op, "core_op")}
        )
        return function

    for model in pymc_models(pm):
        one = model.logp_dlogp_function(ravel_inputs=True)
        one.set_extra_values({})
        with monkeypatch.context() as patch:
            patch.setattr(pm.pytensorf, "compile", seen)
            target = Target.from_pymc(model)
        z = torch.randn(4, target.dim, generator=torch.Generator().manual_seed(0), dtype=F64)
        for point, log_p, score in zip(z, *target.score(z), strict=True):
            value, gradient = one(point.numpy())
            assert log_p.item() == pytest.approx(float(value), rel=1e-9)
            torch.testing.assert_close(score, torch.tensor(gradient), rtol=1e-7, atol=1e-9)
    assert not set().union(*loops) & {"Split", "Alloc"}


def an_sd_that_may_be_negative(program):
    ones = np.ones(3)
    if program == "pymc":
        pm = pymc_or_skip()
        with pm.Model() as model:
            pm.Normal("y", 0, pm.Normal("a", 0, 1), observed=ones)
        return Target.from_pymc(model)
    module = pytest.importorskip(program)
    normal = module.distributions.Normal

    def model(y):
        a = module.sample("a", normal(0.0, 1.0))
        with module.plate("rows", 3):
            module.sample("y", normal(0.0, a), obs=y)

    if program == "numpyro":
        return Target.from_numpyro(model, ones)
    return Target.from_pyro(model, torch.tensor(ones))


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("program", MAKERS)
def test_a_point_that_is_refused_leaves_the_others_their_density(program):
    target = an_sd_that_may_be_negative(program)
    log_p = target.log_density(T(1.0, -1.0, 2.0)[:, None])
    wanted = T(-0.5 - 1.5, -np.inf, -2.0 - 3 * np.log(2.0) - 3 / 8)
    torch.testing.assert_close(log_p - log_p[0], wanted - wanted[0], rtol=1e-12, atol=1e-12)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("program", MAKERS)
def test_values_by_name_are_put_into_z(program):
    target = MAKERS[program]("schools")
    z = torch.randn(3, target.dim, generator=torch.Generator().manual_seed(0), dtype=F64)
    values = target.constrain(z)
    back = torch.stack([target.unconstrain({k: v[i] for k, v in values.items()}) for i in range(3)])
    torch.testing.assert_close(back, z, rtol=1e-12, atol=1e-12)
    with pytest.raises(ArgumentValueError, match=r"one of each of \[.*; got none of \['eta'\]"):
        target.unconstrain({"mu": 1.0, "tau": 1.0})


def a_line_with_data(program, x, y):
    """y ~ N(a x, s)."""
    package = pytest.importorskip(program)
    if program == "pymc":
        with package.Model() as model:
            a, s = package.Normal("a"), package.HalfNormal("s")
            package.Normal("y", a * x, s, observed=y)
        return Target.from_pymc(model)
    dist = package.distributions

    def model(x, y):
        a = package.sample("a", dist.Normal(0.0, 1.0))
        s = package.sample("s", dist.HalfNormal(1.0))
        with package.plate("rows", len(x)):
            package.sample("y", dist.Normal(a * x, s), obs=y)

    if program == "numpyro":
        return Target.from_numpyro(model, x, y=y)
    return Target.from_pyro(model, torch.tensor(x), y=torch.tensor(y))


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Out-of-support")  # of NumPyro, about the NaN
@pytest.mark.parametrize("program", MAKERS)
@pytest.mark.parametrize(("broken", "kind"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_a_missing_number_of_a_covariate_is_named(program, broken, kind):
    x = np.linspace(-1, 1, 12)
    y = x.copy()
    x[3] = broken
    place = r"an array of shape \[12\], at \[3\]" if program == "pymc" else r"x\[3\]"
    with pytest.raises(ArgumentValueError, match=rf"got {kind} in {place} \(log p"):
        a_line_with_data(program, x, y)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Out-of-support")  # of NumPyro, about the NaN
@pytest.mark.parametrize("program", ["numpyro", "pyro"])
def test_fixed_parameters_are_named_and_so_are_missing_rows(program):
    module = pytest.importorskip(program)
    normal, as_data = module.distributions.Normal, {"numpyro": np.array, "pyro": torch.tensor}

    make = getattr(Target, f"from_{program}")

    def model(y):
        scale = module.param(f"scale of {program}", as_data[program](2.0))
        module.sample("y", normal(module.sample("a", normal(0.0, scale)), 1.0), obs=y)

    with pytest.warns(UserWarning, match=rf"model: \['scale of {program}'\] of `param` keep"):
        target = make(model, as_data[program](1.0))
    log_p = target.log_density(T(0.0, 2.0)[:, None])
    torch.testing.assert_close(log_p[1] - log_p[0], T(-0.5), rtol=1e-12, atol=1e-12)
    with (
        pytest.warns(UserWarning, match="param"),
        pytest.raises(
            ArgumentValueError, match=r"got NaN in y \(log p is .*Try: leave those rows out"
        ),
    ):
        make(model, as_data[program](float("nan")))


def model_with_data(data, log_p, **options):
    """What a program is read into, of N(0, 1) times what log_p says of the data."""

    def score(z):
        value = -0.5 * z[:, 0] ** 2
        return torch.full_like(value, log_p) if log_p is not None else value, -z

    return Model(score, lambda z: {"a": z[:, 0]}, ("a",), data=data, **options)


@pytest.mark.parametrize(
    ("data", "log_p", "words"),
    [
        ({"x": np.ones(3), "y": np.array([1.0, np.nan])}, np.nan, "NaN in y[1] (log p is finite"),
        ({"x": np.array([[1, np.inf], [np.inf, 0]])}, -np.inf, "infinity in x[0,1] and 1 more"),
        ({"a": np.array(np.nan), "b": np.array([np.nan])}, np.nan, "NaN in a, NaN in b[0] (log p"),
        ({"x": np.array([np.inf, np.nan])}, np.nan, "NaN in x[1] (log p"),
    ],
)
def test_a_missing_number_is_named_where_no_point_has_a_density(data, log_p, words):
    with pytest.raises(ArgumentValueError) as caught:
        Target._of_model(model_with_data(data, log_p))
    assert f"data: expected finite numbers; got {words}" in str(caught.value)
    assert str(caught.value).endswith("Try: leave those rows out, or mask them in the model")


def test_a_missing_number_that_does_no_harm_is_no_error():
    masked = Target._of_model(model_with_data({"x": np.array([np.nan])}, None))
    assert float(masked.log_density(torch.ones(1, 1).double())) == -0.5
    assert masked.refusals.count == 0
    whole = Target._of_model(model_with_data({"x": np.ones(2)}, -np.inf))  # another fault
    assert whole.refusals.count == 0


MISSING = {"numpyro": "jax", "pyro": "pyro", "pymc": "pymc"}


@pytest.mark.parametrize("extra", MISSING)
def test_a_missing_package_is_named_with_its_install_command(extra, monkeypatch):
    monkeypatch.setitem(sys.modules, MISSING[extra], None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'kullback\[{extra}\]'"):
        getattr(Target, f"from_{extra}")(lambda: None)


def with_rows_that_are_missing(program, y, seen):
    module = pytest.importorskip(program)
    normal = module.distributions.Normal

    def model(y, seen):
        mu = module.sample("mu", normal(0.0, 1.0))
        with module.plate("rows", len(y)):
            module.sample("y", normal(mu, 1.0), obs=y, obs_mask=seen)

    if program == "numpyro":
        return Target.from_numpyro(model, y, seen)
    return Target.from_pyro(model, torch.tensor(y), torch.tensor(seen))


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("program", ["numpyro", "pyro"])
def test_rows_that_obs_mask_leaves_out_are_parameters_of_a_proper_target(program):
    y, seen = np.array([1.0, 0.0, 3.0, 2.0]), np.array([True, False, True, True])
    found = fit(with_rows_that_are_missing(program, y, seen), progress=False)
    assert found.diagnosis.level == "trust"
    mean, sd = found.mean["mu"], found.sd["mu"]  # three rows and a prior of one
    assert abs(float(mean) - 6 / 4) < 0.2 * 0.5 and abs(float(sd) / 0.5 - 1) < 0.22
    missing = float(found.mean["y_unobserved"][1]), float(found.sd["y_unobserved"][1])
    assert abs(missing[0] - 6 / 4) < 0.2 * 1.25**0.5 and abs(missing[1] / 1.25**0.5 - 1) < 0.22


@pytest.mark.integration
@pytest.mark.slow
def test_numpyro_models_that_jax_cannot_trace_have_a_hint():
    numpyro = pytest.importorskip("numpyro")
    dist = numpyro.distributions

    def branches(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu if mu > 0 else 2 * mu, 1), obs=y)

    def empty(y):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([0]))
        numpyro.sample("y", dist.Normal(numpyro.sample("a", dist.Normal(0, 1)) + b.sum()), obs=y)

    with pytest.raises(ArgumentTypeError, match=r"that JAX can trace; .*jnp.where for an if"):
        fit(Target.from_numpyro(branches, 1.0), progress=False)
    target = Target.from_numpyro(empty, 1.0)  # an array without entries is no part of z
    assert target.names == ("a",) and target.constrain(torch.zeros(2, 1))["b"].shape == (2, 0)


@pytest.mark.integration
@pytest.mark.slow
def test_pyro_takes_flat_priors_and_refuses_rows_given_by_subsample():
    pyro = pytest.importorskip("pyro")
    dist = pyro.distributions

    def flat(y):
        mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)

    def part(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 9, subsample=torch.arange(3)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def mixed(y):
        weights = dist.Categorical(torch.ones(2) / 2)
        mu = pyro.sample("mu", dist.MixtureSameFamily(weights, dist.Normal(torch.zeros(2), 1.0)))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)

    y = T(1.0, 2.0, 6.0)
    log_p = Target.from_pyro(flat, y).log_density(T(0.0, 3.0)[:, None])
    torch.testing.assert_close(log_p[1] - log_p[0], T((41 - 14) / 2), rtol=1e-12, atol=1e-12)
    with pytest.raises(ArgumentValueError, match=r"all its rows; got subsampled plates \['rows'\]"):
        Target.from_pyro(part, y)
    with pytest.raises(ArgumentValueError, match=r"that reals map onto; got \['mu'\]"):
        Target.from_pyro(mixed, y)


def angles_of_pyro(location, data):
    pyro = pytest.importorskip("pyro")

    def model(data):
        angle = pyro.sample("angle", pyro.distributions.VonMises(torch.tensor(location), 3.0))
        with pyro.plate("rows", len(data)):
            pyro.sample("y", pyro.distributions.VonMises(angle, 1.0), obs=data)

    return Target.from_pyro(model, torch.tensor(data))


def angles_of_pymc(location, data):
    pymc = pytest.importorskip("pymc")
    with pymc.Model() as model:
        pymc.VonMises("y", pymc.VonMises("angle", location, 3.0), 1.0, observed=np.array(data))
    target = Target.from_pymc(model)
    transforms = {rv.name: way for rv, way in model.rvs_to_transforms.items()}
    assert transforms["angle"] is pymc.distributions.transforms.circular  # as it was
    return target


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("location", [0.5, 3.0])
@pytest.mark.parametrize("make", [angles_of_pyro, angles_of_pymc])
def test_an_angle_has_one_turn(make, location):
    target = make(location, [0.9, 1.1, 3.1])
    z = torch.linspace(-40, 40, 20001, dtype=F64)[:, None]
    angle = target.constrain(z)["angle"]
    assert bool(((angle >= -math.pi) & (angle < math.pi)).all())
    shares = torch.softmax(target.log_density(z), 0)  # quadrature, on z
    ring = torch.linspace(-math.pi, math.pi, 20001, dtype=F64)[:-1]
    log_p = 3 * (ring - location).cos() + sum((y - ring).cos() for y in (0.9, 1.1, 3.1))
    truth = torch.softmax(log_p, 0)
    for wave in (torch.sin, torch.cos):
        torch.testing.assert_close((shares * wave(angle)).sum(), (truth * wave(ring)).sum())
    for value in (-3.0, -0.5, 2.0):
        back = target.constrain(target.unconstrain({"angle": value})[None])["angle"]
        assert math.isclose(float(back), value, abs_tol=1e-9)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("make", [angles_of_pyro, angles_of_pymc])
def test_an_angle_is_fitted(make):
    found = fit(make(0.5, [0.9, 1.1]), progress=False)
    ring = torch.linspace(-math.pi, math.pi, 20001, dtype=F64)[:-1]
    log_p = 3 * (ring - 0.5).cos() + (ring - 0.9).cos() + (ring - 1.1).cos()
    truth = torch.softmax(log_p, 0)
    mean = (truth * ring).sum()
    sd = (truth * (ring - mean) ** 2).sum().sqrt()
    assert found.diagnosis.level == "trust"
    assert abs(found.mean["angle"] - mean) < 0.2 * sd  # the bounds of "trust"
    assert 0.78 < found.sd["angle"] / sd < 1.22


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        (np.array([[0.0, -np.inf, -1.0], [0.0, -np.inf, -np.inf]]), "y[1] = -2"),
        (np.array([[0.0, 0.0, np.nan], [0.0, 0.0, -np.inf]]), "y[2] = 4"),
        (np.array([[0.0, -np.inf, 0.0], [0.0, 0.0, -np.inf]]), ""),  # each has a density somewhere
        (np.zeros((2, 0)), ""),
    ],
)
def test_an_observation_without_a_density_is_named(logs, words):
    simulation = Simulation({"y": np.array([1, -2, 4])}, lambda _: {"y": logs})
    assert simulation.impossible({}) == words
    elsewhere = Simulation({"y": np.array([1, -2, 4])}, lambda _: {"log_lik": logs})
    assert elsewhere.impossible({}) == ""


@pytest.mark.filterwarnings("ignore:Out-of-support")  # of NumPyro, which says it too
@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("program", ["numpyro", "pyro", "pymc"])
def test_data_outside_their_support_are_named(program):
    module = pytest.importorskip(program)
    if program == "pymc":
        with module.Model() as model:
            mu = module.Normal("mu", 0, 5)
            module.LogNormal("y", mu, 1.0, observed=np.array([1.0, -2.0, 4.0]))
        target = Target.from_pymc(model)
    else:
        dist = module.distributions

        def model(y):
            mu = module.sample("mu", dist.Normal(0.0, 5.0))
            with module.plate("rows", 3):
                module.sample("y", dist.LogNormal(mu, 1.0), obs=y)

        make = getattr(Target, f"from_{program}")
        y = [1.0, -2.0, 4.0]
        target = make(model, torch.tensor(y) if program == "pyro" else np.array(y))
    with pytest.raises(RunError, match=r"observations within their support; got y\[1\] = -2"):
        fit(target, progress=False)


@pytest.mark.integration
@pytest.mark.slow
def test_a_pymc_model_with_initial_values_has_a_log_likelihood():
    pymc = pytest.importorskip("pymc")
    ordered = pymc.distributions.transforms.ordered
    y = np.array([-1.0, 0.5, 2.0])
    with pymc.Model() as model:
        mu = pymc.Normal("mu", 0, 2, shape=2, transform=ordered, initval=[-1.0, 1.0])
        pymc.Normal("y", mu[0] + mu[1], 1.5, observed=y)
    simulation = Target.from_pymc(model).simulation
    draws = torch.tensor([[-0.5, 0.25], [0.0, 2.0]], dtype=F64)
    found = torch.as_tensor(simulation.log_likelihood({"mu": draws})["y"])
    truth = Normal(draws.sum(1, keepdim=True), 1.5).log_prob(torch.tensor(y))
    torch.testing.assert_close(found, truth)
    assert [*np.asarray(model.rvs_to_initial_values[model["mu"]])] == [-1.0, 1.0]


@pytest.mark.integration
@pytest.mark.slow
def test_values_of_a_numpyro_scan_are_put_into_z():
    numpyro = pytest.importorskip("numpyro")
    from numpyro.contrib.control_flow import scan

    def model(data):
        step_sd = numpyro.sample("step_sd", numpyro.distributions.HalfNormal(1.0))

        def step(last, y):
            x = numpyro.sample("x", numpyro.distributions.Normal(last, step_sd))
            numpyro.sample("y", numpyro.distributions.Normal(x, 1.0), obs=y)
            return x, x

        scan(step, 0.0, data)

    target = Target.from_numpyro(model, np.array([0.5, 1.0, 0.0]))
    values = {"step_sd": 0.5, "x": np.array([0.2, 0.4, 0.1])}
    back = target.constrain(target.unconstrain(values)[None])
    torch.testing.assert_close(back["x"][0], torch.tensor(values["x"]))
    sites = (torch.tensor(values["x"]), torch.tensor([0.0, 0.2, 0.4], dtype=F64))
    y = torch.tensor([0.5, 1.0, 0.0], dtype=F64)
    prior = math.log(2) + Normal(0.0, 1.0).log_prob(torch.tensor(0.5, dtype=F64)) + math.log(0.5)
    log_p = prior + Normal(sites[1], 0.5).log_prob(sites[0]).sum()
    log_p = log_p + Normal(sites[0], 1.0).log_prob(y).sum()
    torch.testing.assert_close(target.log_density(target.unconstrain(values)[None])[0], log_p)


def test_labels_that_are_tuples_stay_whole():
    found = _labels((("a", 1), ("b", 2)))
    assert found.shape == (2,) and found[1] == ("b", 2)
    assert _labels(("a", "b")) == ["a", "b"]


@pytest.mark.integration
@pytest.mark.slow
def test_what_pyro_reparametrises_is_a_value_and_no_observation():
    pyro = pytest.importorskip("pyro")
    from pyro.infer.reparam import LocScaleReparam

    def model(y):
        tau = pyro.sample("tau", pyro.distributions.HalfNormal(1.0))
        with pyro.plate("rows", 3):
            theta = pyro.sample("theta", pyro.distributions.Normal(2.0, tau))
            pyro.sample("y", pyro.distributions.Normal(theta, 1.0), obs=y)

    made = pyro.poutine.reparam(model, {"theta": LocScaleReparam(0.0, shape_params=[])})
    target = Target.from_pyro(made, torch.tensor([1.0, 2.0, 3.0]))
    values = target.constrain(torch.tensor([[math.log(0.5), 1.0, 0.0, -2.0]], dtype=F64))
    torch.testing.assert_close(values["theta"], torch.tensor([[2.5, 2.0, 1.0]], dtype=F64))
    assert set(target.simulation.observed) == {"y"}
    found = torch.as_tensor(target.simulation.log_likelihood(values)["y"])
    truth = Normal(values["theta"], 1.0).log_prob(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    torch.testing.assert_close(found, truth)


@pytest.mark.integration
@pytest.mark.slow
def test_a_direction_in_pyro_has_a_hint():
    pyro = pytest.importorskip("pyro")

    def model(y):
        way = pyro.sample("way", pyro.distributions.ProjectedNormal(torch.tensor([1.0, 1.0])))
        pyro.sample("y", pyro.distributions.Normal(way.sum(), 0.5), obs=y)

    with pytest.raises(ArgumentValueError, match=r"got \['way'\]\. Try: .*ProjectedNormalReparam"):
        Target.from_pyro(model, torch.tensor(1.0))
