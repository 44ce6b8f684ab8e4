"""Shapes that are not near a Gaussian, or are large: error, verdict and time of the default fit.

    python benchmarks/shapes.py [ROW ...] [--seeds 3] [--family auto] [--save]

A row is named by the beginning of its name ("laplace", "edge"); without one all are run. For each
row: the largest error of a mean (in sd of the truth), the smallest and largest ratio of an sd to
the truth, the level of the verdict, wall seconds and calls of the density, over the seeds. The
truths are closed forms or quadrature.
"""

import argparse
import functools
import math
import time
import warnings

import torch
from measuring import finish, machine
from posterior_targets import DATA, posterior
from torch.distributions import Laplace, Normal, Wishart, constraints

from kullback.core import RunError
from kullback.variational import assess, fit
from kullback.variational.target.parameters import Parameter

F64 = torch.float64
HITS = [18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7, 0]
TRIALS = 18 * [45] + [4]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def by_quadrature(log_density, low, high, n=40_001):
    """Mean and sd of a density on a line."""
    x = torch.linspace(low, high, n, dtype=F64)
    w = torch.stack([log_density(v[None]) for v in x]).softmax(0)
    mean = (w * x).sum()
    return [float(mean)], [float((w * (x - mean) ** 2).sum().sqrt())]


def same(mean, sd, dims):
    return [mean] * dims, [sd] * dims


def laplace(dims):
    return lambda z: -z.abs().sum(), dims, *same(0.0, math.sqrt(2), dims)


def laplace_law():
    law = Laplace(torch.tensor([3.0, -200.0]).double(), torch.tensor([0.01, 50.0]).double())
    return lambda z: law.log_prob(z).sum(), 2, law.mean.tolist(), law.stddev.tolist()


def largest(dims):
    """The radius is Gamma(dims, 1), a coordinate on the cube's surface has variance below."""
    sd = math.sqrt(dims * (dims + 1) * (1 / dims + (1 - 1 / dims) / 3))
    return lambda z: -z.abs().max(), dims, *same(0.0, sd, dims)


def hinge():
    def log_density(z):
        return -5 * torch.relu(1 - z[0]) - 2 * torch.relu(z[0] - 3)

    return log_density, 1, *by_quadrature(log_density, -8, 15)


def straight(pieces, dims=1):
    """A density of straight pieces in each coordinate; the truth by quadrature."""
    mean, sd = by_quadrature(lambda z: pieces(z[0]), -40, 40)
    return lambda z: pieces(z).sum(), dims, mean * dims, sd * dims


def flat_top(z):
    return -torch.relu(z.abs() - 5)


def asymmetric(z):
    return -5 * torch.relu(-z) - torch.relu(z)


def soft_edge(z):
    """An exponential with an edge of width 1/30 at 0."""
    return -z - 3 * torch.nn.functional.softplus(-30 * z)


def two_slopes(z):
    return -torch.relu(z.abs() - 1) - 4 * torch.relu(z.abs() - 2)


def power(p):
    sd = math.sqrt(math.gamma(3 / p) / math.gamma(1 / p))
    return lambda z: -z.abs().pow(p).sum(), 3, *same(0.0, sd, 3)


def huber():
    def one(z):
        return -torch.nn.functional.huber_loss(z[0], torch.zeros(()).double(), delta=0.1) / 0.05

    return one, 1, *by_quadrature(one, -40, 40)


def median():
    """A median under the check loss: kinks at 200 data."""
    data = torch.randn(200, generator=seeded(1), dtype=F64)

    def log_density(z):
        return -(data - z[0]).abs().sum()

    return log_density, 1, *by_quadrature(log_density, -2, 2)


def one_kink():
    """One Laplace among correlated Gaussians."""
    root = torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0], [0.5, 0.5, 2.0]], dtype=F64)
    inner = torch.distributions.MultivariateNormal(torch.zeros(3).double(), scale_tril=root)

    def log_density(z):
        return inner.log_prob(z[:3]) - z[3].abs() / 7

    return log_density, 4, [0.0] * 4, [*root.square().sum(1).sqrt().tolist(), 7 * math.sqrt(2)]


