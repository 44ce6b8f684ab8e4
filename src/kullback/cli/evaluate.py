"""`kullback evaluate`: the figures of a run, on its own test images or on others."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kullback.core import require
from kullback.core.files import write_json

from .closing import data_of, measure, record, show
from .numerals import Whole
from .session import prepare, say

__all__ = ["evaluate"]

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
