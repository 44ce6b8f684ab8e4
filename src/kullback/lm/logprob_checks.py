"""Are logged log-probabilities what they are said to be? Checks that come before any number.

Which to use: `checks_of` for all of them. Each `Check` says in words what was found and what it
rests on. What a check does: "refuse" (no number is given), "limit" (some numbers lose their error
bar or are left out), "warn", or nothing where all is well.

What they cannot see: a temperature, or raw log-probabilities under top-p, without entropies; a
sentinel that is a common log-probability; a column late by one in few sequences; rounding inside a
model whose log-probabilities were then computed in float32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kullback.sampled import (
    ENTROPY_CAUSES,
    MISSED_EVENT_CHANCE,
    Identity,
    Known,
    check_log_probs,
    half_ulps,
    is_sentinel,
    known_mean,
)

from . import limits
from .clusters import Clusters, ratio_mean
from .logprob_estimates import Rounding
from .logprob_sums import Draws, Sums, dense_codes, kinds_of_missing, row_codes, sampled_tokens
from .logprob_tables import LogProbTable

__all__ = ["Check", "Sample", "checks_of", "identity_checks", "sample_of"]

Effect = Literal["", "refuse", "limit", "warn"]
_MISSING = {
    "null": "null", "NaN": "NaN", "-inf": "−inf", "positive": "above 0", "above 1": "above 1",
    "sentinel": "of −700 or below, which stands for 'not scored'",
    "fill": "exactly −100, which stands for 'not scored'",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, what follows from it, the evidence in words, and what to try.

    effect: "" where nothing was found. made: whether it could be made at all; `words` say why not.
    """

    name: str
    words: str
    effect: Effect = ""
    remedy: str = ""
    made: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"name": self.name, "found": bool(self.effect), "made": self.made,
                "effect": self.effect, "words": self.words, "remedy": self.remedy}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Some whole sequences, read back: columns `[sequences, length]`, and where tokens are.

    ordered: whether tokens are in order. repeated: sequences with two tokens at one position.
    """

    columns: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    ordered: bool = False
    sequences: int = 0
    repeated: int = 0

    def rounding(self, one: str, other: str) -> Rounding:
        """Return how far the difference of two columns may be off for having been stored rounded.

        Half a unit in the last place of each, of the coarsest floating type that holds them all.
        """
        if self.mask is None or not bool(self.mask.any()):
            return Rounding()
        off = sum(half_ulps(self.columns[name][self.mask]) for name in (one, other))
        off = torch.as_tensor(off)
        off = off[off.isfinite()]
        return Rounding(float(off.mean()), float(off.square().mean())) if len(off) else Rounding()


def sample_of(table: LogProbTable, sums: Sums, draws: Draws) -> Sample:
    """Read some whole sequences back, spread over the table, for the checks that need tokens."""
    positions = ["position"] if table.has("position") else []
    found = sampled_tokens(table, sums, [*draws.columns, *positions])
    ordered = table.has("position") or "row" in table.rows.columns or table.engine.numbers_rows
    code = row_codes(found, table.keys("sequence"))
    found, code = found.take(np.argsort(code, kind="stable")), np.sort(code, kind="stable")
    place = np.arange(len(code)) - np.searchsorted(code, code)
    shape = (int(code.max()) + 1, int(place.max()) + 1) if len(code) else (0, 0)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[code, place] = True
    columns = {}
    for name in draws.columns:
        values = torch.full(shape, -1.0, dtype=torch.float64)
        cells = found[name].to_numpy(zero_copy_only=False).astype(np.float64)
        values[code, place] = torch.from_numpy(np.array(cells))
        columns[name] = values
    repeated = 0
    if positions:
        pairs = np.stack([code, found["position"].to_numpy(zero_copy_only=False)])
        _, first = np.unique(pairs, axis=1, return_index=True)
        repeated = len(np.unique(np.delete(code, first)))
    return Sample(columns, mask, ordered, shape[0], repeated)


def checks_of(
    table: LogProbTable, sums: Sums, draws: Draws, sample: Sample, *, skip: bool = False
) -> list[Check]:
    """Make the checks that need no identity: values, lengths, order, lag, rounding, versions.

    Args:
        table: The tokens.
        sums: Of the tokens.
        draws: Whose draws they are.
        sample: Of `sample_of`.
        skip: Whether tokens without a log-probability are left out rather than refused.

    Returns:
        A `Check` for each, found or not.
    """
    checks = [_lengths(table, sums), _missing(table, sums, draws, skip=skip)]
    checks += [_repeated(table, sample), _copies(sums), *_of_sample(table, sample)]
    checks += [_floors(table, sample), _padding(sample), _versions(table, sums, draws)]
    return checks


def identity_checks(
    table: LogProbTable, sums: Sums, identities: Sequence[tuple[str, Identity]], rounding: Rounding
) -> list[Check]:
    """Report the tests of E[q/p] = 1, by label, and make that of the mean of −log p."""
    checks = []
    for label, identity in identities:
        where = "" if label == "all" else f"{label}: "
        if identity.refuted:
            remedy = "log-probabilities over the whole vocabulary of the policy that sampled"
            words = f"{where}{identity.reason}"
            checks.append(Check("ratio identity", words, "limit", remedy))
    if identities and not checks:
        checks = [_standing([one for _, one in identities])]
    return [*checks, _entropy(table, sums, rounding)]


def _standing(identities: Sequence[Identity]) -> Check:
    """Report a mean of q/p that is not refuted, and whether it is nevertheless rare."""
    name = "ratio identity"
    worst = max(identities, key=lambda one: abs(one.z))
    mean = f"the mean of q/p is {worst.mean:.6g} ± {worst.error:.2g}"
    if not math.isfinite(worst.z):
        return Check(name, f"not made: {mean} over too few tokens", made=False)
    if abs(worst.z) <= NormalDist().inv_cdf(1 - limits.RARE / 2 / len(identities)):
        return Check(name, f"{mean}, as it should be 1")
    words = (
        f"{mean}, {abs(worst.z):.1f} standard errors from 1: rare for normalised log-probabilities "
        "of the policy that sampled, and not enough to refute them"
    )
    remedy = "a larger file; until then rely on k1, which does not use the mean of q/p"
    return Check(name, words, "warn", remedy)


def _lengths(table: LogProbTable, sums: Sums) -> Check:
    name = "mask and lengths"
    if table.misfits:
        remedy = "lists of one row of the same length: a value for each token"
        return Check(name, "; ".join(table.misfits), "refuse", remedy)
    if "mask" in table.rows.columns and not sums.total("rows"):
        return Check(name, "the mask leaves no token", "refuse", "another mask, or none")
    if not table.has("length") or not sums.sequences_known:
        return Check(name, "every column has a value for each token")
    codes = dense_codes(sums.sequence)
    counted = np.bincount(codes, weights=sums.columns["rows"])
    said = np.zeros(len(counted))
    said[codes] = sums.columns["longest"]
    wrong = counted != said
    if not wrong.any():
        return Check(name, f"tokens that count agree with {table.roles['length']!r}")
    gaps, times = np.unique((counted - said)[wrong], return_counts=True)
    gap = int(gaps[times.argmax()])
    much = f"{abs(gap)} {'more' if gap > 0 else 'fewer'}"
    words = (
        f"in {int(wrong.sum()):,} of {len(wrong):,} sequences more or fewer tokens count than "
        f"{table.roles['length']!r} says, most often {much}"
    )
    remedy = "the mask of the tokens that were drawn: neither the prompt's, nor padding"
    return Check(name, words, "warn", remedy)


def _missing(table: LogProbTable, sums: Sums, draws: Draws, *, skip: bool) -> Check:
    name, tokens, rows = "values", sums.total("n"), sums.total("rows")
    if tokens == rows:
        return Check(name, f"all {int(rows):,} values of each column are log-probabilities")
    parts: list[str] = []
    looks: dict[str, None] = {}
    for column, counts in kinds_of_missing(table, draws.columns).items():
        said = [f"{count:,} {_MISSING[kind]}" for kind, count in counts.items()]
        if said:
            parts.append(f"{table.roles.get(column, column)}: {', '.join(said)}")
            looks |= dict.fromkeys(_looks_like(counts, rows))
    words = f"{int(rows - tokens):,} of {int(rows):,} tokens lack a log-probability: "
    remedy = "missing='skip' to leave these tokens out; what is left is then a selection"
    remedy = "; ".join([*looks, remedy])
    effect: Effect = "warn" if skip and tokens else "refuse"
    return Check(name, words + "; ".join(parts), effect, remedy)


def _looks_like(counts: Mapping[str, int], rows: float) -> tuple[str, ...]:
    """Say what a column with positive values may hold instead, and what to do about it."""
    above = counts.get("above 1", 0)
    positive = above + counts.get("positive", 0)
    if not positive:
        return ()
    if positive < limits.NEGATED * rows:
        return ("log-probabilities are at most 0",)
    if above:
        return ("negated? log-probabilities are minus an NLL, which is 0 or above",)
    return ("probabilities? all are between 0 and 1: take the logarithm",)


def _repeated(table: LogProbTable, sample: Sample) -> Check:
    """Find names that stand for several sequences, or rows that are there twice."""
    name = "sequence names"
    if not table.keys("sequence") or sample.mask is None:
        return Check(name, "not made: it needs sequences", made=False)
    if not table.has("position"):
        return _doubled(name, sample, sample.mask)
    of = f"of {sample.sequences:,} sequences in a sample"
    if not sample.repeated:
        return Check(name, f"none {of} has two tokens at one position")
    words = f"{sample.repeated:,} {of} have two tokens at one position"
    remedy = "several columns that name a sequence together, such as --sequence step,sequence"
    return Check(name, words, "refuse", remedy)


def _doubled(name: str, sample: Sample, mask: Tensor) -> Check:
    """Find sequences of which every token is there at least twice, by its log-probabilities."""
    tokens = torch.stack(list(sample.columns.values()), dim=-1)
    doubled = 0
    for row, live in zip(tokens, mask, strict=True):
        distinct, times = torch.unique(row[live], dim=0, return_counts=True)
        doubled += len(distinct) >= limits.MIN_COPIED_TOKENS and bool((times > 1).all())
    if doubled < max(limits.MIN_DOUBLED_SHARE * sample.sequences, 1):
        words = f"no name stands for two copies, in a sample of {sample.sequences:,} sequences"
        return Check(name, words)
    words = (
        f"in {doubled:,} of {sample.sequences:,} sequences in a sample the log-probabilities of "
        "every token are there at least twice"
    )
    remedy = "each row once; or several columns that name a sequence together"
    return Check(name, words, "refuse", remedy)


def _copies(sums: Sums) -> Check:
    """Find sequences that are another one's copy under another name: the same sums of the terms."""
    name = "copies"
    columns = sums.columns
    scatter = columns["n"] * columns["f11_0"] - columns["f1_0"] ** 2  # of log r in a sequence
    varies = scatter > limits.CONSTANT * columns["f1_0"] ** 2
    long = (columns["n"] >= limits.MIN_COPIED_TOKENS) & varies
    parts = [columns[part][long] for part in ("n", "d", "f11_0")]
    keys = [np.frexp(part) for part in parts]  # sums are equal to all but their last digits
    rounded = [np.round(mantissa, 9) + exponent for mantissa, exponent in keys]
    keys_of: list[Any] = [sums.cluster[long], *rounded]
    order = np.lexsort(keys_of)  # by the terms, then by cluster
    new = [np.diff(each[order], prepend=np.nan) != 0 for each in keys_of]
    terms = new[1] | new[2] | new[3]  # they are not those of the row before
    clusters, copies = int((terms | new[0]).sum()), int((~terms & new[0]).sum())
    if not copies:
        return Check(name, f"no two {sums.cluster_name} have the same log-probabilities")
    share = copies / clusters
    words = (
        f"{copies:,} of {clusters:,} {sums.cluster_name} repeat the log-probabilities of "
        "another: rows that are there twice, or greedy decoding; they count as independent here"
    )
    effect: Effect = "limit" if share > limits.MAX_COPIES else "warn"
    return Check(name, words, effect, "each sequence once; or prompt=COLUMN, to cluster by prompt")


