"""The report of a run: one HTML file with everything in it, to look at and to send.

Which to use: `write`. The file needs no network, no script and no other file; it follows the
reader's light or dark setting, fits a telephone and prints.
"""

from pathlib import Path

from kullback.core import RunError, write_atomic
from kullback.data import Dataset

from . import facts, gallery, origin
from .guide import TERMS
from .markup import document, esc, prose, section
from .record import Record, read

__all__ = ["LIMIT", "render", "write"]

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
        section("figures", "The figures", facts.headline(record)),
        section("curves", "How it learned", facts.curves(record)),
        *_shown(record),
        section("latent", "What each latent dimension costs", facts.kl_bars(record)),
        section("guide", "How to read this", f"<dl>{terms}</dl>"),
        section("protocol", "The data", origin.protocol(record)),
        section("settings", "The settings", f'<div class="three">{origin.settings(record)}</div>'),
        section("again", "Again", _again(record)),
    )
    return document(name, origin.title(record), sections)


def _shown(record: Record) -> list[str]:
    """Write the sections that need the model, and the data where they are there."""
    model, data = record.model, record.data
    if model is None:
        return [section("samples", "Samples", _note(record.missing["model"]))]
    pictures = gallery.is_pictures(model)
    sections = []
    if pictures:
        shown = f'<div class="two">{gallery.samples(model)}</div>'
        sections.append(section("samples", "Samples", shown))
    if data is None:
        heading = "Reconstructions and the latent map"
        return [*sections, section("map", heading, _note(record.missing["data"]))]
    beside = facts.beside(record.protocol)
    test = data.test.cpu()
    if pictures:
        rebuilt = gallery.reconstructions(model, test) + beside
        sections.append(section("reconstructions", "Reconstructions", rebuilt))
    plane = f'<div class="two">{gallery.latent_map(model, test)}</div>{beside}'
    return [*sections, section("map", "A map of the latent space", plane)]


def _again(record: Record) -> str:
    clock = ""
    if record.config["training"].get("minutes") is not None:
        clock = (
            "<p>A budget in minutes follows the clock, so another training differs a little.</p>"
        )
    return (
        f"<p>To train this model again:</p><pre>{esc(origin.command(record.config))}</pre>{clock}"
        "<p>To measure it, and to rebuild this report from the run directory:</p>"
        "<pre>kullback evaluate RUN\nkullback report RUN</pre>"
    )


def _note(text: str) -> str:
    return f'<p class="note">{esc(text)}</p>'
