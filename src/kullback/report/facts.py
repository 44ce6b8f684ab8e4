"""The parts of the report that are figures: the headline, the learning curves, the KL bars.

Each function takes a `Record` and returns markup; everything that came from a user is escaped.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from kullback.vae.limits import ACTIVE_KL

from .charts import Series, bars, lines, ticks
from .markup import esc, figure, prose
from .record import Record
from .words import Figure, figures, noun_of, protocol_line, remarks, scope

__all__ = ["beside", "curves", "headline", "kl_bars"]

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
