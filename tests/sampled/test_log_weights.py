"""log_mean_exp and effective_sample_size against direct sums and at the edges."""

import math

import pytest
import torch

from kullback.sampled import effective_sample_size, log_mean_exp

WEIGHTS = torch.tensor([[0.2, 1.5, 3.0, 0.01], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)


def test_against_the_direct_sum():
    torch.testing.assert_close(
        log_mean_exp(WEIGHTS.log()), WEIGHTS.mean(-1).log(), rtol=1e-15, atol=1e-15
    )
    torch.testing.assert_close(
        effective_sample_size(WEIGHTS.log()),
        WEIGHTS.sum(-1) ** 2 / (WEIGHTS**2).sum(-1),
        rtol=1e-14,
        atol=0,
    )


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_common_factor_moves_only_the_mean(shift):
    logs = WEIGHTS.log()
    torch.testing.assert_close(log_mean_exp(logs + shift), log_mean_exp(logs) + shift)
    torch.testing.assert_close(
        effective_sample_size(logs + shift), effective_sample_size(logs), rtol=1e-10, atol=0
    )


def test_edges():
    inf = math.inf
    assert log_mean_exp(torch.tensor([-inf, -inf])) == -inf
    assert log_mean_exp(torch.tensor([inf, 0.0])) == inf
    assert torch.isnan(log_mean_exp(torch.tensor([math.nan, 0.0])))
    assert effective_sample_size(torch.tensor([-inf, 0.0, 0.0])).item() == pytest.approx(2.0)
    assert torch.isnan(effective_sample_size(torch.tensor([-inf, -inf])))
    with pytest.raises(ValueError, match="at least one draw"):
        log_mean_exp(torch.empty(3, 0))


def test_gradient_is_the_normalised_weight():
    logs = WEIGHTS.log().requires_grad_()
    log_mean_exp(logs).sum().backward()
    torch.testing.assert_close(logs.grad, WEIGHTS / WEIGHTS.sum(-1, keepdim=True))


def test_the_bound_is_below_in_expectation_by_enumeration():
    """E[log mean of two] over every pair of a small table is below log E[w], above E[log w]."""
    w = torch.tensor([0.1, 1.0, 2.5], dtype=torch.float64)
    pairs = torch.cartesian_prod(w.log(), w.log())
    bound = log_mean_exp(pairs).mean()
    assert w.log().mean() < bound < w.mean().log()
