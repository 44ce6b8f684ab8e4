"""Improper targets are said to be, by name; proper ones with heavy tails are not."""

import math
import re

import pytest
import torch
from torch.distributions import Normal, constraints

from kullback.variational import Parameter, Target, fit
from kullback.variational.diagnostics.propriety import improper, undecaying
from kullback.variational.optimise.starts import find_start

F64 = torch.float64
softplus = torch.nn.functional.softplus
positive = constraints.positive


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def vector(*values):
    return torch.tensor(values, dtype=F64)


def normal(x, mean, sd):
    return Normal(mean, sd, validate_args=False).log_prob(x).sum()


x = torch.randn(30, 2, generator=seeded(3), dtype=F64)
rows = torch.cat([torch.ones(30, 1, dtype=F64), x], 1)
separated = (x[:, 0] - 0.3 * x[:, 1] > 0.05).double()
mixed = (torch.rand(30, generator=seeded(4), dtype=F64) < torch.sigmoid(x[:, 0])).double()
dose, died = vector(-2.0, -1, 1, 2), vector(0.0, 0, 1, 1)
effect, error = vector(28.0, 8, -3, 7, -1, 1, 18, 12), vector(15.0, 10, 16, 11, 9, 11, 10, 18)
counts, group = vector(3.0, 5, 2, 0, 0), vector(0.0, 0, 0, 1, 1)


def logistic(eta, y):
    return (y * eta - softplus(eta)).sum()


def not_centred(mu, tau, u):
    return normal(u, 0.0, 1.0) + normal(effect, mu + tau * u, error)


def centred(mu, tau, theta, n=8):
    return normal(theta, mu, tau) + normal(effect[:n], theta, error[:n])


