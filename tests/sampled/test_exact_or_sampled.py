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
    assert kullback.kl is kullback.measure.kl
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


class Positive(d.Normal):
    """A Normal truncated to x > 0, as users write one."""

    support = d.constraints.positive

    def log_prob(self, value):
        return super().log_prob(value) + math.log(2.0)

    def sample(self, sample_shape=()):
        return super().sample(sample_shape).abs()


class Inflated(d.Poisson):
    """Half its mass is at 0, the rest is Poisson."""

    def log_prob(self, value):
        own = super().log_prob(value) - math.log(2.0)
        return torch.where(value == 0, torch.log1p(torch.exp(-self.rate)) - math.log(2.0), own)

    def sample(self, sample_shape=()):
        draws = super().sample(sample_shape)
        return draws * (torch.rand_like(draws) < 0.5)


class Swapped(d.Bernoulli):
    """A Bernoulli of 1 − probs."""

    def log_prob(self, value):
        return super().log_prob(1 - value)

    def sample(self, sample_shape=()):
        return 1 - super().sample(sample_shape)


class Moved(d.MixtureSameFamily):
    """A mixture of half the size."""

    def log_prob(self, value):
        return super().log_prob(2 * value) + math.log(2.0)

    def sample(self, sample_shape=()):
        return super().sample(sample_shape) / 2


def mixture(kind):
    return kind(d.Categorical(torch.ones(2).double()), normal([-1.0, 1.0], [0.5, 0.5]))


COUNTS = torch.arange(60.0, dtype=torch.float64)
OWN = {
    "truncated": (Positive, d.Normal, (0.0, 1.0), (torch.arange(24_000).double() + 0.5) / 2000),
    "zero-inflated": (Inflated, d.Poisson, (3.0,), COUNTS),
    "swapped": (Swapped, d.Bernoulli, (0.2,), COUNTS[:2]),
}


@pytest.mark.parametrize("name", OWN)
def test_a_subclass_with_a_density_of_its_own_has_no_formula_of_its_base(name):
    own, base, numbers, x = OWN[name]
    parameters = [torch.tensor(number).double() for number in numbers]
    p, q = own(*parameters), base(*parameters)
    assert exact.closed_forms.find(p, q) is None
    assert exact.closed_forms.find(q, p) is None
    assert exact.closed_forms.find_entropy(p) is None
    mass = p.log_prob(x).exp() * (x[1] - x[0])
    truths = {
        kl: (mass * (p.log_prob(x) - q.log_prob(x))).sum(),
        cross_entropy: -(mass * q.log_prob(x)).sum(),
        entropy: -(mass * p.log_prob(x)).sum(),
    }
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-4)
    for function, truth in truths.items():
        found = function(p, generator=seeded()) if function is entropy else None
        found = found or function(p, q, generator=seeded())
        assert not found.exact
        same = found.no_error and float(found) == pytest.approx(float(truth), abs=1e-4)
        assert same or within(found, truth)


def test_a_mixture_and_a_product_with_densities_of_their_own_have_no_formula():
    p, q = mixture(Moved), mixture(d.MixtureSameFamily)
    assert exact.supports.line_of(p) is None
    x = torch.linspace(-6, 6, 24_001).double()
    mass = p.log_prob(x).exp() * (x[1] - x[0])
    truth = (mass * (p.log_prob(x) - q.log_prob(x))).sum()
    assert within(kl(p, q, generator=seeded()), truth)
    pair = Positive(torch.zeros(2).double(), torch.ones(2).double()), normal([0.0] * 2, [1.0] * 2)
    both = [d.Independent(one, 1) for one in pair]
    assert exact.closed_forms.find(*both) is None
    assert float(kl(*both, generator=seeded())) == pytest.approx(2 * math.log(2), rel=1e-12)


