"""Variational inference of NumPyro or PyMC on one posterior: its draws, and how long it took.

Run by posteriordb.py with a Python that has them (`--peers`):
`python posteriordb_peers.py "NumPyro AutoNormal" FOLDER [SECONDS]` prints JSON: 4,000 draws in the
columns of the reference, processor seconds of a fit with building and compiling. 10,000 steps,
PyMC's default number, of Adam at 0.01, in NumPyro falling to 0.0001; at most SECONDS of processor
time. The models
are NumPyro's and PyMC's own; NumPyro has all 18. PyMC has no step through a differential equation
or a hidden Markov model that compiles in that time: these end with a message. Pathfinder is that of
pymc-extras.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

STEPS, DRAWS, RATE = 10_000, 4_000, 0.01
LIMIT = 600  # processor seconds


def design(name, data):
    """Design matrix, outcome, and the scale of sigma's half-Cauchy prior (None: flat)."""
    import posterior_targets as ours

    kind = name.split("-")[1]
    if kind == "kidscore_momiq":
        x = ours.with_ones(ours.tensor(data["mom_iq"]))
        return x.numpy(), np.array(data["kid_score"], float), 2.5
    if kind == "kidscore_interaction_c":
        return ours.kidscore_centred(data).numpy(), np.array(data["kid_score"], float), None
    if kind == "logmesquite_logvas":
        return ours.mesquite(data).numpy(), np.log(data["weight"]), None
    if kind == "logearn_interaction":
        return ours.earnings(data).numpy(), np.log(data["earn"]), None
    if kind == "nes":
        return ours.election(data).numpy(), np.array(data["partyid7"], float), None
    raise SystemExit(f"no model of {name} for this peer")


def in_columns(*names):
    """A function of draws by name that puts them side by side."""
    return lambda v: np.concatenate([np.reshape(v[n], (len(v[n]), -1)) for n in names], axis=1)


def series_in_numpyro(kind, data):
    """ARMA(1, 1) and GARCH(1, 1)."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    sample, y = numpyro.sample, jnp.array(data["y"], float)
    real, positive = dist.constraints.real, dist.constraints.positive

    def flat_prior(of, support):
        return sample(of, dist.ImproperUniform(support, (), ()))

    def arma():
        mu, phi = sample("mu", dist.Normal(0, 10)), sample("phi", dist.Normal(0, 2))
        theta, sigma = sample("theta", dist.Normal(0, 2)), sample("sigma", dist.HalfCauchy(2.5))
        expected = jnp.concatenate([(mu + phi * mu)[None], mu + phi * y[:-1]])

        def step(error, off):
            error = off - theta * error
            return error, error

        errors = jax.lax.scan(step, 0.0 * mu, y - expected)[1]
        numpyro.factor("errors", dist.Normal(0, sigma).log_prob(errors).sum())

    def garch():
        mu, alpha0 = flat_prior("mu", real), flat_prior("alpha0", positive)
        alpha1 = sample("alpha1", dist.Uniform(0, 1))
        beta1 = flat_prior("beta1", dist.constraints.interval(0, 1 - alpha1))

        def step(variance, before):
            variance = alpha0 + alpha1 * (before - mu) ** 2 + beta1 * variance
            return variance, variance

        first = data["sigma1"] ** 2 + 0 * mu
        later = jax.lax.scan(step, first, y[:-1])[1]
        sd = jnp.sqrt(jnp.concatenate([first[None], later]))
        sample("y", dist.Normal(mu, sd), obs=y)

    if kind == "arma11":
        return arma, in_columns("mu", "phi", "theta", "sigma")
    return garch, in_columns("mu", "alpha0", "alpha1", "beta1")


def hidden_in_numpyro(kind, data):
    """Two hidden states, summed over."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.scipy.special import logsumexp

    sample = numpyro.sample

    def ordered(of):
        support = dist.constraints.positive_ordered_vector
        return sample(of, dist.ImproperUniform(support, (), (2,)))

    def summed(emissions, theta):
        def step(state, emission):
            state = logsumexp(state[:, None] + jnp.log(theta), axis=0) + emission
            return state, None

        numpyro.factor("states", logsumexp(jax.lax.scan(step, emissions[0], emissions[1:])[0]))

    def example():
        y = jnp.array(data["y"], float)
        theta = jnp.stack([sample(f"theta{k}", dist.Dirichlet(jnp.ones(2))) for k in (1, 2)])
        mu = ordered("mu")
        numpyro.factor("prior", dist.Normal(jnp.array([3.0, 10.0]), 1).log_prob(mu).sum())
        summed(dist.Normal(mu, 1).log_prob(y[:, None]), theta)

    def drive():
        u, v = jnp.array(data["u"], float)[:, None], jnp.array(data["v"], float)[:, None]
        alpha = jnp.array(data["alpha"], float)
        theta = jnp.stack([sample(f"theta{k + 1}", dist.Dirichlet(alpha[k])) for k in (0, 1)])
        phi, lamda = ordered("phi"), ordered("lamda")
        means = dist.Normal(jnp.array([0.0, 3.0]), 1)
        numpyro.factor("prior", means.log_prob(phi).sum() + means.log_prob(lamda).sum())
        summed(jnp.log(phi) - phi * u + jnp.log(lamda) - lamda * v, theta)

    if kind == "hmm_example":
        return example, in_columns("theta1", "theta2", "mu")
    return drive, in_columns("theta1", "theta2", "phi", "lamda")


