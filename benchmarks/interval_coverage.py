"""Do the error bars tell the truth? Coverage of nominal 95 % intervals, function by function.

    python benchmarks/interval_coverage.py --json coverage.json --svg docs/img/coverage.svg

Every public function of `kullback.sampled` that returns an `Estimate`, in easy, hard, heavy-
tailed, tiny-KL and float32 settings, unequal supports and infinite KL (which must be +inf every
time), 300 repeats each; 60 in the groups SLOW, of which the classifier has 50 and copied samples
20. A result is told of where it carries a warning, or has no error bar, or was refused by an
error. A setting passes when at least 95 % of its results are told of, or when the intervals, all
or those of the results that are not (`silent`), cover the *exact* value, bias and all, 93 to 97
times in a hundred; where they are fewer than 2,000 the band is wider in proportion to what chance
does to so many: 89.8 to 100 for 300, 83.5 to 100 for 60. A false alarm is a result that is told
of in a setting whose intervals all together cover.

The limits were chosen on the laws CHOOSING and the families RATIOS, and counted on the laws
COUNTING and the families COUNTED.
The classifier's lower bounds pass when their lower ends are below the truth 93 times in a hundred;
copied samples when 95 % are refused, independent ones when at most 1 % are.
"""

import argparse
import json
import math
import time
import zlib
from pathlib import Path

import torch
from torch import Tensor

from kullback import Estimate
from kullback.sampled import (
    LogRatios,
    importance_bound,
    js_from_draws,
    kl,
    kl_from_draws,
    log_evidence,
    log_ratio,
    mutual_information_from_draws,
    two_sample,
)

LOW, HIGH, TOLD = 0.93, 0.97, 0.95
BAND_COUNT = 2000  # results for which the band is LOW to HIGH: 4.1 standard deviations of chance
REPEATS = 300  # and a fifth of it in the groups SLOW
F64 = torch.float64
DRAWS = "2"  # names one set of draws; the first was looked at while the limits were chosen


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=F64)


def normal_scores(x, mean=0.0, scale=1.0):
    return -0.5 * ((x - mean) / scale) ** 2 - math.log(scale)


# Families: (generator, repeats, draws) -> log p, log q at draws from p, and the exact KL(p‖q).
def shift(by, dtype=F64, dimensions=1):
    def draw(generator, repeats, draws):
        # d equal shifts of by/√d are one shift along the diagonal; the rest cancels in the ratio
        x = normal(generator, repeats, draws)
        rest = 0.0
        if dimensions > 1:
            rest = -0.5 * normal(generator, repeats, draws) ** 2 - dimensions
        p, q = normal_scores(x) + rest, normal_scores(x, by) + rest
        return p.to(dtype), q.to(dtype), by**2 / 2

    return draw


def scale(by):
    def draw(generator, repeats, draws):
        x = normal(generator, repeats, draws)
        truth = math.log(by) + 0.5 / by**2 - 0.5
        return normal_scores(x), normal_scores(x, scale=by), truth

    return draw


def rates(by):
    """Exponential of rate 1 against rate `by`: r is Pareto with index 1/(1 − by)."""

    def draw(generator, repeats, draws):
        x = -torch.rand(repeats, draws, generator=generator, dtype=F64).log()
        return -x, math.log(by) - by * x, by - 1 - math.log(by)

    return draw


def quadrature(log_p, log_q):
    x = torch.linspace(-400, 400, 4_000_001, dtype=F64)
    p, q = log_p(x), log_q(x)
    return torch.trapezoid(p.exp() * (p - q), x).item()


def student(degrees):
    """Student's t against the normal of twice its scale: log r itself is heavy-tailed."""
    t = torch.distributions.StudentT(torch.tensor(float(degrees), dtype=F64))
    root = 0.5 * math.log(2 * math.pi)

    def log_q(x):
        return normal_scores(x, scale=2.0) - root

    truth = quadrature(t.log_prob, log_q)

    def draw(generator, repeats, draws):
        z = normal(generator, repeats, draws)
        chi = sum(normal(generator, repeats, draws) ** 2 for _ in range(degrees))
        x = z / (chi / degrees).sqrt()
        return t.log_prob(x), log_q(x), truth

    return draw


def laplace(generator, repeats, draws):
    u = torch.rand(repeats, draws, generator=generator, dtype=F64) - 0.5
    x = -u.sign() * torch.log1p(-2 * u.abs())
    truth = 0.5 * math.log(2 * math.pi) + 1 - 1 - math.log(2)
    return -x.abs() - math.log(2), normal_scores(x) - 0.5 * math.log(2 * math.pi), truth


def table(p, q):
    p, q = (torch.tensor(weights, dtype=F64) for weights in (p, q))
    p, q = p / p.sum(), q / q.sum()

    def draw(generator, repeats, draws):
        index = torch.multinomial(p.expand(repeats, -1), draws, True, generator=generator)
        return p.log()[index], q.log()[index], (p * (p / q).log()).sum().item()

    return draw


def zipf(power, other, size=1000):
    ranks = torch.arange(1, size + 1, dtype=F64)
    return table((ranks**-power).tolist(), (ranks**-other).tolist())


