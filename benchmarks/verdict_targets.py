"""Targets whose means and standard deviations are known, in three lists.

CHOOSING: eleven kinds with closed forms, in 1 to 25 dimensions: on these the limits of the verdict
were chosen. COUNTING: other kinds, on which the verdicts are counted and no limit was chosen:
hierarchical models, regressions, tails that are not Gaussian, skewed scales and mixtures; their
truths are closed forms, quadrature over one or two dimensions (all but the hyperparameters is
integrated in closed form), or, for regressions, 1,200,000 weighted draws of a t that has p's mean
and covariance (errors of 0.003 sd at most; a t about the mode was up to 0.06 sd wrong where 15 rows
meet 12 coefficients, and its own standard errors were 0.01).
TRYING: the kinds of COUNTING in other sizes and settings, and with another seed, on which a change
is tried whose reason was found on COUNTING.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributions as law

__all__ = ["CHOOSING", "COUNTING", "Target", "beta_binomial_of", "targets"]

F64 = torch.float64
softplus = torch.nn.functional.softplus


@dataclass(eq=False)
class Target:
    """A log density up to a constant, and the mean and sd of `values(z)`.

    moments: what both are, or a function that computes them when they are first asked for.
    """

    kind: str
    dims: int
    log_density: Callable[[Tensor], Tensor]
    moments: tuple[Tensor, Tensor] | Callable[[], tuple[Tensor, Tensor]]
    values: Callable[[Tensor], Tensor] = lambda z: z

    @functools.cached_property
    def truth(self):
        return self.moments() if callable(self.moments) else self.moments

    @property
    def mean(self):
        return self.truth[0]

    @property
    def sd(self):
        return self.truth[1]


def random_mixing(dims, generator, spread):
    """A matrix that correlates and scales independent parts: condition about 10^(2·spread)."""
    first = torch.randn(dims, dims, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(first)[0]
    scales = 10 ** (spread * (torch.rand(dims, generator=generator, dtype=torch.float64) - 0.5))
    return turn * scales


def mixed(kind, dims, part, mean, variance, generator, spread=1.0):
    """Independent parts with log density `part(u)`, mixed linearly: moments in closed form."""
    a = random_mixing(dims, generator, spread) if dims > 1 else torch.ones(1, 1).double()
    shift = torch.randn(dims, generator=generator, dtype=torch.float64)
    inverse = torch.linalg.inv(a)
    centre = a @ torch.full((dims,), mean).double() + shift
    sd = (a.square().sum(1) * variance).sqrt()
    return Target(kind, dims, lambda z: part((z - shift) @ inverse.T).sum(-1), (centre, sd))


def gaussian(dims, generator, spread):
    return mixed("gaussian", dims, lambda u: -0.5 * u**2, 0.0, 1.0, generator, spread)


def student(dims, generator, df):
    part = law.StudentT(torch.tensor(float(df)).double())
    return mixed(f"student-t {df}", dims, part.log_prob, 0.0, df / (df - 2), generator)


def log_gamma(dims, generator, shape):
    shape = torch.tensor(float(shape)).double()
    mean, variance = float(torch.digamma(shape)), float(torch.polygamma(1, shape))
    return mixed("skewed", dims, lambda u: shape * u - u.exp(), mean, variance, generator)


def logistic(dims, generator, _):
    def part(u):
        return -u - 2 * torch.nn.functional.softplus(-u)

    return mixed("logistic", dims, part, 0.0, math.pi**2 / 3, generator)


def two_humps(dims, generator, gap):
    """Independent coordinates, each two humps `2 gap` apart."""
    parts = law.Normal(torch.tensor([-gap, gap]).double(), 1.0)
    part = law.MixtureSameFamily(
        law.Categorical(torch.tensor([0.5, 0.5]).double()),
        law.Normal(parts.loc, torch.ones(2).double()),
    )
    return mixed("humps", dims, part.log_prob, 0.0, 1 + gap**2, generator, 0.3)


def peaks(dims, generator, gap):
    """Two Gaussians of unequal weight, `gap` sd apart along the first axis."""
    weight = float(0.2 + 0.3 * torch.rand((), generator=generator))
    place = torch.zeros(dims).double()
    place[0] = gap

    def log_density(z):
        near = -0.5 * z.square().sum(-1) + math.log(1 - weight)
        far = -0.5 * (z - place).square().sum(-1) + math.log(weight)
        return torch.logaddexp(near, far)

    sd = (1 + weight * (1 - weight) * place**2).sqrt()
    return Target("peaks", dims, log_density, (weight * place, sd))


def banana(dims, generator, bend):
    """y = x₂ − bend (x₁² − 1), all else standard normal."""

    def log_density(z):
        second = z[:, 1] - bend * (z[:, 0] ** 2 - 1)
        rest = z[:, 2:].square().sum(-1)
        return -0.5 * (z[:, 0] ** 2 + second**2 + rest)

    sd = torch.ones(dims).double()
    sd[1] = math.sqrt(1 + 2 * bend**2)
    return Target("banana", dims, log_density, (torch.zeros(dims).double(), sd))


def funnel(dims, generator, wide):
    """v ~ N(0, wide²), the others N(0, exp(v))."""

    def log_density(z):
        v, x = z[:, 0], z[:, 1:]
        inner = -0.5 * x.square().sum(-1) * (-v).exp() - 0.5 * (dims - 1) * v
        return inner - 0.5 * (v / wide) ** 2

    sd = torch.full((dims,), math.exp(wide**2 / 4)).double()
    sd[0] = wide
    return Target("funnel", dims, log_density, (torch.zeros(dims).double(), sd))


def positive(dims, generator, shape):
    """Gamma variables, fitted as z = log x and judged as x."""
    rates = torch.rand(dims, generator=generator, dtype=torch.float64) + 0.5

    def log_density(z):
        return (shape * z - rates * z.exp()).sum(-1)

    truth = shape / rates, math.sqrt(shape) / rates
    return Target("positive", dims, log_density, truth, lambda z: z.exp())


def interval(dims, generator, count):
    """Beta variables, fitted as z = logit x and judged as x."""
    a = count * (0.2 + 0.6 * torch.rand(dims, generator=generator, dtype=torch.float64))
    b = count - a
    spread = (a * b / (count**2 * (count + 1))).sqrt()

    def log_density(z):
        soft = torch.nn.functional.softplus
        return (-a * soft(-z) - b * soft(z)).sum(-1)

    return Target("interval", dims, log_density, (a / count, spread), torch.sigmoid)


def precision(dims, generator, shape):
    """λ ~ Gamma(shape, shape), fitted as log λ; x | λ ~ N(0, 1/λ): each x is t, 2 shape degrees.

    Judged as the standard deviation λ^(−1/2), an inverse chi, and x.
    """

    def log_density(z):
        v, x = z[:, 0], z[:, 1:]
        inner = 0.5 * (dims - 1) * v - 0.5 * v.exp() * x.square().sum(-1)
        return inner + shape * v - shape * v.exp()

    def values(z):
        return torch.cat([(-0.5 * z[:, :1]).exp(), z[:, 1:]], 1)

    variance = shape / (shape - 1)
    first = math.sqrt(shape) * math.exp(math.lgamma(shape - 0.5) - math.lgamma(shape))
    mean, sd = torch.zeros(dims).double(), torch.full((dims,), math.sqrt(variance)).double()
    mean[0], sd[0] = first, math.sqrt(variance - first**2)
    return Target("precision", dims, log_density, (mean, sd), values)


CHOOSING = {
    gaussian: ((1, 2, 5, 10, 25), (0.3, 1.0, 2.0, 3.0)),
    student: ((1, 3, 10), (3, 5, 10, 30)),
    log_gamma: ((1, 3, 10), (0.5, 2.0, 10.0, 50.0)),
    logistic: ((1, 5, 25), (0.0,)),
    two_humps: ((1, 3), (0.5, 0.8, 1.2, 2.0)),
    peaks: ((1, 2, 5), (1.0, 2.0, 4.0, 8.0)),
    banana: ((2, 5), (0.03, 0.1, 0.3, 1.0)),
    funnel: ((2, 5, 10), (0.1, 0.3, 1.0)),
    positive: ((1, 5, 10), (0.5, 2.0, 10.0, 100.0)),
    interval: ((1, 5, 10), (2.0, 10.0, 100.0)),
    precision: ((2, 5, 20), (2.5, 5.0, 20.0)),
}


def grid(*ends, nodes):
    """Points `[n, k]` of a regular grid over boxes, for sums that stand for integrals."""
    axes = [torch.linspace(a, b, nodes, dtype=F64) for a, b in ends]
    return torch.cartesian_prod(*axes).reshape(-1, len(ends))


def moments(weights, mean, variance):
    """Mean and sd over a mixture: `mean`, `variance` `[n, m]` at nodes of log weights `[n]`."""
    share = torch.softmax(weights, 0)[:, None]
    whole = (share * mean).sum(0)
    spread = (share * (variance + (mean - whole) ** 2)).sum(0)
    return whole, spread.sqrt()


# ---------------------------------------------------------------- hierarchical models

SCALE_PRIORS = {
    "half-cauchy": lambda tau: -torch.log1p((tau / 2.0) ** 2),
    "exponential": lambda tau: -tau,
    "half-normal": lambda tau: -0.5 * (tau / 2.0) ** 2,
}


def groups(dims, generator, setting):
    """y_j ~ N(θ_j, s_j²), θ_j ~ N(μ, τ²), μ ~ N(0, 5²), a prior for τ; centred or not."""
    prior, centred, spread = setting
    count = dims - 2
    scale = 0.5 + torch.rand(count, generator=generator, dtype=F64)
    theta = spread * torch.randn(count, generator=generator, dtype=F64)
    y = theta + scale * torch.randn(count, generator=generator, dtype=F64)
    log_tau_prior = SCALE_PRIORS[prior]

    def log_density(z):
        mu, log_tau, third = z[:, 0], z[:, 1], z[:, 2:]
        tau = log_tau.exp()
        hyper = -0.5 * (mu / 5) ** 2 + log_tau_prior(tau) + log_tau
        if centred:
            inner = -0.5 * ((third - mu[:, None]) / tau[:, None]) ** 2 - log_tau[:, None]
            theta = third
        else:
            inner = -0.5 * third**2
            theta = mu[:, None] + tau[:, None] * third
        return hyper + inner.sum(1) - 0.5 * (((y - theta) / scale) ** 2).sum(1)

    log_tau = torch.linspace(-14.0, 14.0, 28_001, dtype=F64)  # heavy upper tails are met
    tau = log_tau.exp()[:, None]
    total = tau**2 + scale**2
    precision = 1 / 25 + (1 / total).sum(1)
    centre = (y / total).sum(1) / precision
    weights = -0.5 * (total.log() + y**2 / total).sum(1) + 0.5 * precision * centre**2
    weights = weights - 0.5 * precision.log() + log_tau_prior(tau[:, 0]) + log_tau
    mu_mean, mu_var = centre[:, None], 1 / precision[:, None]
    if centred:
        keep = scale**2 / total
        mean = keep * mu_mean + (1 - keep) * y
        variance = keep**2 * mu_var + tau**2 * keep
    else:  # u = (θ − μ)/τ given μ is N(τ (y − μ)/total, s²/total)
        pull = tau / total
        mean = pull * (y - mu_mean)
        variance = pull**2 * mu_var + scale**2 / total
    means = torch.cat([mu_mean, tau, mean], 1)
    variances = torch.cat([mu_var, torch.zeros_like(tau), variance], 1)
    mean, sd = moments(weights, means, variances)

    def values(z):
        return torch.cat([z[:, :1], z[:, 1:2].exp(), z[:, 2:]], 1)

    return Target("groups", dims, log_density, (mean, sd), values)


def beta_binomial_of(hits, trials, rate=1.5):
    """rate_i ~ Beta(φ e^κ, (1 − φ) e^κ), κ ~ Exp(rate), φ uniform; values φ, κ and the rates."""
    hits, trials = (torch.as_tensor(x, dtype=F64) for x in (hits, trials))

    def beta_log_norm(a, b):
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    def split(z):
        phi, kappa = torch.sigmoid(z[:, :1]), z[:, 1:2].exp()
        return phi, kappa, phi * kappa.exp(), (1 - phi) * kappa.exp()

    def log_density(z):
        _, kappa, a, b = split(z)
        low, high = -softplus(-z[:, 2:]), -softplus(z[:, 2:])
        inner = (a + hits) * low + (b + trials - hits) * high - beta_log_norm(a, b)
        hyper = -softplus(-z[:, 0]) - softplus(z[:, 0]) - rate * kappa[:, 0] + z[:, 1]
        return hyper + inner.sum(1)

    phi = torch.linspace(0.002, 0.998, 249, dtype=F64)[:, None]
    kappa = torch.linspace(0.005, 18.0, 900, dtype=F64)[None, :]
    a, b = phi * kappa.exp(), (1 - phi) * kappa.exp()
    weights = -rate * kappa + torch.zeros_like(a)
    for hit, trial in zip(hits, trials, strict=True):
        weights = weights + beta_log_norm(a + hit, b + trial - hit) - beta_log_norm(a, b)
    a, b, weights = a.reshape(-1, 1), b.reshape(-1, 1), weights.reshape(-1)
    total = a + b + trials
    mean = (a + hits) / total
    variance = mean * (1 - mean) / (total + 1)
    hyper = torch.stack([x.expand(249, 900).reshape(-1) for x in (phi, kappa)], 1)
    means = torch.cat([hyper, mean], 1)
    mean, sd = moments(weights, means, torch.cat([0 * hyper, variance], 1))

    def values(z):
        return torch.cat([*split(z)[:2], torch.sigmoid(z[:, 2:])], 1)

    return Target("beta-binomial", len(hits) + 2, log_density, (mean, sd), values)


def beta_binomial(dims, generator, setting):
    """Simulated data: rates from Beta with a given sum of parameters, 10 to 60 trials each."""
    count = dims - 2
    trials = torch.randint(10, 61, (count,), generator=generator).double()
    strength = torch.full((count,), float(setting), dtype=F64)
    gammas = [torch._standard_gamma(s * strength, generator=generator) for s in (0.3, 0.7)]
    rates = gammas[0] / (gammas[0] + gammas[1])
    hits = torch.binomial(trials, rates, generator=generator)
    return beta_binomial_of(hits, trials)


def poisson_gamma(dims, generator, setting):
    """y_j ~ Poisson(e_j λ_j), λ_j ~ Gamma(a, b), log a ~ N(0, 1), log b ~ N(0, 1.5²)."""
    count = dims - 2
    exposure = 0.5 + 5 * torch.rand(count, generator=generator, dtype=F64)
    shape = torch.full((count,), float(setting), dtype=F64)
    rates = torch._standard_gamma(shape, generator=generator) * 2.0 / setting
    y = torch.poisson(exposure * rates, generator=generator)

    def log_density(z):
        log_a, log_b, third = z[:, :1], z[:, 1:2], z[:, 2:]
        a, b = log_a.exp(), log_b.exp()
        inner = (a + y) * third - (b + exposure) * third.exp() + a * log_b - torch.lgamma(a)
        return -0.5 * log_a[:, 0] ** 2 - 0.5 * (log_b[:, 0] / 1.5) ** 2 + inner.sum(1)

    points = grid((-6.0, 7.0), (-9.0, 8.0), nodes=500)
    log_a, log_b = points[:, :1], points[:, 1:]
    a, b = log_a.exp(), log_b.exp()
    inner = torch.lgamma(a + y) - torch.lgamma(a) + a * log_b - (a + y) * (b + exposure).log()
    weights = inner.sum(1) - 0.5 * log_a[:, 0] ** 2 - 0.5 * (log_b[:, 0] / 1.5) ** 2
    mean = (a + y) / (b + exposure)
    variance = mean / (b + exposure)
    hyper = torch.cat([a, b], 1)
    mean, sd = moments(weights, torch.cat([hyper, mean], 1), torch.cat([0 * hyper, variance], 1))
    return Target("poisson-gamma", dims, log_density, (mean, sd), torch.exp)


# ---------------------------------------------------------------- regressions


def log_ndtr(x):
    """log Φ(x); torch's own has no batching rule. Below −30 by the first terms of its expansion."""
    near = torch.log(0.5 * torch.erfc(-x.clamp_min(-30.0) / math.sqrt(2)))
    low = x.clamp_max(-30.0)
    far = -0.5 * low**2 - torch.log(-low) - 0.5 * math.log(2 * math.pi) - low**-2
    return torch.where(x > -30.0, near, far)


