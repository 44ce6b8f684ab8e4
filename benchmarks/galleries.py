"""Models from the example galleries of Stan, PyMC, NumPyro and Pyro, fitted by two lines each.

    python benchmarks/galleries.py [--only stan pymc numpyro pyro] [--seed 0]

Five models in each program's own idiom, after its examples: eight schools (centred as in Stan's and
Pyro's introductions, non-centred in PyMC's and NumPyro's), a varying-intercept regression like
radon, logistic and Poisson regression, a change point or a robust regression, a small horseshoe.
Data are simulated here with a fixed seed, so nothing is downloaded. Prints a line a model: verdict,
seconds of the fit, seconds of the other program's compiler; and writes
benchmarks/results/galleries.json. A program that is not installed is left out, and said so.
"""

import argparse
import importlib.util
import warnings

import numpy as np
import torch
from measuring import finish, machine

from kullback.variational import Target, fit

DRAWN = np.random.default_rng(8)
EFFECTS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])  # Rubin 1981
ERRORS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
COUNTY = np.repeat(np.arange(12), [2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30])
FLOOR = (DRAWN.random(len(COUNTY)) < 0.2).astype(float)
RADON = (
    (1.5 + 0.3 * DRAWN.normal(size=12))[COUNTY] - 0.6 * FLOOR + DRAWN.normal(size=len(COUNTY)) * 0.7
)
X = DRAWN.normal(size=(120, 3))
SWITCH = (DRAWN.random(120) < 1 / (1 + np.exp(-(X @ [1.0, -1.5, 0.5])))).astype(int)
COUNTS = DRAWN.poisson(np.exp(0.8 + X @ [0.5, -0.3, 0.2]))
LINE = X @ [1.0, 0.0, -2.0] + 0.5 + DRAWN.standard_t(3, size=120)
WIDE = DRAWN.normal(size=(80, 8))
SPARSE = WIDE @ [2.0, -1.5, *[0.0] * 6] + DRAWN.normal(size=80)

STAN = {
    "eight schools": (
        """data { int J; array[J] real y; array[J] real<lower=0> sigma; }
        parameters { real mu; real<lower=0> tau; vector[J] eta; }
        transformed parameters { vector[J] theta = mu + tau * eta; }
        model { target += normal_lpdf(eta | 0, 1); target += normal_lpdf(y | theta, sigma);
                mu ~ normal(0, 5); tau ~ cauchy(0, 5); }""",
        {"J": 8, "y": EFFECTS, "sigma": ERRORS},
    ),
    "radon": (
        """data { int N; int J; array[N] int county; vector[N] x; vector[N] y; }
        parameters { real mu; real<lower=0> tau; vector<offset=mu, multiplier=tau>[J] a;
                     real b; real<lower=0> sigma; }
        model { mu ~ normal(0, 5); tau ~ normal(0, 1); a ~ normal(mu, tau); b ~ normal(0, 1);
                sigma ~ normal(0, 1); y ~ normal(a[county] + b * x, sigma); }""",
        {"N": len(RADON), "J": 12, "county": COUNTY + 1, "x": FLOOR, "y": RADON},
    ),
    "logistic regression": (
        """data { int N; int K; matrix[N, K] x; array[N] int<lower=0, upper=1> y; }
        parameters { real alpha; vector[K] beta; }
        model { alpha ~ normal(0, 2); beta ~ normal(0, 1);
                y ~ bernoulli_logit_glm(x, alpha, beta); }""",
        {"N": 120, "K": 3, "x": X, "y": SWITCH},
    ),
    "Poisson regression": (
        """data { int N; int K; matrix[N, K] x; array[N] int<lower=0> y; }
        parameters { real alpha; vector[K] beta; }
        model { alpha ~ normal(0, 2); beta ~ normal(0, 1);
                y ~ poisson_log(alpha + x * beta); }""",
        {"N": 120, "K": 3, "x": X, "y": COUNTS},
    ),
    "robust regression": (
        """data { int N; int K; matrix[N, K] x; vector[N] y; }
        parameters { real alpha; vector[K] beta; real<lower=0> sigma; real<lower=1> nu; }
        model { alpha ~ normal(0, 5); beta ~ normal(0, 2); sigma ~ normal(0, 2);
                nu ~ gamma(2, 0.1); y ~ student_t(nu, alpha + x * beta, sigma); }""",
        {"N": 120, "K": 3, "x": X, "y": LINE},
    ),
}


