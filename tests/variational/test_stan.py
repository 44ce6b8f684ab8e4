"""Stan models in this process: log p, gradients, values and data as the programs declare them."""

import json
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import HalfCauchy, Normal

from kullback.core import ArgumentTypeError, ArgumentValueError, DataError, MissingExtraError
from kullback.variational import Target, fit, to_arviz
from kullback.variational.target import stan
from stan_programs import EFFECTS_STAN, SCHOOLS

F64 = torch.float64
integration = [pytest.mark.integration, pytest.mark.slow]
EFFECTS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=F64)  # Rubin 1981
ERRORS = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=F64)
SHAPES = """
data { int N; array[N, 2] int k; matrix[2, N] x; }
parameters {
  simplex[3] p; array[2] vector[3] a; matrix[2, 3] m; real<lower=0, upper=2> b;
  cholesky_factor_corr[2] L;
}
transformed parameters { array[2, 3] real at; for (i in 1:2) for (j in 1:3) at[i, j] = a[i][j]; }
model {
  for (i in 1:2) for (j in 1:3) { a[i][j] ~ normal(10 * i + j, 1); m[i, j] ~ normal(k[1, 2], 1); }
  if (b > 1.9) reject("b is too large");
  target += sum(x) + k[2, 1];
}
"""


def data():
    return {"J": 8, "y": EFFECTS.tolist(), "sigma": ERRORS}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    pytest.importorskip("httpstan")
    folder = tmp_path_factory.mktemp("stan")
    (folder / "effects.stan").write_text(EFFECTS_STAN)
    (folder / "schools.stan").write_text(SCHOOLS)
    return folder / "schools.stan"


@pytest.fixture(scope="module")
def schools(program):
    return Target.from_stan(program, data())


@pytest.fixture(scope="module")
def shapes():
    pytest.importorskip("httpstan")
    x = np.arange(6.0).reshape(2, 3)
    return Target.from_stan(SHAPES, {"N": 3, "k": [[1, 2], [3, 4], [5.0, 6]], "x": x})


def points(n, dim):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_stan_log_p_has_all_constants_and_jacobians(schools):
    z = points(300, 10).requires_grad_()
    mu, log_tau, eta = z[:, 0], z[:, 1], z[:, 2:]
    tau = log_tau.exp()
    theta = mu[:, None] + tau[:, None] * eta
    zero, five = torch.tensor([0.0, 5.0], dtype=F64)
    prior = Normal(zero, five).log_prob(mu) + HalfCauchy(five).log_prob(tau)
    wanted = prior - math.log(2) + log_tau  # Stan's cauchy is not halved
    wanted = wanted + Normal(0.0, 1.0).log_prob(eta).sum(1)
    wanted = wanted + Normal(theta, ERRORS).log_prob(EFFECTS).sum(1)
    (slopes,) = torch.autograd.grad(wanted.sum(), z)
    log_p, gradient = schools.score(z)
    torch.testing.assert_close(log_p, wanted.detach(), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(gradient, slopes, rtol=1e-12, atol=1e-10)
    values = schools.constrain(z)
    torch.testing.assert_close(values["theta"], theta.detach(), rtol=1e-12, atol=1e-12)
    assert schools.names == ("mu", "tau", *(f"eta[{i}]" for i in range(1, 9)))
    assert [*values] == ["mu", "tau", "eta", "theta"]
    one = {name: value[0] for name, value in values.items()}
    torch.testing.assert_close(schools.unconstrain(one), z[0].detach(), rtol=1e-12, atol=1e-12)


def test_a_stan_fit_is_trusted_and_simulates_its_data(schools):
    pytest.importorskip("arviz_base")
    loo = pytest.importorskip("arviz_stats.loo").loo
    found = fit(schools, init={"mu": 4.0, "tau": 3.0, "eta": np.zeros(8)}, progress=False)
    assert found.diagnosis.level == "trust"
    tree = to_arviz(found, dims={"theta": ["school"]}, coords={"school": [*"ABCDEFGH"]})
    groups = ["log_likelihood", "observed_data", "posterior", "posterior_predictive"]
    assert sorted(tree.children) == [*groups, "sample_stats"]
    theta = found.posterior["theta"]
    terms = Normal(theta, ERRORS).log_prob(EFFECTS)
    given = torch.tensor(tree["log_likelihood"]["log_lik"].to_numpy()[0])
    torch.testing.assert_close(given, terms, rtol=1e-9, atol=1e-9)
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "school")
    best = torch.tensor(tree["posterior"]["best"].to_numpy()[0])
    torch.testing.assert_close(best, theta.amax(1), rtol=1e-9, atol=1e-9)
    assert tree["observed_data"]["y"].to_numpy().tolist() == EFFECTS.tolist()
    new = found.predict()["y_rep"]
    apart = ((new - theta) / ERRORS).flatten()  # standard normal, 32,000 of them
    assert abs(float(apart.mean())) < 4.5 / math.sqrt(len(apart))
    assert abs(float(apart.var()) - 1) < 4.5 * math.sqrt(2 / len(apart))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eight rows for nine parameters: k-hat above 0.7
        assert -32 < loo(tree).elpd < -29  # Vehtari et al. (2017), section 4.2: -30.8


def test_a_missing_number_of_a_matrix_is_named_by_its_place(shapes):
    x = np.arange(6.0).reshape(2, 3)
    x[1, 2] = math.nan
    with pytest.raises(ArgumentValueError, match=r"got NaN in x\[2,3\] .* declare the missing"):
        Target.from_stan(SHAPES, {"N": 3, "k": [[1, 2], [3, 4], [5, 6]], "x": x})


