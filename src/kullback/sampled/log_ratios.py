"""KL(p‖q) from log p(x) and log q(x) at draws x: k1, k2, k3, any λ and the best λ, streaming.

Which to use: `log_ratio` when all draws are at hand; `LogRatios` when they come in pieces, from
many processes, or are too many to keep: `LogRatios.of` each piece, add them up, `estimate`. The
first is the second with one piece. k1 is right whatever the supports. With full supports
`estimator="best"` (cross-fitted, unbiased) has less variance, and is k1 where r = q/p has a heavy
tail: over the families of benchmarks/interval_coverage.py its true error was 0.98 times that of
the better of k1 and k3 in the median, at worst 1.8 times (Var(r) infinite, 1,000 draws). k3 is the
choice when single terms must not be negative.

Reference: MATH 5; Schulman (2020); Chan, Golub and LeVeque (1979) for the merging.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kullback.core import Estimate, require, require_type

from . import limits
from .control_variates import choose_parts, judge, known_means, told_of
from .error_bars import chain_of, of_a_chain
from .estimators import RATIO, WEIGHT, Estimator, Moments, coefficients, log_ratio_terms
from .identity import Identity, coarsest_type, entropy_identity, half_ulps
from .summary_stats import Draws, Entrants, SummaryStats

__all__ = ["LogRatios", "log_ratio"]

_K1 = 'estimator="k1" without full_support and ratio_mean, if the draws do come from p'

_PIECE, _BATCH_PIECE = 1 << 16, 1 << 19  # draws (times batch) looked at together: stay in cache


def log_ratio(
    log_p: Tensor,
    log_q: Tensor,
    *,
    estimator: Estimator = "k1",
    full_support: bool = False,
    ratio_mean: Tensor | float | None = None,
    entropies: Tensor | None = None,
    cross_fit: bool = True,
    log_weights: Tensor | None = None,
    self_normalise: bool = False,
    controls: Tensor | None = None,
) -> Estimate:
    """Estimate KL(p‖q) = E_p[log p(x) − log q(x)] from log densities at draws x ~ p.

    k1 (the default) is right whatever the supports. k3, λ ≠ 0 and "best" add `λ (r − 1)`, r = q/p,
    whose mean under p is 0 only where q has no mass outside p's support: with truncated sampling
    (top-p, top-k) they are biased by `λ (Q(supp p) − 1)`. They need `full_support` or `ratio_mean`.

    Args:
        log_p: `[*batch, draws]`, in nats, normalised.
        log_q: The same shape.
        estimator: "k1", "k2", "k3", a number λ (MATH 5.3), or "best": λ and the multiples of all
            `controls` of least variance (MATH 5.5), each half of the draws taking them from the
            other half (`cross_fit=True`: unbiased) or all from all (a bias of order 1/draws). A
            multiple is 0 where the variance of r, or of that control, is infinite as far as draws
            can tell; `how` of the result says which λ it was.
        full_support: Assert that q has no mass outside p's support: two full softmaxes, draws from
            p itself. `E_p[r] = 1` is tested all the same.
        ratio_mean: The known mean of r, `Q(supp p)`, a number or `[*batch]`; the control is then
            `r − ratio_mean`.
        entropies: `[*batch, draws]`, the entropy of p at each draw's position, in nats. The mean of
            `−log p` is tested against theirs, which sees draws made at another temperature and raw
            log-probabilities under top-p. Nothing else sees those.
        cross_fit: As above.
        log_weights: `[*batch, draws]`, log p(x) − log m(x) when x ~ m instead of p; then also
            `log w` up to a constant with `self_normalise=True`, which divides by the mean weight.
            The mean of plain weights is tested against 1.
        self_normalise: As above.
        controls: `[*batch, draws, K]`, further functions of x whose mean under p is 0; for "best".

    Returns:
        An `Estimate` `[*batch]`. Exact in expectation for k1, and for k3 and λ where the identity
        holds; k2's expectation is ½E[log² r], another number. `k_hat` is that of the heaviest thing
        in the terms; `rounding` what the rounding of log_p and log_q may add. No error bar where
        every term is the same, or where the largest have so heavy a tail that no mean can be
        inferred. Where neighbouring draws are correlated (a chain) the error is widened by their
        autocorrelation time, with a warning. Where the draws refute `E_p[r] = 1`: k1 has
        `bias="unknown"` and says why, and no error bar if the mean is above 1, which no supports
        explain.
        log q = −inf at a draw: +inf, as KL is. NaN stays NaN. No gradient flows; float64 inside.

    Raises:
        ValueError: For shapes, fewer than 2 draws (4 when cross-fitted), unknown names; k3, λ ≠ 0
            or "best" without a known support; an identity that the draws refute.

    Reference: MATH 5.1 to 5.6.

    >>> x = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> log_p, log_q = -0.5 * x**2, -0.5 * (x - 0.1) ** 2
    >>> print(log_ratio(log_p, log_q))
    0.0065 ± 0.0016 nats
    >>> print(log_ratio(log_p, log_q, estimator="best", full_support=True))
    0.00496 ± 0.00011 nats
    """
    pieces = LogRatios.of(log_p, log_q, log_weights=log_weights, controls=controls)
    if entropies is not None:
        entropy_identity(log_p, entropies, log_weights=log_weights).require("entropies")
    chain = chain_of(_in_order(log_p, log_q, estimator, log_weights, centred=self_normalise))
    found = pieces.estimate(
        estimator,
        cross_fit=cross_fit,
        self_normalise=self_normalise,
        full_support=full_support,
        ratio_mean=ratio_mean,
        time=None if chain is None else chain.time,
    )
    return found if chain is None else of_a_chain(found, chain)


def _in_order(
    log_p: Tensor,
    log_q: Tensor,
    estimator: Estimator,
    log_weights: Tensor | None,
    *,
    centred: bool,
) -> list[Tensor]:
    """Return the terms by draw, `[*batch, draws]`; for "best" those of k1 and of k3.

    centred: their weighted mean is taken off, as where weights are normalised by their own mean.
    """
    first = slice(limits.MAX_ORDERED_DRAWS)
    p, q = log_p[..., first].detach().double(), log_q[..., first].detach().double()
    names: list[Estimator] = ["k1", "k3"] if estimator == "best" else [estimator]
    terms = [log_ratio_terms(p, q, estimator=name) for name in names]
    if log_weights is None:
        return terms
    weights = log_weights[..., first].detach().double().softmax(-1)
    if centred:
        terms = [each - (weights * each).sum(-1, keepdim=True) for each in terms]
    return [weights * each for each in terms]


@dataclass(frozen=True, slots=True)
class LogRatios:
    """What must be remembered of draws to estimate KL(p‖q) by any estimator: some thousand numbers.

    `LogRatios.of(log_p, log_q)` is one piece, `a + b` (or `sum(pieces)`) two, in any order,
    `a.add(log_p, log_q)` one with a further piece, and `estimate` the number, equal to that of
    `log_ratio` on all draws at once up to rounding (when cross-fitted: if pieces have an even
    number of draws, since the halves are every other draw). Immutable; holds nothing but float64
    tensors and counts, so it can be pickled and sent between processes.

    >>> x = torch.arange(-3.0, 3.0, 0.5, dtype=torch.float64)
    >>> pieces = [LogRatios.of(-0.5 * part**2, -0.5 * (part - 1) ** 2) for part in x.split(4)]
    >>> sum(pieces).estimate("k1").value == log_ratio(
    ...     -0.5 * x**2, -0.5 * (x - 1) ** 2, estimator="k1"
    ... ).value
    True
    """

    halves: tuple[SummaryStats, SummaryStats]
    log_scale: Tensor
    rounding: Tensor  # [*batch, 2]: sums over draws of how far log r may be off, and its square
    weighted: bool

    @classmethod
    def of(
        cls,
        log_p: Tensor,
        log_q: Tensor,
        *,
        log_weights: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> "LogRatios":
        """Look at one piece of draws; arguments and errors as in `log_ratio`.

        >>> LogRatios.of(torch.zeros(8), torch.zeros(8)).draws
        8
        """
        _check(log_p, log_q, log_weights, controls)
        return _seen(None, log_p, log_q, log_weights, controls)

    def add(
        self,
        log_p: Tensor,
        log_q: Tensor,
        *,
        log_weights: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> "LogRatios":
        """Return this and one more piece of draws: `self + LogRatios.of(...)`, but faster.

        >>> piece = torch.zeros(8)
        >>> LogRatios.of(piece, piece).add(piece, piece).draws
        16
        """
        _check(log_p, log_q, log_weights, controls)
        if self.weighted or log_weights is not None:
            return self + LogRatios.of(log_p, log_q, log_weights=log_weights, controls=controls)
        extra = 0 if controls is None else controls.shape[-1]
        self._require_kind([*log_p.shape[:-1], WEIGHT + extra], weighted=False)
        joined = _seen(self.halves, log_p, log_q, None, controls)
        return joined._with(self, joined.halves)

    @property
    def draws(self) -> int:
        """The number of draws."""
        return self.halves[0].moments.count + self.halves[1].moments.count

    def __add__(self, other: "LogRatios") -> "LogRatios":
        shape = list(other.halves[0].moments.mean.shape)
        self._require_kind(shape, weighted=other.weighted)
        top = torch.maximum(self.log_scale, other.log_scale)
        a, b = self._at(top), other._at(top)
        return a._with(b, (a.halves[0] + b.halves[0], a.halves[1] + b.halves[1]))

    def __radd__(self, other: int) -> "LogRatios":
        return self if other == 0 else NotImplemented  # what `sum` starts from

    def estimate(
        self,
        estimator: Estimator = "k1",
        *,
        cross_fit: bool = True,
        self_normalise: bool = False,
        full_support: bool = False,
        ratio_mean: Tensor | float | None = None,
        time: Tensor | None = None,
    ) -> Estimate:
        """Return the `Estimate` of KL(p‖q) by one estimator; arguments, errors as in `log_ratio`.

        time: `[*batch]`, the autocorrelation time of the draws, 1 if None, for the tests of known
        means; the error bar is that of independent draws.

        >>> LogRatios.of(torch.zeros(8), torch.full((8,), -1.0)).estimate("k1").value
        1.0
        """
        require(
            self.weighted or not self_normalise,
            "self_normalise",
            "False without log_weights",
            self_normalise,
            "pass log_weights, or leave it out",
        )
        known = full_support or ratio_mean is not None
        _require_support(estimator, known=known)
        gap = _gap(1.0 if ratio_mean is None else ratio_mean, self.log_scale)
        found = self.averaged(
            estimator, cross_fit=cross_fit, self_normalise=self_normalise, gap=gap
        )
        first, *others = self.identities(self_normalise=self_normalise, gap=gap, time=time)
        if known:
            first.require("full_support" if ratio_mean is None else "ratio_mean", _K1)
        for test in others:
            test.require("log_weights", "self_normalise=True, if they lack a constant only")
        return found if known else told_of(found, first)

    def averaged(
        self,
        estimator: Estimator,
        *,
        cross_fit: bool = True,
        self_normalise: bool = False,
        gap: Tensor | None = None,
        finite_variance: Tensor | None = None,
    ) -> Estimate:
        """Return what `estimate` does, without any test of the mean of q/p or of the weights.

        gap: `[*batch]`, the known mean of r − 1; 0 if None. finite_variance: bool `[*batch]`, where
        the terms are known to have one; nowhere if None.

        >>> LogRatios.of(torch.zeros(8), torch.full((8,), -1.0)).averaged("k3").value.__round__(4)
        0.3679
        """
        fewest = 4 if estimator == "best" and cross_fit else 2
        require(self.draws >= fewest, "log_p", f"at least {fewest} draws", self.draws)
        here = self if self_normalise else self._at(torch.zeros_like(self.log_scale))
        kind = {"weighted": self.weighted, "ratio": self_normalise, "cross_fit": cross_fit}
        gap = torch.zeros_like(self.log_scale) if gap is None else gap
        parts = choose_parts(here.halves, estimator, gap=gap, **kind)
        off = here.rounding / self.draws
        whole = here.halves[0] + here.halves[1]
        return judge(parts, whole, off, estimator, finite_variance=finite_variance, **kind)

    def identities(
        self, *, self_normalise: bool = False, gap: Tensor, time: Tensor | None = None
    ) -> list[Identity]:
        """Test the mean of q/p, known to be `1 + gap`, and the mean of plain weights, 1.

        time: `[*batch]`, the autocorrelation time of the draws, 1 if None.

        >>> LogRatios.of(torch.zeros(8), torch.zeros(8)).identities(gap=torch.tensor(0.0))[0].mean
        1.0
        """
        here = self if self_normalise else self._at(torch.zeros_like(self.log_scale))
        kind = {"weighted": self.weighted, "ratio": self_normalise}
        whole, off = here.halves[0] + here.halves[1], here.rounding / self.draws
        return known_means(whole, off, gap, log_scale=here.log_scale, time=time, **kind)

    def _at(self, log_scale: Tensor) -> "LogRatios":
        if not self.weighted or torch.equal(log_scale, self.log_scale):
            return self
        factor = (self.log_scale - log_scale).exp()
        halves = (self.halves[0].scaled(factor), self.halves[1].scaled(factor))
        return replace(self, halves=halves, log_scale=log_scale)

    def _with(self, other: "LogRatios", halves: tuple[SummaryStats, SummaryStats]) -> "LogRatios":
        rounding = self.rounding + other.rounding
        return LogRatios(halves, self.log_scale, rounding, self.weighted)

    def _require_kind(self, shape: list[int], *, weighted: bool) -> None:
        own = list(self.halves[0].moments.mean.shape)
        texts = [
            f"batch {each[:-1]}, {each[-1] - WEIGHT - flag} controls, weighted: {flag}"
            for each, flag in ((own, self.weighted), (shape, weighted))
        ]
        require(texts[0] == texts[1], "log_p", f"a piece with {texts[0]}", texts[1])


def _seen(
    earlier: tuple[SummaryStats, SummaryStats] | None,
    log_p: Tensor,
    log_q: Tensor,
    log_weights: Tensor | None,
    controls: Tensor | None,
) -> LogRatios:
    """Return the state of these draws, joined to the halves of earlier ones if there are any."""
    scale = _scale(log_p, log_weights)
    moments = [[half.moments] for half in earlier] if earlier else [[], []]
    entrants = [Entrants(half.tails) for half in earlier or ()] or [Entrants(), Entrants()]
    room: list[Tensor | None] = [None, None]
    for draws in _cut(log_p, log_q, log_weights, controls, scale):
        for number in (0, 1):
            half = draws.half(number)
            features = room[number] = half.features(room[number])
            entrants[number].see(half)
            moments[number].append(Moments.using_up(features))
    first, second = (
        SummaryStats(Moments.merged(part), ends.joined())
        for part, ends in zip(moments, entrants, strict=True)
    )
    rounding = _rounding(log_p, log_q)
    return LogRatios((first, second), scale, rounding, log_weights is not None)


def _check(
    log_p: Tensor, log_q: Tensor, log_weights: Tensor | None, controls: Tensor | None
) -> None:
    for name, value in (("log_p", log_p), ("log_q", log_q), ("log_weights", log_weights)):
        if value is None:
            continue
        require_type(value, Tensor, name, "pass a torch tensor [*batch, draws]")
        require(value.is_floating_point(), name, "floating-point log densities", value.dtype)
        require(value.dim() >= 1, name, "a tensor [*batch, draws]", "a single number")
        same = value.shape == log_p.shape
        require(same, name, f"the shape of log_p, {list(log_p.shape)}", list(value.shape))
    require(log_p.shape[-1] >= 1, "log_p", "at least 1 draw on the last axis", 0)
    if controls is not None:
        require_type(controls, Tensor, "controls", "pass a torch tensor [*batch, draws, K]")
        fits = controls.shape[:-1] == log_p.shape
        require(fits, "controls", f"{[*log_p.shape, 'K']}", list(controls.shape))


def _scale(log_p: Tensor, log_weights: Tensor | None) -> Tensor:
    """Return the log of what weights are divided by, the largest of them; 0 where none is > 0."""
    if log_weights is None:
        return torch.zeros(log_p.shape[:-1], dtype=torch.float64, device=log_p.device)
    top = log_weights.detach().double().amax(-1)
    return torch.where(top == -math.inf, 0.0, top)


def _cut(
    log_p: Tensor,
    log_q: Tensor,
    log_weights: Tensor | None,
    controls: Tensor | None,
    scale: Tensor,
) -> Iterator[Draws]:
    """Cut a piece into lots that stay in cache, all but the last with an even number of draws."""
    batch = math.prod(log_p.shape[:-1])
    step = _PIECE if batch == 1 else max(2, _BATCH_PIECE // max(1, batch) // 2 * 2)
    for start in range(0, log_p.shape[-1], step):
        cut = slice(start, start + step)
        log_r = log_q[..., cut].detach().double() - log_p[..., cut].detach().double()
        weights = None if log_weights is None else log_weights[..., cut].detach().double()
        others = () if controls is None else controls[..., cut, :].detach().double().unbind(-1)
        yield Draws(log_r, weights, others, scale, _span(log_r))


def _span(log_r: Tensor) -> tuple[float, float] | None:
    if log_r.dim() > 1:
        return None
    least, most = log_r.aminmax()
    return float(least), float(most)


def _rounding(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the sums over draws of how far log r may be off, and of its square, `[*batch, 2]`.

    Half a unit in the last place of both log densities (`half_ulps`); float64 counts as exact,
    unless its values lie on a coarser grid.
    """
    off = [half_ulps(value) for value in (log_p, log_q) if _rounded(value)]
    if not off:
        return torch.zeros(*log_p.shape[:-1], 2, dtype=torch.float64, device=log_p.device)
    total = sum(off[1:], off[0])
    return torch.stack([total.sum(-1), (total**2).sum(-1)], -1)


def _rounded(values: Tensor) -> bool:
    return values.dtype != torch.float64 or coarsest_type(values) != torch.float64


def _require_support(estimator: Estimator, *, known: bool) -> None:
    """Refuse what leans on `E_p[q/p] = 1` unless the supports are known."""
    leans = estimator == "best" or coefficients(estimator)[RATIO] != 0
    require(
        known or not leans,
        "estimator",
        "'k1' or 'k2' where the supports are not known",
        f"{estimator!r}, which is biased by λ (Q(support of p) − 1) where q has mass outside the "
        "support of p, as under top-p or top-k sampling",
        "k1; or full_support=True for two full softmaxes whose draws come from p itself; or "
        "ratio_mean=Q(support of p)",
    )


def _gap(ratio_mean: Tensor | float, like: Tensor) -> Tensor:
    """Return the known mean of r − 1, `[*batch]`, float64."""
    mean = torch.as_tensor(ratio_mean, dtype=torch.float64, device=like.device)
    inside = bool(((mean >= 0) & (mean <= 1 + 1e-6)).all())
    require(inside, "ratio_mean", "the mass of q on the support of p, from 0 to 1", ratio_mean)
    return (mean - 1.0).expand(like.shape)
