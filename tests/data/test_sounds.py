"""Folders of sound as users have them: rates, channels, depths, short, long, broken."""

import sys

import numpy as np
import pytest
import torch

from kullback.core import DataError, MissingExtraError
from kullback.data import PADDING, describe_protocol, load, load_sounds, reload, wav_of
from kullback.data.sounds import read_clips, read_sound, read_sound_folder

soundfile = pytest.importorskip("soundfile")
soxr = pytest.importorskip("soxr")


def tone(n, seed=0, level=3000.0):
    rng = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * rng.uniform(0.01, 0.1) * np.arange(n)) + 0.1 * rng.standard_normal(n)
    return np.rint(level * wave).clip(-32768, 32767).astype(np.int16)


def save(path, samples, rate=8000, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **how)
    return samples


@pytest.fixture
def folder(tmp_path):
    """Twelve sounds of 300 to 1,400 samples, nested, as WAV and FLAC."""
    for k in range(12):
        save(tmp_path / f"d{k % 3}" / f"{k:02d}{('.wav', '.flac')[k % 2]}", tone(300 + 100 * k, k))
    return tmp_path


def joined(data):
    """Every file's samples again, from its clips in order."""
    found = {}
    for side, names in ((data.train, data.train_names), (data.test, data.test_names)):
        for row, name in zip(side, names, strict=True):
            whole, _, part = name.partition("@")
            kept = row[0][row[0] != PADDING]
            found.setdefault(whole, {})[int(part or 0)] = kept.numpy()
    return {name: np.concatenate([c for _, c in sorted(p.items())]) for name, p in found.items()}


@pytest.mark.parametrize("clip", [0.01, 0.05, 0.0625, 1.0])
def test_every_sample_is_in_exactly_one_clip(folder, clip):
    data = load(folder, clip=clip, test_fraction=0.3)
    assert data.kind == "sound"
    assert data.event_shape == (1, round(8000 * clip))
    found = joined(data)
    assert len(found) == 12
    for name, samples in found.items():
        assert np.array_equal(samples, soundfile.read(folder / name, dtype="int16")[0])
    assert data.protocol["sound"]["real"] == sum(map(len, found.values()))


def test_clips_of_one_file_stay_on_one_side(folder):
    data = load(folder, clip=0.02, test_fraction=0.4)
    train, test = ({n.partition("@")[0] for n in s} for s in (data.train_names, data.test_names))
    assert not train & test
    assert len(train | test) == 12


def test_padding_comes_after_the_samples_only(folder):
    data = load(folder)
    for row in torch.cat([data.train, data.test])[:, 0]:
        padded = row == PADDING
        assert not padded[0]
        assert bool((padded[1:] >= padded[:-1]).all())
    assert data.event_shape == (1, 1400)  # the longest, as it is shorter than a second


def test_the_usual_clip_is_a_second(tmp_path):
    for k in range(6):
        save(tmp_path / f"{k}.wav", tone(20_001, k))
    data = load(tmp_path)
    assert data.event_shape == (1, 8000)
    assert "6 sounds longer than a clip, cut into consecutive clips" in data.protocol["notes"]
    assert "6 clips padded at the end; no figure counts the padding" in data.protocol["notes"]


def test_every_format_gives_the_samples(tmp_path):
    x = tone(4000, 3)
    for name in ("a.wav", "b.flac", "c.WAV", "d.wave"):
        save(tmp_path / name, x, format="FLAC" if name.endswith("flac") else "WAV")
        assert np.array_equal(read_sound((tmp_path / name).read_bytes()).samples[0], x)
    for name in ("e.ogg", "f.mp3"):  # lossy: near, and said
        save(tmp_path / name, x)
        sound = read_sound((tmp_path / name).read_bytes())
        assert sound.rounded
        assert abs(len(sound.samples[0]) - 4000) < 2500
    save(tmp_path / "float.wav", (x / 32768).astype(np.float32), subtype="FLOAT")
    sound = read_sound((tmp_path / "float.wav").read_bytes())
    assert np.array_equal(sound.samples[0], x)
    assert sound.rounded
    save(tmp_path / "deep.wav", x.astype(np.int32) << 16, subtype="PCM_24")
    assert np.array_equal(read_sound((tmp_path / "deep.wav").read_bytes()).samples[0], x)


def test_eight_bits_have_256_levels(tmp_path):
    for k in range(6):
        save(tmp_path / f"{k}.wav", tone(500, k, 12_000.0), subtype="PCM_U8")
    data = load(tmp_path)
    assert data.levels == 256
    assert data.protocol["sound"]["step"] == 256
    assert bool((data.train[data.train != PADDING] % 256 == 0).all())


