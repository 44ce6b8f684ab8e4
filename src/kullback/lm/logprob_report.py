"""From tables of logged log-probabilities to checked figures: `logprobs`, and `check_logprobs`.

Which to use: `logprobs` for the figures, which refuses what the checks refuse; `check_logprobs`
for the checks alone. `LogProbReport` holds checks, figures and paired comparisons.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from kullback.core import DataError, Estimate, require

from . import limits
from .clusters import Clustered, Gate, block_length, gate
from .engines import Engine, connect
from .logprob_checks import Check, Sample, checks_of, identity_checks, sample_of
from .logprob_estimates import Asked, Figures, Tail, figures_of, identities, paired
from .logprob_sums import (
    Draws,
    Sums,
    bin_edges,
    dense_codes,
    histogram,
    kinds_of_missing,
    largest_ratios,
    quantiles,
    summed,
)
from .logprob_tables import Columns, LogProbTable, read_pair, read_tables

__all__ = ["DrawnFrom", "LogProbReport", "check_logprobs", "logprobs"]

DrawnFrom = Literal["p", "q", "behaviour", "data"]
LEVELS = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True, eq=False)
class LogProbReport:
    """Checks and figures of logged log-probabilities.

    direction: of the divergence, "KL(p‖q)" or "KL(q‖p)" (draws from q), "log p − log q" for data.
    drawn_from: whose draws the tokens are. names: canonical roles to the source's columns. source,
    engine: what was read, and by what. notes: what was found by name. checks: all of them. overall:
    one `Figures` a model compared with. groups: one a group and model, where there is `by`. pairs:
    paired differences of the models compared with, by their names. levels, log_ratios: quantiles of
    log r, and whether they are exact. bins: histogram of log r: edges and counts, by group.
    """

    direction: str
    drawn_from: DrawnFrom
    names: dict[str, str]
    source: str
    engine: str
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    overall: tuple[Figures, ...] = ()
    groups: tuple[Figures, ...] = ()
    by: tuple[str, ...] = ()
    pairs: dict[str, dict[str, Clustered]] = field(default_factory=dict)
    quantiles: dict[float, float] = field(default_factory=dict)
    quantiles_exact: bool = True
    bins: tuple[tuple[float, float, int], ...] = ()
    clip: tuple[float, float] = (1 - limits.CLIP, 1 + limits.CLIP)

    @property
    def found(self) -> tuple[Check, ...]:
        """The checks that found something."""
        return tuple(check for check in self.checks if check.effect)

    @property
    def refused(self) -> tuple[Check, ...]:
        """The checks after which no number is given."""
        return tuple(check for check in self.checks if check.effect == "refuse")

    @property
    def main(self) -> Estimate:
        """The estimate to read first: of all tokens, of the first model compared with."""
        return self.overall[0].main.estimate

    def gate(
        self,
        *,
        fail_above: float | None = None,
        require_below: float | None = None,
        confidence: float = limits.CONFIDENCE,
    ) -> Gate:
        """Decide by the intervals of the main estimates: of every group, or of all tokens.

        Args:
            fail_above: Fail where a lower limit lies above it; the level is split over the groups.
            require_below: Fail unless every upper limit lies below it.
            confidence: Of the one-sided limits.

        Returns:
            A `Gate`.

        Raises:
            ValueError: For a confidence outside 0.5 to 1.
        """
        figures = self.groups or self.overall
        several = len({one.other for one in figures}) > 1
        named = {f"{one.label}, {one.other}" if several else one.label: one.main.estimate
                 for one in figures}  # fmt: skip
        return gate(named, fail_above=fail_above, require_below=require_below,
                    confidence=confidence)  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "direction": self.direction,
            "drawn_from": self.drawn_from,
            "columns": self.names,
            "source": self.source,
            "engine": self.engine,
            "notes": list(self.notes),
            "checks": [check.to_dict() for check in self.checks],
            "overall": [one.to_dict() for one in self.overall],
            "by": list(self.by),
            "groups": [one.to_dict() for one in self.groups],
            "pairs": {pair: {name: one.to_dict() for name, one in found.items()}
                      for pair, found in self.pairs.items()},
            "log_ratio_quantiles": {f"{level:g}": value for level, value in self.quantiles.items()},
            "quantiles_exact": self.quantiles_exact,
            "clip": list(self.clip),
        }  # fmt: skip


def logprobs(
    *tables: Any,
    p: str | None = None,
    q: str | Sequence[str] = (),
    drawn_from: DrawnFrom = "p",
    by: str | Sequence[str] = (),
    behaviour: str | None = None,
    entropy: str | None = None,
    mask: str | Sequence[str] = (),
    sequence: str | Sequence[str] = (),
    prompt: str | None = None,
    position: str | None = None,
    version: str | None = None,
    length: str | None = None,
    missing: Literal["refuse", "skip"] = "refuse",
    clip: float | tuple[float, float] = limits.CLIP,
    details: bool = False,
    engine: str | Engine | None = None,
) -> LogProbReport:
    """Estimate KL(p‖q) = E_p[log p − log q] from logged log-probabilities of tokens, checked first.

    Args:
        *tables: Paths (Parquet, CSV, JSON lines; files, folders, patterns), one data frame, or
            names of a warehouse's tables. None, where p and q are files of services' answers.
        p: The column of log p, or a file of one model's answers.
        q: The column of log q, or several; or files.
        drawn_from: Whose draws the tokens are: "p"; "q" (then KL(q‖p) is given); "behaviour", a
            third policy; or "data", where nobody drew them, and only log-likelihoods are compared.
        by: Columns to group by.
        behaviour: The column of the behaviour policy's log-probabilities.
        entropy: The column of the entropy, at each position, of the distribution that drew the
            tokens.
        mask: Columns that are true where a token counts.
        sequence: Columns that name a token's sequence.
        prompt: The column that names the prompt, which several sequences share.
        position: The column of a token's position in its sequence.
        version: The column of the policy's version.
        length: The column that says how many tokens of a sequence count.
        missing: What to do with tokens without a log-probability: "refuse", or "skip".
        clip: The ratio's clipping range: a number ε for 1 ± ε, or the two ends' distances from 1.
        details: Whether to look for quantiles and a histogram of log q − log p too.
        engine: "duckdb" (the default), "spark", a connection string, or an `Engine`.

    Returns:
        A `LogProbReport`. Errors are clustered by prompt, else by sequence, else by contiguous
        blocks. What a check puts in doubt has no error bar, or is left out, with the reason.

    Raises:
        DataError: Unreadable tables, or data that a check refuses: all that was found.
        ValueError: Columns that are not there, or no numbers; options that do not fit together.
        MissingExtraError: `pip install 'kullback[tables]'`.

    Source: MATH 5.1 to 5.7; Cochran (1977), section 6, for the errors.

    Example:
        >>> import numpy as np, pandas as pd
        >>> seed = np.random.default_rng(0)
        >>> old = np.log(seed.uniform(0.2, 0.9, 4000))
        >>> drift = 0.1 * seed.standard_normal(4000) - 0.005
        >>> logs = pd.DataFrame({"old": old, "new": old + np.minimum(drift, -old)})
        >>> logs["sequence"] = np.arange(4000) // 100
        >>> report = logprobs(logs, p="old", q="new")
        >>> print(report.direction, report.main.brief)
        KL(p‖q) 0.00498 ± 0.00010 nats/token
    """
    columns = Columns(p, _many(q), behaviour, entropy, _many(mask), _many(sequence), prompt,
                      position, version, length, _many(by))  # fmt: skip
    require(not tables or p not in columns.q, "q", "another column than p", repr(p))
    require(missing in ("refuse", "skip"), "missing", "'refuse' or 'skip'", repr(missing))
    opened = engine if isinstance(engine, Engine) else connect(engine)
    study = _study(tables, columns, opened, drawn_from, clip)
    study, sums = _summed(study)
    with _one_thread():
        sample = sample_of(study.table, sums, study.draws)
        checks = checks_of(study.table, sums, study.draws, sample, skip=missing == "skip")
        report = study.report(checks)
        if report.refused:
            raise _Refused(report)
        return _with_figures(study, sums, sample, report, details=details)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch compute with one thread.

    Its operations here are on some thousand numbers each. The threads of several wait for each
    other in a loop, and beside other work took 14 s where one thread took 2 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_logprobs(*tables: Any, **options: Any) -> LogProbReport:
    """Do as `logprobs`, but return what the checks found also where they refuse the data.

    Args:
        *tables: As `logprobs`.
        **options: As `logprobs`.

    Returns:
        A `LogProbReport`, without figures where a check refuses; `found` are the checks that found
        something.

    Raises:
        DataError: Tables that cannot be read.
        ValueError: As `logprobs`.

    Example:
        >>> import pandas as pd
        >>> logs = pd.DataFrame({"old": [-1.0, -9999.0], "new": [-1.1, -0.5]})
        >>> print(check_logprobs(logs, p="old", q="new").found[0].name)
        values
    """
    try:
        return logprobs(*tables, **options)
    except _Refused as error:
        return error.report


class _Refused(DataError):
    """Data that a check refuses; the report says which."""

    def __init__(self, report: LogProbReport) -> None:
        found = [f"{check.name}: {check.words}" for check in report.refused]
        remedies = dict.fromkeys(check.remedy for check in report.refused if check.remedy)
        super().__init__(f"{report.source}: {'; '.join(found)}. Try: {'; '.join(remedies)}")
        self.report = report


@dataclass(frozen=True, slots=True)
class _Study:
    """What is asked: of which table, whose draws."""

    table: LogProbTable
    draws: Draws
    drawn_from: DrawnFrom
    by: tuple[str, ...]

    @property
    def others(self) -> list[str]:
        """The names of the models compared with, as the source has them."""
        return [self.table.roles[name] for name in self.draws.others]

    def report(self, checks: Sequence[Check]) -> LogProbReport:
        """Return a report with checks and without figures."""
        table, low, high = self.table, *self.draws.clip
        direction = "KL(q‖p)" if self.drawn_from == "q" else "KL(p‖q)"
        direction = "log p − log q" if self.draws.data else direction
        return LogProbReport(
            direction,
            self.drawn_from,
            dict(table.roles),
            table.source,
            table.engine.name,
            table.notes,
            tuple(checks),
            by=self.by,
            clip=(math.exp(low), math.exp(high)),
        )


def _study(
    tables: Sequence[Any],
    columns: Columns,
    engine: Engine,
    drawn_from: DrawnFrom,
    clip: float | tuple[float, float],
) -> _Study:
    """Read the tables, and say in canonical columns whose draws the tokens are."""
    known = ("p", "q", "behaviour", "data")
    require(drawn_from in known, "drawn_from", f"one of {', '.join(known)}", repr(drawn_from))
    named, off_policy = columns.behaviour is not None, drawn_from == "behaviour"
    require(named == off_policy, "behaviour", "a column if and only if drawn_from='behaviour'",
            repr(columns.behaviour), "drawn_from='behaviour', behaviour=COLUMN")  # fmt: skip
    if tables:
        table = read_tables(tables, columns, engine=engine)
    else:
        both = columns.p is not None and columns.q
        require(bool(both), "tables", "a table, or files for p and q", "none")
        table = read_pair(str(columns.p), columns.q, columns, engine=engine)
    others = tuple(table.keys("q"))
    if drawn_from == "q":
        require(len(others) == 1, "q", "one column where the tokens are drawn from it", len(others))
        others, drawn, source = ("p",), "q0", "q0"
    else:
        drawn, source = "p", "behaviour" if off_policy else "p"
    data = drawn_from == "data"
    require(not (data and columns.entropy), "entropy", "None where nobody drew the tokens", "one")
    draws = Draws(drawn, others, source, weighted=off_policy, data=data, clip=_clip(clip))
    return _Study(table, draws, drawn_from, columns.by)


def _clip(clip: float | tuple[float, float]) -> tuple[float, float]:
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    fits = 0 < low < 1 and high > 0
    require(fits, "clip", "ε between 0 and 1, or two such distances from 1", clip)
    return math.log1p(-low), math.log1p(high)


def _summed(study: _Study) -> tuple[_Study, Sums]:
    """Sum, once more where a column holds exactly one −100: it may be a log-probability then.

    And once more where NaN passed for a log-probability, hidden by a file's statistics.
    """
    sums = summed(study.table, study.draws)
    if sums.hidden_nan:
        study.table.engine.distrust_statistics()
        sums = summed(study.table, study.draws)
    if not sums.total("rows") and "mask" not in study.table.rows.columns:
        raise DataError(f"{study.table.source}: expected rows; got none")
    if sums.total("n") == sums.total("rows"):
        return study, sums
    counts = kinds_of_missing(study.table, study.draws.columns).values()
    if max(each.get("fill", 0) for each in counts) != 1:
        return study, sums
    study = replace(study, draws=replace(study.draws, fill=True))
    return study, summed(study.table, study.draws)


def _with_figures(
    study: _Study, sums: Sums, sample: Sample, report: LogProbReport, *, details: bool
) -> LogProbReport:
    """Add the identities' checks and all figures to a report."""
    count = len(sums.groups)
    require(count <= limits.MAX_GROUPS, "by", f"at most {limits.MAX_GROUPS:,} groups", f"{count:,}")
    asked = _asked(study, sums, sample)
    grouped = [one for one in asked if one.label != "all"] if study.by else []
    tested = [] if study.draws.data else _identities(sums, asked, study)
    labelled = [(f"{one.label}, {one.name}" if len(study.others) > 1 else one.label, identity)
                for one, identity in zip(asked, tested, strict=False)]  # fmt: skip
    rounding = sample.rounding(study.draws.source, study.draws.others[0])
    more = [] if study.draws.data else identity_checks(study.table, sums, labelled, rounding)
    limiting = [check for check in (*report.checks, *more) if check.effect == "limit"]
    refused = next((c.words for c in limiting if c.name != "ratio identity"), "")
    tested = tested or [None] * len(asked)
    asked = [replace(one, identity=identity, refused=refused)
             for one, identity in zip(asked, tested, strict=True)]  # fmt: skip
    figures = _figures(study, sums, asked)
    overall = tuple(figures[: len(study.others)])
    report = replace(report, checks=(*report.checks, *more), overall=overall,
                     groups=tuple(figures[len(overall):]) if grouped else (),
                     pairs=_pairs(overall))  # fmt: skip
    return _with_details(study, sums, report) if details else report


