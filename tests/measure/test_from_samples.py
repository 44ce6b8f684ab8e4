"""KL from log-probabilities and from samples: NumPy and lists give what tensors give."""

import numpy as np
import pytest
import torch

import kullback as kb
from kullback import sampled

X = np.random.default_rng(0).normal(size=500)
LOGS = -0.5 * X**2, -0.5 * (X - 0.5) ** 2
KINDS = {"numpy": np.array, "list": list, "tensor": torch.tensor}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"estimator": "best", "full_support": True}])
def test_log_probabilities_of_every_kind(kind, options):
    truth = sampled.log_ratio(*map(torch.tensor, LOGS), **options)
    found = kb.kl_from_log_probs(*map(KINDS[kind], LOGS), **options)
    assert (found.value, found.standard_error) == (truth.value, truth.standard_error)
    assert found.estimate == truth
    assert not found.exact
    assert found.method.endswith("500 draws")


def test_options_take_arrays():
    weights = np.zeros(500)
    found = kb.kl_from_log_probs(*LOGS, log_weights=weights, ratio_mean=1.0, estimator="k3")
    truth = sampled.log_ratio(
        *map(torch.tensor, LOGS), log_weights=torch.zeros(500), ratio_mean=1.0, estimator="k3"
    )
    assert found.value == pytest.approx(truth.value, rel=1e-12)


Y = 1 + np.random.default_rng(1).normal(size=500)


@pytest.fixture(scope="module")
def two_samples():
    return sampled.kl_from_draws(*(torch.tensor(each)[:, None] for each in (X, Y)))


@pytest.mark.sweep(3)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_every_kind(kind, two_samples):
    found = kb.kl_from_draws(KINDS[kind](X), KINDS[kind](Y))
    assert found.value == two_samples.value
    columns = kb.kl_from_draws(KINDS[kind](X[:, None]), KINDS[kind](Y[:, None]))
    assert columns.value == two_samples.value


def test_wrong_inputs():
    with pytest.raises(TypeError, match="log_p: expected numbers; got"):
        kb.kl_from_log_probs(["a"], [1.0])
    with pytest.raises(ValueError, match="log_q"):
        kb.kl_from_log_probs([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match=r"y: expected samples \[n, d\] or \[n\]"):
        kb.kl_from_draws(X, None)
