"""A report on logged log-probabilities: as text for a terminal, and as one HTML file.

Which to use: `logprobs_text` for text; `write_logprobs` for the page, which needs no network, no
script and no other file. `divergence_chart` draws a divergence against the groups with its band,
`ratio_chart` a histogram of log ratios.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kullback.core import write_atomic
from kullback.lm import Check, Clustered, Figures, LogProbReport

from .. import html
from ..figures import PAGE_COLORS, inline_svg, page_figure, round_ticks
from ..limits import DRAWN_GROUPS, PAGE_GROUPS, TERMINAL_GROUPS
from ..text_layout import aligned

__all__ = ["divergence_chart", "logprobs_text", "ratio_chart", "write_logprobs"]

NAMES = {
    "best": "best λ", "k1": "k1", "k2": "k2", "k3": "k3",
    "reverse": "other direction", "log_ratio": "log p − log q",
}  # fmt: skip
DRAWN = {
    "p": "drawn from p", "q": "drawn from q", "behaviour": "drawn from a behaviour policy",
    "data": "data: nobody drew them",
}  # fmt: skip


def logprobs_text(report: LogProbReport) -> str:
    """Return a report as lines of text: what was read, the checks, the figures.

    Args:
        report: Of `kullback.lm.logprobs`.

    Returns:
        Text that ends with a line break.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from kullback.lm import logprobs
        >>> logs = pd.DataFrame({"old": np.log(np.linspace(0.1, 0.9, 600))})
        >>> logs["new"], logs["sequence"] = logs["old"] - 0.01, np.arange(600) // 20
        >>> text = logprobs_text(logprobs(logs, p="old", q="new", drawn_from="data"))
        >>> text.splitlines()[0]
        'log p − log q of the table, by duckdb: 600 tokens, data: nobody drew them'
    """
    tokens = report.overall[0].tokens if report.overall else 0
    lines = [
        f"{report.direction} of {report.source}, by {report.engine}: {tokens:,} tokens, "
        f"{DRAWN[report.drawn_from]}"
    ]
    lines += [f"  {note}" for note in report.notes]
    lines += ["", "checks", *_check_lines(report.checks)]
    for figures in report.overall:
        lines += ["", *_figure_lines(report, figures)]
    for pair, found in report.pairs.items():
        rows = [[f"  {name}", one.estimate.brief] for name, one in found.items()]
        lines += ["", f"paired on the same draws: {report.direction} of {pair}"]
        lines += aligned(rows, left=(0, 1))
    if report.groups:
        lines += ["", f"by {', '.join(report.by)}", *_group_lines(report)]
    return "\n".join(lines) + "\n"


def write_logprobs(report: LogProbReport, path: str | Path) -> None:
    """Write a report as one HTML file, whole or not at all.

    Args:
        report: Of `kullback.lm.logprobs`, with `details=True` for the histogram.
        path: The file.

    Raises:
        RunError: The file cannot be written.
    """
    write_atomic(path, _page(report))


def divergence_chart(groups: Sequence[Figures], label: str) -> str:
    """Draw the main estimate of each group, in order, with its 95 % interval as a band.

    Args:
        groups: Of one other model; numbers as labels are drawn at their place.
        label: What the chart shows, for readers who cannot see it.

    Returns:
        Markup; the empty text for fewer than two groups.
    """
    shown = list(groups)[:: max(1, len(groups) // DRAWN_GROUPS)]
    if len(shown) < 2:
        return ""
    values = [one.main.estimate.value for one in shown]
    intervals = [one.main.estimate.interval() for one in shown]
    numbers = [_number(one.label) for one in shown]
    places = numbers if None not in numbers else list(range(len(shown)))
    with page_figure() as figure:
        axis = figure.subplots()
        low, high = zip(*intervals, strict=True)
        axis.fill_between(places, low, high, color=PAGE_COLORS["a"], alpha=0.25, linewidth=0)
        axis.plot(places, values, color=PAGE_COLORS["a"], linewidth=1.6, marker=".", markersize=4)
        axis.set_ylabel(groups[0].main.estimate.unit)
        if None in numbers:
            some = range(0, len(shown), max(1, len(shown) // 6))
            axis.set_xticks(list(some), [shown[place].label[:12] for place in some])
        else:
            round_ticks(axis.xaxis)
        return inline_svg(figure, label=label)


def ratio_chart(bins: Sequence[tuple[float, float, int]], label: str) -> str:
    """Draw a histogram of log r: the density of tokens, on logarithmic scales.

    Args:
        bins: Both ends of each bin, and its count.
        label: What the chart shows, for readers who cannot see it.

    Returns:
        Markup; the empty text without bins.
    """
    total = sum(count for _, _, count in bins)
    if not total:
        return ""
    with page_figure() as figure:
        axis = figure.subplots()
        for low, high, count in bins:
            height = count / total / (high - low)
            bar = axis.bar([low], [height], width=high - low, align="edge",
                           color=PAGE_COLORS["a"])[0]  # fmt: skip
            bar.set_gid(f"log r {low:.3g} to {high:.3g}: {count:,} tokens")
        low, high = bins[0][0], bins[-1][1]
        axis.set_xscale("symlog", linthresh=1e-2)
        ends = [sign * 10.0**power for sign in (-1, 1) for power in range(-2, 3)]
        ticks = [0.0, *(end for end in ends if low <= end <= high)]
        axis.set_xticks(ticks, [f"{end:g}" for end in ticks])
        axis.set_yscale("log")
        bottom, top = (math.log10(end) for end in axis.get_ylim())
        powers = range(math.ceil(bottom), math.floor(top) + 1)
        axis.set_yticks([10.0**power for power in powers], [f"1e{power}" for power in powers])
        axis.minorticks_off()
        axis.set_xlabel("log r")
        axis.set_ylabel("share of tokens a nat")
        return inline_svg(figure, label=label)


def _page(report: LogProbReport) -> str:
    tokens = report.overall[0].tokens
    lead = f"{report.direction}: {report.main.brief}"
    facts = [f"{tokens:,} tokens", DRAWN[report.drawn_from], f"by {report.engine}", *report.notes]
    marks = {"": "ok", "warn": "note", "limit": "found", "refuse": "found"}
    checks = [
        {"name": one.name, "words": one.words, "remedy": one.remedy if one.effect else "",
         "mark": marks[one.effect] if one.made else "not made"}
        for one in report.checks
    ]  # fmt: skip
    heads, rows = _group_table(report, PAGE_GROUPS)
    low, high = report.clip
    return html.render(
        "logprobs.html",
        name=f"{report.direction} of {report.source}",
        lead=lead,
        facts=facts,
        checks=checks,
        charts=_charts(report),
        models=[_model(report, figures) for figures in report.overall],
        by=", ".join(report.by),
        heads=heads,
        groups=rows,
        direction=report.direction,
        meaning=_meaning(report),
        clip=f"{low:.3g} to {high:.3g}",
    )


def _meaning(report: LogProbReport) -> str:
    p, q = _pair(report, report.overall[0])
    if report.drawn_from == "data":
        return f"The mean of log p − log q, p of {p}, q of {q}: nobody drew the tokens, so no KL."
    return (
        f"The mean over tokens of the divergence between the next-token distributions of {p} and "
        f"{q}, at the prefixes that were drawn."
    )


def _charts(report: LogProbReport) -> list[dict[str, Any]]:
    charts = []
    first = [one for one in report.groups if one.other == report.overall[0].other]
    drawing = divergence_chart(first, f"{report.direction} by {', '.join(report.by)}")
    if drawing:
        caption = "The main estimate of each group, and its 95 % interval."
        title = f"{report.direction} by {', '.join(report.by)}"
        charts.append({"title": title, "drawing": html.markup(drawing), "caption": caption})
    drawing = ratio_chart(report.bins, "log ratios of the tokens")
    if drawing:
        caption = (
            "Log ratios of all tokens; the horizontal scale is linear up to 0.01, then logarithmic."
        )
        charts.append({"title": "log ratios", "drawing": html.markup(drawing), "caption": caption})
    return charts


def _model(report: LogProbReport, figures: Figures) -> dict[str, Any]:
    """Return one model's table and remarks."""
    p, q = _pair(report, figures)
    rows = [
        {"name": NAMES[name], "token": _cell(figures.token.get(name)),
         "sequence": _cell(figures.sequence.get(name))}
        for name in NAMES if name in figures.token or name in figures.sequence
    ]  # fmt: skip
    remarks = [*_doubts(figures.token, "a token"), *_doubts(figures.sequence, "a sequence")]
    remarks += [f"{name} left out: {why}" for name, why in figures.left_out.items()]
    remarks += [*_errors(figures.main), *_ratio_lines(report, figures)]
    for pair, found in report.pairs.items():
        if pair.endswith(f"− {figures.other}"):
            remarks += [f"{pair}, {name}, on the same draws: {one.estimate.brief}"
                        for name, one in found.items()]  # fmt: skip
    return {"title": f"p = {p}, q = {q}", "rows": rows, "remarks": remarks}


