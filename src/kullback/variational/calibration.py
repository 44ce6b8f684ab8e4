"""Are fits calibrated? Simulation-based calibration (SBC), by ranks of known parameters.

Which to use: `calibrate`. Parameters θ are drawn from the prior, data y from the model given θ, and
the model is fitted to y: under the exact posterior the rank of θ among draws of the posterior is
uniform, averaged over y. `ecdf_band` is the simultaneous band within which an empirical
distribution function of uniform numbers stays.

Three exact tests a quantity: the band (any deviation), and mean and sd of the normal scores Φ⁻¹ of
the ranks, which find what a fit gets wrong most often, a mean or an sd, with a third of the fits.
Ranks look at simulations from the prior: fits to data of another kind are not tested.

Reference: Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based
calibration"; Säilynoja, Bürkner and Vehtari (2022), "Graphical test for discrete uniformity and its
applications in goodness-of-fit evaluation and multiple sample comparison"; Modrák et al. (2023) for
the log density as a quantity, without which a fit that returns the prior passes.
"""

import contextlib
import functools
import itertools
import math
import multiprocessing
import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kullback.core import RunError, json_value, one_line, require

from . import limits
from .diagnostics.summary import resample
from .fit import Fit, fit
from .target.density import Target
from .target.functions import PointDensity
from .target.parameters import Parameters

__all__ = ["Calibration", "CalibrationRow", "calibrate", "ecdf_band"]

Simulate = Callable[[torch.Generator], tuple[Any, Any]]  # parameters of the prior, data given them
Model = Callable[[Any], "PointDensity | Target"]  # data to their log density
Fitter = Callable[..., Fit]  # `fit`, or `functools.partial` of it


class CalibrationRow(NamedTuple):
    """What the ranks of one quantity say; errors are standard errors.

    shift: how far q's mean lies above the true values on average, in q's sd (−mean of the normal
    scores). sd_ratio: q's sd as a share of what it should be (1/sd of the scores). Both are exact
    for a Gaussian q and a posterior of q's shape. p_band, p_shift, p_sd: the probability of a
    deviation as large under exact posteriors, each for its own test. histogram: how many ranks are
    in each of `limits.RANK_BINS` equal bins. verdict: in words.
    """

    name: str
    shift: float
    shift_error: float
    sd_ratio: float
    sd_ratio_error: float
    p_band: float
    p_shift: float
    p_sd: float
    histogram: tuple[int, ...]
    verdict: str


