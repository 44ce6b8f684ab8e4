"""`kullback train`: from data to weights, figures and a report."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kullback.core import require

from .evaluate import close
from .options import DataOptions, ModelOptions, Real, TrainingOptions
from .session import Stop, bar, prepare, say

if TYPE_CHECKING:
    from kullback.data import Dataset
    from kullback.vae import Outcome, Progress

__all__ = ["train"]

INTERRUPTED = 130


def train(
    data: Annotated[
        str, Parameter(help="fashion (embedded), a folder of images, .npy or .npz.")
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
) -> int:
    """Train a VAE, measure it on held-out images, and write a report one can send.

    Ctrl-C saves a checkpoint and exits with 130; `--resume RUN` goes on from it.
    """
    prepare()
    given = (out, reading, model, training)
    lone = resume is None or (data == "fashion" and all(option is None for option in given))
    require(lone, "--resume", "no other settings: they are those of the run", "others too")
    new = out is None or not out.exists()
    require(new, "--out", "a folder that does not exist", str(out), "another name")
    if resume is None:
        options = (reading or DataOptions(), model or ModelOptions(), training or TrainingOptions())
        work = _new_run(data, *options, out=out, device=device)
    else:
        work = _old_run(resume)
    with Stop() as stop, bar("training") as update:
        outcome = work(progress=_shown(update), stop=stop, checkpoint_seconds=checkpoint_seconds)
    if not outcome.finished:
        say(f"saved; go on with: kullback train --resume {outcome.folder}")
        return INTERRUPTED
    close(outcome.folder, as_json=json)
    return 0


def _new_run(
    source: str,
    reading: DataOptions,
    model: ModelOptions,
    training: TrainingOptions,
    *,
    out: Path | None,
    device: str,
) -> "Callable[..., Outcome]":
    architecture, settings = model.architecture(), training.training()
    dataset = _read(source, reading, settings.seed)
    _say_likelihood(dataset.kind, architecture.likelihood)

    from kullback import vae

    return partial(
        vae.train,
        dataset,
        architecture=architecture,
        training=settings,
        folder=out,
        device=device,
    )


def _old_run(run: Path) -> "Callable[..., Outcome]":
    from kullback import vae

    return partial(vae.resume, run)


def _say_likelihood(kind: str, asked: str) -> None:
    from kullback.vae import choose

    name, reason = choose(kind, asked)
    say(f"likelihood: {name} ({reason})")


def _read(source: str, reading: DataOptions, seed: int) -> "Dataset":
    from kullback.data import describe_protocol, load

    settings: dict[str, Any] = {
        "fit": reading.fit,
        "channels": reading.channels,
        "binarize": reading.binarize,
        "test_fraction": reading.test_fraction,
        "levels": reading.parsed_levels(),
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
