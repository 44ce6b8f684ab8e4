"""What a density of PyMC costs for 64 points, with and without loops in Python over them.

    python benchmarks/pymc_graphs.py

Seven models. "before": PyTensor's `vectorize_graph` alone; "now": after the rewrites of
`kullback.variational.target.pytensor_graphs`. Both compile log p and its gradient by the same
compiler; processor milliseconds of one call, the median of 9, in turn, and the largest difference
of a gradient. Writes benchmarks/results/pymc_graphs.json. Needs the extra `pymc`.
"""

import statistics
import time
import warnings

import numpy as np
from measuring import finish, machine

from kullback.variational.target import pytensor_graphs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    import pymc as pm
    import pytensor
    from pymc.pytensorf import compile as compiled
    from pymc.pytensorf import join_nonshared_inputs
    from pytensor.graph.replace import vectorize_graph

POINTS, CALLS = 64, 9
RNG = np.random.default_rng(11)
X, Y = RNG.normal(size=(40, 6)), RNG.normal(size=40)


def dirichlet():
    pm.Multinomial("y", 15, pm.Dirichlet("p", np.ones(3)), observed=[4, 10, 1])


def mixture():
    w, mu = pm.Dirichlet("w", np.ones(2)), pm.Normal("mu", [-2, 2], 2, shape=2)
    pm.NormalMixture("y", w=w, mu=mu, sigma=1, observed=Y)


def random_walk():
    first = pm.Normal.dist(0, 5)
    z = pm.GaussianRandomWalk("z", sigma=pm.HalfNormal("s"), init_dist=first, shape=30)
    pm.Normal("y", z, 0.5, observed=Y[:30].cumsum())


def sum_to_zero():
    pm.Normal("y", pm.ZeroSumNormal("a", 1.0, shape=4), 1.0, observed=Y[:4])


def horseshoe():
    tau, local = pm.HalfCauchy("tau", 0.1), pm.HalfCauchy("local", 1, shape=6)
    pm.Normal("y", X @ (pm.Normal("z", shape=6) * local * tau), 1, observed=Y)


def covariance():
    sd = pm.Exponential.dist(1.0)
    chol, _, _ = pm.LKJCholeskyCov("chol", n=2, eta=2.0, sd_dist=sd)
    pm.MvNormal("y", pm.Normal("mu", shape=2), chol=chol, observed=X[:, :2])


def gamma_poisson():
    pm.Poisson("y", pm.Gamma("rate", 2.0, 1.0), observed=[3, 2, 5, 1])


MODELS = (dirichlet, mixture, random_walk, sum_to_zero, horseshoe, covariance, gamma_poisson)


def both(make):
    """Compile a model in both ways: two functions, and the size of a point."""
    with pm.Model() as model:
        make()
    start = model.initial_point()
    (log_p,), flat = join_nonshared_inputs(start, [model.logp()], model.continuous_value_vars)
    log_p = pytensor_graphs.switched(log_p)
    outputs = [log_p, pytensor.grad(log_p, flat)]
    size = sum(np.size(part) for part in start.values())
    points = pytensor.tensor.matrix("z", dtype=flat.dtype)
    before = compiled([points], vectorize_graph(outputs, {flat: points}))
    points, arrays = pytensor_graphs.batched(outputs, flat, size)
    return before, compiled([points], arrays, mode=pytensor_graphs.mode()), size


def main():
    rows = {}
    for make in MODELS:
        *functions, size = both(make)
        z = 0.3 * RNG.normal(size=(POINTS, size))
        found = [function(z) for function in functions]
        times = [[], []]
        for _ in range(CALLS):
            for kept, function in zip(times, functions, strict=True):
                begin = time.process_time()
                function(z)
                kept.append(1e3 * (time.process_time() - begin))
        before, now = (statistics.median(kept) for kept in times)
        apart = float(np.abs(found[0][1] - found[1][1]).max())
        rows[make.__name__] = {"before_ms": before, "now_ms": now, "gradients_apart": apart}
        print(f"{make.__name__:<14} {before:7.2f} {now:7.2f} ms, {before / now:5.1f}x; {apart:.0e}")
    finish("pymc_graphs", {"machine": machine(1), "points": POINTS, "models": rows}, digits=3)


if __name__ == "__main__":
    main()
