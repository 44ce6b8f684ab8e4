"""The commands end to end on small runs: results on stdout, talk on stderr, honest exit codes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kullback.cli.main import main

pytestmark = pytest.mark.usefixtures("fashion_few")

TINY = ["--steps", "30", "--network", "mlp", "--hidden", "16", "--latent", "3"]


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fashion_few):
    """A tiny finished run on bits of 8x8 garments."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:  # the fewest draws an image
        patch.setattr("kullback.cli.train.CLOSING_NUMBERS", 0)
        code = run("train", *TINY, "--size", "8", "--binarize", "static", "--out", folder)
    assert code == 0
    return folder


def test_train_leaves_a_whole_run(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "metrics.jsonl",
        "timing.jsonl",
        "evaluation.json",
        "report.html",
    }
    config = json.loads((trained / "config.json").read_text())
    assert config["data"]["binarize"] == "static"
    assert len(config["data"]["sha256"]["test"]) == 64
    assert config["training"]["seed"] == 0
    assert config["versions"].keys() == {"kullback", "torch", "python"}
    assert not list(trained.rglob("*.tmp"))


def test_evaluate_prints_json_on_stdout_and_nothing_else(trained, capsys):
    assert run("evaluate", trained, "--draws", "7", "--json") == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert figures["evaluation"]["draws"] == 7
    assert figures["evaluation"]["elbo"]["unit"] == "nats"
    assert figures["data"]["binarize"] == "static"
    assert json.loads((trained / "evaluation.json").read_text())["evaluation"]["draws"] == 7


@pytest.mark.slow
def test_evaluate_prints_a_table_with_errors_and_protocol(trained, capsys):
    assert run("evaluate", trained, "--draws", "5") == 0
    out = capsys.readouterr().out
    assert "ELBO" in out
    assert "±" in out
    assert "L_5" in out
    assert "static binarisation (seed 0)" in out
    assert "\x1b[" not in out


def test_evaluate_on_other_data_leaves_the_runs_own_figures(trained, capsys, tmp_path):
    before = (trained / "evaluation.json").read_bytes()
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "other.npz",
        x_train=rng.integers(0, 256, (20, 8, 8), dtype=np.uint8),
        x_test=rng.integers(0, 256, (20, 8, 8), dtype=np.uint8),
    )
    assert run("evaluate", trained, "--data", tmp_path / "other.npz", "--draws", "3", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["evaluation"]["images"] == 20
    assert figures["data"]["source"].endswith("other.npz")
    assert (trained / "evaluation.json").read_bytes() == before


def test_evaluate_measures_all_of_other_data(trained, capsys, tmp_path):
    """Without a split of its own, all of the source; with train/ and test/ parts, the test part."""
    rng = np.random.default_rng(0)
    for k in range(7):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    assert run("evaluate", trained, "--data", tmp_path, "--draws", "3", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["evaluation"]["images"] == 7
    assert figures["data"]["counts"] == {"train": 0, "test": 7}
    assert figures["data"]["split"] == "all examples"
    assert run("evaluate", trained, "--data", tmp_path / "0.png", "--draws", "3") == 0


@pytest.mark.slow
def test_evaluate_refuses_data_that_changed(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (60, 8, 8), dtype=np.uint8))
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kullback.cli.train.CLOSING_NUMBERS", 0)
        assert run("train", tmp_path / "x.npy", *TINY, "--out", folder) == 0
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (60, 8, 8), dtype=np.uint8))
    assert run("evaluate", folder, "--draws", "2") == 3
    assert "the hashes differ" in capsys.readouterr().err
    assert run("evaluate", folder, "--draws", "2", "--data", tmp_path / "x.npy") == 0


@pytest.mark.filterwarnings("default")
def test_an_unfinished_run_is_evaluated_and_sampled_and_says_so(trained, tmp_path, capsys):
    """What a Ctrl-C leaves: a checkpoint and no model.safetensors."""
    from kullback.vae import Architecture, Training, train

    small = Architecture(network="mlp", hidden=(8,), latent=2)
    calls = iter(range(100))
    outcome = train(
        "fashion",
        architecture=small,
        training=Training(steps=50),
        folder=tmp_path / "r",
        stop=lambda: next(calls) >= 9,
    )
    assert not outcome.finished
    assert run("evaluate", tmp_path / "r", "--draws", "2", "--data", "fashion") == 0
    captured = capsys.readouterr()
    assert "not finished: these are its averaged weights after 10 steps" in captured.out
    assert "not finished" in captured.err
    assert run("sample", tmp_path / "r", "-n", "3", "--out", tmp_path / "s.npy") == 0
    assert "not finished" in capsys.readouterr().err
    assert not (tmp_path / "r" / "evaluation.json").exists()


