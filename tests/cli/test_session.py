"""What every verb shares: examples in its help, --config, -q and -v, completion, exit codes."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kullback.cli import session
from kullback.cli.main import EXIT_CODES, VERBS, app, in_flags, main
from kullback.core import KullbackError

ROOT = Path(__file__).parents[2]
LONG = {"train", "completion"}  # seconds each, or tested below
RUN_MADE_BY = (
    "kullback train photos/ --size 8 --steps 20 --network mlp --hidden 8 --out runs/garments"
)
LOSSES = """
import torch
def k3(logp, ref_logp):
    return torch.expm1(ref_logp - logp) - (ref_logp - logp)
"""
EXAMPLES = [
    pytest.param(
        example,
        marks=[pytest.mark.slow] if verb in LONG or " both " in example or "|" in example else [],
        id=example,
    )
    for verb, one in VERBS.items()
    for example in one.examples
]


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "counts.csv").write_text("a,2\nb,1\nc,1\n")
    (folder / "my_losses.py").write_text(LOSSES)
    np.savez(folder / "codes.npz", z=np.zeros((2, 32)))
    (folder / "tokens.csv").write_text(
        "step,sequence,sampler,trainer\n"
        + "".join(f"{i % 2},{i // 20},{-1 - i % 7},{-1.02 - i % 7}\n" for i in range(400))
    )
    (folder / "photos").mkdir()
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def trained(folder, empty_charts):
    """The run that the examples use, smaller than theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*RUN_MADE_BY.split()[1:]) == 0
        narrow = RUN_MADE_BY.replace("garments", "narrow --latent 4")
        assert run(*narrow.split()[1:]) == 0
    return folder / "runs"


@pytest.fixture(scope="module")
def language_models(tmp_path_factory):
    """Put the models and texts that the examples of `drift` name into a folder."""
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    from lm import tiny_models

    made = tmp_path_factory.mktemp("language_models")
    (made / "models").mkdir()
    tiny_models.pair(made / "models")
    (made / "models" / "p").rename(made / "models" / "base")
    (made / "models" / "q").rename(made / "models" / "int4")
    (made / "corpus").mkdir()
    for number, line in enumerate(tiny_models.text(12, 30)):
        (made / "corpus" / f"{number:02}.txt").write_text(line)
    chat = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "ran far"}]
    (made / "chats.jsonl").write_text("\n".join([json.dumps({"messages": chat * 3})] * 12))
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(made / "models" / "base")
    with pytest.warns(FutureWarning):  # of peft, about transformers
        lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        peft.get_peft_model(base, lora).save_pretrained(made / "adapters" / "new")

    def link(folder, *, kept):
        for item in made.iterdir():
            (folder / item.name).symlink_to(item)
        if kept:
            assert run("drift", "models/base", "--store", "kept", "--text", "corpus") == 0

    return link


