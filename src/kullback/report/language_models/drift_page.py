"""A drift report as text for the terminal, and as a page on which the text is read with its drift.

Which to use: `drift_text` for the tables in lines; `write_drift` for the page. On the page every
token's colour is its KL(P‖Q); under the pointer both models' most probable tokens are listed.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kullback.core import write_atomic
from kullback.lm import Clustered, Drift, DriftFigures

from .. import limits
from ..figures import PAGE_COLORS, inline_svg, page_figure
from ..html import markup, render
from ..text_layout import aligned, number

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["drift_text", "write_drift"]

NAMES = {
    "kl": "KL(P‖Q)",
    "kl_upper": "KL(P‖Q) at most",
    "reverse_kl": "KL(Q‖P)",
    "js": "Jensen-Shannon",
    "p_entropy": "entropy of P",
    "q_entropy": "entropy of Q",
    "log_ratio": "log q − log p of the text",
    "delta_prob": "Δp of the text's token",
    "same_top": "same first token",
    "top_overlap": "first five shared",
    "top_stays": "P's first is Q's first",
}
TOKENS_BEFORE = 10  # of the text before one of the worst tokens


def drift_text(found: Drift) -> str:
    """Return a drift report as lines of text.

    Args:
        found: Of `kullback.lm.drift`.

    Returns:
        Text that ends with a line break.

    Example:
        >>> import torch
        >>> from kullback.lm import Document, LanguageModel, drift
        >>> p = LanguageModel("p", lambda ids: torch.eye(3)[ids], 2 * torch.eye(3))
        >>> q = LanguageModel("q", p.hidden, 2.1 * torch.eye(3))
        >>> text = [Document(str(n), torch.arange(30) * (1 + n % 2) % 3) for n in range(12)]
        >>> print(drift_text(drift(p, q, text)).splitlines()[0])
        from P = p: 348 tokens of 12 documents, context 2,048, stride 1,024
    """
    lines = [_scope(found)]
    if found.bound:
        lines.append(f"divergences are not exact: {found.bound}")
    for q, name in enumerate(found.q_names):
        lines += ["", f"to Q = {name}", *_candidate_lines(found, q)]
    lines += _paired_lines(found)
    return "\n".join(lines) + "\n"


def _scope(found: Drift) -> str:
    settings = found.manifest.get("settings", {})
    scored = len(np.unique(found.table.place["document"]))
    how = "".join(f", {name} {settings[name]:,}" for name in ("context", "stride") if settings)
    return f"from P = {found.p_name}: {len(found.table):,} tokens of {scored:,} documents{how}"


def _candidate_lines(found: Drift, q: int) -> list[str]:
    figures = found.figures(q)
    lines = aligned(_mean_rows(figures), left=(0, 1, 2, 3))
    main = figures.means["kl"]
    lines += _error_lines(main, found.floors[q] if found.floors else math.nan)
    lines += ["", *aligned(_perplexity_rows(figures), left=(0, 1))]
    lines += ["", *aligned(_percentile_rows(figures))]
    for what in ("position", "confidence", "role"):
        parts = found.by(what, q)
        if len(parts) > 1:
            heading = {"confidence": "P's largest probability"}.get(what, what)
            rows = [[f"  {label}", f"{_size(one):,}", _plain(one)] for label, one in parts.items()]
            lines += ["", *aligned([[f"KL(P‖Q) by {heading}", "tokens", ""], *rows], left=(0, 2))]
    return [*lines, "", "tokens that moved most, [in brackets]", *_worst_lines(found, q)]


def _plain(one: Clustered) -> str:
    """Write value and error; without error bar where blocks or clusters are too few for one."""
    return one.estimate.brief.replace(f" {one.estimate.unit}", "")


def _size(one: Clustered) -> int:
    return int(one.clusters.sizes.sum())


def _mean_rows(figures: DriftFigures) -> list[list[str]]:
    rows = []
    for name, one in figures.means.items():
        naive = f"naive ± {one.naive_error:.2g}" if math.isfinite(one.naive_error) else ""
        effect = one.design_effect
        beside = f"design effect {effect:.2f}" if math.isfinite(effect) else ""
        rows.append([f"  {NAMES[name]}", one.estimate.brief, naive, beside])
    return rows


def _error_lines(main: Clustered, floor: float) -> list[str]:
    kind = main.clusters
    what = f"blocks of {kind.block:,} tokens" if kind.block else kind.name
    lines = [f"  errors clustered by {len(kind.sizes):,} {what}; naive: tokens as if independent"]
    lines += [f"  warning: {text}" for text in main.estimate.warnings]
    if main.estimate.no_error:
        lines.append(f"  no error bar: {main.estimate.no_error}")
    if math.isfinite(floor):
        lines.append(f"  rounding alone makes a KL of {floor:.1g} nats a token")
    return lines


def _perplexity_rows(figures: DriftFigures) -> list[list[str]]:
    of_p, of_q = figures.perplexity
    log_ratio = figures.means["log_ratio"].estimate
    rows = [
        ["  perplexity of P", of_p.brief],
        ["  perplexity of Q", of_q.brief],
        ["  ratio Q/P", figures.ratio.brief],
        ["  log ratio", (-1.0 * log_ratio).brief],
        ["  difference Q − P", figures.difference.brief],
        ["  Δp, root mean square", figures.rms_delta_prob.brief],
    ]
    if math.isfinite(figures.correlation):
        rows.append(["  correlation of log p and log q", f"{figures.correlation:.4f}"])
    return rows


def _percentile_rows(figures: DriftFigures) -> list[list[str]]:
    names = {100.0: "maximum", 50.0: "median", 0.0: "minimum"}
    head = ["  percentile", "KL(P‖Q)", "Δp"]
    rows = [
        [f"  {names.get(percent, f'{percent:g} %')}", *(number(one[percent]) for one in columns)]
        for columns in [list(figures.percentiles.values())]
        for percent in columns[0]
    ]
    return [head, *rows]


def _worst_lines(found: Drift, q: int) -> list[str]:
    rows = []
    for one in found.worst(limits.WORST_TOKENS, q):
        at = one.position
        before = found.text(one.document, at - TOKENS_BEFORE, at)
        after = found.text(one.document, at + 1, at + 4)
        shown = f"{before} [{found.text(one.document, at, at + 1)}] {after}"
        shown = shown.replace("\n", "⏎").replace("\r", "")
        place = f"{Path(found.documents[one.document].name).name}:{at:,}"
        rows.append([f"  {number(one.kl)}", place, shown])
    return aligned(rows, left=(1, 2))


def _paired_lines(found: Drift) -> list[str]:
    rows = []
    for first in range(len(found.q_names)):
        for second in range(first + 1, len(found.q_names)):
            one = found.paired(first, second).estimate
            a, b = found.q_names[first], found.q_names[second]
            better, worse = (a, b) if one.value <= 0 else (b, a)
            size = one if one.value >= 0 else -1.0 * one
            rows.append([f"  {better} is nearer to P than {worse} by", size.brief])
    return (
        ["", "paired on the same documents, KL(P‖Q)", *aligned(rows, left=(0, 1))] if rows else []
    )


def write_drift(found: Drift, path: str | Path) -> Path:
    """Write the page of a drift report: one HTML file of less than 2 MB, nothing else needed.

    Args:
        found: Of `kullback.lm.drift`, with `tops=True` for the lists under the pointer.
        path: The file.

    Returns:
        The path.

    Raises:
        RunError: The file cannot be written.
    """
    path = Path(path)
    write_atomic(path, page(found))
    return path


def page(found: Drift) -> str:
    """Return the page as text."""
    figures = [found.figures(q) for q in range(len(found.q_names))]
    cards = [
        {
            "name": one.name,
            "value": number(one.means["kl"].estimate.value),
            "error": _plain(one.means["kl"]).partition("±")[2].strip(),
            "reverse": _plain(one.means["reverse_kl"]),
            "same": f"{one.means['same_top'].estimate.value:.2%}",
            "ratio": one.ratio.brief,
        }
        for one in figures
    ]
    tables = [
        {"name": name, "text": "\n".join(_candidate_lines(found, q))}
        for q, name in enumerate(found.q_names)
    ]
    data, shown = _data_within(found)
    return render(
        "drift.html",
        p_name=found.p_name,
        lead=_scope(found) + ".",
        bound=found.bound,
        cards=cards,
        tables=tables,
        paired=_paired_lines(found)[2:],
        charts=[(title, _chart(found, what, title)) for what, title in CHARTS if found.by(what)],
        data=_embedded(data),
        shown=shown,
        total=len(found.table),
        names=list(found.q_names),
        manifest=json.dumps(found.manifest, indent=2, ensure_ascii=False),
    )


CHARTS = (("position", "by position in the document"), ("confidence", "by P's largest probability"))


def _chart(found: Drift, what: str, title: str) -> "Markup":
    with page_figure(430, 270) as figure:
        axis = figure.subplots()
        labels: list[str] = []
        for q, name in enumerate(found.q_names):
            parts = found.by(what, q)
            labels = list(parts)
            values = [one.estimate.value for one in parts.values()]
            errors = np.array([_reach(one) for one in parts.values()]).T
            places = np.arange(len(labels)) + 0.12 * (q - (len(found.q_names) - 1) / 2)
            color = PAGE_COLORS[("a", "b", "soft")[q % 3]]
            axis.errorbar(places, values, errors, fmt="o", color=color, markersize=5, gid=name)
        axis.set_xticks(range(len(labels)), [one.split(" to ")[0] for one in labels])
        axis.set_ylim(bottom=0.0)
        axis.set_ylabel("KL(P‖Q), nats a token")
        return markup(inline_svg(figure, label=f"KL {title}"))


def _reach(one: Clustered) -> tuple[float, float]:
    """Return how far the 95 % interval reaches below and above the mean; 0 without one."""
    value = one.estimate.value
    low, high = one.estimate.interval()
    good = math.isfinite(low) and math.isfinite(high) and not one.estimate.no_error
    return (value - low, high - value) if good else (0.0, 0.0)


def _embedded(data: dict[str, Any]) -> "Markup":
    """Write data for a script element: no character that could end it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return markup(text)