def equation_in_numpyro(kind, data):
    """Lotka-Volterra and one-compartment elimination, by the steps of posterior_targets.py."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    sample = numpyro.sample

    def runge_kutta(slope, state, times, steps):
        begins, widths = np.array(times[:-1], float), np.diff(times) / steps
        at = (begins[:, None] + widths[:, None] * np.arange(steps)).ravel()

        def step(state, given):
            t, h = given
            first = slope(t, state)
            second = slope(t + h / 2, state + h / 2 * first)
            third = slope(t + h / 2, state + h / 2 * second)
            fourth = slope(t + h, state + h * third)
            state = state + h / 6 * (first + 2 * second + 2 * third + fourth)
            return state, state

        every = jax.lax.scan(step, state, (jnp.array(at), jnp.array(np.repeat(widths, steps))))[1]
        return every[steps - 1 :: steps]

    def lotka():
        y, first = jnp.array(data["y"], float), jnp.array(data["y_init"], float)
        centres, widths = jnp.array([1, 0.05, 1, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
        theta = sample("theta", dist.TruncatedNormal(centres, widths, low=0).to_event(1))
        z_init = sample("z_init", dist.LogNormal(np.log(10), 1).expand([2]).to_event(1))
        sigma = sample("sigma", dist.LogNormal(-1, 1).expand([2]).to_event(1))

        def slope(_, z):
            prey = (theta[0] - theta[1] * z[1]) * z[0]
            return jnp.stack([prey, (theta[3] * z[0] - theta[2]) * z[1]])

        z = runge_kutta(slope, z_init, [0.0, *data["ts"]], 4)
        sample("first", dist.LogNormal(jnp.log(z_init), sigma), obs=first)
        sample("y", dist.LogNormal(jnp.log(z), sigma), obs=y)

    def elimination():
        names = ("k_a", "K_m", "V_m", "sigma")
        k_a, K_m, V_m, sigma = (sample(name, dist.HalfCauchy(1)) for name in names)
        dose, volume = data["D"], data["V"]

        def slope(t, c):
            return jnp.exp(-k_a * t) * dose * k_a / volume - V_m / volume * c / (K_m + c)

        c = runge_kutta(slope, 0 * k_a, [data["t0"], *data["times"]], 6)
        sample("y", dist.LogNormal(jnp.log(c), sigma), obs=jnp.array(data["C_hat"], float))

    if kind == "lotka_volterra":
        return lotka, in_columns("theta", "z_init", "sigma")
    return elimination, in_columns("k_a", "K_m", "V_m", "sigma")


NUMPYRO = {
    "arma11": series_in_numpyro,
    "garch11": series_in_numpyro,
    "hmm_example": hidden_in_numpyro,
    "hmm_drive_0": hidden_in_numpyro,
    "lotka_volterra": equation_in_numpyro,
    "one_comp_mm_elim_abs": equation_in_numpyro,
}


def numpyro_model(name, data):
    """The model, and a function of its draws that returns the reference's columns."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def flat_prior(of, support, shape=()):
        return numpyro.sample(of, dist.ImproperUniform(support, shape, ()))

    real, positive = dist.constraints.real, dist.constraints.positive
    kind = name.split("-")[1]
    if kind in NUMPYRO:
        return NUMPYRO[kind](kind, data)
    if kind.startswith("eight_schools"):
        y, sigma = jnp.array(data["y"], float), jnp.array(data["sigma"], float)
        centred = not kind.endswith("noncentered")

        def model():
            mu, tau = (
                numpyro.sample("mu", dist.Normal(0, 5)),
                numpyro.sample("tau", dist.HalfCauchy(5)),
            )
            if centred:
                theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([8]))
            else:
                theta = mu + tau * numpyro.sample("trans", dist.Normal(0, 1).expand([8]))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

        def columns(v):
            theta = v["theta"] if centred else v["mu"][:, None] + v["tau"][:, None] * v["trans"]
            return np.column_stack([theta, v["mu"], v["tau"]])

        return model, columns
    if kind == "blr":
        x, y = jnp.array(data["X"], float), jnp.array(data["y"], float)

        def model():
            beta = numpyro.sample("beta", dist.Normal(0, 10).expand([x.shape[1]]))
            sigma = numpyro.sample("sigma", dist.HalfNormal(10))
            numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    elif kind == "wells_dist100ars_model":
        y = jnp.array(data["switched"])
        columns = [np.ones(len(y)), np.array(data["dist"]) / 100, data["arsenic"]]
        x = jnp.array(np.column_stack(columns))

        def model():
            beta = flat_prior("beta", real, (3,))
            numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

        return model, lambda v: v["beta"]
    elif kind == "kilpisjarvi":
        x, y = jnp.array(data["x"], float), jnp.array(data["y"], float)

        def model():
            alpha = numpyro.sample("alpha", dist.Normal(data["pmualpha"], data["psalpha"]))
            beta = numpyro.sample("beta", dist.Normal(data["pmubeta"], data["psbeta"]))
            sigma = flat_prior("sigma", positive)
            numpyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)

        return model, lambda v: np.column_stack([v["alpha"], v["beta"], v["sigma"]])
    elif kind == "gp_pois_regr":
        x, k = jnp.array(data["x"], float), jnp.array(data["k"])
        apart = (x[:, None] - x) ** 2

        def path(rho, alpha, tilde):
            kernel = alpha**2 * jnp.exp(-0.5 * apart / rho**2) + 1e-10 * jnp.eye(len(x))
            return jnp.linalg.cholesky(kernel) @ tilde

        def model():
            rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
            alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
            tilde = numpyro.sample("tilde", dist.Normal(0, 1).expand([len(x)]))
            numpyro.sample("k", dist.Poisson(jnp.exp(path(rho, alpha, tilde))), obs=k)

        def columns(v):
            import jax

            f = jax.vmap(path)(v["rho"], v["alpha"], v["tilde"])
            return np.column_stack([v["rho"], v["alpha"], f])

        return model, columns
    else:
        held, y, scale = design(name, data)
        x, y = jnp.array(held), jnp.array(y)

        def model():
            beta = flat_prior("beta", real, (x.shape[1],))
            if scale is None:
                sigma = flat_prior("sigma", positive)
            else:
                sigma = numpyro.sample("sigma", dist.HalfCauchy(scale))
            numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return model, lambda v: np.column_stack([v["beta"], v["sigma"]])