def of_stan():
    for name, (program, data) in STAN.items():
        yield name, lambda program=program, data=data: Target.from_stan(program, data)


def of_pymc():
    import pymc as pm

    with pm.Model() as schools:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
        eta = pm.Normal("eta", 0, 1, shape=8)
        theta = pm.Deterministic("theta", mu + tau * eta)
        pm.Normal("obs", theta, ERRORS, observed=EFFECTS)

    with pm.Model(coords={"county": range(12)}) as radon:
        mu, tau = pm.Normal("mu_a", 0, 5), pm.Exponential("sigma_a", 1)
        a = pm.Deterministic("a", mu + tau * pm.Normal("a_z", dims="county"), dims="county")
        b, sigma = pm.Normal("b", 0, 1), pm.Exponential("sigma", 1)
        pm.Normal("y", a[COUNTY] + b * FLOOR, sigma, observed=RADON)

    with pm.Model() as logistic:
        a, b = pm.Normal("a", 0, 2), pm.Normal("b", 0, 1, shape=3)
        pm.Bernoulli("y", logit_p=a + pm.math.dot(X, b), observed=SWITCH)

    with pm.Model() as poisson:
        a, b = pm.Normal("a", 0, 2), pm.Normal("b", 0, 1, shape=3)
        pm.Poisson("y", pm.math.exp(a + pm.math.dot(X, b)), observed=COUNTS)

    with pm.Model() as robust:
        a, b = pm.Normal("a", 0, 5), pm.Normal("b", 0, 2, shape=3)
        sigma, nu = pm.HalfNormal("sigma", 2), pm.Gamma("nu", 2, 0.1)
        pm.StudentT("y", nu=nu, mu=a + pm.math.dot(X, b), sigma=sigma, observed=LINE)

    models = [schools, radon, logistic, poisson, robust]
    for name, model in zip(STAN, models, strict=True):
        yield name, lambda model=model: Target.from_pymc(model)


def of_numpyro():
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def schools(sigma, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("J", 8):
            eta = numpyro.sample("eta", dist.Normal(0, 1))
            theta = numpyro.deterministic("theta", mu + tau * eta)
            numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)

    def radon(county, floor, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfNormal(1))
        with numpyro.plate("counties", 12):
            a = numpyro.sample("a", dist.Normal(mu, tau))
        b = numpyro.sample("b", dist.Normal(0, 1))
        sigma = numpyro.sample("sigma", dist.Exponential(1))
        numpyro.sample("y", dist.Normal(a[county] + b * floor, sigma), obs=y)

    def logistic(x, y=None):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    def change_point(count, y=None):
        early = numpyro.sample("early", dist.Exponential(1.0))
        late = numpyro.sample("late", dist.Exponential(1.0))
        when = numpyro.sample("when", dist.Uniform(0, count))
        rate = early + (late - early) / (1 + jnp.exp(-(jnp.arange(count) - when) / 2))
        numpyro.sample("y", dist.Poisson(rate), obs=y)

    def horseshoe(x, y=None):
        tau = numpyro.sample("tau", dist.HalfCauchy(0.2))
        with numpyro.plate("columns", x.shape[1]):
            size = numpyro.sample("lambda", dist.HalfCauchy(1))
            z = numpyro.sample("z", dist.Normal(0, 1))
        b = numpyro.deterministic("b", z * size * tau)
        sigma = numpyro.sample("sigma", dist.HalfNormal(2))
        numpyro.sample("y", dist.Normal(x @ b, sigma), obs=y)

    changed = np.random.default_rng(3).poisson(np.where(np.arange(60) < 35, 3.0, 1.0))
    models = {
        "eight schools": (schools, (ERRORS, EFFECTS)),
        "radon": (radon, (COUNTY, FLOOR, RADON)),
        "logistic regression": (logistic, (X, SWITCH)),
        "change point": (change_point, (60, changed)),
        "horseshoe": (horseshoe, (WIDE, SPARSE)),
    }
    for name, (model, data) in models.items():
        yield name, lambda model=model, data=data: Target.from_numpyro(model, *data)


