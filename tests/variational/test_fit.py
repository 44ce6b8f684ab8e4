"""Fits against closed forms: the identity at every step, known posteriors, hopeless ones."""

import math
import re

import pytest
import torch

from kullback.core import RunError
from kullback.exact import LinearGaussian, quadrature
from kullback.exact.closed_forms import kl
from kullback.variational import FullRank, Target, fit, objectives
from kullback.variational.families import NAMED
from kullback.variational.families.family import Frame
from kullback.variational.objectives import loss_of
from kullback.variational.optimise.batch_and_match import match
from kullback.variational.optimise.deterministic import deterministic, fixed_normals
from kullback.variational.optimise.starts import find_start
from kullback.variational.optimise.stochastic import Adam, Window, one_round, stochastic

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_gaussian(dim=3):
    generator = seeded(1)
    weight = torch.randn(5, dim, generator=generator, dtype=F64)
    model = LinearGaussian(
        weight, bias=torch.zeros(5, dtype=F64), scale=torch.tensor(0.5, dtype=F64)
    )
    return model, torch.randn(5, generator=generator, dtype=F64)


def normal_of(family):
    frame = family.absorb()
    return torch.distributions.MultivariateNormal(frame.shift, scale_tril=frame.factor.contiguous())


@pytest.mark.parametrize("name", ["full_rank", "mean_field"])
def test_the_identity_at_every_step(name):
    """ELBO + KL(q‖posterior) = log evidence (MATH 2.1), where all three are exact."""
    model, x = linear_gaussian()
    target = Target.of(lambda z: model.log_joint(x, z), 3)
    family = NAMED[name](
        Frame.diagonal(torch.tensor([3.0, -2.0, 1.0]).double(), torch.ones(3).double())
    )
    evidence, posterior, steps = model.log_evidence(x), model.posterior(x), 0
    fitted = deterministic(family, loss_of(target), seeded(), draws=64, max_draws=64)
    for now in fitted:
        q = normal_of(now.family)
        total = -now.loss + float(kl(q, posterior))
        assert total == pytest.approx(float(evidence), abs=1e-8)
        steps += 1
    assert steps > 3 and now.converged
    if name == "full_rank":
        assert float(kl(normal_of(now.family), posterior)) < 1e-6


def test_the_identity_in_one_dimension_by_quadrature():
    """A target that is not Gaussian: ELBO by quadrature, evidence and KL by quadrature."""
    log_p = lambda z: -0.25 * z[..., 0] ** 4 + 0.5 * z[..., 0]  # noqa: E731
    law = quadrature.posterior(log_p, lower=-8, upper=8, nodes=400)
    target = Target.of(lambda z: log_p(z), 1)
    z, weights = law.nodes, law.log_weights
    fitted = deterministic(
        FullRank(Frame.identity(1)), loss_of(target), seeded(), draws=64, max_draws=64
    )
    for now in fitted:
        log_q = now.family.log_prob(z).detach()
        mass = (log_q + weights).exp()
        elbo = float((mass * (log_p(z) - log_q)).sum())
        divergence = float((mass * (log_q - law.log_density)).sum())
        assert elbo + divergence == pytest.approx(float(law.log_evidence), abs=1e-8)
    assert now.converged


METHODS = [
    {},
    {"method": "batch_and_match", "family": "full_rank"},
    pytest.param({"method": "stochastic"}, marks=pytest.mark.slow),
    pytest.param({"gradient": "score"}, marks=pytest.mark.slow),
    {"objective": "iwae"},
    pytest.param({"objective": "iwae", "gradient": "dreg"}, marks=pytest.mark.slow),
    {"objective": "renyi", "alpha": 0.3},
    {"family": "mixture"},
    {"family": "low_rank"},
]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("options", METHODS, ids=str)
def test_every_way_finds_a_gaussian(options):
    model, x = linear_gaussian()
    result = fit(lambda z: model.log_joint(x, z), 3, generator=seeded(), **options)
    assert result.converged, result.reason
    posterior = model.posterior(x)
    exact = result.family.name == "full_rank"
    assert result.elbo.value == pytest.approx(
        float(model.log_evidence(x)), abs=1e-6 if exact else 5e-3
    )
    z = posterior.sample((5,))
    tolerance = 1e-3 if exact else 0.2
    torch.testing.assert_close(result.log_prob(z), posterior.log_prob(z), rtol=0, atol=tolerance)


