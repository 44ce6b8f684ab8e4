"""What `entropy`, `cross-entropy`, `kl` and `js` share: their options, and the way to the answer."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from kullback.core import require

from .session import prepare, print_json, say

if TYPE_CHECKING:
    from kullback.sampled.exact_or_sampled import Measured

    from .reading import Given

__all__ = ["SYMBOLS", "MeasureOptions", "P", "Q", "answer"]

SYMBOLS = {"entropy": "H(P)", "cross-entropy": "H(P, Q)", "kl": "KL(P‖Q)", "js": "JS(P, Q)"}
FORMS = "0.5,0.25,0.25, a .csv, .json or .npy file, or a name such as normal(0,1)."

P = Annotated[str, Parameter(help=f"The truth: {FORMS}")]
Q = Annotated[str, Parameter(help="The belief, in the same form.")]


@dataclass(kw_only=True)
class MeasureOptions:
    """How to measure and how to show it."""

    unit: Annotated[Literal["nats", "bits"], Parameter(help="nats or bits.")] = "nats"
    normalise: Annotated[
        bool, Parameter(help="Divide tables and weights by their sum.", negative="")
    ] = False
    draws: Annotated[int, Parameter(help="How many, where there is no exact way.")] = 10_000
    seed: Annotated[int, Parameter(help="Of the draws.")] = 0
    explain: Annotated[
        bool, Parameter(help="Write out formula, numbers and what they mean.", negative="")
    ] = False
    plot: Annotated[Path | None, Parameter(help="Draw it to this .svg file.")] = None
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False

    def checked(self) -> "MeasureOptions":
        """Return the options themselves, or raise a ValueError that says which is wrong."""
        require(self.draws >= 4, "--draws", "at least 4", self.draws)
        require(0 <= self.seed < 2**63, "--seed", "an integer from 0 to 2^63 - 1", self.seed)
        if self.plot is not None:
            svg = self.plot.suffix.lower() == ".svg"
            require(svg, "--plot", "a .svg file", str(self.plot))
            new = self.force or not self.plot.exists()
            require(new, "--plot", "a file that does not exist", str(self.plot), "--force")
        return self


def answer(
    quantity: str,
    p: str,
    q: str | None,
    options: MeasureOptions | None,
    *,
    estimator: str | None = None,
) -> None:
    """Measure, and print the number, its explanation or its JSON; draw it if asked."""
    prepare()
    options = (options or MeasureOptions()).checked()
    from .reading import read, read_pair

    if q is None:
        given: tuple[Given, ...] = (read(p, normalise=options.normalise),)
    else:
        given = read_pair(p, q, normalise=options.normalise)
    values = [g.value for g in given]
    chosen = _estimator(estimator)
    measured, exact = _measure(quantity, values, options, chosen)
    text = _explanation(quantity, given, options, chosen, exact) if options.explain else None
    if options.plot is not None:
        _plot(quantity, given, options, chosen, exact)
    if options.json:
        print_json(_fields(quantity, given, options, chosen, measured, exact, text))
    else:
        _print(quantity, options, measured, exact, text)
    for warning in _warnings(quantity, values, measured):
        say(f"warning: {warning}")
    if options.plot is not None:
        say(f"plot: {options.plot}")


def _estimator(text: str | None) -> str | float | None:
    """Turn --estimator into a name or a number λ; None when it was not given."""
    if text in (None, "k1", "k2", "k3", "best"):
        return text
    try:
        return float(str(text))
    except ValueError:
        require(False, "--estimator", "k1, k2, k3, best or a number λ", repr(text))
        return None


def _measure(
    quantity: str, values: list[Any], options: MeasureOptions, estimator: str | float | None
) -> "tuple[Measured, float | None]":
    """Return what was measured, and the exact value in nats where there is one."""
    import torch

    from kullback import sampled
    from kullback.sampled import exact_or_sampled as ways

    how: dict[str, Any] = {
        "draws": options.draws,
        "generator": torch.Generator().manual_seed(options.seed),
    }
    functions: dict[str, Any] = {
        "entropy": ways.entropy,
        "cross-entropy": ways.cross_entropy,
        "kl": ways.kl,
        "js": ways.js,
    }
    if estimator is None:
        measured = functions[quantity](*values, **how)
        return measured, float(measured) if measured.exact else None
    known = ways.kl(*values, draws=4)
    found = sampled.kl(*_drawable(values), estimator=estimator, **how)
    words = ways.how_sampled(estimator, options.draws)
    return ways.Measured(found.value, words, found), float(known) if known.exact else None


def _drawable(values: list[Any]) -> list[Any]:
    """Turn tables into distributions that can be drawn from."""
    from torch import Tensor
    from torch.distributions import Categorical

    return [Categorical(v / v.sum()) if isinstance(v, Tensor) else v for v in values]


def _warnings(quantity: str, values: list[Any], measured: "Measured") -> list[str]:
    """Return what a reader must know before using the number."""
    import math

    estimate = measured.estimate
    said = list(estimate.warnings) if estimate is not None else []
    if estimate is not None and estimate.why:
        said.append(f"biased {estimate.bias}: {estimate.why}")
    if math.isinf(float(measured)) and quantity in ("kl", "cross-entropy"):
        said.append("infinite: P has mass where Q has none")
    return said


def _explanation(
    quantity: str,
    given: "tuple[Given, ...]",
    options: MeasureOptions,
    estimator: str | float | None,
    exact: float | None,
) -> str:
    from kullback.report.explain_named import explain_estimators, explain_named
    from kullback.report.explain_tables import explain_table

    values, how = [g.value for g in given], {"draws": options.draws, "seed": options.seed}
    if given[0].table:
        labels = next((g.labels for g in given if g.labels), ())
        text = explain_table(quantity, *values, labels=labels, unit=options.unit)
    else:
        text = explain_named(quantity, *values, unit=options.unit, **how)
    sampling = estimator is not None or (exact is None and quantity == "kl")
    if not sampling:
        return text
    both = _drawable(values)
    return f"{text}\n\n{explain_estimators(*both, unit=options.unit, exact=exact, **how)}"


def _plot(
    quantity: str,
    given: "tuple[Given, ...]",
    options: MeasureOptions,
    estimator: str | float | None,
    exact: float | None,
) -> None:
    from kullback.core.files import write_atomic
    from kullback.report.divergence_plot import plot

    values = [g.value for g in given]
    sampling = quantity == "kl" and (estimator is not None or exact is None)
    picture = plot(
        quantity,
        *values,
        labels=next((g.labels for g in given if g.labels), ()),
        names=[g.text for g in given],
        unit=options.unit,
        drawable=_drawable(values) if sampling else None,
        draws=options.draws,
        seed=options.seed,
        exact=exact,
    )
    if options.plot is not None:
        write_atomic(options.plot, picture)


def _fields(
    quantity: str,
    given: "tuple[Given, ...]",
    options: MeasureOptions,
    estimator: str | float | None,
    measured: "Measured",
    exact: float | None,
    text: str | None,
) -> dict[str, Any]:
    from kullback.core import Estimate
    from kullback.report.layout import UNITS

    one = UNITS[options.unit]
    found = measured.estimate or Estimate(float(measured), 0.0, 0)
    figures = (found.bits() if options.unit == "bits" else found).to_dict()
    del figures["where"]
    sampled = measured.estimate is not None
    named = ("best" if quantity == "kl" else "mean") if estimator is None else estimator
    figures |= {
        "standard_error": figures["standard_error"] if sampled else None,
        "draws": options.draws if sampled else None,
        "warnings": _warnings(quantity, [g.value for g in given], measured),
    }
    fields = {
        "quantity": quantity,
        "direction": SYMBOLS[quantity],
        **{name: g.text for name, g in zip("pq", given, strict=False)},
        "estimator": named if sampled else None,
        "seed": options.seed if sampled else None,
        "exact": not sampled,
        "method": measured.method,
        **figures,
        "exact_value": None if exact is None else Estimate(exact / one, 0.0, 0).to_dict()["value"],
    }
    return fields | ({} if text is None else {"explanation": text})


def _print(
    quantity: str,
    options: MeasureOptions,
    measured: "Measured",
    exact: float | None,
    text: str | None,
) -> None:
    from kullback.report.layout import UNITS, measured_text, number

    line = f"{SYMBOLS[quantity]} = {measured_text(measured, options.unit, gap='  ')}"
    line = line.replace("(sum over", "(exact: sum over")
    if exact is not None and not measured.exact:
        line = f"{line[:-1]}; exact: {number(exact / UNITS[options.unit])})"
    _write(line + "\n" + (f"\n{text}\n" if text else ""))


def _write(text: str) -> None:
    """Write a result on standard output, in plain letters where those of mathematics are missing."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding or "ascii"
        plain = text.replace("‖", "||").replace("±", "+-").replace("−", "-").replace("≤", "<=")
        sys.stdout.write(plain.encode(encoding, "replace").decode(encoding))
