"""`kullback train` and `kullback evaluate`: from data to weights, figures and a report.

`close` ends a training: it evaluates the run, writes `evaluation.json` and `report.html`, and
prints the table.
"""

import math
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kullback.core import (
    DataError,
    RunError,
    __version__,
    processes,
    read_json,
    require,
    write_json,
)

from .limits import (
    CLOSING_DRAWS,
    CLOSING_NUMBERS,
    CLOSING_SAMPLES,
    EVALUATION_DRAWS,
    MAX_DRAWS_PER_IMAGE,
)
from .options import DataOptions, ModelOptions, Real, Shared, TrainingOptions, Whole
from .sandwich import Sandwich, anneal_loose, measure_sandwich, write_items
from .session import INTERRUPTED, Stop, bar, check_new, log, prepare, print_json, say, write

if TYPE_CHECKING:
    from kullback.data import Dataset
    from kullback.vae import (
        VAE,
        Architecture,
        Bounds,
        Evaluation,
        Outcome,
        Preset,
        Progress,
        Training,
    )

__all__ = ["close", "data_of", "evaluate", "measure", "show", "train"]


def train(
    data: Annotated[
        str | None,
        Parameter(
            help="fashion (embedded), a folder of images, sounds or shards, .npy, .npz, .csv "
            "(default: fashion; with --from the data of that run)."
        ),
    ] = None,
    /,
    *,
    preset: Annotated[
        str,
        Parameter(
            help="Values for options that are not typed: default, classic, tight, iwae, vamp, iaf, "
            "ladder, deep, neighbours or context."
        ),
    ] = "",
    out: Annotated[Path | None, Parameter(help="The run's new folder (default: runs/…).")] = None,
    resume: Annotated[Path | None, Parameter(help="Go on with this run instead.")] = None,
    start: Annotated[
        Path | None,
        Parameter(name="--from", help="Start from the weights of this run, of the same model."),
    ] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "auto",
    checkpoint_seconds: Annotated[Real, Parameter(help="How much work a crash may cost.")] = 15.0,
    tensorboard: Annotated[
        bool,
        Parameter(
            help="Log for TensorBoard too (extra tensorboard): RUN/tensorboard.", negative=""
        ),
    ] = False,
    shard: Annotated[
        bool,
        Parameter(
            help="With torchrun: each process keeps a slice of gradient, average and moments.",
            negative="",
        ),
    ] = False,
    full_shard: Annotated[
        bool,
        Parameter(help="The same, and of the weights (FSDP's FULL_SHARD, ZeRO 3).", negative=""),
    ] = False,
    json: Annotated[
        bool, Parameter(help="Print the figures as one JSON object.", negative="")
    ] = False,
    reading: Annotated[DataOptions | None, Parameter(name="*", group="Data")] = None,
    model: Annotated[ModelOptions | None, Parameter(name="*", group="Model")] = None,
    training: Annotated[TrainingOptions | None, Parameter(name="*", group="Training")] = None,
    shared: Shared = None,
) -> int:
    """Train a VAE, measure it on held-out images, and write a report one can send.

    Ctrl-C saves a checkpoint and exits with 130; `--resume RUN` goes on from it. With torchrun the
    processes share every batch: `torchrun --nproc-per-node 4 -m kullback train …`.
    """
    prepare(shared)
    given = (out, start, reading, model, training, tensorboard or None, preset or None)
    lone = resume is None or (data is None and all(option is None for option in given))
    require(lone, "--resume", "no other settings: they are those of the run", "others too")
    new = out is None or not out.exists()
    require(new, "--out", "a folder that does not exist", str(out), "another name")
    options = training or TrainingOptions()
    options.training("8-bit")  # so that a wrong option is told before the data are read
    with processes.joined(gpus=True) as group:
        if resume is None:
            architecture = _architecture(model, start)
            dataset = _in_turn(group, _reader(data, reading, options.seed, architecture, start))
            from kullback.vae import different_examples

            settings = options.training(
                dataset.kind,
                dataset.event_shape,
                examples=different_examples(dataset),
                plain=architecture.is_default and start is None and preset in ("", "default"),
            )
            where: Any = {
                "start": start,
                "folder": out,
                "device": device,
                "tensorboard": tensorboard,
            }
            if preset:
                where["preset"] = _announced(preset, architecture, settings)
            work = _new_run(dataset, architecture, settings, where)
            nouns = f"{_noun(dataset)}s"
        else:
            work, nouns = _old_run(resume), "examples"
        _say_who_holds_what(group.size, shard=shard, full=full_shard)
        sharding = "full" if full_shard else shard
        outcome = _followed(partial(work, shard=sharding), nouns, checkpoint_seconds)
        if outcome.finished:
            close(outcome, as_json=json, group=group)
    if not outcome.finished:
        again = shlex.quote(str(outcome.folder))
        say(f"saved; go on with: kullback train --resume {again}", always=True)
    return 0 if outcome.finished else INTERRUPTED


