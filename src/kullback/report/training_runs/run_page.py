"""The report of a run: one HTML file with everything in it, to look at and to send.

Which to use: `write`; `read` for a run directory as a `Record`. The file needs no network, no
script and no other file; it follows the reader's light or dark setting, fits a telephone and
prints. Its words are in `templates/run.html`; here are the figures, charts and pictures that stand
between them. Every draw comes from one fixed seed, so the same run gives the same report.
"""

import copy
import itertools
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback import data as kdata
from kullback.core import DataError, RunError, read_json, require_type, write_atomic
from kullback.data import Dataset
from kullback.vae import VAE, Architecture, Evaluation, Training, start_in_words, too_short
from kullback.vae import limits as vae_limits

from .. import html, pictures
from ..evaluation_text import figures, noun_of, protocol_line, remarks, scope
from ..limits import (
    KL_BARS,
    LATENT_REACH,
    MARK_GAP,
    PAGE_BYTES,
    SOUND_BYTES,
    SOUND_PAGE_BYTES,
    WHOLE_EPOCHS,
)
from ..pictures import compose, interleave, to_levels
from .run_charts import (
    Series,
    codes,
    kl_bars,
    latent_scatter,
    learning_curve,
    nearest,
    plane,
    traversal,
)

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


@dataclass(frozen=True, slots=True)
class Record:
    """One run as the report sees it; `missing` maps "model", "data", "evaluation" to a reason."""

    folder: Path
    config: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    evaluation: Evaluation | None
    evaluated: Mapping[str, Any]  # the protocol of the data that were evaluated
    model: VAE | None
    data: Dataset | None
    missing: Mapping[str, str]

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The protocol of the data that the run was trained on."""
        protocol: Mapping[str, Any] = self.config["data"]
        return protocol


def read(folder: str | Path, *, model: VAE | None = None, data: Dataset | None = None) -> Record:
    """Read everything a run directory holds, checked as it is read.

    The description must be there; weights, data and evaluation may be missing, and `missing` says
    why in a sentence for the reader of the report.

    Args:
        folder: The run directory.
        model: The run's own, where it is in memory; else it is read.
        data: The run's own, where they are in memory; else they are read.

    Returns:
        The run, with its model on the CPU.

    Raises:
        RunError: The folder has no run's `config.json`, or a damaged file.
        DataError: The data given are not those of the run (their hashes differ).
    """
    require_type(folder, (str, Path), "run")
    folder = Path(folder)
    config = read_json(folder / "config.json")
    for key in ("model", "training", "data"):
        if not isinstance(config, dict) or not isinstance(config.get(key), dict):
            raise RunError(f"{folder / 'config.json'}: not the description of a run: no {key!r}")
    missing: dict[str, str] = {}
    evaluation, evaluated = evaluation_of(folder, missing)
    return Record(
        folder,
        config,
        _log_rows(folder / "metrics.jsonl"),
        _log_rows(folder / "timing.jsonl"),
        evaluation,
        evaluated,
        _model_of(folder, model, missing, own=bool(config["model"].get("own"))),
        _dataset_of(folder, config["data"], data, missing),
        missing,
    )


def _model_of(
    folder: Path, given: VAE | None, missing: dict[str, str], *, own: bool = False
) -> VAE | None:
    if given is not None:
        ready = not given.training and all(one.is_cpu for one in given.parameters())
        return given if ready else copy.deepcopy(given).cpu().eval()
    if own:
        missing["model"] = (
            "It has parts of its author's: kullback.report.write(RUN, model=...) in Python shows "
            "what they make."
        )
        return None
    if (folder / "model.safetensors").exists():
        return VAE.load(folder)
    missing["model"] = "The training has not finished: kullback train --resume RUN"
    return None


def _dataset_of(
    folder: Path, protocol: dict[str, Any], given: Dataset | None, missing: dict[str, str]
) -> Dataset | None:
    """Return the data given, or those of the protocol when they can be read again unchanged."""
    hashes = protocol.get("sha256")
    if given is not None:
        if given.protocol.get("sha256") != hashes:
            raise DataError(f"{folder}: these are not the run's data: the hashes differ")
        return given
    try:
        dataset = kdata.reload(protocol)
    except DataError as error:
        missing["data"] = f"The data could not be read again: {error}"
        return None
    if dataset.protocol["sha256"] != hashes:
        missing["data"] = "The data have changed since the training: their hashes differ."
        return None
    return dataset


def evaluation_of(
    folder: Path, missing: dict[str, str]
) -> tuple[Evaluation | None, Mapping[str, Any]]:
    """Return the evaluation that a run holds and the protocol of its data; or note it missing."""
    path = folder / "evaluation.json"
    if not path.exists():
        missing["evaluation"] = "Not evaluated yet: kullback evaluate RUN"
        return None, {}
    stored = read_json(path)
    try:
        return Evaluation.from_dict(stored["evaluation"]), dict(stored["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not an evaluation of this library: {error}") from error


def _log_rows(path: Path) -> list[dict[str, Any]]:
    """Read a log of JSON lines; a last line without its end was cut off and is left out."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    whole, _, _ = text.rpartition("\n")
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            _ = float(row["step"]), [float(v) for v in row.values() if not isinstance(v, list)]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}: line {number} is not a row of a log") from error
        rows.append(row)
    return _without_repeats(rows)


