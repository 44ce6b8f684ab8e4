"""What a model of another program costs beside the same log density in PyTorch.

    python benchmarks/adapters.py [--rounds 3] [--only stan pymc numpyro pyro]

Three models, eight schools non-centred, a logistic regression, and varying intercepts of 12
counties, each written for PyTorch (`Target.of`), Stan, PyMC, NumPyro and Pyro. A fit by the
defaults of each, in turn, one thread: processor seconds of the second and later fits of one target,
after its compiler has run, over those of PyTorch's; seconds of the compiler apart (of Stan and PyMC
as long as their caches are cold). Fits of one model differ by their paths: parameters come in
another order. Writes benchmarks/results/adapters.json.
"""

import argparse
import importlib.util
import statistics
import time
import warnings

import numpy as np
import torch
from galleries import COUNTY, EFFECTS, ERRORS, FLOOR, RADON, SWITCH, X
from measuring import finish, machine
from torch.distributions import Exponential, HalfCauchy, HalfNormal, Normal, constraints

from kullback.variational import Target, fit

MODELS = ("eight schools", "logistic regression", "varying intercepts")
DATA = {
    "eight schools": {"sigma": ERRORS, "y": EFFECTS},
    "logistic regression": {"x": X, "y": SWITCH},
    "varying intercepts": {"county": COUNTY, "x": FLOOR, "y": RADON},
}


def by_torch(name):
    def number(value):
        return torch.tensor(value, dtype=torch.float64)

    data = {k: torch.as_tensor(v) for k, v in DATA[name].items()}
    cauchy, half = HalfCauchy(number(5.0)), HalfNormal(number(1.0))
    decay = Exponential(number(1.0))

    def schools(mu, tau, eta):
        prior = Normal(0.0, 5.0).log_prob(mu) + cauchy.log_prob(tau)
        effects = Normal(0.0, 1.0).log_prob(eta).sum()
        return prior + effects + Normal(mu + tau * eta, data["sigma"]).log_prob(data["y"]).sum()

    def logistic(a, b):
        logits = a + data["x"] @ b
        likelihood = (data["y"] * logits - torch.nn.functional.softplus(logits)).sum()
        return Normal(0.0, 2.0).log_prob(a) + Normal(0.0, 1.0).log_prob(b).sum() + likelihood

    def counties(mu, tau, eta, b, sigma):
        prior = Normal(0.0, 5.0).log_prob(mu) + half.log_prob(tau) + decay.log_prob(sigma)
        prior = prior + Normal(0.0, 1.0).log_prob(eta).sum() + Normal(0.0, 1.0).log_prob(b)
        mean = (mu + tau * eta)[data["county"]] + b * data["x"]
        return prior + Normal(mean, sigma).log_prob(data["y"]).sum()

    above = constraints.positive
    if name == "eight schools":
        return Target.of(schools, {"mu": (), "tau": above, "eta": (8,)})
    if name == "logistic regression":
        return Target.of(logistic, {"a": (), "b": (3,)})
    shapes = {"mu": (), "tau": above, "eta": (12,), "b": (), "sigma": above}
    return Target.of(counties, shapes)


def sampled(name, module, zeros):
    """The model for NumPyro or Pyro, whose primitives have the same names."""
    sample, dist = module.sample, module.distributions

    def schools(sigma, y):
        mu, tau = sample("mu", dist.Normal(0.0, 5.0)), sample("tau", dist.HalfCauchy(5.0))
        with module.plate("school", 8):
            eta = sample("eta", dist.Normal(0.0, 1.0))
            sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    def logistic(x, y):
        a = sample("a", dist.Normal(0.0, 2.0))
        b = sample("b", dist.Normal(zeros(3), 1.0).to_event(1))
        with module.plate("rows", len(y)):
            sample("y", dist.Bernoulli(logits=a + x @ b), obs=y)

    def counties(county, x, y):
        mu, tau = sample("mu", dist.Normal(0.0, 5.0)), sample("tau", dist.HalfNormal(1.0))
        with module.plate("counties", 12):
            eta = sample("eta", dist.Normal(0.0, 1.0))
        b, sigma = sample("b", dist.Normal(0.0, 1.0)), sample("sigma", dist.Exponential(1.0))
        with module.plate("houses", len(y)):
            sample("y", dist.Normal((mu + tau * eta)[county] + b * x, sigma), obs=y)

    return dict(zip(MODELS, (schools, logistic, counties), strict=True))[name]