def _say_who_holds_what(processes: int, *, shard: bool, full: bool) -> None:
    """Say how many processes there are and which part of the state each one keeps."""
    if processes > 1:
        state = " and a slice of the training state" if shard or full else ""
        state = f"{state}, weights too" if full else state
        say(f"processes: {processes}, each with an equal share of every batch{state}")
    elif shard or full:
        start_all = "torchrun --nproc-per-node N -m kullback train …"
        name = "--full-shard" if full else "--shard"
        say(f"note: {name}: one process keeps the whole state. Try: {start_all}")


def _reader(
    data: str | None,
    reading: DataOptions | None,
    seed: int,
    architecture: "Architecture",
    start: Path | None,
) -> "Callable[[], Dataset]":
    """Return what reads the data: without any named those of the run to start from, or fashion."""
    if data is None and start is not None:
        plain = reading is None
        hint = f"kullback train DATA --from {shlex.quote(str(start))}"
        require(plain, "DATA", "the data that options of reading are for", "none", hint)
        return partial(_read_as, start)
    asked = _asked(reading or DataOptions(), seed, architecture.likelihood, start)
    return partial(_read, data or "fashion", asked)


def _read_as(start: Path) -> "Dataset":
    """Read the data of the run to start from, unchanged, and say what they are."""
    from kullback.data import describe_protocol

    dataset = data_of(start, hint=f"kullback train DATA --from {shlex.quote(str(start))}")
    say(f"the data of {start}: {describe_protocol(dataset.protocol)}")
    return dataset


def _in_turn(group: processes.Processes, read: "Callable[[], Dataset]") -> "Dataset":
    """Read the data by the first process, then by all others: what it decoded is then kept."""
    if group.first:
        found = read()
    group.wait()
    return found if group.first else read()


def _followed(work: "Callable[..., Outcome]", nouns: str, checkpoint_seconds: float) -> "Outcome":
    """Train with a bar, until it ends or is asked to stop; say what it warns of."""
    said: set[str] = set()
    with Stop() as stop, bar("training") as update:
        show = _shown(update, said, nouns)
        outcome = work(progress=show, stop=stop, checkpoint_seconds=checkpoint_seconds)
    for warning in dict.fromkeys(outcome.warnings):
        if warning not in said:
            say(f"warning: {warning}")
    if outcome.short:
        say(outcome.short)
    return outcome


def _architecture(model: ModelOptions | None, start: Path | None) -> "Architecture":
    """Return the architecture that is asked for; without any, that of the run to start from."""
    if model is None and start is not None:
        from kullback.vae import architecture_of

        return architecture_of(start)
    return (model or ModelOptions()).architecture()


def _new_run(
    dataset: "Dataset",
    model: "Architecture",
    training: "Training",
    where: dict[str, Any],
) -> "Callable[..., Outcome]":
    from kullback import vae

    name, reason = vae.choose(dataset.kind, model.likelihood)
    before = model.resolved(dataset.event_shape, dataset.kind).pixels_before
    said = f", each pixel given {before} too" if before else ""
    say(f"likelihood: {name} ({reason}){said}")
    log(f"{model}; {training}")
    settings: Any = {"architecture": model, "training": training} | where
    return partial(vae.train, dataset, **settings)


def _announced(name: str, architecture: "Architecture", training: "Training") -> "Preset":
    """Say what a preset sets and what was typed instead; the values are in the two already."""
    from kullback.vae import preset

    chosen = preset(name).beside(architecture, training)
    texts = {
        f"--{n.replace('_', '-')}": ",".join(map(str, v)) if isinstance(v, tuple) else str(v)
        for n, v in chosen.options.items()
    }
    values = " ".join(f"{flag} {text}" for flag, text in texts.items())
    flags = " ".join(f"--{n.replace('_', '-')}" for n in chosen.given)
    typed = f"; typed instead: {flags}" if flags else ""
    say(f"preset {name}: {chosen.reason} ({values or 'no values of its own'}{typed})")
    return chosen


def _old_run(run: Path) -> "Callable[..., Outcome]":
    from kullback import vae

    return partial(vae.resume, run)


