"""Targets: constraints' Jacobians, vectorising, rows, and what they say when something is wrong."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import (
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    LKJCholesky,
    MultivariateNormal,
    Normal,
    Poisson,
    Wishart,
    constraints,
)

from kullback.core import ArgumentTypeError, ArgumentValueError
from kullback.exact import quadrature
from kullback.variational import Parameter, Target, fit
from kullback.variational.optimise.stochastic import anchored
from kullback.variational.starting_points import points_of
from kullback.variational.target.batches import in_pieces, score_in_pieces
from kullback.variational.target.parameters import (
    Layout,
    bijection,
    corr_matrix,
    ordered,
    positive_ordered,
    sum_to_zero,
    unit_vector,
)

F64 = torch.float64
T = lambda *values: torch.tensor(values, dtype=F64)  # noqa: E731

# A normalised density on each constrained set: the unconstrained one must integrate to 1 as well.
NORMALISED = {
    "positive": (constraints.positive, (), lambda v: Gamma(T(3.0)[0], T(2.0)[0]).log_prob(v)),
    "interval": (
        constraints.interval(1.0, 3.0),
        (),
        lambda v: Beta(T(2.0)[0], 3.0).log_prob((v - 1) / 2) - math.log(2),
    ),
    "below": (constraints.less_than(2.0), (), lambda v: Gamma(T(3.0)[0], 1.0).log_prob(2 - v)),
    "simplex": (constraints.simplex, (3,), lambda v: Dirichlet(T(2.0, 3.0, 1.5)).log_prob(v)),
    "ordered": (ordered, (2,), lambda v: Normal(T(0.0)[0], 1.0).log_prob(v).sum() + math.log(2)),
    "positive_ordered": (
        positive_ordered,
        (2,),
        lambda v: Gamma(T(3.0)[0], T(2.0)[0]).log_prob(v).sum() + math.log(2),
    ),
    "sum_to_zero": (  # the contrast (v1 - v2)/sqrt(2) of two standard normals
        sum_to_zero,
        (2,),
        lambda v: Normal(T(0.0)[0], 1.0).log_prob((v[0] - v[1]) / math.sqrt(2)),
    ),
    "unit_vector": (unit_vector, (2,), lambda v: 0 * v[0] - math.log(2 * math.pi)),
    "corr_matrix": (  # LKJ of matrices with eta = 2: det R^(eta - 1), over B(2, 2) 2^3
        corr_matrix,
        (2, 2),
        lambda v: torch.log1p(-(v[0, 1] ** 2)) - math.log(4 / 3),
    ),
    "corr_cholesky": (
        constraints.corr_cholesky,
        (2, 2),
        lambda v: LKJCholesky(2, T(2.0)[0]).log_prob(v),
    ),
    "real": (constraints.real, (2,), lambda v: Normal(T(0.0)[0], 1.0).log_prob(v).sum()),
}


VALIDATED = {
    "normal": (
        {"mu": (), "tau": constraints.positive},
        lambda mu, tau: Gamma(2.0, 1.0).log_prob(tau) + Normal(mu, tau).log_prob(T(1, 2)).sum(),
    ),
    "beta": ({"p": constraints.unit_interval}, lambda p: Beta(2.0, 3.0).log_prob(p)),
    "rate": ({"r": constraints.positive}, lambda r: Poisson(r).log_prob(T(1, 0, 3)).sum()),
    "shares": (
        {"w": Parameter((3,), constraints.simplex)},
        lambda w: Dirichlet(T(1, 2, 3)).log_prob(w) + Categorical(w).log_prob(torch.tensor(1)),
    ),
    "factor": (
        {"root": Parameter((2, 2), constraints.lower_cholesky)},
        lambda root: MultivariateNormal(T(0, 0), scale_tril=root).log_prob(T(1, 2)),
    ),
}


@pytest.mark.parametrize("name", sorted(VALIDATED))
def test_validated_distributions_of_parameters_are_vectorised(name):
    """torch checks arguments and values by itself: at every point, without a loop or a warning."""
    parameters, log_density = VALIDATED[name]
    target = Target.of(log_density, parameters)
    assert not target.looped
    z = torch.randn(5, target.dim, generator=torch.Generator().manual_seed(0), dtype=F64)
    values, log_jacobian = target.layout.constrain(z)
    each = [log_density(**{n: v[i] for n, v in values.items()}) for i in range(5)]
    truth = torch.stack(each) + log_jacobian
    torch.testing.assert_close(target.log_density(z), truth, rtol=1e-12, atol=1e-12)


def curved(way):
    """log N(0; 0, A) of A = [[1, r], [r, 1]] and a trace of its root, with r free: A may be no
    covariance. The factor is taken in one of the ways torch has."""

    def log_density(r, s):
        matrix = torch.eye(2, dtype=F64) + r * (1 - torch.eye(2, dtype=F64))
        if way == "law":
            law = MultivariateNormal(T(0, 0), matrix, validate_args=False)
            return law.log_prob(torch.stack([s, 2 * s])) - s**2
        root = matrix.cholesky() if way == "method" else torch.linalg.cholesky(matrix)
        return -root.diagonal().log().sum() - s**2

    return log_density


@pytest.mark.sweep(4)
@pytest.mark.parametrize("way", ["function", "method", "law"])
@pytest.mark.parametrize("count", [1, 2, 7, 300])
@pytest.mark.filterwarnings("ignore:torch.cholesky is deprecated")
def test_matrices_without_a_factor_are_found_in_one_call(way, count):
    """Every point alone, in plain Python, is the truth; |r| >= 1 has no factor."""
    log_density = curved(way)
    target = Target.of(log_density, {"r": (), "s": ()})
    z = 1.5 * torch.randn(count, 2, generator=torch.Generator().manual_seed(count), dtype=F64)
    z[0, 0] = 2.0
    calls = []
    value, slope = target.score(z)
    bad = z[:, 0].abs() >= 1
    assert bool((value[bad] == -math.inf).all()) and bool((slope[bad] == 0).all())
    assert target.refusals.count == int(bad.sum()) and "positive-definite" in str(target.refusals)
    for point, found, gradient in zip(z[~bad], value[~bad], slope[~bad], strict=True):
        leaf = point.clone().requires_grad_()
        alone = log_density(leaf[0], leaf[1])
        (wanted,) = torch.autograd.grad(alone, leaf)
        torch.testing.assert_close(found, alone.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)

    def counted(r, s):
        calls.append(1)
        return log_density(r, s)

    Target.of(counted, {"r": (), "s": ()}).log_density(z)
    assert len(calls) <= 9  # three to look at it, one for all, one that factors, one for words


def test_steps_of_small_numbers_are_evaluated_together():
    """A chain of 400 operations on single numbers: all 4,096 points at once, not in pieces."""

    def chain(z):
        x = z
        for _ in range(400):
            x = x + 0.01 * x.sin()
        return -0.5 * x.square().sum()

    assert Target.of(chain, 2).piece == 4096
    data = torch.linspace(0, 1, 20_000, dtype=F64)
    assert Target.of(lambda z: -(data * z[0] - z[1]).square().sum(), 2).piece == 128


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", sorted(NORMALISED))
def test_jacobians_by_quadrature(name):
    constraint, shape, log_density = NORMALISED[name]
    target = Target.of(lambda v: log_density(v), {"v": Parameter(shape, constraint)})
    low, high = [-12.0] * target.dim, [12.0] * target.dim
    law = quadrature.posterior(lambda z: target.log_density(z), lower=low, upper=high, nodes=300)
    assert abs(float(law.log_evidence)) < 1e-4  # slow exponential tails outside the box
    assert bool(constraint.check(target.constrain(law.nodes[:5])["v"]).all())


@pytest.mark.parametrize(
    ("constraint", "free"),
    [(constraints.lower_cholesky, 3), (constraints.positive_definite, 3)],
)
def test_matrix_jacobians_by_differentiation(constraint, free):
    """The Jacobian to a matrix's lower triangle, by autograd."""
    part = bijection(constraint, (2, 2))
    assert part.size == free
    x = T(0.3, -0.2, 0.5)

    def coordinates(x):
        return part.forward(x)[0][(0, 1, 1), (0, 0, 1)]

    jacobian = torch.autograd.functional.jacobian(coordinates, x)
    truth = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(part.forward(x)[1], truth, rtol=1e-12, atol=1e-12)
    assert bool(constraint.check(part.forward(x)[0]))