SCHOOLS = {"mu": (), "tau": positive, "u": (8,)}
IMPROPER = {
    "separable logistic": (
        lambda a, b: logistic(a + b * dose, died),
        {"a": (), "b": ()},
        "b goes to infinity",
    ),
    "separable in a combination": (lambda w: logistic(rows @ w, separated), {"w": (3,)}, r"w\[2\]"),
    "separable probit": (
        lambda w: torch.log(0.5 * torch.erfc((1 - 2 * separated) * (rows @ w) / 1.5)).sum(),
        {"w": (3,)},
        r"w\[2\]",
    ),
    "quasi-separable: a group all ones": (
        lambda a, b: logistic(
            a + b * group, torch.maximum(died.new_tensor([1, 0, 1, 0, 0]), group)
        ),
        {"a": (), "b": ()},
        "b goes to infinity",
    ),
    "poisson: a group all zeros": (
        lambda a, b: (counts * (a + b * group) - (a + b * group).exp()).sum(),
        {"a": (), "b": ()},
        "b goes to -infinity",
    ),
    "partial likelihood, separated": (
        lambda b: sum(b * dose[i] - torch.logsumexp(b * dose[: i + 1], 0) for i in range(4)),
        {"b": ()},
        "b goes to infinity",
    ),
    "only a sum is identified": (
        lambda a, b: -0.5 * (x[:, 0] - a - b).square().sum(),
        {"a": (), "b": ()},
        "a .*b ",
    ),
    "softmax without a reference": (
        lambda w: torch.log_softmax(w, 0) @ vector(3.0, 5, 2),
        {"w": (3,)},
        r"w\[1\], w\[2\], w\[3\]",
    ),
    "1/tau at zero": (
        lambda mu, tau, u: normal(mu, 0.0, 5.0) - tau.log() + not_centred(mu, tau, u),
        SCHOOLS,
        "unconstrained tau goes to -infinity",
    ),
    "a lapse rate keeps the likelihood up": (
        lambda b: (0.9 * torch.sigmoid((2 * mixed - 1) * (x @ b)) + 0.05).log().sum(),
        {"b": (2,)},
        "b",
    ),
    "a location without data": (lambda mu, b: -0.5 * mu**2 + 0 * b, {"mu": (), "b": ()}, "b "),
    "haldane, all of five": (
        lambda p: 5 * p.log() - p.log() - torch.log1p(-p),
        {"p": constraints.unit_interval},
        "p goes to infinity",
    ),
    "haldane, none of five": (
        lambda p: 5 * torch.log1p(-p) - p.log() - torch.log1p(-p),
        {"p": constraints.unit_interval},
        "p goes to -infinity",
    ),
    "tail 1/sqrt(t)": (lambda z: -0.25 * torch.log1p(z.square()).sum(), 1, "z"),
}
PROPER = {
    "cauchy": (lambda z: -torch.log1p(z.square()).sum(), 3),
    "spherical cauchy": (lambda z: -3 * torch.log1p(z.square().sum()), 5),
    "t, half a degree of freedom": (lambda z: -0.75 * torch.log1p(2 * z.square()).sum(), 1),
    "cauchy in other units": (lambda z: -torch.log1p(((z - 1e4) / 1e3).square()).sum(), 2),
    "laplace": (lambda z: -z.abs().sum(), 4),
    "separable, cauchy prior": (
        lambda w: logistic(rows @ w, separated) - torch.log1p((w / 2.5).square()).sum(),
        3,
    ),
    "separable, wide normal prior": (
        lambda w: logistic(rows @ w, separated) - 0.5 * (w / 100).square().sum(),
        3,
    ),
    "not separable, flat prior": (lambda w: logistic(rows @ w, mixed), 3),
    "half-cauchy scale": (lambda tau: -torch.log1p(tau.square()), {"tau": positive}),
    "log-normal scale, sd 10": (lambda s: -s.log() - 0.5 * (s.log() / 10) ** 2, {"s": positive}),
    "1/sigma with eight data": (
        lambda mu, s: -s.log() + normal(effect, mu, s),
        {"mu": (), "s": positive},
    ),
    "schools, half-cauchy": (
        lambda mu, tau, u: (
            normal(mu, 0.0, 5.0) - torch.log1p((tau / 5) ** 2) + not_centred(mu, tau, u)
        ),
        SCHOOLS,
    ),
    "schools, flat mu and tau": (not_centred, SCHOOLS),
    "schools, centred": (
        lambda mu, tau, theta: (
            normal(mu, 0.0, 5.0) - torch.log1p((tau / 5) ** 2) + centred(mu, tau, theta, 3)
        ),
        {"mu": (), "tau": positive, "theta": (3,)},
    ),
    "flat top": (lambda z: -0.5 * z[0] ** 2 - (z[1] / 50) ** 20, 2),
    "flat top, off centre": (lambda z: -0.5 * z[0] ** 2 - ((z[1] - 300) / 100) ** 12, 2),
    "three flat tops": (lambda z: -((z / vector(5.0, 50.0, 5000.0)) ** 16).sum(), 3),
    "plateau with slopes": (
        lambda z: -torch.nn.functional.softplus(3 * (z.abs() - 400)).sum(),
        2,
    ),
    "horseshoe": (
        lambda b, lam, tau: (
            normal(b, 0.0, lam * tau)
            - torch.log1p(lam**2).sum()
            - torch.log1p(tau**2)
            + normal(b, vector(0.1, 4.0, -0.2), 1.0)
        ),
        {"b": (3,), "lam": Parameter((3,), positive), "tau": positive},
    ),
    "funnel": (
        lambda v, z: normal(v, 0.0, 3.0) + normal(z, 0.0, (v / 2).exp()),
        {"v": (), "z": (4,)},
    ),
    "beta(0.1, 0.1)": (
        lambda p: -0.9 * (p.log() + torch.log1p(-p)),
        {"p": constraints.unit_interval},
    ),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", IMPROPER)
def test_improper_targets_are_said_to_be(name):
    log_density, parameters, words = IMPROPER[name]
    found = fit(log_density, parameters, generator=seeded(), progress=False)
    assert found.improper and not found.converged, found.reason
    assert re.search(words, found.reason), found.reason
    assert found.summary.verdict == f"Do not trust: {found.reason}."
    assert all(math.isinf(row.mean_error) for row in found.summary.rows)


@pytest.mark.sweep(8)
@pytest.mark.parametrize("name", PROPER)
def test_proper_targets_with_heavy_tails_are_not(name):
    """From the start of a fit, and from a law ten times as wide."""
    target = Target.of(*PROPER[name])
    frame = find_start(target, seeded())[0].frame
    noise = torch.randn(200, target.dim, generator=seeded(), dtype=F64)
    assert improper(target, frame.outwards(noise)) == ""
    assert improper(target, frame.outwards(10 * noise)) == ""


def beta(a):
    return lambda p: (a - 1) * (p.log() + torch.log1p(-p)), {"p": constraints.unit_interval}


def groups(log_prior, coordinate, centred, count=4, spread=0.5, scales=1):
    """y_j ~ N(theta_j, s_j²), theta_j ~ N(mu, tau²); log_prior: of log tau, for each tau."""
    generator = seeded(count)
    sd = 0.5 + torch.rand(count, generator=generator, dtype=F64)
    y = 1.0 + spread * torch.randn(count, generator=generator, dtype=F64)
    y = y + sd * torch.randn(count, generator=generator, dtype=F64)

    def log_density(mu, s, theta):
        log_tau, jacobian = {
            "tau": (s.log(), -s.log().sum()),
            "variance": (0.5 * s.log(), -s.log().sum()),
            "log tau": (s, 0.0),
        }[coordinate]
        total = normal(mu, 0.0, 5.0) + log_prior(log_tau).sum() + jacobian
        for tau, these in zip(log_tau.exp().unbind(), theta.unbind(), strict=True):
            if centred:
                total = total + normal(these, mu, tau) + normal(y, these, sd)
            else:
                total = total + normal(these, 0.0, 1.0) + normal(y, mu + tau * these, sd)
        return total

    real = coordinate == "log tau"
    scale = (scales,) if real else Parameter((scales,), positive)
    return log_density, {"mu": (), "s": scale, "theta": (scales, count)}


def scanned(log_density, parameters):
    """What is said of a target at the start of a fit to it."""
    target = Target.of(log_density, parameters)
    frame = find_start(target, seeded())[0].frame
    draws = frame.outwards(torch.randn(256, target.dim, generator=seeded(), dtype=F64))
    return improper(target, draws, scales=True)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("coordinate", ["tau", "variance", "log tau"])
@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_scale_without_a_proper_prior_at_0_is_improper(coordinate, centred, count):
    """1/tau, 1/tau² for the variance, flat for log tau: p(y | tau = 0) > 0, so ∫ dtau/tau = ∞."""
    said = scanned(*groups(lambda v: 0 * v, coordinate, centred, count))
    assert re.search(r"s\[1\] goes to -infinity", said), said


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize("scales", [1, 2])
def test_improper_scales_are_found_wherever_the_fit_begins(spread, scales):
    """In the neck of the funnel, where the data are equal, and far above it, where they are not."""
    assert "goes to -infinity" in scanned(
        *groups(lambda v: 0 * v, "tau", True, spread=spread, scales=scales)
    )
    if scales == 1:  # 1/tau²
        assert "goes to -infinity" in scanned(*groups(lambda v: -v, "tau", True, spread=spread))


@pytest.mark.slow
@pytest.mark.sweep(16)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    "log_prior",
    [
        lambda v: v - torch.log1p((2 * v).exp()),  # half-Cauchy
        lambda v: v - 0.5 * (2 * v).exp(),  # half-normal
        lambda v: v - 100 * softplus(20 * (v - math.log(100))),  # uniform on [0, 100], nearly
        lambda v: -0.002 * v - 0.001 * (-2 * v).exp(),  # variance InverseGamma(0.001, 0.001)
        lambda v: 0.1 * v - 0.1 * v.exp(),  # gamma(0.1, 0.1)
        lambda v: 0.01 * v - 0.01 * v.exp(),
        lambda v: -0.5 * (v / 30) ** 2,  # log-normal
        lambda v: -torch.log1p(v**2),  # 1/(tau (1 + log² tau))
    ],
)
def test_proper_priors_of_scales_are_not_improper(log_prior, centred):
    assert scanned(*groups(log_prior, "tau", centred)) == ""


