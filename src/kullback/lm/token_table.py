"""Exact divergences of two or more language models, token by token.

Which to use: `plan_windows` and `measure_batch` for P and one or more candidates Q on documents;
`measure_positions` for hidden states that are at hand; `measure_lists` where of P some
probabilities are known.

At every scored token the whole vocabulary is summed (MATH 5.7): KL both ways, Jensen-Shannon,
entropies, the log-probability of the token that came, agreement of the top tokens, and the rank
under Q of P's first. Logits are made for a block of positions at a time, as many as fit into
`limits.LOGITS_BYTES`, so memory grows with neither vocabulary nor context; a scored token keeps its
row of `COLUMNS`, about 50 bytes a candidate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kullback import tokens
from kullback.core import DataError, require

from . import limits
from .documents import Batch, Document, Plan, Window, batches, windows
from .models import LanguageModel
from .stored import Listed, ListedModel, check_pair

__all__ = [
    "COLUMNS",
    "PLACE",
    "TOP",
    "TokenTable",
    "measure_batch",
    "measure_lists",
    "measure_positions",
    "plan_windows",
]

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
TOPS = ("top_ids", "top_probs")  # [n, 5]: kept where they are asked for
Column = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """A row a scored token: where it stands, and what P and every candidate say of it.

    place: the columns of `PLACE`, `[n]`: the document's number, the token's position in it, its
    id; H(p), log p(id) and the largest p, in nats. candidates: for every Q the columns of
    `COLUMNS`, `[n]`: KL(p‖q), KL(q‖p) and Jensen-Shannon in nats, H(q), log q(id), whether both
    have the same top token, the share of P's top 5 in Q's, and the rank (1: first) of P's top token
    under Q. Where P is a stored list the divergences are lower bounds, with `kl_upper` beside them
    where there is one. With `tops` both have `top_ids` and `top_probs`, `[n, 5]`.
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
        return cls(
            _joined([one.place for one in tables]),
            tuple(map(_joined, zip(*(one.candidates for one in tables), strict=True))),
        )

    def arrays(self) -> dict[str, Column]:
        """Return all columns by one name each, for a file: a candidate's as "0/kl"."""
        flat = {f"{q}/{n}": c for q, one in enumerate(self.candidates) for n, c in one.items()}
        return self.place | flat

    @classmethod
    def from_arrays(cls, arrays: dict[str, Column]) -> "TokenTable":
        """Return the table whose `arrays` these are."""
        place = {name: column for name, column in arrays.items() if "/" not in name}
        found: dict[int, dict[str, Column]] = {}
        for name, column in arrays.items():
            number, mark, rest = name.partition("/")
            if mark:
                found.setdefault(int(number), {})[rest] = column
        return cls(place, tuple(found[q] for q in sorted(found)))


def _joined(parts: Sequence[dict[str, Column]]) -> dict[str, Column]:
    return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}