def test_many_samples_are_written_in_blocks(trained, tmp_path, capsys, monkeypatch):
    """As many as in one call where they fit a block; more come in blocks of the same stream."""
    monkeypatch.setattr("kullback.cli.models.SAMPLES_PER_BLOCK", 4)
    assert run("sample", trained, "-n", "10", "--out", tmp_path / "s.npy") == 0
    drawn = np.load(tmp_path / "s.npy")
    assert drawn.shape == (10, 1, 8, 8)
    assert len({row.tobytes() for row in drawn}) == 10
    assert run("sample", trained, "-n", "4", "--out", tmp_path / "f.npy") == 0
    assert np.array_equal(np.load(tmp_path / "f.npy"), drawn[:4])
    assert run("sample", trained, "-n", "10_000_000", "--out", tmp_path / "s.png") == 2
    assert "from 1 to 100,000 in one .png; got 10,000,000. Try: a .npy" in capsys.readouterr().err
    monkeypatch.setattr("kullback.cli.models.MAX_PIXELS_OF_A_PICTURE", 640)
    assert run("sample", trained, "-n", "11", "--out", tmp_path / "s.png") == 2
    assert "at most 10 in one picture; got 11 images of 8x8" in capsys.readouterr().err


def test_sample_reconstruct_and_encode(trained, tmp_path, capsys):
    assert run("sample", trained, "-n", "5", "--out", tmp_path / "s.png") == 0
    assert size_of(tmp_path / "s.png")[0] > 8
    assert run("sample", trained, "-n", "5", "--out", tmp_path / "s.npy") == 0
    assert np.load(tmp_path / "s.npy", allow_pickle=False).shape == (5, 1, 8, 8)
    assert run("reconstruct", trained, "fashion", "-n", "4", "--out", tmp_path / "r.png") == 0
    assert size_of(tmp_path / "r.png")[1] > 16
    capsys.readouterr()
    assert run("encode", trained, "fashion", "--out", tmp_path / "z.npz") == 0
    assert "600 images: " in capsys.readouterr().err
    with np.load(tmp_path / "z.npz", allow_pickle=False) as encoded:
        assert encoded["mean"].shape == (600, 3)
        assert (encoded["sd"] > 0).all()
        assert encoded["name"][0] == "train[0]"


@pytest.mark.sweep(3)
@pytest.mark.parametrize("verb", ["sample", "encode", "reconstruct"])
def test_existing_files_are_kept_unless_forced(verb, trained, tmp_path, capsys):
    out = tmp_path / ("o.npz" if verb == "encode" else "o.png")
    out.write_text("precious")
    arguments = [verb, trained, *([] if verb == "sample" else ["fashion"]), "--out", out]
    assert run(*arguments) in (1, 2)
    assert out.read_text() == "precious"
    assert "o." in capsys.readouterr().err
    assert run(*arguments, "--force") == 0
    assert out.read_bytes() != b"precious"


@pytest.mark.slow
def test_report_is_rebuilt(trained, capsys):
    (trained / "report.html").unlink()
    assert run("report", trained) == 0
    assert capsys.readouterr().out.strip() == str(trained / "report.html")
    page = (trained / "report.html").read_text()
    assert len(page) < 1_000_000
    assert "http" not in page


