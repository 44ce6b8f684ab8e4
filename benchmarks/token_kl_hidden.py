"""KL from hidden states: time beside the bare matrix products, memory, growth; as JSON.

Run: python benchmarks/token_kl_hidden.py [--threads 2] [--positions 256] [--vocab 200000]
         [--width 2048] [--rounds 3] [--growth] [--gpu]

The floor is the matrix products that must be done: forward, both sides' logits; backward, one
product for each gradient that is asked for, two with a student's hidden states and head. They are
done in the same blocks of the vocabulary, into memory that is there already, in the same run, one
after the other in each round; what is quoted is the median over the rounds of the ratio, so that
both met the same load. On a busy machine compare CPU seconds with --threads 1, since threads that
wait for each other spin. `extra_mib` is how far the process's peak memory rose above inputs and
gradients (Linux only). --growth measures how time and memory grow with positions and vocabulary.

--gpu (an H100 or its like) puts the Triton kernels beside the copy bandwidth of the same run,
Liger-Kernel's LigerKLDIVLoss (with the two log_softmax that it asks for) and torch.compile, and
`kl` of `HiddenStates` beside Liger's fused linear JSD, in bfloat16 and float32; what is missing or
does not fit in memory is said. Milliseconds are medians of 20 calls by CUDA events.
"""

import argparse
import ctypes
import importlib
import statistics
import time
from pathlib import Path

import torch
from measuring import finish, machine, paired_ratio

from kullback import tokens

MIB = 1 << 20


def make(positions, vocab, width, *, device="cpu", dtype=torch.float32):
    """Two models' hidden states and heads: peaked logits of standard deviation about 3."""
    draw = torch.Generator(device).manual_seed(0)
    teacher = torch.randn(positions, width, generator=draw, device=device)
    student = teacher + 0.3 * torch.randn(positions, width, generator=draw, device=device)
    heads = []
    for _ in range(2):
        head = torch.randn(vocab, width, generator=draw, device=device, dtype=dtype)
        heads.append(head.mul_(3 / width**0.5))
        draw.manual_seed(1)  # the same head twice would share its cache
    return teacher.to(dtype), heads[0], student.to(dtype), heads[1]


def bare(p_hidden, p_head, q_hidden, q_head, room, grads=()):
    """The matrix products that must be done, in blocks of the vocabulary."""
    step = room.shape[1]
    for start in range(0, len(p_head), step):
        rows = slice(start, min(start + step, len(p_head)))
        out = room.flatten()[: len(p_hidden) * (rows.stop - start)].view(len(p_hidden), -1)
        torch.mm(p_hidden, p_head[rows].t(), out=out)
        torch.mm(q_hidden, q_head[rows].t(), out=out)
        if grads:
            grads[0].addmm_(out, q_head[rows])
            if len(grads) > 1:
                grads[1][rows].addmm_(out.t(), q_hidden)


def in_turn(ours, floor, rounds):
    """Return seconds and CPU seconds of both, `[ours, floor]` each a list, one after the other."""
    times, spent = ([], []), ([], [])
    for _ in range(rounds):
        for which, function in enumerate((ours, floor)):
            start, start_cpu = time.perf_counter(), time.process_time()
            function()
            times[which].append(time.perf_counter() - start)
            spent[which].append(time.process_time() - start_cpu)
    return times, spent