RATIOS = {
    "shift 0.1, n=100": (shift(0.1), 100),
    "shift 0.1, n=1000": (shift(0.1), 1000),
    "shift 0.5, n=30": (shift(0.5), 30),
    "shift 0.5, n=200": (shift(0.5), 200),
    "shift 0.5, n=2000": (shift(0.5), 2000),
    "shift 1, n=100": (shift(1.0), 100),
    "shift 1, n=1000": (shift(1.0), 1000),
    "shift 1, n=5000": (shift(1.0), 5000),
    "shift 2, n=1000 (heavy)": (shift(2.0), 1000),
    "shift 3, n=1000 (heavy)": (shift(3.0), 1000),
    "scale 0.7, n=500 (heavy)": (scale(0.7), 500),
    "scale 1.5, n=500": (scale(1.5), 500),
    "rate 0.7, n=1000 (heavy)": (rates(0.7), 1000),
    "rate 0.5, n=1000 (heavy)": (rates(0.5), 1000),
    "rate 0.3, n=1000 (heavy)": (rates(0.3), 1000),
    "rate 2, n=500": (rates(2.0), 500),
    "t5 to normal, n=1000 (heavy)": (student(5), 1000),
    "t3 to normal, n=1000 (heavy)": (student(3), 1000),
    "Laplace to normal, n=500": (laplace, 500),
    "zipf table, n=500": (zipf(1.1, 1.0), 500),
    "rare event, n=200 (hard)": (table([0.99, 0.01], [0.9, 0.1]), 200),
    "two of three, n=100": (table([0.5, 0.3, 0.2], [0.2, 0.35, 0.45]), 100),
    "tiny KL 5e-9, n=500": (shift(1e-4), 500),
    "tiny KL 5e-7 float32, n=500": (shift(1e-3, torch.float32), 500),
    "shift 0.5 float32, n=500": (shift(0.5, torch.float32), 500),
    "50 dimensions float32, n=500": (shift(0.5, torch.float32, 50), 500),
}
ESTIMATORS = {
    "k1": ("k1", True),
    "k2": ("k2", True),
    "k3": ("k3", True),
    "λ = 0.5": (0.5, True),
    "best": ("best", True),
    "best, plain": ("best", False),
}


def shifted_sum(by, noise):
    """p = N(0, 1) with a second dimension that only p and q share: log r of heavier noise."""

    def draw(generator, repeats, draws):
        x, y = (normal(generator, repeats, draws) for _ in range(2))
        p = normal_scores(x) + normal_scores(y)
        return p, normal_scores(x, by) + normal_scores(y, noise), (by**2 + noise**2) / 2

    return draw


def gammas(shape, other):
    """Gamma(shape, 1) against Gamma(other, 1), shape an integer."""

    def draw(generator, repeats, draws):
        x = sum(exponential(generator, repeats, draws) for _ in range(shape))
        p, q = (((k - 1) * x.log() - x - math.lgamma(k)) for k in (shape, other))
        harmonic = -0.5772156649015329 + sum(1 / k for k in range(1, shape))
        truth = (shape - other) * harmonic - math.lgamma(shape) + math.lgamma(other)
        return p, q, truth

    return draw


COUNTED = {
    "shift 0.3, n=60": (shift(0.3), 60),
    "shift 0.7, n=400": (shift(0.7), 400),
    "shift 1.5, n=2000": (shift(1.5), 2000),
    "two shifts, n=300": (shifted_sum(0.4, 0.6), 300),
    "scale 1.2, n=300": (scale(1.2), 300),
    "scale 2, n=1000": (scale(2.0), 1000),
    "scale 0.8, n=1000": (scale(0.8), 1000),
    "rate 1.5, n=200": (rates(1.5), 200),
    "rate 4, n=1000": (rates(4.0), 1000),
    "rate 0.6, n=3000 (heavy)": (rates(0.6), 3000),
    "gamma 2 to 3, n=400": (gammas(2, 3), 400),
    "gamma 4 to 2, n=1000": (gammas(4, 2), 1000),
    "t4 to normal, n=2000 (heavy)": (student(4), 2000),
    "t6 to normal, n=500": (student(6), 500),
    "t8 to normal, n=1000": (student(8), 1000),
    "table of 50, n=300": (zipf(0.7, 1.3, 50), 300),
    "rare event 0.03, n=400": (table([0.97, 0.03], [0.9, 0.1]), 400),
    "tiny KL 2e-6, n=1000": (shift(2e-3), 1000),
}


def ratio_settings(repeats):
    for which, families in (("", RATIOS), ("counted ", COUNTED)):
        for name, (family, draws) in families.items():
            log_p, log_q, truth = family(seeded(f"ratio {which}{name}"), repeats, draws)
            state = LogRatios.of(log_p, log_q)
            for label, (estimator, cross_fit) in ESTIMATORS.items():
                found = averaged(state, estimator, cross_fit)
                yield "log_ratio", f"{label}: {which}{name}", truth, found


def averaged(state, estimator, cross_fit=True):
    """The estimate for full supports, without an error bar where they are refuted (an error)."""
    found = state.averaged(estimator, cross_fit=cross_fit)
    if estimator in ("k1", "k2"):
        return found
    refuted = state.identities(gap=torch.zeros_like(found.value))[0].refuted
    return found.without_error("refused", where=refuted) if refuted.any() else found


def exponential(generator, *shape):
    return -torch.rand(*shape, generator=generator, dtype=F64).log()


def chance(of, generator, *shape):
    return (torch.rand(*shape, generator=generator, dtype=F64) < of).double()


def chi_square(freedom, generator, *shape):
    return sum(normal(generator, *shape) ** 2 for _ in range(freedom))


def students(freedom, *size):
    return normal(*size) / (chi_square(freedom, *size) / freedom).sqrt()


