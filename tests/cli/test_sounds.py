"""`kullback train sounds/` to WAV files, codes and a page that plays them."""

import json

import numpy as np
import pytest

from kullback.cli.main import main
from kullback.data.sounds import read_sound

soundfile = pytest.importorskip("soundfile")
pytestmark = pytest.mark.slow


def call(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of short sounds and a tiny model trained on it for a few steps."""
    home = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(0)
    (home / "sounds").mkdir()
    for k in range(12):
        wave = 2000 * np.sin(rng.uniform(0.1, 0.9) * np.arange(100 + 10 * k))
        samples = (wave + 50 * rng.standard_normal(len(wave))).astype(np.int16)
        soundfile.write(home / "sounds" / f"{k:02d}.wav", samples, 8000)
    words = [str(home / "sounds"), "--steps", "3", "--hidden", "8", "--latent", "2"]
    assert call("train", *words, "--clip-seconds", "0.02", "--out", home / "run") == 0
    return home


def test_train_leaves_bits_a_sample_and_a_page_with_players(run):
    kept = json.loads((run / "run" / "evaluation.json").read_text())
    figure = kept["evaluation"]["bits_per_dim"]
    assert figure["unit"] == "bits/sample"
    assert 0 < figure["value"] < 40
    page = (run / "run" / "report.html").read_text()
    assert page.count("<audio") >= 8 + 2 * min(8, kept["evaluation"]["images"])
    assert len(page.encode()) < 2_000_000
    assert "--clip-seconds 0.02" in page


def test_evaluate_prints_bits_a_sample(run, capsys):
    assert call("evaluate", run / "run", "--draws", "2") == 0
    printed = capsys.readouterr().out
    assert "bits/sample" in printed
    assert "nats/clip" in printed


def test_sample_writes_wav_files_and_spectrograms(run, tmp_path):
    out = tmp_path / "s.png"
    words = ["sample", str(run / "run"), "-n", "2", "--out", str(out)]
    assert call(*words) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    for number in (1, 2):
        sound = read_sound((tmp_path / f"s-0{number}.wav").read_bytes())
        assert sound.rate == 8000
        assert sound.samples.shape == (1, 160)
    assert call(*words) != 0  # nothing is overwritten


def test_reconstruct_keeps_the_originals_samples(run, tmp_path):
    out = tmp_path / "r.png"
    source = run / "sounds" / "00.wav"
    assert call("reconstruct", run / "run", source, "--out", out) == 0
    original = read_sound((tmp_path / "r-01-original.wav").read_bytes()).samples
    assert np.array_equal(original, read_sound(source.read_bytes()).samples)
    assert read_sound((tmp_path / "r-01.wav").read_bytes()).samples.shape == original.shape


def test_encode_names_every_clip(run, tmp_path):
    out = tmp_path / "z.npz"
    assert call("encode", run / "run", run / "sounds", "--out", out) == 0
    with np.load(out) as kept:
        assert kept["mean"].shape[1] == 2
        assert "11.wav@1" in kept["name"]


def test_a_run_of_sound_refuses_pictures(run, tmp_path, capsys):
    words = ["encode", str(run / "run"), "fashion", "--out", str(tmp_path / "z.npz")]
    assert call(*words) == 3
    assert "expected a sound file" in capsys.readouterr().err