@pytest.mark.slow
def test_a_badly_scaled_gaussian_is_exact():
    """Units from 1e-6 to 1e9 and a correlation matrix of condition 3e5, with the defaults."""
    dim = 20
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=seeded(), dtype=F64)).Q
    shape = basis @ torch.diag(torch.logspace(0, 5.5, dim, dtype=F64)) @ basis.mT
    units = torch.logspace(-6, 9, dim, dtype=F64)
    covariance = shape * units[:, None] * units
    # a float64 inverse of such a matrix is good to 1e-8; the density is defined through the factor
    root = torch.linalg.cholesky(shape)
    mean = units * torch.linspace(-1e3, 1e3, dim, dtype=F64)

    def log_density(z):
        gap = ((z - mean) / units)[:, None]
        return -0.5 * torch.linalg.solve_triangular(root, gap, upper=False).square().sum()

    result = fit(log_density, dim, generator=seeded())
    frame = result.family.absorb()
    sd = covariance.diagonal().sqrt()
    assert result.converged
    assert float(((frame.shift - mean) / sd).abs().max()) < 2e-3
    spread = frame.factor.square().sum(1).sqrt() / sd
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0, atol=2e-3)


def independent(dim):
    """A Gaussian with deviations from 1/2 to 2: its log density, mean, sd and log evidence."""
    mean, sd = torch.linspace(-1, 1, dim, dtype=F64), torch.logspace(-1, 1, dim, base=2, dtype=F64)
    evidence = 0.5 * dim * math.log(2 * math.pi) + float(sd.log().sum())
    return lambda z: -0.5 * ((z - mean) / sd).square().sum(), mean, sd, evidence


@pytest.mark.sweep(2)
@pytest.mark.parametrize("dim", [3, 60, 301])
def test_a_student_t_takes_the_variance_of_a_gaussian(dim):
    """KL(q‖p) against a Gaussian sees q's moments alone: at its optimum they are p's."""
    log_density, mean, sd, _ = independent(dim)
    result = fit(log_density, dim, family="student_t", generator=seeded(), evaluation_draws=100)
    assert result.converged, result.reason
    q = result.family
    frame = q.frame.then(q.mean, q.lower())
    torch.testing.assert_close(frame.shift, mean, rtol=0, atol=2e-3)
    spread = math.sqrt(q.degrees / (q.degrees - 2)) * frame.sd / sd
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0, atol=2e-3)


@pytest.mark.slow
def test_a_mixture_in_many_dimensions_has_diagonal_covariances():
    log_density, _, _, evidence = independent(301)
    result = fit(log_density, 301, family="mixture", generator=seeded(), evaluation_draws=500)
    assert result.converged, result.reason
    assert "diagonal covariances (301 dimensions)" in result.chosen
    assert evidence - 0.3 < result.elbo.value < evidence + 0.05


def two_peaks(z):
    peaks = torch.tensor([-3.0, 3.0], dtype=F64)
    return torch.logsumexp(-2 * (z - peaks).square() + torch.tensor([0.0, 0.5], dtype=F64), 0)


@pytest.mark.parametrize("family", ["auto", "mean_field", "mixture"])
@pytest.mark.parametrize(("still", "shown"), [((0, 1), "z[1], z[2]"), ((1,), "z[2]")])
def test_samples_that_are_all_equal_are_said_to_be(family, still, shown):
    samples = torch.randn(50, 2, generator=seeded(), dtype=torch.float64)
    samples[:, still] = 3.0
    wanted = "samples: expected samples that differ in every entry; got 50 samples that are all "
    wanted += f"equal in {shown}"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        fit(
            lambda z: -z.square().sum(),
            2,
            direction="forward",
            samples=samples,
            family=family,
            progress=False,
        )


