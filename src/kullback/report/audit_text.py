"""An audit for a terminal: the verdict, a table of errors and cosines, notes.

Which to use: `audit_table`; `grouped` for the figures behind the table, which the page shares.
"""

import textwrap
from collections.abc import Sequence

from kullback.tokens.auditing.findings import Audit, Row

from .layout import aligned

__all__ = ["GROUPS", "audit_table", "grouped", "how", "small"]

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
