"""Textbook KLs and entropies in mpmath: −H(p) − E_p[log q] from moments, every part as it stands.

All digits that these forms lose are there to lose: `mp.dps` is 80. Families are named by their
torch class; parameters are lists of numbers in the order of `BUILD`.
"""

import mpmath as mp
import torch
import torch.distributions as D
from mpmath import mpf

from kullback.exact import InverseGaussian

mp.mp.dps = 80
EULER, PI = mp.euler, mp.pi


def xlogx(x):
    return x * mp.log(x) if x else mpf(0)


def log_sinhc(x):
    return mp.log(mp.sinh(x / 2) / (x / 2)) if x else mpf(0)


def mean_tilted(eta):
    return 1 / (1 - mp.exp(-eta)) - 1 / eta if eta else mpf("0.5")


class Normal:
    def __init__(self, m, s):
        self.m1, self.m2, self.s = m, m * m + s * s, s
        self.entropy = mp.log(2 * PI * mp.e * s * s) / 2
        self.support = (-mp.inf, mp.inf)

    def mgf(self, t):
        return mp.exp(t * self.m1 + t * t * self.s**2 / 2)

    def distance(self, c):
        d = (self.m1 - c) / self.s
        return self.s * (mp.sqrt(2 / PI) * mp.exp(-d * d / 2) + d * mp.erf(d / mp.sqrt(2)))


class Laplace:
    def __init__(self, m, b):
        self.m1, self.m2, self.b = m, m * m + 2 * b * b, b
        self.entropy = 1 + mp.log(2 * b)
        self.support = (-mp.inf, mp.inf)

    def distance(self, c):
        d = abs(self.m1 - c)
        return d + self.b * mp.exp(-d / self.b)


class Gumbel:
    def __init__(self, m, b):
        self.m1 = m + EULER * b
        self.m2 = self.m1**2 + (PI * b) ** 2 / 6
        self.m, self.b, self.entropy = m, b, mp.log(b) + EULER + 1
        self.support = (-mp.inf, mp.inf)

    def mgf(self, t):
        return mp.exp(self.m * t + mp.loggamma(1 - self.b * t))


class Gamma:
    def __init__(self, a, b):
        self.m1, self.m2 = a / b, a * (a + 1) / b**2
        self.log = mp.psi(0, a) - mp.log(b)
        self.a, self.b = a, b
        self.entropy = a - mp.log(b) + mp.loggamma(a) + (1 - a) * mp.psi(0, a)
        self.support = (0, mp.inf)

    def mgf(self, t):
        return (1 - t / self.b) ** -self.a


def exponential(rate):
    return Gamma(mpf(1), rate)


class Beta:
    def __init__(self, a, b):
        n = a + b
        self.m1, self.m2 = a / n, a * (a + 1) / (n * (n + 1))
        self.log, self.log1m = (mp.psi(0, c) - mp.psi(0, n) for c in (a, b))
        self.entropy = log_beta(a, b) - (a - 1) * self.log - (b - 1) * self.log1m
        self.support = (0, 1)


class ContinuousBernoulli:
    def __init__(self, eta):
        self.m1 = mean_tilted(eta)
        variance = 1 / eta**2 - 1 / (4 * mp.sinh(eta / 2) ** 2) if eta else mpf(1) / 12
        self.m2 = variance + self.m1**2
        self.entropy = log_sinhc(eta) - eta * (self.m1 - mpf(1) / 2)
        self.support = (0, 1)


class Uniform:
    def __init__(self, low, high):
        self.low, self.high, self.width = low, high, high - low
        self.m1, self.m2 = (low + high) / 2, (low**2 + low * high + high**2) / 3
        self.entropy = mp.log(self.width)
        self.support = (low, high)
        if low >= 0:
            self.log = (xlogx(high) - xlogx(low)) / self.width - 1
        if low >= 0 and high <= 1:
            self.log1m = (xlogx(1 - low) - xlogx(1 - high)) / self.width - 1

    def mgf(self, t):
        return (mp.exp(t * self.high) - mp.exp(t * self.low)) / (t * self.width)