# Laws of a term, (generator, *shape) -> terms, and their mean: any of them could be −log r.
CHOOSING = {
    "normal": (normal, 0.0),
    "uniform": (lambda *size: torch.rand(*size[1:], generator=size[0], dtype=F64), 0.5),
    "exponential": (exponential, 1.0),
    "squared normal": (lambda *size: normal(*size) ** 2, 1.0),
    "fourth power of a normal": (lambda *size: normal(*size) ** 4, 3.0),
    "squared exponential": (lambda *size: exponential(*size) ** 2, 2.0),
    "lognormal 0.3": (lambda *size: (0.3 * normal(*size)).exp(), math.exp(0.045)),
    "lognormal 1": (lambda *size: normal(*size).exp(), math.exp(0.5)),
    "lognormal 1.5": (lambda *size: (1.5 * normal(*size)).exp(), math.exp(1.125)),
    "lognormal 2": (lambda *size: (2 * normal(*size)).exp(), math.exp(2.0)),
    "Pareto 0.2": (lambda *size: (0.2 * exponential(*size)).exp(), 1 / 0.8),
    "Pareto 0.4": (lambda *size: (0.4 * exponential(*size)).exp(), 1 / 0.6),
    "Pareto 0.5": (lambda *size: (0.5 * exponential(*size)).exp(), 2.0),
    "Pareto 0.7": (lambda *size: (0.7 * exponential(*size)).exp(), 1 / 0.3),
    "Pareto 0.9": (lambda *size: (0.9 * exponential(*size)).exp(), 10.0),
    "Pareto 1.2": (lambda *size: (1.2 * exponential(*size)).exp(), math.inf),
    "t3": (lambda *size: students(3, *size), 0.0),
    "t5": (lambda *size: students(5, *size), 0.0),
    "squared t3": (lambda *size: students(3, *size) ** 2, 3.0),
    "squared t5": (lambda *size: students(5, *size) ** 2, 5 / 3),
    "squared Cauchy": (lambda *size: students(1, *size) ** 2, math.inf),
    "Bernoulli 0.3": (lambda *size: chance(0.3, *size), 0.3),
    "Bernoulli 0.05": (lambda *size: chance(0.05, *size), 0.05),
    "Bernoulli 0.01": (lambda *size: chance(0.01, *size), 0.01),
}
COUNTING = {
    "Gumbel": (lambda *size: -exponential(*size).log(), 0.5772156649015329),
    "Weibull 0.7": (lambda *size: exponential(*size) ** (1 / 0.7), math.gamma(1 + 1 / 0.7)),
    "cubed exponential": (lambda *size: exponential(*size) ** 3, 6.0),
    "chi square 3": (lambda *size: chi_square(3, *size), 3.0),
    "minus gamma 3": (lambda *size: -sum(exponential(*size) for _ in range(3)), -3.0),
    "normal less exponential": (lambda *size: normal(*size) - exponential(*size), -1.0),
    "2 % at 10": (lambda *size: normal(*size) + 10 * chance(0.02, *size), 0.2),
    "lognormal 0.7": (lambda *size: (0.7 * normal(*size)).exp(), math.exp(0.245)),
    "lognormal 1.25": (lambda *size: (1.25 * normal(*size)).exp(), math.exp(0.78125)),
    "Lomax 0.3": (lambda *size: (0.3 * exponential(*size)).expm1() / 0.3, 1 / 0.7),
    "Lomax 0.6": (lambda *size: (0.6 * exponential(*size)).expm1() / 0.6, 1 / 0.4),
    "Lomax 0.8": (lambda *size: (0.8 * exponential(*size)).expm1() / 0.8, 5.0),
    "Lomax 1.5": (lambda *size: (1.5 * exponential(*size)).expm1(), math.inf),
    "t4": (lambda *size: students(4, *size), 0.0),
    "squared t4": (lambda *size: students(4, *size) ** 2, 2.0),
    "squared t6": (lambda *size: students(6, *size) ** 2, 1.5),
    "log of 1 + squared Cauchy": (
        lambda *size: (students(1, *size) ** 2).log1p(),
        2 * math.log(2.0),
    ),
    "two events of 0.02": (lambda *size: chance(0.02, *size) + chance(0.02, *size), 0.04),
}


def law_settings(repeats):
    """k1 of terms of any law: means alone, no identity."""
    for which, laws in (("choosing", CHOOSING), ("counting", COUNTING)):
        for name, (law, truth) in laws.items():
            for draws in (30, 100, 300, 1000, 3000):
                generator = seeded(f"law {name} {draws}")
                terms = law(generator, repeats, draws)
                found = LogRatios.of(terms, torch.zeros_like(terms)).averaged("k1")
                yield f"mean of terms, {which}", f"{name}, n={draws}", truth, found


def truncated(log_p, mass):
    """The nucleus of a table, renormalised, −inf outside."""
    ordered, order = log_p.sort(descending=True)
    kept = ordered.exp().cumsum(0) - ordered.exp() < mass
    cut = torch.full_like(log_p, -math.inf)
    cut[order[kept]] = log_p[order[kept]]
    return cut.log_softmax(-1)


def support_settings(repeats):
    """Draws for which E[q/p] = 1 is false, or true and asked for as known, one repeat at a time."""
    generator = seeded("support tables")
    p = (1.5 * normal(generator, 50)).log_softmax(-1)
    q = (p + 0.3 * normal(generator, 50)).log_softmax(-1)
    worlds = {
        "full softmaxes": (p, p, q),
        "top-p 0.9, its own logs": (truncated(p, 0.9), truncated(p, 0.9), q),
        "top-p 0.99, its own logs": (truncated(p, 0.99), truncated(p, 0.99), q),
        "top-p 0.9, raw logs": (truncated(p, 0.9), p, q),
        "temperature 0.7, scored at 1": ((p / 0.7).log_softmax(-1), p, q),
    }
    for name, (source, scored, other) in worlds.items():
        for draws in (300, 1000, 5000):
            ids = source.exp().expand(repeats, -1)
            ids = torch.multinomial(ids, draws, True, generator=seeded(f"{name} {draws}"))
            whole = scored.exp() > 0
            truth = (scored.exp() * (scored - other))[whole].sum().item()
            entropy = torch.special.entr(scored.exp()).sum()
            yield from compared(scored[ids], other[ids], truth, f"{name}, n={draws}", entropy)
    for unseen in (0.003, 0.01, 0.03, 0.1):  # of q, where p has nothing; sd(log r) 0.3
        x = normal(seeded(f"unseen {unseen}"), repeats, 1000)
        log_q = normal_scores(x, 0.3) + math.log1p(-unseen)
        truth = 0.045 - math.log1p(-unseen)
        yield from compared(normal_scores(x), log_q, truth, f"{unseen} of q unseen, n=1000", None)


