"""An audit of a loss: as text for a terminal, and as one HTML file with pictures of it.

Which to use: `audit_table` for text; `write` for the page, which needs no network, no script and no
other file and follows the reader's light or dark setting. Behind them: `grouped` for the figures of
both, `pushes` for how hard a token is pushed, `strips` for errors and noise on a logarithmic scale.
"""

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from kullback.core import write_atomic
from kullback.tokens import Audit, auditing

from . import html
from .figures import PAGE_COLORS, inline_svg, page_figure, round_ticks
from .limits import PUSH_REACH, SMALL, WHOLE_ERROR
from .text_layout import aligned

Row: TypeAlias = auditing.Row

__all__ = [
    "GROUPS",
    "Group",
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


@dataclass(frozen=True, slots=True)
class Group:
    """Worlds of one kind: their title, whether on-policy, and how far policy and reference are."""

    title: str
    on_policy: bool
    distance: str

    def of(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Return the rows of an audit whose world is of this kind."""
        kind = (self.on_policy, self.distance)
        return (row for row in rows if (row.on_policy, row.distance) == kind)


GROUPS = tuple(
    Group(f"{title}-policy, {distance}", title == "on", distance)
    for title in ("on", "off")
    for distance in ("near", "far")
)


def audit_table(found: Audit, *, width: int = 100) -> str:
    """Write an audit as lines of text; no final newline.

    Args:
        found: What `kullback.tokens.audit` returned.
        width: Letters a line, at which sentences are wrapped; the table is not.

    Returns:
        The verdict; a table of the worst relative error of the expected gradient to each
        divergence's, and the smallest cosine, over the worlds of each kind; the notes.

    Example:
        >>> from kullback.tokens import audit
        >>> found = audit(lambda logp, ref_logp: (logp - ref_logp) ** 2)
        >>> print(audit_table(found, width=80).splitlines()[0])
        <lambda>, a loss: On-policy it descends KL(policy‖ref), token by token. Off-
    """
    head = f"{found.name}, {how(found)}: {found.verdict}"
    rows: list[list[str]] = [["error, cosine to", "level", *(group.title for group in GROUPS)]]
    for (name, level), cells in grouped(found).items():
        shown = ["-" if one is None else f"{small(one[0])} {one[1]:5.2f}" for one in cells]
        rows.append([name, level, *shown])
    noise = ["noise of one draw", "", *(_noise(found.rows, group) for group in GROUPS)]
    dead = [
        "tokens without gradient",
        "",
        *(f"{100 * _dead(found.rows, group):.3g} %" for group in GROUPS),
    ]
    table = aligned([*rows, noise, dead], left=(0, 1))
    said = [textwrap.fill(f"- {note}.", width, subsequent_indent="  ") for note in found.notes]
    return "\n".join([textwrap.fill(head, width), "", *table, "", *said]).rstrip()


def how(found: Audit) -> str:
    """Return in words how a loss was taken: as a loss, or as a penalty with its credit and weights.

    Args:
        found: An audit of a loss.

    Returns:
        A few words, for the page's first line.

    Example:
        >>> from kullback.tokens import audit
        >>> how(audit(lambda logp, ref_logp: logp - ref_logp, form="penalty"))
        'a penalty (to-go, weighted by none)'
    """
    if found.form == "loss":
        return "a loss"
    return f"a {found.form} ({found.credit}, weighted by {found.importance})"


def grouped(found: Audit) -> dict[tuple[str, str], list[tuple[float, float] | None]]:
    """Return the largest error and smallest cosine of each of `GROUPS`, by divergence and level.

    Args:
        found: An audit of a loss.

    Returns:
        For each (divergence, level) a list with one entry a group: the largest relative error and
        the smallest cosine with the gradient, or None where no world of the group was compared.

    Example:
        >>> from kullback.tokens import audit
        >>> found = audit(lambda logp, ref_logp: logp - ref_logp, form="penalty")
        >>> {len(cells) for cells in grouped(found).values()} == {len(GROUPS)}
        True
    """
    table: dict[tuple[str, str], list[tuple[float, float] | None]] = {}
    for at, group in enumerate(GROUPS):
        for one in itertools.chain.from_iterable(r.comparisons for r in group.of(found.rows)):
            cells = table.setdefault((one.divergence, one.level), [None] * len(GROUPS))
            error, cosine = cells[at] or (0.0, 1.0)
            cells[at] = max(error, one.error), min(cosine, one.cosine)
    return table


def small(value: float) -> str:
    """Return a relative error in a few characters.

    Args:
        value: ≥ 0, a pure number.

    Returns:
        One digit and an exponent below `limits.SMALL`, else two decimals, or three digits from
        `limits.WHOLE_ERROR` on.

    Example:
        >>> small(3.2e-16), small(0.534), small(12.0)
        ('3e-16', '0.53', '12')
    """
    if value < SMALL:
        return f"{value:.0e}" if value > 0 else "0"
    return f"{value:.2f}" if value < WHOLE_ERROR else f"{value:.3g}"


def _noise(rows: Sequence[Row], group: "Group") -> str:
    """Say the largest noise, of sequences: one token has none when all tokens are summed over."""
    known = [r for r in group.of(rows) if r.noise is not None and r.length > 1]
    if not known:
        return "-"
    worst = max(known, key=lambda row: row.noise or 0.0)
    best = "" if worst.best_noise is None else f" (best {worst.best_noise:.2g})"
    return f"{worst.noise:.2g}{best}"


def _dead(rows: Sequence[Row], group: "Group") -> float:
    return max(float(row.dead_tokens) for row in group.of(rows))


def write(found: Audit, path: str | Path) -> Path:
    """Write an audit as an HTML page, whole or not at all, and return its path.

    Args:
        found: What `kullback.tokens.audit` returned. The same audit gives the same bytes.
        path: The file.

    Returns:
        The path.

    Raises:
        RunError: The disk refuses.

    Example:
        >>> from kullback.tokens import audit
        >>> write(audit(lambda logp, ref_logp: (logp - ref_logp) ** 2), "audit.html").name
        'audit.html'
    """
    path = Path(path)
    write_atomic(path, render(found))
    return path


def render(found: Audit) -> str:
    """Return the whole page of an audit as HTML.

    Args:
        found: An audit of a loss.

    Returns:
        One HTML document, which needs no other file.

    Example:
        >>> from kullback.tokens import audit
        >>> page = render(audit(lambda logp, ref_logp: logp - ref_logp, form="penalty"))
        >>> page.rstrip().endswith("</html>")
        True
    """
    given = ", ".join(
        name if name == role else f"{name} ({role})" for name, role in found.arguments.items()
    )
    errors = strips(
        _error_strips(found), low=1e-17, high=10.0, label="relative errors", unit="relative error"
    )
    noise = strips(
        _noise_strips(found.rows), low=0.03, high=100.0, label="noise", unit="noise of one draw"
    )
    return html.render(
        "audit.html",
        found=found,
        facts=[how(found), f"given {given}", f"{len(found.rows)} worlds, enumerated in float64"],
        cards=[_card(one) for one in found.findings],
        notes=[f"{note[0].upper()}{note[1:]}." for note in found.notes],
        pushes=html.markup(pushes(found.response)),
        errors=html.markup(errors),
        noise=html.markup(noise),
        heads=_HEADS,
        worlds=[_cells(row) for row in found.rows],
    )


_UNNAMED = {
    "zero": "nothing",
    "near zero": "nothing",
    "not finite": "inf or NaN",
    "none": "none of them",
}


def _card(one: auditing.Finding) -> dict[str, str]:
    way = f"it {auditing.descent(one)}."
    scale = ", ".join(f"{scale:.3g} (T = {length})" for length, scale in one.scale.items())
    return {
        "regime": "On-policy" if one.on_policy else "Off-policy",
        "descends": _UNNAMED.get(one.kind, one.descends),
        "error": f"error {small(one.error)}, cosine {one.cosine:.3g}" if one.descends else "",
        "way": way[0].upper() + way[1:],
        "scale": scale if one.kind == "exact" else "",
    }


_HEADS = (
    *("samples", "distance", "V", "T", "KL(policy‖ref)", "loss", "error", "noise", "best"),
    "without gradient",
)


def _cells(row: Row) -> tuple[object, ...]:
    return (
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


def pushes(response: Sequence[tuple[float, float]]) -> str:
    """Draw how hard a token is pushed against log policy/ref, beside what the two KLs would do.

    The curves of KL(policy‖ref), log policy/ref itself, and of KL(ref‖policy), 1 − ref/policy, are
    dashed; the loss is scaled to their slope, 1, at 0 (where it has none, its largest push within
    one nat to 1). Where it does not push at all, the axis is thick.

    Args:
        response: Pairs as in `Audit.response`.

    Returns:
        Markup, with a title for each curve.

    Example:
        >>> pushes([(-1.0, -1.0), (0.0, 0.0), (1.0, 1.0)]).count("<title>")
        3
    """
    inside = [(x, y) for x, y in response if abs(x) <= PUSH_REACH and math.isfinite(y)]
    about = dict(inside)
    slope = (about.get(0.2, 0.0) - about.get(-0.2, 0.0)) / 0.4
    size = slope or max((abs(y) for x, y in inside if abs(x) <= 1.0), default=0.0) or 1.0
    xs = [-PUSH_REACH + PUSH_REACH * i / 60 for i in range(121)]
    dashed: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.3}
    curves = (
        ("KL(policy‖ref)", [(x, x) for x in xs], "b", dashed),
        ("KL(ref‖policy)", [(x, 1 - math.exp(-x)) for x in xs], "soft", dashed),
        ("this loss", [(x, y / size) for x, y in inside], "a", {"linewidth": 1.8}),
    )
    with page_figure() as figure:
        axis = figure.subplots()
        for name, points, color, style in curves:
            # far outside the frame a curve is cut, so that its coordinates stay small
            ys = [max(-4 * PUSH_REACH, min(4 * PUSH_REACH, y)) for _, y in points]
            axis.plot([x for x, _ in points], ys, color=PAGE_COLORS[color], gid=name, **style)
        still = [(x, z) for (x, y), (z, w) in itertools.pairwise(inside) if y == w == 0.0]
        for low, high in still:
            axis.plot([low, high], [0.0, 0.0], color=PAGE_COLORS["a"], linewidth=6)
        axis.set_xlim(-PUSH_REACH, PUSH_REACH)
        axis.set_ylim(-PUSH_REACH, PUSH_REACH)
        round_ticks(axis.xaxis)
        round_ticks(axis.yaxis)
        axis.set_xlabel("log policy/ref of the token, nats")
        axis.set_title("push down")
        return inline_svg(figure, label="push on a token against log policy/ref")


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of dots: a name and pairs of a value and a colour, one of `figures.PAGE_COLORS`.

    Example:
        >>> Strip("KL(policy‖ref)", [(1e-16, "a")]).name
        'KL(policy‖ref)'
    """

    name: str
    dots: Sequence[tuple[float, str]]


_ROW, _AROUND, _TICKS, _LANE = 24, 70, 5, 0.25  # pixels a row, beside them; ticks; rows a colour


def strips(rows: Sequence[Strip], *, low: float, high: float, label: str, unit: str) -> str:
    """Draw rows of dots on a logarithmic scale; what lies beyond it sits on its ends.

    Args:
        rows: From top to bottom; colours stand one above the other in a row.
        low: The left end, above 0.
        high: The right end.
        label: What the chart shows, for readers who cannot see it.
        unit: Of the values.

    Returns:
        Markup.

    Example:
        >>> two = [Strip("k2", [(0.1, "a"), (0.2, "a")])]
        >>> strips(two, low=1e-3, high=1, label="noise", unit="noise").count("<use")
        2
    """
    first, last = round(math.log10(low)), round(math.log10(high))
    with page_figure(height=_AROUND + _ROW * len(rows)) as figure:
        axis = figure.subplots()
        for at, row in enumerate(rows):
            colors = list(dict.fromkeys(color for _, color in row.dots))
            for lane, color in enumerate(colors):
                values = [min(max(v, low), high) for v, used in row.dots if used == color]
                up = at + _LANE * (lane - (len(colors) - 1) / 2)
                dots: dict[str, Any] = {"markersize": 6, "markeredgewidth": 0, "alpha": 0.75}
                dots |= {"color": PAGE_COLORS[color], "clip_on": False, "gid": row.name}
                axis.plot(values, [up] * len(values), "o", **dots)
        axis.set_xscale("log")
        axis.set_xlim(low, high)
        axis.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        axis.grid(visible=False, axis="y")
        axis.grid(visible=True, axis="x")
        powers = range(first, last + 1, max(1, round((last - first) / _TICKS)))
        shown = [power for power in powers if low <= 10.0**power <= high]
        axis.set_xticks([10.0**power for power in shown], [_power(power) for power in shown])
        axis.minorticks_off()
        axis.set_yticks(range(len(rows)), [row.name for row in rows])
        axis.set_xlabel(unit)
        return inline_svg(figure, label=label)


def _power(power: int) -> str:
    """Print a power of ten: plain from 0.01 to 1000."""
    return f"{10.0**power:g}" if power in range(-2, 4) else f"1e{power}"


def _error_strips(found: Audit) -> list[Strip]:
    rows = []
    for (name, level), cells in grouped(found).items():
        dots = [
            (cell[0], "a" if group.on_policy else "b")
            for cell, group in zip(cells, GROUPS, strict=True)
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