def test_rates_go_to_the_commonest_or_the_one_asked_for(folder):
    save(folder / "fast.wav", tone(4000, 9), 16_000)
    data = load(folder)
    assert data.protocol["sound"]["rate"] == 8000
    assert "1 sound resampled from 16,000 to 8,000 samples a second" in data.protocol["notes"]
    truth = soxr.resample(tone(4000, 9).astype(float), 16_000, 8000, quality="HQ")
    assert np.array_equal(joined(data)["fast.wav"], np.rint(truth).astype(np.int16))
    assert load(folder, rate=4000, clip=0.1).event_shape == (1, 400)


def test_channels_are_mixed_or_each_a_clip(folder):
    pair = np.stack([tone(400, 1), tone(400, 2)], 1)
    save(folder / "pair.wav", pair)
    found = joined(load(folder))
    assert np.array_equal(found["pair.wav"], np.rint(pair.mean(1)).astype(np.int16))
    each = joined(load(folder, channels="each"))
    assert np.array_equal(each["pair.wav#1"], pair[:, 0])
    assert np.array_equal(each["pair.wav#2"], pair[:, 1])
    train_names = load(folder, channels="each").train_names
    assert ("pair.wav#1" in train_names) == ("pair.wav#2" in train_names)


def test_what_cannot_be_read_is_named_and_counted(folder):
    (folder / "empty.wav").write_bytes(b"")
    (folder / "picture.wav").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (folder / "gone.flac").symlink_to(folder / "nowhere")
    (folder / "notes.txt").write_text("x")
    save(folder / "none.wav", np.zeros(0, np.int16))
    bad = np.array([0.0, np.nan, 0.5], np.float32)
    save(folder / "nan.wav", bad, subtype="FLOAT")
    calls = []
    data = load(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 17) for k in range(1, 18)]
    reasons = {one["name"]: one["reason"] for one in data.protocol["skipped"]["files"]}
    assert set(reasons) == {"empty.wav", "picture.wav", "gone.flac", "none.wav", "nan.wav"}
    assert reasons["empty.wav"] == "the file is empty"
    assert reasons["none.wav"] == "no samples in it"
    assert reasons["nan.wav"] == "NaN or infinity in its samples"
    assert "not a WAV, FLAC, OGG or MP3 file" in reasons["picture.wav"]
    assert "1 file of other types left out" in data.protocol["notes"]
    assert "8,000 Hz, 65,536 levels, 5 skipped" in describe_protocol(data.protocol)


def test_silent_and_clipped_files_are_kept_and_named(folder):
    save(folder / "still.wav", np.zeros(400, np.int16))
    save(folder / "loud.wav", tone(400, 3, 90_000.0))
    loud = (4 * tone(400, 4) / 8192).astype(np.float32)
    save(folder / "beyond.wav", loud, subtype="FLOAT")
    notes = load(folder).protocol["notes"]
    assert "1 sound silent (one value throughout): still.wav" in notes
    assert "2 sounds clipped (full scale several times): beyond.wav, loud.wav" in notes


def test_no_sound_at_all(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"no sound of 1 can be read. a\.wav: not a WAV"):
        load(tmp_path)
    with pytest.raises(DataError, match="not a WAV"):
        load_sounds(tmp_path / "a.wav", sound={"rate": 8000, "clip": 100, "step": 1})


def test_pictures_beside_sounds_are_left_out(folder):
    (folder / "cover.png").write_bytes(b"x")
    data = load(folder)
    assert data.kind == "sound"
    assert "1 file of other types left out" in data.protocol["notes"]


def test_train_and_test_folders_are_the_split(folder):
    for k in range(3):
        save(folder / "train" / f"{k}.wav", tone(500, 100 + k))
        save(folder / "test" / f"{k}.wav", tone(500, 200 + k))
    data = load(folder)
    assert data.train_names == ("train/0.wav", "train/1.wav", "train/2.wav")
    assert "12 sounds outside train/ and test/ left out" in data.protocol["notes"]


def clips_file(path, **more):
    parts = [tone(200 + 50 * k, k) for k in range(8)]
    arrays = {
        "samples": np.concatenate(parts),
        "offset": np.concatenate([[0], np.cumsum([len(p) for p in parts])]),
    }
    np.savez(path, **(arrays | more))
    return parts


