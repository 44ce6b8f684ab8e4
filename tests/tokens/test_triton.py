"""The Triton kernels, run on the CPU by Triton's interpreter, against the reference in float64.

The interpreter is switched on before Triton is imported, so they run in a process of their own,
which is this file as a script; what it finds comes back as JSON.
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
ALL = ("kl", "reverse_kl", "js", "entropy", "q_entropy", "log_prob", "q_log_prob", "same_top")
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
}


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
    if "strided" in how:
        p, q = p[::2, ::2].contiguous().repeat(2, 2)[::2], q[:2, :].t().contiguous().t()
    p, q = p.to(how.get("dtype")), q.to(how.get("q_dtype", how.get("dtype")))
    ids = torch.randint(p.shape[1], (len(p),), generator=draw)
    mask = torch.arange(len(p)) % 3 != 1 if "mask" in how else None
    if mask is not None:
        p[1, 3] = math.nan
    return p, q, ids, mask, Task(how.get("wants", ALL), 1.3, 0.3)


def found_by(backend, name):
    """Return values and gradients of a case, as float64 tensors."""
    p, q, ids, mask, task = make(name)
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
    return [x.detach().double() for x in (values, *grads)]


@pytest.fixture(scope="module")
def interpreted():
    """All cases in one process: each a list of nested lists."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference(interpreted, name):
    p, q, *_ = make(name)
    ours = [torch.tensor(x, dtype=torch.float64) for x in interpreted[name]]
    theirs = found_by("reference", name)
    finite = [x[x.isfinite()].abs().max().item() for x in (p.double(), q.double())]
    # a log-probability is off by some ulps of the largest logit, a sum by as much of itself
    bound = 8 * torch.finfo(torch.float32).eps * max(*finite, 1.0)
    for our, their in zip(ours[:1], theirs[:1], strict=True):
        torch.testing.assert_close(our, their, rtol=bound, atol=bound, equal_nan=True)
    for our, their, side in zip(ours[1:], theirs[1:], (p, q)[-len(ours[1:]) :], strict=True):
        rounded = bound + torch.finfo(side.dtype).eps
        torch.testing.assert_close(our, their, rtol=rounded, atol=rounded, equal_nan=True)


@pytest.mark.slow
def test_close_logits_keep_their_digits(interpreted):
    ours = torch.tensor(interpreted["close"][0][0], dtype=torch.float64)
    theirs = found_by("reference", "close")[0][0]
    assert theirs.max() < 1e-6
    assert ((ours - theirs).abs() <= 1e-3 * theirs).all()


def test_refusals_say_why():
    logits = torch.zeros(1, 2)
    assert "float64" in usable(logits.double())["triton"]
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert "CUDA" in usable(logits)["triton"]
        with pytest.raises(ValueError, match=r"'triton' cannot be used here.*CUDA"):
            measure(logits, None, Task(("entropy",)), backend="triton")


def from_hidden(backend, dtype):
    """KL from hidden states in several blocks, with tokens that p, q or both ban, and gradients."""
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*size, generator=draw) for size in ((5, 8), (90, 8), (90,)) * 2]
    tensors[2][::3], tensors[5][::6] = -math.inf, -math.inf
    tensors = [x.to(dtype).requires_grad_() for x in tensors]
    p, q = tensors[:3], tensors[3:]
    pair = (HiddenStates(*x[:2], bias=x[2], softcap=9.0, memory=8000) for x in (p, q))
    value = kl(*pair, backend=backend)
    weights = torch.linspace(0.5, 2.0, 5).to(value)
    return [x.detach().double() for x in (value, *torch.autograd.grad(value @ weights, tensors))]


@pytest.mark.slow
def test_blocks_from_hidden_states(interpreted):
    expected = from_hidden("chunked", torch.float64)
    for ours, theirs in zip(interpreted["hidden"], expected, strict=True):
        # products of eight terms near 10, whose float32 rounding the log ratios see
        torch.testing.assert_close(torch.tensor(ours).double(), theirs, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    found = {name: [x.tolist() for x in found_by("triton", name)] for name in CASES}
    found["hidden"] = [x.tolist() for x in from_hidden("triton", torch.float32)]
    json.dump(found, sys.stdout)