def edge(dims):
    """Exponentials: -inf where a coordinate is negative."""
    return (
        lambda z: torch.where((z >= 0).all(), -z.sum(), -math.inf),
        dims,
        *same(1.0, 1.0, dims),
    )


def triangle():
    def log_density(z):
        inside = (z[0] >= 0) & (z[1] >= 0) & (z[0] + z[1] <= 1)
        return torch.where(inside, 0.0 * z[0], -math.inf)

    return log_density, 2, *same(1 / 3, 1 / math.sqrt(18), 2)


def simplex(dims):
    """Uniform on a simplex: a Dirichlet of ones without its last entry."""

    def log_density(z):
        inside = (z >= 0).all() & (z.sum() <= 1)
        return torch.where(inside, 0.0 * z[0], -math.inf)

    share = 1 / (dims + 1)
    return log_density, dims, *same(share, math.sqrt(share * (1 - share) / (dims + 2)), dims)


def hole(dims):
    """A unit normal without the ball of radius 1: -inf inside; the radius by quadrature."""

    def log_density(z):
        square = z.square().sum()
        return torch.where(square > 1, -0.5 * square, -math.inf)

    r = torch.linspace(1, 15, 400_001, dtype=F64)
    w = (-0.5 * r**2 + (dims - 1) * r.log()).softmax(0)
    return log_density, dims, *same(0.0, math.sqrt(float((w * r**2).sum()) / dims), dims)


def interval():
    def log_density(z):
        return torch.where((z[0] > 2) & (z[0] < 5), torch.zeros(()).double(), -math.inf)

    return log_density, 1, [3.5], [3 / math.sqrt(12)]


def half_normal():
    def log_density(z):
        return torch.where(z[0] > 0.5, -0.5 * z[0] ** 2, -math.inf) - 0.5 * (z[1] - z[0]) ** 2

    cut = by_quadrature(lambda z: -0.5 * z[0] ** 2, 0.5, 12)
    return log_density, 2, cut[0] * 2, [cut[1][0], math.sqrt(cut[1][0] ** 2 + 1)]


def hierarchy(groups, *, each=5, centred=True, seed=0):
    """Group means N(mu, tau²) with `each` observations of sd 1; mu, tau by quadrature."""
    generator = seeded(seed)
    means = 1.0 + 0.7 * torch.randn(groups, generator=generator, dtype=F64)
    y = means[:, None] + torch.randn(groups, each, generator=generator, dtype=F64)

    def prior(mu, tau):
        return Normal(0, 5).log_prob(mu) + Normal(0, 2).log_prob(tau)

    def centred_log(mu, tau, theta):
        likelihood = Normal(theta[:, None], 1.0).log_prob(y).sum()
        return prior(mu, tau) + Normal(mu, tau).log_prob(theta).sum() + likelihood

    def other_log(mu, tau, u):
        likelihood = Normal((mu + tau * u)[:, None], 1.0).log_prob(y).sum()
        return prior(mu, tau) + Normal(0.0, 1.0).log_prob(u).sum() + likelihood

    bar, log_tau = y.mean(1), torch.linspace(-4, 1.5, 3001, dtype=F64)
    tau = log_tau.exp()
    variance = tau**2 + 1 / each
    precision = groups / variance + 1 / 25
    centre = bar.sum() / variance / precision
    square = (bar.square().sum() / variance) - precision * centre**2
    logs = -0.5 * groups * variance.log() - 0.5 * square - 0.5 * precision.log()
    w = (logs - tau**2 / 8 + log_tau).softmax(0)
    mu = (w * centre).sum()
    mu_sd = (w * (1 / precision + (centre - mu) ** 2)).sum().sqrt()
    mean = (w * tau).sum()
    sd = (w * (tau - mean) ** 2).sum().sqrt()
    parameters = {"mu": (), "tau": constraints.positive, "theta" if centred else "u": (groups,)}
    return (
        centred_log if centred else other_log,
        parameters,
        [float(mu), float(mean)],
        [float(mu_sd), float(sd)],
    )


def ar1(dims, rho=0.99):
    noise = math.sqrt(1 - rho**2)

    def log_density(z):
        return -0.5 * z[0] ** 2 - 0.5 * ((z[1:] - rho * z[:-1]) / noise).square().sum()

    return log_density, dims, *same(0.0, 1.0, dims)


