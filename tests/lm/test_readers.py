"""Every format that is read, by its published schema, and every input that is refused."""

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kullback.cli.main import main
from kullback.core import DataError, KullbackError, MissingExtraError, RunError
from kullback.lm import check_logprobs, logprobs
from kullback.lm.engines import connect
from lm.simulated_logs import logs, table

PAIR = {"p": "log_p", "q": "log_q"}


@pytest.fixture(scope="module")
def columns():
    return logs(np.random.default_rng(0), sequences=30, length=40)[0]


@pytest.fixture(scope="module")
def truth(columns):
    return logprobs(table(columns, float32=False), **PAIR).overall[0]


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rows(columns):
    """One list of log-probabilities a sequence, of each column."""
    p, q = (columns[name].reshape(30, 40) for name in ("log_p", "log_q"))
    return list(zip(p.tolist(), q.tolist(), strict=True))


def same(found, expected, names=("k1", "k3")):
    assert (found.tokens, found.sequences) == (expected.tokens, expected.sequences)
    for name in names:
        for part in ("value", "standard_error"):
            a, b = (getattr(each.token[name].estimate, part) for each in (found, expected))
            assert a == pytest.approx(b, rel=1e-9)


def test_prime_rl_exports(columns, truth, tmp_path):
    for step in (0, 1):
        folder = tmp_path / f"step_{step}"
        folder.mkdir()
        for rank in (0, 1):
            some = rows(columns)[step::2][rank::2]
            lines(folder / f"rank_{rank}.jsonl", [
                {"schema_version": 1, "step": step, "rank": rank, "export_sequence_idx": place,
                 "token_ids": [0, 0, *range(40)], "loss_mask": [False] * 2 + [True] * 40,
                 "inference_logprobs": [0.0, None, *p], "trainer_logprobs": [0.0, 0.0, *q],
                 "entropy": [1.0] * 42}
                for place, (p, q) in enumerate(some)
            ])  # fmt: skip
        (folder / "STABLE").touch()
    (tmp_path / "step_2").mkdir()
    lines(tmp_path / "step_2" / "rank_0.jsonl", [{"inference_logprobs": [-1.0]}])
    report = logprobs(tmp_path, by="step")
    same(report.overall[0], truth)
    assert report.notes[0] == "left out, without the marker STABLE: step_2"
    assert "read as a prime-rl token export" in report.notes
    assert [one.label for one in report.groups] == ["0", "1"]


@pytest.mark.slow
def test_nemo_rl_train_data(columns, truth, tmp_path):
    for step in (3, 4):
        lines(tmp_path / f"train_data_step{step}.jsonl", [
            {"idx": place, "content": "text", "input_lengths": 41, "token_ids": [0, *range(40)],
             "token_loss_mask": [0] + [1] * 40, "sample_loss_mask": float(place != 7),
             "generation_logprobs": [0.0, *p], "prev_logprobs": [0.0, *q]}
            for place, (p, q) in enumerate(rows(columns)[step - 3 :: 2])
        ])  # fmt: skip
    report = logprobs(tmp_path / "train_data_step*.jsonl", by="step")
    kept = {name: values[~np.isin(columns["sequence"], [14, 15])]
            for name, values in columns.items()}  # fmt: skip
    same(report.overall[0], logprobs(table(kept, float32=False), **PAIR).overall[0])
    assert [one.label for one in report.groups] == ["3", "4"]
    assert "read as a NeMo-RL train data" in report.notes


@pytest.mark.slow
def test_list_columns(columns, truth, tmp_path):
    p, q = zip(*rows(columns), strict=True)
    lists = pa.table({"mine": list(p), "other": list(q), "env": ["a", "b"] * 15})
    pq.write_table(lists, tmp_path / "lists.parquet")
    for given in (lists, tmp_path / "lists.parquet"):
        same(logprobs(given, p="mine", q="other").overall[0], truth)


