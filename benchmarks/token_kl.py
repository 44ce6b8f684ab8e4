"""Exact KL over a large vocabulary, from logits: speed, memory and precision beside PyTorch.

    python benchmarks/token_kl.py [--rows 256] [--vocab 200000] [--rounds 7] [--threads 2]

Figures: 1 forward, 2 forward and backward to one side, 5 precision (3, from hidden states, and 4,
on a GPU, have scripts of their own). The peer is what everybody writes, `log_softmax` twice and
`F.kl_div`. All run in turn in one process; the floor is the bytes that must move (both logits once;
with a gradient, that too) over the bandwidth of a copy measured in the same rounds. Memory is the
peak of resident memory above the inputs, each in a process of its own. Prints JSON and writes it to
benchmarks/results/token_kl.json; `--only speed` (one_thread, memory, precision, first_call) does
one part again and keeps the others. `--only curves` measures cost against V and T instead, for
docs/token_kl.md, and writes benchmarks/results/token_kl_curves.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from measuring import RESULTS, finish, interleaved, machine, paired_ratio, summary
from torch.nn import functional as F

from kullback import tokens

MIB = 2**20
PEER = "log_softmax + F.kl_div"
PARTS = ("speed", "one_thread", "memory", "precision", "first_call", "curves", "memory-of")
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


def speed(rows, vocab, rounds, threads, without=()):
    """Figures 1 and 2: times of every method, ratios to the peer and to the floor."""
    torch.set_num_threads(threads)
    chosen = {name: method for name, method in methods().items() if name not in without}
    p, q = logits(rows, vocab)
    bursts = {"copy": copying(p)}
    for name, method in chosen.items():
        bursts[f"forward: {name}"] = forward(method, p, q)
        bursts[f"both ways: {name}"] = both_ways(method, p, q)
    times = interleaved(bursts, rounds)
    side = p.numel() * p.element_size()
    bandwidth = 2 * side / min(times["copy"])
    result = {"machine": machine(threads), "rows": rows, "vocab": vocab}
    result["copy_gb_per_s"] = bandwidth / 1e9
    for way, sides in (("forward", 2), ("both ways", 3)):
        floor = sides * side / bandwidth
        slow = times[f"{way}: {PEER}"]
        result[way] = {"floor_ms": 1e3 * floor} | {
            name: summary(found := times[f"{way}: {name}"], 1)
            | {
                "best_over_floor": min(found) / floor,
                "peer_over_it": paired_ratio(slow, found),
                "best_peer_over_best": min(slow) / min(found),
            }
            for name in chosen
        }
    return result


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
    parser.add_argument("--vocab", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument(
        "--without", action="append", default=[], help="leave a method out of speed"
    )
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
    sizes = options.rows, options.vocab, options.rounds
    parts = {
        "speed": lambda options: speed(*sizes, options.threads, options.without),
        "one_thread": lambda options: speed(options.rows // 4, *sizes[1:], 1),
        "memory": memory,
        "precision": lambda options: precision(),
        "first_call": lambda options: first_call(),
    }
    kept = RESULTS / "token_kl.json"
    result = json.loads(kept.read_text()) if options.only and kept.exists() else {}
    result |= {"benchmark": "token_kl"}
    for name in [options.only] if options.only else parts:
        result[name] = parts[name](options)
    finish("token_kl", result)


if __name__ == "__main__":
    main()