def _floors(table: LogProbTable, sample: Sample) -> Check:
    """Find a lowest value that repeats though others do not: log(p + ε), a clamp, a fill value."""
    name = "lowest value"
    if sample.mask is None:
        return Check(name, "not made: no tokens", made=False)
    scored = sample.mask.clone()
    for values in sample.columns.values():
        scored &= values.isfinite() & ~is_sentinel(values)
    words = []
    for column, values in sample.columns.items():
        own = values[scored]
        others = [each[scored] for key, each in sample.columns.items() if key != column]
        if count := _floor_count(own, others):
            share = f"{count:,} of {len(own):,} tokens"
            words.append(
                f"{table.roles.get(column, column)}: exactly {float(own.min()):.6g} at {share}"
            )
    if not words:
        return Check(name, "no column's lowest value repeats where others do not")
    listed = "; ".join(words)
    remedy = "log_softmax in place of log(p + ε) or a clamp; null for 'not scored'"
    text = f"the lowest value repeats though others hardly do ({listed}): a clamp, or a fill value"
    return Check(name, text, "limit", remedy)


def _floor_count(own: Tensor, others: Sequence[Tensor]) -> int:
    """Return how often the lowest value occurs where that shows a floor; else 0.

    Equal numbers are lawful at equal tokens after equal prefixes: then other columns repeat too.
    Values of half precision repeat by rounding.
    """
    if len(own) < 2 or float(half_ulps(own).max()) > limits.FLOAT32_EPS * float(own.abs().max()):
        return 0
    low = own == own.min()
    count, rest = int(low.sum()), own[~low & (own < -limits.CERTAIN)]
    varied = _distinct(rest) >= limits.MIN_DISTINCT * max(len(rest), 1)
    if count < limits.MIN_TIES or len(rest) < count or not varied:
        return 0
    at = [each[low] for each in others]
    apart = any(_distinct(each) >= limits.MIN_TIES for each in at)
    filled = bool(at) and all(bool((each == own.min()).all()) for each in at)
    return count if apart or filled else 0