def by_numpyro(name):
    import numpyro

    return Target.from_numpyro(sampled(name, numpyro, np.zeros), **DATA[name])


def by_pyro(name):
    import pyro

    data = {k: torch.as_tensor(v) for k, v in DATA[name].items()}
    if name == "logistic regression":
        data["y"] = data["y"].double()
    return Target.from_pyro(sampled(name, pyro, torch.zeros), **data)


def by_pymc(name):
    import pymc as pm

    data = DATA[name]
    with pm.Model() as model:
        if name == "logistic regression":
            a, b = pm.Normal("a", 0, 2), pm.Normal("b", 0, 1, shape=3)
            pm.Bernoulli("y", logit_p=a + pm.math.dot(data["x"], b), observed=data["y"])
        elif name == "eight schools":
            mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
            eta = pm.Normal("eta", 0, 1, shape=8)
            pm.Normal("y", mu + tau * eta, data["sigma"], observed=data["y"])
        else:
            mu, tau = pm.Normal("mu", 0, 5), pm.HalfNormal("tau", 1)
            eta = pm.Normal("eta", 0, 1, shape=12)
            b, sigma = pm.Normal("b", 0, 1), pm.Exponential("sigma", 1)
            mean = (mu + tau * eta)[data["county"]] + b * data["x"]
            pm.Normal("y", mean, sigma, observed=data["y"])
    return Target.from_pymc(model)


STAN = {
    "eight schools": """data { vector[8] y; vector<lower=0>[8] sigma; }
        parameters { real mu; real<lower=0> tau; vector[8] eta; }
        model { mu ~ normal(0, 5); tau ~ cauchy(0, 5); eta ~ std_normal();
                y ~ normal(mu + tau * eta, sigma); }""",
    "logistic regression": """data { matrix[120, 3] x; array[120] int y; }
        parameters { real a; vector[3] b; }
        model { a ~ normal(0, 2); b ~ std_normal(); y ~ bernoulli_logit_glm(x, a, b); }""",
    "varying intercepts": """data { array[140] int county; vector[140] x; vector[140] y; }
        parameters { real mu; real<lower=0> tau; vector[12] eta; real b; real<lower=0> sigma; }
        model { mu ~ normal(0, 5); tau ~ normal(0, 1); eta ~ std_normal(); b ~ std_normal();
                sigma ~ exponential(1); vector[12] level = mu + tau * eta;
                y ~ normal(level[county] + b * x, sigma); }""",
}


def by_stan(name):
    data = dict(DATA[name])
    if "county" in data:
        data["county"] = data["county"] + 1  # from 1
    return Target.from_stan(STAN[name], data)


ENGINES = {
    "stan": ("httpstan", by_stan),
    "pymc": ("pymc", by_pymc),
    "numpyro": ("numpyro", by_numpyro),
    "pyro": ("pyro", by_pyro),
}


def timed(target, seed):
    """Processor seconds of a fit by the defaults, and its level."""
    generator, begin = torch.Generator().manual_seed(seed), time.process_time()
    found = fit(target, generator=generator, progress=False)
    return time.process_time() - begin, found.diagnosis.level


def measured(name, engines, rounds):
    """Fits of one model by all engines, in turn, after one of each that is not counted."""
    targets = {"torch": by_torch(name)} | {engine: ENGINES[engine][1](name) for engine in engines}
    for target in targets.values():
        timed(target, 0)
    runs = [{engine: timed(target, 0) for engine, target in targets.items()} for _ in range(rounds)]
    rows = {}
    for engine, target in targets.items():
        rows[engine] = {
            "cpu_s": statistics.median(run[engine][0] for run in runs),
            "over_torch": statistics.median(run[engine][0] / run["torch"][0] for run in runs),
            "compile_s": target.compiling.seconds,
            "level": runs[-1][engine][1],
        }
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=ENGINES, default=[*ENGINES])
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="PyTensor could not link")
    there = [one for one in options.only if importlib.util.find_spec(ENGINES[one][0]) is not None]
    table = {name: measured(name, there, options.rounds) for name in MODELS}
    finish("adapters", {"machine": machine(1), "models": table}, digits=3)


if __name__ == "__main__":
    main()
