"""Every preset of `kullback train --preset`: evidence after the same time, and its step's cost.

    python benchmarks/presets.py --work DIR [--seconds 25] [--draws 100] [--images 500]
                                 [--only classic vamp] [--rounds 8]

MNIST with dynamic bits, one thread, float32, the same processor seconds of training for each; L_K
of the first test images, the difference to the default paired image by image (errors over images,
one seed). Then processor milliseconds of a step, in bursts that are interleaved with products of
1024 x 1024 matrices, over the floor: the operations of the step's own matrix products and
convolutions, forward and back, at the rate of those products. With --tighten two steps are told
apart: that of the ELBO, and that of the tightened end.

Evidence is kept in DIR, and a second call goes on with what is missing. Prints JSON and writes it
to benchmarks/results/presets.json. The data are not part of the package.
"""

import argparse
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from measuring import finish, interleaved, machine
from torch.utils.flop_counter import FlopCounterMode

from kullback.core import read_json, write_json
from kullback.data import describe_protocol, load
from kullback.vae import PRESETS
from kullback.vae.evidence import bounds
from kullback.vae.loop import fit, loss_terms
from kullback.vae.model import evaluating
from kullback.vae.run.new_model import fresh_model
from kullback.vae.state import State, load_tensors, save_tensors

DATA = Path(__file__).parents[2] / "shared" / "data" / "mnist" / "mnist.npz"
STEPS = 4  # of a burst


def settings_of(preset, data, **budget):
    """Return a preset's settings for the data, in float32, with a budget."""
    usual = preset.training_with(None, data.kind, data.event_shape)
    return replace(usual, precision="float32", **budget)


def evidence(name, data, options):
    """Train for the seconds and return L_K of every image and a row."""
    preset = PRESETS[name]
    settings = settings_of(preset, data, minutes=options.seconds / 60)
    model = fresh_model(data, preset.architecture_with(None), settings.seed, None)
    state = State.start(model, settings, precision=torch.float32)
    for _ in fit(model, data, settings, state, clock=time.process_time):
        pass
    start = time.process_time()
    with state.flat.averaged(), evaluating(model):
        generator = torch.Generator().manual_seed(0)
        x = data.test[: options.images]
        figures = bounds(model, x, draws=options.draws, generator=generator)
    row = {
        "steps": state.step,
        "elbo": float(figures.elbo.double().mean()),
        "rate": float(figures.rate.double().mean()),
        "cpu_ms_an_image_of_evaluation": 1e3 * (time.process_time() - start) / len(x),
    }
    return figures.importance_weighted.double(), row


def operations(model, data, settings, progress):
    """Return operations of the matrix products and convolutions of one step, forward and back."""
    x = data.batch(torch.arange(settings.batch_size), torch.Generator().manual_seed(0)).float()
    noise = torch.randn(settings.draws_at(progress), len(x), model.prior.latent)
    with FlopCounterMode(display=False) as counted:
        loss, _ = loss_terms(model, x, noise, settings, progress)
        loss.backward()
    return counted.get_total_flops()


def steps_of(name, data):
    """Return bursts of a preset's steps by name, and the operations of each."""
    preset, found = PRESETS[name], {}
    tightened = PRESETS[name].training.get("tighten", 0.0)
    kinds = {name: {"tighten": 0.0, "draws": 1} if tightened else {}}
    if tightened:
        kinds[f"{name}, end"] = {"tighten": 1.0}
    for kind, more in kinds.items():
        settings = settings_of(preset, data, steps=10**9, **more)
        model = fresh_model(data, preset.architecture_with(None), 0, None)
        count = operations(model, data, settings, 0.999)
        model.zero_grad(set_to_none=True)
        loop = fit(model, data, settings, State.start(model, settings, precision=torch.float32))

        def burst(loop=loop):
            for _ in range(STEPS):
                next(loop)

        found[kind] = burst, count
    return found


def products():
    """Return a burst of one matrix product, of 2 · 1024³ operations."""
    big = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(big)
    return lambda: torch.mm(big, big, out=out)


def step_costs(data, options):
    """Return processor milliseconds of every step and of its matrix products."""
    found = {kind: one for name in options.only for kind, one in steps_of(name, data).items()}
    bursts = {"products": products()} | {kind: burst for kind, (burst, _) in found.items()}
    times = interleaved(bursts, options.rounds, clock=time.process_time)
    rows = {}
    for kind, (_, count) in found.items():
        ratios = [
            (step / STEPS) / (product * count / (2 * 1024**3))
            for step, product in zip(times[kind], times["products"], strict=True)
        ]
        rows[kind] = {
            "cpu_ms_a_step": 1e3 * statistics.median(times[kind]) / STEPS,
            "mega_operations": count / 1e6,
            "floor_ms": 1e3 * statistics.median(times["products"]) * count / (2 * 1024**3),
            "over_the_floor": statistics.median(ratios),
        }
    return rows


def gain(ours, theirs):
    """Return the mean difference and its error over images."""
    difference = ours - theirs
    error = float(difference.std() / math.sqrt(len(difference)))
    return {"over_the_default": float(difference.mean()), "error_of_that": error}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps every finished preset")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seconds", type=float, default=25.0, help="of the processor, a preset")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", nargs="+", default=list(PRESETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    data = load(options.data, binarize="dynamic")
    result = {
        "benchmark": "presets",
        "machine": machine(1),
        "protocol": describe_protocol(data.protocol | {"source": options.data.name}),
        "training": f"{options.seconds:g} processor seconds, one thread, float32, one seed",
        "unit": f"nats an image, L_{options.draws} of the first {options.images} test images; "
        "errors over images",
        "step": step_costs(data, options) if options.rounds else {},
        "presets": {},
    }
    first = None
    for name in options.only:
        kept = options.work / f"{name}-{options.seconds:g}.safetensors"
        beside = kept.with_suffix(".json")
        if not beside.exists():
            sys.stderr.write(f"{name}\n")
            nats, row = evidence(name, data, options)
            save_tensors(kept, {"nats": nats})
            write_json(beside, row)
        nats = load_tensors(kept)["nats"]
        first = nats if first is None else first
        row = {f"L_{options.draws}": float(nats.mean())} | read_json(beside)
        result["presets"][name] = row | gain(nats, first)
        finish("presets", result, digits=5)


if __name__ == "__main__":
    main()