def test_a_wishart_is_normalised():
    """The unconstrained density integrates to 1, by importance sampling (z ≤ 4.5)."""
    law = Wishart(T(5.0)[0], torch.eye(2, dtype=F64), validate_args=False)
    target = Target.of(
        lambda s: law.log_prob(s), {"s": Parameter((2, 2), constraints.positive_definite)}
    )
    q = torch.distributions.Normal(T(0.0, 1.0, 1.0), T(1.5, 0.7, 0.7))
    noise = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    z = q.mean + q.stddev * noise
    weights = (target.log_density(z) - q.log_prob(z).sum(-1)).exp()
    assert abs(float(weights.mean()) - 1) < 4.5 * float(weights.std()) / 200


def test_names_and_values():
    target = Target.of(
        lambda mu, tau, theta: mu + tau + theta.sum(),
        {"mu": (), "tau": constraints.positive, "theta": 3},
    )
    assert target.names == ("mu", "tau", "theta[1]", "theta[2]", "theta[3]")
    values = target.constrain(torch.zeros(7, 5, dtype=F64))
    assert {k: tuple(v.shape) for k, v in values.items()} == {
        "mu": (7,),
        "tau": (7,),
        "theta": (7, 3),
    }
    torch.testing.assert_close(target.log_density(torch.zeros(2, 5, dtype=F64)), T(1.0, 1.0))


