"""Models from the example galleries of Stan, PyMC, NumPyro and Pyro, fitted by two lines each.

    python benchmarks/galleries.py [--only stan pymc numpyro pyro] [--seed 0] [--reference]

Five models in each program's own idiom, after its examples: eight schools, a varying-intercept
regression like radon, logistic and Poisson regression, a change point, a robust regression, a small
horseshoe, a mixture. Data are simulated here with a fixed seed, so nothing is downloaded. A line a
model: verdict, seconds of the fit, seconds of the other program's compiler (less where it kept what
it compiled in an earlier run; XDG_CACHE_HOME and PyTensor's base_compiledir name other folders).

`--reference` draws by the program's own NUTS too (Stan's through PyStan, the package pystan) and
counts how far the fit is from it: the largest error of a mean, in sd, and the smallest and largest
ratio of sds, over all values of the model. They carry NUTS's own error: `reference_ess` is the
smallest effective number of its draws, of which 1/sqrt(ess) is the error of a mean in sd; a fit is
within trust where no error is above 0.2 and three such errors. A program that is not installed is
left out, and said so; the rows that benchmarks/results/galleries.json has of it are kept.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import time
import warnings
from functools import partial

import numpy as np
import torch
from measuring import RESULTS, finish, machine

from kullback.variational import Target, fit

CHAINS, WARMUP, DRAWS, ACCEPT = 2, 300, 700, 0.95  # of NUTS
PYRO_DRAWS = 300  # a chain: 7 to 60 gradients a draw at 1 ms
WITHIN_MEAN, WITHIN_LOG_SD = 0.2, 0.2  # what "trust" means
ERRORS_OF_NUTS = 3.0  # standard errors of its own that are allowed beside

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
        yield name, (program, data), partial(Target.from_stan, program, data)


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
        yield name, model, partial(Target.from_pymc, model)


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
        yield name, (model, data), partial(Target.from_numpyro, model, *data)


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
        yield name, (model, data), partial(Target.from_pyro, model, *data)


def nuts_of_stan(given, seed):
    import stan  # PyStan

    program, data = given
    lists = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in data.items()}
    built = stan.build(program, data=lists, random_seed=seed + 1)
    sizes = {"num_chains": CHAINS, "num_warmup": WARMUP, "num_samples": DRAWS}
    found = built.sample(**sizes, delta=ACCEPT)
    return {name: np.moveaxis(found[name], -1, 0) for name in found.param_names}  # draw by chain


def nuts_of_pymc(model, seed):
    import pymc as pm

    sizes = {"chains": CHAINS, "tune": WARMUP, "draws": DRAWS, "cores": 1, "progressbar": False}
    with model:
        found = pm.sample(**sizes, target_accept=ACCEPT, random_seed=seed)
    held = found.posterior.transpose("draw", "chain", ...)
    return {name: held[name].to_numpy().reshape(-1, *held[name].shape[2:]) for name in held}


def nuts_of_numpyro(given, seed):
    import jax
    from numpyro.infer import MCMC, NUTS

    jax.config.update("jax_enable_x64", True)
    model, data = given
    sizes = {"num_warmup": WARMUP, "num_samples": DRAWS, "num_chains": CHAINS}
    sizes["chain_method"] = "sequential"
    chains = MCMC(NUTS(model, target_accept_prob=ACCEPT), **sizes, progress_bar=False)
    chains.run(jax.random.PRNGKey(seed), *data)
    held = chains.get_samples(group_by_chain=True)
    return {name: _draw_by_chain(np.asarray(value)) for name, value in held.items()}


def nuts_of_pyro(given, seed):
    import pyro
    from pyro.infer import MCMC, NUTS

    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(seed)
    model, data = given
    options = {"target_accept_prob": 0.9, "jit_compile": True, "ignore_jit_warnings": True}
    sizes = {"num_samples": PYRO_DRAWS, "warmup_steps": PYRO_DRAWS // 2, "num_chains": 1}
    held = []
    for _ in range(CHAINS):  # a kernel keeps the state of its chain
        chain = MCMC(NUTS(model, **options), **sizes, disable_progbar=True)
        chain.run(*data)
        held.append(chain.get_samples())
    torch.set_default_dtype(torch.float32)
    return {k: _draw_by_chain(np.stack([one[k].numpy() for one in held])) for k in held[0]}


def _draw_by_chain(values):
    """Draws `[chains, n, *shape]` as `[n · chains, *shape]`."""
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])


def compared(found, reference):
    """Errors of means and sds against draws of NUTS, and the smallest effective number of these."""
    from arviz_stats.base import array_stats

    off, ratios, ess = [], [], []
    for name, draws in reference.items():
        if name not in found.posterior:
            continue
        flat = draws.reshape(len(draws), -1).astype(float)
        mean, sd = found.mean[name].numpy().ravel(), found.sd[name].numpy().ravel()
        off.extend(np.abs(mean - flat.mean(0)) / flat.std(0))
        ratios.extend(sd / flat.std(0))
        by_chain = flat.reshape(-1, CHAINS, flat.shape[1]).swapaxes(0, 1)
        ess.extend(array_stats.ess(by_chain, chain_axis=0, draw_axis=1, method="bulk"))
    off, ratios, ess = (np.array(one) for one in (off, ratios, ess))
    slack = ERRORS_OF_NUTS / np.sqrt(ess)
    right = np.all(off <= WITHIN_MEAN + slack) and np.all(
        np.abs(np.log(ratios)) <= WITHIN_LOG_SD + slack / np.sqrt(2)
    )
    return {
        "mean_error": round(float(max(off)), 3),
        "sd_low": round(float(min(ratios)), 3),
        "sd_high": round(float(max(ratios)), 3),
        "within_trust": bool(right),
        "reference_ess": round(float(min(ess))),
    }


PROGRAMS = {
    "stan": ("httpstan", of_stan, nuts_of_stan),
    "pymc": ("pymc", of_pymc, nuts_of_pymc),
    "numpyro": ("numpyro", of_numpyro, nuts_of_numpyro),
    "pyro": ("pyro", of_pyro, nuts_of_pyro),
}


def once(program, name, given, make, options):
    """Fit one model by the defaults; its row."""
    target = make()
    generator = torch.Generator().manual_seed(options.seed)
    found = fit(target, generator=generator, progress=False)
    row = {
        "program": program,
        "model": name,
        "dimensions": target.dim,
        "level": found.diagnosis.level,
        "seconds": round(found.seconds, 2),
        "compile_seconds": round(found.compile_seconds, 2),
        "verdict": found.diagnosis.verdict,
    }
    times = f"{row['seconds']:6.1f} s + {row['compile_seconds']:5.1f} s to compile"
    print(f"{program:8} {name:20} d={target.dim:3} {times}  {row['verdict']}", flush=True)
    if options.reference:
        begin = time.perf_counter()
        reference = PROGRAMS[program][2](given, options.seed)
        row["reference_seconds"] = round(time.perf_counter() - begin, 1)
        row |= compared(found, reference)
        print(f"{'':30}{json.dumps({k: row[k] for k in [*row][7:]})}", flush=True)
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=PROGRAMS, default=[*PROGRAMS])
    parser.add_argument("--models", nargs="*", help="beginnings of names; all without one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", action="store_true", help="draw by each program's NUTS too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="PyTensor could not link")
    for program in options.only:
        package, models, _ = PROGRAMS[program]
        if importlib.util.find_spec(package) is None:
            print(f"{program}: {package} is not installed, left out")
            continue
        for name, given, make in models():
            if not options.models or name.startswith(tuple(options.models)):
                keep(once(program, name, given, make, options))


def keep(new):
    """Write a row beside those of earlier calls."""
    kept = RESULTS / "galleries.json"
    held = json.loads(kept.read_text())["models"] if kept.exists() else []
    table = {(row["program"], row["model"]): row for row in [*held, new]}
    order = [*PROGRAMS]
    rows = sorted(table.values(), key=lambda row: order.index(row["program"]))
    trusted = [row for row in rows if row["level"] == "trust"]
    right = [row["within_trust"] for row in trusted if "within_trust" in row]
    counted = {
        "models": len(rows),
        "trusted": len(trusted),
        "trusted_with_reference": len(right),
        "trust_right": sum(right),
    }
    with contextlib.redirect_stdout(io.StringIO()):  # a table is printed as it grows
        finish("galleries", {"machine": machine(1), "counted": counted, "models": rows})


if __name__ == "__main__":
    main()
