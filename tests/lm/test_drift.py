"""Figures of two tiny models against a float64 recomputation from full logits."""

import json
import math

import numpy as np
import pytest
import torch

from kullback.core import ArgumentValueError, DataError
from kullback.lm.documents import Document, read_documents, windows
from kullback.lm.model_drift import drift
from kullback.lm.models import LanguageModel, load_models
from lm import tiny_models

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def measured(tiny):
    p, q, r = load_models(tiny / "p", [tiny / "q", tiny / "r"], dtype="float64")
    documents = read_documents([tiny / "texts"], p.tokenizer)
    return drift(p, [q, r], documents, context=16, stride=5, tops=True), documents


def recomputed(tiny, documents, name, context=16, stride=5):
    """Logits in float64 of every scored token, window by window."""
    module = transformers.AutoModelForCausalLM.from_pretrained(tiny / name, dtype=torch.float64)
    rows = []
    with torch.inference_mode():
        for window in windows(documents, context, stride):
            logits = module(window.ids[None]).logits[0]
            rows.append(logits[window.scored - window.start - 1 : -1])
    return torch.cat(rows).log_softmax(-1).numpy()


def test_every_column_is_the_float64_recomputation(tiny, measured):
    found, documents = measured
    log_p = recomputed(tiny, documents, "p")
    ids = np.concatenate([one.ids[1:].numpy() for one in documents])
    at = np.arange(len(ids))
    assert (found.table.place["id"] == ids).all()
    p = np.exp(log_p)
    np.testing.assert_allclose(found.column("p_entropy"), -(p * log_p).sum(-1), atol=1e-12)
    np.testing.assert_allclose(found.column("p_log_prob"), log_p[at, ids], atol=1e-12)
    np.testing.assert_allclose(found.column("p_top_prob"), p.max(-1), rtol=1e-6)
    for number, name in enumerate("qr"):
        log_q = recomputed(tiny, documents, name)
        q = np.exp(log_q)
        mean = np.log((p + q) / 2)
        truth = {
            "kl": (p * (log_p - log_q)).sum(-1),
            "reverse_kl": (q * (log_q - log_p)).sum(-1),
            "js": 0.5 * ((p * (log_p - mean)).sum(-1) + (q * (log_q - mean)).sum(-1)),
            "q_entropy": -(q * log_q).sum(-1),
            "q_log_prob": log_q[at, ids],
            "log_ratio": log_q[at, ids] - log_p[at, ids],
            "delta_prob": q[at, ids] - p[at, ids],
        }
        for quantity, values in truth.items():
            np.testing.assert_allclose(found.column(quantity, number), values, atol=1e-11)
            clustered = found.mean(quantity, number).estimate
            assert clustered.value == pytest.approx(values.mean(), abs=1e-11)
        best_p, best_q = log_p.argmax(-1), log_q.argmax(-1)
        assert (found.column("same_top", number) == (best_p == best_q)).all()
        ranks = (log_q > log_q[at, best_p][:, None]).sum(-1) + 1
        assert (found.column("rank", number) == ranks).all()
        assert (found.column("top_stays", number) == (ranks == 1)).all()
        five = [set(np.argsort(-row)[:5]) for row in log_p]
        theirs = [set(np.argsort(-row)[:5]) for row in log_q]
        shared = [len(a & b) / 5 for a, b in zip(five, theirs, strict=True)]
        np.testing.assert_allclose(found.column("top_overlap", number), shared, atol=1e-6)
        tops = found.table.candidates[number]["top_probs"]
        np.testing.assert_allclose(tops, -np.sort(-q, -1)[:, :5], rtol=1e-5)


def test_figures_percentiles_and_perplexities(measured):
    found, _ = measured
    figures = found.figures(0)
    kl = found.column("kl")
    assert figures.percentiles["kl"][50.0] == pytest.approx(np.median(kl))
    assert figures.percentiles["kl"][100.0] == kl.max()
    log_p, log_q = found.column("p_log_prob"), found.column("q_log_prob")
    p, q = math.exp(-log_p.mean()), math.exp(-log_q.mean())
    assert [one.value for one in figures.perplexity] == pytest.approx([p, q])
    assert figures.ratio.value == pytest.approx(q / p)
    assert figures.difference.value == pytest.approx(q - p)
    assert figures.correlation == pytest.approx(np.corrcoef(log_p, log_q)[0, 1])
    delta = np.exp(log_q) - np.exp(log_p)
    assert figures.rms_delta_prob.value == pytest.approx(math.sqrt(np.square(delta).mean()))
    ratio = found.mean("log_ratio").estimate
    assert figures.ratio.standard_error == pytest.approx(q / p * ratio.standard_error)
    json.dumps(found.to_dict(), allow_nan=False)


