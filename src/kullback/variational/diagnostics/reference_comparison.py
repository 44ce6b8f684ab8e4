"""A fit held to draws of the truth, where there are any: from long chains, or from simulation.

Which to use: `compare`. It takes both as dictionaries of constrained values; its errors are those
of the reference's and q's own finitely many draws as well as of q.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core import require
from kullback.variational.target.density import Target

__all__ = ["Compared", "Comparison", "compare"]


class Compared(NamedTuple):
    """One entry of one parameter: the reference's mean and sd, and how far q's are from them.

    mean_off: q's mean less the reference's, in the reference's sd. sd_ratio: q's sd over it.
    """

    name: str
    mean: float
    sd: float
    mean_off: float
    sd_ratio: float


class Comparison(NamedTuple):
    """All entries, and how many draws the reference has; prints as a table."""

    draws: int
    rows: tuple[Compared, ...]

    def __str__(self) -> str:
        wide = max(len("against"), *(len(row.name) for row in self.rows))
        heads = ("mean", "sd", "q's mean off", "q's sd")
        lines = [f"{'against':<{wide}}" + "".join(f"{head:>14}" for head in heads)]
        for row in self.rows:
            off = f"{row.mean_off:+.3f} sd"
            numbers = (f"{row.mean:.4g}", f"{row.sd:.4g}", off, f"{row.sd_ratio:.3f} of it")
            lines.append(f"{row.name:<{wide}}" + "".join(f"{text:>14}" for text in numbers))
        return "\n".join([*lines, f"against {self.draws:,} draws of the reference"])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"draws": self.draws, "parameters": [row._asdict() for row in self.rows]}


def compare(
    target: Target, draws: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> Comparison:
    """Return by how much the means and sds of q's draws differ from those of reference draws.

    draws: of q, `{name: [n, *shape]}`, as `Target.constrain` gives them; reference: draws of p
    under the same names, any number of them. An entry that does not vary in the reference (a corner
    of a Cholesky factor) is left out.
    Errors: `ArgumentValueError` for a name that is missing, another shape, or fewer than 2 draws.

    >>> target = Target.of(lambda z: -0.5 * (z * z).sum(), 1)
    >>> truth = {"z": torch.tensor([[-1.0], [1.0]])}
    >>> compare(target, {"z": torch.tensor([[0.0], [2.0]])}, truth).rows[0].mean_off.__round__(3)
    0.707
    """
    for name, one in draws.items():
        other = reference.get(name)
        has = other is not None and other.shape[1:] == one.shape[1:] and len(other) >= 2
        shape = f"at least 2 draws of {name} {list(one.shape[1:])}"
        require(has, "reference", shape, "none" if other is None else list(other.shape))
    q, p = (_columns(held, draws) for held in (draws, reference))
    sd = p.std(0)
    rows = []
    for i, name in enumerate(target.layout.value_names):
        if float(sd[i]) > 0:
            off = float((q[:, i].mean() - p[:, i].mean()) / sd[i])
            ratio = float(q[:, i].std() / sd[i])
            rows.append(Compared(name, float(p[:, i].mean()), float(sd[i]), off, ratio))
    require(bool(rows), "reference", "an entry that varies", "constants")
    return Comparison(len(p), tuple(rows))


def _columns(values: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([values[n].detach().double().reshape(len(values[n]), -1) for n in names], 1)
