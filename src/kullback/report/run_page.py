"""The parts of the report that are figures: the headline, the learning curves, the KL bars.

Each function takes a `Record` and returns markup; everything that came from a user is escaped.

The parts of the report that show what the model does: samples, reconstructions, the latent map.

Each function returns markup, or a sentence that says why there is nothing to show. Every draw
comes from one fixed seed, so the same run gives the same report.

How to read a report: every term in it, in words for a reader who meets it for the first time.

Which to use: `TERMS`, pairs of a term and its explanation, in reading order, as plain text.

The parts of the report that say where its figures come from: run, data, settings, command.

Each function takes a `Record` and returns markup; everything that came from a user is escaped.

The report of a run: one HTML file with everything in it, to look at and to send.

Which to use: `write`. The file needs no network, no script and no other file; it follows the
reader's light or dark setting, fits a telephone and prints.
"""

import itertools
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback.core import RunError, write_atomic
from kullback.data import Dataset
from kullback.vae import VAE, Architecture, Training
from kullback.vae.limits import ACTIVE_KL

from .charts import (
    Series,
    bars,
    document,
    esc,
    figure,
    lines,
    picture,
    prose,
    scatter,
    section,
    shrunk,
    table,
    ticks,
)
from .evaluation_text import Figure, figures, noun_of, protocol_line, remarks, scope
from .latent import REACH, Plane, codes, nearest, plane, traversal
from .pictures import compose, interleave, to_levels
from .record import Record, read

__all__ = [
    "LIMIT",
    "TERMS",
    "beside",
    "command",
    "curves",
    "duration",
    "headline",
    "is_pictures",
    "kl_bars",
    "latent_map",
    "protocol",
    "reconstructions",
    "render",
    "samples",
    "settings",
    "title",
    "write",
]

CARDS = ("elbo", "log_likelihood", "bits_per_dim", "gap", "rate", "distortion", "active_units")
BARS = 256  # latent dimensions shown, at most


def headline(record: Record) -> str:
    """Show the figures as cards with error bars, each with a sentence, and what to beware of."""
    if record.evaluation is None:
        return f'<p class="note">{esc(record.missing["evaluation"])}</p>'
    noun = noun_of(record.evaluated)
    found = figures(record.evaluation, noun=noun)
    keys = [key for key in CARDS if key in found]
    if "bits_per_dim" in keys:
        keys.remove("gap")
    cards = "".join(_card(found[key]) for key in keys)
    more = "".join(_row(one) for key, one in found.items() if key not in keys)
    sentences = remarks(record.evaluation, noun=noun)
    if record.evaluated.get("sha256") != record.protocol.get("sha256"):
        sentences.append("These figures are for other data than those of the training; see below.")
    said = "".join(f"<li>{prose(text)}</li>" for text in sentences)
    return (
        f'<div class="cards">{cards}</div><table class="more">{more}</table>'
        f'<ul class="remarks">{said}</ul>'
        f"{beside(record.evaluated, scope(record.evaluation, noun=noun))}"
    )


def _card(one: Figure) -> str:
    value, sign, error = one.value.partition(" ± ")
    error = f' <span class="error">± {esc(error)}</span>' if sign else ""
    name = prose(one.name[0].upper() + one.name[1:])
    return (
        f'<article title="{esc(one.value)} {esc(one.unit)}"><h3>{name}</h3>'
        f'<p class="value">{esc(value)}{error}</p><p class="unit">{esc(one.unit)}</p>'
        f"<p>{prose(one.meaning)}</p></article>"
    )


def _row(one: Figure) -> str:
    return (
        f'<tr><th scope="row">{prose(one.name)}</th>'
        f"<td><b>{esc(one.value)}</b> {esc(one.unit)}</td><td>{prose(one.meaning)}</td></tr>"
    )


def beside(protocol: Mapping[str, Any], *more: str) -> str:
    """Write the protocol's line, which stands beside every figure that depends on it."""
    parts = "".join(f"<br>{esc(text)}" for text in (protocol_line(protocol), *more))
    return f'<p class="protocol">{parts.removeprefix("<br>")}</p>'