def test_the_loop_says_so_and_agrees():
    def branching(z):
        return -z.square().sum() if z[0] > 0 else -2 * z.square().sum()

    with pytest.warns(UserWarning, match="one point at a time"):
        target = Target.of(branching, 2)
    assert target.looped
    log_p, score = target.score(T(1.0, 1.0, -1.0, 1.0).reshape(2, 2))
    torch.testing.assert_close(log_p, T(-2.0, -4.0))
    torch.testing.assert_close(score, torch.tensor([[-2.0, -2.0], [4.0, -4.0]], dtype=F64))


def rows(batch_size=4):
    x = torch.linspace(-1, 2, 11, dtype=F64)
    terms = lambda z, x: -0.5 * (x - z[0]).square() * z[1].exp() + 0.5 * z[1]  # noqa: E731
    prior = lambda z: -0.5 * z.square().sum()  # noqa: E731
    whole = lambda z: terms(z, x).sum() + prior(z)  # noqa: E731
    return Target.of(terms, 2, data=x, log_prior=prior, batch_size=batch_size), Target.of(whole, 2)


def test_a_pass_over_rows_is_the_whole():
    some, whole = rows()
    z = T(0.3, -0.2, 1.0, 0.4).reshape(2, 2)
    for one, other in zip(some.score(z), whole.score(z), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_mini_batches_are_unbiased_by_enumeration():
    """Averaged over every batch of two of eleven rows, value and gradient are the whole's."""
    some, whole = rows()
    z = T(0.3, -0.2).reshape(1, 2)
    pairs = torch.cartesian_prod(torch.arange(11), torch.arange(11))
    quiet = anchored(some, T(0.1, 0.1))
    for density in (some.log_density, quiet):
        total, slope = 0.0, torch.zeros(1, 2, dtype=F64)
        for pair in pairs:
            leaf = z.clone().requires_grad_()
            value = density(leaf, pair)
            total += float(value.detach()) / len(pairs)
            slope += torch.autograd.grad(value.sum(), leaf)[0] / len(pairs)
        log_p, score = whole.score(z)
        assert total == pytest.approx(float(log_p), rel=1e-12)
        torch.testing.assert_close(slope, score, rtol=1e-11, atol=1e-11)


def test_it_says_which_value_and_which_row():
    x = torch.arange(9.0, dtype=F64)
    x[6] = math.nan
    target = Target.of(
        lambda x, mu: -(x - mu).square(),
        {"mu": constraints.positive},
        data=x,
        batch_size=4,
    )
    text = target.explain(torch.zeros(1, 1, dtype=F64))
    assert "mu = 1" in text and "row is 6" in text
    target = Target.of(lambda a, b: a.log() + b, {"a": (), "b": ()})
    text = target.explain(T(1.0, 0.0, -2.0, 0.5).reshape(2, 2))
    assert text == "log_density is nan at a = -2, b = 0.5 (1 of 2 points)"
    assert target.explain(T(1.0, 1.0).reshape(1, 2)) == ""


def _below_b(values):
    return constraints.less_than(values["b"])


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Target.of(lambda z: 1.0, 2), TypeError, r"log_density\(z\): expected a scalar"),
        (lambda: Target.of(lambda z: z, 2), ValueError, "Try: sum over the last axis"),
        (lambda: Target.of(lambda w: w, {"v": ()}), TypeError, r"a function of \(v=\)"),
        (lambda: Target.of(lambda z: z.sum(), 0), ValueError, "parameters: expected at least 1"),
        (lambda: Target.of(lambda z: z.sum(), {}), ValueError, "at least one parameter"),
        (lambda: Target.of(lambda z: z.sum(), "z"), TypeError, "parameters: expected Mapping"),
        (
            lambda: Target.of(lambda k: k, {"k": constraints.nonnegative_integer}),
            ValueError,
            "one that reals map onto",
        ),
        (
            lambda: Target.of(lambda k: k, {"k": constraints.lower_cholesky}),
            ValueError,
            r"parameters\['k'\]: shape: expected \[n, n\] .*\(\(3, 3\), constraints.lower_cholesky",
        ),
        (
            lambda: Target.of(lambda w: w, {"w": constraints.simplex}),
            ValueError,
            r"parameters\['w'\]: .* Try: Parameter\(\(3,\), constraints.simplex\)",
        ),
        (
            lambda: Target.of(lambda w: w, {"w": constraints.corr_cholesky}),
            ValueError,
            r"Try: Parameter\(\(3, 3\), constraints.corr_cholesky\)",
        ),
        (
            lambda: Target.of(lambda w: w, {"w": ordered}),
            ValueError,
            r"Try: Parameter\(\(3,\), ordered\)",
        ),
        (
            lambda: Target.of(lambda w: w, {"w": ((3,), constraints.positive)}),
            ValueError,
            r"Try: Parameter\(\(3,\), constraints.positive\)",
        ),
        (
            lambda: Target.of(lambda w: w.sum(), {"w": Parameter((1,), constraints.simplex)}),
            ValueError,
            "at least one that can vary",
        ),
        (
            lambda: Target.of(lambda a, b: a + b, {"a": _below_b, "b": ()}),
            ValueError,
            r"parameters before: \[\]; got 'b'. Try: put 'b' before",
        ),
        (
            lambda: Target.of(lambda values: values["a"], {"a": (), "b": ()}),
            TypeError,
            r"got log_density\(values\). Try: .* lambda \*\*values: log_density\(values\)",
        ),
        (
            lambda: Target.of(lambda b: (torch.ones(5, 3) @ b).sum(), {"b": (3,)}),
            TypeError,
            r"log_density: .*dtype.* Try: data in float64, x.double\(\)",
        ),
        (
            lambda: Target.of(lambda z: torch.tensor(z.numpy().sum()), 2),
            TypeError,
            "Try: compute with torch, or .* Target.of_score",
        ),
        (lambda: Target.of(lambda z: z.sum() * torch.rand(()), 2), ValueError, "draws at random"),
        (
            lambda: Target.of(lambda z, x: x.sum() * z[0], 1, data=torch.ones(3)),
            ValueError,
            "do not sum over rows",
        ),
        (
            lambda: Target.of(lambda z, x: x, 1, data=[torch.ones(3), torch.ones(2)]),
            ValueError,
            "same number of rows",
        ),
        (lambda: Target.of(lambda z: z.sum(), 1, batch_size=3), ValueError, "data: expected"),
    ],
)
def test_refusals(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_a_matrix_that_cannot_be_factored_has_no_mass():
    """One bad point does not take the others down; its log density is −inf, its slope 0."""

    def log_density(z):
        return torch.linalg.cholesky(z[0] * torch.eye(3, dtype=F64)).sum() * z[1]

    z = T(4.0, -1.0, 9.0, -4.0, 16.0)[:, None] * T(1.0, 0.0) + T(0.0, 1.0)
    value, slope = Target.of(log_density, 2).score(z)
    assert value.tolist() == [6.0, -math.inf, 9.0, -math.inf, 12.0]
    assert slope[1].tolist() == [0.0, 0.0]
    assert slope[0].tolist() == [0.75, 6.0]


@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_pieces_are_the_whole(size):
    """Values and gradients of a function taken in pieces, against autograd in one."""
    z = torch.randn(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.linspace(-1, 2, 10, dtype=torch.float64)

    def function(z):
        return z[:, 0].sin() * z[:, 1].exp()

    whole, some = z.clone().requires_grad_(), z.clone().requires_grad_()
    truth = function(whole)
    value = in_pieces(function, some, size)
    torch.testing.assert_close(value, truth)
    (slope,) = torch.autograd.grad((weights * truth).sum(), whole)
    torch.testing.assert_close(torch.autograd.grad((weights * value).sum(), some)[0], slope)
    with torch.no_grad():
        torch.testing.assert_close(in_pieces(function, some, size), truth)
    (slope,) = torch.autograd.grad(function(whole).sum(), whole)
    assert score_in_pieces(function, z, size)[1].equal(slope) and not z.requires_grad


CONSTRAINED = {
    "positive": (constraints.positive, ()),
    "interval": (constraints.interval(0.0, 2.0), (2, 2)),
    "simplex": (constraints.simplex, (3,)),
    "ordered": (ordered, (3,)),
    "positive_ordered": (positive_ordered, (3,)),
    "sum_to_zero": (sum_to_zero, (4,)),
    "corr_cholesky": (constraints.corr_cholesky, (3, 3)),
    "corr_matrix": (corr_matrix, (3, 3)),
    "lower_cholesky": (constraints.lower_cholesky, (3, 3)),
    "positive_definite": (constraints.positive_definite, (3, 3)),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_values_lie_in_their_constraint_and_map_back(name):
    constraint, shape = CONSTRAINED[name]
    part = bijection(constraint, shape)
    z = torch.randn(5, part.size, generator=torch.Generator().manual_seed(0), dtype=F64)
    value = part.forward(z)[0]
    assert value.shape == (5, *shape) and bool(constraint.check(value).all())
    torch.testing.assert_close(part.inverse(value), z, rtol=1e-9, atol=1e-9)


def test_the_correlation_matrix_has_its_jacobian():
    part = bijection(corr_matrix, (3, 3))
    x = T(0.3, -0.8, 0.5)

    def below(x):
        return part.forward(x)[0][(1, 2, 2), (0, 0, 1)]

    truth = torch.linalg.slogdet(torch.autograd.functional.jacobian(below, x)).logabsdet
    torch.testing.assert_close(part.forward(x)[1], truth, rtol=1e-12, atol=1e-12)


def test_contrasts_are_an_isometry():
    part = bijection(sum_to_zero, (6,))
    z = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    value, log_jacobian = part.forward(z)
    torch.testing.assert_close(value.norm(dim=1), z.norm(dim=1), rtol=1e-14, atol=0)
    torch.testing.assert_close(value.sum(1), torch.zeros(7, dtype=F64), rtol=0, atol=1e-14)
    assert not log_jacobian.any()


def test_a_unit_vector_ignores_its_length():
    part = bijection(unit_vector, (3,))
    z = T(0.3, -2.0, 0.4)
    torch.testing.assert_close(part.forward(z)[0], part.forward(7 * z)[0], rtol=1e-14, atol=1e-15)
    assert bool(unit_vector.check(part.forward(z)[0]))


DEPENDENT = {
    "top": constraints.positive,
    "x": Parameter((2,), lambda v: constraints.interval(0.0, v["top"])),
    "y": lambda v: constraints.greater_than(v["x"].sum()),
}


def test_bounds_that_depend_on_other_parameters():
    layout = Layout.of(DEPENDENT)
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    values, log_jacobian = layout.constrain(z)
    assert bool((values["x"] < values["top"][:, None]).all() & (values["x"] > 0).all())
    assert bool((values["y"] > values["x"].sum(1)).all())

    def flat(z):
        return torch.cat([value.reshape(-1) for value in layout.constrain(z)[0].values()])

    truth = torch.linalg.slogdet(torch.autograd.functional.jacobian(flat, z[0])).logabsdet
    torch.testing.assert_close(log_jacobian[0], truth, rtol=1e-12, atol=1e-12)
    one = {name: value[0] for name, value in values.items()}
    torch.testing.assert_close(layout.unconstrain(one), z[0], rtol=1e-9, atol=1e-9)


def test_bounds_may_be_any_constraint_of_as_many_reals():
    layout = Layout.of({"top": (), "x": Parameter((3,), lambda _: ordered)})
    values, log_jacobian = layout.constrain(torch.randn(5, 4, dtype=F64))
    assert bool((values["x"].diff(dim=1) > 0).all()) and log_jacobian.shape == (5,)
    with pytest.raises(ArgumentValueError, match=r"3 reals; got constraints\.simplex, 2"):
        Layout.of({"top": (), "x": Parameter((3,), lambda _: constraints.simplex)})


def test_an_interval_whose_ends_cross_is_empty():
    """It has no mass: top, uniform in (0, 2) but for that, is below 1."""
    layout = Layout.of(
        {
            "top": constraints.interval(0.0, 2.0),
            "x": lambda values: constraints.interval(values["top"], 1.0),
        }
    )
    z = torch.linspace(-3, 3, 12, dtype=F64)[:, None].expand(12, 2).clone().requires_grad_()
    values, log_jacobian = layout.constrain(z)
    assert log_jacobian.isfinite().equal(values["top"] < 1)
    assert bool((log_jacobian[values["top"] >= 1] == -math.inf).all())
    (slope,) = torch.autograd.grad(log_jacobian[values["top"] < 1].sum(), z)
    assert bool(slope.isfinite().all())
    with pytest.raises(ArgumentValueError, match="a lower end below the upper; got 2 and 1"):
        Layout.of({"x": constraints.interval(2, 1)})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tau": 1.0}, "names"),
        ({"tau": -1.0, "w": [0.5, 0.5]}, "inside its constraint"),
        ({"tau": [1.0], "w": [0.5, 0.5]}, "shape"),
    ],
)
def test_values_that_cannot_be_mapped_back_are_refused(values, words):
    layout = Layout.of({"tau": constraints.positive, "w": Parameter((2,), constraints.simplex)})
    with pytest.raises(ArgumentValueError, match=words):
        layout.unconstrain(values)


def scored(**options):
    """Normals of sd 1 and 2 around 3 and -1, in NumPy."""
    mean, sd = np.array([3.0, -1.0]), np.array([1.0, 2.0])

    def score(z):
        u = (z.numpy() - mean) / sd
        return -0.5 * (u**2).sum(1), -u / sd

    return Target.of_score(score, 2, **options)


@pytest.mark.parametrize("pad", [False, True])
def test_a_score_from_elsewhere_is_the_target_in_torch(pad):
    mean, sd = T(3.0, -1.0), T(1.0, 2.0)
    other, own = scored(pad=pad), Target.of(lambda z: -0.5 * ((z - mean) / sd).square().sum(), 2)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    for one, two in zip(other.score(z), own.score(z), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradcheck(other.log_density, z)
    found = fit(other, progress=False)
    assert found.converged and found.diagnosis.level == "trust"
    torch.testing.assert_close(found.family.absorb().shift, mean, rtol=0, atol=1e-6)


def test_padding_asks_for_few_shapes():
    asked = set()

    def score(z):
        asked.add(len(z))
        return -0.5 * z.square().sum(1), -z

    target = Target.of_score(score, 2, pad=True)
    for n in range(1, 20):
        assert target.score(torch.zeros(n, 2, dtype=F64))[1].shape == (n, 2)
    assert asked == {1, 2, 4, 8, 16, 32}


def test_named_values_of_another_program():
    target = scored(constrain=lambda z: {"a": z[:, 0].exp(), "b": z[:, :1] + z}, names=["u", "v"])
    assert target.names == ("u", "v") and target.layout.value_names == ("a", "b[1]", "b[2]")
    found = fit(target, progress=False, init=T(3.0, 0.0))
    assert target.constrain(T(0.0, 1.0))["a"].shape == ()
    assert found.mean["b"].shape == (2,) and found.cov.shape == (3, 3)
    assert abs(float(found.sd["b"][0]) - 2.0) < 0.1
    with pytest.raises(ArgumentValueError, match="unconstrained"):
        target.unconstrain({"a": 1.0})


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (lambda z: z.sum(1), "a pair"),
        (lambda z: (z.sum(1), z.sum(1)), "shapes"),
        (lambda z: (z.sum(), z), "shapes"),
    ],
)
def test_a_score_of_another_form_is_refused(score, words):
    with pytest.raises(ArgumentValueError, match=words):
        Target.of_score(score, 2)