def _data_within(found: Drift) -> tuple[dict[str, Any], int]:
    """Return the text with its drift, as much of it as the page's size allows."""
    count = limits.PAGE_TOKENS
    while True:
        data = _data(found, count)
        shown = sum(len(one["t"]) for one in data["documents"])
        if len(_embedded(data).encode()) <= limits.DRIFT_BYTES or count < 2:
            return data, shown
        count //= 2


def _data(found: Drift, count: int) -> dict[str, Any]:
    words: dict[str, int] = {}
    documents = [_passage(found, one, words) for one in _passages(found, count)]
    top = found.table.place["top_ids"].shape[1] if "top_ids" in found.table.place else 0
    return {
        "names": list(found.q_names),
        "documents": documents,
        "words": list(words),
        "top": top,
    }


@dataclass(frozen=True, slots=True)
class _Passage:
    """Scored tokens of a document: its number, and their rows in the table."""

    document: int
    rows: slice


def _passages(found: Drift, count: int) -> list[_Passage]:
    """Choose passages of the documents that moved most, `count` tokens in all."""
    place, kl = found.table.place["document"], found.column("kl")
    numbers, firsts, sizes = np.unique(place, return_index=True, return_counts=True)
    means = np.add.reduceat(kl, firsts) / sizes
    chosen = []
    for at in np.argsort(-means, kind="stable"):
        size = min(int(sizes[at]), count)
        if size < 1:
            break
        first = int(firsts[at])
        total = np.concatenate([[0.0], np.cumsum(kl[first : first + int(sizes[at])])])
        first += int(np.argmax(total[size:] - total[: len(total) - size]))  # the worst passage
        chosen.append(_Passage(int(numbers[at]), slice(first, first + size)))
        count -= size
    return chosen


