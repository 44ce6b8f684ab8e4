"""Are these log-probabilities of tokens what they are said to be? Checks of logged columns.

Which to use: `check_log_probs` for columns of log-probabilities of the same tokens under several
models, as tensors `[batch, length]` or as the lists of a log. It finds, counts and names values
that are no log-probabilities (positive, NaN, null, −inf, the numbers that services send for "not
scored"), columns that stand one position late, and columns that were rounded to bfloat16 or
float16. `is_sentinel` is the bare rule for "not scored".

What no check here can see: a sentinel that is a common log-probability; 0.0 for "not scored" at the
same tokens in every column; log-probabilities of another temperature; a column late by one in a few
sequences only; rounding inside a model whose log-probabilities were then computed in float32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import torch
from torch import Tensor

from kullback.core import describe, require, require_type

from . import limits
from .identity import half_ulps

__all__ = [
    "Finding",
    "LogProbs",
    "check_log_probs",
    "is_sentinel",
    "looks_odd",
    "why_shapes_differ",
]

MISSING = ("null", "NaN", "-inf", "positive", "sentinel", "zero")
_WORDS = {
    "null": "that are null",
    "NaN": "that are NaN",
    "-inf": "that are −inf",
    "positive": "above 0",
    "sentinel": "that mean 'not scored' (−9999, −100, −1e30 and the like)",
    "zero": "that are exactly 0 where another column is far below 0: 0.0 for 'not scored'",
}
_FLOAT32_EPS = torch.finfo(torch.float32).eps
_GRIDS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_SKIP = "missing='skip' leaves these tokens out and counts them, missing='keep' uses them as given"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found in a column: its kind, how many of how many values, the first of them.

    kind: "null", "NaN", "-inf", "positive", "sentinel", "zero" (values that are no
    log-probability), "late" (the column stands one position late), "bfloat16" or "float16" (every
    value is a number of that type). first: the position (sequence, token) of the first.

    >>> Finding("log_q", "NaN", 2, 10, (0, 3), "2 of 10 values that are NaN").kind
    'NaN'
    """

    column: str
    kind: str
    count: int
    total: int
    first: tuple[int, ...]
    words: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class LogProbs:
    """Checked log-probabilities.

    columns: tensors `[batch, length]`, by name. mask: bool `[batch, length]`, the tokens that
    count; None for all. findings: everything found. skipped: how many tokens `missing="skip"` left
    out.
    """

    columns: dict[str, Tensor]
    mask: Tensor | None
    findings: tuple[Finding, ...]
    skipped: int = 0

    def grid(self, column: str) -> torch.dtype | None:
        """Return the half-precision type that all values of a column are numbers of, or None.

        >>> check_log_probs({"log_p": torch.tensor([[-1.0, -2.0]])}).grid("log_p") is None
        True
        """
        dtype = self.columns[column].dtype
        if torch.finfo(dtype).eps > _FLOAT32_EPS:
            return dtype
        found = [f.kind for f in self.findings if f.column == column and f.kind in _GRIDS]
        return _GRIDS[found[0]] if found else None


def is_sentinel(log_probs: Tensor) -> Tensor:
    """Return where a log-probability is a number that stands for "not scored".

    That is a finite value of −700 or below, which no float64 probability has (vLLM and OpenAI send
    −9999.0, masks use −1e4 to −3e38), or exactly −100 (the fill value of some servers and losses).

    Args:
        log_probs: Log-probabilities in nats, any shape.

    Returns:
        Bool of the same shape.

    Example:
        >>> is_sentinel(torch.tensor([-9999.0, -100.0, -99.5, -torch.inf]))
        tensor([ True,  True, False, False])
    """
    finite = log_probs > -math.inf
    return ((log_probs <= limits.MIN_LOG_PROB) & finite) | (log_probs == limits.FILL_VALUE)


