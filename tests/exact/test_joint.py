"""Joint tables: identities summed by hand, scikit-learn's mutual information, edges, gradients."""

import math

import pytest
import scipy.stats
import torch

from kullback.exact import joint

INF, LN2 = math.inf, math.log(2)


def random_joint(*shape, batch=(3,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*batch, math.prod(shape), generator=generator, dtype=torch.float64)
    return logits.softmax(-1).reshape(*batch, *shape)


def entropy(table, axes):
    return -(table * table.log()).sum(axes)


def forms(table):
    return {"probs": table, "log_probs": table.log(), "logits": table.log() + 3.0}.items()


def test_conditional_entropy_and_information_are_differences_of_entropies():
    table = random_joint(4, 5)
    whole = entropy(table, (-1, -2))
    h_x, h_y = entropy(table.sum(-1), -1), entropy(table.sum(-2), -1)
    for form, given in forms(table):
        close = torch.testing.assert_close
        close(joint.conditional_entropy(given, form=form), whole - h_y)
        close(joint.conditional_entropy(given, given=-2, form=form), whole - h_x)
        close(joint.mutual_information(given, form=form), h_x + h_y - whole)


def test_total_correlation_of_three_variables():
    table = random_joint(2, 3, 4)
    singles = [entropy(table.sum(axes), -1) for axes in ((-1, -2), (-1, -3), (-2, -3))]
    truth = sum(singles) - entropy(table, (-1, -2, -3))
    for form, given in forms(table):
        torch.testing.assert_close(joint.total_correlation(given, variables=3, form=form), truth)
    assert joint.total_correlation(table[0].flatten(), variables=1).item() == 0


def test_against_scikit_learn_and_scipy():
    metrics = pytest.importorskip("sklearn.metrics")
    counts = torch.tensor([[7.0, 0.0, 2.0], [1.0, 5.0, 3.0]], dtype=torch.float64)
    truth = metrics.mutual_info_score(None, None, contingency=counts.numpy())
    value = joint.mutual_information(counts, normalise=True)
    assert value.item() == pytest.approx(truth, rel=1e-12)
    h_y = scipy.stats.entropy(counts.sum(0).numpy())
    h_xy = scipy.stats.entropy(counts.flatten().numpy())
    value = joint.conditional_entropy(counts, normalise=True)
    assert value.item() == pytest.approx(h_xy - h_y, rel=1e-12)


def test_the_chain_rule():
    p, q = random_joint(4, 5, seed=1), random_joint(4, 5, batch=(), seed=2)
    for form in ("probs", "log_probs", "logits"):
        given = (p, q) if form == "probs" else (p.log(), q.log())
        chain = joint.kl_chain(*given, form=form)
        whole = (p * (p / q).log()).sum((-1, -2))
        first = (p.sum(-1) * (p.sum(-1) / q.sum(-1)).log()).sum(-1)
        torch.testing.assert_close(chain.marginal, first)
        torch.testing.assert_close(chain.marginal + chain.conditional, whole)
        assert (chain.conditional >= 0).all()


def test_independent_variables_share_nothing_even_in_float32():
    first, second = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).softmax(-1)
    value = joint.mutual_information(first[:, None] * second)
    assert 0 <= value.item() < (16 * 6e-8) ** 2  # the square of what logs of e⁻⁸ are off by


EDGES = [  # table, H(X|Y), I(X; Y)
    ([[0.5, 0.0], [0.0, 0.5]], 0.0, LN2),
    ([[0.5, 0.5], [0.0, 0.0]], 0.0, 0.0),
    ([[0.5, 0.0], [0.5, 0.0]], LN2, 0.0),
    ([[1.0, 0.0], [0.0, 0.0]], 0.0, 0.0),
    ([[0.25, 0.25], [0.5, 0.0]], 0.75 * math.log(3) - 0.5 * LN2, 1.5 * LN2 - 0.75 * math.log(3)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["probs", "log_probs", "logits"])
@pytest.mark.parametrize(("table", "left", "shared"), EDGES)
def test_zero_masses_with_gradients(table, left, shared, form, dtype):
    table = torch.tensor(table, dtype=dtype)
    leaf = (table if form == "probs" else table.log()).requires_grad_()
    eps = torch.finfo(dtype).eps * 4
    for function, truth in ((joint.conditional_entropy, left), (joint.mutual_information, shared)):
        value = function(leaf, form=form)
        assert value.item() == pytest.approx(truth, rel=eps, abs=eps)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert torch.isfinite(gradient).all()
    chain = joint.kl_chain(leaf, leaf.detach(), form=form)
    assert [share.item() for share in chain] == [0.0, 0.0]


def test_chain_of_missing_mass_is_infinite_with_finite_gradients():
    p = torch.tensor([[0.5, 0.0], [0.25, 0.25]], requires_grad=True)
    q = torch.tensor([[0.0, 0.0], [0.5, 0.5]], requires_grad=True)
    chain = joint.kl_chain(p, q)
    assert chain == (INF, INF)
    same_first = joint.kl_chain(p, torch.tensor([[0.0, 0.5], [0.25, 0.25]]))
    assert same_first == (0.0, INF)
    gradients = torch.autograd.grad(sum(chain), (p, q))
    assert all(torch.isfinite(g).all() for g in gradients)


def test_gradients_by_finite_differences():
    p, q = (random_joint(2, 3, batch=(), seed=s).requires_grad_() for s in (3, 4))
    for function in (joint.conditional_entropy, joint.mutual_information):
        assert torch.autograd.gradcheck(lambda p, f=function: f(p, normalise=True), p)
    assert torch.autograd.gradcheck(lambda p, q: joint.kl_chain(p, q, normalise=True), (p, q))


REFUSED = [
    (
        lambda: joint.mutual_information(torch.ones(4) / 4),
        ValueError,
        "of 2 variables; got float32",
    ),
    (lambda: joint.mutual_information([[1.0]]), TypeError, "joint: expected Tensor; got list"),
    (
        lambda: joint.mutual_information(torch.ones(2, 2)),
        ValueError,
        "joint: expected rows of probs",
    ),
    (
        lambda: joint.conditional_entropy(torch.eye(2) / 2, given=0),
        ValueError,
        "given: expected -1",
    ),
    (lambda: joint.total_correlation(torch.eye(2) / 2, variables=0), ValueError, "variables: "),
    (
        lambda: joint.kl_chain(torch.eye(2) / 2, torch.ones(2, 3) / 6),
        ValueError,
        "the same X and Y",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), REFUSED)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
