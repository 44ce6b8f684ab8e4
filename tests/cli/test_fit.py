"""`kullback fit`: a file in, a verdict out; wrong files, wrong options, both directions."""

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_explanation_adds_up_and_draws_the_truth(tmp_path, capsys):
    plot = tmp_path / "fit.svg"
    options = ("--family", "full_rank", "--explain")
    assert run("fit", EXAMPLE, *options, "--plot", plot) == 0
    text = capsys.readouterr().out
    assert "They add up" in text and "true p(z|x)" in text
    assert f"{0.5 * math.log(2 * math.pi):.4f}" in text.split("log ∫ p(x, z) dz")[1]
    assert "reference" in plot.read_text()  # the true posterior, beside q
    assert run("fit", EXAMPLE, *options, "--json") == 0
    assert "They add up" in json.loads(capsys.readouterr().out)["explanation"]
    assert run("fit", EXAMPLE, "--explain", "--direction", "both") == 2


@pytest.mark.slow
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


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("text", "arguments", "code", "message"),
    [
        (None, [], 3, "no such file"),
        ("parameters = 1", [], 3, "no function or model 'log_density'"),
        ("def log_density(z):\n    return z.sum()", [], 3, "says nothing about its parameters"),
        ("import nonsense_of_no_kind", [], 3, "target.py, line 1: ModuleNotFoundError"),
        ("x = (", [], 3, "target.py, line 1: SyntaxError"),
        (
            "parameters = 1\ndef log_density(z):\n    return 1.0",
            [],
            3,
            "target.py: log_density(z): expected a scalar tensor",
        ),
        (NORMAL, ["--draws", "10"], 2, "--draws: expected at least 100; got 10"),
        (NORMAL, ["--max-seconds", "0"], 2, "--max-seconds: expected seconds above 0; got 0"),
        (NORMAL, ["--max-seconds", "nan"], 2, "--max-seconds: expected seconds above 0; got nan"),
        (NORMAL, ["--max-seconds", "1e-9"], 1, "over before any q was found"),
        (NORMAL, ["--max-seconds", "9", "--direction", "both"], 2, "expected one direction"),
        (NORMAL, ["--plot", "x.png"], 2, "--plot: expected a .svg file"),
        (NORMAL, ["--family", "gauss"], 2, "family"),
        (NORMAL, ["--direction", "both", "--out", "x"], 2, "--out: expected one direction"),
        (NORMAL + "data = torch.ones(3)\n", [], 3, "log_density: expected a function of"),
        (NORMAL.replace("torch.log", "torch.lgo"), [], 3, "target.py, line 6: AttributeError"),
    ],
)
def test_what_goes_wrong_is_said_plainly(text, arguments, code, message, tmp_path, capsys):
    path = tmp_path / "target.py" if text is None else write(tmp_path, text)
    assert run("fit", path, *arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


CONJUGATE = """
import torch
parameters = {"mu": ()}
def log_density(mu, data=torch.ones(4)):
    return -0.5 * mu**2 - 0.5 * (data - mu).square().sum()
def simulate(generator):
    z = torch.randn(5, generator=generator, dtype=torch.float64)
    return {"mu": z[0]}, z[0] + z[1:]
"""
BY_ROWS = CONJUGATE.replace("mu, data=torch.ones(4)", "rows, mu").replace(
    "-0.5 * mu**2 - 0.5 * (data - mu).square().sum()",
    "-0.5 * (rows - mu).square()\ndata = torch.ones(4)\ndef log_prior(mu): return -0.5 * mu**2",
)


@pytest.mark.slow
@pytest.mark.parametrize("text", [CONJUGATE, BY_ROWS])
def test_calibration_by_simulation(text, tmp_path, capsys):
    path, plot = write(tmp_path, text), tmp_path / "sbc.svg"
    options = ("--family", "full_rank", "--sbc", "20", "--workers", "1", "--json")
    assert run("fit", path, *options, "--plot", plot) == 0
    fields = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert fields["fits"] == 20 and set(fields["ranks"]) == {"mu", "log density"}
    assert fields["levels"] == {"trust": 20}
    low = fields["quantities"][0]["p_shift"], fields["quantities"][0]["p_sd"]
    assert min(low) > 1e-5  # P(z > 4.4)
    assert "rank of the true value" in "".join(ElementTree.parse(plot).getroot().itertext())


@pytest.mark.parametrize(
    ("text", "arguments", "code", "message"),
    [
        (NORMAL, ["--sbc", "20"], 3, "--sbc needs a function that draws from the model"),
        (
            CONJUGATE.replace("mu, data=torch.ones(4)", "mu").replace("(data", "(1.0"),
            ["--sbc", "20"],
            3,
            "Try: def log_density(mu, data)",
        ),
        (CONJUGATE.replace('{"mu": z[0]}, ', ""), ["--sbc", "20"], 3, "simulate(generator): exp"),
        (CONJUGATE, ["--sbc", "5"], 2, "--sbc: expected at least 20; got 5"),
        (CONJUGATE, ["--sbc", "20", "--out", "x"], 2, "--out: expected a fit to data of its own"),
        (CONJUGATE, ["--workers", "2"], 2, "--workers: expected --sbc beside it"),
    ],
)
def test_what_calibration_needs_is_said(text, arguments, code, message, tmp_path, capsys):
    assert run("fit", write(tmp_path, text), *arguments) == code
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


@pytest.mark.sweep(5)
@pytest.mark.parametrize("rise", ["0 * z[0]", "z[0]", "z[0].exp()", "-z[0].relu()"])
@pytest.mark.parametrize("family", ["auto", "mean_field", "student_t"])
def test_an_improper_target_fails_and_says_so(rise, family, tmp_path, capsys):
    path = write(tmp_path, f"parameters = 1\ndef log_density(z): return {rise}")
    assert run("fit", path, "--family", family) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "target.py:log_density: improper target: " in captured.err


TRUTH = [[2.0 + 0.1 * i, 3.0 + 0.05 * j] for i in (-9, -3, 3, 9) for j in (-9, -3, 3, 9)]


def reference(folder, kind):
    """Sixteen draws with mean (2, 3), in the order of the table or another."""
    path = folder / f"draws.{kind.split()[-1]}"
    if kind == "csv":
        rows = [f"{tau!r},1,{mu!r}" for mu, tau in TRUTH]
        path.write_text("\n".join(["# made by hand", "tau,lp__,mu", *rows]))
    else:
        array = np.array(TRUTH)
        np.save(path, array.reshape(4, 4, 2) if kind == "chains npy" else array)
    return path


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.parametrize("kind", ["csv", "npy", "chains npy"])
def test_a_reference_is_held_against_q(kind, tmp_path, capsys):
    target, plot = write(tmp_path, NORMAL), tmp_path / "fit.svg"
    path = reference(tmp_path, kind)
    assert run("fit", target, "--reference", path, "--plot", plot, "--json") == 0
    fields = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    held = fields["reference"]
    assert held["draws"] == 16
    for row, own, mean, steps in zip(
        held["parameters"], fields["parameters"], (2.0, 3.0), (0.1, 0.05), strict=True
    ):
        sd = steps * math.sqrt(45 * 16 / 15)  # of −9, −3, 3, 9, four times over
        assert (row["name"], row["sd"]) == (own["name"], pytest.approx(sd, rel=1e-12))
        assert row["mean_off"] == pytest.approx((own["mean"] - mean) / sd, abs=1e-12)
        assert row["sd_ratio"] == pytest.approx(own["sd"] / sd, rel=1e-12)
    assert "reference" in "".join(ElementTree.parse(plot).getroot().itertext())
    assert run("fit", target, "--reference", path) == 0
    assert "against 16 draws of the reference" in capsys.readouterr().out


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("draws.csv", None, "cannot be read"),
        ("draws.txt", "1", "expected a .csv or .npy file; got '.txt'"),
        ("draws.csv", "mu,sigma\n1,2\n3,4", "tau not once among them"),
        ("draws.csv", "mu,mu,tau\n1,1,2\n3,3,4", "mu not once among them"),
        ("draws.csv", "mu,tau\n1,2", "at least 2 draws of finite numbers; got 1 draws"),
        ("draws.csv", "mu,tau\n1,2\n3,nan", "got NaN or infinity"),
        ("draws.csv", "mu,tau\n1,2\n3", "a row without its numbers"),
        ("draws.csv", "mu,tau\n1,2\n3,x", "a row without its numbers"),
        ("draws.csv", "", "expected a heading with mu, tau"),
        ("draws.npy", "nonsense", "not an array of numbers"),
    ],
)
def test_what_is_wrong_with_a_reference(name, text, message, tmp_path, capsys):
    target, path = write(tmp_path, NORMAL), tmp_path / name
    if text is not None:
        path.write_text(text)
    assert run("fit", target, "--reference", path) == 3
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_arrays_that_do_not_fit_are_no_reference(tmp_path, capsys):
    target, path = write(tmp_path, NORMAL), tmp_path / "draws.npy"
    for array in (np.zeros((5, 3)), np.zeros(5), np.zeros((5, 2), dtype=bool)):
        np.save(path, array)
        assert run("fit", target, "--reference", path) == 3
        assert "expected numbers [n, 2]: mu, tau" in capsys.readouterr().err
