"""`evaluate --sandwich` and `--per-item`, `compare`, `decode`: figures by image and in pairs."""

import contextlib
import csv
import io
import itertools
import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kullback.cli import compare as comparing
from kullback.cli import sandwich
from kullback.cli.main import main
from kullback.cli.sandwich import Sandwich, anneal_loose
from kullback.cli.train import draws_for
from kullback.core import Estimate
from kullback.data import PADDING, Dataset, load
from kullback.vae import Annealing, Architecture, Refit, anneal, build, image_bounds, summarise
from kullback.vae.posterior.annealing import Annealed

pytestmark = pytest.mark.usefixtures("fashion_few", "empty_charts")


@dataclass(frozen=True)
class Evaluated:
    """The fields of an `Evaluation` that closing a training reads and sets."""

    loose: float
    seed: int
    log_likelihood: Estimate
    annealed: Estimate | None = None
    annealed_settled: int | None = None


TINY = ["--steps", "30", "--network", "mlp", "--hidden", "16", "--latent", "3", "--size", "8"]
QUICK = ["--sandwich", "--items", "3", "--chains", "2", "--temperatures", "3", "--draws", "3"]


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def trained_as(folder, *more):
    with pytest.MonkeyPatch.context() as patch:  # the fewest draws an image
        patch.setattr("kullback.cli.train.CLOSING_NUMBERS", 0)
        assert run("train", *TINY, "--binarize", "static", "--out", folder, *more) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fashion_few, empty_charts):
    return trained_as(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """What `--sandwich --per-item` prints, says and writes: figures, words, rows, what is kept."""
    rows = tmp_path_factory.mktemp("rows") / "items.csv"
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        assert run("evaluate", trained, *QUICK, "--per-item", rows, "--json") == 0
    kept = json.loads((trained / "evaluation.json").read_text())
    return json.loads(out.getvalue()), error.getvalue(), rows, kept


@pytest.mark.slow
def test_sandwich_adds_to_the_figures_of_the_run(measured):
    printed, _, _, kept = measured
    found = printed["sandwich"]
    test, own = found["test"], found["own"]
    assert test["upper"] is None and test["kl_upper"] is None and own["upper"]["bias"] == "high"
    parts = test["approximation"]["value"] + test["amortisation"]["value"]
    assert math.isclose(parts, test["kl_lower"]["value"], abs_tol=1e-9)
    assert found["aggregate"]["items"] == 100
    assert found["annealing"]["temperatures"] == 3
    assert "sandwich" in kept


@pytest.mark.slow
def test_sandwich_explained_sets_the_sum_under_each_other(trained, capsys):
    assert run("evaluate", trained, *QUICK, "--explain") == 0
    out = capsys.readouterr().out
    rows = ["log p(x), at most", "log p(x), at least", "ELBO", "KL, at most", "KL, at least"]
    places = [out.rindex(f"\n{row}") for row in rows]
    assert places == sorted(places)
    assert "not known" in out and "settled" in out and "I(x; z)" in out
    assert "There is no upper bound on real data" in " ".join(out.split())


@pytest.mark.parametrize(
    "wrong",
    [["--explain"], ["--sandwich", "--items", "1"], ["--sandwich", "--chains", "1"]],
)
def test_wrong_options_end_with_2(trained, wrong, capsys):
    assert run("evaluate", trained, *wrong) == 2
    assert wrong[-2 if len(wrong) > 1 else -1] in capsys.readouterr().err


def test_per_item_rows_average_to_the_figures(trained, measured):
    printed, said, out, _ = measured
    found = printed["evaluation"]
    assert "anomal" in said or "usual image" in said
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    for column, name in (("elbo", "elbo"), ("L_3", "log_likelihood"), ("rate", "rate")):
        mean = sum(float(row[column]) for row in rows) / len(rows)
        assert math.isclose(mean, found[name]["value"], rel_tol=1e-12)
    assert [row["settled"] != "" for row in rows[:4]] == [True, True, True, False]
    assert run("evaluate", trained, "--per-item", out) == 2


def test_closing_draws_depend_on_the_data_alone():
    shapes = [(2000, 1, 8, 8), (200, 1, 28, 28), (2000, 1, 28, 28), (10_000, 1, 28, 28)]
    tests = [torch.zeros(*shape) for shape in shapes]
    found = [draws_for(Dataset(x, x, "8-bit", False, {}, (), ())) for x in tests]
    assert found == [500, 500, 50, 20]


# compare


@pytest.fixture(scope="module")
def tanh(tmp_path_factory, fashion_few, empty_charts):
    return trained_as(tmp_path_factory.mktemp("others") / "tanh", "--activation", "tanh")


@pytest.fixture(scope="module")
def others(tmp_path_factory, tanh, fashion_few, empty_charts):
    """Another seed (whose test bits are others) and two runs that differ from the first."""
    folder = tmp_path_factory.mktemp("seeds")
    return {
        "seed": trained_as(folder / "seed", "--seed", "1"),
        "tanh": tanh,
        "tanh_seed": trained_as(folder / "tanh_seed", "--activation", "tanh", "--seed", "1"),
    }


def test_compare_gives_paired_differences(trained, tanh, capsys):
    assert run("compare", trained, tanh, "--draws", "5", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["groups"]
    for name in ("elbo", "log_likelihood"):
        difference = second[name]["value"] - first[name]["value"]
        assert math.isclose(second[f"more_{name}"]["value"], difference, abs_tol=1e-9)
        two = math.hypot(first[name]["standard_error"], second[name]["standard_error"])
        assert second[f"more_{name}"]["standard_error"] < 0.5 * two  # paired by image
    assert "more_elbo" not in first and first["sd_over_seeds"] is None
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert first["steps"] == [last["step"]] == second["steps"]


def test_compare_says_where_runs_of_one_setting_took_other_steps():
    assert comparing._unequal_steps([415, 163]).startswith("The runs took 163 to 415 steps")
    assert comparing._unequal_steps([415, 404]) == ""
    assert comparing._unequal_steps([None, 415]) == comparing._unequal_steps([None]) == ""
    assert comparing._range_of([415, 163, 300]) == "163 to 415"
    assert comparing._range_of([415, 415]) == "415" and comparing._range_of([None]) == "unknown"


@pytest.mark.slow
def test_compare_averages_over_seeds_on_the_same_bits(trained, others, capsys):
    names = [trained, others["tanh"], others["seed"], others["tanh_seed"]]
    assert run("compare", *names, "--draws", "3", "--json") == 0
    captured = capsys.readouterr()
    assert captured.err.count("is measured on the test bits of") == 2
    first, second = json.loads(captured.out)["groups"]
    assert first["runs"] == [str(trained), str(others["seed"])]
    assert second["more_error_over_seeds"] > 0 and first["sd_over_seeds"] > 0
    assert run("compare", *names, "--draws", "3") == 0
    assert "not over training seeds" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_of_seeds_alone_shows_each_and_their_deviation(trained, others, capsys):
    names = [trained, others["seed"]]
    assert run("compare", *names, "--draws", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    values = [group["log_likelihood"]["value"] for group in found["groups"]]
    assert [group["runs"] for group in found["groups"]] == [[str(name)] for name in names]
    assert math.isclose(found["sd_over_seeds"], abs(values[0] - values[1]) / math.sqrt(2))
    assert run("compare", *names, "--draws", "3") == 0
    assert "differ in the training seed alone" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_refuses_other_protocols_and_bad_lists(trained, others, tmp_path, capsys):
    grey = tmp_path / "grey"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kullback.cli.train.CLOSING_NUMBERS", 0)
        assert run("train", *TINY, "--out", grey) == 0
    assert run("compare", trained, grey) == 3
    assert "binarize static and none" in capsys.readouterr().err
    assert run("compare", trained) == 2
    assert run("compare", trained, trained) == 2
    assert run("compare", trained, tmp_path / "nothing") == 1


def test_compare_counts_in_bits_where_x_has_levels_and_calls_clips_clips():
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(-5, 5, (6, 1, 10), generator=generator)
    for row, length in enumerate((10, 4, 7, 10, 3, 8)):
        clips[row, :, length:] = PADDING
    bounds = -30 * torch.rand(2, 6, generator=generator, dtype=torch.float64)
    groups = [
        comparing.Group(name, [name], b, b, [0.0]) for name, b in zip("ab", bounds, strict=True)
    ]
    protocol = {"event_shape": [1, 10]}
    sound = SimpleNamespace(kind="sound", test=clips, protocol=protocol)
    first, second = (comparing._fields(group, groups[0], 20, sound) for group in groups)
    counted = int((clips != PADDING).sum())
    assert counted == 42
    truth = -bounds.sum(1) / (math.log(2) * counted)
    assert first["bits"]["value"] == pytest.approx(float(truth[0]), rel=1e-12)
    assert first["bits"]["unit"] == "bits/sample" and "more_bits" not in first
    assert second["more_bits"]["value"] == pytest.approx(float(truth[1] - truth[0]), rel=1e-12)
    table = comparing._table([first, second], 20, sound)
    assert "bits/sample - first" in table and "6 test clips" in table and "image" not in table
    for kind, known in (
        ("8-bit", True),
        ("levels", True),
        ("continuous", False),
        ("counts", False),
    ):
        images = SimpleNamespace(kind=kind, test=clips.abs(), protocol={"event_shape": [1, 2, 5]})
        fields = [comparing._fields(group, groups[0], 20, images) for group in groups]
        assert (
            ("bits" in fields[0]) == known == ("bits/dim" in comparing._table(fields, 20, images))
        )
        if known:
            truth = (bounds[0] - bounds[1]).mean() / (10 * math.log(2))
            assert fields[1]["more_bits"]["value"] == pytest.approx(float(truth), rel=1e-12)


# decode and sample --z


def test_decode_undoes_encode_as_reconstruct_does(trained, tmp_path):
    codes, out = tmp_path / "latent.npz", tmp_path / "x.npy"
    assert run("encode", trained, "fashion", "--out", codes) == 0
    with np.load(codes) as arrays:
        mean = arrays["mean"][:5]
    np.savez(tmp_path / "few.npz", z=mean)
    assert run("decode", trained, tmp_path / "few.npz", "--out", out) == 0
    x = np.load(out)
    assert x.shape == (5, 1, 8, 8) and x.min() >= 0 and x.max() <= 1
    typed = ",".join(str(one) for one in mean[0])
    assert run("sample", trained, "--z", typed, "-n", "3", "--out", tmp_path / "same.npy") == 0
    same = np.load(tmp_path / "same.npy")
    np.testing.assert_allclose(same, np.broadcast_to(x[0], same.shape), rtol=0, atol=1e-6)
    assert run("sample", trained, "--z", typed, "--out", tmp_path / "one.npy") == 0
    assert np.load(tmp_path / "one.npy").shape == (1, 1, 8, 8)  # the mean of one z
    few = tmp_path / "few.npz"
    assert run("sample", trained, "--z", few, "--noise", "--out", tmp_path / "bits.npy") == 0
    bits = np.load(tmp_path / "bits.npy")
    assert bits.shape == x.shape and set(np.unique(bits)) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("z", "code"),
    [("1,2", 2), ("1,2,x", 2), ("1,2,nan", 2), ("", 2), ("absent.npz", 3)],
)
def test_a_z_that_is_none_is_refused(trained, tmp_path, z, code, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("sample", trained, "--z", z, "--out", "x.png") == code


def test_files_that_hold_no_z_are_refused(trained, tmp_path):
    np.savez(tmp_path / "other.npz", w=np.ones((2, 3)))
    np.save(tmp_path / "wide.npy", np.ones((2, 4)))
    np.save(tmp_path / "text.npy", np.array([["a", "b", "c"]]))
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    for name, code in {"other.npz": 3, "wide.npy": 2, "text.npy": 3, "broken.npz": 3}.items():
        assert run("decode", trained, tmp_path / name, "--out", tmp_path / "x.png") == code, name


@pytest.mark.slow
def test_a_training_that_ends_with_loose_bounds_anneals_the_first_test_images(monkeypatch):
    data = load("fashion", size=8)
    torch.manual_seed(0)
    architecture = Architecture(network="mlp", hidden=(8,), latent=3, components=1)
    model = build(data.event_shape, data.kind, architecture).eval()
    found = image_bounds(model, data.test[:20], draws=20)
    evaluation = replace(summarise(model, data.test[:20], found), loose=1.0)
    monkeypatch.setattr("kullback.cli.sandwich.CLOSING_TEMPERATURES", 5)
    with_annealing = anneal_loose(model, data, found, evaluation)
    how = Annealing(chains=8, temperatures=5)
    generator = torch.Generator().manual_seed(0)
    chains = anneal(model, data.test[:8].float(), settings=how, generator=generator)
    above = (chains.lower - found.importance_weighted[:8]).mean()
    assert with_annealing.annealed.value == pytest.approx(float(above), rel=1e-12)
    assert above > 0  # an untrained q is far from the posterior
    assert with_annealing.annealed_settled == int(chains.settled.sum())
    assert anneal_loose(model, data, found, replace(evaluation, loose=0.0)).annealed is None
    monkeypatch.setattr("kullback.cli.sandwich.CLOSING_ANNEALED", (8, 100))  # one image: too few
    assert anneal_loose(model, data, found, evaluation).annealed is None


@pytest.mark.parametrize("labelled", [False, True])
def test_loose_bounds_of_clips_and_of_labelled_images_are_annealed_too(labelled, monkeypatch):
    calls = []

    def chains(model, x, *, settings, generator, progress):
        calls.append((model, x.clone(), settings))
        first = sum(len(each) for _, each, _ in calls[:-1])
        log_weights = torch.arange(2.0 * len(x)).reshape(-1, 2).double() + 2 * first
        return Annealed(log_weights, None, torch.ones(len(x)))

    monkeypatch.setattr("kullback.vae.anneal", chains, raising=False)
    test = torch.zeros(9, 1, 8, 8) if labelled else torch.zeros(9, 1, 8_000)
    labels = torch.arange(9) % 2 if labelled else None
    kind = "binary" if labelled else "sound"
    data = SimpleNamespace(kind=kind, test=test, test_labels=labels)
    model = SimpleNamespace(check=lambda x: x, at=lambda labels: ("at", labels.tolist()))
    found = SimpleNamespace(importance_weighted=torch.zeros(9))
    loose = Estimate(-10.0, 0.1, draws=9)
    evaluation = Evaluated(loose=1.0, seed=0, log_likelihood=loose)
    result = anneal_loose(model, data, found, evaluation)
    settings, count = calls[0][2], 8 if labelled else 4
    assert sum(len(x) for _, x, _ in calls) == count == result.annealed.draws
    truth = torch.logsumexp(torch.arange(2.0 * count).reshape(-1, 2), 1).mean() - math.log(2)
    assert result.annealed.value == pytest.approx(float(truth), rel=1e-6)
    given = [one for one, _, _ in calls]
    assert given == ([("at", k % 2) for k in range(8)] if labelled else [model])
    assert (settings.chains, settings.temperatures) == ((8, 50) if labelled else (4, 10))
    long = SimpleNamespace(kind=kind, test=torch.zeros(9, 1, 30_000), test_labels=None)
    assert anneal_loose(model, long, found, evaluation) is evaluation


@pytest.mark.parametrize(
    ("kind", "asked", "found"),
    [
        ("8-bit", (None, None, None), (20, 16, 100)),
        ("sound", (None, None, None), (4, 4, 20)),
        ("sound", (7, None, 30), (7, 4, 30)),
        ("binary", (None, 2, None), (20, 2, 100)),
    ],
)
def test_what_is_not_asked_for_depends_on_the_kind_of_data(kind, asked, found):
    items, how = Sandwich(*asked, 0, explain=False).of(kind)
    assert (items, how.chains, how.temperatures) == found


def test_how_long_annealing_takes_is_said_before_it_begins(monkeypatch, capsys):
    def begin(_text):
        raise InterruptedError

    monkeypatch.setattr(sandwich, "SECONDS_WORTH_TELLING", 0.0)
    monkeypatch.setattr(sandwich, "bar", begin)
    data = load("fashion", size=8, binarize="static")
    model = build((1, 8, 8), "binary", Architecture(network="mlp", hidden=(4,), latent=2))
    with pytest.raises(InterruptedError):
        sandwich.measure_sandwich(model, data, Sandwich(3, 2, 3, 0, explain=False))
    said = capsys.readouterr().err
    assert " min: 3 test images and 3 of the model's own, 2 chains of 3 temperatures each" in said


def frozen_clock(monkeypatch, seconds_a_reading=0.0):
    """A clock that goes on by as much at every reading: no test depends on the machine."""
    readings = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: seconds_a_reading * next(readings))
    monkeypatch.setattr(sandwich, "time", clock)


def test_temperatures_are_doubled_until_the_bounds_meet_or_time_is_up(monkeypatch, capsys):
    data = load("fashion", size=8, binarize="static")
    torch.manual_seed(0)
    model = build((1, 8, 8), "binary", Architecture(network="mlp", hidden=(4,), latent=2)).eval()
    asked = Sandwich(3, 2, None, 0, explain=False, minutes=1.0)
    widths = iter([9.0, 4.0, 2.0, 0.4])
    pilots = []

    def pilot(_model, _x, *, settings, exact=None, generator, progress=None):
        if exact is None or settings.pilots == 2:  # a trial of the clock
            return None
        pilots.append(settings.temperatures)
        return SimpleNamespace(upper=torch.tensor([next(widths)]), lower=torch.zeros(1))

    monkeypatch.setattr("kullback.vae.anneal", pilot, raising=False)
    made = (data.test[:3], torch.zeros(3, 2))
    start, refit = asked.of("binary")[1], Refit(steps=1, draws=1)
    frozen_clock(monkeypatch)
    found, fits = sandwich._lengthened(model, made, start, asked, (0.0, 0.0), refit)
    assert fits >= 3  # the clock stands still
    assert pilots == [10, 20, 40, 80] and found == replace(start, temperatures=80)
    assert "--temperatures 80, as pilots chose" in capsys.readouterr().err
    widths = iter([9.0] * 20)
    frozen_clock(monkeypatch, 5.0)  # after two pilots of 5 s a third and the chains no longer fit
    found, _ = sandwich._lengthened(model, made, start, asked, (1e-3, 1e-3), refit)
    assert 10 <= found.temperatures < 80
    said = " ".join(capsys.readouterr().err.split())
    assert "were 9 nats apart (settled: 0.5)" in said and "would take longer than asked" in said


@pytest.mark.slow
def test_chains_of_chosen_temperatures_are_those_asked_for(trained, monkeypatch, capsys):
    frozen_clock(monkeypatch)
    few = ["--sandwich", "--items", "2", "--chains", "2", "--draws", "3", "--json"]
    assert run("evaluate", trained, *few, "--sandwich-minutes", "1") == 0
    chosen = json.loads(capsys.readouterr().out)["sandwich"]
    count = chosen["annealing"]["temperatures"]
    assert run("evaluate", trained, *few, "--temperatures", count) == 0
    assert json.loads(capsys.readouterr().out)["sandwich"] == chosen


@pytest.mark.slow
def test_as_many_items_as_the_minutes_allow(trained, monkeypatch, capsys):
    given = []

    def measure(_model, x, **_):
        given.append(len(x))
        raise KeyboardInterrupt

    few = ["--sandwich", "--chains", "2", "--draws", "3", "--sandwich-minutes"]
    monkeypatch.setattr("kullback.vae.measure_gap", measure)
    run("evaluate", trained, *few, "1e-4")
    assert given == [2]
    assert "--items 2: more would take longer than asked" in capsys.readouterr().err
    run("evaluate", trained, *few, "1e-4", "--items", "5")  # typed: as asked
    assert given == [2, 5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sandwich", "--sandwich-minutes", "0"], "a positive number"),
        (["--sandwich", "--sandwich-minutes", "nan"], "a positive number"),
        (["--sandwich-minutes", "1"], "--sandwich with it"),
        (["--sandwich", "--sandwich-minutes", "1", "--temperatures", "5"], "which finds them"),
    ],
)
def test_minutes_that_cannot_be_used_are_refused(trained, options, said, capsys):
    assert run("evaluate", trained, *options) == 2
    assert said in capsys.readouterr().err