def _cell(found: Clustered | None) -> str:
    if found is None:
        return ""
    how = f" ({found.estimate.how})" if found.estimate.how else ""
    return f"{found.estimate.brief}{how}"


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _pair(report: LogProbReport, figures: Figures) -> tuple[str, str]:
    """Return the names of p and q."""
    if report.drawn_from == "q":
        return figures.other, report.names["q0"]
    return report.names["p"], figures.other


def _check_lines(checks: Sequence[Check]) -> list[str]:
    marks = {"": "ok", "warn": "note", "limit": "FOUND", "refuse": "FOUND"}
    lines = []
    for check in checks:
        mark = marks[check.effect] if check.made else "-"
        lines.append(f"  {mark:<5}  {check.name}: {check.words}")
        if check.effect and check.remedy:
            lines.append(f"         try: {check.remedy}")
    return lines


def _figure_lines(report: LogProbReport, figures: Figures) -> list[str]:
    p, q = _pair(report, figures)
    lines = [f"p = {p}, q = {q}"]
    levels = (("a token", figures.token), ("a sequence", figures.sequence))
    for level, found in levels:
        if not found:
            continue
        lines.append(f"{level}:")
        rows = []
        for name, one in found.items():
            how = one.estimate.how if name == "best" else ""
            rows.append([f"  {NAMES[name]}", one.estimate.brief, how])
        lines += aligned(rows, left=(0, 1, 2))
        lines += [f"  {text}" for text in _doubts(found, level)]
    for name, reason in figures.left_out.items():
        short = reason.partition(". Usual causes")[0]
        lines.append(f"  {name} left out: {short}")
    return [*lines, *_errors(figures.main), *_ratio_lines(report, figures)]