def test_errors_of_perplexities_are_paired_by_documents(measured):
    """Against the jackknife over documents, which knows nothing of derivatives."""
    found, documents = measured
    place = found.table.place["document"]
    values = {"difference": [], "rms_delta_prob": []}
    for left in range(len(documents)):
        keep = place != left
        log_p, log_q = (found.column(name)[keep] for name in ("p_log_prob", "q_log_prob"))
        values["difference"].append(math.exp(-log_q.mean()) - math.exp(-log_p.mean()))
        values["rms_delta_prob"].append(math.sqrt(np.square(np.exp(log_q) - np.exp(log_p)).mean()))
    count = len(documents)
    for name, left_out in values.items():
        jackknife = math.sqrt((count - 1) / count * np.square(left_out - np.mean(left_out)).sum())
        error = getattr(found.figures(), name).standard_error
        assert error == pytest.approx(jackknife, rel=0.1)  # both to first order in 1/12


def test_the_error_is_that_of_documents_and_pairs_cancel_what_is_common(measured):
    found, documents = measured
    kl = found.column("kl")
    sums = np.array([kl[found.table.place["document"] == d].sum() for d in range(len(documents))])
    sizes = np.array([len(one.ids) - 1 for one in documents])
    mean = found.mean("kl")
    share = sizes / sizes.sum()
    truth = math.sqrt(
        np.sum((sums - mean.estimate.value * sizes) ** 2 / (1 - share)) / sizes.sum() ** 2
    )
    assert mean.estimate.standard_error == pytest.approx(truth, rel=1e-9)
    assert len(mean.clusters.sizes) == len(documents)
    difference = found.paired(0, 1)
    other = found.mean("kl", 1).estimate
    assert difference.estimate.value == pytest.approx(mean.estimate.value - other.value)
    assert found.paired(0, 0).estimate.standard_error == 0.0


def test_parts_add_up_to_the_whole(measured):
    found, _ = measured
    place = found.table.place
    for what in ("position", "confidence", "document", "role"):
        parts = found.by(what)
        total = sum(one.clusters.sizes.sum() for one in parts.values())
        assert total == len(found.table), what
    kl = found.column("kl")
    eight = found.by("position")["8 to 15"].estimate.value
    assert eight == pytest.approx(kl[(place["position"] >= 8) & (place["position"] < 16)].mean())
    worst = found.worst(3)
    assert [one.kl for one in worst] == sorted(kl, reverse=True)[:3]


def test_gates_decide_by_limits(measured):
    found, _ = measured
    assert found.gate(fail_above=1e-6).failed
    assert not found.gate(fail_above=10.0).failed
    assert found.gate(require_below=1e-6).failed
    assert not found.gate(require_below=10.0).failed
    with pytest.raises(ArgumentValueError, match="fail_above and require_below"):
        found.gate()


def test_equal_models_give_zero_and_no_negative(tiny):
    p, q = load_models(tiny / "p", [tiny / "p"])
    documents = read_documents([tiny / "texts"], p.tokenizer)
    found = drift(p, q, documents)
    assert found.mean("kl").estimate.value == 0.0
    assert not found.gate(require_below=1e-9).failed
    same = found.mean("same_top").estimate
    assert same.value == 1.0
    assert "every token has the same value" in same.no_error  # and not ± 0
    p, q = load_models(tiny / "p", [tiny / "q"], dtype="bfloat16")
    found = drift(p, q, documents)
    for quantity in ("kl", "reverse_kl", "js"):
        assert (found.column(quantity) >= 0).all()
    assert found.floors[0] > 1e-8  # of bfloat16, stated beside the mean
    assert found.mean("kl").estimate.rounding == found.floors[0]


@pytest.mark.parametrize("options", [{"batch_tokens": 64}, {"batch_tokens": 10_000}])
def test_batches_do_not_change_the_figures(tiny, measured, options):
    from kullback.lm.token_table import plan_windows

    found, documents = measured
    models = list(load_models(tiny / "p", [tiny / "q"], dtype="float64"))
    plan = plan_windows(models, documents, context=16, stride=5, **options)
    again = drift(models[0], models[1], plan)
    np.testing.assert_allclose(again.column("kl"), found.column("kl"), atol=1e-12)


def test_memory_for_fifty_rows_gives_the_same(tiny, measured):
    from kullback.lm.token_table import measure_batch, plan_windows

    found, documents = measured
    models = list(load_models(tiny / "p", [tiny / "q"], dtype="float64"))
    plan = plan_windows(models, documents, context=16, stride=5)
    table = measure_batch(models[0], models[1:], plan.batches[0], memory=19 * 16 * 50)
    np.testing.assert_allclose(table.candidates[0]["kl"], found.column("kl"), atol=1e-12)


