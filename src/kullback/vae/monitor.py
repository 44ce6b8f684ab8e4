"""Watching a training: rows for the logs, figures for the progress bar, warnings in time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kullback.core import Estimate
from kullback.data import Dataset

from . import checkpoint
from .evidence import bounds
from .limits import ACTIVE_KL, ACTIVE_VARIANCE, COLLAPSED
from .loop import State
from .model import VAE
from .training import Training

__all__ = ["Monitor", "Progress", "active_units", "collapse_warning", "varying_units"]

TEST_IMAGES = 1000


@dataclass(frozen=True, slots=True)
class Progress:
    """One reading of a running training; figures are training averages in nats, `nan` at first.

    fraction of the budget spent; seconds so far and left; images per second; the newest warning.
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


def varying_units(means: torch.Tensor) -> int:
    """Count the dimensions with `Var_x(E_q[z_d|x]) > 0.01` (Burda et al. 2016, section 5.2).

    means: `[n, latent]`. That criterion counts dimensions that cost 0.005 nats, so it is no
    measure of use where β is large: there all dimensions can vary and none say much.

    >>> varying_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    1
    """
    return int((means.var(0, correction=min(1, len(means) - 1)) > ACTIVE_VARIANCE).sum())


def active_units(means: torch.Tensor, kl: torch.Tensor) -> int:
    """Count the dimensions that vary as in `varying_units` and carry 0.1 nats or more.

    means: `[n, latent]`; kl: `[latent]`, the mean KL(q(z_d|x) ‖ p(z_d)) over x, an upper bound on
    the information I(x; z_d).

    >>> means = torch.tensor([[0.0, 1.0, 0.2], [0.0, -1.0, -0.2]])
    >>> active_units(means, torch.tensor([0.0, 1.3, 0.02]))
    1
    """
    varies = means.var(0, correction=min(1, len(means) - 1)) > ACTIVE_VARIANCE
    return int((varies & (kl.to(means) >= ACTIVE_KL)).sum())


def collapse_warning(kl: list[float], active: int, beta: float) -> str:
    """Say that the posterior has collapsed, and what to do; empty when it has not.

    kl: the mean KL of every latent dimension, in nats.

    >>> collapse_warning([0.001, 0.002], 0, 1.0)[:18]
    'posterior collapse'
    >>> collapse_warning([2.0, 1.0], 2, 1.0)
    ''
    """
    total = sum(kl)
    if active > 0 and total > COLLAPSED:
        return ""
    says = "nothing" if total <= COLLAPSED else "little"
    remedy = "--warmup 0.3, --free-bits 0.1 or a lower --learning-rate"
    remedy = f"a smaller --beta (now {beta:g}), {remedy}" if beta > 1 else remedy
    return (
        f"posterior collapse: {active} of {len(kl)} latent dimensions are active and the KL is "
        f"{total:.2g} nats, so z says {says} about x. Try: {remedy}"
    )


def over_images(terms: torch.Tensor, **more: Any) -> Estimate:
    """Return `Estimate.from_terms`, or for a single image its value without an error."""
    if len(terms) > 1:
        return Estimate.from_terms(terms, **more)
    alone = Estimate(float(terms[0]), 0.0, 1, **more)
    return alone.without_error("there is one image only, and errors are over images")


class Monitor:
    """Writes the logs of one run and calls its progress callback."""

    def __init__(
        self,
        folder: Path,
        model: VAE,
        data: Dataset,
        settings: Training,
        state: State,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.folder, self.model, self.settings, self.state = folder, model, settings, state
        self.progress = progress
        size = min(settings.batch_size, len(data.train))
        self.batch, self.per_epoch = size, len(data.train) // size
        self.log_every = min(100, self.per_epoch)
        self.test_every = self.log_every * max(1, math.ceil(500 / self.log_every))
        self.test = model.check(data.test[:TEST_IMAGES])
        self.warnings: list[str] = []
        self.latest: dict[str, float] = {}
        self.test_elbo: Estimate | None = None
        self.first = (state.step, state.seconds)
        self.called = -math.inf

    def after_step(self) -> None:
        """Log when a reading is due; call back at most ten times a second."""
        if self.state.step % self.log_every == 0:
            self._log()
        if self.progress is not None and time.monotonic() - self.called > 0.1:
            self.called = time.monotonic()
            self.progress(self._reading())

    def finish(self) -> None:
        """Log what the last, shorter stretch brought, with a last look at the test images."""
        if self.state.step % self.log_every:
            self._log(last=True)
        elif self.state.step % self.test_every:  # the training row is written already
            spent = self.settings.progress(self.state.step, self.state.seconds, self.per_epoch)
            checkpoint.extend_last_row(self.folder, "metrics.jsonl", self._test(spent))

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
        if last or state.step % self.test_every == 0:
            row |= self._test(spent)
        checkpoint.append_row(self.folder, "metrics.jsonl", row)
        timing = {"step": state.step, "seconds": state.seconds}
        checkpoint.append_row(self.folder, "timing.jsonl", timing)

    def _test(self, spent: float) -> dict[str, Any]:
        """Measure the averaged weights on test images, with the same noise every time."""
        generator = torch.Generator(self.test.device).manual_seed(self.settings.seed)
        with self.state.flat.averaged():
            figures = bounds(self.model, self.test, draws=1, generator=generator)
        each = self.model.prior.kl(figures.mean, figures.log_sd).mean(0)
        active, kl = active_units(figures.mean, each), each.tolist()
        self.test_elbo = over_images(figures.elbo.double().cpu(), bias="low", why="a bound")
        error = float(self.test_elbo.standard_error)
        if spent > max(0.1, self.settings.warmup):
            self._warn(collapse_warning(kl, active, self.settings.beta))
        return {
            "test_elbo": self.test_elbo.value,
            **({"test_elbo_error": error} if math.isfinite(error) else {}),
            "test_images": len(self.test),
            "active_units": active,
            "varying_units": varying_units(figures.mean),
            "kl_per_dimension": kl,
        }

    def _warn(self, text: str) -> None:
        if text and not self.warnings:
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
            images_per_second=steps * self.batch / seconds if seconds > 0 else nan,
            elbo=self.latest.get("elbo", nan),
            rate=self.latest.get("rate", nan),
            distortion=self.latest.get("distortion", nan),
            test_elbo=self.test_elbo,
            warning=self.warnings[-1] if self.warnings else "",
        )
