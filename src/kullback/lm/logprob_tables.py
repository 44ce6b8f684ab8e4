"""Readers: from files, data frames or tables of a warehouse to one table of tokens.

Which to use: `read_tables` for tables that hold both models' log-probabilities in columns;
`read_pair` for two files of one model each, of the same tokens. Both return a `LogProbTable`: an
Ibis expression with a row a token and named columns, whatever the source was.

Columns may hold a number a row (a row a token) or a list a row (a row a sequence). Names of roles
other than p and q are found where they are usual (`Columns.found`), and it is said which were.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kullback.core import ArgumentValueError, DataError, import_extra, message, require
from kullback.sampled import why_shapes_differ

from . import service_formats
from .engines import Engine, connect, ibis_false, ibis_module

__all__ = ["Columns", "LogProbTable", "read_pair", "read_tables"]

USUAL: dict[str, tuple[str, ...]] = {
    "mask": ("loss_mask", "token_loss_mask", "response_mask", "completion_mask", "action_mask"),
    "sequence": ("sequence", "sequence_id", "sequence_idx", "seq_id", "request_id", "sample_id",
                 "trajectory_id", "rollout_id", "document", "document_id", "doc_id"),
    "prompt": ("prompt_id", "prompt", "prompt_hash", "prompt_idx", "group_id", "problem_id", "uid"),
    "position": ("position", "pos", "token_idx", "token_index", "position_id"),
    "version": ("policy_version", "version", "weight_version", "weights_version", "model_version"),
    "length": ("length", "response_length", "completion_length"),
}  # fmt: skip
TRAINERS: dict[str, dict[str, Any]] = {  # formats told by their columns, with what they mean
    "prime-rl token export": {"p": "inference_logprobs", "q": ("trainer_logprobs",),
                              "mask": ("loss_mask",)},
    "NeMo-RL train data": {"p": "generation_logprobs", "q": ("prev_logprobs",),
                           "mask": ("token_loss_mask", "sample_loss_mask")},
}  # fmt: skip
KINDS = {
    ".parquet": "Parquet", ".pq": "Parquet", ".csv": "CSV", ".tsv": "CSV",
    ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON lines",
}  # fmt: skip
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".npy", ".npz")
_STEP = r"step[_-]?(\d+)"
_LONGEST_LINE = 1 << 28  # bytes of one JSON line that DuckDB reads: 32,000 tokens take 10 MB
_KEYS = ("sequence", "prompt", "version", "length")  # columns that are a name or a number a row


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a source stand for what; None or empty where there is none.

    p: log p of each token, the first argument of KL(p‖q). q: log q, of one model or several.
    behaviour: log-probabilities of the policy that drew the tokens, where it is neither. entropy:
    the entropy of the distribution that drew the tokens, at each position. mask: tokens that count
    are those where all of these are true. sequence, prompt: what names a sequence, and the prompt
    that several share. position: of a token in its sequence. version: of the policy. length: how
    many tokens count in a sequence. by: columns to group by.
    """

    p: str | None = None
    q: tuple[str, ...] = ()
    behaviour: str | None = None
    entropy: str | None = None
    mask: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
    prompt: str | None = None
    position: str | None = None
    version: str | None = None
    length: str | None = None
    by: tuple[str, ...] = ()

    def found(self, names: Sequence[str]) -> tuple["Columns", tuple[str, ...]]:
        """Return the roles with those found by name in `names`, and words on what was found."""
        notes, columns = [], self
        for kind, known in TRAINERS.items():
            if {known["p"], *known["q"], known["mask"][0]} <= set(names):
                there = {role: value for role, value in known.items() if not getattr(self, role)}
                if "mask" in there:
                    there["mask"] = tuple(name for name in there["mask"] if name in names)
                columns = replace(columns, **there)
                notes.append(f"read as a {kind}")
        for role, usual in USUAL.items():
            name = next((name for name in usual if name in names), None)
            if name is None or getattr(columns, role) or (role == "version" and name in self.by):
                continue
            chosen: Any = (name,) if role in ("mask", "sequence") else name
            columns = replace(columns, **{role: chosen})
            notes.append(f"{role}: column {name!r}, found by its name")
        return columns, tuple(notes)

    def named(self) -> dict[str, str]:
        """Return the canonical name of every column in use, by its name in the source."""
        pairs = [("p", self.p), *((f"q{i}", name) for i, name in enumerate(self.q))]
        pairs += [("behaviour", self.behaviour), ("entropy", self.entropy)]
        pairs += [(f"mask{i}", name) for i, name in enumerate(self.mask)]
        pairs += [(f"sequence{i}", name) for i, name in enumerate(self.sequence)]
        pairs += [(role, getattr(self, role)) for role in ("prompt", "position", "version")]
        pairs += [("length", self.length)]
        pairs += [(f"by{i}", name) for i, name in enumerate(self.by)]
        return {role: name for role, name in pairs if name is not None}