def test_windows_score_every_token_once_with_enough_before_it():
    documents = [Document(str(n), torch.arange(n)) for n in (0, 1, 2, 3, 15, 16, 17, 40)]
    for context, stride in ((2, 1), (3, 2), (16, 15), (16, 8), (16, 1), (64, 32)):
        cut = windows(documents, context, stride)
        scored = [(w.document, t) for w in cut for t in range(w.scored, w.stop)]
        wanted = [(d, t) for d, one in enumerate(documents) for t in range(1, len(one.ids))]
        assert scored == wanted
        assert [w.row for w in cut] == list(np.cumsum([0, *(w.count for w in cut)])[:-1])
        for w in cut:
            assert len(w.ids) <= context
            assert w.scored - w.start >= (1 if w.start == 0 else context - stride)
    for context, stride in ((1, None), (8, 0), (8, 8)):
        with pytest.raises(ArgumentValueError, match=r"context|stride"):
            windows(documents, context, stride)


def test_limit_stops_after_whole_windows(tiny):
    p, q = load_models(tiny / "p", [tiny / "q"])
    documents = read_documents([tiny / "texts"], p.tokenizer)
    seen = []
    found = drift(p, q, documents, context=16, limit=50, on_batch=lambda t: seen.append(len(t)))
    assert 50 <= len(found.table) < 50 + 15
    assert sum(seen) == len(found.table)
    with pytest.raises(ArgumentValueError, match="limit"):
        drift(p, q, documents, limit=0)
    with pytest.raises(ArgumentValueError, match="context: expected at most 64"):
        drift(p, q, documents, context=65)


def test_heads_with_bias_scale_and_softcap():
    torch.manual_seed(0)
    p_head, q_head = torch.randn(2, 11, 6).double()
    states = torch.randn(11, 6).double()
    options = {"bias": torch.randn(11).double(), "scale": 0.7, "softcap": 2.5}
    p = LanguageModel("p", lambda ids: states[ids], p_head, **options)
    q = LanguageModel("q", lambda ids: states[ids] * 1.1, q_head, softcap=3.0)
    text = [Document("a", torch.randint(11, (30,)))]
    found = drift(p, q, text)
    h = states[text[0].ids[:-1]]
    log_p = (2.5 * torch.tanh(0.7 * (h @ p_head.T + options["bias"]) / 2.5)).log_softmax(-1)
    log_q = (3.0 * torch.tanh(1.1 * h @ q_head.T / 3.0)).log_softmax(-1)
    truth = (log_p.exp() * (log_p - log_q)).sum(-1)
    np.testing.assert_allclose(found.column("kl"), truth.numpy(), atol=1e-12)


def test_chat_roles_mark_answers_and_their_first_token(tiny, tmp_path):
    p, q = load_models(tiny / "p", [tiny / "q"])
    chat = [
        {"role": "user", "content": "the cat sat"},
        {"role": "assistant", "content": "on a mat"},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "saw it run"},
    ]
    lines = [{"messages": chat}, {"text": "the cat ran far"}]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    documents = read_documents([tmp_path / "chat.jsonl"], p.tokenizer)
    first = "assistant/first"
    assert documents[0].roles == (
        *["user"] * 4, "assistant", first, *["assistant"] * 2,
        *["user"] * 2, "assistant", first, *["assistant"] * 2,
    )  # fmt: skip
    found = drift(p, q, documents)
    parts = found.by("role")
    assert parts[first].clusters.sizes.sum() == 2
    assert set(parts) == {"user", "assistant", first, "text"}