LINKS = {
    "logistic": lambda eta, y: y * eta - softplus(eta),
    "probit": lambda eta, y: log_ndtr((2 * y - 1) * eta),
    "poisson": lambda eta, y: y * eta - eta.exp(),
}


def regression(dims, generator, setting):
    """A generalised linear model on synthetic data, coefficients N(0, 2.5²)."""
    link, rows = setting
    x = torch.randn(rows, dims, generator=generator, dtype=F64)
    x[:, 0] = 1.0
    eta = x @ torch.randn(dims, generator=generator, dtype=F64) / math.sqrt(dims)
    uniform = torch.rand(rows, generator=generator, dtype=F64)
    y = torch.poisson(eta.exp(), generator=generator)
    if link != "poisson":
        y = (uniform < torch.sigmoid(1.6 * eta)).double()
    term = LINKS[link]

    def log_density(z):
        return term(z @ x.T, y).sum(1) - 0.5 * (z / 2.5).square().sum(1)

    truth = functools.partial(by_importance, log_density, passed(dims, generator))
    return Target(link, dims, log_density, truth)


FIRST_DRAWS, TRUE_DRAWS = 400_000, 1_200_000
SHAPE = 5  # degrees of freedom of the t


def passed(dims, generator):
    """The state of a generator for `by_importance`; it goes on as if 400,000 draws were made."""
    state = generator.get_state()
    torch.randn(FIRST_DRAWS, dims, generator=generator, dtype=F64)
    torch.randn(FIRST_DRAWS, SHAPE, generator=generator, dtype=F64)
    return dims, state


