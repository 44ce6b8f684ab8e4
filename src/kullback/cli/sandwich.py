"""What `kullback evaluate --sandwich` and `--per-item` add to an evaluation.

`measure_sandwich` runs the chains on test images and on images that the model makes; `write_items`
writes the figures image by image; `anneal_loose` is the short form that closes a training. No torch
is imported before one of them runs.
"""

import csv
import io
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kullback.core import write_atomic

from .limits import (
    CLIP_REFIT_DRAWS,
    CLIP_REFIT_STEPS,
    CLOSING_ANNEALED,
    CLOSING_ANNEALED_CLIPS,
    CLOSING_CHAINS,
    CLOSING_CLIP_CHAINS,
    CLOSING_TEMPERATURES,
    SANDWICH_CLIPS,
    SANDWICH_FEWEST,
    SANDWICH_FIRST,
    SANDWICH_IMAGES,
    SANDWICH_PILOTS,
    SECONDS_WORTH_TELLING,
)
from .session import bar, log, say

if TYPE_CHECKING:
    from torch import Tensor

    from kullback.data import Dataset
    from kullback.vae import VAE, Annealing, Bounds, Evaluation, Gap, Refit

__all__ = ["Sandwich", "SandwichResult", "anneal_loose", "measure_sandwich", "write_items"]


@dataclass(frozen=True, slots=True)
class Sandwich:
    """What `--sandwich` was asked for; None: the usual number, which the kind of data decides.

    minutes: in which temperatures are doubled until the bounds meet; None leaves them as they are.
    """

    items: int | None
    chains: int | None
    temperatures: int | None
    seed: int
    explain: bool
    minutes: float | None = None

    def of(self, kind: str) -> "tuple[int, Annealing]":
        """Return how many items, and the settings of their chains, for data of a kind."""
        from kullback.vae import Annealing

        usual = SANDWICH_CLIPS if kind == "sound" else SANDWICH_IMAGES
        if self.minutes is not None:
            usual = (*usual[:2], SANDWICH_FIRST)
        asked = (self.items, self.chains, self.temperatures)
        items, chains, count = (u if a is None else a for a, u in zip(asked, usual, strict=True))
        return items, Annealing(chains=chains, temperatures=count)


@dataclass(frozen=True, slots=True)
class SandwichResult:
    """The figures for JSON and as text, and those of the test images."""

    fields: dict[str, Any]
    text: str
    test: "Gap"


def measure_sandwich(model: "VAE", data: "Dataset", settings: Sandwich) -> SandwichResult:
    """Measure log p(x) = ELBO + KL on the first test images and on as many of the model's own."""
    from kullback.report import evaluation_text
    from kullback.vae import Refit, aggregate, made_by, measure_gap

    items, how = settings.of(data.kind)
    seed, few = settings.seed, Refit(steps=CLIP_REFIT_STEPS, draws=CLIP_REFIT_DRAWS)
    refit = few if data.kind == "sound" else Refit()
    x, noun = data.test[:items], evaluation_text.noun_of(data.protocol)
    made, exact = made_by(model, len(x), seed=seed)
    log(f"sandwich: {len(x)} {noun}s, {how}, {refit}")
    rates = _rates(model, (x, made), how)
    if settings.minutes is not None:
        how, fits = _lengthened(model, (made, exact), how, settings, rates, refit)
        if settings.items is None and fits < len(x):
            x, made, exact = (part[: max(SANDWICH_FEWEST, fits)] for part in (x, made, exact))
            say(f"--items {len(x)}: more would take longer than asked")
    seconds = _seconds(rates, len(x), how, refit)
    if seconds > SECONDS_WORTH_TELLING:
        say(
            f"this takes about {math.ceil(seconds / 60):,} min: {len(x)} test {noun}s and {len(x)} "
            f"of the model's own, {how.chains} chains of {how.temperatures} temperatures each; "
            "fewer --items, --chains or --temperatures take less"
        )
    given: dict[str, Any] = {"annealing": how, "refitting": refit}
    with bar(f"annealing, test {noun}s") as update:
        test = measure_gap(model, x, seed=seed, progress=update, **given)
    with bar(f"annealing, the model's own {noun}s") as update:
        own = measure_gap(model, made, exact=exact, seed=seed + 1, progress=update, **given)
    enough = len(data.test) >= 3
    whole = aggregate(model, data.test, seed=seed) if enough else None
    text = evaluation_text.sandwich_table(test, own, whole, noun=noun, explain=settings.explain)
    fields = {
        "annealing": asdict(how),
        "test": test.to_dict(),
        "own": own.to_dict(),
        "aggregate": None if whole is None else whole.to_dict(),
    }
    return SandwichResult(fields, text, test)


def _rates(model: "VAE", parts: "tuple[Tensor, Tensor]", how: "Annealing") -> tuple[float, float]:
    """Return seconds an evaluation of log p(x, z) takes, of one test item and of one of its own.

    Short chains are timed. Draws of their own, so that no figure depends on it.
    """
    import torch

    from kullback.vae import anneal

    trial, rates = replace(how, temperatures=2, leapfrog=1, pilots=2), []
    for part in parts:
        x = model.check(part)
        generator = torch.Generator(x.device).manual_seed(0)
        start = time.perf_counter()
        anneal(model, x, settings=trial, generator=generator)
        rates.append((time.perf_counter() - start) / (trial.evaluations() * len(x)))
    return rates[0], rates[1]


