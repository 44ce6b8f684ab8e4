"""Verdicts on the posteriors of posteriordb: error against reference draws, verdict, time.

    python benchmarks/posteriordb.py [NAME ...] [--data FOLDER] [--seeds 3] [--peers PYTHON]

For each posterior and seed: `fit` by its defaults and `assess`; the largest error of a mean in
reference sd, the smallest and largest ratio of an sd to the reference's, over the reference's
columns; the level of the verdict, and whether it is right; processor seconds of the fit and of the
verdict on one thread. "trust" is right where every mean is within 0.2 sd and every sd within 22 %,
what the level means, up to the error of the reference draws (4.5 standard errors at 1,000 effective
draws: 0.14 sd is more than any here has).

`--peers PYTHON` (one with numpyro or pymc; posteriordb_peers.py) adds NumPyro's AutoNormal and
AutoMultivariateNormal, PyMC's ADVI and Pathfinder, each in a process of its own; processor seconds,
at most `--limit` a peer and posterior; what failed is a reason in words. All 18 posteriors, and
with `--missing` only what earlier calls have not (each peer's result is written when it is there,
so that a call that was cut off can go on):

    python benchmarks/posteriordb.py --only-peers --peers PYTHON --missing

`--data` takes a folder with a folder for each posterior: `data.json`, `reference_draws.npz` (an
array `draws`, `[chains, n, columns]`), and for models that are not in posterior_targets.py a file
`target.py`. Prints what is new and writes all to benchmarks/results/posteriordb.json.
"""

import argparse
import contextlib
import io
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import posterior_race
import torch
from measuring import RESULTS, finish, machine
from posterior_targets import DATA, known, posterior
from posteriordb_peers import LIMIT

from kullback.variational import assess, fit

MEAN, LOG_SD = 0.2, 0.2  # what "trust" means: sds within e^0.2
PEERS = (
    "NumPyro AutoNormal",
    "NumPyro AutoMultivariateNormal",
    "PyMC ADVI",
    "PyMC FullRankADVI",
    "PyMC Pathfinder",
)


def once(name, folder, seed):
    """One default fit, judged."""
    log_density, parameters, reference, truth = posterior(name, folder)
    begin = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    found = fit(log_density, parameters, generator=generator, progress=False)
    fitted = time.process_time()
    judged = assess(found, generator=generator)
    ended = time.process_time()
    values = reference(found.sample_posterior(20_000, generator=torch.Generator().manual_seed(99)))
    return {
        **errors(values, truth),
        "level": judged.level,
        "family": found.family.name,
        "fit_cpu_s": fitted - begin,
        "verdict_cpu_s": ended - fitted,
        "verdict": judged.verdict,
        "reason": found.reason,
    }


def errors(values, truth):
    off, ratios = posterior_race.errors(values, truth)
    low, high = float(ratios.min()), float(ratios.max())
    right = off <= MEAN and float(ratios.log().abs().max()) <= LOG_SD
    return {"mean_error": off, "sd_low": low, "sd_high": high, "within_trust": right}


def peers(name, folder, python, limit, known):
    """Each peer that is not known, in a process of its own; what failed is a reason in words."""
    found, script = dict(known), Path(__file__).with_name("posteriordb_peers.py")
    for peer in PEERS:
        if peer in known:
            continue
        call = [python, str(script), peer, str((folder / name).resolve()), str(limit)]
        done = subprocess.run(call, capture_output=True, text=True, cwd=script.parent)
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            found[peer] = {"failed": f"more than {limit} processor seconds"}
        elif done.returncode:
            words = (done.stderr.strip() or "no word").splitlines()[-1]
            found[peer] = {"failed": words}
        else:
            held = json.loads(done.stdout.splitlines()[-1])
            values = torch.tensor(held.pop("values"), dtype=torch.float64)
            found[peer] = errors(values, posterior(name, folder)[3]) | held
        keep(name, "peers", found)


def counted(table):
    """What the verdicts are worth over all posteriors and seeds."""
    runs = [run for entry in table.values() for run in entry.get("runs", [])]
    others = [(name, found) for entry in table.values() for name, found in of_peers(entry)]
    trusted = [run for run in runs if run["level"] == "trust"]
    return {
        "posteriors": len(table),
        "runs": len(runs),
        "trusted": len(trusted),
        "trust_right": sum(run["within_trust"] for run in trusted),
        "fits_within_trust": sum(run["within_trust"] for run in runs),
        "median_fit_cpu_s": statistics.median(run["fit_cpu_s"] for run in runs),
        "median_verdict_cpu_s": statistics.median(run["verdict_cpu_s"] for run in runs),
        "slowest_fit_cpu_s": max(run["fit_cpu_s"] for run in runs),
        "peers": {
            peer: {
                "ran": sum(name == peer and "failed" not in one for name, one in others),
                "within_trust": sum(
                    name == peer and one.get("within_trust", False) for name, one in others
                ),
            }
            for peer in PEERS
        },
    }


def of_peers(entry):
    """Each peer's outcome on one posterior."""
    return entry.get("peers", {}).items()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names; all without one")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers", help="a Python that has numpyro or pymc")
    parser.add_argument("--limit", type=int, default=LIMIT, help="processor seconds of a peer")
    parser.add_argument("--only-peers", action="store_true", help="keep our runs of the last call")
    parser.add_argument("--missing", action="store_true", help="leave out what is there already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names, unknown = known(options.data)
    if unknown:
        sys.stderr.write(f"left out, without a log density: {', '.join(unknown)}\n")
    for name in names:
        if options.names and not any(name.startswith(begin) for begin in options.names):
            continue
        has = written().get(name, {}) if options.missing else {}
        if not options.only_peers and len(has.get("runs", [])) < options.seeds:
            keep(name, "runs", [once(name, options.data, seed) for seed in range(options.seeds)])
        if options.peers:
            peers(name, options.data, options.peers, options.limit, has.get("peers", {}))


def written():
    """What earlier calls wrote, by posterior."""
    kept = RESULTS / "posteriordb.json"
    return json.loads(kept.read_text())["posteriors"] if kept.exists() else {}


def keep(name, part, found):
    """Write what is new of one posterior beside what earlier calls wrote, and print it."""
    sys.stderr.write(f"{name}: {json.dumps(found)}\n")
    table = written()
    table.setdefault(name, {})[part] = found
    table = dict(sorted(table.items()))
    with contextlib.redirect_stdout(io.StringIO()):  # written as it grows
        whole = {"machine": machine(1), "counted": counted(table), "posteriors": table}
        finish("posteriordb", whole, digits=4)


if __name__ == "__main__":
    main()
