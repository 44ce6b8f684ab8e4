"""An audit as one HTML file: the verdict, what it rests on, and pictures of it.

Which to use: `write`. The file needs no network, no script and no other file; it follows the
reader's light or dark setting.
"""

from pathlib import Path

from kullback.core import write_atomic
from kullback.tokens.auditing.findings import Audit, Finding, Row
from kullback.tokens.auditing.words import descent

from .audit_charts import Strip, pushes, strips
from .audit_text import GROUPS, grouped, how, small
from .markup import document, esc, figure, section

__all__ = ["render", "write"]

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