def by_importance(log_density, begin):
    """Moments of a log-concave density: draws of a t at the mode, then of one with p's moments."""
    dims, state = begin
    generator = torch.Generator()
    generator.set_state(state)
    z = torch.zeros(dims, dtype=F64)
    for _ in range(40):
        slope = torch.func.grad(lambda v: log_density(v[None])[0])(z)
        curve = torch.func.hessian(lambda v: log_density(v[None])[0])(z)
        step = torch.linalg.solve(-curve, slope)
        z = z + step / max(1.0, float(step.norm()))
    spread = torch.linalg.inv(-curve)
    for draws in (FIRST_DRAWS, FIRST_DRAWS, TRUE_DRAWS):
        z, spread = weighted(log_density, z, spread, draws, generator)
    return z, spread.diagonal().sqrt()


def weighted(log_density, centre, spread, draws, generator):
    """Mean and covariance of p by weighted draws of a t, taken in pieces."""
    root, dims = torch.linalg.cholesky(spread), len(centre)
    noise = torch.randn(draws, dims, generator=generator, dtype=F64)
    size = torch.randn(draws, SHAPE, generator=generator, dtype=F64).square().sum(1)
    u = noise * (SHAPE / size).sqrt()[:, None]
    points = centre + u @ root.T
    logs = torch.cat([log_density(part) for part in points.split(20_000)])
    share = (logs + 0.5 * (SHAPE + dims) * torch.log1p(u.square().sum(1) / SHAPE)).softmax(0)
    mean = share @ points
    away = points - mean
    return mean, (share[:, None] * away).T @ away