def test_stan_values_have_the_shapes_and_places_of_the_program(shapes):
    target, z = shapes, points(20, shapes.dim)
    z[3, 14] = 5.0  # b = 1.987
    assert target.layout.shapes == {
        "p": (3,), "a": (2, 3), "m": (2, 3), "b": (), "L": (2, 2), "at": (2, 3)
    }  # fmt: skip
    assert target.names[:4] == ("p{1}", "p{2}", "a[1,1]", "a[1,2]")
    assert target.names[8:] == (*(f"m[{j},{i}]" for i in (1, 2, 3) for j in (1, 2)), "b", "L{1}")
    values = target.constrain(z)
    assert values["a"].equal(values["at"])
    for i, name in enumerate(target.names):
        if name.startswith(("a[", "m[")):
            place = tuple(int(one) - 1 for one in name[2:-1].split(","))
            assert values[name[0]][:, *place].equal(z[:, i])
    torch.testing.assert_close(values["p"].sum(1), torch.ones(20, dtype=F64))
    torch.testing.assert_close(values["b"], 2 * z[:, 14].sigmoid(), rtol=1e-13, atol=0)
    inside = values["b"] < 1.9
    log_p = target.log_density(z)
    assert log_p.isfinite().equal(inside)
    assert "b is too large" in str(target.refusals)
    means = torch.tensor([[11.0, 12, 13], [21, 22, 23]], dtype=F64)
    terms = Normal(means, 1.0).log_prob(values["a"]).sum((1, 2))
    terms = terms + Normal(2.0, 1.0).log_prob(values["m"]).sum((1, 2)) + 15 + 3
    rest = (log_p - terms)[inside]  # the Jacobians of p, b and L, of which neither a nor m is part
    again = z.clone()
    again[:, 2:14] += 1
    more = (
        Normal(means, 1.0).log_prob(target.constrain(again)["a"]).sum((1, 2))
        + Normal(2.0, 1.0).log_prob(target.constrain(again)["m"]).sum((1, 2)) + 18
    )  # fmt: skip
    torch.testing.assert_close((target.log_density(again) - more)[inside], rest)


for _, case in [*globals().items()]:
    if callable(case) and getattr(case, "__name__", "").startswith("test_"):
        case.pytestmark = integration


@pytest.mark.integration
@pytest.mark.slow
def test_stan_says_what_is_wrong_with_program_and_data(program):
    with pytest.raises(ArgumentValueError, match="not a Stan program"):
        Target.from_stan("parameters { real x } model {}")
    with pytest.raises(ArgumentValueError, match=r"of reals or integers; got other types: \['w'\]"):
        Target.from_stan("parameters { real x; } generated quantities { complex w = x; }")
    for wrong, words in [
        ({"J": 8}, r"got none for \['y', 'sigma'\]"),
        (data() | {"J": 8.5}, r"data\['J'\]: expected whole numbers"),
        (data() | {"y": 3.0}, r"data\['y'\]: expected an array of 1 axes"),
        (data() | {"y": [[1, 2], [3]]}, r"data\['y'\]: expected a full array"),
        (data() | {"y": [None] * 8}, r"data\['y'\]: expected a full array of numbers; got null"),
        (data() | {"y": ["a"] * 8}, r"data\['y'\]: expected a full array"),
        (data() | {"sigma": -ERRORS}, "data: refused by the model: .*sigma"),
        (data() | {"J": 9}, "data: refused by the model: "),
        (data() | {"y": [28, 8, math.nan, 7, -1, math.inf, 18, 12]}, r"got NaN in y\[3\] \(log p"),
        (data() | {"y": [28, math.inf, *[0.0] * 5, math.inf]}, r"infinity in y\[2\] and 1 more"),
        (data() | {"sigma": [math.nan, *[1.0] * 7]}, r"refused by the model: .*sigma\[1\] is nan"),
    ]:
        with pytest.raises(ArgumentValueError, match=words):
            Target.from_stan(program, wrong)


def test_what_is_no_stan_program_is_refused_before_stan_is_looked_for(tmp_path):
    with pytest.raises(ArgumentValueError, match=r"expected a \.stan file; got 'model.py'"):
        Target.from_stan("model.py")
    with pytest.raises(ArgumentValueError, match=r"expected a \.stan file; got int"):
        Target.from_stan(3)
    with pytest.raises(DataError, match=r"no\.stan: cannot be read: No such file"):
        Target.from_stan(tmp_path / "no.stan")
    file = tmp_path / "data.json"
    with pytest.raises(DataError, match=r"data\.json: cannot be read"):
        Target.from_stan(SCHOOLS, file)
    file.write_text("{")
    with pytest.raises(DataError, match=r"data\.json: not JSON"):
        Target.from_stan(SCHOOLS, file)
    file.write_text(json.dumps([1]))
    with pytest.raises(ArgumentTypeError, match="data: expected values by name"):
        Target.from_stan(SCHOOLS, file)


def test_a_missing_stan_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpstan", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kullback\[stan\]'"):
        Target.from_stan(SCHOOLS, data())


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0), (2, 3, 4)])
def test_columns_become_arrays_with_the_first_index_fastest(shape):
    arrays = torch.randn(5, *shape, dtype=F64).numpy()
    flat = np.stack([one.ravel(order="F") for one in arrays])
    assert np.array_equal(stan._from_columns(flat, shape), arrays)
