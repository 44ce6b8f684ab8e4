"""A training step on a GPU, called kernel by kernel and replayed as a CUDA graph.

    python benchmarks/gpu_steps.py [--steps 160] [--data mnist.npz]

Models are trained twice from the same weights, once with every step called and once recorded (what
`kullback train --device cuda` does). Milliseconds a step, of both halves of a run that is tightened
(one draw, then L_4), and how far the weights are apart after 12 steps, as a share of their norm:
rounding, where the kernels add in no fixed order. Needs a CUDA device. Prints JSON and writes it to
benchmarks/results/gpu_steps.json.
"""

import argparse
import time
from pathlib import Path
from unittest import mock

import torch
from measuring import finish, machine

from kullback.data import load
from kullback.vae import Architecture, Training, build
from kullback.vae.elbo_step import CapturedSteps
from kullback.vae.loop import fit
from kullback.vae.run import pick_precision
from kullback.vae.state import State

DATA = Path(__file__).parents[2] / "shared" / "data" / "mnist" / "mnist.npz"
CLASSIC = Architecture(network="mlp", hidden=(200, 200), latent=50, activation="tanh")
MODELS = {
    "classic 784-200-200-50": (CLASSIC, 100, "float32"),
    "default": (Architecture(), 128, "auto"),
    "neighbours": (Architecture(neighbours=4), 128, "auto"),
    "context 16,16": (Architecture(context=(16, 16)), 128, "auto"),
    "context 64 x 8, batches of 256": (Architecture(context=(64,) * 8), 256, "auto"),
    "flow, iaf": (Architecture(prior="flow", posterior="iaf"), 128, "float32"),
    "three layers": (Architecture(layers=3), 128, "float32"),
}
COMPARED = 12


def called(self, key, compute, x, noise):
    return compute(x, noise)


def trained(data, architecture, settings):
    """Train; return the weights after some steps, and milliseconds a step of both halves."""
    torch.manual_seed(0)
    mean = data.train[:2000].cpu().float().mean(0) / 255
    model = build(data.event_shape, data.kind, architecture, mean=mean).to("cuda")
    precision = pick_precision(settings.precision, torch.device("cuda"))
    state = State.start(model, settings, precision=precision)
    half, marks, weights = settings.steps // 2, {}, None
    ends = (20, half - 1, half + 20, settings.steps - 1)
    for now in fit(model, data, settings, state):
        if now.step == COMPARED:
            weights = now.flat.vector.clone()
        if now.step in ends:
            torch.cuda.synchronize()
            marks[now.step] = time.perf_counter()
    first, second, third, last = (marks[step] for step in ends)
    steps = (ends[1] - ends[0], ends[3] - ends[2])
    return weights, [1e3 * (second - first) / steps[0], 1e3 * (last - third) / steps[1]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: nothing was measured")
    torch.set_num_threads(2)
    data = load(options.data, binarize="dynamic").to("cuda")
    result = {"benchmark": "gpu_steps", "machine": machine(2), "models": {}}
    result["device"] = torch.cuda.get_device_name()
    for name, (architecture, batch, precision) in MODELS.items():
        settings = Training(
            steps=options.steps, tighten=0.5, draws=4, batch_size=batch, precision=precision
        )
        with mock.patch.object(CapturedSteps, "__call__", called):
            one, slow = trained(data, architecture, settings)
        other, fast = trained(data, architecture, settings)
        result["models"][name] = {
            "called_ms": slow,
            "recorded_ms": fast,
            "ratios": [a / b for a, b in zip(slow, fast, strict=True)],
            "apart": float((one - other).norm() / one.norm()),
        }
    finish("gpu_steps", result, digits=4)


if __name__ == "__main__":
    main()