def test_json_lines_of_tokens(columns, truth, tmp_path):
    names = ("sequence", "position", "log_p", "log_q")
    records = [dict(zip(names, row, strict=True)) for row in
               zip(*(columns[name].tolist() for name in names), strict=True)]  # fmt: skip
    same(logprobs(lines(tmp_path / "a.jsonl", records), **PAIR).overall[0], truth)


def openai_chat(values):
    content = [{"token": f"t{i}", "logprob": value, "bytes": None, "top_logprobs": []}
               for i, value in enumerate(values)]  # fmt: skip
    return {"choices": [{"index": 0, "logprobs": {"content": content}}]}


def openai_completions(values):
    tokens = [f"token_id:{i}" for i in range(len(values))]
    return {"choices": [{"logprobs": {"tokens": tokens, "token_logprobs": values,
                                      "top_logprobs": None, "text_offset": []}}]}  # fmt: skip


def openai_batch(values):
    return {"custom_id": "a", "response": {"status_code": 200, "body": openai_chat(values)}}


def vllm_prompt(values):
    entries = [None] + [
        {str(i): {"logprob": value, "rank": 3, "decoded_token": "x"},
         "999": {"logprob": -0.1, "rank": 1, "decoded_token": "y"}}
        for i, value in enumerate(values)
    ]  # fmt: skip
    ids = [7, *range(len(values))]
    return {"choices": [{"prompt_logprobs": entries, "prompt_token_ids": ids}]}


def sglang(values):
    rows = [[value, i, None] for i, value in enumerate(values)]
    return {"text": "…", "meta_info": {"output_token_logprobs": rows}}


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "answer", [openai_chat, openai_completions, vllm_prompt, sglang], ids=lambda f: f.__name__
)
def test_answers_of_two_models(answer, columns, truth, tmp_path):
    pairs = rows(columns)
    files = [lines(tmp_path / f"{side}.jsonl", [answer(pair[side]) for pair in pairs])
             for side in (0, 1)]  # fmt: skip
    report = logprobs(p=str(files[0]), q=str(files[1]))
    same(report.overall[0], truth)


@pytest.mark.slow
def test_batch_output_is_joined_by_its_ids(columns, truth, tmp_path):
    pairs = rows(columns)
    records = [[openai_batch(pair[side]) | {"custom_id": f"r{place}"}
                for place, pair in enumerate(pairs)] for side in (0, 1)]  # fmt: skip
    files = [lines(tmp_path / "a.jsonl", records[0]), lines(tmp_path / "b.jsonl", records[1][::-1])]
    same(logprobs(p=str(files[0]), q=str(files[1])).overall[0], truth)


def test_lm_eval_samples(tmp_path):
    """Log-likelihoods of the continuations of each document, paired by its hash."""
    rng = np.random.default_rng(0)
    values = -5 + rng.standard_normal((2, 40, 4))
    files = [
        lines(tmp_path / f"{side}.jsonl", [
            {"doc_id": doc, "doc": {}, "target": 0, "arguments": [], "doc_hash": f"h{doc}",
             "resps": [[[str(value), "False"]] for value in own], "filter": "none"}
            for doc, own in enumerate(values[side])
        ])
        for side in (0, 1)
    ]  # fmt: skip
    report = logprobs(p=str(files[0]), q=str(files[1]), drawn_from="data")
    difference = values[0] - values[1]
    assert report.main.value == pytest.approx(difference.mean(), rel=1e-12)
    error = difference.mean(1).std(ddof=1) / np.sqrt(40)
    assert report.main.standard_error == pytest.approx(error, rel=1e-9)
    assert report.main.unit == "nats/answer"


def test_two_tables_are_joined(columns, truth, tmp_path):
    frame = pd.DataFrame(columns)[["sequence", "position", "log_p", "log_q"]]
    frame.drop(columns="log_q").to_parquet(tmp_path / "p.parquet")
    frame.drop(columns="log_p")[::-1].to_parquet(tmp_path / "q.parquet")
    given = {"p": f"{tmp_path}/p.parquet:log_p", "q": f"{tmp_path}/q.parquet:log_q"}
    same(logprobs(**given).overall[0], truth)


