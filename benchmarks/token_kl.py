"""Exact KL over a large vocabulary, from logits: speed, memory and precision beside PyTorch.

    python benchmarks/token_kl.py [--vocab 151936] [--rounds 7] [--threads 2]

The peer is what everybody writes, `log_softmax` twice and `F.kl_div`, in the dtype of the logits.
`grid`: every dtype, kind of −inf and number of positions, forward and with the gradient to q, in
turn with the peer, once in a process whose C allocator keeps its memory (the peer "warm") and once
in one that gives it back (the peer "cold", which pays page faults). Beside the times stand pairs of
logits a second, the share of reading speed (a sum over a tensor beyond the caches) and the multiple
of the larger of two floors: bytes that must move over the reading speed, and exponentials (two a
pair and pass) over the rate of `torch.exp` in cache, both measured in the same process. With
`--threads 1` all times are processor time, which other work on the machine hardly moves. Memory is
the peak of resident memory above the inputs, each in a process of its own. Prints JSON and writes
it to benchmarks/results/token_kl.json; `--only grid` (memory, precision, first_call) does one part
again and keeps the others. `--only curves` measures cost against V and T instead, for
docs/token_kl.md, and writes benchmarks/results/token_kl_curves.json.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from measuring import RESULTS, finish, interleaved, machine, paired_ratio
from torch.nn import functional as F

from kullback import tokens

MIB = 2**20
PEER = "log_softmax + F.kl_div"
PARTS = ("grid", "memory", "precision", "first_call", "curves", "memory-of", "grid-of")
DISTANCES = (4.2e-4, 1.3e-3, 4.2e-3, 0.013, 0.042, 0.13, 0.42, 1.4, 3.0, 6.0)  # KL 1e-7 to 10


def logits(rows, vocab, distance=0.5, seed=0):
    """Peaked, as a language model's: normal with standard deviation 3, and a second one near."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(rows, vocab, generator=generator).mul_(3)
    return p, torch.randn(rows, vocab, generator=generator).mul_(distance).add_(p)


def peer(p, q):
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def ours(backend):
    return lambda p, q: tokens.kl(p, q, backend=backend)


def methods():
    refusals = tokens.usable(torch.zeros(1, 2), torch.zeros(1, 2))
    names = [name for name in ("native", "chunked") if not refusals[name]]
    return {name: ours(name) for name in names} | {PEER: peer}


def forward(method, p, q):
    def burst():
        with torch.no_grad():
            method(p, q)

    return burst


def both_ways(method, p, q):
    """The gradient of the sum, to q: a student's, with p the teacher."""
    q = q.detach().requires_grad_()

    def burst():
        q.grad = None
        method(p, q).sum().backward()

    return burst


def copying(p):
    target = torch.empty_like(p)
    return lambda: target.copy_(p)


def infinities(kind, p, q):
    """Both logits with −inf where `kind` says."""
    generator = torch.Generator().manual_seed(2)
    vocab = p.shape[-1]
    banned = torch.zeros(vocab, dtype=torch.bool)
    if kind == "last 64":
        banned[-64:] = True
    if kind in ("scattered", "scattered, p only"):
        banned = torch.rand(vocab, generator=generator) < 0.01
    if kind in ("all but 100", "all but 100, p only"):
        banned = ~banned
        banned[torch.randperm(vocab, generator=generator)[:100]] = False
    own = torch.zeros_like(banned) if kind.endswith("p only") else banned
    return p.masked_fill(banned, -math.inf), q.masked_fill(own, -math.inf)


INFINITIES = (
    "none",
    "last 64",
    "scattered",
    "all but 100",
    "scattered, p only",
    "all but 100, p only",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ROWS = (1, 4, 16, 64)
CELL_SECONDS = 1.0  # of the grid's 192 cells, fewer rounds in each rather than more: six minutes
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**35)}


def clock_of(threads):
    """Processor time of one thread, which other work on the machine hardly moves; else elapsed."""
    return time.process_time if threads == 1 else time.perf_counter


def speeds(rounds, clock):
    """Bytes read a second, in a sum beyond the caches, and exponentials a second, in cache."""
    beyond, inside = torch.ones(2**27), torch.linspace(-20, 0, 2**16)
    out = torch.empty_like(inside)
    times = interleaved(
        {"read": beyond.sum, "exp": lambda: [torch.exp(inside, out=out) for _ in range(50)]},
        rounds,
        clock,
    )
    read, exp = (min(times[name]) for name in ("read", "exp"))
    return {"bytes_per_s": 4 * beyond.numel() / read, "exps_per_s": 50 * inside.numel() / exp}


