"""Tables of four papers on a short schedule: what each method gains, paired over test images.

    python benchmarks/paper_tables.py --work DIR [--start 8000] [--steps 1500] [--draws 500]
                                      [--images 1000] [--only "1 layer, VAE, K=1" …] [--warmup 0]

Table 1 of Burda et al. (2016): one and two stochastic layers, VAE and IWAE, K = 1, 5 and 50; the
gains of a VampPrior (Tomczak and Welling 2018) and of an inverse autoregressive flow (Kingma et al.
2016) over N(0, I) and a diagonal q; that of doubly reparameterised gradients (Tucker et al. 2019)
over the plain ones. MNIST with dynamic bits, minibatches of 20 as in the first paper, 200-200 tanh,
50 dimensions (two layers: 50 above 100), one seed, one thread. The papers train for 3,280 epochs,
which a processor does not reach; from scratch what has more to learn is behind at first, whatever
it ends at. So every architecture is first trained on the ELBO with K = 1 for `--start` steps, and
every cell goes on from there for `--steps` more, K = 1 as well. `--start 0` trains every cell from
scratch; `--warmup` is the share of the first part over which the weight of the KL rises from 0, and
wants a DIR of its own, as another rate does. Signs and orders compare with the papers', values do
not. Errors are over the images: another seed would give another difference.

Every cell is kept in DIR when it is done; a second call goes on with what is missing. Prints JSON
and writes it to benchmarks/results/paper_tables.json, which keeps what other schedules gave. The
data are not part of the package.
"""

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from measuring import RESULTS, finish, machine

from kullback.core import read_json, write_json
from kullback.data import describe_protocol, load
from kullback.vae import Architecture, Training
from kullback.vae.evidence import bounds
from kullback.vae.loop import fit
from kullback.vae.model import evaluating
from kullback.vae.run.new_model import fresh_model
from kullback.vae.state import State, load_tensors, save_tensors

DATA = Path(__file__).parents[2] / "shared" / "data" / "mnist" / "mnist.npz"
ONE = Architecture(network="mlp", hidden=(200, 200), latent=50, activation="tanh")
TWO = replace(ONE, latent=150, layers=(50, 100))
PAPER = {  # minus L_5000, dynamic bits, 3,280 epochs (Burda et al. 2016, table 1)
    "1 layer, VAE, K=1": 86.76,
    "1 layer, VAE, K=5": 86.47,
    "1 layer, VAE, K=50": 86.35,
    "1 layer, IWAE, K=5": 85.54,
    "1 layer, IWAE, K=50": 84.78,
    "2 layers, VAE, K=1": 85.33,
    "2 layers, VAE, K=5": 85.01,
    "2 layers, VAE, K=50": 84.78,
    "2 layers, IWAE, K=5": 83.89,
    "2 layers, IWAE, K=50": 82.90,
}
EXPECTED = (  # (better, worse) by the papers
    ("1 layer, IWAE, K=5", "1 layer, VAE, K=1"),
    ("1 layer, IWAE, K=5", "1 layer, VAE, K=5"),
    ("1 layer, IWAE, K=50", "1 layer, VAE, K=50"),
    ("1 layer, IWAE, K=50", "1 layer, IWAE, K=5"),
    ("2 layers, VAE, K=1", "1 layer, VAE, K=1"),
    ("2 layers, IWAE, K=5", "2 layers, VAE, K=5"),
    ("2 layers, IWAE, K=50", "2 layers, VAE, K=50"),
    ("2 layers, IWAE, K=50", "2 layers, IWAE, K=5"),
    ("2 layers, IWAE, K=50", "1 layer, IWAE, K=50"),
    ("1 layer, VampPrior, K=1", "1 layer, VAE, K=1"),
    ("1 layer, IAF, K=1", "1 layer, VAE, K=1"),
    ("1 layer, DReG, K=5", "1 layer, IWAE, K=5"),
    ("1 layer, DReG, K=50", "1 layer, IWAE, K=50"),
)


def cells():
    """Return what to train by name: an architecture, an objective and its draws."""
    found = {}
    for name, architecture in (("1 layer", ONE), ("2 layers", TWO)):
        found[f"{name}, VAE, K=1"] = (architecture, "elbo", 1)
        for draws in (5, 50):
            found[f"{name}, VAE, K={draws}"] = (architecture, "elbo", draws)
            found[f"{name}, IWAE, K={draws}"] = (architecture, "iwae_plain", draws)
        if architecture is ONE:
            for draws in (5, 50):
                found[f"1 layer, DReG, K={draws}"] = (ONE, "iwae", draws)
            vamp = replace(ONE, prior="vamp", prior_components=100)
            found["1 layer, VampPrior, K=1"] = (vamp, "elbo", 1)
            found["1 layer, IAF, K=1"] = (replace(ONE, posterior="iaf"), "elbo", 1)
    return found


