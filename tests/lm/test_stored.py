"""One P, many Q: stored hidden states, lists with bounds, llama.cpp's file, runs that go on."""

import contextlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from kullback.core import DataError, RunError
from kullback.lm import (
    Document,
    LanguageModel,
    drift,
    load_models,
    plan_windows,
    read_documents,
    read_kept,
    read_kld,
    store,
    stored,
    stored_kind,
)
from kullback.lm.limits import ANSWERS_FLOOR
from kullback.lm.stored import Parts

pytest.importorskip("transformers")
HOW = {"context": 16, "stride": 7}


@pytest.fixture(scope="module")
def models(tiny):
    p, q, r = load_models(tiny / "p", [tiny / "q", tiny / "r"])
    documents = read_documents([tiny / "texts"], p.tokenizer)
    return p, [q, r], documents


def test_stored_hidden_states_give_the_same_figures(models, tmp_path):
    p, qs, documents = models
    store(p, documents, tmp_path / "p", **HOW)
    assert stored_kind(tmp_path / "p") == "store"
    kept, plan = read_kept(tmp_path / "p", qs)
    found, direct = drift(kept, qs, plan), drift(p, qs, documents, **HOW)
    for q in range(2):
        for name, column in direct.table.candidates[q].items():
            np.testing.assert_array_equal(found.table.candidates[q][name], column)
    assert found.floors == direct.floors
    again = drift(kept, qs[:1], plan)  # another candidate later
    assert again.mean().estimate.value == direct.mean().estimate.value


def test_lists_bound_the_divergence_and_close_on_it(models, tmp_path):
    p, qs, documents = models
    exact = drift(p, qs, documents, **HOW)
    before = None
    for k in (1, 5, 12, p.vocab):
        store(p, documents, tmp_path / str(k), top_k=k, **HOW)
        kept, plan = read_kept(tmp_path / str(k), qs)
        found = drift(kept, qs, plan)
        low, high = found.column("kl"), found.column("kl_upper")
        truth = exact.column("kl")
        assert (low <= truth + 1e-6).all()
        assert (truth <= high + 1e-6).all()
        for name in ("reverse_kl", "js"):
            assert (found.column(name) <= exact.column(name) + 1e-6).all()
        for name in ("q_entropy", "q_log_prob", "p_entropy", "p_log_prob", "p_top_prob"):
            np.testing.assert_allclose(found.column(name), exact.column(name), atol=1e-5)
        assert before is None or low.mean() >= before - 1e-7
        before = low.mean()
        if k == 5:
            assert not found.gate(fail_above=low.mean() + 0.1).failed
            middle = (low.mean() + high.mean()) / 2
            assert found.gate(require_below=middle).failed  # the upper bound is above it
    np.testing.assert_allclose(low, truth, atol=1e-6)
    np.testing.assert_allclose(high, truth, atol=1e-5)  # it allows for float32 in 19 numbers


def test_an_unfinished_store_is_refused_and_goes_on(models, tmp_path):
    p, qs, documents = models
    store(p, documents, tmp_path / "p", **HOW)
    parts = sorted((tmp_path / "p" / "parts").iterdir())
    content = parts[0].read_bytes()
    parts[0].unlink()
    with pytest.raises(DataError, match=r"expected 468 stored rows; got 0. Try: the command that"):
        read_kept(tmp_path / "p", qs)
    store(p, documents, tmp_path / "p", **HOW)
    assert parts[0].read_bytes() == content
    with pytest.raises(DataError, match="context was 16 and is 8"):
        store(p, documents, tmp_path / "p", context=8, stride=7)
    parts[0].write_bytes(content[:100])
    with pytest.raises(DataError, match="damaged"):
        read_kept(tmp_path / "p", qs)


