"""What is known about a fit, as one record: `Evidence`. A verdict is a function of it alone.

Which to use: `gather`, through `diagnose`; then `bounds_on` for the bounds and `judge` for the
level and the words. Nothing here decides anything, so stored evidence can be judged anew with other
limits (`benchmarks/verdicts.py --ablation`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from kullback.core import require
from kullback.core.checks import describe
from kullback.sampled import effective_sample_size, pareto_k
from kullback.variational.limits import TAIL

from .missed_modes import Probed
from .moment_corrections import Moved, Shift, by_scores, by_weights, shift_between, tail_ratio

__all__ = ["Evidence", "Pool", "Sample", "gather", "spread"]

Pool = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Draws of q `[n, d]`, log p and log q there `[n]` in nats, and what belongs to them.

    scores: the gradients of both, `[n, d]` each, or None. of: the functions whose moments are
    judged, `[n, d]` to `[n, m]`; z itself where None. names: of these functions, or none.
    converged: whether the fitter thought it was done.
    """

    draws: Tensor
    log_p: Tensor
    log_q: Tensor
    scores: tuple[Tensor, Tensor] | None = None
    of: Callable[[Tensor], Tensor] | None = None
    names: tuple[str, ...] = ()
    converged: bool = True

    @property
    def log_weights(self) -> Tensor:
        """`log p − log q`, `[n]`, nats."""
        return self.log_p - self.log_q

    @property
    def broken(self) -> int:
        """How many draws have a log p of NaN or +inf."""
        logs = self.log_weights
        return int((logs.isnan() | (logs == math.inf)).sum())

    @property
    def empty(self) -> int:
        """How many draws lie where p has no mass."""
        return int((self.log_weights == -math.inf).sum())

    def values(self, draws: Tensor) -> Tensor:
        """Return the functions at draws `[k, d]`, `[k, m]`."""
        values = draws if self.of is None else self.of(draws).detach().double()
        good = values.ndim == 2 and len(values) == len(draws)
        require(good, "of", f"to return [{len(draws)}, m]", describe(values))
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that bounds and verdict depend on, for m functions of z.

    draws: n, of q; broken, empty: draws with log p NaN or +inf, and −inf. k_hat, ess_fraction,
    sd_log_weights: of q's own weights. own: the shift of the moments by q's weights. pooled: the
    same by pooled draws of q and of wider laws; None without. residual, pushed: of the scores, None
    without them or, for `pushed`, where their tilt has no mass. scored: whether there are scores.
    tails: see `tail_ratio`. elsewhere, away: share of p's mass on a missed peak and `[m]` its
    distance from q's mean, in sd of q. unreached: p's mass where q has less than a hundredth of its
    density, 0 without wider laws. endless: whether p's marginal does not decay along a coordinate
    that was followed. names, converged: see `Sample`.
    """

    draws: int
    broken: int
    empty: int
    k_hat: float
    ess_fraction: float
    sd_log_weights: float
    own: Shift
    pooled: Shift | None
    scored: bool
    residual: float | None
    pushed: Shift | None
    tails: Tensor | None
    elsewhere: float
    away: Tensor | None
    unreached: float
    endless: bool
    names: tuple[str, ...]
    converged: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, from which `from_dict` makes the record again."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> "Evidence":
        """Make the record that `to_dict` wrote down."""
        return cls(**{f.name: _read(f.name, kept[f.name]) for f in fields(cls)})


_SHIFTS = ("own", "pooled", "pushed")
_TENSORS = ("tails", "away")


def gather(
    sample: Sample,
    *,
    pool: Pool | None = None,
    probed: Probed | None = None,
    missing: float = 0.0,
    endless: bool = False,
) -> Evidence:
    """Compute the evidence from draws of q, from pooled draws, and from what was found elsewhere.

    pool: draws of q and of wider laws `[k, d]`, and their log weights `[k]` (see `pooled`).
    missing: what `unreached` found. endless: what `Ridge.endless` says of any.

    >>> z = torch.linspace(-2, 2, 401, dtype=torch.float64)[:, None]
    >>> sample = Sample(draws=z, log_p=0.1 * z[:, 0], log_q=0 * z[:, 0])
    >>> round(float(gather(sample).own.mean), 2)
    0.12
    """
    values, logs = sample.values(sample.draws), sample.log_weights
    if sample.broken or sample.empty == len(logs):
        return _nothing(sample, values.shape[1])
    effective = float(effective_sample_size(logs))
    moved = _moved(sample, logs)
    pooled, tails = None, None
    if pool is not None:
        seen = sample.values(pool[0])
        pooled = by_weights(seen, pool[1], against=values)
        tails = tail_ratio(seen, pool[1], values, share=TAIL)
    lost = moved is None or not moved.bounded
    return Evidence(
        draws=len(logs),
        broken=0,
        empty=sample.empty,
        k_hat=float(pareto_k(logs)),
        ess_fraction=effective / len(logs),
        sd_log_weights=spread(logs),
        own=by_weights(values, logs),
        scored=moved is not None,
        residual=None if moved is None else moved.residual,
        pushed=None if lost else shift_between(values, sample.values(moved.draws)),  # type: ignore[union-attr]
        elsewhere=0.0 if probed is None else probed.share,
        away=_away(sample, values, probed),
        unreached=missing,
        endless=endless,
        names=sample.names,
        converged=sample.converged,
        pooled=pooled,
        tails=tails,
    )


def spread(log_weights: Tensor) -> float:
    """Return the standard deviation of log weights `[n]` in nats, inf when one of them is −inf.

    >>> spread(torch.tensor([0.0, 0.0, 3.0]))
    1.732...
    """
    return math.inf if bool((log_weights == -math.inf).any()) else float(log_weights.std())


def _nothing(sample: Sample, functions: int) -> Evidence:
    """Return the evidence of weights that are NaN or infinite, or all zero."""
    lost = torch.full((functions,), math.nan, dtype=torch.float64)
    return Evidence(
        draws=len(sample.draws),
        broken=sample.broken,
        empty=sample.empty,
        k_hat=math.nan,
        ess_fraction=math.nan,
        sd_log_weights=math.nan,
        own=Shift(lost, lost, lost, lost),
        pooled=None,
        scored=False,
        residual=None,
        pushed=None,
        tails=None,
        elsewhere=0.0,
        away=None,
        unreached=0.0,
        endless=False,
        names=sample.names,
        converged=sample.converged,
    )


def _moved(sample: Sample, logs: Tensor) -> Moved | None:
    if sample.scores is None or len(sample.draws) <= 2 * sample.draws.shape[1]:
        return None
    difference = (sample.scores[0] - sample.scores[1]).detach().double()
    if not bool(difference.isfinite().all()):
        return None
    return by_scores(sample.draws, difference, torch.softmax(logs, 0))


def _away(sample: Sample, values: Tensor, probed: Probed | None) -> Tensor | None:
    """Return how far the missed peak's mean lies from q's, `[m]`, in sd of q."""
    if probed is None or probed.draws is None or probed.log_weights is None:
        return None
    share = torch.softmax(probed.log_weights, 0)[:, None].double()
    there = (share * sample.values(probed.draws)).sum(0)
    return (there - values.mean(0)) / values.std(0).clamp_min(1e-300)


def _plain(value: Any) -> Any:
    if isinstance(value, Shift):
        return {name: _plain(each) for name, each in value._asdict().items()}
    return value.tolist() if isinstance(value, Tensor) else value


def _read(name: str, value: Any) -> Any:
    if name in _SHIFTS and value is not None:
        return Shift(
            **{key: torch.tensor(each, dtype=torch.float64) for key, each in value.items()}
        )
    if name in _TENSORS and value is not None:
        return torch.tensor(value, dtype=torch.float64)
    return tuple(value) if name == "names" else value


def _double(value: list[float]) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