def test_offset_lists_are_told(columns, tmp_path):
    records = [{"p": p, "q": [*q, -1.0], "loss_mask": [True] * 40} for p, q in rows(columns)]
    with pytest.raises(DataError, match=r"q: in 30 of 30 rows of another length than p .*too long"):
        logprobs(lines(tmp_path / "a.jsonl", records), p="p", q="q")


def test_a_length_column_that_disagrees(columns):
    said = columns | {"length": np.full(1200, 39)}
    (found,) = check_logprobs(table(said), **PAIR).found
    assert (found.name, found.effect) == ("mask and lengths", "warn")
    assert "30 of 30 sequences" in found.words
    assert "most often 1 more" in found.words


# --- refused


def wrong(message, *tables, **options):
    with pytest.raises(KullbackError, match=message):
        logprobs(*tables, **options)


def test_bad_columns(columns):
    tokens = table(columns)
    wrong("q: expected a column of the table; got 'lgq'. Try: one of .*log_q", tokens, p="log_p",
          q="lgq")  # fmt: skip
    wrong("p: expected a column of the table; got none", tokens)
    wrong("p: expected a column of the table; got 'LOG_P'. Try: one of log_p", tokens, p="LOG_P",
          q="log_q")  # fmt: skip
    text = tokens.append_column("text", pa.array(["a"] * tokens.num_rows))
    wrong("q: expected a column of numbers.*'text' of type string", text, p="log_p", q="text")
    wrong("by: expected a column", tokens, **PAIR, by="stpe")
    lists = pa.table({"p": [[-1.0]], "q": [-1.0]})
    wrong("p and q: expected two columns of numbers, or two of lists", lists, p="p", q="q")


@pytest.mark.slow
def test_bad_values(columns):
    tokens = pd.DataFrame(columns)
    wrong("expected rows; got none", table({name: values[:0] for name, values in columns.items()}),
          **PAIR)  # fmt: skip
    wrong("all|tokens lack a log-probability.*above 0.*minus an NLL",
          tokens.assign(log_p=-tokens.log_p), **PAIR)  # fmt: skip
    wrong("log_q: 3 null", tokens.assign(log_q=tokens.log_q.where(tokens.index > 2)), **PAIR)
    wrong("mask leaves no token", tokens.assign(loss_mask=False), **PAIR)
    both = tokens.assign(log_q=np.where(tokens.index == 5, -np.inf, tokens.log_q))
    wrong("log_q: 1 −inf", both, **PAIR)


@pytest.mark.slow
@pytest.mark.sweep(6)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("place", [0, 700, -1])
def test_nan_that_a_file_s_statistics_hide(columns, tmp_path, dtype, place):
    """Writers of Parquet leave NaN out of least and largest value, which DuckDB trusts."""
    values = np.array(columns["log_p"], dtype=dtype)
    values[place] = np.nan
    path = tmp_path / "nan.parquet"
    pq.write_table(pa.table(columns | {"log_p": values}), path)
    assert math.isfinite(pq.ParquetFile(path).metadata.row_group(0).column(0).statistics.max)
    wrong("log_p: 1 NaN", path, **PAIR)
    skipped = logprobs(path, **PAIR, missing="skip").overall[0]
    assert skipped.tokens == len(values) - 1
    assert math.isfinite(skipped.main.estimate.value)


@pytest.mark.slow
def test_entropies_that_are_no_numbers_are_left_out(columns, tmp_path):
    values = np.full(len(columns["log_p"]), 1.0)
    values[::3] = np.nan
    path = tmp_path / "nan.parquet"
    pq.write_table(pa.table(columns | {"entropy": values}), path)
    found = {one.name: one for one in check_logprobs(path, **PAIR, entropy="entropy").checks}
    assert "nan" not in found["entropy"].words