@pytest.mark.slow
def test_train_on_a_folder_says_what_it_did(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(60):
        size = (12, 12) if i % 2 else (16, 12)
        pixels = rng.integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    arguments = ["train", tmp_path, *TINY, "--out", tmp_path / "run", "--test-fraction", "0.2"]
    assert run(*arguments) == 3
    error = capsys.readouterr().err
    assert "12x12" in error
    assert "--size" in error
    assert not (tmp_path / "run").exists()
    assert run(*arguments, "--size", "8") == 0
    error = capsys.readouterr().err
    assert "skipped: broken.png" in error
    assert "likelihood: logistics (the data are 8-bit levels)" in error


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["train", "/nonexistent"], 3, "No such file"),
        (["train", "--steps", "1", "--epochs", "1"], 2, "budget"),
        (["train", "--size", "big"], 2, "--size: expected 64 or 48x64"),
        (["train", "--hidden", "a,b"], 2, "--hidden"),
        (["train", "--likelihood", "gaussian", "--steps", "1"], 2, "no maximum"),
        (["train", "--likelihood", "bernoulli", "--steps", "1"], 2, "coin"),
        (["train", "--binarize", "often"], 2, "binarize: expected none, static or dynamic"),
        (["train", "--device", "cuda:7", "--steps", "1"], 2, "device"),
        (["train", "--resume", "x", "--steps", "4"], 2, "--resume"),
        (["train", "--resume", "/nonexistent"], 1, "config.json"),
        (["evaluate", "/nonexistent"], 1, "config.json"),
        (["sample", "/nonexistent"], 1, "config.json"),
        (["report", "/nonexistent"], 1, "nonexistent"),
    ],
)
def test_errors_are_one_plain_message_and_a_code(
    arguments, code, text, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert "Traceback" not in captured.err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_run_of_vectors_and_one_of_continuous_numbers(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "vectors.npy", rng.normal(size=(300, 5)).astype(np.float32))
    out = tmp_path / "run"
    assert run("train", tmp_path / "vectors.npy", *TINY, "--out", out, "--json") == 0
    captured = capsys.readouterr()
    assert "gaussian (the data are continuous)" in captured.err
    assert json.loads(captured.out)["evaluation"]["latent"] == 3
    assert run("sample", out, "-n", "2", "--out", tmp_path / "x.npy") == 0
    assert np.load(tmp_path / "x.npy").shape == (2, 5)
    assert run("sample", out, "-n", "2", "--out", tmp_path / "x.png") == 2


@pytest.mark.slow
def test_resume_finishes_what_is_left(trained, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (folder / "model.safetensors").unlink()
    assert run("train", "--resume", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(folder)
    again = (folder / "model.safetensors").read_bytes()
    assert again == (trained / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_checks_speaks_both_ways(capsys):
    assert run("checks") == 0
    assert "GFLOP/s" in capsys.readouterr().out
    assert run("checks", "--json") == 0
    assert json.loads(capsys.readouterr().out)["packages"]["torch"]


@pytest.mark.slow
def test_a_run_with_a_learned_prior_goes_through_every_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kullback.cli.train.CLOSING_NUMBERS", 0)
    run_folder = tmp_path / "run"
    settings = ["--size", "8", "--prior", "vamp", "--prior-components", "5"]
    assert run("train", *TINY, *settings, "--out", run_folder) == 0
    page = (run_folder / "report.html").read_text()
    assert "vamp prior" in page and "--prior vamp --prior-components 5" in page
    capsys.readouterr()
    quick = ["--items", "3", "--chains", "2", "--temperatures", "3", "--draws", "3"]
    assert run("evaluate", run_folder, "--sandwich", "--explain", *quick) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "varying units" in words and "no formula for the KL" in words
    assert "there is none of a single one" in words
    assert run("evaluate", run_folder, "--json", "--draws", "3") == 0
    found = json.loads(capsys.readouterr().out)["evaluation"]
    assert found["active_units"] is None and found["kl_per_dimension"] == []
    assert run("sample", run_folder, "-n", "4", "--out", tmp_path / "s.png") == 0
    assert run("encode", run_folder, "fashion", "--out", tmp_path / "z.npz") == 0
    assert run("decode", run_folder, tmp_path / "z.npz", "--out", tmp_path / "d.npy") == 0


def test_a_prior_without_dimensions_takes_no_free_bits(tmp_path, capsys):
    settings = ["--size", "8", "--prior", "flow", "--free-bits", "0.1"]
    assert run("train", *TINY, *settings, "--out", tmp_path / "run") == 2
    assert "no KL of a single latent dimension" in " ".join(capsys.readouterr().err.split())
