"""The Triton kernels against the reference in float64: on a GPU, and by Triton's interpreter.

The interpreter runs them on the CPU. It is switched on before Triton is imported, so they run in a
process of their own, which is this file as a script; what it finds comes back as JSON. Tests named
`on_a_gpu` are skipped where there is none.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
import torch

from kullback.tokens import HiddenStates, kl, usable
from kullback.tokens.backends.interface import Task
from kullback.tokens.divergences.logits import measure

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
ALL = ("kl", "reverse_kl", "js", "entropy", "q_entropy", "log_prob", "q_log_prob", "same_top")
FINITE_MASK, BEYOND = 1e30, 1e3
CASES = {
    "one token": (2, 1, {}),
    "odd": (3, 37, {}),
    "tiles": (2, 5000, {}),
    "kl alone": (3, 2100, {"wants": ("kl",)}),
    "entropy alone": (2, 50, {"wants": ("entropy", "log_prob")}),
    "close": (2, 3000, {"apart": 1e-3}),
    "both ban": (3, 2100, {"p_ban": 3, "q_ban": 3}),
    "p bans": (3, 40, {"p_ban": 3}),
    "q bans": (3, 40, {"q_ban": 4}),
    "disjoint": (2, 40, {"disjoint": True}),
    "far tokens banned": (2, 2100, {"q_ban": 3, "shift": 300.0}),
    "bfloat16": (3, 300, {"dtype": torch.bfloat16}),
    "two dtypes": (3, 300, {"dtype": torch.float16, "q_dtype": torch.float32}),
    "only p": (2, 300, {"sides": (True, False)}),
    "only q": (2, 300, {"sides": (False, True)}),
    "mask": (4, 30, {"mask": True}),
    "strided": (4, 32, {"strided": True}),
    "nan": (3, 2100, {"nan": True}),
    # cuts, and logits that sums which begin with the first tile's cannot know of
    "cuts": (1, 20_001, {}),
    "cuts banned": (1, 20_001, {"edit": "cut"}),
    "cold": (2, 5000, {"temperature": 0.1}),
    "hot": (2, 5000, {"temperature": 10.0}),
    "offset": (2, 5000, {"edit": "offset", "apart": 1e-3}),
    "peaked": (2, 5000, {"edit": "peaked", "apart": 1e-3}),
    "high": (4, 5000, {"edit": "high"}),
    "low": (2, 5000, {"edit": "low"}),
    "first ban": (3, 5000, {"edit": "first"}),
    "late nan": (4, 5000, {"edit": "nan"}),
    "late ban": (4, 5000, {"edit": "late"}),
    "padded": (2, 5000, {"edit": "padded"}),
    "kl of padded": (2, 5000, {"edit": "padded", "wants": ("kl",)}),
    "lowest": (3, 5000, {"edit": "lowest", "temperature": 1.0}),
    "lowest, cold": (3, 5000, {"edit": "lowest", "temperature": 0.5}),
    "lowest, in bfloat16": (3, 5000, {"edit": "lowest", "dtype": torch.bfloat16}),
}


def edited(p, q, how):
    """Change logits `[rows, vocab]` in place; tiles have at most 2048."""
    first, late = slice(0, 2048), 4444
    if how == "offset":  # the first tile has little mass and another ratio
        p[:, first] -= 8
        q[:, first] -= 9
    elif how == "peaked":  # one token has nearly all, and its ratio is not that of the others
        p[:, late], q[:, late] = 30, 29.9
    elif how == "high":
        p[0, late] += 200
        q[1, late] += 200
        p[2, late], q[2, late] = p[2, late] + 200, q[2, late] + 199
        p[3, late], q[3, late] = p[3, late] + 40, q[3, late] + 40.5
    elif how == "low":
        p[0, late:], q[0, late:] = p[0, late:] - 300, q[0, late:] - 301
        p[1, first], q[1, first] = p[1, first] - 300, q[1, first] - 250
    elif how == "first":
        p[:2, first], q[1:, first] = -math.inf, -math.inf
    elif how == "nan":
        p[0, late], q[1, late], p[2, late], q[3, late] = math.nan, math.nan, math.inf, math.inf
    elif how == "late":  # the second has no mass in float32
        p[0, late], q[1, late] = -math.inf, -math.inf
        p[2, late], q[2, late] = -math.inf, -300
        p[3, late], q[3, late] = -300, -math.inf
    elif how == "padded":
        p[:, late:], q[:, late:] = -math.inf, -math.inf
        p[1, :7], q[1, :7] = -math.inf, -math.inf
    elif how == "lowest":  # masked with the lowest number, not with −inf
        lowest = torch.finfo(torch.bfloat16).min
        p[0, late:], q[0, late:] = lowest, lowest
        p[1, first], q[1, first] = lowest, lowest
        p[2, late:], p[2, first], q[2, first] = lowest, lowest, lowest
    elif how == "cut":  # some cuts, which have at most 4096
        p[:, 4096:8192], q[:, 4096:8192] = -math.inf, -math.inf


def make(name):
    """Return p, q, ids, mask and the task of a case."""
    rows, vocab, how = CASES[name]
    draw = torch.Generator().manual_seed(list(CASES).index(name))
    p = 3 * torch.randn(rows, vocab, generator=draw)
    q = p + how.get("apart", 0.7) * torch.randn(rows, vocab, generator=draw)
    if "q_ban" in how:
        q[:, :: how["q_ban"]] = -math.inf
    if "p_ban" in how:
        p[:, :: how["p_ban"]] = -math.inf
    if "shift" in how:  # p's mass is where q has none
        p[:, :: how["q_ban"]] += how["shift"]
    if "disjoint" in how:
        p[:, ::2], q[:, 1::2] = -math.inf, -math.inf
    if "nan" in how:
        p[0, 7], q[1, 2090], p[2] = math.nan, math.inf, -math.inf
    edited(p, q, how.get("edit"))
    if "strided" in how:
        p, q = p[::2, ::2].contiguous().repeat(2, 2)[::2], q[:2, :].t().contiguous().t()
    p, q = p.to(how.get("dtype")), q.to(how.get("q_dtype", how.get("dtype")))
    ids = torch.randint(p.shape[1], (len(p),), generator=draw)
    mask = torch.arange(len(p)) % 3 != 1 if "mask" in how else None
    if mask is not None:
        p[1, 3] = math.nan
    return p, q, ids, mask, Task(how.get("wants", ALL), how.get("temperature", 1.3), 0.3)


def found_by(backend, name, device="cpu"):
    """Return values and gradients of a case, as float64 tensors on the CPU."""
    p, q, ids, mask, task = make(name)
    p, q, ids, mask = (x if x is None else x.to(device) for x in (p, q, ids, mask))
    sides = CASES[name][2].get("sides", (True, True))
    if backend == "reference":
        p, q = p.double(), q.double()
    pair = [x.requires_grad_(asks) for x, asks in zip((p, q), sides, strict=True)]
    if "entropy" in task.wants[:1]:
        pair = pair[:1]
    other = pair[1] if len(pair) > 1 else None
    values = measure(pair[0], other, task, ids=ids, mask=mask, nan="pass", backend=backend)
    weights = torch.linspace(0.5, 2.0, values.numel()).reshape(values.shape)
    asking = [x for x in pair if x.requires_grad]
    grads = torch.autograd.grad((values * weights.to(values)).sum(), asking)
    return [x.detach().double().cpu() for x in (values, *grads)]


@pytest.fixture(scope="module")
def interpreted():
    """All cases in one process: each a list of nested lists."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check_case(ours, name):
    """Compare values and gradients of a case with the reference's."""
    p, q, *_ = make(name)
    theirs = found_by("reference", name)
    kept = [x[x.isfinite() & (x > -FINITE_MASK)] for x in (p.double(), q.double())]
    finite = [x.abs().max().item() for x in kept]
    # a log-probability is off by some ulps of the largest logit, a sum by as much of itself
    bound = 8 * torch.finfo(torch.float32).eps * max(*finite, 1.0)
    if "lowest" in name:  # a log-ratio of a finite mask is only known to be beyond any other
        ours, theirs = ([x.clamp(-BEYOND, BEYOND) for x in every] for every in (ours, theirs))
    for our, their in zip(ours[:1], theirs[:1], strict=True):
        torch.testing.assert_close(our, their, rtol=bound, atol=bound, equal_nan=True)
    for our, their, side in zip(ours[1:], theirs[1:], (p, q)[-len(ours[1:]) :], strict=True):
        rounded = bound + torch.finfo(side.dtype).eps
        torch.testing.assert_close(our, their, rtol=rounded, atol=rounded, equal_nan=True)


