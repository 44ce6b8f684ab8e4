"""How often does a clustered 95 % interval cover? Families that chose nothing in it.

    python benchmarks/cluster_coverage.py [--repeats 400]

Sizes of clusters: equal, geometric, uniform, Pareto, or one in ten fifty times as long. Means of
clusters: exponential, t with 5 degrees, Bernoulli, log-normal, or normal around the log of the
size. Within a cluster terms are normal with sd 1. Prints the coverage, and how often an error bar
was given at all, for 12, 30 and 100 clusters.
"""

import argparse
import math
import warnings

import numpy as np

from kullback.lm.clusters import Clusters, ratio_mean

COUNTS = (12, 30, 100)
SIZES = {
    "equal": lambda rng, n: np.full(n, 200),
    "geometric": lambda rng, n: rng.geometric(0.01, n),
    "uniform": lambda rng, n: rng.integers(10, 1000, n),
    "Pareto 1.5": lambda rng, n: np.ceil(30 * (1 + rng.pareto(1.5, n))).clip(1, 20_000),
    "one in ten long": lambda rng, n: np.where(rng.random(n) < 0.1, 5000, 100),
}
MEANS = {  # of clusters of these sizes, and of all tokens (None: by simulation)
    "exponential": (lambda rng, size: rng.exponential(1, len(size)), 1.0),
    "t5": (lambda rng, size: rng.standard_t(5, len(size)), 0.0),
    "Bernoulli": (lambda rng, size: (rng.random(len(size)) < 0.3).astype(float), 0.3),
    "log-normal": (lambda rng, size: rng.lognormal(0, 0.8, len(size)), math.exp(0.32)),
    "by size": (lambda rng, size: rng.normal(0, 1, len(size)) + np.log(size / 100), None),
}


def covered(rng, sizes, means, truth, count, repeats):
    """The share of intervals that cover, of those given, and the share given."""
    if truth is None:
        many = sizes(rng, 400_000).astype(float)
        truth = (many * np.log(many / 100)).sum() / many.sum()
    given = hits = 0
    for _ in range(repeats):
        size = sizes(rng, count).astype(float)
        mean = means(rng, size)
        sums = size * mean + np.sqrt(size) * rng.normal(size=count)
        squares = float((size * (mean**2 + 1)).sum())
        low, high = ratio_mean(sums, Clusters(size), squares=squares).estimate.interval()
        given += math.isfinite(low)
        hits += low <= truth <= high
    return hits / max(1, given), given / repeats


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=400)
    options = parser.parse_args()
    rng = np.random.default_rng(12345)
    for size_name, sizes in SIZES.items():
        for mean_name, (means, truth) in MEANS.items():
            cells = []
            for count in COUNTS:
                share, given = covered(rng, sizes, means, truth, count, options.repeats)
                cells.append(f"{count}: {share:6.1%} ({given:4.0%})")
            print(f"{size_name:<16}{mean_name:<13}{'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
