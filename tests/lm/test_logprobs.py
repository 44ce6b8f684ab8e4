"""Figures and checks of logged log-probabilities against NumPy, exact KLs and simulated faults."""

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kullback.core import DataError
from kullback.lm import check_logprobs, logprobs
from kullback.lm.clusters import Clusters, ratio_mean
from kullback.lm.engines import compiled, connect
from kullback.lm.logprob_sums import (
    Draws,
    dense_codes,
    largest_ratios,
    summed,
    sums_expression,
)
from kullback.lm.logprob_tables import Columns, read_tables
from kullback.sampled import pareto_k, ratio_identity
from lm.simulated_logs import CLEAN, FAULTS, logs, table

PAIR = {"p": "log_p", "q": "log_q"}


@pytest.fixture(scope="module")
def simulated():
    """One log of 20,000 tokens in 40 sequences of two prompts each, with its exact KL."""
    columns, kl = logs(np.random.default_rng(0))
    columns["step"] = columns["sequence"] // 20
    return columns, kl


@pytest.fixture(scope="module")
def report(simulated):
    return logprobs(table(simulated[0], float32=False), **PAIR)


def clustered(terms, cluster):
    sizes = np.bincount(cluster).astype(float)
    squares = float((terms**2).sum())
    return ratio_mean(np.bincount(cluster, weights=terms), Clusters(sizes), squares=squares)


def close(found, truth, tolerance=1e-12):
    assert math.isclose(found, truth, rel_tol=tolerance), (found, truth)


def test_figures_are_those_of_numpy(simulated, report):
    columns, kl = simulated
    figures = report.overall[0]
    x = columns["log_q"] - columns["log_p"]
    terms = {"k1": -x, "k2": x**2 / 2, "k3": np.expm1(x) - x}
    for name, values in terms.items():
        truth = clustered(values, columns["sequence"])
        found = figures.token[name]
        close(found.estimate.value, truth.estimate.value)
        close(found.estimate.standard_error, truth.estimate.standard_error)
        close(found.naive_error, truth.naive_error)
    r = np.exp(x)
    reverse = clustered(r * x - r + 1, columns["sequence"])
    close(figures.token["reverse"].estimate.value, reverse.estimate.value, 1e-10)
    close(figures.ess * 20_000, r.sum() ** 2 / (r**2).sum(), 1e-11)
    close(figures.high, (r > 1.2).mean())
    close(figures.low, (r < 0.8).mean())
    low, high = figures.main.estimate.interval(0.9999)
    assert low < kl < high
    assert figures.main.estimate.standard_error < figures.token["k1"].estimate.standard_error / 5


def test_identity_and_tail_are_those_of_all_ratios(simulated, report):
    columns, _ = simulated
    figures = report.overall[0]
    log_p, log_q = (torch.from_numpy(columns[name]) for name in ("log_p", "log_q"))
    truth = ratio_identity(log_p, log_q)
    close(figures.identity.mean, truth.mean)
    close(figures.identity.error, truth.error, 1e-9)
    assert abs(figures.identity.z - truth.z) < 1e-6
    assert abs(figures.k_hat - float(pareto_k(log_q - log_p))) < 1e-9


@pytest.mark.sweep(2)
@pytest.mark.parametrize("sequences", [600, 500])  # above and below the 513 that are kept
def test_largest_ratios_are_those_of_a_sort(sequences):
    """Read with the bound of the sequences' largest ones, where there are enough, or all."""
    seed = np.random.default_rng(3)
    step = np.repeat([0, 1, 2], [3 * sequences, 4 * sequences, 5 * sequences])
    sequence = np.concatenate([np.arange(size * sequences) % sequences for size in (3, 4, 5)])
    p = -seed.exponential(1.0, len(step))
    q = np.where(seed.random(len(step)) < 0.05, -9999.0, p - seed.exponential(0.1, len(step)))
    columns = pa.table({"p": p, "q": q, "step": step, "sequence": sequence})
    found = read_tables([columns], Columns("p", ("q",), by=("step",)))
    draws = Draws("p", ("q0",), "p")
    tail = largest_ratios(found, draws, summed(found, draws))["x0"].to_pandas()
    for group in range(3):
        own = np.sort((q - p)[(step == group) & (q > -700)])[::-1][:513]
        values = np.sort(tail.value[tail.by0 == group])[::-1]
        np.testing.assert_array_equal(values, own)


