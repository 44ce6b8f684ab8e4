"""entropy, cross-entropy, kl, js: printed and JSON numbers against closed forms; wrong inputs."""

import json
import math

import numpy as np
import pytest
import torch
from torch import distributions as d

from kullback.cli.main import main
from kullback.measure.named_distributions import parse

FOUNDING = ["0.5,0.25,0.25", "0.25,0.5,0.25"]  # MATH 3.2 to 3.5
LN2 = math.log(2)


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def fields(capsys, *arguments):
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["entropy", FOUNDING[0]], "H(P) = 1.5000 bits  (exact: sum over the table)\n"),
        (["entropy", "0.1,0.9"], "H(P) = 0.4690 bits  (exact: sum over the table)\n"),
        (["entropy", "1,0"], "H(P) = 0 bits  (exact: sum over the table)\n"),
        (["cross-entropy", *FOUNDING], "H(P, Q) = 1.7500 bits  (exact: sum over the table)\n"),
        (["kl", *FOUNDING], "KL(P‖Q) = 0.2500 bits  (exact: sum over the table)\n"),
        (["js", "1,0", "0,1"], "JS(P, Q) = 1.0000 bits  (exact: sum over the table)\n"),
        (["kl", "normal(0,1)", "normal(1,1)"], "KL(P‖Q) = 0.7213 bits  (closed form: Norm"),
    ],
)
def test_the_line_that_is_printed(arguments, line, capsys):
    assert run(*arguments, "--unit", "bits") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(line)
    assert captured.out.count("\n") == 1
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "truth"),
    [
        (["kl", *FOUNDING], LN2 / 4),
        (["kl", "categorical(0.5,0.5)", "0.25,0.75"], math.log(4 / 3) / 2),
        (["kl", "exponential(1)", "exponential(rate=4)"], 4 - 1 - math.log(4)),
        (["kl", "poisson(3)", "poisson(2)"], 3 * math.log(1.5) - 1),
        (["kl", "bernoulli(0.5)", "bernoulli(0.25)"], math.log(4 / 3) / 2),
        (["kl", "uniform(0,1)", "uniform(-1,3)"], math.log(4)),
        (["kl", "lognormal(0,1)", "lognormal(1,1)"], 0.5),
        (["kl", "cauchy(0,1)", "cauchy(2,1)"], math.log(2)),
        (["entropy", "laplace(0,1)"], 1 + LN2),
        (["entropy", "dirichlet(1,1,1)"], -LN2),
        (["entropy", "gamma(1,2)"], 1 - LN2),
        (["entropy", "beta(1,1)"], 0.0),
        (["entropy", "binomial(1, 0.5)"], LN2),
        (["entropy", "geometric(0.5)"], 2 * LN2),
        (["entropy", "student_t(1)"], math.log(4 * math.pi)),
        (["cross-entropy", "normal(0,1)", "normal(1,1)"], 0.5 * math.log(2 * math.pi) + 1),
        (["js", "bernoulli(1)", "bernoulli(0)"], LN2),
    ],
)
def test_numbers_are_the_closed_forms(arguments, truth, capsys):
    found = fields(capsys, *arguments)
    assert found["value"] == pytest.approx(truth, rel=1e-12, abs=1e-12)
    assert found["exact"]
    assert found["unit"] == "nats"
    assert found["standard_error"] is found["estimator"] is found["draws"] is None
    assert found["exact_value"] == found["value"]


def test_every_form_of_a_table_is_read(tmp_path, capsys):
    (tmp_path / "row.csv").write_text("0.25,0.5,0.25\n")
    (tmp_path / "column.csv").write_text("mass\n0.25\n0.5\n0.25\n")
    (tmp_path / "names.csv").write_text("symbol,p\nb,0.5\na,0.25\nc,0.25\n")
    (tmp_path / "list.json").write_text("[0.25, 0.5, 0.25]")
    (tmp_path / "names.json").write_text('{"a": 0.25, "b": 0.5, "c": 0.25}')
    np.save(tmp_path / "array.npy", np.array([0.25, 0.5, 0.25], dtype=np.float32))
    for name in ("row.csv", "column.csv", "list.json", "names.json", "array.npy"):
        found = fields(capsys, "kl", FOUNDING[0], tmp_path / name)
        assert found["value"] == pytest.approx(LN2 / 4, rel=1e-12), name
    by_name = fields(capsys, "kl", tmp_path / "names.csv", tmp_path / "names.json")
    assert by_name["value"] == 0.0


