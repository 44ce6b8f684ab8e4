"""Fit posteriors with known answers, beside NumPyro in the same run.

    python benchmarks/posteriors.py [--only gaussian shapes race rows dimensions] [--seeds 20]

gaussian: where a Gaussian suffices, defaults, every seed: errors of means (reference sd), ratios of
sds, CPU seconds of a fit, start and final draws included. shapes: where it does not: the verdict
in 20 seeds, then the flow family in 5. race: wall seconds, compilation included, to the same error
as NumPyro's AutoNormal and AutoMultivariateNormal and PyMC's ADVI (`--pymc PYTHON`), each in a
process of its own. rows:
logistic regression on 10⁶ rows in mini-batches against the full data's Laplace approximation.
dimensions: cost from 10 to 2,000 for each family.
Prints JSON and writes it to benchmarks/results/posteriors.json. `--data` takes any folder of
posteriordb's layout; posteriors without a log density in posterior_targets.py are left out.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import posterior_race
import torch
from measuring import RESULTS, finish, machine
from posterior_targets import DATA, banana, funnel, posterior

from kullback.variational import fit

GAUSSIAN = (
    "eight_schools-eight_schools_noncentered",
    "sblrc-blr",
    "wells_data-wells_dist100ars_model",
)


def errors(result, reference, truth, draws=100_000):
    """Errors of q's own draws against reference draws, on the reference's scale."""
    z = result.sample(draws, torch.Generator().manual_seed(99))
    off, ratios = posterior_race.errors(reference(result.target.constrain(z)), truth)
    return {"mean_error": off, "sd_low": float(ratios.min()), "sd_high": float(ratios.max())}


def once(log_density, parameters, seed, **options):
    start, wall = time.process_time(), time.perf_counter()
    result = fit(log_density, parameters, generator=torch.Generator().manual_seed(seed), **options)
    return result, time.process_time() - start, time.perf_counter() - wall


def described(result, cpu, wall):
    judged = result.diagnosis
    return {
        "family": result.family.name,
        "cpu_s": cpu,
        "wall_s": wall,
        "converged": result.converged,
        "elbo": result.elbo.value,
        "k_hat": judged.k_hat,
        "level": judged.level,
    }


def worst(runs):
    keys = ("mean_error", "sd_low", "sd_high", "cpu_s", "k_hat")
    ends = {key: [run[key] for run in runs] for key in keys if key in runs[0]}
    spread = {key: [min(values), max(values)] for key, values in ends.items()}
    levels = [run["level"] for run in runs]
    counted = {level: levels.count(level) for level in sorted(set(levels))}
    return {"range": spread, "levels": counted, "families": sorted({r["family"] for r in runs})}


def gaussian(options):
    found = {}
    for name in GAUSSIAN:
        log_density, parameters, reference, truth = posterior(name, options.data)
        runs = []
        for seed in range(options.seeds):
            result, *times = once(log_density, parameters, seed)
            runs.append(described(result, *times) | errors(result, reference, truth))
        found[name] = worst(runs) | {"runs": runs}
        sys.stderr.write(f"{name}: {json.dumps(found[name]['range'])}\n")
    return found


def shape(name, options):
    if name == "eight_schools_centered":
        return posterior("eight_schools-eight_schools_centered", options.data)
    log_density, parameters, draw = {"funnel": funnel, "banana": banana}[name]()
    truth = draw(200_000, torch.Generator().manual_seed(1))
    return log_density, parameters, lambda values: values["z"], truth


def shapes(options):
    found = {}
    for name in ("eight_schools_centered", "funnel", "banana"):
        log_density, parameters, reference, truth = shape(name, options)
        lines = {}
        for family, seeds in (("full_rank", 20), ("auto", 20), ("flow", 5)):
            runs = []
            for seed in range(min(seeds, options.seeds)):
                result, *times = once(log_density, parameters, seed, family=family)
                runs.append(described(result, *times) | errors(result, reference, truth))
            lines[family] = worst(runs) | {"runs": runs}
            shown = json.dumps({k: lines[family][k] for k in ("range", "levels")})
            sys.stderr.write(f"{name} {family}: {shown}\n")
        found[name] = lines
    return found


def race(options):
    found = {}
    for name in GAUSSIAN:
        found[name] = posterior_race.race(options.data / name, options.pymc)
        sys.stderr.write(f"{name}: {json.dumps(found[name])}\n")
    return found


def regression(rows, features, generator):
    x = torch.randn(rows, features, generator=generator)
    x[:, 1:] += 0.7 * x[:, :1]
    x[:, 0] = 1.0
    beta = 0.2 * torch.randn(features, generator=generator)
    y = (torch.rand(rows, generator=generator) < torch.sigmoid(x @ beta)).float() * 2 - 1
    return x, y


def laplace(x, y):
    """The full data's answer: Newton in float64, in blocks; at 10⁶ rows the posterior is normal."""
    d = x.shape[1]
    z, eye = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64) / 100
    for _ in range(8):
        slope, curve = -z / 100, eye.clone()
        for some, sign in zip(x.split(50_000), y.split(50_000), strict=True):
            some = some.double()
            p = torch.sigmoid(some @ z)
            slope += some.mT @ ((sign.double() + 1) / 2 - p)
            curve += (some * (p * (1 - p))[:, None]).mT @ some
        z = z + torch.linalg.solve(curve, slope)
    return z, torch.linalg.inv(curve).diagonal().sqrt()


