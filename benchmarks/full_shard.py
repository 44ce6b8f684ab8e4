"""PyTorch's `fully_shard` (ZeRO stage 3) on the presets: loss and gradients against one process.

    torchrun --nproc-per-node 2 benchmarks/full_shard.py

The loss is the root module; encoder and decoder are sharded apart within it, and with `reshard`
their weights are freed again after the forward pass. gloo, one thread each, float32, 4 items a
process, bits of 28x28. The first process prints JSON: the relative difference of the loss, the
largest difference of a gradient over the largest number of that gradient, and the share of the
weights that a process holds between steps. Writes benchmarks/results/full_shard.json.
"""

import copy
import warnings

import torch
import torch.distributed as dist
from measuring import finish, machine
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from kullback.vae import PRESETS, Training, build
from kullback.vae.loop import loss_terms

NAMES = ("default", "deep", "ladder", "context", "iaf", "vamp")
ITEMS = 4


class Loss(nn.Module):
    """The loss of a step as a module, in whose forward pass all weights are used."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, noise):
        """Return the mean loss of a batch."""
        return loss_terms(self.model, x, noise, Training(steps=1, precision="float32"))[0]


def compared(name, *, reshard):
    """Return how far loss and gradients by all processes are from those of one."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = build((1, 28, 28), "binary", PRESETS[name].architecture_with(None))
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(ITEMS * size, 1, 28, 28, generator=generator) > 0.5).float()
    noise = torch.randn(1, len(x), model.prior.latent, generator=generator)
    whole = Loss(copy.deepcopy(model))
    expected = whole(x, noise)
    expected.backward()
    loss, mesh = Loss(model), init_device_mesh("cpu", (size,))
    for part in (model.encoder, model.decoder, loss):
        fully_shard(part, mesh=mesh, reshard_after_forward=reshard)
    own = slice(ITEMS * rank, ITEMS * (rank + 1))
    found = loss(x[own], noise[:, own])
    found.backward()
    mean = found.detach().clone()
    dist.all_reduce(mean)
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    slopes = [(one.grad.full_tensor(), other.grad) for one, other in pairs]
    held = sum(one.to_local().numel() for one in model.parameters())
    return {
        "loss": float((mean / size - expected).abs() / expected.abs()),
        "gradient": max(
            float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in slopes
        ),
        "share_held": held / sum(one.numel() for one in whole.parameters()),
    }


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = {"benchmark": "full_shard", "machine": machine(1), "processes": dist.get_world_size()}
    for words, reshard in (("whole in a step", False), ("freed after the forward pass", True)):
        result[words] = {name: compared(name, reshard=reshard) for name in NAMES}
    if dist.get_rank() == 0:
        finish("full_shard", result, digits=3)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
