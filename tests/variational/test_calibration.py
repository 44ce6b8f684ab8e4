"""Simulation-based calibration: bands by enumeration, levels and power in a conjugate model."""

import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, constraints

from kullback.core import ArgumentValueError, RunError
from kullback.variational import Calibration, calibrate, ecdf_band, limits
from kullback.variational.calibration import (
    NO_DEVIATION,
    _band_p_value,
    _points,
    _ranks,
    _Tails,
)

F64 = torch.float64
PRIOR, NOISE, ROWS = 2.0, 1.5, 4


@dataclasses.dataclass
class Draws:
    """What is asked of a fit: draws, and log p there."""

    posterior: dict
    log_p: torch.Tensor
    improper: bool = False


def quick(target, *, generator, change=lambda z: z, **options):
    """The exact posterior of a quadratic log density of one mu, its standard draws changed."""
    low, middle, high = target.log_density(torch.tensor([[-1.0], [0.0], [1.0]], dtype=F64))
    slope, curve = (high - low) / 2, 2 * middle - low - high
    z = change(torch.randn(400, generator=generator, dtype=F64))
    mu = slope / curve + z / curve.sqrt()
    return Draws({"mu": mu}, target.log_density(mu[:, None]))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def simulate(generator):
    mu = PRIOR * torch.randn((), generator=generator, dtype=F64)
    return {"mu": mu}, mu + NOISE * torch.randn(ROWS, generator=generator, dtype=F64)


def model(y):
    def log_density(mu):
        return Normal(0.0, PRIOR).log_prob(mu) + Normal(mu, NOISE).log_prob(y).sum()

    return log_density


def posterior(y):
    """Mean and sd of the conjugate posterior, over the last axis of y."""
    precision = PRIOR**-2 + ROWS * NOISE**-2
    return y.sum(-1) / NOISE**2 / precision, precision**-0.5


def ranks(seed, *, simulations=200, draws=400, shift=0.0, ratio=1.0):
    """Ranks among draws of N(mean + shift sd, (ratio sd)²) in simulations of the model."""
    g = seeded(seed)
    truth = PRIOR * torch.randn(simulations, generator=g, dtype=F64)
    y = truth[:, None] + NOISE * torch.randn(simulations, ROWS, generator=g, dtype=F64)
    mean, sd = posterior(y)
    noise = torch.randn(draws, simulations, generator=g, dtype=F64)
    return _ranks(truth, mean + shift * sd + ratio * sd * noise, g)


def by_enumeration(n, points, lower, upper):
    """The probability that multinomial counts stay within, summed over all of them."""
    edges = [0.0, *points, 1.0]
    shares = [right - left for left, right in itertools.pairwise(edges)]
    total = 0.0
    for counts in itertools.product(range(n + 1), repeat=len(shares)):
        held = list(itertools.accumulate(counts))
        if held[-1] == n and all(
            low <= c <= high for low, c, high in zip(lower, held, upper, strict=False)
        ):
            mass = math.prod(p**c / math.factorial(c) for p, c in zip(shares, counts, strict=True))
            total += math.factorial(n) * mass
    return total


@pytest.mark.parametrize(
    ("n", "points"), [(1, [0.3]), (4, [0.5]), (5, [0.1, 0.6]), (6, [0.2, 0.5, 0.9])]
)
def test_the_coverage_of_a_band_is_that_of_all_counts(n, points):
    tails = _Tails(n, torch.tensor(points, dtype=F64))
    for tail in (0.001, 0.02, 0.1, 0.3):
        lower, upper = tails.ends(tail)
        truth = by_enumeration(n, points, lower.tolist(), upper.tolist())
        assert tails.coverage((lower, upper)) == pytest.approx(truth, abs=1e-13)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("n", "level"), [(20, 0.05), (50, 0.2), (200, 0.01)])
def test_a_band_holds_uniform_numbers_as_often_as_it_says(n, level):
    points = torch.arange(1, 20, dtype=F64) / 20
    lower, upper = ecdf_band(n, points, level)
    exact = _Tails(n, points).coverage((lower, upper))
    assert 1 - level <= exact < 1
    u = torch.rand(2000, n, generator=seeded(n), dtype=F64)
    counts = (u[:, :, None] <= points).sum(1)
    left = ((counts < lower) | (counts > upper)).any(1).double()
    error = math.sqrt(exact * (1 - exact) / len(u))
    assert abs(float(left.mean()) - (1 - exact)) < 4.5 * error
    assert not by_hand_narrower(n, points, lower, upper, level)


def by_hand_narrower(n, points, lower, upper, level):
    """Whether the next smaller interval of the same kind would hold as often, too."""
    tails = _Tails(n, points)
    outer = torch.cat([tails.below.flatten(), tails.above.flatten()])
    used = torch.cat([tails.below[lower > 0, lower[lower > 0] - 1], tails.below.new_zeros(1)]).max()
    following = outer[outer > used * (1 + 1e-9)].min()
    return tails.coverage(tails.ends(float(following) * (1 + 1e-9))) >= 1 - level