# ---------------------------------------------------------------- tails and skewed scales


def by_line(part, low=-60.0, high=60.0, values=lambda u: u):
    """Mean and variance of `values(u)` for a log density on the line, by 600,001 nodes."""
    u = torch.linspace(low, high, 600_001, dtype=F64)
    mean, sd = moments(part(u), values(u)[:, None], torch.zeros(len(u), 1, dtype=F64))
    return float(mean), float(sd) ** 2


TAILS = {
    "secant": lambda u: -(softplus(2 * u) - u),
    "hyperbolic": lambda u: -2 * (1 + u**2).sqrt(),
    "power 1.5": lambda u: -(u.abs() ** 1.5),
    "power 4": lambda u: -(u**4),
    "skew": lambda u: -0.5 * u**2 + log_ndtr(4 * u),
    "gumbel": lambda u: -u - (-u).exp(),
}


def tails(dims, generator, setting):
    """Independent parts with tails that are not Gaussian, mixed linearly."""
    mean, variance = by_line(TAILS[setting])
    return mixed(setting, dims, TAILS[setting], mean, variance, generator)


def elliptical(dims, generator, df):
    """A multivariate t: all coordinates share one scale."""
    a = random_mixing(dims, generator, 1.0)
    inverse = torch.linalg.inv(a)

    def log_density(z):
        return -0.5 * (df + dims) * torch.log1p((z @ inverse.T).square().sum(1) / df)

    sd = (a.square().sum(1) * df / (df - 2)).sqrt()
    return Target("elliptical t", dims, log_density, (torch.zeros(dims, dtype=F64), sd))