class Pareto:
    def __init__(self, s, a):
        self.m1 = a * s / (a - 1) if a > 1 else mp.inf
        self.m2 = a * s * s / (a - 2) if a > 2 else mp.inf
        self.log, self.entropy = mp.log(s) + 1 / a, mp.log(s / a) + 1 + 1 / a
        self.support = (s, mp.inf)


def log_beta(a, b):
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def inside(p, low, high):
    return low <= p.support[0] and p.support[1] <= high


def to_normal(p, m, s):
    if p.m2 == mp.inf:
        return -mp.inf
    return -mp.log(2 * PI * s * s) / 2 - (p.m2 - 2 * m * p.m1 + m * m) / (2 * s * s)


def to_gamma(p, a, b):
    if not inside(p, 0, mp.inf):
        return -mp.inf
    return a * mp.log(b) - mp.loggamma(a) + (a - 1) * p.log - b * p.m1  # −inf for an infinite mean


def to_exponential(p, rate):
    return mp.log(rate) - rate * p.m1 if inside(p, 0, mp.inf) else -mp.inf


def to_gumbel(p, m, b):
    return -mp.log(b) - (p.m1 - m) / b - mp.exp(m / b) * p.mgf(-1 / b)


def to_beta(p, a, b):
    if not inside(p, 0, 1):
        return -mp.inf
    return (a - 1) * p.log + (b - 1) * p.log1m - log_beta(a, b)


def to_continuous_bernoulli(p, eta):
    return eta * (p.m1 - mpf(1) / 2) - log_sinhc(eta) if inside(p, 0, 1) else -mp.inf


def to_uniform(p, low, high):
    return -mp.log(high - low) if inside(p, low, high) else -mp.inf


def to_pareto(p, s, a):
    return mp.log(a) + a * mp.log(s) - (a + 1) * p.log if inside(p, s, mp.inf) else -mp.inf


def to_laplace(p, m, b):
    return -mp.log(2 * b) - p.distance(m) / b


P = {
    "Normal": Normal,
    "Laplace": Laplace,
    "Gumbel": Gumbel,
    "Gamma": Gamma,
    "Exponential": exponential,
    "Beta": Beta,
    "ContinuousBernoulli": ContinuousBernoulli,
    "Uniform": Uniform,
    "Pareto": Pareto,
}
Q = {
    "Normal": to_normal,
    "Laplace": to_laplace,
    "Gumbel": to_gumbel,
    "Gamma": to_gamma,
    "Exponential": to_exponential,
    "Beta": to_beta,
    "ContinuousBernoulli": to_continuous_bernoulli,
    "Uniform": to_uniform,
    "Pareto": to_pareto,
}


def half_normal(p, q):
    r = p[0] / q[0]
    return (r * r - 1) / 2 - mp.log(r)


def cauchy(p, q):
    return mp.log(((p[1] + q[1]) ** 2 + (p[0] - q[0]) ** 2) / (4 * p[1] * q[1]))


def half_cauchy(p, q):
    return mp.log((p[0] + q[0]) ** 2 / (4 * p[0] * q[0]))


def inverse_gamma(p, q):
    return kl("Gamma", "Gamma", p, q)


def weibull(p, q):
    (l1, k1), (l2, k2) = p, q
    power = mp.exp(k2 * mp.log(l1 / l2) + mp.loggamma(1 + k2 / k1))
    return (
        mp.log(k1 / k2)
        + (k1 - k2) * (mp.log(l1) - EULER / k1)
        - (k1 * mp.log(l1) - k2 * mp.log(l2))
        + power
        - 1
    )


def von_mises(p, q):
    (m1, k1), (m2, k2) = p, q
    log_i0 = [log_bessel(0, k) for k in (k1, k2)]
    mean = mp.exp(log_bessel(1, k1) - log_i0[0])
    return log_i0[1] - log_i0[0] + mean * (k1 - k2 * mp.cos(m1 - m2))


