"""Entropy, KL and JS of wide probability tables against SciPy and torch.distributions, as JSON.

Run: python benchmarks/tables.py [--rows 4096] [--outcomes 50000] [--repeats 3] [--threads N]

Every contender gets the same float32 probabilities in the same process, one after the other in each
round; a time is the best of the rounds. `temporary_ratio` is how far the process's peak memory rose
above what it held before the call, divided by the size of one input (Linux only; null elsewhere).
`error` is the largest absolute difference from float64 on the first rows. infomeasure estimates
from sequences of symbols and takes no tables, so it cannot run here.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import scipy
import scipy.spatial.distance
import scipy.stats
import torch
from torch.distributions import Categorical, kl_divergence

from kullback.exact import tables

CHECKED_ROWS = 8


def torch_js(p, q):
    mixture = Categorical((p + q) / 2)
    return (kl_divergence(Categorical(p), mixture) + kl_divergence(Categorical(q), mixture)) / 2


CONTENDERS = {
    "entropy": {
        "kullback": lambda p, q: tables.entropy(p),
        "scipy": lambda p, q: torch.from_numpy(scipy.stats.entropy(p.numpy(), axis=-1)),
        "torch": lambda p, q: Categorical(p).entropy(),
        "torch, unchecked": lambda p, q: Categorical(p, validate_args=False).entropy(),
    },
    "kl": {
        "kullback": lambda p, q: tables.kl(p, q),
        "scipy": lambda p, q: torch.from_numpy(scipy.stats.entropy(p.numpy(), q.numpy(), axis=-1)),
        "torch": lambda p, q: kl_divergence(Categorical(p), Categorical(q)),
    },
    "js": {
        "kullback": lambda p, q: tables.js(p, q),
        "scipy": lambda p, q: torch.from_numpy(
            scipy.spatial.distance.jensenshannon(p.numpy(), q.numpy(), axis=-1) ** 2
        ),
        "torch": torch_js,
    },
}


def random_table(rows, outcomes, seed):
    """Softmax of normal logits, made in place: nothing but the table is ever held."""
    table = torch.empty(rows, outcomes).normal_(generator=torch.Generator().manual_seed(seed))
    for block in table.split(64):
        block.copy_(block.mul_(2).softmax(-1))
    return table


def memory(field):
    """Read VmRSS or VmHWM in bytes, or None where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measured(function, p, q):
    """Return the value, the seconds, and the rise of peak memory over one input's size."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    held = memory("VmRSS")
    start = time.perf_counter()
    value = function(p, q)
    seconds = time.perf_counter() - start
    peak = memory("VmHWM")
    size = p.numel() * p.element_size()
    return value, seconds, None if held is None else (peak - held) / size


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 4096), ("outcomes", 50_000), ("repeats", 3), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    p, q = (random_table(options.rows, options.outcomes, seed) for seed in (0, 1))
    head = p[:CHECKED_ROWS].double(), q[:CHECKED_ROWS].double()
    results = {}
    for quantity, contenders in CONTENDERS.items():
        exact = contenders["kullback"](*head)
        results[quantity] = {name: {"seconds": float("inf")} for name in contenders}
        for _ in range(options.repeats):
            for name, function in contenders.items():
                value, seconds, rise = measured(function, p, q)
                error = (value[:CHECKED_ROWS].double() - exact).abs().max().item()
                if seconds < results[quantity][name]["seconds"]:
                    row = {"seconds": seconds, "temporary_ratio": rise, "error": error}
                    results[quantity][name] = row
    print(
        json.dumps(
            {
                "benchmark": "tables",
                "shape": [options.rows, options.outcomes],
                "dtype": "float32",
                "repeats": options.repeats,
                "threads": torch.get_num_threads(),
                "versions": {"torch": torch.__version__, "scipy": scipy.__version__},
                "machine": platform.machine(),
                "results": results,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
