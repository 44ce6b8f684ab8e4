"""What follows from the draws: predictions, log likelihoods, and the tree for ArviZ."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, constraints

from kullback.core import ArgumentTypeError, ArgumentValueError
from kullback.variational import Target, fit, resample, to_arviz

F64 = torch.float64
X = torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=F64) * 2 + 1


@pytest.fixture(scope="module")
def found():
    names = {"mu": (), "sigma": constraints.positive}
    prior = lambda mu, sigma: -mu * mu / 50 - sigma / 5  # noqa: E731
    target = Target.of(
        lambda x, mu, sigma: Normal(mu, sigma).log_prob(x), names, data=X, log_prior=prior
    )
    return fit(target, progress=False)


def test_new_data_have_the_predictive_mean_and_variance(found):
    new = found.predict(lambda mu, sigma: mu + sigma * torch.randn(7, dtype=F64))["obs"]
    assert new.shape == (4000, 7)
    mu, sigma = found.posterior["mu"], found.posterior["sigma"]
    apart = (new - mu[:, None]) / sigma[:, None]
    assert abs(float(apart.mean())) < 4.5 / math.sqrt(apart.numel())
    assert abs(float(apart.var()) - 1) < 4.5 * math.sqrt(2 / apart.numel())
    assert not bool((apart[0] == apart[1]).any())  # each draw has its own random numbers


def test_predictions_repeat_with_their_seed_and_leave_the_global_one(found):
    def new(mu, sigma):
        return {"y": mu + sigma * torch.randn(2, dtype=F64)}

    before = torch.random.get_rng_state()
    first, again = found.predict(new)["y"], found.predict(new)["y"]
    assert torch.random.get_rng_state().equal(before)
    other = found.predict(new, generator=torch.Generator().manual_seed(5))["y"]
    assert first.equal(again)
    assert not first.equal(other)


def test_what_vmap_cannot_follow_is_evaluated_draw_by_draw(found):
    def sign(mu, sigma):
        return {"above": torch.tensor(1.0 if mu > 1 else 0.0), "new": Normal(mu, 1.0).sample((2,))}

    draws = {name: value[:50] for name, value in found.posterior.items()}
    values = found.predict(sign, draws=draws)
    assert values["above"].equal((draws["mu"] > 1).float())
    assert values["new"].shape == (50, 2)


def test_a_function_of_other_names_is_refused(found):
    with pytest.raises(ArgumentTypeError, match=r"\(mu=, sigma=\); got one of \(mu\). Try: take"):
        found.predict(lambda mu: mu)
    assert found.predict(lambda mu, **rest: mu)["obs"].equal(found.posterior["mu"])


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dims": {"tau": ["x"]}}, r"dims: expected names among .*; got 'tau'"),
        ({"dims": {"b": "x"}}, r"dims\['b'\]: expected 1 names of axes, in a list; got 'x'"),
        ({"dims": {"b": ["x", "y"]}}, r"Try: \{\"b\": \['axis 1'\]\}"),
        ({"dims": {"b": ["x"]}, "coords": {"x": [1, 2]}}, r"coords\['x'\]: expected 3 labels"),
    ],
)
def test_axes_that_fit_no_value_are_refused(options, words):
    pytest.importorskip("arviz_base")
    small = fit(lambda b: -0.5 * b.square().sum(), {"b": (3,)}, progress=False)
    with pytest.raises(ArgumentValueError, match=words):
        to_arviz(small, **options)


def test_predict_without_a_function_says_what_is_missing(found):
    with pytest.raises(
        ArgumentValueError, match="function: expected one, for a target that cannot"
    ):
        found.predict()
    with pytest.raises(
        ArgumentValueError, match="function: expected a function of one draw; got int"
    ):
        found.predict(3)


def test_the_rows_of_a_target_are_its_log_likelihood(found):
    pytest.importorskip("arviz_base")
    tree = to_arviz(found, observed_data={"x": X})
    assert sorted(tree.children) == ["log_likelihood", "observed_data", "posterior", "sample_stats"]
    mu, sigma = (found.posterior[name][:, None] for name in ("mu", "sigma"))
    wanted = Normal(mu, sigma).log_prob(X)
    given = torch.tensor(tree["log_likelihood"]["x"].to_numpy()[0])
    torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


def test_loo_is_the_exact_leave_one_out_of_a_normal():
    loo = pytest.importorskip("arviz_stats.loo").loo

    def log_density(mu):  # sd 1, flat prior: x_i given the others is normal(mean, 1 + 1/29)
        return Normal(mu, 1.0).log_prob(X).sum()

    tree = to_arviz(
        fit(log_density, {"mu": ()}, progress=False),
        log_likelihood=lambda mu: Normal(mu, 1.0).log_prob(X),
    )
    others = (X.sum() - X) / 29
    exact = float(Normal(others, math.sqrt(1 + 1 / 29)).log_prob(X).sum())
    spread = float(
        ((X - X.mean()).square() / 30).sum().sqrt()
    )  # of log p of the rows, per sd of mu
    assert abs(loo(tree).elpd - exact) < 4.5 * spread * 2 / math.sqrt(4000)


def test_groups_can_be_given_or_left_out(found):
    pytest.importorskip("arviz_base")
    judged = found.diagnosis
    draws = resample(found, 500, judged)
    tree = to_arviz(
        found,
        draws,
        log_likelihood=False,
        posterior_predictive={"y": np.zeros((500, 3))},
        dims={"y": ["row"]},
        coords={"row": [*"abc"]},
    )
    assert sorted(tree.children) == ["posterior", "posterior_predictive"]
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "row")
    with pytest.raises(
        ArgumentValueError, match=r"log_likelihood: y: expected an array \[4000, …\]"
    ):
        to_arviz(found, log_likelihood={"y": np.zeros((5, 3))})
    with pytest.raises(ArgumentValueError, match="posterior_predictive: expected a function"):
        to_arviz(found, posterior_predictive="y_rep")