def of_pyro():
    import pyro
    import pyro.distributions as dist

    def schools(sigma, y):
        mu = pyro.sample("mu", dist.Normal(0, 5))
        tau = pyro.sample("tau", dist.HalfCauchy(5))
        with pyro.plate("J", 8):
            eta = pyro.sample("eta", dist.Normal(0, 1))
            pyro.sample("obs", dist.Normal(mu + tau * eta, sigma), obs=y)

    def radon(county, floor, y):
        mu = pyro.sample("mu", dist.Normal(0, 5))
        tau = pyro.sample("tau", dist.HalfNormal(1))
        with pyro.plate("counties", 12):
            a = pyro.sample("a", dist.Normal(mu, tau))
        b = pyro.sample("b", dist.Normal(0, 1))
        sigma = pyro.sample("sigma", dist.Exponential(1))
        with pyro.plate("houses", len(y)):
            pyro.sample("y", dist.Normal(a[county] + b * floor, sigma), obs=y)

    def logistic(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    def poisson(x, y):
        a = pyro.sample("a", dist.Normal(0, 2))
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson((a + x @ b).exp()), obs=y)

    def mixture(y):  # two groups, the memberships summed over
        share = pyro.sample("share", dist.Beta(2, 2))
        low = pyro.sample("low", dist.Normal(-2, 1))
        gap = pyro.sample("gap", dist.LogNormal(1, 0.5))
        places = torch.stack([low, low + gap])
        parts = dist.Categorical(torch.stack([share, 1 - share]))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.MixtureSameFamily(parts, dist.Normal(places, 1.0)), obs=y)

    as_tensors = lambda *arrays: [torch.as_tensor(array) for array in arrays]  # noqa: E731
    groups = np.random.default_rng(5).normal(size=100) + np.where(np.arange(100) < 40, -2, 2)
    models = {
        "eight schools": (schools, as_tensors(ERRORS, EFFECTS)),
        "radon": (radon, as_tensors(COUNTY, FLOOR, RADON)),
        "logistic regression": (logistic, as_tensors(X, SWITCH.astype(float))),
        "Poisson regression": (poisson, as_tensors(X, COUNTS)),
        "mixture": (mixture, as_tensors(groups)),
    }
    for name, (model, data) in models.items():
        yield name, lambda model=model, data=data: Target.from_pyro(model, *data)


PROGRAMS = {
    "stan": ("httpstan", of_stan),
    "pymc": ("pymc", of_pymc),
    "numpyro": ("numpyro", of_numpyro),
    "pyro": ("pyro", of_pyro),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=PROGRAMS, default=[*PROGRAMS])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", message="PyTensor could not link")
    rows = []
    for program in asked.only:
        package, models = PROGRAMS[program]
        if importlib.util.find_spec(package) is None:
            print(f"{program}: {package} is not installed, left out")
            continue
        for name, make in models():
            target = make()
            found = fit(target, generator=torch.Generator().manual_seed(asked.seed), progress=False)
            row = {
                "program": program,
                "model": name,
                "dimensions": target.dim,
                "level": found.diagnosis.level,
                "seconds": round(found.seconds, 2),
                "compile_seconds": round(found.compile_seconds, 2),
                "verdict": found.diagnosis.verdict,
            }
            rows.append(row)
            times = f"{row['seconds']:6.1f} s + {row['compile_seconds']:5.1f} s to compile"
            print(f"{program:8} {name:20} d={target.dim:3} {times}  {row['verdict']}", flush=True)
    trusted = sum(row["level"] == "trust" for row in rows)
    print(f"{trusted} of {len(rows)} trusted")
    finish("galleries", {"machine": machine(torch.get_num_threads()), "models": rows})


if __name__ == "__main__":
    main()
