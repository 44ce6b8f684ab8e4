"""Exact where it can be, sampled where not: which way was taken, and are the numbers true?"""

import math

import pytest
import torch
from torch import distributions as d

import kullback
from kullback import exact
from kullback.core import ArgumentTypeError, ArgumentValueError, Estimate
from kullback.sampled.divergences import cross_entropy, entropy, js, kl


def seeded():
    return torch.Generator().manual_seed(0)


def normal(loc, scale=1.0):
    return d.Normal(torch.tensor(loc).double(), torch.tensor(scale).double())


def within(measured, truth, z=4.5):
    estimate = measured.estimate
    gap = torch.as_tensor(estimate.value) - torch.as_tensor(truth)
    return bool((gap.abs() <= z * torch.as_tensor(estimate.standard_error)).all())


def test_the_top_of_the_package_has_it():
    assert kullback.kl is kl
    assert "kl" in dir(kullback)


def test_tables_are_summed_and_keep_their_gradient():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]], requires_grad=True)
    q = torch.tensor([0.25, 0.75])
    found = kl(p, q)
    assert (found.exact, found.method) == (True, "sum over the table")
    assert torch.equal(found.value, exact.kl(p, q))
    found.value.sum().backward()
    assert p.grad is not None
    assert float(kl(q, q)) == 0.0
    assert str(kl(p, q)).endswith("(sum over the table)")


def test_a_closed_form_is_used_and_named():
    loc = torch.tensor(1.0, requires_grad=True)
    found = kl(d.Normal(loc, 1.0), d.Normal(0.0, 1.0))
    assert (found.exact, found.method) == (True, "closed form: Normal‖Normal")
    found.value.backward()
    assert loc.grad == 1.0


def test_no_closed_form_is_an_estimate_that_says_so():
    p, q = normal(0.0), d.StudentT(torch.tensor(3.0).double())
    found = kl(p, q, draws=4000, generator=seeded())
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    truth = torch.trapezoid(p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x)), x)
    assert isinstance(found.estimate, Estimate)
    assert found.method == "sampled: k1, as q/p has a heavy tail, 4,000 draws"
    assert within(found, truth)
    assert within(cross_entropy(p, q, generator=seeded()), truth + p.entropy())


@pytest.mark.parametrize(
    ("p", "q", "truth"),
    [
        (d.Uniform(0.0, 1.0), d.Uniform(0.5, 1.5), math.log(2) / 2),
        (d.Uniform(0.0, 1.0), d.Uniform(2.0, 3.0), math.log(2)),
        (normal(0.0), normal(0.0), 0.0),
    ],
)
def test_js_from_draws_whatever_the_supports(p, q, truth):
    found = js(p, q, draws=4000, generator=seeded())
    assert within(found, truth) or abs(float(found) - truth) < 1e-6  # float32 draws, no scatter
    assert 0 <= float(found) <= math.log(2) + 1e-6


def test_js_in_batches_against_enumeration():
    p, q = d.Poisson(torch.tensor([1.0, 4.0])), d.Poisson(torch.tensor(2.0))
    found = js(p, q)
    x = torch.arange(60.0)[:, None]
    tables = p.log_prob(x).exp().T, q.log_prob(x).exp().T.expand(2, -1)
    assert found.exact and found.method.startswith("sum over 0 … ")
    torch.testing.assert_close(found.value, exact.js(*tables), rtol=1e-5, atol=0)
    assert torch.equal(js(d.Bernoulli(0.5), d.Bernoulli(0.5)).value, torch.tensor(0.0))


def test_entropy_without_a_closed_form_against_enumeration():
    p, q, x = d.Poisson(3.0), d.Poisson(4.0), torch.arange(60.0)
    tables = p.log_prob(x).double().exp(), q.log_prob(x).double().exp()
    for found, truth in (
        (entropy(p), exact.entropy(tables[0])),
        (cross_entropy(p, q), exact.cross_entropy(*tables)),
    ):
        assert found.exact and found.value.dtype == torch.float32
        assert float(found) == pytest.approx(float(truth), rel=1e-6)
    assert entropy(normal(0.0)).method == "closed form: Normal"


def test_infinities_are_kept():
    assert float(kl(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))) == math.inf
    mixture = d.MixtureSameFamily(d.Categorical(torch.ones(2)), d.Normal(torch.zeros(2), 1.0))
    found = cross_entropy(mixture, d.Exponential(1.0), generator=seeded())
    assert (float(found), found.exact) == (math.inf, True)
    assert found.method == "infinite: p has mass outside q's support"


@pytest.mark.parametrize(
    ("p", "q", "error"),
    [
        (torch.ones(1), d.Normal(0.0, 1.0), ArgumentTypeError),
        (d.Normal(0.0, 1.0), torch.ones(1), ArgumentTypeError),
        (0.5, 0.5, ArgumentTypeError),
        (d.Normal(0.0, 1.0), d.Poisson(1.0), ArgumentValueError),
        (d.Normal(0.0, 1.0), d.Dirichlet(torch.ones(2)), ArgumentValueError),
        (torch.tensor([0.5, 0.4]), torch.tensor([0.5, 0.5]), ArgumentValueError),
    ],
)
@pytest.mark.parametrize("quantity", [kl, js, cross_entropy])
def test_what_does_not_fit_is_refused(quantity, p, q, error):
    with pytest.raises(error):
        quantity(p, q)


def test_too_few_draws_are_refused():
    with pytest.raises(ArgumentValueError, match="draws: expected at least 4"):
        js(normal(0.0), normal(1.0), draws=3)


def test_k1_is_not_doubted_where_q_is_known_to_reach_beyond_p():
    """Uniform inside a von Mises distribution of unknown cdf: KL by quadrature."""
    low, high, one = torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64)
    p, q = d.Uniform(low, high), d.VonMises(0 * one, one)
    x = torch.linspace(1, 4, 20001, dtype=torch.float64)
    truth = float(torch.trapezoid(-math.log(3) - q.log_prob(x), x) / 3)
    found = kl(p, q, generator=seeded()).estimate
    assert abs(found.value - truth) < 4.5 * found.standard_error
    assert found.bias == "none" and not found.warnings
    assert math.isinf(float(kl(d.Normal(0.0, 1.0), q)))