def test_normalise_divides_by_the_sum(tmp_path, capsys):
    np.save(tmp_path / "counts.npy", np.array([2, 1, 1]))
    found = fields(capsys, "entropy", tmp_path / "counts.npy", "--normalise", "--unit", "bits")
    assert found["value"] == pytest.approx(1.5, rel=1e-15)
    mixture = "3*normal(0,1)+1*normal(0,1)"
    assert parse(mixture, normalise=True).mixture_distribution.probs.tolist() == [0.75, 0.25]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("estimator", ["k1", "k3", "best", "0.5"])
def test_estimators_are_near_the_closed_form_and_say_what_they_are(estimator, capsys):
    pair = ["normal(0,1)", "normal(0.5,1)"]
    found = fields(capsys, "kl", *pair, "--estimator", estimator, "--draws", "4000")
    assert abs(found["value"] - 0.125) <= 4.5 * found["standard_error"]
    assert found["exact_value"] == 0.125
    assert str(found["estimator"]) == estimator
    assert (found["draws"], found["seed"], found["exact"]) == (4000, 0, False)
    again = fields(capsys, "kl", *pair, "--estimator", estimator, "--draws", "4000")
    assert again == found
    other = fields(capsys, "kl", *pair, "--estimator", estimator, "--draws", "4000", "--seed", "1")
    assert other["value"] != found["value"]


def test_the_biased_estimator_says_so_on_stderr(capsys):
    assert run("kl", *FOUNDING, "--estimator", "k2", "--unit", "bits") == 0
    captured = capsys.readouterr()
    assert "±" in captured.out
    assert "bias" in captured.out
    assert "exact: 0.2500" in captured.out
    assert "warning: " in captured.err
    found = fields(capsys, "kl", *FOUNDING, "--estimator", "k2", "--unit", "bits")
    truth = (0.5 + 0.25) * LN2**2 / 2 / LN2  # E ½ log² r in bits: not KL
    assert abs(found["value"] - truth) <= 4.5 * found["standard_error"]
    assert found["bias"] != "none"


def test_without_a_closed_form_it_draws_and_says_so(capsys):
    mixture = "0.5*normal(-2,1) + 0.5*normal(2,1)"
    assert run("kl", mixture, "normal(0,2)") == 0
    captured = capsys.readouterr()
    assert "(sampled: k1, as q/p has a heavy tail" in captured.out  # E_p[(q/p)²] = ∞: q is wider
    assert captured.err == ""
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    p, q = parse(mixture).log_prob(x), d.Normal(0.0, 2.0).log_prob(x)
    for quantity, pointwise in (
        ("entropy", -p),
        ("cross-entropy", -q),
        ("kl", p - q),
        ("js", None),
    ):
        if pointwise is None:
            m = torch.logaddexp(p, q) - LN2
            values = (p.exp() * (p - m) + q.exp() * (q - m)) / 2
        else:
            values = p.exp() * pointwise
        truth = float(torch.trapezoid(values, x))
        pair = [mixture] if quantity == "entropy" else [mixture, "normal(0,2)"]
        found = fields(capsys, quantity, *pair)
        assert abs(found["value"] - truth) <= 4.5 * found["standard_error"], quantity
        assert not found["exact"]


def test_disjoint_support_is_infinite_and_json_stays_json(capsys):
    found = fields(capsys, "kl", "1,0", "0,1")
    assert found["value"] == found["exact_value"] == "inf"
    assert found["warnings"] == ["infinite: P has mass where Q has none"]
    found = fields(capsys, "kl", "0.5,0.5", "1,0", "--estimator", "k1")
    assert found["value"] == found["standard_error"] == found["exact_value"] == "inf"
    found = fields(capsys, "kl", "bernoulli(0.5)", "bernoulli(0)", "--estimator", "k1")
    assert found["exact_value"] == "inf"
    assert any("infinite" in warning for warning in found["warnings"])
    assert fields(capsys, "js", "1,0", "0,1", "--unit", "bits")["value"] == 1.0
    assert run("cross-entropy", "uniform(0,2)", "uniform(0,1)") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("H(P, Q) = inf nats")
    assert "Q has none" in captured.err