def curves(record: Record) -> str:
    """Draw the ELBO, the rate and the distortion against steps, with minutes above."""
    rows = record.metrics
    marks = _minutes(record.timing)
    steps = [float(row["step"]) for row in rows]
    test = [row for row in rows if "test_elbo" in row]
    series = [Series("train", steps, _column(rows, "elbo"), None, "a")]
    if test:
        errors = _column(test, "test_elbo_error")
        at = [float(row["step"]) for row in test]
        series.append(Series("test", at, _column(test, "test_elbo"), errors, "b"))
    charts = {
        "ELBO": lines(series, label="ELBO against steps", above=marks),
        **{
            name.capitalize(): lines(
                [Series(name, steps, _column(rows, name))], label=f"{name} by steps", above=marks
            )
            for name in ("rate", "distortion")
        },
    }
    captions = {
        "ELBO": '<span class="key a">training batches</span> are averaged between readings.',
        "Rate": "What the code says about x, over training batches. It rises as z is put to use.",
        "Distortion": "What the code leaves open, over training batches. It falls as z explains x.",
    }
    if test:
        images = int(test[-1].get("test_images", 0))
        captions["ELBO"] += (
            f' <span class="key b">test</span>: {images:,} examples, averaged weights, '
            "± one standard error over examples, the same noise each time."
        )
    drawn = "".join(figure(svg, name, captions[name]) for name, svg in charts.items() if svg)
    if not drawn:
        return '<p class="note">No readings yet: the first comes after one epoch.</p>'
    return f'<div class="three">{drawn}</div>{beside(record.protocol)}'


def kl_bars(record: Record) -> str:
    """Draw the KL of every latent dimension, sorted; empty when no reading of it exists."""
    readings = [row for row in record.metrics if row.get("kl_per_dimension")]
    if record.evaluation is not None:
        values = [float(kl) for kl in record.evaluation.kl_per_dimension]
        active, total = record.evaluation.active_units, record.evaluation.rate.value
        varying = record.evaluation.varying_units
        protocol = record.evaluated
    elif readings:
        values = [float(kl) for kl in readings[-1]["kl_per_dimension"]]
        active, total = int(readings[-1].get("active_units", 0)), sum(values)
        varying = readings[-1].get("varying_units")
        protocol = record.protocol
    else:
        return ""
    values = sorted(values, reverse=True)
    label = "KL of each latent dimension"
    chart = bars(values[:BARS], active=active, label=label, of=len(values))
    also = "" if varying is None else f" and this KL is {ACTIVE_KL:g} nats or more"
    cut = f" The {BARS} largest of {len(values):,} are shown." if len(values) > BARS else ""
    caption = (
        f"Mean KL(q(z|x) ‖ p(z)) of each latent dimension; together they are the rate, "
        f"{total:.4g} nats. A dimension is active when its mean code varies from example to "
        f"example with a variance above 0.01{also}: {active} of {len(values):,} are.{cut}"
    )
    return figure(chart, "KL per dimension", esc(caption)) + beside(protocol)


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row.get(name, "nan")) for row in rows]


def _minutes(timing: list[dict[str, Any]]) -> list[tuple[float, str]]:
    """Mark round times on the scale of steps, interpolated between the readings of the clock."""
    clock = [(0.0, 0.0)] + [(float(row["seconds"]), float(row["step"])) for row in timing]
    total = clock[-1][0]
    size, name = (1.0, "s") if total < 120 else (60.0, "min") if total < 7200 else (3600.0, "h")
    marks = []
    for mark in ticks(0.0, total / size, about=4)[1:]:
        for (before, low), (after, high) in itertools.pairwise(clock):
            if before < mark * size <= after:
                part = (mark * size - before) / (after - before)
                marks.append((low + part * (high - low), f"{mark} {name}"))
    return marks


MEANS, DRAWS, PAIRS, CODES = 32, 16, 16, 2000
FEWEST, VALUES = 250, 12_000_000  # large images: fewer codes, so that the report stays quick
MAP, GRID = 22, 11  # cells a side
SIDE, SMALL = 96, 32  # pixels: the longest side of an image as shown, and on the map


