"""Evidence of test images after the same processor seconds, against pythae 0.1.2.

    python benchmarks/pythae_race.py --work DIR [--seconds 30] [--draws 500] [--images 1000]

Four models that both have: VAE, IWAE (K = 5), VampPrior (100 pseudo-inputs) and a posterior by an
inverse autoregressive flow. Same data (MNIST, bits drawn once, since pythae trains on a fixed
tensor), the same networks (784-200-200-50, tanh), batches of 100, one thread. pythae trains with
its own trainer, whole epochs of Adam at 1e-3, until the seconds are spent; its VampPrior has a
warm-up of two epochs (it collapses with it and without). kullback then gets the
processor seconds that pythae took, at 2e-3 along a cosine. Both are measured by one estimator: L_K
of the same images, K draws of the model's own q(z|x), log mean p(x, z)/q(z|x); pythae's with its
own modules. On ten images it stands beside pythae's `get_nll`. Errors are over images; one seed.

Every model is kept in DIR when it is done. Prints JSON and writes it to
benchmarks/results/pythae_race.json, or pythae_race_SECONDS.json where they are not the usual ones.
Needs pythae==0.1.2; the data are not part of the package.
"""

import argparse
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from measuring import finish, machine
from torch import nn

from kullback.core import read_json, write_json
from kullback.data import describe_protocol, load
from kullback.sampled import log_mean_exp
from kullback.vae import Architecture, Training
from kullback.vae.evidence import bounds
from kullback.vae.loop import fit
from kullback.vae.model import evaluating
from kullback.vae.run.new_model import fresh_model
from kullback.vae.state import State, load_tensors, save_tensors

DATA = Path(__file__).parents[2] / "shared" / "data" / "mnist" / "mnist.npz"
CLASSIC = Architecture(network="mlp", hidden=(200, 200), latent=50, activation="tanh")
OURS = {
    "VAE": (CLASSIC, {}),
    "IWAE": (CLASSIC, {"objective": "iwae", "draws": 5}),
    "VampPrior": (replace(CLASSIC, prior="vamp", prior_components=100), {}),
    "IAF": (replace(CLASSIC, posterior="iaf"), {}),
}
ROWS = 2000  # of the decoder at once


def peer_model(name):
    """Return pythae's model with the classic networks."""
    from pythae.models import (
        IWAE,
        VAE,
        VAE_IAF,
        VAMP,
        IWAEConfig,
        VAE_IAF_Config,
        VAEConfig,
        VAMPConfig,
    )
    from pythae_networks import Decoder, Encoder

    kinds = {
        "VAE": (VAE, VAEConfig, {}),
        "IWAE": (IWAE, IWAEConfig, {"number_samples": 5}),
        "VampPrior": (VAMP, VAMPConfig, {"number_components": 100, "linear_scheduling_steps": 2}),
        "IAF": (VAE_IAF, VAE_IAF_Config, {}),
    }
    model, config, more = kinds[name]
    shared = {"input_dim": (1, 28, 28), "latent_dim": 50, "reconstruction_loss": "bce"}
    torch.manual_seed(0)
    return model(config(**shared, **more), encoder=Encoder(), decoder=Decoder())


