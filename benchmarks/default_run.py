"""Candidates for the default settings of `kullback train`, by held-out images of three data sets.

    python benchmarks/default_run.py cells --stage screen --sets fashion mnist --log cells.jsonl
    python benchmarks/default_run.py table --log cells.jsonl

`cells` trains every candidate for a number of steps, on one thread, and appends a line with L_20 of
each image to the log; lines that are there already are not made again. Stages:

- screen: a tenth of the training images is held out and measured; short runs, embedded images cut
  to a quarter, so that passes over the data are those of a whole run.
- choose: the same with longer runs and two seeds, where a screen is too close to call.
- count: the test images, with seeds that no stage before had. Nothing is chosen on them.

`usual` is a rate of 0.004 and a decay of 0.1, the default before. One trajectory gives several
averages of its weights and the curve over the run, so that averaging and stopping early cost no run
of their own. Sets: `fashion` (the embedded images, 8-bit), `mnist` (dynamic bits, `--mnist` says
where), `crops` (1,883 training crops of 16x16 in colour, of scikit-learn's two sample photographs),
`small` (300 of the embedded images).
`table` writes paired differences to benchmarks/results/default_run.json: errors are over images;
differences of single seeds stand beside them.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from measuring import finish, machine

from kullback.data import load
from kullback.vae import Architecture, Training, pick_precision
from kullback.vae.evidence import bounds
from kullback.vae.limits import AVERAGE_STEPS
from kullback.vae.loop import fit, hold_out
from kullback.vae.model import evaluating
from kullback.vae.run.new_model import fresh_model
from kullback.vae.state import State

DRAWS, HELD, LOOKS = 20, 500, 8
AVERAGES = (0.03, 0.1, 0.3)
QUARTER = 2250  # training images of the embedded set in the screen
SMALL = 300  # of a small folder


class WithFloor(Training):
    """The cosine ends at a tenth of the peak, not at 0."""

    def learning_rate_at(self, progress, step):
        """Return the rate of a cosine from the peak to a tenth of it."""
        usual = Training.learning_rate_at(self, progress, step)
        rise = min(1.0, (step + 1) / 200)
        return 0.9 * usual + 0.1 * self.learning_rate * rise


@dataclass(frozen=True)
class Candidate:
    """What differs from the usual settings."""

    training: dict
    architecture: dict
    floor: bool = False


CANDIDATES = {
    "usual": Candidate({}, {}),
    "decay 0": Candidate({"weight_decay": 0.0}, {}),
    "decay 0.3": Candidate({"weight_decay": 0.3}, {}),
    "decay 1": Candidate({"weight_decay": 1.0}, {}),
    "rate 2e-3": Candidate({"learning_rate": 2e-3}, {}),
    "rate 8e-3": Candidate({"learning_rate": 8e-3}, {}),
    "rate 1.6e-2": Candidate({"learning_rate": 1.6e-2}, {}),
    "rate 8e-3, decay 0.3": Candidate({"learning_rate": 8e-3, "weight_decay": 0.3}, {}),
    "rate ends at a tenth": Candidate({}, {}, floor=True),
    "latent 16": Candidate({}, {"latent": 16}),
    "latent 64": Candidate({}, {"latent": 64}),
}
STAGES = {"screen": (1000, [0]), "choose": (2000, [1, 2]), "count": (3000, [3, 4])}


def crops(side=16):
    """Return crops of scikit-learn's two sample photographs, `[n, 3, side, side]`, no overlap."""
    from sklearn.datasets import load_sample_images

    cut = []
    for picture in load_sample_images().images:
        rows, columns = picture.shape[0] // side, picture.shape[1] // side
        tiles = picture[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
        cut.append(tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side))
    return numpy.concatenate(cut)


def data_of(name, mnist):
    """Return a data set by its name."""
    if name == "crops":
        return load(crops())
    return load(mnist, binarize="dynamic") if name == "mnist" else load("fashion")


def parts_of(data, name, stage):
    """Return what a stage trains on and what it measures."""
    rest, held = (data, data.test) if stage == "count" else hold_out(data, 0.1, seed=0)
    cut = {"small": SMALL, "fashion": QUARTER if stage == "screen" else None}.get(name)
    rest = replace(rest, train=rest.train[:cut], train_names=rest.train_names[:cut])
    return rest, held[: 2 * HELD if stage == "count" else HELD]


def nats_of(state, model, held, average, draws):
    """Return L_K of every held-out image with an average of the weights, `[n]`."""
    kept = state.flat.average.clone()
    state.flat.average.copy_(average)
    with state.flat.averaged(), evaluating(model):
        generator = torch.Generator().manual_seed(0)
        nats = bounds(model, held, draws=draws, generator=generator).importance_weighted
    state.flat.average.copy_(kept)
    return nats.double()


