"""`kullback train` and `kullback evaluate`: from data to weights, figures and a report.

`close` ends a training: it evaluates the run, writes `evaluation.json` and `report.html`, and
prints the table.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kullback.core import DataError, __version__, read_json, require, write_json

from .limits import MAX_DRAWS_PER_IMAGE, SECONDS_OF_EVALUATION
from .options import DataOptions, ModelOptions, Real, Shared, TrainingOptions, Whole
from .session import INTERRUPTED, Stop, bar, log, prepare, print_json, say, write

if TYPE_CHECKING:
    from kullback.data import Dataset
    from kullback.vae import VAE, Architecture, Evaluation, Outcome, Progress, Training

__all__ = ["close", "data_of", "evaluate", "measure", "show", "train"]


def train(
    data: Annotated[
        str, Parameter(help="fashion (embedded), a folder of images or sounds, .npy or .npz.")
    ] = "fashion",
    /,
    *,
    out: Annotated[Path | None, Parameter(help="The run's new folder (default: runs/…).")] = None,
    resume: Annotated[Path | None, Parameter(help="Go on with this run instead.")] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "auto",
    checkpoint_seconds: Annotated[Real, Parameter(help="How much work a crash may cost.")] = 15.0,
    json: Annotated[
        bool, Parameter(help="Print the figures as one JSON object.", negative="")
    ] = False,
    reading: Annotated[DataOptions | None, Parameter(name="*", group="Data")] = None,
    model: Annotated[ModelOptions | None, Parameter(name="*", group="Model")] = None,
    training: Annotated[TrainingOptions | None, Parameter(name="*", group="Training")] = None,
    shared: Shared = None,
) -> int:
    """Train a VAE, measure it on held-out images, and write a report one can send.

    Ctrl-C saves a checkpoint and exits with 130; `--resume RUN` goes on from it.
    """
    prepare(shared)
    given = (out, reading, model, training)
    lone = resume is None or (data == "fashion" and all(option is None for option in given))
    require(lone, "--resume", "no other settings: they are those of the run", "others too")
    new = out is None or not out.exists()
    require(new, "--out", "a folder that does not exist", str(out), "another name")
    if resume is None:
        architecture = (model or ModelOptions()).architecture()
        options = training or TrainingOptions()
        options.training("8-bit")  # so that a wrong option is told before the data are read
        dataset = _read(data, reading or DataOptions(), options.seed)
        settings = options.training(dataset.kind)
        work = _new_run(dataset, architecture, settings, out=out, device=device)
    else:
        work = _old_run(resume)
    with Stop() as stop, bar("training") as update:
        outcome = work(progress=_shown(update), stop=stop, checkpoint_seconds=checkpoint_seconds)
    if not outcome.finished:
        say(f"saved; go on with: kullback train --resume {outcome.folder}", always=True)
        return INTERRUPTED
    close(outcome, as_json=json)
    return 0


def _new_run(
    dataset: "Dataset",
    model: "Architecture",
    training: "Training",
    *,
    out: Path | None,
    device: str,
) -> "Callable[..., Outcome]":
    from kullback import vae

    name, reason = vae.choose(dataset.kind, model.likelihood)
    say(f"likelihood: {name} ({reason})")
    log(f"{model}; {training}")
    settings: Any = {"architecture": model, "training": training, "folder": out, "device": device}
    return partial(vae.train, dataset, **settings)


def _old_run(run: Path) -> "Callable[..., Outcome]":
    from kullback import vae

    return partial(vae.resume, run)


def _read(source: str, reading: DataOptions, seed: int) -> "Dataset":
    from kullback.data import describe_protocol, load

    settings: dict[str, Any] = {
        "fit": reading.fit,
        "channels": reading.channels,
        "binarize": reading.binarize,
        "test_fraction": reading.test_fraction,
        "levels": reading.parsed_levels(),
        "rate": reading.rate,
        "clip": reading.clip_seconds,
    }
    with bar("reading") as update:
        dataset = load(source, size=reading.parsed_size(), seed=seed, progress=update, **settings)
    say(describe_protocol(dataset.protocol))
    for note in dataset.protocol["notes"]:
        say(f"note: {note}")
    for file in dataset.protocol["skipped"]["files"]:
        say(f"skipped: {file['name']}: {file['reason']}")
    return dataset


def _shown(update: Callable[..., None]) -> Callable[["Progress"], None]:
    """Turn readings of the training into the bar's text, and say each warning once."""
    said: set[str] = set()

    def show(reading: "Progress") -> None:
        text = f"step {reading.step:,}"
        if reading.elbo == reading.elbo:  # not NaN: there has been a reading
            text += f"  ELBO {reading.elbo:.2f}  rate {reading.rate:.2f}"
            text += f"  distortion {reading.distortion:.2f}"
        if reading.test_elbo is not None:
            text += f"  test {reading.test_elbo.value:.2f}"
        text += f"  {reading.images_per_second:,.0f} images/s"
        update(reading.fraction, 1.0, text)
        if reading.warning and reading.warning not in said:
            said.add(reading.warning)
            say(f"warning: {reading.warning}")

    return show


