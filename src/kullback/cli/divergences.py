"""`kullback entropy`, `cross-entropy`, `js` and `kl`: from arguments to output.

`answer` reads P and Q, measures, and prints. No torch is imported before a command runs.
"""

import functools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kullback.core import ArgumentValueError, Estimate, message, printable, require, write_atomic

from .limits import FEWEST_DRAWS, PILOT_DRAWS, SECONDS_BEFORE_BAR
from .options import MeasureOptions, Options, P, Q, Shared
from .session import Session, expected_bar, log, prepare, print_json, say, write

if TYPE_CHECKING:
    from kullback.sampled import Measured

    from .reading import Given

__all__ = ["Answer", "answer", "cross_entropy", "entropy", "js", "kl"]

SYMBOLS = {"entropy": "H(P)", "cross-entropy": "H(P, Q)", "kl": "KL(P‖Q)", "js": "JS(P, Q)"}


def entropy(p: P, /, *, options: Options = None, shared: Shared = None) -> None:
    """Entropy H(P) = Σ p log 1/p: mean code length of data from P in the best code for P.

    Differential entropy −∫ p log p where P has a density. Exact where there is a closed form or a
    table to sum over; else estimated from samples, with a standard error.
    """
    answer("entropy", p, None, options, shared)


def cross_entropy(p: P, q: Q, /, *, options: Options = None, shared: Shared = None) -> None:
    """Cross-entropy H(P, Q) = Σ p log 1/q: mean code length when data from P are coded for Q.

    Exact where there is a closed form or a table to sum over; else estimated from samples, with a
    standard error.
    """
    answer("cross-entropy", p, q, options, shared)


def js(p: P, q: Q, /, *, options: Options = None, shared: Shared = None) -> None:
    """Jensen-Shannon divergence JS(P, Q) = ½ KL(P‖M) + ½ KL(Q‖M), M = ½P + ½Q.

    Symmetric, between 0 and ln 2 nats (1 bit). Exact for tables; else estimated from samples, with
    a standard error.
    """
    answer("js", p, q, options, shared)


def kl(
    p: P,
    q: Q,
    /,
    *,
    estimator: Annotated[
        str | None,
        Parameter(
            help="Estimate from samples: k1, k2, k3, best or a number λ (docs/estimating_kl.md)."
        ),
    ] = None,
    options: Options = None,
    shared: Shared = None,
) -> None:
    """Divergence KL(P‖Q) = Σ p log p/q: mean extra code length of Q's code for data from P.

    Exact where there is a closed form or a table to sum over; else estimated from samples, with a
    standard error, or without one and with the reason. In nats, or with --unit bits in bits.
    """
    answer("kl", p, q, options, shared, estimator=estimator)


@dataclass(frozen=True, slots=True)
class Answer:
    """The quantity, its arguments, its value; the estimator asked for; the exact value in nats."""

    quantity: str
    given: "tuple[Given, ...]"
    measured: "Measured"
    estimator: str | float | None
    exact: float | None

    @property
    def p(self) -> Any:
        """P, a table or a distribution."""
        return self.given[0].value

    @property
    def q(self) -> Any:
        """Q, or None where the quantity has none."""
        return self.given[1].value if len(self.given) > 1 else None

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
        elif self.exact == math.inf and not self.measured.exact:
            said.append(
                "the exact value is infinite, which these draws and their scores do not show"
            )
        return said


def answer(
    quantity: str,
    p: str,
    q: str | None,
    options: MeasureOptions | None,
    shared: Session | None = None,
    *,
    estimator: str | None = None,
) -> None:
    """Measure, and print the number, its explanation or its JSON; draw it if asked."""
    prepare(shared)
    options = options or MeasureOptions()
    options.check()
    chosen = _estimator(estimator)
    from .reading import Tables, read, read_pair

    how = Tables(options.normalise, options.weights, options.log)
    if q is None:
        given: tuple[Any, ...] = (read(p, how=how),)
    else:
        given = read_pair(p, q, how=how)
    for name, one in zip("PQ", given, strict=False):
        log(f"{name}: {one.what}")
    found = _measured(quantity, given, options, chosen)
    log(f"measured: {found.measured.method}")
    if math.isnan(float(found.measured)):
        expected = "parameters for which float64 holds the value"
        raise ArgumentValueError(message("P and Q", expected, "not a number", "smaller ratios"))
    text = explanation(found, options) if options.explain else None
    if options.plot is not None:
        draw(found, options, options.plot)
    show(found, options, text)
    for warning in found.warnings():
        say(f"warning: {warning}")
    if options.plot is not None:
        say(f"plot: {options.plot}")


def _estimator(text: str | None) -> str | float | None:
    """Turn --estimator into a name or a number λ; None when it was not given."""
    if text in (None, "k1", "k2", "k3", "best"):
        return text
    expected = "k1, k2, k3, best or a finite number λ"
    try:
        value = float(str(text))
    except ValueError as error:
        raise ArgumentValueError(message("--estimator", expected, repr(text))) from error
    require(abs(value) < float("inf"), "--estimator", expected, repr(text))
    return value