def trained(data, cell, start, **schedule):
    """Train on a schedule from a state dictionary, or None; return model, state and seconds."""
    architecture, objective, draws = cell
    settings = Training(
        objective=objective,
        draws=draws,
        batch_size=20,
        weight_decay=0.0,
        precision="float32",
        **schedule,
    )
    model = fresh_model(data, architecture, settings.seed, None)
    if start is not None:
        model.load_state_dict(start)
    state = State.start(model, settings, precision=torch.float32)
    begin = time.process_time()
    for now in fit(model, data, settings, state):
        if now.step % 200 == 0:
            sys.stderr.write(f"\r  step {now.step}, {time.process_time() - begin:.0f} CPU s ")
    sys.stderr.write("\n")
    return model, state, time.process_time() - begin


def start_of(data, cell, options):
    """Return the averaged weights of the architecture's first part, made once and kept."""
    if not options.start:
        return None
    architecture = cell[0]
    parts = f"{architecture.prior}-{architecture.posterior}-{architecture.latent}"
    kept = options.work / f"start-{parts}-{options.start}.safetensors"
    if not kept.exists():
        schedule = {
            "steps": options.start,
            "learning_rate": options.learning_rate,
            "warmup": options.warmup,
        }
        model, state, _ = trained(data, (architecture, "elbo", 1), None, **schedule)
        with state.flat.averaged():
            save_tensors(kept, {name: t.clone() for name, t in model.state_dict().items()})
    return load_tensors(kept)


def measured(data, cell, options):
    """Train one cell; return minus L_K of each test image and a row of figures."""
    start = start_of(data, cell, options)
    rate = options.learning_rate / (3 if options.start else 1)
    model, state, seconds = trained(data, cell, start, steps=options.steps, learning_rate=rate)
    begin = time.process_time()
    with state.flat.averaged(), evaluating(model):
        generator = torch.Generator().manual_seed(0)
        x = data.test[: options.images]
        figures = bounds(model, x, draws=options.draws, generator=generator)
    row = {
        "minus_elbo": -float(figures.elbo.double().mean()),
        "rate": float(figures.rate.double().mean()),
        "cpu_seconds": seconds,
        "cpu_seconds_of_evaluation": time.process_time() - begin,
    }
    return -figures.importance_weighted.double(), row


def done(data, work, options):
    """Return minus L_K of each image and the row of every cell, training those that are missing."""
    found = {}
    for name, cell in cells().items():
        if options.only and name not in options.only:
            continue
        stem = name.replace(", ", "-").replace(" ", "-").replace("=", "-")
        kept = work / f"{stem}-{options.start}-{options.steps}.safetensors"
        beside = kept.with_suffix(".json")
        if not beside.exists():
            sys.stderr.write(f"{name}\n")
            nats, row = measured(data, cell, options)
            save_tensors(kept, {"minus_log_likelihood": nats})
            write_json(beside, row)
        found[name] = load_tensors(kept)["minus_log_likelihood"], read_json(beside)
        report(data, found, options)
    return found


def gain(better, worse):
    """Return the mean of worse − better, its error over images and whether the sign is the papers'.

    "open" is a difference of less than two errors.
    """
    difference = worse - better
    mean, error = float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))
    verdict = "open" if abs(mean) < 2 * error else "as in the paper" if mean > 0 else "opposite"
    return {"gain_in_nats": mean, "its_error": error, "sign": verdict}


def report(data, found, options):
    """Write what there is."""
    rows = {}
    for name, (nats, row) in found.items():
        mean, error = float(nats.mean()), float(nats.std() / math.sqrt(len(nats)))
        rows[name] = {f"minus_L_{options.draws}": mean, "its_error": error} | row
        if name in PAPER:
            rows[name]["paper_after_3280_epochs"] = PAPER[name]
    pairs = {
        f"{one} over {other}": gain(found[one][0], found[other][0])
        for one, other in EXPECTED
        if one in found and other in found
    }
    schedule = f"{options.start} steps on the ELBO, K = 1, and {options.steps} of every cell"
    if options.warmup:
        schedule += f"; weight of the KL from 0 to 1 over the first {options.warmup:.0%}"
    result = {
        "benchmark": "paper_tables",
        "machine": machine(1),
        "protocol": describe_protocol(data.protocol | {"source": options.data.name}),
        "training": f"from {options.learning_rate} along a cosine, then from a third of that; 20 "
        f"images a step, averaged weights, first {options.images} test images, one seed",
        "unit": "nats an image; errors over images, not over seeds",
        "schedules": kept_schedules()
        | {schedule: {"cells": rows, "gains_the_papers_expect": pairs}},
    }
    finish("paper_tables", result, digits=5)


def kept_schedules():
    """Return what earlier calls measured, by schedule."""
    kept = RESULTS / "paper_tables.json"
    return read_json(kept)["schedules"] if kept.exists() else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps every finished cell")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--start", type=int, default=8000, help="steps of the common first part")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--warmup", type=float, default=0.0)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    done(load(options.data, binarize="dynamic"), options.work, options)


if __name__ == "__main__":
    main()