def _seconds(rates: tuple[float, float], items: int, how: "Annealing", refit: "Refit") -> float:
    """Return about how long annealing of as many test items and own ones will take."""
    return sum(
        rate * items * (how.evaluations(backward=backward) + refit.steps * refit.draws)
        for rate, backward in zip(rates, (False, True), strict=True)
    )


def _lengthened(
    model: "VAE",
    own: "tuple[Tensor, Tensor]",
    how: "Annealing",
    settings: Sandwich,
    rates: tuple[float, float],
    refit: "Refit",
) -> "tuple[Annealing, int]":
    """Double the temperatures until the bounds of pilots meet, or the next would take too long.

    The pilots are chains of their own on the first own items: those that bound are made afterwards,
    with temperatures that are then fixed. own: items and the z they were made from. Also returns
    for how many items the time that is left is enough.
    """
    import torch

    from kullback.vae import anneal, limits

    made, exact = own
    few, ends = slice(0, SANDWICH_PILOTS), time.perf_counter() + 60 * (settings.minutes or 0)
    x = model.check(made[few])
    generator = torch.Generator(x.device).manual_seed(settings.seed + 2)
    while True:
        start = time.perf_counter()
        found = anneal(model, x, settings=how, exact=exact[few], generator=generator)
        now = time.perf_counter()
        width = float((found.upper - found.lower).mean())  # type: ignore[operator]  # with exact
        longer = replace(how, temperatures=2 * how.temperatures)
        needed = 2 * (now - start) + _seconds(rates, len(made), longer, refit)
        if width <= limits.SETTLED_WIDTH or now + needed > ends:
            break
        how = longer
    met = f"; {longer.temperatures} would take longer than asked"
    met = "" if width <= limits.SETTLED_WIDTH else met
    say(
        f"--temperatures {how.temperatures}, as pilots chose: their bounds on the model's own "
        f"were {width:.3g} nats apart (settled: {limits.SETTLED_WIDTH:g}){met}"
    )
    own_seconds = (now - start) / len(x)
    test_seconds = own_seconds * how.evaluations(backward=False) / how.evaluations(backward=True)
    each = own_seconds + test_seconds + sum(rates) * refit.steps * refit.draws
    return how, int((ends - now) / each) if each > 0 else len(made)


def write_items(out: Path, data: "Dataset", found: "Bounds", test: "Gap | None") -> None:
    """Write one row an image: name, bounds, rate, distortion, effective draws, annealed bound."""
    columns: dict[str, list[Any]] = {
        "name": list(data.test_names),
        "elbo": found.elbo.tolist(),
        f"L_{found.draws}": found.importance_weighted.tolist(),
        "rate": found.rate.tolist(),
        "distortion": found.distortion.tolist(),
        "effective_draws": found.effective_draws.tolist(),
    }
    if test is not None:
        missing = [""] * (len(data.test_names) - test.images)
        columns["log_p_at_least"] = test.per_image.lower.tolist() + missing
        columns["settled"] = test.per_image.settled.int().tolist() + missing
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(zip(*columns.values(), strict=True))
    write_atomic(out, text.getvalue().encode())
    say(f"{len(data.test_names)} rows: {out}")
    say(
        "note: a high bound on log p(x) is no sure sign of a usual image: models give high ones to "
        "plain images of kinds that they never saw (Nalisnick et al. 2019)"
    )


def closing_chains(kind: str) -> "Annealing":
    """Return the settings of the chains that close a training."""
    from kullback.vae import Annealing

    if kind == "sound":
        chains, temperatures, leapfrog, pilots = CLOSING_CLIP_CHAINS
        return Annealing(chains, temperatures, leapfrog, pilots)
    return Annealing(chains=CLOSING_CHAINS, temperatures=CLOSING_TEMPERATURES)


def anneal_loose(
    model: "VAE", data: "Dataset", found: "Bounds", evaluation: "Evaluation"
) -> "Evaluation":
    """Where bounds are loose, add how far annealing lies above them on the first test images.

    Their number depends on the data alone: 8 small images, fewer large ones, 4 clips of a second at
    8 kHz, none where two would take minutes.
    """
    import torch

    from kullback.core import Estimate
    from kullback.vae import anneal

    sound = data.kind == "sound"
    most, numbers = CLOSING_ANNEALED_CLIPS if sound else CLOSING_ANNEALED
    items = min(most, numbers // data.test[0].numel(), len(data.test))
    if not evaluation.loose or items < 2:
        return evaluation
    generator = torch.Generator(data.test.device).manual_seed(evaluation.seed)
    how, labels, x = closing_chains(data.kind), data.test_labels, model.check(data.test[:items])
    parts = [(model, x)]
    if labels is not None:  # each with its own
        parts = [(model.at(labels[k]), x[k : k + 1]) for k in range(items)]
    with bar("annealing") as update:
        chains = [
            anneal(given, part, settings=how, generator=generator, progress=update)
            for given, part in parts
        ]
    lower = torch.cat([one.lower.double().cpu() for one in chains])
    above = lower - found.importance_weighted[:items].cpu()
    gain = Estimate.from_terms(above, bias="low", why="annealing bounds log p(x) from below")
    if gain.value <= 0:  # too few temperatures for this model: nothing is known above L_K
        return evaluation
    settled = sum(int(one.settled.sum()) for one in chains)
    return replace(evaluation, annealed=gain, annealed_settled=settled)