def _without_repeats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join rows of one step: runs once ended with a second row whose training figures were 0."""
    joined: list[dict[str, Any]] = []
    for row in rows:
        if joined and joined[-1]["step"] == row["step"]:
            joined[-1] = row | joined[-1]
        else:
            joined.append(row)
    return joined


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
        **_shown(record),
        kl=_kl(record),
        data=_data(record),
        settings=_settings(record),
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


MEANS, DRAWS, PAIRS, CODES = 32, 16, 16, 2000
CLIPS = 8  # of sound, drawn and reconstructed
FEWEST, VALUES = 250, 12_000_000  # large images: fewer codes, so that the report stays quick
LABEL_ROWS = 10  # of samples, one a label
MAP, GRID = 22, 11  # cells a side
SIDE, SMALL = 96, 32  # pixels: the longest side of an image as shown, and on the map


def is_pictures(model: VAE) -> bool:
    """Say whether the model's events are grey or RGB images."""
    shape = () if model.spec is None else model.spec.event_shape
    return len(shape) == 3 and shape[0] in (1, 3)


def _shown(record: Record) -> dict[str, Any]:
    """Return what needs the model, and the data where they are there."""
    model, data = record.model, record.data
    if model is not None and model.spec is not None and model.spec.labels:
        return _shown_by_label(model, data)
    shown: dict[str, Any] = {"samples": None, "rebuilt": None, "plane": None, "heard": None}
    if model is not None and is_pictures(model):
        shown["samples"] = _samples(model)
    if model is not None and is_sound(model):
        shown["heard"] = _heard(model, None if data is None else data.test.cpu())
    if model is not None and data is not None:
        test = data.test.cpu()
        shown["rebuilt"] = _reconstructions(model, test) if is_pictures(model) else None
        if len(test) > 1:  # one point has no plane
            shown["plane"] = _latent_map(model, test)
    return shown


def _shown_by_label(model: VAE, data: Dataset | None) -> dict[str, Any]:
    """Show samples of every label, a row each, and reconstructions; there is no one latent map."""
    shown: dict[str, Any] = {"samples": None, "rebuilt": None, "plane": None, "heard": None}
    if not is_pictures(model) or model.spec is None:
        return shown
    names = model.spec.labels[:LABEL_ROWS]
    labels = torch.arange(len(names)).repeat_interleave(8)
    shown["samples"] = _samples(model.at(labels), len(labels)) | {"labels": names}
    if data is not None and data.test_labels is not None:
        test = data.test[:PAIRS].cpu()
        shown["rebuilt"] = _reconstructions(model.at(data.test_labels[: len(test)].cpu()), test)
    return shown


@torch.no_grad()
def _samples(model: VAE, count: int = 0) -> dict[str, Any]:
    """Show the means of p(x|z) for z from the prior, and draws from it."""
    generator, count = torch.Generator().manual_seed(0), count or MEANS
    parameters = model.parameters_of(model.prior.sample(count, generator))
    means, note = _levels(model, model.likelihood.mean(parameters))
    drawn, drawn_note = _levels(model, model.likelihood.sample(parameters[:DRAWS], generator))
    upper = compose(means, columns=8, gap=2)
    lower = interleave(torch.cat([means[:DRAWS], drawn]), columns=8, gap=2)
    return {
        "count": count,
        "labels": (),
        "before": "" if model.spec is None else model.spec.architecture.pixels_before,
        "means": html.picture(upper, "samples: expected images", budget=100_000),
        "means_note": note,
        "draws": html.picture(lower, "expected images above draws", budget=120_000),
        "draws_note": drawn_note,
    }


def is_sound(model: VAE) -> bool:
    """Say whether the model's events are clips of sound."""
    return model.spec is not None and model.spec.kind == "sound"


def _heard(model: VAE, test: Tensor | None) -> dict[str, Any]:
    """Play clips drawn from the model, and test clips beside what is drawn at their mean codes."""
    generator = torch.Generator().manual_seed(0)
    drawn = model.sample(CLIPS, generator=generator)
    shown: dict[str, Any] = {
        "count": CLIPS,
        "drawn": pictures.players(model, drawn, budget=SOUND_BYTES),
        "picture": _spectrograms(drawn, None, "spectrograms of drawn clips"),
        "originals": [],
    }
    if test is None:
        return shown
    x = model.check(test[:CLIPS])
    rebuilt = pictures.reconstructed(model, x, generator)
    return shown | {
        "originals": pictures.players(model, x, budget=SOUND_BYTES),
        "rebuilt": pictures.players(model, rebuilt, budget=SOUND_BYTES),
        "pairs": _spectrograms(x, rebuilt, "spectrograms, originals above reconstructions"),
    }


