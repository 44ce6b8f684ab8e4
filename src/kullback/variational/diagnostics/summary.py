"""What a fit says: its diagnosis, a table by parameter, better draws, and the way to ArviZ.

Which to use: `assess` for the verdict, `summarise` for the table, `resample` for draws that are
corrected by their importance weights, `to_arviz` for everything ArviZ can do; all take what
`kullback.variational.fit` returns. `compare` holds draws of q to reference draws of p, from long
chains or from simulation; its errors are those of finitely many draws of both as well as of q.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kullback.core import RunError, require, require_count
from kullback.sampled import pareto_smooth
from kullback.variational import limits
from kullback.variational.predictions import Drawn, to_arviz
from kullback.variational.target.density import Target

from .diagnose import Diagnosis, diagnose_beyond, diagnose_sample
from .evidence import Pool, Sample
from .verdict import of_improper, with_edges

__all__ = [
    "Compared",
    "Comparison",
    "Fitted",
    "Row",
    "Summary",
    "assess",
    "compare",
    "resample",
    "summarise",
    "to_arviz",
]


class Compared(NamedTuple):
    """One entry of one parameter: the reference's mean and sd, and how far q's are from them.

    mean_off: q's mean less the reference's, in the reference's sd. sd_ratio: q's sd over it.
    mean_off_error, sd_ratio_error: standard errors of both, by the numbers of draws; the
    reference's by batch means, so that draws of a chain may depend on each other.
    """

    name: str
    mean: float
    sd: float
    mean_off: float
    sd_ratio: float
    mean_off_error: float = math.nan
    sd_ratio_error: float = math.nan


class Comparison(NamedTuple):
    """All entries, and how many draws the reference has; prints as a table."""

    draws: int
    rows: tuple[Compared, ...]

    def __str__(self) -> str:
        wide = max(len("against"), *(len(row.name) for row in self.rows))
        heads = ("mean", "sd", "q's mean off", "q's sd")
        lines = [f"{'against':<{wide}}" + "".join(f"{head:>21}" for head in heads)]
        for row in self.rows:
            off = f"{row.mean_off:+.3f} ± {row.mean_off_error:.3f} sd"
            ratio = f"{row.sd_ratio:.3f} ± {row.sd_ratio_error:.3f}"
            numbers = (f"{row.mean:.4g}", f"{row.sd:.4g}", off, ratio)
            lines.append(f"{row.name:<{wide}}" + "".join(f"{text:>21}" for text in numbers))
        foot = f"against {self.draws:,} draws of the reference, q's sd as a share of its sd"
        return "\n".join([*lines, f"{foot}; ± standard errors of these draws"])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"draws": self.draws, "parameters": [row._asdict() for row in self.rows]}


def compare(
    target: Target, draws: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> Comparison:
    """Return by how much the means and sds of q's draws differ from those of reference draws.

    An entry that does not vary in the reference (a corner of a Cholesky factor) is left out.

    Args:
        target: p, for the names.
        draws: of q, `{name: [n, *shape]}`, as `Fit.posterior` has them.
        reference: draws of p under the same names, any number of them.

    Returns:
        The differences, entry by entry; `str` of them is a table.

    Raises:
        ArgumentValueError: for a name that is missing, another shape, or fewer than 2 draws.

    Example:
        >>> target = Target.of(lambda z: -0.5 * (z * z).sum(), 1)
        >>> reference = {"z": torch.tensor([[-1.0], [1.0]])}
        >>> rows = compare(target, {"z": torch.tensor([[0.0], [2.0]])}, reference).rows
        >>> rows[0].mean_off.__round__(3)
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
            centre = p[:, i].mean()
            of_mean, of_sd = _errors((q[:, i] - centre) / sd[i], (p[:, i] - centre) / sd[i])
            row = Compared(name, float(centre), float(sd[i]), off, ratio, of_mean, of_sd)
            rows.append(row)
    require(bool(rows), "reference", "an entry that varies", "constants")
    return Comparison(len(p), tuple(rows))


