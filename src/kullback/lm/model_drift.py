"""How far Q has moved from P on a corpus: means with errors clustered by document, and a gate.

Which to use: `drift`, which measures and returns a `Drift`; of it `mean` for one figure, `figures`
for all of a candidate, `paired` for the difference of two candidates, `by` for a breakdown, `worst`
for the tokens that moved most, `gate` for a decision.

Every mean is over tokens; its error treats documents as the independent units (`clusters`), since
tokens of one document are correlated. The error of independent tokens is given beside it.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kullback import tokens
from kullback.core import (
    Estimate,
    MissingExtraError,
    __version__,
    json_value,
    processes,
    require,
)

from . import clusters, limits
from .clusters import Clustered, Clusters
from .documents import Batch, Document, Plan
from .models import LanguageModel, vocabulary_hash
from .stored import ListedModel, Parts, write_store
from .token_table import PLACE, TOPS, TokenTable, measure_batch, plan_windows

__all__ = ["Drift", "DriftFigures", "Worst", "drift", "settings_of", "store"]

QUANTITIES = {
    "kl": "nats/token",
    "kl_upper": "nats/token",
    "reverse_kl": "nats/token",
    "js": "nats/token",
    "p_entropy": "nats/token",
    "q_entropy": "nats/token",
    "log_ratio": "nats/token",
    "delta_prob": "probability",
    "same_top": "share",
    "top_overlap": "share",
    "top_stays": "share",
}
DIVERGENCES = ("kl", "kl_upper", "reverse_kl", "js")  # that rounding makes larger than 0
PERCENTILES = (100.0, 99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1, 0.0)
CONTEXT_SHOWN = 12  # tokens before one of the worst
CONFIDENCES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
Column = NDArray[Any]


@dataclass(frozen=True, slots=True)
class DriftFigures:
    """What a candidate's report says: the superset of llama.cpp's table.

    means: by quantity (`QUANTITIES`), each a `Clustered`. percentiles: of KL(p‖q) and of
    Δp = q(id) − p(id), by percent. perplexity: of P and of Q. ratio: perplexity of Q over P's.
    difference: perplexity of Q less P's. Their errors are paired. correlation: of −log p and
    −log q over tokens. rms_delta_prob: root mean square Δp.
    """

    name: str
    means: dict[str, Clustered]
    percentiles: dict[str, dict[float, float]]
    perplexity: tuple[Estimate, Estimate]
    ratio: Estimate
    difference: Estimate
    correlation: float
    rms_delta_prob: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        single = {
            "perplexity_p": self.perplexity[0],
            "perplexity_q": self.perplexity[1],
            "perplexity_ratio": self.ratio,
            "perplexity_difference": self.difference,
            "rms_delta_prob": self.rms_delta_prob,
        }
        return {
            "name": self.name,
            "means": {name: one.to_dict() for name, one in self.means.items()},
            "percentiles": {
                name: {f"{percent:g}": json_value(x) for percent, x in one.items()}
                for name, one in self.percentiles.items()
            },
            **{name: one.to_dict() for name, one in single.items()},
            "log_likelihood_correlation": json_value(self.correlation),
        }


@dataclass(frozen=True, slots=True)
class Worst:
    """A token that moved far: where it stands, and its KL(p‖q) in nats."""

    row: int
    document: int
    position: int
    id: int
    kl: float


@dataclass(frozen=True, eq=False)
class Drift:
    """What was measured: the documents, the models' names, a row a token, and rounding floors.

    floors: for every candidate the mean KL that rounding in the models' dtype makes by itself.
    bound: what is known of the divergences, in words, where P is a stored list; empty: exact.
    manifest: hashes of text, tokenizer and weights, settings and versions. tokenizer: P's, to show
    text.
    """

    documents: Sequence[Document]
    p_name: str
    q_names: tuple[str, ...]
    table: TokenTable
    floors: tuple[float, ...] = ()
    bound: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    tokenizer: Any = None

    def __repr__(self) -> str:
        """Return the names and counts, with the mean KL of every candidate."""
        means = "; ".join(
            f"{name}: KL {self.mean('kl', q).estimate.brief}" for q, name in enumerate(self.q_names)
        )
        return f"Drift(from {self.p_name}, {len(self.table):,} tokens; {means})"

    def column(self, quantity: str, q: int = 0) -> Column:
        """Return one value a token, `[n]`, float64: a column of the table or a derived one.

        Args:
            quantity: A column, or "log_ratio" (log q(id) − log p(id)), "delta_prob" (q(id) −
                p(id)), "top_stays" (whether P's top token is Q's too).
            q: The candidate's number.
        """
        theirs, place = self.table.candidates[q], self.table.place
        if quantity in theirs:
            return theirs[quantity].astype(np.float64)
        if quantity in place:
            return place[quantity].astype(np.float64)
        log_p, log_q = (one.astype(np.float64) for one in self._log_probs(q))
        made: dict[str, Callable[[], Column]] = {
            "log_ratio": lambda: np.where(log_p == log_q, 0.0, log_q - log_p),
            "delta_prob": lambda: np.exp(log_q) - np.exp(log_p),
            "top_stays": lambda: (theirs["rank"] == 1).astype(np.float64),
        }
        names = ", ".join([*theirs, *place, *made])
        require(quantity in made, "quantity", f"one of {names}", quantity)
        return made[quantity]()

    def _log_probs(self, q: int) -> tuple[Column, Column]:
        return self.table.place["p_log_prob"], self.table.candidates[q]["q_log_prob"]

    def mean(self, quantity: str = "kl", q: int = 0, keep: Column | None = None) -> Clustered:
        """Return the mean of a quantity over tokens, its error clustered by document.

        Args:
            quantity: As for `column`.
            q: The candidate's number.
            keep: Bool `[n]`, the tokens that count; None: all.
        """
        floor = self.floors[q] if self.floors and quantity in DIVERGENCES else 0.0
        unit = QUANTITIES.get(quantity, "nats/token")
        return self._mean_of(self.column(quantity, q), keep, floor, unit)

    def _mean_of(
        self, values: Column, keep: Column | None = None, floor: float = 0.0, unit: str = ""
    ) -> Clustered:
        labels, kind = self._clusters(keep)
        values = values if keep is None else values[keep]
        sums = np.bincount(labels, values, minlength=len(kind.sizes))
        squares = float(np.square(values).sum())
        found = clusters.ratio_mean(sums, kind, squares=squares, rounding=floor, unit=unit)
        alike = len(values) > 1 and bool((values == values[0]).all())
        if alike and (values[0] != 0 or unit == "share"):  # a KL of 0 everywhere: P is Q
            words = "every token has the same value, and its error cannot be taken from that"
            found = replace(found, estimate=found.estimate.without_error(words))
        return found

    def _clusters(self, keep: Column | None) -> tuple[Column, Clusters]:
        """Return the cluster of every token that counts, and what the clusters are."""
        documents = self.table.place["document"]
        documents = documents if keep is None else documents[keep]
        require(len(documents) > 0, "tokens", "at least one that counts", "none")
        originals = self._originals[documents]
        _, labels, sizes = np.unique(originals, return_inverse=True, return_counts=True)
        block = clusters.block_length(len(documents), len(sizes))
        if block == 0:
            return labels, Clusters(sizes.astype(np.float64))
        _, first, place = np.unique(documents, return_index=True, return_inverse=True)
        inside = np.arange(len(documents)) - first[place]
        _, labels, sizes = np.unique(
            np.stack([labels, inside // block]), axis=1, return_inverse=True, return_counts=True
        )
        return labels.reshape(-1), Clusters(sizes.astype(np.float64), "blocks", block)

    @functools.cached_property
    def _originals(self) -> Column:
        """For every document the number of the first with the same tokens: copies are no draws."""
        first: dict[bytes, int] = {}
        hashes = (hashlib.sha256(one.ids.numpy().tobytes()).digest() for one in self.documents)
        return np.array([first.setdefault(one, n) for n, one in enumerate(hashes)])

    def quantities(self, q: int = 0) -> list[str]:
        """Return the names of what was measured of a candidate."""
        upper = "kl_upper" in self.table.candidates[q]
        return [name for name in QUANTITIES if name != "kl_upper" or upper]

    def figures(self, q: int = 0) -> DriftFigures:
        """Return everything that the report says of a candidate."""
        loss_p, loss_q = (-one.astype(np.float64) for one in self._log_probs(q))
        p, q_, ratio = (_exp(x) for x in (loss_p.mean(), loss_q.mean(), (loss_q - loss_p).mean()))
        delta = self.column("delta_prob", q)
        rms = float(np.sqrt(np.square(delta).mean()))
        # to first order an error is that of the mean of the derivative times the token's value
        return DriftFigures(
            name=self.q_names[q],
            means={name: self.mean(name, q) for name in self.quantities(q)},
            percentiles={
                "kl": _percentiles(self.column("kl", q)),
                "delta_prob": _percentiles(delta),
            },
            perplexity=(self._linear(p, p * loss_p), self._linear(q_, q_ * loss_q)),
            ratio=self._linear(ratio, ratio * (loss_q - loss_p)),
            difference=self._linear(q_ - p, q_ * loss_q - p * loss_p),
            correlation=_correlation(loss_p, loss_q),
            rms_delta_prob=self._linear(rms, np.square(delta) / (2 * rms) if rms else delta),
        )

    def _linear(self, value: float, values: Column) -> Estimate:
        """Return a value with the clustered error of a mean of tokens' values."""
        if not (math.isfinite(value) and np.isfinite(values).all()):
            return Estimate(value, math.nan, len(values)).without_error("not finite")
        return replace(self._mean_of(values, unit="").estimate, value=value)

    def paired(self, first: int, second: int, quantity: str = "kl") -> Clustered:
        """Return the mean of `first` less that of `second`, its error that of the paired documents.

        Args:
            first: A candidate's number.
            second: Another's.
            quantity: As for `column`.

        Returns:
            Negative where the first is nearer to P (for divergences).
        """
        found = clusters.ratio_difference(self.mean(quantity, first), self.mean(quantity, second))
        if found.estimate.no_error:
            return found
        floor, unit = found.estimate.rounding, found.estimate.unit
        difference = self.column(quantity, first) - self.column(quantity, second)
        return self._mean_of(difference, floor=floor, unit=unit)

    def by(self, what: str, q: int = 0, quantity: str = "kl") -> dict[str, Clustered]:
        """Return the mean of a quantity in parts of the corpus.

        Args:
            what: "position" (powers of two), "confidence" (the largest p), "role" (of the message
                in a chat) or "document".
            q: The candidate's number.
            quantity: As for `column`.

        Returns:
            By label, in order; parts without tokens are left out.
        """
        return {
            label: self.mean(quantity, q, keep)
            for label, keep in self._parts(what).items()
            if keep.any()
        }

    def _parts(self, what: str) -> dict[str, Column]:
        place = self.table.place
        if what == "position":
            power = np.log2(np.maximum(place["position"], 1)).astype(int)
            return {f"{2**k:,} to {2 ** (k + 1) - 1:,}": power == k for k in range(power.max() + 1)}
        if what == "confidence":
            top = place["p_top_prob"]
            edges = itertools.pairwise(CONFIDENCES)
            return {
                f"{low:g} to {high:g}": (top >= low) & ((top < high) | (high == 1.0))
                for low, high in edges
            }
        if what == "role":
            roles = self.roles()
            return {role: roles == role for role in dict.fromkeys(roles.tolist())}
        names = {"document": "place"}
        require(what in names, "what", "position, confidence, role or document", what)
        numbers = place["document"]
        return {self.documents[int(n)].name: numbers == n for n in np.unique(numbers)}

    def roles(self) -> Column:
        """Return the role of every scored token, "text" where its document has none."""
        found = np.full(len(self.table), "text", dtype=object)
        for number in np.unique(self.table.place["document"]):
            roles = self.documents[int(number)].roles
            if roles:
                rows = self.table.place["document"] == number
                found[rows] = np.array(roles, dtype=object)[self.table.place["position"][rows]]
        return found

    def worst(self, count: int = 20, q: int = 0) -> list[Worst]:
        """Return the tokens with the largest KL(p‖q), the largest first."""
        kl = self.table.candidates[q]["kl"]
        place = self.table.place
        return [
            Worst(
                int(row),
                int(place["document"][row]),
                int(place["position"][row]),
                int(place["id"][row]),
                float(kl[row]),
            )
            for row in np.argsort(-kl, kind="stable")[:count]
        ]

    def gate(
        self,
        *,
        fail_above: float | None = None,
        require_below: float | None = None,
        confidence: float = limits.CONFIDENCE,
    ) -> clusters.Gate:
        """Decide about the mean KL(p‖q) of every candidate; see `clusters.gate`.

        Where KL is known by bounds, `fail_above` judges the lower one and `require_below` the upper
        one; without an upper one `require_below` fails.
        """
        lower, upper = self._means("kl"), self._means("kl_upper" if self.bound else "kl")
        decided = []
        if fail_above is not None:
            decided.append(clusters.gate(lower, fail_above=fail_above, confidence=confidence))
        if require_below is not None and upper:
            decided.append(clusters.gate(upper, require_below=require_below, confidence=confidence))
        elif require_below is not None:
            words = f"{self.bound}: no upper bound to be below {require_below:g}: failed"
            decided.append(clusters.Gate(failed=True, words=words))
        require(len(decided) > 0, "fail_above and require_below", "at least one limit", "none")
        words = "; ".join(dict.fromkeys(one.words for one in decided if one.words != "passed"))
        return clusters.Gate(any(one.failed for one in decided), words or "passed")

    def _means(self, quantity: str) -> dict[str, Any]:
        return {
            name: self.mean(quantity, q).estimate
            for q, name in enumerate(self.q_names)
            if quantity in self.table.candidates[q]
        }

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary: every candidate's figures, breakdowns, worst tokens."""
        numbers = range(len(self.q_names))
        pairs = itertools.combinations(numbers, 2)
        return {
            "p": self.p_name,
            "tokens": len(self.table),
            "documents": len(self.documents),
            "kl_is": self.bound or "exact",
            "candidates": [self._candidate(q) for q in numbers],
            "paired": [
                {"first": self.q_names[a], "second": self.q_names[b], **self.paired(a, b).to_dict()}
                for a, b in pairs
            ],
            "manifest": self.manifest,
        }

    def _candidate(self, q: int) -> dict[str, Any]:
        parts = {
            f"by_{what}": {label: one.to_dict() for label, one in self.by(what, q).items()}
            for what in ("position", "confidence", "role")
        }
        worst = [
            {
                "document": self.documents[one.document].name,
                "position": one.position,
                "kl": json_value(one.kl),
                "text": self.text(one.document, one.position, one.position + 1),
                "before": self.text(one.document, one.position - CONTEXT_SHOWN, one.position),
            }
            for one in self.worst(q=q)
        ]
        floor = {"rounding_floor": self.floors[q]} if self.floors else {}
        return self.figures(q).to_dict() | parts | floor | {"worst": worst}

    def to_arrow(self) -> Any:
        """Return a `pyarrow.Table`: a row a scored token and candidate, all columns and its text.

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        try:
            import pyarrow
        except ImportError:
            raise MissingExtraError(
                "a Parquet file needs pyarrow. Try: pip install 'kullback[tables]'"
            ) from None
        place = self.table.place
        names = [one.name for one in self.documents]
        ids, codes = np.unique(place["id"], return_inverse=True)
        roles, role_codes = np.unique(self.roles().astype(str), return_inverse=True)
        shared = {
            "document": _named(place["document"], names),
            "position": pyarrow.array(place["position"]),
            "id": pyarrow.array(place["id"]),
            "token": _named(codes, [self.token(int(one)) for one in ids]),
            "role": _named(role_codes, roles.tolist()),
            **{name: pyarrow.array(place[name]) for name in PLACE if name.startswith("p_")},
        }
        parts = []
        for q, theirs in enumerate(self.table.candidates):
            label = _named(np.full(len(self.table), q), list(self.q_names))
            columns = {n: pyarrow.array(c) for n, c in theirs.items() if n not in TOPS}
            parts.append(pyarrow.table({"candidate": label} | shared | columns))
        manifest = json.dumps(self.manifest).encode()
        return pyarrow.concat_tables(parts).replace_schema_metadata({"kullback": manifest})

    def token(self, number: int) -> str:
        """Return a token's text; its id where no tokenizer is known."""
        return str(number) if self.tokenizer is None else str(self.tokenizer.decode([number]))

    def text(self, document: int, start: int, stop: int) -> str:
        """Return the text of some tokens; their ids where no tokenizer is known."""
        ids = self.documents[document].ids[max(0, start) : stop].tolist()
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        found: str = self.tokenizer.decode(ids)
        return found