def test_a_run_goes_on_where_it_was_interrupted(models, tmp_path):
    p, qs, documents = models
    plan = plan_windows([p, *qs], documents, batch_tokens=64, **HOW)
    assert len(plan.batches) > 5
    whole = drift(p, qs, plan)
    seen = []

    def stop(table):
        seen.append(table)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drift(p, qs, plan, out=tmp_path / "run", on_batch=stop)
    assert len(list((tmp_path / "run" / "parts").iterdir())) == 3
    calls = []
    counted = LanguageModel(
        **{n: getattr(p, n) for n in LanguageModel.__slots__ if n != "hidden"},
        hidden=lambda ids: (calls.append(1), p.hidden(ids))[1],
    )
    found = drift(counted, qs, plan, out=tmp_path / "run")
    assert len(calls) == len(plan.batches) - 3 + 1  # and one for the rounding floor
    for name, column in whole.table.place.items():
        np.testing.assert_array_equal(found.table.place[name], column)
    np.testing.assert_array_equal(found.column("kl", 1), whole.column("kl", 1))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["p"]["weights_sha256"] != manifest["q"][0]["weights_sha256"]
    assert manifest["versions"]["torch"] == torch.__version__
    with pytest.raises(DataError, match="q0_weights_sha256 was"):
        drift(p, qs[::-1], plan, out=tmp_path / "run")


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(DataError, match="expected a new folder"):
        Parts(tmp_path, {})
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_could_not_be_begun_is_taken_again(tmp_path, monkeypatch):
    """A disk that is full from the first file on, and then is not."""
    with monkeypatch.context() as full:
        full.setattr("kullback.lm.stored.write_json", raise_full)
        with pytest.raises(RunError, match="No space left"):
            Parts(tmp_path / "run", {"a": 1})
    Parts(tmp_path / "run", {"a": 1}).save(0, {"kl": np.zeros(3)})
    assert Parts(tmp_path / "run", {"a": 1}).find(0) is not None


def raise_full(path, *_):
    raise RunError(f"{path}: cannot be written: No space left on device")


@pytest.mark.sweep(3)
@pytest.mark.parametrize("place", range(6))
def test_a_disk_that_fills_leaves_only_whole_files(models, tmp_path, monkeypatch, place):
    """Each file in turn is one too many; then there is room, and the command goes on."""
    p, _, documents = models
    made = []

    def write(path, content):
        made.append(path)
        if len(made) == place + 1:
            raise_full(path)
        whole(path, content)

    whole = stored.write_atomic
    monkeypatch.setattr("kullback.lm.stored.write_atomic", write)
    with contextlib.suppress(RunError):
        store(p, documents, tmp_path / "kept", context=16)
    store(p, documents, tmp_path / "kept", context=16)
    kept, _ = read_kept(tmp_path / "kept", [])
    assert len(made) > place + 1
    assert torch.equal(kept.head, p.head)


def test_a_tokenizer_that_cannot_be_written_is_an_error_in_words(tmp_path):
    """The library tokenizers raises a plain Exception on a full disk."""

    class Full:
        def save_pretrained(self, folder):
            raise Exception("No space left on device (os error 28)")

    with pytest.raises(RunError, match=r"tokenizer: cannot be written: No space left"):
        stored._write_tokenizer(tmp_path / "tokenizer", Full())


# --- Answers of vLLM and SGLang


def candidates(p, document, k):
    """Of every token but the first: its id, log p of it, and P's k most probable tokens."""
    ids = document.ids
    with torch.inference_mode():
        logs = p.logits(p.hidden(ids[None])[0]).double().log_softmax(-1)[:-1]
    top = logs.topk(k, -1)
    lists = [list(zip(*pair, strict=True)) for pair in
             zip(top.indices.tolist(), top.values.tolist(), strict=True)]  # fmt: skip
    own = logs.gather(-1, ids[1:, None])[:, 0].tolist()
    return list(zip(ids[1:].tolist(), own, lists, strict=True))


def vllm(p, document, k):
    """A prompt with `prompt_logprobs`, the token itself among them."""
    entries = [None]
    for number, own, top in candidates(p, document, k):
        entry = {
            str(number): {"logprob": own, "rank": 99, "decoded_token": p.tokenizer.decode([number])}
        }
        for rank, (one, log) in enumerate(top, 1):
            text = p.tokenizer.decode([one])
            entry[str(one)] = {"logprob": log, "rank": rank, "decoded_token": f" {text}"}
        entries.append(entry)
    return {"choices": [{"prompt_logprobs": entries, "prompt_token_ids": document.ids.tolist()}]}