def compared(log_p, log_q, truth, name, entropy):
    """What the default, k3 and "best" say, with supports asserted, and with the entropies."""
    asserted = {"full_support": True}
    for label, options in {
        "default": {},
        "k3, asserted": {"estimator": "k3", **asserted},
        "best, asserted": {"estimator": "best", **asserted},
    }.items():
        rows = zip(log_p, log_q, strict=True)
        found = [attempted(one, two, options) for one, two in rows]
        yield "log_ratio, supports", f"{label}: {name}", truth, found
    if entropy is not None:
        found = [
            attempted(one, two, {"entropies": entropy.expand(len(one))})
            for one, two in zip(log_p, log_q, strict=True)
        ]
        yield "log_ratio, supports", f"default, entropies: {name}", truth, found


def attempted(log_p, log_q, options):
    try:
        return log_ratio(log_p, log_q, **options)
    except ValueError:
        return Estimate(math.nan, math.nan, len(log_p)).without_error("refused")


def infinite_settings(repeats):
    """Log densities whose KL is infinite, or whose terms have no variance."""
    laws = {
        "Cauchy to normal": (1, 1.0, math.inf),
        "t1 to normal, sd 10": (1, 10.0, math.inf),
        "t2 to normal": (2, 1.0, math.inf),
    }
    for name, (freedom, spread, truth) in laws.items():
        for draws in (300, 1000, 10_000):
            generator = seeded(f"infinite {name} {draws}")
            x = students(freedom, generator, repeats, draws)
            t = torch.distributions.StudentT(torch.tensor(float(freedom), dtype=F64))
            log_q = normal_scores(x, scale=spread) - 0.5 * math.log(2 * math.pi)
            state = LogRatios.of(t.log_prob(x), log_q)
            yield "log_ratio, infinite", f"k1: {name}, n={draws}", truth, state.averaged("k1")


def stream_settings(repeats):
    for name, (family, draws) in RATIOS.items():
        log_p, log_q, truth = family(seeded("stream " + name), repeats, draws)
        cuts = [draws // 2 // 2 * 2, draws - draws // 2 // 2 * 2]
        parts = zip(log_p.split(cuts, -1), log_q.split(cuts, -1), strict=True)
        state = sum(LogRatios.of(*part) for part in parts)
        yield "LogRatios.estimate", f"best: {name}", truth, averaged(state, "best")


def weighted_settings(repeats):
    """Draws from N(0, s²) for p = N(0, 1), q = N(shift, 1)."""
    for spread in (0.8, 1.2, 2.0):
        for by, draws in ((0.1, 1000), (0.5, 200), (1.0, 1000), (2.0, 2000)):
            x = spread * normal(seeded(f"weights {spread} {by}"), repeats, draws)
            log_p, log_q = normal_scores(x), normal_scores(x, by)
            weights = log_p - normal_scores(x, scale=spread)
            for normalise in (False, True):
                for estimator in ("k1", "k3", "best"):
                    state = LogRatios.of(log_p, log_q, log_weights=weights)
                    found = state.averaged(estimator, self_normalise=normalise)
                    how = "self-normalised" if normalise else "plain"
                    name = f"{estimator}, {how}: from sd {spread}, shift {by}, n={draws}"
                    yield "log_ratio, weighted", name, by**2 / 2, found


def drawn_settings(repeats):
    from torch.distributions import Exponential, Gamma, Gumbel, Laplace, Normal, StudentT

    zero, one = torch.zeros(repeats, dtype=F64), torch.ones(repeats, dtype=F64)
    pairs = {
        "normal 0.1": (Normal(zero, one), Normal(zero + 0.1, one)),
        "normal 1": (Normal(zero, one), Normal(zero + 1.0, one)),
        "normal wider": (Normal(zero, one), Normal(zero, 1.4 * one)),
        "normal narrower (heavy)": (Normal(zero, one), Normal(zero, 0.6 * one)),
        "Laplace to normal": (Laplace(zero, one), Normal(zero, 1.5 * one)),
        "normal to Laplace": (Normal(zero, one), Laplace(zero, one)),
        "gamma": (Gamma(2 * one, one), Gamma(2.5 * one, one)),
        "Gumbel to normal": (Gumbel(zero, one), Normal(zero + 0.6, 1.5 * one)),
        "exponential (heavy)": (Exponential(one), Exponential(0.4 * one)),
        "t4 to normal (heavy)": (StudentT(4 * one), Normal(zero, 1.5 * one)),
        "float32": (Normal(zero.float(), 1.0), Normal(zero.float() + 0.3, 1.0)),
    }
    truths = {
        "normal to Laplace": math.log(2)
        + math.sqrt(2 / math.pi)
        - 0.5
        - 0.5 * math.log(2 * math.pi),
        "Laplace to normal": math.log(1.5)
        + 0.5 * math.log(2 * math.pi)
        + 1 / 1.5**2
        - 1
        - math.log(2),
    }
    for name, (p, q) in pairs.items():
        truth = truths.get(name)
        if truth is None:
            try:
                truth = torch.distributions.kl_divergence(p, q)[0].item()
            except NotImplementedError:
                truth = quadrature(
                    lambda x, p=p: first(p).log_prob(x),
                    lambda x, q=q: first(q).log_prob(x),
                )
        for draws in (200, 2000):
            found = kl(p, q, draws=draws, generator=seeded(f"drawn {name} {draws}"))
            yield "kl", f"{name}, n={draws}", truth, found


def unequal_settings(repeats):
    """Pairs with unequal supports, and infinite KL, which must be +inf in every repeat."""
    from torch.distributions import (
        Beta,
        Cauchy,
        Exponential,
        Gamma,
        Laplace,
        LogNormal,
        Normal,
        Pareto,
        StudentT,
        Uniform,
        Weibull,
    )

    zero, one = torch.zeros(repeats, dtype=F64), torch.ones(repeats, dtype=F64)
    waits = (torch.distributions.Bernoulli(0.3 * one), torch.distributions.Geometric(0.3 * one))
    unequal = {
        "uniform to t5": (Uniform(zero, one), StudentT(5 * one)),
        "uniform to Laplace": (Uniform(zero, one), Laplace(zero, one)),
        "beta to t5 (heavy)": (Beta(2 * one, 3 * one), StudentT(5 * one)),
        "beta(1.5, 1.5) to Laplace": (Beta(1.5 * one, 1.5 * one), Laplace(zero, one)),
        "exponential to Cauchy (heavy)": (Exponential(one), Cauchy(zero, one)),
        "Pareto to Cauchy": (Pareto(one, one), Cauchy(zero, one)),
        "gamma to Laplace": (Gamma(2 * one, 1.5 * one), Laplace(zero, one)),
        "Weibull to t3 (heavy)": (Weibull(one, 2 * one), StudentT(3 * one)),
    }
    for name, (p, q) in unequal.items():
        truth = kl_on_line(first(p), first(q))
        for estimator, draws in (("best", 200), ("best", 2000), ("k1", 1000), ("k3", 1000)):
            label = f"{estimator}: {name}, n={draws}"
            found = kl(p, q, draws=draws, estimator=estimator, generator=seeded(f"support {label}"))
            yield "kl, unequal supports", label, truth, found
    found = kl(*waits, draws=1000, estimator="k3", generator=seeded("support waits"))
    truth = -0.7 * math.log(0.3) - 0.3 * math.log(0.21) + 0.3 * math.log(0.3) + 0.7 * math.log(0.7)
    yield "kl, unequal supports", "k3: Bernoulli to geometric, n=1000", truth, found
    infinite = {
        "Cauchy to normal": (Cauchy(zero, one), Normal(zero, one)),
        "uniform to a shorter one": (Uniform(zero, 1.001 * one), Uniform(zero, one)),
        "t1 to Laplace": (StudentT(one), Laplace(zero, one)),
        "normal to log-normal": (Normal(10 * one, one), LogNormal(zero, one)),
    }
    for name, (p, q) in infinite.items():
        found = kl(p, q, draws=500, generator=seeded(f"support {name}"))
        yield "kl, infinite", f"{name}, n=500", math.inf, found


def kl_on_line(p, q):
    """KL of two distributions by the trapezoid rule in log |x|, on either side of 0."""
    t = torch.linspace(-30, 30, 2_000_001, dtype=F64)
    total = 0.0
    for x in (t.exp(), -t.exp()):
        x = x[p.support.check(x)]
        terms = p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x)) * x.abs()
        total += terms.nan_to_num().sum().item() * (t[1] - t[0]).item()
    return total


