"""One pass over the tokens: sums by group and cluster, from which every figure follows.

Which to use: `summed` for the sums, `largest_ratios` for the tail that Pareto k-hat needs,
`sampled_tokens` for some whole sequences, `kinds_of_missing` where values are no log-probabilities,
`histogram` and `quantiles` for pictures. Each is one Ibis expression, whatever the engine.

With d the log-probability of the model that drew the tokens, o that of the other, `x = o − d =
log r` and `b = r − 1 − x`, the sums are of the features `f = (w x, w b, w x²/2)` and of their
products; w = 1, or exp(d − m) for draws from a behaviour policy m. k1, k2, k3 and every λ are
linear in f (MATH 5.1 to 5.5), so that means, variances and the best λ come from the same sums.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kullback.core import import_extra, require
from kullback.sampled import FILL_VALUE, MAX_LOG_PROB, MIN_LOG_PROB

from . import limits
from .engines import ibis_false, ibis_module
from .logprob_tables import LogProbTable

__all__ = [
    "Draws",
    "Sums",
    "bin_edges",
    "dense_codes",
    "histogram",
    "kinds_of_missing",
    "largest_ratios",
    "quantiles",
    "row_codes",
    "sampled_tokens",
    "summed",
    "sums_expression",
]

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
BIN = 0.25  # of the histogram, in units of asinh(log r / 1e-3): linear near 0, then logarithmic
HISTOGRAM_UNIT = 1e-3


@dataclass(frozen=True, slots=True)
class Draws:
    """Whose draws the tokens are, in canonical columns.

    drawn: the column of the model whose divergence is asked. others: those it is compared with.
    source: the column of the log-probabilities that the tokens were drawn by. weighted: whether
    `drawn` is not the source. data: whether nobody drew them (prompts, texts). fill: whether −100
    counts as a log-probability. clip: the ratio's limits, as logarithms.
    """

    drawn: str
    others: tuple[str, ...]
    source: str
    weighted: bool = False
    data: bool = False
    fill: bool = False
    clip: tuple[float, float] = (math.log(1 - limits.CLIP), math.log(1 + limits.CLIP))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of log-probabilities in use."""
        return tuple(dict.fromkeys((self.drawn, *self.others, self.source)))


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Sums by group, prompt, sequence, version and block: a row each, in columns.

    columns: name to `[rows]`, float64. group, cluster, sequence, version: `[rows]`, which of each a
    row belongs to. groups, versions: their labels, by code. block: tokens of a block; 0 for none.
    cluster_name: the plural of what clusters are. sequences_known: whether a row's sequence is one.
    """

    columns: dict[str, Floats]
    group: Codes
    cluster: Codes
    sequence: Codes
    version: Codes
    groups: tuple[tuple[Any, ...], ...]
    versions: tuple[Any, ...]
    cluster_name: str
    sequences_known: bool
    block: int = 0
    names: Any = None  # Arrow table of the columns that name each row's sequence

    def at(self, rows: Any) -> "Sums":
        """Return the same of some rows."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        codes = {name: getattr(self, name)[rows]
                 for name in ("group", "cluster", "sequence", "version")}  # fmt: skip
        return replace(self, columns=columns, **codes)

    def of_group(self, code: int) -> "Sums":
        """Return the rows of one group, which stand together."""
        first, end = np.searchsorted(self.group, [code, code + 1])
        return self.at(slice(first, end))

    def total(self, name: str) -> float:
        """Return a column's sum."""
        return float(self.columns[name].sum())

    @property
    def tokens(self) -> int:
        """How many tokens were summed."""
        return int(self.total("n"))

    @property
    def hidden_nan(self) -> bool:
        """Whether a sum is NaN: of values that passed for log-probabilities, or of an overflow."""
        return any(bool(np.isnan(self.columns[name]).any()) for name in self.columns)

    @property
    def sequences(self) -> int:
        """How many sequences the rows are of."""
        return int(dense_codes(self.sequence).max(initial=-1)) + 1