@dataclass(frozen=True, slots=True, eq=False)
class LogProbTable:
    """Tokens, a row each, as an Ibis expression with named columns.

    rows: `p`, `q0`, …, `behaviour`, `entropy` (float64), `mask` (bool), `position`, `sequence0`, …,
    `prompt`, `version`, `length`, `by0`, …, where `roles` has them. roles: canonical name to the
    source's. source: what was read, in words. notes: what was found by name. misfits: lists of one
    row that differ in length, in words. unit: what a row is, "token" or "answer". parts: whether it
    has a column `part`, of services' answers.
    """

    engine: Engine
    rows: Any
    roles: Mapping[str, str]
    source: str
    notes: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    unit: str = "token"

    def has(self, role: str) -> bool:
        """Say whether there is a column in a role."""
        return role in self.roles

    def run(self, expression: Any) -> Any:
        """Return an expression's rows as a `pyarrow.Table`."""
        return self.engine.run(expression, self.source)

    def keys(self, start: str) -> list[str]:
        """Return the canonical names that are `start` and a number: "q", "by", "sequence"."""
        return [role for role in self.roles if re.fullmatch(rf"{start}\d+", role)]


def read_tables(
    sources: Sequence[Any], columns: Columns, *, engine: Engine | None = None
) -> LogProbTable:
    """Read tables with the log-probabilities of both models in their columns.

    Args:
        sources: Paths of Parquet, CSV or JSON lines (files, folders, patterns), all of one kind; or
            one pandas, Polars or Arrow table, or an Ibis table; or names of a warehouse's tables.
        columns: What stands for what; roles left empty are looked for by usual names.
        engine: Of `connect`; DuckDB when None.

    Returns:
        A `LogProbTable`; nothing but the columns' names and types has been read yet, and of lists
        their lengths.

    Raises:
        DataError: Unreadable files, pickles, no rows.
        ValueError: Columns that are missing, or hold no numbers.
        MissingExtraError: The extra `tables` is not installed.

    Example:
        >>> import pyarrow
        >>> table = pyarrow.table({"old": [-1.0, -0.5], "new": [-1.1, -0.4], "step": [1, 2]})
        >>> found = read_tables([table], Columns(p="old", q=("new",), by=("step",)))
        >>> sorted(found.roles.items())
        [('by0', 'step'), ('p', 'old'), ('q0', 'new')]
    """
    engine = engine or connect()
    require(len(sources) > 0, "tables", "at least one file or table", "none")
    raw, source, notes = _opened(sources, engine)
    names = [name for name in raw.columns if not name.startswith("kullback_")]
    given, (columns, found) = columns, columns.found(names)
    if columns.p in names and raw[columns.p].type().is_array():  # a row is a sequence
        columns = replace(columns, sequence=given.sequence)
        found = tuple(note for note in found if not note.startswith("sequence:"))
    kind = raw[columns.prompt].type() if columns.prompt in names else None
    if given.prompt is None and kind and not (kind.is_string() or kind.is_integer()):  # messages
        columns = replace(columns, prompt=None)
        found = tuple(note for note in found if not note.startswith("prompt:"))
    roles = columns.named()
    _check_names(roles, names, source)
    lists = _check_types(_Source(engine, raw, source), roles)
    if lists:
        return _of_lists(_Source(engine, raw, source), roles, lists, (*notes, *found))
    rows = _typed(raw.select(_selected(raw, roles)), roles)
    return LogProbTable(engine, rows, roles, source, (*notes, *found))