def _asked(study: _Study, sums: Sums, sample: Sample) -> list[Asked]:
    """Return what to estimate: of all tokens for each other model, then of each group."""
    tails = {} if study.draws.data else largest_ratios(study.table, study.draws, sums)
    asked, groups = [], []
    for place, name in enumerate(study.others):
        found = tails.get("lw" if study.draws.weighted else f"x{place}")
        rounding = sample.rounding(study.draws.drawn, study.draws.others[place])
        unit = f"nats/{study.table.unit}"
        one = Asked(study.draws, place, name, "all", rounding, unit=unit)
        tails_of = _tails(found, sums)
        asked.append(replace(one, tail=tails_of[None]))
        for group, label in enumerate(sums.groups if study.by else ()):
            words = ", ".join(map(str, label))
            if sums.of_group(group).tokens:
                groups.append(replace(one, label=words, tail=tails_of[group], group=group))
    return asked + groups


def _tails(found: Any, sums: Sums) -> dict[int | None, Tail]:
    """Return the tail of all ratios, by None, and of each group's, by its code."""
    if found is None:
        return dict.fromkeys([None, *range(len(sums.groups))], Tail(math.nan, math.nan))
    values = found["value"].to_numpy(zero_copy_only=False)
    names = [name for name in found.column_names if name != "value"]
    columns = [found[name].to_pylist() for name in names]
    labels = list(zip(*columns, strict=True)) if names else [()] * len(values)
    codes = {repr(label): code for code, label in enumerate(sums.groups)}  # NaN is not itself
    group = np.array([codes.get(repr(label), -1) for label in labels])
    whole = np.sort(values)[::-1][: limits.TAIL_KEPT]
    tails: dict[int | None, Tail] = {None: Tail.of(whole, sums.tokens)}
    for code in range(len(sums.groups)):
        tokens = sums.of_group(code).tokens
        tails[code] = Tail.of(np.sort(values[group == code])[::-1], tokens)
    return tails


