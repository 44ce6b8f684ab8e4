"""The report of a run: one HTML file with everything in it, to look at and to send.

Which to use: `write`; `read` for a run directory as a `Record`. The file needs no network, no
script and no other file; it follows the reader's light or dark setting, fits a telephone and
prints. Its words are in `templates/run.html`; here are the figures, charts and pictures that stand
between them. Every draw comes from one fixed seed, so the same run gives the same report.
"""

import itertools
import math
from pathlib import Path
from typing import Any

from kullback.core import RunError, write_atomic
from kullback.data import Dataset
from kullback.vae import VAE, Training, start_in_words, too_short
from kullback.vae import limits as vae_limits

from .. import html
from ..evaluation_text import figures, noun_of, protocol_line, remarks, scope
from ..limits import (
    KL_BARS,
    MARK_GAP,
    PAGE_BYTES,
    SOUND_PAGE_BYTES,
    WHOLE_EPOCHS,
)
from .run_charts import (
    Series,
    kl_bars,
    learning_curve,
)
from .run_pictures import is_pictures, shown
from .run_record import Record, evaluation_of, read
from .run_settings import command, data_of, duration, settings_of

__all__ = [
    "Record",
    "command",
    "duration",
    "evaluation_of",
    "is_pictures",
    "read",
    "render",
    "write",
]

CARDS = ("elbo", "log_likelihood", "bits_per_dim", "gap", "rate", "distortion", "active_units")


def write(run: str | Path, *, model: VAE | None = None, data: Dataset | None = None) -> Path:
    """Write `report.html` in a run directory, whole or not at all, and return its path.

    It shows the figures of `evaluation.json` with their error bars, learning curves, samples,
    reconstructions, a map of the latent space, the KL of every dimension and the protocol. What
    cannot be had (no evaluation yet, data gone, training not finished) is left out and the report
    says why. The same run gives the same bytes on the same machine.

    Args:
        run: The run directory.
        model: The run's own, where it is in memory; by default it is read from the directory.
        data: The run's own, where they are in memory; by default they are read again.

    Returns:
        The path of the page, a file below 1 MB (2 MB where it plays sound).

    Raises:
        RunError: The folder holds no run or a damaged file, or the disk refuses.
        DataError: The data given are not those of the run.

    Example:
        >>> from kullback.vae import Architecture, Training, train
        >>> tiny = Architecture(network="mlp", hidden=(8,), latent=2, components=1)
        >>> run = train("fashion", architecture=tiny, training=Training(steps=2), folder="run")
        >>> write(run.folder).name
        'report.html'
    """
    record = read(run, model=model, data=data)
    content = render(record).encode()
    path = record.folder / "report.html"
    most = SOUND_PAGE_BYTES if record.protocol.get("kind") == "sound" else PAGE_BYTES
    if len(content) >= most:
        limit = f"{most:,}"
        raise RunError(f"{path}: would have {len(content):,} bytes; a report has less than {limit}")
    write_atomic(path, content)
    return path


def render(record: Record) -> str:
    """Return the whole page of a record as HTML."""
    test_rows = [row for row in record.metrics if "test_elbo" in row]
    return html.render(
        "run.html",
        name=record.folder.resolve().name,
        lead=_lead(record),
        facts=_facts(record),
        headline=_headline(record),
        missing={"evaluation": "", "model": "", "data": "", **record.missing},
        curves=_curves(record, test_rows),
        short=_short(record),
        test_images=int(test_rows[-1].get("test_images", 0)) if test_rows else None,
        trained_on=protocol_line(record.protocol),
        **shown(record),
        kl=_kl(record),
        data=data_of(record),
        settings=settings_of(record),
        command=command(record.config),
        in_minutes=record.config["training"].get("minutes") is not None,
    )


