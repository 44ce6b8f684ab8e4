"""Exact divergences of two or more language models, token by token.

Which to use: `measure_tokens` for P and one or more candidates Q on documents; `token_tables` to see every batch of
tokens as it is measured; `measure_positions` for hidden states that are at hand.

At every scored token the whole vocabulary is summed (MATH 5.7): KL both ways, Jensen-Shannon,
entropies, the log-probability of the token that came, agreement of the top tokens, and the rank
under Q of P's first. Logits are made for a block of positions at a time, as many as fit into
`MEMORY` bytes, so memory grows with neither vocabulary nor context; a scored token keeps its row of
`COLUMNS`, about 50 bytes a candidate.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kullback import tokens
from kullback.core import DataError, require

from .documents import Document, Window, windows
from .models import LanguageModel, check_same_tokens

__all__ = [
    "COLUMNS",
    "PLACE",
    "TOP",
    "TokenTable",
    "measure_positions",
    "measure_tokens",
    "token_tables",
]

MEMORY = 256 << 20  # bytes of logits held at a time, both sides and what is worked in
BATCH_TOKENS = 4096  # given to a model at a time
TOP = 5  # of the most probable tokens whose sets are compared
PLACE = ("document", "position", "id", "p_entropy", "p_log_prob", "p_top_prob")
COLUMNS = (
    "kl",
    "reverse_kl",
    "js",
    "q_entropy",
    "q_log_prob",
    "same_top",
    "top_overlap",
    "rank",
)
Column = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """A row a scored token: where it stands, and what P and every candidate say of it.

    place: the columns of `PLACE`, `[n]`: the document's number, the token's position in it, its
    id; H(p), log p(id) and the largest p, in nats. candidates: for every Q the columns of
    `COLUMNS`, `[n]`: KL(p‖q), KL(q‖p) and Jensen-Shannon in nats, H(q), log q(id), whether both
    have the same top token, the share of P's top 5 in Q's, and the rank (1: first) of P's top token
    under Q.
    """

    place: dict[str, Column]
    candidates: tuple[dict[str, Column], ...]

    def __len__(self) -> int:
        """Return how many tokens are scored."""
        return len(self.place["id"])

    def __repr__(self) -> str:
        """Return what it holds, not all of it."""
        return f"TokenTable({len(self):,} tokens, {len(self.candidates)} candidates)"

    @classmethod
    def joined(cls, tables: Sequence["TokenTable"]) -> "TokenTable":
        """Return the rows of several tables, one after the other."""
        place = {name: np.concatenate([one.place[name] for one in tables]) for name in PLACE}
        count = len(tables[0].candidates)
        return cls(
            place,
            tuple(
                {n: np.concatenate([one.candidates[q][n] for one in tables]) for n in COLUMNS}
                for q in range(count)
            ),
        )


def measure_positions(
    p: LanguageModel,
    qs: Sequence[LanguageModel],
    p_hidden: Tensor,
    q_hidden: Sequence[Tensor],
    ids: Tensor,
    *,
    memory: int = MEMORY,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Measure positions whose hidden states are at hand.

    Args:
        p: Its head is used.
        qs: Theirs likewise.
        p_hidden: `[n, width]`.
        q_hidden: For every Q `[n, width]` of its own.
        ids: The tokens that came, `[n]`.
        memory: Bytes of logits held at a time.

    Returns:
        P's columns (`p_entropy`, `p_log_prob`, `p_top_prob`), and for every Q those of `COLUMNS`.

    Raises:
        ValueError: For vocabularies of different size.

    Example:
        >>> toy = LanguageModel("p", lambda ids: torch.eye(3)[ids], torch.eye(3))
        >>> moved = LanguageModel("q", toy.hidden, 2 * torch.eye(3))
        >>> hidden, came = torch.eye(3), torch.tensor([0, 1, 1])
        >>> _, (found,) = measure_positions(toy, [moved], hidden, [hidden], came)
        >>> found["kl"][0] == tokens.kl(torch.eye(3)[0], 2 * torch.eye(3)[0])
        tensor(True)
    """
    for q in qs:
        sizes = f"{p.vocab:,} and {q.vocab:,} ({p.name}, {q.name})"
        hint = "models of one vocabulary; where one is padded, cut its head to the other's size"
        require(q.vocab == p.vocab, "p and q", "one vocabulary size", sizes, hint)
    count = max(1, memory // (p.vocab * 4 * _HELD))
    rooms = [torch.empty(0), *(torch.empty(0) for _ in qs)]
    parts = []
    for start in range(0, len(ids), count):
        rows = slice(start, start + count)
        parts.append(_block(p, qs, [p_hidden[rows], *(h[rows] for h in q_hidden)], ids[rows], rooms))
    first = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    rest = [
        {name: torch.cat([part[1][q][name] for part in parts]) for name in COLUMNS}
        for q in range(len(qs))
    ]
    return first, rest


_HELD = 4  # numbers of float32 a position, token: logits of P and one Q, and room to work in


def _block(
    p: LanguageModel,
    qs: Sequence[LanguageModel],
    hidden: Sequence[Tensor],
    ids: Tensor,
    rooms: list[Tensor],
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    logits = _logits(p, hidden[0], rooms, 0)
    top = logits.topk(min(TOP, p.vocab), -1)
    first = {}
    found = []
    for number, q in enumerate(qs, 1):
        other = _logits(q, hidden[number], rooms, number)
        both = tokens.compare(logits, other, ids=ids, nan="pass")
        first = {"p_entropy": both.p_entropy, "p_log_prob": both.p_log_prob}
        found.append(_candidate(logits, other, both, top.indices))
    if not qs:
        first["p_entropy"] = tokens.entropy(logits, nan="pass")
        first["p_log_prob"] = tokens.log_prob(logits, ids, nan="pass")
    first["p_top_prob"] = tokens.log_prob(logits, top.indices[:, 0], nan="pass").exp()
    return first, found


def _candidate(
    logits: Tensor, other: Tensor, both: tokens.Comparison, top: Tensor
) -> dict[str, Tensor]:
    theirs = other.topk(top.shape[1], -1).indices
    shared = (top[:, :, None] == theirs[:, None, :]).any(-1).double().mean(-1)
    at = other.gather(-1, top[:, :1])
    return {
        "kl": both.kl,
        "reverse_kl": both.reverse_kl,
        "js": tokens.js(logits, other, nan="pass"),
        "q_entropy": both.q_entropy,
        "q_log_prob": both.q_log_prob,
        "same_top": both.same_top,
        "top_overlap": shared.float(),
        "rank": (other > at).sum(-1) + 1,
    }


def _logits(model: LanguageModel, hidden: Tensor, rooms: list[Tensor], number: int) -> Tensor:
    """Return logits in memory that the next block uses again."""
    shape = (len(hidden), model.vocab)
    if rooms[number].shape != shape:
        wide = torch.promote_types(torch.float32, hidden.dtype)
        rooms[number] = torch.empty(shape, dtype=wide, device=hidden.device)
    return model.logits(hidden, out=rooms[number])


def token_tables(
    p: LanguageModel,
    qs: Sequence[LanguageModel],
    cut: Sequence[Window],
    *,
    batch_tokens: int = BATCH_TOKENS,
    memory: int = MEMORY,
) -> Iterator[TokenTable]:
    """Yield the tables of the windows, some windows at a time, in their order.

    Args:
        p: The reference model.
        qs: The candidates; each reads the same batches.
        cut: What the models read (`documents.windows`).
        batch_tokens: Given to a model at a time, padding included.
        memory: Bytes of logits held at a time.

    Yields:
        A `TokenTable` a batch. Between two of them nothing is held but weights.
    """
    with torch.inference_mode():
        for batch in batches(cut, batch_tokens):
            yield _table(p, qs, batch, memory)


def batches(cut: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Yield neighbouring windows that fit together into a batch, padded to the longest."""
    held: list[Window] = []
    longest = 0
    for window in cut:
        longer = max(longest, len(window.ids))
        if held and longer * (len(held) + 1) > batch_tokens:
            yield held
            held, longer = [], len(window.ids)
        held.append(window)
        longest = longer
    if held:
        yield held


def _table(
    p: LanguageModel, qs: Sequence[LanguageModel], batch: Sequence[Window], memory: int
) -> TokenTable:
    longest = max(len(window.ids) for window in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    counted = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, window in enumerate(batch):  # padding comes last, so that no scored token sees it
        ids[row, : len(window.ids)] = window.ids
        counted[row, window.scored - window.start : len(window.ids)] = True
    ids, counted = ids.to(p.head.device), counted.to(p.head.device)
    came = ids[:, 1:][counted[:, 1:]]
    hidden = [model.hidden(ids)[:, :-1][counted[:, 1:]] for model in (p, *qs)]
    first, found = measure_positions(p, qs, hidden[0], hidden[1:], came, memory=memory)
    document = torch.tensor([window.document for window in batch])
    position = torch.tensor([window.start for window in batch])[:, None] + torch.arange(longest)
    kept = counted.cpu()
    place = {
        "document": document[:, None].expand(-1, longest)[kept].int(),
        "position": position[kept].int(),
        "id": came.int(),
        **first,
    }
    return TokenTable(_arrays(place), tuple(_arrays(one) for one in found))


def _arrays(columns: dict[str, Tensor]) -> dict[str, Column]:
    return {name: column.cpu().numpy() for name, column in columns.items()}


def measure_tokens(
    p: LanguageModel,
    qs: Sequence[LanguageModel],
    documents: Sequence[Document],
    *,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    on_batch: Callable[[TokenTable], None] | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> TokenTable:
    """Measure every scored token of some documents under P and every Q.

    Args:
        p: The reference model.
        qs: The candidates, of P's tokenizer.
        documents: Token ids (`documents.read_documents`).
        context: The most tokens a model sees; None: what both can read, at most 2,048.
        stride: See `documents.windows`.
        limit: Documents' scored tokens to stop after (whole windows).
        on_batch: Called with every batch's table.
        batch_tokens: Given to a model at a time.

    Returns:
        The table of all scored tokens.

    Raises:
        DataError: Tokenizers that differ; ids beyond the vocabulary; no token to score.
    """
    probe = "The quick brown fox, 1 + 1 = 2; naïve café: Ελλάδα 中文\n\tdef f(x):"
    for q in qs:
        check_same_tokens(p, q, probe)
    sizes = [model.context for model in (p, *qs) if model.context]
    context = min(*sizes, LONGEST) if context is None and sizes else context or LONGEST
    largest = max((int(one.ids.max()) for one in documents if len(one.ids)), default=0)
    if largest >= p.vocab:
        raise DataError(f"text: expected token ids below {p.vocab:,} ({p.name}); got {largest:,}")
    cut = windows(documents, context, stride)
    if limit is not None:
        scored = np.cumsum([window.stop - window.scored for window in cut])
        cut = cut[: int(np.searchsorted(scored, limit)) + 1]
    if not cut:
        raise DataError("text: expected a document of at least two tokens; got none")
    tables = []
    for table in token_tables(p, qs, cut, batch_tokens=batch_tokens):
        tables.append(table)
        if on_batch is not None:
            on_batch(table)
    return TokenTable.joined(tables)


LONGEST = 2048  # tokens of context by default, where the models could read more