SCALES = {  # log densities of z = log x, Jacobian included
    "inverse-gamma 4": lambda z: -4 * z - (-z).exp(),
    "inverse-gamma 20": lambda z: -20 * z - 20 * (-z).exp(),
    "weibull 1": lambda z: z - z.exp(),
    "weibull 3": lambda z: 3 * z - (3 * z).exp(),
    "log-normal 0.5": lambda z: -0.5 * (z / 0.5) ** 2,
    "half-t 5": lambda z: z - 3 * torch.log1p((2 * z).exp() / 5),
}


def scales(dims, generator, setting):
    """Skewed positive parameters of random units, fitted as z = log x and judged as x."""
    part = SCALES[setting]
    mean, variance = by_line(part, -60.0, 60.0, torch.exp)
    units = 10 ** (2 * torch.rand(dims, generator=generator, dtype=F64) - 1)
    mean, sd = units * mean, units * math.sqrt(variance)
    return Target(
        setting, dims, lambda z: part(z - units.log()).sum(1), (mean, sd), lambda z: z.exp()
    )


# ---------------------------------------------------------------- mixtures and bends


def mixture(dims, generator, setting):
    """Gaussians at random places, of random sizes: `gap` apart on average, `count` of them."""
    count, gap = setting
    shares = torch.rand(count, generator=generator, dtype=F64) + 0.3
    shares = shares / shares.sum()
    places = gap * torch.randn(count, dims, generator=generator, dtype=F64) / math.sqrt(dims)
    sds = 0.5 + 1.5 * torch.rand(count, 1, generator=generator, dtype=F64)
    each = law.Independent(law.Normal(places, sds.expand(count, dims)), 1)
    whole = law.MixtureSameFamily(law.Categorical(shares), each)
    return Target("mixture", dims, whole.log_prob, (whole.mean, whole.stddev))