def _asked(reading: DataOptions, seed: int, likelihood: str, start: Path | None) -> dict[str, Any]:
    """Return the options of `load`: a likelihood of counts says what whole numbers are.

    start: a run, whose options those take that are left as usual.
    """
    from kullback.vae import COUNTS, reading_of

    asked, usual = _options_of(reading, seed), _options_of(DataOptions(), 0)
    if start is None:
        counted = asked["levels"] == "auto" and likelihood in COUNTS
        return asked | ({"levels": "counts"} if counted else {})
    theirs = reading_of(start)
    given = {name: value for name, value in asked.items() if value != usual[name]}
    if "levels" in given:
        theirs.pop("grid", None)
    taken = {n: v for n, v in theirs.items() if n not in given and v != usual.get(n, v)}
    if words := _taken_in_words(taken):
        say(f"read as {start} was: {words}")
    return theirs | given


def _options_of(reading: DataOptions, seed: int) -> dict[str, Any]:
    """Return options of the command by their names in `load`."""
    same = "fit channels background frames binarize test_fraction size_factors label storage rate"
    return {
        "size": reading.parsed_size(),
        "levels": reading.parsed_levels(),
        "clip": reading.clip_seconds,
        "seed": seed,
        **{name: getattr(reading, name) for name in same.split()},
    }


def _taken_in_words(taken: dict[str, Any]) -> str:
    """Write options as they would be typed."""
    flags = {
        "clip": "clip-seconds",
        "size_factors": "size-factors",
        "test_fraction": "test-fraction",
    }
    texts = {n: "x".join(map(str, v)) if isinstance(v, tuple) else str(v) for n, v in taken.items()}
    return " ".join(f"--{flags.get(name, name)} {text}" for name, text in texts.items())


def _read(source: str, asked: dict[str, Any]) -> "Dataset":
    """Read the data and say what they are."""
    from kullback.data import describe_protocol, load

    with bar("reading") as update:
        dataset = load(source, progress=update, **asked)
    say(describe_protocol(dataset.protocol))
    for note in dataset.protocol["notes"]:
        say(f"note: {note}")
    for file in dataset.protocol["skipped"]["files"]:
        say(f"skipped: {_on_one_line(file['name'])}: {file['reason']}")
    return dataset


def _on_one_line(name: str) -> str:
    """Return a file's name with line breaks and other control characters written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _shown(update: Callable[..., None], said: set[str], nouns: str) -> Callable[["Progress"], None]:
    """Turn readings of the training into the bar's text, and say each warning once."""

    def show(reading: "Progress") -> None:
        text = f"step {reading.step:,}"
        if reading.elbo == reading.elbo:  # not NaN: there has been a reading
            text += f"  ELBO {reading.elbo:.2f}  rate {reading.rate:.2f}"
            text += f"  distortion {reading.distortion:.2f}"
        if reading.test_elbo is not None:
            text += f"  test {reading.test_elbo.value:.2f}"
        if reading.images_per_second == reading.images_per_second:
            text += f"  {reading.images_per_second:,.1f} {nouns}/s"
        update(reading.fraction, 1.0, text)
        if reading.warning and reading.warning not in said:
            said.add(reading.warning)
            say(f"warning: {reading.warning}")

    return show


def data_of(run: Path, source: str | None = None, *, hint: str = "") -> "Dataset":
    """Read the data set of a run again, unchanged, or another source with the run's settings.

    hint: what to try where the data have changed or cannot be read again.
    """
    from kullback.data import reload

    config = read_json(run / "config.json")
    if not isinstance(config, dict) or "data" not in config:
        raise DataError(f"{run / 'config.json'}: says nothing about data. Try: {hint or '--data'}")
    if hint and source is None and config["data"].get("given"):
        raise DataError(f"{run}: its data were in memory and cannot be read again. Try: {hint}")
    with bar("reading") as update:
        dataset = reload(config["data"], source=source, whole=source is not None, progress=update)
    if source is None and dataset.protocol["sha256"] != config["data"].get("sha256"):
        changed = config["data"]["source"]
        raise DataError(
            f"{changed}: these are not the data {run} was trained on: the hashes differ. "
            f"Try: {hint or f'--data {changed}, which measures on other data'}"
        )
    return dataset


def _noun(data: "Dataset") -> str:
    from kullback.report import evaluation_text

    return evaluation_text.noun_of(data.protocol)


