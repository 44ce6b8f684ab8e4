"""Evidence on MNIST after a few minutes of training on this machine, from scratch.

    python benchmarks/mnist_evidence.py [--minutes 3] [--draws 5000] [--data mnist.npz]

Protocol: dynamic binarisation in training, one fixed binarisation of the 10,000 test images (seed
0); L_5000 on all of them. The minutes count from the start of this process, imports and reading
included. Two models: the library's convolutional default with a tightened end (`kullback train
mnist.npz --binarize dynamic --tighten 0.4 --draws 4`), and the classic 784-200-200-50 tanh network
of Burda et al. (2016) with its curve over the minutes. Prints JSON and writes it to
benchmarks/results/mnist_evidence.json.

The data are not part of the package: an .npz with x_train and x_test, uint8 28x28.
"""

import argparse
import sys
import time
from pathlib import Path

START = time.perf_counter()

import torch  # noqa: E402
from measuring import finish, machine  # noqa: E402

from kullback.data import describe_protocol, load  # noqa: E402
from kullback.vae import Architecture, Training, build, evaluate  # noqa: E402
from kullback.vae.device import pick_precision  # noqa: E402
from kullback.vae.loop import State, fit  # noqa: E402

DATA = Path(__file__).parents[2] / "shared" / "data" / "mnist" / "mnist.npz"
CLASSIC = Architecture(network="mlp", hidden=(200, 200), latent=50, activation="tanh")
REFERENCE = {
    "paper, one layer, k=1, 3,280 epochs (Burda et al. 2016, table 1)": 86.76,
    "plain loop, 784-200-200-50, constant rate, 22,000 steps, L_5000 on 500 images": 92.06,
    "the same, 44,000 steps": 90.31,
    "the same, 66,000 steps": 89.53,
}


def train(data, architecture, settings, marks):
    """Train with the library's own loop; return averaged weights at the marks (seconds)."""
    torch.manual_seed(settings.seed)
    mean = data.train.float().mean(0) / 255
    model = build(data.event_shape, data.kind, architecture, mean=mean)
    precision = pick_precision(settings.precision, torch.device("cpu"))
    state = State.start(model, settings, precision=precision)
    kept, waiting = [], list(marks)
    for now in fit(model, data, settings, state):
        if waiting and now.seconds >= waiting[0]:
            kept.append((now.step, now.seconds, weights_of(model, now)))
            waiting.pop(0)
        if now.step % 500 == 0:
            sys.stderr.write(f"\rstep {now.step}, {now.seconds:.0f} s")
    kept.append((state.step, state.seconds, weights_of(model, state)))
    sys.stderr.write("\n")
    return model.float(), kept


def weights_of(model, state):
    with state.flat.averaged():
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def measured(model, weights, x, draws):
    """Return the figures of one set of weights."""
    model.load_state_dict(weights, assign=True)
    start = time.perf_counter()

    def progress(done, total):
        sys.stderr.write(f"\revaluating {done} of {total}")

    figures = evaluate(model.eval(), x, draws=draws, progress=progress)
    sys.stderr.write("\n")
    return {
        "minus_elbo": -figures.elbo.value,
        f"minus_L_{draws}": -figures.log_likelihood.value,
        "standard_error": figures.log_likelihood.standard_error,
        "rate": figures.rate.value,
        "active_units": figures.active_units,
        "effective_draws_median": figures.effective_draws_median,
        "effective_draws_minimum": figures.effective_draws_minimum,
        "loose": figures.loose,
        "images": figures.images,
        "draws": draws,
        "evaluation_seconds": time.perf_counter() - start,
    }


def ours(data, minutes, draws):
    left = minutes - (time.perf_counter() - START + 2.5) / 60
    settings = Training(minutes=left, tighten=0.4, draws=4)
    model, kept = train(data, Architecture(), settings, [])
    seconds = time.perf_counter() - START
    (step, _, weights), n = kept[0], settings.batch_size
    row = {"steps": step, "epochs": step * n / len(data.train), "seconds_from_start": seconds}
    return row | measured(model, weights, data.test, draws)


def classic(data, minutes, draws):
    settings = Training(minutes=minutes, batch_size=100, learning_rate=2e-3)
    marks = [60.0 * m for m in range(1, int(minutes))]
    model, kept = train(data, CLASSIC, settings, marks)
    curve = []
    for step, seconds, weights in kept:
        row = {"steps": step, "training_seconds": seconds}
        curve.append(row | {"first 500 images": measured(model, weights, data.test[:500], draws)})
    curve[-1]["all images"] = measured(model, kept[-1][2], data.test, draws)
    return curve


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("default", "classic"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load(options.data, binarize="dynamic")
    result = {
        "benchmark": "mnist_evidence",
        "machine": machine(options.threads),
        "protocol": describe_protocol(data.protocol),
        "minutes": options.minutes,
        "unit": "nats an image",
        "reference": REFERENCE,
    }
    if options.only != "classic":
        result["default"] = ours(data, options.minutes, options.draws)
    if options.only != "default":
        result["classic 784-200-200-50"] = classic(data, options.minutes, options.draws)
    finish("mnist_evidence", result)


if __name__ == "__main__":
    main()
