"""No command ends in a traceback: full disks, closed pipes, user code, absurd sizes, noise."""

import contextlib
import importlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kullback.cli import divergences
from kullback.cli.main import app, in_flags, main
from kullback.cli.reading import Tables, read_pair
from kullback.cli.session import whole_imports
from kullback.core import Estimate, KullbackError
from kullback.measure.named_distributions import FAMILIES
from kullback.sampled.divergences import Measured

VERBS = sorted(name for name in app if not name.startswith("-"))


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def shell(script, **environment):
    code = f'K="{sys.executable} -m kullback"\n{script}'
    return subprocess.run(
        ["bash", "-c", code],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )


@pytest.mark.sweep(11)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_help_is_printed_in_any_encoding(verb, encoding, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert run(verb, "--help") == 0
    out.flush()
    assert b"Usage: kullback" in out.buffer.getvalue()
    assert out.errors == "strict"  # as it was


@pytest.mark.parametrize(
    "arguments",
    [
        ["kl", "laplace(0,1)", "cauchy(0,1)", "--explain"],
        ["js", "0.5,0.5", "1,0", "--explain"],
        ["entropy", '{"ä": 0.5, "日": 0.5}', "--explain"],
        ["kl", "N(0,1)", "N(1,1)", "--json"],
    ],
)
def test_results_are_printed_in_ascii(arguments, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert run(*arguments) == 0
    out.flush()
    assert out.buffer.getvalue().isascii()


@pytest.mark.slow
def test_a_process_with_an_ascii_output():
    done = shell("$K kl --help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert b"KL(P||Q)" in done.stdout
    assert done.stderr == b""


@pytest.mark.slow
def test_a_full_disk_a_closed_pipe_and_a_closed_output():
    done = shell(
        '$K --version >/dev/full; echo "rc $?"\n'
        '$K kl --help | head -1; echo "rc ${PIPESTATUS[0]}"\n'
        '$K --version >&-; echo "rc $?"\n$K --version 2>&-; echo "rc $?"'
    )
    codes = [line for line in done.stdout.decode().splitlines() if line.startswith("rc")]
    assert codes == ["rc 1", "rc 1", "rc 1", "rc 0"]
    said = done.stderr.decode().splitlines()
    assert said == [
        "kullback: output: cannot be written: No space left on device. Try: free some space there, "
        "or write to another disk",
        "kullback: standard output is closed",
    ]


@pytest.mark.slow
def test_files_that_do_not_fit_on_the_disk_leave_nothing(tmp_path):
    (tmp_path / "t.py").write_text(TARGET)
    done = shell(
        f"cd {tmp_path}; ulimit -f 1\n"
        '$K kl "N(0,1)" "N(1,1)" --plot a.svg; echo "rc $?"\n'
        '$K fit t.py --draws 100 --out kept; echo "rc $?"\n'
    )
    assert done.stdout.decode().split("\n")[:2] == ["rc 1", "rc 1"]
    assert done.stderr.count(b"cannot be written: File too large") == 2
    assert b"Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept", "t.py"]


TARGET = "parameters = 1\nprint('noise')\ndef log_density(z): return -0.5 * (z * z).sum()\n"
BROKEN = {
    "exit": ("import sys\nsys.exit(3)", "line 2: the code calls exit(3)"),
    "quit": ("raise SystemExit('no')", "line 1: the code calls exit('no')"),
    "later exit": (
        "parameters = 1\ndef log_density(z):\n    quit()",
        "line 3: the code calls exit",
    ),
    "syntax": ("def (", "line 1: SyntaxError"),
    "zero byte": ("x = 1\0", "SyntaxError"),
    "recursion": ("def f(): f()\nf()", "RecursionError"),
    "odd": ("class E(BaseException): pass\nraise E('odd')", "line 2: E: odd"),
    "file": ("open('/nonexistent/x')", "line 1: FileNotFoundError"),
    "late": (
        "parameters, calls = 1, [0]\ndef log_density(z):\n    calls[0] += 1\n"
        "    if calls[0] > 5: raise ValueError('late\\nmore')\n    return -(z * z).sum()",
        "line 4: ValueError: late\n",
    ),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", BROKEN)
def test_a_target_file_that_fails_is_one_line(name, tmp_path, capsys):
    text, part = BROKEN[name]
    path = tmp_path / "t.py"
    path.write_text(text)
    assert run("fit", path) == 3
    captured = capsys.readouterr()
    assert part in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_what_a_target_file_prints_does_not_enter_the_result(tmp_path, capsys):
    (tmp_path / "t.py").write_text(TARGET)
    assert run("fit", tmp_path / "t.py", "--json", "--draws", "1000") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["level"] == "trust"
    assert captured.err.startswith("noise\n")


def test_an_interrupt_exits_with_130(tmp_path, capsys):
    (tmp_path / "t.py").write_text("raise KeyboardInterrupt")
    assert run("fit", tmp_path / "t.py") == 130
    assert run("audit", f"{tmp_path / 't.py'}:loss") == 130
    assert capsys.readouterr().err == "kullback: interrupted\n" * 2


WAITING = """
import signal, sys, time
for _ in range({signals}):
    signal.raise_signal(signal.SIGINT)
time.sleep(0.3)
sys.modules[__name__].whole = True
"""


@pytest.fixture
def interruptible():
    """Python's own handler of Ctrl-C: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_first_interrupt_waits_for_the_end_of_an_import(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "interrupted_once.py").write_text(WAITING.format(signals=1))
    (tmp_path / "interrupted_twice.py").write_text(WAITING.format(signals=2))
    with pytest.raises(KeyboardInterrupt), whole_imports():
        once = importlib.import_module("interrupted_once")
        threading.Event().wait(60.0)  # until it comes
    assert once.whole
    with pytest.raises(KeyboardInterrupt), whole_imports():
        importlib.import_module("interrupted_twice")
    assert "interrupted_twice" not in sys.modules
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_exits(tmp_path, capsys):
    (tmp_path / "l.py").write_text("import sys\ndef loss(logp): sys.exit(2)\n")
    assert run("audit", f"{tmp_path / 'l.py'}:loss") == 3
    assert "the code calls exit(2)" in capsys.readouterr().err


def test_fixed_normals_beyond_the_dimensions_of_sobol():
    from kullback.variational.optimise.deterministic import fixed_normals

    points = fixed_normals(8, 30_000, torch.Generator().manual_seed(0))
    assert points.shape == (8, 30_000)
    assert float(points.mean(0).abs().max()) < 1e-15  # antithetic
    again = fixed_normals(8, 30_000, torch.Generator().manual_seed(0))
    assert points.equal(again)


@pytest.mark.parametrize("text", ["1e4", "10_000", "10000", " 10000", "1.0e4"])
def test_numbers_of_draws_as_people_type_them(text, capsys):
    assert run("kl", "laplace(0,1)", "cauchy(0,1)", "--draws", text, "--json") == 0
    assert json.loads(capsys.readouterr().out)["draws"] == 10_000


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["kl", "t(5)", "N(0,1)", "--draws", "1e12"], 2, "--draws: expected at most 10,000,000"),
        (["kl", "t(5)", "N(0,1)", "--draws", "1.5"], 2, "--draws"),
        (["kl", "t(5)", "N(0,1)", "--draws", "inf"], 2, "--draws"),
        (["kl", "t(5)", "N(0,1)", "--draws", "9" * 30], 2, "--draws"),
        (["kl", "t(5)", "N(0,1)", "--estimator", "inf"], 2, "--estimator"),
        (["kl", "-", "-"], 2, "one of them from standard input"),
        (["entropy", "t(5)", "--plot", "no/x.svg"], 1, "there is no folder no"),
        (["entropy", "t(5)", "--plot", "t.py"], 2, "--plot: expected a .svg file"),
        (["entropy", "none.csv"], 3, "none.csv"),
        (["fit", "t.py", "--draws", "1e12"], 2, "--draws"),
        (["fit", "t.py", "--dim", "1e9"], 2, "--dim"),
        (["fit", "t.py", "--out", "t.py"], 2, "--out: expected a folder"),
        (["fit", "t.py", "--reference", "random.npy"], 3, "not NumPy's format"),
        (["fit", "none.py"], 3, "no such file"),
        (["train", "random.npy"], 3, "not NumPy's format"),
        (["train", "--free-bits", "-1"], 2, "--free-bits: expected nats, at least 0"),
        (["train", "--steps", "1e3x"], 2, "--steps"),
        (["train", "--out", "t.py"], 2, "--out: expected a folder that does not exist"),
        (["train", "--likelihood", "odd", "--steps", "1"], 2, "--likelihood: expected one of"),
        (["evaluate", "none", "--draws", "1e12"], 2, "--draws"),
        (["evaluate", "none"], 1, "config.json"),
        (["sample", "none", "-n", "1e12"], 2, "-n: expected from 1 to 100,000"),
        (["sample", "none", "--out", "t.py"], 2, "--out"),
        (["reconstruct", "none", "fashion", "-n", "0"], 2, "-n"),
        (["encode", "none", "fashion", "--out", "x.npy"], 2, "--out: expected a .npz file"),
        (["report", "none"], 1, "config.json"),
        (["audit", "l.py:odd"], 2, "--name x=logp"),
        (["audit", "l.py:odd", "--name", "x=zzz"], 2, "--name x="),
        (["audit", "l.py:odd", "--credit", "zzz"], 2, "--credit: expected"),
        (["audit", "l.py:odd", "--html", "no/x.html"], 1, "there is no folder no"),
        (["checks", "--jsn"], 2, "--json"),
        (["klx"], 2, "Unknown command"),
    ],
)
def test_one_exit_code_for_one_kind_of_failure(
    arguments, code, text, tmp_path, capsys, monkeypatch
):
    """2 an argument, 3 the data (or the user's file), 1 a run or a disk."""
    monkeypatch.chdir(tmp_path)
    Path("t.py").write_text(TARGET)
    Path("l.py").write_text("def odd(logp, x): return logp.sum()\n")
    Path("random.npy").write_bytes(np.random.default_rng(1).bytes(500))
    assert run(*arguments) == code
    captured = capsys.readouterr()
    assert text in " ".join(captured.err.replace("│", " ").split())
    assert captured.out == ""
    assert "names=" not in captured.err


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("draws: expected x; got y", ["--draws"], "--draws: expected x; got y"),
        ("p and q: expected x; got y", ["P", "Q"], "P and Q: expected x; got y"),
        ("q: expected x; got y", ["P", "Q"], "Q: expected x; got y"),
        ("evaluation_draws: no", ["--draws"], "--draws: no"),
        ("x: no. Try: generator=g", ["--seed"], "x: no. Try: --seed g"),
        ("x: no. Try: overwrite=True", ["--force"], "x: no. Try: --force"),
        ("x: no. Try: draws=1", ["--seed"], "x: no. Try: draws=1"),
        ("runs/draws=3/a: no", ["--draws"], "runs/draws=3/a: no"),
        ("names['x']: expected y", ["--name"], "--name x=…: expected y"),
        ("x. Try: pass names={'x': 'logp'}", ["--name"], "x. Try: pass --name x=logp"),
    ],
)
def test_arguments_are_said_as_options(text, flags, said):
    assert in_flags(text, flags) == said


def test_a_value_without_an_error_bar(capsys, monkeypatch):
    found = Estimate(0.5, 0.1, draws=100).without_error("the variance is infinite")
    one = Measured(0.5, "sampled: k1, 100 draws", found)
    monkeypatch.setattr(divergences, "_measured", lambda q, g, o, e: _answer(g, one))
    assert run("kl", "t(1)", "t(2)") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("KL(P‖Q) = 0.5 nats  (sampled: k1")
    assert lines[1] == "  no error bar: the variance is infinite"
    assert "±" not in lines[0]
    assert run("kl", "t(1)", "t(2)", "--json") == 0
    fields = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert fields["standard_error"] is None
    assert fields["no_error"] == "the variance is infinite"
    assert not fields["exact"]


def _answer(given, one):
    from kullback.cli.divergences import Answer

    return Answer("kl", given, one, None, None)


@pytest.mark.slow
def test_a_long_sampling_says_how_long(capsys, monkeypatch):
    monkeypatch.setattr(divergences, "SECONDS_BEFORE_BAR", 0.0)
    monkeypatch.setattr(divergences, "PILOT_DRAWS", 100)
    monkeypatch.setattr("kullback.cli.session.SECONDS_BETWEEN_LINES", 0.0)
    assert run("kl", "laplace(0,1)", "cauchy(0,1)", "--draws", "3e6") == 0
    captured = capsys.readouterr()
    assert "sampling: " in captured.err
    assert "3,000,000 draws" in captured.out


EXAMPLES = {
    "bernoulli": "(0.5)",
    "beta": "(2, 1)",
    "binomial": "(3, 0.5)",
    "categorical": "(1/2,1/2)",
    "cauchy": "(0,1)",
    "chi2": "(3)",
    "continuous_bernoulli": "(0.3)",
    "dirichlet": "(1,2,3)",
    "exponential": "(.5)",
    "gamma": "(1,2)",
    "generalized_pareto": "(0,1,.2)",
    "geometric": "(.5)",
    "gumbel": "(0,1)",
    "halfcauchy": "(1)",
    "halfnormal": "(1)",
    "inverse_gamma": "(3,2)",
    "inverse_gaussian": "(1,2)",
    "kumaraswamy": "(2,3)",
    "laplace": "(-1,2)",
    "lognormal": "(0,1)",
    "normal": "(0,1)",
    "pareto": "(1,2)",
    "multivariate_normal": "([0,0],[[1,.5],[.5,1]])",
    "negative_binomial": "(5,.3)",
    "poisson": "(3)",
    "student_t": "(3)",
    "uniform": "(-1,1)",
    "von_mises": "(0,1)",
    "weibull": "(1,2)",
}


def _any_pair(verb, p, q, capsys):
    code = run(verb, p + EXAMPLES[p], q + EXAMPLES[q], "--draws", "100", "--json")
    captured = capsys.readouterr()
    assert code in (0, 2), (p, q, captured.err)
    if code == 0:
        value = json.loads(captured.out, parse_constant=pytest.fail)["value"]
        assert value != "nan", (p, q)
    else:
        assert captured.err.startswith("kullback: P and Q: expected")


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", FAMILIES)
def test_families_meet_without_a_traceback(name, capsys):
    assert set(EXAMPLES) == set(FAMILIES)
    names = list(FAMILIES)
    _any_pair("kl", name, name, capsys)
    _any_pair("js", name, names[(names.index(name) + 7) % len(names)], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["kl", "js", "cross-entropy"])
def test_every_pair_of_families_gets_an_answer_or_one_line(verb, capsys):
    for p, q in itertools.product(FAMILIES, repeat=2):
        _any_pair(verb, p, q, capsys)


PIECES = st.sampled_from(
    [
        *"()[]{},;:=*+-/%.0159 \t\n'\"e_−σ|\x00",
        "N(",
        "0.5",
        "inf",
        "nan",
        "1e400",
        "mvn([0,0],",
        "[[",
        "normal(0,1)",
        "0.5*N(0,1)",
        "{a:",
        "1/2",
        "50%",
        "-",
        "--",
        "--log",
        "é",
        "日",
        "�",
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=12))


def _never_a_traceback(verb, texts, flags):
    arguments = [verb, *texts[: 1 if verb == "entropy" else 2], *flags, "--draws", "20"]
    with warnings.catch_warnings(action="ignore"):
        code = run(*arguments)
    assert code in (0, 1, 2, 3), arguments


def _fuzz(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


FLAGS = st.lists(
    st.sampled_from(["--normalise", "--weights", "--log", "--json", "--explain", "--unit=bits"]),
    max_size=3,
    unique=True,
)
VERB = st.sampled_from(["kl", "js", "entropy", "cross-entropy"])


@pytest.mark.slow
@_fuzz(12)
@given(verb=VERB, texts=st.lists(TEXTS, min_size=2, max_size=2), flags=FLAGS)
def test_no_text_ends_in_a_traceback(verb, texts, flags, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("0.5,0.5"))
    _never_a_traceback(verb, texts, flags)


HOW = st.tuples(st.booleans(), st.booleans(), st.booleans())


def _read_or_refused(texts, how, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("0.5,0.5"))
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(KullbackError):
        read_pair(*texts, how=Tables(*how))


@pytest.mark.slow
@_fuzz(25)
@given(texts=st.tuples(TEXTS, TEXTS), how=HOW)
def test_any_text_is_read_or_refused(texts, how, monkeypatch):
    _read_or_refused(texts, how, monkeypatch)


@pytest.mark.slow
@_fuzz(150)
@given(texts=st.tuples(TEXTS, TEXTS), how=HOW)
def test_any_text_is_read_or_refused_many(texts, how, monkeypatch):
    _read_or_refused(texts, how, monkeypatch)


@pytest.mark.slow
@_fuzz(3000)
@given(verb=VERB, texts=st.lists(TEXTS, min_size=2, max_size=2), flags=FLAGS)
def test_no_text_ends_in_a_traceback_many(verb, texts, flags, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("0.5,0.5"))
    _never_a_traceback(verb, texts, flags)
