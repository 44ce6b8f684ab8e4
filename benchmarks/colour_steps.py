"""Training on colour pictures: milliseconds a step before and after, and bits a dimension by time.

    python benchmarks/colour_steps.py [--sizes 64 128] [--steps 2] [--data PICTURES]
                                      [--seconds 60] [--curve 500 1000 2000]

Before is the network that runs had while colour pictures got the default of small grey ones: `conv`
with five components and no neighbours, its likelihood in PyTorch (`KULLBACK_NATIVE=off`, in a
process of its own). After is today's default, whose likelihood gives each pixel four neighbours
too; without them it is measured beside. Steps of 128 images, one thread, CPU time, since the
machine may be shared; float32, and bfloat16 where the processor has AMX. All are then trained for
equal CPU seconds and measured
on the test part of `--data` (a folder or an .npz of colour pictures), by default 5,000 crops of
64x64 of the left two thirds of scikit-learn's two sample photographs and 400 of their right thirds.
The curve is of the embedded 8-bit images over the number of steps: what twice the steps gain.
Prints JSON and writes it to benchmarks/results/colour_steps.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import finish, machine

from kullback.data import load
from kullback.vae import Architecture, Training, build, evaluate, pick_precision
from kullback.vae.loop import fit, loss_terms
from kullback.vae.state import State

BEFORE = Architecture(network="conv", components=5, neighbours=0)
AFTER = Architecture()
WITHOUT_NEIGHBOURS = Architecture(neighbours=0)


def step_ms(architecture, size, precision, steps):
    """Return the CPU milliseconds of a step of 128 pictures, the least of some."""
    torch.manual_seed(0)
    model = build((3, size, size), "8-bit", architecture)
    settings = Training(steps=1)
    state = State.start(model, settings, precision=getattr(torch, precision))
    x = torch.randint(256, (128, 3, size, size)).float()
    times = []
    for _ in range(steps + 1):  # the first allocates
        start = time.process_time()
        loss, _ = loss_terms(model, x, torch.randn(1, len(x), model.prior.latent), settings)
        state.flat.differentiate(loss)
        state.optimiser.step()
        state.flat.refresh()
        times.append(1e3 * (time.process_time() - start))
    return min(times[1:])


def trained(data, architecture, settings):
    """Train with CPU time for a clock; return steps, CPU seconds and bits a dimension of 300."""
    torch.manual_seed(settings.seed)
    train = data.train[:2000].float()
    mean = train.mean(0)
    scale = float((train - mean).std())
    model = build(data.event_shape, data.kind, architecture, mean=mean, scale=scale)
    precision = pick_precision("auto", torch.device("cpu"))
    state = State.start(model, settings, precision=precision)
    start = time.process_time()
    for _ in fit(model, data, settings, state, clock=time.process_time):
        pass
    seconds = time.process_time() - start
    state.flat.release(model)
    figures = evaluate(model.eval(), data.test[:300], draws=20)
    bits = figures.bits_per_dim
    return {
        "steps": state.step,
        "cpu_seconds": seconds,
        "bits_per_dim": bits.value,
        "standard_error": bits.standard_error,
    }


def before(work):
    """Run a part of this file in a process that has no compiled likelihood."""
    command = [sys.executable, __file__, "--part", json.dumps(work)]
    environment = os.environ | {"KULLBACK_NATIVE": "off"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


def crops(path, side=64, train=5000, test=400):
    """Write an .npz of crops of two photographs: the left two thirds for training."""
    from sklearn.datasets import load_sample_images

    chance, photographs = np.random.default_rng(0), load_sample_images().images

    def cut(count, first, last):
        found = []
        for number in range(count):
            picture = photographs[number % len(photographs)]
            height, width = picture.shape[:2]
            row = chance.integers(height - side + 1)
            column = chance.integers(int(first * width), int(last * width) - side + 1)
            found.append(picture[row : row + side, column : column + side])
        return np.stack(found)

    np.savez(path, x_train=cut(train, 0, 2 / 3), x_test=cut(test, 2 / 3, 1))


def equal_seconds(source, seconds):
    """Train each model for so many CPU seconds and measure it on the test part of `source`."""
    data = load(source)
    settings = Training.usual(data.kind, data.event_shape, minutes=seconds / 60)
    return {
        "data": f"{len(data.train):,} + {len(data.test):,} of {list(data.event_shape)}",
        "before": before({"data": str(source), "seconds": seconds}),
        "without neighbours": trained(data, WITHOUT_NEIGHBOURS, settings),
        "after": trained(data, AFTER, settings),
    }


def part(work):
    """Do what `before` asks for."""
    if "size" in work:
        return step_ms(BEFORE, work["size"], work["precision"], work["steps"])
    settings = Training(minutes=work["seconds"] / 60)
    return trained(load(work["data"]), BEFORE, settings)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--curve", type=int, nargs="*", default=[500, 1000, 2000])
    parser.add_argument("--part", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part is not None:
        print(json.dumps(part(options.part)))
        return
    result = {"benchmark": "colour_steps", "machine": machine(1), "ms_a_step_of_128": {}}
    usual = str(pick_precision("auto", torch.device("cpu"))).removeprefix("torch.")
    for size in options.sizes:
        for precision in dict.fromkeys(["float32", usual]):
            old = before({"size": size, "precision": precision, "steps": options.steps})
            new = step_ms(AFTER, size, precision, options.steps)
            row = {"before": old, "after": new, "ratio": old / new}
            row["without neighbours"] = step_ms(WITHOUT_NEIGHBOURS, size, precision, options.steps)
            result["ms_a_step_of_128"][f"{size}x{size} {precision}"] = row
            finish("colour_steps", result, digits=4)
    with tempfile.TemporaryDirectory() as work:
        source = options.data or Path(work) / "crops.npz"
        if not options.data:
            crops(source)
        result["equal_seconds"] = equal_seconds(source, options.seconds)
    finish("colour_steps", result, digits=4)
    fashion = load("fashion")
    result["bits_by_steps"] = []
    for steps in options.curve:
        settings = Training.usual(fashion.kind, fashion.event_shape, steps=steps)
        result["bits_by_steps"].append(trained(fashion, AFTER, settings))
        finish("colour_steps", result, digits=4)


if __name__ == "__main__":
    main()
