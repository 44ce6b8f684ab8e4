"""Code words to look at: a Huffman code of a table, in its canonical form, with no extra needed.

Which to use: `huffman_words` to show a code to a reader; `kullback.exact.codes` to write bytes.

Explanations of entropies and divergences of tables, written for someone who is learning them.

Which to use: `explain_table`. It writes out the formula, the numbers symbol by symbol, the code
words, and both directions (MATH 3 and 4).
"""

import heapq
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kullback.exact import tables

from .text_layout import UNITS, aligned, number, signed

__all__ = ["DIRECTIONS", "explain_table", "huffman_words"]


def huffman_words(masses: Sequence[float]) -> list[str | None]:
    """Return a prefix code of the smallest expected length, None for an outcome without mass.

    masses: ≥ 0, one or more above 0. Words of one length are counted upwards in the outcomes'
    order, shorter words first (the canonical form). A single outcome with mass needs no bits: "".
    Reference: Huffman (1952), "A method for the construction of minimum-redundancy codes".

    >>> huffman_words([0.25, 0.5, 0.25])
    ['10', '0', '11']
    """
    live = [place for place, mass in enumerate(masses) if mass > 0]
    parents = _tree([masses[place] for place in live])
    depths = [0] * len(parents)
    for node in range(len(parents) - 2, -1, -1):  # a parent is always later than its children
        depths[node] = depths[parents[node]] + 1
    words: list[str | None] = [None] * len(masses)
    code, before = -1, 0
    for depth, place in sorted(zip(depths, live, strict=False)):
        code = (code + 1) << (depth - before)
        before = depth
        words[place] = f"{code:0{depth}b}" if depth else ""
    return words


def _tree(masses: Sequence[float]) -> list[int]:
    """Join the two lightest until one is left; return every node's parent, leaves first."""
    heap = [(mass, node) for node, mass in enumerate(masses)]
    heapq.heapify(heap)
    parents = [0] * len(masses)
    while len(heap) > 1:
        (first, a), (second, b) = heapq.heappop(heap), heapq.heappop(heap)
        parents[a] = parents[b] = len(parents)
        heapq.heappush(heap, (first + second, len(parents)))
        parents.append(0)
    return parents


ROWS, LONGEST = 16, 14
DIRECTIONS = (
    (
        "fitting Q to P by it",
        "covers all of P: maximum likelihood",
        "seeks one peak of P: the ELBO",
    ),
)


def explain_table(
    quantity: str, p: Tensor, q: Tensor | None = None, *, labels: Sequence[str] = (), unit: str
) -> str:
    """Explain "entropy", "cross-entropy", "kl" or "js" of tables `[outcomes]`, in `unit`.

    labels: names of the outcomes, 1, 2, 3, … without. Code words are in bits whatever the unit.

    >>> text = explain_table("entropy", torch.tensor([0.1, 0.9]), unit="bits")
    >>> "H(P) = Σ p·log₂ 1/p = 0.4690 bits" in text
    True
    """
    p = p.detach().double()
    names = list(labels) or [str(place) for place in range(1, len(p) + 1)]
    if q is None:
        parts = _entropy(p, names, unit)
    elif quantity == "js":
        parts = _js(p, q.detach().double(), names, unit)
    else:
        parts = _pair(p, q.detach().double(), names, unit)
    return "\n".join(parts)


def log_sign(unit: str) -> str:
    """Return how the logarithm of a unit is written.

    >>> log_sign("bits"), log_sign("nats")
    ('log₂', 'ln')
    """
    return {"bits": "log₂", "nats": "ln"}[unit]


