"""How what was measured is shown: a line, an explanation, JSON, a picture."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributions import Categorical

from kullback.core import Estimate, write_atomic
from kullback.report import (
    UNITS,
    explain_named,
    explain_tables,
    measured_text,
    number,
    plot,
)
from kullback.sampled.divergences import Measured

from .options import MeasureOptions
from .reading import Given
from .session import print_json, write

__all__ = ["Answer", "draw", "drawable", "explanation", "show"]

SYMBOLS = {"entropy": "H(P)", "cross-entropy": "H(P, Q)", "kl": "KL(P‖Q)", "js": "JS(P, Q)"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What was asked, of what, what came out; the estimator asked for; the exact value in nats."""

    quantity: str
    given: tuple[Given, ...]
    measured: Measured
    estimator: str | float | None
    exact: float | None

    @property
    def values(self) -> list[Any]:
        """P, and Q where there is one, as tables or distributions."""
        return [one.value for one in self.given]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outcomes, or none."""
        return next((one.labels for one in self.given if one.labels), ())

    @property
    def drawn(self) -> bool:
        """Whether a KL was estimated from draws."""
        return self.quantity == "kl" and not self.measured.exact

    @property
    def no_error(self) -> str:
        """Why an estimate has no standard error; empty where it has one or needs none."""
        estimate = self.measured.estimate
        return "" if estimate is None else estimate.no_error

    def warnings(self) -> list[str]:
        """Return what a reader must know before using the number."""
        estimate = self.measured.estimate
        said = list(estimate.warnings) if estimate is not None else []
        if estimate is not None and estimate.why:
            said.append(estimate.why)
        infinite = math.isinf(float(self.measured)) and len(self.given) == 2
        if infinite:
            tail = "p's tail" in self.measured.method
            why = "P's tail is too heavy for Q's" if tail else "P has mass where Q has none"
            if self.measured.exact and not tail and not self.given[0].table:
                why += " or too little, or the value is beyond float64"
            said.append(f"infinite: {why}")
        elif self.exact == math.inf:
            said.append(
                "the exact value is infinite, which these draws and their scores do not show"
            )
        return said


def drawable(values: list[Any]) -> list[Any]:
    """Turn tables into distributions that can be drawn from; zeros stay zeros (as logits)."""
    return [Categorical(logits=v.log()) if isinstance(v, Tensor) else v for v in values]


def explanation(found: Answer, options: MeasureOptions) -> str:
    """Write out formulas, numbers and what they mean, for a KL with its estimators and λ*."""
    how: dict[str, Any] = {"draws": options.draws, "seed": options.seed}
    if found.given[0].table:
        unit, labels = options.unit, found.labels
        text = explain_tables.explain_table(found.quantity, *found.values, labels=labels, unit=unit)
    else:
        text = explain_named.explain_named(found.quantity, *found.values, unit=options.unit, **how)
    if found.quantity != "kl" or (found.given[0].table and not found.drawn):
        return text
    both = drawable(found.values)
    found_by = explain_named.explain_estimators(*both, unit=options.unit, exact=found.exact, **how)
    return f"{text}\n\n{found_by}"


def draw(found: Answer, options: MeasureOptions, path: Path) -> None:
    """Write the picture, whole or not at all."""
    picture = plot(
        found.quantity,
        *found.values,
        labels=found.labels,
        names=[one.text for one in found.given],
        unit=options.unit,
        drawable=drawable(found.values) if found.drawn else None,
        draws=options.draws,
        seed=options.seed,
        exact=found.exact,
    )
    write_atomic(path, picture)


def show(found: Answer, options: MeasureOptions, text: str | None) -> None:
    """Print the answer on standard output: JSON, or a line and the explanation."""
    if options.json:
        print_json(_fields(found, options) | ({} if text is None else {"explanation": text}))
        return
    how = measured_text(found.measured, options.unit, gap="  ").replace("(sum", "(exact: sum")
    line = f"{SYMBOLS[found.quantity]} = {how}"
    if found.exact is not None and not found.measured.exact:
        line = f"{line[:-1]}; exact: {number(found.exact / UNITS[options.unit])})"
    read_as = _read_as(found.given)
    line = f"{line[:-1]}; {read_as})" if read_as else line
    if found.no_error:
        line = f"{line}\n  no error bar: {found.no_error}"
    write(f"{line}\n" if text is None else f"{line}\n\n{text}\n")


def _read_as(given: tuple[Given, ...]) -> str:
    """Say what abbreviated names stand for: `P: normal(loc 0, scale 1)`."""
    parts = (f"{n}: {one.read_as}" for n, one in zip("PQ", given, strict=False) if one.read_as)
    return ", ".join(parts)


def _fields(found: Answer, options: MeasureOptions) -> dict[str, Any]:
    """Return the answer for machines: full precision, infinities as strings."""
    sampled = found.measured.estimate is not None
    estimate = found.measured.estimate or Estimate(float(found.measured), 0.0, 0)
    figures = (estimate.bits() if options.unit == "bits" else estimate).to_dict()
    default = "best" if estimate.how else "mean"
    estimator = default if found.estimator is None else found.estimator
    known = None if found.exact is None else found.exact / UNITS[options.unit]
    return {
        "quantity": found.quantity,
        "direction": SYMBOLS[found.quantity],
        **{name: one.text for name, one in zip("pq", found.given, strict=False)},
        **{
            f"{name}_read_as": one.read_as
            for name, one in zip("pq", found.given, strict=False)
            if one.read_as
        },
        "value": figures["value"],
        "standard_error": figures["standard_error"] if sampled and not found.no_error else None,
        "no_error": found.no_error,
        "rounding": figures["rounding"],
        "unit": options.unit,
        "exact": not sampled,
        "exact_value": known if known is None or math.isfinite(known) else repr(known),
        "method": found.measured.method,
        "estimator": estimator if sampled else None,
        "how": figures["how"] if sampled else None,
        "draws": figures["draws"] if sampled else None,
        "seed": options.seed if sampled else None,
        "bias": figures["bias"],
        "why": figures["why"],
        "k_hat": figures["k_hat"],
        "warnings": found.warnings(),
    }