def log_bessel(order, x):
    if x < 500:
        return mp.log(mp.besseli(order, x))
    term = total = mpf(1)  # DLMF 10.40.1: smaller than 1e-80 long before it diverges
    for k in range(1, 60):
        term *= -(4 * order**2 - (2 * k - 1) ** 2) / (8 * k * x)
        total += term
    return x - mp.log(2 * PI * x) / 2 + mp.log(total)


def inverse_gaussian(p, q):
    (m1, l1), (m2, l2) = p, q
    return (mp.log(l1 / l2) + l2 / l1 - 1) / 2 + l2 * (m1 - m2) ** 2 / (2 * m1 * m2**2)


def table(p, q):
    p, q = ([v / sum(row) for v in row] for row in (p, q))
    terms = [
        a * mp.log(a / b) if a and b else (mp.inf if a else mpf(0))
        for a, b in zip(p, q, strict=True)
    ]
    return sum(terms, mpf(0))


def bernoulli(p, q):
    return table([1 - p[0], p[0]], [1 - q[0], q[0]])


def poisson(p, q):
    return p[0] * mp.log(p[0] / q[0]) - p[0] + q[0]


def bernoulli_poisson(p, q):
    return xlogx(1 - p[0]) + xlogx(p[0]) - p[0] * mp.log(q[0]) + q[0]


def dirichlet(p, q):
    total = sum(p)
    value = mp.loggamma(total) - mp.loggamma(sum(q))
    for a, b in zip(p, q, strict=True):
        value += mp.loggamma(b) - mp.loggamma(a) + (a - b) * (mp.psi(0, a) - mp.psi(0, total))
    return value


def lkj(p, q, size=4):
    rows = [(mpf(i - 1) / 2, mpf(size - i) / 2) for i in range(2, size + 1)]
    return sum(dirichlet([one, p[0] + rest], [one, q[0] + rest]) for one, rest in rows)


def lower(values, size):
    """The lower triangular matrix with these rows, its diagonal exponentiated by nobody."""
    matrix, rest = mp.zeros(size), list(values)
    for i in range(size):
        for j in range(i + 1):
            matrix[i, j] = rest.pop(0)
    return matrix


def gaussian_kl(gap, cov_p, cov_q):
    size = cov_p.rows
    inverse = mp.inverse(cov_q)
    product, square = inverse * cov_p, (gap.T * inverse * gap)[0]
    trace = sum(product[i, i] for i in range(size))
    return (trace - size - mp.log(mp.det(cov_p) / mp.det(cov_q)) + square) / 2


SIZE = 3


def covariance(kind, values):
    """The mean and the covariance of a Gaussian of `SIZE` dimensions from its parameters."""
    loc, rest = mp.matrix(values[:SIZE]), values[SIZE:]
    if kind == "Independent":
        return loc, mp.diag([s**2 for s in rest])
    if kind == "MultivariateNormal":
        tril = lower(rest, SIZE)
        return loc, tril * tril.T
    factor = mp.matrix(rest[:SIZE])
    return loc, factor * factor.T + mp.diag(rest[SIZE:])


def gaussian(first, second):
    def truth(p, q):
        (loc_p, cov_p), (loc_q, cov_q) = covariance(first, p), covariance(second, q)
        return gaussian_kl(loc_p - loc_q, cov_p, cov_q)

    return truth


def wishart(p, q):
    (n1, *l1), (n2, *l2) = p, q
    v1, v2 = (lower(v, 2) * lower(v, 2).T for v in (l1, l2))
    product = mp.inverse(v2) * v1
    value = n1 / 2 * (product[0, 0] + product[1, 1] - 2) - n2 / 2 * mp.log(mp.det(product))
    for i in range(2):
        value += mp.loggamma(n2 / 2 - mpf(i) / 2) - mp.loggamma(n1 / 2 - mpf(i) / 2)
        value += (n1 - n2) / 2 * mp.psi(0, n1 / 2 - mpf(i) / 2)
    return value