def read_pair(
    p: str | Path, q: Sequence[str | Path], columns: Columns, *, engine: Engine | None = None
) -> LogProbTable:
    """Read files of one model's log-probabilities each, and join the same tokens.

    Args:
        p: A file of answers (OpenAI, vLLM, SGLang, lm-eval), or "FILE:COLUMN" of a table with
            columns `sequence` and `position`.
        q: The same, of one model or more.
        columns: Further roles, found in p's file.
        engine: DuckDB only.

    Returns:
        A `LogProbTable` of the tokens, which must be the same in all files.

    Raises:
        DataError: Files of different tokens: the first difference.
    """
    engine = engine or connect()
    require(engine.name == "duckdb", "engine", "duckdb, which joins the files", engine.name)
    ibis = ibis_module()
    first = _one_side(p, columns, engine)
    joined = ibis.memtable(first).rename(p="log_prob")
    for number, path in enumerate(q):
        other = _one_side(path, columns, engine)
        _require_same_tokens(first, other, str(p), str(path))
        side = ibis.memtable(other.select(["sequence", "position", "log_prob"]))
        side = side.rename({f"q{number}": "log_prob"})
        joined = joined.join(side, ["sequence", "position"])
    roles = {"p": str(p), "prompt": "prompt", "position": "position", "sequence0": "sequence"}
    roles |= {f"q{number}": str(path) for number, path in enumerate(q)}
    given = [name for name in columns.by if name in joined.columns]
    missing = [name for name in columns.by if name not in given]
    require(not missing, "by", f"one of {', '.join(first.column_names)}", ", ".join(missing))
    roles |= {f"by{number}": name for number, name in enumerate(given)}
    chosen = {role: joined[role if role[0] in "pq" and role in joined.columns else name]
              for role, name in roles.items()}  # fmt: skip
    unit = "answer" if "lm-eval" in str(first.schema.metadata) else "token"
    return LogProbTable(engine, joined.select(**chosen), roles, f"{p} and {len(q)} more", unit=unit)


@dataclass(frozen=True, slots=True)
class _Source:
    engine: Engine
    raw: Any
    name: str
    extra: dict[str, str] = field(default_factory=dict)


def _one_side(given: str | Path, columns: Columns, engine: Engine) -> Any:
    """Return one model's tokens as an Arrow table: sequence, prompt, position, token, log_prob."""
    path, column = _file_and_column(str(given))
    if column is None:
        kind = service_formats.format_of(service_formats.first_record(path))
        known = "; ".join(service_formats.FORMATS.values())
        got = "a file with columns" if path.suffix in KINDS else "another file"
        require(bool(kind), "p and q", f"a column, or files of {known}", f"{path}, {got}",
                f"{path}:COLUMN")  # fmt: skip
        rows = service_formats.rows_of(path, kind)
        return rows.replace_schema_metadata({"format": kind})
    asked = Columns(column, (column,), sequence=columns.sequence, position=columns.position)
    table = read_tables([path], replace(asked, prompt=columns.prompt), engine=engine)
    for role in ("sequence0", "position"):
        expected = "columns that name a token's sequence and its position"
        require(table.has(role), str(path), expected, f"no {role.rstrip('0')}",
                "--sequence and --position")  # fmt: skip
    prompt = table.rows.prompt if table.has("prompt") else table.rows.sequence0
    text = {"sequence": table.rows.sequence0, "prompt": prompt}
    chosen = {name: value.cast("string") for name, value in text.items()}
    rows = table.rows.select(**chosen, position=table.rows.position, log_prob=table.rows.p)
    return table.run(rows)


def _file_and_column(given: str) -> tuple[Path, str | None]:
    """Split "FILE:COLUMN"; a file's name may hold a colon itself."""
    path, colon, column = given.rpartition(":")
    if colon and not Path(given).exists() and Path(path).exists():
        return Path(path), column
    if not Path(given).exists():
        raise DataError(f"{given}: there is no such file")
    return Path(given), None


def _require_same_tokens(first: Any, other: Any, p: str, q: str) -> None:
    """Refuse files whose tokens are not the same, and show the first that differs."""
    keys = ["sequence", "position"]
    name = "token" if {"token"} <= set(first.column_names) & set(other.column_names) else None
    columns = [*keys, *([name] if name else [])]
    sides = [_by_key(table, columns) for table in (first, other)]
    for side, file in zip(sides, (p, q), strict=True):
        if len(side[0]) != side[1]:
            raise DataError(f"{file}: {side[1] - len(side[0])} tokens have the place of another")
    for key in {**sides[0][0], **sides[1][0]}:
        a, b = (side[0].get(key, "no token") for side in sides)
        if a != b:
            raise DataError(
                f"{q}: expected the tokens of {p}; at sequence {key[0]!r}, position {key[1]}: "
                f"{a!r} there, {b!r} here. Try: the same prompts, tokeniser and token format"
            )


