"""A step by 1, 2 and 4 processes against the cost model of docs/scale.md.

    python benchmarks/scale.py

Parts of a step are measured alone, in processor seconds: a step of one process with the share of
the batch that each of N would have, the noise of the rest of the batch, and one sum of the gradient
over N processes. Together they predict the processor seconds of a step by N processes, which is
then measured. Bytes on the loopback interface are compared with those of a ring all-reduce. Wall
time is not reported: N processes on fewer cores wait for each other. Prints JSON and writes it to
benchmarks/results/scale.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from measuring import finish, machine

from kullback.core import processes
from kullback.data import load
from kullback.vae import Architecture, Training, build
from kullback.vae.checkpoint import State
from kullback.vae.loop import SharedStep, fit

SIZES = (1, 2, 4)
MODELS = {
    "perceptron": ("dynamic", {"network": "mlp", "hidden": (200, 200), "latent": 50}, 128, 300),
    "pictures": ("none", {}, 64, 30),
}


def parts(name):
    """Return data, architecture, the batch and how many steps are timed."""
    binarize, architecture, batch, steps = MODELS[name]
    return load("fashion", binarize=binarize), Architecture(**architecture), batch, steps


def made(data, architecture, batch, steps):
    torch.manual_seed(0)
    model = build(data.event_shape, data.kind, architecture)
    settings = Training(steps=steps, batch_size=batch, precision="float32")
    return model, settings, State.start(model, settings)


def seconds_of(work, count):
    """Return processor seconds of one of `count` calls: the median of five rounds."""
    work()
    rounds = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(max(1, count // 5)):
            work()
        rounds.append((time.process_time() - start) / max(1, count // 5))
    return statistics.median(rounds)


def step_seconds(data, architecture, batch, steps, group=None):
    model, settings, state = made(data, architecture, batch, 2 * steps + 10)
    loop = fit(model, data, settings, state, shared=group and SharedStep(group))
    return seconds_of(lambda: next(loop), steps), state.flat.vector.numel()


def draw_seconds(data, architecture, batch, steps):
    """Processor seconds of drawing the noise, and the bits where they are drawn, of one item."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.arange(batch)

    def draw():
        if data.dynamic:
            data.batch(indices, generator)
        torch.randn(1, batch, architecture.latent, generator=generator)

    return seconds_of(draw, 4 * steps) / batch


def loopback():
    """Bytes sent on the loopback interface since the machine started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split()[9])
    return 0


def worker():
    """What each process measures; the first one prints it."""
    torch.set_num_threads(1)
    found = {}
    with processes.joined() as group:
        for name in MODELS:
            data, architecture, batch, steps = parts(name)
            sums = None
            alone = {}
            if group.size == 1:
                for size in SIZES:
                    alone[size], _ = step_seconds(data, architecture, batch // size, steps)
            group.wait()
            calls, sent, sent_lo = group.calls, group.sent, loopback()
            own, weights = step_seconds(data, architecture, batch, steps, group)
            taken = 1 + 5 * (steps // 5)
            group.wait()
            traffic = (loopback() - sent_lo) / taken
            calls, sent = group.calls - calls, group.sent - sent
            if group.size > 1:
                calls, sent = (calls - 1) / taken, (sent - 4) / taken  # without the wait
                buffer = torch.zeros(weights + 5)
                sums = seconds_of(lambda buffer=buffer: group.sum_(buffer), steps)
            every = torch.zeros(group.size, 2, dtype=torch.float64)
            every[group.rank] = torch.tensor([own, sums or 0.0])
            group.sum_(every)
            found[name] = {
                "batch": batch,
                "weights": weights,
                "step": every[:, 0].mean().item(),
                "sum": every[:, 1].mean().item(),
                "draw_an_item": draw_seconds(data, architecture, batch, steps),
                "alone": alone,
                "collectives_a_step": calls,
                "bytes_in_collectives_a_step": sent,
                "loopback_bytes_a_step": traffic,
            }
            group.wait()
    if group.first:
        sys.stdout.write("RESULT " + json.dumps(found) + "\n")


def measured(size):
    """Start `size` processes and return what the first one measured."""
    run = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    run += ["--nproc-per-node", str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *run, __file__, "--worker"]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    lines = [line for line in out.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(out.stderr)
    return json.loads(lines[0].removeprefix("RESULT "))


def compared(by_size):
    """Return a row for every model and N: predicted and measured, processor seconds and bytes."""
    rows = []
    for name in MODELS:
        one = by_size[1][name]
        for size in SIZES:
            found = by_size[size][name]
            rest = one["batch"] * (1 - 1 / size)
            predicted = one["alone"][str(size)] + rest * one["draw_an_item"] + found["sum"]
            payload = 4 * (found["weights"] + 5) * (size > 1)
            rows.append(
                {
                    "model": name,
                    "processes": size,
                    "batch": found["batch"],
                    "weights": found["weights"],
                    "share_alone_ms": 1e3 * one["alone"][str(size)],
                    "noise_of_others_ms": 1e3 * rest * one["draw_an_item"],
                    "sum_ms": 1e3 * found["sum"],
                    "predicted_ms": 1e3 * predicted,
                    "measured_ms": 1e3 * found["step"],
                    "measured_over_predicted": found["step"] / predicted,
                    "collectives_a_step": found["collectives_a_step"],
                    "bytes_in_collectives_a_step": found["bytes_in_collectives_a_step"],
                    "payload_bytes": payload,
                    "ring_bytes_of_all": 2 * (size - 1) * payload,
                    "loopback_bytes_a_step": found["loopback_bytes_a_step"],
                }
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", action="store_true", help="(started by this script)")
    if parser.parse_args().worker:
        worker()
        return
    rows = compared({size: measured(size) for size in SIZES})
    finish("scale", {"benchmark": "scale", "machine": machine(1), "rows": rows}, digits=4)


if __name__ == "__main__":
    main()
