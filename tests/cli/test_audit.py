"""`kullback audit`: a user's file in, a verdict, JSON or a page out; errors and exit codes."""

import json

import pytest
import torch

from kullback.cli.main import main

LOSSES = """
import torch
from beside import square


def k2(logp, ref_logp):
    return 0.5 * square(logp - ref_logp)


def k3_penalty(logp, ref_logp, x=None):
    return torch.expm1(ref_logp - logp) - (ref_logp - logp)


def odd(x, ref_logp):
    return square(x - ref_logp)


def broken(logp):
    raise RuntimeError("mine")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(LOSSES)
    (tmp_path / "beside.py").write_text("def square(x):\n    return x * x\n")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["audit", *arguments])
    return stop.value.code or 0, capsys.readouterr()


def test_verdict_and_page(capsys, folder):
    code, said = run(capsys, "my_losses.py:k2", "--html", "k2.html")
    assert code == 0
    assert said.out.startswith("k2, a loss: On-policy it descends KL(policy‖ref), token by token.")
    assert "report: k2.html" in said.err
    page = (folder / "k2.html").read_text()
    assert page.count("<svg") == 3
    assert "<script" not in page
    code, said = run(capsys, "my_losses.py:k2", "--html", "k2.html")
    assert code == 2
    assert "--force" in said.err


@pytest.mark.slow
def test_json_and_the_form_by_name(capsys):
    code, said = run(capsys, "my_losses.py:k3_penalty", "--credit", "token", "--json")
    assert code == 0
    found = json.loads(said.out)
    assert found["form"] == "penalty"
    assert found["on_policy"]["descends"] == "KL(policy‖ref) − KL(ref‖policy)"
    assert said.err == ""


@pytest.mark.slow
def test_names(capsys):
    code, said = run(capsys, "my_losses.py:odd")
    assert code == 2
    assert "'x'" in said.err
    assert "behaviour_logp" in said.err
    code, said = run(capsys, "my_losses.py:odd", "--name", "x=logp")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["my_losses.py"], 2, "FILE.py:function"),
        (["none.py:k2"], 3, "no such file"),
        (["my_losses.py:k9"], 3, "It has: k2, k3_penalty, odd, broken"),
        (["no_such_module:k2"], 3, "no such module"),
        (["my_losses.py:k2", "--form", "gain"], 2, "form"),
        (["my_losses.py:k2", "--name", "x"], 2, "PARAMETER=MEANING"),
        (["my_losses.py:k2", "--html", "page.txt"], 2, ".html"),
    ],
)
def test_errors(capsys, arguments, code, text):
    found, said = run(capsys, *arguments)
    assert found == code
    assert text in said.err


def test_the_users_own_error_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="mine"):
        main(["audit", "my_losses.py:broken"])