def cell(p, q, rounds, limits, clock):
    """Times of ours and of the peer, forward and with the gradient to q, and what they come to."""
    bursts = {}
    for name, method in (("ours", ours("auto")), ("peer", peer)):
        bursts[f"forward: {name}"] = forward(method, p, q)
        bursts[f"both ways: {name}"] = both_ways(method, p, q)
    start = time.perf_counter()
    times = interleaved(bursts, 1, clock)
    each = (time.perf_counter() - start) / 2  # it warms up by one round more
    more = interleaved(bursts, max(1, min(rounds - 1, int(CELL_SECONDS / each))), clock)
    times = {name: times[name] + more[name] for name in bursts}
    with torch.no_grad():
        truth = tokens.kl(p[:4].double(), q[:4].double(), backend="reference")
        error = ((peer(p[:4], q[:4]).double() - truth).abs() / truth).max().item()
        own = ((tokens.kl(p[:4], q[:4]).double() - truth).abs() / truth).max().item()
    result = {"relative_error": own, "peer_relative_error": error}
    side = p.numel() * p.element_size()
    for way, sides, exps in (("forward", 2, 2), ("both ways", 5, 4)):
        mine, others = times[f"{way}: ours"], times[f"{way}: peer"]
        best = min(mine)
        floors = sides * side / limits["bytes_per_s"], exps * p.numel() / limits["exps_per_s"]
        result[way] = {
            "best_ms": 1e3 * best,
            "median_ms": 1e3 * statistics.median(mine),
            "pairs_per_s": p.numel() / best,
            "share_of_reading": floors[0] / best,
            "over_floor": best / max(floors),
            "peer_best_ms": 1e3 * min(others),
            "peer_over_it": min(others) / best,
            "median_peer_over_it": paired_ratio(others, mine),
        }
    return result


def functions(rows, vocab, rounds, clock):
    """Pairs a second of the other functions, of a temperature and of rows with strides."""
    p, q = logits(rows, vocab)
    wide_p, wide_q = (torch.cat([x, x], -1)[:, :vocab] for x in (p, q))
    one = q[0].contiguous()
    ids = torch.arange(rows)
    calls = {
        "kl": lambda: tokens.kl(p, q),
        "kl, temperature 0.7": lambda: tokens.kl(p, q, temperature=0.7),
        "kl, rows apart": lambda: tokens.kl(wide_p, wide_q),
        "kl, one q for all": lambda: tokens.kl(p, one),
        "kl, bfloat16 and float32": lambda: tokens.kl(half, q),
        "jeffreys": lambda: tokens.jeffreys(p, q),
        "js": lambda: tokens.js(p, q),
        "js, weight 0.1": lambda: tokens.js(p, q, beta=0.1),
        "cross_entropy": lambda: tokens.cross_entropy(p, q),
        "compare": lambda: tokens.compare(p, q, ids=ids),
        "entropy": lambda: tokens.entropy(p),
        "log_prob": lambda: tokens.log_prob(p, ids),
    }
    half = p.bfloat16()
    with torch.no_grad():
        times = interleaved(calls, rounds, clock)
    return {name: {"pairs_per_s": p.numel() / min(found)} for name, found in times.items()}


def grid_of(options):
    """Every cell in this process, whose allocator is what the environment makes it."""
    torch.set_num_threads(options.threads)
    clock = clock_of(options.threads)
    limits = speeds(options.rounds, clock)
    result = {"machine": machine(options.threads), "clock": clock.__name__, **limits, "cells": {}}
    for kind in INFINITIES:
        pair = infinities(kind, *logits(max(ROWS), options.vocab))
        for dtype in DTYPES:
            p, q = (x.to(dtype) for x in pair)
            for rows in ROWS:
                name = f"{str(dtype).removeprefix('torch.')}, {kind}, T = {rows}"
                rounds = options.rounds * (4 if rows < 16 else 1)
                result["cells"][name] = cell(p[:rows], q[:rows], rounds, limits, clock)
    result["functions"] = functions(max(ROWS), options.vocab, options.rounds, clock)
    result["end"] = speeds(options.rounds, clock)
    return result


def grid(options):
    """The grid with an allocator that keeps its memory, and with the C library's own."""
    result = {}
    for name, environment in (("warm", KEPT), ("cold", {})):
        command = [sys.executable, __file__, "--only", "grid-of", "--vocab", str(options.vocab)]
        command += ["--rounds", str(options.rounds), "--threads", str(options.threads)]
        kept = {k: v for k, v in os.environ.items() if k not in KEPT} | environment
        done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        result[name] = json.loads(done.stdout)
        print_grid(name, result[name])
    return result


def print_grid(name, result):
    """One line a cell: G pairs/s, share of reading, multiple of the floor, peer over ours."""
    write = sys.stderr.write
    write(f"\n{name}: reading {result['bytes_per_s'] / 1e9:.1f} GB/s, ")
    write(f"torch.exp {result['exps_per_s'] / 1e9:.2f} G/s\n")
    for cell_name, ways in result["cells"].items():
        line = [f"{cell_name:<40}"]
        for way in ("forward", "both ways"):
            c = ways[way]
            line.append(
                f"{c['pairs_per_s'] / 1e9:5.2f} G/s  {c['share_of_reading']:.2f} of reading  "
                f"{c['over_floor']:.2f} floors  peer {c['peer_over_it']:6.1f}x"
            )
        write(" | ".join(line) + "\n")
    for function, c in result["functions"].items():
        write(f"{function:<40}{c['pairs_per_s'] / 1e9:5.2f} G/s\n")


