"""What a run was made with: its data, its settings, and the command that makes it again."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kullback.vae import Architecture, Training

from .run_record import Record

__all__ = ["command", "data_of", "duration", "settings_of"]

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


def data_of(record: Record) -> dict[str, Any]:
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


def settings_of(record: Record) -> list[tuple[str, list[tuple[str, str]]]]:
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