@pytest.mark.parametrize("spread", [1, 5, 1000])
def test_codes_are_numbered_in_order(spread):
    codes = np.random.default_rng(0).integers(-3, 40, 30) * spread
    np.testing.assert_array_equal(dense_codes(codes), np.unique(codes, return_inverse=True)[1])
    assert len(dense_codes(codes[:0])) == 0


def test_best_is_cross_fitted_over_halves_of_the_clusters(simulated, report):
    columns, _ = simulated
    figures = report.overall[0]
    x, half = columns["log_q"] - columns["log_p"], columns["sequence"] % 2
    control = np.expm1(x)
    fitted = []
    for number in (1, 0):
        own = half == number
        covariance = np.cov(x[own], control[own])
        fitted.append(covariance[0, 1] / covariance[1, 1])
    terms = -x + np.array(fitted)[half] * control
    close(figures.token["best"].estimate.value, terms.mean(), 1e-11)


def test_sequence_level_is_of_whole_sequences(simulated, report):
    columns, _ = simulated
    figures = report.overall[0]
    x = np.bincount(columns["sequence"], weights=columns["log_q"] - columns["log_p"])
    assert figures.sequences == 40
    for name, terms in {"k1": -x, "k2": x**2 / 2, "k3": np.expm1(x) - x}.items():
        close(figures.sequence[name].estimate.value, terms.mean(), 1e-11)
    error = figures.sequence["k1"].estimate.standard_error
    close(error, x.std(ddof=1) / math.sqrt(40), 1e-10)
    r = np.exp(x)
    close(figures.sequence_ess, r.sum() ** 2 / (r**2).sum() / 40, 1e-10)


def test_sequences_too_far_apart_give_no_error_bar_for_k3():
    """k3 is k1 − 1 where no sequence reaches the mean of q/p: intervals covered 53 % at 13 nats."""
    far, _ = logs(np.random.default_rng(3), sequences=60, length=100, drift=0.6)
    near, _ = logs(np.random.default_rng(3), sequences=60, length=100, drift=0.05)
    found, close_by = (
        logprobs(table(each), p="log_p", q="log_q").overall[0].sequence for each in (far, near)
    )
    assert "of which there are 60" in found["k3"].estimate.no_error
    assert found["k3"].estimate.bias == "unknown"
    assert not found["k1"].estimate.no_error
    assert not close_by["k3"].estimate.no_error


def test_truncated_sampling_leaves_k3_of_sequences_out():
    columns, _ = logs(np.random.default_rng(3), sequences=20, length=100, top_p=0.9)
    figures = logprobs(table(columns), p="log_p", q="log_q").overall[0]
    assert figures.token.keys() == {"k1", "k2"}
    assert figures.sequence.keys() == {"k1", "k2"}


def test_float16_columns_are_read():
    columns, _ = logs(np.random.default_rng(3), sequences=12, length=50)
    halves = {name: columns[name].astype(np.float16) for name in ("log_p", "log_q")}
    wide = {name: values.astype(np.float64) for name, values in halves.items()}
    found, same = (
        logprobs(pa.table(columns | each), p="log_p", q="log_q") for each in (halves, wide)
    )
    assert found.main.value == pytest.approx(same.main.value, rel=1e-12)
    assert found.main.rounding > 0


