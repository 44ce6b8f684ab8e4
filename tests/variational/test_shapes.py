"""Shapes that are not near a Gaussian, or are large: kinks, edges, far peaks, refused points."""

import math

import pytest
import torch
from torch.distributions import Exponential, Normal, constraints

from kullback.variational import Target, assess, fit
from kullback.variational.diagnostics.missed_modes import probe
from kullback.variational.families.family import Frame
from kullback.variational.optimise.edges import edges, interior
from kullback.variational.optimise.natural_gradient import columns_of, natural_gradient
from truths import sd_of_groups

F64 = torch.float64
slow = pytest.mark.slow


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted(log_density, parameters, seed=0):
    return fit(log_density, parameters, generator=seeded(seed), progress=False)


def moments(found):
    values = torch.cat([v.reshape(len(v), -1) for v in found.posterior.values()], 1)
    return values.mean(0), values.std(0)


def last_of(steps):
    return list(steps)[-1]


@pytest.mark.parametrize("dim", [1, *(pytest.param(d, marks=slow) for d in (2, 3, 5, 20))])
def test_kinks_are_fitted(dim):
    """Laplace: mean 0, sd √2. The curvature at a point is 0, that over q's draws is not."""
    found = fitted(lambda z: -z.abs().sum(), dim)
    mean, sd = moments(found)
    assert not found.improper
    assert float(mean.abs().max()) < 0.1 * math.sqrt(2)
    assert float((sd / math.sqrt(2)).log().abs().max()) < 0.1
    if dim <= 2:
        assert found.converged and assess(found).level == "trust"


def hinge(x):
    return -5 * torch.relu(1 - x) - 2 * torch.relu(x - 3)


def plateaus(x):
    return -torch.relu(x.abs() - 1) - 4 * torch.relu(x.abs() - 2)


PIECES = {
    "hinge": hinge,
    "flat top": lambda x: -torch.relu(x.abs() - 5),
    "asymmetric Laplace": lambda x: -5 * torch.relu(-x) - torch.relu(x),
    "two slopes": plateaus,
    "cut normal": lambda x: -0.5 * x**2 - 4 * torch.relu(x - 1),
}
WAYS = {"alone": (1, 0), "three": (3, 0), "with normals": (1, 2)}


@pytest.mark.parametrize(
    ("piece", "way", "scale"),
    [
        ("hinge", "alone", 1.0),
        ("cut normal", "alone", -50.0),
        *(
            pytest.param(piece, way, scale, marks=slow)
            for piece in PIECES
            for way, scale in (("alone", 1e3), ("three", 1.0), ("with normals", 1e-3))
        ),
    ],
)
def test_straight_pieces_have_their_moments(piece, way, scale):
    """KL(q‖p) leaves a Gaussian's sd 5 % small: weighted draws put it right. By quadrature.

    0.05 is what moments off by less are left at, with 0.01 for 200,000 draws of q.
    """
    dims, normals = WAYS[way]
    x = torch.linspace(-40, 40, 400_001, dtype=F64)
    w = PIECES[piece](x).softmax(0)
    mean = float((w * x).sum())
    sd = float((w * (x - mean) ** 2).sum().sqrt())

    def log_density(z):
        y = (z - 7.0) / scale
        return PIECES[piece](y[:dims]).sum() - 0.5 * y[dims:].square().sum()

    found = fitted(log_density, dims + normals)
    z = (found.sample(200_000, seeded(1)) - 7.0) / scale
    wanted = (
        torch.tensor([[mean, 0.0], [sd, 1.0]])
        .double()
        .repeat_interleave(torch.tensor([dims, normals]), dim=1)
    )
    assert found.converged and assess(found).level == "trust"
    assert float(((z.mean(0) - wanted[0]) / wanted[1]).abs().max()) < 0.06
    assert float((z.std(0) / wanted[1]).log().abs().max()) < 0.06


def test_a_start_at_an_edge_is_given_up_early():
    """Where log p is -inf at draws no slope leads back: 20 steps, not 500."""
    found = fitted(lambda z: torch.where(z >= 0, -z, -math.inf).sum(), 1)
    assert len(found.trace) <= 40
    assert "constraints.greater_than(0)" in found.reason
    assert "declare z[1]: constraints.greater_than(0)" in assess(found).verdict


@slow
@pytest.mark.parametrize(
    ("log_density", "dim", "sd"),
    [
        (lambda z: -z.abs().max(), 2, 2.0),
        (lambda z: -z.abs().pow(1.5).sum(), 3, (math.gamma(2) / math.gamma(2 / 3)) ** 0.5),
        (lambda z: -7 * z[0].abs() - 0.5 * z[1] ** 2 - (z[1] - z[2]) ** 2, 3, None),
    ],
)
def test_other_kinks(log_density, dim, sd):
    found = fitted(log_density, dim)
    wanted = torch.tensor([math.sqrt(2) / 7, 1.0, math.sqrt(1.5)]) if sd is None else sd
    mean, got = moments(found)
    assert float((mean / wanted).abs().max()) < 0.1
    assert float((got / wanted).log().abs().max()) < 0.1


