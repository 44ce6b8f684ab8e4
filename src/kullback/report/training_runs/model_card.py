"""A run as a folder to publish: weights, ONNX graphs, and a model card with measured figures.

Which to use: `export`. The folder has the layout of a Hugging Face model repository (`config.json`,
`model.safetensors`, `preprocessor_config.json`, `README.md`), and `VAE.load` and the commands read
it as they read a run. Nothing is uploaded, and no license is chosen.
"""

import json
import os
import secrets
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kullback.core import RunError, __version__, not_written, read_json, write_atomic, write_json
from kullback.data import describe_protocol
from kullback.vae import (
    VAE,
    Parity,
    Parts,
    Training,
    require_exportable,
    start_in_words,
    write_graphs,
)

from ..evaluation_text import figures, noun_of, remarks, scope
from ..limits import GRID_LETTERS
from .run_record import Record, evaluation_of

__all__ = ["export"]

WEIGHTS = "model.safetensors"


def export(
    run: str | Path,
    out: str | Path,
    *,
    onnx: bool = True,
    parts: Parts | None = None,
    name: str = "",
) -> Path:
    """Write a finished run to a new folder that can be published.

    Args:
        run: The run's folder.
        out: The new folder; it must not exist. It is there whole or not at all.
        onnx: Whether `encoder.onnx` and `decoder.onnx` are written and compared with PyTorch, which
            needs the extra `onnx`.
        parts: For a run of modules of your own: the same ones.
        name: Of the model in its card; by default that of the new folder.

    Returns:
        The folder.

    Raises:
        RunError: The run is missing, damaged or not finished, the folder exists, or the graphs give
            other numbers than PyTorch.
        ArgumentValueError: ONNX cannot hold the model; the text says why.
        MissingExtraError: `onnx` is asked for and not installed.
    """
    source, target = Path(run), Path(out)
    if target.exists():
        raise RunError(f"{target} exists already and is never overwritten. Try: another folder")
    if not (source / WEIGHTS).exists() and (source / "config.json").exists():
        hint = f"kullback train --resume {shlex.quote(str(source))}"
        raise RunError(f"{source}: expected a finished run; got one that is not. Try: {hint}")
    model = VAE.load(source, parts=parts)
    if onnx:
        require_exportable(model)
    config = read_json(source / "config.json")
    missing: dict[str, str] = {}
    evaluation, evaluated = evaluation_of(source, missing)
    record = Record(source, config, [], [], evaluation, evaluated, model, None, missing)
    partial = target.parent / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        partial.mkdir(parents=True)
        parity = write_graphs(model, partial) if onnx else None
        shutil.copyfile(source / WEIGHTS, partial / WEIGHTS)
        _write_fields(partial, record, parity)
        card = _card(record, parity, name or target.name, model)
        write_atomic(partial / "README.md", card)
        partial.rename(target)
    except OSError as error:
        raise not_written(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write_fields(folder: Path, record: Record, parity: Parity | None) -> None:
    """Write `config.json`, which `VAE.load` reads, and `preprocessor_config.json`."""
    kept = ("model", "training", "precision", "versions", "created", "start")
    fields: dict[str, Any] = {"format": record.config["format"]}
    fields |= {"model_type": "kullback_vae", "library_name": "kullback"}
    fields |= {key: record.config[key] for key in kept if key in record.config}
    if "start" in fields:
        fields["start"] = _public_start(fields["start"])
    fields["data"] = _public(record.protocol)
    if parity is not None:
        fields["onnx"] = {
            "encoder": "encoder.onnx",
            "decoder": "decoder.onnx",
            "examples": parity.examples,
            "encoder_error": parity.encoder,
            "decoder_error": parity.decoder,
            "log_likelihood_error": parity.log_likelihood,
            "log_likelihood": parity.nats,
        }
    write_json(folder / "config.json", fields, hashed=True)
    write_json(folder / "preprocessor_config.json", _preprocessing(record))
    if record.evaluation is not None:
        stored = dict(read_json(record.folder / "evaluation.json"))
        stored["data"] = _public(stored["data"])
        write_json(folder / "evaluation.json", stored)


def _public(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return a protocol with the names of files, without the folders they lie in."""
    fields = dict(protocol)
    fields["source"] = Path(str(fields.get("source", "data"))).name
    if "paths" in fields:
        fields["paths"] = [Path(one).name for one in fields["paths"]]
    skipped = dict(fields.get("skipped") or {"count": 0})
    return fields | {"skipped": skipped | {"files": []}}


def _preprocessing(record: Record) -> dict[str, Any]:
    """Return what x must be before it goes into the model."""
    protocol, spec = record.protocol, record.config["model"]
    names = ("size", "fit", "channels", "background", "frames", "binarize", "sound", "sizes")
    return {
        "event_shape": list(spec["event_shape"]),
        "kind": spec["kind"],
        "values": _values(record),
        **({"levels": spec["levels"]} if "levels" in spec else {}),
        **({"grid": spec["grid"]} if spec.get("grid") else {}),
        **({"labels": list(spec["labels"])} if spec.get("labels") else {}),
        **{name: protocol[name] for name in names if protocol.get(name)},
    }


def _values(record: Record) -> str:
    """Say what the numbers of x are."""
    spec = record.config["model"]
    shape = " x ".join(str(size) for size in spec["event_shape"])
    levels = int(spec.get("levels", 256))
    what = {
        "binary": "bits, 0 and 1",
        "8-bit": "whole numbers from 0 to 255",
        "levels": f"levels, whole numbers from 0 to {levels - 1:,}",
        "counts": "counts, whole numbers from 0",
        "continuous": "real numbers in the units of the training data",
        "sound": "signed samples of sound",
    }[spec["kind"]]
    grid = spec.get("grid")
    stands = ""
    if grid:
        stands = f"; what a level stands for is in preprocessor_config.json ({json.dumps(grid)})"
        stands = (
            stands
            if len(stands) < GRID_LETTERS
            else "; preprocessor_config.json says what they are"
        )
    sized = ", the last column a size factor" if spec.get("sizes") else ""
    return f"float32 [batch, {shape.replace(' x ', ', ')}]: {what}{sized}{stands}"


def _card(record: Record, parity: Parity | None, name: str, model: VAE) -> str:
    """Write the model card: front matter, figures, use, data and what is left to its author."""
    spec = record.config["model"]
    tags = ["variational-autoencoder", "generative-model", "kullback"]
    front = ["library_name: kullback", "tags:", *(f"- {tag}" for tag in tags)]
    if parity is not None:
        front += ["- onnx"]
    lines = ["---", *front, "---", "", f"# {name}", "", _lead(record), ""]
    lines += ["## Parts", "", *_parts(record, model), ""]
    lines += ["## Measured", "", *_measured(record), ""]
    lines += ["## Input", "", f"`x`: {_values(record)}.", ""]
    if spec.get("labels"):
        lines += [f"`label`: the place, from 0, in {', '.join(spec['labels'])}.", ""]
    lines += ["## Use", "", *_use(record, parity, model), ""]
    lines += ["## Training data", "", *_data(record), ""]
    lines += ["## Settings", "", "```json", json.dumps(_settings(record), indent=2), "```", ""]
    lines += [
        "## License",
        "",
        "None is stated. The owner of the weights and of the training data chooses one before "
        "publishing: `license:` in the first lines of this file, and a LICENSE file.",
        "",
    ]
    return "\n".join(lines)


def _parts(record: Record, model: VAE) -> list[str]:
    """Name every part of the model, and what its training maximised."""
    words = {} if model.spec is None else model.spec.in_words
    trained = Training(**record.config["training"]).objective_in_words
    words |= {"training": f"maximised the {trained}"}
    return [f"- {name}: {one}" for name, one in words.items()]


def _lead(record: Record) -> str:
    spec = record.config["model"]
    architecture = spec["architecture"]
    own = spec.get("own")
    parts = f", with parts of its author's: {', '.join(own.values())}" if own else ""
    start = record.config.get("start")
    began = f" Its training {start_in_words(_public_start(start))}." if start else ""
    return (
        f"A variational autoencoder with {architecture['latent']} latent dimensions{parts}."
        f"{began} Made with kullback {__version__}."
    )


def _public_start(start: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a run's weights are from, without the folders."""
    names = {key: Path(str(start.get(key, ""))).name for key in ("run", "source")}
    earlier = {"start": _public_start(start["start"])} if start.get("start") else {}
    return dict(start) | names | earlier


def _measured(record: Record) -> list[str]:
    """Return the run's figures as a table with what must be known before using them."""
    if record.evaluation is None:
        return ["Nothing is measured yet: `kullback evaluate RUN`, then export again."]
    noun = noun_of(record.evaluated)
    rows = figures(record.evaluation, noun=noun).values()
    lines = ["| figure | value ± standard error | unit | note |", "|---|---|---|---|"]
    cells = [(row.name, row.value, row.unit, row.note.replace("|", "\\|")) for row in rows]
    lines += [f"| {' | '.join(row)} |" for row in cells]
    lines += ["", scope(record.evaluation, noun=noun) + ".", ""]
    lines += [f"Data: {describe_protocol(_public(record.evaluated))}.", ""]
    return lines + [f"- {sentence}" for sentence in remarks(record.evaluation, noun=noun)]


def _use(record: Record, parity: Parity | None, model: VAE) -> list[str]:
    """Return code that loads the model, and what the graphs take and give."""
    own = record.config["model"].get("own")
    given = ", parts=vae.Parts(...)" if own else ""
    code = ["```python", "from kullback import vae", ""]
    code += [f"# its author's modules: {', '.join(own.values())}"] if own else []
    code += [f'model = vae.VAE.load("."{given})']
    labels = record.config["model"].get("labels")
    of = f'.at("{labels[0]}")' if labels else ""
    code += [f"x = model{of}.sample(16)", "```"]
    if parity is None:
        return code
    label = ", `label` int64 [batch]" if labels else ""
    latent = model.prior.latent
    closed = "`parameters` of p(x|z) and the `mean` of x"
    architecture = record.config["model"]["architecture"]
    if architecture.get("neighbours") or architecture.get("context"):
        closed = (
            "`parameters` of p(x|z); its mean goes pixel by pixel, which `kullback decode` does"
        )
    prior = record.config["model"]["architecture"]["prior"]
    drawn = "N(0, I)" if prior == "normal" and _is_plain(record) else "the learned prior (`sample`)"
    return [
        *code,
        "",
        f"`encoder.onnx`: `x`, `noise` [batch, {latent}] (standard normal; 0 for the centre of q)"
        f"{label} to `z`, a draw of q(z|x), and to its `mean` and `log_sd` where they are closed.",
        f"`decoder.onnx`: `z` [batch, {latent}]{label} to {closed}. For new x draw z from {drawn}.",
        "",
        parity.describe(),
    ]


def _is_plain(record: Record) -> bool:
    architecture = record.config["model"]["architecture"]
    usual = architecture.get("layers", 1) == 1 and architecture.get("posterior") != "quantised"
    return usual and "prior" not in (record.config["model"].get("own") or {})


def _data(record: Record) -> list[str]:
    """Return what the model was trained on: the protocol's line, split, hashes and notes."""
    protocol = _public(record.protocol)
    hashes = protocol.get("sha256") or {}
    lines = [f"{describe_protocol(protocol)}.", "", f"- split: {protocol.get('split', '')}"]
    lines += [f"- SHA-256 of {name}: `{value}`" for name, value in hashes.items() if value]
    return lines + [f"- {note}" for note in protocol.get("notes") or ()]


def _settings(record: Record) -> dict[str, Any]:
    used = {key: value for key, value in record.config["training"].items() if value is not None}
    return {"architecture": record.config["model"]["architecture"], "training": used}