def broken(columns, kind):
    """A log with rows that are no log-probabilities of tokens, though each value could be one."""
    rng, found = np.random.default_rng(1), dict(columns)
    places = rng.choice(len(columns["log_p"]), 30, replace=False)
    if kind in ("fill of q", "fill of both"):
        for name in ("log_q",) if kind == "fill of q" else ("log_p", "log_q"):
            found[name] = columns[name].copy()
            found[name][places] = math.log(1e-10)
    if kind == "clamp":
        found["log_q"] = np.maximum(columns["log_q"], -4.5)
    if kind in ("padding", "prompt"):
        ends = rng.integers(20, 80, 20)[columns["sequence"]]
        off = columns["position"] < ends if kind == "prompt" else columns["position"] >= ends
        found |= {name: np.where(off, 0.0, columns[name]) for name in ("log_p", "log_q")}
    if kind == "copies":
        found = {name: np.concatenate([values, values]) for name, values in columns.items()}
        found["sequence"][2000:] += 1000
    return found


BROKEN = {
    "fill of q": "lowest value",
    "fill of both": "lowest value",
    "clamp": "lowest value",
    "padding": "padding",
    "prompt": "padding",
    "copies": "copies",
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("kind", BROKEN)
def test_rows_that_are_no_draws_leave_no_error_bar(kind):
    columns, _ = logs(np.random.default_rng(7), sequences=20, length=100)
    found = check_logprobs(table(broken(columns, kind)), **PAIR)
    assert BROKEN[kind] in {check.name for check in found.found if check.effect == "limit"}
    assert found.main.no_error
    assert found.gate(require_below=10.0).failed
    clean = check_logprobs(table(columns), **PAIR)
    assert not clean.found


def test_one_copied_sequence_is_told_of():
    columns, _ = logs(np.random.default_rng(7), sequences=30, length=50)
    again = {name: values[-50:] for name, values in columns.items()}
    again["sequence"] = again["sequence"] + 1
    both = {name: np.concatenate([columns[name], again[name]]) for name in columns}
    report = check_logprobs(table(both), **PAIR)
    assert [(check.name, check.effect) for check in report.found] == [("copies", "warn")]


def test_weights_of_a_behaviour_policy(simulated):
    columns, _ = simulated
    figures = logprobs(
        table(columns, float32=False),
        p="log_third",
        q="log_q",
        drawn_from="behaviour",
        behaviour="log_p",
    ).overall[0]
    x = columns["log_q"] - columns["log_third"]
    w = np.exp(columns["log_third"] - columns["log_p"])
    truth = clustered(-w * x, columns["sequence"])
    close(figures.token["k1"].estimate.value, truth.estimate.value)
    close(figures.token["k1"].naive_error, truth.naive_error)
    close(figures.token["k3"].estimate.value, (w * (np.expm1(x) - x)).mean())
    close(figures.ess * 20_000, w.sum() ** 2 / (w**2).sum(), 1e-11)


def test_draws_from_q_give_the_other_direction(simulated, report):
    columns, _ = simulated
    swapped = table(columns, float32=False)
    one = logprobs(swapped, p="log_q", q="log_p", drawn_from="q")
    assert (one.direction, report.direction) == ("KL(q‖p)", "KL(p‖q)")
    close(one.main.value, report.main.value)


def test_data_give_paired_log_likelihoods_only(simulated):
    columns, _ = simulated
    report = logprobs(table(columns, float32=False), **PAIR, drawn_from="data")
    figures = report.overall[0]
    assert set(figures.token) == {"log_ratio"}
    close(report.main.value, (columns["log_p"] - columns["log_q"]).mean())
    close(figures.log_likelihoods[1], columns["log_q"].mean())
    assert not any(check.name == "ratio identity" for check in report.checks)


@pytest.mark.slow
def test_two_policies_are_compared_in_pairs(simulated):
    columns, _ = simulated
    columns = columns | {"log_r": np.minimum(columns["log_q"] - 0.01, 0.0)}
    report = logprobs(table(columns, float32=False), p="log_p", q=("log_q", "log_r"))
    (found,) = report.pairs.values()
    close(found["k1"].estimate.value, (columns["log_r"] - columns["log_q"]).mean(), 1e-9)
    assert found["k1"].estimate.standard_error < report.main.standard_error


@pytest.mark.slow
def test_groups_are_what_each_alone_would_be(simulated):
    columns, _ = simulated
    whole = logprobs(table(columns, float32=False), **PAIR, by="step")
    assert [one.label for one in whole.groups] == ["0", "1"]
    for step, figures in enumerate(whole.groups):
        alone = {name: values[columns["step"] == step] for name, values in columns.items()}
        truth = logprobs(table(alone, float32=False), **PAIR).overall[0]
        for name in ("k1", "k3", "best"):
            found, expected = (each.token[name].estimate for each in (figures, truth))
            close(found.value, expected.value, 1e-10)
            close(found.standard_error, expected.standard_error, 1e-9)
        assert abs(figures.k_hat - truth.k_hat) < 1e-9


def test_prompts_are_the_clusters(simulated):
    columns, _ = simulated
    grouped = columns | {"prompt_id": columns["sequence"] // 2}
    found = logprobs(table(grouped, float32=False), **PAIR).overall[0].token["k1"]
    truth = clustered(columns["log_p"] - columns["log_q"], grouped["prompt_id"])
    close(found.estimate.standard_error, truth.estimate.standard_error)
    assert found.clusters.name == "prompts"


@pytest.mark.slow
def test_few_sequences_are_cut_into_blocks(simulated):
    columns, _ = simulated
    few = {name: values[:2000] for name, values in columns.items()}  # four sequences
    report = logprobs(table(few, float32=False), **PAIR)
    found = report.overall[0].token["k1"]
    terms = few["log_p"] - few["log_q"]
    block = few["sequence"] * 10 + few["position"] // 50
    close(found.estimate.standard_error, clustered(terms, block).estimate.standard_error)
    assert "contiguous blocks of 50 tokens" in found.estimate.warnings[-1]
    unnamed = table({name: few[name] for name in ("log_p", "log_q")}, float32=False)
    again = logprobs(unnamed, **PAIR).overall[0]
    close(again.token["k1"].estimate.value, terms.mean())
    assert again.sequence == {}


def test_compiled_for_warehouses(simulated):
    columns, _ = simulated
    tokens = read_tables([table(columns)], Columns("log_p", ("log_q",), by=("step",)))
    expression = sums_expression(tokens, Draws("p", ("q0",), "p"))
    for dialect in ("bigquery", "snowflake", "duckdb"):
        sql = compiled(expression, dialect).upper()
        assert "GROUP BY" in sql
        assert sql.count("SUM(") >= 9


def test_one_pass_is_one_query(simulated, monkeypatch):
    columns, _ = simulated
    engine = connect()
    tokens = read_tables([table(columns)], Columns("log_p", ("log_q",)), engine=engine)
    asked = []
    run = type(engine).run
    monkeypatch.setattr(
        type(engine), "run", lambda self, e, what: asked.append(e) or run(self, e, what)
    )
    summed(tokens, Draws("p", ("q0",), "p"))
    assert len(asked) == 1


# --- checks


@pytest.mark.sweep(7)
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name):
    """Each in 100 of 100 files of benchmarks/logprob_checks.py."""
    make, check = FAULTS[name]
    columns, options = make(np.random.default_rng(0))
    found = check_logprobs(table(columns), **PAIR, **options).found
    assert [one.name for one in found] == [check]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", CLEAN)
def test_clean_files_have_nothing(name):
    columns, options = CLEAN[name](np.random.default_rng(0))
    assert check_logprobs(table(columns), **PAIR, **options).found == ()


def test_a_refuted_identity_leaves_k1_and_says_why():
    columns, _ = FAULTS["renormalised top-p 0.9"][0](np.random.default_rng(5))
    kl = logs(np.random.default_rng(5), top_p=0.9)[1]
    figures = logprobs(table(columns), **PAIR).overall[0]
    assert set(figures.token) == {"k1", "k2"}
    assert "truncated p" in figures.left_out["best"]
    estimate = figures.token["k1"].estimate
    assert estimate.bias == "unknown"
    assert abs(estimate.value - kl) < 4.5 * estimate.standard_error


def test_rows_written_twice_are_refused_without_positions():
    columns = dict(CLEAN["clean"](np.random.default_rng(0))[0])
    columns.pop("position", None)
    twice = {name: np.concatenate([values, values]) for name, values in columns.items()}
    (found,) = check_logprobs(table(twice), **PAIR).found
    assert (found.name, found.effect) == ("sequence names", "refuse")


def test_a_rare_mean_of_the_ratio_is_a_note_and_a_common_one_is_not():
    """A constant factor on q moves the mean of q/p by as much; 4.05 and 2 of its errors."""
    rng = np.random.default_rng(4)
    log_r = 0.1 * rng.standard_normal(30_000)
    error = np.exp(log_r).std() / np.sqrt(30_000)
    for errors, noted in ((4.05, ["ratio identity"]), (2.0, [])):
        log_r -= np.log(np.exp(log_r).mean()) - np.log1p(errors * error)
        log_p = -1.0 - rng.exponential(1.0, 30_000)
        columns = {"sequence": np.arange(30_000) // 100, "p": log_p, "q": log_p + log_r}
        found = logprobs(table(columns), p="p", q="q", drawn_from="p").checks
        notes = [one.name for one in found if one.effect]
        assert notes == noted


@pytest.mark.slow
def test_another_temperature_leaves_no_error_bar():
    columns, options = FAULTS["temperature 0.7, entropies logged"][0](np.random.default_rng(5))
    report = logprobs(table(columns), **PAIR, **options)
    assert "another temperature" in report.main.no_error
    assert report.gate(fail_above=1e-6).failed is False
    assert report.gate(require_below=100.0).failed is True


@pytest.mark.slow
def test_skipped_tokens_are_counted():
    columns, _ = FAULTS["sentinels"][0](np.random.default_rng(5))
    with pytest.raises(DataError, match="5 of 20,000 tokens lack a log-probability: log_p: 5 "):
        logprobs(table(columns), **PAIR)
    report = logprobs(table(columns), **PAIR, missing="skip")
    figures = report.overall[0]
    assert figures.tokens == 19_995
    assert [check.name for check in report.found] == ["values"]


@pytest.mark.slow
def test_one_hundred_may_be_a_log_probability_once(simulated):
    columns, _ = simulated
    once = columns | {"log_q": columns["log_q"].copy()}
    once["log_q"][7] = -100.0
    assert logprobs(table(once), **PAIR).overall[0].tokens == 20_000


def test_repeated_sequence_names():
    columns, _ = logs(np.random.default_rng(0), sequences=20, length=50)
    columns["sequence"] %= 10
    with pytest.raises(DataError, match="two tokens at one position"):
        logprobs(table(columns), **PAIR)


@pytest.mark.slow
def test_versions_by_column_are_no_mixture():
    columns, _ = FAULTS["mixed versions"][0](np.random.default_rng(5))
    by = logprobs(table(columns), **PAIR, by="policy_version")
    assert by.found == ()
    assert [one.label for one in by.groups] == ["7", "8"]


def test_json_is_strict(simulated):
    columns, _ = simulated
    report = logprobs(table(columns), **PAIR, by="step", details=True)
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["overall"][0]["token"]["k1"]["value"] == report.overall[0].token[
        "k1"
    ].estimate.value  # fmt: skip
    x = columns["log_q"].astype(np.float32).astype(float) - columns["log_p"].astype(np.float32)
    for level, value in report.quantiles.items():
        assert math.isclose(value, np.quantile(x, level), abs_tol=1e-12)
    assert sum(count for _, _, count in report.bins) == 20_000
    for low, high, count in report.bins[::5]:
        assert count == ((x >= low) & (x < high)).sum()


@pytest.mark.slow
def test_other_tables(simulated, tmp_path):
    """Parquet, CSV, data frames: the same figures."""
    columns, _ = simulated
    frame = pd.DataFrame(columns)
    truth = logprobs(frame, **PAIR).main
    frame.to_csv(tmp_path / "a.csv", index=False)
    pq.write_table(pa.Table.from_pandas(frame[:9000]), tmp_path / "b.parquet")
    pq.write_table(pa.Table.from_pandas(frame[9000:]), tmp_path / "c.parquet")
    for given in ([tmp_path / "a.csv"], [tmp_path / "b.parquet", tmp_path / "c.parquet"],
                  [str(tmp_path / "*.parquet")]):  # fmt: skip
        found = logprobs(*given, **PAIR).main
        close(found.value, truth.value, 1e-10)
        close(found.standard_error, truth.standard_error, 1e-9)


# --- edges


def small(**columns):
    frame = pd.DataFrame({"log_p": np.full(3000, -1.0), "sequence": np.arange(3000) // 50})
    return frame.assign(**columns)


def test_a_constant_ratio_has_no_error_bar():
    varied = -1.0 - np.random.default_rng(0).exponential(size=len(small()["log_p"]))
    report = logprobs(small(log_p=varied, log_q=varied - 0.1), **PAIR)
    assert report.main.value == pytest.approx(0.1)
    assert "every token gave the same term" in report.main.no_error
    assert report.gate(fail_above=0.01).failed is False
    same = logprobs(small(log_p=varied, log_q=varied), **PAIR).main
    assert (same.value, same.standard_error) == (0.0, 0.0)


def test_wrong_weights_leave_no_error_bar(simulated):
    columns, _ = simulated
    wrong = columns | {"off": columns["log_third"] - 0.2}
    report = logprobs(table(wrong), p="off", q="log_q", drawn_from="behaviour", behaviour="log_p")
    assert "mean of the weights is 0." in report.main.no_error


def test_groups_without_tokens_are_left_out():
    half = small(log_q=-1.0).assign(group=np.arange(3000) // 1500)
    half.loc[half.group == 1, "log_q"] = np.nan
    report = logprobs(half, **PAIR, by="group", missing="skip")
    assert [one.label for one in report.groups] == ["0"]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_next_to_no_tokens(rows):
    frame = pd.DataFrame({"log_p": [-1.0, -2.0, -0.5], "log_q": [-1.1, -1.9, -0.6]})[:rows]
    estimate = logprobs(frame, **PAIR).main
    assert estimate.value == pytest.approx((frame.log_p - frame.log_q).mean())
    assert estimate.warnings or estimate.no_error


def test_odd_groups_and_names():
    frame = small(log_q=np.log(np.linspace(0.3, 0.4, 3000)))
    frame["a b.c"] = np.where(np.arange(3000) < 1500, np.nan, 1.5)
    renamed = frame.rename(columns={"log_q": "q-1 é"})
    report = logprobs(renamed, p="log_p", q="q-1 é", by="a b.c", drawn_from="data")
    assert [one.tokens for one in report.groups] == [1500, 1500]
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.slow
def test_columns_of_another_quantity_are_named(simulated):
    columns, _ = simulated
    for change, words in (
        (lambda x: -x, "negated? log-probabilities are minus an NLL"),
        (np.exp, "probabilities? all are between 0 and 1"),
    ):
        changed = columns | {"log_q": change(columns["log_q"])}
        (found,) = check_logprobs(table(changed), **PAIR).refused
        assert words in found.remedy
    one = columns | {"log_q": np.where(columns["position"] == 3, 0.7, columns["log_q"])}
    (found,) = check_logprobs(table(one), **PAIR).refused
    assert "log-probabilities are at most 0" in found.remedy


def test_logarithms_to_base_two_show_against_entropies(simulated):
    columns, _ = simulated
    bits = {name: columns[name] / math.log(2) for name in ("log_p", "log_q")}
    report = check_logprobs(table(columns | bits), **PAIR, entropy="entropy")
    found = next(check for check in report.found if check.name == "entropy")
    assert "to base 2 (bits)?" in found.words
    assert report.overall[0].token["k1"].estimate.no_error
    plain = check_logprobs(table(columns), **PAIR, entropy="entropy")
    assert "entropy" not in [check.name for check in plain.found]
