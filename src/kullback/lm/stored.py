"""P's distributions kept in a folder, and llama.cpp's files of logits: one P, many Q.

Which to use: `read_kept` for whatever a path holds. `write_store` keeps P's hidden states and head
(exact), or its most probable tokens (small, bounds); `read_store` gives them back as a model with
its text; `read_kld` reads the file that llama.cpp's `llama-perplexity --kl-divergence-base` writes;
`read_answers` the lists of candidates in vLLM's and SGLang's answers.

A llama.cpp row holds 16-bit codes of log-probabilities down to 16 nats below the largest. Code 0
means "there or below", not a probability: those tokens are one bucket here, as the tail of a top-k
list is. Decoded as probabilities and renormalised, a KL of 3e-7 nats becomes 1.5e-2.
"""

import bisect
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save
from torch import Tensor

from kullback import tokens
from kullback.core import (
    DataError,
    RunError,
    make_folder,
    read_json,
    require,
    write_atomic,
    write_json,
)

from . import limits, service_formats
from .documents import Batch, Document, Plan, Window, batches, windows
from .models import LanguageModel, check_same_tokens, load_tokenizer

__all__ = [
    "Listed",
    "ListedModel",
    "Parts",
    "StoredModel",
    "check_pair",
    "read_answers",
    "read_kept",
    "read_kld",
    "read_store",
    "stored_kind",
    "write_store",
]


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """Log-probabilities of some tokens at every position; the others are one bucket.

    ids: `[n, k]`, or None where `log_probs` is `[n, vocab]` with −inf for tokens of the bucket.
    log_tail: the bucket's mass, `[n]`. entropy: of p, `[n]`. log_prob: of the tokens that came.
    """

    ids: Tensor | None
    log_probs: Tensor
    log_tail: Tensor
    entropy: Tensor
    log_prob: Tensor

    def rows(self, rows: slice) -> "Listed":
        """Return some of the positions."""
        ids = None if self.ids is None else self.ids[rows]
        parts = (self.log_probs, self.log_tail, self.entropy, self.log_prob)
        log_probs, log_tail, entropy, log_prob = (part[rows] for part in parts)
        return Listed(ids, log_probs, log_tail, entropy, log_prob)

    def dense(self, vocab: int) -> Tensor:
        """Return log-probabilities `[n, vocab]`, float64, −inf for tokens of the bucket."""
        if self.ids is None:
            return self.log_probs.double()
        empty = torch.full((len(self.ids), vocab), -torch.inf, dtype=torch.float64)
        return empty.to(self.ids.device).scatter_(1, self.ids.long(), self.log_probs.double())

    def top_k(self, vocab: int) -> tokens.TopK:
        """Return the list as `tokens.TopK`; only where there are ids."""
        require(self.ids is not None, "ids", "a list of tokens", None)
        ids: Any = self.ids
        return tokens.TopK(ids.long(), self.log_probs, vocab=vocab)


@dataclass(frozen=True, slots=True, eq=False)
class ListedModel:
    """A model of which lists of probabilities are stored, row by scored row.

    lists: from the numbers of the rows and the tokens that came to a `Listed`. floor: what the
    storage's rounding makes of a KL of 0, in nats a token. bound: what is known of KL, in words.
    """

    name: str
    vocab: int
    lists: Callable[[range, Tensor], Listed]
    bound: str
    floor: float = 0.0
    tokenizer: Any = None
    context: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    device: torch.device = field(default=torch.device("cpu"))


@dataclass(frozen=True, slots=True, eq=False)
class StoredModel(LanguageModel):
    """A model whose hidden states of the scored tokens are stored; it reads no other text."""

    rows: Callable[[range], Tensor] | None = None

    def scored_hidden(self, batch: Batch) -> Tensor:
        """Return the stored hidden states `[n, width]` of a batch's scored tokens."""
        if self.rows is None:
            raise DataError(f"{self.name}: holds no hidden states")
        return self.rows(batch.rows).to(self.head.device)


