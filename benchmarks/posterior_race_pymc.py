"""PyMC's automatic variational inference on one posterior: how near it is after how long.

Run by posterior_race.py with the Python that has PyMC (`--pymc`), which need not be this one:
`python posterior_race_pymc.py "PyMC ADVI" FOLDER SEED MEAN_ERROR SD_ERROR` prints two paths. The
clock starts before the model is built; judging and importing are not timed. Adam(0.01), as for
NumPyro. What PyTensor compiled in earlier runs stays in its cache.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pymc as pm

STEPS, MOST = 500, 20_000


def model(name, data):
    from pymc import math

    with pm.Model() as built:
        if name.startswith("eight"):
            trans = pm.Normal("theta_trans", 0, 1, shape=8)
            mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
            pm.Normal("y", mu + tau * trans, np.array(data["sigma"], float), observed=data["y"])
        elif name.startswith("sblrc"):
            x = np.array(data["X"], float)
            beta, sigma = pm.Normal("beta", 0, 10, shape=x.shape[1]), pm.HalfNormal("sigma", 10)
            pm.Normal("y", math.dot(x, beta), sigma, observed=np.array(data["y"], float))
        else:
            ones = np.ones(len(data["switched"]))
            x = np.column_stack([ones, np.array(data["dist"]) / 100, data["arsenic"]])
            beta = pm.Flat("beta", shape=3)
            pm.Bernoulli("y", logit_p=math.dot(x, beta), observed=data["switched"])
    return built


def columns(name, values):
    """Arrange draws as the reference's columns."""
    if name.startswith("eight"):
        mu, tau = values["mu"][:, None], values["tau"][:, None]
        return np.column_stack([mu + tau * values["theta_trans"], mu, tau])
    if name.startswith("sblrc"):
        return np.column_stack([values["beta"], values["sigma"]])
    return values["beta"]


def race(method, folder, seed, goal, spread):
    data = json.loads((folder / "data.json").read_text())
    truth = np.load(folder / "reference_draws.npz")["draws"]
    truth = truth.reshape(-1, truth.shape[-1])
    start, path = time.perf_counter(), []
    built = model(folder.name, data)
    inference = getattr(pm, method)(model=built, random_seed=seed)
    names = [variable.name for variable in built.free_RVs]
    for steps in range(0, MOST, STEPS):
        if steps == 0:
            adam = pm.adam(learning_rate=0.01)
            approximation = inference.fit(STEPS, progressbar=False, obj_optimizer=adam)
        else:
            inference.refine(STEPS, progressbar=False)
        spent = time.perf_counter() - start
        drawn = approximation.sample(20_000, random_seed=1, return_inferencedata=False)
        values = columns(folder.name, {name: np.asarray(drawn[name]) for name in names})
        off = float(np.abs((values.mean(0) - truth.mean(0)) / truth.std(0)).max())
        wide = float(np.abs(values.std(0) / truth.std(0) - 1).max())
        path.append([spent, off, wide])
        start = time.perf_counter() - spent  # judging is not timed
        if off <= goal and wide <= spread:
            break
    return path


def main(entrant, folder, seed, *limits):
    arguments = (entrant.split()[-1], Path(folder), int(seed), *map(float, limits))
    print(json.dumps([race(*arguments) for _ in range(2)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
