"""log p(x) of a trained MNIST decoder's own images, from both sides: are the bounds 0.5 nats apart?

    python benchmarks/mnist_sandwich.py [--network mlp] [--steps 6000] [--images 32]
                                        [--temperatures 100,300] [--data mnist.npz] [--work DIR]

A VAE is trained on dynamically binarised MNIST for a number of steps and then makes images itself,
each with the z that it was drawn from: an exact draw from p(z|x). Annealed importance sampling from
q(z|x) bounds log p(x) from below, and the same chains run backwards from that draw from above
(bidirectional Monte Carlo). Printed are the mean width, its error over images, how many images are
settled (at most 0.5 nats wide), and KL(q(z|x) ‖ p(z|x)) between its two bounds, for each number of
temperatures. On as many test images only the lower bound exists. A function of the settings alone;
written to benchmarks/results/mnist_sandwich.json, one entry a network.

The data are not part of the package: an .npz with x_train and x_test, uint8 28x28.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import RESULTS, finish, machine

from kullback.core import read_json
from kullback.data import describe_protocol, load
from kullback.vae import VAE, Annealing, Architecture, Training, made_by, measure_gap, train

DATA = Path(__file__).parents[2] / "shared" / "data" / "mnist" / "mnist.npz"
NETWORKS = {
    "mlp": Architecture(network="mlp", hidden=(200, 200), latent=50, activation="tanh"),
    "auto": Architecture(),
}


def trained(data, network, steps, work):
    """Return the model of a run in `work`, trained there first if it is not there yet."""
    folder = work / f"{network}-{steps}"
    if (folder / "model.safetensors").exists():
        return VAE.load(folder)
    settings = Training.usual(data.kind, data.event_shape, steps=steps)
    return train(data, architecture=NETWORKS[network], training=settings, folder=folder).model


def figures(gap):
    """Return what is printed of one gap, in nats: [value, standard error over images]."""
    found = {
        name: [estimate.value, estimate.standard_error]
        for name in ("elbo", "lower", "upper", "width", "kl_lower", "kl_upper")
        if (estimate := getattr(gap, name)) is not None
    }
    each = gap.per_image
    if each.upper is not None:
        found["widest image"] = float((each.upper - each.lower).max())
    return found | {"settled": gap.settled, "images": gap.images}


def measured(model, data, options):
    """Return the figures of every number of temperatures, of own and of test images."""
    own, exact = made_by(model, options.images, seed=0)
    rows = []
    for count in map(int, options.temperatures.split(",")):
        how, start = Annealing(chains=options.chains, temperatures=count), time.process_time()

        def progress(done, total, count=count):
            sys.stderr.write(f"\r{count} temperatures, {done} of {total} images ")

        both = measure_gap(model, own, exact=exact, annealing=how, seed=1, progress=progress)
        test = data.test[: options.images]
        below = measure_gap(model, test, annealing=how, seed=2, progress=progress)
        row = {"temperatures": count, "own": figures(both), "test": figures(below)}
        rows.append(row | {"processor_seconds": round(time.process_time() - start)})
        sys.stderr.write(f"\n{rows[-1]}\n")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=tuple(NETWORKS), default="mlp")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--temperatures", default="100,300")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, help="keep trained weights here, to go on from")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load(options.data, binarize="dynamic")
    work = options.work or Path(tempfile.mkdtemp())
    model = trained(data, options.network, options.steps, work)
    kept = RESULTS / "mnist_sandwich.json"
    result = read_json(kept) if kept.exists() else {"benchmark": "mnist_sandwich"}
    result |= {
        "protocol": describe_protocol(data.protocol | {"source": options.data.name}),
        "unit": "nats an image",
        "machine": machine(1),
    }
    rows = measured(model, data, options)
    result[f"{options.network}, {options.steps} steps"] = {"chains": options.chains, "rows": rows}
    finish("mnist_sandwich", result, digits=4)


if __name__ == "__main__":
    main()
