"""A step by 1, 2 and 4 processes against the cost model of docs/scale.md.

    python benchmarks/scale.py              # the cost of a step
    python benchmarks/scale.py --memory     # bytes a weight, with whole states and with slices
    python benchmarks/scale.py --memory --full-shard    # with slices of the weights too

Parts of a step are measured alone, in processor seconds: a step of one process with the share of
the batch that each of N would have, the noise of the rest of the batch, and one sum of the gradient
over N processes. Together they predict the processor seconds of a step by N processes, which is
then measured. Bytes on the loopback interface are compared with those of a ring all-reduce. Wall
time is not reported: N processes on fewer cores wait for each other. Prints JSON and writes it to
benchmarks/results/scale.json.

With `--memory` a deep model of 30.7 million weights is trained by 2 and 4 processes, each of which
reads its resident memory (less what it had before the model was made; Linux only): between steps,
the peak in a step, and the peak while a checkpoint is written. A small model was trained and saved
before, so that libraries are loaded. Writes benchmarks/results/scale_memory.json, with
`--full-shard` scale_memory_full.json.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import finish, machine

from kullback.core import processes
from kullback.data import load
from kullback.vae import Architecture, Training, build
from kullback.vae.loop import SharedStep, fit
from kullback.vae.state import State, checkpoint

SIZES = (1, 2, 4)
MODELS = {
    "perceptron": ("dynamic", {"network": "mlp", "hidden": (200, 200), "latent": 50}, 128, 300),
    "pictures": ("none", {}, 64, 30),
}


DEEP = {"layers": 4, "latent": 64}  # the preset's, with a wider or a narrower network
LARGE, TINY = (48, 48, 48, 6144), (8, 8, 8, 8)
ITEMS = 4  # a process and step: few, so that activations are small beside weights


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


def status(key):
    """Return a figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def peak_of(work):
    """Return the highest resident memory in some work, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return status("VmHWM")


def save(state, group):
    with tempfile.TemporaryDirectory() as folder:
        if group.first or state.flat.sharded:
            checkpoint.save(Path(folder), state)
    group.wait()


def memory_worker(*, shard, full, precision):
    """Print bytes a weight, and bytes and processor seconds of a step."""
    torch.set_num_threads(1)
    with processes.joined() as group:
        data = load("fashion", binarize="none")
        for hidden in (TINY, LARGE):
            gc.collect()
            before = status("VmRSS")
            torch.manual_seed(0)
            model = build(data.event_shape, data.kind, Architecture(hidden=hidden, **DEEP))
            settings = Training(steps=100, batch_size=ITEMS * group.size, precision="float32")
            over, dtype = group if shard or full else None, getattr(torch, precision)
            state = State.start(model, settings, precision=dtype, over=over, full=full)
            loop = fit(model, data, settings, state, shared=SharedStep(group))
            next(loop)
            next(loop)
            between, sent, used = status("VmRSS"), group.sent, time.process_time()
            group.wait()
            traffic = loopback()
            peak = peak_of(lambda loop=loop: (next(loop), next(loop)))
            used = (time.process_time() - used) / 2
            group.wait()
            traffic, sent = loopback() - traffic, group.sent - sent
            saving = peak_of(lambda state=state: save(state, group))
            weights = state.flat.numbers
            working = [] if full else [state.flat.working]
            tensors = [*working, state.flat.vector, state.flat.gradient]
            places = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in tensors}
            held = sum(one.nbytes() for one in places.values()) + 3 * state.flat.average.nbytes
            rounded = not (shard or full or precision == "float32")
            held += state.flat.working.nbytes if rounded else 0
            figures = [held, between - before, peak - before, saving - before, used * weights]
            every = torch.zeros(group.size, len(figures), dtype=torch.float64)
            every[group.rank] = torch.tensor(figures) / weights
            group.sum_(every)
            del loop, state, model, tensors, places
    if group.first:
        names = ("held", "between_steps", "peak_of_a_step", "peak_of_a_checkpoint")
        found = {"weights": weights, "processor_seconds": every[:, -1].mean().item()}
        found |= {f"{name}_first": every[0, k].item() for k, name in enumerate(names)}
        found |= {f"{name}_others": every[1:, k].max().item() for k, name in enumerate(names)}
        found["in_collectives"] = sent / 2 / weights
        found["loopback_a_process"] = traffic / 2 / weights / group.size
        sys.stdout.write("RESULT " + json.dumps(found) + "\n")


def memory_rows(kinds):
    rows = []
    for precision in ("float32", "bfloat16"):
        for size in (2, 4):
            for shard in kinds:
                given = ["--precision", precision, *([f"--{shard}"] if shard else [])]
                row = measured(size, "--memory", *given)
                rows.append({"processes": size, "shard": shard, "precision": precision, **row})
    return rows


def measured(size, *more):
    """Start `size` processes and return what the first one measured."""
    run = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    run += ["--nproc-per-node", str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *run, __file__, "--worker", *more]
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
    parser.add_argument("--memory", action="store_true", help="bytes a weight, whole and sharded")
    parser.add_argument("--shard", action="store_true", help="(given by this script)")
    parser.add_argument("--full-shard", action="store_true", help="weights in slices too")
    parser.add_argument("--precision", default="float32", help="(given by this script)")
    given = parser.parse_args()
    if given.worker and given.memory:
        memory_worker(shard=given.shard, full=given.full_shard, precision=given.precision)
        return
    if given.worker:
        worker()
        return
    if given.memory:
        name = "scale_memory_full" if given.full_shard else "scale_memory"
        kinds = ("full-shard",) if given.full_shard else ("", "shard")
        about = {"benchmark": name, "unit": "bytes a weight", "machine": machine(1)}
        finish(name, about | {"rows": memory_rows(kinds)}, digits=4)
        return
    rows = compared({size: measured(size) for size in SIZES})
    finish("scale", {"benchmark": "scale", "machine": machine(1), "rows": rows}, digits=4)


if __name__ == "__main__":
    main()
