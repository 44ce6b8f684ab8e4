"""Training with weights in slices (`--full-shard`): against one process, and the bytes it holds.

    python benchmarks/full_shard.py

Every preset makes 20 steps of 12 images by one process and by 2, 3 and 4 that share its weights
(gloo, one thread each, float32). Reported are the relative difference of the summed ELBO and the
largest difference of a weight over the largest weight. Then, for the deep presets and for `deep`
with a wide layer (30.7 million weights), how many bytes a process holds, by count of its tensors:
weights, gradient, running average and both moments, with whole states, with slices of all but the
weights (`--shard`) and with slices of all; and, of the last, the most bytes of weights that are
whole at once in a step. Prints JSON and writes benchmarks/results/full_shard.json.
"""

import argparse
import json
import os
import subprocess
import sys

import torch
from measuring import finish, machine
from torch.utils._python_dispatch import TorchDispatchMode

from kullback.core import processes
from kullback.data import load
from kullback.vae import PRESETS, Architecture, Training, build
from kullback.vae.loop import SharedStep, fit
from kullback.vae.state import State

SIZES = (1, 2, 3, 4)
STEPS, BATCH = 20, 12
WIDE = {"layers": 4, "latent": 64, "hidden": (48, 48, 48, 6144)}
DEEP = ("ladder", "context", "deep", "wide")


def made(name, data, *, over=None, full=False):
    """Return model, settings and state of a preset."""
    chosen = PRESETS["deep" if name == "wide" else name]
    given = Architecture(**WIDE) if name == "wide" else None
    settings = Training(steps=STEPS, batch_size=BATCH, precision="float32", validation=0.0)
    settings = chosen.training_with(settings, data.kind, data.event_shape, examples=10_000)
    torch.manual_seed(0)
    model = build(data.event_shape, data.kind, chosen.architecture_with(given))
    return model, settings, State.start(model, settings, over=over, full=full)


def trained(name, data, group=None):
    """Return the ELBO summed over the steps, and the weights, whole in the first process."""
    model, settings, state = made(name, data, over=group, full=group is not None)
    for _ in fit(model, data, settings, state, shared=group and SharedStep(group)):
        pass
    flat = state.flat
    parts = [part.clone() for part in flat.slices(flat.vector)]
    return float(state.totals[0]), torch.cat([flat.vector[:0], *parts])


def compared(name, data, group):
    """Return how far a training by all processes is from that of one."""
    elbo, weights = trained(name, data, group)
    if not group.first:
        return {}
    expected, whole = trained(name, data)
    off = (weights - whole).abs().max() / whole.abs().max()
    return {"elbo": abs(elbo - expected) / abs(expected), "weights": float(off)}


class WholeWeights(TorchDispatchMode):
    """The most bytes of whole weights that FSDP has at once."""

    def __init__(self, root):
        super().__init__()
        states = [getattr(one, "_get_fsdp_state", None) for one in root.modules()]
        groups = [found()._fsdp_param_group for found in states if found is not None]
        self.parameters = [one for group in groups if group for one in group.fsdp_params]
        self.most = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        """Count before every operation."""
        rooms = [room for one in self.parameters for room in one.all_gather_outputs]
        self.most = max(self.most, sum(room.untyped_storage().nbytes() for room in rooms))
        return function(*args, **(kwargs or {}))


def held(name, data, group, *, shard):
    """Return the bytes a weight of one process between steps, and of whole weights in a step."""
    over, full = group if shard else None, shard == "full"
    model, settings, state = made(name, data, over=over, full=full)
    loop = fit(model, data, settings, state, shared=SharedStep(group))
    next(loop)
    flat = state.flat
    moments = [t for one in state.optimiser.state.values() for t in one.values()]
    tensors = [flat.vector, flat.gradient, flat.average, *moments, *model.parameters()]
    rooms = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    found = {"held": sum(rooms.values()) / flat.numbers}
    if full and group.size > 1:
        with WholeWeights(flat.root) as seen:
            next(loop)
        found["whole_at_once"] = seen.most / flat.numbers
    return found | {"weights": flat.numbers}


def worker():
    """What each process measures; the first one prints it."""
    torch.set_num_threads(1)
    data = load("fashion")
    with processes.joined() as group:
        against = {name: compared(name, data, group) for name in PRESETS if group.size > 1}
        kinds = {"whole": False, "shard": True, "full_shard": "full"}
        kinds = kinds if group.size > 1 else {"whole": False}
        memory = {
            name: {word: held(name, data, group, shard=shard) for word, shard in kinds.items()}
            for name in DEEP
        }
    if group.first:
        sys.stdout.write("RESULT " + json.dumps({"against_one": against, "memory": memory}) + "\n")


def measured(size):
    """Start `size` processes and return what the first one measured."""
    run = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    run += ["--nproc-per-node", str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *run, __file__, "--worker"]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    lines = [line for line in out.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(out.stderr)
    return json.loads(lines[0].removeprefix("RESULT "))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", action="store_true", help="(started by this script)")
    if parser.parse_args().worker:
        worker()
        return
    about = {"benchmark": "full_shard", "unit": "bytes a weight", "machine": machine(1)}
    rows = {str(size): measured(size) for size in SIZES}
    finish("full_shard", about | {"processes": rows}, digits=4)


if __name__ == "__main__":
    main()