def _errors(q: Tensor, p: Tensor) -> tuple[float, float]:
    """Return standard errors of the difference of means and of the ratio of sds.

    q, p: draws in units of p's sd; those of q are independent.
    """
    ratio = float(q.std() / p.std())
    spread = (q - q.mean()).square()
    of_q = float(q.var()) / len(q), float(spread.var() / spread.mean().square()) / len(q)
    of_p = _of_batches(p), _of_batches((p - p.mean()).square())
    return math.sqrt(of_q[0] + of_p[0]), ratio * math.sqrt(of_q[1] + of_p[1]) / 2


def _of_batches(x: Tensor) -> float:
    """Return the variance of a chain's mean, from the means of √n batches; few draws alone."""
    if len(x) < limits.FEWEST_BATCHED:
        return float(x.var()) / len(x)
    size = math.isqrt(len(x))
    means = x[: len(x) // size * size].view(-1, size).mean(1)
    return float(means.var()) / len(means)


def _columns(values: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([values[n].detach().double().reshape(len(values[n]), -1) for n in names], 1)


class Fitted(Drawn, Protocol):
    """What is judged: a `Fit`, or anything with these parts; densities are in nats."""

    @property
    def scores(self) -> tuple[Tensor, Tensor]:
        """Gradients of both at the draws, `[n, d]`."""

    @property
    def converged(self) -> bool:
        """Whether the fitter thought it was done."""


class Row(NamedTuple):
    """One entry of one parameter: moments and quantiles of q, and how far off they may be.

    mean_error: a bound on the error of the mean, in the parameter's own unit. sd_error: a bound on
    the ratio of the true sd to this one or its inverse, less 1. Both may be inf.
    """

    name: str
    mean: float
    sd: float
    quantiles: tuple[float, float, float]
    mean_error: float
    sd_error: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The table of a fit, one `Row` an entry in the constrained space, under its verdict."""

    verdict: str
    rows: tuple[Row, ...]
    searched: str = ""

    def __str__(self) -> str:
        wide = max(len("parameter"), *(len(row.name) for row in self.rows))
        head = ("mean", "sd", "5 %", "50 %", "95 %", "mean off", "sd off")
        lines = [self.verdict, "", f"{'parameter':<{wide}}" + "".join(f"{h:>11}" for h in head)]
        for row in self.rows:
            numbers = (row.mean, row.sd, *row.quantiles, row.mean_error)
            cells = "".join(f"{_short(value):>11}" for value in numbers)
            ratio = "unknown" if row.sd_error > limits.MAX_SD_RATIO_SHOWN else f"{row.sd_error:.0%}"
            lines.append(f"{row.name:<{wide}}{cells}{ratio:>11}")
        foot = "mean off: bound on the error of the mean; sd off: on the relative error of the sd"
        lines += ["", foot]
        return "\n".join([*lines, self.searched] if self.searched else lines)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; infinite bounds become None (nothing can be said)."""
        rows = [
            row._asdict()
            | {"mean_error": _finite(row.mean_error), "sd_error": _finite(row.sd_error)}
            for row in self.rows
        ]
        return {"verdict": self.verdict, "parameters": rows}


def assess(
    fit: Fitted, *, search: bool = True, generator: torch.Generator | None = None
) -> Diagnosis:
    """Diagnose a fit by its own draws: the moments judged are those of the constrained parameters.

    Args:
        fit: what `fit` or `load` returned.
        search: also look beyond q (see `diagnose_beyond`), for peaks that it has missed and, where
            the fit has a `log_prob`, by draws of a wider distribution. Above 100 dimensions, and
            where the target has mini-batches of rows, that is left out.
        generator: for that search; seed 0 by default.

    Returns:
        The level, the sentence, and the numbers behind them.

    Raises:
        ArgumentValueError: for fewer than 100 draws.

    Example:
        >>> from kullback.variational import fit
        >>> print(assess(fit(lambda z: -0.5 * (z * z).sum(), 2)).level)
        trust
    """
    target = fit.target
    sample = Sample(
        draws=fit.draws,
        log_p=fit.log_p,
        log_q=fit.log_q,
        scores=fit.scores,
        of=lambda z: _flat(target, z),
        names=target.layout.value_names,
        converged=fit.converged,
    )
    if getattr(fit, "improper", False):  # there are no moments to bound
        found = diagnose_sample(sample)
        return replace(found, judged=of_improper(getattr(fit, "reason", ""), found.evidence))
    if not search or target.dim > limits.MAX_SEARCHED_DIMENSIONS or target.rows is not None:
        return diagnose_sample(sample)
    log_prob = getattr(fit, "log_prob", None)  # a fit read back from disk may have no q
    found = diagnose_beyond(
        target.log_density,
        log_prob,
        sample,
        probed=getattr(fit, "probed", None),
        few=target.looped,
        generator=generator,
    )
    declare = getattr(fit, "declare", "")
    return replace(found, judged=with_edges(found.judged, declare)) if declare else found


def summarise(fit: Fitted, diagnosis: Diagnosis) -> Summary:
    """Return the table by parameter, in the constrained space, from the fit's own draws.

    Quantiles are q's; so are mean and sd, not corrected by the bounds beside them.

    Args:
        fit: what `fit` or `load` returned.
        diagnosis: what `assess` says of it.

    Returns:
        The table; `str` of it is text.

    Example:
        >>> from kullback.variational import fit
        >>> found = fit(lambda z: -0.5 * (z * z).sum(), 1)
        >>> print(str(summarise(found, assess(found))).splitlines()[2].split()[:3])
        ['parameter', 'mean', 'sd']
    """
    values = _flat(fit.target, fit.draws)
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)
    quantiles = torch.quantile(values, levels, dim=0)
    sds, means = values.std(0), values.mean(0)
    far, wide = diagnosis.mean_bound * sds, diagnosis.log_sd_bound.expm1()
    rows = []
    for i, name in enumerate(fit.target.layout.value_names):
        low, middle, high = quantiles[:, i].tolist()
        row = Row(
            name=name,
            mean=float(means[i]),
            sd=float(sds[i]),
            quantiles=(low, middle, high),
            mean_error=float(far[i]),
            sd_error=float(wide[i]),
        )
        rows.append(row)
    return Summary(diagnosis.verdict, tuple(rows), diagnosis.searched)


def resample(
    fit: Fitted,
    n: int,
    diagnosis: Diagnosis | None = None,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return n draws `{name: [n, *shape]}` picked by Pareto-smoothed importance weights p/q.

    They follow p more closely than q does where that is sound, and repeat themselves: n should not
    exceed the number of effective draws. They come from q and, where the diagnosis looked beyond
    it, from the wider distribution as well. Approximate: right as the number of draws grows.
    Reference: Vehtari et al. (2024), section 2; Kitagawa (1996) for systematic resampling.

    Args:
        fit: what `fit` or `load` returned.
        n: how many draws, at least 1.
        diagnosis: what `assess` says of the fit; by default the fit's own, or `assess(fit)`.
        generator: the source of randomness; torch's global one by default.

    Returns:
        Names and shapes as in `Fit.posterior`.

    Raises:
        RunError: with the reason when the weights cannot carry it (fewer than 100 effective draws;
            one of them 2 % of all, or of q alone k̂ of 0.7 or more with unequal weights).
        ArgumentValueError: for n < 1.

    Example:
        >>> from kullback.variational import fit
        >>> found = fit(lambda z: -0.5 * (z * z).sum(), 2)
        >>> resample(found, 500)["z"].shape
        torch.Size([500, 2])
    """
    require(not isinstance(n, int) or n >= 1, "n", "at least 1 draw", n)
    n = require_count(n, "n")
    diagnosis = diagnosis or getattr(fit, "diagnosis", None) or assess(fit)
    if diagnosis.resampling:
        raise RunError(f"importance-resampled draws would be unsound: {diagnosis.resampling}")
    pool = diagnosis.pool or Pool(fit.draws, fit.log_p - fit.log_q)
    share = torch.softmax(pareto_smooth(pool.log_weights)[0], 0)
    first = torch.rand((), generator=generator, dtype=share.dtype)
    places = (torch.arange(n, dtype=share.dtype) + first) / n
    picked = torch.searchsorted(share.cumsum(0), places).clamp_max(len(share) - 1)
    picked = picked[torch.randperm(n, generator=generator)]
    return fit.target.constrain(pool.draws[picked])


def _flat(target: Target, z: Tensor) -> Tensor:
    """Return the constrained values side by side, `[n, d]` → `[n, m]`."""
    with torch.no_grad():
        values = target.constrain(z)
    return torch.cat([value.reshape(len(z), -1) for value in values.values()], 1)


def _short(value: float) -> str:
    return "unknown" if value == float("inf") else f"{value:.4g}"


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