def first(distribution):
    """The first of a batch of like distributions."""
    names = distribution.arg_constraints
    values = {name: getattr(distribution, name) for name in names}
    return type(distribution)(**{k: v[0] for k, v in values.items() if v.dim()})


def weights_of(kind, size):
    """Log weights whose mean is 1, and how they are drawn."""

    def draw(generator, *shape):
        if kind == "normal":
            return size * normal(generator, *shape) - size**2 / 2
        return -size * torch.rand(*shape, generator=generator, dtype=F64).log() + math.log1p(-size)

    return draw


def evidence_settings(repeats):
    sizes = [(s, n) for s in (0.001, 0.1, 0.3, 0.5, 1.0) for n in (100, 1000)]
    sizes += [(1.5, 1000), (2.0, 1000), (3.0, 1000), (1.0, 30), (1.0, 10_000)]
    cases = [("normal", *each) for each in sizes]
    cases += [("pareto", k, n) for k in (0.2, 0.4, 0.5, 0.7, 0.9) for n in (1000,)]
    for kind, size, draws in cases:
        logs = weights_of(kind, size)(seeded(f"evidence {kind} {size} {draws}"), repeats, draws)
        heavy = " (heavy)" if size >= (2 if kind == "normal" else 0.5) else ""
        yield "log_evidence", f"{kind} {size}, n={draws}{heavy}", 0.0, log_evidence(logs)
    for size in (0.001, 0.5):
        logs = weights_of("normal", size)(seeded(f"evidence float32 {size}"), repeats, 500)
        found = log_evidence(logs.float() - 100.0)
        yield "log_evidence", f"normal {size} float32, n=500", -100.0, found


def bound_settings(repeats):
    for kind, size in (
        ("normal", 0.1),
        ("normal", 0.5),
        ("normal", 1.0),
        ("normal", 2.0),
        ("pareto", 0.7),
    ):
        for count in (1, 5, 50):
            draw = weights_of(kind, size)
            generator = seeded(f"bound {kind} {size} {count}")
            pool = draw(generator, 4_000_000 // count, count)
            truth = (pool.logsumexp(-1) - math.log(count)).mean().item()
            logs = draw(generator, repeats, 100, count)
            name = f"{kind} {size}, K={count}, n=100"
            yield "importance_bound", name, truth, importance_bound(logs)
            if count > 1:
                found = importance_bound(logs, jackknife=True)
                yield "importance_bound, jackknife", name, 0.0, found


def two_normals(generator, repeats, draws, dimensions, by):
    x, y = (normal(generator, repeats, draws, dimensions) for _ in range(2))
    return x, y + by / math.sqrt(dimensions)


def js_of_shift(by):
    z = torch.linspace(-12, 12 + by, 20_001, dtype=F64)
    p, q = (torch.exp(normal_scores(z, mean)) / math.sqrt(2 * math.pi) for mean in (0.0, by))
    middle = 0.5 * (p + q)
    inner = 0.5 * (torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle))
    return torch.trapezoid(inner.nan_to_num(), z).item()