def _short(record: Record) -> str:
    """Say that a finished run was too short for its data; "" where it was not."""
    config, counts = record.config, record.protocol.get("counts") or {}
    in_memory = record.model is not None and not record.model.unfinished
    finished = in_memory or (record.folder / "model.safetensors").exists()
    known = finished and record.metrics and record.timing and counts.get("train")
    if not known:
        return ""
    step, seconds = int(record.metrics[-1]["step"]), float(record.timing[-1]["seconds"])
    try:
        settings = Training(**config["training"])
    except (ValueError, TypeError):  # a damaged config.json: the page shows it as it is
        return ""
    examples = round(counts["train"] * (1 - settings.validation))
    kind = str(record.protocol.get("kind"))
    said = too_short(settings, step, seconds, max(1, examples), kind=kind)
    return said[:1].upper() + said[1:]


def _lead(record: Record) -> str:
    """Say what was trained, and on what."""
    architecture = record.config["model"].get("architecture") or {}
    source = record.protocol.get("source", "data")
    own, start = record.config["model"].get("own"), record.config.get("start")
    began = "" if not start else f" Its training {start_in_words(start)}."
    if own:
        parts = ", ".join(f"{name} {one}" for name, one in own.items())
        return (
            f"A variational autoencoder trained on {source}, {architecture.get('latent')} latent "
            f"dimensions, with parts of its author's: {parts}.{began}"
        )
    hidden = "-".join(str(width) for width in architecture.get("hidden") or ())
    prior = architecture.get("prior", "normal")
    learned = "" if prior == "normal" else f", {prior} prior"
    family = architecture.get("posterior", "diagonal")
    learned += "" if family == "diagonal" else f", {family} posterior"
    layers = architecture.get("layers", 1)
    if isinstance(layers, list):
        learned += f", stochastic layers of {', '.join(map(str, layers))} dimensions, from the top"
    else:
        learned += "" if layers == 1 else f", {layers} stochastic layers"
    return (
        f"A variational autoencoder trained on {source}: "
        f"{architecture.get('network')} {hidden}, {architecture.get('latent')} latent dimensions, "
        f"{architecture.get('likelihood')} likelihood{_given_before(record)}{learned}.{began}"
    )


def _given_before(record: Record) -> str:
    """Say what of x a likelihood is given beside z: pixels before each, or a context."""
    fields = record.config["model"].get("architecture") or {}
    sound = record.protocol.get("kind") == "sound"
    what = "sample" if sound else "pixel"
    context = fields.get("context") or ()
    if context:
        features = ", ".join(str(width) for width in context)
        return f" (each {what} given learned features of those before it: {features})"
    near = 0 if sound else int(fields.get("neighbours") or 0)
    return f" (each pixel given the {near} before it)" if near else ""


def _facts(record: Record) -> list[str]:
    """Say when it was trained, for how long, and where."""
    created = str(record.config.get("created", "")).replace("T", " ").replace("+00:00", " UTC")
    facts = [created]
    if record.timing:
        facts.append(f"trained for {duration(float(record.timing[-1].get('seconds', 0)))}")
    if record.metrics:
        last = record.metrics[-1]
        epochs = float(last.get("epoch", 0))
        counted = f"{epochs:,.0f}" if epochs >= WHOLE_EPOCHS else f"{epochs:.2g}"
        facts.append(f"{int(last['step']):,} steps, {counted} epochs")
    return [fact for fact in (*facts, str(record.config.get("device", ""))) if fact]


def _headline(record: Record) -> dict[str, Any] | None:
    """Return the figures, those on cards and the others, and what to know before using them."""
    if record.evaluation is None:
        return None
    noun = noun_of(record.evaluated)
    found = figures(record.evaluation, noun=noun)
    less = "gap" if "bits_per_dim" in found else ""  # quantised codes have no gap at all
    keys = [key for key in CARDS if key in found and key != less]
    sentences = remarks(record.evaluation, noun=noun)
    if record.evaluated.get("sha256") != record.protocol.get("sha256"):
        sentences.append("These figures are for other data than those of the training; see below.")
    return {
        "cards": [found[key] for key in keys],
        "more": [one for key, one in found.items() if key not in keys],
        "remarks": sentences,
        "protocol": [protocol_line(record.evaluated), scope(record.evaluation, noun=noun)],
    }