def _measured(
    quantity: str, given: tuple[Any, ...], options: MeasureOptions, estimator: str | float | None
) -> Answer:
    """Measure in the best way there is, or by the estimator asked for, beside the exact value."""
    import torch

    from kullback import sampled
    from kullback.sampled import divergences as ways

    def seeded(draws: int) -> dict[str, Any]:
        return {"draws": draws, "generator": torch.Generator().manual_seed(options.seed)}

    functions: dict[str, Any] = {
        "entropy": ways.entropy,
        "cross-entropy": ways.cross_entropy,
        "kl": ways.kl,
        "js": ways.js,
    }
    values = [one.value for one in given]
    if estimator is None:
        function = functools.partial(functions[quantity], *values)
        best: Any = _timed(lambda draws: function(**seeded(draws)), options.draws)
        return Answer(quantity, given, best, None, float(best) if best.exact else None)
    p, q = values
    known = ways.kl(p, q, draws=FEWEST_DRAWS)
    estimate = functools.partial(sampled.kl, drawable(p), drawable(q), estimator=estimator)
    found = _timed(lambda draws: estimate(**seeded(draws)), options.draws)
    measured = ways.Measured(found.value, ways.how_sampled(found), found)
    return Answer(quantity, given, measured, estimator, float(known) if known.exact else None)


def _timed(measure: Callable[[int], Any], draws: int) -> Any:
    """Measure with so many draws; with a bar where fewer of them say that it takes its time."""
    if draws <= 2 * PILOT_DRAWS:
        return measure(draws)
    start = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):
        first = measure(PILOT_DRAWS)
    seconds = (time.perf_counter() - start) * draws / PILOT_DRAWS
    if getattr(first, "exact", False):
        return first
    if seconds < SECONDS_BEFORE_BAR:
        return measure(draws)
    with expected_bar("sampling", seconds):
        return measure(draws)


def drawable(value: Any) -> Any:
    """Turn a table into a distribution that can be drawn from; zeros stay zeros (as logits)."""
    from torch import Tensor
    from torch.distributions import Categorical

    return Categorical(logits=value.log()) if isinstance(value, Tensor) else value


def explanation(found: Answer, options: MeasureOptions) -> str:
    """Write out formulas, numbers and what they mean, for a KL with its estimators and λ*."""
    from kullback.report import explain_named, explain_tables

    how: dict[str, Any] = {"draws": options.draws, "seed": options.seed}
    if found.given[0].table:
        unit, labels = options.unit, found.labels
        text = explain_tables.explain_table(
            found.quantity, found.p, found.q, labels=labels, unit=unit
        )
    else:
        text = explain_named.explain_named(
            found.quantity, found.p, found.q, unit=options.unit, **how
        )
    if found.quantity != "kl" or (found.given[0].table and not found.drawn):
        return text
    p, q = drawable(found.p), drawable(found.q)
    more = explain_named.explain_estimators(p, q, unit=options.unit, exact=found.exact, **how)
    return f"{text}\n\n{more}"


def draw(found: Answer, options: MeasureOptions, path: Path) -> None:
    """Write the picture, whole or not at all."""
    from kullback.report import plot

    picture = plot(
        found.quantity,
        found.p,
        found.q,
        labels=found.labels,
        names=[one.text for one in found.given],
        unit=options.unit,
        drawable=[drawable(found.p), drawable(found.q)] if found.drawn else None,
        draws=options.draws,
        seed=options.seed,
        exact=found.exact,
    )
    write_atomic(path, picture)


def show(found: Answer, options: MeasureOptions, text: str | None) -> None:
    """Print the answer on standard output: JSON, or a line and the explanation."""
    from kullback.report import UNITS, measured_text, number

    if options.json:
        print_json(_fields(found, options) | ({} if text is None else {"explanation": text}))
        return
    how = measured_text(found.measured, options.unit, gap="  ").replace("(sum", "(exact: sum")
    line = f"{SYMBOLS[found.quantity]} = {how}"
    if found.exact is not None and not found.measured.exact:
        exact = number(found.exact / UNITS[options.unit])
        line = f"{line[:-1]}; exact: {exact})"
    read_as = _read_as(found.given)
    line = f"{line[:-1]}; {read_as})" if read_as else line
    if found.no_error:
        line = f"{line}\n  no error bar: {found.no_error}"
    write(printable(f"{line}\n" if text is None else f"{line}\n\n{text}\n"))


def _read_as(given: "tuple[Given, ...]") -> str:
    """Say what abbreviated names stand for: `P: normal(loc 0, scale 1)`."""
    parts = (f"{n}: {one.read_as}" for n, one in zip("PQ", given, strict=False) if one.read_as)
    return ", ".join(parts)


def _fields(found: Answer, options: MeasureOptions) -> dict[str, Any]:
    """Return the answer for machines: full precision, infinities as strings."""
    from kullback.report import UNITS

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