def test_forward_covers_and_reverse_seeks():
    """KL(p‖q) has the moments of p; KL(q‖p) sits on the heavier peak (MATH 4)."""
    law = quadrature.posterior(
        lambda z: torch.func.vmap(two_peaks)(z), lower=-8, upper=8, nodes=400
    )
    mean = float(law.expectation(lambda z: z[:, 0]))
    sd = math.sqrt(float(law.expectation(lambda z: (z[:, 0] - mean) ** 2)))
    covering = fit(two_peaks, 1, direction="forward", generator=seeded()).family.absorb()
    assert float(covering.shift) == pytest.approx(mean, abs=4.5 * sd / math.sqrt(2000))
    assert float(covering.factor) == pytest.approx(sd, rel=4.5 / math.sqrt(4000))
    seeking = fit(two_peaks, 1, family="full_rank", generator=seeded()).family.absorb()
    assert float(seeking.shift) == pytest.approx(3.0, abs=1e-3)
    assert float(seeking.factor) == pytest.approx(0.5, abs=1e-3)
    both = fit(two_peaks, 1, generator=seeded())
    assert both.family.name == "mixture"
    assert both.elbo.value == pytest.approx(float(law.log_evidence), abs=1e-3)


def test_what_was_chosen_is_what_is_there():
    both, one = (
        fit(p, 1, generator=seeded()) for p in (two_peaks, lambda z: -0.5 * z.square().sum())
    )
    for found in (both, one):
        name = found.family.name
        assert found.chosen == f"family {name} (1 dimensions); method deterministic ({name})"
    assert (both.family.name, one.family.name) == ("mixture", "full_rank")
    forward = fit(two_peaks, 1, direction="forward", generator=seeded())
    assert forward.chosen == f"family {forward.family.name}"


def test_samples_of_p_give_maximum_likelihood():
    model, x = linear_gaussian()
    z = model.posterior(x).sample((500,))
    result = fit(lambda z: model.log_joint(x, z), 3, direction="forward", samples=z)
    frame = result.family.absorb()
    torch.testing.assert_close(frame.shift, z.mean(0))
    torch.testing.assert_close(frame.factor @ frame.factor.mT, z.mT.cov(correction=0))


def test_batch_and_match_is_exact_for_a_gaussian():
    """As the weight of the batch grows one update from anywhere gives the target itself."""
    model, x = linear_gaussian()
    posterior = model.posterior(x)
    target = Target.of(lambda z: model.log_joint(x, z), 3)
    frame = Frame.diagonal(torch.ones(3).double(), 2 * torch.ones(3).double())
    z = frame.outwards(fixed_normals(32, 3, seeded()))
    mean, covariance = match(frame, z, target.score(z)[1], 1e9)
    torch.testing.assert_close(mean, posterior.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(covariance, posterior.covariance_matrix, rtol=1e-6, atol=1e-6)


def test_fixed_normals_average_quadratics_exactly():
    points = fixed_normals(64, 5, seeded())
    torch.testing.assert_close(points.mean(0), torch.zeros(5, dtype=F64), atol=1e-15, rtol=0)
    torch.testing.assert_close(points.mT @ points / 64, torch.eye(5, dtype=F64), atol=1e-13, rtol=0)


def test_the_score_function_is_unbiased_by_enumeration():
    """Three outcomes, two draws: the mean gradient over all nine pairs is the ELBO's."""
    logits = torch.tensor([0.2, -0.5, 0.9], dtype=F64, requires_grad=True)
    log_p = torch.tensor([-1.0, 0.3, -2.0], dtype=F64)
    log_q = logits.log_softmax(0)
    exact = torch.autograd.grad((log_q.exp() * (log_p - log_q)).sum(), logits)[0]
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T  # [2 draws, 9 cases]
    chosen = logits.log_softmax(0)[pairs]
    value = objectives.score_function((log_p[pairs] - chosen).detach(), chosen)
    share = chosen.detach().sum(0).exp()
    found = torch.autograd.grad((share * value).sum(), logits)[0]
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.5, 0.9999999, 1.0, 2.0])
def test_renyi_is_a_power_mean(alpha):
    logs = torch.tensor([[-1.0], [0.5], [-0.2]], dtype=F64)
    power = 1 - alpha
    truth = (power * logs).exp().mean().log() / power if abs(power) > 1e-6 else logs.mean()
    assert float(objectives.renyi(logs, alpha)) == pytest.approx(float(truth), abs=2e-7)


