"""Variational inference of NumPyro or PyMC on one posterior: its draws, and how long it took.

Run by posteriordb.py with a Python that has them (`--peers`):
`python posteriordb_peers.py "NumPyro AutoNormal" FOLDER` prints JSON: 4,000 draws in the columns of
the reference, processor seconds of a fit with building and compiling. 10,000 steps, PyMC's default
number, of Adam at 0.01, in NumPyro falling to 0.0001. The models are NumPyro's and PyMC's own;
posteriors without one here end with a message.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

STEPS, DRAWS, RATE = 10_000, 4_000, 0.01


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


def numpyro_model(name, data):
    """The model, and a function of its draws that returns the reference's columns."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def flat_prior(of, support, shape=()):
        return numpyro.sample(of, dist.ImproperUniform(support, shape, ()))

    real, positive = dist.constraints.real, dist.constraints.positive
    kind = name.split("-")[1]
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

    kind = name.split("-")[1]
    if kind == "eight_schools_noncentered" or kind in ("blr", "wells_dist100ars_model"):
        return model(name, data), lambda v: columns(name, v)
    if kind == "eight_schools_centered":
        with pm.Model() as built:
            mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
            theta = pm.Normal("theta", mu, tau, shape=8)
            pm.Normal("y", theta, np.array(data["sigma"], float), observed=data["y"])
        return built, lambda v: np.column_stack([v["theta"], v["mu"], v["tau"]])
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


def main(peer, folder):
    folder = Path(folder)
    data = json.loads((folder / "data.json").read_text())
    program, method = peer.split()
    by = by_numpyro if program == "NumPyro" else by_pymc
    values, seconds = by(method, folder.name, data)
    print(json.dumps({"cpu_s": seconds, "values": values.tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
