"""A report on logged log-probabilities as text for the terminal.

Which to use: `logprobs_text` for the checks and figures in lines.
"""

import math
from collections.abc import Sequence

from kullback.lm import Check, Clustered, Figures, LogProbReport

from .text_layout import aligned

__all__ = ["logprobs_text"]

SHOWN_GROUPS = 40  # lines of a table by groups; all are in the JSON and on the page
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
    p, q = report.names["p"], figures.other
    p, q = (figures.other, report.names["q0"]) if report.drawn_from == "q" else (p, q)
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
        lines += _doubts(found)
    for name, reason in figures.left_out.items():
        short = reason.partition(". Usual causes")[0]
        lines.append(f"  {name} left out: {short}")
    return [*lines, *_errors(figures.main), *_ratio_lines(report, figures)]


def _doubts(found: dict[str, Clustered]) -> list[str]:
    lines = []
    for name, one in found.items():
        reasons = [one.estimate.no_error] if one.estimate.no_error else []
        lines += [f"  {NAMES[name]}: no error bar: {reason}" for reason in reasons]
        lines += [f"  {NAMES[name]}: warning: {text}" for text in one.estimate.warnings]
    return lines


def _errors(main: Clustered) -> list[str]:
    clusters = main.clusters
    if not math.isfinite(main.naive_error) or main.estimate.no_error:
        return []
    of = f"{len(clusters.sizes):,} {'blocks' if clusters.block else clusters.name}"
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
    several = len(report.overall) > 1
    head = [*report.by[:1], *(["q"] if several else []), "tokens", report.direction, "", "ESS",
            "clipped", "mean q/p"]  # fmt: skip
    rows = [[f"  {head[0]}", *head[1:]]]
    for one in report.groups[:SHOWN_GROUPS]:
        ratio = "" if one.identity is None else f"{one.identity.mean:.4f}"
        ratio += " FOUND" if one.identity is not None and one.identity.refuted else ""
        rows.append([f"  {one.label}", *([one.other] if several else []), f"{one.tokens:,}",
                     one.main.estimate.brief, one.main_name if one.main_name != "log_ratio" else "",
                     _share(one.ess), _share(one.high + one.low), ratio])  # fmt: skip
    left = (0, 1) if several else (0,)
    lines = aligned(rows, left=left)
    more = len(report.groups) - SHOWN_GROUPS
    return [*lines, f"  … and {more} more (--json has all)"] if more > 0 else lines


def _share(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else ""
