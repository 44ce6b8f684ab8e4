"""Explanations of entropies and divergences of tables, with every number written out.

Which to use: `explain_table`: the formula, the numbers symbol by symbol, the code words, both
directions, and the estimators of KL with their exact variances (MATH 3 to 5). `huffman_words` shows
a Huffman code to a reader; `kullback.exact.codes` writes bytes.
"""

import heapq
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kullback.exact import tables
from kullback.sampled import log_ratio_terms

from .limits import EQUAL_BITS, NAME_LETTERS, RATIO_ROUNDING, TABLE_ROWS, WORD_BITS
from .text_layout import UNITS, aligned, number, signed

__all__ = ["DIRECTIONS", "SUM", "explain_table", "huffman_words"]


def huffman_words(masses: Sequence[float]) -> list[str | None]:
    """Return a prefix code of the smallest expected length, None for an outcome without mass.

    Words of one length are counted upwards in the outcomes' order, shorter words first (the
    canonical form). A single outcome with mass needs no bits: "".
    Reference: Huffman (1952), "A method for the construction of minimum-redundancy codes".

    Args:
        masses: `[outcomes]`, ≥ 0, one or more above 0; they need not sum to 1.

    Returns:
        A list with one codeword or None per outcome.

    Example:
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


DIRECTIONS = (
    (
        "fitting Q to P by it",
        "covers all modes of P: maximum likelihood",
        "seeks one mode of P: the ELBO",
    ),
)
SUM = (
    "  In each column cross-entropy = entropy + KL. The entropy does not depend on the second",
    "  distribution: the one that minimises the cross-entropy minimises KL too.",
)


def explain_table(
    quantity: str, p: Tensor, q: Tensor | None = None, *, labels: Sequence[str] = (), unit: str
) -> str:
    """Explain "entropy", "cross-entropy", "kl" or "js" of tables `[outcomes]`, in `unit`.

    Args:
        quantity: One of the four names.
        p: Probabilities, `[outcomes]`.
        q: The same for Q; None for the entropy.
        labels: Names of the outcomes, 1, 2, 3, … without.
        unit: "nats" or "bits"; code words are in bits whatever the unit.

    Returns:
        The text.

    Example:
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
        q = q.detach().double()
        parts = _pair(p, q, names, unit)
        parts += ["", *_estimators(p, q, unit)] if quantity == "kl" else []
    return "\n".join(parts)


def log_sign(unit: str) -> str:
    """Return how the logarithm of a unit is written.

    >>> log_sign("bits"), log_sign("nats")
    ('log₂', 'ln')
    """
    return {"bits": "log₂", "nats": "ln"}[unit]


def _entropy(p: Tensor, names: list[str], unit: str) -> list[str]:
    log, h = log_sign(unit), float(tables.entropy(p)) / UNITS[unit]
    lengths = tables.surprisal(p) / UNITS[unit]
    words = huffman_words(p.tolist())
    shares = torch.where(p > 0, p * lengths, 0.0)
    shown = _largest(shares)
    rows = [["symbol", "p", f"{log} 1/p", f"p·{log} 1/p", "code word"]]
    for i in shown:
        cells = [number(float(x[i])) for x in (p, lengths, shares)]
        rows.append([_cut(names[i]), *cells, _word(words[i])])
    most = math.log(len(p)) / UNITS[unit]
    return [
        "What it is",
        f"  code length of x: {log} 1/p(x)      longer for the less likely; lengths add",
        f"  entropy: the mean code length   H(P) = Σ p·{log} 1/p = {number(h)} {unit}",
        "",
        *_indented(aligned(rows, left=(0, 4))),
        *_left_out(len(p) - len(shown), f"p·{log} 1/p"),
        "",
        "What it means",
        f"  A certain outcome has entropy 0; {len(p)} equally likely outcomes have {number(most)} "
        f"{unit}.",
        f"  Perplexity: a choice between {number(math.exp(h * UNITS[unit]))} equally likely "
        "outcomes has this entropy.",
        f"  {_code_cost(p, words)}",
    ]


def _code_cost(p: Tensor, words: Sequence[str | None]) -> str:
    cost, h = _cost(p, words), float(tables.entropy(p)) / UNITS["bits"]
    start = f"These code words (Huffman's) cost {number(cost)} bits a symbol"
    if abs(cost - h) < EQUAL_BITS:
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
            "mean code length of the best code for P",
        ],
        [
            "cross-entropy",
            f"H(P, Q) = Σ p·{log} 1/q",
            f"= {number(cross)} {unit}",
            "mean code length when data from P are coded for Q",
        ],
        [
            "KL divergence",
            "KL(P‖Q) = H(P, Q) − H(P)",
            f"= {number(kl)} {unit}",
            "the extra code length",
        ],
    ]
    return [
        f"What it is (P: where the data come from; Q: the model; {log} 1/p: a code length)",
        *_indented(aligned(figures, left=(0, 1, 2, 3))),
        "",
        "Cross-entropy is entropy plus KL divergence",
        f"  H(P, Q) = H(P) + KL(P‖Q):  {number(cross)} = {number(h)} + {number(kl)} {unit}",
        "  H(P) does not depend on Q, so minimising H(P, Q) over Q minimises KL(P‖Q). Both are",
        f"  least at Q = P, where H(P, Q) = H(P) = {number(h)} {unit} and KL(P‖Q) = 0.",
        "",
        *_symbols(p, q, names, unit),
        "",
        *_codes(p, q, unit),
        "",
        *_directions(p, q, unit),
    ]


