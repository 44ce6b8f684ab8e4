"""The pictures of an audit: how hard a token is pushed; errors and noise on a logarithmic scale.

Which to use: `pushes` for the curve, `strips` for rows of dots. Colours are the page's classes.

An audit for a terminal: the verdict, a table of errors and cosines, notes.

Which to use: `audit_table`; `grouped` for the figures behind the table, which the page shares.

An audit as one HTML file: the verdict, what it rests on, and pictures of it.

Which to use: `write`. The file needs no network, no script and no other file; it follows the
reader's light or dark setting.
"""

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kullback.core import write_atomic
from kullback.tokens.auditing.findings import Audit, Finding, Row, descent

from .charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    below,
    document,
    esc,
    figure,
    grid,
    section,
    svg,
    ticks,
)
from .text_layout import aligned

__all__ = [
    "GROUPS",
    "Strip",
    "audit_table",
    "grouped",
    "how",
    "pushes",
    "render",
    "small",
    "strips",
    "write",
]

REACH, HIGH = 6.0, 6.0  # nats either way that are drawn
_ROW, _NAMES = 24, 148


def pushes(response: Sequence[tuple[float, float]]) -> str:
    """Draw how hard a token is pushed against log policy/ref, beside what the two KLs would do.

    response: pairs as in `Audit.response`. The curves of KL(policy‖ref), log policy/ref itself, and
    of KL(ref‖policy), 1 − ref/policy, are dashed; the loss is scaled to their slope, 1, at 0 (where
    it has none, its largest push within one nat to 1). Where it does not push at all, the axis is
    thick.

    >>> pushes([(-1.0, -1.0), (0.0, 0.0), (1.0, 1.0)]).count("<path") > 3
    True
    """
    inside = [(x, y) for x, y in response if abs(x) <= REACH and math.isfinite(y)]
    about = dict(inside)
    slope = (about.get(0.2, 0.0) - about.get(-0.2, 0.0)) / 0.4
    size = slope or max((abs(y) for x, y in inside if abs(x) <= 1.0), default=0.0) or 1.0
    frame = Frame((-REACH, REACH), (-HIGH, HIGH))
    xs = [-REACH + REACH * i / 60 for i in range(121)]
    shapes = {
        "guide b": [(x, x) for x in xs],
        "guide c": [(x, 1 - math.exp(-x)) for x in xs],
        "line a": [(x, y / size) for x, y in inside],
    }
    drawn = "".join(_path(points, frame, style) for style, points in shapes.items())
    still = "".join(
        f"M{frame.across(x):.1f} {frame.up(0):.1f}H{frame.across(later):.1f}"
        for (x, y), (later, z) in itertools.pairwise(inside)
        if y == z == 0.0
    )
    numbers = "".join(
        f'<text x="{frame.across(t):.1f}" y="{HEIGHT - BOTTOM + 17}" class="mid">{t:g}</text>'
        for t in ticks(-REACH, REACH)
    )
    box = (
        f'<clipPath id="clip-push"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/></clipPath>'
    )
    return svg(
        "push on a token against log policy/ref",
        grid(frame, "push down")
        + f'{box}<g clip-path="url(#clip-push)">{drawn}<path class="still" d="{still}"/></g>'
        + numbers
        + below("log policy/ref of the token, nats"),
    )


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of dots: a name and pairs of a value and a style, a class of the page.

    >>> Strip("KL(policy‖ref)", [(1e-16, "a")]).name
    'KL(policy‖ref)'
    """

    name: str
    dots: Sequence[tuple[float, str]]


def strips(rows: Sequence[Strip], *, low: float, high: float, label: str, unit: str) -> str:
    """Draw rows of dots on a logarithmic scale from `low` to `high`; what lies beyond sits on it.

    >>> strips([Strip("k2", [(0.1, "a")])], low=1e-3, high=1, label="l", unit="u").count("h0")
    1
    """
    first, last = math.log10(low), math.log10(high)
    height = TOP + _ROW * len(rows) + BOTTOM

    def across(value: float) -> float:
        place = math.log10(value) if value > 0 else first
        return _NAMES + (min(max(place, first), last) - first) / (last - first) * (
            WIDTH - _NAMES - RIGHT
        )

    parts = []
    step = max(1, round((last - first) / 5))
    for power in range(math.ceil(first), math.floor(last) + 1, step):
        x = across(10.0**power)
        parts.append(f'<path class="rule" d="M{x:.1f} {TOP - 8}V{height - BOTTOM}"/>')
        name = f"{10**power:g}" if -3 < power < 4 else f"1e{power}"
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 17}" class="mid">{name}</text>')
    for at, row in enumerate(rows):
        y = TOP + _ROW * (at + 0.35)
        parts.append(f'<text x="{_NAMES - 12}" y="{y + 4:.1f}" class="end">{esc(row.name)}</text>')
        styles = dict.fromkeys(style for _, style in row.dots)
        for lane, style in enumerate(styles):
            up = y + 6 * (lane - (len(styles) - 1) / 2)
            d = "".join(f"M{across(v):.1f} {up:.1f}h0" for v, s in row.dots if s == style)
            parts.append(f'<path class="dots {style}" d="{d}"/>')
    middle = (WIDTH + _NAMES - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 5}" class="mid">{esc(unit)}</text>')
    return (
        f'<svg class="strips" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{esc(label)}">{"".join(parts)}</svg>'
    )


def _path(points: Sequence[tuple[float, float]], frame: Frame, style: str) -> str:
    """Draw a curve; far outside the frame it is cut, so that coordinates stay small."""
    near = [(x, max(-4 * HIGH, min(4 * HIGH, y))) for x, y in points]
    d = "M" + "L".join(f"{frame.across(x):.1f} {frame.up(y):.1f}" for x, y in near)
    return f'<path class="{style}" d="{d}"/>' if near else ""


GROUPS = (
    ("on-policy, near", True, "near"),
    ("on-policy, far", True, "far"),
    ("off-policy, near", False, "near"),
    ("off-policy, far", False, "far"),
)


def audit_table(found: Audit, *, width: int = 100) -> str:
    """Write an audit as lines of text; no final newline.

    The table has the worst relative error of the expected gradient to each divergence's, and the
    smallest cosine, over the worlds of each kind. width: at which sentences are wrapped.

    >>> from kullback.tokens import audit
    >>> found = audit(lambda logp, ref_logp: (logp - ref_logp) ** 2)
    >>> print(audit_table(found, width=80).splitlines()[0])
    <lambda>, a loss: On-policy it descends KL(policy‖ref), token by token. Off-
    """
    head = f"{found.name}, {how(found)}: {found.verdict}"
    rows: list[list[str]] = [["error, cosine to", "level", *(title for title, _, _ in GROUPS)]]
    for (name, level), cells in grouped(found).items():
        shown = ["-" if one is None else f"{small(one[0])} {one[1]:5.2f}" for one in cells]
        rows.append([name, level, *shown])
    noise = ["noise of one draw", "", *(_noise(found, *group[1:]) for group in GROUPS)]
    dead = [
        "tokens without gradient",
        "",
        *(f"{100 * _worst(found.rows, 'dead_tokens', *group[1:]):.3g} %" for group in GROUPS),
    ]
    table = aligned([*rows, noise, dead], left=(0, 1))
    said = [textwrap.fill(f"- {note}.", width, subsequent_indent="  ") for note in found.notes]
    return "\n".join([textwrap.fill(head, width), "", *table, "", *said]).rstrip()


def how(found: Audit) -> str:
    """Say how a loss was taken: as a loss, or as a penalty with its credit and weights.

    >>> from kullback.tokens import audit
    >>> how(audit(lambda logp, ref_logp: logp - ref_logp, form="penalty"))
    'a penalty (to-go, weighted by none)'
    """
    if found.form == "loss":
        return "a loss"
    return f"a {found.form} ({found.credit}, weighted by {found.importance})"


def grouped(found: Audit) -> dict[tuple[str, str], list[tuple[float, float] | None]]:
    """Return for each divergence and level the worst error and cosine of each of `GROUPS`."""
    table: dict[tuple[str, str], list[tuple[float, float] | None]] = {}
    for at, (_, on_policy, distance) in enumerate(GROUPS):
        for row in found.rows:
            if (row.on_policy, row.distance) != (on_policy, distance):
                continue
            for one in row.comparisons:
                cells = table.setdefault((one.divergence, one.level), [None] * len(GROUPS))
                error, cosine = cells[at] or (0.0, 1.0)
                cells[at] = max(error, one.error), min(cosine, one.cosine)
    return table


def small(value: float) -> str:
    """Print a relative error in a few characters.

    >>> small(3.2e-16), small(0.534), small(12.0)
    ('3e-16', '0.53', '12')
    """
    if value < 0.01:
        return f"{value:.0e}" if value > 0 else "0"
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _noise(found: Audit, on_policy: bool, distance: str) -> str:  # noqa: FBT001
    """Say the largest noise, of sequences: one token has none when all tokens are summed over."""
    rows = [r for r in found.rows if (r.on_policy, r.distance) == (on_policy, distance)]
    known = [r for r in rows if r.noise is not None and r.length > 1]
    if not known:
        return "-"
    worst = max(known, key=lambda row: row.noise or 0.0)
    best = "" if worst.best_noise is None else f" (best {worst.best_noise:.2g})"
    return f"{worst.noise:.2g}{best}"


def _worst(rows: Sequence[Row], name: str, on_policy: bool, distance: str) -> float:  # noqa: FBT001
    return max(
        float(getattr(r, name)) for r in rows if (r.on_policy, r.distance) == (on_policy, distance)
    )


TERMS = (
    (
        "on-policy, off-policy",
        "Whether the sequences are drawn from the policy that is trained, or from a stale one "
        "(the behaviour policy), whose log-probabilities the loss may use to make up for it.",
    ),
    (
        "token by token",
        "The sum of the divergences of the next-token tables at the prefixes that were drawn, the "
        "prefixes held fixed. Of whole sequences: also counting that the policy decides which "
        "prefixes come.",
    ),
    (
        "error",
        "‖E[gradient] − s·∇D‖ / ‖s·∇D‖, s being one factor for each length: 0 when the loss "
        "descends D. Rounding leaves about 1e-16, float32 inside the loss 1e-6.",
    ),
    (
        "noise",
        "The standard deviation of the gradient of one draw, in lengths of the divergence's "
        "gradient. Best known: the sum over the vocabulary at the prefixes drawn (Rao-Blackwell).",
    ),
    (
        "without gradient",
        "Sampled tokens whose gradient is exactly zero though policy and reference differ: clamps.",
    ),
)


def write(found: Audit, path: str | Path) -> Path:
    """Write an audit as an HTML page, whole or not at all, and return its path.

    The same audit gives the same bytes. Errors: RunError when the disk refuses.

    >>> from kullback.tokens import audit
    >>> write(audit(lambda logp, ref_logp: (logp - ref_logp) ** 2), "audit.html").name
    'audit.html'
    """
    path = Path(path)
    write_atomic(path, render(found))
    return path


def render(found: Audit) -> str:
    """Return the whole page of an audit as HTML."""
    terms = "".join(f"<dt>{esc(term)}</dt><dd>{esc(text)}</dd>" for term, text in TERMS)
    sections = (
        section("verdict", "What it descends", _findings(found)),
        section("pictures", "What that rests on", _pictures(found)),
        section("worlds", "Every world", _worlds(found)),
        section("guide", "How to read this", f"<dl>{terms}</dl>"),
    )
    given = ", ".join(
        name if name == role else f"{name} ({role})" for name, role in found.arguments.items()
    )
    meta = [how(found), f"given {given}", f"{len(found.rows)} worlds, enumerated in float64"]
    header = (
        f'<h1>{esc(found.name)}</h1><p class="lead">{esc(found.verdict)}</p>'
        f'<ul class="meta">{"".join(f"<li>{esc(text)}</li>" for text in meta)}</ul>'
    )
    return document(f"{esc(found.name)}, audited", header, sections)


def _findings(found: Audit) -> str:
    cards = "".join(_card(one) for one in found.findings)
    said = "".join(f"<li>{esc(note[0].upper() + note[1:])}.</li>" for note in found.notes)
    remarks = f'<ul class="remarks">{said}</ul>' if said else ""
    return f'<div class="cards">{cards}</div>{remarks}'


def _card(one: Finding) -> str:
    regime = "On-policy" if one.on_policy else "Off-policy"
    sign = {
        "zero": "nothing",
        "near zero": "nothing",
        "not finite": "inf or NaN",
        "none": "none of them",
    }
    big = sign.get(one.kind, one.descends)
    way = f"it {descent(one)}."
    figures = "" if not one.descends else f"error {small(one.error)}, cosine {one.cosine:.3g}"
    times = ", ".join(f"{scale:.3g} (T = {length})" for length, scale in one.scale.items())
    times = (
        f"<p>Its gradient is the divergence's times {esc(times)}.</p>"
        if one.kind == "exact"
        else ""
    )
    return (
        f'<article><h3>{regime}</h3><p class="value">{esc(big)}</p>'
        f'<p class="unit">{figures}</p><p>{esc(way[0].upper() + way[1:])}</p>{times}</article>'
    )


def _pictures(found: Audit) -> str:
    reading = (
        '<span class="key a">this loss</span>, <span class="key b">KL(policy‖ref)</span>, '
        '<span class="key c">KL(ref‖policy)</span>: how hard one sampled token is pushed down, '
        "on-policy, by how much likelier the policy finds it than the reference. A thick piece of "
        "the axis: no push at all."
    )
    errors = figure(
        strips(
            _error_strips(found),
            low=1e-17,
            high=10.0,
            label="relative errors",
            unit="relative error",
        ),
        "Which divergence it is",
        "Worst relative error of the expected gradient, "
        '<span class="key a">on-policy</span>, <span class="key b">off-policy</span>, where policy '
        "and reference are near and far. At the left edge: the same, up to rounding.",
    )
    noise = figure(
        strips(
            _noise_strips(found.rows), low=0.03, high=100.0, label="noise", unit="noise of one draw"
        ),
        "How noisy it is",
        '<span class="key a">This loss</span> and the '
        '<span class="key b">least noisy estimator known</span> of the divergence named, in each '
        "world of more than one token: V in the vocabulary, T a sequence.",
    )
    curve = figure(pushes(found.response), "How hard a token is pushed", reading)
    return f'<div class="three">{curve}{errors}{noise}</div>'


def _error_strips(found: Audit) -> list[Strip]:
    rows = []
    for (name, level), cells in grouped(found).items():
        dots = [
            (cell[0], "a" if on_policy else "b")
            for cell, (_, on_policy, _) in zip(cells, GROUPS, strict=True)
            if cell is not None
        ]
        rows.append(Strip(f"{name}, {level}", dots))
    return rows


def _noise_strips(rows: tuple[Row, ...]) -> list[Strip]:
    strips_of: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        if row.noise is None or row.length == 1:  # one token can be summed over: no noise
            continue
        regime = "on" if row.on_policy else "off"
        name = f"{regime}, {row.distance}, V {row.vocabulary} T {row.length}"
        dots = strips_of.setdefault(name, [(row.noise, "a")])
        if row.best_noise is not None:
            dots.append((row.best_noise, "b"))
    return [Strip(name, dots) for name, dots in strips_of.items()]


def _worlds(found: Audit) -> str:
    heads = (
        *("samples", "distance", "V", "T", "KL(policy‖ref)", "loss", "error", "noise", "best"),
        "without gradient",
    )
    lines = [f"<tr>{''.join(f'<th>{esc(head)}</th>' for head in heads)}</tr>"]
    for row in found.rows:
        cells = (
            "on-policy" if row.on_policy else "off-policy",
            row.distance,
            row.vocabulary,
            row.length,
            f"{row.kl:.4f}",
            f"{row.value:.4g}",
            small(row.bias),
            "-" if row.noise is None else f"{row.noise:.3g}",
            "-" if row.best_noise is None else f"{row.best_noise:.3g}",
            f"{100 * row.dead_tokens:.3g} %",
        )
        lines.append(f"<tr>{''.join(f'<td>{esc(cell)}</td>' for cell in cells)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'
