"""What P and Q may be: spellings, families, files, standard input; and numbers of another kind."""

import io
import json
import math
import os
import sys
import threading

import numpy as np
import pytest
import torch
from scipy import stats

from kullback.cli.main import main
from kullback.cli.reading import Tables, looks_like, read
from kullback.measure.named_distributions import FAMILIES, SPELLINGS, parse

LN2 = math.log(2)
MVN = "mvn([0,0],[[1,.5],[.5,1]])"


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def fields(capsys, *arguments):
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def stdin(monkeypatch, content):
    content = content if isinstance(content, bytes) else content.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("N(0, 4)", stats.norm(0, 4)),
        ("Normal(loc=0, scale=1)", stats.norm(0, 1)),
        ("Normal(loc: 0.0, scale: 1.0)", stats.norm(0, 1)),
        ("gaussian(mean=1, var=9)", stats.norm(1, 3)),
        ("N(−1, σ=2)", stats.norm(-1, 2)),
        ("exp(2)", stats.expon(scale=1 / 2)),
        ("Exponential(scale=2)", stats.expon(scale=2)),
        ("t(5)", stats.t(5)),
        ("Student-t(5, 1, 2)", stats.t(5, 1, 2)),
        ("U(0,1)", stats.uniform(0, 1)),
        ("Poi(3)", stats.poisson(3)),
        ("Bin(10,.3)", stats.binom(10, 0.3)),
        ("Gamma(2, scale=3)", stats.gamma(2, scale=3)),
        ("gamma(shape=2, rate=3)", stats.gamma(2, scale=1 / 3)),
        ("Beta(a=2, b=3)", stats.beta(2, 3)),
        ("halfnormal(2)", stats.halfnorm(scale=2)),
        ("half_cauchy(2)", stats.halfcauchy(scale=2)),
        ("weibull(2, 1.5)", stats.weibull_min(1.5, scale=2)),
        ("gumbel(1, 2)", stats.gumbel_r(1, 2)),
        ("pareto(2, 3)", stats.pareto(3, scale=2)),
        ("NB(5, 0.3)", stats.nbinom(5, 0.7)),
        ("inverse_gamma(3, 2)", stats.invgamma(3, scale=2)),
        ("chi2(3)", stats.chi2(3)),
        ("von_mises(0.5, 2)", stats.vonmises(2, loc=0.5)),
        ("gpd(0, 1, 0.2)", stats.genpareto(0.2)),
        ("inverse_gaussian(1, 2)", stats.invgauss(1 / 2, scale=2)),
        ("1/2*N(0,1) + 50%*N(3,1)", None),
    ],
)
def test_spellings_are_the_laws_they_name(text, law):
    p = parse(text)
    if law is None:
        assert p.mixture_distribution.probs.tolist() == [0.5, 0.5]
        return
    discrete = hasattr(law, "pmf") and isinstance(law.dist, stats.rv_discrete)
    x = np.arange(1.0, 4.0) if discrete else law.ppf([0.1, 0.5, 0.9])
    truth = law.logpmf(x) if discrete else law.logpdf(x)
    from kullback.sampled.distributions import log_density

    bessel = 4e-7 if "von" in text else 0.0  # torch's I0: Abramowitz and Stegun 9.8.1, |e| < 1.6e-7
    found = log_density(p, torch.tensor(x)).numpy()
    assert found == pytest.approx(truth, rel=1e-10, abs=1e-12 + bessel)