SPECIAL = {
    ("HalfNormal", "HalfNormal"): half_normal,
    ("Cauchy", "Cauchy"): cauchy,
    ("HalfCauchy", "HalfCauchy"): half_cauchy,
    ("InverseGamma", "InverseGamma"): inverse_gamma,
    ("Weibull", "Weibull"): weibull,
    ("VonMises", "VonMises"): von_mises,
    ("InverseGaussian", "InverseGaussian"): inverse_gaussian,
    ("Bernoulli", "Bernoulli"): bernoulli,
    ("Bernoulli", "Poisson"): bernoulli_poisson,
    ("Categorical", "Categorical"): table,
    ("OneHotCategorical", "OneHotCategorical"): table,
    ("Binomial", "Binomial"): lambda p, q: 7 * bernoulli(p, q),
    ("Multinomial", "Multinomial"): lambda p, q: 7 * table(p, q),
    ("Geometric", "Geometric"): lambda p, q: bernoulli(p, q) / p[0],
    ("NegativeBinomial", "NegativeBinomial"): lambda p, q: bernoulli(p, q) * 2.5 / (1 - p[0]),
    ("Poisson", "Poisson"): poisson,
    ("Dirichlet", "Dirichlet"): dirichlet,
    ("LKJCholesky", "LKJCholesky"): lkj,
    ("Wishart", "Wishart"): wishart,
}
_KINDS = ("Independent", "MultivariateNormal", "LowRankMultivariateNormal")
SPECIAL |= {(a, b): gaussian(a, b) for a in _KINDS for b in _KINDS}


def kl(first, second, p, q):
    """KL(p‖q) of the named families at lists of mpmath numbers."""
    if (first, second) in SPECIAL:
        return SPECIAL[first, second](p, q)
    one = P[first](*p)
    crossed = Q[second](one, *q)
    return -one.entropy - crossed


def matrix(values, size):
    rows = [
        [values[i * (i + 1) // 2 + j] if j <= i else 0 * values[0] for j in range(size)]
        for i in range(size)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def independent(*v):
    return D.Independent(D.Normal(torch.stack(v[:SIZE]), torch.stack(v[SIZE:])), 1)


def multivariate(*v):
    return D.MultivariateNormal(torch.stack(v[:SIZE]), scale_tril=matrix(v[SIZE:], SIZE))


def low_rank(*v):
    factor = torch.stack(v[SIZE : 2 * SIZE])[:, None]
    return D.LowRankMultivariateNormal(torch.stack(v[:SIZE]), factor, torch.stack(v[2 * SIZE :]))


def wishart_of(df, *rows):
    return D.Wishart(df, scale_tril=matrix(rows, 2))


BUILD = {
    "Normal": D.Normal,
    "Laplace": D.Laplace,
    "Gumbel": D.Gumbel,
    "Gamma": D.Gamma,
    "Exponential": D.Exponential,
    "Beta": D.Beta,
    "ContinuousBernoulli": lambda eta: D.ContinuousBernoulli(logits=eta),
    "Uniform": D.Uniform,
    "Pareto": D.Pareto,
    "HalfNormal": D.HalfNormal,
    "Cauchy": D.Cauchy,
    "HalfCauchy": D.HalfCauchy,
    "InverseGamma": D.InverseGamma,
    "Weibull": D.Weibull,
    "VonMises": D.VonMises,
    "InverseGaussian": InverseGaussian,
    "Bernoulli": D.Bernoulli,
    "Categorical": lambda *v: D.Categorical(torch.stack(v)),
    "OneHotCategorical": lambda *v: D.OneHotCategorical(torch.stack(v)),
    "Binomial": lambda p: D.Binomial(7, p),
    "Multinomial": lambda *v: D.Multinomial(7, torch.stack(v)),
    "Geometric": D.Geometric,
    "NegativeBinomial": lambda p: D.NegativeBinomial(torch.full_like(p, 2.5), p),
    "Poisson": D.Poisson,
    "Dirichlet": lambda *v: D.Dirichlet(torch.stack(v)),
    "LKJCholesky": lambda eta: D.LKJCholesky(4, eta),
    "Wishart": wishart_of,
    "Independent": independent,
    "MultivariateNormal": multivariate,
    "LowRankMultivariateNormal": low_rank,
}
