"""Laws over the list of every family: normalised, draws agree with densities, exact gradients."""

import math
import subprocess
import sys

import pytest
import torch

from kullback.exact import quadrature
from kullback.variational import fit
from kullback.variational.families import NAMED, FullRank, MeanField, Mixture, StudentT
from kullback.variational.families.family import Frame
from kullback.variational.families.flow import bent as widened
from kullback.variational.families.flow import hubs_first, straight
from kullback.variational.optimise.deterministic import fixed_normals, minimise

F64 = torch.float64


def bent(name, dim, seed=0, size=0.3):
    """A family in a tilted frame, with parameters away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    name, _, how = name.partition(", ")
    if name == "flow":
        pytest.importorskip("zuko")
    factor = torch.eye(dim, dtype=F64) * 0.7
    factor += 0.2 * torch.ones(dim, dim, dtype=F64).tril(-1)
    frame = Frame.dense(torch.linspace(-0.3, 0.4, dim, dtype=F64), factor)
    family = NAMED[name](frame, **({"covariance": how} if how == "diagonal" else {}))
    for parameter in family.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=F64)
        parameter.data += size * noise / (10 if name == "flow" else 1)
    if how == "widened":
        family.widen(0.3)
    return family, generator


EVERY = [*sorted(NAMED), "flow, widened", "mixture, diagonal"]
every = pytest.mark.parametrize("name", EVERY)
every_flow_slow = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if "flow" in n else n for n in EVERY]
)


@pytest.mark.sweep(4)
@every
def test_log_prob_is_normalised(name):
    family, _ = bent(name, 2)
    reach = 60.0 if name == "student_t" else 12.0
    law = quadrature.posterior(
        lambda z: family.log_prob(z).detach(),
        lower=(-reach, -reach),
        upper=(reach, reach),
        nodes=240,
    )
    # a t with 5 degrees has mass of about (5/reach²)^2.5 outside the box
    left = 1e-6 if name == "student_t" else 1e-9
    assert abs(float(law.log_evidence)) < left + 10 * law.error


@every
def test_push_agrees_with_log_prob(name):
    family, generator = bent(name, 3)
    draws = family.push(family.noise(64, generator))
    torch.testing.assert_close(draws.log_q, family.log_prob(draws.z), rtol=1e-10, atol=1e-10)
    if draws.share is not None:
        assert float(draws.share.detach().sum()) == pytest.approx(1.0, abs=1e-14)


@every_flow_slow
def test_samples_follow_the_density(name):
    """Means of bounded functions from samples against quadrature of the density."""
    family, generator = bent(name, 1)
    law = quadrature.posterior(
        lambda z: family.log_prob(z).detach(), lower=-40, upper=40, nodes=800
    )
    z = family.sample(20_000, generator)
    for function in (torch.tanh, torch.sin, lambda x: (x > 0.1).double()):
        truth = float(law.expectation(lambda z, f=function: f(z[:, 0])))
        terms = function(z[:, 0])
        error = float(terms.std()) / math.sqrt(len(z))
        slack = 0.02 if function is not torch.tanh and function is not torch.sin else 1e-6
        assert abs(float(terms.mean()) - truth) < 4.5 * error + slack


@pytest.mark.sweep(3)
@every
def test_pushed_means_have_the_gradient_of_the_expectation(name):
    """∂/∂φ of a pushed mean over a fine normal grid against ∂/∂φ of the integral of q f."""
    family, _ = bent(name, 1)
    nodes = quadrature.posterior(
        lambda z: family.log_prob(z).detach(), lower=-40, upper=40, nodes=800
    )
    z, mass = nodes.nodes, nodes.log_weights.exp()
    parameters = list(family.parameters())
    weighted = (mass * family.log_prob(z).exp() * z[:, 0].tanh()).sum()
    exact = torch.autograd.grad(weighted, parameters, allow_unused=True)
    if family.noise_dim != 1:
        noise = family.noise(200_000, torch.Generator().manual_seed(1))
        noise = torch.cat([noise, -noise])
        tolerance = 0.02
    else:
        levels = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
        noise, tolerance = torch.special.ndtri(levels)[:, None], 1e-5
    draws = family.push(noise)
    pushed = torch.autograd.grad(draws.mean(draws.z[:, 0].tanh()), parameters, allow_unused=True)
    for one, other in zip(pushed, exact, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@every
def test_closed_form_entropy(name):
    family, _ = bent(name, 1)
    entropy = family.entropy()
    if entropy is None:
        return
    law = quadrature.posterior(
        lambda z: family.log_prob(z).detach(), lower=-40, upper=40, nodes=800
    )
    truth = -law.expectation(lambda z: family.log_prob(z).detach())
    tolerance = 1e-3 if name == "student_t" else 1e-9
    assert float(entropy.detach()) == pytest.approx(float(truth), abs=tolerance)


@every
def test_the_gradient_of_log_prob_is_the_derivative(name):
    family, generator = bent(name, 2)
    z = family.sample(3, generator).requires_grad_()
    assert torch.autograd.gradcheck(family.log_prob, (z,), eps=1e-6, atol=1e-6)
    held = torch.autograd.grad(family.held_log_prob(z).sum(), z)[0]
    free = torch.autograd.grad(family.log_prob(z).sum(), z)[0]
    torch.testing.assert_close(held, free, rtol=1e-12, atol=1e-12)
    assert not any(p.grad is not None for p in family.parameters())


@pytest.mark.parametrize("heavy", [0.0, 0.1, 0.27, 1.0])
def test_a_widened_flow_keeps_the_variance_of_its_base(heavy):
    """One coordinate by quadrature over a normal grid: variance 1, and tails that are heavier."""
    levels = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    e = torch.special.ndtri(levels)[:, None]
    base, _ = widened(e, heavy)
    # the grid leaves out the outer halves of its last cells: e^(2h|e|) of 2.5e-6 there
    assert float(base.square().mean()) == pytest.approx(1.0, abs=2e-4 if heavy < 1 else 0.02)
    torch.testing.assert_close(straight(base, heavy), e, rtol=1e-12, atol=1e-12)
    far = torch.full((1, 1), 8.0, dtype=F64)
    density = widened(straight(far, heavy), heavy)[1]
    normal = -0.5 * (64 + math.log(2 * math.pi))
    assert float(density) >= normal - 1e-12


def test_a_flow_turns_so_that_hubs_come_first():
    """θ_j = μ + τ e_j, with μ last: the turned triangle has μ alone on its first coordinate."""
    theta = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 0.7]], dtype=F64)
    whole = torch.zeros(4, 4, dtype=F64)
    whole[:3, :3], whole[:, 3] = theta, 1.0
    factor = torch.linalg.cholesky(whole @ whole.mT)
    turn = hubs_first(factor)
    torch.testing.assert_close(turn @ turn.mT, torch.eye(4, dtype=F64), rtol=0, atol=1e-14)
    mean = (factor @ turn)[3]
    torch.testing.assert_close(mean, torch.tensor([1.0, 0, 0, 0], dtype=F64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", [FullRank, MeanField])
def test_an_absorbed_gaussian_is_the_same(kind):
    family, generator = bent(kind.name, 3)
    again = kind(family.absorb())
    z = family.sample(10, generator)
    torch.testing.assert_close(again.log_prob(z), family.log_prob(z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_mixture_starts_where_it_is_told(covariance):
    means = torch.tensor([[-3.0], [2.0]], dtype=F64)
    factors = torch.tensor([[[0.5]], [[0.25]]], dtype=F64)
    frame = Frame.diagonal(torch.tensor([1.0], dtype=F64), torch.tensor([2.0], dtype=F64))
    starts = [Frame.dense(*parts) for parts in zip(means, factors, strict=True)]
    q = Mixture(frame, starts=starts, covariance=covariance)
    z = torch.linspace(-5, 5, 7, dtype=F64)[:, None]
    parts = torch.distributions.Normal(means[:, 0], factors[:, 0, 0])
    truth = parts.log_prob(z).logsumexp(-1) - math.log(2)
    torch.testing.assert_close(q.log_prob(z), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [FullRank, MeanField, StudentT, Mixture])
def test_a_frame_with_one_scale_an_axis_is_kept(kind):
    """No d by d matrix is made of it, and the law is that of the same frame as a matrix."""
    frame = Frame.diagonal(torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([0.5, 3.0]).double())
    q, same = kind(frame), kind(Frame.dense(frame.shift, frame.factor))
    assert q.scale.shape == (2,)
    z = 3 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(q.log_prob(z), same.log_prob(z), rtol=1e-12, atol=1e-12)


def test_a_frame_seen_from_another():
    generator = torch.Generator().manual_seed(0)
    one, two = (
        torch.randn(3, 3, generator=generator, dtype=F64).tril() + 3 * torch.eye(3)
        for _ in range(2)
    )
    shift = torch.randn(2, 3, generator=generator, dtype=F64)
    pairs = [
        (one, two),
        (one, two.diagonal()),
        (one.diagonal(), two),
        (one.diagonal(), two.diagonal()),
    ]
    u = torch.randn(4, 3, generator=generator, dtype=F64)
    for first, second in pairs:
        here, there = Frame(shift[0], first), Frame(shift[1], second)
        seen = here.inside(there)
        torch.testing.assert_close(here.outwards(seen.outwards(u)), there.outwards(u))
        again = here.then(seen.shift, seen.scale)
        torch.testing.assert_close(again.outwards(u), there.outwards(u))
        torch.testing.assert_close(here.sd, here.factor.square().sum(1).sqrt())


@pytest.mark.parametrize("degrees", [3, 5, 20])
def test_fixed_noise_gives_a_student_t_its_exact_covariance(degrees):
    q = StudentT(Frame.identity(4), degrees=degrees)
    fixed = fixed_normals(64, q.noise_dim, torch.Generator().manual_seed(0))
    z = q.push(q.balanced(fixed)).z.detach()
    truth = degrees / (degrees - 2) * torch.eye(4, dtype=F64)
    torch.testing.assert_close(z.mT @ z / 64, truth, rtol=1e-12, atol=1e-12)
    assert float(z.mean(0).abs().max()) < 1e-12
    least = fixed_normals(16, q.noise_dim, torch.Generator().manual_seed(0))  # four a dimension
    z = q.push(q.balanced(least)).z.detach()
    torch.testing.assert_close(z.mT @ z / 16, truth, rtol=1e-12, atol=1e-12)
    few = fixed[:8]
    assert q.balanced(few) is few and StudentT(q.frame, degrees=2).balanced(fixed) is fixed


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: NAMED["low_rank"](f, rank=9), "rank: expected 1 to 2; got 9"),
        (lambda f: NAMED["student_t"](f, degrees=0), "degrees: expected a whole number"),
        (lambda f: NAMED["flow"](f).widen(2.0), "h: expected 0 to 1; got 2.0"),
        (lambda f: NAMED["mixture"](f, components=0), "components: expected at least 1"),
        (
            lambda f: Mixture(f, starts=[Frame.identity(3)]),
            "starts: expected frames of 2 dimensions",
        ),
        (lambda f: Mixture(f, covariance="low"), "covariance: expected auto, full or diagonal"),
        (lambda f: FullRank(f).log_prob(torch.zeros(3)), r"z: expected \[n, 2\]"),
        (lambda f: FullRank(f).sample(0), "n: expected at least 1"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make(Frame.identity(2))


@pytest.mark.slow
def test_the_flow_leaves_torchs_checks_on():
    """Importing zuko switches the argument checks of all distributions off; they are put back."""
    pytest.importorskip("zuko")
    script = (
        "import torch; from torch.distributions import Distribution\n"
        "from kullback.variational.families import Flow\n"
        "from kullback.variational.families.family import Frame\n"
        "Flow(Frame.dense(torch.zeros(2), torch.eye(2)))\n"
        "assert Distribution._validate_args\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("n", [2.5, "10", True, None])
def test_a_number_of_draws_is_an_integer(n):
    found = fit(lambda z: -0.5 * (z * z).sum(), 1, progress=False)
    with pytest.raises(TypeError, match="n: expected int"):
        found.sample(n)


@pytest.mark.parametrize("dim", [1, 3])
def test_fixed_normals_are_white_from_four_a_dimension_on(dim):
    generator = torch.Generator().manual_seed(0)
    identity = torch.eye(dim, dtype=F64)
    for n in (4 * dim, 4 * dim - 1):  # an odd number is rounded up
        points = fixed_normals(n, dim, generator)
        assert len(points) == 4 * dim
        torch.testing.assert_close(points.mT @ points / len(points), identity)
    if dim > 1:
        few = fixed_normals(4 * dim - 2, dim, generator)
        second = few.mT @ few / len(few)
        torch.testing.assert_close(second.diagonal(), torch.ones(dim, dtype=F64))
        assert float((second - identity).abs().max()) > 1e-3


def test_the_second_step_of_a_round_bowl_ends_at_its_bottom():
    """The curvature along one line is known after one step, and the first length tried is 1."""
    steps = minimise(lambda x: (float(x.square().sum()), 2 * x), torch.ones(2, dtype=F64))
    _, _, third = (next(steps) for _ in range(3))
    assert third.evaluations == 3
    assert third.loss < 1e-28


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("inverse", [False, True])
def test_coupling_layers_are_those_of_zuko(dim, inverse):
    """The same numbers as zuko's own transform, and its gradient in the parameters."""
    flow, generator = bent("flow", dim)
    x = torch.randn(50, dim, generator=generator, dtype=F64)
    theirs = flow.flow().transform.inv if inverse else flow.flow().transform
    pairs = zip(flow._through(x, inverse=inverse), theirs.call_and_ladj(x), strict=True)
    parameters = list(flow.parameters())
    for ours, wanted in pairs:
        torch.testing.assert_close(ours, wanted, rtol=1e-14, atol=1e-14)
        gradients = [
            torch.autograd.grad(value.square().sum(), parameters, retain_graph=True)
            for value in (ours, wanted)
        ]
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)