def _entropy(p: Tensor, names: list[str], unit: str) -> list[str]:
    log, h = log_sign(unit), float(tables.entropy(p)) / UNITS[unit]
    surprise = tables.surprisal(p) / UNITS[unit]
    words = huffman_words(p.tolist())
    shares = torch.where(p > 0, p * surprise, 0.0)
    shown = _largest(shares)
    rows = [["symbol", "p", "surprise", "p × surprise", "code word"]]
    for i in shown:
        cells = [number(float(x[i])) for x in (p, surprise, shares)]
        rows.append([_cut(names[i]), *cells, _word(words[i])])
    most = math.log(len(p)) / UNITS[unit]
    return [
        "What it is",
        f"  surprise of x: {log} 1/p(x)     the less likely, the more surprising; surprises add",
        f"  entropy: the average surprise   H(P) = Σ p·{log} 1/p = {number(h)} {unit}",
        "",
        *_indented(aligned(rows, left=(0, 4))),
        *_left_out(len(p) - len(shown), "p × surprise"),
        "",
        "What it means",
        f"  A sure thing would be 0; {len(p)} equally likely outcomes would be {number(most)} "
        f"{unit}.",
        f"  It feels like a choice between {number(math.exp(h * UNITS[unit]))} equally likely "
        "outcomes.",
        f"  {_code_cost(p, words)}",
    ]


def _code_cost(p: Tensor, words: Sequence[str | None]) -> str:
    cost, h = _cost(p, words), float(tables.entropy(p)) / UNITS["bits"]
    start = f"These code words (Huffman's) cost {number(cost)} bits a symbol"
    if abs(cost - h) < 1e-9:
        return f"{start}: exactly the entropy, and no code costs less."
    return (
        f"{start};\n  no code costs less than the entropy, {number(h)} bits, which coding many "
        "symbols together comes close to."
    )


def _pair(p: Tensor, q: Tensor, names: list[str], unit: str) -> list[str]:
    log, one = log_sign(unit), UNITS[unit]
    h, cross, kl = (
        float(value) / one
        for value in (tables.entropy(p), tables.cross_entropy(p, q), tables.kl(p, q))
    )
    figures = [
        [
            "entropy",
            f"H(P) = Σ p·{log} 1/p",
            f"= {number(h)} {unit}",
            "surprise of one who knows P",
        ],
        [
            "cross-entropy",
            f"H(P, Q) = Σ p·{log} 1/q",
            f"= {number(cross)} {unit}",
            "surprise of one who believes Q",
        ],
        [
            "KL divergence",
            "KL(P‖Q) = H(P, Q) − H(P)",
            f"= {number(kl)} {unit}",
            "the extra, for the wrong belief",
        ],
    ]
    return [
        f"What it is (the surprise of x is {log} 1/p(x); P is the truth, Q the belief)",
        *_indented(aligned(figures, left=(0, 1, 2, 3))),
        "",
        *_symbols(p, q, names, unit),
        "",
        *_codes(p, q, unit),
        "",
        *_directions(p, q, unit),
    ]


def _symbols(p: Tensor, q: Tensor, names: list[str], unit: str) -> list[str]:
    log, one = log_sign(unit), UNITS[unit]
    surprises = tables.surprisal(p) / one, tables.surprisal(q) / one
    shares = torch.where(p > 0, p * (surprises[1] - surprises[0]), 0.0)
    words = huffman_words(p.tolist()), huffman_words(q.tolist())
    head = ["symbol", "p", "surprise", "P's word", "q", "surprise", "Q's word"]
    rows = [[*head, f"p·{log} p/q"]]
    shown = _largest(shares.abs())
    for i in shown:
        cells = [_cut(names[i])]
        for mass, surprise, word in zip((p, q), surprises, words, strict=True):
            cells += [number(float(mass[i])), number(float(surprise[i])), _word(word[i])]
        rows.append([*cells, signed(float(shares[i]))])
    if len(shown) == len(p):
        rows.append(["sum", "1", "", "", "1", "", "", number(float(shares.sum()))])
    return [
        "Symbol by symbol",
        *_indented(aligned(rows, left=(0, 3, 6))),
        *_left_out(len(p) - len(shown), f"p·{log} p/q"),
    ]


def _codes(p: Tensor, q: Tensor, unit: str) -> list[str]:
    """Say what data from P cost in the code made for P and in the one made for Q."""
    own, other = (_cost(p, huffman_words(table.tolist())) for table in (p, q))
    extra = float(tables.kl(p, q)) / UNITS["bits"]
    lines = [
        "Code words (Huffman's, whole bits), on data from P",
        f"  the code made for P costs {number(own)} bits a symbol, "
        f"the code made for Q {number(other)}: {number(other - own)} extra bits",
    ]
    if math.isinf(other):
        return [*lines, "  Q's code has no word for a symbol that P sends: no length is enough."]
    if abs(other - own - extra) < 1e-9:
        return [*lines, f"  that is the KL divergence: KL(P‖Q) = {number(extra)} bits"]
    return [
        *lines,
        f"  whole bits are coarse: coding many symbols together costs {number(extra)} extra bits,",
        "  which is KL(P‖Q)" + (" in bits" if unit != "bits" else ""),
    ]


