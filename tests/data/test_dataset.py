"""The embedded set, the three binarisations, and the protocol that tells them apart."""

import hashlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kullback
from kullback.core import DataError, KullbackError
from kullback.data import Dataset, describe_protocol, load, load_images
from kullback.data.dataset import binarize_all

FASHION = Path(kullback.__file__).parent / "data" / "fashion"


@pytest.fixture(scope="module")
def grey():
    return load()


def test_the_embedded_set_is_what_it_says(grey):
    assert grey.train.shape == (10_000, 1, 28, 28)
    assert grey.test.shape == (2_000, 1, 28, 28)
    assert grey.train.dtype == torch.uint8
    assert grey.kind == "8-bit"
    assert grey.train_names[9_999] == "train[9999]"
    assert grey.test_names[0] == "test[0]"
    # the mean and deviation published for all 60,000 are .2860 and .3530
    pixels = grey.train.double() / 255
    assert abs(pixels.mean() - 0.2860) < 0.003
    assert abs(pixels.std() - 0.3530) < 0.003
    both = torch.cat([grey.train, grey.test]).flatten(1)
    assert len(torch.unique(both, dim=0)) >= 11_990  # copies are few


def test_it_prints_in_a_line(grey):
    text = "Dataset(fashion: train uint8 [10000, 1, 28, 28], test uint8 [2000, 1, 28, 28], 8-bit)"
    assert str(grey) == repr(grey) == text
    bits = load(binarize="dynamic")
    assert repr(bits).endswith("binary (drawn afresh))")
    rows = Dataset(torch.zeros(9, 2), torch.zeros(1, 2), "continuous", False, {}, (), ())
    assert repr(rows) == "Dataset(unnamed: train float32 [9, 2], test float32 [1, 2], continuous)"


def test_it_is_small_and_its_licence_is_beside_it():
    assert (FASHION / "fashion.png").stat().st_size <= 6_000_000
    licence = (FASHION / "LICENSE").read_text()
    assert "MIT License" in licence
    assert "2017 Zalando SE" in licence


@pytest.mark.sweep(2)
@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "another"])
def test_a_damaged_installation_says_reinstall(tmp_path, monkeypatch, damage):
    target = tmp_path / "fashion" / "fashion.png"
    target.parent.mkdir()
    if damage == "cut":
        target.write_bytes((FASHION / "fashion.png").read_bytes()[:1_000_000])
    elif damage == "changed":
        pixels = np.asarray(Image.open(FASHION / "fashion.png")).copy()
        pixels[5, 5] ^= 1
        Image.fromarray(pixels).save(target, compress_level=1)
    elif damage == "another":
        Image.new("L", (28, 28)).save(target)
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match=r"embedded data set .*reinstall"):
        load()


@pytest.mark.usefixtures("fashion_once")
def test_static_and_dynamic_share_the_test_bits(grey):
    static, dynamic = load(binarize="static"), load(binarize="dynamic")
    assert torch.equal(static.test, dynamic.test)
    assert static.kind == dynamic.kind == "binary"
    assert (static.dynamic, dynamic.dynamic) == (False, True)
    assert torch.equal(dynamic.train, grey.train)
    assert int(static.train.max()) == 1
    assert not torch.equal(load(binarize="static", seed=1).test, static.test)
    p = grey.test.double() / 255
    z = (static.test - p).sum() / (p * (1 - p)).sum().sqrt()
    assert abs(z) <= 4.5


def test_the_test_bits_are_pinned():
    """Figures of different machines and versions are comparable only while this holds."""
    found = load(binarize="static").protocol["sha256"]["test"]
    assert found == "6662490fbdb1b238da8f7230a3541ec32ea07b6a91d50b325ae1b0c0c0fa82d9"


def test_test_bits_do_not_depend_on_the_training_set(tmp_path, grey):
    few = grey.train[:7, 0].numpy()
    np.savez(tmp_path / "a.npz", x_train=few, x_test=grey.test[:, 0].numpy())
    assert torch.equal(
        load(tmp_path / "a.npz", binarize="static").test, load(binarize="static").test
    )