@dataclass(frozen=True)
class Calibration:
    """Ranks of the true parameters among the draws of each fit, and what they say; see `calibrate`.

    Attributes:
        names: of the quantities, `m`: entries of parameters, and "log density".
        ranks: `[n, m]`, in (0, 1): the share of a fit's draws below the true value, made continuous
            at random between draws, so that it is exactly uniform where the posterior is exact.
        levels: of the verdict on each fit, "trust", "partly" or "do not trust".
        failures: why a simulation has no fit, a reason each; their ranks are not known.
        ranked: which draws the ranks are among.
        level: the probability of a false alarm, over all quantities and tests together.
    """

    names: tuple[str, ...]
    ranks: Tensor
    levels: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    ranked: str = "q's own draws"
    level: float = limits.CALIBRATION_LEVEL

    def among(self, level: str) -> "Calibration":
        """Return the calibration of the fits with this verdict alone.

        A verdict depends on the data alone, so ranks are uniform among fits of one verdict too,
        where those fits are right.

        Args:
            level: "trust", "partly" or "do not trust".

        Returns:
            The same for fewer fits.

        Raises:
            ArgumentValueError: where too few fits have it.
        """
        kept = torch.tensor([one == level for one in self.levels])
        few = f"at least {limits.FEWEST_SIMULATIONS} fits"
        require(int(kept.sum()) >= limits.FEWEST_SIMULATIONS, level, few, int(kept.sum()))
        levels = (level,) * int(kept.sum())
        return Calibration(self.names, self.ranks[kept], levels, (), self.ranked, self.level)

    @functools.cached_property
    def rows(self) -> tuple[CalibrationRow, ...]:
        """The tests, a row a quantity."""
        return tuple(self._row(name, u) for name, u in zip(self.names, self.ranks.T, strict=True))

    @property
    def calibrated(self) -> bool:
        """Whether no test of any quantity found a deviation: `p_value` is above `level`."""
        return all(row.verdict == NO_DEVIATION for row in self.rows)

    @property
    def p_value(self) -> float:
        """The probability that a calibrated pipeline deviates as far in any quantity and test.

        At most: the least of each test's own p over its share of the level, times the number of
        quantities (weighted Bonferroni), so that it holds whatever their dependence is.
        """
        least = min(
            min(
                row.p_shift / limits.SHIFT_SHARE,
                row.p_sd / limits.SD_SHARE,
                row.p_band / limits.BAND_SHARE,
            )
            for row in self.rows
        )
        return min(1.0, least * len(self.rows))

    @property
    def detectable(self) -> tuple[float, float]:
        """What is found nine times in ten: a shift of a mean (sd), a relative error of an sd.

        From the normal approximation of both tests.
        """
        reach = _normal_quantile(1 - self._share(limits.SHIFT_SHARE) / 2)
        reach += _normal_quantile(limits.DETECTED)
        return reach / math.sqrt(len(self.ranks)), reach / math.sqrt(2 * len(self.ranks))

    @property
    def verdict(self) -> str:
        """The result in a sentence or two."""
        wrong = [row for row in self.rows if row.verdict != NO_DEVIATION]
        count, total = len(self.ranks), len(self.ranks) + len(self.failures)
        fits = f"{count:,} fits" if not self.failures else f"the {count:,} fits of {total:,}"
        shift, sd = self.detectable
        power = f"{fits} find a mean {shift:.2g} sd off, or an sd {sd:.0%} off, nine times in ten"
        head = (
            f"Calibrated, as far as {power}." if not wrong else f"Not calibrated: {_named(wrong)}."
        )
        if wrong:
            head += f" p = {self.p_value:.1g} over all quantities together."
            if self.p_value > limits.CERTAIN_DEVIATION:
                head += " Try: another generator or more simulations, to rule out chance."
        if self.failures:
            first = Counter(self.failures).most_common(1)[0][0]
            failed = f"{len(self.failures):,} of {total:,} simulations have no fit"
            head += f" {failed}, and nothing is said of these: {first}."
        return head

    def __str__(self) -> str:
        wide = max(len("quantity"), *(len(name) for name in self.names))
        heads = ("q's mean off", "q's sd / due", "p (band)")
        lines = [self.verdict, "", f"{'quantity':<{wide}}" + "".join(f"{h:>18}" for h in heads)]
        for row in self.rows:
            off = f"{row.shift:+.2f} ± {row.shift_error:.2f} sd"
            ratio = f"{row.sd_ratio:.2f} ± {row.sd_ratio_error:.2f}"
            cells = f"{off:>18}{ratio:>18}{row.p_band:>18.2g}"
            lines.append(f"{row.name:<{wide}}{cells}   {row.verdict}")
        counted = Counter(self.levels)
        levels = ", ".join(f"{counted[name]:,} {name}" for name in LEVELS if counted[name])
        foot = f"ranks among {self.ranked}; false alarms in at most {self.level:.0%} of calibrated"
        foot += f" pipelines, over all {len(self.names)} quantities together"
        return "\n".join([*lines, "", foot, *([f"verdicts: {levels}"] if levels else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, ranks included."""
        shift, sd = self.detectable
        return {
            "calibrated": self.calibrated,
            "p_value": self.p_value,
            "verdict": self.verdict,
            "simulations": len(self.ranks) + len(self.failures),
            "fits": len(self.ranks),
            "ranked": self.ranked,
            "level": self.level,
            "finds_mean_off_sd": shift,
            "finds_sd_off": sd,
            "levels": dict(Counter(self.levels)),
            "failures": list(self.failures),
            "quantities": [json_value(row._asdict()) for row in self.rows],
            "ranks": {n: u.tolist() for n, u in zip(self.names, self.ranks.T, strict=True)},
        }

    def band(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return points in (0, 1) and the band's lower and upper ends there, as shares."""
        n = len(self.ranks)
        points = _points(n)
        lower, upper = ecdf_band(n, points, self._share(limits.BAND_SHARE))
        return points, lower / n, upper / n

    def _share(self, of: float) -> float:
        """Return the level of one test of one quantity (Bonferroni)."""
        return of * self.level / len(self.names)

    def _row(self, name: str, u: Tensor) -> CalibrationRow:
        n = len(u)
        scores = torch.special.ndtri(u)
        mean, sd = float(scores.mean()), float(scores.std())
        p_shift = math.erfc(abs(mean) * math.sqrt(n / 2))
        p_sd = _chi2_two_sided((n - 1) * sd**2, n - 1)
        p_band = _band_p_value(u)
        found = [
            (p_shift <= self._share(limits.SHIFT_SHARE), _shifted(-mean)),
            (p_sd <= self._share(limits.SD_SHARE), _resized(1 / sd)),
            (p_band <= self._share(limits.BAND_SHARE), "ranks leave the band"),
        ]
        words = [text for wrong, text in found if wrong]
        bins = torch.histc(u.float(), limits.RANK_BINS, 0.0, 1.0).long().tolist()
        return CalibrationRow(
            name=name,
            shift=-mean,
            shift_error=sd / math.sqrt(n),
            sd_ratio=1 / sd,
            sd_ratio_error=1 / (sd * math.sqrt(2 * n)),
            p_band=p_band,
            p_shift=p_shift,
            p_sd=p_sd,
            histogram=tuple(bins),
            verdict="; ".join(words) if words else NO_DEVIATION,
        )


NO_DEVIATION = "uniform"
LEVELS = ("trust", "partly", "do not trust")


def _named(wrong: list[CalibrationRow]) -> str:
    shown = [f"{row.name} ({row.verdict})" for row in wrong[: limits.MAX_NAMES]]
    more = len(wrong) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _shifted(by: float) -> str:
    return f"q's mean is {abs(by):.2g} sd too {'high' if by > 0 else 'low'}"


def _resized(ratio: float) -> str:
    return f"q's sd is {abs(ratio - 1):.0%} too {'small' if ratio < 1 else 'large'}"


def _normal_quantile(p: float) -> float:
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))


def _chi2_two_sided(value: float, degrees: int) -> float:
    """Return twice the smaller tail probability of a chi-square."""
    half, x = (torch.tensor(v / 2, dtype=torch.float64) for v in (degrees, value))
    below, above = torch.special.gammainc(half, x), torch.special.gammaincc(half, x)
    return min(1.0, 2 * float(torch.minimum(below, above)))


def _points(n: int) -> Tensor:
    """Return the points at which distribution functions are compared: at most one a rank."""
    size = min(n, limits.BAND_POINTS)
    return torch.arange(1, size, dtype=torch.float64) / size


def ecdf_band(n: int, points: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return the counts within which n uniform numbers' ECDF stays at all points at once.

    Pointwise binomial intervals of one common tail probability, the largest for which
    P(lower_i ≤ #{u ≤ z_i} ≤ upper_i for all i) ≥ 1 − level. That probability is exact, by a
    recursion over the points, so the band is never too narrow, and as little too wide as whole
    counts allow.
    Source: Säilynoja, Bürkner and Vehtari (2022), section 2.1, where the probability is found by
    the same recursion with binomial instead of Poisson increments.

    Args:
        n: how many numbers, at least 1.
        points: z in (0, 1), increasing, `[k]`.
        level: the probability of leaving the band, in (0, 1).

    Returns:
        Lower and upper counts, `[k]` each.

    Raises:
        ArgumentValueError: for points or a level outside (0, 1).

    Example:
        >>> lower, upper = ecdf_band(100, torch.tensor([0.25, 0.5, 0.75]), 0.05)
        >>> lower.tolist(), upper.tolist()
        ([15, 39, 65], [35, 61, 85])
    """
    inside = bool(((points > 0) & (points < 1)).all()) and bool((points.diff() > 0).all())
    require(n >= 1, "n", "at least 1", n)
    require(inside, "points", "increasing numbers between 0 and 1", points.tolist()[:4])
    require(0 < level < 1, "level", "between 0 and 1", level)
    tails = _Tails(n, points.double())
    low, high = math.log(level / (2 * len(points))), math.log(level / 2)  # Bonferroni; one point
    for _ in range(limits.BAND_BISECTIONS):
        middle = (low + high) / 2
        inside = tails.coverage(tails.ends(math.exp(middle))) >= 1 - level
        low, high = (middle, high) if inside else (low, middle)
    return tails.ends(math.exp(low))


def _band_p_value(u: Tensor) -> float:
    """Return the probability that uniform numbers leave the band as far as these do, anywhere."""
    points = _points(len(u))
    tails = _Tails(len(u), points)
    counts = (u[:, None] <= points).sum(0)
    below = tails.below.gather(1, counts[:, None])[:, 0]
    above = tails.above.gather(1, counts[:, None])[:, 0]
    least = float(torch.minimum(below, above).min())
    ends = tails.ends(least * (1 + limits.TAIL_ROUNDING))
    return min(1.0, max(0.0, 1.0 - tails.coverage(ends)))


class _Tails:
    """Binomial tail probabilities of counts at some points, `[k, n + 1]`; joint coverage."""

    def __init__(self, n: int, points: Tensor) -> None:
        self.n, self.points = n, points
        k = torch.arange(n + 1, dtype=torch.float64)
        log_choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        z = points[:, None]
        pmf = (log_choose + k * z.log() + (n - k) * (-z).log1p()).exp()
        self.below = pmf.cumsum(1)  # P(count ≤ k)
        self.above = pmf.flip(1).cumsum(1).flip(1)  # P(count ≥ k)

    def ends(self, tail: float) -> tuple[Tensor, Tensor]:
        """Return the fewest and the most counts of which neither tail is `tail` or less."""
        return (self.below <= tail).sum(1), self.n - (self.above <= tail).sum(1)

    def coverage(self, ends: tuple[Tensor, Tensor]) -> float:
        """Return P(lower_i ≤ count_i ≤ upper_i for all i).

        Increments are independent Poisson(n Δz) given that they sum to n, so that a step of the
        recursion is a convolution.
        """
        lower, upper = ends
        n, edges = self.n, [0.0, *self.points.tolist(), 1.0]
        weight = torch.zeros(n + 1, dtype=torch.float64)
        weight[0] = 1.0
        for i, (left, right) in enumerate(itertools.pairwise(edges)):
            weight = _convolved(weight, _poisson(n * (right - left), n))
            if i < len(lower):
                weight[: int(lower[i])] = 0.0
                weight[int(upper[i]) + 1 :] = 0.0
        return float(weight[n]) / float(_poisson(n, n)[n])


@functools.lru_cache(maxsize=8)
def _poisson(mean: float, most: int) -> Tensor:
    k = torch.arange(most + 1, dtype=torch.float64)
    return (k * math.log(mean) - mean - torch.lgamma(k + 1)).exp()


def _convolved(weight: Tensor, pmf: Tensor) -> Tensor:
    """Return the sums of a weight and an independent count, cut to the weight's length."""
    kept = int((pmf > limits.NEGLIGIBLE_MASS).nonzero().max()) + 1
    padded = torch.nn.functional.pad(weight, (kept - 1, 0))
    return torch.nn.functional.conv1d(padded[None, None], pmf[:kept].flip(0)[None, None])[0, 0]


class _Simulated(NamedTuple):
    """One simulation: values drawn, their ranks, the level of the verdict; or why none."""

    values: Tensor | None
    names: tuple[str, ...]
    ranks: Tensor | None
    level: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class _Job:
    """What every simulation needs; `seeds` has one number for each, so that order is nothing."""

    simulate: Simulate
    model: Model
    parameters: Parameters | None
    fitter: Fitter
    resampled: bool
    judged: bool
    seeds: tuple[int, ...]

    def attempt(self, place: int) -> _Simulated:
        """Do as `run`, with what the user's code raises as the reason why there is no fit."""
        try:
            return self.run(place)
        except Exception as error:  # noqa: BLE001 - the user's code: other simulations stay
            return _Simulated(None, (), None, failure=one_line(error))

    def run(self, place: int) -> _Simulated:
        """Simulate, fit, judge and rank."""
        generator = torch.Generator().manual_seed(self.seeds[place])
        truth, data = self.drawn(generator)
        made = self.model(data)
        target = made if isinstance(made, Target) else Target.of(made, self._parameters())
        values, log_p = _true(target, truth)
        names = target.layout.value_names if log_p is None else (*target.layout.value_names, LOG_P)
        try:
            found = self.fitter(target, generator=generator, progress=False)
            if found.improper:
                return _Simulated(values, names, None, failure=found.reason)
            draws = _resampled(found, generator) if self.resampled else found.posterior
            level = found.diagnosis.level if self.judged else ""
        except RunError as error:
            return _Simulated(values, names, None, failure=str(error).splitlines()[0])
        flat = torch.cat([v.detach().double().reshape(len(v), -1) for v in draws.values()], 1)
        ranks = _ranks(values, flat, generator)
        if log_p is not None:
            logs = found.log_p if not self.resampled else _log_density(target, draws)
            ranks = torch.cat([ranks, _ranks(log_p, logs[:, None], generator)])
        return _Simulated(values, names, ranks, level=level)

    def drawn(self, generator: torch.Generator) -> tuple[Any, Any]:
        """Call the user's function, with torch's own generator seeded too (`Normal.sample()`)."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator.initial_seed())
            pair = self.simulate(generator)
        good = isinstance(pair, tuple) and len(pair) == 2
        require(good, "simulate(generator)", "a pair: parameters, data", type(pair).__name__)
        return pair

    def _parameters(self) -> Parameters:
        hint = 'the dimension of z, or {"mu": (), "tau": constraints.positive}'
        require(self.parameters is not None, "parameters", "what the density takes", "none", hint)
        return self.parameters  # type: ignore[return-value]


LOG_P = "log density"


def _true(target: Target, truth: Any) -> tuple[Tensor, Tensor | None]:
    """Return the true values flat, `[m]`, and log p there, `[1]`; None for another program's."""
    named = truth if isinstance(truth, Mapping) else {"z": truth}
    shapes = target.layout.shapes
    require(set(shapes) <= set(named), "simulate", f"parameters {[*shapes]}", [*named])
    held = {name: torch.as_tensor(named[name]).detach().double() for name in shapes}
    for name, shape in shapes.items():
        same = tuple(held[name].shape) == shape
        require(same, f"simulate: {name}", f"shape {list(shape)}", list(held[name].shape))
    values = torch.cat([value.reshape(-1) for value in held.values()])
    finite = bool(values.isfinite().all())
    require(finite, "simulate", "finite parameters", "NaN or infinity")
    if target.layout.outside is not None:
        return values, None
    with torch.no_grad():
        return values, target.log_density(target.unconstrain(held)[None])


def _resampled(found: Fit, generator: torch.Generator) -> Mapping[str, Tensor]:
    return resample(found, limits.RANKED_DRAWS, found.diagnosis, generator=generator)


def _log_density(target: Target, draws: Mapping[str, Tensor]) -> Tensor:
    """Return log p at constrained draws, `[n]`."""
    count = len(next(iter(draws.values())))
    points = [target.unconstrain({k: v[i] for k, v in draws.items()}) for i in range(count)]
    with torch.no_grad():
        return target.log_density(torch.stack(points))


def _ranks(true: Tensor, draws: Tensor, generator: torch.Generator) -> Tensor:
    """Return (draws below the true value + a random share of those equal and of 1)/(n + 1)."""
    below = (draws < true).sum(0).double()
    ties = (draws == true).sum(0).double() + 1.0
    part = torch.rand(len(true), generator=generator, dtype=torch.float64)
    edge = limits.RANK_EDGE
    return ((below + part * ties) / (len(draws) + 1)).clamp(edge, 1 - edge)


def calibrate(
    simulate: Simulate,
    model: Model,
    parameters: Parameters | None = None,
    *,
    simulations: int = 200,
    fitter: Fitter = fit,
    resampled: bool = False,
    judged: bool = True,
    level: float = limits.CALIBRATION_LEVEL,
    workers: int | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Fit to simulated data, and test that ranks of the true parameters are uniform (SBC).

    Simulations run in processes of their own where the system can fork them and has no GPU; each
    has its own seed, so that the result does not depend on their number. One is run first in this
    process, so that mistakes show where they are made. What `simulate` or `model` raises in some
    simulations only is a reason among `failures`; nothing is said of these.

    Args:
        simulate: `simulate(generator)` draws parameters from the prior and data from the model
            given them: `(parameters, data)`, where parameters are `{name: value}`, or z `[dim]`
            where `parameters` is a number. torch's own generator is seeded as well.
        model: `model(data)` returns the log density of one point, or a `Target`.
        parameters: as for `fit`; not needed where `model` returns a `Target`.
        simulations: how many fits, at least 20; an error of s sd in a mean needs about 12/s².
        fitter: what is tested: `fit`, or `functools.partial(fit, family="full_rank")`.
        resampled: rank among 1,000 importance-resampled draws (`resample`) instead of q's own,
            which are those of `Fit.posterior` and of the summary. A fit that cannot be resampled
            counts as a failure.
        judged: count the verdicts on the fits too, each of which takes about as long as a fit.
        level: the probability that a calibrated pipeline is said not to be, over all quantities.
        workers: processes; by default one a core, or this process alone where it cannot fork.
        generator: all randomness; without one, seed 0.
        progress: called with the number of finished simulations, and of all.

    Returns:
        The ranks, a verdict for each quantity, and one for all. Exact tests of uniform ranks; what
        they say of the error of q is exact for Gaussians.

    Raises:
        ArgumentValueError: for results of `simulate` of another form, and for simulations that
            repeat each other.
        RunError: where fewer than 20 simulations could be fitted.

    Example:
        >>> from torch.distributions import Normal
        >>> quick = functools.partial(fit, family="full_rank")
        >>> def simulate(generator):
        ...     mu = Normal(0.0, 1.0).sample()
        ...     return {"mu": mu}, Normal(mu, 2.0).sample((5,))
        >>> def model(y):
        ...     return lambda mu: Normal(0.0, 1.0).log_prob(mu) + Normal(mu, 2.0).log_prob(y).sum()
        >>> options = {"fitter": quick, "simulations": 20, "judged": False}
        >>> found = calibrate(simulate, model, {"mu": ()}, **options)
        >>> found.names, found.ranks.shape
        (('mu', 'log density'), torch.Size([20, 2]))
    """
    least = limits.FEWEST_SIMULATIONS
    require(simulations >= least, "simulations", f"at least {least}", simulations)
    require(0 < level < 1, "level", "between 0 and 1", level)
    require(workers is None or workers >= 1, "workers", "at least 1", workers)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seeds = torch.randint(2**62, (simulations,), generator=generator).tolist()
    job = _Job(
        simulate=simulate,
        model=model,
        parameters=parameters,
        fitter=fitter,
        resampled=resampled,
        judged=judged,
        seeds=tuple(seeds),
    )
    done = dict(_carried_out(job, _processes(workers), progress))
    return _collected([done[place] for place in range(simulations)], job, level)


def _collected(every: list[_Simulated], job: _Job, level: float) -> Calibration:
    kept = [(one.ranks, one.level) for one in every if one.ranks is not None]
    failures = tuple(one.failure for one in every if one.ranks is None)
    if len(kept) < limits.FEWEST_SIMULATIONS:
        raise RunError(
            f"{len(failures):,} of {len(every):,} simulations have no fit: {failures[0]}"
        )
    drawn = [one for one in every if one.values is not None]
    values = torch.stack([one.values for one in drawn if one.values is not None])
    alone = len({tuple(row) for row in values.tolist()}) == len(values)
    hint = "the generator that it is given"
    require(alone, "simulate", "independent draws", "the same values twice", hint)
    varied = values.std(0) > 0  # a corner of a Cholesky factor is constant
    names = drawn[0].names
    columns = [i for i in range(len(names)) if i >= len(varied) or bool(varied[i])]
    return Calibration(
        names=tuple(names[i] for i in columns),
        ranks=torch.stack([ranks for ranks, _ in kept])[:, columns],
        levels=tuple(one for _, one in kept),
        failures=failures,
        ranked="importance-resampled draws" if job.resampled else "q's own draws",
        level=level,
    )


def _processes(asked: int | None) -> int:
    """Return how many processes: one where the system cannot fork, or has a GPU.

    After a fork autograd cannot use the threads that it starts for each GPU.
    """
    if "fork" not in multiprocessing.get_all_start_methods() or torch.cuda.is_available():
        return 1
    if asked is not None:
        return asked
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _carried_out(
    job: _Job, workers: int, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[int, _Simulated]]:
    total = len(job.seeds)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, total)

    first, begun = job.attempt(0), 1
    yield 0, first
    tell(1)
    if first.values is None:  # the mistake of one simulation, or of all?
        second, begun = job.attempt(1), 2
        if second.values is None:
            job.run(0)  # where it is made, with its traceback
        yield 1, second
        tell(2)
    if workers == 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once
            for place in range(begun, total):
                yield place, job.attempt(place)
                tell(place + 1)
        return
    with contextlib.closing(_in_processes(job, workers, begun)) as pairs:
        for done, pair in enumerate(pairs, start=begun + 1):
            yield pair
            tell(done)


def _in_processes(
    job: _Job, workers: int, begin: int
) -> Generator[tuple[int, _Simulated], None, None]:
    """Run the simulations from place `begin` on in processes, in the order in which they end."""
    context = multiprocessing.get_context("fork")  # what a user defines anywhere is there
    others, left = {*multiprocessing.active_children()}, len(job.seeds) - begin
    with ProcessPoolExecutor(workers, context, _begin, (job,)) as pool:
        with warnings.catch_warnings():  # a fork beside threads: a child starts with one, and none
            warnings.simplefilter("ignore", DeprecationWarning)  # of this process's locks is held
            waiting = {pool.submit(_run, place): place for place in range(begin, len(job.seeds))}
        try:
            for future in as_completed(waiting):
                found = future.result()
                left -= 1
                yield waiting[future], found
        except BrokenProcessPool as error:
            words = "a process of the simulations was ended from outside, or crashed"
            hint = "fewer workers, if memory is short; with workers=1 a crash shows where it is"
            raise RunError(f"{words}. Try: {hint}") from error
        finally:
            if left:  # interrupted: nobody waits for the fits under way
                for child in {*multiprocessing.active_children()} - others:
                    child.terminate()
            pool.shutdown(cancel_futures=True)  # its thread alone waits for the processes' ends


_job: list[_Job] = []  # of this worker process


def _begin(job: _Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C, which the parent answers for all:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a process that dies in a queue blocks it
    torch.set_num_threads(1)  # the threads of the parent are not there
    warnings.simplefilter("ignore")
    _job[:] = [job]


def _run(place: int) -> _Simulated:
    return _job[0].attempt(place)