def test_a_kink_that_starts_far_too_wide_comes_to_the_optimum():
    """Of KL(q‖p) for −|z|: s = √(π/2), since E|z| = s √(2/π) and the entropy is log s."""
    target = Target.of(lambda z: -z.abs().sum(), 3)
    frame = Frame.diagonal(torch.full((3,), 5.0).double(), torch.full((3,), 1e6).double())
    last = last_of(natural_gradient(frame, target, seeded()))
    assert last.converged
    # of 512 draws 40 lie where the gradient differs: 8 % of an sd in one look; ten are averaged
    wanted = torch.full((3,), math.sqrt(math.pi / 2)).double()
    assert torch.allclose(last.family.frame.sd, wanted, rtol=4.5 * 0.08 / math.sqrt(6))


def test_columns_of_an_arrow_and_a_band():
    """Two dense coordinates and 100 independent ones: three groups; a band: three."""
    arrow = torch.eye(102, dtype=torch.bool)
    arrow[:2], arrow[:, :2] = True, True
    band = torch.eye(60, dtype=torch.bool)
    band |= band.roll(1, 0) & ~torch.eye(60, dtype=torch.bool).roll(1, 0).triu()
    band |= band.mT.clone()
    generator = seeded()
    for pattern in (arrow, band):
        columns = columns_of(pattern)
        assert len(columns.groups) == 3
        noise = torch.randn(len(pattern), len(pattern), generator=generator, dtype=F64)
        hessian = torch.where(pattern, noise + noise.mT, 0.0)
        width = torch.rand(len(pattern), generator=generator, dtype=F64) + 0.5
        differences = (columns.groups * width) @ hessian
        assert torch.allclose(columns.hessian(differences, width), hessian, atol=1e-12)


@slow
def test_a_long_autoregression_is_exact():
    """AR(1) with ρ = 0.99 in 400 dimensions: Gaussian, unit variances."""
    noise = math.sqrt(1 - 0.99**2)

    def log_density(z):
        return -0.5 * z[0] ** 2 - 0.5 * ((z[1:] - 0.99 * z[:-1]) / noise).square().sum()

    found = fitted(log_density, 400)
    frame = found.family.absorb()
    assert found.method == "natural_gradient" and found.converged
    assert torch.allclose(frame.sd, torch.ones(400).double(), rtol=1e-6)
    assert float(frame.shift.abs().max()) < 1e-6


@slow
def test_a_large_centred_hierarchy():
    """300 groups of 5: tau's and mu's moments by quadrature, to 0.15 sd and 12 %."""
    groups, each, generator = 300, 5, seeded(3)
    means = 1.0 + 0.7 * torch.randn(groups, generator=generator, dtype=F64)
    y = means[:, None] + torch.randn(groups, each, generator=generator, dtype=F64)

    def log_density(mu, tau, theta):
        prior = Normal(0, 5).log_prob(mu) + Normal(0, 2).log_prob(tau)
        inner = Normal(mu, tau).log_prob(theta).sum()
        return prior + inner + Normal(theta[:, None], 1.0).log_prob(y).sum()

    mean, sd = sd_of_groups(y)
    found = fitted(log_density, {"mu": (), "tau": constraints.positive, "theta": (groups,)})
    got = found.posterior["tau"]
    assert abs(float(got.mean()) - mean) < 0.15 * sd
    assert abs(math.log(float(got.std()) / sd)) < 0.12


def corner(dim):
    return lambda z: torch.where((z >= 0).all(), -z.sum(), -math.inf)


def triangle(z):
    inside = (z >= 0).all() & (z.sum() <= 1)
    return torch.where(inside, 0.0 * z.sum(), -math.inf)


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("log_density", "dim", "mean", "sd", "words"),
    [
        (
            lambda z: torch.where((z[0] > 2) & (z[0] < 5), 0.0 * z[0], -math.inf),
            1,
            3.5,
            3 / math.sqrt(12),
            "z[1]: constraints.interval(2, 5)",
        ),
        (corner(1), 1, 1.0, 1.0, r"z[1]: constraints.greater_than(0)"),
        (corner(3), 3, 1.0, 1.0, r"z[3]: constraints.greater_than(0)"),
        (triangle, 2, 1 / 3, 1 / math.sqrt(18), "not parallel"),
    ],
)
def test_hard_edges_are_fitted_and_the_constraint_is_named(log_density, dim, mean, sd, words):
    found = fitted(log_density, dim)
    means, sds = moments(found)
    # a thousand effective draws at least: 4.5 standard errors of a mean and of a log sd
    assert float((means - mean).abs().max()) < 0.15 * sd
    assert float((sds / sd).log().abs().max()) < 0.15
    assert words in found.reason