def test_the_p_value_of_a_band_is_one():
    p = torch.tensor([_band_p_value(u) for u in torch.rand(100, 10, generator=seeded(1)).double()])
    for a in (0.02, 0.1, 0.3, 0.7):
        error = math.sqrt(a * (1 - a) / len(p))
        assert float((p <= a).double().mean()) <= a + 4.5 * error
    assert float(p.min()) > 0 and float((p <= 0.7).double().mean()) > 0.5
    assert _band_p_value(torch.full((60,), 0.5, dtype=F64)) < 1e-9


def test_ranks_are_uniform_where_values_repeat():
    """Discrete values: of 3 draws and one truth from 2 values all orders are equally likely."""
    g, n = seeded(3), 4000
    truth = torch.randint(2, (n,), generator=g).double()
    u = _ranks(truth, torch.randint(2, (3, n), generator=g).double(), g)
    for z in (0.1, 0.25, 0.6, 0.9):
        assert abs(float((u <= z).double().mean()) - z) < 4.5 * math.sqrt(z * (1 - z) / n)


@pytest.mark.slow
def test_a_conjugate_model_passes_at_its_level():
    alarms = [
        not Calibration(
            ("a", "b"), torch.stack([ranks(2 * s, simulations=40), other], 1)
        ).calibrated
        for s in range(40)
        for other in [ranks(2 * s + 1, simulations=40)]
    ]
    level = 0.05
    assert sum(alarms) <= len(alarms) * level + 4.5 * math.sqrt(len(alarms) * level * (1 - level))


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ratio": 0.8}, "too small"),
        ({"ratio": 1.3}, "too large"),
        ({"shift": 0.4}, "too high"),
        ({"shift": -0.4}, "too low"),
    ],
)
def test_a_wrong_q_is_found_and_described(wrong, words):
    found = 0
    for seed in range(4):
        (row,) = Calibration(("mu",), ranks(seed, simulations=250, **wrong)[:, None]).rows
        found += words in row.verdict
        assert (
            abs(row.shift - wrong.get("shift", 0) / wrong.get("ratio", 1)) < 4.5 * row.shift_error
        )
        assert abs(row.sd_ratio - wrong.get("ratio", 1)) < 5.5 * row.sd_ratio_error
    assert found == 4


@pytest.mark.slow
def test_what_is_named_as_detectable_is_found_nine_times_in_ten():
    shift, _ = Calibration(("mu",), ranks(0)[:, None]).detectable
    found = [
        "high" in Calibration(("mu",), ranks(s, shift=shift, draws=2000)[:, None]).rows[0].verdict
        for s in range(200)
    ]
    # the shift of each fit is noisy by 1/sqrt(draws) sd, far less than the tolerance
    assert abs(np.mean(found) - 0.9) < 4.5 * math.sqrt(0.09 / len(found))


def test_a_shape_that_mean_and_sd_do_not_show_is_found_by_the_band():
    """Two peaks of the normal scores, with mean 0 and variance 1."""
    g = seeded(0)
    sign = torch.randint(2, (400,), generator=g).double() * 2 - 1
    scores = sign * 0.95 + math.sqrt(1 - 0.95**2) * torch.randn(400, generator=g, dtype=F64)
    (row,) = Calibration(("mu",), torch.special.ndtr(scores)[:, None]).rows
    assert row.verdict == "ranks leave the band" and row.p_shift > 0.01 and row.p_sd > 0.01


@pytest.mark.slow
def test_fits_are_ranked_the_same_in_any_number_of_processes():
    seen = []
    options = {"fitter": quick, "simulations": 20, "judged": False, "level": 0.01}
    one = calibrate(simulate, model, {"mu": ()}, workers=1, **options)
    two = calibrate(
        simulate, model, {"mu": ()}, workers=2, progress=lambda k, n: seen.append((k, n)), **options
    )
    assert torch.equal(one.ranks, two.ranks)
    assert one.names == ("mu", "log density") and one.calibrated
    assert sorted(seen) == [(k, 20) for k in range(1, 21)]
    fields = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert fields["calibrated"] and len(fields["ranks"]["mu"]) == fields["fits"] == 20
    assert sum(fields["quantities"][0]["histogram"]) == 20
    assert str(one).startswith("Calibrated, as far as 20 fits find")


@pytest.mark.slow
def test_a_fitter_that_is_too_sure_is_found():
    fitter = functools.partial(quick, change=lambda z: 0.5 * z)
    found = calibrate(
        simulate, model, {"mu": ()}, fitter=fitter, simulations=50, judged=False, workers=1
    )
    assert not found.calibrated
    assert "too small" in found.rows[0].verdict
    assert found.verdict.startswith("Not calibrated: mu (q's sd is")


