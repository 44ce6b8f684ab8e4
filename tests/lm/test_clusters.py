"""Clustered errors: against enumeration, a jackknife, and their coverage on simulated documents."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from kullback.core import Estimate
from kullback.lm.clusters import Clusters, block_length, gate, ratio_difference, ratio_mean


def documents(rng, count, *, spread=0.7, correlation=0.1, skewed=False):
    """Sizes, sums and sums of squares of tokens whose mean is 1, correlated within documents."""
    sizes = np.maximum(2, np.round(200 * np.exp(spread * rng.standard_normal(count))))
    level = rng.gamma(1.0, 1.0, count) - 1 if skewed else rng.standard_normal(count)
    level = 1 + math.sqrt(correlation) * level
    noise = 1 - correlation
    sums = level * sizes + rng.standard_normal(count) * np.sqrt(noise * sizes)
    return sizes, sums, float((level**2 * sizes).sum() + noise * sizes.sum())


def test_equal_sizes_are_the_mean_of_cluster_means():
    rng = np.random.default_rng(0)
    sums = rng.standard_normal(30) * 8
    found = ratio_mean(sums, Clusters(np.full(30, 8.0)))
    plain = Estimate.from_terms(sums / 8)
    assert math.isclose(found.estimate.value, plain.value, rel_tol=1e-12)
    assert math.isclose(found.estimate.standard_error, plain.standard_error, rel_tol=1e-12)
    assert found.estimate.draws == 30


def test_unequal_sizes_are_the_cr2_of_a_regression():
    """CR2 of y = R + e by its definition: (I − H)^(−1/2) of each cluster, in full matrices."""
    rng = np.random.default_rng(1)
    sizes = np.array([1, 2, 3, 5, 8, 2, 4, 1, 6, 3])
    tokens = [rng.standard_normal(n) + rng.standard_normal() for n in sizes]
    found = ratio_mean([t.sum() for t in tokens], Clusters(sizes.astype(float)))
    total = sizes.sum()
    mean = np.concatenate(tokens).mean()
    meat = 0.0
    for t in tokens:
        n = len(t)
        values, vectors = np.linalg.eigh(np.eye(n) - np.full((n, n), 1 / total))
        root = vectors @ np.diag(values**-0.5) @ vectors.T
        meat += (np.ones(n) @ root @ (t - mean)) ** 2
    assert math.isclose(found.estimate.value, mean, rel_tol=1e-12)
    assert math.isclose(found.estimate.standard_error, math.sqrt(meat) / total, rel_tol=1e-10)


def test_naive_error_is_that_of_independent_tokens():
    rng = np.random.default_rng(2)
    terms = rng.standard_normal((25, 7)) + rng.standard_normal((25, 1))
    found = ratio_mean(terms.sum(1), Clusters(np.full(25, 7.0)), squares=float((terms**2).sum()))
    naive = Estimate.from_terms(terms.ravel()).standard_error
    assert math.isclose(found.naive_error, naive, rel_tol=1e-12)
    assert found.design_effect > 2


def holds(found, truth):
    low, high = found.estimate.interval()
    return low < truth < high


def binomial_z(hits, tries, chance):
    return (hits / tries - chance) / math.sqrt(chance * (1 - chance) / tries)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("count", "spread", "skewed"), [(10, 0.0, False), (50, 0.7, True)])
def test_coverage(count, spread, skewed):
    """Between 93 and 97 %, up to 4.5 binomial errors at 400 corpora; the naive ones far below."""
    rng = np.random.default_rng(3)
    tries, hits, naive = 400, 0, 0
    for _ in range(tries):
        sizes, sums, squares = documents(rng, count, spread=spread, skewed=skewed)
        found = ratio_mean(sums, Clusters(sizes), squares=squares)
        hits += holds(found, 1.0)
        naive += abs(found.estimate.value - 1) < 1.96 * found.naive_error
    assert binomial_z(hits, tries, 0.93) > -4.5
    assert binomial_z(hits, tries, 0.97) < 4.5
    assert naive / tries < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 20, 50, 100])
@pytest.mark.parametrize("spread", [0.0, 0.7, 1.2])
def test_coverage_over_sizes(count, spread):
    rng = np.random.default_rng(4)
    tries, hits, above = 2000, 0, 0
    for _ in range(tries):
        sizes, sums, squares = documents(rng, count, spread=spread)
        found = ratio_mean(sums, Clusters(sizes), squares=squares)
        hits += holds(found, 1.0)
        above += gate({"all": found.estimate}, fail_above=1.0).failed
    assert binomial_z(hits, tries, 0.93) > -2.0
    assert binomial_z(hits, tries, 0.97) < 4.5
    assert binomial_z(above, tries, 0.05) < 4.5


LEVELS = {
    "weibull": lambda rng, n: rng.weibull(0.8, n) / math.gamma(1 + 1 / 0.8),
    "few large": lambda rng, n: np.where(rng.random(n) < 0.2, 3.8, 0.3) * rng.gamma(9, 1 / 9, n),
    "uniform": lambda rng, n: rng.uniform(0.2, 1.8, n),
    "tokens only": lambda _, n: np.ones(n),
}
LENGTHS = {
    "log-sd 1.7": lambda rng, n: 5 + 300 * np.exp(1.7 * rng.standard_normal(n)),
    "geometric": lambda rng, n: rng.geometric(1 / 150, n),
    "one in six long": lambda rng, n: (
        np.where(rng.random(n) < 1 / 6, 3000, 40) * rng.uniform(1, 2, n)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [15, 30, 80])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("levels", LEVELS)
def test_few_large_clusters_do_not_make_errors_too_short(levels, lengths, count):
    """At least 93 % of those that have one; by CR2 alone 83 to 90 % where levels are skewed."""
    rng = np.random.default_rng([9, count])
    given = hits = 0
    for _ in range(300):
        sizes = np.round(np.maximum(LENGTHS[lengths](rng, count), 1.0))
        level = LEVELS[levels](rng, count)
        sums = level * sizes + rng.standard_normal(count) * np.sqrt(sizes)
        within = rng.chisquare(np.maximum(sizes - 1, 1e-9)).sum()
        found = ratio_mean(sums, Clusters(sizes), squares=float(within + (sums**2 / sizes).sum()))
        given += not found.estimate.no_error
        hits += holds(found, 1.0)
    assert given > 100  # the tail of others looks too heavy for a mean
    assert binomial_z(hits, given, 0.93) > -4.5


def test_unequal_sizes_take_the_larger_of_two_variances():
    """Random effects by their definition, from single tokens; equal sizes leave CR2."""
    rng = np.random.default_rng(10)
    sizes = np.array([400, 3, 5, 8, 2, 4, 7, 300, 6, 3, 9, 4])
    levels = np.array([1.0, 4.0, -2.0, 3.0, 0.0, 5.0, -3.0, 1.0, 4.0, -1.0, 2.0, 0.0])
    tokens = [rng.standard_normal(n) + level for n, level in zip(sizes, levels, strict=True)]
    squares = float(sum((t**2).sum() for t in tokens))
    sums = np.array([t.sum() for t in tokens])
    found = ratio_mean(sums, Clusters(sizes.astype(float)), squares=squares)
    total, mean = sizes.sum(), np.concatenate(tokens).mean()
    within = sum(((t - t.mean()) ** 2).sum() for t in tokens) / (total - len(tokens))
    means, own = sums / sizes, within / sizes

    def excess(spread):  # of Paule and Mandel
        weights = 1 / (spread + own)
        centre = (weights * means).sum() / weights.sum()
        return (weights * (means - centre) ** 2).sum() - 11

    share = sizes / total
    variance = optimize.brentq(excess, 0, 100) * (share**2).sum() + within / total
    robust = ((sums - mean * sizes) ** 2 / (1 - share)).sum() / total**2
    assert variance > 2 * robust
    assert math.isclose(found.estimate.standard_error, math.sqrt(variance), rel_tol=1e-9)
    unknown = ratio_mean(sums, Clusters(sizes.astype(float)))  # weighted by tokens
    pooled = (share * (means - mean) ** 2).sum() / (1 - (share**2).sum()) * (share**2).sum()
    error = math.sqrt(max(pooled, robust))
    assert math.isclose(unknown.estimate.standard_error, error, rel_tol=1e-9)


@pytest.mark.slow
def test_paired_differences_cover_and_are_shorter():
    """Two candidates on the same documents: what is common to both leaves no error."""
    rng = np.random.default_rng(5)
    tries, hits, shorter = 200, 0, 0
    for _ in range(tries):
        sizes, sums, _ = documents(rng, 40)
        other = sums + 0.1 * sizes + rng.standard_normal(40) * 0.2 * sizes
        both = [ratio_mean(each, Clusters(sizes)) for each in (other, sums)]
        found = ratio_difference(*both)
        hits += holds(found, 0.1)
        independent = both[0].estimate - both[1].estimate
        shorter += found.estimate.standard_error < independent.standard_error
    assert binomial_z(hits, tries, 0.93) > -4.5
    assert shorter > 0.95 * tries


@pytest.mark.slow
def test_gate_fails_at_the_limit_at_most_at_its_level():
    rng = np.random.default_rng(6)
    tries = 100
    failed = passed = 0
    for _ in range(tries):
        groups = {}
        for group in range(5):
            sizes, sums, _ = documents(rng, 30)
            groups[str(group)] = ratio_mean(sums, Clusters(sizes)).estimate
        failed += gate(groups, fail_above=1.0).failed
        passed += not gate(groups, require_below=1.0).failed
    assert binomial_z(failed, tries, 0.05) < 4.5
    assert passed / tries < 0.05


def test_gate_without_an_error_bar():
    none = {"all": Estimate(5.0, 1.0, draws=9).without_error("a heavy tail")}
    assert not gate(none, fail_above=1.0).failed
    assert "cannot be decided" in gate(none, fail_above=1.0).words
    assert gate(none, require_below=9.0).failed
    assert not gate({"all": Estimate(0.5, 0.1, draws=99)}, require_below=1.0).failed


def test_few_clusters_are_blocks_and_say_so():
    assert [block_length(n, g) for n, g in ((20_000, 9), (30, 1), (20_000, 10))] == [500, 50, 0]
    rng = np.random.default_rng(7)
    found = ratio_mean(rng.standard_normal(40), Clusters(np.full(40, 500.0), "documents", 500))
    assert "contiguous blocks of 500 tokens" in found.estimate.warnings[-1]
    short = ratio_mean(rng.standard_normal(3), Clusters(np.array([50.0, 50.0, 7.0]), "blocks", 50))
    assert short.estimate.no_error == "107 tokens are fewer than 10 blocks of 50"
    assert "±" not in short.estimate.brief


def test_edges():
    alone = ratio_mean([3.0], Clusters(np.array([2.0])))
    assert alone.estimate.value == 1.5
    assert alone.estimate.no_error == "one document only"
    assert math.isinf(ratio_mean([1.0, math.inf], Clusters(np.ones(2))).estimate.value)
    assert math.isnan(ratio_mean([1.0, math.nan], Clusters(np.ones(2))).estimate.value)
    giant = ratio_mean(np.arange(12.0), Clusters(np.array([900.0] + [9.0] * 11)))
    assert any("holds 90% of the tokens" in text for text in giant.estimate.warnings)
    assert giant.estimate.draws == 2
    zero = ratio_mean(np.zeros(12), Clusters(np.ones(12)))
    assert (zero.estimate.value, zero.estimate.standard_error) == (0.0, 0.0)
    some = {"a": Estimate(1.0, 0.1, 9)}
    for bad in (
        lambda: ratio_mean([], Clusters(np.empty(0))),
        lambda: ratio_mean([1.0, 2.0], Clusters(np.array([1.0, 0.0]))),
        lambda: gate({}, fail_above=1.0),
        lambda: gate(some, fail_above=1.0, confidence=0.4),
    ):
        with pytest.raises(ValueError, match="expected"):
            bad()


@pytest.mark.parametrize("seed", range(8))
def test_t_of_unequal_clusters(seed):
    """CR2 has G* − 1 degrees, random effects G − 1; the interval is the longer one."""
    sizes = np.array([10.0] * 10 + [100.0] * 4)
    sums = np.random.default_rng(seed).standard_normal(14) * sizes
    found = ratio_mean(sums, Clusters(sizes))
    effective = int(sizes.sum() ** 2 / (sizes**2).sum())
    assert found.estimate.draws in (effective, 14)
    share, mean = sizes / sizes.sum(), sums.sum() / sizes.sum()
    robust = math.sqrt(((sums - mean * sizes) ** 2 / (1 - share)).sum()) / sizes.sum()
    low, high = found.estimate.interval()
    assert high - low >= 0.99 * 2 * stats.t.ppf(0.975, effective - 1) * robust
    own = 2 * stats.t.ppf(0.975, found.estimate.draws - 1) * found.estimate.standard_error
    assert high - low >= 0.99 * own
