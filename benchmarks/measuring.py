"""What the benchmarks share: interleaved bursts, the machine, the JSON they print."""

import json
import os
import platform
import re
import statistics
import sys
import time
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine(threads):
    """Describe where the figures were measured, and how busy the machine was."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", "unknown"),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def interleaved(bursts, rounds, clock=time.perf_counter):
    """Time every burst once a round, in turn; return seconds per call, a list for each name.

    Each round begins with another burst, since the first of a round meets the coldest caches.
    With `time.process_time`, of one thread, it is what they take on an idle machine.
    """
    times, names = {name: [] for name in bursts}, list(bursts)
    for burst in bursts.values():
        burst()  # warm up: allocations, caches, lazy imports
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            bursts[name]()
            times[name].append(clock() - start)
        sys.stderr.write(f"\rround {number + 1} of {rounds}")
    sys.stderr.write("\n")
    return times


def summary(times, per):
    """Return the median, best and worst decile of a list of times, divided by `per`, in ms."""
    ordered = sorted(times)
    return {
        "median_ms": 1e3 * statistics.median(ordered) / per,
        "best_ms": 1e3 * ordered[0] / per,
        "p90_ms": 1e3 * ordered[int(0.9 * (len(ordered) - 1))] / per,
    }


def paired_ratio(slow, fast):
    """Return the median over rounds of slow/fast: both met the same load."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def finish(name, result, *, digits=None):
    """Print the result as JSON and keep it beside the benchmark, what holds only numbers on a line.

    digits: significant ones that floats keep; None for all.
    """
    text = json.dumps(result if digits is None else shortened(result, digits), indent=2) + "\n"
    text = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: " ".join(found[0].split()), text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text)
    sys.stdout.write(text)


def shortened(x, digits):
    """Return the same with floats rounded to significant digits."""
    if isinstance(x, dict):
        return {name: shortened(each, digits) for name, each in x.items()}
    if isinstance(x, list | tuple):
        return [shortened(each, digits) for each in x]
    return float(f"{x:.{digits}g}") if isinstance(x, float) else x