def alarms_of_uniform_ranks(simulations, quantities, cases, seed):
    """How many of some calibrations with uniform ranks alarm, by each test's own limit."""
    some = Calibration(tuple(map(str, range(quantities))), torch.rand(simulations, quantities))
    points = _points(simulations)
    lower, upper = ecdf_band(simulations, points, some._share(limits.BAND_SHARE))
    alarms, g = 0, seeded(seed)
    for _ in range(cases):
        u = torch.rand(simulations, quantities, generator=g, dtype=F64)
        scores = torch.special.ndtri(u).numpy()
        p_mean = 2 * stats.norm.sf(abs(scores.mean(0)) * math.sqrt(simulations))
        spread = scores.var(0, ddof=1) * (simulations - 1)
        p_sd = 2 * np.minimum(
            *(one(spread, simulations - 1) for one in (stats.chi2.cdf, stats.chi2.sf))
        )
        counts = (u[:, :, None] <= points).sum(0)
        outside = ((counts < lower) | (counts > upper)).any(1)
        wrong = bool(outside.any()) or p_mean.min() <= some._share(limits.SHIFT_SHARE)
        alarms += wrong or p_sd.min() <= some._share(limits.SD_SHARE)
        if _ < 3:  # the same decision as the class's own
            own = Calibration(some.names, u)
            assert own.calibrated == (own.p_value > own.level)
            assert own.calibrated == (not (wrong or p_sd.min() <= some._share(limits.SD_SHARE)))
    return alarms


@pytest.mark.slow
@pytest.mark.parametrize(
    ("simulations", "quantities"), [(20, 1), (20, 50), (50, 10), (100, 3), (200, 1)]
)
def test_the_level_is_that_of_all_quantities_together(simulations, quantities):
    cases = 400
    alarms = alarms_of_uniform_ranks(simulations, quantities, cases, seed=quantities)
    assert alarms / cases <= 0.05 + 4.5 * math.sqrt(0.05 * 0.95 / cases)
    assert alarms > 0  # and the tests have not been divided away


def test_the_p_value_over_all_quantities_is_that_of_the_verdict():
    u = torch.rand(60, 4, generator=seeded(5), dtype=F64)
    found = Calibration(("a", "b", "c", "d"), u)
    assert found.calibrated and found.p_value > 0.05
    u[:, 2] = u[:, 2] ** 1.4  # too low, by little
    near = Calibration(found.names, u)
    assert not near.calibrated and 0.001 < near.p_value <= 0.05
    assert near.p_value == pytest.approx(
        4
        * min(
            near.rows[2].p_shift / limits.SHIFT_SHARE,
            near.rows[2].p_sd / limits.SD_SHARE,
            near.rows[2].p_band / limits.BAND_SHARE,
        )
    )
    assert "over all quantities together. Try: another generator or more" in near.verdict
    assert dataclasses.replace(near, level=near.p_value * 0.99).calibrated
    assert not dataclasses.replace(near, level=near.p_value * 1.01).calibrated
    certain = Calibration(found.names, u**3)
    assert certain.p_value < 1e-4 and "Try" not in certain.verdict


def test_a_fit_of_the_prior_is_found_by_the_log_density():
    """The ranks of the parameter are uniform; those of log p are not (Modrák et al. 2023)."""

    def prior(target, *, generator, **options):
        draws = PRIOR * torch.randn(400, 1, generator=generator, dtype=F64)
        return Draws({"mu": draws[:, 0]}, target.log_density(draws))

    found = calibrate(
        simulate, model, {"mu": ()}, fitter=prior, simulations=40, judged=False, workers=1
    )
    mu, log_p = found.rows
    assert mu.verdict == NO_DEVIATION and log_p.verdict != NO_DEVIATION


@pytest.mark.slow
def test_failed_fits_are_counted_and_named():
    def fitter(target, **options):
        if torch.rand((), generator=options["generator"]) < 0.2:
            raise RunError("no finite start")
        return quick(target, **options)

    def run(fitter):
        return calibrate(
            simulate, model, {"mu": ()}, fitter=fitter, simulations=30, judged=False, workers=1
        )

    found = run(fitter)
    assert len(found.ranks) + len(found.failures) == 30 and len(found.failures) > 0
    assert f"{len(found.failures)} of 30 simulations have no fit" in found.verdict
    assert "no finite start" in found.verdict

    def never(target, **options):
        raise RunError("no finite start")

    with pytest.raises(RunError, match="30 of 30 simulations have no fit: no finite start"):
        run(never)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_some_simulations_raise_is_a_failure_of_these(workers):
    def sometimes(generator):  # the first one among them
        if generator.initial_seed() % 4 == first % 4:
            raise ValueError("no such data")
        return simulate(generator)

    def run(simulate, model=model):
        options = {"fitter": quick, "simulations": 40, "judged": False, "workers": workers}
        return calibrate(simulate, model, {"mu": ()}, **options)

    first = int(torch.randint(2**62, (40,), generator=torch.Generator().manual_seed(0))[0])
    found = run(sometimes)
    assert len(found.ranks) + len(found.failures) == 40 and len(found.ranks) >= 20
    assert set(found.failures) == {"ValueError: no such data"}
    assert "simulations have no fit, and nothing is said of these: ValueError" in found.verdict

    def never(data):
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):  # a mistake in all is shown where it is made
        run(simulate, never)


