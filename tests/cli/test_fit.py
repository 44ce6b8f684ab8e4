"""`kullback fit`: a file in, a verdict out; wrong files, wrong options, both directions."""

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from kullback.cli.main import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_peaks.py"
NORMAL = """
import torch
from torch.distributions import constraints
parameters = {"mu": (), "tau": constraints.positive}
def log_density(mu, tau):
    return -0.5 * (mu - 2.0) ** 2 + 29 * torch.log(tau) - 10 * tau
"""


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def write(folder, text, name="target.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_the_table_json_plot_and_folder(tmp_path, capsys):
    path = write(tmp_path, NORMAL)
    plot, out = tmp_path / "fit.svg", tmp_path / "kept"
    assert run("fit", f"{path}:log_density", "--plot", plot, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Trust: means to about")
    assert "\nmu " in captured.out
    assert "\ntau " in captured.out
    assert "Pareto k-hat" in captured.out
    ElementTree.parse(plot)
    assert sorted(p.name for p in out.iterdir()) == ["fit.json", "fit.safetensors"]
    assert run("fit", path, "--json", "--draws", "2000") == 0
    fields = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert fields["level"] == "trust"
    mu, tau = fields["parameters"]
    assert abs(mu["mean"] - 2.0) <= mu["mean_error"]
    assert abs(tau["mean"] - 3.0) <= tau["mean_error"]  # Gamma(30, 10)


def test_both_directions_exactly(tmp_path, capsys):
    plot = tmp_path / "both.svg"
    assert run("fit", EXAMPLE, "--direction", "both", "--plot", plot, "--json") == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["log_evidence"] == pytest.approx(0.5 * math.log(2 * math.pi), abs=1e-10)
    one = {fit["direction"]: fit for fit in fields["fits"] if fit["q"] == "one Gaussian"}
    assert one["forward"]["kl_p_q"] < one["reverse"]["kl_p_q"]
    assert one["reverse"]["kl_q_p"] < one["forward"]["kl_q_p"]
    for fit in fields["fits"]:
        assert fit["elbo"] + fit["kl_q_p"] == pytest.approx(fields["log_evidence"], abs=1e-8)
        assert fit["q"] == "one Gaussian" or abs(fit["kl_p_q"]) < 1e-9
    words = "".join(ElementTree.parse(plot).getroot().itertext())
    assert "KL(p‖q): covers" in words
    assert "KL(q‖p): seeks" in words


@pytest.mark.parametrize(
    ("text", "arguments", "code", "message"),
    [
        (None, [], 3, "no such file"),
        ("parameters = 1", [], 3, "no function 'log_density'"),
        ("def log_density(z):\n    return z.sum()", [], 3, "says nothing about its parameters"),
        ("import nonsense_of_no_kind", [], 3, "target.py, line 1: ModuleNotFoundError"),
        ("x = (", [], 3, "target.py, line 1: SyntaxError"),
        ("parameters = 1\ndef log_density(z):\n    return 1.0", [], 2, "a scalar tensor"),
        (NORMAL, ["--draws", "10"], 2, "--draws: expected at least 100; got 10"),
        (NORMAL, ["--plot", "x.png"], 2, "--plot: expected a .svg file"),
        (NORMAL, ["--family", "gauss"], 2, "family"),
        (NORMAL, ["--direction", "both", "--out", "x"], 2, "--out: expected one direction"),
        (NORMAL + "data = torch.ones(3)\n", [], 2, "log_density: expected a function of"),
        (NORMAL.replace("torch.log", "torch.lgo"), [], 3, "target.py, line 6: AttributeError"),
    ],
)
def test_what_goes_wrong_is_said_plainly(text, arguments, code, message, tmp_path, capsys):
    path = tmp_path / "target.py" if text is None else write(tmp_path, text)
    assert run("fit", path, *arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_nan_names_the_value_that_is_to_blame(tmp_path, capsys):
    path = write(
        tmp_path, "import torch\nparameters = 1\ndef log_density(z): return torch.log(-z[0]**2 - 1)"
    )
    assert run("fit", path) == 1
    error = capsys.readouterr().err
    assert "log_density is nan at z = [" in error


@pytest.mark.parametrize("rise", ["0 * z[0]", "z[0]"])
def test_an_improper_target_is_reported(rise, tmp_path, capsys):
    path = write(tmp_path, f"parameters = 1\ndef log_density(z): return {rise}")
    code = run("fit", path)
    captured = capsys.readouterr()
    assert code == 1 or captured.out.startswith("Do not trust"), captured.out