def by_numpyro(guide_name, name, data):
    import jax
    from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_median

    jax.config.update("jax_enable_x64", True)
    begin = time.process_time()
    from numpyro.optim import Adam

    model, columns = numpyro_model(name, data)
    guide = getattr(autoguide, guide_name)(model, init_loc_fn=init_to_median)
    adam = Adam(lambda i: RATE * 0.01 ** (i / STEPS))
    svi = SVI(model, guide, adam, Trace_ELBO())
    result = svi.run(jax.random.PRNGKey(0), STEPS, progress_bar=False)
    drawn = guide.sample_posterior(jax.random.PRNGKey(1), result.params, sample_shape=(DRAWS,))
    values = columns({key: np.asarray(value, float) for key, value in drawn.items()})
    return values, time.process_time() - begin


def pymc_model(name, data):
    """The model, and a function of its draws that returns the reference's columns."""
    import pymc as pm
    from posterior_race_pymc import columns, model
    from pytensor.tensor.slinalg import cholesky

    kind = name.split("-")[1]
    if kind == "eight_schools_noncentered" or kind in ("blr", "wells_dist100ars_model"):
        return model(name, data), lambda v: columns(name, v)
    if kind == "eight_schools_centered":
        with pm.Model() as built:
            mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
            theta = pm.Normal("theta", mu, tau, shape=8)
            pm.Normal("y", theta, np.array(data["sigma"], float), observed=data["y"])
        return built, lambda v: np.column_stack([v["theta"], v["mu"], v["tau"]])
    if kind == "kilpisjarvi":
        with pm.Model() as built:
            alpha = pm.Normal("alpha", data["pmualpha"], data["psalpha"])
            beta = pm.Normal("beta", data["pmubeta"], data["psbeta"])
            mean = alpha + beta * np.array(data["x"], float)
            pm.Normal("y", mean, pm.HalfFlat("sigma"), observed=np.array(data["y"], float))
        return built, in_columns("alpha", "beta", "sigma")
    if kind == "gp_pois_regr":
        x = np.array(data["x"], float)
        apart = (x[:, None] - x) ** 2
        with pm.Model() as built:
            rho, alpha = pm.Gamma("rho", 25, 4), pm.HalfNormal("alpha", 2)
            tilde = pm.Normal("tilde", shape=len(x))
            kernel = alpha**2 * pm.math.exp(-0.5 * apart / rho**2) + 1e-10 * np.eye(len(x))
            path = pm.math.dot(cholesky(kernel), tilde)
            pm.Poisson("k", pm.math.exp(path), observed=data["k"])

        def paths(v):
            alpha, rho = v["alpha"][:, None, None], v["rho"][:, None, None]
            kernels = alpha**2 * np.exp(-0.5 * apart / rho**2) + 1e-10 * np.eye(len(x))
            f = (np.linalg.cholesky(kernels) @ v["tilde"][..., None])[..., 0]
            return np.column_stack([v["rho"], v["alpha"], f])

        return built, paths
    x, y, scale = design(name, data)
    with pm.Model() as built:
        beta = pm.Flat("beta", shape=x.shape[1])
        sigma = pm.HalfFlat("sigma") if scale is None else pm.HalfCauchy("sigma", scale)
        pm.Normal("y", pm.math.dot(x, beta), sigma, observed=y)
    return built, lambda v: np.column_stack([v["beta"], v["sigma"]])


def by_pymc(method, name, data):
    import pymc as pm

    if method == "Pathfinder":
        import pymc_extras

    begin = time.process_time()
    built, columns = pymc_model(name, data)
    if method == "Pathfinder":
        with built:
            tree = pymc_extras.fit(method="pathfinder", num_draws=DRAWS, random_seed=0)
        drawn = {k: v.values.reshape(DRAWS, *v.shape[2:]) for k, v in tree.posterior.items()}
        return columns(drawn), time.process_time() - begin
    with built:
        adam = pm.adam(learning_rate=RATE)
        found = pm.fit(STEPS, method=getattr(pm, method)(), obj_optimizer=adam, progressbar=False)
    drawn = found.sample(DRAWS, random_seed=1, return_inferencedata=False)
    names = [variable.name for variable in built.free_RVs]
    values = columns({key: np.asarray(drawn[key]) for key in names})
    return values, time.process_time() - begin


def main(peer, folder, limit=LIMIT):
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit)))
    folder = Path(folder)
    data = json.loads((folder / "data.json").read_text())
    program, method = peer.split()
    by = by_numpyro if program == "NumPyro" else by_pymc
    values, seconds = by(method, folder.name, data)
    print(json.dumps({"cpu_s": seconds, "values": values.tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