CLOSE = {"close": 1e-6, "offset": 1e-3, "peaked": 1e-6}  # and what their KL is below


def check_close(ours, name):
    """Check the digits of both KLs of a case where they are small, `[2, rows]`."""
    theirs = found_by("reference", name)[0][:2]
    assert theirs.max() < CLOSE[name]
    assert ((ours - theirs).abs() <= 1e-3 * theirs).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference(interpreted, name):
    check_case([torch.tensor(x, dtype=torch.float64) for x in interpreted[name]], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLOSE)
def test_close_logits_keep_their_digits(interpreted, name):
    check_close(torch.tensor(interpreted[name][0][:2], dtype=torch.float64), name)


POINTERS = {"state": "fp32", "sums": "fp64", "partial": "fp32", "c": "fp64", "out": "fp64"}
POINTERS |= {"ids": "i64", "keep": "i1"}
FLAGS = ("TO_P", "TO_Q", "KL", "BACK", "P_LOG", "Q_LOG", "MIX", "AT", "KEEP")
FORMS = [
    ("forward", {"BACK": False, "ENTROPY": False, "TOP": False}, {"maxnreg": 64}),
    ("forward", {"BACK": True, "ENTROPY": True, "TOP": True}, {"maxnreg": 128}),
    ("js", {}, {}),
    ("slopes", dict.fromkeys(FLAGS, True), {}),
    ("slopes", dict.fromkeys(FLAGS, False) | {"TO_Q": True, "KL": True}, {}),
    ("finish", None, {}),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("name", "flags", "more"), FORMS)
