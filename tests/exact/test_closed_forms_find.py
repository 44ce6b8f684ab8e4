"""Asking for a closed form: `find` answers without an error, and knows what users registered."""

import subprocess
import sys

import pytest
import torch
import torch.distributions as D
from torch.distributions import kl as registered

from kullback.exact import closed_forms


def t(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


NORMAL, STUDENT = D.Normal(t(0.0), t(1.0)), D.StudentT(t(3.0))
MIXTURE = D.MixtureSameFamily(D.Categorical(t(0.5, 0.5)), D.Normal(t(0.0, 1.0), t(1.0, 1.0)))
NO_FORM = [
    (NORMAL, STUDENT),
    (MIXTURE, MIXTURE),
    (D.Independent(STUDENT.expand((2,)), 1), D.Independent(STUDENT.expand((2,)), 1)),
    (D.Weibull(t(1.0), t(2.0)), D.LogNormal(t(0.0), t(1.0))),
    (
        D.TransformedDistribution(NORMAL, D.AbsTransform()),
        D.TransformedDistribution(NORMAL, D.AbsTransform()),
    ),
    (
        D.TransformedDistribution(STUDENT, D.ExpTransform()),
        D.TransformedDistribution(STUDENT, D.ExpTransform()),
    ),
    (D.NegativeBinomial(t(3.0), t(0.5)), D.NegativeBinomial(t(4.0), t(0.5))),
    (D.Binomial(3, t(0.5)), D.Binomial(2_000_000, t(0.5))),
    (
        D.Independent(D.Laplace(t(0.0, 0.0), t(1.0, 1.0)), 1),
        D.MultivariateNormal(t(0.0, 0.0), torch.eye(2).double()),
    ),
]


@pytest.mark.parametrize(("p", "q"), NO_FORM)
def test_find_is_none_exactly_where_kl_refuses(p, q):
    assert closed_forms.find(p, q) is None
    with pytest.raises((TypeError, ValueError)):
        closed_forms.kl(p, q)


def test_find_gives_the_pair_that_kl_uses():
    log = D.LogNormal(t(0.0), t(1.0)), D.LogNormal(t(1.0), t(1.0))
    for p, q in ((NORMAL, D.Normal(t(1.0), t(1.0))), log):
        assert closed_forms.find(p, q).function(p, q) == closed_forms.kl(p, q) == 0.5


def test_entropies_are_asked_for_in_the_same_way():
    none = (D.Poisson(t(1.0)), MIXTURE, D.NegativeBinomial(t(3.0), t(0.5)))
    for p in (*none, D.Independent(D.Poisson(t(1.0, 2.0)), 1)):
        assert closed_forms.find_entropy(p) is None
    vector = D.Independent(NORMAL.expand((2,)), 1)
    for p in (NORMAL, vector, D.LogNormal(t(0.0), t(1.0)), D.VonMises(t(0.0), t(1.0))):
        assert closed_forms.find_entropy(p).function(p) == closed_forms.entropy(p)


class Own(D.Normal):
    """A user's family."""


@pytest.fixture
def registry():
    before = dict(registered._KL_REGISTRY)
    yield
    registered._KL_REGISTRY.clear()
    registered._KL_REGISTRY.update(before)
    registered._KL_MEMOIZE.clear()


def test_pairs_that_users_registered_are_used_where_ours_are_not_nearer(registry):
    own = Own(t(0.0), t(1.0))
    assert closed_forms.kl(own, NORMAL) == 0  # our Normal pair

    @D.register_kl(Own, D.Normal)
    def mine(p, q):
        return torch.tensor(7.0)

    @D.register_kl(D.Normal, D.Normal)
    def shadow(p, q):
        return torch.tensor(8.0)

    @D.register_kl(D.StudentT, D.Normal)
    def other(p, q):
        return torch.tensor(9.0)

    assert closed_forms.kl(own, NORMAL) == 7
    assert "registered by" in closed_forms.find(own, NORMAL).source
    assert "mine" in closed_forms.find(own, NORMAL).source
    assert closed_forms.kl(NORMAL, NORMAL) == 0  # as near as ours: ours
    assert closed_forms.kl(STUDENT, NORMAL) == 9
    both = [D.Independent(d.expand((2,)), 1) for d in (STUDENT, NORMAL)]
    assert closed_forms.find(*both) is not None


def torch_answer(p, q):
    """What torch answers, and nothing where it knows no formula."""
    try:
        return D.kl_divergence(p, q)
    except NotImplementedError:
        return None


def test_registered_with_torch_every_pair_is_ours(registry):
    """Every two of the families here: torch gives `closed_forms.kl`, bit for bit, or no answer."""
    closed_forms.register_with_torch()
    assert all(
        registered._KL_REGISTRY[pair].__module__ == closed_forms.__name__
        for pair in closed_forms.PAIRS
    )
    once = dict(registered._KL_REGISTRY)
    closed_forms.register_with_torch()
    assert once == registered._KL_REGISTRY
    scalars = [
        NORMAL,
        STUDENT,
        Own(t(0.5), t(1.0)),
        D.LogNormal(t(0.0), t(1.0)),
        D.HalfNormal(t(2.0)),
        D.Pareto(t(0.5), t(3.0)),
        D.Gumbel(t(0.0), t(1.0)),
        D.Weibull(t(1.0), t(2.0)),
        D.Chi2(t(3.0)),
        D.Exponential(t(1.0)),
        D.VonMises(t(0.0), t(1.0)),
        D.Poisson(t(2.0)),
        D.Binomial(5, t(0.3)),
        D.Binomial(4, t(0.3)),
        D.Bernoulli(t(0.3)),
        D.Geometric(t(0.3)),
        D.Uniform(t(0.0), t(1.0)),
        D.Cauchy(t(0.0), t(1.0)),
        D.RelaxedBernoulli(t(1.0), t(0.3)),
    ]
    vectors = [D.Independent(p.expand((2,)), 1) for p in scalars]
    vectors += [D.MultivariateNormal(t(0.0, 1.0), torch.eye(2, dtype=torch.float64))]
    answers = 0
    for same in (scalars, vectors):
        for p in same:
            for q in same:
                found, answer = closed_forms.find(p, q), torch_answer(p, q)
                assert (answer is None) == (found is None), (p, q)
                assert found is None or bool((answer == closed_forms.kl(p, q)).all())
                answers += found is not None
    assert answers > 100


def test_registering_mends_what_torch_answers_and_keeps_what_users_add(registry):
    near = [D.Gamma(torch.tensor(a), torch.tensor(1.0)) for a in (1e6, 1e6 + 1)]
    exact = 0.5e-6  # half the squared step times trigamma(1e6), which is 1e-6 to 6 digits
    assert D.kl_divergence(*near) < -0.1  # torch's own, in float32
    closed_forms.register_with_torch()
    assert D.kl_divergence(*near).item() == pytest.approx(exact, rel=1e-5)
    with pytest.raises(NotImplementedError):
        D.kl_divergence(D.HalfNormal(t(1.0)), D.LogNormal(t(0.0), t(1.0)))
    with pytest.raises(ValueError, match="the same event shape"):
        D.kl_divergence(*(D.MultivariateNormal(torch.zeros(n), torch.eye(n)) for n in (2, 3)))

    @D.register_kl(Own, D.Normal)
    def mine(p, q):
        return torch.tensor(7.0)

    own = Own(t(0.0), t(1.0))
    assert D.kl_divergence(own, NORMAL) == closed_forms.kl(own, NORMAL) == 7


class Tilted(D.ExponentialFamily):
    """An exponential family that only torch's own general formula knows: exponentials of a rate."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, rate):
        self.rate = rate
        super().__init__(rate.shape)

    def expand(self, shape):
        return Tilted(self.rate.expand(shape))

    @property
    def _natural_params(self):
        return (-self.rate,)

    def _log_normalizer(self, x):
        return -torch.log(-x)


def test_pairs_that_only_torch_knows_are_answered_as_before(registry):
    p, q = Tilted(t(1.0, 2.0)), Tilted(t(2.0, 2.0))
    wrapped = [D.Independent(d, 1) for d in (p, q)]
    before = D.kl_divergence(p, q), D.kl_divergence(*wrapped)
    closed_forms.register_with_torch()
    after = D.kl_divergence(p, q), D.kl_divergence(*wrapped)
    assert all(a.equal(b) for a, b in zip(after, before, strict=True))


@pytest.mark.slow
def test_nothing_is_registered_on_import():
    code = (
        "from torch.distributions import kl; before = dict(kl._KL_REGISTRY); "
        "import kullback.exact, kullback.variational; "
        "raise SystemExit(before != kl._KL_REGISTRY)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_formula_is_of_a_density(registry):
    """A subclass with a `log_prob` of its own has none, unless it is registered for that class."""

    class Doubled(D.Normal):
        def log_prob(self, value):
            return super().log_prob(2 * value) + torch.tensor(2.0).log()

    p = Doubled(t(0.0), t(1.0))
    wide = D.MultivariateNormal(t(0.0, 0.0), torch.eye(2).double())
    assert closed_forms.find(p, NORMAL) is None
    assert closed_forms.find(D.Independent(p.expand((2,)), 1), wide) is None
    assert closed_forms.find_entropy(p) is None
    with pytest.raises(TypeError, match="closed form"):
        closed_forms.renyi(p, NORMAL, alpha=2)
    with pytest.raises(TypeError, match="mixture of Gaussians"):
        closed_forms.mixture_kl_bounds(D.Independent(p.expand((2,)), 1), wide)

    @D.register_kl(D.Normal, D.StudentT)
    def mine(p, q):
        return torch.tensor(7.0)

    assert closed_forms.kl(p, STUDENT) == 7