@pytest.mark.parametrize(
    "text",
    [
        MVN,
        "MultivariateNormal(loc=[0,0], covariance_matrix=[[1,.5],[.5,1]])",
        "N([0, 0], [[1, .5], [.5, 1]])",
        "mvn((0,0), cov=((1,.5),(.5,1)))",
        "mvn([0,0], scale_tril=[[1,0],[.5,0.8660254037844386]])",
        "mvn([0,0], precision=[[4/3,-2/3],[-2/3,4/3]])",
    ],
)
def test_a_multivariate_normal_is_written_in_several_ways(text, capsys):
    truth = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert parse(text).covariance_matrix.numpy() == pytest.approx(truth, rel=1e-14)
    found = fields(capsys, "kl", text, "mvn([0,0], sd=[1,1])")
    assert found["value"] == pytest.approx(-0.5 * math.log(0.75), rel=1e-12)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("mvn([0,0],[[1,2],[2,1]])", "a positive definite matrix"),
        ("mvn([0,0],[[1,.5],[.4,1]])", "a symmetric matrix"),
        ("mvn([0,0],[1,2])", "sd=[...] or var=[...]"),
        ("mvn([0,0],[[1]])", "a 2 x 2 matrix"),
        ("mvn([0,0],sd=[1,-1])", "above 0"),
        ("mvn(0,1)", "mvn([0,0]"),
        ("mvn([[0]],[[1]])", "another mean"),
        ("N(0,2^2)", "sd=2 or var=4"),
        ("N(0,inf)", "finite numbers"),
        ("N(nan,1)", "finite numbers"),
        ("N(0,1e400)", "finite numbers"),
        ("exp(scale=0)", "exponential(rate > 0)"),
        ("N(0,sd=1,scale=1)", "normal(loc, scale > 0)"),
        ("N(0,1", "family(number, ...)"),
        ("N(0,[1)", "family(number, ...)"),
        ("N(" + "[" * 5000 + "]" * 5000 + ")", "plain numbers"),
        ("N(0,__import__('os'))", "plain numbers"),
        ("N(0,1+1)", "plain numbers"),
        ("0.5*N(0,1)+0.5*mvn([0],[[1]])", "a mixture of one family"),
    ],
)
def test_what_no_distribution_is_written_like(text, part):
    with pytest.raises(ValueError, match="P: expected") as error:
        read(text)
    assert part in str(error.value)
    assert len(str(error.value)) < 500


def test_an_abbreviation_is_spelt_out_in_the_result(capsys):
    assert run("kl", "N(0,1)", "N(0, 4)") == 0
    assert "Q: normal(loc 0, scale 4))" in capsys.readouterr().out
    found = fields(capsys, "kl", "N(0,1)", "normal(0,4)")
    assert found["p_read_as"] == "normal(loc 0, scale 1)"
    assert "q_read_as" not in found
    assert set(SPELLINGS.values()) == set(FAMILIES)


@pytest.mark.parametrize(
    "text",
    [
        "1/2,1/4,1/4",
        "50%,25%,25%",
        "[.5,.25,.25]",
        "(0.5, 0.25, 0.25)",
        "0.5 0.25 0.25",
        "0.5;0.25;0.25",
        "5e-1,2.5e-1,.25",
        "1 / 2, 25 %, 0.25",
        '{"a": .5, "b": .25, c: 1/4}',
    ],
)
def test_tables_as_people_type_them(text):
    found = read(text)
    assert found.value.tolist() == [0.5, 0.25, 0.25]
    assert found.labels in ((), ("a", "b", "c"))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "content",
    [
        "0.5,0.25,0.25\n",
        "0.5\n0.25\n0.25\n",
        "0.5 0.25\t0.25",
        "# made by hand\n0.5\r\n0.25\r\n0.25\r\n",
        "p\n50%\n25%\n25%\n",
        "a 0.5\nb b 0.25\nc 1/4\n",
        "a;0.5\nb;0.25\nc;0.25\n",
        "[0.5 0.25\n 0.25]",
        "[0.5, 0.25, 0.25]",
        '{"a": 0.5, "b": 0.25, "c": 0.25}',
        b"\xef\xbb\xbf0.5\r\n0.25\r\n0.25\r\n",
        "0.5\r\n0.25\r\n0.25\r\n".encode("utf-16"),
    ],
)
def test_standard_input_and_files_of_text(content, capsys, monkeypatch, tmp_path):
    stdin(monkeypatch, content)
    assert fields(capsys, "entropy", "-")["value"] == pytest.approx(1.5 * LN2, rel=1e-14)
    path = tmp_path / "table.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert fields(capsys, "entropy", path)["value"] == pytest.approx(1.5 * LN2, rel=1e-14)


def test_an_array_and_a_pipe_are_read(capsys, monkeypatch, tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([0.5, 0.5]))
    stdin(monkeypatch, buffer.getvalue())
    assert fields(capsys, "entropy", "-")["value"] == pytest.approx(LN2)
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(b"0.5,0.5\n",))
    writer.start()
    assert fields(capsys, "entropy", fifo)["value"] == pytest.approx(LN2)
    writer.join()