def test_kernels_compile_for_a_gpu(name, flags, more, dtype):
    """Machine code for compute capability 9.0, for which no GPU is needed: types and registers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kullback.tokens.backends import triton_kernels

    kernel = getattr(triton_kernels, name)
    constants = {} if flags is None else {**flags, "TILE": 1024}
    types = dict.fromkeys(kernel.arg_names, "i32") | {"scale": "fp32", "beta": "fp32"}
    types |= dict.fromkeys(("p", "q", "grad_p", "grad_q"), f"*{dtype}")
    types |= {n: f"*{one}" for n, one in POINTERS.items()} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        kernel,
        {n: types[n] for n in kernel.arg_names},
        constexprs={(kernel.arg_names.index(n),): value for n, value in constants.items()},
        attrs={},
    )
    options = {"num_warps": 4, "enable_fp_fusion": True, **more}
    assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm


@on_a_gpu
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_kernels_equal_the_reference(name):
    check_case(found_by("triton", name, "cuda"), name)


@on_a_gpu
@pytest.mark.parametrize("name", CLOSE)
def test_on_a_gpu_close_logits_keep_their_digits(name):
    check_close(found_by("triton", name, "cuda")[0][:2], name)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(1, 200_000), (64, 151_936), (3, 262_144), (70_000, 300)])
@pytest.mark.parametrize("apart", [1e-2, 0.5])
def test_on_a_gpu_sizes_of_language_models(size, dtype, apart):
    """Few rows, which are cut, and more than the 65,535 that a grid's second axis may have."""
    draw = torch.Generator("cuda").manual_seed(0)
    p = 3 * torch.randn(size, generator=draw, device="cuda")
    q = p + apart * torch.randn(size, generator=draw, device="cuda")
    q[:, -64:] = p[:, -64:] = -math.inf
    p, q = p.to(dtype).requires_grad_(), q.to(dtype).requires_grad_()
    value = kl(p, q, backend="auto")
    found = value, *torch.autograd.grad(value.sum(), (p, q))
    p, q = (x.detach().double().requires_grad_() for x in (p[-64:], q[-64:]))
    truth = kl(p, q, backend="reference")
    expected = truth, *torch.autograd.grad(truth.sum(), (p, q))
    for ours, theirs in zip(found, expected, strict=True):
        # ulps of logits near 15 in the logs of ratios of size `apart`
        rtol = 15 * torch.finfo(torch.float32).eps / apart + torch.finfo(ours.dtype).eps
        atol = rtol * theirs.abs().max().item()
        torch.testing.assert_close(ours[-64:].double(), theirs, rtol=rtol, atol=atol)