@pytest.mark.slow
def test_a_process_that_dies_is_said():
    def dies(data):
        if os.getpid() != parent:
            os._exit(1)
        return model(data)

    parent = os.getpid()
    with pytest.raises(RunError, match=r"crashed\. Try: fewer workers"):
        options = {"fitter": quick, "simulations": 20, "judged": False, "workers": 2}
        calibrate(simulate, dies, {"mu": ()}, **options)


@pytest.mark.slow
def test_an_interrupt_reaches_this_process_alone():
    """Ctrl-C goes to every process of a terminal; a worker that it ends in a queue blocks it."""

    def run(progress):
        options = {"fitter": quick, "simulations": 20, "judged": False, "workers": 2}
        return calibrate(simulate, model, {"mu": ()}, progress=progress, **options)

    def to_the_workers(done, total):
        for child in {*multiprocessing.active_children()} - others:
            os.kill(child.pid, signal.SIGINT)

    def to_this_process(done, total):
        if done == 3:
            raise KeyboardInterrupt

    others = {*multiprocessing.active_children()}
    assert len(run(to_the_workers).ranks) == 20
    with pytest.raises(KeyboardInterrupt):
        run(to_this_process)
    assert {*multiprocessing.active_children()} == others


def test_levels_are_counted_and_picked_out():
    levels = tuple("trust" if k % 4 else "partly" for k in range(100))
    found = Calibration(("mu",), ranks(0, simulations=100)[:, None], levels)
    assert "verdicts: 75 trust, 25 partly" in str(found)
    assert len(found.among("trust").ranks) == 75
    assert torch.equal(found.among("partly").ranks, found.ranks[::4])
    with pytest.raises(ArgumentValueError, match="do not trust: expected at least 20 fits; got 0"):
        found.among("do not trust")


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (lambda g: 3.0, "expected a pair: parameters, data; got float"),
        (lambda g: ({"nu": 1.0}, torch.zeros(4)), "expected parameters ['mu']; got ['nu']"),
        (lambda g: ({"mu": torch.zeros(2)}, torch.zeros(4)), "mu: expected shape []; got [2]"),
        (lambda g: ({"mu": math.nan}, torch.zeros(4)), "expected finite parameters"),
        (lambda g: ({"mu": 1.0}, torch.zeros(4)), "expected independent draws; got the same"),
    ],
)
def test_what_is_wrong_with_a_simulation_is_said(drawn, message):
    with pytest.raises(ArgumentValueError) as caught:
        calibrate(drawn, model, {"mu": ()}, fitter=quick, simulations=20, judged=False, workers=1)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simulations": 5}, "simulations: expected at least 20; got 5"),
        ({"level": 0.0}, "level: expected between 0 and 1"),
        ({"workers": 0}, "workers: expected at least 1; got 0"),
        ({"parameters": None}, "parameters: expected what the density takes; got none"),
    ],
)
def test_wrong_options_are_refused(options, message):
    call = {"parameters": {"mu": ()}, "workers": 1, "fitter": quick} | options
    with pytest.raises(ArgumentValueError) as caught:
        calibrate(simulate, model, **call)
    assert message in str(caught.value)


def test_a_value_outside_its_constraint_is_refused():
    with pytest.raises(ArgumentValueError, match="mu: expected a value inside its constraint"):
        calibrate(
            lambda g: ({"mu": -1.0}, torch.zeros(4)),
            model,
            {"mu": constraints.positive},
            fitter=quick,
            workers=1,
        )


@pytest.mark.slow
def test_false_alarms_over_many_seeds_and_a_whole_pipeline():
    alarms = [
        not Calibration(("mu",), ranks(s, simulations=200)[:, None]).calibrated for s in range(400)
    ]
    error = math.sqrt(0.05 * 0.95 / len(alarms))
    assert 0.01 < np.mean(alarms) <= 0.05 + 4.5 * error
    found = calibrate(simulate, model, {"mu": ()}, simulations=24, level=0.001, resampled=True)
    assert found.calibrated and set(found.levels) == {"trust"}
    assert found.ranked == "importance-resampled draws"