def test_npz_of_clips(tmp_path):
    flags = np.arange(8) % 4 == 3
    parts = clips_file(tmp_path / "a.npz", rate=8000, test=flags, digit=np.arange(8))
    data = load(tmp_path / "a.npz")
    assert data.protocol["split"] == "test of the file"
    assert data.test_names == ("clip[3]", "clip[7]")
    found = joined(data)
    for k, part in enumerate(parts):
        assert np.array_equal(found[f"clip[{k}]"], part)
    halved = load(tmp_path / "a.npz", rate=4000)
    assert halved.event_shape == (1, 275)


def test_npz_without_a_rate_says_so(tmp_path):
    clips_file(tmp_path / "a.npz")
    notes = load(tmp_path / "a.npz").protocol["notes"]
    assert "no rate in the file: taken for 8,000 samples a second" in notes
    assert load(tmp_path / "a.npz", rate=16_000).protocol["sound"]["rate"] == 16_000


def test_npz_of_floats_and_bad_clips(tmp_path):
    samples = np.concatenate([tone(100, k) / 32768 for k in range(6)])
    samples[150] = np.nan
    offset = np.array([0, 100, 200, 200, 300, 400, 500, 600])
    np.savez(tmp_path / "a.npz", samples=samples, offset=offset)
    data = load(tmp_path / "a.npz", test_fraction=0.4)
    reasons = {one["name"]: one["reason"] for one in data.protocol["skipped"]["files"]}
    assert reasons == {
        "clip[1]": "NaN or infinity in its samples",
        "clip[2]": "no samples in it",
    }
    assert np.array_equal(joined(data)["clip[3]"], tone(100, 2))


def test_labels_of_clips_are_those_of_their_files(folder, tmp_path):
    data = load(folder, label="folder", clip=0.05, test_fraction=0.4)
    assert data.protocol["labels"] == ["d0", "d1", "d2"]
    for names, labels in (
        (data.train_names, data.train_labels),
        (data.test_names, data.test_labels),
    ):
        assert len(names) == len(labels)
        assert [name[:2] for name in names] == [f"d{k}" for k in labels.tolist()]
    again = reload(data.protocol)
    assert torch.equal(again.train_labels, data.train_labels)
    with pytest.raises(ValueError, match="label: expected folder for pictures and sound"):
        load(folder, label="who")
    flags, said = np.arange(8) % 4 == 3, np.array(list("abababab"))
    clips_file(tmp_path / "a.npz", rate=8000, test=flags, who=said, short=said[1:])
    clips = load(tmp_path / "a.npz", label="who", clip=0.02)
    for name, label in zip(clips.train_names, clips.train_labels.tolist(), strict=True):
        assert "ab"[label] == said[int(name[5])]
    with pytest.raises(DataError, match="expected an array 'where' of labels; got none"):
        load(tmp_path / "a.npz", label="where")
    with pytest.raises(DataError, match=r"short: expected 8 labels, integers or text, one a row"):
        load(tmp_path / "a.npz", label="short")


@pytest.mark.parametrize("missing", ["samples", "offset"])
def test_clips_without_one_of_their_arrays(tmp_path, missing):
    arrays = {"samples": tone(100), "offset": np.array([0, 100])}
    del arrays[missing]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=f"expected arrays samples and offset; no {missing}"):
        read_clips(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"samples": np.zeros((2, 3), np.int16)}, "samples: expected 16-bit integers or floats"),
        ({"samples": np.full(4000, 40_000)}, "expected 16-bit integers; got 40000"),
        ({"offset": np.array([0, 300, 200])}, "offset: expected rising integers"),
        ({"offset": np.array([0, 10**6])}, "offset: expected rising integers"),
        ({"test": np.zeros(3)}, "test: expected one flag"),
        ({"rate": -1}, "rate: expected one number"),
    ],
)
def test_npz_that_is_no_set_of_clips(tmp_path, wrong, text):
    clips_file(tmp_path / "a.npz", **wrong)
    with pytest.raises(DataError, match=text):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rate": 10}, "rate: expected samples a second"),
        ({"clip": 0.0}, "clip: expected seconds"),
        ({"clip": float("nan")}, "clip: expected seconds"),
        ({"channels": "rgb"}, "channels: expected auto, mix or each"),
        ({"size": 64}, "size: expected none for sound"),
        ({"levels": 16}, "levels: expected none for sound"),
    ],
)
def test_options_that_do_not_fit(folder, options, text):
    with pytest.raises(ValueError, match=text):
        load(folder, **options)


