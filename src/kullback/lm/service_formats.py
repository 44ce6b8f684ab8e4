"""Log-probabilities in the answers of services: OpenAI, vLLM, SGLang; lm-eval's samples.

Which to use: `format_of` to tell a format from a record; `rows_of` for all tokens of a file as an
Arrow table, a row a token: `sequence`, `prompt`, `position`, `part` ("prompt" or "output"),
`token`, `log_prob`. Such a file holds one model's log-probabilities; two files of the same tokens
make a pair (`logprob_tables.read_pair`). `listings_of` for the most probable tokens at each
position, by id, of vLLM and SGLang: what `drift` takes for a stored P (`stored.read_answers`).

Reference: the schemas of the OpenAI API (chat and completions), of vLLM's protocol
(`prompt_logprobs`, `return_token_ids`), of SGLang's `meta_info`, and of lm-evaluation-harness.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kullback.core import DataError, import_extra
from kullback.sampled import MIN_LOG_PROB

from .limits import SNIFFED_BYTES

__all__ = ["FORMATS", "Listing", "first_record", "format_of", "listings_of", "rows_of"]

Token = tuple[str, Any]  # what names the token, and its log-probability or None

FORMATS = {
    "openai": "OpenAI or vLLM answers (choices with logprobs or prompt_logprobs)",
    "sglang": "SGLang answers (meta_info with output_token_logprobs)",
    "lm-eval": "lm-eval samples (resps with log-likelihoods)",
}


def format_of(record: Any) -> str:
    """Return the name of the format that a record has; "" for plain columns.

    Example:
        >>> format_of({"meta_info": {"output_token_logprobs": []}}), format_of({"log_p": -1.0})
        ('sglang', '')
    """
    record = _unwrapped(record)
    if not isinstance(record, Mapping):
        return ""
    if isinstance(record.get("choices"), list):
        return "openai"
    if isinstance(record.get("meta_info"), Mapping):
        return "sglang"
    return "lm-eval" if {"doc_id", "resps"} <= set(record) else ""


def first_record(path: Path) -> Any:
    """Return the first record of a file of JSON or JSON lines, parsed; None where it is too long.

    Raises:
        DataError: An empty file, or one that does not begin with JSON.
    """
    with _opened(path) as file:
        line = file.readline(SNIFFED_BYTES).strip()
        while not line and file.tell() and (raw := file.readline(SNIFFED_BYTES)):
            line = raw.strip()
    require_rows(path, bool(line))
    if len(line) >= SNIFFED_BYTES - 1:
        return None
    try:
        return json.loads(line)
    except ValueError:
        return next(iter(_records(path)), None)  # one document over several lines


def rows_of(path: Path, kind: str) -> Any:
    """Read a file of answers into a `pyarrow.Table`, a row a token.

    Args:
        path: JSON lines, one JSON document, or an array of them; also compressed by gzip.
        kind: A key of `FORMATS`.

    Returns:
        Columns `sequence`, `prompt`, `position`, `part`, `token`, `log_prob`; the latter null where
        a service scored nothing, other than at the first token, which is left out.

    Raises:
        DataError: A record of another form; which one.
    """
    arrow = import_extra("pyarrow", "tables")
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    reader = {"openai": _openai, "sglang": _sglang, "lm-eval": _lm_eval}[kind]
    for number, record in enumerate(_records(path)):
        body = _unwrapped(record)
        prompt = str(_identifier(record, number))
        try:
            sequences = list(reader(body))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(
                f"{path}: record {number + 1} is not one of {FORMATS[kind]}: "
                f"{type(error).__name__}: {error}"
            ) from error
        for choice, parts in enumerate(sequences):
            _add(columns, f"{prompt}/{choice}", prompt, parts)
    require_rows(path, bool(columns["log_prob"]))
    types = [arrow.string(), arrow.string(), arrow.int64(), arrow.string(), arrow.string(),
             arrow.float64()]  # fmt: skip
    fields = zip(_COLUMNS, types, strict=True)
    return arrow.table({name: arrow.array(columns[name], kind) for name, kind in fields})


_COLUMNS = ("sequence", "prompt", "position", "part", "token", "log_prob")


def require_rows(path: Path, there: bool) -> None:  # noqa: FBT001
    """Raise `DataError` where a file has no row with a log-probability."""
    if not there:
        raise DataError(
            f"{path}: expected rows with log-probabilities; got none. Try: another file"
        )


def _add(columns: dict[str, list[Any]], sequence: str, prompt: str, parts: Any) -> None:
    position = 0
    for part, tokens in parts:
        for token, value in tokens:
            first = position == 0 and value is None  # nothing comes before it: not scored
            if not first:
                row = (sequence, prompt, position, part, token, value)
                for name, cell in zip(_COLUMNS, row, strict=True):
                    columns[name].append(cell)
            position += 1


def _openai(body: Mapping[str, Any]) -> Iterator[list[tuple[str, list[Token]]]]:
    """Yield the parts of each choice of a chat or completions answer, vLLM's extras included."""
    for choice in body["choices"]:
        prompt = choice.get("prompt_logprobs", body.get("prompt_logprobs"))
        ids = choice.get("prompt_token_ids", body.get("prompt_token_ids"))
        parts = [] if prompt is None else [("prompt", _vllm_prompt(prompt, ids))]
        logs = choice.get("logprobs")
        if logs is not None and "content" in logs:
            rows = [(str(each["token"]), each["logprob"]) for each in logs["content"] or []]
            parts.append(("output", rows))
        elif logs is not None:
            tokens, values = logs["tokens"], logs["token_logprobs"]
            rows = list(zip(map(str, tokens), values, strict=True))
            parts.append(("output", rows))
        if not parts:
            raise ValueError("a choice has neither logprobs nor prompt_logprobs: ask for logprobs")
        yield parts


