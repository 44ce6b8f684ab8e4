"""The parts of the report that are words and numbers: figures, curves, protocol, settings.

Each function takes a `Record` and returns markup; everything that came from a user is escaped.
"""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kullback.vae import Architecture, Training
from kullback.vae.likelihoods import choose

from .charts import Series, bars, lines, ticks
from .markup import esc, figure, prose, table
from .record import Record
from .words import figures, noun_of, protocol_line, remarks, scope

__all__ = ["command", "curves", "duration", "headline", "kl_bars", "protocol", "settings", "title"]

CARDS = ("elbo", "log_likelihood", "bits_per_dim", "gap", "rate", "distortion", "active_units")
BARS = 256  # latent dimensions shown, at most
USUAL_DATA: dict[str, Any] = {"size": None, "fit": "crop", "channels": "auto", "binarize": "none"}
USUAL_DATA |= {"test_fraction": 0.1, "seed": None}
LISTED = 20  # notes and skipped files shown, at most


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
        facts.append(f"{int(last['step']):,} steps, {float(last.get('epoch', 0)):.3g} epochs")
    facts.append(str(config.get("device", "")))
    named = "".join(f"<li>{esc(fact)}</li>" for fact in facts if fact)
    name = esc(record.folder.resolve().name)
    return f'<h1>{name}</h1><p class="lead">{esc(what)}</p><ul class="meta">{named}</ul>'


def headline(record: Record) -> str:
    """Show the figures as cards with error bars, each with a sentence, and what to beware of."""
    if record.evaluation is None:
        return f'<p class="note">{esc(record.missing["evaluation"])}</p>'
    noun = noun_of(record.evaluated)
    found = figures(record.evaluation, noun=noun)
    keys = [key for key in CARDS if key in found]
    if "bits_per_dim" in keys:
        keys.remove("gap")
    cards = ""
    for one in (found[key] for key in keys):
        value, sign, error = one.value.partition(" ± ")
        error = f' <span class="error">± {esc(error)}</span>' if sign else ""
        cards += (
            f'<article title="{esc(one.value)} {esc(one.unit)}"><h3>{prose(one.name[0].upper() + one.name[1:])}</h3>'
            f'<p class="value">{esc(value)}{error}</p><p class="unit">{esc(one.unit)}</p>'
            f"<p>{prose(one.meaning)}</p></article>"
        )
    rest = [one for key, one in found.items() if key not in keys]
    more = "".join(
        f'<tr><th scope="row">{prose(one.name)}</th><td><b>{esc(one.value)}</b> {esc(one.unit)}</td>'
        f"<td>{prose(one.meaning)}</td></tr>"
        for one in rest
    )
    said = "".join(f"<li>{prose(text)}</li>" for text in remarks(record.evaluation, noun=noun))
    return (
        f'<div class="cards">{cards}</div><table class="more">{more}</table>'
        f'<ul class="remarks">{said}</ul>'
        f"{beside(record.evaluated, scope(record.evaluation, noun=noun))}"
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
        protocol = record.evaluated
    elif readings:
        values = [float(kl) for kl in readings[-1]["kl_per_dimension"]]
        active, total = int(readings[-1].get("active_units", 0)), sum(values)
        protocol = record.protocol
    else:
        return ""
    values = sorted(values, reverse=True)
    flags = [rank < active for rank in range(len(values))]
    chart = bars(values[:BARS], active=flags[:BARS], label="KL of each latent dimension")
    cut = f" The {BARS} largest of {len(values):,} are shown." if len(values) > BARS else ""
    caption = (
        f"Mean KL(q(z|x) ‖ p(z)) of each latent dimension; together they are the rate, "
        f"{total:.4g} nats. A dimension is active when its mean code varies from example to example "
        f"with a variance above 0.01, which costs 0.005 nats or more: {active} of {len(values):,} "
        f"are.{cut}"
    )
    return figure(chart, "KL per dimension", esc(caption)) + beside(protocol)


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
    return "".join(
        f"<div><h3>{name}</h3>{table((k.replace('_', ' '), _plain(v)) for k, v in part.items())}</div>"
        for name, part in parts.items()
    )


def command(config: Mapping[str, Any]) -> str:
    """Write the command that trains this model again: every setting that is not the usual one.

    >>> config = {"training": {"steps": 9, "seed": 1}, "model": {}, "data": {"source": "my dir"}}
    >>> command(config)
    "kullback train 'my dir' --steps 9 --seed 1"
    """
    data = config["data"]
    kind = data.get("kind", "continuous")
    usual = asdict(Architecture(likelihood=choose(kind)[0])) | Training().to_dict() | USUAL_DATA
    given = dict(config["model"].get("architecture") or {}) | dict(config["training"])
    given |= {key: data[key] for key in USUAL_DATA if key in data} | {"seed": given.get("seed")}
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


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row.get(name, "nan")) for row in rows]


def _minutes(timing: list[dict[str, Any]]) -> list[tuple[float, str]]:
    """Mark round times on the scale of steps, interpolated between the readings of the clock."""
    clock = [(0.0, 0.0)] + [(float(row["seconds"]), float(row["step"])) for row in timing]
    total = clock[-1][0]
    size, name = (1.0, "s") if total < 120 else (60.0, "min") if total < 7200 else (3600.0, "h")
    marks = []
    for mark in ticks(0.0, total / size, about=4)[1:]:
        for (before, low), (after, high) in zip(clock, clock[1:], strict=False):
            if before < mark * size <= after:
                part = (mark * size - before) / (after - before)
                marks.append((low + part * (high - low), f"{mark} {name}"))
    return marks