def kl_of_rates(by):
    return by - 1 - math.log(by)


def exponential(generator, *shape):
    return -torch.rand(*shape, generator=generator, dtype=F64).log()


def student_draws(generator, *shape):
    chi = sum(normal(generator, *shape) ** 2 for _ in range(4))
    return normal(generator, *shape) / (chi / 4).sqrt()


def two_samples(kind, generator, repeats, draws, dimensions, by):
    """Draws x ~ p, y ~ q `[repeats, draws, dimensions]` of a family, and KL(p‖q)."""
    shape = (repeats, draws, dimensions)
    if kind == "shift":
        return *two_normals(generator, *shape, by), by**2 / 2
    if kind == "correlated shift":  # correlation 0.99, the shift across it
        x, y = two_normals(generator, *shape, 0.0)
        root = torch.linalg.cholesky(0.01 * torch.eye(2, dtype=F64) + 0.99)
        return x @ root.T, y @ root.T + by * torch.tensor([0.05, -0.05], dtype=F64), by**2 / 4
    if kind == "scale":
        x, y = two_normals(generator, *shape, 0.0)
        return x, by * y, dimensions * (math.log(by) + 0.5 / by**2 - 0.5)
    if kind == "rate":
        x, y = (exponential(generator, *shape) for _ in range(2))
        return x, y / by, dimensions * kl_of_rates(by)
    if kind == "uniform":
        x, y = torch.rand(2, *shape, generator=generator, dtype=F64)
        return x, by * y, dimensions * math.log(by)
    if kind == "t4, the same":
        return student_draws(generator, *shape), student_draws(generator, *shape), 0.0
    if kind == "one decimal":
        x, y = two_normals(generator, *shape, by)
        return x.mul(10).round() / 10, y.mul(10).round() / 10, by**2 / 2  # 1e-3 of it lost
    if kind == "float16":
        x, y = two_normals(generator, *shape, by)
        return x.half(), y.half(), by**2 / 2
    rates = torch.full(shape, 3.0, dtype=F64)  # Poisson counts
    x, y = torch.poisson(rates, generator=generator), torch.poisson(by * rates, generator=generator)
    return x, y, dimensions * 3.0 * kl_of_rates(by)


# The limits of `sampled/limits.py` were chosen on shifts 0, 0.5, 1, 1.5, 2.5, scales 0.6, 0.8, 1.5,
# rates 0.5, 2, uniform 1.3 and Laplace laws of 100, 200 and 600 draws. These settings are others.
TWO_SAMPLES = [
    *(
        ("shift", d, n, by)
        for d, n in ((1, 300), (2, 300), (3, 400), (5, 200))
        for by in (0.0, 0.3, 0.7, 2.0)
    ),
    *(("scale", d, 300, by) for d in (1, 2) for by in (0.5, 0.9, 1.25)),
    *(("rate", d, 300, by) for d in (1, 2) for by in (0.7, 1.25, 3.0)),
    *(("uniform", d, 300, 1.2) for d in (1, 2)),
    ("correlated shift", 2, 300, 0.6),
    ("correlated shift", 2, 300, 6.0),
    *(("t4, the same", d, 300, 1.0) for d in (1, 2)),
    ("one decimal", 1, 300, 0.3),
    ("float16", 2, 300, 0.3),
    *(("Poisson", d, 300, by) for d in (1, 2) for by in (1.1, 0.9)),
]


def neighbour_settings(repeats):
    for kind, dimensions, draws, by in TWO_SAMPLES:
        name = f"{kind} {by}, d={dimensions}, n={draws}"
        x, y, truth = two_samples(kind, seeded("two " + name), repeats, draws, dimensions, by)
        yield "kl_from_draws", name, truth, in_lots(kl_from_draws, x, y)
        if kind == "shift":
            yield "js_from_draws", name, js_of_shift(by), in_lots(js_from_draws, x, y)
        if by == 1.0:
            yield "js_from_draws", name, 0.0, in_lots(js_from_draws, x, y)