def test_edges_are_found_by_bisection():
    target = Target.of(lambda z: torch.where(z[1] < -3.25, -z.square().sum(), -math.inf), 2)
    points = interior(target, seeded())
    assert "z[2]: constraints.less_than(-3.25)" in edges(target, points)
    assert edges(Target.of(lambda z: -z.square().sum(), 2), points) == ""


def far_peak(nats):
    return lambda z: torch.logaddexp(-nats - 0.5 * z[0] ** 2, -0.5 * (z[0] - 20) ** 2)


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=slow) for s in range(1, 20))])
def test_a_peak_that_the_search_finds_is_fitted(seed):
    found = fitted(far_peak(65.0), 1, seed)
    mean, sd = moments(found)
    assert abs(float(mean) - 20) < 4.5 / math.sqrt(4000)
    assert abs(float(sd) - 1) < 4.5 / math.sqrt(8000)


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=slow) for s in range(1, 20))])
@pytest.mark.parametrize("share", [0.02, pytest.param(0.98, marks=slow)])
def test_two_peaks_of_unequal_mass(seed, share):
    def log_density(z):
        other = math.log1p(-share) - 0.5 * (z[0] - 20) ** 2
        return torch.logaddexp(math.log(share) - 0.5 * z[0] ** 2, other)

    found = fitted(log_density, 1, seed)
    near = float((found.draws[:, 0] < 10).double().mean())
    assert abs(near - share) < 4.5 * math.sqrt(0.02 * 0.98 / 4000) + 0.005


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=slow) for s in range(1, 5))])
def test_a_far_spike_is_found(seed):
    """Half the mass in a spike of sd 0.1 at (50, 50)."""

    def log_density(z):
        thin = -0.5 * ((z - 50) / 0.1).square().sum() - 2 * math.log(0.1)
        return torch.logaddexp(-0.5 * z.square().sum(), thin)

    found = fitted(log_density, 2, seed)
    mean = moments(found)[0]
    assert float((mean - 25).abs().max()) < 4.5 * 25 / math.sqrt(4000)


def test_more_peaks_than_a_mixture_begins_with_are_fitted():
    """Five unit normals of equal mass, 12 sd from the middle one and more from each other."""
    places = 12.0 * torch.tensor([[0.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]], dtype=F64)
    found = fitted(lambda z: (-0.5 * (z - places).square().sum(1)).logsumexp(0), 2)
    nearest = torch.cdist(found.draws, places).argmin(1)
    shares = torch.bincount(nearest, minlength=5) / 4000
    assert float((shares - 0.2).abs().max()) < 4.5 * math.sqrt(0.2 * 0.8 / 4000) + 0.005


@slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dims", [10, 20])
def test_skewed_densities_of_many_dimensions_get_moments_of_a_run(dims, seed):
    """The log of Exponential(1): mean −γ, variance π²/6; sds were 20 % small in 20 dimensions."""
    found = fitted(lambda z: (z - z.exp()).sum(), dims, seed)
    mean, sd = moments(found)
    off = (mean + 0.5772156649) / (math.pi / math.sqrt(6))
    # kurtosis 5.4: an sd of 4,000 draws has an error of 0.017; the run's is as large
    assert float(off.abs().max()) < 4.5 * math.sqrt(2 / 4000)
    assert float((sd * math.sqrt(6) / math.pi).log().abs().max()) < 4.5 * math.sqrt(2) * 0.017


@slow
@pytest.mark.parametrize("seed", range(3))
def test_a_hole_in_the_middle_leaves_a_fit_that_has_converged(seed):
    """A unit normal in 3-d without its ball of radius 1; the radius by quadrature."""

    def log_density(z):
        square = z.square().sum()
        return torch.where(square > 1, -0.5 * square, -math.inf)

    r = torch.linspace(1, 15, 400_001, dtype=F64)
    weights = (-0.5 * r**2 + 2 * r.log()).softmax(0)
    sd = math.sqrt(float((weights * r**2).sum()) / 3)
    found = fitted(log_density, 3, seed)
    assert found.converged
    assert float((moments(found)[1] / sd).log().abs().max()) < 0.05 + 4.5 / math.sqrt(8000)