def is_pictures(model: VAE) -> bool:
    """Say whether the model's events are grey or RGB images."""
    shape = () if model.spec is None else model.spec.event_shape
    return len(shape) == 3 and shape[0] in (1, 3)


@torch.no_grad()
def samples(model: VAE) -> str:
    """Show what the model imagines: means of p(x|z) for z from the prior, and true draws."""
    generator = torch.Generator().manual_seed(0)
    parameters = model.parameters_of(model.prior.sample(MEANS, generator))
    means, note = _levels(model, model.likelihood.mean(parameters))
    drawn, drawn_note = _levels(model, model.likelihood.sample(parameters[:DRAWS], generator))
    upper = compose(means, columns=8, gap=2)
    lower = interleave(torch.cat([means[:DRAWS], drawn]), columns=8, gap=2)
    return figure(
        picture(upper, "samples: expected images", budget=100_000),
        "What the model imagines",
        f"{MEANS} codes z drawn from the prior, each shown as the image expected from it, "
        f"E[x|z]. Seed 0, none chosen.{_range(note)}",
    ) + figure(
        picture(lower, "expected images above true draws", budget=120_000),
        "What it really draws",
        f"Below each row of expected images, a draw from p(x|z) for each. Pixels are drawn one "
        "by one given z, so the grain is what the code leaves open: the distortion."
        f"{_range(drawn_note)}",
    )


@torch.no_grad()
def reconstructions(model: VAE, test: Tensor) -> str:
    """Show the first test images above what the model makes of their mean codes."""
    x = model.check(test[:PAIRS])
    rebuilt = model.decode(codes(model, x)[0])
    levels, note = _levels(model, torch.cat([x, rebuilt]))
    image = interleave(levels, columns=8, gap=2)
    return figure(
        picture(image, "originals above their reconstructions", budget=110_000),
        "Originals, and what is left of them",
        f"The first {len(x)} test images, none chosen; below each row, the images expected from "
        f"their mean codes.{_range(note)}",
    )


