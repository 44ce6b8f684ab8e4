"""`kullback logprobs`: tables in; text, JSON and exit codes out."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from kullback.cli.main import main
from lm.simulated_logs import FAULTS, logs, table

NAMES = ("--p", "log_p", "--q", "log_q")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    columns, kl = logs(np.random.default_rng(0), sequences=40, length=100)
    columns["step"] = columns["sequence"] // 20
    pq.write_table(table(columns), folder / "good.parquet")
    (folder / "kl.txt").write_text(str(kl))
    bad = {name: values[:2000] for name, values in columns.items()}
    bad["log_p"] = np.where(bad["position"] == 3, -9999.0, bad["log_p"])
    pq.write_table(table(bad), folder / "bad.parquet")
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["logprobs", *arguments])
    return stop.value.code or 0, capsys.readouterr()


@pytest.mark.slow
def test_text(capsys):
    code, said = run(capsys, "good.parquet", *NAMES, "--by", "step")
    assert code == 0
    assert said.out.startswith("KL(p‖q) of good.parquet, by duckdb: 4,000 tokens, drawn from p\n")
    for words in ("sequence: column 'sequence', found by its name", "ok     ratio identity",
                  "best λ", "clustered by 40 sequences", "by step"):  # fmt: skip
        assert words in said.out


def test_json_and_gate(capsys, folder):
    code, said = run(capsys, "good.parquet", *NAMES, "--json", "--fail-above", "0.001",
                     "--sequence", "step,sequence")  # fmt: skip
    assert code == 4
    found = json.loads(said.out)
    best = found["overall"][0]["token"]["best"]
    low, high = best["interval"]
    assert low < float((folder / "kl.txt").read_text()) < high
    assert found["gate"]["failed"] is True
    assert "lower limit" in said.err


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--fail-above", "0.5"), 0),
        (("--require-below", "0.5"), 0),
        (("--require-below", "0.001"), 4),
    ],
)
def test_gates(options, code, capsys):
    assert run(capsys, "good.parquet", *NAMES, *options)[0] == code


@pytest.mark.slow
def test_wrong_usage_and_bad_data(capsys):
    code, said = run(capsys, "good.parquet", "--p", "log_p", "--q", "lgq")
    assert code == 2
    assert "--q: expected a column of good.parquet; got 'lgq'" in said.err
    assert run(capsys, "good.parquet", *NAMES, "--confidence", "0.2")[0] == 2
    code, said = run(capsys, "bad.parquet", *NAMES)
    assert code == 3
    assert "of −700 or below, which stands for 'not scored'" in said.err
    assert "--missing skip" in said.err
    code, said = run(capsys, "bad.parquet", *NAMES, "--missing", "skip")
    assert code == 0
    assert "note   values: 20 of 2,000 tokens lack" in said.out
    assert run(capsys, "nowhere.parquet", *NAMES)[0] == 3
    assert run(capsys, *NAMES)[0] == 3


@pytest.mark.slow
def test_a_fault_is_shown(capsys, folder):
    columns, _ = FAULTS["renormalised top-p 0.9"][0](np.random.default_rng(0))
    pq.write_table(table(columns), folder / "top_p.parquet")
    code, said = run(capsys, "top_p.parquet", *NAMES)
    assert code == 0
    assert "FOUND  ratio identity: the mean of q/p is 0.9" in said.out
    assert "best left out" in said.out


@pytest.mark.slow
def test_page(capsys, folder):
    code, said = run(capsys, "good.parquet", *NAMES, "--by", "step", "--html", "page.html")
    assert code == 0
    assert "page: page.html" in said.err
    page = (folder / "page.html").read_text()
    assert page.count("<svg") == 2
    assert "KL(p‖q) of good.parquet" in page
    assert "ratio identity" in page
    assert "<script" not in page
    assert "http" not in page
    assert run(capsys, "good.parquet", *NAMES, "--html", "page.html")[0] == 2
