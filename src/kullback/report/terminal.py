"""The table of an evaluation for a terminal: one figure a line, then what the figures mean.

Which to use: `evaluation_table`. It is plain text, so it can be piped, kept and compared.
"""

import textwrap
from typing import Any

from kullback.vae import Evaluation

from .words import figures, noun_of, protocol_line, remarks, scope

__all__ = ["evaluation_table"]

_BOLD, _DIM, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def evaluation_table(
    evaluation: Evaluation, protocol: dict[str, Any], *, color: bool, width: int = 100
) -> str:
    """Write an evaluation as lines of text: metric, value ± error, unit, note; no final newline.

    protocol: of the data that were evaluated; its line stands below the figures. color: with ANSI
    codes for bold and dim, and nothing else differs. width: at which the sentences are wrapped;
    the table itself is never wrapped.

    >>> import torch
    >>> from kullback.vae import build, evaluate
    >>> figures = evaluate(build((4,), "binary"), torch.ones(8, 4))
    >>> evaluation_table(figures, {"event_shape": [4]}, color=False).splitlines()[1].split()[0]
    'ELBO'
    """
    noun = noun_of(protocol)
    rows = list(figures(evaluation, noun=noun).values())
    values = max(len("value ± error"), *(len(row.value) for row in rows))
    units = max(len(row.unit) for row in rows)
    bold, dim, reset = (_BOLD, _DIM, _RESET) if color else ("", "", "")
    lines = [f"{dim}{'metric':<15}  {'value ± error':>{values}}    {'unit':<{units}}  note{reset}"]
    for row in rows:
        value = f"{bold}{row.value:>{values}}{reset}"
        lines.append(f"{row.name:<15}  {value}    {row.unit:<{units}}  {dim}{row.note}{reset}")
    below = [scope(evaluation, noun=noun), protocol_line(protocol)]
    lines += ["", *(f"{dim}{line}{reset}" for line in below)]
    for sentence in remarks(evaluation, noun=noun):
        lines += textwrap.wrap(sentence, width=max(20, width), subsequent_indent="  ")
    return "\n".join(lines)