def two_peaks(apart, first, dims=1):
    """Two unit normals `apart` sd from each other; the first holds the share `first`."""
    shift = torch.zeros(dims).double()
    shift[0] = apart

    def log_density(z):
        one = math.log(first) - 0.5 * z.square().sum()
        return torch.logaddexp(one, math.log1p(-first) - 0.5 * (z - shift).square().sum())

    mean, sd = same(0.0, 1.0, dims)
    mean[0] = apart * (1 - first)
    sd[0] = math.sqrt(1 + apart**2 * first * (1 - first))
    return log_density, dims, mean, sd


def peaks_apart(number, dims, apart=12.0):
    """Unit normals of unequal mass in random places, the nearest two `apart` from each other."""
    generator = seeded(number * dims)
    means = torch.randn(number, dims, generator=generator, dtype=F64)
    gaps = torch.cdist(means, means) + 1e9 * torch.eye(number, dtype=F64)
    means = means * apart / gaps.min()
    torch.rand(number, 1, generator=generator, dtype=F64)
    shares = 0.3 + torch.rand(number, generator=generator, dtype=F64)
    shares = shares / shares.sum()

    def log_density(z):
        return (shares.log() - 0.5 * (z - means).square().sum(1)).logsumexp(0)

    mean = shares @ means
    return log_density, dims, mean, (1 + shares @ (means - mean) ** 2).sqrt()


def nats_apart(nats, apart=20.0):
    """The peak near the start holds exp(-nats) of the mass."""

    def log_density(z):
        return torch.logaddexp(-nats - 0.5 * (z[0] ** 2), -0.5 * (z[0] - apart) ** 2)

    share = 1 / (1 + math.exp(-nats))
    return log_density, 1, [apart * share], [math.sqrt(1 + apart**2 * share * (1 - share))]


def spike():
    """Half the mass in a unit normal at 0, half in one of sd 0.1 at (50, 50)."""

    def log_density(z):
        return torch.logaddexp(
            -0.5 * z.square().sum(),
            -0.5 * ((z - 50) / 0.1).square().sum() - 2 * math.log(0.1),
        )

    return log_density, 2, *same(25.0, math.sqrt(625 + 0.5 * 1.01), 2)


def beta_binomial():
    """18 groups of 45 trials and one of 4: sd(kappa) is 0.888."""
    from verdict_targets import beta_binomial_of

    target = beta_binomial_of(HITS, TRIALS)
    return (
        lambda z: target.log_density(z[None])[0],
        target.dims,
        target.mean,
        target.sd,
        lambda values: target.values(values["z"]),
    )


def gaussian_process():
    log_density, parameters, columns, draws = posterior("gp_pois_regr-gp_pois_regr", DATA)
    return log_density, parameters, draws.mean(0), draws.std(0), columns


def skewed_in_branches():
    """A skewed density with a Python branch: it cannot be vectorised."""

    def log_density(z):
        if float(z.detach().sum()) > 1e9:
            return -z.square().sum()
        return (2.0 * z - z.exp()).sum()

    mean = float(torch.digamma(torch.tensor(2.0).double()))
    sd = math.sqrt(float(torch.polygamma(1, torch.tensor(2.0).double())))
    return log_density, 5, *same(mean, sd, 5)


def wishart():
    law = Wishart(torch.tensor(6.0).double(), torch.eye(2, dtype=F64))
    parameters = {"s": Parameter((2, 2), constraints.positive_definite)}
    return lambda s: law.log_prob(s), parameters, [6, 0, 0, 6], law.variance.sqrt().flatten()