def summed(table: LogProbTable, draws: Draws, *, block: int = 0) -> Sums:
    """Sum the features of the tokens by group and cluster, in one pass.

    Args:
        table: The tokens.
        draws: Whose draws they are.
        block: Cut clusters into contiguous blocks of so many tokens; 0 for whole clusters.

    Returns:
        The `Sums`, a row for each sequence (of each group, prompt and version) or block of it.

    Raises:
        DataError: The engine cannot read or compute.
        ValueError: Blocks of rows without an order.
    """
    found = table.run(sums_expression(table, draws, block=block))
    keys = _keys(table, block=block)
    group, groups = _codes(found, table.keys("by"))
    if len(groups) > 1:  # so that the rows of a group are a slice
        found, group = found.take(np.argsort(group, kind="stable")), np.sort(group)
    columns = {name: _floats(found[name]) for name in found.column_names if name not in keys}
    version, versions = _codes(found, ["version"] if table.has("version") else [])
    prompt = ["prompt"] if table.has("prompt") else []
    own = [*prompt, *table.keys("sequence")]
    sequence = _codes(found, own, labelled=False)[0]
    if block:
        clusters, name = [*own, "block"], _plural(table)
    else:
        clusters, name = prompt or own, _plural(table)
    return Sums(
        columns,
        group,
        _codes(found, clusters, labelled=False)[0],
        sequence,
        version,
        groups,
        tuple(one[0] if one else None for one in versions),
        name,
        bool(table.keys("sequence")),
        block,
        found.select(table.keys("sequence")),
    )


def sums_expression(table: LogProbTable, draws: Draws, *, block: int = 0) -> Any:
    """Return the Ibis expression that `summed` runs."""
    rows = _features(table, draws, block=block)
    asked = {"rows": rows.count(), "n": rows.x0.count(), "d": rows.d.sum()}
    for number in range(len(draws.others)):
        asked |= _asked(rows, number, draws)
    if draws.weighted:
        asked |= {f"w{power}": _power(rows.w, power).sum() for power in (1, 2, 3)}
        asked |= {"lw": rows.lw.sum(), "top_lw": rows.lw.max()}
    if table.has("entropy"):
        asked |= {f"e{power}": _power(rows.e, power).sum() for power in (1, 2, 3)}
        asked |= {"e0": rows.e.count()}
    if table.has("length"):
        asked |= {"shortest": rows.length.min(), "longest": rows.length.max()}
    keys = _keys(table, block=block)
    return rows.group_by(keys).aggregate(**asked) if keys else rows.aggregate(**asked)