def _by_key(table: Any, columns: list[str]) -> tuple[dict[tuple[Any, Any], Any], int]:
    rows = list(zip(*(table[name].to_pylist() for name in columns), strict=True))
    return {row[:2]: row[2] if len(row) > 2 else "" for row in rows}, len(rows)


def _opened(sources: Sequence[Any], engine: Engine) -> tuple[Any, str, tuple[str, ...]]:
    """Return the source as an Ibis table, what it is in words, and notes."""
    ibis = ibis_module()
    texts = [source for source in sources if isinstance(source, str | Path)]
    if not texts:
        require(len(sources) == 1, "tables", "one data frame, or paths", f"{len(sources)} objects")
        given = sources[0]
        return (given if isinstance(given, ibis.Table) else _in_memory(given)), "the table", ()
    require(len(texts) == len(sources), "tables", "paths, or one data frame", "both")
    if not engine.reads_files:
        with engine.guarded(", ".join(map(str, texts))):
            tables = [engine.connection.table(str(name)) for name in texts]
        return ibis.union(*tables) if len(tables) > 1 else tables[0], ", ".join(map(str, texts)), ()
    paths, notes = _files(texts)
    kind = _kind(paths)
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    if kind == "JSON lines":
        _refuse_answers(paths[0])
    with engine.guarded(name):
        raw = _read(engine, kind, [str(path) for path in paths])
    named = "filename" in raw.columns and all(re.search(_STEP, str(path)) for path in paths)
    if named and "step" not in raw.columns:
        raw = raw.mutate(step=raw.filename.re_extract(rf".*{_STEP}", 1).cast("int64"))
    return raw, name, notes


def _in_memory(given: Any) -> Any:
    """Return a data frame, or whatever Arrow takes for a table, as an Ibis table."""
    arrow = import_extra("pyarrow", "tables")
    try:
        table = arrow.table(given)
    except (TypeError, ValueError, arrow.ArrowException) as error:
        expected = "paths, or a pandas, Polars, Arrow or Ibis table"
        got = f"{type(given).__name__}: {error}"[:200]
        raise ArgumentValueError(message("tables", expected, got)) from error
    narrow = [arrow.types.is_float16(each.type) for each in table.schema]
    if any(narrow):  # which DuckDB does not read
        fields = [each.with_type(arrow.float32()) if half else each
                  for each, half in zip(table.schema, narrow, strict=True)]  # fmt: skip
        table = table.cast(arrow.schema(fields))
    return ibis_module().memtable(table)


def _files(texts: Sequence[str | Path]) -> tuple[list[Path], tuple[str, ...]]:
    """Return the files meant by paths, folders and patterns."""
    files: list[Path] = []
    notes: list[str] = []
    for text in texts:
        path = Path(text)
        if path.is_dir():
            found = sorted(each for each in path.rglob("*") if _suffix(each) in KINDS)
            files += _finished(found, notes)
        elif not path.exists() and set("*?[") & set(path.name):
            files += sorted(path.parent.glob(path.name))
        else:
            files.append(path)
    for path in files:
        if _suffix(path) in PICKLES:
            raise DataError(
                f"{path}: not read: a pickle runs code of its writer when it is read. Try: in the "
                "program that wrote it, pandas.DataFrame({...}).to_parquet('logprobs.parquet') "
                "with a column for each list"
            )
        if not path.exists():
            raise DataError(f"{path}: there is no such file")
        if path.is_file() and not path.stat().st_size:
            raise DataError(f"{path}: expected rows; got an empty file")
    if not files:
        raise DataError(f"{', '.join(map(str, texts))}: no file of {', '.join(KINDS)} there")
    return files, tuple(notes)


def _finished(files: list[Path], notes: list[str]) -> list[Path]:
    """Leave out steps that are still being written: prime-rl marks the others with STABLE."""
    marked = {path.parent for path in files if (path.parent / "STABLE").exists()}
    if not marked:
        return files
    left = sorted({path.parent.name for path in files if path.parent not in marked})
    if left:
        notes.append(f"left out, without the marker STABLE: {', '.join(left)}")
    return [path for path in files if path.parent in marked]


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in (".gz", ".zst") else suffix