def _directions(p: Tensor, q: Tensor, unit: str) -> list[str]:
    def both(function: object) -> list[str]:
        values = (function(p, q), function(q, p))  # type: ignore[operator]
        return [f"{number(float(value) / UNITS[unit])} {unit}" for value in values]

    rows = [
        ["", "KL(P‖Q)", "KL(Q‖P)"],
        ["truth, belief", "P, Q", "Q, P"],
        ["entropy of the truth", *both(lambda a, _: tables.entropy(a))],
        ["cross-entropy", *both(tables.cross_entropy)],
        ["KL, the extra", *both(tables.kl)],
        ["infinite when", "Q lacks mass where P has some", "P lacks mass where Q has some"],
        *(list(row) for row in DIRECTIONS),
    ]
    return ["The two directions", *_indented(aligned(rows, left=(0, 1, 2)))]


def _js(p: Tensor, q: Tensor, names: list[str], unit: str) -> list[str]:
    log, one = log_sign(unit), UNITS[unit]
    m = (p + q) / 2
    to_p, to_q, js = (float(v) / one for v in (tables.kl(p, m), tables.kl(q, m), tables.js(p, q)))
    halves = [torch.xlogy(t, t) - torch.xlogy(t, torch.where(m > 0, m, 1.0)) for t in (p, q)]
    shares = (halves[0] + halves[1]) / 2 / one
    rows = [["symbol", "p", "q", "m", f"½p·{log} p/m + ½q·{log} q/m"]]
    shown = _largest(shares.abs())
    for i in shown:
        rows.append([_cut(names[i]), *(number(float(x[i])) for x in (p, q, m, shares))])
    top = math.log(2) / one
    return [
        "What it is: the mean of two KL divergences, each to the average M = ½P + ½Q",
        *_indented(
            aligned(
                [
                    ["KL(P‖M)", f"= {number(to_p)} {unit}"],
                    ["KL(Q‖M)", f"= {number(to_q)} {unit}"],
                    ["JS(P, Q) = ½ KL(P‖M) + ½ KL(Q‖M)", f"= {number(js)} {unit}"],
                ],
                left=(0, 1),
            )
        ),
        "",
        *_indented(aligned(rows)),
        *_left_out(len(p) - len(shown), "the last column"),
        "",
        "What it means",
        "  Toss a coin and draw from P or from Q accordingly: the draw tells "
        f"{number(js)} {unit} about the coin,",
        f"  at most {number(top)}, which it does where P and Q share no outcome.",
        f"  Both directions are one: JS(P, Q) = JS(Q, P) = {number(js)} {unit}, always finite;",
        f"  here KL(P‖Q) = {number(float(tables.kl(p, q)) / one)} {unit} and "
        f"KL(Q‖P) = {number(float(tables.kl(q, p)) / one)} {unit}.",
    ]


def _cost(p: Tensor, words: Sequence[str | None]) -> float:
    """Return Σ p·length in bits, +inf where a word is missing."""
    pairs = zip(p.tolist(), words, strict=True)
    return math.fsum(
        mass * (math.inf if word is None else len(word)) for mass, word in pairs if mass > 0
    )


def _largest(shares: Tensor) -> list[int]:
    """Return which rows to show: all of a few, else the largest, in their order."""
    if len(shares) <= ROWS:
        return list(range(len(shares)))
    return sorted(shares.topk(ROWS).indices.tolist())


def _left_out(count: int, by: str) -> list[str]:
    return [f"  … and {count:,} more; shown are the largest by {by}"] if count else []


def _word(word: str | None) -> str:
    if word is None:
        return "none"
    if not word:
        return "(no bits)"
    return word if len(word) <= LONGEST else f"{word[: LONGEST - 1]}… ({len(word)})"


def _cut(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:19]}…"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