def _spectrograms(clips: Tensor, below: Tensor | None, alt: str) -> html.Picture:
    return html.picture(pictures.spectrogram_grid(clips, below), alt, budget=200_000)


@torch.no_grad()
def _reconstructions(model: VAE, test: Tensor) -> dict[str, Any]:
    """Show the first test images above what the model makes of their mean codes."""
    x = model.check(test[:PAIRS])
    rebuilt = model.decode(codes(model, x)[0])
    levels, note = _levels(model, torch.cat([x, rebuilt]))
    image = interleave(levels, columns=8, gap=2)
    shown = html.picture(image, "originals above their reconstructions", budget=110_000)
    return {"count": len(x), "picture": shown, "note": note}


def _latent_map(model: VAE, test: Tensor) -> dict[str, Any]:
    """Show the test images on the plane of their codes, and what the decoder makes of the plane."""
    x = test[: max(FEWEST, min(CODES, VALUES // test[0].numel()))]
    found = plane(codes(model, x)[0])
    if found is None:
        return {"shares": []}
    shares = [f"{100 * float(share):.0f} %" for share in found.share]
    shown = {"shares": shares, "count": len(x), "reach": f"{LATENT_REACH:g}", "scatter": None}
    if not is_pictures(model):
        places = [(float(row[0]), float(row[1]) if len(row) > 1 else 0.0) for row in found.places]
        chart = latent_scatter(
            places,
            reach=1.4 * LATENT_REACH,
            label="test vectors on the plane of their codes",
            names=("first direction, standard deviations", "second direction"),
        )
        return shown | {"scatter": html.markup(chart)}
    columns, rows = _cells(model, MAP, len(shares))
    picked = nearest(found.places, columns=columns, rows=rows)
    levels, note = _levels(model, x[picked.clamp(min=0)].float(), limit=SMALL)
    left = compose(levels, columns=columns, gap=1, shown=picked >= 0)
    columns, rows = _cells(model, GRID, len(shares))
    levels, decoded_note = _levels(model, traversal(model, found, columns=columns, rows=rows))
    right = compose(levels, columns=columns, gap=1)
    return shown | {
        "codes": html.picture(left, "test images on the plane of their codes", budget=190_000),
        "codes_note": note,
        "decoded": html.picture(right, "images decoded from the same plane", budget=110_000),
        "decoded_note": decoded_note,
    }


def _cells(model: VAE, side: int, directions: int) -> tuple[int, int]:
    """Return columns and rows of a lattice that is about square whatever the images' shape."""
    _, height, width = (1, 1, 1) if model.spec is None else model.spec.event_shape
    stretch = min(4.0, max(0.25, math.sqrt(width / height)))
    return max(2, round(side / stretch)), max(2, round(side * stretch)) if directions > 1 else 1


def _levels(model: VAE, images: Tensor, *, limit: int = SIDE) -> tuple[Tensor, str]:
    kind = "continuous" if model.spec is None else model.spec.kind
    count = 256 if model.spec is None else model.spec.levels
    levels, note = to_levels(images, kind=kind, levels=count)
    return html.shrunk(levels, limit=limit), note


LISTED = 20  # notes and skipped files shown, at most
USUAL_DATA: dict[str, Any] = {
    "size": None,
    "fit": "crop",
    "channels": "auto",
    "binarize": "none",
    "reading": "auto",
    "size_factors": "auto",
    "label": "",
    "storage": "auto",
}
USUAL_DATA |= {"test_fraction": 0.1, "seed": None}


def _data(record: Record) -> dict[str, Any]:
    """List the data's protocol: source, split, binarisation, seed, hashes, skipped files, notes."""
    stored = record.protocol
    hashes, counts = stored.get("sha256") or {}, stored.get("counts") or {}
    skipped = stored.get("skipped") or {}
    rows: list[tuple[str, object]] = [
        ("source", stored.get("source", "")),
        ("split", stored.get("split", "")),
        *((f"{side} examples", f"{int(n):,}") for side, n in counts.items()),
        ("example", _example_of(stored)),
        ("kind", stored.get("kind", "")),
        *((("levels", f"{int(stored['levels']):,}"),) if "levels" in stored else ()),
        *(
            (name, f"{int(number):,} {unit}")
            for name, unit in (("rate", "Hz"), ("clip", "samples"), ("real", "samples"))
            for number in ((stored.get("sound") or {}).get(name),)
            if number is not None
        ),
        ("binarisation", stored.get("binarize", "")),
        ("seed of the data", stored.get("seed", "")),
        *((f"sha256 {side}", digest) for side, digest in hashes.items()),
        ("skipped", skipped.get("count", 0)),
    ]
    named = [f"{f.get('name')}: {f.get('reason')}" for f in (skipped.get("files") or ())[:LISTED]]
    return {"rows": rows, "notes": [*(stored.get("notes") or ())[:LISTED], *named]}


def _example_of(stored: Mapping[str, Any]) -> str:
    """Write the shape of an example; of counts without its size factor, which is named."""
    shape = [int(size) for size in stored.get("event_shape") or ()]
    if stored.get("sizes"):
        return f"{shape[0] - 1} and a size factor ({stored['sizes']})"
    return "×".join(map(str, shape))


def _settings(record: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    """List the settings of the model, the training and the machine."""
    config = record.config
    architecture = dict(config["model"].get("architecture") or {})
    own = config["model"].get("own") or {}
    replaced = {"encoder": "network", "decoder": "network"}
    for part in own:
        architecture.pop(replaced.get(part, part), None)
    if "network" not in architecture:
        for name in ("hidden", "activation"):
            architecture.pop(name, None)
    architecture |= own
    machine = {key: config.get(key, "") for key in ("device", "threads", "precision")}
    if record.model is not None:
        count = sum(weights.numel() for weights in record.model.parameters())
        architecture["parameters"] = f"{count:,}"
    machine |= config.get("versions") or {}
    parts = {"Model": architecture, "Training": config["training"], "Machine": machine}
    preset = config.get("preset")
    if preset:
        instead = {f"{name}, given instead": v for name, v in preset["given_instead"].items()}
        parts = {"Preset": {"name": preset["name"]} | preset["options"] | instead} | parts
    return [
        (name, [(key.replace("_", " "), _plain(value)) for key, value in part.items()])
        for name, part in parts.items()
    ]


def command(config: Mapping[str, Any]) -> str:
    """Write the command that trains this model again: every setting that is not the usual one.

    >>> config = {"training": {"steps": 9, "seed": 1}, "model": {}, "data": {"source": "my dir"}}
    >>> command(config)
    "kullback train 'my dir' --steps 9 --seed 1"
    """
    data, own = config["data"], config["model"].get("own")
    start = {"from": config["start"]["run"]} if config.get("start") else {}
    if own or data.get("given") or data.get("paths"):
        parts = "".join(f"{name}=…, " for name in own or ())
        parts += f"start={start['from']!r}, " if start else ""
        settings = {name: value for name, value in config["training"].items() if value is not None}
        return f"kullback.vae.train({data.get('source')!r}, {parts}training=Training(**{settings}))"
    shape, kind = tuple(data.get("event_shape") or (1,)), data.get("kind", "continuous")
    examples = (data.get("counts") or {}).get("train")
    architecture = dict(config["model"].get("architecture") or {})
    network = Architecture().resolved(shape, kind).network
    known = architecture.get("network") if kind != "sound" else network
    named = str(known) if known in ("mlp", "conv", "patch") and len(shape) == 3 else network
    usual = asdict(Architecture(network=named).resolved(shape, kind)) | {"network": network}
    given = architecture | dict(config["training"]) | start
    given["components"] = given.get("components") or usual["components"]
    beside = given.get("neighbours", 0)  # runs made before there were any have none
    given["neighbours"] = usual["neighbours"] if beside < 0 else beside
    told = [n for n in usual if given.get(n) is not None and _plain(given[n]) != _plain(usual[n])]
    same = given.get("batch_size") == Training.usual(kind, shape).batch_size
    plain = not told and not start and same and given.get("objective", "elbo") == "elbo"
    usual |= USUAL_DATA
    usual |= Training.usual(kind, shape, examples=examples, plain=plain).to_dict()
    given |= {key: data[key] for key in USUAL_DATA if key in data} | {"seed": given.get("seed")}
    if given.get("size"):
        given["size"] = "x".join(str(side) for side in given["size"])
    given["levels"] = given.pop("reading", "auto")
    if kind == "sound":
        given |= {"rate": data.get("rate"), "clip_seconds": data.get("clip")}
    usual["levels"] = "auto"
    words = ["kullback", "train", str(data.get("source", "DATA"))]
    for key, value in given.items():
        if value is not None and _plain(value) != _plain(usual.get(key)):
            flag = f"--{key.replace('_', '-')}"
            words += [flag] if value is True else [flag, _plain(value)]
    return shlex.join(words)


def duration(seconds: float) -> str:
    """Say a length of time in words.

    >>> duration(95.2), duration(7260)
    ('1 min 35 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return "not given" if value is None else str(value)
