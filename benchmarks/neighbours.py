"""What the pixels before one bring: bits a dimension of held-out images, by neighbours or context.

    python benchmarks/neighbours.py [--data fashion …] [--steps 1500] [--seeds 0 1 2]
                                    [--neighbours 0 1 2 3 4] [--held 500] [--binarize dynamic]
                                    [--context 16,16 …] [--tighten 0.4] [--batch 128]
                                    [--device cuda] [--draws 20]

Every data set is one that `kullback train` takes. A tenth of its training images is held out and
all is measured on those: the test images are not touched. Same steps, one thread; differences to
the first row are paired image by image, their standard errors are over images. Prints JSON and
adds the sets to benchmarks/results/neighbours.json.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from measuring import RESULTS, finish, machine

from kullback.core import read_json
from kullback.data import load
from kullback.vae import Architecture, Training, pick_precision
from kullback.vae.evidence import bounds
from kullback.vae.loop import fit, hold_out
from kullback.vae.model import evaluating
from kullback.vae.run.new_model import fresh_model
from kullback.vae.state import State


def measured(rest, held, architecture, options, seed):
    """Train and measure: L_K of each held-out image, and the row of the table."""
    given = {"batch_size": options.batch} if options.batch else {}
    given |= {"tighten": options.tighten, "draws": 4} if options.tighten else {}
    settings = Training.usual(rest.kind, rest.event_shape, steps=options.steps, seed=seed, **given)
    device = torch.device(options.device)
    model = fresh_model(rest, architecture, seed, None).to(device)
    rest, held = rest.to(device), held.to(device).float()
    precision = pick_precision("auto", device)
    state = State.start(model, settings, precision=precision)
    start = time.process_time()
    for _ in fit(model, rest, settings, state):
        pass
    ms = 1e3 * (time.process_time() - start) / options.steps
    with state.flat.averaged(), evaluating(model):
        generator = torch.Generator(device).manual_seed(0)
        figures = bounds(model, held, draws=options.draws, generator=generator)
    nats = figures.importance_weighted.double().cpu()
    unit = held[0].numel() * math.log(2)
    return nats, {
        "bits_per_dim": -float(nats.mean()) / unit,
        "nats": float(nats.mean()),
        "rate": float(figures.rate.mean()),
        "cpu_ms_a_step": ms,
        "batch": settings.batch_size,
        "trained_in": str(precision).removeprefix("torch."),
    }


def compared(data, options, seed):
    """Return the rows of one data set and seed, each with its paired gain over none."""
    rest, held = hold_out(data, 0.1, seed=0)
    held, rows, first = held[: options.held], {}, None
    kinds = {str(n): Architecture(neighbours=n) for n in options.neighbours}
    for text in options.context:
        widths = tuple(int(part) for part in text.split(","))
        kinds[f"context {text}"] = Architecture(context=widths)
    for name, architecture in kinds.items():
        nats, row = measured(rest, held, architecture, options, seed)
        first = nats if first is None else first
        gain = nats - first
        row["gain_in_nats"] = float(gain.mean())
        row["its_error"] = float(gain.std() / math.sqrt(len(gain)))
        rows[name] = row
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", default=["fashion"])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--context", nargs="+", default=[])
    parser.add_argument("--tighten", type=float, default=0.0, help="with 4 draws")
    parser.add_argument("--batch", type=int, default=0, help="images a step (default: the usual)")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--held", type=int, default=500)
    parser.add_argument("--binarize", default="none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = RESULTS / "neighbours.json"
    found = read_json(kept) if kept.exists() else {}
    before = found.get("sets", {})
    for rows in before.values():  # sets measured while a file had one list of options
        if "options" in found:
            rows.setdefault("options", found["options"])
    result = {"benchmark": "neighbours", "machine": machine(1), "sets": before}
    more = f", {options.steps:,} steps on {options.device}" if options.context else ""
    for source in options.data:
        data = load(source, binarize=options.binarize)
        images = f"{len(data.train):,} of {list(data.event_shape)}"
        name = f"{data.kind}, {images}, {Path(source).name}{more}"
        rows = result["sets"].setdefault(name, {})
        rows.setdefault("options", vars(options))
        for seed in options.seeds:
            rows[f"seed {seed}"] = compared(data, options, seed)
            finish("neighbours", result, digits=5)


if __name__ == "__main__":
    main()