RNG = np.random.default_rng(0)
KINDS = {
    "counts": ([12, 3, 0, 7], "counts", "--normalise", True),
    "a sparse histogram": ([0] * 200 + list(range(1, 41)), "counts", "--normalise", True),
    "percentages": ([33.3, 33.3, 33.4], "percentages", "--normalise", True),
    "rounded": ([0.33, 0.33, 0.33], "probabilities that were rounded", "--normalise", True),
    "a few weights": ([0.4, 2.5, 1.7], "weights", "--normalise", True),
    "log-probabilities": (np.log([0.5, 0.25, 0.25]), "natural logarithms", "--log", False),
    "token log-probs": (-RNG.exponential(1, 200), "logarithms of prob", "log_ratio", False),
    "logits": ([1.2, -0.3, 0.4], "logits", "--log --normalise", False),
    "heights": (RNG.normal(170, 10, 500), "raw observations", "kl_from_draws", False),
    "residuals": (RNG.normal(0, 1, 500), "raw observations", "kl_from_draws", False),
    "waiting times": (RNG.exponential(1, 50), "raw observations", "kl_from_draws", False),
    "proportions": (RNG.beta(2, 2, 50), "raw observations", "kl_from_draws", False),
    "throws of a die": (RNG.integers(1, 7, 100), "raw observations", "count each", False),
    "Poisson counts": (RNG.poisson(3, 500), "raw observations", "count each", False),
    "ages": (RNG.integers(18, 80, 300), "raw observations", "count each", False),
    "one chance": ([0.3], "one number alone", "bernoulli(0.3)", True),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", KINDS)
def test_numbers_of_another_kind_are_recognised(name, tmp_path, capsys):
    values, words, remedy, divided = KINDS[name]
    kind = looks_like([float(value) for value in values])
    assert words in kind.words
    assert remedy in kind.remedy
    assert kind.weights is divided
    np.savetxt(tmp_path / "p.csv", values)
    assert run("entropy", tmp_path / "p.csv") == 3
    error = capsys.readouterr().err
    assert words in error
    assert remedy in error
    assert run("entropy", tmp_path / "p.csv", "--normalise") == (0 if divided else 3)


def test_many_unnamed_counts_are_never_taken_in_silence(tmp_path, capsys):
    counts = 1000 + np.arange(100) ** 2
    np.savetxt(tmp_path / "p.csv", counts, fmt="%d")
    assert run("entropy", tmp_path / "p.csv", "--normalise") == 0
    captured = capsys.readouterr()
    truth = float(stats.entropy(counts))
    assert f"H(P) = {truth:.4f} nats" in captured.out
    assert "100 numbers taken as the counts of 100 outcomes" in captured.err
    named = "\n".join(f"{i},{n}" for i, n in enumerate(RNG.integers(1, 7, 100)))
    (tmp_path / "named.csv").write_text(named)
    assert run("entropy", tmp_path / "named.csv", "--normalise") == 0
    assert capsys.readouterr().err == ""


def test_weights_log_and_logits_are_taken_when_asked_for(tmp_path, capsys):
    weights = RNG.exponential(1, 50)
    np.savetxt(tmp_path / "w.csv", weights)
    np.savetxt(tmp_path / "log.csv", np.log(weights / weights.sum()))
    np.savetxt(tmp_path / "logits.csv", np.log(weights) + 1000)
    truth = pytest.approx(float(stats.entropy(weights)), rel=1e-12)
    assert fields(capsys, "entropy", tmp_path / "w.csv", "--weights")["value"] == truth
    assert fields(capsys, "entropy", tmp_path / "log.csv", "--log")["value"] == truth
    logits = fields(capsys, "entropy", tmp_path / "logits.csv", "--log", "--normalise")
    assert logits["value"] == pytest.approx(float(stats.entropy(weights)), rel=1e-10)
    assert run("entropy", tmp_path / "logits.csv", "--log") == 3
    half = fields(capsys, "entropy", "-0.6931471805599453,-inf,-0.6931471805599453", "--log")
    assert half["value"] == pytest.approx(LN2)


def test_raw_files_of_different_length_are_refused_as_observations(tmp_path, capsys):
    for name, n in (("p", 300), ("q", 200)):
        np.savetxt(tmp_path / f"{name}.csv", RNG.normal(size=n))
    for extra in ([], ["--normalise"]):
        assert run("kl", tmp_path / "p.csv", tmp_path / "q.csv", *extra) == 3
        assert "kl_from_draws" in capsys.readouterr().err


def test_the_python_that_is_advised_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, shift in (("p", 0.0), ("q", 1.0)):
        np.savetxt(f"{name}.csv", np.random.default_rng(ord(name)).normal(shift, 1, 300))
    assert run("kl", "p.csv", "q.csv") == 3
    _, _, advised = capsys.readouterr().err.partition("in Python: ")
    code, _, _ = advised.partition("; for logits")
    import kullback

    exec(code, {"numpy": np, "torch": torch, "kullback": kullback})
    assert "nats" in capsys.readouterr().out


FILES = {
    "random.npy": (np.random.default_rng(1).bytes(500), "not NumPy's format"),
    "random.csv": (b"\xc3\x28" * 40, "not text: byte 0"),
    "utf16.csv": ("0.5\n0.5".encode("utf-16-le"), "zero bytes. Try: save as UTF-8"),
    "empty.npy": (b"", "not an array of numbers"),
    "empty.csv": (b"", "expected one row"),
    "empty.json": (b"", "not valid JSON"),
    "pair.csv": (b"p,q\n.5,.25\n.3,.25\n.2,.5\n", "two columns that are tables"),
    "commas.csv": (b"a;0,5\nb;0,5\n", "decimal commas"),
    "twice.json": (b'{"a": 0.5, "a": 0.5}', "each name once"),
    "huge.json": (b"[1" + b"0" * 400 + b"]", "beyond float64"),
    "deep.json": (b"[" * 100_000, "not valid JSON"),
    "big.csv": (b"1e308\n1e308\n", "a sum of inf"),
    # a first row that is no heading: it was left out, and the rest divided by its sum
    "first_missing.csv": (b"a,NA\nb,0.5\nc,0.5\n", "'a,NA'"),
    "first_empty.csv": (b"a,\nb,0.5\nc,0.5\n", "'a,'"),
    "first_hex.csv": (b"a,0x10\nb,16\n", "'a,0x10'"),
    "first_money.csv": (b"a,$1\nb,3\n", "'a,$1'"),
    "first_alone.csv": (b"n/a\n0.5\n0.5\n", "'n/a'"),
    "first_below.csv": (b"<5\n20\n30\n", "'<5'"),
    "turned.txt": (b"   3 the\n   1 of\n", "names first, then numbers"),
    # separators of thousands: 1,500 was outcome 1 of weight 500
    "thousands.csv": (b"1,500\n3,000\n12,250\n", "1000 for 1,000"),
    "thousands.tsv": (b"a\t1,500\nb\t3,250\n", "1000 for 1,000"),
    "thousands_quoted.csv": (b'a,"1,500"\nb,"3,250"\n', "1000 for 1,000"),
    "thousands_swiss.csv": (b"a,1'500\nb,20\n", "1000 for 1,000"),
    # an outcome whose name begins with # was taken for a comment
    "hash.csv": (b"#tag,1\n#other,1\nx,2\n", "'#tag,1', which may be either"),
    "widths.csv": (b"a,1\nb,2,3\nc,4\n", "'b,2,3'"),
    "null.json": (b"[0.5, null, 0.5]", "a list with null in it"),
    "table.parquet": (b"PAR1....", "a Parquet file, which is not read"),
    "table.xlsx": (b"PK\x03\x04....", "a spreadsheet (.zip, .xlsx), which is not read"),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", FILES)
def test_unreadable_files_are_named_with_what_is_wrong(name, tmp_path, capsys):
    content, part = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert run("entropy", tmp_path / name) == 3
    error = capsys.readouterr().err
    assert part in error
    assert name in error
    assert "pickle" not in error


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("New York, NY\t3\nParis, FR\t1\n", ("New York, NY", "Paris, FR")),
        ('"a;b",3\nc,1\n', ("a;b", "c")),
        (",0\na,3\nb,1\n", ("a", "b")),  # pandas' Series.to_csv
        ("name,p [%]\na,75\nb,25\n", ("a", "b")),
        ("a,3,\nb,1,\n", ("a", "b")),
        ("#name,count\na,3\nb,1\n", ("a", "b")),
        ("# 5 in all\n#0.5\na,3\nb,1\n", ("a", "b")),
        ("a\x0bx,3\nb\u2028y,1\n", ("a\x0bx", "b\u2028y")),
    ],
)
def test_names_keep_the_letters_that_separate_other_files(content, labels, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(content, newline="", encoding="utf-8")
    found = read(str(path), how=Tables(normalise=True))
    assert found.labels == labels
    assert found.value.tolist() == [0.75, 0.25]


def test_three_digits_after_a_comma_are_said_to_be_a_number_with_a_name(tmp_path, capsys):
    (tmp_path / "p.csv").write_text("1,500\n12,250\n")
    assert run("entropy", tmp_path / "p.csv", "--normalise") == 0
    assert "'1,500' is read as the number 500 of an outcome named 1" in capsys.readouterr().err
    (tmp_path / "p.csv").write_text("value,count\n1,500\n12,250\n")
    assert run("entropy", tmp_path / "p.csv", "--normalise") == 0
    assert capsys.readouterr().err == ""


def test_arrays_that_are_no_table(tmp_path, capsys):
    np.savez(tmp_path / "two.npz", x=np.ones(2) / 2)
    whole = (tmp_path / "two.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.save(tmp_path / "table.npy", np.ones(4) / 4)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "table.npy").read_bytes()[:-9])
    (tmp_path / "folder.csv").mkdir()
    parts = {
        "two.npz": "an archive",
        "cut.npz": "not an array",
        "objects.npy": "Python objects, which are never loaded",
        "cut.npy": "expected 32 bytes got 23",
        "folder.csv": "a folder, not a file",
    }
    for name, part in parts.items():
        assert run("entropy", tmp_path / name) == 3
        error = capsys.readouterr().err
        assert part in error, name
        assert "allow_pickle" not in error
    assert run("entropy", "/dev/zero") == 3
    assert "a device" in capsys.readouterr().err


def test_generalized_pareto_in_float64():
    from kullback.sampled.divergences import kl

    exponential = kl(parse("gpd(0,1,0)"), parse("gpd(0,2,0)"), generator=torch.Generator())
    assert abs(float(exponential) - (LN2 - 0.5)) <= 4.5 * exponential.estimate.standard_error


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("0.4,0.6\n0.3,0.7\n", "rows that are tables"),
        ("0.3,0.2\n0.2,0.3\n", "one joint table of two columns"),
        ("0.4,0.3\n0.6,0.7\n", "two columns that are tables"),
    ],
)
def test_the_first_of_two_columns_of_probabilities_is_not_taken_for_names(
    content, what, tmp_path, capsys
):
    (tmp_path / "p.csv").write_text(content)
    for options in ([], ["--normalise"]):
        assert run("entropy", tmp_path / "p.csv", *options) == 3
        assert what in capsys.readouterr().err


def test_what_float64_cannot_hold_is_no_number(capsys):
    found = fields(capsys, "kl", "gamma(1e20,1)", "gamma(1,1)")
    assert found["value"] == pytest.approx(1e20, rel=1e-9)  # E x − H(p) = 1e20 − 24.4
    assert run("kl", "beta(1e308,1e308)", "beta(1,1)") == 2
    assert "parameters for which float64 holds the value" in capsys.readouterr().err
    found = fields(capsys, "kl", "normal(1e300,1e-300)", "normal(0,1)")
    assert found["value"] == "inf" and "beyond float64" in found["warnings"][0]


def test_a_binomial_of_fewer_trials_has_a_value(capsys):
    found = fields(capsys, "kl", "binomial(3,.3)", "binomial(5,.4)")
    assert found["exact"] and found["value"] == pytest.approx(0.5714590523533778, rel=1e-9)


def test_a_skipped_file_is_named_on_one_line_whatever_its_name():
    from kullback.cli.train import _on_one_line

    assert _on_one_line("a\nb \x1b[31m\t\udce9.png") == "a\\nb \\x1b[31m\\t\\udce9.png"
    assert _on_one_line("ünï 😀.png") == "ünï 😀.png"