def test_explain_shows_the_founding_example(capsys):
    assert run("kl", *FOUNDING, "--unit", "bits", "--explain") == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "H(P) = Σ p·log₂ 1/p = 1.5000 bits",
        "H(P, Q) = Σ p·log₂ 1/q = 1.7500 bits",
        "KL(P‖Q) = H(P, Q) − H(P) = 0.2500 bits",
        "1 0.5000 1.0000 0 0.2500 2.0000 10 +0.5000",
        "2 0.2500 2.0000 10 0.5000 1.0000 0 −0.2500",
        "3 0.2500 2.0000 11 0.2500 2.0000 11 0",
        "the code made for P costs 1.5000 bits a symbol, the code made for Q 1.7500",
        "0.2500 extra bits that is the KL divergence",
        "KL, the extra 0.2500 bits 0.2500 bits",
    ):
        assert part in text


def test_explain_of_the_quiz_and_of_an_estimate(capsys):
    assert run("entropy", "0.1,0.9", "--unit", "bits", "--explain") == 0
    assert "= 0.4690 bits" in capsys.readouterr().out
    assert run("js", *FOUNDING, "--explain") == 0
    assert "JS(Q, P)" in capsys.readouterr().out
    assert run("kl", "normal(0,1)", "normal(1,1)", "--estimator", "best", "--explain") == 0
    text = capsys.readouterr().out
    for part in ("k1 ", "k2 ", "k3 ", "best λ", "biased: its mean", "0.5000", "KL(Q‖P)"):
        assert part in text
    found = fields(capsys, "entropy", "poisson(3)", "--explain")
    assert "H(P) = −E_P[ln p(x)] = " in found["explanation"]
    assert run("kl", "0.5*normal(-2,1)+0.5*normal(2,1)", "normal(0,2)", "--explain") == 0
    assert "proved: " in capsys.readouterr().out


@pytest.mark.slow
def test_plot_is_written_once_and_whole(tmp_path, capsys):
    out = tmp_path / "kl.svg"
    assert run("kl", *FOUNDING, "--plot", out) == 0
    before = out.read_bytes()
    assert before.startswith(b"<?xml")
    assert run("kl", *FOUNDING, "--plot", out) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == before
    arguments = ["normal(0,1)", "student_t(3)", "--draws", "100", "--plot", out, "--force"]
    assert run("kl", *arguments) == 0
    assert b"best \xce\xbb" in out.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["kl.svg"]


FILES = {
    "negative.json": "[0.5, -0.5, 1.0]",
    "sum.csv": "0.5,0.6\n",
    "nan.csv": "0.5\nnan\n0.5\n",
    "words.csv": "a,b\nc,d\n",
    "ragged.csv": "0.5\n0.2,0.3\n",
    "broken.json": "[0.5, ",
    "other.json": '{"a": "b"}',
    "text.npy": "not an array",
    "empty.csv": "",
    "twice.csv": "a,0.5\na,0.5\n",
    "three.json": '{"a": 0.5, "b": 0.25, "c": 0.25}',
    "strangers.json": '{"a": 0.5, "b": 0.25, "d": 0.25}',
}


