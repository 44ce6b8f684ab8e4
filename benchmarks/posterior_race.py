"""NumPyro's automatic guides, and PyMC's, on posteriordb's posteriors: seconds until as near."""

import json
import subprocess
import time
from pathlib import Path

import torch

STEPS, MOST, DECAYED = 2_000, 40_000, 20_000


def models(name, data):
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def eight():
        sigma, y = jnp.array(data["sigma"], float), jnp.array(data["y"], float)
        trans = numpyro.sample("theta_trans", dist.Normal(0, 1).expand([8]))
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        numpyro.sample("y", dist.Normal(mu + tau * trans, sigma), obs=y)

    def blr():
        x, y = jnp.array(data["X"], float), jnp.array(data["y"], float)
        beta = numpyro.sample("beta", dist.Normal(0, 10).expand([x.shape[1]]))
        sigma = numpyro.sample("sigma", dist.HalfNormal(10))
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    def wells():
        y = jnp.array(data["switched"])
        x = jnp.stack(
            [jnp.ones(len(y)), jnp.array(data["dist"]) / 100, jnp.array(data["arsenic"])], 1
        )
        beta = numpyro.sample("beta", dist.ImproperUniform(dist.constraints.real_vector, (), (3,)))
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

    return {"eight": eight, "sblrc": blr, "wells": wells}[name.split("-")[0].split("_")[0]]


def columns(name, values):
    """Arrange draws as the reference's columns."""
    import numpy as np

    v = {key: np.asarray(value, np.float64) for key, value in values.items()}
    if name.startswith("eight"):
        theta = v["mu"][:, None] + v["tau"][:, None] * v["theta_trans"]
        return torch.from_numpy(np.column_stack([theta, v["mu"], v["tau"]]))
    if name.startswith("sblrc"):
        return torch.from_numpy(np.column_stack([v["beta"], v["sigma"]]))
    return torch.from_numpy(v["beta"])


def limits(name):
    """The errors to come down to: of a mean in reference sd, of a ratio of sds from 1."""
    return (0.15, 0.12) if name.startswith("eight") else (0.05, 0.05)


def pymc_race(folder, python):
    """The same for PyMC's ADVI, mean field and full rank, by the Python that has it."""
    script = Path(__file__).with_name("posterior_race_pymc.py")
    call = [python, str(script), str(folder), *(str(limit) for limit in limits(folder.name))]
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        return {"pymc": done.stderr.strip().splitlines()[-1]}
    return {"pymc": json.loads(done.stdout.splitlines()[-1])}


def numpyro_race(name, data, truth):
    """Wall seconds, compilation included, until both errors are within `limits`."""
    try:
        import jax
        from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_feasible
        from numpyro.optim import Adam
    except ImportError:
        return {"numpyro": "not installed"}
    found = {}
    for guide_name in ("AutoNormal", "AutoMultivariateNormal"):
        for schedule, rate in {
            "constant 0.01": 0.01,
            "0.01 decayed": lambda i: 0.01 * 0.01 ** (jax.numpy.minimum(i, DECAYED) / DECAYED),
        }.items():
            start = time.perf_counter()
            model = models(name, data)
            guide = getattr(autoguide, guide_name)(model, init_loc_fn=init_to_feasible)
            svi = SVI(model, guide, Adam(rate), Trace_ELBO())
            most = MOST if rate == 0.01 else DECAYED
            found[f"{guide_name}, {schedule}"] = _until_near(svi, guide, name, truth, start, most)
    return {"numpyro": found}


def _until_near(svi, guide, name, truth, start, most):
    """Step until both errors are within `limits`, or `most` steps are done."""
    import jax

    goal, spread = limits(name)
    key = jax.random.PRNGKey(0)
    state, spent, reached, best = svi.init(key), 0.0, None, (9e9, 0.0)
    some = jax.jit(  # compiled once
        lambda state: jax.lax.fori_loop(0, STEPS, lambda _, now: svi.update(now)[0], state)
    )
    for steps in range(STEPS, most + 1, STEPS):  # noqa: B007
        state = jax.block_until_ready(some(state))
        spent = time.perf_counter() - start
        drawn = guide.sample_posterior(key, svi.get_params(state), sample_shape=(20_000,))
        values = columns(name, drawn)
        off = float(((values.mean(0) - truth.mean(0)) / truth.std(0)).abs().max())
        wide = float((values.std(0) / truth.std(0) - 1).abs().max())
        best = min(best, (off, wide))
        start = time.perf_counter() - spent  # judging is not timed
        if off <= goal and wide <= spread:
            reached = spent
            break
    return {
        "wall_s_to_same_error": reached,
        "wall_s_in_all": spent,
        "steps": steps,
        "best_mean_error": best[0],
    }