NORMAL = (lambda z: -0.5 * z.square().sum(1), lambda z: -z)


@pytest.mark.parametrize(
    ("log_p", "slope"),
    [
        (NORMAL[0], lambda z: z),  # of -log p
        (NORMAL[0], lambda z: -2 * z),
        (NORMAL[0], lambda z: z * math.nan),
        (NORMAL[0], lambda z: -z * torch.tensor([1.0, 1.0, -1.0])),
        (lambda z: -z.exp().sum(1), lambda z: -z),
        (lambda z: -(z - 3).square().sum(1), lambda z: torch.zeros_like(z)),
    ],
)
def test_a_gradient_of_something_else_is_refused(log_p, slope):
    with pytest.raises(ArgumentValueError, match="score: expected the gradient of its log p"):
        Target.of_score(lambda z: (log_p(z), slope(z)), 3)


@pytest.mark.parametrize(
    ("log_p", "slope"),
    [
        (lambda z: -z.abs().sum(1), lambda z: -z.sign()),
        (lambda z: -0.5e6 * z.square().sum(1), lambda z: -1e6 * z),
        (lambda z: -(5 * z).exp().sum(1), lambda z: -5 * (5 * z).exp()),
        (lambda z: (-0.5 * z.float().square().sum(1) - 1e6).double(), lambda z: -z),  # float32
        (lambda z: torch.where(z[:, 0] > 5, -z[:, 0], -math.inf), lambda z: -torch.ones_like(z)),
        (lambda z: 1e-9 * z.sum(1), lambda z: 1e-9 * torch.ones_like(z)),
        (lambda z: 0 * z.sum(1), torch.zeros_like),
        (lambda z: -z.abs().amax(1), lambda z: -z.sign() * (z.abs() == z.abs().amax(1)[:, None])),
    ],
)
def test_a_right_gradient_is_taken_whatever_its_size(log_p, slope):
    assert Target.of_score(lambda z: (log_p(z), slope(z)), 3).dim == 3