def test_bad_options(columns):
    tokens = table(columns)
    wrong("behaviour: expected a column if and only if", tokens, **PAIR, drawn_from="behaviour")
    wrong("behaviour: expected a column if and only if", tokens, **PAIR, behaviour="log_third")
    wrong("drawn_from: expected one of", tokens, **PAIR, drawn_from="r")
    wrong("missing: expected", tokens, **PAIR, missing="drop")
    wrong("clip: expected", tokens, **PAIR, clip=1.5)
    wrong("q: expected one column where the tokens are drawn from it", tokens, p="log_p",
          q=("log_q", "log_third"), drawn_from="q")  # fmt: skip
    wrong("engine: expected duckdb, spark or", tokens, **PAIR, engine="sparkk")
    wrong("tables: expected a table, or files", p="log_p")
    wrong("tables: expected paths, or a pandas", 7, **PAIR)


def test_bad_files(columns, tmp_path):
    whole = tmp_path / "whole.parquet"
    pq.write_table(table(columns), whole)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-200])
    wrong("cut.parquet: cannot be read by duckdb", cut, **PAIR)
    inside = tmp_path / "inside.parquet"
    data = bytearray(whole.read_bytes())
    data[200:3000] = bytes(2800)
    inside.write_bytes(data)
    wrong("inside.parquet: cannot be read by duckdb", inside, **PAIR)
    wrong("nowhere.parquet: there is no such file", tmp_path / "nowhere.parquet", **PAIR)
    (tmp_path / "dump.pt").write_bytes(b"\x80\x04.")
    wrong("a pickle runs code of its writer.*to_parquet", tmp_path / "dump.pt", **PAIR)
    (tmp_path / "none").mkdir()
    wrong("no file of .parquet", tmp_path / "none", **PAIR)
    wrong("files of one kind", whole, lines(tmp_path / "a.jsonl", [{"log_p": -1.0}]), **PAIR)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"log_p": -1.0, "log_q": -1.0}\n{"log_p": -1.0, "log')
    wrong("broken.jsonl: cannot be read by duckdb", broken, **PAIR)
    for name in ("empty.jsonl", "empty.csv", "empty.parquet"):
        (tmp_path / name).write_text("")
        wrong(f"{name}: expected rows; got an empty file", tmp_path / name, **PAIR)


def test_bad_answers(columns, tmp_path):
    pairs = rows(columns)[:3]
    p = lines(tmp_path / "p.jsonl", [openai_chat(one) for one, _ in pairs])
    wrong("of one model. Try: no table, and two files", p, **PAIR)
    fewer = lines(tmp_path / "fewer.jsonl", [openai_chat(one) for _, one in pairs[:2]])
    wrong("expected the tokens of .*sequence '2/0', position 0: 't0' there, 'no token' here",
          p=str(p), q=str(fewer))  # fmt: skip
    other = openai_chat(pairs[0][1])
    other["choices"][0]["logprobs"]["content"][5]["token"] = "else"
    changed = lines(
        tmp_path / "changed.jsonl", [other, *map(openai_chat, [q for _, q in pairs[1:]])]
    )
    wrong("position 5: 't5' there, 'else' here", p=str(p), q=str(changed))
    none = lines(tmp_path / "none.jsonl", [{"choices": [{"text": "a"}]}])
    wrong("record 1 is not one of OpenAI.*ask for logprobs", p=str(none), q=str(p))
    ambiguous = vllm_prompt(pairs[0][0])
    del ambiguous["choices"][0]["prompt_token_ids"]
    wrong("return_token_ids=true", p=str(lines(tmp_path / "v.jsonl", [ambiguous])), q=str(p))
    text = lines(tmp_path / "t.jsonl", [{"doc_id": 0, "resps": [["an answer"]]}])
    wrong("a task that generates text", p=str(text), q=str(text))
    sentinel = openai_chat([-9999.0, *pairs[0][0][1:]])
    bad = lines(tmp_path / "s.jsonl", [sentinel, *map(openai_chat, [q for q, _ in pairs[1:]])])
    wrong("1 of −700 or below, which stands for 'not scored'", p=str(p), q=str(bad))


def test_an_engine_that_is_not_there(columns, monkeypatch):
    wrong("trino|ibis|engine", table(columns), **PAIR, engine="nosuch://host")
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kullback\[tables\]'"):
        connect()


def test_a_full_disk():
    engine = connect()
    (error, *_) = engine.errors
    with pytest.raises(RunError, match="more room on the disk"), engine.guarded("a"):
        raise error("IO Error: Could not write: No space left on device")


@pytest.mark.slow
def test_lists_with_positions_a_json_array_and_masks_of_labels(tmp_path):
    columns, _ = logs(np.random.default_rng(0), sequences=12, length=30)
    frame = pd.DataFrame(columns)
    expected = logprobs(frame, p="log_p", q="log_q").main.value
    lists = frame.groupby("sequence").agg(list)
    frame.to_json(tmp_path / "array.json", orient="records", double_precision=15)
    labels = frame.assign(loss_mask=np.where(frame.position < 5, -100, 7))
    later = frame[frame.position >= 5]
    for source, value in (
        (lists, expected),
        (tmp_path / "array.json", expected),
        (labels, logprobs(later, p="log_p", q="log_q").main.value),
    ):
        assert logprobs(source, p="log_p", q="log_q").main.value == pytest.approx(value, rel=1e-9)


@pytest.mark.slow
def test_a_byte_order_mark_and_a_column_of_prompts(tmp_path):
    columns, _ = logs(np.random.default_rng(0), sequences=24, length=30)
    frame = pd.DataFrame(columns)
    lists = frame.groupby("sequence").agg(list)[["log_p", "log_q"]]
    lines = lists.to_json(orient="records", lines=True, double_precision=15)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    read = logprobs(tmp_path / "a.jsonl", p="log_p", q="log_q").main.value
    assert read == pytest.approx(logprobs(frame, p="log_p", q="log_q").main.value, rel=1e-9)
    asked = frame.assign(prompt=[f"question {n // 2}" for n in frame["sequence"]])
    found, named = (
        logprobs(x, p="log_p", q="log_q").main
        for x in (asked, asked.rename(columns={"prompt": "prompt_id"}))
    )
    assert found.standard_error == pytest.approx(named.standard_error, rel=1e-9)
    plain = logprobs(lists, p="log_p", q="log_q").main
    for prompts in ([[{"role": "user"}]] * 24, [{"text": "a"}] * 24, [[1, 2]] * 24, [None] * 24):
        found = logprobs(lists.assign(prompt=prompts), p="log_p", q="log_q").main
        # messages and ids name nothing; sums of threads have no order
        assert found.value == pytest.approx(plain.value, rel=1e-12)


def test_names_from_data_hold_no_control_characters_on_the_terminal_or_the_page(tmp_path, capsys):
    hostile = "\x1b[31m</script><script>alert(1)</script>\u202e"
    columns, _ = logs(np.random.default_rng(0), sequences=12, length=30)
    frame = pd.DataFrame(columns).assign(run=hostile)
    frame.to_parquet(tmp_path / "log.parquet")
    page = tmp_path / "page.html"
    files = ["logprobs", str(tmp_path / "log.parquet"), "--p", "log_p", "--q", "log_q"]
    with pytest.raises(SystemExit) as ended:
        main([*files, "--by", "run", "--html", str(page)])
    assert not ended.value.code
    for text in (capsys.readouterr().out, page.read_text()):
        assert "\\x1b[31m" in text
        assert not {"\x1b", "\u202e"} & set(text)
    assert "<script>alert" not in page.read_text()


def test_a_csv_with_a_header_alone(tmp_path):
    (tmp_path / "a.csv").write_text("log_p,log_q\n")
    with pytest.raises(DataError, match=r"a.csv: expected rows; got none"):
        logprobs(tmp_path / "a.csv", p="log_p", q="log_q")