@pytest.mark.sweep(7)
@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_runs(example, folder, tmp_path, monkeypatch, request):
    if " export " in example and "--without-onnx" not in example:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    if "runs/" in example and " train " not in example:
        trained = request.getfixturevalue("trained")
        (tmp_path / "runs").symlink_to(trained)
    for item in folder.iterdir():
        if item.name != "runs":
            (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    if " drift " in example:
        request.getfixturevalue("language_models")(tmp_path, kept=" drift kept " in example)
    if any(mark in example for mark in "|&"):
        code = f'kullback() {{ {sys.executable} -m kullback "$@"; }}\n{example}'
        done = subprocess.run(["bash", "-c", code], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    words = re.findall(r'"[^"]*"|\S+', example.partition(" > ")[0])
    assert run(*(word.strip('"') for word in words[1:])) == 0


@pytest.mark.sweep(3)
@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_its_examples(verb, capsys):
    assert run(verb, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for example in VERBS[verb].examples:
        assert " ".join(example.split()) in text
    for flag in ("--config", "--quiet -q", "--verbose -v"):
        assert flag in text


def test_exit_codes_are_those_of_the_errors_the_help_and_the_docs(capsys):
    assert run("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    page = (ROOT / "docs" / "command_line.md").read_text()
    for code, words in EXIT_CODES.items():
        assert f"{code} {words}" in text
        assert f"| {code} | {words} |" in page
    kinds = [KullbackError]
    for kind in kinds:
        assert kind.exit_code in EXIT_CODES
        kinds += kind.__subclasses__()


BAD = [
    ("unti = 'bits'", "my.toml: unti: expected an option of this verb; got another key. Try: unit"),
    ("[klx]\nunit = 'bits'", "my.toml: expected tables named by verbs; got [klx]. Try: kl"),
    ("unit = 'bit'", "my.toml: unit: expected 'nats' or 'bits'; got 'bit'. Try: bits"),
    ("unit = 3", "my.toml: unit: expected 'nats' or 'bits'; got 3"),
    ("x = " + "[" * 3000, "--config: expected a TOML file; got my.toml: "),
    ("draws = 'many'", "my.toml: draws: expected a whole number; got 'many'"),
    ("draws = 10.5", "my.toml: draws: expected a whole number; got 10.5"),
    ("draws = true", "my.toml: draws: expected a whole number; got True"),
    ("draws = inf", "my.toml: draws: expected a whole number; got inf"),
    ("draws = 3", "my.toml: draws: expected at least 4; got 3"),
    ("json = 'yes'", "my.toml: json: expected true or false; got 'yes'"),
    ("plot = 3", "my.toml: plot: expected a text; got 3"),
    ("plot = 'kl.png'", "my.toml: plot: expected a .svg file; got kl.png"),
    ("estimator = 'k4'", "my.toml: estimator: expected k1, k2, k3, best or a finite number λ"),
    ("p = '0.5,0.5'", "my.toml: p: expected an option of this verb; got another key"),
    ("config = 'x.toml'", "my.toml: config: expected an option of this verb"),
    ("quiet = true\nverbose = true", "quiet: expected one of --quiet and --verbose; got both"),
    ("draws = ", "--config: expected a TOML file; got my.toml: Invalid value"),
    ("\xff", "--config: expected a TOML file; got my.toml: "),
    (None, "--config: expected a TOML file; got my.toml: No such file or directory"),
]


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_is_wrong_in_a_config_file_is_named_with_the_file(
    text, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("my.toml").write_bytes(text.encode("latin-1" if "\xff" in text else "utf-8"))
    assert run("kl", "t(5)", "N(0,1)", "--config", "my.toml") == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_typed_options_and_the_verbs_table_go_before_the_file(tmp_path, capsys):
    path = tmp_path / "my.toml"
    path.write_text(
        "unit = 'bits'\ndraws = 400\njson = true\n[kl]\ndraws = 5e2\nestimator = 0.5\n"
        "[train]\nsteps = 10\nfit = 'pad'\n"
    )
    found = []
    for more in ([], ["--draws", "600", "--unit=nats"]):
        assert run("kl", "t(5)", "N(0,1)", "--config", path, *more) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [(one["draws"], one["unit"]) for one in found] == [(500, "bits"), (600, "nats")]
    assert found[0]["estimator"] == 0.5
    assert run("js", "t(5)", "N(0,1)", "--config", path) == 0
    assert json.loads(capsys.readouterr().out)["draws"] == 400


@pytest.mark.slow
@pytest.mark.usefixtures("empty_charts")
def test_a_config_file_gives_every_kind_of_option(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = folder / "photos"
    Path("train.toml").write_text(
        "steps = 20\nnetwork = 'mlp'\nhidden = [8, 8]\nlatent = 2\nsize = 8\nbeta = 1\n"
        "learning_rate = 1e-3\nfree-bits = 0.0\nout = 'run'\n"
    )
    assert run("train", photos, "--config", "train.toml", "--beta", "0.5", "-q") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "ELBO" in captured.out  # results are printed
    held = json.loads(Path("run/config.json").read_text())
    assert held["training"] | {"steps": 20, "beta": 0.5, "learning_rate": 1e-3} == held["training"]
    assert held["model"]["architecture"]["hidden"] == [8, 8]
    Path("my_losses.py").write_text(LOSSES.replace("logp", "x").replace("ref_x", "ref_logp"))
    Path("audit.toml").write_text("name = ['x=logp']\njson = true\n")
    assert run("audit", "my_losses.py:k3", "--config", "audit.toml") == 0
    assert json.loads(capsys.readouterr().out)["form"] == "loss"


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_leaves_results_and_errors(flag, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = ["0.5,0.5", "0.25,0.75", "--estimator", "k2"]
    assert run("kl", *pair) == 0
    loud = capsys.readouterr()
    assert "warning: " in loud.err
    assert run("kl", *pair, flag) == 0
    assert capsys.readouterr() == (loud.out, "")
    assert run("kl", "0.5,0.6", "0.5,0.5", flag) == 2
    assert capsys.readouterr().err.startswith("kullback: P: expected")
    assert run("kl", *pair) == 0  # of that command only
    assert capsys.readouterr() == loud


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["kl", "N(0,1)", "t(5)"], ["P: Normal, from 'N(0,1)'", "measured: sampled: k1"]),
        (["entropy", "0.5,0.5"], ["P: a table of 2 outcomes", "measured: sum over the table"]),
        (["fit", "t.py"], ["target: t.py:log_density, 1 parameters", "q: FullRank, "]),
        (["audit", "my_losses.py:k3"], ["audited my_losses.py:k3 as a loss"]),
        (["checks"], []),
        (["completion", "bash"], []),
    ],
)
def test_verbose_says_what_is_chosen_and_how_long_it_took(
    arguments, parts, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("t.py").write_text("parameters = 1\ndef log_density(z): return -0.5 * (z * z).sum()\n")
    Path("my_losses.py").write_text(LOSSES)
    assert run(*arguments, "-v") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert all(re.match(r"\[ *\d+\.\d\d s\] ", line) for line in lines)
    for part in [*parts, "done"]:
        assert any(part in line for line in lines), part


def test_verbose_of_a_run(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent)
    assert run("evaluate", "runs/garments", "--draws", "2", "--verbose") == 0
    assert "images, 2 draws each, " in capsys.readouterr().err
    arguments = ["reconstruct", "runs/garments", "photos", "-n", "1", "--out", tmp_path / "r.png"]
    for verb in (["sample", "runs/garments", "-n", "1", "--out", tmp_path / "s.png"], arguments):
        assert run(*verb, "-v") == 0
        assert "model: runs/garments" in capsys.readouterr().err
        assert run(*verb, "-q", "--force") == 0
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("verb", sorted(name for name in app if not name.startswith("-")))
def test_quiet_and_verbose_together_are_refused(verb, capsys):
    words = {"kl": 2, "js": 2, "cross-entropy": 2, "reconstruct": 2, "encode": 2, "decode": 2}
    words |= {"checks": 0, "train": 0, "export": 2}
    given = ["bash"] if verb == "completion" else ["0.5,0.5"] * words.get(verb, 1)
    assert run(verb, *given, "-q", "-v") == 2
    error = capsys.readouterr().err
    assert error == "kullback: --quiet: expected one of --quiet and --verbose; got both\n"


def test_an_argument_called_q_is_no_short_option():
    assert in_flags("p and q: no", ["P", "Q", "-q", "--quiet"]) == "P and Q: no"


def test_a_long_fit_says_so_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(session, "SECONDS_TO_FIRST_LINE", 0.01)
    monkeypatch.setattr(session, "SECONDS_BETWEEN_LINES", 0.01)
    text = "import time\nparameters = 1\ndef log_density(z):\n"
    path = tmp_path / "t.py"
    path.write_text(f"{text}    time.sleep(0.002)\n    return -0.5 * (z * z).sum()\n")
    assert run("fit", path, "--draws", "100") == 0
    error = capsys.readouterr().err
    assert re.search(r"fitting t\.py:log_density \(1 parameters\): \d+ s so far\n", error)
    assert run("fit", path, "--draws", "100", "-q") == 0
    assert capsys.readouterr().err == ""


def test_ticking_ends_with_its_block(capsys, monkeypatch):
    monkeypatch.setattr(session, "SECONDS_TO_FIRST_LINE", 0.0)
    session.prepare()
    with pytest.raises(ValueError), session.ticking("working") as now:
        now("first")
        time.sleep(0.05)
        raise ValueError
    said = capsys.readouterr().err
    assert said.startswith("working")
    time.sleep(0.02)
    assert capsys.readouterr().err == ""


BASH = """
. ./k.bash
COMP_WORDS=({words}); COMP_CWORD={place}; _kullback; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def bash_script():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run("completion", "bash") == 0
    return out.getvalue()


@pytest.mark.sweep(2)
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("kullback cro", {"cross-entropy"}),
        ("kullback e", {"encode", "entropy", "evaluate", "export"}),
        ("kullback kl --dra", {"--draws"}),
        ("kullback train --qui", {"--quiet"}),
        ("kullback fit --conf", {"--config"}),
        ("kullback kl --unit b", {"bits"}),
        ("kullback completion z", {"zsh"}),
    ],
)
def test_bash_completes_verbs_options_and_choices(words, found, bash_script, tmp_path):
    (tmp_path / "k.bash").write_text(bash_script)
    code = BASH.format(words=words, place=len(words.split()) - 1)
    done = subprocess.run(
        ["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == found, done.stderr
    assert "complete -F _kullback kullback" in bash_script


@pytest.mark.slow
@pytest.mark.parametrize(("shell", "part"), [("zsh", "#compdef kullback"), ("fish", "complete -c")])
def test_other_shells_get_a_script(shell, part, capsys):
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    assert part in script
    for verb in VERBS:
        assert verb in script