def tie_rows(repeats):
    """How many samples that are not independent draws are refused, and how many that are."""
    for name, copied in COPIES.items():
        for draws, dimensions in ((200, 1), (200, 3), (1000, 1)):
            setting = f"{name}, d={dimensions}, n={draws}"
            generator = seeded("ties " + setting)
            count = max(20, repeats // 20)
            refused = 0
            for _ in range(count):
                x, y = two_normals(generator, 1, draws, dimensions, 0.0)
                refused += is_refused(*copied(x[0], y[0]))
            lawful = name.startswith("independent")
            function = "independent draws refused" if lawful else "copied draws refused"
            yield counted(function, setting, count, warned=refused / count)


def counted(function, setting, repeats, **found):
    names = ("truth", "mean", "true_error", "median_error", "coverage", "refused", "silent")
    empty = dict.fromkeys(names)
    return (
        empty
        | {"function": function, "setting": setting, "repeats": repeats, "warned": 0.0}
        | found
    )


COPIES = {
    "independent": lambda x, y: (x, y),
    "independent, float32": lambda x, y: (x.float(), y.float()),
    "independent, one decimal": lambda x, y: (x.mul(10).round() / 10, y.mul(10).round() / 10),
    "independent, lognormal": lambda x, y: (x.exp(), y.exp()),
    "the same": lambda x, y: (x, x),
    "half shared": lambda x, y: (x, torch.cat([x[::2], y[::2]])),
    "one in twenty shared": lambda x, y: (x, torch.cat([x[::20], y])),
    "the same, one decimal": lambda x, y: (x.mul(10).round() / 10, x.mul(10).round() / 10),
    "noise of 1e-6": lambda x, y: (x, x + 1e-6 * y),
    "half with noise of 1e-6": lambda x, y: (x, torch.cat([x[::2] + 1e-6 * y[::2], y[::2]])),
    "each row twice": lambda x, y: (torch.cat([x, x]), y),
    "every other row is the last": lambda x, y: (x[::2].repeat_interleave(2, 0), y),
}


def is_refused(x, y):
    try:
        two_sample.two_samples(x, y, seeded("noise"))
    except ValueError:
        return True
    return False


def pair_settings(repeats):
    for draws, dimensions in ((300, 1), (1000, 1), (300, 2)):
        for correlation in (0.0, 0.4, 0.7, 0.95):
            name = f"correlation {correlation}, {dimensions}+{dimensions} d, n={draws}"
            generator = seeded("pairs " + name)
            x, noise = (normal(generator, repeats, draws, dimensions) for _ in range(2))
            y = correlation * x + math.sqrt(1 - correlation**2) * noise
            truth = -0.5 * dimensions * math.log1p(-(correlation**2))
            found = in_lots(mutual_information_from_draws, x, y)
            yield "mutual_information_from_draws", name, truth, found


def bound_rows(repeats):
    """How often the classifier's bound, less 1.96 errors, is below the truth: 93 % or more."""
    count = max(50, repeats // 10)
    for name, function, x, y, truth in bound_draws(count):
        found = [function(a, b, method="classifier") for a, b in zip(x, y, strict=True)]
        given = [each for each in found if not each.no_error]
        below = sum(each.interval()[0] <= truth for each in given) / len(given)
        values = torch.tensor([each.value for each in found], dtype=F64)
        most = math.log(2.0) if function is js_from_draws else math.inf
        possible = all(each.interval()[1] >= 0 and each.value <= most for each in given)
        yield counted(
            f"{function.__name__}, classifier",
            name,
            count,
            truth=truth,
            mean=values.mean().item(),
            coverage=below if possible else 0.0,
            refused=1 - len(given) / count,
        )


def bound_draws(count):
    shifts = (
        (1, 200, 0.0),
        (1, 200, 0.5),
        (2, 200, 1.0),
        (5, 200, 1.0),
        (20, 300, 0.9),
        (1, 100, 3.0),
    )
    for dimensions, draws, by in shifts:
        name = f"shift {by}, d={dimensions}, n={draws}"
        x, y = two_normals(seeded("two " + name), count, draws, dimensions, by)
        yield name, kl_from_draws, x, y, by**2 / 2
        yield name, js_from_draws, x, y, js_of_shift(by)
    for kind, dimensions, by in (("scale", 2, 0.6), ("rate", 1, 2.0), ("t4, the same", 3, 1.0)):
        name = f"{kind} {by}, d={dimensions}, n=200"
        x, y, truth = two_samples(kind, seeded("two " + name), count, 200, dimensions, by)
        yield name, kl_from_draws, x, y, truth
    for correlation in (0.0, 0.5, 0.9):
        name = f"correlation {correlation}, n=200"
        generator = seeded("pairs " + name)
        x, noise = (normal(generator, count, 200, 1) for _ in range(2))
        y = correlation * x + math.sqrt(1 - correlation**2) * noise
        truth = -0.5 * math.log1p(-(correlation**2))
        yield name, mutual_information_from_draws, x, y, truth


def in_lots(function, x, y, lot=50):
    """Keep the distances of a few repeats at a time in cache."""
    return [function(a, b) for a, b in zip(x.split(lot), y.split(lot), strict=True)]


def seeded(name):
    return torch.Generator().manual_seed(zlib.crc32(f"{DRAWS} {name}".encode()))


def summed_up(function, setting, truth, found):
    parts = [columns(part) for part in (found if isinstance(found, list) else [found])]
    value, error, low, high, warned = (torch.cat(kind) for kind in zip(*parts, strict=True))
    covered = (((low <= truth) & (truth <= high)) | (value == truth)).double()
    refused = error.isnan()
    silent = (warned == 0) & ~refused
    told = 1 - silent.double()
    return {
        "function": function,
        "setting": setting,
        "repeats": len(value),
        "truth": truth,
        "mean": value.nanmean().item(),
        "true_error": ((value - truth) ** 2).nanmean().sqrt().item(),
        "median_error": error.nanmedian().item(),
        "coverage": covered[~refused].mean().item() if not refused.all() else None,
        "refused": refused.double().mean().item(),
        "warned": told.mean().item(),
        "silent": covered[silent].mean().item() if silent.any() else None,
    }


def passes(row):
    """Whether a setting's error bars are honest, by the rule in the module's docstring."""
    if row["function"] in RULES:
        return RULES[row["function"]](row)
    told = row["warned"] >= TOLD
    if math.isinf(row["truth"]):
        return told or row["coverage"] == 1.0
    silent = row["repeats"] * (1 - row["warned"])
    return told or covers(row) or within(row["silent"], silent)


def misleads(row):
    """Whether a setting passes for all its results, while those not told of miss too often."""
    if row["function"] in RULES or row["silent"] is None or row["warned"] >= TOLD:
        return False
    return passes(row) and not within(row["silent"], row["repeats"] * (1 - row["warned"]))


def covers(row):
    """Whether the intervals that are given cover, warned or not."""
    return within(row["coverage"], row["repeats"] * (1 - (row["refused"] or 0.0)))


def within(coverage, count):
    """Whether a coverage over so many results is in the band, which is that of 2,000 results."""
    if coverage is None or count < 1:
        return False
    wider = math.sqrt(BAND_COUNT / min(BAND_COUNT, count))
    return abs(coverage - 0.95) <= (HIGH - 0.95) * wider + 1e-12


def columns(estimate: Estimate) -> list[Tensor]:
    """Value, error, ends of the interval and whether it warns, each `[repeats]`."""
    kinds = (estimate.value, estimate.standard_error, *estimate.interval(), estimate.warned)
    return [torch.as_tensor(kind).double().reshape(-1) for kind in kinds]


GROUPS = {
    "laws": law_settings,
    "infinite": infinite_settings,
    "ratio": ratio_settings,
    "stream": stream_settings,
    "weighted": weighted_settings,
    "drawn": drawn_settings,
    "support": support_settings,
    "unequal": unequal_settings,
    "evidence": evidence_settings,
    "bound": bound_settings,
    "neighbours": neighbour_settings,
    "pairs": pair_settings,
}
ROWS = {"classifier": bound_rows, "ties": tie_rows}
SLOW = ("support", "neighbours", "pairs", "classifier", "ties")
RULES = {
    "independent draws refused": lambda row: row["warned"] <= 0.01,
    "copied draws refused": lambda row: row["warned"] >= TOLD,
    **dict.fromkeys(
        (
            "kl_from_draws, classifier",
            "js_from_draws, classifier",
            "mutual_information_from_draws, classifier",
        ),
        lambda row: row["coverage"] >= LOW,
    ),
}


def draw_picture(rows, path):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "kullback", "font.size": 9})
    rows = [row for row in rows if row["coverage"] is not None]
    names = list(dict.fromkeys(row["function"] for row in rows))
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1.2))
    axes.axvspan(LOW, HIGH, color="#dff0d8", lw=0)
    axes.axvline(0.95, color="#5a8f4a", lw=1)
    for row in rows:
        height = (
            names.index(row["function"]) + 0.5 * (zlib.crc32(row["setting"].encode()) % 97) / 97
        )
        told = row["warned"] >= TOLD
        colour = "#c0392b" if not passes(row) else "#999999" if told else "#2c5f8a"
        whole = told or row["silent"] is None  # the classifier's bounds have no silent ones
        coverage = row["coverage"] if whole else row["silent"]
        axes.plot(coverage, height - 0.25, "x" if told else "o", ms=4, color=colour)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0.0, 1.005)
    axes.invert_yaxis()
    axes.set_xlabel(
        "coverage of nominal 95 % intervals; dot: of the results without a warning,\n"
        "cross: of all results, where 95 % or more warn; red: neither"
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def printed(row):
    silent, cover = (
        "    –" if row[name] is None else f"{row[name]:5.3f}" for name in ("silent", "coverage")
    )
    verdict = "ok" if passes(row) else "FAILS"
    return (
        f"{row['function']:30s} {row['setting']:52s} {cover} "
        f"{silent} {row['warned']:5.3f} {verdict}"
    )


def summary(rows):
    """The table of the docs, in Markdown: a line a kind of settings."""
    lines = [
        "| settings | number | all cover | told of, or the rest covers | neither | false alarms |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(kind(row) for row in rows):
        mine = [row for row in rows if kind(row) == name]
        failed = sum(not passes(row) for row in mine)
        cover = sum(covers(row) and passes(row) for row in mine)
        rest = len(mine) - cover - failed
        lines.append(
            f"| {name} | {len(mine)} | {cover} | {rest} | {failed} | {false_alarms(mine)} |"
        )
    return "\n".join(lines)


def kind(row):
    """The line of the summary that a setting belongs to."""
    function, setting = row["function"], row["setting"]
    if function == "log_ratio":
        which = "counted on" if "counted " in setting else "chosen on"
        return f"`log_ratio`, {setting.split(':')[0]}, families {which}"
    if function.startswith("mean of terms"):
        many = int(setting.rsplit("n=", 1)[1]) >= 300
        return f"{function}, {'300 draws or more' if many else '30 or 100 draws'}"
    if function == "log_ratio, supports":
        as_scored = "full softmaxes" in setting
        return f"`{function}`, {'as scored' if as_scored else 'not as scored or asserted'}"
    return f"`{function}`"


def failures(rows):
    """The settings that fail, one a line, in Markdown."""
    lines = [
        "| function | setting | repeats | all cover | told of | the rest covers |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not passes(row):
            cover, silent = (
                "–" if row[name] is None else f"{row[name]:.1%}" for name in ("coverage", "silent")
            )
            lines.append(
                f"| `{row['function']}` | {row['setting']} | {row['repeats']} | {cover} | "
                f"{row['warned']:.1%} | {silent} |"
            )
    return "\n".join(lines)


def false_alarms(rows):
    """How often results are told of where all cover, and in how many settings above 20 %."""
    told = [row["warned"] for row in rows if covers(row)]
    if not told:
        return "–"
    return f"{sum(told) / len(told):.0%}, above 20 % in {sum(one > 0.2 for one in told)}"


def measured(groups, repeats):
    for group in groups:
        count = repeats // 5 if group in SLOW else repeats
        if group in ROWS:
            yield from ROWS[group](count)
            continue
        for setting in GROUPS[group](count):
            yield summed_up(*setting)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--only", nargs="*", choices=[*GROUPS, *ROWS], default=[*GROUPS, *ROWS])
    parser.add_argument("--rows", nargs="*", type=Path, default=[], help="of earlier runs, as well")
    parser.add_argument("--json", type=Path, help="written anew after every setting")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    earlier = [row for path in options.rows for row in json.loads(path.read_text())["rows"]]
    rows = list({(row["function"], row["setting"]): row for row in earlier}.values())
    for row in measured(options.only, options.repeats):
        rows.append(row)
        print(printed(row), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    failed = [row for row in rows if not passes(row)]
    print(summary(rows))
    print(failures(rows))
    print(f"{len(rows)} settings, {len(failed)} fail, {time.perf_counter() - start:.0f} s")
    print(f"{sum(map(misleads, rows))} pass since all cover, though the silent results do not")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    if options.svg:
        draw_picture(rows, options.svg)


if __name__ == "__main__":
    main()