def test_refusals_say_why():
    logits = torch.zeros(1, 2)
    assert "float64" in usable(logits.double())["triton"]
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert "CUDA" in usable(logits)["triton"]
        with pytest.raises(ValueError, match=r"'triton' cannot be used here.*CUDA"):
            measure(logits, None, Task(("entropy",)), backend="triton")


def from_hidden(backend, dtype, device="cpu"):
    """KL from hidden states in several blocks, with tokens that p, q or both ban, and gradients."""
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*size, generator=draw) for size in ((5, 8), (90, 8), (90,)) * 2]
    tensors[2][::3], tensors[5][::6] = -math.inf, -math.inf
    tensors = [x.to(device, dtype).requires_grad_() for x in tensors]
    p, q = tensors[:3], tensors[3:]
    pair = (HiddenStates(*x[:2], bias=x[2], softcap=9.0, memory=8000) for x in (p, q))
    value = kl(*pair, backend=backend)
    weights = torch.linspace(0.5, 2.0, 5).to(value)
    found = value, *torch.autograd.grad(value @ weights, tensors)
    return [x.detach().double().cpu() for x in found]


@pytest.mark.slow
def test_blocks_from_hidden_states(interpreted):
    expected = from_hidden("chunked", torch.float64)
    for ours, theirs in zip(interpreted["hidden"], expected, strict=True):
        # products of eight terms near 10, whose float32 rounding the log ratios see
        torch.testing.assert_close(torch.tensor(ours).double(), theirs, rtol=1e-5, atol=1e-5)


@on_a_gpu
def test_on_a_gpu_blocks_from_hidden_states():
    expected = from_hidden("chunked", torch.float64)
    for ours, theirs in zip(from_hidden("triton", torch.float32, "cuda"), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_hidden_states_of_language_models(dtype):
    draw = torch.Generator("cuda").manual_seed(0)
    sizes = ((65, 256), (9000, 256)) * 2
    tensors = [torch.randn(*size, generator=draw, device="cuda") for size in sizes]
    tensors = [x.mul(0.4).to(dtype).requires_grad_() for x in tensors]
    exact = [x.detach().double().requires_grad_() for x in tensors]
    values = []
    for p, p_head, q, q_head in (tensors, exact):
        pair = (HiddenStates(*x, memory=1 << 20) for x in ((p, p_head), (q, q_head)))
        values.append(kl(*pair))
    found = values[0], *torch.autograd.grad(values[0].sum(), tensors)
    expected = values[1], *torch.autograd.grad(values[1].sum(), exact)
    for ours, theirs in zip(found, expected, strict=True):
        # products of 256 terms in float32 (TF32 is off), summed gradients rounded once a block
        bound = 1e-4 + 20 * torch.finfo(ours.dtype).eps
        torch.testing.assert_close(
            ours.double(), theirs, rtol=bound, atol=bound * theirs.abs().max().item()
        )


if __name__ == "__main__":
    found = {name: [x.tolist() for x in found_by("triton", name)] for name in CASES}
    found["hidden"] = [x.tolist() for x in from_hidden("triton", torch.float32)]
    json.dump(found, sys.stdout)
