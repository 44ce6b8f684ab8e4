"""What watches a training: the rows of the logs, the progress bar, warnings, the best weights.

Which to use: `Monitor`, after every step and at the end. `Board` is the copy of its numbers for
TensorBoard, `Progress` one reading for a progress bar.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback.core import Estimate, import_extra
from kullback.data import Dataset

from ..evaluation import (
    active_units,
    bounds_given,
    collapse_of_information,
    collapse_of_rate,
    collapse_warning,
    kl_of_dimensions,
    kl_of_layers,
    unused_layers,
    varying_units,
)
from ..evidence import over_images
from ..latents import Quantised
from ..limits import (
    CALLBACK_SECONDS,
    COLLAPSE_AFTER,
    LOG_STEPS,
    LOOK_PASSES,
    LOOK_STEPS,
    LOOKS_A_RUN,
    MONITORED_IMAGES,
    OVERFIT_ERRORS,
    OVERFIT_LOOKS,
    TEST_STEPS,
)
from ..model import VAE, evaluating
from ..posterior import information_of
from ..state import State, checkpoint
from ..training import Training
from .held_out import BestLook

__all__ = ["Board", "Monitor", "Progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One reading of a running training; figures are training averages in nats, `nan` at first.

    Args:
        fraction: Of the budget that is spent.
        step: Steps so far.
        seconds: So far.
        seconds_left: Expected.
        images_per_second: Since the start of this process.
        elbo: In nats.
        rate: In nats.
        distortion: In nats.
        test_elbo: Of the averaged weights on test images; None before the first look.
        warning: The newest; "" without one.
    """

    fraction: float
    step: int
    seconds: float
    seconds_left: float
    images_per_second: float
    elbo: float
    rate: float
    distortion: float
    test_elbo: Estimate | None
    warning: str