def measure(
    model: "VAE",
    data: "Dataset",
    draws: int | None,
    seed: int,
    group: processes.Processes | None = None,
) -> "Bounds":
    """Bound log p(x) of every test image, with a bar; without draws, by `draws_for` of them.

    group: processes that share the images.
    """
    import torch

    from kullback.report import evaluation_text
    from kullback.vae import image_bounds, pick_threads

    threads = pick_threads()
    torch.set_num_threads(threads)
    draws = draws_for(data) if draws is None else draws
    counted = evaluation_text.counted(len(data.test), data.protocol)
    log(f"evaluation: {counted}, {draws} draws each, {threads} threads")
    with bar("evaluating") as update:
        how: dict[str, Any] = {"progress": update, "labels": data.test_labels, "group": group}
        return image_bounds(model, data.test, draws=draws, seed=seed, **how)


def draws_for(data: "Dataset") -> int:
    """Return the draws an image that close a training: fewer for more and larger test images.

    They depend on the data alone, so that a run's figures do not depend on the machine.
    """
    numbers = max(1, data.test.numel())
    most = CLOSING_SAMPLES if data.kind == "sound" else CLOSING_NUMBERS
    return max((k for k in CLOSING_DRAWS if k * numbers <= most), default=min(CLOSING_DRAWS))


def close(outcome: "Outcome", *, as_json: bool, group: processes.Processes | None = None) -> None:
    """Evaluate a finished run, write `evaluation.json` and `report.html`, and print the table.

    Model and data are those in memory; data are read again only where a resumed run has none.
    group: processes that share the images; the first one writes.
    """
    from kullback import report
    from kullback.vae import summarise

    run, model = outcome.folder, outcome.model
    data = data_of(run) if outcome.data is None else outcome.data
    found = measure(model, data, None, 0, group)
    if group is not None and not group.first:
        return
    evaluation = summarise(model, data.test, found, seed=0, labels=data.test_labels)
    if not outcome.short:
        evaluation = anneal_loose(model, data, found, evaluation)
    fields = record(evaluation, data)
    write_json(run / "evaluation.json", fields)
    fields = fields | _held_out(run)
    page = report.write(run, model=model, data=data)
    show(evaluation, data, fields | {"run": str(run), "report": str(page)}, as_json=as_json)
    say(f"run: {run}")
    say(f"report: {page}")


def _held_out(run: Path) -> dict[str, str]:
    """Return which weights were picked, and on how many held-out training examples."""
    path = run / "selection.json"
    return {"weights": str(read_json(path)["weights"])} if path.exists() else {}


def _of_label(data: "Dataset", label: str) -> "Dataset":
    """Return a data set with the test images of one label alone, which its source names."""
    if data.test_labels is None:
        raise DataError("expected data with labels; got none. Try: the run's own data")
    labels = list(data.protocol["labels"])
    own = data.test_labels == labels.index(label)
    count = int(own.sum())
    require(count > 0, "--label", f"one with test {_noun(data)}s", label)
    names = tuple(n for n, flag in zip(data.test_names, own.tolist(), strict=True) if flag)
    protocol = data.protocol | {
        "source": f"{data.protocol['source']}, label {label}",
        "counts": data.protocol["counts"] | {"test": count},
    }
    kept = replace(data, test=data.test[own], test_names=names, test_labels=None)
    return replace(kept, protocol=protocol)


def record(evaluation: "Evaluation", data: "Dataset") -> dict[str, Any]:
    """Return what `evaluation.json` holds: the figures and the protocol they depend on."""
    return {
        "format": 1,
        "kullback": __version__,
        "unit": "nats",
        "evaluation": evaluation.to_dict(),
        "data": data.protocol,
    }


def show(
    evaluation: "Evaluation", data: "Dataset", fields: dict[str, Any], *, as_json: bool
) -> None:
    """Print figures on standard output: a table, or one JSON object."""
    if as_json:
        print_json(fields)
        return
    from kullback.report import evaluation_text

    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    write(evaluation_text.evaluation_table(evaluation, data.protocol, color=color) + "\n")
    if "weights" in fields:
        write(f"{fields['weights']}\n")