def resident():
    """Resident memory of this process, in bytes."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def memory_of(way, name, rows, vocab):
    """Run it once, here and now, watching resident memory: the peak above the inputs, in MiB."""
    p, q = logits(rows, vocab)
    prepare = {"forward": forward, "both ways": both_ways}[way]
    prepare(methods()[name], *logits(2, 1000))()  # libraries loaded, threads started
    burst = prepare(methods()[name], p, q)
    start, most, done = resident(), [0], threading.Event()

    def watch():
        while not done.is_set():
            most[0] = max(most[0], resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    burst()
    done.set()
    watcher.join()
    gradient = 0 if way == "forward" else p.numel() * p.element_size()
    return {
        "above_inputs_mib": (most[0] - start) / MIB,
        "above_inputs_and_gradient_mib": (most[0] - start - gradient) / MIB,
    }


def memory(options):
    """Figures 1 and 2, memory: every method in a process of its own."""
    result = {}
    for way in ("forward", "both ways"):
        for name in methods():
            command = [sys.executable, __file__, "--only", "memory-of", "--way", way]
            command += ["--method", name, "--rows", str(options.rows)]
            command += ["--vocab", str(options.vocab), "--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            result[f"{way}: {name}"] = json.loads(done.stdout)
    return result


def precision(vocab=200_000, rows=4):
    """Figure 5: errors against float64 on the same numbers, for KL from 1e-7 to 10."""
    table = []
    for dtype in (torch.float32, torch.bfloat16):
        for distance in DISTANCES:
            p, q = (x.to(dtype) for x in logits(rows, vocab, distance, seed=1))
            truth = tokens.kl(p.double(), q.double(), backend="reference")
            row = {"dtype": str(dtype).removeprefix("torch."), "distance": distance}
            row["kl"] = truth.mean().item()
            floor = sum(tokens.rounding_floor(x).mean().item() for x in (p, q))
            row["rounding_floor"] = floor
            wide = {name: (m, p, q) for name, m in methods().items()}
            if dtype != torch.float32:
                wide[f"{PEER}, in float32"] = (peer, p.float(), q.float())
            for name, (method, a, b) in wide.items():
                found = method(a, b).double()
                row[name] = {
                    "relative_error": ((found - truth).abs() / truth).max().item(),
                    "absolute_error": (found - truth).abs().max().item(),
                    "least": found.min().item(),
                }
            table.append(row)
    return table


def first_call():
    """What the first use costs: compiling into an empty cache, then loading from it."""
    code = "import torch, time; from kullback import tokens; x = torch.zeros(2, 200_000);"
    code += "t = time.perf_counter(); tokens.kl(x, x); print(time.perf_counter() - t)"
    with tempfile.TemporaryDirectory() as cache:
        times = []
        for _ in range(2):
            environment = {**os.environ, "XDG_CACHE_HOME": cache}
            done = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True
            )
            times.append(float(done.stdout))
    return {"compiling_s": times[0], "loading_s": times[1]}


def processor_time(bursts, rounds):
    """Return for every burst the least processor seconds: what one thread takes undisturbed."""
    best = dict.fromkeys(bursts, float("inf"))
    for _ in range(rounds + 1):
        for name, burst in bursts.items():
            start = time.process_time()
            burst()
            best[name] = min(best[name], time.process_time() - start)
    return best


def curves(options):
    """Cost of a forward call on one thread, against V at T = 64 and against T at V = 50,000."""
    torch.set_num_threads(1)
    big, _ = logits(64, 200_000)
    copy = processor_time({"copy": copying(big)}, options.rounds)["copy"]
    result = {"benchmark": "token_kl_curves", "machine": machine(1)}
    result["bytes_per_s"] = 2 * big.numel() * big.element_size() / copy
    for name, shapes in (
        ("against_vocab", [(64, v) for v in (1000, 4000, 16_000, 64_000, 192_000)]),
        ("against_rows", [(t, 50_000) for t in (4, 16, 64, 256)]),
    ):
        rows = []
        for shape in shapes:
            p, q = logits(*shape)
            bursts = {method: forward(function, p, q) for method, function in methods().items()}
            seconds = processor_time(bursts, options.rounds)
            rows.append({"rows": shape[0], "vocab": shape[1], "processor_seconds": seconds})
        result[name] = rows
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only == "memory-of":
        print(json.dumps(memory_of(options.way, options.method, options.rows, options.vocab)))
        return
    if options.only == "curves":
        finish("token_kl_curves", curves(options))
        return
    if options.only == "grid-of":
        print(json.dumps(grid_of(options)))
        return
    parts = {
        "grid": grid,
        "memory": memory,
        "precision": lambda options: precision(),
        "first_call": lambda options: first_call(),
    }
    kept = RESULTS / "token_kl.json"
    result = json.loads(kept.read_text()) if options.only and kept.exists() else {}
    result |= {"benchmark": "token_kl"}
    for name in [options.only] if options.only else parts:
        result[name] = parts[name](options)
    finish("token_kl", result, digits=4)


if __name__ == "__main__":
    main()
