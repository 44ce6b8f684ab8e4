"""`kullback drift` from its arguments to exit codes, files and the page in a browser."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

from kullback.cli.main import main
from lm import tiny_models

pytest.importorskip("transformers")


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def test_the_table_and_its_files(tiny, tmp_path, run):
    page, rows = tmp_path / "a.html", tmp_path / "a.parquet"
    text = ["--text", tiny / "texts", "--context", 32]
    code, out, err = run(
        "drift", tiny / "p", tiny / "q", tiny / "r", *text, "--html", page, "--parquet", rows
    )
    assert code == 0, err
    assert out.startswith("from P = p: 468 tokens of 12 documents, context 32, stride 16")
    for words in ("KL(P‖Q)", "design effect", "perplexity of Q", "99.9 %", "by position", "[",
                  "errors clustered by 12 documents", "q is nearer to P than r by"):  # fmt: skip
        assert words in out
    code, out, err = run("drift", tiny / "p", tiny / "q", tiny / "r", *text, "--json")
    found = json.loads(out)
    assert [one["name"] for one in found["candidates"]] == ["q", "r"]
    assert found["paired"][0]["value"] < 0
    assert found["manifest"]["tokenizer_sha256"]
    parquet = pytest.importorskip("pyarrow.parquet").read_table(rows)
    assert parquet.num_rows == 2 * 468
    table = parquet.to_pydict()
    kl = [x for x, name in zip(table["kl"], table["candidate"], strict=True) if name == "q"]
    assert sum(kl) / len(kl) == pytest.approx(found["candidates"][0]["means"]["kl"]["value"])
    assert json.loads(parquet.schema.metadata[b"kullback"])["settings"]["context"] == 32
    assert table["token"][0] in tiny_models.WORDS.split()


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--fail-above", "0.01"], 4),
        (["--fail-above", "1"], 0),
        (["--require-below", "0.01"], 4),
        (["--require-below", "1"], 0),
        (["--fail-above", "1", "--require-below", "0.01"], 4),
    ],
)
def test_gates_exit_with_4(tiny, run, options, code):
    found, out, err = run("drift", tiny / "p", tiny / "q", "--text", tiny / "texts", *options)
    assert (found, "gate: " in err) == (code, True)
    assert out


def test_a_stored_p_from_the_command(tiny, tmp_path, run):
    text = ["--text", tiny / "texts", "--context", 32]
    _, direct, _ = run("drift", tiny / "p", tiny / "q", *text)
    code, out, err = run("drift", tiny / "p", "--store", tmp_path / "kept", *text)
    assert (code, out) == (0, "")
    assert "stored: 468 tokens" in err
    code, out, _ = run("drift", tmp_path / "kept", tiny / "q")
    assert (code, out) == (0, direct)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["P"], 2, "Q: expected at least one candidate"),
        (["P", "Q"], 2, "--text: expected files to read"),
        (["P", "Q", "--text", "T", "--confidence", "0.4"], 2, "--confidence: expected"),
        (["P", "Q", "--text", "T", "--context", "100"], 2, "--context: expected at most 64"),
        (["P", "Q", "--text", "T", "--context", "8", "--stride", "8"], 2, "--stride: expected 1"),
        (["P", "Q", "--text", "T", "--top-k", "3"], 2, "--top-k: expected --store"),
        (["P", "Q", "--text", "none.txt"], 3, "no file of that name"),
        (["none", "Q", "--text", "T"], 3, "expected a checkpoint's folder"),
        (["P", "Q", "--text", "T", "--html", "a.txt"], 2, "--html: expected a .html file"),
    ],
)
def test_what_is_refused(tiny, run, arguments, code, words):
    places = {"P": tiny / "p", "Q": tiny / "q", "T": tiny / "texts"}
    found, out, err = run("drift", *(places.get(one, one) for one in arguments))
    assert (found, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_padded_vocabulary_is_cut_by_an_option(tiny, tmp_path, run):
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny / "q")
    module.resize_token_embeddings(32, mean_resizing=False)
    module.save_pretrained(tmp_path / "q")
    text = ["--text", tiny / "texts"]
    code, _, err = run("drift", tiny / "p", tmp_path / "q", *text)
    assert code == 2
    assert "--vocab 19" in err
    _, direct, _ = run("drift", tiny / "p", tiny / "q", *text, "--json")
    code, out, err = run("drift", tiny / "p", tmp_path / "q", *text, "--vocab", 19, "--json")
    means = [json.loads(one)["candidates"][0]["means"]["kl"]["value"] for one in (out, direct)]
    assert (code, means[0]) == (0, pytest.approx(means[1], rel=1e-5))


# --- The page


@pytest.fixture(scope="module")
def page(tiny, tmp_path_factory):
    from kullback.lm import drift, load_models, read_documents
    from kullback.report.language_models import drift_page

    p, q, r = load_models(tiny / "p", [tiny / "q", tiny / "r"])
    documents = read_documents([tiny / "texts"], p.tokenizer)
    found = drift(p, [q, r], documents, tops=True)
    path = tmp_path_factory.mktemp("page") / "page.html"
    return found, drift_page.write_drift(found, path)


def seen_in_browser(path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium")
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=3000",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", path], capture_output=True, timeout=100, check=True
    )
    return done.stdout.decode()


def test_the_page_holds_the_text_and_both_lists(page):
    found, path = page
    content = path.read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', content, re.S)[1])
    assert sum(len(one["t"]) for one in data["documents"]) == len(found.table)
    first = data["documents"][0]
    number = next(n for n, one in enumerate(found.documents) if one.name == first["n"])
    whole = found.text(number, first["b"], len(found.documents[number].ids))
    assert "".join(first["t"]).strip() == whole
    row = int((found.table.place["document"] == number).argmax())
    place = found.table.place
    assert data["words"][first["a"][0][0]] == found.token(int(place["top_ids"][row][0]))
    assert first["a"][0][1] == round(1000 * float(place["top_probs"][row][0]))
    assert first["k"][0][0] == pytest.approx(found.column("kl")[row], rel=1e-3)
    assert "<script src" not in content
    assert "http://" not in content.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_pointing_at_a_token_shows_both_models_candidates(page, tmp_path):
    found, path = page
    hover = """<script>
    document.getElementById("t7").dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
    </script></body>"""
    pointed = tmp_path / "pointed.html"
    pointed.write_text(path.read_text().replace("</body>", hover))
    dom = seen_in_browser(pointed.as_uri())
    tip = re.search(r'<div id="tip"(.*?)<noscript>', dom, re.S)[1]
    assert "hidden" not in tip.partition(">")[0]
    document = found.worst(1)[0].document
    order = sorted(
        range(len(found.documents)),
        key=lambda n: -found.column("kl")[found.table.place["document"] == n].mean(),
    )
    row = int((found.table.place["document"] == order[0]).argmax()) + 7
    for columns in (found.table.place, found.table.candidates[0]):
        for one, prob in zip(columns["top_ids"][row], columns["top_probs"][row], strict=True):
            word = found.token(int(one)).replace("<", "&lt;").replace(">", "&gt;")
            assert f"<td>{word}</td><td>{100 * prob:.1f} %</td>" in tip
    assert f"{found.column('kl')[row]:.2g}"[:4] in tip
    assert document in range(12)
    linked = seen_in_browser(path.as_uri() + "#t7")  # a link to the token opens the same lists
    assert re.search(r'<div id="tip"(.*?)<noscript>', linked, re.S)[1].count("<td>") == 20


def test_text_of_the_corpus_cannot_become_markup(tmp_path):
    from kullback.lm import Document, LanguageModel, drift
    from kullback.report.language_models import drift_page

    class Tokenizer:
        bos_token_id = None

        def get_vocab(self):
            return {"</script><b>": 0, "<!--": 1, "a": 2}

        def __call__(self, text):
            return {"input_ids": [0, 1]}

        def decode(self, ids):
            return "".join(["</script><b>", "<!--", "\u2028"][i] for i in ids)

    made = Tokenizer()
    p = LanguageModel("<i>p", lambda ids: torch.eye(3)[ids], -2 * torch.eye(3), tokenizer=made)
    q = LanguageModel("q&", p.hidden, -torch.eye(3), tokenizer=made)
    text = [Document("</script>" + str(n), torch.arange(20) % 3) for n in range(12)]
    content = drift_page.page(drift(p, q, text, tops=True))
    assert content.count("<script") == content.count("</script>") == 2
    assert "<b>" not in content
    assert "<i>p" not in content


@pytest.mark.slow
def test_a_large_corpus_stays_below_two_megabytes():
    from kullback.lm import Document, LanguageModel, drift
    from kullback.report.language_models import drift_page

    generator = torch.Generator().manual_seed(0)
    head = torch.randn(500, 8, generator=generator)
    states = torch.randn(500, 8, generator=generator)
    p = LanguageModel("p", lambda ids: states[ids], head)
    q = LanguageModel("q", p.hidden, head + 0.1 * torch.randn(head.shape, generator=generator))
    ids = torch.randint(500, (12, 2500), generator=generator)
    found = drift(p, [q, q, q], [Document(str(n), row) for n, row in enumerate(ids)], tops=True)
    assert len(drift_page.page(found).encode()) < 2_000_000


def test_characters_of_several_tokens_are_shown_whole():
    """Byte-level tokens: the character goes to its last token, and nothing is lost."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    from kullback.report.language_models.drift_page import _pieces

    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: n for n, letter in enumerate(sorted(alphabet))}, [])
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made)
    text = "naïve café, 中文 🙂 ok"
    ids = fast(text)["input_ids"]
    assert len(ids) == len(text.encode())
    pieces = _pieces(fast, ids, 0)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert "🙂" in pieces


# --- Several processes


@pytest.mark.slow
def test_processes_share_the_work_and_agree_with_one(tiny, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--master-port", "29617", "-m", "kullback"]  # fmt: skip
    arguments = ["drift", tiny / "p", tiny / "q", "--context", "8", "--text", tiny / "texts"]
    texts = [*arguments, "--json"]
    one = subprocess.run(
        [sys.executable, "-m", "kullback", *texts], capture_output=True, check=True
    )
    two = subprocess.run(
        [*command, *texts, "--out", tmp_path / "run"], capture_output=True, check=True
    )
    assert json.loads(two.stdout) == json.loads(one.stdout)
    parts = list((tmp_path / "run" / "parts").iterdir())
    assert parts
