"""A step with levels of 0 and 4 neighbours and of a context: milliseconds and page faults.

    python benchmarks/context_steps.py [--rounds 8]

Random 8-bit images of 28x28 grey and 64x64 in colour, float32, one thread; processor milliseconds
of a step, interleaved, with freed memory kept (as `train` keeps it) and given back. Prints JSON
and writes it to benchmarks/results/context_steps.json.
"""

import argparse
import resource
import statistics
import time

import torch
from measuring import finish, machine

from kullback.core import memory_kept
from kullback.data import load
from kullback.vae import Architecture, Training
from kullback.vae.loop import fit
from kullback.vae.run.new_model import fresh_model
from kullback.vae.state import State

SHAPES = {"28x28 grey": (1, 28, 28), "64x64 colour": (3, 64, 64)}
KINDS = {
    "0 neighbours": Architecture(neighbours=0),
    "4 neighbours": Architecture(neighbours=4),
    "context 16,16": Architecture(context=(16, 16)),
}


def steps_of(shape, architecture):
    """Return a loop whose `next` is a step."""
    generator = torch.Generator().manual_seed(0)
    data = load(torch.randint(256, (512, *shape), generator=generator, dtype=torch.uint8))
    usual = Training.usual(data.kind, data.event_shape, steps=10**6, precision="float32")
    model = fresh_model(data, architecture, 0, None)
    return fit(model, data, usual, State.start(model, usual, precision=torch.float32))


def measured(shape, rounds, *, kept):
    """Return processor milliseconds and page faults of a step, by kind."""
    loops = {name: steps_of(shape, kind) for name, kind in KINDS.items()}
    times = {name: [] for name in loops}
    faults = dict.fromkeys(loops, 0)
    with memory_kept(wanted=kept):
        for turn in range(rounds + 2):
            for name, loop in loops.items():
                start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF)
                next(loop)
                if turn > 1:
                    times[name].append(1e3 * (time.process_time() - start))
                    now = resource.getrusage(resource.RUSAGE_SELF)
                    faults[name] += now.ru_minflt - before.ru_minflt
    return {
        name: {"cpu_ms": statistics.median(each), "page_faults": faults[name] // rounds}
        for name, each in times.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {"benchmark": "context_steps", "machine": machine(1)}
    for name, shape in SHAPES.items():
        for words, kept in (("given back", False), ("kept", True)):
            result[f"{name}, memory {words}"] = measured(shape, options.rounds, kept=kept)
    finish("context_steps", result, digits=4)


if __name__ == "__main__":
    main()
