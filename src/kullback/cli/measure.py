"""What `entropy`, `cross-entropy`, `kl` and `js` share: the way from the arguments to an answer."""

import functools
import math
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kullback.core import ArgumentValueError, message, require

from .options import MeasureOptions
from .session import expected_bar, prepare, say

if TYPE_CHECKING:
    from .showing import Answer

__all__ = ["answer"]

PILOT = 50_000  # draws that are timed first
PATIENCE = 2.0  # seconds without a word


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
    options = options or MeasureOptions()
    options.check()
    chosen = _estimator(estimator)
    from . import showing
    from .reading import Tables, read, read_pair

    how = Tables(options.normalise, options.weights, options.log)
    if q is None:
        given: tuple[Any, ...] = (read(p, how=how),)
    else:
        given = read_pair(p, q, how=how)
    found = _measured(quantity, given, options, chosen)
    if math.isnan(float(found.measured)):
        expected = "parameters for which float64 holds the value"
        raise ArgumentValueError(message("P and Q", expected, "not a number", "smaller ratios"))
    text = showing.explanation(found, options) if options.explain else None
    if options.plot is not None:
        showing.draw(found, options, options.plot)
    showing.show(found, options, text)
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
) -> "Answer":
    """Measure in the best way there is, or by the estimator asked for, with the truth beside it."""
    import torch

    from kullback import sampled
    from kullback.sampled import divergences as ways

    from .showing import Answer, drawable

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
    known = ways.kl(*values, draws=4)
    pair = drawable(values)
    estimate = functools.partial(sampled.kl, *pair, estimator=estimator)
    found = _timed(lambda draws: estimate(**seeded(draws)), options.draws)
    measured = ways.Measured(found.value, ways.how_sampled(found), found)
    return Answer(quantity, given, measured, estimator, float(known) if known.exact else None)


def _timed(measure: Callable[[int], Any], draws: int) -> Any:
    """Measure with so many draws; with a bar where fewer of them say that it takes its time."""
    if draws <= 2 * PILOT:
        return measure(draws)
    start = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):
        first = measure(PILOT)
    seconds = (time.perf_counter() - start) * draws / PILOT
    if getattr(first, "exact", False):
        return first
    if seconds < PATIENCE:
        return measure(draws)
    with expected_bar("sampling", seconds):
        return measure(draws)