def _vllm_prompt(entries: list[Any], ids: list[int] | None) -> list[Token]:
    """Return the prompt's tokens of vLLM's `prompt_logprobs`: a dictionary by token id each."""
    rows: list[Token] = []
    for place, entry in enumerate(entries):
        if entry is None:
            rows.append(("" if ids is None else str(ids[place]), None))
            continue
        if ids is None and len(entry) != 1:
            raise ValueError(
                f"position {place} has {len(entry)} candidates and no prompt_token_ids say which "
                "is the prompt's: ask for return_token_ids=true, or prompt_logprobs=0"
            )
        token = next(iter(entry)) if ids is None else str(ids[place])
        value = entry[token]
        rows.append((token, value["logprob"] if isinstance(value, Mapping) else value))
    return rows


def _sglang(body: Mapping[str, Any]) -> Iterator[list[tuple[str, list[Token]]]]:
    meta, parts = body["meta_info"], []
    for part, name in (("prompt", "input_token_logprobs"), ("output", "output_token_logprobs")):
        if meta.get(name):
            parts.append((part, [(str(entry[1]), entry[0]) for entry in meta[name]]))
    if not parts:
        raise ValueError("no input_token_logprobs, no output_token_logprobs: return_logprob=true")
    yield parts


def _lm_eval(body: Mapping[str, Any]) -> Iterator[list[tuple[str, list[Token]]]]:
    """Yield one row for each continuation of a document: its whole log-likelihood."""
    for place, answer in enumerate(body["resps"]):
        while isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        value = answer[0] if isinstance(answer, list) and len(answer) == 2 else answer
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"resps hold {str(value)[:40]!r} and no log-likelihood: a task that generates text"
            ) from None
        target = body.get("target_hash", "")
        yield [("output", [(f"{place}:{target}", number)])]


# --- The most probable tokens at each position


@dataclass(frozen=True, slots=True)
class Listing:
    """One sequence of an answer: its tokens, and lists of candidates at the last of them.

    name: of the sequence. ids: all tokens, the prompt's first. lists: for each of the last tokens
    the candidates' log-probabilities by id. log_probs: of these tokens themselves. texts: what a
    service writes some ids as.
    """

    name: str
    ids: list[int]
    lists: list[dict[int, float]]
    log_probs: list[float]
    texts: dict[int, str]


def listings_of(path: Path) -> Iterator[Listing]:
    """Yield the sequences of a file of vLLM's or SGLang's answers with lists of candidates.

    Args:
        path: vLLM's answers of completions or chats with `prompt_logprobs` and `prompt_token_ids`,
            and outputs written as `token_id:…`; or SGLang's with `input_top_logprobs` and
            `output_top_logprobs`.

    Yields:
        A `Listing` for each choice.

    Raises:
        DataError: A record without lists, or without ids; which one, and what to ask for.
    """
    for number, record in enumerate(_records(path)):
        body = _unwrapped(record)
        kind = format_of(record)
        reader = {"openai": _vllm_listings, "sglang": _sglang_listings}.get(kind)
        try:
            if reader is None:
                raise ValueError("it is neither vLLM's nor SGLang's")
            for choice, found in enumerate(reader(body)):
                name = f"{_identifier(record, number)}/{choice}"
                yield _listing(name, found)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(
                f"{path}: record {number + 1} has no lists of candidates by token id: "
                f"{type(error).__name__}: {error}. Try: vLLM with prompt_logprobs=20 and "
                "return_token_ids=true, or SGLang with top_logprobs_num=20 and logprob_start_len=0"
            ) from error


@dataclass(frozen=True, slots=True)
class _Place:
    """A token and its candidates: log-probabilities and texts by id; None where not scored."""

    id: int
    log_prob: float | None
    candidates: dict[int, tuple[float, str]] | None