ROWS = {
    **{f"laplace {d}": (lambda d=d: laplace(d)) for d in (1, 2, 3, 5, 20)},
    "laplace law": laplace_law,
    **{f"max {d}": (lambda d=d: largest(d)) for d in (1, 2, 5)},
    "hinge": hinge,
    "flat top": lambda: straight(flat_top),
    "flat top 3": lambda: straight(flat_top, 3),
    "asymmetric Laplace": lambda: straight(asymmetric),
    **{f"asymmetric Laplace {d}": (lambda d=d: straight(asymmetric, d)) for d in (5, 10, 20)},
    **{f"soft edge {d}": (lambda d=d: straight(soft_edge, d)) for d in (5, 10, 20)},
    "two slopes": lambda: straight(two_slopes),
    "power 1.5": lambda: power(1.5),
    "power 1.1": lambda: power(1.1),
    "huber": huber,
    "median": median,
    "one kink": one_kink,
    **{f"edge {d}": (lambda d=d: edge(d)) for d in (1, 2, 3)},
    "edge 4": lambda: edge(4),
    "edge simplex 4": lambda: simplex(4),
    "edge hole 3": lambda: hole(3),
    "edge triangle": triangle,
    "edge interval": interval,
    "edge half-normal": half_normal,
    **{f"hierarchy {d}": (lambda d=d: hierarchy(d - 2)) for d in (102, 302, 402, 1002)},
    **{
        f"hierarchy non-centred {d}": (lambda d=d: hierarchy(d - 2, centred=False))
        for d in (102, 202, 402)
    },
    "ar1 500": lambda: ar1(500),
    "ar1 1000": lambda: ar1(1000),
    "peaks 65 nats": lambda: nats_apart(65.0),
    "peaks 0.98": lambda: two_peaks(20.0, 0.98),
    "peaks 0.02": lambda: two_peaks(20.0, 0.02),
    "peaks 0.02 of 5": lambda: two_peaks(12.0, 0.02, 5),
    **{
        f"{n} peaks in {d}": (lambda n=n, d=d: peaks_apart(n, d))
        for n, d in ((3, 2), (5, 2), (5, 10), (8, 5), (8, 10))
    },
    "spike": spike,
    "beta-binomial": beta_binomial,
    "gaussian process": gaussian_process,
    "loop skewed": skewed_in_branches,
    "loop wishart": wishart,
}


def measured(row, seed, family):
    """One fit: errors of means and sds, verdict, seconds, calls."""
    log_density, parameters, mean, sd, *columns = row()
    calls = [0]

    @functools.wraps(log_density)
    def counted(*args, **values):
        calls[0] += 1
        return log_density(*args, **values)

    begin = time.perf_counter()
    given = {"generator": seeded(seed), "progress": False, "family": family}
    found = fit(counted, parameters, **given)
    seconds = time.perf_counter() - begin
    judged = assess(found)
    values = found.posterior
    if columns:
        values = columns[0](values)
    else:
        values = torch.cat([v.reshape(len(v), -1) for v in values.values()], 1)
    mean, sd = (torch.as_tensor(x, dtype=F64).flatten() for x in (mean, sd))
    values = values[:, : len(mean)]
    off = float(((values.mean(0) - mean) / sd).abs().max())
    ratio = (values.std(0) / sd).nan_to_num(1.0)
    times = (seconds, time.perf_counter() - begin, calls[0])
    return off, (float(ratio.min()), float(ratio.max())), judged, found, times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--family", default="auto")
    parser.add_argument("--words", action="store_true", help="also the sentences")
    parser.add_argument("--save", action="store_true", help="keep them in results/shapes.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kept = []
    print(f"{'row':<28}{'mean off':>9}{'sd ratio':>16}{'fit s':>8}{'all s':>8}{'calls':>8}  level")
    for name, row in ROWS.items():
        if options.rows and not any(name.startswith(part) for part in options.rows):
            continue
        for seed in range(options.seeds):
            try:
                off, ratio, judged, found, times = measured(row, seed, options.family)
            except RunError as error:
                print(f"{name:<28}RunError: {error}", flush=True)
                continue
            pair = f"{ratio[0]:.3f} {ratio[1]:.3f}"
            line = f"{name:<28}{off:>9.3f}{pair:>16}{times[0]:>8.1f}{times[1]:>8.1f}{times[2]:>8}"
            print(f"{line}  {judged.level}", flush=True)
            kept.append(
                {
                    "row": name,
                    "seed": seed,
                    "mean_off": off,
                    "sd_ratio": ratio,
                    "fit_seconds": times[0],
                    "calls": times[2],
                    "level": judged.level,
                }
            )
            if options.words:
                print(f"    {judged.verdict}\n    {found.reason}; {found.chosen}", flush=True)
    if options.save:
        finish("shapes", {"machine": machine(1), "fits": kept}, digits=3)


if __name__ == "__main__":
    main()
