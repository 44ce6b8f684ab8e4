"""The same expressions on a real local Spark session; skipped where PySpark or Java is missing."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kullback.core import MissingExtraError
from kullback.lm import logprobs
from kullback.lm.engines import connect
from lm.simulated_logs import logs, table

PAIR = {"p": "log_p", "q": "log_q"}


@pytest.fixture(scope="module")
def spark():
    pytest.importorskip("pyspark")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    return connect("spark")


@pytest.fixture(scope="module")
def columns():
    columns, _ = logs(np.random.default_rng(0), sequences=40, length=100)
    columns["step"] = columns["sequence"] // 20
    return columns


def same(found, expected):
    assert (found.tokens, found.sequences) == (expected.tokens, expected.sequences)
    for level in ("token", "sequence"):
        here, there = getattr(found, level), getattr(expected, level)
        assert set(here) == set(there)
        for name, one in here.items():
            for part in ("value", "standard_error"):
                a, b = (getattr(each.estimate, part) for each in (one, there[name]))
                assert a == pytest.approx(b, rel=1e-10, nan_ok=True)
    assert found.ess == pytest.approx(expected.ess, rel=1e-10)
    assert found.k_hat == pytest.approx(expected.k_hat, abs=1e-9)
    assert found.identity.z == pytest.approx(expected.identity.z, abs=1e-6)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_spark_gives_duckdbs_figures(spark, columns, tmp_path):
    path = tmp_path / "tokens.parquet"
    pq.write_table(table(columns, float32=False), path)
    there = logprobs(path, **PAIR, by="step", details=True)
    here = logprobs(path, **PAIR, by="step", details=True, engine=spark)
    assert here.engine == "pyspark"
    assert [check.name for check in here.found] == [check.name for check in there.found]
    same(here.overall[0], there.overall[0])
    for one, other in zip(here.groups, there.groups, strict=True):
        same(one, other)
    assert here.quantiles == pytest.approx(there.quantiles, rel=1e-9)
    assert here.bins == there.bins


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_spark_reads_lists(spark, columns, tmp_path):
    p, q = (columns[name].reshape(40, 100).tolist() for name in ("log_p", "log_q"))
    mask = [[place > 3 for place in range(100)]] * 40
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"log_p": p, "log_q": q, "loss_mask": mask}), path)
    there = logprobs(path, **PAIR)
    same(logprobs(path, **PAIR, engine=spark).overall[0], there.overall[0])


def test_spark_that_is_not_there(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyspark.errors", None)
    with pytest.raises(MissingExtraError, match="pip install pyspark, and needs Java"):
        connect("spark")


@pytest.mark.slow
@pytest.mark.integration
def test_spark_without_java(tmp_path):
    """PySpark is installed, and neither JAVA_HOME nor the path leads to a Java."""
    pytest.importorskip("pyspark")
    rows = pd.DataFrame({"p": [-1.0, -2.0], "q": [-1.1, -1.9]})
    rows.to_csv(tmp_path / "a.csv")
    command = "import sys; from kullback.cli.main import main; main(sys.argv[1:])"
    words = ["logprobs", tmp_path / "a.csv", "--p", "p", "--q", "q", "--engine", "spark"]
    kept = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", command, *words],
        capture_output=True,
        text=True,
        env=kept | {"PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "--engine: Spark does not start" in done.stderr
    assert "install Java (default-jre-headless)" in done.stderr
    assert done.stdout == ""