def _kind(paths: list[Path]) -> str:
    kinds = {KINDS.get(_suffix(path), path.suffix) for path in paths}
    known = kinds <= set(KINDS.values())
    expected = f"files of one kind: {', '.join(dict.fromkeys(KINDS))}"
    require(known and len(kinds) == 1, "tables", expected, ", ".join(sorted(kinds)) or "no suffix")
    return kinds.pop()


def _read(engine: Engine, kind: str, paths: list[str]) -> Any:
    """Let the engine read files; DuckDB also says of each row which file and line it was."""
    if engine.session is not None:
        return _read_by_spark(engine, kind, paths)
    connection = engine.connection
    options: dict[str, Any] = {"filename": True, "union_by_name": True}
    if kind == "Parquet":
        raw = connection.read_parquet(paths, file_row_number=True, **options)
        return raw.rename(kullback_row="file_row_number")
    if kind == "CSV":
        return connection.read_csv(paths, **options)
    lines = not all(path.removesuffix(".gz").endswith(".json") for path in paths)
    options |= {
        "format": "newline_delimited" if lines else "auto",
        "maximum_object_size": _LONGEST_LINE,
    }
    return connection.read_json(paths, **options)


def _read_by_spark(engine: Engine, kind: str, paths: list[str]) -> Any:
    reader = engine.session.read
    if kind == "Parquet":
        frame = reader.parquet(*paths)
    elif kind == "CSV":
        frame = reader.csv(paths, header=True, inferSchema=True)
    else:
        frame = reader.json(paths)
    name = f"kullback_{secrets.token_hex(4)}"
    frame.createOrReplaceTempView(name)
    return engine.connection.table(name)


def _refuse_answers(path: Path) -> None:
    """Say of a service's answers that they come as a pair of files."""
    kind = service_formats.format_of(service_formats.first_record(path))
    if kind:
        raise ArgumentValueError(
            message(
                "tables",
                "columns with the log-probabilities of both models",
                f"{path}: {service_formats.FORMATS[kind]}, of one model",
                "no table, and two files: --p ONE.jsonl --q OTHER.jsonl",
            )
        )


def _check_names(roles: Mapping[str, str], names: Sequence[str], source: str) -> None:
    for role in ("p", "q0"):
        listed = ", ".join(names[:30])
        require(role in roles, role[0], f"a column of {source}", "none", f"one of {listed}")
    for role, name in roles.items():
        argument = re.sub(r"\d+$", "", role)
        near = [each for each in names if each.lower() == name.lower()] or list(names)[:30]
        there = name in names
        require(there, argument, f"a column of {source}", repr(name), f"one of {', '.join(near)}")


def _check_types(source: _Source, roles: Mapping[str, str]) -> tuple[str, ...]:
    """Return the roles whose columns hold lists; refuse columns that hold no numbers."""
    lists, raw = [], source.raw
    for role, name in roles.items():
        kind = raw[name].type()
        if kind.is_array():
            lists.append(role)
            kind = kind.value_type
        argument = re.sub(r"\d+$", "", role)
        number = kind.is_numeric() or kind.is_null() or (kind.is_boolean() and "mask" in role)
        if argument in ("p", "q", "behaviour", "entropy", "mask", "position", "length"):
            if not number and not source.engine.run(raw.limit(1), source.name).num_rows:
                raise DataError(f"{source.name}: expected rows; got none")  # they have no type
            require(number, argument, "a column of numbers, or of lists of numbers",
                    f"{name!r} of type {kind}", _hint(kind))  # fmt: skip
    pair = [role for role in roles if role[0] in "pq" and role not in ("prompt", "position")]
    both = {role in lists for role in pair}
    require(len(both) == 1, "p and q", "two columns of numbers, or two of lists", "one of each")
    wrong = [role for role in lists if re.sub(r"\d+$", "", role) in _KEYS]
    require(
        not wrong,
        ", ".join(re.sub(r"\d+$", "", role) for role in wrong),
        "a column without lists",
        "lists",
    )
    return tuple(lists) if set(pair) <= set(lists) else _no_lists(lists)


def _no_lists(lists: list[str]) -> tuple[str, ...]:
    require(not lists, ", ".join(lists), "a number a row, as p and q have", "lists")
    return ()


def _hint(kind: Any) -> str:
    if kind.is_string() or kind.is_json():
        return "text such as 'null' in a CSV makes a column text: leave such cells empty"
    return "another column"