@pytest.mark.sweep(10)
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["kl", "0.5,0.5"], 2, "Q"),
        (["kl", "0.5,0.5", "0.5,0.5", "0.5,0.5"], 2, "0.5,0.5"),
        (["entropy"], 2, "P"),
        (["entropy", "0.5,0.6"], 2, "--normalise"),
        (["entropy", "0.5,-0.1,0.6"], 2, "-0.1 (number 2)"),
        (["entropy", "0.5,nan"], 2, "nan (number 2)"),
        (["entropy", "0,0", "--normalise"], 2, "positive sum"),
        (["entropy", "a,b"], 2, "numbers (0.5,0.25,0.25)"),
        (["entropy", "normal"], 2, "normal(...)"),
        (["entropy", ""], 2, "expected numbers"),
        (
            ["entropy", "-1,2"],
            2,
            "P: expected finite probabilities of at least 0; got -1 (number 1)",
        ),
        (
            ["kl", "0.5,0.5", "-.1,1.1"],
            2,
            "Q: expected finite probabilities of at least 0; got -0.1",
        ),
        (["entropy", "nromal(0,1)"], 2, "did you mean normal(loc, scale > 0)?"),
        (["entropy", "weird(0,1)"], 2, "one of bernoulli, beta"),
        (["entropy", "normal(0,-1)"], 2, "scale > 0"),
        (["entropy", "normal(0)"], 2, "normal(loc, scale > 0)"),
        (["entropy", "normal(0,1,2)"], 2, "normal(loc, scale > 0)"),
        (["entropy", "normal(0,loc=1)"], 2, "normal(loc, scale > 0)"),
        (["entropy", "normal(0,__import__)"], 2, "plain numbers"),
        (["entropy", "normal(0,1) nonsense"], 2, "nonsense"),
        (["entropy", "0.5*normal(0,1)+0.6*normal(1,1)"], 2, "sum to 1"),
        (["entropy", "0.5*normal(0,1)+0.5*laplace(1,1)"], 2, "one family"),
        (["entropy", "0.5*uniform(0,1)+0.5*uniform(1,2)"], 2, "uniform"),
        (["entropy", "2*normal(0,1)"], 2, "weights"),
        (["kl", "normal(0,1)", "0.5,0.5"], 2, "two tables or two named"),
        (["kl", "normal(0,1)", "poisson(1)"], 2, "both discrete or both continuous"),
        (["kl", "dirichlet(1,1)", "dirichlet(1,1,1)"], 2, "event shape"),
        (["kl", "0.5,0.5", "0.5,0.25,0.25"], 2, "2 and 3 outcomes"),
        (["kl", *FOUNDING, "--estimator", "k4"], 2, "k1, k2, k3, best"),
        (["kl", *FOUNDING, "--draws", "3"], 2, "--draws"),
        (["kl", *FOUNDING, "--seed", "-1"], 2, "--seed"),
        (["kl", *FOUNDING, "--unit", "hartleys"], 2, "unit"),
        (["kl", *FOUNDING, "--plot", "kl.png"], 2, ".svg"),
        (["kl", "dirichlet(1,1)", "dirichlet(2,1)", "--plot", "kl.svg"], 2, "single numbers"),
        (["kl", *FOUNDING, "--plot", "nowhere/kl.svg"], 1, "nowhere"),
        (["entropy", "missing.csv"], 3, "missing.csv"),
        (["entropy", "negative.json"], 3, "-0.5 (number 2)"),
        (["entropy", "sum.csv"], 3, "--normalise"),
        (["entropy", "nan.csv"], 3, "nan"),
        (["entropy", "words.csv"], 3, "words.csv: expected one row"),
        (["entropy", "ragged.csv"], 3, "ragged.csv"),
        (["entropy", "broken.json"], 3, "broken.json: not valid JSON"),
        (["entropy", "other.json"], 3, "other.json"),
        (["entropy", "text.npy"], 3, "text.npy"),
        (["entropy", "matrix.npy"], 3, "matrix.npy: expected numbers [outcomes]"),
        (["entropy", "empty.csv"], 3, "empty.csv"),
        (["entropy", "twice.csv"], 3, "each name once"),
        (["kl", "three.json", "0.5,0.5"], 3, "3 and 2 outcomes"),
        (["kl", "three.json", "strangers.json"], 3, "c, d in only one"),
    ],
)
def test_wrong_inputs_get_one_plain_message(arguments, code, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    np.save(tmp_path / "matrix.npy", np.full((2, 2), 0.25))
    assert run(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in " ".join(captured.err.replace("│", " ").split())
    assert "Traceback" not in captured.err
    assert not (tmp_path / "kl.svg").exists()


def test_results_survive_an_output_without_mathematical_letters(capfdbinary, monkeypatch):
    import io
    import sys

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert run("kl", *FOUNDING, "--explain") == 0
    out.flush()
    assert out.buffer.getvalue().startswith(b"KL(P||Q) = 0.1733 nats")
