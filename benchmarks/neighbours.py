"""What a pixel's neighbours bring: bits a dimension of held-out images, with 0 to 4 of them.

    python benchmarks/neighbours.py [--data fashion …] [--steps 1500] [--seeds 0 1 2]
                                    [--neighbours 0 1 2 3 4] [--held 500] [--binarize dynamic]

Every data set is one that `kullback train` takes. A tenth of its training images is held out and
all is measured on those: the test images are not touched. Same steps, one thread; differences to
no neighbours are paired image by image, their standard errors are over images. Prints JSON and
writes it to benchmarks/results/neighbours.json.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from measuring import finish, machine

from kullback.data import load
from kullback.vae import Architecture, Training, pick_precision
from kullback.vae.evidence import bounds
from kullback.vae.loop import State, fit, hold_out
from kullback.vae.model import evaluating
from kullback.vae.run import _fresh_model

DRAWS = 20


def measured(rest, held, neighbours, steps, seed):
    """Train and measure: L_K of each held-out image, and the row of the table."""
    settings = Training.usual(rest.kind, rest.event_shape, steps=steps, seed=seed)
    model = _fresh_model(rest, Architecture(neighbours=neighbours), seed, None)
    precision = pick_precision("auto", torch.device("cpu"))
    state = State.start(model, settings, precision=precision)
    start = time.process_time()
    for _ in fit(model, rest, settings, state):
        pass
    ms = 1e3 * (time.process_time() - start) / steps
    with state.flat.averaged(), evaluating(model):
        generator = torch.Generator().manual_seed(0)
        figures = bounds(model, held, draws=DRAWS, generator=generator)
    nats = figures.importance_weighted.double()
    unit = held[0].numel() * math.log(2)
    return nats, {
        "bits_per_dim": -float(nats.mean()) / unit,
        "nats": float(nats.mean()),
        "rate": float(figures.rate.mean()),
        "cpu_ms_a_step": ms,
    }


def compared(data, options, seed):
    """Return the rows of one data set and seed, each with its paired gain over none."""
    rest, held = hold_out(data, 0.1, seed=0)
    held, rows, first = held[: options.held], {}, None
    for neighbours in options.neighbours:
        nats, row = measured(rest, held, neighbours, options.steps, seed)
        first = nats if first is None else first
        gain = nats - first
        row["gain_in_nats"] = float(gain.mean())
        row["its_error"] = float(gain.std() / math.sqrt(len(gain)))
        rows[str(neighbours)] = row
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", default=["fashion"])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--held", type=int, default=500)
    parser.add_argument("--binarize", default="none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "benchmark": "neighbours",
        "machine": machine(1),
        "options": vars(options),
        "sets": {},
    }
    for source in options.data:
        data = load(source, binarize=options.binarize)
        name = f"{data.kind}, {len(data.train):,} of {list(data.event_shape)}, {Path(source).name}"
        rows = result["sets"].setdefault(name, {})
        for seed in options.seeds:
            rows[f"seed {seed}"] = compared(data, options, seed)
            finish("neighbours", result, digits=5)


if __name__ == "__main__":
    main()