def peak(function):
    """Return how far peak memory rises above what is held before the call, in MiB."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    function()  # lazy imports, thread pools
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free but kept would hide the rise
    reset.write_text("5")
    held = _memory("VmRSS")
    function()
    return (_memory("VmHWM") - held) / MIB


def _memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def from_states(p_hidden, p_head, q_hidden, q_head, *, memory=None, **options):
    p, q = ((p_hidden, p_head), (q_hidden, q_head))
    return tokens.kl(*(tokens.HiddenStates(*x, memory=memory) for x in (p, q)), **options)


def cases(positions, vocab, width):
    """Name → (ours, the bare products), sharing inputs and the memory for gradients."""
    p_hidden, p_head, q_hidden, q_head = make(positions, vocab, width)
    room = torch.empty(positions, max(256, (1 << 20) // positions))
    inputs = (p_hidden, p_head, q_hidden, q_head)
    zeros = torch.zeros_like(q_hidden), torch.zeros_like(q_head)

    def backward(*asks):
        for x, wanted in zip((q_hidden, q_head), asks, strict=True):
            x.requires_grad_(wanted)
        leaves = [x for x in (q_hidden, q_head) if x.requires_grad]
        found = torch.autograd.grad(from_states(*inputs).sum(), leaves)
        for x in (q_hidden, q_head):
            x.requires_grad_(False)
        return found

    return {
        "forward": (
            lambda: from_states(*inputs),
            lambda: bare(*inputs, room),
            0,
        ),
        "forward and backward to hidden": (
            lambda: backward(True, False),
            lambda: bare(*inputs, room, zeros[:1]),
            zeros[0].nbytes,
        ),
        "forward and backward to hidden and head": (
            lambda: backward(True, True),
            lambda: bare(*inputs, room, zeros),
            zeros[0].nbytes + zeros[1].nbytes,
        ),
    }


def figure_three(options):
    """Ratios to the bare products, and memory above inputs and gradients."""
    found = {}
    for name, (ours, floor, gradients) in cases(
        options.positions, options.vocab, options.width
    ).items():
        times, spent = in_turn(ours, floor, options.rounds)
        rise = peak(ours)
        found[name] = {
            "ratio": paired_ratio(*times),
            "ratio_of_cpu_seconds": paired_ratio(*spent),
            "seconds": min(times[0]),
            "floor_seconds": min(times[1]),
            "extra_mib": None if rise is None else rise - gradients / MIB,
        }
    return found


def growth(options):
    """CPU seconds and memory as positions and vocabulary double."""
    rows = []
    for positions, vocab in ((64, 8000), (128, 8000), (256, 8000), (64, 16000), (64, 32000)):
        inputs = make(positions, vocab, options.width)
        inputs[2].requires_grad_()

        def step(inputs=inputs):
            torch.autograd.grad(from_states(*inputs).sum(), inputs[2])

        rise, spent = peak(step), []
        for _ in range(3):
            start = time.process_time()
            step()
            spent.append(time.process_time() - start)
        rows.append(
            {"positions": positions, "vocab": vocab, "cpu_seconds": min(spent), "extra_mib": rise}
        )
    return rows


def timed(function, repeats=20):
    """Return the median milliseconds of a call on the GPU, and its peak memory in MiB."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held, spent = torch.cuda.memory_allocated(), []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        spent.append(start.elapsed_time(end))
    peak_mib = (torch.cuda.max_memory_allocated() - held) / MIB
    return {"ms": statistics.median(spent), "extra_mib": peak_mib}