TOOLS = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] or '' }} "
    "{% for call in m['tool_calls'] or [] %}it {{ call['function']['name'] }} by {% endfor %}"
    "night {% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def test_tool_calls_and_fenced_code_have_roles_of_their_own(tmp_path):
    made = tiny_models.tokenizer(extra=("```", "<tool_call>", "</tool_call>", "<tool>"))
    made.chat_template = TOOLS
    call = {"type": "function", "function": {"name": "far", "arguments": {}}}
    chat = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "on", "tool_calls": [call, call]},
        {"role": "tool", "content": "home"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": "sat\n```\nsaw it\n```\nrun"},
        {"role": "assistant", "content": "on <tool_call> far </tool_call> a"},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": chat}))
    (found,) = read_documents([tmp_path / "a.jsonl"], made)
    words = made.convert_ids_to_tokens(found.ids.tolist())
    mine, first, tool, code = (f"assistant{one}" for one in ("", "/first", "/tool call", "/code"))
    assert list(zip(words, found.roles, strict=True)) == [
        ("<user>", "user"), ("the", "user"), ("cat", "user"), ("night", "user"),
        ("<assistant>", mine), ("on", first), *2 * [("it", tool), ("far", tool), ("by", tool)],
        ("night", mine), ("<tool>", "tool"), ("home", "tool"), ("night", "tool"),
        ("<assistant>", mine), ("it", first), ("far", tool), ("by", tool), ("night", mine),
        ("<assistant>", mine), ("sat", first), ("```", code), ("saw", code), ("it", code),
        ("```", code), ("run", mine), ("night", mine),
        ("<assistant>", mine), ("on", first), *[(w, tool) for w in words[-5:-2]],
        ("a", mine), ("night", mine),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("the\n```py\ncat\n```\nsat", "```py cat ```"),
        ("```\ncat", "``` cat"),
        ("~~~~\ncat\n~~~\non\n~~~~\nsat", "~~~~ cat ~~~ on ~~~~"),
        ("the ``` cat ``` sat", ""),
        ("the\n    ```\ncat", ""),
        ("```\n```\nthe\n  ```\n  cat\n  ```", "``` ``` ``` cat ```"),
        ("", ""),
    ],
)
def test_fences_are_those_of_markdown(tmp_path, text, code):
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "b.md").write_text("the cat sat")
    marks = ("```", "```py", "~~~", "~~~~")
    found, other = read_documents([tmp_path], tiny_models.tokenizer(extra=marks))
    words = tiny_models.tokenizer(extra=marks).convert_ids_to_tokens(found.ids.tolist())
    inside = [w for w, role in zip(words, found.roles, strict=bool(code)) if role == "text/code"]
    assert " ".join(inside) == code
    assert other.roles == ()
    assert set(found.roles) <= {"text", "text/code"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "the cat"}', 'a.jsonl:1: expected an object with text in "text"'),
        ('{"text": "the cat"}\n{"text": ', "a.jsonl:2: expected a line of JSON"),
        ('{"messages": [{"content": "x"}]}', 'expected messages with "role"'),
        ("", "expected a document of at least two tokens; got 0 documents"),
        ('{"text": ""}\n{"text": "cat"}', "got 2 documents"),
        ('{"text": null}', "got null in 'text'"),
        ('{"text": "a cat"}\n{"text": "\\ud800 a"}', "a.jsonl:2: expected Unicode text"),
    ],
)
def test_text_that_cannot_be_read(tmp_path, content, words):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=words.replace("(", r"\(")):
        read_documents([tmp_path / "a.jsonl"], tiny_models.tokenizer())


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    """U+2028 and U+0085 are characters of a JSON string; a byte order mark is none of the text."""
    content = '\ufeff{"text": "the\u2028cat\x85sat"}\r\n{"text": "a mat"}\r\n'
    (tmp_path / "a.jsonl").write_bytes(content.encode())
    found = read_documents([tmp_path / "a.jsonl"], tiny_models.tokenizer())
    assert [len(one.ids) for one in found] == [3, 2]


def test_copies_of_a_document_are_one_cluster(tiny):
    """As often as they are there, errors stay those of the documents (they were 0 for one)."""
    p, q = load_models(tiny / "p", [tiny / "q"])
    once = read_documents([tiny / "texts"], p.tokenizer)
    twice = [Document(f"{one.name}, {n}", one.ids) for n in range(3) for one in once]
    plain, copied = (drift(p, q, many).mean("kl") for many in (once, twice))
    assert copied.estimate.value == pytest.approx(plain.estimate.value)
    assert copied.estimate.standard_error == pytest.approx(plain.estimate.standard_error)
    assert len(copied.clusters.sizes) == len(once)
    alone = drift(p, q, twice[::12] * 10).mean("kl")
    assert alone.estimate.no_error
    assert alone.clusters.name == "blocks"


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"the \xff cat")
    (tmp_path / "empty").mkdir()
    made = tiny_models.tokenizer(chat=False)
    with pytest.raises(DataError, match="expected UTF-8 text; got other bytes at 4"):
        read_documents([tmp_path / "a.txt"], made)
    with pytest.raises(DataError, match="no file of that name"):
        read_documents([tmp_path / "b.txt"], made)
    with pytest.raises(DataError, match="expected a folder of text files"):
        read_documents([tmp_path / "empty"], made)
    (tmp_path / "c.jsonl").write_text('{"messages": [{"role": "user", "content": "the cat"}]}')
    with pytest.raises(DataError, match="expected a tokenizer with a chat template"):
        read_documents([tmp_path / "c.jsonl"], made)


def test_an_empty_document_among_others_scores_nothing(tiny, tmp_path):
    p, q = load_models(tiny / "p", [tiny / "q"])
    for name, words in (("a", "the cat sat on"), ("b", ""), ("c", "a mat"), ("d", "far")):
        (tmp_path / f"{name}.txt").write_text(words)
    documents = read_documents([tmp_path], p.tokenizer)
    found = drift(p, q, documents)  # all shorter than the context
    assert found.table.place["document"].tolist() == [0, 0, 0, 2]
