"""Training rows on disk against rows in memory: processor time a step, peak memory, same weights.

The classic network (784-200-200-50, bits, batches of 128) trains on the same rows in memory, on
disk in one file, and on disk in 16 shards: three runs in one process, in interleaved bursts of 20
steps, with one thread. Its step is the cheapest here, so a batch read from disk weighs most in it.
Peak memory is that of a fresh process that reads the data and 300 batches (VmHWM of Linux).

    python benchmarks/rows_on_disk.py --rows 20000 200000 800000
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from kullback import vae
from kullback.data import load
from kullback.vae.loop import batches, fit
from kullback.vae.run.new_model import fresh_model
from kullback.vae.state import State

KINDS = {"memory": ("x.npy", "memory"), "disk": ("x.npy", "disk"), "shards": ("shards", "auto")}
BURST = 20
CLASSIC = vae.Architecture(network="mlp", hidden=(200, 200), latent=50, activation="tanh")


def make(folder, rows, shards=16):
    generator = np.random.default_rng(0)
    whole = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (rows, 784))
    (folder / "shards").mkdir()
    for k, part in enumerate(np.array_split(np.arange(rows), shards)):
        block = generator.integers(0, 2, (len(part), 784), dtype=np.uint8)
        whole[part[0] : part[0] + len(part)] = block
        np.save(folder / "shards" / f"{k:04d}.npy", block)
    whole.flush()


def settings_of(steps):
    return vae.Training(steps=steps, batch_size=128, precision="float32")


def steps_of(folder, bursts):
    """Return milliseconds of processor time a step for each kind, burst by burst."""
    torch.set_num_threads(1)
    settings, runs, spent = settings_of(10**6), {}, {kind: [] for kind in KINDS}
    for kind, (name, storage) in KINDS.items():
        data = load(folder / name, storage=storage)
        model = fresh_model(data, CLASSIC, 0, None)
        state = State.start(model, settings)
        runs[kind] = fit(model, data, settings, state), state
    for burst in range(bursts + 1):
        for kind, (run, _) in runs.items():
            start = time.process_time()
            for _ in range(BURST):
                next(run)
            if burst:  # the first one warms up
                spent[kind].append(1e3 * (time.process_time() - start) / BURST)
    vectors = [state.flat.vector for _, state in runs.values()]
    return spent, all(torch.equal(vectors[0], one) for one in vectors[1:])


def peak(source, storage):
    """Return seconds of processor time to read the data, and the process's peak memory."""
    start = time.process_time()
    data = load(source, storage=storage)
    read, settings = time.process_time() - start, settings_of(300)
    state = State.start(fresh_model(data, CLASSIC, 0, None), settings)
    for _, indices in zip(range(300), batches(data, settings, state), strict=False):
        data.batch(indices, state.generator)
    return {"read": read, "peak": high_water()}


def high_water():
    """Return the process's peak resident memory in MB; ru_maxrss would be its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(one.split()[1]) for one in lines if one.startswith("VmHWM")) / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000, 800_000])
    parser.add_argument("--bursts", type=int, default=12)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        print(json.dumps(peak(*given.peak)))
        return
    found = []
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(folder, rows)
            spent, same = steps_of(folder, given.bursts)
            row = {"rows": rows, "data_mb": round(rows * 784 / 1e6), "same_weights": same}
            for kind, (file, storage) in KINDS.items():
                command = [sys.executable, __file__, "--peak", str(folder / file), storage]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                more = json.loads(done.stdout.splitlines()[-1])
                row[f"{kind}_step_ms"] = round(min(spent[kind]), 3)
                row[f"{kind}_read_cpu_seconds"] = round(more["read"], 2)
                row[f"{kind}_peak_mb"] = round(more["peak"])
            for kind in ("disk", "shards"):
                pairs = zip(spent[kind], spent["memory"], strict=True)
                row[f"{kind}_over_memory"] = round(statistics.median(a / b for a, b in pairs), 3)
            found.append(row)
            print(json.dumps(row, indent=1), flush=True)
            if given.out:
                given.out.write_text(json.dumps({"threads": 1, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