def test_a_fit_begins_where_it_is_told():
    """Two peaks 400 sd apart: the one near `init` is found, by name or as points."""

    def log_density(x):
        return torch.logaddexp(-0.5 * (x - 400.0) ** 2, -0.5 * (x + 400.0) ** 2)

    for init, at in (
        ({"x": 399.0}, 400),
        (T(-401.0), -400),
        (T(-401.0, -399.0)[:, None], -400),
        ({"x": np.linspace(-403, -397, 200)}, -400),  # draws of it
    ):
        found = fit(log_density, {"x": ()}, init=init, progress=False)
        assert abs(float(found.mean["x"]) - at) < 0.1
    again = fit(log_density, {"x": ()}, init=found, progress=False)
    assert abs(float(again.mean["x"]) + 400) < 0.1
    for wrong, words in ((T(1.0, 2.0), "init"), ("kept/fit", r"Try: load\(path, target\)")):
        with pytest.raises(ArgumentValueError, match=words):
            fit(log_density, {"x": ()}, init=wrong, progress=False)
    with pytest.raises(ArgumentValueError, match="x: expected shape"):
        fit(log_density, {"x": ()}, init={"x": np.zeros((2, 2))}, progress=False)


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ({"a": T(1.0, 2.0), "b": np.ones((3, 2))}, r"of each; got a \[2\], b \[3, 2\]"),
        ({"a": 1.0, "b": np.ones((3, 2))}, r"of each; got a \[\], b \[3, 2\]"),
        ({"a": np.ones(0), "b": np.ones((0, 2))}, "as many draws"),
        ({"a": np.ones(3), "b": np.ones((3, 2)), "c": 1.0}, r"expected names \['a', 'b'\]"),
        ({"a": np.ones(3)}, r"expected names \['a', 'b'\]"),
        ({"a": "one", "b": [1.0, 1.0]}, r"init\['a'\]: expected numbers; got 'one'"),
        ({"a": None, "b": [1.0, 1.0]}, r"init\['a'\]: expected numbers; got None"),
        ({"a": 1.0, "b": [[1.0], [1.0, 2.0]]}, r"init\['b'\]: expected numbers"),
        (torch.zeros(3, dtype=torch.complex128), "init: expected real numbers"),
    ],
)
def test_wrong_places_to_begin_are_refused_by_name(init, words):
    parameters = {"a": constraints.positive, "b": (2,)}
    with pytest.raises((ArgumentValueError, ArgumentTypeError), match=words):
        fit(lambda a, b: -a - b.square().sum(), parameters, init=init, progress=False)