def drift(
    p: LanguageModel | ListedModel,
    qs: LanguageModel | Sequence[LanguageModel],
    text: Sequence[Document] | Plan,
    *,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    on_batch: Callable[[TokenTable], None] | None = None,
    out: str | Path | None = None,
    tops: bool = False,
) -> Drift:
    """Measure how far every Q has moved from P on a corpus (MATH 5.7).

    Args:
        p: The reference (the model before quantising, fine-tuning, distilling), or its stored
            results.
        qs: One or more candidates of the same tokenizer; they read the same windows.
        text: Token ids (`documents.read_documents`); documents are the independent units of errors.
            Or a `Plan`, whose windows are measured as they are.
        context: The most tokens a model sees; None: what all can read, at most 2,048.
        stride: Tokens by which windows move on; None: half the context.
        limit: Stop after so many scored tokens (whole windows).
        on_batch: Called with every batch's `TokenTable`.
        out: A folder that keeps what was measured. A second call with the same settings goes on
            where the first was interrupted.
        tops: Keep the five most probable tokens of every model, for the page.

    Returns:
        A `Drift`. Under `torch.distributed` every process measures its own batches, and each
        returns the figures of all.

    Raises:
        DataError: Tokenizers that differ, ids beyond the vocabulary, nothing to score, a folder
            with other settings.
        ValueError: Vocabularies of different size, a context or stride out of range.

    Example:
        >>> table = torch.linspace(-2, 2, 25).reshape(5, 5)
        >>> p = LanguageModel("p", lambda ids: torch.eye(5)[ids], table)
        >>> q = LanguageModel("q", p.hidden, table + 0.1 * torch.eye(5))
        >>> text = [Document(str(n), torch.arange(40) * (n + 1) % 5) for n in range(12)]
        >>> found = drift(p, q, text)
        >>> len(found.table), bool(found.mean("kl").estimate.value > 0)
        (468, True)
    """
    candidates = [qs] if isinstance(qs, LanguageModel) else list(qs)
    require(len(candidates) > 0, "qs", "at least one candidate", "none")
    if not isinstance(text, Plan):
        given = [p, *candidates]
        text = plan_windows(given, text, context=context, stride=stride, limit=limit)
    settings = settings_of(p, candidates, text) | {"kind": "drift", "tops": tops}
    rank, size = _share()
    parts = None if out is None else _parts(Path(out), settings)
    tables: dict[int, TokenTable] = {}
    for number in range(rank, len(text.batches), size):
        kept = None if parts is None else parts.find(number)
        if kept is None:
            tables[number] = measure_batch(p, candidates, text.batches[number], tops=tops)
            if parts is not None:
                parts.save(number, tables[number].arrays())
        else:
            tables[number] = TokenTable.from_arrays(kept)
        if on_batch is not None:
            on_batch(tables[number])
    tables = _gathered(tables, size)
    floors = _floors(p, candidates, text)
    bound = p.bound if isinstance(p, ListedModel) else ""
    manifest = _manifest(p, candidates, settings) | {"floors": list(floors), "bound": bound}
    if parts is not None and rank == 0:
        parts.finish(manifest)
    names = tuple(q.name for q in candidates)
    table = TokenTable.joined([tables[number] for number in sorted(tables)])
    tokenizer = next((m.tokenizer for m in (p, *candidates) if m.tokenizer is not None), None)
    return Drift(text.documents, p.name, names, table, floors, bound, manifest, tokenizer)


