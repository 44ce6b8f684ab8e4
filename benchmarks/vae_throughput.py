"""Training speed of the classic 784-200-200-50 VAE, against plain PyTorch and the peers.

    python benchmarks/vae_throughput.py [--rounds 60] [--threads 2] [--no-start-up] [--processor]

Batch 100, tanh, Bernoulli, dynamic binarisation (pythae has none: it trains on fixed bits). Bursts
of 20 steps of every variant, interleaved in one process, so that all meet the same machine; the
floor is the time of the step's matrix products at the rate measured in the same rounds. Peers that
are not installed are left out: pip install pythae==0.1.2 numpyro. Prints JSON and writes it to
benchmarks/results/vae_throughput.json. With --processor it takes processor time of one thread on a
core, so that it can run beside other work, and writes vae_throughput_one_thread.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import torch
from measuring import finish, interleaved, machine, paired_ratio, summary
from torch import nn
from torch.nn import functional as F

from kullback.data import Dataset
from kullback.vae import Architecture, Training, build
from kullback.vae.loop import fit
from kullback.vae.state import State

BATCH, STEPS, LATENT, HIDDEN = 100, 20, 50, (200, 200)
MACS = 784 * 200 + 200 * 200 + 200 * 100 + 50 * 200 + 200 * 200 + 200 * 784
FLOP = 2 * BATCH * (3 * MACS - 784 * 200)  # the first layer needs no gradient to its input


def images(n=20_000):
    """Return grey images with about MNIST's sparsity: speed does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    ink = torch.rand(n, 1, 28, 28, generator=generator) < 0.19
    grey = torch.randint(1, 256, (n, 1, 28, 28), generator=generator)
    return (ink * grey).to(torch.uint8)


def ours(x, precision):
    names = tuple(map(str, range(len(x))))
    data = Dataset(x, x[:100] // 255, "binary", True, {}, names, names[:100])
    architecture = Architecture(network="mlp", hidden=HIDDEN, latent=LATENT, activation="tanh")
    settings = Training(steps=10**9, batch_size=BATCH, learning_rate=1e-3, weight_decay=0.0)
    torch.manual_seed(0)
    model = build((1, 28, 28), "binary", architecture, mean=x.float().mean(0) / 255)
    loop = fit(model, data, settings, State.start(model, settings, precision=precision))

    def burst():
        for _ in range(STEPS):
            next(loop)

    return burst


class Plain(nn.Module):
    """The model as a tutorial would write it."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 100)
        )
        self.decoder = nn.Sequential(
            nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 784)
        )

    def loss(self, x):
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        cross = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
        return (cross + kl) / len(x)


def plain(x):
    torch.manual_seed(0)
    model = Plain()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4)
    floats = torch.utils.data.TensorDataset(x.reshape(-1, 784).float() / 255)
    loader = torch.utils.data.DataLoader(floats, batch_size=BATCH, shuffle=True)

    def forever():
        while True:
            yield from loader

    source = forever()

    def burst():
        for _ in range(STEPS):
            (grey,) = next(source)
            optimiser.zero_grad()
            model.loss(torch.bernoulli(grey)).backward()
            optimiser.step()

    return burst


def pythae(x):
    """Use pythae's own trainer: one epoch of 20 batches is a burst."""
    import logging

    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae_networks import Decoder, Encoder

    logging.disable(logging.WARNING)

    bits = torch.bernoulli(x[: BATCH * STEPS].float() / 255)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=50, reconstruction_loss="bce")
    trainer = BaseTrainer(
        model=VAE(config, encoder=Encoder(), decoder=Decoder()),
        train_dataset=BaseDataset(bits, torch.zeros(len(bits))),
        training_config=BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            no_cuda=True,
        ),
    )
    trainer.prepare_training()
    return lambda: trainer.train_step(1)