def check_log_probs(
    columns: Mapping[str, Tensor | Sequence[Any]],
    *,
    mask: Tensor | None = None,
    missing: str = "refuse",
    allow: Sequence[str] = (),
) -> LogProbs:
    """Check log-probabilities of the same tokens under several models; return the checked columns.

    Args:
        columns: by name, `[batch, length]` tensors in nats, or lists of lists of numbers in which
            None is a missing value; lists of unequal lengths are padded and the mask says so.
        mask: bool `[batch, length]`, the tokens that count; None for all. Others may hold anything.
        missing: what to do about values that are no log-probability: "refuse" raises; "skip" leaves
            these tokens out of the mask and counts them (the tokens left are then a selection);
            "keep" raises nothing at all. A column that is late is refused by "skip" too.
        allow: kinds of finding (see `Finding`) that are reported but not acted on.

    Returns:
        The columns as tensors, the mask, and all findings.

    Raises:
        ValueError: values that are no log-probabilities, or a late column, with counts and
            positions; shapes that differ.

    The test of zeros takes 0.0 for "not scored" if, where a column is exactly 0, another is below
    −0.5 more often than where the column is nearest to 0 (Chernoff's bound, level 0.001). The test
    of lag compares the correlation of two columns at lag ±1 with that at lag 0; they must differ by
    4.5 standard errors, counting different pairs of neighbours only.

    >>> log_p = [[-1.2, -0.3, None], [-0.7, -2.0]]
    >>> found = check_log_probs({"log_p": log_p}, missing="skip")
    >>> found.skipped, found.mask
    (1, tensor([[ True,  True, False],
            [ True,  True, False]]))
    """
    require(missing in ("refuse", "skip", "keep"), "missing", "'refuse', 'skip' or 'keep'",
            repr(missing))  # fmt: skip
    tensors, nulls, mask = _as_tensors(columns, mask)
    first = next(iter(tensors.values()))
    live = torch.ones(first.shape, dtype=torch.bool, device=first.device) if mask is None else mask
    wrong = {name: _wrong(x, nulls.get(name), live) for name, x in tensors.items()}
    clean = live & ~_any([where for found in wrong.values() for where in found.values()], live)
    late = _late(tensors, clean)
    if not late:
        _add_zeros(wrong, tensors, clean)
    findings = late + [
        _finding(name, kind, where, live)
        for name, found in wrong.items()
        for kind, where in found.items()
        if bool(where.any())
    ]
    acted = {kind for kind in MISSING if kind not in allow}
    out = _any([w for found in wrong.values() for k, w in found.items() if k in acted], live)
    findings += _grids(tensors, clean & ~out)
    refused = {"late"} - set(allow) | (acted if missing == "refuse" else set())
    if missing != "keep":
        _refuse([finding for finding in findings if finding.kind in refused])
    if missing != "skip" or not bool(out.any()):
        return LogProbs(tensors, mask, tuple(findings))
    return LogProbs(tensors, live & ~out, tuple(findings), int(out.sum()))


def looks_odd(columns: Sequence[Tensor], mask: Tensor | None) -> bool:
    """Return whether `check_log_probs` may find something: a quick test.

    True for a value above 0, of −80 or below, or NaN; for a 0 beside another column below −0.5; and
    where two columns differ by so much that one may be late.

    Args:
        columns: Log-probabilities in nats, all of one shape.
        mask: Bool of that shape, True where a position counts; all of them if None.

    Returns:
        False where `check_log_probs` need not be called. On a GPU the call waits for one result.

    Example:
        >>> log_p = torch.tensor([[-1.0, -2.0]])
        >>> looks_odd([log_p, log_p], None), looks_odd([log_p, -log_p], None)
        (False, True)
    """
    logs = [x.detach() if mask is None else torch.where(mask, x.detach(), -1.0) for x in columns]
    if not logs[0].numel():
        return False
    first, found = logs[0], []
    for x in logs:
        low, high = x.aminmax()  # NaN is found too
        found += [~(low > limits.SUSPICIOUS_LOG_PROB), ~(high <= limits.MAX_LOG_PROB)]
    spread = first.float().var(correction=0)
    varies, unsure = spread > limits.MIN_VARIANCE_FOR_LAG, limits.UNSURE_LOG_PROB
    for x in logs[1:]:
        zeros = ((x == 0) & (first < unsure)) | ((first == 0) & (x < unsure))
        apart = (x.float() - first.float()).square().mean()
        found += [zeros.any(), varies & (apart > limits.MAX_MEAN_SQUARE_GAP * spread)]
    return bool(torch.stack(found).any())