class Parts:
    """A folder that fills part by part, so that an interrupted run goes on where it stopped.

    Each part is a file of arrays, written whole or not at all. `manifest.json` holds the settings;
    a folder of other settings is refused.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        manifest = folder / "manifest.json"
        if manifest.exists():
            held = read_json(manifest).get("settings", {})
            given = json.loads(json.dumps(settings))
            for name in [*given, *(name for name in held if name not in given)]:
                if held.get(name) != given.get(name):
                    raise DataError(
                        f"{folder}: expected an empty folder, or a run of the same settings to go "
                        f"on with; {_difference(name, held.get(name), given.get(name))}. "
                        "Try: another folder"
                    )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(
                f"{folder}: expected a new folder, or one of an earlier run; got other files"
            )
        make_folder(folder)
        if not manifest.exists():
            write_json(manifest, {"settings": settings})
        make_folder(folder / "parts")

    def path(self, number: int) -> Path:
        """Return where a part lies."""
        return self.folder / "parts" / f"{number:07d}.safetensors"

    def find(self, number: int) -> dict[str, Any] | None:
        """Return a part's arrays, or None if it is still to be computed."""
        path = self.path(number)
        if not path.exists():
            return None
        return _read_arrays(path)

    def save(self, number: int, arrays: dict[str, Any]) -> None:
        """Write a part."""
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        write_atomic(self.path(number), save_arrays(contiguous))

    def finish(self, facts: dict[str, Any]) -> None:
        """Write what the run was beside its settings."""
        path = self.folder / "manifest.json"
        write_json(path, read_json(path) | facts)


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = load_arrays(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: {error}. Try: delete this file and run again") from None
    return found


def _difference(name: str, held: Any, given: Any) -> str:
    short = [f"{one!r}"[:60] for one in (held, given)]
    return f"{name} was {short[0]} and is {short[1]}"


# --- Stored by this package


def write_store(
    parts: Parts,
    p: LanguageModel,
    plan: Plan,
    *,
    top_k: int | None = None,
    share: tuple[int, int] = (0, 1),
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Keep P's distributions of every scored token in a folder.

    Args:
        parts: The folder; what it holds already is not computed again.
        p: The model.
        plan: The windows; their text is kept too.
        top_k: Keep so many most probable tokens and the tail's mass instead of hidden states and
            head: 8 bytes a token and k instead of 4 (float32) times the width. KL is then bounded.
        share: This process's number and how many there are; each writes its own batches.
        on_batch: Called with the number of tokens after every batch.

    Raises:
        RunError: A disk that is full.
    """
    if share[0] == 0:
        _write_frame(parts.folder, p, plan.documents, head=top_k is None)
    for number in range(share[0], len(plan.batches), share[1]):
        windows = plan.batches[number]
        if not parts.path(number).exists():
            with torch.inference_mode():
                batch = Batch.of(windows)
                hidden = p.scored_hidden(batch)
                ids = batch.next_ids.to(hidden.device)
                found = _listed(p, hidden, ids, top_k) if top_k else {"hidden": hidden}
            content = {name: one.cpu().contiguous() for name, one in found.items()}
            content["first"] = torch.tensor(batch.rows.start)
            write_atomic(parts.path(number), save(content))
        if on_batch is not None:
            on_batch(sum(window.count for window in windows))


def _listed(p: LanguageModel, hidden: Tensor, ids: Tensor, count: int) -> dict[str, Tensor]:
    found: list[dict[str, Tensor]] = []
    size = max(1, limits.LOGITS_BYTES // (p.vocab * 24))
    for start in range(0, len(hidden), size):
        logs = p.logits(hidden[start : start + size]).double().log_softmax(-1)
        top = logs.topk(count, -1)
        rest = logs.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
        entropy = -(logs.exp() * logs).nan_to_num(0.0).sum(-1)  # 0 log 0 = 0
        came = logs.gather(-1, ids[start : start + size, None])[:, 0]
        found.append(
            {
                "ids": top.indices.int(),
                "log_probs": top.values.float(),
                "log_tail": rest.float(),
                "entropy": entropy.float(),
                "log_prob": came.float(),
            }
        )
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def _write_frame(
    path: Path, p: LanguageModel, documents: Sequence[Document], *, head: bool
) -> None:
    """Write the text, the tokenizer, the head and what the model was."""
    content = {"ids": torch.cat([one.ids for one in documents])}
    content["sizes"] = torch.tensor([len(one.ids) for one in documents])
    write_atomic(path / "documents.safetensors", save(content))
    named = [{"name": one.name, "roles": list(one.roles)} for one in documents]
    write_json(path / "documents.json", named)
    if p.tokenizer is not None:
        _write_tokenizer(path / "tokenizer", p.tokenizer)
    if head:
        weights = {"head": p.head.detach().cpu().contiguous()}
        if p.bias is not None:
            weights["bias"] = p.bias.detach().cpu().contiguous()
        write_atomic(path / "head.safetensors", save(weights))
    facts = {"softcap": p.softcap, "scale": p.scale, "context": p.context, "vocab": p.vocab}
    write_json(path / "model.json", {"name": p.name, "facts": p.facts, **facts})


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer's files, each whole or not at all."""
    try:
        with tempfile.TemporaryDirectory() as made:
            tokenizer.save_pretrained(made)
            files = [(one.name, one.read_bytes()) for one in Path(made).iterdir()]
        folder.mkdir(exist_ok=True)
    except Exception as error:  # of tokenizers: a plain Exception, on a full disk
        raise RunError(f"{folder}: cannot be written: {error}") from error
    for name, content in files:
        write_atomic(folder / name, content)


def read_store(
    folder: str | Path, device: str = "cpu"
) -> tuple[StoredModel | ListedModel, list[Document], dict[str, Any]]:
    """Read what `write_store` kept.

    Args:
        folder: Its folder.
        device: Where hidden states and head go.

    Returns:
        P as a model (a `StoredModel`; a `ListedModel` for top-k), the documents, and the settings
        of the windows.

    Raises:
        DataError: A folder that is none, is unfinished, or damaged.
    """
    path = Path(folder)
    settings = read_json(path / "manifest.json").get("settings", {})
    if settings.get("kind") != "store":
        raise DataError(f"{path}: expected a folder made with --store; got another run's")
    held, documents = read_json(path / "model.json"), _read_documents(path)
    shards = _Shards.of(path, settings["scored"])
    tokenizer = load_tokenizer(path / "tokenizer") if (path / "tokenizer").is_dir() else None
    facts = {**held["facts"], "stored": str(path)}
    if settings["top_k"]:
        words = f"bounds from P's {settings['top_k']} most probable tokens and the mass of the rest"
        model: StoredModel | ListedModel = ListedModel(
            held["name"],
            held["vocab"],
            lambda rows, _ids: _moved(shards.read(rows), device),
            words,
            tokenizer=tokenizer,
            context=held["context"],
            facts=facts,
            device=torch.device(device),
        )
    else:
        weights = _load_tensors(path / "head.safetensors")
        bias = weights.get("bias")
        model = StoredModel(
            held["name"],
            _no_other_text,
            weights["head"].to(device),
            bias=None if bias is None else bias.to(device),
            softcap=held["softcap"],
            scale=held["scale"],
            tokenizer=tokenizer,
            context=held["context"],
            facts=facts,
            rows=lambda rows: shards.read(rows)["hidden"],
        )
    return model, documents, settings


def _moved(found: dict[str, Tensor], device: str) -> Listed:
    names = ("ids", "log_probs", "log_tail", "entropy", "log_prob")
    ids, log_probs, log_tail, entropy, log_prob = (found[name].to(device) for name in names)
    return Listed(ids, log_probs, log_tail, entropy, log_prob)


def _no_other_text(_ids: Tensor) -> Tensor:
    raise DataError("a stored P holds its own text only. Try: leave --text out")


def _read_documents(path: Path) -> list[Document]:
    content = _load_tensors(path / "documents.safetensors")
    named = read_json(path / "documents.json")
    cut = torch.split(content["ids"], content["sizes"].tolist())
    pairs = zip(named, cut, strict=True)
    return [Document(one["name"], ids, tuple(one["roles"])) for one, ids in pairs]


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: missing or damaged: {error}. Try: store P again") from None
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Shards:
    """Files of rows, in order: the first row of each."""

    paths: list[Path]
    firsts: list[int]
    scored: int

    @classmethod
    def of(cls, folder: Path, scored: int) -> "_Shards":
        paths = sorted((folder / "parts").glob("*.safetensors"))
        firsts, held = [], 0
        for path in paths:
            with _opened(path) as file:
                names = [name for name in file.keys() if name != "first"]  # noqa: SIM118
                firsts.append(int(file.get_tensor("first")))
                held += file.get_slice(names[0]).get_shape()[0]
        if held != scored:
            raise DataError(
                f"{folder}: expected {scored:,} stored rows; got {held:,}. Try: the command that "
                "stored P again, it goes on where it stopped"
            )
        return cls(paths, firsts, scored)

    def read(self, rows: range) -> dict[str, Tensor]:
        """Read rows, from as many files as hold them."""
        found: list[dict[str, Tensor]] = []
        at = bisect.bisect_right(self.firsts, rows.start) - 1
        while at < len(self.paths) and self.firsts[at] < rows.stop:
            part = slice(max(0, rows.start - self.firsts[at]), rows.stop - self.firsts[at])
            with _opened(self.paths[at]) as file:
                names = [name for name in file.keys() if name != "first"]  # noqa: SIM118
                found.append({name: file.get_slice(name)[part] for name in names})
            at += 1
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: damaged: {error}. Try: delete this file and store P again"
        ) from None


def stored_kind(path: str | Path) -> str:
    """Return what a path holds of P: a kind of stored results, or "" for a checkpoint.

    Args:
        path: A file or a folder.

    Returns:
        "store" (of this package), "kld" (llama.cpp's logits), "answers" (vLLM's or SGLang's).
    """
    path = Path(path)
    if path.is_file():
        if path.suffix in ANSWER_FILES:
            return "answers"
        with path.open("rb") as file:
            return "kld" if file.read(len(KLD_MARK)).startswith(KLD_MARK) else ""
    manifest = path / "manifest.json"
    kind = read_json(manifest).get("settings", {}).get("kind") if manifest.exists() else None
    return "store" if kind == "store" else ""


def read_kept(
    path: str | Path, qs: Sequence[LanguageModel], device: str = "cpu"
) -> tuple[StoredModel | ListedModel, Plan]:
    """Read a stored P and the windows that candidates are to read.

    Args:
        path: A folder of `write_store`, llama.cpp's file of logits, or vLLM's or SGLang's answers.
        qs: The candidates; their tokenizer says how llama.cpp's chunks began, and whether the ids
            of answers are theirs.
        device: Where P's states go.

    Returns:
        P and the plan.

    Raises:
        DataError: Another tokenizer or vocabulary; a damaged or unfinished file.
    """
    if stored_kind(path) == "kld":
        tokenizer = next((q.tokenizer for q in qs if q.tokenizer is not None), None)
        found, plan = read_kld(path, _bos(tokenizer))
        model: StoredModel | ListedModel = found
        check_pair(model, qs)
        return model, plan
    if stored_kind(path) == "answers":
        return read_answers(path, qs)
    model, documents, settings = read_store(path, device)
    check_pair(model, qs)
    cut = windows(documents, settings["context"], settings["stride"])
    cut = [window for window in cut if window.row < settings["scored"]]
    held = batches(cut, limits.BATCH_TOKENS)
    return model, Plan(documents, held, settings["context"], settings["stride"], settings["scored"])


def check_pair(p: Any, qs: Sequence[Any]) -> None:
    """Require one tokenizer and one vocabulary size of P and all candidates."""
    for q in qs:
        check_same_tokens(p, q)
        sizes = f"{p.vocab:,} ({p.name}) and {q.vocab:,} ({q.name})"
        hint = f"where one is padded, vocab={min(p.vocab, q.vocab)} leaves the padding out"
        require(q.vocab == p.vocab, "p and q", "one vocabulary size", sizes, hint)


def _bos(tokenizer: Any) -> int | None:
    """Return the token that a tokenizer begins text with, if it does."""
    if tokenizer is None or tokenizer.bos_token_id is None:
        return None
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return int(tokenizer.bos_token_id) if begins else None


# --- Answers of vLLM and SGLang

ANSWER_FILES = (".jsonl", ".ndjson", ".json")


def read_answers(path: str | Path, qs: Sequence[LanguageModel]) -> tuple[ListedModel, Plan]:
    """Read the lists of candidates in vLLM's or SGLang's answers as a stored P.

    Args:
        path: JSON lines of answers (`service_formats.listings_of`).
        qs: The candidates, whose vocabulary the ids are of.

    Returns:
        P as a `ListedModel`, of each position the k most probable tokens, k the fewest that a
        position has; and the windows that it scores, a document an answer, read as a whole.

    Raises:
        DataError: Answers without lists or ids; ids that are not those of the candidates'
            tokenizer; probabilities that add up to more than 1; an answer longer than a candidate
            reads.
    """
    path, q = Path(path), qs[0]
    found = list(service_formats.listings_of(path))
    service_formats.require_rows(path, bool(found))
    _check_ids(path, found, q)
    count = min(len(each) for one in found for each in one.lists)
    lists = _moved(_most_probable(path, found, count, q.vocab), str(q.head.device))
    longest = max(len(one.ids) for one in found)
    readable = min((one.context for one in qs if one.context), default=longest)
    if longest > readable:
        raise DataError(
            f"{path}: expected answers of at most {readable:,} tokens, which the candidates read; "
            f"got one of {longest:,}. Try: shorter prompts"
        )
    documents = [Document(one.name, torch.tensor(one.ids)) for one in found]
    cut, row = [], 0
    for number, one in enumerate(found):
        first = len(one.ids) - len(one.lists)
        require(first > 0, str(path), "no list at the first token", "one", "leave it out")
        cut.append(Window(number, documents[number].ids, 0, first, row))
        row += len(one.lists)
    words = (
        f"bounds from the {count} most probable tokens of a service's answers and the mass of the "
        "rest; the entropy of P is a lower bound"
    )
    facts = {"path": str(path), "format": "answers of vLLM or SGLang"}
    p = ListedModel(
        path.stem,
        q.vocab,
        lambda rows, _came: lists.rows(slice(rows.start, rows.stop)),
        words,
        limits.ANSWERS_FLOOR,
        facts=facts,
        device=q.head.device,
    )
    return p, Plan(documents, batches(cut, limits.BATCH_TOKENS), longest, longest, row)


def _most_probable(
    path: Path, found: Sequence[service_formats.Listing], count: int, vocab: int
) -> dict[str, Tensor]:
    """Return the `count` most probable tokens of every list, and the mass of the others."""
    ids, logs = [], []
    for one in (each for listing in found for each in listing.lists):
        largest = sorted(one.items(), key=lambda pair: -pair[1])[:count]
        ids.append([number for number, _ in largest])
        logs.append([log for _, log in largest])
    log_probs = torch.tensor(logs, dtype=torch.float64)
    total = log_probs.exp().sum(-1)
    most = float(total.max())
    if not most <= 1.0 + limits.MAX_EXCESS_MASS:
        raise DataError(
            f"{path}: expected probabilities that add up to at most 1; got {most:.6g}. Try: the "
            "service's raw log-probabilities, natural logarithms before any temperature or top-p"
        )
    whole = total if count == vocab else total.clamp(min=1.0)  # more, or less, by rounding
    log_probs -= whole.log()[:, None]
    rest = (1.0 - log_probs.exp().sum(-1)).clamp(min=0.0) * (count < vocab)
    log_tail = rest.log()
    parts = torch.cat([log_probs, log_tail[:, None]], -1)
    entropy = -(parts.exp() * parts).nan_to_num(0.0).sum(-1)
    came = torch.tensor([log for one in found for log in one.log_probs])
    return {
        "ids": torch.tensor(ids).int(),
        "log_probs": log_probs.float(),
        "log_tail": log_tail.float(),
        "entropy": entropy.float(),
        "log_prob": came,
    }


def _check_ids(path: Path, found: Sequence[service_formats.Listing], q: LanguageModel) -> None:
    """Require that ids are the candidate's, and that its tokenizer writes them as the service."""
    largest = max(max(*one.ids, *(max(each) for each in one.lists)) for one in found)
    if largest >= q.vocab:
        raise DataError(
            f"{path}: expected token ids below {q.vocab:,} ({q.name}); got {largest:,}, of another "
            "tokenizer. Try: answers of a model with the candidates' tokenizer"
        )
    if q.tokenizer is None:
        return
    texts = {number: text for one in found for number, text in one.texts.items()}
    for number, text in sorted(texts.items()):
        own = str(q.tokenizer.decode([number]))
        known = text.strip() and own.strip() and "\ufffd" not in text + own
        if known and own.strip() != text.strip():
            raise DataError(
                f"{path} and {q.name}: expected one tokenizer; got {text!r} and {own!r} for id "
                f"{number}"
            )


# --- llama.cpp

KLD_MARK = b"_logits_"


def read_kld(path: str | Path, bos: int | None = None) -> tuple[ListedModel, Plan]:
    """Read a file of llama.cpp's `llama-perplexity --kl-divergence-base FILE`.

    Args:
        path: The file: "_logits_", context, vocabulary, chunks, tokens, and for the second half of
            every chunk a row of 16-bit codes.
        bos: The token that llama.cpp puts in the place of a chunk's first one, where its model
            begins text with one; the file does not hold it.

    Returns:
        P as a `ListedModel`, and the windows that the file scores, a document a chunk.

    Raises:
        DataError: Not such a file, or a truncated one.
    """
    path = Path(path)
    context, vocab, chunks, ids = _kld_head(path)
    rows, width = context - 1 - context // 2, 2 * ((vocab + 1) // 2) + 4
    start = 20 + 4 * context * chunks
    wanted, size = start + 2 * chunks * rows * width, path.stat().st_size
    if size != wanted:
        raise DataError(
            f"{path}: expected {wanted:,} bytes for {chunks:,} chunks; got {size:,}, a truncated "
            "file. Try: write it again to its end"
        )
    codes = np.memmap(path, np.uint16, "r", start, (chunks * rows, width))

    def lists(numbers: range, came: Tensor) -> Listed:
        return _decoded(codes[numbers.start : numbers.stop], vocab, came)

    if bos is not None:
        ids = ids.clone()
        ids[:, 0] = bos
    documents = [Document(f"chunk {number}", row) for number, row in enumerate(ids, 1)]
    cut = [Window(n, row, 0, context - rows, n * rows) for n, row in enumerate(ids)]
    words = "a lower bound: tokens 16 nats below the first are one bucket in llama.cpp's file"
    facts = {"path": str(path), "format": "llama.cpp logits"}
    p = ListedModel(path.stem, vocab, lists, words, limits.KLD_FLOOR, facts=facts)
    return p, Plan(documents, batches(cut, limits.BATCH_TOKENS), context, context, rows * chunks)


def _kld_head(path: Path) -> tuple[int, int, int, Tensor]:
    try:
        with path.open("rb") as file:
            mark = file.read(8)
            head = np.frombuffer(file.read(12).ljust(12, b"\0"), np.int32)
            good = mark.startswith(KLD_MARK) and (head > 0).all() and head[0] > 3
            if not good:
                raise DataError(f"{path}: expected llama.cpp's file of logits; got another file")
            context, vocab, chunks = (int(one) for one in head)
            held = file.read(4 * context * chunks)
            read = np.frombuffer(held[: len(held) // 4 * 4], np.int32)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if len(read) < context * chunks:
        raise DataError(f"{path}: truncated within its tokens. Try: write it again to its end")
    return context, vocab, chunks, torch.from_numpy(read.astype(np.int64)).view(chunks, context)


def _decoded(codes: Any, vocab: int, came: Tensor) -> Listed:
    """Decode rows; tokens of code 0 go into the bucket, whose mass is what the others leave."""
    head = np.ascontiguousarray(codes[:, :4]).view(np.float32)
    step, least = (torch.from_numpy(head[:, at].astype(np.float64)) for at in (0, 1))
    code = torch.from_numpy(codes[:, 4 : 4 + vocab].astype(np.int32))
    logs = least[:, None] + step[:, None] * code
    floor = code == 0
    known = logs.masked_fill(floor, -torch.inf)
    mass = known.logsumexp(-1).exp()
    most = floor.sum(-1) * least.exp()  # each token of the bucket has at most this floor
    tail = torch.minimum((1.0 - mass).clamp(min=0.0), most)
    total = (mass + tail).log()
    known, log_tail = known - total[:, None], tail.log() - total
    parts = torch.cat([known, log_tail[:, None]], -1)
    entropy = -(parts.exp() * parts).nan_to_num(0.0).sum(-1)
    log_prob = (logs - total[:, None]).gather(-1, came.cpu()[:, None])[:, 0]
    return Listed(None, known, log_tail, entropy, log_prob)