def vllm_output(p, document, k, prompt=7):
    """A prompt without lists, and an output whose tokens are written as ids."""
    found = candidates(p, document, k)[prompt - 1 :]
    logs = {
        "tokens": [f"token_id:{number}" for number, _, _ in found],
        "token_logprobs": [own for _, own, _ in found],
        "top_logprobs": [{f"token_id:{one}": log for one, log in top} for _, _, top in found],
    }
    ids = document.ids[:prompt].tolist()
    return {"choices": [{"logprobs": logs}], "prompt_token_ids": ids}


def sglang(p, document, k, prompt=7):
    found = candidates(p, document, k)
    own = [[None, int(document.ids[0]), None], *([log, number, None] for number, log, _ in found)]
    tops = [None, *([[log, one, None] for one, log in top] for _, _, top in found)]
    return {"meta_info": {
        "prompt_tokens": prompt,
        "input_token_logprobs": own[:prompt], "input_top_logprobs": tops[:prompt],
        "output_token_logprobs": own[prompt:], "output_top_logprobs": tops[prompt:],
    }}  # fmt: skip


def answers(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


@pytest.mark.sweep(4)
@pytest.mark.parametrize("k", [1, 5, 19])
@pytest.mark.parametrize("answer", [vllm, vllm_output, sglang], ids=lambda one: one.__name__)
def test_lists_of_services_are_a_stored_p(models, tmp_path, answer, k):
    """The same bounds as from lists of the same length stored here, of the same tokens."""
    p, qs, documents = models
    path = answers(tmp_path / "p.jsonl", [answer(p, one, k) for one in documents])
    assert stored_kind(path) == "answers"
    kept, plan = read_kept(path, qs)
    found = drift(kept, qs, plan)
    assert f"the {k} most probable" in found.bound
    store(p, documents, tmp_path / "kept", top_k=k, context=64)
    mine, windows = read_kept(tmp_path / "kept", qs)
    own = drift(mine, qs, windows)
    first = 7 if answer is vllm_output else 1
    same = own.table.place["position"] >= first
    for name in ("kl", "kl_upper", "reverse_kl", "js", "q_log_prob", "p_log_prob", "p_top_prob"):
        np.testing.assert_allclose(found.column(name, 1), own.column(name, 1)[same], atol=2e-6)
    np.testing.assert_array_equal(found.table.place["id"], own.table.place["id"][same])
    exact = drift(p, qs, documents, context=64).column("kl", 1)[same]
    assert (found.column("kl", 1) <= exact + 1e-6).all()
    assert (exact <= found.column("kl_upper", 1) + 1e-6).all()
    itself = drift(kept, replace(p, name="itself"), plan)
    assert 0 <= itself.mean().estimate.value < ANSWERS_FLOOR


def test_answers_that_are_no_stored_p(models, tmp_path):
    p, qs, documents = models

    def refused(words, *records):
        with pytest.raises(DataError, match=words):
            read_kept(answers(tmp_path / "p.jsonl", records), qs)

    good = vllm(p, documents[0], 3)
    refused("expected rows", *[])
    refused("neither vLLM's nor SGLang's", {"prompt": "the cat"})
    none = json.loads(json.dumps(good))
    del none["choices"][0]["prompt_token_ids"]
    refused("record 2 .*no prompt_token_ids.*return_token_ids=true", good, none)
    gap = json.loads(json.dumps(good))
    gap["choices"][0]["prompt_logprobs"][9] = None
    refused("missing at some positions", gap)
    worse = json.loads(json.dumps(good))
    for entry in worse["choices"][0]["prompt_logprobs"][1:]:
        for one in list(entry):
            if entry[one]["rank"] == 1:
                del entry[one]
    refused("most probable token is not listed|KeyError", worse)
    other = json.loads(json.dumps(good).replace('" cat"', '" dog"'))
    refused("expected one tokenizer; got ' dog' and 'cat'", other)
    big = json.loads(json.dumps(good))
    big["choices"][0]["prompt_token_ids"][0] = 999
    refused("expected token ids below 19 .*got 999", big)
    hot = json.loads(json.dumps(good))
    for entry in hot["choices"][0]["prompt_logprobs"][1:]:
        for one in entry.values():
            one["logprob"] *= 0.3
    refused("expected probabilities that add up to at most 1", hot)
    text = vllm_output(p, documents[0], 3)
    text["choices"][0]["logprobs"]["tokens"][0] = " cat"
    refused("return_tokens_as_token_ids=true", text)
    short = sglang(p, documents[0], 3)
    short["meta_info"]["prompt_tokens"] = 9
    refused("of 9 tokens of the prompt 7 are there", short)
    long = vllm(p, Document("long", documents[0].ids.repeat(2)), 3)
    refused("at most 64 tokens", long)


def kld_file(path, logits, ids):
    """Write rows as llama.cpp does: 16-bit codes from 16 nats below the largest."""
    chunks, context = ids.shape
    vocab = logits.shape[-1]
    out = [b"_logits_", struct.pack("<iii", context, vocab, chunks), ids.astype("<i4").tobytes()]
    for row in logits.reshape(-1, vocab).astype(np.float32):
        top = row.max()
        least = max(row.min(), top - np.float32(16))
        total = np.log(np.exp((row - top).astype(np.float32)).sum(dtype=np.float32))
        step = (top - least) / np.float32(65535)
        codes = np.where(row > least, np.rint((row - least) / step), 0).astype("<u2")
        padded = np.zeros(2 * ((vocab + 1) // 2), "<u2")
        padded[:vocab] = codes
        out += [struct.pack("<ff", step, least - top - total), padded.tobytes()]
    path.write_bytes(b"".join(out))


def kld_case(tmp_path, spread, vocab, noise):
    """A file of P's logits, and Q beside it that gives noisy ones at the same positions."""
    generator = torch.Generator().manual_seed(0)
    context, chunks = 12, 3
    rows = context - 1 - context // 2
    head = torch.randn(vocab, 40, generator=generator) / 40**0.5
    states = spread * torch.randn(chunks, context, 40, generator=generator)
    moved = states + noise * torch.randn(states.shape, generator=generator)
    logits, other = states @ head.T, moved @ head.T
    ids = torch.randint(vocab, (chunks, context), generator=generator)
    first = context // 2
    kld_file(tmp_path / "p.kld", logits[:, first : first + rows].numpy(), ids.numpy())
    q = LanguageModel("q", lambda read: moved[: len(read)], head)
    log_p, log_q = (x[:, first:-1].double().log_softmax(-1) for x in (logits, other))
    truth = (log_p.exp() * (log_p - log_q)).sum(-1).flatten().numpy()
    return q, truth


@pytest.mark.parametrize("vocab", [31, 400])
def test_the_file_of_llama_cpp(tmp_path, vocab):
    q, truth = kld_case(tmp_path, 3.0, vocab, 0.1)
    p, plan = read_kept(tmp_path / "p.kld", [q])
    found = drift(p, q, plan)
    assert len(found.table) == 3 * 5
    assert found.table.place["position"].tolist() == [7, 8, 9, 10, 11] * 3
    np.testing.assert_allclose(found.column("kl"), truth, rtol=2e-3, atol=1e-6)
    assert "lower bound" in found.bound
    assert found.gate(require_below=10.0).failed  # no upper bound is known


def test_code_0_of_llama_cpp_is_a_bucket_not_a_probability(tmp_path):
    """Decoded and renormalised, this KL of 3e-7 would be 1.5e-2."""
    q, truth = kld_case(tmp_path, 6.0, 32_000, 1e-3)
    p, plan = read_kld(tmp_path / "p.kld")
    found = drift(p, q, plan)
    assert truth.mean() < 1e-6
    assert (found.column("kl") >= 0).all()
    assert found.mean().estimate.value < truth.mean() + p.floor
    assert found.floors[0] >= p.floor


def test_files_of_llama_cpp_that_are_damaged(tmp_path):
    kld_case(tmp_path, 3.0, 31, 0.1)
    file = tmp_path / "p.kld"
    whole = file.read_bytes()
    for content, words in (
        (whole[:-7], "a truncated file"),
        (whole[:60], "truncated within its tokens"),
        (whole[:10], "expected llama.cpp's file of logits"),
        (b"GGUF" + whole, "expected llama.cpp's file of logits"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_kld(file)
