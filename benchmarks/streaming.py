"""Stream draws through `LogRatios` in constant memory, beside merely generating them.

    python benchmarks/streaming.py --draws 1e9

Draws x ~ N(0, 1) in float64, q = N(0.1, 1). Prints JSON: seconds to generate alone, to generate and
stream (log densities, moments, tails), their ratio (speed relative to generating), the peak of
memory, and k1, k3 and best λ with errors and z-scores against the exact KL of 0.005.
"""

import argparse
import json
import resource
import time

import torch

from kullback.sampled import LogRatios

SHIFT, PIECE = 0.1, 1 << 18


def pieces(draws):
    for start in range(0, draws, PIECE):
        yield min(PIECE, draws - start)


def generate(draws):
    generator, room = torch.Generator().manual_seed(0), torch.empty(PIECE, dtype=torch.float64)
    for size in pieces(draws):
        room[:size].normal_(generator=generator)


def stream(draws):
    generator, room = torch.Generator().manual_seed(0), torch.empty(3, PIECE, dtype=torch.float64)
    state = None
    for size in pieces(draws):
        x = room[0, :size].normal_(generator=generator)
        log_p = torch.mul(x, x, out=room[1, :size]).mul_(-0.5)
        log_q = torch.sub(x, SHIFT, out=room[2, :size]).square_().mul_(-0.5)
        scores = log_p, log_q
        state = LogRatios.of(*scores) if state is None else state.add(*scores)
    return state


def timed(function, draws):
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(draws)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=lambda text: int(float(text)), default=10**8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stream(4 * PIECE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, alone, alone_cpu = timed(generate, options.draws)
    state, both, both_cpu = timed(stream, options.draws)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    truth = SHIFT**2 / 2
    found = {}
    for name in ("k1", "k3", "best"):
        estimate = state.estimate(name)
        z = (estimate.value - truth) / estimate.standard_error
        found[name] = {**estimate.to_dict(), "z": z}
    report = {
        "draws": options.draws,
        "threads": options.threads,
        "generate_seconds": alone,
        "generate_and_stream_seconds": both,
        "speed_relative_to_generating": alone / both,
        "cpu_speed_relative_to_generating": alone_cpu / both_cpu,
        "nanoseconds_per_draw": both / options.draws * 1e9,
        "peak_memory_mib": after / 1024,
        "peak_memory_growth_mib": (after - before) / 1024,
        "exact_kl": truth,
        "estimates": found,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