def latent_map(model: VAE, test: Tensor) -> str:
    """Show the test images on the plane of their codes, and what the decoder makes of the plane."""
    x = test[: max(FEWEST, min(CODES, VALUES // test[0].numel()))]
    found = plane(codes(model, x)[0])
    if found is None:
        return "<p>The codes of all images are the same, so there is no map to draw.</p>"
    percent = [f"{100 * float(share):.0f} %" for share in found.share]
    axes = f"across, the direction in which they vary most ({percent[0]} of their variance)"
    axes += f"; up, the next ({percent[1]})" if len(percent) > 1 else ""
    if not is_pictures(model):
        return _cloud(found, axes)
    columns, rows = _cells(model, MAP, len(percent))
    picked = nearest(found.places, columns=columns, rows=rows)
    levels, note = _levels(model, x[picked.clamp(min=0)].float(), limit=SMALL)
    left = compose(levels, columns=columns, gap=1, shown=picked >= 0)
    columns, rows = _cells(model, GRID, len(percent))
    levels, decoded_note = _levels(model, traversal(model, found, columns=columns, rows=rows))
    right = compose(levels, columns=columns, gap=1)
    return figure(
        picture(left, "test images on the plane of their codes", budget=190_000),
        "Where the images lie",
        f"Codes of {len(x):,} test images: {axes}. Each cell shows the image nearest its centre; "
        f"the edges are at {REACH:g} standard deviations.{_range(note)}",
    ) + figure(
        picture(right, "images decoded from the same plane", budget=110_000),
        "What the decoder makes of the same plane",
        "The image expected at each place, all other directions held at their mean."
        f"{_range(decoded_note)}",
    )


def _cloud(found: Plane, axes: str) -> str:
    places = [(float(row[0]), float(row[1]) if len(row) > 1 else 0.0) for row in found.places]
    chart = scatter(
        places,
        reach=1.4 * REACH,
        label="test vectors on the plane of their codes",
        names=("first direction, standard deviations", "second direction"),
    )
    return figure(
        chart, "Where the vectors lie", f"Mean codes of {len(places):,} test vectors: {axes}."
    )


def _cells(model: VAE, side: int, directions: int) -> tuple[int, int]:
    """Return columns and rows of a lattice that is about square whatever the images' shape."""
    _, height, width = (1, 1, 1) if model.spec is None else model.spec.event_shape
    stretch = min(4.0, max(0.25, math.sqrt(width / height)))
    return max(2, round(side / stretch)), max(2, round(side * stretch)) if directions > 1 else 1


def _levels(model: VAE, images: Tensor, *, limit: int = SIDE) -> tuple[Tensor, str]:
    kind = "continuous" if model.spec is None else model.spec.kind
    count = 256 if model.spec is None else model.spec.levels
    levels, note = to_levels(images, kind=kind, levels=count)
    return shrunk(levels, limit=limit), note


def _range(note: str) -> str:
    return f" {esc(note.capitalize())}." if note else ""


TERMS = (
    (
        "Surprise",
        "A model gives every possible image x a probability p(x). The surprise of seeing x is "
        "log 1/p(x): nothing for what was certain, more the less likely it was. Independent "
        "surprises add. With natural logarithms the unit is the nat; 1 nat is 1.443 bits. A good "
        "model is little surprised by images it has never seen, so log p(x) should be high.",
    ),
    (
        "Code, encoder, decoder",
        "This model explains each x by a short list of numbers z, its code. A code is drawn from "
        "the prior p(z), and the decoder turns it into a probability p(x|z) for every image. The "
        "encoder goes the other way: q(z|x) says which codes could explain x.",
    ),
    (
        "A bound",
        "log p(x) adds up over every possible code, which nobody can do exactly. What can be "
        "computed is a figure that lies below it in expectation: a lower bound, a floor. A higher "
        "floor is better, and the truth is no lower.",
    ),
    (
        "ELBO",
        "The evidence lower bound: E[log p(x|z)] − KL(q(z|x) ‖ p(z)). It falls short of log p(x) "
        "by exactly KL(q(z|x) ‖ p(z|x)), the error of the encoder.",
    ),
    (
        "Rate and distortion",
        "The two halves of −ELBO. To describe x you first name a code, which costs the rate; then "
        "you correct what the decoder expected, which costs the distortion. A rate near 0 means "
        "that the code is ignored (posterior collapse).",
    ),
    (
        "L_K",
        "Draw K codes from q(z|x), weight each by p(x, z)/q(z|x), average the weights and take the "
        "logarithm. With K = 1 that is the ELBO in expectation. The logarithm is concave, so "
        "averaging before it can only raise the expectation: ELBO ≤ L_K ≤ log p(x), and L_K rises "
        "towards log p(x) as K grows. L_K − ELBO is thus a floor under the encoder's error.",
    ),
    (
        "Effective draws",
        "When one of the K weights outweighs all others, L_K rests on a single draw and is loose. "
        "(Σw)²/Σw² counts how many draws truly take part: K when all are equal, 1 when one "
        "dominates. Few effective draws make L_K too low, never too high in expectation.",
    ),
    (
        "Active units",
        "A latent dimension is active when the mean of q(z|x) differs from one x to another "
        "(variance above 0.01, Burda et al. 2016) and its KL is 0.1 nats or more. The first alone "
        "is met by a dimension that says 0.005 nats; the KL bounds what one can say about x.",
    ),
    (
        "Bits per dimension",
        "For data that are levels: −L_K in bits, divided by the number of values in an x. It is "
        "the length of a code made from this model. Only figures on the same data, prepared the "
        "same way, compare; figures on binarised data compare with none on 8-bit data, those on "
        "8 bits with none on 12. A density has no such figure: it depends on the units.",
    ),
    (
        "±",
        "One standard error over the test examples: how much the average would move with other "
        "examples of the same kind. The same examples were used for all figures here, so the "
        "difference of two of them is surer than their error bars suggest: see the gap's own.",
    ),
)


LISTED = 20  # notes and skipped files shown, at most
USUAL_DATA: dict[str, Any] = {
    "size": None,
    "fit": "crop",
    "channels": "auto",
    "binarize": "none",
    "reading": "auto",
}
USUAL_DATA |= {"test_fraction": 0.1, "seed": None}


def title(record: Record) -> str:
    """Say what was trained, on what, when and for how long."""
    config = record.config
    architecture = config["model"].get("architecture") or {}
    hidden = "-".join(str(width) for width in architecture.get("hidden") or ())
    what = (
        f"A variational autoencoder trained on {record.protocol.get('source', 'data')}: "
        f"{architecture.get('network')} {hidden}, {architecture.get('latent')} latent dimensions, "
        f"{architecture.get('likelihood')} likelihood."
    )
    facts = [str(config.get("created", "")).replace("T", " ").replace("+00:00", " UTC")]
    if record.timing:
        facts.append(f"trained for {duration(float(record.timing[-1].get('seconds', 0)))}")
    if record.metrics:
        last = record.metrics[-1]
        epochs = float(last.get("epoch", 0))
        counted = f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"
        facts.append(f"{int(last['step']):,} steps, {counted} epochs")
    facts.append(str(config.get("device", "")))
    named = "".join(f"<li>{esc(fact)}</li>" for fact in facts if fact)
    name = esc(record.folder.resolve().name)
    return f'<h1>{name}</h1><p class="lead">{esc(what)}</p><ul class="meta">{named}</ul>'


def protocol(record: Record) -> str:
    """List the data's protocol: source, split, binarisation, seed, hashes, skipped files, notes."""
    stored = record.protocol
    hashes, counts = stored.get("sha256") or {}, stored.get("counts") or {}
    skipped = stored.get("skipped") or {}
    rows: list[tuple[str, object]] = [
        ("source", stored.get("source", "")),
        ("split", stored.get("split", "")),
        *((f"{side} examples", f"{int(n):,}") for side, n in counts.items()),
        ("example", "×".join(str(size) for size in stored.get("event_shape") or ())),
        ("kind", stored.get("kind", "")),
        *((("levels", f"{int(stored['levels']):,}"),) if "levels" in stored else ()),
        ("binarisation", stored.get("binarize", "")),
        ("seed of the data", stored.get("seed", "")),
        *((f"sha256 {side}", digest) for side, digest in hashes.items()),
        ("skipped", skipped.get("count", 0)),
    ]
    named = [f"{f.get('name')}: {f.get('reason')}" for f in (skipped.get("files") or ())[:LISTED]]
    notes = [*(stored.get("notes") or ())[:LISTED], *named]
    listed = "".join(f"<li>{esc(note)}</li>" for note in notes)
    return table(rows) + (f"<ul>{listed}</ul>" if listed else "")


def settings(record: Record) -> str:
    """List the settings of the model, the training and the machine."""
    config = record.config
    architecture = dict(config["model"].get("architecture") or {})
    machine = {key: config.get(key, "") for key in ("device", "threads", "precision")}
    versions = config.get("versions") or {}
    if record.model is not None:
        count = sum(weights.numel() for weights in record.model.parameters())
        architecture["parameters"] = f"{count:,}"
    parts = {"Model": architecture, "Training": config["training"], "Machine": machine | versions}
    written = ""
    for name, part in parts.items():
        rows = table((key.replace("_", " "), _plain(value)) for key, value in part.items())
        written += f"<div><h3>{name}</h3>{rows}</div>"
    return written


def command(config: Mapping[str, Any]) -> str:
    """Write the command that trains this model again: every setting that is not the usual one.

    >>> config = {"training": {"steps": 9, "seed": 1}, "model": {}, "data": {"source": "my dir"}}
    >>> command(config)
    "kullback train 'my dir' --steps 9 --seed 1"
    """
    data = config["data"]
    shape, kind = tuple(data.get("event_shape") or (1,)), data.get("kind", "continuous")
    usual = asdict(Architecture().resolved(shape, kind)) | Training().to_dict() | USUAL_DATA
    given = dict(config["model"].get("architecture") or {}) | dict(config["training"])
    given |= {key: data[key] for key in USUAL_DATA if key in data} | {"seed": given.get("seed")}
    if given.get("size"):
        given["size"] = "x".join(str(side) for side in given["size"])
    given["levels"] = given.pop("reading", "auto")
    usual["levels"] = "auto"
    words = ["kullback", "train", str(data.get("source", "DATA"))]
    for key, value in given.items():
        if value is not None and _plain(value) != _plain(usual.get(key)):
            words += [f"--{key.replace('_', '-')}", _plain(value)]
    return shlex.join(words)


def duration(seconds: float) -> str:
    """Say a length of time in words.

    >>> duration(95.2), duration(7260)
    ('1 min 35 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return "not given" if value is None else str(value)


LIMIT = 1_000_000  # bytes: what one e-mail or chat message will carry


def write(run: str | Path, *, data: Dataset | None = None) -> Path:
    """Write `report.html` in a run directory, whole or not at all, and return its path.

    It shows the figures of `evaluation.json` with their error bars, learning curves, samples,
    reconstructions, a map of the latent space, the KL of every dimension and the protocol. data:
    the run's own, when it was trained on a `Dataset` made in memory; by default they are read
    again. What cannot be had (no evaluation yet, data gone, training not finished) is left out
    and the report says why. Under 1 MB; the same run gives the same bytes on the same machine.
    Errors: RunError for a folder that holds no run or a damaged file, or when the disk refuses;
    DataError when the data given are not those of the run.

    >>> from kullback.vae import Architecture, Training, train
    >>> tiny = Architecture(network="mlp", hidden=(8,), latent=2, components=1)
    >>> run = train("fashion", architecture=tiny, training=Training(steps=2), folder="run")
    >>> write(run.folder).name
    'report.html'
    """
    record = read(run, data=data)
    page = render(record).encode()
    path = record.folder / "report.html"
    if len(page) >= LIMIT:
        raise RunError(f"{path}: would have {len(page):,} bytes; a report has less than {LIMIT:,}")
    write_atomic(path, page)
    return path


def render(record: Record) -> str:
    """Return the whole page of a record as HTML."""
    name = esc(record.folder.resolve().name)
    terms = "".join(f"<dt>{prose(term)}</dt><dd>{prose(text)}</dd>" for term, text in TERMS)
    sections = (
        section("figures", "The figures", headline(record)),
        section("curves", "How it learned", curves(record)),
        *_shown(record),
        section("latent", "What each latent dimension costs", kl_bars(record)),
        section("guide", "How to read this", f"<dl>{terms}</dl>"),
        section("protocol", "The data", protocol(record)),
        section("settings", "The settings", f'<div class="three">{settings(record)}</div>'),
        section("again", "Again", _again(record)),
    )
    return document(name, title(record), sections)


def _shown(record: Record) -> list[str]:
    """Write the sections that need the model, and the data where they are there."""
    model, data = record.model, record.data
    if model is None:
        return [section("samples", "Samples", _note(record.missing["model"]))]
    pictures = is_pictures(model)
    sections = []
    if pictures:
        shown = f'<div class="two">{samples(model)}</div>'
        sections.append(section("samples", "Samples", shown))
    if data is None:
        heading = "Reconstructions and the latent map"
        return [*sections, section("map", heading, _note(record.missing["data"]))]
    where = beside(record.protocol)
    test = data.test.cpu()
    if pictures:
        rebuilt = reconstructions(model, test) + where
        sections.append(section("reconstructions", "Reconstructions", rebuilt))
    plane = f'<div class="two">{latent_map(model, test)}</div>{where}'
    return [*sections, section("map", "A map of the latent space", plane)]


def _again(record: Record) -> str:
    clock = ""
    if record.config["training"].get("minutes") is not None:
        clock = (
            "<p>A budget in minutes follows the clock, so another training differs a little.</p>"
        )
    return (
        f"<p>To train this model again:</p><pre>{esc(command(record.config))}</pre>{clock}"
        "<p>To measure it, and to rebuild this report from the run directory:</p>"
        "<pre>kullback evaluate RUN\nkullback report RUN</pre>"
    )


def _note(text: str) -> str:
    return f'<p class="note">{esc(text)}</p>'