def store(
    p: LanguageModel,
    documents: Sequence[Document],
    folder: str | Path,
    *,
    top_k: int | None = None,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Plan:
    """Keep P's distributions over a corpus in a folder, for candidates to come.

    Args:
        p: The reference model.
        documents: Its text.
        folder: New, or of an interrupted call, which then goes on.
        top_k: None keeps hidden states and head, from which everything is exact; a number keeps so
            many most probable tokens and the tail's mass, from which KL has bounds.
        context: As for `drift`; the candidates read the same windows.
        stride: Likewise.
        limit: Likewise.
        on_batch: Called with the number of tokens of every batch.

    Returns:
        The plan of the windows.

    Raises:
        DataError: A folder of other settings.
    """
    plan = plan_windows([p], documents, context=context, stride=stride, limit=limit)
    require(top_k is None or 1 <= top_k <= p.vocab, "top_k", f"1 to {p.vocab:,}", top_k)
    settings = settings_of(p, [], plan) | {"kind": "store", "top_k": top_k}
    parts = _parts(Path(folder), settings)
    write_store(parts, p, plan, top_k=top_k, share=_share(), on_batch=on_batch)
    _wait()
    return plan


def settings_of(
    p: LanguageModel | ListedModel, qs: Sequence[LanguageModel], plan: Plan
) -> dict[str, Any]:
    """Return what two runs must have in common for one to go on with the other's parts."""
    digest = hashlib.sha256()
    for document in plan.documents:
        digest.update(len(document.ids).to_bytes(8, "little"))
        digest.update(document.ids.numpy().astype("<i8").tobytes())
    models = {"p": p, **{f"q{number}": q for number, q in enumerate(qs)}}
    return {
        "context": plan.context,
        "stride": plan.stride,
        "scored": plan.scored,
        "batches": len(plan.batches),
        "documents": len(plan.documents),
        "token_ids_sha256": digest.hexdigest(),
        "vocab": p.vocab,
        **{
            f"{label}_{name}": one.facts.get(name, "")
            for label, one in models.items()
            for name in HELD
        },
    }


HELD = ("weights_sha256", "dtype")  # of a model's facts


def _manifest(
    p: LanguageModel | ListedModel, qs: Sequence[LanguageModel], settings: dict[str, Any]
) -> dict[str, Any]:
    tokenizer = p.tokenizer or next((q.tokenizer for q in qs if q.tokenizer is not None), None)
    packages = ("torch", "transformers", "peft", "tokenizers", "numpy")
    found = {name: importlib.util.find_spec(name) for name in packages}
    return {
        "settings": settings,
        "p": {"name": p.name, **p.facts},
        "q": [{"name": q.name, **q.facts} for q in qs],
        "tokenizer_sha256": "" if tokenizer is None else vocabulary_hash(tokenizer),
        "versions": {"kullback": __version__}
        | {name: importlib.metadata.version(name) for name in packages if found[name]},
    }


def _share() -> tuple[int, int]:
    """Return this process's number and how many there are."""
    group = processes.current()
    return group.rank, group.size


def _wait() -> None:
    """Wait for the other processes, where there are any."""
    if _share()[1] > 1:
        torch.distributed.barrier()


def _parts(folder: Path, settings: dict[str, Any]) -> Parts:
    """Open the folder of all processes, which the first makes."""
    if _share()[0] > 0:
        _wait()
        return Parts(folder, settings)
    try:
        return Parts(folder, settings)
    finally:
        _wait()


def _gathered(tables: dict[int, TokenTable], size: int) -> dict[int, TokenTable]:
    """Return the tables of all processes."""
    if size == 1:
        return tables
    from torch import distributed

    found: list[Any] = [None] * size
    distributed.all_gather_object(found, {n: table.arrays() for n, table in tables.items()})
    return {n: TokenTable.from_arrays(one) for part in found for n, one in part.items()}


def _floors(
    p: LanguageModel | ListedModel, qs: Sequence[LanguageModel], plan: Plan
) -> tuple[float, ...]:
    """Return for every Q the KL that one rounding of either side's hidden states makes.

    On the first scored tokens. States that a model computes in half precision are off by more than
    one rounding.
    """
    with torch.inference_mode():
        batch = Batch.of(plan.batches[0][:1])
        mine = p.floor if isinstance(p, ListedModel) else _rounding_of(p, batch)
        return tuple(mine + _rounding_of(q, batch) for q in qs)


def _rounding_of(model: LanguageModel, batch: Batch) -> float:
    hidden = model.scored_hidden(batch)[: limits.FLOOR_TOKENS]
    generator = torch.Generator(hidden.device).manual_seed(0)
    noise = torch.rand(hidden.shape, generator=generator, device=hidden.device).double() - 0.5
    moved = hidden.double() * (1 + torch.finfo(hidden.dtype).eps * noise)
    return float(
        tokens.kl(_exact_logits(model, hidden.double()), _exact_logits(model, moved)).mean()
    )


def _exact_logits(model: LanguageModel, hidden: torch.Tensor) -> torch.Tensor:
    """Return logits in float64, some rows of the head at a time."""
    size = limits.FLOOR_ROWS
    parts = []
    for start in range(0, model.vocab, size):
        rows = slice(start, start + size)
        bias = None if model.bias is None else model.bias[rows]
        block = replace(model, head=model.head[rows].double(), bias=bias)
        parts.append(block.logits(hidden))
    return torch.cat(parts, -1)


def _percentiles(values: Column) -> dict[float, float]:
    return dict(
        zip(PERCENTILES, np.percentile(values, PERCENTILES).astype(float).tolist(), strict=True)
    )


def _named(codes: Column, names: list[str]) -> Any:
    """Return a column of names, each stored once."""
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(codes.astype(np.int32)), names)


def _correlation(x: Column, y: Column) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0 or not np.isfinite(x + y).all():
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def _exp(number: float) -> float:
    return math.exp(number) if number < math.log(1e300) else math.inf