def bandwidth():
    """Bytes per second of a copy on the GPU, read and written."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() / (timed(lambda: y.copy_(x))["ms"] / 1e3)


def plain(p, q):
    """KL(p‖q) as most people write it."""
    p_log, q_log = p.float().log_softmax(-1), q.float().log_softmax(-1)
    return (p_log.exp() * (p_log - q_log)).sum(-1)


def from_logits(positions, vocab, dtype, copy):
    """Forward, and forward with backward to q: ours, Liger's, torch.compile's."""
    draw = torch.Generator("cuda").manual_seed(0)
    p = 3 * torch.randn(positions, vocab, generator=draw, device="cuda").to(dtype)
    q = (p + 0.5 * torch.randn(positions, vocab, generator=draw, device="cuda")).to(dtype)
    compiled = torch.compile(plain)
    contenders = {
        "kullback": lambda p, q: tokens.kl(p, q, nan="pass", backend="triton"),
        "torch.compile": compiled,
    }
    liger = optional("liger_kernel.transformers")
    if liger:
        loss = liger.LigerKLDIVLoss(reduction="none", log_target=True)
        contenders["liger"] = lambda p, q: loss(q.log_softmax(-1), p.log_softmax(-1))
    found, size = {}, p.nbytes
    for name, function in contenders.items():
        try:
            found[name] = both_ways(function, p, q, size, copy)
        except RuntimeError as error:  # as out of memory
            found[name] = f"failed: {error}"[:300]
        q.requires_grad_(False)
        torch.cuda.empty_cache()
    return found


def both_ways(function, p, q, size, copy):
    """Forward, and forward with the gradient to q, beside the bytes that must move."""
    forward = timed(lambda: function(p, q))
    q.requires_grad_()
    both = timed(lambda: torch.autograd.grad(function(p, q).sum(), q))
    back = max((both["ms"] - forward["ms"]) / 1e3, 1e-9)
    return {
        "forward": forward | {"of_copy": 2 * size / (forward["ms"] / 1e3) / copy},
        # both logits once more, and one gradient
        "with gradient": both | {"backward_of_copy": 3 * size / back / copy},
    }


def from_hidden(positions, vocab, width, dtype):
    """Forward with backward to the student: ours beside Liger's fused linear JSD."""
    p_hidden, p_head, q_hidden, q_head = make(positions, vocab, width, device="cuda", dtype=dtype)
    q_hidden.requires_grad_()
    q_head.requires_grad_()

    def ours(memory):
        value = from_states(p_hidden, p_head, q_hidden, q_head, memory=memory, nan="pass")
        return torch.autograd.grad(value.sum(), (q_hidden, q_head))

    found = {}
    for m in (48, 256, 1024):
        try:
            found[f"kullback, {m} MiB"] = timed(lambda m=m: ours(m * MIB), 5)
        except RuntimeError as error:
            found[f"kullback, {m} MiB"] = f"failed: {error}"[:300]
    fused = optional("liger_kernel.transformers.fused_linear_jsd")
    if fused:
        loss = fused.LigerFusedLinearJSD(jsd_beta=0.0)

        def theirs():
            value = loss(q_hidden, q_head, p_hidden, p_head)
            return torch.autograd.grad(value, (q_hidden, q_head))

        try:
            found["liger fused linear JSD"] = timed(theirs, 5)
        except RuntimeError as error:
            found["liger fused linear JSD"] = f"failed: {error}"[:300]
    return found


def optional(name):
    """Import a peer, or say that it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"left out: {name}: {error}")
        return None


def figure_four(options):
    """Everything on a GPU; a sentence where there is none."""
    if not torch.cuda.is_available():
        return "no CUDA device here: nothing was measured"
    copy = bandwidth()
    found = {"device": torch.cuda.get_device_name(), "copy_tb_per_s": copy / 1e12}
    for dtype in (torch.bfloat16, torch.float32):
        for positions, vocab in ((256, 200_000), (4096, 151_936), (16_384, 131_072)):
            key = f"logits {positions} x {vocab} {dtype}"
            found[key] = from_logits(positions, vocab, dtype, copy)
        found[f"hidden {dtype}"] = from_hidden(4096, 151_936, options.width, dtype)
    found["hidden 8192 x 4096 x 128256"] = from_hidden(8192, 128_256, 4096, torch.bfloat16)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = (("threads", 2), ("positions", 256), ("vocab", 200_000), ("width", 2048), ("rounds", 3))
    for name, default in sizes:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {"benchmark": "token_kl_hidden", **vars(options)}
    result["machine"] = machine(options.threads)
    if options.gpu:
        result["figure 4"] = figure_four(options)
    else:
        result["figure 3"] = figure_three(options)
        if options.growth:
            result["growth"] = growth(options)
    finish("token_kl_hidden_gpu" if options.gpu else "token_kl_hidden", result)


if __name__ == "__main__":
    main()