def growth(dims, generator, rate):
    """x₁ ~ N(0, 1), the others N(exp(rate x₁), 1): log-normal means bend the plane."""

    def log_density(z):
        rest = z[:, 1:] - (rate * z[:, :1]).exp()
        return -0.5 * (z[:, 0] ** 2 + rest.square().sum(1))

    mean = torch.full((dims,), math.exp(rate**2 / 2), dtype=F64)
    sd = torch.full((dims,), 0.0, dtype=F64)
    sd[1:] = math.sqrt(1 + (math.exp(rate**2) - 1) * math.exp(rate**2))
    mean[0], sd[0] = 0.0, 1.0
    return Target("growth", dims, log_density, (mean, sd))


COUNTING = {
    groups: (
        (5, 10, 22),
        [(p, c, s) for p in SCALE_PRIORS for c in (True, False) for s in (0.3, 2.0)],
    ),
    beta_binomial: ((6, 12, 21), (5.0, 50.0)),
    poisson_gamma: ((5, 12, 22), (1.0, 10.0)),
    regression: ((2, 4, 10), [(k, n) for k in LINKS for n in (20, 80)]),
    tails: ((1, 4, 12), tuple(TAILS)),
    elliptical: ((2, 8), (4.0, 10.0)),
    scales: ((1, 6), tuple(SCALES)),
    mixture: ((1, 3, 8), ((2, 1.0), (2, 3.0), (3, 6.0))),
    growth: ((2, 6), (0.2, 0.6)),
}


TRYING = {
    growth: ((3, 5, 8), (0.3, 0.5, 0.7)),
    regression: ((3, 7, 12), [(k, n) for k in LINKS for n in (15, 40)]),
    groups: ((7, 14), [(p, c, 1.0) for p in SCALE_PRIORS for c in (True, False)]),
    beta_binomial: ((8, 15), (10.0, 100.0)),
    poisson_gamma: ((7, 16), (3.0,)),
    tails: ((3, 10), tuple(TAILS)),
    elliptical: ((3, 6), (6.0,)),
    scales: ((3,), tuple(SCALES)),
    mixture: ((2, 5), ((2, 1.0), (2, 3.0), (3, 6.0))),
}


LISTS = {"choosing": CHOOSING, "counting": COUNTING, "trying": TRYING}


def targets(name, seed):
    """Every kind of a list at every dimension and setting, drawn with one seed."""
    generator = torch.Generator().manual_seed(seed)
    return [
        make(dims, generator, setting)
        for make, (sizes, settings) in LISTS[name].items()
        for dims in sizes
        for setting in settings
    ]