def test_batches_are_gathered(grey):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    rows = torch.tensor([5, 3, 5])
    assert torch.equal(grey.batch(rows, generator), grey.train[rows])
    assert torch.equal(generator.get_state(), before)


def test_dynamic_batches_are_drawn_afresh_and_resume():
    data = load(binarize="dynamic")
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(100)
    first = data.batch(rows, generator)
    state = generator.get_state()
    second = data.batch(rows, generator)
    assert not torch.equal(first, second)
    generator.set_state(state)
    assert torch.equal(data.batch(rows, generator), second)
    draws = torch.stack([data.batch(rows, generator) for _ in range(30)]).double().mean(0)
    p = data.train[rows].double() / 255
    spread = (p * (1 - p) / 30).sqrt()
    assert torch.equal(draws[spread == 0], p[spread == 0])
    assert abs((draws - p).sum() / (spread**2).sum().sqrt()) <= 4.5


def test_the_protocol_is_json_and_its_hashes_are_of_the_tensors(grey):
    data = load(binarize="dynamic", seed=3)
    protocol = json.loads(json.dumps(data.protocol, allow_nan=False))
    assert protocol == data.protocol
    assert protocol["counts"] == {"train": 10_000, "test": 2_000}
    assert protocol["sha256"] == {
        "train": hashlib.sha256(grey.train.numpy().tobytes()).hexdigest(),
        "test": hashlib.sha256(data.test.numpy().tobytes()).hexdigest(),
    }
    assert torch.equal(data.test, binarize_all(grey.test, seed=3, label="test"))
    line = describe_protocol(protocol)
    assert line == (
        "fashion: 10,000 train / 2,000 test, 28x28 grey, dynamic binarisation (seed 3), "
        f"test sha256 {protocol['sha256']['test'][:8]}…"
    )


def test_protocols_of_other_kinds_in_words(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(60, 3)))
    words = describe_protocol(load(tmp_path / "a.npy", test_fraction=0.3).protocol)
    assert "vectors of 3, continuous, test sha256" in words
    np.save(tmp_path / "b.npy", np.random.default_rng(0).random((60, 3, 4, 5)) < 0.5)
    words = describe_protocol(load(tmp_path / "b.npy", test_fraction=0.3).protocol)
    assert "4x5 RGB, binary, test sha256" in words


@pytest.mark.parametrize("protocol", [{}, {"counts": 3}, None, [], {"counts": {"train": "x"}}])
def test_what_is_no_protocol_is_refused(protocol):
    with pytest.raises(DataError, match="protocol: expected"):
        describe_protocol(protocol)


def test_to_moves_both_tensors(grey):
    data = grey.to("meta")
    assert isinstance(data, Dataset)
    assert data.train.device.type == data.test.device.type == "meta"


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": (28, 28, 1)},
        {"size": "64"},
        {"size": True},
        {"size": 28.0},
        {"size": 10**6},
        {"fit": "stretch"},
        {"channels": "gray"},
        {"binarize": "yes"},
        {"binarize": None},
        {"test_fraction": 0},
        {"test_fraction": 1.0},
        {"test_fraction": "a"},
        {"seed": 0.5},
        {"source": 3},
        {"source": None},
    ],
)
def test_wrong_arguments(options):
    with pytest.raises(KullbackError, match=r"expected .*; got") as caught:
        load(**options)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("shape", [(2, 28, 28), (28, 28), (), (1, 0, 28), "1"])
def test_wrong_event_shapes(shape):
    with pytest.raises(KullbackError, match=r"expected .*; got"):
        load_images("fashion", event_shape=shape)


@pytest.mark.slow
def test_sizes_of_the_embedded_set(grey):
    data = load(size=32, fit="pad")
    assert torch.equal(data.train[:, :, 2:-2, 2:-2], grey.train)
    assert data.protocol["notes"] == ["12,000 images padded with black to 32x32"]
    said = []
    images, names = load_images("fashion", event_shape=(3, 28, 28), say=said.append)
    assert images.shape == (12_000, 3, 28, 28)
    assert len(names) == 12_000
    assert said == ["12,000 images grey, repeated in three channels"]