@pytest.mark.parametrize("name", ["starts", "draws", "evaluation_draws"])
def test_numbers_of_draws_and_starts_are_whole(name):
    with pytest.raises(ArgumentTypeError, match=f"{name}: expected int; got float"):
        fit(lambda z: -z.square().sum(), 1, progress=False, **{name: 2.5})


def test_draws_of_several_parameters_are_put_into_z():
    parameters = {"a": constraints.positive, "b": (2,)}
    target = Target.of(lambda a, b: -a - b.square().sum(), parameters)
    draws = {"a": torch.rand(9) + 0.5, "b": torch.randn(9, 2)}
    z = points_of(target, draws)
    torch.testing.assert_close(z, torch.cat([draws["a"].log()[:, None], draws["b"]], 1).double())
    with pytest.raises(ArgumentValueError, match="shape"):
        points_of(target, draws | {"b": torch.zeros(8, 2)})


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_simplex_decays_as_far_as_the_reals_reach(k):
    """Near 0 it is PyTorch's transform; PyTorch's Jacobian stops falling at the smallest float."""
    part, torchs = (
        bijection(constraints.simplex, (k,)),
        torch.distributions.StickBreakingTransform(),
    )
    z = torch.randn(6, k - 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    value, log_jacobian = part.forward(z)
    torch.testing.assert_close(value, torchs(z), rtol=1e-12, atol=0)
    wanted = torchs.log_abs_det_jacobian(z, torchs(z))
    torch.testing.assert_close(log_jacobian, wanted, rtol=1e-12, atol=1e-12)
    far = part.forward(-(10.0 ** torch.arange(3, 11, dtype=F64))[:, None].expand(-1, k - 1))
    assert bool((far[0] > 0).all()) and bool((far[1].diff() < 0).all())


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_dirichlet_is_proper(alpha):
    def log_density(w):
        return (alpha - 1) * w.log().sum()

    found = fit(log_density, {"w": Parameter((3,), constraints.simplex)}, progress=False)
    assert "improper" not in found.diagnosis.judged.sentence
    assert bool((found.mean["w"] - 1 / 3).abs().max() < 0.6 * found.sd["w"].max())


@pytest.mark.parametrize(
    ("log_density", "parameters", "words"),
    [
        (lambda a, b: -((a - 1) ** 2) - (b - a.detach()) ** 2, {"a": (), "b": ()}, "no detach()"),
        (torch.no_grad()(lambda z: -z.square().sum()), 2, "no detach()"),
        (
            lambda a, s: Normal(a.detach(), s).log_prob(torch.ones(2, dtype=F64)).sum() - a * a - s,
            {"a": (), "s": constraints.positive},
            "no detach()",
        ),
        (lambda t: -t.detach(), {"t": constraints.positive}, "no detach()"),
        (lambda z: -z.square().sum() + (z - 200).sqrt().nan_to_num().sum(), 2, "both branches"),
    ],
)
def test_a_gradient_that_differences_of_log_p_contradict_is_refused(log_density, parameters, words):
    with pytest.raises(ArgumentValueError, match="the gradient of its log p; got a slope") as got:
        Target.of(log_density, parameters)
    assert words in str(got.value)


def test_likelihoods_of_rows_and_priors_are_held_to_their_differences():
    rows = torch.arange(5.0).double()
    with pytest.raises(ArgumentValueError, match="log_density: expected the gradient"):
        Target.of(lambda z, x: -((x - z.detach()[0]) ** 2), 1, data=rows)
    with pytest.raises(ArgumentValueError, match="log_prior: expected the gradient"):
        Target.of(
            lambda z, x: -((x - z[0]) ** 2), 1, data=rows, log_prior=lambda z: -(z.detach() ** 2)[0]
        )


def test_a_gradient_is_right_beside_kinks_steps_and_in_float32():
    for log_density in (
        lambda z: -z.abs().sum(),
        lambda z: -z.square().sum() + z.detach().round().sum(),  # a step has slope 0
        lambda z: -1e6 * z.float().square().sum(),
        lambda z: -torch.relu(z).sum() - z.square().sum(),
    ):
        Target.of(log_density, 3)


@pytest.mark.parametrize("branches", [False, True])
def test_a_function_that_draws_at_random_is_refused_whoever_draws(branches):
    source = np.random.default_rng(0)

    def log_density(z):
        twice = 2.0 if branches and z[0] > 3 else 1.0
        return -twice * z.square().sum() + source.normal() * z[0]

    with pytest.raises(ArgumentValueError, match=r"of its parameters alone; got .* at one point"):
        Target.of(log_density, 2)


def test_what_distributions_refuse_is_found_in_one_call():
    """The sd may be negative: log p and its gradient elsewhere are those of a positive one."""
    calls = []

    def log_density(s):
        calls.append(1)
        return Normal(0.0, s).log_prob(torch.ones(3, dtype=F64)).sum()

    target = Target.of(log_density, {"s": ()})
    s = torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    calls.clear()
    value, slope = target.score(s)
    good = s[:, 0] > 0
    assert len(calls) <= 4 * math.ceil(200 / target.piece)  # all, which, the others, its words
    assert target.refusals.count == int((~good).sum())
    assert bool((value[~good] == -math.inf).all()) and bool((slope[~good] == 0).all())
    wanted = -3 * s.log() - 1.5 / s**2 - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(value[good], wanted[good, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope[good], (-3 / s + 3 / s**3)[good], rtol=1e-10, atol=1e-10)


def test_a_density_that_refuses_all_of_its_first_points_ends_at_once():
    target = Target.of(
        lambda a: Normal(a, 1.0).log_prob(torch.tensor([1.0, math.nan])).sum(), {"a": ()}
    )
    with pytest.raises(ArgumentTypeError, match=r"of each of the first 2.*Try: finite data"):
        target.log_density(torch.zeros(300, 1, dtype=F64))


def test_a_complex_log_density_is_refused_and_a_change_in_place_has_a_hint():
    with pytest.raises(ArgumentValueError, match=r"real numbers; got torch\.complex128"):
        Target.of(lambda z: torch.complex(z.sum(), z.sum()), 1)

    def changed(z):
        z[0] = 2 * z[0]
        return -z.square().sum()

    with pytest.raises(ArgumentTypeError, match=r"Try: x = x.clone\(\) before"):
        Target.of(changed, 2)
