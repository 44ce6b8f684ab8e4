"""Asking for a closed form: `find` answers without an error, and knows what users registered."""

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