@pytest.mark.parametrize(
    ("dims", "apart", "size"), [(1, 20.0, 1.0), (1, 10.0, 0.3), (2, 20.0, 1.0)]
)
def test_regions_apart_beyond_log_p_of_minus_inf_are_fitted(dims, apart, size):
    """Uniform on two balls, of radius 1 and `size`: the second holds size^d of the first's mass."""
    way = torch.full((dims,), apart / math.sqrt(dims), dtype=F64)

    def log_density(z):
        inside = (z.square().sum() < 1) | ((z - way).square().sum() < size**2)
        return torch.where(inside, 0.0 * z[0], -math.inf)

    found = fitted(log_density, dims)
    share = size**dims / (1 + size**dims)
    mean, sd = moments(found)
    true_sd = ((1 - share + share * size**2) / (dims + 2) + share * (1 - share) * way**2).sqrt()
    # 4,000 draws, and importance sampling of some 2,000 effective ones
    error = math.sqrt(1 / 4000 + 1 / 2000)
    assert float(((mean - share * way) / true_sd).abs().max()) < 4.5 * error
    assert float((sd / true_sd).log().abs().max()) < 4.5 * error
    assert "beyond log p = -inf" in assess(found).searched


def test_an_unmet_region_beyond_log_p_of_minus_inf_is_doubted():
    """A Gaussian on one of two intervals of equal mass, of flat density: no slope, no curvature."""

    def log_density(z):
        x = z[:, 0]
        inside = (x.abs() < 1) | ((x - 20).abs() < 1)
        return torch.where(inside, 0.0 * x, -math.inf)

    z = 0.6 * torch.randn(4000, 1, generator=seeded(), dtype=F64)
    log_q = Normal(0.0, 0.6).log_prob(z[:, 0])
    seen = probe(log_density, z, log_density(z), log_q, generator=seeded())
    # some 4096 * 0.17 / 3.5 / 2 points meet it: an error of 10 % of its mass
    assert abs(seen.share - 0.5) < 4.5 * 0.25 * 0.1
    assert abs(seen.distance - 20 / 0.6) < 1.5


def test_the_verdict_does_not_speak_for_peaks_beyond_its_reach():
    """Half the mass in a spike at 150 sd."""

    def log_density(z):
        thin = -0.5 * ((z[0] - 150) / 0.1) ** 2 - math.log(0.1)
        return torch.logaddexp(-0.5 * z[0] ** 2, thin)

    found = fitted(log_density, 1)
    seen = found.draws.max() > 100
    assert bool(seen) or assess(found).verdict.endswith(", and any beyond 40 sd.")


def test_the_search_says_how_far_it_looked():
    found = fitted(lambda z: -0.5 * z.square().sum(), 2)
    cost = "4,096 points and 20 rays to 100 sd, 96 climbs"
    words = f"searched for other peaks to 40 sd from q's mean ({cost}): "
    words += "one narrower than 0.08 of q's sd may have been missed"
    assert assess(found).searched == words
    assert words in str(found.summary)
    z = found.draws
    few = probe(found.target.log_density, z, found.log_p, found.log_q, starts=8, scanned=0)
    words = "searched for other peaks to 40 sd from q's mean (8 climbs): "
    assert few.words.startswith(words) and few.narrowest > 0.9


def test_refused_points_have_no_mass_and_are_counted():
    def log_density(z):
        positive = Exponential(1.0, validate_args=True).log_prob(z[0])
        return positive + Normal(0, z[0], validate_args=True).log_prob(z[1])

    target = Target.of(log_density, 2)
    assert not target.looped
    points = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [2.0, 0.0]]).double()
    log_p = target.log_density(points)
    assert log_p.isfinite().tolist() == [True, False, True] and log_p[1] == -math.inf
    assert target.refusals.count == 1 and "within the support" in str(target.refusals)


@slow
def test_a_centred_hierarchy_with_checked_arguments_does_not_crash():
    y = torch.randn(100, generator=seeded(), dtype=F64)

    def log_density(mu, tau, theta):
        inner = Normal(mu, tau).log_prob(theta).sum()
        return Normal(0.0, 5.0).log_prob(mu) - tau + inner + Normal(theta, 1.0).log_prob(y).sum()

    found = fitted(log_density, {"mu": (), "tau": constraints.positive, "theta": 100})
    assert not found.improper
    assert bool(found.log_p.isfinite().all())


@slow
def test_a_density_with_branches_is_fitted_in_few_calls():
    calls = 0

    def log_density(z):
        nonlocal calls
        calls += 1
        return (2.0 * z - z.exp()).sum() if float(z.detach().sum()) < 1e9 else -z.square().sum()

    with pytest.warns(UserWarning, match="one point at a time"):
        found = fitted(log_density, 3)
    assert found.target.looped and len(found.draws) == 1000
    assert calls < 12_000
    wanted = float(torch.digamma(torch.tensor(2.0)))
    assert float((moments(found)[0] - wanted).abs().max()) < 0.2
