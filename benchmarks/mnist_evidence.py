"""Evidence on MNIST after a few minutes of training on this machine, from scratch.

    python benchmarks/mnist_evidence.py [--minutes 3] [--draws 5000] [--data mnist.npz]
                                        [--decoder bfloat16] [--neighbours 4] [--work DIR --only …]
    python benchmarks/mnist_evidence.py --run RUN [--draws 1000] [--images 1000] [--device cuda]

Protocol: dynamic binarisation in training, one fixed binarisation of the 10,000 test images (seed
0); L_5000 on all of them. The minutes count from the start of this process, imports and reading
included. Two models: the library's convolutional default with a tightened end (`kullback train
mnist.npz --binarize dynamic --tighten 0.4 --draws 4`), and the classic 784-200-200-50 tanh network
of Burda et al. (2016) with its curve over the minutes. With `--neighbours` the first alone, bits
given those before them; its row is added. With `--run` a run that `kullback train mnist.npz
--binarize dynamic` made is measured instead, and named by its preset and steps; every call adds
what it measured. Prints JSON and writes it to benchmarks/results/mnist_evidence.json.

The data are not part of the package: an .npz with x_train and x_test, uint8 28x28.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

START = time.perf_counter()

import torch  # noqa: E402
from measuring import RESULTS, finish, machine  # noqa: E402

from kullback.core import read_json, write_json  # noqa: E402
from kullback.data import describe_protocol, load  # noqa: E402
from kullback.vae import VAE, Architecture, Training, build, evaluate  # noqa: E402
from kullback.vae.loop import fit  # noqa: E402
from kullback.vae.run import pick_precision  # noqa: E402
from kullback.vae.state import (  # noqa: E402
    State,
    load_tensors,
    save_tensors,
)

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
    return kept


def weights_of(model, state):
    with state.flat.averaged():
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def measured(model, weights, x, draws, precision=torch.float32):
    """Return the figures of one set of weights."""
    model.load_state_dict(weights, assign=True)
    start = time.perf_counter()

    def progress(done, total):
        sys.stderr.write(f"\revaluating {done} of {total}, {time.perf_counter() - start:.0f} s ")

    figures = evaluate(model.eval(), x, draws=draws, precision=precision, progress=progress)
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
        "decoder": str(precision).removeprefix("torch."),
        "evaluation_seconds": time.perf_counter() - start,
    }


def keep(work, name, rows):
    """Put trained weights on the disk, so that they can be measured at another time."""
    for number, (_, weights) in enumerate(rows):
        save_tensors(work / f"{name}-{number}.safetensors", weights)
    write_json(work / f"{name}.json", [row for row, _ in rows])


def train_default(data, minutes, work, neighbours):
    left = minutes - (time.perf_counter() - START + 2.5) / 60
    settings = Training(minutes=left, tighten=0.4, draws=4)
    kept = train(data, Architecture(neighbours=neighbours), settings, [])
    seconds = time.perf_counter() - START
    step, _, weights = kept[-1]
    epochs = step * settings.batch_size / len(data.train)
    row = {"steps": step, "epochs": epochs, "seconds_from_start": seconds}
    keep(work, "default", [(row, weights)])


def train_classic(data, minutes, work):
    settings = Training(minutes=minutes, batch_size=100, learning_rate=2e-3, weight_decay=0.0)
    marks = [60.0 * m for m in range(1, int(minutes))]
    kept = train(data, CLASSIC, settings, marks)
    keep(work, "classic", [({"steps": n, "training_seconds": s}, w) for n, s, w in kept])


def measure_default(data, draws, most, work, precision, *, neighbours):
    """Measure on all images with `most` draws and, when that is fewer, on 1,000 with `draws`."""
    model = build(data.event_shape, data.kind, Architecture(neighbours=neighbours))
    (row,) = read_json(work / "default.json")
    weights = load_tensors(work / "default-0.safetensors")
    few = [measured(model, weights, data.test[:200], 100, p) for p in (torch.float32, precision)]
    row["rounding_moves_L_100_by"] = few[0]["minus_L_100"] - few[1]["minus_L_100"]
    row |= measured(model, weights, data.test, min(draws, most), precision)
    if most < draws:
        row["first 1000 images"] = [
            measured(model, weights, data.test[:1000], k, precision) for k in (most, draws)
        ]
    return row


def measure_classic(data, draws, work):
    model = build(data.event_shape, data.kind, CLASSIC)
    curve = read_json(work / "classic.json")
    for number, row in enumerate(curve):
        weights = load_tensors(work / f"classic-{number}.safetensors")
        row["first 500 images"] = measured(model, weights, data.test[:500], draws)
    curve[-1]["all images"] = measured(model, weights, data.test, draws)
    return curve


def measure_run(data, options, precision):
    """Measure a finished run and add it to the row of its preset and steps."""
    config = read_json(options.run / "config.json")
    if config["data"]["sha256"] != data.protocol["sha256"]:
        raise SystemExit(f"{options.run}: trained on other data, or tested on them")
    model, x = VAE.load(options.run).to(options.device), data.test[: options.images]
    if model.unfinished:
        raise SystemExit(model.unfinished)
    figures = measured(model, model.state_dict(), x.to(options.device), options.draws, precision)
    last = json.loads((options.run / "metrics.jsonl").read_text().splitlines()[-1])
    clock = json.loads((options.run / "timing.jsonl").read_text().splitlines()[-1])
    steps, batch = last["step"], config["training"]["batch_size"]
    typed = config["preset"]["given_instead"]
    more = "".join(f", {key} {value}" for key, value in typed.items())
    name = f"{config['preset']['name']}{more}, {steps} steps"
    result = read_json(RESULTS / "mnist_evidence.json")
    row = result.get(name, {"steps": steps, "epochs": steps * batch / len(data.train)})
    row["trained in"] = config["precision"]
    row["trained on"] = f"{config['device']}, {clock['seconds']:.0f} s"
    row[f"first {len(x)} images, K = {options.draws}"] = figures
    finish("mnist_evidence", result | {name: row})


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep weights here, to go on from")
    parts = ("train default", "train classic", "measure", "measure default")
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--decoder", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--most", type=int, default=5000, help="draws on all images, default model")
    parser.add_argument("--neighbours", type=int, default=0)
    parser.add_argument("--run", type=Path, help="measure this run of `kullback train` instead")
    parser.add_argument("--device", default="cpu", help="with --run, where it is measured")
    parser.add_argument("--images", type=int, help="with --run, the first so many (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load(options.data, binarize="dynamic")
    if options.run:
        measure_run(data, options, getattr(torch, options.decoder))
        return
    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(exist_ok=True)
    if options.only in (None, "train default"):
        train_default(data, options.minutes, work, options.neighbours)
    if options.only in (None, "train classic") and not options.neighbours:
        train_classic(data, options.minutes, work)
    if options.only in parts[:2]:
        return
    precision = getattr(torch, options.decoder)
    beside = {"neighbours": options.neighbours}
    if options.only == "measure default" or options.neighbours:
        result = read_json(RESULTS / "mnist_evidence.json")
        row = measure_default(data, options.draws, options.most, work, precision, **beside)
        name = f"{options.neighbours} neighbours, {options.minutes:g} minutes"
        result[name if options.neighbours else "default"] = row
        finish("mnist_evidence", result)
        return
    protocol = describe_protocol(data.protocol | {"source": options.data.name})
    result = {
        "benchmark": "mnist_evidence",
        "machine": machine(options.threads),
        "protocol": protocol,
        "minutes": options.minutes,
        "unit": "nats an image",
        "reference": REFERENCE,
        "classic 784-200-200-50": measure_classic(data, options.draws, work),
    }
    finish("mnist_evidence", result)
    result["default"] = measure_default(
        data, options.draws, options.most, work, precision, **beside
    )
    finish("mnist_evidence", result)


if __name__ == "__main__":
    main()