def largest_ratios(table: LogProbTable, draws: Draws, sums: Sums) -> dict[str, Any]:
    """Return the largest log r (and log weights) of each group, descending, as Arrow tables.

    Returns:
        By name ("x0", …, "lw"): a table of the `by` columns and `value`, of each group at most
        `TAIL_KEPT` rows, fewer where there are many groups.
    """
    kept = max(50, min(limits.TAIL_KEPT, 500_000 // max(len(sums.groups), 1)))
    rows, by = _features(table, draws), table.keys("by")
    names = {f"x{number}": f"top_{number}" for number in range(len(draws.others))}
    names |= {"lw": "top_lw"} if draws.weighted else {}
    found = {}
    for name, top in names.items():
        tail, least = rows.select(*by, value=rows[name]), _least_of_largest(sums, top, kept)
        tail = tail.filter(tail.value.notnull() if least is None else tail.value >= least)
        found[name] = table.run(_largest(table, tail, by, kept))
    return found


def _least_of_largest(sums: Sums, top: str, kept: int) -> float | None:
    """Return a value that at least `kept` tokens of every group reach; None: it is not known.

    The largest values of `kept` sequences of a group are as many tokens.
    """
    live = sums.columns["n"] > 0
    group, value = sums.group[live], sums.columns[top][live]
    if not len(group) or np.bincount(group, minlength=len(sums.groups)).min() < kept:
        return None
    order = np.lexsort((-value, group))
    first = np.searchsorted(group[order], np.arange(len(sums.groups)))
    return float(value[order][first + kept - 1].min())


def _largest(table: LogProbTable, tail: Any, by: list[str], kept: int) -> Any:
    """Return the `kept` largest values of each group."""
    ibis = ibis_module()
    if not by:
        return tail.order_by(ibis.desc(tail.value)).limit(kept)
    if table.engine.name == "duckdb":  # its max(x, n) holds n values; a window sorts them all
        largest = ibis.udf.agg.builtin(_max, name="max", signature=((float, int), list[float]))
        found = tail.group_by(by).aggregate(value=largest(tail.value, kept))
        return found.select(*by, value=found.value.unnest())
    place = ibis.row_number().over(group_by=by, order_by=ibis.desc(tail.value))
    tail = tail.mutate(place=place)
    return tail.filter(tail.place < kept).drop("place")


def _max(value: Any, count: Any) -> Any:
    """DuckDB's own: the `count` largest values, as a list."""


def kinds_of_missing(table: LogProbTable, columns: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count the values that are no log-probability, by column and kind, with −100 apart."""
    rows = _counted(table)
    asked = {}
    for name in columns:
        value = rows[name]
        for kind, where in _kinds(value).items():
            asked[f"{name} {kind}"] = where.fill_null(ibis_false()).sum()
    found = table.run(rows.aggregate(**asked)).to_pylist()[0]
    counts: dict[str, dict[str, int]] = {name: {} for name in columns}
    for key, count in found.items():
        name, _, kind = key.partition(" ")
        if count:
            counts[name][kind] = int(count)
    return counts


def sampled_tokens(table: LogProbTable, sums: Sums | None, names: Sequence[str]) -> Any:
    """Return some whole sequences' tokens as an Arrow table, in order: for checks that need it.

    names: canonical columns. Without known sequences, or without an order, the first rows.
    """
    rows = _counted(table)
    keys, order = table.keys("sequence"), _order(table)
    columns = list(dict.fromkeys([*keys, *([order] if order else []), *names]))
    if not keys or sums is None:
        return table.run(rows.select(*columns).limit(limits.SAMPLE_TOKENS))
    tokens = max(sums.tokens / max(sums.sequences, 1), 1.0)
    wanted = max(1, min(limits.SAMPLE_SEQUENCES, round(limits.SAMPLE_TOKENS / tokens)))
    chosen = rows.semi_join(_spread_sequences(sums, wanted), keys).select(*columns)
    if order:
        chosen = chosen.order_by([*keys, order])
    return table.run(chosen.limit(4 * limits.SAMPLE_TOKENS))


def histogram(table: LogProbTable, draws: Draws) -> Any:
    """Return counts of log r by bins of asinh(log r / 0.001) / 0.25, by group."""
    rows = _features(table, draws)
    scaled = (rows.x0 / HISTOGRAM_UNIT).abs()
    level = (scaled + (scaled * scaled + 1).sqrt()).ln() / BIN
    level = ibis_module().ifelse(rows.x0 < 0, -level, level).floor().cast("int64")
    rows = rows.mutate(bin=level).filter(lambda t: t.bin.notnull())
    return table.run(rows.group_by([*table.keys("by"), "bin"]).aggregate(count=rows.count()))


def bin_edges(place: int) -> tuple[float, float]:
    """Return the log r at both ends of a bin of `histogram`."""
    low, high = (HISTOGRAM_UNIT * math.sinh(BIN * end) for end in (place, place + 1))
    return low, high


def quantiles(
    table: LogProbTable, draws: Draws, levels: Sequence[float], tokens: int
) -> tuple[list[float], bool]:
    """Return quantiles of log r over all tokens, and whether they are exact."""
    rows = _features(table, draws)
    exact = tokens <= limits.MAX_EXACT_QUANTILES
    of = rows.x0.quantile if exact else rows.x0.approx_quantile
    asked = {f"at{place}": of(level) for place, level in enumerate(levels)}
    found = table.run(rows.aggregate(**asked)).to_pylist()[0]
    return [found[f"at{place}"] for place in range(len(levels))], exact


def _counted(table: LogProbTable) -> Any:
    rows = table.rows
    return rows.filter(rows.mask) if "mask" in rows.columns else rows


def _features(table: LogProbTable, draws: Draws, *, block: int = 0) -> Any:
    """Return the tokens with their features; null where a value is no log-probability."""
    ibis = ibis_module()
    rows = _counted(table)
    whether = [_is_log_prob(rows[name], fill=draws.fill) for name in draws.columns]
    rows = rows.mutate(live=reduce(operator.and_, whether))  # computed once, used by all
    live, d, source = rows.live, rows[draws.drawn], rows[draws.source]
    new = {"d": ibis.ifelse(live, d, None)}
    new |= {f"x{j}": ibis.ifelse(live, rows[name] - d, None) for j, name in enumerate(draws.others)}
    if draws.weighted:
        new["lw"] = ibis.ifelse(live, d - source, None)
    if table.has("entropy"):
        known = live & (rows.entropy < math.inf)  # neither NaN nor null
        new["e"] = ibis.ifelse(known, -source - rows.entropy, None)
    if block:
        new["block"] = (_place(table, rows) / float(block)).floor().cast("int64")
    kept = [name for name in _keys(table, block=0) if name in rows.columns]
    kept += [name for name in ("length",) if table.has(name)]
    kept = list(dict.fromkeys(kept))
    rows = rows.select(*kept, **new)
    bregman = {f"b{j}": _bregman(rows[f"x{j}"]) for j in range(len(draws.others))}
    weight = {"w": rows.lw.exp()} if draws.weighted else {}
    return rows.mutate(**bregman, **weight)


def _asked(rows: Any, j: int, draws: Draws) -> dict[str, Any]:
    """Return the sums of the features of one other model, and of their products."""
    x, b = rows[f"x{j}"], rows[f"b{j}"]
    if draws.data:
        return {f"f1_{j}": x.sum(), f"f11_{j}": (x * x).sum()}
    low, high = draws.clip
    first, second, third = x, b, 0.5 * (x * x)
    if draws.weighted:
        first, second, third = (rows.w * each for each in (first, second, third))
    control = first + second
    found = {
        f"f1_{j}": first.sum(),
        f"f2_{j}": second.sum(),
        f"f11_{j}": (first * first).sum(),
        f"f12_{j}": (first * second).sum(),
        f"f22_{j}": (second * second).sum(),
        f"f33_{j}": (third * third).sum(),
        f"ccc_{j}": (control * control * control).sum(),
        f"high_{j}": (x > high).sum(),
        f"low_{j}": (x < low).sum(),
        f"top_{j}": x.max(),
    }  # f3 of plain draws is half of f11
    return found | ({f"x_{j}": x.sum(), f"f3_{j}": third.sum()} if draws.weighted else {})


def _power(value: Any, power: int) -> Any:
    product = value
    for _ in range(power - 1):
        product = product * value
    return product


def _bregman(x: Any) -> Any:
    """Return e^x − 1 − x, by its series near 0, where the difference has lost its digits."""
    series = 1.0 / 5040
    for factor in (720.0, 120.0, 24.0, 6.0, 2.0):
        series = x * series + 1.0 / factor
    near = x.abs() < limits.SERIES_BELOW
    return ibis_module().ifelse(near, x * x * series, x.exp() - 1.0 - x)


def _is_log_prob(value: Any, *, fill: bool) -> Any:
    """Say where a value can be a log-probability; false for NaN, null for null."""
    there = (value > MIN_LOG_PROB) & (value <= MAX_LOG_PROB)
    return there if fill else there & (value != FILL_VALUE)


def _kinds(value: Any) -> dict[str, Any]:
    nan = value.isnan().fill_null(ibis_false())
    return {
        "null": value.isnull(),
        "NaN": nan,
        "-inf": value == -math.inf,
        "positive": (value > MAX_LOG_PROB) & (value <= 1.0) & ~nan,
        "above 1": (value > 1.0) & ~nan,
        "sentinel": (value <= MIN_LOG_PROB) & (value > -math.inf),
        "fill": value == FILL_VALUE,
    }


def _keys(table: LogProbTable, *, block: int) -> list[str]:
    keys = table.keys("by") + [role for role in ("prompt", "version") if table.has(role)]
    return [*keys, *table.keys("sequence"), *(["block"] if block else [])]


def _plural(table: LogProbTable) -> str:
    if table.has("prompt"):
        return "prompts"
    return "sequences" if table.keys("sequence") else "blocks"


def _order(table: LogProbTable) -> str | None:
    """Return the column that orders the tokens of a sequence; None where nothing does."""
    if table.has("position"):
        return "position"
    return "row" if "row" in table.rows.columns else None


def _place(table: LogProbTable, rows: Any) -> Any:
    """Return each token's place in its sequence, or in the table."""
    order = _order(table)
    if order:
        return rows[order]
    known = table.engine.numbers_rows
    expected = f"a column that orders the tokens, which {table.engine.name} does not"
    require(known, "position", expected, "none", "--sequence or --position")
    return ibis_module().row_number()


def _spread_sequences(sums: Sums, wanted: int) -> Any:
    """Return the names of about so many sequences, evenly spread over those there are."""
    first = np.unique(sums.sequence, return_index=True)[1]
    places = np.unique(np.linspace(0, len(first) - 1, min(wanted, len(first))).round().astype(int))
    return ibis_module().memtable(sums.names.take(first[places]))


def _floats(column: Any) -> Floats:
    """Return numbers, 0 for null: the sum of no token."""
    column = column.cast("float64").fill_null(0.0)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def dense_codes(codes: Codes) -> Codes:
    """Return codes renumbered 0, 1, … in their order, without a sort where they lie close.

    Example:
        >>> dense_codes(np.array([7, 3, 7, 5])).tolist()
        [2, 0, 2, 1]
    """
    first, last = (int(codes.min()), int(codes.max())) if len(codes) else (0, -1)
    if last - first >= limits.SPREAD_CODES * len(codes):
        return np.unique(codes, return_inverse=True)[1].reshape(-1)
    there = np.zeros(last - first + 1, dtype=bool)
    there[codes - first] = True
    return (np.cumsum(there) - 1)[codes - first]


def row_codes(table: Any, names: Sequence[str]) -> Codes:
    """Return a number for each different row of some columns of an Arrow table, `[rows]`."""
    return _codes(table, names, labelled=False)[0]


def _codes(
    table: Any, names: Sequence[str], *, labelled: bool = True
) -> tuple[Codes, tuple[tuple[Any, ...], ...]]:
    """Return a number for each different row of some columns, and these rows, in order."""
    compute = import_extra("pyarrow.compute", "tables")
    codes = np.zeros(table.num_rows, dtype=np.int64)
    for name in names:
        own = table[name].combine_chunks().dictionary_encode(null_encoding="encode")
        order = compute.array_sort_indices(
            own.dictionary
        ).to_numpy()  # groups come in no order of their own
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        codes = codes * len(order) + rank[own.indices.to_numpy(zero_copy_only=False)]
        codes = dense_codes(codes)
    if not labelled:
        return codes, ()
    count = int(codes.max()) + 1 if len(codes) else 0
    first = np.full(count, 0)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    picked = table.select(list(names)).take(first).to_pylist() if names else [{}] * count
    return codes, tuple(tuple(row[name] for name in names) for row in picked)