class Board:
    """The numbers of `metrics.jsonl` for TensorBoard, in the run's folder `tensorboard`.

    A run has one where that folder exists. What a killed training wrote after its last checkpoint
    is taken back when it goes on.

    Args:
        folder: The run's.
        step: From which it goes on; 0 for a new one.

    Raises:
        MissingExtraError: The extra `tensorboard` is not installed.
    """

    FOLDER = "tensorboard"

    def __init__(self, folder: Path, step: int) -> None:
        import_extra("tensorboard", "tensorboard")
        module = import_extra("torch.utils.tensorboard", "tensorboard")
        place = str(folder / self.FOLDER)
        self.writer = module.SummaryWriter(place, purge_step=step + 1 if step else None)

    def add(self, row: dict[str, Any], step: int) -> None:
        """Write every number of a row under its name."""
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Monitor:
    """Writes the logs of one run, calls its progress callback, and keeps the best weights.

    validation: held-out training examples, `[n, *event]`, to pick the best weights on; None picks
    none, and then overfitting is looked for on test images, for a warning alone. held_labels: of
    the former, where the data have labels.
    """

    def __init__(
        self,
        folder: Path,
        model: VAE,
        data: Dataset,
        settings: Training,
        state: State,
        progress: Callable[[Progress], None] | None,
        *,
        validation: Tensor | None = None,
        held_labels: Tensor | None = None,
    ) -> None:
        self.folder, self.model, self.settings, self.state = folder, model, settings, state
        self.progress, self.kind = progress, data.kind
        size = min(settings.batch_size, len(data.train))
        self.batch, self.per_epoch = size, len(data.train) // size
        self.log_every = min(LOG_STEPS, self.per_epoch)
        steps = float(TEST_STEPS)
        if validation is not None:  # weights are picked from what was looked at
            unit, amount = settings.budget
            total = {"steps": amount, "epochs": amount * self.per_epoch}.get(unit, math.inf)
            few = min(LOOK_PASSES * self.per_epoch, total / LOOKS_A_RUN)
            steps = min(steps, max(LOOK_STEPS, few))
        self.test_every = self.log_every * max(1, math.ceil(steps / self.log_every))
        self.test = model.check(data.test[:MONITORED_IMAGES])
        labels = data.test_labels
        self.test_labels = None if labels is None else labels[:MONITORED_IMAGES]
        self.held_labels = held_labels
        self.validation = None if validation is None else model.check(validation)
        self.best = BestLook.load(folder, state.step)
        self.looked = (state.step, settings.progress(state.step, state.seconds, self.per_epoch))
        self.warnings: list[str] = []
        self.warned: set[str] = set()
        self.latest: dict[str, float] = {}
        self.test_elbo: Estimate | None = None
        self.first = (state.step, state.seconds)
        self.called = -math.inf
        shown = (folder / Board.FOLDER).is_dir()
        self.board = Board(folder, state.step) if shown else None

    def after_step(self) -> None:
        """Log when a reading is due; call back at most ten times a second."""
        if self.state.step % self.log_every == 0:
            self._log()
        if self.progress is not None and time.monotonic() - self.called > CALLBACK_SECONDS:
            self.called = time.monotonic()
            self.progress(self._reading())

    def due(self) -> bool:
        """Say whether averaged weights will be looked at after the step that is being made."""
        step, seconds = self.state.step + 1, self.state.seconds
        spent = self.settings.progress(step, seconds, self.per_epoch)
        return step % self.log_every == 0 and self._look_is_due(step, spent)

    def finish(self) -> None:
        """Log what the last, shorter stretch brought, with a last look at the test images."""
        if self.state.step % self.log_every:
            self._log(last=True)
        elif self.state.step % self.test_every:  # the training row is written already
            spent = self.settings.progress(self.state.step, self.state.seconds, self.per_epoch)
            row = self._test(spent)
            checkpoint.extend_last_row(self.folder, "metrics.jsonl", row)
            if self.board is not None:
                self.board.add(row, self.state.step)

    def _log(self, *, last: bool = False) -> None:
        state = self.state
        count = state.step % self.log_every or self.log_every
        elbo, rate = (state.totals / count).tolist()
        state.totals.zero_()
        spent = self.settings.progress(state.step, state.seconds, self.per_epoch)
        self.latest = {"elbo": elbo, "rate": rate}
        self.latest["distortion"] = -self.latest["elbo"] - self.latest["rate"]
        row: dict[str, Any] = {"step": state.step, "epoch": state.step / self.per_epoch}
        row |= self.latest | {"beta": self.settings.beta_at(spent)}
        row["learning_rate"] = state.optimiser.param_groups[0]["lr"]
        if last or self._look_is_due(state.step, spent):
            row |= self._test(spent)
        checkpoint.append_row(self.folder, "metrics.jsonl", row)
        if self.board is not None:
            self.board.add(row, state.step)
        timing = {"step": state.step, "seconds": state.seconds}
        checkpoint.append_row(self.folder, "timing.jsonl", timing)

    def _look_is_due(self, step: int, spent: float) -> bool:
        """Say whether a row of this step has a look: every so many steps, or tenths of minutes.

        The latter where weights are picked from the looks of a budget in minutes.
        """
        last, share = self.looked
        timed = self.validation is not None and self.settings.budget[0] == "minutes"
        passed = step - last >= LOOK_STEPS and spent - share >= 1 / LOOKS_A_RUN
        return step % self.test_every == 0 or (timed and passed)

    def _test(self, spent: float) -> dict[str, Any]:
        """Measure the averaged weights on test images, with the same noise every time."""
        self.looked = (self.state.step, spent)
        generator = torch.Generator(self.test.device).manual_seed(self.settings.seed)
        with self.state.flat.averaged(), evaluating(self.model):
            figures = bounds_given(
                self.model, self.test, self.test_labels, draws=1, generator=generator
            )
            whole = information_of(self.model, self.test, labels=self.test_labels)
            more = self._look()
        each = kl_of_dimensions(self.model, figures)
        used: dict[str, Any] = {"varying_units": varying_units(figures.mean)}
        if each is None:
            coded = isinstance(self.model.family, Quantised)
            name = "length of the code" if coded else "KL"
            rate = float(figures.rate.mean())
            collapse = collapse_of_rate(rate, self.settings.beta, name=name)
            if not collapse and whole is not None:
                collapse = collapse_of_information(
                    rate, whole.information_high, self.settings, kind=self.kind
                )
        else:
            active, kl = active_units(figures.mean, each), each.tolist()
            most = None if whole is None else whole.information_high
            collapse = collapse_warning(kl, active, self.settings, most, kind=self.kind)
            used = {"active_units": active} | used | {"kl_per_dimension": kl}
        self.test_elbo = over_images(figures.elbo.double().cpu(), bias="low", why="a bound")
        error = float(self.test_elbo.standard_error)
        layers = kl_of_layers(self.model, figures)
        nats = [] if layers is None else layers.mean(0).tolist()
        if nats:
            used["kl_per_layer"] = nats
        if spent > max(COLLAPSE_AFTER, self.settings.warmup):
            self._warn("collapse", collapse)
            self._warn("layers", "" if collapse else unused_layers(nats))
        return {
            "test_elbo": self.test_elbo.value,
            **({"test_elbo_error": error} if math.isfinite(error) else {}),
            "test_images": len(self.test),
            **used,
            **more,
        }

    def _look(self) -> dict[str, Any]:
        """Compare the averaged weights with the best so far on held-out examples; keep the better.

        The noise is the same at every look, so differences are paired.
        """
        step, train_elbo = self.state.step, self.latest.get("elbo", math.nan)
        terms, picks = self._objective(), self.validation is not None
        row = {"validation_objective": float(terms.mean())} if picks else {}
        best = self.best
        if best is None or terms.mean() > best.terms.mean():
            average = self.state.flat.whole_average
            weights = average.detach().cpu().clone() if picks else torch.empty(0)
            self.best = BestLook(step, train_elbo, terms, weights, [])
        elif step > max(best.step, *best.below, 0):
            fall = over_images(best.terms - terms)
            worse = fall.value > OVERFIT_ERRORS * fall.standard_error
            best.below = [*best.below, step] if worse and train_elbo > best.train_elbo else []
            if len(best.below) >= OVERFIT_LOOKS:
                self._warn("overfitting", self._overfitting(best, fall))
        if self.best is not None:
            self.best.save(self.folder)
        return row

    def _objective(self) -> Tensor:
        """Return the objective at its final β for every held-out example, `[n]`, on the CPU.

        Of every bound that weighs its draws it is L_K.
        """
        x, settings = self.test if self.validation is None else self.validation, self.settings
        weighted = settings.importance_weighted_at(1.0)
        draws = settings.draws_at(1.0) if weighted else 1
        generator = torch.Generator(x.device).manual_seed(settings.seed)
        labels = self.test_labels if self.validation is None else self.held_labels
        figures = bounds_given(self.model, x, labels, draws=draws, generator=generator)
        plain = -figures.distortion - settings.beta * figures.rate
        return (figures.importance_weighted if weighted else plain).double().cpu()

    def _overfitting(self, best: BestLook, fall: Estimate) -> str:
        held = self.validation
        where = f"{len(self.test):,} test" if held is None else f"{len(held):,} held-out"
        remedy = (
            "The weights of the best step are kept"
            if held is not None
            else "Try: --validation 0.1, which keeps the weights of the best step, or a shorter run"
        )
        return (
            f"overfitting: on {where} examples the bound has fallen by {fall.brief} since step "
            f"{best.step:,}, while it rose on training examples. {remedy}"
        )

    def select(self) -> str:
        """Put the best weights in the place of the average; return which in words, or ""."""
        best = self.best
        if self.validation is None or best is None or not best.weights.numel():
            return ""
        average = self.state.flat.whole_average
        average.copy_(best.weights.to(average))
        return (
            f"weights: those of step {best.step:,} of {self.state.step:,}, the best on "
            f"{len(self.validation):,} held-out training examples; the test set was not used for it"
        )

    def _warn(self, kind: str, text: str) -> None:
        """Keep a warning, one of each kind."""
        if text and kind not in self.warned:
            self.warned.add(kind)
            self.warnings.append(text)

    def _reading(self) -> Progress:
        state = self.state
        steps, seconds = state.step - self.first[0], state.seconds - self.first[1]
        fraction = self.settings.progress(state.step, state.seconds, self.per_epoch)
        left = state.seconds * (1 - fraction) / fraction if fraction > 0 else math.nan
        nan = math.nan
        return Progress(
            fraction=fraction,
            step=state.step,
            seconds=state.seconds,
            seconds_left=left,
            images_per_second=(steps - 1) * self.batch / seconds if steps > 1 else nan,
            elbo=self.latest.get("elbo", nan),
            rate=self.latest.get("rate", nan),
            distortion=self.latest.get("distortion", nan),
            test_elbo=self.test_elbo,
            warning=self.warnings[-1] if self.warnings else "",
        )
