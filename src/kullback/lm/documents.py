"""Text cut into documents of token ids, and documents cut into the windows a model reads.

Which to use: `read_documents` for files, folders, JSON lines and chat transcripts; `Document` for
token ids at hand; `windows` for what is given to a model at a time and which tokens it scores.

A token is scored if the model sees at least one token of the same document before it: the first
token of a document never is. Documents stay apart: no window holds parts of two.

A token's role is that of its message in a chat, with "/first" at the first token of an answer,
"/tool call" in the calls that it makes, and "/code" in fenced code; in other text "text", likewise.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import DataError, require

from . import limits

__all__ = ["Batch", "Document", "Plan", "Window", "batches", "read_documents", "windows"]

TEXT_FILES = (".txt", ".md", ".rst", ".text", "")
LINES_FILES = (".jsonl", ".ndjson")
MARKED = {  # spans of text that have a role of their own, of which the last named wins
    "code": re.compile(  # fenced (CommonMark 0.31, section 4.5), to the text's end if left open
        r"^ {0,3}(`{3,}|~{3,})[^\n]*(?:\n(?:.*?^ {0,3}\1[`~]*[ \t]*$|.*\Z)|\Z)", re.M | re.S
    ),
    "tool call": re.compile(r"<(tool_call|function_call)>.*?</\1>", re.S),
}


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One document: its name, its token ids `[n]`, and the role of each token.

    roles: for every token the role of its message in a chat ("user", "assistant", …), with
    "/first", "/tool call" or "/code" after it where it is one; empty for plain text without code.
    """

    name: str
    ids: Tensor
    roles: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        """Return the name and the number of tokens."""
        return f"Document({self.name!r}, {len(self.ids):,} tokens)"


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Tokens `start` to `stop` of a document, of which those from `scored` on are scored.

    row: how many tokens the windows before it score.
    """

    document: int
    ids: Tensor
    start: int
    scored: int
    row: int = 0

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + len(self.ids)

    @property
    def count(self) -> int:
        """How many of its tokens are scored."""
        return self.stop - self.scored


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Windows that a model reads at once: ids `[windows, longest]`, and which of them are scored.

    Padding comes last, so that no scored token sees it.
    """

    windows: tuple[Window, ...]
    ids: Tensor
    scored: Tensor

    @classmethod
    def of(cls, held: Sequence[Window]) -> "Batch":
        """Pad windows to the longest."""
        longest = max(len(window.ids) for window in held)
        ids = torch.zeros(len(held), longest, dtype=torch.long)
        scored = torch.zeros(len(held), longest, dtype=torch.bool)
        for row, window in enumerate(held):
            ids[row, : len(window.ids)] = window.ids
            scored[row, window.scored - window.start : len(window.ids)] = True
        return cls(tuple(held), ids, scored)

    @property
    def next_ids(self) -> Tensor:
        """The scored tokens, `[n]`."""
        return self.ids[self.scored]

    @property
    def alike(self) -> list[list[int]]:
        """The windows' numbers in groups of nearly one length, to read without much padding."""
        found: list[list[int]] = []
        sizes = [len(window.ids) for window in self.windows]
        for number in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
            group = [*found[-1], number] if found else [number]
            held, longest = sum(sizes[one] for one in group), sizes[group[0]]
            padding = longest * len(group) - held
            if found and padding <= max(limits.PADDING_TOKENS, limits.PADDING_SHARE * held):
                found[-1].append(number)
            else:
                found.append([number])
        return found

    @property
    def rows(self) -> range:
        """The numbers of the scored tokens among those of all windows."""
        first = self.windows[0].row
        return range(first, first + sum(window.count for window in self.windows))

    def places(self) -> dict[str, Tensor]:
        """Return document, position and id of every scored token, `[n]`, int32."""
        document = torch.tensor([window.document for window in self.windows])
        start = torch.tensor([window.start for window in self.windows])
        position = start[:, None] + torch.arange(self.ids.shape[1])
        return {
            "document": document[:, None].expand_as(self.ids)[self.scored].int(),
            "position": position[self.scored].int(),
            "id": self.next_ids.int(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which windows are measured, in which batches: a function of the text and the settings alone.

    batches: neighbouring windows that are read at once. context, stride: of the windows. documents:
    where the windows come from. scored: how many tokens are scored.
    """

    documents: Sequence[Document]
    batches: list[list[Window]]
    context: int
    stride: int
    scored: int


def batches(cut: Sequence[Window], batch_tokens: int) -> list[list[Window]]:
    """Group neighbouring windows that fit together into a batch, padded to the longest."""
    found: list[list[Window]] = []
    longest = 0
    for window in cut:
        longest = max(longest, len(window.ids)) if found else len(window.ids)
        if not found or longest * (len(found[-1]) + 1) > batch_tokens:
            found.append([])
            longest = len(window.ids)
        found[-1].append(window)
    return found


def windows(documents: Sequence[Document], context: int, stride: int | None = None) -> list[Window]:
    """Cut documents into windows of at most `context` tokens that score every token once.

    Args:
        documents: In the order in which they are read.
        context: The most tokens that a model sees at a time, at least 2.
        stride: Tokens by which a window moves on, 1 to `context − 1`. Tokens that an earlier window
            has scored are context only. None: half of `context`, so that after the first window
            every scored token has at least that many tokens before it.

    Returns:
        The windows. A document of one token has none.

    Raises:
        ValueError: For a context below 2, or a stride outside its range.

    Example:
        >>> text = Document("a", torch.arange(10))
        >>> [(w.start, w.stop, w.scored) for w in windows([text], 6, 3)]
        [(0, 6, 1), (3, 9, 6), (6, 10, 9)]
    """
    require(context >= 2, "context", "at least 2 tokens", context)
    stride = max(1, context // 2) if stride is None else stride
    require(1 <= stride < context, "stride", f"1 to {context - 1} tokens", stride)
    found = []
    row = 0
    for index, document in enumerate(documents):
        size, done, start = len(document.ids), 1, 0
        while done < size:
            stop = min(start + context, size)
            found.append(Window(index, document.ids[start:stop], start, done, row))
            row, done, start = row + stop - done, stop, start + stride
    return found


def read_documents(
    paths: Iterable[str | Path], tokenizer: Any, *, text_field: str = "text"
) -> list[Document]:
    """Read text into documents of token ids.

    Args:
        paths: Text files (one document each), folders of them, and JSON lines (`.jsonl`, one
            document a line): an object with the text in `text_field`, or with a chat in "messages"
            (a list of `{"role", "content"}`, as chat templates take it).
        tokenizer: A Hugging Face tokenizer; it adds its special tokens (a beginning of text) as it
            does for its model.
        text_field: The field of a JSON line that holds the text.

    Returns:
        The documents, in the order of `paths`, files of a folder by name.

    Raises:
        DataError: A file that is missing, not UTF-8, not text; a line that is not JSON or lacks the
            field; no document of at least two tokens. The message names file and line.
    """
    found: list[Document] = []
    for path in paths:
        found += _read(Path(path), tokenizer, text_field)
    if not any(len(one.ids) > 1 for one in found):
        raise DataError(
            f"text: expected a document of at least two tokens; got {len(found)} documents "
            "without one. Try: other files"
        )
    return found


def _read(path: Path, tokenizer: Any, text_field: str) -> Iterator[Document]:
    if path.is_dir():
        files = sorted(
            one
            for one in path.rglob("*")
            if one.is_file() and one.suffix in (*TEXT_FILES, *LINES_FILES) and one.name[0] != "."
        )
        if not files:
            wanted = ", ".join(one for one in (*TEXT_FILES, *LINES_FILES) if one)
            raise DataError(f"{path}: expected a folder of text files ({wanted}); got none")
        for file in files:
            yield from _read(file, tokenizer, text_field)
    elif path.suffix in LINES_FILES:
        yield from _read_lines(path, tokenizer, text_field)
    else:
        yield _plain(str(path), tokenizer, _text_of(path))


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte order mark is no text
    except FileNotFoundError:
        raise DataError(f"{path}: expected a text file; got no file of that name") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text; got other bytes at {error.start:,}"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _read_lines(path: Path, tokenizer: Any, text_field: str) -> Iterator[Document]:
    # not splitlines: U+2028, U+0085 and the like may stand inside a JSON string
    for number, line in enumerate(_text_of(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: expected a line of JSON; got {error.msg}") from None
        if "\\ud" in line.lower():  # the escape of a surrogate, of which pairs alone are characters
            _check_characters(row, place)
        yield _document_of(row, place, tokenizer, text_field)


def _check_characters(row: Any, place: str) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise DataError(f"{place}: expected Unicode text; got {half}, half a pair") from None


def _document_of(row: Any, place: str, tokenizer: Any, text_field: str) -> Document:
    if isinstance(row, dict) and isinstance(row.get(text_field), str):
        return _plain(place, tokenizer, row[text_field])
    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        return _chat(row["messages"], place, tokenizer)
    got = f"the fields {', '.join(map(str, row))}" if isinstance(row, dict) else type(row).__name__
    if isinstance(row, dict) and text_field in row:
        got = f"{json.dumps(row[text_field])[:40]} in {text_field!r}"
    raise DataError(
        f'{place}: expected an object with text in "{text_field}" or a chat in "messages"; got '
        f"{got}. Try: --field NAME"
    )


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Text, its token ids, and of each token where in the text it lies; empty if not known."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]

    @classmethod
    def of(cls, tokenizer: Any, text: str, **options: Any) -> "_Encoded":
        fast = bool(getattr(tokenizer, "is_fast", False))
        found = tokenizer(text, **options, **({"return_offsets_mapping": True} if fast else {}))
        return cls(text, found["input_ids"], found["offset_mapping"] if fast else [])

    def marked(self, spans: Iterable[tuple[int, int, str]]) -> dict[int, str]:
        """Return the labels of the tokens that lie in spans (start, stop, label), the last's."""
        found: dict[int, str] = {}
        if self.offsets:
            first, end = np.array(self.offsets).T
            for start, stop, label in spans:
                inside = np.flatnonzero((first < stop) & (end > start))
                found |= dict.fromkeys(inside.tolist(), label)
        return found


def _spans(text: str, shift: int = 0) -> list[tuple[int, int, str]]:
    """Return where fenced code and tool calls lie in a text: start, stop, label."""
    return [
        (shift + one.start(), shift + one.end(), label)
        for label, form in MARKED.items()
        for one in form.finditer(text)
    ]


def _plain(name: str, tokenizer: Any, text: str) -> Document:
    """Return a document of plain text; its roles only where it has fenced code or tool calls."""
    found = _Encoded.of(tokenizer, text)
    marked = found.marked(_spans(text))
    labels = [f"text/{marked[at]}" if at in marked else "text" for at in range(len(found.ids))]
    ids = torch.tensor(found.ids, dtype=torch.long)
    return Document(name, ids, tuple(labels) if marked else ())


def _chat(messages: list[Any], place: str, tokenizer: Any) -> Document:
    """Render a chat by the tokenizer's template; each token has the role of its message.

    A template is a function of the whole chat, so the tokens of a message are those by which the
    chat up to it is longer than the chat before it.
    """
    for message in messages:
        if not (isinstance(message, dict) and isinstance(message.get("role"), str)):
            raise DataError(f'{place}: expected messages with "role" and "content"')
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{place}: expected a tokenizer with a chat template for a chat; got one without. "
            f'Try: text in a field ("text")'
        )
    before = _Encoded("", [], [])
    roles: list[str] = []
    for count in range(1, len(messages) + 1):
        longer = _rendered(messages[:count], place, tokenizer)
        start, stop = len(before.ids), len(longer.ids)
        if longer.ids[:start] != before.ids:  # templates that rewrite earlier messages
            before, roles = longer, ["chat"] * stop
            continue
        role = messages[count - 1]["role"]
        marked = longer.marked(_content_spans(messages[count - 1], before.text, longer.text))
        marked |= _tool_calls(messages[:count], start, longer.ids, place, tokenizer)
        first = _first_of_answer(messages[:count], before.ids, longer.ids, place, tokenizer)
        marked |= {first: "first"}
        roles += [f"{role}/{marked[at]}" if at in marked else role for at in range(start, stop)]
        before = longer
    return Document(place, torch.tensor(before.ids, dtype=torch.long), tuple(roles))


def _content_spans(message: Any, before: str, text: str) -> list[tuple[int, int, str]]:
    """Return the spans of a message's content, where the template has put it into the text."""
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return []
    content = content.strip()  # as many templates do
    at = text.find(content, len(before) if text.startswith(before) else 0)
    return _spans(content, at) if at >= 0 else []


def _tool_calls(
    messages: list[Any], start: int, whole: list[int], place: str, tokenizer: Any
) -> dict[int, str]:
    """Label the tokens by which a message with tool calls differs from the same without them.

    whole: ids of all messages, the last one's from `start` on.
    """
    message = messages[-1]
    if not message.get("tool_calls"):
        return {}
    bare = {name: value for name, value in message.items() if name != "tool_calls"}
    bare["content"] = bare.get("content") or ""
    try:
        without = _rendered([*messages[:-1], bare], place, tokenizer).ids
    except DataError:  # a template that requires something of every message
        return {}
    if without[:start] != whole[:start]:
        return {}
    ours, theirs = whole[start:], without[start:]
    most = min(len(ours), len(theirs))
    head = next((n for n in range(most) if ours[n] != theirs[n]), most)
    tail = next((n for n in range(most - head) if ours[-1 - n] != theirs[-1 - n]), most - head)
    return dict.fromkeys(range(start + head, len(whole) - tail), "tool call")


def _rendered(messages: list[Any], place: str, tokenizer: Any, **options: Any) -> _Encoded:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # noqa: BLE001 - templates are programs of the model's authors
        raise DataError(f"{place}: the chat template refuses this chat: {error}") from None
    return _Encoded.of(tokenizer, text, add_special_tokens=False)


def _first_of_answer(
    messages: list[Any], before: list[int], whole: list[int], place: str, tokenizer: Any
) -> int:
    """Return where the assistant's own first token lies, after the template's header; −1: none."""
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        return -1
    header = _rendered(messages[:-1], place, tokenizer, add_generation_prompt=True).ids
    inside = len(before) <= len(header) < len(whole) and whole[: len(header)] == header
    return len(header) if inside else -1