def measure_positions(
    p: LanguageModel,
    qs: Sequence[LanguageModel],
    p_hidden: Tensor,
    q_hidden: Sequence[Tensor],
    ids: Tensor,
    *,
    memory: int = limits.LOGITS_BYTES,
    tops: bool = False,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Measure positions whose hidden states are at hand.

    Args:
        p: Its head is used.
        qs: Theirs likewise.
        p_hidden: `[n, width]`.
        q_hidden: For every Q `[n, width]` of its own.
        ids: The tokens that came, `[n]`.
        memory: Bytes of logits held at a time.
        tops: Keep the ids and probabilities of the five most probable tokens of every model.

    Returns:
        P's columns (`p_entropy`, `p_log_prob`, `p_top_prob`), and for every Q those of `COLUMNS`.

    Raises:
        ValueError: For vocabularies of different size.

    Example:
        >>> toy = LanguageModel("p", lambda ids: torch.eye(3)[ids], torch.eye(3))
        >>> moved = LanguageModel("q", toy.hidden, 2 * torch.eye(3))
        >>> hidden, came = torch.eye(3), torch.tensor([0, 1, 1])
        >>> _, (found,) = measure_positions(toy, [moved], hidden, [hidden], came)
        >>> torch.isclose(found["kl"][0], tokens.kl(torch.eye(3)[0], 2 * torch.eye(3)[0]))
        tensor(True)
    """
    check_pair(p, qs)
    rooms = _Rooms({})

    def block(rows: slice) -> list[dict[str, Tensor]]:
        logits = rooms.logits(p, p_hidden[rows], 0)
        top = logits.topk(min(TOP, p.vocab), -1)
        first: dict[str, Tensor] = {}
        found = []
        for number, q in enumerate(qs, 1):
            other = rooms.logits(q, q_hidden[number - 1][rows], number)
            both: Any = tokens.compare(logits, other, ids=ids[rows], nan="pass")
            first = {"p_entropy": both.p_entropy, "p_log_prob": both.p_log_prob}
            columns = {"kl": both.kl, "reverse_kl": both.reverse_kl}
            columns["js"] = tokens.js(logits, other, nan="pass")
            columns |= {"q_entropy": both.q_entropy, "q_log_prob": both.q_log_prob}
            found.append(
                columns | _agreement(other, top.indices, both.q_log_prob, ids[rows], tops=tops)
            )
        if not qs:
            first["p_entropy"] = tokens.entropy(logits, nan="pass")
            first["p_log_prob"] = tokens.log_prob(logits, ids[rows], nan="pass")
        at = logits.gather(-1, ids[rows][:, None]).double()
        top_probs = (top.values.double() - at + first["p_log_prob"].double()[:, None]).exp()
        first["p_top_prob"] = top_probs[:, 0].float()
        if tops:
            first |= {"top_ids": top.indices.int(), "top_probs": top_probs.float()}
        return [first, *found]

    first, *rest = _blocks(block, len(ids), p.vocab, memory)
    return first, rest


def _blocks(
    block: Callable[[slice], list[dict[str, Tensor]]], count: int, vocab: int, memory: int
) -> list[dict[str, Tensor]]:
    """Call `block` on as many rows at a time as memory allows, and join what it returns."""
    size = max(1, memory // (vocab * 4 * _HELD))
    whole: list[dict[str, Tensor]] = []
    for start in range(0, count, size):
        part = block(slice(start, start + size))
        # columns made once: small ones kept from every block leave no room that is freed as a whole
        whole = whole or [
            {name: x.new_empty(count, *x.shape[1:]) for name, x in side.items()} for side in part
        ]
        for side, found in zip(whole, part, strict=True):
            for name, x in found.items():
                side[name][start : start + size] = x
    return whole


_HELD = 4  # numbers of float32 a position, token: logits of P and one Q, and room to work in


class _Rooms(dict[int, Tensor]):
    """Memory for logits by the model's number, which the next block uses again."""

    def logits(self, model: LanguageModel, hidden: Tensor, number: int) -> Tensor:
        shape = (len(hidden), model.vocab)
        if number not in self or self[number].shape != shape:
            wide = torch.promote_types(torch.float32, hidden.dtype)
            self[number] = torch.empty(shape, dtype=wide, device=hidden.device)
        return model.logits(hidden, out=self[number])


def _agreement(
    other: Tensor, top: Tensor, log_prob: Tensor, ids: Tensor, *, tops: bool
) -> dict[str, Tensor]:
    """Compare Q's most probable tokens with P's, `top` `[n, 5]`."""
    theirs = other.topk(top.shape[1], -1)
    shared = (top[:, :, None] == theirs.indices[:, None, :]).any(-1).float().mean(-1)
    found = {
        "same_top": theirs.indices[:, 0] == top[:, 0],
        "top_overlap": shared,
        "rank": _rank(other, theirs.values, top[:, :1]).int(),
    }
    if tops:
        at = other.gather(-1, ids[:, None]).double()
        probs = (theirs.values.double() - at + log_prob.double()[:, None]).exp()
        found |= {"top_ids": theirs.indices.int(), "top_probs": probs.float()}
    return found


def _rank(other: Tensor, largest: Tensor, first: Tensor) -> Tensor:
    """Return the rank of tokens `first` `[n, 1]`, 1 the largest.

    All tokens are counted only where it is not among the `largest`.
    """
    at = other.gather(-1, first)
    found = (largest > at).sum(-1) + 1
    for row in (found > largest.shape[1]).nonzero()[:, 0].tolist():  # no copy of the rows
        found[row] = (other[row] > at[row]).sum() + 1
    return found


def measure_lists(
    lists: Listed,
    qs: Sequence[LanguageModel],
    q_hidden: Sequence[Tensor],
    ids: Tensor,
    *,
    memory: int = limits.LOGITS_BYTES,
    tops: bool = False,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Measure positions of which P's distribution is known for some tokens, and the others' mass.

    The tokens that are not listed are one bucket on both sides: KL both ways and Jensen-Shannon are
    those of the coarser distributions, lower bounds (data processing; Cover and Thomas 2006,
    section 2.8). Where P's list is its most probable tokens, `kl_upper` puts the bucket's mass
    where q is least.

    Args:
        lists: P's lists of the positions.
        qs: The candidates.
        q_hidden: For every Q `[n, width]`.
        ids: The tokens that came, `[n]`.
        memory: Bytes of logits held at a time.
        tops: As for `measure_positions`.

    Returns:
        As `measure_positions`; `kl_upper` where it exists.
    """
    vocab = qs[0].vocab
    rooms = _Rooms({})

    def block(rows: slice) -> list[dict[str, Tensor]]:
        p = lists.rows(rows)
        known = p.dense(vocab)
        mine = torch.cat([known, p.log_tail[:, None]], -1)
        top = known.topk(min(TOP, vocab), -1)
        found = [_first(p, top, tops=tops)]
        for number, q in enumerate(qs):
            other = rooms.logits(q, q_hidden[number][rows], number)
            log_q = other.double().log_softmax(-1)
            unlisted = known == -torch.inf
            rest = log_q.masked_fill(~unlisted, -torch.inf).logsumexp(-1, keepdim=True)
            theirs = torch.cat([log_q.masked_fill(unlisted, -torch.inf), rest], -1)
            both = tokens.compare(mine, theirs, nan="pass")
            log_prob = log_q.gather(-1, ids[rows][:, None])[:, 0].float()
            columns = {"kl": both.kl, "reverse_kl": both.reverse_kl}
            columns["js"] = tokens.js(mine, theirs, nan="pass")
            columns["q_entropy"] = tokens.entropy(other, nan="pass")
            columns["q_log_prob"] = log_prob
            columns = {name: column.float() for name, column in columns.items()}
            if p.ids is not None:
                columns["kl_upper"] = tokens.kl_bounds(p.top_k(vocab), log_q).upper.float()
            found.append(columns | _agreement(other, top.indices, log_prob, ids[rows], tops=tops))
        return found

    first, *rest = _blocks(block, len(ids), 2 * vocab, memory)  # float64 is twice as large
    return first, rest


def _first(p: Listed, top: Any, *, tops: bool) -> dict[str, Tensor]:
    first = {"p_entropy": p.entropy.float(), "p_log_prob": p.log_prob.float()}
    first["p_top_prob"] = top.values[:, 0].exp().float()
    if tops:
        first |= {"top_ids": top.indices.int(), "top_probs": top.values.exp().float()}
    return first


def plan_windows(
    models: Sequence[LanguageModel | ListedModel],
    documents: Sequence[Document],
    *,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    batch_tokens: int = limits.BATCH_TOKENS,
) -> Plan:
    """Cut documents into windows that all models can read, and group those into batches.

    Args:
        models: P and the candidates.
        documents: Token ids (`documents.read_documents`).
        context: The most tokens a model sees; None: what all can read, at most 2,048.
        stride: See `documents.windows`.
        limit: Stop after so many scored tokens (whole windows).
        batch_tokens: Given to a model at a time, padding included.

    Returns:
        The plan.

    Raises:
        DataError: Tokenizers that differ; ids beyond the vocabulary; no token to score.
        ValueError: Vocabularies of different size; a context beyond what a model reads.
    """
    p, *qs = models
    check_pair(p, qs)
    readable = min((model.context for model in models if model.context), default=None)
    if context is not None and readable is not None:
        require(context <= readable, "context", f"at most {readable:,} (the models')", context)
    context = context or min(readable or limits.CONTEXT, limits.CONTEXT)
    largest = max((int(one.ids.max()) for one in documents if len(one.ids)), default=0)
    if largest >= p.vocab:
        raise DataError(f"text: expected token ids below {p.vocab:,} ({p.name}); got {largest:,}")
    require(limit is None or limit >= 1, "limit", "at least 1 token", limit)
    stride = max(1, context // 2) if stride is None else stride
    cut = windows(documents, context, stride)
    if limit is not None:
        cut = cut[: next((i + 1 for i, w in enumerate(cut) if w.row + w.count >= limit), len(cut))]
    if not cut:
        raise DataError("text: expected a document of at least two tokens; got none")
    scored = cut[-1].row + cut[-1].count
    return Plan(documents, batches(cut, batch_tokens), context, stride, scored)


def measure_batch(
    p: LanguageModel | ListedModel,
    qs: Sequence[LanguageModel],
    held: Sequence[Window],
    *,
    memory: int = limits.LOGITS_BYTES,
    tops: bool = False,
) -> TokenTable:
    """Measure the scored tokens of windows that are read at once.

    Args:
        p: The reference model, or its stored results.
        qs: The candidates; each reads the same batch.
        held: The windows.
        memory: Bytes of logits held at a time.
        tops: As for `measure_positions`.

    Returns:
        Their table. Nothing else is held afterwards.
    """
    with torch.inference_mode():
        batch = Batch.of(held)
        device = p.device if isinstance(p, ListedModel) else p.head.device
        ids = batch.next_ids.to(qs[0].head.device if qs else device)
        hidden = [q.scored_hidden(batch) for q in qs]
        options: dict[str, Any] = {"memory": memory, "tops": tops}
        if isinstance(p, ListedModel):
            lists = p.lists(batch.rows, ids)
            first, found = measure_lists(lists, qs, hidden, ids, **options)
        else:
            mine = p.scored_hidden(batch).to(ids.device)
            first, found = measure_positions(p, qs, mine, hidden, ids, **options)
        place = {**batch.places(), **first}
    return TokenTable(_arrays(place), tuple(_arrays(one) for one in found))


def _arrays(columns: dict[str, Tensor]) -> dict[str, Column]:
    return {name: column.cpu().numpy() for name, column in columns.items()}
