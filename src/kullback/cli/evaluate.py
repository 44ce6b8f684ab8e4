"""How a training and an evaluation end: figures, a file of them, a report, a table.

`kullback evaluate`: the figures of a run, on its own test images or on others.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kullback.core import DataError, __version__, read_json, write_json

from .session import bar, print_json, say, write

if TYPE_CHECKING:
    from kullback.data import Dataset
    from kullback.vae import VAE, Evaluation
from typing import Annotated

from cyclopts import Parameter

from kullback.core import require

from .options import Whole
from .session import prepare

__all__ = ["close", "data_of", "evaluate", "measure", "show"]

SECONDS = 20.0  # how long the closing evaluation of a training may take, about


def data_of(run: Path, source: str | None = None) -> "Dataset":
    """Read the data set of a run again, or another source with the run's settings."""
    from kullback.data import reload

    config = read_json(run / "config.json")
    if not isinstance(config, dict) or "data" not in config:
        raise DataError(f"{run / 'config.json'}: says nothing about data. Try: --data")
    return reload(config["data"], source=source)


def measure(model: "VAE", data: "Dataset", draws: int | None, seed: int) -> "Evaluation":
    """Evaluate on the test images with a bar; without draws, as many as twenty seconds allow."""
    import time

    import torch

    from kullback.vae import evaluate, pick_threads

    torch.set_num_threads(pick_threads())
    if draws is None:
        start = time.perf_counter()
        evaluate(model, data.test[:20], draws=10)
        each = (time.perf_counter() - start) / 200
        affordable = SECONDS / (each * len(data.test))
        draws = max((k for k in (10, 20, 50, 100, 200, 500) if k <= affordable), default=10)
    with bar("evaluating") as update:
        return evaluate(model, data.test, draws=draws, seed=seed, progress=update)


def close(run: Path, *, as_json: bool) -> None:
    """Evaluate a finished run, write `evaluation.json` and `report.html`, and print the table."""
    from kullback import report
    from kullback.vae import VAE

    model, data = VAE.load(run), data_of(run)
    evaluation = measure(model, data, None, 0)
    fields = record(evaluation, data)
    write_json(run / "evaluation.json", fields)
    page = report.write(run, data=data)
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


MOST_DRAWS = 1_000_000  # per image


def evaluate(
    run: Annotated[Path, Parameter(help="A run directory.")],
    /,
    *,
    data: Annotated[str | None, Parameter(help="Other data than the run's own.")] = None,
    draws: Annotated[Whole, Parameter(help="Draws of q(z|x) per image: the K of L_K.")] = 500,
    seed: Annotated[Whole, Parameter(help="Of the draws.")] = 0,
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False,
) -> None:
    """Measure ELBO, the importance-weighted bound L_K, rate and distortion on test images.

    Every figure carries its standard error over images. On the run's own data, the figures are
    kept in RUN/evaluation.json and appear in the report when it is rebuilt.
    """
    prepare()
    require(1 <= draws <= MOST_DRAWS, "--draws", f"from 1 to {MOST_DRAWS:,}", f"{draws:,}")
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