def _listing(name: str, places: Sequence[_Place]) -> Listing:
    scored = [place for place in places if place.candidates is not None]
    if not scored or places[-len(scored) :] != scored:
        raise ValueError("lists are missing at some positions after the first that has one")
    texts: dict[int, str] = {}
    lists: list[dict[int, float]] = []
    own: list[float] = []
    for place in scored:
        candidates = place.candidates or {}
        texts |= {number: text for number, (_, text) in candidates.items()}
        lists.append({one: log for one, (log, _) in candidates.items() if log > MIN_LOG_PROB})
        if place.log_prob is None or not place.log_prob > MIN_LOG_PROB or not lists[-1]:
            raise ValueError("the log-probability of a token itself, or of its list, is missing")
        own.append(place.log_prob)
    return Listing(name, [one.id for one in places], lists, own, texts)


def _vllm_listings(body: Mapping[str, Any]) -> Iterator[list[_Place]]:
    for choice in body["choices"]:
        lists = choice.get("prompt_logprobs", body.get("prompt_logprobs"))
        ids = choice.get("prompt_token_ids", body.get("prompt_token_ids"))
        if ids is None:
            raise ValueError("there are no prompt_token_ids")
        lists = [None] * len(ids) if lists is None else lists
        yield [
            *(_vllm_place(one, entry) for one, entry in zip(ids, lists, strict=True)),
            *_vllm_output(choice.get("logprobs")),
        ]


def _vllm_place(number: int, entry: Mapping[str, Any] | None) -> _Place:
    if entry is None:
        return _Place(number, None, None)
    found = {}
    for key, value in entry.items():
        found[int(key)] = (float(value["logprob"]), value.get("decoded_token") or "")
    best = min((value.get("rank") or 1 for value in entry.values()), default=0)
    if best != 1:
        raise ValueError("the most probable token is not listed")
    return _Place(number, found[number][0], found)


def _vllm_output(logs: Mapping[str, Any] | None) -> Iterator[_Place]:
    """Yield the places of an output whose tokens are written as `token_id:…`."""
    if logs is None:
        return
    if "content" in logs:
        for each in logs["content"] or []:
            top = {one["token"]: one["logprob"] for one in each.get("top_logprobs") or []}
            yield _output_place(each["token"], each["logprob"], top)
        return
    tops = logs.get("top_logprobs") or [{}] * len(logs["tokens"])
    for token, log, top in zip(logs["tokens"], logs["token_logprobs"], tops, strict=True):
        yield _output_place(token, log, top or {})


def _output_place(token: str, log_prob: float, top: Mapping[str, float]) -> _Place:
    found = {_token_id(name): (float(log), "") for name, log in top.items()}
    if not found:
        raise ValueError("an output token has no top_logprobs")
    return _Place(_token_id(token), float(log_prob), found)


def _token_id(token: str) -> int:
    mark, _, number = token.partition(":")
    if mark != "token_id":
        raise ValueError(
            f"{token[:20]!r} is a text and no id: ask for return_tokens_as_token_ids=true"
        )
    return int(number)


def _sglang_listings(body: Mapping[str, Any]) -> Iterator[list[_Place]]:
    meta, places = body["meta_info"], []
    for part in ("input", "output"):
        own = meta.get(f"{part}_token_logprobs") or []
        tops = meta.get(f"{part}_top_logprobs") or [None] * len(own)
        for (log, number, *_), top in zip(own, tops, strict=True):
            found = None
            if top and log is not None:
                found = {int(one): (float(value), text or "") for value, one, text in top}
            places.append(_Place(int(number), log, found))
        asked = meta.get("prompt_tokens", len(own)) if part == "input" else len(own)
        if asked != len(own):
            raise ValueError(f"of {asked} tokens of the prompt {len(own)} are there")
    yield places


def _identifier(record: Mapping[str, Any], number: int) -> Any:
    """Return what names a record in both files of a pair: its own name, else its place."""
    for name in ("custom_id", "doc_hash", "doc_id"):
        if record.get(name) is not None:
            return record[name]
    return number


def _unwrapped(record: Any) -> Any:
    """Return the answer in a line of OpenAI's batch output; other records as they are."""
    if isinstance(record, Mapping) and isinstance(record.get("response"), Mapping):
        body = record["response"]
        return body.get("body", body)
    return record


def _records(path: Path) -> Iterator[Any]:
    """Yield the records of JSON lines, of one JSON document, or of an array of them."""
    with _opened(path) as file:
        start = file.read(1)
    with _opened(path) as file:
        if start == "[":
            yield from _parsed(file.read(), path, 1)
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if number == 1 and line.strip() == "{":
                yield _parsed(line + file.read(), path, number)
                return
            yield _parsed(line, path, number)


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: line {line} is not valid JSON: {error}") from error


def _opened(path: Path) -> Any:
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        return opener(path, "rt", encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
