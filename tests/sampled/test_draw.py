"""sampled.kl: closed forms within 4.5 standard errors, support, batches, randomness."""

import math

import pytest
import torch
from torch.distributions import (
    Binomial,
    Categorical,
    Dirichlet,
    Exponential,
    Independent,
    Laplace,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    TransformedDistribution,
    Uniform,
    kl_divergence,
)
from torch.distributions.transforms import ExpTransform

from kullback.sampled import kl
from kullback.sampled.distributions import draw_from, sampler_fault


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


ONE = torch.tensor(1.0, dtype=torch.float64)
PAIRS = {
    "normal": (Normal(0 * ONE, ONE), Normal(0.5 * ONE, 1.3 * ONE)),
    "exponential": (Exponential(2 * ONE), Exponential(1.5 * ONE)),
    "dirichlet": (Dirichlet(torch.tensor([2.0, 3, 4])), Dirichlet(torch.tensor([2.5, 3, 3]))),
    "many dimensions": (
        MultivariateNormal(torch.zeros(3), torch.eye(3)),
        MultivariateNormal(0.2 * torch.ones(3), 1.2 * torch.eye(3)),
    ),
    "independent": (
        Independent(Normal(torch.zeros(4), torch.ones(4)), 1),
        Independent(Normal(0.1 * torch.ones(4), torch.ones(4)), 1),
    ),
    "table": (
        Categorical(logits=torch.tensor([0.0, 1.0, -1.0])),
        Categorical(logits=torch.zeros(3)),
    ),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("estimator", ["k1", "k3", "best"])
@pytest.mark.parametrize("name", PAIRS)
def test_against_closed_forms(name, estimator):
    p, q = PAIRS[name]
    found = kl(p, q, draws=20_000, estimator=estimator, generator=seeded())
    exact = kl_divergence(p, q).item()
    assert abs(found.value - exact) < 4.5 * found.standard_error + 1e-9
    assert found.draws == 20_000
    assert 0 <= found.standard_error < 0.2 * (exact + 0.2)


def test_where_no_closed_form_is_known():
    """exp of a Laplace against exp of a normal: KL is that of the two inside."""
    p = TransformedDistribution(Laplace(0 * ONE, ONE), [ExpTransform()])
    q = TransformedDistribution(Normal(0 * ONE, 1.5 * ONE), [ExpTransform()])
    exact = math.log(1.5) + 0.5 * math.log(2 * math.pi) + 2 / (2 * 1.5**2) - 1 - math.log(2)
    found = kl(p, q, draws=50_000, generator=seeded())
    assert abs(found.value - exact) < 4.5 * found.standard_error


def test_a_draw_outside_the_support_is_infinite():
    found = kl(Normal(0 * ONE, ONE), Exponential(ONE), draws=100, generator=seeded())
    assert (found.value, found.standard_error) == (math.inf, math.inf)
    found = kl(Uniform(0.0, 2.0), Uniform(0.0, 1.0), draws=100, estimator="k1")
    assert found.value == math.inf
    inside = kl(Uniform(0 * ONE, ONE), Uniform(0 * ONE, 2 * ONE), draws=100, estimator="k1")
    assert inside.value == pytest.approx(math.log(2.0), rel=1e-12)


def test_batches_broadcast():
    p = Normal(torch.zeros(3, 1), torch.ones(3, 1))
    q = Normal(torch.tensor([0.1, 0.5]), torch.ones(2))
    found = kl(p, q, draws=4000, generator=seeded())
    assert found.value.shape == (3, 2)
    exact = torch.tensor([0.005, 0.125], dtype=torch.float64)
    assert ((found.value - exact).abs() < 4.5 * found.standard_error).all()


def test_many_pieces_are_one_estimate():
    p = Independent(Normal(torch.zeros(1000), torch.ones(1000)), 1)
    q = Independent(Normal(torch.full((1000,), 0.02), torch.ones(1000)), 1)
    found = kl(p, q, draws=3000, estimator="k1", generator=seeded())
    assert found.draws == 3000
    assert abs(found.value - 0.2) < 4.5 * found.standard_error


def test_randomness_comes_from_the_generator_alone():
    p, q = PAIRS["normal"]
    before = torch.get_rng_state()
    one, two = (kl(p, q, draws=50, generator=seeded(7)) for _ in range(2))
    assert one.value == two.value
    assert kl(p, q, draws=50, generator=seeded(8)).value != one.value
    assert torch.equal(torch.get_rng_state(), before)
    generator = seeded(7)
    assert kl(p, q, draws=50, generator=generator).value == one.value
    assert kl(p, q, draws=50, generator=generator).value != one.value


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: kl(0.5, Normal(0.0, 1.0)), TypeError, "p: expected Distribution; got float"),
        (lambda: kl(*PAIRS["normal"], draws=3), ValueError, "draws: expected at least 4; got 3"),
        (lambda: kl(*PAIRS["normal"], draws=1e3), TypeError, "draws: expected int; got float"),
        (
            lambda: kl(Normal(0.0, 1.0), PAIRS["dirichlet"][0]),
            ValueError,
            "q: expected the event shape of p",
        ),
        (lambda: kl(*PAIRS["normal"], estimator="k9"), ValueError, "estimator: expected"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_nothing_is_drawn_where_torchs_sampler_is_wrong():
    """LKJCholesky of 3 dimensions and more, alone and inside; its squared rows are off already."""
    p = torch.distributions.LKJCholesky(3, torch.tensor(1.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = p.sample((20_000,))[:, 2, :2].square().sum(-1)
    assert abs(rows.mean().item() - 0.5) > 0.05  # Beta(1, 1) is right, Beta(3/2, 1) is drawn
    inside = torch.distributions.Independent(p.expand((2,)), 1)
    for wrong in (p, inside):
        assert sampler_fault(wrong) is not None
        with pytest.raises(ValueError, match="sampler is right"):
            draw_from(wrong, 10)
    with pytest.raises(ValueError, match="closed_forms"):
        kl(p, torch.distributions.LKJCholesky(3, torch.tensor(2.0)))
    assert draw_from(torch.distributions.LKJCholesky(2, torch.tensor(1.0)), 10).shape[0] == 10


@pytest.mark.parametrize("law", [Poisson, Binomial, NegativeBinomial])
def test_counts_beyond_what_torch_draws_are_refused(law):
    """Above 2^40: Poisson(1e15) has an entropy of 18.69, and its draws gave 19.84 ± 0.015."""
    many, half = torch.tensor(1e15).double(), torch.tensor(0.5).double()
    p = law(many) if law is Poisson else law(many, probs=half)
    with pytest.raises(ValueError, match="where torch draws from the wrong law"):
        draw_from(p, 10)
    with pytest.raises(ValueError, match="Normal of their mean and variance"):
        kl(Independent(p.expand((2,)), 1), Independent(p.expand((2,)), 1))
    few = law(half) if law is Poisson else law(torch.tensor(3.0).double(), probs=half)
    assert sampler_fault(few) is None