def evaluate(
    run: Annotated[Path, Parameter(help="A run directory.")],
    /,
    *,
    data: Annotated[
        str | None,
        Parameter(help="Other data than the run's own: all of it, or its own test part."),
    ] = None,
    label: Annotated[
        str | None, Parameter(help="Of a model with labels: measure the images of this one alone.")
    ] = None,
    draws: Annotated[
        Whole | None,
        Parameter(help="Draws of q(z|x) each: the K of L_K (default: 500; 20 to 500 of sound)."),
    ] = None,
    seed: Annotated[Whole, Parameter(help="Of the draws.")] = 0,
    per_item: Annotated[
        Path | None, Parameter(help="Write bounds and effective draws of every image to this .csv.")
    ] = None,
    sandwich: Annotated[
        bool, Parameter(help="Measure log p(x) = ELBO + KL by annealing.", negative="")
    ] = False,
    items: Annotated[
        Whole | None,
        Parameter(help="Images for --sandwich, from the first on (default: 20; 4 clips of sound)."),
    ] = None,
    chains: Annotated[
        Whole | None, Parameter(help="Annealed chains of each (default: 16; 4 of sound).")
    ] = None,
    temperatures: Annotated[
        Whole | None,
        Parameter(help="Steps of a chain from q to p(z|x) (default: 100; 20 of sound)."),
    ] = None,
    sandwich_minutes: Annotated[
        float | None,
        Parameter(help="Lengthen the chains of --sandwich until the bounds meet, in this time."),
    ] = None,
    explain: Annotated[
        bool, Parameter(help="With --sandwich: the sum in words, every dimension.", negative="")
    ] = False,
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False,
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False,
    shared: Shared = None,
) -> None:
    """Measure ELBO, the importance-weighted bound L_K, rate and distortion on test images.

    Every figure carries its standard error over images. On the run's own data, the figures are
    kept in RUN/evaluation.json and appear in the report when it is rebuilt. Of a training that is
    not finished the weights of the last checkpoint are measured; that is said and not kept. With
    `--sandwich` also log p(x) = ELBO + KL(q(z|x) || p(z|x)): from below on test images, from both
    sides on images that the model makes.
    """
    prepare(shared)
    expected = f"from 1 to {MAX_DRAWS_PER_IMAGE:,}"
    good = draws is None or 1 <= draws <= MAX_DRAWS_PER_IMAGE
    require(good, "--draws", expected, f"{draws or 0:,}")
    require(items is None or items >= 2, "--items", "at least 2", items)
    require(sandwich or not explain, "--explain", "--sandwich with it", "--explain alone")
    if per_item is not None:
        check_new("--per-item", per_item, ".csv", force=force)
    from kullback.vae import VAE, summarise

    if sandwich_minutes is not None:
        good = math.isfinite(sandwich_minutes) and sandwich_minutes > 0
        require(good, "--sandwich-minutes", "a positive number", sandwich_minutes)
        require(sandwich, "--sandwich-minutes", "--sandwich with it", "it alone")
        fixed = temperatures is None
        require(fixed, "--temperatures", "none with --sandwich-minutes, which finds them", "both")
    settings = Sandwich(
        items, chains, temperatures, seed, explain=explain, minutes=sandwich_minutes
    )
    settings.of("8-bit")  # so that a wrong option is told before anything is read
    model = VAE.load(run)
    coded = model.spec is not None and model.spec.architecture.posterior == "quantised"
    what = "a run with a density q(z|x), from which chains can move"
    require(not (sandwich and coded), "--sandwich", what, "one with quantised codes")
    dataset = data_of(run, data)
    for note in dataset.protocol["notes"]:
        say(f"note: {note}")
    if draws is None and dataset.kind != "sound":
        draws = EVALUATION_DRAWS
    if label is not None:
        model, dataset = model.at(label), _of_label(dataset, label)
    with processes.joined(gpus=True) as group:
        found = measure(model, dataset, draws, seed, group)
    if not group.first:
        return
    evaluation = summarise(model, dataset.test, found, seed=seed, labels=dataset.test_labels)
    fields = record(evaluation, dataset)
    one = not sandwich or dataset.test_labels is None
    require(one, "--sandwich", "one label at a time", "a model with labels", "--label with it")
    result = measure_sandwich(model, dataset, settings) if sandwich else None
    if result is not None:
        fields["sandwich"] = result.fields
    if per_item is not None:
        write_items(per_item, dataset, found, None if result is None else result.test)
    kept = data is None and label is None and not model.unfinished
    refused = _kept(run / "evaluation.json", fields) if kept else None
    unfinished = {"unfinished": model.unfinished} if model.unfinished else {}
    show(
        evaluation, dataset, fields | {"run": str(run)} | unfinished | _held_out(run), as_json=json
    )
    if result is not None and not json:
        write(f"\n{result.text}\n")
    if model.unfinished and not json:
        write(f"{model.unfinished}\n")
    if refused is not None:
        raise refused


def _kept(path: Path, fields: dict[str, Any]) -> RunError | None:
    """Write figures, or return why they cannot be written: they are printed first."""
    try:
        write_json(path, fields)
    except RunError as error:
        return error
    return None