IMPROPER = {
    "flat": (lambda z: 0.0 * z.sum(), "spreads without end"),
    "half flat": (lambda z: -z[0].square(), r"q\(z\[2\]\) spreads without end"),
    "rising": (lambda z: z.sum(), "improper target"),
    "exploding": (lambda z: z.exp().sum(), "improper target"),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", sorted(IMPROPER))
def test_improper_targets_are_reported(name):
    log_density, words = IMPROPER[name]
    result = fit(log_density, 2, generator=seeded())
    assert not result.converged
    assert re.search(words, result.reason), result.reason


@pytest.mark.slow
def test_what_is_not_finite_is_explained():
    half = {"parameters": 2, "family": "full_rank"}  # by default the half plane is fitted
    result = fit(lambda z: torch.where(z.sum() > 0, -z.square().sum(), -torch.inf), **half)
    assert not result.converged and "log_density is -inf at z = [" in result.reason
    with pytest.raises(RunError, match=r"no place to start from .* is nan at z"):
        fit(lambda z: torch.log(-1 - z.square()).sum(), 2)
    x = torch.arange(30.0)
    x[7] = math.nan
    with pytest.raises(RunError, match="data row is 7"):
        fit(
            lambda z, x: -(x - z[0]).square(),
            1,
            data=x,
            batch_size=4,
            log_prior=lambda z: -(z[0] ** 2),
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"family": "ful"}, "family: expected one of auto"),
        ({"method": "adam"}, "method: expected auto"),
        ({"method": "batch_and_match", "family": "mean_field"}, "family: expected full_rank"),
        ({"objective": "elbow"}, "objective: expected elbo"),
        ({"gradient": "dreg"}, "gradient: expected one for elbo"),
        ({"direction": "sideways"}, "direction: expected reverse or forward"),
        ({"samples": torch.zeros(9, 2)}, "samples: expected direction forward"),
        ({"samples": torch.zeros(9, 3), "direction": "forward"}, r"samples: expected \[n, 2\]"),
        ({"samples": torch.zeros(2, 2), "direction": "forward"}, "samples: expected more than 2"),
        ({"starts": 0}, "starts: expected at least 1"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        fit(lambda z: -z.square().sum(), 2, **options)


@pytest.mark.slow
def test_seeds_repeat_and_mini_batches_agree():
    """The same seed gives the same q; rows in batches give the whole data's answer."""
    generator = seeded(3)
    x = torch.randn(3000, 2, generator=generator)
    y = torch.where(torch.rand(3000, generator=generator) < torch.sigmoid(x[:, 0]), 1.0, -1.0)

    def terms(z, x, y):
        return torch.nn.functional.logsigmoid(y * (x @ z))

    def prior(z):
        return -0.5 * z.square().sum()

    options = {"data": [x, y], "log_prior": prior}
    some = fit(terms, 2, batch_size=500, generator=seeded(), **options)
    again = fit(terms, 2, batch_size=500, generator=seeded(), **options)
    whole = fit(terms, 2, batch_size=3000, generator=seeded(), **options)
    assert torch.equal(some.draws, again.draws)
    assert (some.method, whole.method) == ("stochastic", "deterministic")
    a, b = some.family.absorb(), whole.family.absorb()
    sd = b.factor.square().sum(1).sqrt()
    assert float(((a.shift - b.shift) / sd).abs().max()) < 0.1
    torch.testing.assert_close(
        a.factor.square().sum(1).sqrt() / sd, torch.ones(2).double(), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("dim", [30, 301])
def test_the_first_path_begins_near_zero_and_the_others_within_two(dim, monkeypatch):
    target = Target.of(lambda z: -0.5 * z.square().sum(), dim)
    score, asked = Target.score, []

    def noted(self, z, rows=None):
        asked.append(z.clone())
        return score(self, z, rows)

    monkeypatch.setattr(Target, "score", noted)
    find_start(target, seeded())
    first = asked[0]
    ends = [0.1] + [2.0] * (len(first) - 1)
    assert len(first) == (1 if dim > 300 else 4)
    for z, end in zip(first, ends, strict=True):  # 30 uniform numbers: 1 in 7000 have none there
        assert -end <= float(z.min()) < -0.4 * end
        assert 0.4 * end < float(z.max()) <= end


def test_a_window_knows_the_split_r_hat_of_its_halves():
    x = torch.randn(20, 11, generator=seeded(), dtype=F64)
    window = Window.of(x[0], 20)
    for vector in x:
        window.add(vector)
    halves = x.view(2, 10, 11)
    means = halves.mean(1)
    ratios = 1 + (means[0] - means[1]) ** 2 / 2 / halves.var(1).mean(0)
    torch.testing.assert_close(window.r_hat(), ratios.sqrt().sort().values[9])
    torch.testing.assert_close(window.mean, x.mean(0))


def test_adam_takes_the_steps_of_torchs():
    x = torch.nn.Parameter(torch.tensor([3.0, -2.0, 1e-3], dtype=F64))
    theirs, ours, adam = torch.optim.Adam([x], 0.1, (0.9, 0.99), 1e-12), x.detach().clone(), Adam()
    for _ in range(20):
        theirs.zero_grad()
        (x**4).sum().backward()
        theirs.step()
        ours = ours + adam.step(4 * ours**3, 0.1)
    torch.testing.assert_close(ours, x.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("draws", [4, 5])
def test_the_first_stochastic_step_is_the_rate_along_each_axis(draws):
    """Adam's first step is the rate times the sign of the gradient; draws are even in number."""
    family, rows = NAMED["mean_field"](Frame.identity(2)), []

    def loss(q, noise):
        rows.append(len(noise))
        return sum((x - 5).sum() for x in q.parameters())

    before = torch.nn.utils.parameters_to_vector(family.parameters()).detach().clone()
    steps = stochastic(family, loss, seeded(), draws=draws, rate=0.03, iterations=9)
    after = torch.nn.utils.parameters_to_vector(next(steps).family.parameters())
    torch.testing.assert_close(after.detach(), before - 0.03)
    assert rows[0] == 2 * ((draws + 1) // 2)
    next(one_round(family, loss, seeded(), draws=draws, steps=3, rate=0.03))
    assert rows[-1] == rows[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("mean", "sd", "double", "said"),
    [(1e4, 0.01, False, True), (1e4, 0.01, True, False), (1000.0, 0.01, False, False)],
)
def test_a_density_that_rounds_to_float32_is_told_where_that_is_coarse(
    mean, sd, double, said, seed
):
    """At 10,000 float32 has steps of 0.001, a tenth of the sd; at 1,000 of 0.006 sd."""

    def log_density(z):
        place = z[0] if double else z[0].float()
        return -0.5 * ((place - mean) / sd) ** 2

    found = fit(log_density, 1, generator=seeded(seed), progress=False)
    assert ("log_density rounds z to float32" in found.reason) == said
    off = abs(float(found.draws.mean()) - mean) / sd
    right = off < 0.2 and abs(math.log(float(found.draws.std()) / sd)) < math.log(1.22)
    assert right if found.diagnosis.level == "trust" else said
