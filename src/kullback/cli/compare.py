"""`kullback compare`: runs against each other, image by image, on the same test images.

Differences are paired, so their errors are those of the difference and not of two means. Runs that
differ in nothing but the training seed are averaged first. No torch is imported before it runs.
"""

import json as json_format
import math
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kullback.core import DataError, Estimate, RunError, message, read_json, require

from .limits import COMPARISON_DRAWS, MAX_DRAWS_PER_IMAGE, SAME_STEPS
from .options import Shared, Whole
from .session import prepare, print_json, say, write
from .train import data_of, draws_for, measure

if TYPE_CHECKING:
    from torch import Tensor

    from kullback.data import Dataset

__all__ = ["compare"]

# what may differ between protocols: the seed of the bits, with what follows from it, and remarks
FREE = ("seed", "sha256", "notes", "skipped", "storage")
PLACES = ("source", "paths", "given")  # of data whose hashes say that they are the same


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of the same settings but for the seed, and their bounds by image, means over seeds."""

    name: str
    runs: list[str]
    elbo: "Tensor"
    bound: "Tensor"
    means: list[float]
    steps: list[int | None] = field(default_factory=list)


def compare(
    *runs: Annotated[Path, Parameter(help="Run directories; the first is the reference.")],
    draws: Annotated[
        Whole | None,
        Parameter(help="Draws of q(z|x) each: the K of L_K (default: 100; 20 to 500 of sound)."),
    ] = None,
    seed: Annotated[Whole, Parameter(help="Of the draws.")] = 0,
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False,
    shared: Shared = None,
) -> None:
    """Compare runs on the same test images and the same bits, with errors of the differences.

    Runs whose data or protocols differ are refused: their figures cannot be compared. Runs that
    differ in the training seed alone are averaged image by image; where all do, each is shown, and
    their standard deviation. How many steps each took is shown: with --minutes they differ.
    """
    prepare(shared)
    expected = f"from 1 to {MAX_DRAWS_PER_IMAGE:,}"
    good = draws is None or 1 <= draws <= MAX_DRAWS_PER_IMAGE
    require(good, "--draws", expected, f"{draws or 0:,}")
    names = [str(run) for run in runs]
    require(len(names) >= 2, "RUNS", "at least 2 run directories", f"{len(names)}")
    require(len(set(names)) == len(names), "RUNS", "each run once", "one twice")
    configs = [_config(run) for run in runs]
    _require_same(names, configs)
    data = data_of(runs[0])
    if data.protocol["sha256"] != configs[0]["data"]["sha256"]:
        raise DataError(f"{names[0]}: its data have changed since it was trained: hashes differ")
    if draws is None:
        draws = draws_for(data) if data.kind == "sound" else COMPARISON_DRAWS
    groups = _grouped(runs, configs, data, draws, seed)
    fields = [_fields(group, groups[0], draws, data) for group in groups]
    seeds = None
    if len({_settings(config) for config in configs}) == 1:
        seeds = statistics.stdev(group.means[0] for group in groups)
    if json:
        result = {"format": 1, "unit": "nats", "draws": draws, "seed": seed, "groups": fields}
        print_json(result | {"sd_over_seeds": seeds, "data": data.protocol})
        return
    write(_table(fields, draws, data, seeds) + "\n")


def _steps_of(run: Path) -> int | None:
    """Return how many steps a run has taken, as its log says; None where it says nothing."""
    try:
        rows = (run / "metrics.jsonl").read_text().splitlines()
        return int(json_format.loads(rows[-1])["step"])
    except (OSError, IndexError, KeyError, TypeError, ValueError):
        return None


def _unequal_steps(steps: list[int | None]) -> str:
    """Say that runs of the same settings took different numbers of steps; "" where they did not."""
    known = [one for one in steps if one]
    if not known or min(known) >= (1 - SAME_STEPS) * max(known):
        return ""
    return (
        f"The runs took {min(known):,} to {max(known):,} steps in the same budget: they differ in "
        "the length of training too, and their spread is not that of seeds alone. Try: --steps"
    )


def _config(run: Path) -> dict[str, Any]:
    config = read_json(run / "config.json")
    if not isinstance(config, dict) or not {"data", "model", "training"} <= set(config):
        raise RunError(f"{run / 'config.json'}: not the description of a run")
    return config


def _settings(config: dict[str, Any]) -> str:
    """Return a run's model, training without the seed, and first weights: what seeds share."""
    training = {name: value for name, value in config["training"].items() if name != "seed"}
    start = (config.get("start") or {}).get("sha256")
    return json_format.dumps([config["model"], training, start], sort_keys=True)


def _require_same(names: list[str], configs: list[dict[str, Any]]) -> None:
    """Refuse runs whose figures are about different things; say so where test bits differ."""
    first = configs[0]["data"]
    for name, config in zip(names[1:], configs[1:], strict=True):
        other = config["data"]
        hashes = {"training data": "train", "labels": "labels"}
        if first["seed"] == other["seed"] or first["binarize"] == "none":
            hashes["test data"] = "test"
        free = FREE + (PLACES if "test data" in hashes else ())
        keys = [key for key in sorted(first.keys() | other.keys()) if key not in free]
        parts = {key: (first.get(key), other.get(key)) for key in keys}
        for what, key in hashes.items():
            parts[f"{what} (sha256)"] = (first["sha256"].get(key), other["sha256"].get(key))
        differ = [f"{key} {a} and {b}" for key, (a, b) in parts.items() if a != b]
        if differ:
            got = f"{names[0]} and {name}: {'; '.join(differ)}"
            raise DataError(message("RUNS", "runs on the same data and protocol", got))
        if first["binarize"] != "none" and first["seed"] != other["seed"]:
            say(f"note: {name} is measured on the test bits of {names[0]} (seed {first['seed']})")