def cell(rest, held, candidate, steps, seed):
    """Train one candidate; return L_20 by image for each average, and the curve of the ELBO."""
    make = WithFloor if candidate.floor else Training
    usual = Training.usual(rest.kind, rest.event_shape, steps=steps, seed=seed).to_dict()
    settings = make(**(usual | candidate.training))
    model = fresh_model(rest, Architecture(**candidate.architecture), seed, None)
    precision = pick_precision("auto", torch.device("cpu"))
    state = State.start(model, settings, precision=precision)
    averages = {share: state.flat.vector.clone() for share in AVERAGES}
    curve, begun = {}, time.process_time()
    for _ in fit(model, rest, settings, state):
        step = state.step
        if step % AVERAGE_STEPS == 0 or step < AVERAGE_STEPS:
            for share, average in averages.items():
                average.lerp_(state.flat.vector, min(1.0, AVERAGE_STEPS / (share * step)))
        if step % (steps // LOOKS) == 0:
            curve[step] = float(nats_of(state, model, held, averages[0.03], 1).mean())
    spent = time.process_time() - begun
    each = {s: nats_of(state, model, held, a, DRAWS) for s, a in averages.items()}
    return {
        "nats": {str(s): [round(v, 3) for v in nats.tolist()] for s, nats in each.items()},
        "curve": curve,
        "cpu_ms_a_step": 1e3 * spent / steps,
        "numbers": held[0].numel(),
    }


def cells(options):
    """Append the lines that the log lacks."""
    log = Path(options.log)
    done = {row["key"] for row in rows_of(log)}
    steps, seeds = STAGES[options.stage]
    steps, seeds = options.steps or steps, options.seeds or seeds
    for name in options.sets:
        rest, held = parts_of(data_of(name, options.mnist), name, options.stage)
        for seed in seeds:
            for which in options.candidates:
                key = f"{options.stage} {name} {steps} {seed} {which}"
                if key in done:
                    continue
                row = {"key": key, "stage": options.stage, "set": name, "steps": steps}
                row |= {"seed": seed, "candidate": which, "images": len(held)}
                row |= cell(rest, held, CANDIDATES[which], steps, seed)
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def rows_of(log):
    """Return the lines of the log."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def difference(row, share, first):
    """Return the mean gain over another row's usual average, with its error over images."""
    gain = torch.tensor(row["nats"][share]) - torch.tensor(first["nats"]["0.03"])
    return float(gain.mean()), float(gain.std() / math.sqrt(len(gain)))


def summary_of(rows):
    """Return what one candidate did in one stage and set: figures by seed and by average."""
    by_seed = {}
    for row, first in rows:
        mean = sum(row["nats"]["0.03"]) / row["images"]
        curve = row["curve"]
        by_seed[f"seed {row['seed']}"] = {
            "nats": mean,
            "bits_per_dim": -mean / row["numbers"] / math.log(2),
            "cpu_ms_a_step": row["cpu_ms_a_step"],
            "elbo_best_less_last": max(curve.values()) - list(curve.values())[-1],
            "best_step": int(max(curve, key=curve.get)),
            "gain": {s: difference(row, s, first) for s in row["nats"]},
        }
    return by_seed


def table(options):
    """Write paired differences to the usual settings."""
    rows = rows_of(Path(options.log))
    usual = {
        (r["stage"], r["set"], r["steps"], r["seed"]): r for r in rows if r["candidate"] == "usual"
    }
    stages = {}
    for row in rows:
        first = usual.get((row["stage"], row["set"], row["steps"], row["seed"]))
        if first is None:
            continue
        place = stages.setdefault(f"{row['stage']}, {row['steps']} steps", {})
        place.setdefault(row["set"], {}).setdefault(row["candidate"], []).append((row, first))
    result = {"benchmark": "default_run", "machine": machine(1)}
    for stage, sets in stages.items():
        result[stage] = {
            name: {which: summary_of(pairs) for which, pairs in found.items()}
            for name, found in sets.items()
        }
    finish("default_run", result, digits=5)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["cells", "table"])
    parser.add_argument("--stage", choices=[*STAGES], default="screen")
    parser.add_argument("--sets", nargs="+", default=["fashion", "mnist", "crops"])
    parser.add_argument("--candidates", nargs="+", default=[*CANDIDATES])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--mnist", default="mnist.npz")
    parser.add_argument("--log", default="cells.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    (cells if options.what == "cells" else table)(options)


if __name__ == "__main__":
    main()