@pytest.mark.parametrize("a", [0.5, 0.1, 0.01, 0.001])
def test_proper_beta_priors_are_not_improper(a):
    assert scanned(*beta(a)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("data", [[2.0], [2.0, 2.0, 2.0], [2.0, 2.5]])
def test_the_scale_of_data_that_agree_is_improper(data):
    """Under 1/sigma: one datum, or several that are equal, and not two that differ."""

    def log_density(mu, s):
        return -s.log() + normal(vector(*data), mu, s)

    said = scanned(log_density, {"mu": (), "s": positive})
    assert bool(said) == (len({*data}) == 1)


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("coordinate", ["tau", "log tau"])
def test_a_centred_hierarchy_under_1_over_tau_is_given_up_before_the_fit(coordinate):
    target = groups(lambda v: 0 * v, coordinate, centred=True)
    found = fit(*target, generator=seeded(), progress=False)
    assert found.improper and not found.converged
    assert "the marginal of p does not decay" in found.summary.verdict


@pytest.mark.parametrize("power", [4, 8, 20])
@pytest.mark.parametrize("width", [10.0, 50.0, 1e5])
def test_a_start_inside_a_flat_top_is_as_wide_as_the_top(power, width):
    """The sd of exp(−|z/a|^k) is a √(Γ(3/k)/Γ(1/k)); at 0 there is no curvature that says so."""
    target = Target.of(lambda z: -((z / width) ** power).sum(), 2)
    truth = width * math.exp(0.5 * (math.lgamma(3 / power) - math.lgamma(1 / power)))
    best = find_start(target, seeded())[0]
    assert bool((best.frame.sd / truth).log().abs().max() < math.log(4))


def test_a_slope_that_rounding_hides_is_not_flat():
    """Where log p is −1e128 the fall of −z² is lost; where it is −1e6 it is not."""
    z = torch.randn(200, 2, generator=seeded(), dtype=F64)
    for away, said in ((1e128, ""), (1e6, "log p does not decay as z[1] goes to infinity")):
        assert undecaying(lambda z, low=away: -low - 0 * z[:, 0], z[:, :1]) == said


@pytest.mark.slow
@pytest.mark.parametrize(("power", "width"), [(20, 50.0), (100, 3.0), (200, 1.0)])
def test_a_flat_top_is_fitted(power, width):
    """Steep walls beside it are no unbounded density, and no direction without end."""
    found = fit(lambda z: -((z / width) ** power).sum(), 2, generator=seeded(), progress=False)
    truth = width * math.exp(0.5 * (math.lgamma(3 / power) - math.lgamma(1 / power)))
    assert not found.improper, found.reason
    off = (found.draws.std(0) / truth).log().abs()
    assert bool((off <= found.diagnosis.log_sd_bound).all())


@pytest.mark.slow
def test_a_kink_is_no_unbounded_density():
    """At a kink no curvature is seen and the start is far too wide; the fit shrinks, and ends."""
    found = fit(*PROPER["laplace"], family="full_rank", generator=seeded(), progress=False)
    assert not found.improper, found.reason
    assert float(found.draws.std(0).max()) < 10.0


@pytest.mark.parametrize("degrees", [0.1, 0.5, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("dims", [1, 2, 7])
def test_tails_of_a_t_decay_and_flatter_ones_do_not(degrees, dims):
    """Along a line a t falls by (1 + degrees) log t: proper above 1, improper from 1 down."""
    z = torch.randn(200, dims, generator=seeded(), dtype=F64)

    def tail(power):
        return lambda z: -0.5 * power * torch.log1p(z.square()).sum(1)

    assert undecaying(tail(1 + degrees), z) == ""
    assert undecaying(tail(1 - degrees / 31), z) != ""


def test_a_density_that_underflows_on_the_way_is_no_plateau():
    """Regression with a scale: after a fall of 1e17 nats log p rises along a ray that widens it."""
    z = torch.randn(200, 2, generator=seeded(), dtype=F64) * vector(1e-3, 0.1) + vector(1.0, 0.0)

    def log_density(z):
        scale = (1e-6 * z[:, 1]).exp()
        return -50 * scale.log() - 0.5 * 1e6 * ((z[:, 0] - 1.0) / scale).square()

    slanted = torch.stack([z[:, 0], 1e3 * (z[:, 0] - 1.0)], 1)  # both move together
    assert undecaying(log_density, slanted + 1e-6 * z) == ""


@pytest.mark.slow
def test_distributions_that_check_their_scale_are_followed_as_far_as_they_go():
    """Normal(0, exp(v)) raises where exp(v) is 0; the other directions are still followed."""

    def proper(v, x):
        checked = Normal(0.0, torch.exp(v / 2), validate_args=True)
        return Normal(0.0, 3.0).log_prob(v) + checked.log_prob(x).sum()

    def flat(v, x, c):
        return proper(v, x) + 0 * c

    z = torch.randn(200, 6, generator=seeded(), dtype=F64)
    target = Target.of(proper, {"v": (), "x": (4,)})
    assert bool((target.log_density(z[:, :5] - 1e4) == -math.inf).all())
    assert target.refusals.count == 200
    assert improper(target, z[:, :5]) == ""
    assert "as c goes to infinity" in improper(Target.of(flat, {"v": (), "x": (4,), "c": ()}), z)


def test_a_bounded_support_is_no_flat_direction():
    z = torch.rand(200, 2, generator=seeded(), dtype=F64)

    def box(z):
        return torch.where((z.abs() < 1e4).all(1), 0.0, -math.inf)

    assert undecaying(box, z) == ""
    assert undecaying(lambda z: torch.where(z[:, 0].abs() < 1e4, 0.0, -math.inf), z) != ""


@pytest.mark.slow
@pytest.mark.sweep(4)
@pytest.mark.parametrize("degrees", [1.0, 1.6, 1.9, 2.1, 2.5, 3.0, 4.0, 5.0])
def test_an_sd_that_draws_do_not_show_is_bounded_by_the_tail_index(degrees):
    """The truth of a t distribution: sd = √(ν/(ν−2)), none at ν ≤ 2, no mean at ν ≤ 1."""

    def student(z):
        return -(degrees + 1) / 2 * torch.log1p(z[0] ** 2 / degrees)

    found = fit(student, 1, progress=False)
    row = found.summary.rows[0]
    if degrees <= 2:
        assert found.diagnosis.level == "do not trust"
        assert row.sd_error == math.inf
        assert (row.mean_error == math.inf) == (degrees <= 1)
    else:
        off = abs(math.log(row.sd / math.sqrt(degrees / (degrees - 2))))
        assert found.diagnosis.level == "do not trust" or off < math.log1p(row.sd_error)


def test_a_density_that_refuses_far_points_is_asked_few_times():
    """Each of 54 ways is refused from another place on; halves find it in 14 calls, not 40."""
    reach = 10.0 ** torch.linspace(8, 2, 13, dtype=F64)
    calls = []

    def refusing(z):
        calls.append(len(z))
        if bool((z.abs() > reach).any()):
            raise ValueError("too far")
        return torch.where(z[:, 0] > 0, 0.0, -z[:, 0].abs()) - z[:, 1:].abs().sum(1)

    z = torch.randn(100, 13, generator=seeded(), dtype=F64)
    names = [f"z{j}" for j in range(13)]
    assert undecaying(refusing, z, names) == "log p does not decay as z0 goes to infinity"
    assert len(calls) < 54 * 15


@pytest.mark.parametrize(
    ("log_p", "parameters"),
    [
        (lambda th, mu: 3 * torch.cos(th - 0.5) - mu * mu, {"th": (), "mu": ()}),
        (lambda mu, th: torch.cos(2 * th).sum() - mu * mu, {"mu": (), "th": (2,)}),
    ],
)
def test_an_angle_without_bounds_is_named(log_p, parameters):
    target = Target.of(log_p, parameters)
    draws = torch.randn(50, target.dim, generator=seeded(), dtype=F64)
    assert "log p has period 2 pi in th" in improper(target, draws)


def test_a_wave_with_a_prior_is_no_angle():
    draws = torch.randn(50, 2, generator=seeded(), dtype=F64)
    wave = Target.of(lambda z: 3 * torch.cos(z).sum() - 1e-4 * (z * z).sum(), 2)
    flat = Target.of(lambda z: -(z[0] ** 2) + 0 * z[1], 2)
    assert improper(wave, draws) == "" and "period" not in improper(flat, draws)
