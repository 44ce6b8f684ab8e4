"""Training rows on disk against rows in memory: processor time a step, peak memory, same weights.

For each number of rows a fresh process trains the same model for the same steps, once with the
array in memory, once on disk in one file, once in shards. It prints processor seconds a step and
the peak resident memory of the process, and whether the weights are the same to the last bit.

    python benchmarks/rows_on_disk.py --rows 20000 200000 --steps 400
"""

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def measure(source, storage, steps, folder):
    import torch

    from kullback import vae
    from kullback.data import load

    torch.set_num_threads(1)
    start = time.process_time()
    data = load(source, storage=storage)
    read = time.process_time() - start
    marks = []
    small = vae.Architecture(network="mlp", hidden=(200, 200), latent=50)
    training = vae.Training(steps=steps, batch_size=128, precision="float32")
    watch = {"stop": lambda: marks.append(time.process_time()) or False}
    found = vae.train(data, architecture=small, training=training, folder=folder, **watch)
    quarters = np.array_split(np.diff(marks), 8)
    digest = hashlib.sha256()
    for tensor in found.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return {
        "read_seconds": read,
        "step_ms": 1e3 * statistics.median(float(np.mean(part)) for part in quarters),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "weights": digest.hexdigest(),
    }


def make(folder, rows, shards):
    generator = np.random.default_rng(0)
    whole = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (rows, 784))
    (folder / "shards").mkdir()
    for k, part in enumerate(np.array_split(np.arange(rows), shards)):
        block = generator.integers(0, 256, (len(part), 784), dtype=np.uint8)
        whole[part[0] : part[0] + len(part)] = block
        np.save(folder / "shards" / f"{k:04d}.npy", block)
    whole.flush()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        source, storage, folder = given.one
        print(json.dumps(measure(source, storage, given.steps, folder)))
        return
    found = []
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(folder, rows, 16)
            every = {"memory": [], "disk": [], "shards": []}
            for round_ in range(given.rounds):
                for kind, runs in every.items():
                    source = folder / ("shards" if kind == "shards" else "x.npy")
                    storage = "memory" if kind == "memory" else "disk"
                    storage = "auto" if kind == "shards" else storage
                    words = ["--one", str(source), storage, str(folder / f"{kind}{round_}")]
                    command = [sys.executable, __file__, "--steps", str(given.steps), *words]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    runs.append(json.loads(done.stdout.splitlines()[-1]))
            row = {"rows": rows, "megabytes": rows * 784 / 1e6}
            for kind, runs in every.items():
                for name_ in ("read_seconds", "step_ms", "peak_mb"):
                    row[f"{kind}_{name_}"] = round(statistics.median(r[name_] for r in runs), 3)
            row["same_weights"] = len({r["weights"] for runs in every.values() for r in runs}) == 1
            found.append(row)
            print(json.dumps(row, indent=1))
    if given.out:
        given.out.write_text(json.dumps({"steps": given.steps, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