def _of_lists(
    source: _Source, roles: dict[str, str], lists: tuple[str, ...], notes: tuple[str, ...]
) -> LogProbTable:
    """Turn a row a sequence into a row a token."""
    engine, raw = source.engine, source.raw
    warehouse = not engine.reads_files
    require(not warehouse, "tables", "a row a token", f"lists, on {engine.name}", "UNNEST them")
    misfits = _misfits(source, roles, lists)
    keys = {} if "sequence0" in roles else _row_names(raw)
    roles = {role: name for role, name in roles.items() if role != "position"}
    lists = tuple(role for role in lists if role != "position")
    plain = {role: raw[name] for role, name in roles.items() if role not in lists}
    chosen = raw.select(**plain, **keys, **{role: raw[roles[role]] for role in lists})
    unnested = _unnested(engine, chosen, [*plain, *keys], list(lists))
    named = roles | dict.fromkeys(keys, "row") | {"position": "position"}
    return LogProbTable(engine, _typed(unnested, named), named, source.name, notes, misfits)


def _unnested(engine: Engine, chosen: Any, plain: list[str], lists: list[str]) -> Any:
    """Return a row for each place of the lists, with its position."""
    ibis = ibis_module()
    place = ibis.range(chosen[lists[0]].length())
    if engine.name == "duckdb":  # several lists at once: faster than by way of structs
        each = {role: chosen[role].unnest() for role in lists}
        return chosen.select(*plain, **each, position=place.unnest())
    first, *others = [chosen[role] for role in lists]
    zipped = chosen.select(*plain, places=first.zip(*others, place))
    rows = zipped.select(*plain, places=zipped.places.unnest())
    names = [*lists, "position"]
    fields = {role: rows.places[f"f{number}"] for number, role in enumerate(names, 1)}
    return rows.select(*plain, **fields)


def _row_names(raw: Any) -> dict[str, Any]:
    """Return what names a row: its file and line, or its number."""
    if {"filename", "kullback_row"} <= set(raw.columns):
        return {"sequence0": raw.filename, "sequence1": raw.kullback_row}
    return {"sequence0": ibis_module().row_number()}


def _misfits(source: _Source, roles: Mapping[str, str], lists: tuple[str, ...]) -> tuple[str, ...]:
    """Say which lists differ in length from those of p, in how many rows, and by how much."""
    raw, lengths = source.raw, source.raw[roles["p"]].length()
    asked = {"rows": raw.count()}
    for role in lists:
        own = raw[roles[role]].length()
        differs = (own != lengths).fill_null(own.isnull() != lengths.isnull())
        asked |= {
            f"{role}_count": differs.sum(),
            f"{role}_own": own.max(where=differs),
            f"{role}_p": lengths.max(where=differs),
        }
    found = source.engine.run(raw.aggregate(**asked), source.name).to_pylist()[0]
    if not found["rows"]:
        raise DataError(f"{source.name}: expected rows; got none")
    words = []
    for role in lists:
        count = found[f"{role}_count"]
        if not count:
            continue
        own, expected = (found[f"{role}_{end}"] or 0 for end in ("own", "p"))
        why = why_shapes_differ((1, own), (1, expected))
        such = f"such as {own:,} and {expected:,}"
        words.append(
            f"{roles[role]}: in {count:,} of {found['rows']:,} rows of another length than "
            f"{roles['p']} ({such}){': ' if why else ''}{why}"
        )
    return tuple(words)


def _selected(raw: Any, roles: Mapping[str, str]) -> dict[str, Any]:
    """Return the columns in use by their canonical names, and the number of the row, if known."""
    chosen = {role: raw[name] for role, name in roles.items()}
    if "kullback_row" in raw.columns:
        chosen["row"] = raw.kullback_row
    return chosen


def _typed(rows: Any, roles: Mapping[str, str]) -> Any:
    """Return rows with float64 numbers and one bool mask."""
    ibis = ibis_module()
    numbers = [role for role in roles if re.fullmatch(r"p|q\d+|behaviour|entropy", role)]
    rows = rows.mutate(**{role: rows[role].cast("float64") for role in numbers})
    masks = [role for role in roles if re.fullmatch(r"mask\d+", role)]
    if not masks:
        return rows
    kept = ibis.literal(value=True)
    for role in masks:
        column = rows[role]
        kept = kept & (column if column.type().is_boolean() else column > 0)
    return rows.mutate(mask=kept.fill_null(ibis_false())).drop(*masks)