def why_shapes_differ(got: Sequence[int], expected: Sequence[int]) -> str:
    """Return in words why a mask or column is one position longer or shorter, else "".

    Args:
        got: The shape that was given.
        expected: The shape of the log-probabilities, `[batch, positions]`.

    Returns:
        The usual cause and its cure; "" unless both shapes have two axes, the same batch, and
        lengths that differ by one.

    Example:
        >>> why_shapes_differ((2, 4), (2, 3))[:47]
        'one position too long. The log-probability at t'
    """
    if len(got) != 2 or len(expected) != 2 or got[0] != expected[0]:
        return ""
    extra = got[1] - expected[1]
    if extra == 1:
        return (
            "one position too long. The log-probability at t is of token t + 1, given tokens "
            "0 … t: it has one position fewer than the tokens. Take [:, 1:] of what stands at "
            "tokens (masks, labels), [:, :-1] of what stands at logits"
        )
    if extra == -1:
        return (
            "one position too short: the log-probabilities have one position more. Drop their "
            "last, [:, :-1], if they are of logits at every token (the last scores a token that "
            "did not come); their first, [:, 1:], if that is a filler for the first token"
        )
    return ""


def _as_tensors(
    columns: Mapping[str, Tensor | Sequence[Any]], mask: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """Return all columns as tensors of one shape, where they had null, and the mask."""
    require(len(columns) > 0, "columns", "at least one column of log-probabilities", "none")
    tensors, nulls = {}, {}
    for name, column in columns.items():
        if isinstance(column, Tensor):
            tensors[name] = column.detach()
        else:
            tensors[name], nulls[name], there = _of_lists(column, name)
            mask = there if mask is None else mask & there if mask.shape == there.shape else mask
    first, shape = next(iter(tensors.items()))[0], next(iter(tensors.values())).shape
    for name, x in tensors.items():
        require(x.dim() == 2 and x.is_floating_point(), name, "floats [batch, length]", describe(x))
        words = why_shapes_differ(x.shape, shape)
        require(x.shape == shape, name, f"the shape {list(shape)} of {first}", describe(x), words)
    if mask is not None:
        fits = mask.dtype == torch.bool and mask.shape == shape
        words = why_shapes_differ(mask.shape, shape)
        require(fits, "mask", f"a bool tensor {list(shape)}", describe(mask), words)
    return tensors, nulls, mask


def _of_lists(rows: Sequence[Any], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, where they were None, and where there was anything, `[batch, length]`."""
    require_type(rows, (list, tuple), name, "a tensor [batch, length], or a list of lists")
    lists = [isinstance(row, list | tuple) for row in rows]
    require(bool(lists) and all(lists), name, "a list of lists, one for each sequence", "another")
    length = max(len(row) for row in rows)
    values = torch.zeros(len(rows), length, dtype=torch.float64)
    null = torch.zeros(len(rows), length, dtype=torch.bool)
    there = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    for place, row in enumerate(rows):
        none = [value is None for value in row]
        numbers = [math.nan if value is None else float(value) for value in row]
        values[place, : len(row)] = torch.tensor(numbers, dtype=torch.float64)
        null[place, : len(row)] = torch.tensor(none, dtype=torch.bool)
    return values, null, there


def _wrong(x: Tensor, null: Tensor | None, live: Tensor) -> dict[str, Tensor]:
    """Return where a column's values are no log-probabilities, by kind."""
    nan = x.isnan() & live
    found = {} if null is None else {"null": null & live}
    found["NaN"] = nan if null is None else nan & ~null
    found["-inf"] = (x == -math.inf) & live
    found["positive"] = (x > limits.MAX_LOG_PROB) & live
    found["sentinel"] = is_sentinel(x) & live
    fills = (x == limits.FILL_VALUE) & live
    if int(fills.sum()) == 1:  # once, it may be a log-probability
        found["sentinel"] = found["sentinel"] & ~fills
    return found


def _any(masks: Any, like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for mask in masks:
        total = total | mask
    return total


def _add_zeros(
    wrong: dict[str, dict[str, Tensor]], tensors: Mapping[str, Tensor], live: Tensor
) -> None:
    """Add where a column's zeros mean "not scored", as any other column tells."""
    for one, other in permutations(tensors, 2):
        zeros = _zeros(tensors[one], tensors[other], live)
        wrong[one]["zero"] = wrong[one].get("zero", zeros) | zeros


def _zeros(x: Tensor, other: Tensor, live: Tensor) -> Tensor:
    """Return where x is 0 for "not scored", judged by another column: all its zeros, or none."""
    zero, far = live & (x == 0), other < limits.UNSURE_LOG_PROB
    zeros, hits = int(zero.sum()), int((zero & far).sum())
    if not hits:
        return torch.zeros_like(zero)
    rest = live & (x < 0)
    nearest = x[rest].topk(min(limits.ZERO_TEST_TOKENS, int(rest.sum()))).indices
    share = (int(far[rest][nearest].sum()) + 1) / (len(nearest) + limits.ZERO_TEST_PRIOR_TOKENS)
    lawful = zeros * _binary_kl(hits / zeros, share) < math.log(1 / limits.ZERO_TEST_LEVEL)
    return torch.zeros_like(zero) if lawful or hits / zeros <= share else zero


def _binary_kl(a: float, b: float) -> float:
    """Return KL between Bernoulli(a) and Bernoulli(b), the exponent of Chernoff's bound."""
    parts = [(a, b), (1 - a, 1 - b)]
    return sum(x * math.log(x / y) for x, y in parts if x > 0)


def _finding(name: str, kind: str, where: Tensor, live: Tensor) -> Finding:
    count, total = int(where.sum()), int(live.sum())
    first = tuple(where.nonzero()[0].tolist())
    words = f"{count} of {total} values {_WORDS[kind]}, the first at {list(first)}"
    remedy = _SKIP
    if kind == "positive":
        remedy = "log-probabilities are at most 0: .log() of probabilities, minus an NLL"
    if kind == "-inf":
        remedy = f"a probability of 0 at a token that was drawn? {_SKIP}"
    return Finding(name, kind, count, total, first, words, remedy)


def _late(tensors: Mapping[str, Tensor], live: Tensor) -> list[Finding]:
    """Return which column stands one position late beside another."""
    found = []
    for one, other in combinations(tensors, 2):
        a, b = (
            torch.where(live, x, 0.0).double().clamp_min(limits.MIN_CORRELATED_LOG_PROB)
            for x in (tensors[one], tensors[other])
        )
        here = _correlation(a, b, live)
        pairs = live[:, 1:] & live[:, :-1]
        neighbours = torch.stack([a[:, :-1][pairs], b[:, 1:][pairs]], -1)
        count = len(torch.unique(neighbours, dim=0))  # repeated sequences say nothing new
        if count < limits.MIN_PAIRS_FOR_LAG:
            continue
        gap = limits.LAG_TEST_ERRORS * math.sqrt(2 / count)
        for early, late, there in (
            (one, other, _correlation(a[:, :-1], b[:, 1:], pairs)),
            (other, one, _correlation(a[:, 1:], b[:, :-1], pairs)),
        ):
            if there > here + gap:
                words = (
                    f"a column one position late: its correlation with {early} is {there:.2f} one "
                    f"position on and {here:.2f} in place, over {len(neighbours)} tokens"
                )
                remedy = f"{late}[:, 1:] with [:, :-1] of the others and of the mask"
                found.append(
                    Finding(late, "late", len(neighbours), len(neighbours), (), words, remedy)
                )
    return found


def _correlation(a: Tensor, b: Tensor, live: Tensor) -> float:
    x, y = a[live], b[live]
    if len(x) < 2:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def _grids(tensors: Mapping[str, Tensor], live: Tensor) -> list[Finding]:
    """Return which columns hold nothing but numbers of a half-precision type."""
    found = []
    for name, column in tensors.items():
        values = column[live & (column != 0)]
        if torch.finfo(column.dtype).eps > _FLOAT32_EPS or not len(values):
            continue
        eps = float(2 * (half_ulps(values) / values.double().abs()).max())
        for kind, dtype in _GRIDS.items():
            if math.isclose(eps, torch.finfo(dtype).eps):
                words = f"{len(values)} values that are all {kind} numbers"
                remedy = "log-probabilities in float32"
                found.append(Finding(name, kind, len(values), len(values), (), words, remedy))
    return found


def _refuse(findings: list[Finding]) -> None:
    if not findings:
        return
    first = findings[0]
    also = [f"{f.column}: {f.words}" for f in findings[1:]]
    got = "; ".join([first.words, *also])
    remedies = "; ".join(dict.fromkeys(f.remedy for f in findings))
    require(False, first.column, "log-probabilities of the tokens", got, remedies)  # noqa: FBT003