def data_of(run: Path, source: str | None = None) -> "Dataset":
    """Read the data set of a run again, or another source with the run's settings."""
    from kullback.data import reload

    config = read_json(run / "config.json")
    if not isinstance(config, dict) or "data" not in config:
        raise DataError(f"{run / 'config.json'}: says nothing about data. Try: --data")
    return reload(config["data"], source=source)


def measure(model: "VAE", data: "Dataset", draws: int | None, seed: int) -> "Evaluation":
    """Evaluate on the test images with a bar; without draws, as many as twenty seconds allow."""
    import torch

    from kullback.vae import evaluate, pick_threads

    threads = pick_threads()
    torch.set_num_threads(threads)
    if draws is None:
        start = time.perf_counter()
        few = min(20, len(data.test))
        evaluate(model, data.test[:few], draws=2 if data.kind == "sound" else 10)
        each = (time.perf_counter() - start) / (few * (2 if data.kind == "sound" else 10))
        affordable = SECONDS_OF_EVALUATION / (each * len(data.test))
        draws = max((k for k in (10, 20, 50, 100, 200, 500) if k <= affordable), default=10)
    log(f"evaluation: {len(data.test):,} images, {draws} draws each, {threads} threads")
    with bar("evaluating") as update:
        return evaluate(model, data.test, draws=draws, seed=seed, progress=update)


def close(outcome: "Outcome", *, as_json: bool) -> None:
    """Evaluate a finished run, write `evaluation.json` and `report.html`, and print the table.

    Model and data are those in memory; data are read again only where a resumed run has none.
    """
    from kullback import report

    run, model = outcome.folder, outcome.model
    data = data_of(run) if outcome.data is None else outcome.data
    evaluation = measure(model, data, None, 0)
    fields = record(evaluation, data)
    write_json(run / "evaluation.json", fields)
    page = report.write(run, model=model, data=data)
    show(evaluation, data, fields | {"run": str(run), "report": str(page)}, as_json=as_json)
    say(f"run: {run}")
    say(f"report: {page}")


def record(evaluation: "Evaluation", data: "Dataset") -> dict[str, Any]:
    """Return what `evaluation.json` holds: the figures and the protocol they depend on."""
    return {
        "format": 1,
        "kullback": __version__,
        "unit": "nats",
        "evaluation": evaluation.to_dict(),
        "data": data.protocol,
    }


def show(
    evaluation: "Evaluation", data: "Dataset", fields: dict[str, Any], *, as_json: bool
) -> None:
    """Print figures on standard output: a table, or one JSON object."""
    if as_json:
        print_json(fields)
        return
    from kullback.report import evaluation_text

    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    write(evaluation_text.evaluation_table(evaluation, data.protocol, color=color) + "\n")


def evaluate(
    run: Annotated[Path, Parameter(help="A run directory.")],
    /,
    *,
    data: Annotated[str | None, Parameter(help="Other data than the run's own.")] = None,
    draws: Annotated[Whole, Parameter(help="Draws of q(z|x) per image: the K of L_K.")] = 500,
    seed: Annotated[Whole, Parameter(help="Of the draws.")] = 0,
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False,
    shared: Shared = None,
) -> None:
    """Measure ELBO, the importance-weighted bound L_K, rate and distortion on test images.

    Every figure carries its standard error over images. On the run's own data, the figures are
    kept in RUN/evaluation.json and appear in the report when it is rebuilt.
    """
    prepare(shared)
    expected = f"from 1 to {MAX_DRAWS_PER_IMAGE:,}"
    require(1 <= draws <= MAX_DRAWS_PER_IMAGE, "--draws", expected, f"{draws:,}")
    from kullback.vae import VAE

    model = VAE.load(run)
    dataset = data_of(run, data)
    for note in dataset.protocol["notes"]:
        say(f"note: {note}")
    evaluation = measure(model, dataset, draws, seed)
    fields = record(evaluation, dataset)
    if data is None:
        write_json(run / "evaluation.json", fields)
    show(evaluation, dataset, fields | {"run": str(run)}, as_json=json)
