"""The race on posteriordb's posteriors: this package, NumPyro's automatic guides, PyMC's ADVI.

Every entrant's q is judged as it goes, with the clock stopped: its path is a list of (wall seconds,
largest error of a mean in reference sd, largest distance of a ratio of sds from 1). The clock
starts before the model is built, so that tracing and compiling count; importing does not.
"""

import json
import statistics
import subprocess
import time
from pathlib import Path

import torch

from kullback.variational import fit
from kullback.variational.engine import Settings, reverse
from kullback.variational.target import Target

STEPS, MOST, DECAYED = 500, 40_000, 20_000
ROUNDS = 3


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


def errors(values, truth):
    """The largest error of a mean in reference sd, and the ratios of sds."""
    off = ((values.mean(0) - truth.mean(0)) / truth.std(0)).abs().max()
    return float(off), values.std(0) / truth.std(0)


def race(name, folder, density, pymc):
    """Run all entrants in turn, three times; compare times to the same error."""
    paths = {}
    for number in range(ROUNDS):
        found = {"kullback": _own(name, density, number)}
        found |= _numpyro(name, json.loads((folder / "data.json").read_text()), density[3], number)
        found |= _pymc(folder, pymc, number)
        for entrant, path in found.items():
            paths.setdefault(entrant, []).append(path)
    own = paths.pop("kullback")
    lines = {"kullback": _described(name, own) | {"whole_call_s": _whole_calls(density)}}
    for entrant, path in paths.items():
        known = isinstance(path[0], list)
        lines[entrant] = _described(name, path) | _compared(name, own, path) if known else path[0]
    return lines


def _score(name, point):
    """How many times its limit the worse of the two errors is: 1 or less is near enough."""
    return max(error / limit for error, limit in zip(point[1:], limits(name), strict=True))


def _nearest(name, path):
    """The first point within the limits, or else the best one."""
    near = [point for point in path if _score(name, point) <= 1]
    return near[0] if near else min(path, key=lambda point: _score(name, point))


def _described(name, paths):
    ends = [_nearest(name, path) for path in paths]
    middle = sorted(ends)[len(ends) // 2]
    return {
        "within_limits": [_score(name, end) <= 1 for end in ends],
        "wall_s": [end[0] for end in ends],
        "median_wall_s": middle[0],
        "mean_error": middle[1],
        "sd_error": middle[2],
        "wall_s_in_all": statistics.median(path[-1][0] for path in paths),
    }


def _compared(name, own, paths):
    """Ratios of the peer's time to its nearest point, or to the limits, and ours to the same."""
    ratios = []
    for mine, path in zip(own, paths, strict=True):
        end = _nearest(name, path)
        same = max(1.0, _score(name, end))
        ours = next((point[0] for point in mine if _score(name, point) <= same), None)
        ratios.append(end[0] / ours if ours else None)
    known = [ratio for ratio in ratios if ratio]
    return {"times_ours": ratios, "median_times_ours": statistics.median(known) if known else None}


def _own(name, density, seed):
    log_density, parameters, reference, truth = density
    start, path = time.perf_counter(), []
    target = Target.of(log_density, parameters)
    generator = torch.Generator().manual_seed(seed)
    for now in reverse(target, Settings(), generator).steps():
        spent = time.perf_counter() - start
        z = now.family.sample(20_000, torch.Generator().manual_seed(99))
        off, ratios = errors(reference(target.constrain(z)), truth)
        path.append([spent, off, float((ratios - 1).abs().max())])
        start = time.perf_counter() - spent  # judging is not timed
    return path


def _whole_calls(density):
    """Wall seconds of `fit` with its defaults, judging draws and all, once a round."""
    seconds = []
    for seed in range(ROUNDS):
        start = time.perf_counter()
        fit(*density[:2], generator=torch.Generator().manual_seed(seed))
        seconds.append(time.perf_counter() - start)
    return seconds


def _pymc(folder, python, seed):
    """PyMC's ADVI, mean field and full rank, by the Python that has it."""
    script = Path(__file__).with_name("posterior_race_pymc.py")
    call = [python, str(script), str(folder), *map(str, limits(folder.name)), str(seed)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        return {"PyMC": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _numpyro(name, data, truth, seed):
    try:
        import jax
        from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_feasible
        from numpyro.optim import Adam
    except ImportError:
        return {"NumPyro": "not installed"}
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
            path = _numpyro_path(svi, guide, name, truth, start, most, seed)
            found[f"NumPyro {guide_name}, {schedule}"] = path
    return found


def _numpyro_path(svi, guide, name, truth, start, most, seed):
    """Step until both errors are within `limits`, or `most` steps are done."""
    import jax

    key, path = jax.random.PRNGKey(seed), []
    state = svi.init(key)
    some = jax.jit(  # compiled once
        lambda state: jax.lax.fori_loop(0, STEPS, lambda _, now: svi.update(now)[0], state)
    )
    for _ in range(0, most, STEPS):
        state = jax.block_until_ready(some(state))
        spent = time.perf_counter() - start
        drawn = guide.sample_posterior(key, svi.get_params(state), sample_shape=(20_000,))
        off, ratios = errors(columns(name, drawn), truth)
        path.append([spent, off, float((ratios - 1).abs().max())])
        start = time.perf_counter() - spent  # judging is not timed
        if _score(name, path[-1]) <= 1:
            break
    return path