def test_a_subclass_without_a_density_of_its_own_keeps_the_formula():
    class Named(d.Normal):
        pass

    p = Named(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    assert float(kl(p, normal(1.0))) == 0.5
    assert entropy(p).exact


def test_differences_of_p_and_q_are_exact_in_js_from_draws():
    """Terms ½ (a log a + b log b) against 40 digits, from gaps of 1e-12 to 800; 0 at p = q."""
    import mpmath

    from kullback.sampled.divergences import _js_terms

    with mpmath.workdps(40):
        for gap in (0.0, 1e-12, 1e-6, 0.01, 0.5, 0.999, 1.0, 1.5, 5.0, 40.0, 800.0):
            a = 2 / (1 + mpmath.exp(-mpmath.mpf(gap)))
            truth = (
                (a * mpmath.log(a) + (2 - a) * mpmath.log(2 - a)) / 2 if gap < 80 else mpmath.ln2
            )
            for sign in (1, -1):
                found = float(_js_terms(torch.tensor(sign * gap, dtype=torch.float64)))
                assert found == pytest.approx(float(truth), rel=8 * 2.0**-52)
    laplace = d.Laplace(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    assert float(js(laplace, laplace, generator=seeded())) == 0.0
    far = js(normal(0.0), normal(30.0), draws=1000, generator=seeded())  # an overlap may be missed
    assert far.standard_error == pytest.approx(math.log(2) / 1000)


def test_draws_rounded_at_an_end_give_no_error_bar():
    """½ Beta(0.1, 1) + ½ Beta(1, 0.1): −5.99 ± 0.08 in float64, where 2.5 % of the mass is at 1."""
    ones = torch.tensor([0.1, 1.0]).double()
    p = d.MixtureSameFamily(d.Categorical(torch.ones(2).double()), d.Beta(ones, ones.flip(0)))
    found = entropy(p, generator=seeded())
    assert "rounded near an end" in found.no_error
    few, more = (torch.tensor(b).double() for b in (0.05, 0.1))
    ends = d.Beta(torch.ones_like(few), few), d.Beta(torch.ones_like(more), more)
    assert "rounded near an end" in js(*ends, generator=seeded()).no_error
    plain = d.MixtureSameFamily(d.Categorical(torch.ones(2).double()), d.Beta(ones + 1, ones + 1))
    assert not entropy(plain, generator=seeded()).no_error


def test_uniforms_as_wide_as_the_type_reaches():
    wide, wider = (
        d.Uniform(torch.tensor(-w, dtype=torch.float64), torch.tensor(w, dtype=torch.float64))
        for w in (1e308, 1.7e308)
    )
    assert float(kl(wide, wider)) == pytest.approx(math.log(1.7), rel=1e-14)
    assert float(entropy(wider)) == pytest.approx(math.log(1.7e308) + math.log(2), rel=1e-14)
    with pytest.raises(ValueError, match="draws lie in its support"):
        js(wide, wider)


@pytest.mark.parametrize("function", [kl, js, entropy])
def test_draws_too_coarse_for_their_law_give_no_error_bar(function):
    """float32 at 1e7 has steps of 1, where the normals have an sd of 1."""

    def measured(loc, dtype):
        locs = torch.tensor([loc, loc + 3], dtype=dtype)
        p = d.MixtureSameFamily(d.Categorical(torch.ones(2, dtype=dtype)), d.Normal(locs, 1.0))
        q = d.Normal(locs[0] + 1.5, torch.tensor(1.0, dtype=dtype))
        return function(*((p,) if function is entropy else (p, q)), generator=seeded())

    assert "rounded so coarsely" in measured(1e7, torch.float32).no_error
    assert not measured(1e3, torch.float32).no_error
    assert not measured(1e7, torch.float64).no_error
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="float32 or float64 parameters for draws"):
            measured(0.0, dtype)


def test_nan_in_a_table_of_a_distribution_is_nan():
    """Sums took it for an outcome without mass: KL was 1."""
    for p in (
        d.Categorical(logits=torch.tensor([math.nan, 1.0]), validate_args=False),
        d.Categorical(probs=torch.tensor([math.nan, 1.0]), validate_args=False),
        d.Bernoulli(logits=torch.tensor(math.nan), validate_args=False),
    ):
        q = d.Bernoulli(torch.tensor(0.5)) if isinstance(p, d.Bernoulli) else None
        q = q or d.Categorical(torch.ones(2))
        for found in (kl(p, q), kl(q, p), entropy(p)):
            assert bool(found.value.isnan())