def _distinct(values: Tensor) -> int:
    """Return how many different values there are."""
    return len(np.unique(values.numpy()))


def _padding(sample: Sample) -> Check:
    """Find runs of zeros in every column at one end of most sequences: padding, or a prompt."""
    name = "padding"
    if sample.mask is None or not sample.ordered or sample.sequences < limits.MIN_PADDED:
        return Check(name, "not made: it needs several sequences whose order is known", made=False)
    mask = sample.mask.numpy()
    zero = np.logical_and.reduce([each.numpy() == 0 for each in sample.columns.values()]) & mask
    for where, end in (("first", 1), ("last", -1)):
        runs = np.array([_run(row[live][::end]) for row, live in zip(zero, mask, strict=True)])
        inner = max(
            _longest(row[live][::end][run:])
            for row, live, run in zip(zero, mask, runs, strict=True)
        )
        padded = runs > max(inner, limits.MIN_RUN)
        if padded.mean() >= limits.MIN_PADDED_SHARE:
            words = (
                f"in {int(padded.sum()):,} of {len(runs):,} sequences of a sample the {where} "
                f"tokens, {int(runs[padded].min()):,} to {int(runs.max()):,} of them, are exactly "
                f"0 in every column, in runs longer than any elsewhere"
            )
            return Check(name, words, "limit", "mask=COLUMN: neither prompt nor padding counts")
    return Check(name, "no runs of zeros at the ends of sequences")