def _curves(record: Record, test: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Draw the ELBO, the rate and the distortion against steps, with minutes above."""
    rows, marks = record.metrics, _minutes(record.timing)
    whole = _whole_stretches(rows)
    series = {name: [_series(name, whole)] for name in ("elbo", "rate", "distortion")}
    if test:
        errors = _column(test, "test_elbo_error")
        held_out = _series("test_elbo", test)
        series["elbo"].append(Series("test", held_out.steps, held_out.values, errors, "b"))
    titles = {"elbo": "ELBO", "rate": "Rate", "distortion": "Distortion"}
    drawn = (
        (titles[name], learning_curve(each, label=f"{titles[name]} against steps", above=marks))
        for name, each in series.items()
    )
    return [{"title": name, "chart": html.markup(chart)} for name, chart in drawn if chart]


def _whole_stretches(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out a last reading over fewer than half the steps of the one before: mostly noise."""
    steps = [float(row["step"]) for row in rows[-3:]]
    short = len(steps) == 3 and 2 * (steps[2] - steps[1]) < steps[1] - steps[0]
    return rows[:-1] if short else rows


def _series(name: str, rows: list[dict[str, Any]]) -> Series:
    return Series(name, _column(rows, "step"), _column(rows, name))


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row.get(name, "nan")) for row in rows]


_CLOCK = (("s", 1, 120), ("min", 60, 7200), ("h", 3600, math.inf))  # unit, seconds, used below


def _minutes(timing: list[dict[str, Any]]) -> list[tuple[float, str]]:
    """Mark round times on the scale of steps, interpolated between the readings of the clock."""
    from matplotlib.ticker import MaxNLocator

    clock = [(0.0, 0.0)] + [(float(row["seconds"]), float(row["step"])) for row in timing]
    total = clock[-1][0]
    if total <= 0:
        return []
    name, size = next((name, size) for name, size, below in _CLOCK if total < below)
    marks: list[tuple[float, str]] = []
    gap = MARK_GAP * clock[-1][1]
    for mark in MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(0.0, total / size)[1:]:
        for (before, low), (after, high) in itertools.pairwise(clock):
            if before < mark * size <= after:
                part = (mark * size - before) / (after - before)
                step = low + part * (high - low)
                if not marks or step - marks[-1][0] >= gap:
                    marks.append((step, f"{mark:.10g} {name}"))
    return marks


def _kl(record: Record) -> dict[str, Any] | None:
    """Draw the KL of every latent dimension, sorted; None when no reading of it exists."""
    readings = [row for row in record.metrics if row.get("kl_per_dimension")]
    if record.evaluation is not None and record.evaluation.kl_per_dimension:
        values = [float(kl) for kl in record.evaluation.kl_per_dimension]
        active, total = record.evaluation.active_units or 0, record.evaluation.rate.value
        varying = record.evaluation.varying_units
        protocol = record.evaluated
    elif readings:
        values = [float(kl) for kl in readings[-1]["kl_per_dimension"]]
        active, total = int(readings[-1].get("active_units", 0)), sum(values)
        varying = readings[-1].get("varying_units")
        protocol = record.protocol
    else:
        return None
    shown = sorted(values, reverse=True)[:KL_BARS]
    chart = kl_bars(shown, active=active, label="KL of each latent dimension", of=len(values))
    return {
        "chart": html.markup(chart),
        "total": f"{total:.4g}",
        "active": active,
        "count": len(values),
        "shown": len(shown),
        "asks_kl": varying is not None,
        "least_kl": f"{vae_limits.ACTIVE_KL:g}",
        "least_variance": f"{vae_limits.ACTIVE_VARIANCE:g}",
        "protocol": protocol_line(protocol),
    }