def _passage(found: Drift, passage: _Passage, words: dict[str, int]) -> dict[str, Any]:
    rows = passage.rows
    place, held = found.table.place, found.documents[passage.document]
    positions = place["position"][rows]
    begin = int(positions[0])
    ids = held.ids[: int(positions[-1]) + 1].tolist()
    pieces = _pieces(found.tokenizer, ids, begin)
    log_q = [one["q_log_prob"][rows].astype(float) for one in found.table.candidates]
    out: dict[str, Any] = {
        "n": held.name,
        "b": begin,
        "t": pieces,
        "k": [_rounded(c["kl"][rows], 4) for c in found.table.candidates],
        "p": _rounded(np.exp(place["p_log_prob"][rows].astype(float)), 3),
        "q": [_rounded(np.exp(one), 3) for one in log_q],
    }
    if held.roles:
        out["r"] = list(held.roles[begin : begin + len(pieces)])
    if "top_ids" in place:
        out["a"] = [_tops(found, place, rows, words)]
        out["a"] += [_tops(found, c, rows, words) for c in found.table.candidates]
    return out


def _rounded(values: Any, digits: int) -> list[float | None]:
    """Round to some significant digits; what is not finite becomes null."""
    finite = ((x, math.isfinite(x)) for x in np.asarray(values, float))
    return [float(f"{x:.{digits}g}") if good else None for x, good in finite]


def _tops(found: Drift, columns: dict[str, Any], rows: slice, words: dict[str, int]) -> list[int]:
    """Return word number and probability in thousandths of every token's list, in one row."""
    ids, probs = columns["top_ids"][rows], columns["top_probs"][rows]
    flat: list[int] = []
    for row_ids, row_probs in zip(ids.tolist(), probs.tolist(), strict=True):
        for one, prob in zip(row_ids, row_probs, strict=True):
            flat += [words.setdefault(found.token(one), len(words)), round(1000 * prob)]
    return flat


def _pieces(tokenizer: Any, ids: Sequence[int], begin: int) -> list[str]:
    """Cut the decoded text into what each token from `begin` on adds to it.

    A character of several tokens goes to the last of them.
    """
    if tokenizer is None:
        return [f"{one} " for one in ids[begin:]]
    pieces = []
    start, read = max(0, begin - limits.DECODED_BEFORE), begin
    for stop in range(begin + 1, len(ids) + 1):
        before = tokenizer.decode(ids[start:read])
        now = tokenizer.decode(ids[start:stop])
        whole = not now.endswith("\ufffd") or stop == len(ids)
        pieces.append(now[len(before) :] if whole else "")
        if whole:
            start, read = max(start, read - limits.DECODED_BEFORE), stop
    return pieces