def test_sound_options_elsewhere_are_refused():
    with pytest.raises(ValueError, match="rate: expected none for what is no sound"):
        load("fashion", rate=8000)


def test_reload_gives_the_same_and_a_model_reads_others(folder, tmp_path):
    data = load(folder, rate=4000, clip=0.05, channels="each")
    assert reload(data.protocol).protocol["sha256"] == data.protocol["sha256"]
    other = tmp_path / "other"
    save(other / "a.wav", tone(999, 5), 16_000)
    x, names = load_sounds(other, sound=data.protocol["sound"], say=[].append)
    assert x.shape == (2, 1, 200)
    assert names == ("a.wav@0", "a.wav@1")
    with pytest.raises(DataError, match="expected a sound file"):
        load_sounds("fashion", sound=data.protocol["sound"])


def test_a_written_wav_is_read_again():
    x = tone(500, 1)
    sound = read_sound(wav_of(x, 11_025))
    assert sound.rate == 11_025
    assert np.array_equal(sound.samples[0], x)


@pytest.mark.parametrize("missing", [1, 500])
def test_a_wav_file_that_is_cut_off_is_skipped(folder, missing):
    data = (folder / "d0" / "00.wav").read_bytes()
    (folder / "cut.wav").write_bytes(data[: len(data) - missing])
    skipped = load(folder).protocol["skipped"]["files"]
    assert [one["name"] for one in skipped] == ["cut.wav"]
    assert skipped[0]["reason"] == f"cut off: {missing} bytes of its samples are missing"


def test_a_wav_file_from_a_pipe_is_read():
    """Its writer did not know how many samples there would be; chunks may stand before them."""
    data = bytearray(wav_of(tone(50), 8000))
    at = data.index(b"data")
    for size in (0xFFFFFFFF, 0x7FFFF000):
        data[at + 4 : at + 8] = size.to_bytes(4, "little")
        assert np.array_equal(read_sound(bytes(data)).samples[0], tone(50))
    more = data[:at] + b"LIST\x03\0\0\0abc\0" + data[at:]
    assert np.array_equal(read_sound(bytes(more)).samples[0], tone(50))


def test_without_the_extra_the_message_says_how(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kullback\[audio\]'"):
        load(folder)


@pytest.mark.parametrize("scale", [32767.0, 2.0**23, 20.0])
def test_floats_far_beyond_full_scale_are_refused(tmp_path, scale):
    loud = np.sin(np.arange(400) * 0.3) * scale
    save(tmp_path / "loud.wav", loud.astype(np.float32), subtype="FLOAT")
    with pytest.raises(DataError, match=r"where full scale is 1\. Try: integers as int16"):
        read_sound((tmp_path / "loud.wav").read_bytes())
    np.savez(tmp_path / "x.npz", samples=loud, offset=np.array([0, 100, 400]))
    with pytest.raises(DataError, match="full scale is 1"):
        read_clips(tmp_path / "x.npz")


def test_opus_is_read_by_its_suffix(tmp_path):
    for k in range(4):
        samples = np.sin(np.arange(4800) * (0.1 + 0.02 * k)) * 0.5
        soundfile.write(tmp_path / f"{k}.ogg", samples, 48000, format="OGG", subtype="OPUS")
        (tmp_path / f"{k}.ogg").rename(tmp_path / f"{k}.opus")
    assert read_sound_folder(tmp_path).sound["rate"] == 48000


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "said"), [(2**27, "inflate to"), (1000, "no samples in it")])
def test_clips_that_inflate_are_refused_before_they_are_read(tmp_path, samples, said):
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, samples=np.zeros(samples, np.int16), offset=np.zeros(3, np.int64))
    with pytest.raises(DataError, match=said):
        read_clips(path)


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "FLOAT"), ("FLAC", "PCM_24")])
def test_blocks_of_a_long_sound_are_the_whole(tmp_path, monkeypatch, kind, subtype):
    x = np.random.default_rng(0).uniform(-0.9, 0.9, (1000, 2))
    soundfile.write(tmp_path / "x", x, 8000, format=kind, subtype=subtype)
    whole = read_sound((tmp_path / "x").read_bytes())
    monkeypatch.setattr("kullback.data.limits.SOUND_BLOCK", 64)
    cut = read_sound((tmp_path / "x").read_bytes())
    assert np.array_equal(cut.samples, whole.samples) and cut.rounded and whole.rounded
    assert abs(whole.samples.T - x * 32768).max() <= 0.5 + 32768 / 2**23