def _run(zero: Any) -> int:
    """Return how many of the first values are true."""
    return int(np.argmin(zero)) if not zero.all() else len(zero)


def _longest(zero: Any) -> int:
    """Return the length of the longest run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], zero.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


def _of_sample(table: LogProbTable, sample: Sample) -> list[Check]:
    """Look for a late column, zeros for 'not scored', and half-precision values, in the sample."""
    if sample.mask is None or not bool(sample.mask.any()):
        return []
    found = check_log_probs(sample.columns, mask=sample.mask, missing="keep").findings
    tokens = f"in a sample of {int(sample.mask.sum()):,} tokens"
    names = {name: table.roles.get(name, name) for name in sample.columns}
    late = [f for f in found if f.kind == "late" and sample.ordered]
    zeros = [f for f in found if f.kind == "zero"]
    grids = [f for f in found if f.kind in ("bfloat16", "float16")]
    checks = []
    if not sample.ordered:
        checks.append(Check("lag", "not made: nothing orders the tokens", made=False))
    elif late:
        words = "; ".join(f"{names[f.column]}: {f.words}" for f in late)
        checks.append(Check("lag", f"{words}, {tokens}", "refuse",
                            "the log-probability of the token at its own position"))  # fmt: skip
    else:
        checks.append(Check("lag", f"no column is one position late, {tokens}"))
    if zeros:
        words = "; ".join(f"{names[f.column]}: {f.words}" for f in zeros)
        checks.append(
            Check("zeros", f"{words}, {tokens}", "refuse", "null, not 0, for such tokens")
        )
    if grids:
        words = "; ".join(f"{names[f.column]}: {f.words}" for f in grids)
        remedy = "log-probabilities computed and stored in float32"
        checks.append(Check("half precision", f"{words}, {tokens}", "warn", remedy))
    else:
        checks.append(Check("half precision", f"no column holds half-precision values, {tokens}"))
    return checks


def _versions(table: LogProbTable, sums: Sums, draws: Draws) -> Check:
    """Find policy versions mixed in one group, and show whether log p − log q differs by them."""
    name = "policy versions"
    if not table.has("version"):
        return Check(name, "not made: no column of versions", made=False)
    pairs = np.unique(np.stack([sums.group, sums.version]), axis=1)
    mixed = int((np.bincount(pairs[0]) > 1).sum())
    column = table.roles["version"]
    if not mixed:
        return Check(name, f"one value of {column!r} in each group")
    parts = []
    for code, label in enumerate(sums.versions[: limits.SHOWN_VERSIONS]):
        part = sums.at(sums.version == code)
        if not part.tokens:
            continue
        codes = dense_codes(part.cluster)
        sizes = np.bincount(codes, weights=part.columns["n"]).astype(np.float64)
        totals = np.bincount(codes, weights=-part.columns["f1_0"])
        clusters = Clusters(sizes[sizes > 0], sums.cluster_name)
        squares = float(part.columns["f11_0"].sum())
        mean = ratio_mean(totals[sizes > 0], clusters, squares=squares).estimate
        parts.append(f"{label}: {part.tokens:,} tokens, mean log-ratio {mean.brief}")
    count = len(sums.versions)
    more = f", and {count - len(parts)} more" if count > len(parts) else ""
    where = f"in {mixed} of {len(sums.groups)} groups" if len(sums.groups) > 1 else "together"
    words = f"{count} values of {column!r} {where}: {'; '.join(parts)}{more}"
    return Check(name, words, "warn", f"figures for each: by={column}")


def _entropy(table: LogProbTable, sums: Sums, rounding: Rounding) -> Check:
    """Test that −log p has the mean of the entropies, at the tokens that were drawn."""
    name = "entropy"
    if not table.has("entropy"):
        why = "not made: no entropies were named; without them neither a temperature nor raw "
        return Check(name, f"{why}log-probabilities under top-p can be seen", made=False)
    tokens = sums.total("e0")
    if tokens < 2:
        return Check(name, "not made: no entropies at the tokens that count", made=False)
    one, two, three = (sums.total(f"e{power}") / tokens for power in (1, 2, 3))
    variance = max(two - one**2, 0.0)
    third = three - 3 * one * two + 2 * one**3
    skewness = third / variance**1.5 / tokens**0.5 if variance > 0 else 0.0
    chance = min(1.0, -math.log(MISSED_EVENT_CHANCE) / tokens)  # of an event that no token met
    values = (one, (variance / max(tokens - 1, 1)) ** 0.5, skewness, -chance * np.log(chance))
    mean, error, skew, missed = (torch.tensor(float(each), dtype=torch.float64) for each in values)
    off = torch.tensor(rounding.mean, dtype=torch.float64)
    known = Known(mean, error, skew, int(tokens), missed, off)
    found = known_mean(known, "−log p less its entropy", expected=0.0, causes=ENTROPY_CAUSES)
    if not found.refuted:
        return Check(name, f"−log p less the entropy is {float(one):.3g} ± {float(error):.2g}")
    remedy = "the log-probabilities of the distribution that was sampled, temperature and top-p in"
    return Check(name, found.reason + _other_base(sums, float(one)), "limit", remedy)


def _other_base(sums: Sums, gap: float) -> str:
    """Say so where the mean of −log p is that of the entropies in another base."""
    mean = -sums.total("d") / max(sums.tokens, 1)  # of −log p
    ratio = mean / (mean - gap) if mean > gap else math.nan
    for base, words in ((2.0, "2 (bits)"), (10.0, "10")):
        if abs(ratio * math.log(base) - 1.0) < limits.SAME_BASE:
            return f". The ratio is {ratio:.3f}: are the log-probabilities to base {words}?"
    return ""
