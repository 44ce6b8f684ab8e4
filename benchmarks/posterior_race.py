"""The race on posteriordb's posteriors: this package, NumPyro's automatic guides, PyMC's ADVI.

Every entrant runs in a process of its own, twice: what a script pays, and what the next model in a
session does. Its q is judged as it goes, with the clock stopped: a path is a list of (wall seconds,
largest error of a mean in reference sd, largest distance of a ratio of sds from 1). The clock
starts before the model is built, so that tracing and compiling count; importing does not.
`python posterior_race.py ENTRANT FOLDER SEED` prints the two paths as JSON.
"""

import functools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from posterior_targets import posterior

from kullback.variational.stages import Settings, reverse
from kullback.variational.target.density import Target

STEPS, MOST, DECAYED = 500, 40_000, 20_000
ROUNDS = 3
NUMPYRO = {
    f"NumPyro {guide}, {'0.01 decayed' if decayed else 'constant 0.01'}": (guide, decayed)
    for guide in ("AutoNormal", "AutoMultivariateNormal")
    for decayed in (False, True)
}
PYMC = ("PyMC ADVI", "PyMC FullRankADVI")


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


def race(folder, pymc):
    """Run all entrants in turn, three times; compare times to the same error."""
    paths = {}
    for seed in range(ROUNDS):
        for entrant in ("kullback", *NUMPYRO, *PYMC):
            found = _asked(entrant, folder, seed, pymc)
            paths.setdefault(entrant, []).append(found)
    own, lines = paths.pop("kullback"), {}
    for which, kind in enumerate(("first", "next")):
        mine = [pair[which] for pair in own]
        lines[kind] = {"kullback": _described(folder.name, mine)}
        for entrant, pairs in paths.items():
            if not all(pairs):
                lines[kind][entrant] = "did not run"
                continue
            path = [pair[which] for pair in pairs]
            described = _described(folder.name, path) | _compared(folder.name, mine, path)
            lines[kind][entrant] = described
    return lines


def _asked(entrant, folder, seed, pymc):
    """Run an entrant in a process of its own; None where that fails, with the reason on stderr."""
    at = Path(__file__)
    script, python = at, sys.executable
    if entrant in PYMC:
        script, python = at.with_name("posterior_race_pymc.py"), pymc
    call = [python, str(script), entrant, str(folder.resolve()), str(seed)]
    goal = [str(limit) for limit in limits(folder.name)] if entrant in PYMC else []
    done = subprocess.run([*call, *goal], capture_output=True, text=True, cwd=at.parent)
    if done.returncode:
        sys.stderr.write(f"{entrant}: {(done.stderr.strip() or 'no word').splitlines()[-1]}\n")
        return None
    return json.loads(done.stdout.splitlines()[-1])


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


def _point(spent, values, truth):
    """What a path holds: seconds, and the two errors of draws at that time."""
    off, ratios = errors(values, truth)
    return [spent, off, float((ratios - 1).abs().max())]


def _own(folder, seed):
    log_density, parameters, reference, truth = posterior(folder.name, folder.parent)
    torch.set_num_threads(1)
    start, path = time.perf_counter(), []
    target = Target.of(log_density, parameters)
    generator = torch.Generator().manual_seed(seed)
    for now in reverse(target, Settings(), generator).steps():
        spent = time.perf_counter() - start
        z = now.family.sample(20_000, torch.Generator().manual_seed(99))
        path.append(_point(spent, reference(target.constrain(z)), truth))
        start = time.perf_counter() - spent  # judging is not timed
    return path


def _numpyro(entrant, folder, seed):
    import jax
    from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_feasible
    from numpyro.optim import Adam

    guide_name, decayed = NUMPYRO[entrant]
    data = json.loads((folder / "data.json").read_text())
    truth = posterior(folder.name, folder.parent)[3]

    def falling(i):
        return 0.01 * 0.01 ** (jax.numpy.minimum(i, DECAYED) / DECAYED)

    start = time.perf_counter()
    model = models(folder.name, data)
    guide = getattr(autoguide, guide_name)(model, init_loc_fn=init_to_feasible)
    svi = SVI(model, guide, Adam(falling if decayed else 0.01), Trace_ELBO())
    key, path = jax.random.PRNGKey(seed), []
    state = svi.init(key)
    some = jax.jit(  # compiled once
        lambda state: jax.lax.fori_loop(0, STEPS, lambda _, now: svi.update(now)[0], state)
    )
    for _ in range(0, DECAYED if decayed else MOST, STEPS):
        state = jax.block_until_ready(some(state))
        spent = time.perf_counter() - start
        drawn = guide.sample_posterior(key, svi.get_params(state), sample_shape=(20_000,))
        path.append(_point(spent, columns(folder.name, drawn), truth))
        start = time.perf_counter() - spent  # judging is not timed
        if _score(folder.name, path[-1]) <= 1:
            break
    return path


def main(entrant, folder, seed):
    runner = _own if entrant == "kullback" else functools.partial(_numpyro, entrant)
    print(json.dumps([runner(Path(folder), int(seed)) for _ in range(2)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
