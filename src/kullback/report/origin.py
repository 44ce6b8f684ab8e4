"""The parts of the report that say where its figures come from: run, data, settings, command.

Each function takes a `Record` and returns markup; everything that came from a user is escaped.
"""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kullback.vae import Architecture, Training

from .markup import esc, table
from .record import Record

__all__ = ["command", "duration", "protocol", "settings", "title"]

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