def train_peer(name, bits, seconds):
    """Train with pythae's own trainer for whole epochs; return the model, seconds and steps."""
    import logging

    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.WARNING)
    trainer = BaseTrainer(
        model=peer_model(name),
        train_dataset=BaseDataset(bits, torch.zeros(len(bits))),
        training_config=BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=100,
            learning_rate=1e-3,
            no_cuda=True,
        ),
    )
    trainer.prepare_training()
    start, epoch = time.process_time(), 0
    while time.process_time() - start < seconds:
        epoch += 1
        trainer.train_step(epoch)
    taken = time.process_time() - start
    return trainer.model.eval(), taken, epoch * (len(bits) // 100)


@torch.no_grad()
def peer_log_weights(model, x, draws):
    """Return log p(x, z) − log q(z|x) of pythae's modules, `[draws, images]`, in nats."""
    code = model.encoder(x)
    mean, log_sd = code.embedding, 0.5 * code.log_covariance
    noise = torch.randn(draws, *mean.shape)
    z = mean + log_sd.exp() * noise
    log_q = (-0.5 * noise**2 - log_sd).sum(-1)
    flat = z.reshape(-1, z.shape[-1])
    if hasattr(model, "iaf_flow"):
        moved = model.iaf_flow.inverse(flat)
        flat, log_q = moved.out, log_q - moved.log_abs_det_jac.reshape(log_q.shape)
    own = model._log_p_z(flat) if hasattr(model, "_log_p_z") else -0.5 * (flat**2).sum(-1)
    probability = model.decoder(flat).reconstruction.reshape(draws, len(x), -1)
    target = x.reshape(1, len(x), -1).expand_as(probability)
    log_p = -nn.functional.binary_cross_entropy(probability, target, reduction="none").sum(-1)
    return log_p + own.reshape(log_q.shape) - log_q


def measured_peer(model, x, draws):
    """Return minus L_K of each image, and its largest difference from `get_nll` in errors."""
    torch.manual_seed(0)
    found = []
    each = max(1, ROWS // draws)
    for part in x.split(each):
        found.append(-log_mean_exp(peer_log_weights(model, part, draws).double(), dim=0))
    nats = torch.cat(found)
    # pythae's figure is +log p in spite of its name; it is compared on average over ten images
    theirs = -model.get_nll(x[:10], n_samples=1000, batch_size=100)
    ours = [-log_mean_exp(peer_log_weights(model, x[:10], 1000).double(), dim=0) for _ in range(8)]
    return nats, {
        "get_nll_of_ten_images": float(theirs),
        "ours_of_them": float(torch.stack(ours).mean()),
        "spread_of_ours": float(torch.stack(ours).mean(1).std()),
    }


def train_ours(name, data, seconds):
    """Train for so many processor seconds; return the model, its state and the seconds."""
    architecture, more = OURS[name]
    usual = {"batch_size": 100, "learning_rate": 2e-3, "weight_decay": 0.0, "precision": "float32"}
    settings = Training(minutes=seconds / 60, **usual, **more)
    start = time.process_time()
    model = fresh_model(data, architecture, settings.seed, None)
    state = State.start(model, settings, precision=torch.float32)
    for _ in fit(model, data, settings, state, clock=time.process_time):
        pass
    return model, state, time.process_time() - start


def raced(name, data, options):
    """Train both and measure both; return minus L_K of each and the rows."""
    bits, x = data.train.float(), data.test[: options.images]
    sys.stderr.write(f"{name}: pythae\n")
    peer, taken, steps = train_peer(name, bits, options.seconds)
    theirs, check = measured_peer(peer, x.float(), options.draws)
    rows = {"pythae": {"cpu_seconds": taken, "steps": steps} | check}
    sys.stderr.write(f"{name}: kullback\n")
    model, state, spent = train_ours(name, data, taken)
    with state.flat.averaged(), evaluating(model):
        generator = torch.Generator().manual_seed(0)
        ours = -bounds(model, x, draws=options.draws, generator=generator).importance_weighted
    rows["kullback"] = {"cpu_seconds": spent, "steps": state.step}
    return {"pythae": theirs, "kullback": ours.double()}, rows


def row_of(nats, rows, draws):
    """Return the table's row of one model."""
    for who, values in nats.items():
        error = float(values.std() / math.sqrt(len(values)))
        rows[who] = {f"minus_L_{draws}": float(values.mean()), "its_error": error} | rows[who]
    gain = nats["pythae"] - nats["kullback"]
    mean, error = float(gain.mean()), float(gain.std() / math.sqrt(len(gain)))
    return rows | {"gain_in_nats": mean, "error_of_the_gain": error}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps every finished model")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the processor, a model")
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=list(OURS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    data, table = load(options.data, binarize="static"), {}
    for model in options.only:
        kept = options.work / f"{model}-{options.seconds:g}.safetensors"
        beside = kept.with_suffix(".json")
        if not beside.exists():
            nats, rows = raced(model, data, options)
            save_tensors(kept, nats)
            write_json(beside, rows)
        table[model] = row_of(load_tensors(kept), read_json(beside), options.draws)
        result = {
            "benchmark": "pythae_race",
            "machine": machine(1),
            "protocol": describe_protocol(data.protocol | {"source": options.data.name}),
            "seconds": options.seconds,
            "unit": f"nats an image, first {options.images} test images; errors over images",
            "models": table,
        }
        usual = options.seconds == parser.get_default("seconds")
        name = "pythae_race" if usual else f"pythae_race_{options.seconds:g}"
        finish(name, result, digits=5)


if __name__ == "__main__":
    main()