def _identities(sums: Sums, asked: Sequence[Asked], study: _Study) -> list[Any]:
    """Test the identity of all tokens for each other model, and of the groups together."""
    models = len(study.others)
    found = [identities(sums, [one])[0] for one in asked[:models]]
    groups = asked[models:]
    for place in range(models):
        own = [one for one in groups if one.place == place]
        if own:
            found += identities(sums, own)
    return found


def _figures(study: _Study, sums: Sums, asked: Sequence[Asked]) -> list[Figures]:
    """Estimate everything asked, by blocks where a group has too few clusters."""
    models = len(study.others)
    length = _block_of(sums)
    blocks = summed(study.table, study.draws, block=length) if length else None
    found = [figures_of(blocks or sums, one, whole=sums) for one in asked[:models]]
    if len(asked) == models:
        return found
    parts = [sums.of_group(group) for group in range(len(sums.groups))]
    few = [_block_of(part) for part in parts]
    cut = None
    if any(few):
        shortest = min(each for each in few if each)
        cut = summed(study.table, study.draws, block=shortest)
    for one in asked[models:]:
        group = one.group or 0
        part = cut.of_group(group) if cut is not None and few[group] else parts[group]
        found.append(figures_of(part, one, whole=parts[group]))
    return found


def _block_of(sums: Sums) -> int:
    """Return the tokens of a block where there are too few clusters; one sequence stays whole."""
    clusters = int(dense_codes(sums.cluster[sums.columns["n"] > 0]).max(initial=-1)) + 1
    alone = clusters == 1 and sums.cluster_name != "blocks"
    return 0 if alone else block_length(sums.tokens, clusters)


def _pairs(overall: Sequence[Figures]) -> dict[str, dict[str, Clustered]]:
    """Compare the first model with each other one, on the same draws."""
    if len(overall) < 2:
        return {}
    first = overall[0]
    return {f"{first.other} − {one.other}": paired(first, one) for one in overall[1:]}


def _with_details(study: _Study, sums: Sums, report: LogProbReport) -> LogProbReport:
    values, exact = quantiles(study.table, study.draws, LEVELS, sums.tokens)
    found = histogram(study.table, study.draws)
    counts: dict[int, int] = {}
    for place, count in zip(found["bin"].to_pylist(), found["count"].to_pylist(), strict=True):
        counts[place] = counts.get(place, 0) + count
    bins = tuple((*bin_edges(place), counts[place]) for place in sorted(counts))
    levels = dict(zip(LEVELS, values, strict=True))
    return replace(report, quantiles=levels, quantiles_exact=exact, bins=bins)


def _many(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name, names separated by commas, or several, as a tuple."""
    given = [names] if isinstance(names, str) else list(names)
    return tuple(part.strip() for name in given for part in name.split(",") if part.strip())