def _grouped(
    runs: tuple[Path, ...],
    configs: list[dict[str, Any]],
    data: "Dataset",
    draws: int,
    seed: int,
) -> list[Group]:
    """Bound every run on the test images; average those that differ in the seed alone.

    Where all do, each stays by itself.
    """
    import torch

    from kullback.vae import VAE

    alone = len({_settings(config) for config in configs}) == 1
    together: dict[str, list[tuple[str, Any]]] = {}
    for run, config in zip(runs, configs, strict=True):
        model = VAE.load(run)
        if model.unfinished:
            say(f"note: {run}: {model.unfinished}")
        found = measure(model, data, draws, seed)
        together.setdefault(str(run) if alone else _settings(config), []).append((str(run), found))
    groups = []
    for members in together.values():
        elbos = torch.stack([found.elbo for _, found in members])
        bounds = torch.stack([found.importance_weighted for _, found in members])
        names = [name for name, _ in members]
        label = names[0] if len(names) == 1 else f"{names[0]} (mean of {len(names)} seeds)"
        means = bounds.mean(-1).tolist()
        steps = [_steps_of(Path(name)) for name in names]
        groups.append(Group(label, names, elbos.mean(0), bounds.mean(0), means, steps))
    return groups


def _bits(bound: "Tensor", data: "Dataset") -> Estimate | None:
    """Return −L_K, or a difference of two, in bits a sample or a dimension; None for densities."""
    from kullback.data import PADDING
    from kullback.vae import bits_per_sample

    if data.kind == "sound":
        return bits_per_sample(bound, (data.test != PADDING).flatten(1).sum(1))
    if data.kind not in ("8-bit", "levels"):
        return None
    return (-Estimate.from_terms(bound).bits()).per(data.test[0].numel(), "dim")


def _fields(group: Group, first: Group, draws: int, data: "Dataset") -> dict[str, Any]:
    """Return a group's figures, and what they are more than the first group's."""
    count, why = len(group.means), f"L_{draws} and ELBO are lower bounds on log p(x)"
    found: dict[str, Any] = {"name": group.name, "runs": group.runs}
    found["steps"] = group.steps
    found["elbo"] = Estimate.from_terms(group.elbo, bias="low", why=why).to_dict()
    found["log_likelihood"] = Estimate.from_terms(group.bound, bias="low", why=why).to_dict()
    bits = _bits(group.bound, data)
    if bits is not None:
        found["bits"] = bits.to_dict()
    found["sd_over_seeds"] = statistics.stdev(group.means) if count > 1 else None
    if group is not first:
        found["more_elbo"] = Estimate.from_terms(group.elbo - first.elbo).to_dict()
        found["more_log_likelihood"] = Estimate.from_terms(group.bound - first.bound).to_dict()
        more = _bits(group.bound - first.bound, data)
        if more is not None:
            found["more_bits"] = replace(more, bias="none", why="").to_dict()
        if count > 1 and len(first.means) > 1:
            parts = [statistics.variance(one.means) / len(one.means) for one in (group, first)]
            found["more_error_over_seeds"] = math.sqrt(sum(parts))
    return found


def _range_of(steps: list[int | None]) -> str:
    known = sorted({one for one in steps if one is not None})
    return " to ".join(f"{one:,}" for one in dict.fromkeys([*known[:1], *known[-1:]])) or "unknown"


def _table(
    fields: list[dict[str, Any]], draws: int, data: "Dataset", seeds: float | None = None
) -> str:
    """Return the comparison as text; seeds: the sd of runs that differ in the seed alone."""
    from kullback.report import aligned, evaluation_text

    noun = evaluation_text.noun_of(data.protocol)
    columns = {
        f"L_{draws}": "log_likelihood",
        "ELBO": "elbo",
        f"L_{draws} - first": "more_log_likelihood",
        "ELBO - first": "more_elbo",
    }
    if "bits" in fields[0]:
        unit = fields[0]["bits"]["unit"]
        columns |= {unit: "bits", f"{unit} - first": "more_bits"}
    rows = [["run", "steps", *columns]]
    for one in fields:
        cells = [one.get(key) for key in columns.values()]
        shown = ["" if c is None else evaluation_text.plain(Estimate.from_dict(c)) for c in cells]
        rows.append([one["name"], _range_of(one["steps"]), *shown])
    lines = [*aligned(rows, gap=evaluation_text.GAP), ""]
    lines.append(
        f"{len(data.test):,} test {noun}s, the same for every run, {draws} draws each; "
        f"nats/{noun}; ± is one standard error over {noun}s, of differences paired by {noun}"
    )
    lines.append(
        f"The error is over {noun}s, not over training seeds: another seed moves a run too."
    )
    if seeds is not None:
        lines.append(
            "The runs differ in the training seed alone: standard deviation of "
            f"L_{draws} {seeds:.2g} nats over {len(fields)} seeds"
        )
        apart = _unequal_steps([steps for one in fields for steps in one["steps"]])
        lines += [apart] if apart else []
    for one in fields:
        if one["sd_over_seeds"] is not None:
            sd = f"{one['sd_over_seeds']:.2g} nats over {len(one['runs'])} seeds"
            lines.append(f"{one['name']}: standard deviation of L_{draws} {sd}")
            apart = _unequal_steps(one["steps"])
            lines += [f"{one['name']}: {apart}"] if apart else []
        if "more_error_over_seeds" in one:
            error = one["more_error_over_seeds"]
            lines.append(f"{one['name']}: L_{draws} - first has an error of {error:.2g} over seeds")
    lines.append(
        "Bounds are compared, not log p(x): see kullback evaluate --sandwich for what lies between."
    )
    return "\n".join(lines)
