"""How far Q has moved from P on a corpus: means with errors clustered by document, and a gate.

Which to use: `drift`, which measures and returns a `Drift`; of it `mean` for one figure, `figures`
for all of a candidate, `paired` for the difference of two candidates, `by` for a breakdown, `worst`
for the tokens that moved most, `gate` for a decision.

Every mean is over tokens; its error treats documents as the independent units (`clusters`), since
tokens of one document are correlated. The error of independent tokens is given beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kullback.core import require

from . import clusters, limits
from .clusters import Clustered, Clusters
from .documents import Document
from .models import LanguageModel
from .token_table import TokenTable, measure_tokens

__all__ = ["Drift", "Figures", "Worst", "drift"]

QUANTITIES = {
    "kl": "nats/token",
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
PERCENTILES = (100.0, 99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1, 0.0)
CONFIDENCES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
Column = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a candidate's report says: the superset of llama.cpp's table.

    means: by quantity (`QUANTITIES`), each a `Clustered`. percentiles: of KL(p‖q) and of
    Δp = q(id) − p(id), by percent. perplexity: of P and of Q. ratio: perplexity of Q over P's, its
    logarithm with a paired error is the mean of −`log_ratio`. rms_delta_prob: root mean square Δp.
    """

    name: str
    means: dict[str, Clustered]
    percentiles: dict[str, dict[float, float]]
    perplexity: tuple[float, float]
    ratio: float
    rms_delta_prob: float


@dataclass(frozen=True, slots=True)
class Worst:
    """A token that moved far: where it stands, and its KL(p‖q) in nats."""

    row: int
    document: int
    position: int
    id: int
    kl: float


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """What was measured: the documents, the models' names, a row a token, and rounding floors.

    floors: for every candidate the mean KL that rounding in the models' dtype makes by itself.
    """

    documents: Sequence[Document]
    p_name: str
    q_names: tuple[str, ...]
    table: TokenTable
    floors: tuple[float, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the names and counts, with the mean KL of every candidate."""
        means = "; ".join(
            f"{name}: KL {self.mean('kl', q).estimate.brief}"
            for q, name in enumerate(self.q_names)
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
        values = self.column(quantity, q)
        labels, kind = self._clusters(keep)
        values = values if keep is None else values[keep]
        sums = np.bincount(labels, values, minlength=len(kind.sizes))
        floor = self.floors[q] if self.floors and quantity in ("kl", "reverse_kl", "js") else 0.0
        return clusters.ratio_mean(
            sums,
            kind,
            squares=float(np.square(values).sum()),
            rounding=floor,
            unit=QUANTITIES.get(quantity, "nats/token"),
        )

    def _clusters(self, keep: Column | None) -> tuple[Column, Clusters]:
        """Return the cluster of every token that counts, and what the clusters are."""
        documents = self.table.place["document"]
        documents = documents if keep is None else documents[keep]
        require(len(documents) > 0, "tokens", "at least one that counts", "none")
        _, labels, sizes = np.unique(documents, return_inverse=True, return_counts=True)
        block = clusters.block_length(len(documents), len(sizes))
        if block == 0:
            return labels, Clusters(sizes.astype(np.float64))
        inside = np.arange(len(labels)) - np.concatenate([[0], np.cumsum(sizes)[:-1]])[labels]
        _, labels, sizes = np.unique(
            np.stack([labels, inside // block]), axis=1, return_inverse=True, return_counts=True
        )
        return labels.reshape(-1), Clusters(sizes.astype(np.float64), "blocks", block)

    def figures(self, q: int = 0) -> Figures:
        """Return everything that the report says of a candidate."""
        log_p, log_q = (-float(np.mean(one, dtype=np.float64)) for one in self._log_probs(q))
        delta = self.column("delta_prob", q)
        return Figures(
            self.q_names[q],
            {name: self.mean(name, q) for name in QUANTITIES},
            {"kl": _percentiles(self.column("kl", q)), "delta_prob": _percentiles(delta)},
            (_exp(log_p), _exp(log_q)),
            _exp(log_q - log_p),
            float(np.sqrt(np.square(delta).mean())),
        )

    def paired(self, first: int, second: int, quantity: str = "kl") -> Clustered:
        """Return the mean of `first` less that of `second`, its error that of the paired documents.

        Args:
            first: A candidate's number.
            second: Another's.
            quantity: As for `column`.

        Returns:
            Negative where the first is nearer to P (for divergences).
        """
        return clusters.ratio_difference(self.mean(quantity, first), self.mean(quantity, second))

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
            edges = zip(CONFIDENCES[:-1], CONFIDENCES[1:], strict=True)
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
        """Decide about the mean KL(p‖q) of every candidate; see `clusters.gate`."""
        means = {name: self.mean("kl", q).estimate for q, name in enumerate(self.q_names)}
        return clusters.gate(
            means, fail_above=fail_above, require_below=require_below, confidence=confidence
        )


def drift(
    p: LanguageModel,
    qs: LanguageModel | Sequence[LanguageModel],
    documents: Sequence[Document],
    *,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    on_batch: Callable[[TokenTable], None] | None = None,
) -> Drift:
    """Measure how far every Q has moved from P on a corpus (MATH 5.7).

    Args:
        p: The reference (the model before quantising, fine-tuning, distilling).
        qs: One or more candidates of the same tokenizer; they read the same windows.
        documents: Token ids (`documents.read_documents`); they are the independent units of errors.
        context: The most tokens a model sees; None: what all can read, at most 2,048.
        stride: Tokens by which windows move on; None: half the context.
        limit: Stop after so many scored tokens (whole windows).
        on_batch: Called with every batch's `TokenTable`.

    Returns:
        A `Drift`.

    Raises:
        DataError: Tokenizers that differ, ids beyond the vocabulary, nothing to score.
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
    table = measure_tokens(
        p, candidates, documents, context=context, stride=stride, limit=limit, on_batch=on_batch
    )
    names = tuple(q.name for q in candidates)
    floors = tuple(_floor(p, q) for q in candidates)
    return Drift(documents, p.name, names, table, floors)


def _floor(p: LanguageModel, q: LanguageModel) -> float:
    """Return the KL that one rounding of either side's hidden states makes, on a few tokens.

    Hidden states that a model computes in half precision are off by more than one rounding.
    """
    ids = torch.arange(limits.FLOOR_TOKENS).remainder(p.vocab)[None].to(p.head.device)
    return sum(_rounding_of(model, ids) for model in (p, q))


def _rounding_of(model: LanguageModel, ids: torch.Tensor) -> float:
    from kullback import tokens

    hidden = model.hidden(ids)[0]
    generator = torch.Generator(hidden.device).manual_seed(0)
    noise = torch.rand(hidden.shape, generator=generator, device=hidden.device).double() - 0.5
    moved = hidden.double() * (1 + torch.finfo(hidden.dtype).eps * noise)
    head = LanguageModel(
        model.name,
        model.hidden,
        model.head.double(),
        bias=model.bias,
        softcap=model.softcap,
        scale=model.scale,
    )
    return float(tokens.kl(head.logits(hidden.double()), head.logits(moved)).mean())


def _percentiles(values: Column) -> dict[float, float]:
    return dict(
        zip(PERCENTILES, np.percentile(values, PERCENTILES).astype(float).tolist(), strict=True)
    )


def _exp(number: float) -> float:
    return math.exp(number) if number < math.log(1e300) else math.inf