def _symbols(p: Tensor, q: Tensor, names: list[str], unit: str) -> list[str]:
    log, one = log_sign(unit), UNITS[unit]
    lengths = tables.surprisal(p) / one, tables.surprisal(q) / one
    shares = torch.where(p > 0, p * (lengths[1] - lengths[0]), 0.0)
    words = huffman_words(p.tolist()), huffman_words(q.tolist())
    head = ["symbol", "p", f"{log} 1/p", "P's word", "q", f"{log} 1/q", "Q's word"]
    rows = [[*head, f"p·{log} p/q"]]
    shown = _largest(shares.abs())
    for i in shown:
        cells = [_cut(names[i])]
        for mass, length, word in zip((p, q), lengths, words, strict=True):
            cells += [number(float(mass[i])), number(float(length[i])), _word(word[i])]
        rows.append([*cells, signed(float(shares[i]))])
    if len(shown) == len(p):
        rows.append(["sum", "1", "", "", "1", "", "", number(float(shares.sum()))])
    return [
        "Symbol by symbol",
        *_indented(aligned(rows, left=(0, 3, 6))),
        *_left_out(len(p) - len(shown), f"p·{log} p/q"),
    ]


def _codes(p: Tensor, q: Tensor, unit: str) -> list[str]:
    """Give the mean length of data from P in the code made for P and in the one made for Q."""
    own, other = (_cost(p, huffman_words(table.tolist())) for table in (p, q))
    extra = float(tables.kl(p, q)) / UNITS["bits"]
    lines = [
        "Code words (Huffman's, whole bits), on data from P",
        f"  the code made for P costs {number(own)} bits a symbol, "
        f"the code made for Q {number(other)}: {number(other - own)} extra bits",
    ]
    if math.isinf(other):
        return [*lines, "  Q's code has no word for a symbol that P sends: no length is enough."]
    if abs(other - own - extra) < EQUAL_BITS:
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
        ["first, second", "P, Q", "Q, P"],
        ["entropy of the first", *both(lambda a, _: tables.entropy(a))],
        ["cross-entropy", *both(tables.cross_entropy)],
        ["KL, the extra", *both(tables.kl)],
        ["infinite when", "Q lacks mass where P has some", "P lacks mass where Q has some"],
        *(list(row) for row in DIRECTIONS),
    ]
    return ["The two directions", *_indented(aligned(rows, left=(0, 1, 2)))]


def _estimators(p: Tensor, q: Tensor, unit: str) -> list[str]:
    """Give mean and variance of one term of k1, k2, k3 and λ*, by summing over the table."""
    head = "Estimating KL(P‖Q) from samples x of P, with r = q(x)/p(x) (MATH 5)"
    p, q = p[p > 0], q[p > 0]
    if bool((q == 0).any()):
        return [
            head,
            "  KL is infinite: where q = 0 a term of every estimator is +∞. There is no λ*.",
        ]
    mass, log_p, log_q = float(q.sum()), p.log(), q.log()
    log_r, excess = log_q - log_p, torch.expm1(log_q - log_p)

    def covariance(a: Tensor, b: Tensor) -> float:
        a, b = (x - (p * x).sum() / p.sum() for x in (a, b))
        return float((p * a * b).sum() / p.sum())

    spread = covariance(excess, excess)
    if spread <= RATIO_ROUNDING**2:
        return [head, "  P and Q are the same up to rounding: every term is 0, for every λ."]
    best, center = covariance(log_r, excess) / spread, "1" if mass > 1 - EQUAL_BITS else "M"
    terms: tuple[tuple[str, str, str | float], ...] = (
        ("k1", "−ln r", "k1"),
        ("k2", "½ (ln r)²", "k2"),
        ("k3", f"(r − {center}) − ln r", "k3"),
        ("λ*", f"−ln r + {number(best)} (r − {center})", best),
    )
    rows = [["", "one term", f"mean, {unit}", f"variance, {unit}²"]]
    floor = covariance(log_r, log_r) * RATIO_ROUNDING**2  # a variance below it is rounding
    for name, formula, estimator in terms:
        values = log_ratio_terms(log_p, log_q, estimator=estimator) / UNITS[unit]
        slope = {"k1": 0.0, "k2": 0.0, "k3": 1.0}.get(name, best)
        variance = covariance(values, values)
        mean = float((p * values).sum()) - slope * (mass - 1) / UNITS[unit]
        rows.append([name, formula, number(mean), number(variance if variance > floor else 0.0)])
    return [
        head,
        *_indented(aligned(rows, left=(0, 1))),
        f"  λ* = Cov(ln r, r) / Var(r) = {number(best)}, the λ of least variance (MATH 5.5).",
        *(
            []
            if center == "1"
            else [f"  M = {number(mass)} is the mean of r: Q's mass where P has some."]
        ),
        "  These are exact sums over the table. The mean of n terms has 1/n of the variance.",
        "  k2 is biased: its mean is not KL. The others are unbiased.",
    ]


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
        "  A fair coin chooses P or Q, and x is drawn from it. The mutual information of x and the",
        f"  coin is {number(js)} {unit}; at most {number(top)}, where P and Q share no outcome.",
        f"  It is symmetric: JS(P, Q) = JS(Q, P) = {number(js)} {unit}, always finite;",
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
    if len(shares) <= TABLE_ROWS:
        return list(range(len(shares)))
    return sorted(shares.topk(TABLE_ROWS).indices.tolist())


def _left_out(count: int, by: str) -> list[str]:
    return [f"  … and {count:,} more; shown are the largest by {by}"] if count else []


def _word(word: str | None) -> str:
    if word is None:
        return "none"
    if not word:
        return "(no bits)"
    return word if len(word) <= WORD_BITS else f"{word[: WORD_BITS - 1]}… ({len(word)})"


def _cut(text: str) -> str:
    return text if len(text) <= NAME_LETTERS else f"{text[: NAME_LETTERS - 1]}…"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
