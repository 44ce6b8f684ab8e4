"""Averages of weights and their bounds: direct sums, enumeration, and the edges."""

import math

import pytest
import torch

from kullback.sampled import (
    effective_sample_size,
    importance_bound,
    log_evidence,
    log_mean_exp,
)

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


def direct(w):
    return w.mean(-1).log(), w.std(-1) / w.mean(-1) / math.sqrt(w.shape[-1])


@pytest.mark.parametrize("shift", [0.0, 800.0, -800.0])
def test_evidence_is_the_direct_mean_and_its_delta_method_error(shift):
    w = torch.rand(3, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    found = log_evidence(w.log() + shift)
    value, error = direct(w)
    torch.testing.assert_close(found.value, value + shift, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.standard_error, error, rtol=1e-11, atol=0)
    assert found.bias == "low"
    assert log_evidence(w[0].log()).value == pytest.approx(value[0].item(), rel=1e-13)


def test_evidence_is_low_in_expectation_by_enumeration():
    """Its bias over every triple of a small table is that of the log of the mean, exactly."""
    w = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    triples = torch.cartesian_prod(w, w, w)
    found = log_evidence(triples.log())
    exact = triples.mean(-1).log().mean().item()
    assert found.value.mean().item() == pytest.approx(exact, abs=1e-14)
    assert exact < 0


def test_evidence_edges():
    inf = math.inf
    zero = log_evidence(torch.full((30,), -inf))
    assert (zero.value, zero.standard_error, zero.warnings) == (-inf, inf, ())
    assert math.isnan(log_evidence(torch.tensor([0.0, math.nan])).value)
    equal = log_evidence(torch.full((30,), 2.0))
    assert equal.value == pytest.approx(2.0, rel=1e-15)
    assert (equal.standard_error, equal.warnings) == (0.0, ())
    heavy = log_evidence(5 * torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    assert heavy.k_hat > 0.7
    assert "k-hat" in " ".join([*heavy.warnings, heavy.no_error])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_jackknife_against_leaving_one_out_by_hand(size):
    logs = torch.randn(5, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    w = logs.exp()
    whole = w.mean(-1).log()
    others = (w.sum(-1, keepdim=True) - w) / (size - 1)
    by_hand = size * whole - (size - 1) * others.log().mean(-1)
    found = importance_bound(logs, jackknife=True)
    assert found.value == pytest.approx(by_hand.mean().item(), rel=1e-12, abs=1e-13)
    assert found.standard_error == pytest.approx(by_hand.std().item() / math.sqrt(5), rel=1e-11)
    bound = importance_bound(logs)
    assert bound.value == pytest.approx(whole.mean().item(), rel=1e-13)
    assert (bound.bias, found.bias) == ("low", "unknown")


def test_the_jackknife_takes_the_first_order_out_by_enumeration():
    """Over a small table the bias of the bound falls like 1/K, that of the jackknife like 1/K²."""
    w = torch.tensor([0.6, 1.4], dtype=torch.float64).log()
    bias = {}
    for size in (4, 8):
        every = torch.cartesian_prod(*[w] * size)
        for jackknife in (False, True):
            bias[size, jackknife] = importance_bound(every, jackknife=jackknife).value
    assert bias[4, False] / bias[8, False] == pytest.approx(2.0, rel=0.06)
    assert bias[4, True] / bias[8, True] == pytest.approx(4.0, rel=0.15)
    assert abs(bias[8, True]) < 0.05 * abs(bias[8, False])


def test_the_jackknife_where_one_weight_is_all():
    logs = torch.tensor([[0.0, -2000.0, -2000.0], [1.0, -math.inf, -math.inf]]).double()
    found = importance_bound(logs, jackknife=True)
    # leaving the only weight out leaves e^-2000, and then nothing: log 0
    assert found.value == math.inf
    assert importance_bound(logs).value == pytest.approx(0.5 - math.log(3.0))
    nothing = torch.full((2, 3), -math.inf)
    assert importance_bound(nothing, jackknife=True).value == -math.inf


def test_a_jackknife_that_cannot_hold_says_so():
    logs = 4 * torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    words = " ".join(importance_bound(logs, jackknife=True).warnings)
    assert "the jackknife fails" in words
    light = 0.3 * torch.randn(400, 32, generator=torch.Generator().manual_seed(0))
    assert importance_bound(light, jackknife=True).warnings == ()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: log_evidence([0.0]), TypeError, "log_weights: expected Tensor; got list"),
        (lambda: log_evidence(torch.zeros(1)), ValueError, "at least 2 draws; got 1"),
        (lambda: log_evidence(torch.zeros(4).long()), ValueError, "floating-point"),
        (lambda: importance_bound(torch.zeros(4)), ValueError, r"\[\*batch, draws, K\]"),
        (lambda: importance_bound(torch.zeros(1, 4)), ValueError, "at least 2 repeats"),
        (lambda: importance_bound(torch.zeros(4, 1), jackknife=True), ValueError, "K ≥ 2"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


TOP_P = torch.tensor([0.95, 0.95, 0.85, 0.85], dtype=torch.float64).log().repeat(250)


def test_an_asserted_mean_of_one_is_tested():
    """Weights of mean 0.9, as truncated sampling logs them: the effective sample size sees nothing.

    The log evidence of weights that lack a constant is any number, and is not tested.
    """
    assert effective_sample_size(TOP_P) > 995
    assert log_evidence(TOP_P).value == pytest.approx(math.log(0.9))
    for call in (log_evidence, lambda w, **names: importance_bound(w.reshape(100, 10), **names)):
        with pytest.raises(ValueError, match=r"log_weights: expected mean of the weights = 1; got"):
            call(TOP_P, normalised=True)
        call(TOP_P)
        call(TOP_P - math.log(0.9), normalised=True)


def test_no_error_bar_where_no_mean_can_be_inferred():
    """Pareto weights of index 1.5: the truth is +inf, whatever is drawn."""
    u = torch.rand(5, 3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = log_evidence(-1.5 * u.log())
    assert found.standard_error.isnan().all()
    assert "no mean can be inferred" in found.no_error


def test_the_rounding_of_the_weights_is_in_the_interval():
    logs = 0.3 * torch.randn(2000, generator=torch.Generator().manual_seed(0)) - 300.0
    exact = log_evidence(logs.double() + 0.111).value
    coarse = log_evidence((logs.double() + 0.111).bfloat16())
    assert abs(coarse.value - exact) <= coarse.rounding
    assert log_evidence(logs.double().sin()).rounding == 0