def numpyro(x):
    """NumPyro's SVI with the closed-form KL, twenty steps in one compiled scan."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax import lax
    from numpyro.infer import SVI, TraceMeanField_ELBO

    grey = jnp.asarray(x.reshape(-1, 784).numpy()) / 255.0
    sizes = {"encoder": (784, 200, 200, 100), "decoder": (50, 200, 200, 784)}

    def start(name):
        keys = jax.random.split(jax.random.PRNGKey(0), 3)
        pairs = zip(sizes[name], sizes[name][1:], strict=False)
        return [
            (jax.random.normal(k, (a, b)) / jnp.sqrt(a), jnp.zeros(b))
            for k, (a, b) in zip(keys, pairs, strict=True)
        ]

    def net(layers, h):
        for w, b in layers[:-1]:
            h = jnp.tanh(h @ w + b)
        return h @ layers[-1][0] + layers[-1][1]

    def model(batch):
        layers = numpyro.param("decoder", start("decoder"))
        with numpyro.plate("batch", BATCH):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(50), 1.0).to_event(1))
            logits = net(layers, z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=batch)

    def guide(batch):
        layers = numpyro.param("encoder", start("encoder"))
        with numpyro.plate("batch", BATCH):
            mean, log_sd = jnp.split(net(layers, batch), 2, -1)
            numpyro.sample("z", dist.Normal(mean, jnp.exp(log_sd)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO())
    state = svi.init(jax.random.PRNGKey(0), grey[:BATCH])

    def body(carry, key):
        first, second = jax.random.split(key)
        rows = jax.random.randint(first, (BATCH,), 0, len(grey))
        bits = jax.random.bernoulli(second, grey[rows]).astype(jnp.float32)
        return svi.update(carry, bits)

    scan = jax.jit(lambda carry, keys: lax.scan(body, carry, keys))
    keys = jax.random.split(jax.random.PRNGKey(1), STEPS)
    holder = [state]

    def burst():
        holder[0], losses = scan(holder[0], keys)
        losses.block_until_ready()

    return burst


def products():
    """Time the step's own matrix products, and nothing else: the floor."""
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(1024, 1024, generator=generator)
    out = torch.empty_like(big)

    def burst():
        for _ in range(4):
            torch.mm(big, big, out=out)

    return burst


def start_up(script):
    """Time a fresh process until its first 20 steps are done."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True)
    return time.perf_counter() - begin


def first_steps(which):
    code = "import sys; sys.path.insert(0, {here!r}); import vae_throughput as v; v.{call}()"
    here = str(__import__("pathlib").Path(__file__).parent)
    calls = {"kullback": "ours(v.images(), v.torch.float32)", "plain": "plain(v.images())"}
    return start_up(code.format(here=here, call=calls[which]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-start-up", action="store_true")
    parser.add_argument("--processor", action="store_true")
    options = parser.parse_args()
    if options.processor:
        options.threads = 1
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    torch.set_num_threads(options.threads)
    x = images()
    bursts = {"products": products(), "kullback": ours(x, torch.float32), "plain": plain(x)}
    bursts["kullback bfloat16"] = ours(x, torch.bfloat16)
    missing = []
    for name, make in (("pythae", pythae), ("numpyro", numpyro)):
        try:
            bursts[name] = make(x)
        except ImportError as error:
            missing.append(f"{name}: {error}")
    clock = time.process_time if options.processor else time.perf_counter
    times = interleaved(bursts, options.rounds, clock)
    best = min(times["products"])
    median = sorted(times["products"])[len(times["products"]) // 2]
    rate = {"best": 4 * 2 * 1024**3 / best / 1e9, "median": 4 * 2 * 1024**3 / median / 1e9}
    floor = {name: FLOP / value / 1e6 for name, value in rate.items()}  # ms a step
    rows = {
        name: summary(values, STEPS)
        | {"images_per_second": BATCH * STEPS / sorted(values)[len(values) // 2]}
        for name, values in times.items()
        if name != "products"
    }
    result = {
        "benchmark": "vae_throughput",
        "machine": machine(options.threads),
        "model": "784-200-200-50-200-200-784 tanh, Bernoulli, batch 100",
        "matmul_gflops": rate,
        "floor_ms": floor,
        "step": rows,
        "speed_of_kullback_over": {
            name: paired_ratio(times[name], times["kullback"])
            for name in rows
            if not name.startswith("kullback")
        },
        "clock": "processor time" if options.processor else "wall time",
        "kullback_over_floor": rows["kullback"]["median_ms"] / floor["median"],
        "over_floor": {name: row["median_ms"] / floor["median"] for name, row in rows.items()},
        "missing": missing,
    }
    if not options.no_start_up:
        runs = [(first_steps("kullback"), first_steps("plain")) for _ in range(3)]
        ours_s, plain_s = (sorted(column)[1] for column in zip(*runs, strict=True))
        result["start_up_seconds"] = {"kullback": ours_s, "plain": plain_s}
        minute = {
            name: (60 - start) / rows[name]["median_ms"] * 1e3 * BATCH
            for name, start in (("kullback", ours_s), ("plain", plain_s))
        }
        result["images_in_one_minute_from_start"] = minute
    finish("vae_throughput_one_thread" if options.processor else "vae_throughput", result)


if __name__ == "__main__":
    main()