def rows(options):
    torch.set_num_threads(options.threads)
    x, y = regression(options.rows, 100, torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    result = fit(
        lambda z, x, y: torch.nn.functional.logsigmoid(y * (x @ z)),
        100,
        data=[x, y],
        log_prior=lambda z: -0.005 * z.square().sum(),
        batch_size=8192,
        evaluation_draws=500,
    )
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mean, sd = laplace(x, y)
    frame = result.family.absorb()
    ratio = frame.sd / sd
    torch.set_num_threads(1)
    return {
        "rows": options.rows,
        "threads": options.threads,
        "wall_s": wall,
        "cpu_s": cpu,
        "iterations": len(result.trace),
        "converged": result.converged,
        "reason": result.reason,
        "mean_error": float(((frame.shift - mean) / sd).abs().max()),
        "sd_low": float(ratio.min()),
        "sd_high": float(ratio.max()),
        "extra_memory_mib": (after - before) / 1024,
    }


def dimensions(options):
    found = []
    for dim in (10, 30, 100, 300, 1000, 2000):
        generator = torch.Generator().manual_seed(0)
        loading = torch.randn(dim, 3, generator=generator, dtype=torch.float64) / 2

        def log_density(z, loading=loading):
            inner = z - 0.3 * loading @ (loading.mT @ z) / (1 + loading.square().sum())
            return -0.5 * inner.square().sum()

        for family in ("mean_field", "low_rank", "full_rank", "mixture", "student_t", "flow"):
            result, cpu, wall = once(log_density, dim, 0, family=family, evaluation_draws=500)
            line = {"dim": dim, "family": family, "cpu_s": cpu, "wall_s": wall}
            found.append(line | {"iterations": len(result.trace), "converged": result.converged})
            sys.stderr.write(f"{found[-1]}\n")
    return found


PARTS = {
    "gaussian": gaussian,
    "shapes": shapes,
    "race": race,
    "rows": rows,
    "dimensions": dimensions,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", type=lambda text: int(float(text)), default=10**6)
    parser.add_argument("--threads", type=int, default=2, help="for rows")
    parser.add_argument("--pymc", default=sys.executable, help="a Python that has PyMC, for race")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = RESULTS / "posteriors.json"
    result = json.loads(kept.read_text()) if kept.exists() else {}
    result["machine"] = machine(1)
    for part in options.only:
        result[part] = PARTS[part](options)
    finish("posteriors", result)


if __name__ == "__main__":
    main()