def _doubts(found: dict[str, Clustered], level: str) -> list[str]:
    lines = []
    for name, one in found.items():
        start = f"{NAMES[name]}, {level}:"
        lines += [f"{start} no error bar: {one.estimate.no_error}"] * bool(one.estimate.no_error)
        lines += [f"{start} warning: {text}" for text in one.estimate.warnings]
    return lines


def _errors(main: Clustered) -> list[str]:
    clusters = main.clusters
    if not math.isfinite(main.naive_error) or main.estimate.no_error:
        return []
    of = f"{len(clusters.sizes):,} {'blocks' if clusters.block else clusters.name}"
    if not main.naive_error:
        return [f"errors: clustered by {of}"]
    return [
        f"errors: clustered by {of}; tokens taken as independent would give "
        f"± {main.naive_error:.2g} (design effect {main.design_effect:.2f})"
    ]


def _ratio_lines(report: LogProbReport, figures: Figures) -> list[str]:
    if report.drawn_from == "data":
        one, other = (math.exp(-each) for each in figures.log_likelihoods)
        return [f"perplexity: p {one:.4f}, q {other:.4f}"]
    what = "weights p/m" if report.drawn_from == "behaviour" else "ratios q/p"
    parts = [f"{what}: effective sample size {figures.ess:.1%} of the tokens"]
    if math.isfinite(figures.k_hat):
        parts.append(f"Pareto k-hat {figures.k_hat:.2f}")
    if math.isfinite(figures.sequence_ess):
        parts.append(f"{figures.sequence_ess:.1%} of the sequences")
    low, high = report.clip
    clipped = f"{figures.high:.2%} of ratios above {high:.3g}, {figures.low:.2%} below {low:.3g}"
    return [", ".join(parts), f"clipped: {clipped}"]


def _group_lines(report: LogProbReport) -> list[str]:
    heads, rows = _group_table(report, TERMINAL_GROUPS)
    left = (0, 1) if len(report.overall) > 1 else (0,)
    lines = [f"  {line}" for line in aligned([heads, *rows], left=left)]
    more = len(report.groups) - TERMINAL_GROUPS
    return [*lines, f"  … and {more} more (--json has all)"] if more > 0 else lines


def _group_table(report: LogProbReport, most: int) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the cells of the table of groups."""
    several = len(report.overall) > 1
    heads = [", ".join(report.by), *(["q"] if several else []), "tokens", report.direction, "",
             "ESS", "k-hat", "clipped", "mean q/p"]  # fmt: skip
    rows = []
    for one in report.groups[:most]:
        ratio = "" if one.identity is None else f"{one.identity.mean:.4f}"
        ratio += " FOUND" if one.identity is not None and one.identity.refuted else ""
        rows.append([one.label, *([one.other] if several else []), f"{one.tokens:,}",
                     one.main.estimate.brief, one.main_name if one.main_name != "log_ratio" else "",
                     _share(one.ess), f"{one.k_hat:.2f}" if math.isfinite(one.k_hat) else "",
                     _share(one.high + one.low), ratio])  # fmt: skip
    return heads, rows


def _share(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else ""
