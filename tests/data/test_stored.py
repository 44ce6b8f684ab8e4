"""Rows on disk: the values, the split and the hashes of data in memory, and what is refused."""

import copy
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.core import ArgumentTypeError, ArgumentValueError, DataError
from kullback.data import load, load_images, moments_of, reload
from kullback.vae.loop import hold_out

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (120, 6), dtype=np.uint8)
VALUES = {
    "bytes": BYTES,
    "bits": (BYTES % 2).astype(bool),
    "pictures": BYTES.reshape(60, 3, 4),
    "channels last": RNG.integers(0, 256, (60, 4, 5, 3), dtype=np.uint8),
    "floats": RNG.normal(size=(60, 3)) * [1.0, 1e-3, 1e3] + 5,
    "half": RNG.normal(size=(60, 3)).astype(np.float16),
    "k/255": (BYTES / 255).astype(np.float32),
    "levels": (BYTES % 17).astype(np.int64),
    "12 bits": RNG.integers(0, 4096, (300, 6)).astype(np.uint16) * 16,
    "big end": BYTES.astype(">i4"),
}


def shards(folder, array, count=3):
    folder.mkdir()
    for k, part in enumerate(np.array_split(array, count)):
        np.save(folder / f"{k}.npy", part)
    return folder


def alike(found, wanted):
    assert torch.equal(found.train[:], wanted.train) and torch.equal(found.test, wanted.test)
    assert found.kind == wanted.kind and found.levels == wanted.levels
    assert found.protocol["sha256"] == wanted.protocol["sha256"]
    assert found.grid == wanted.grid and found.event_shape == wanted.event_shape
    ours, theirs = found.moments(), wanted.moments()
    for name in ("mean", "squares", "low", "high"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("name", VALUES)
def test_rows_on_disk_are_those_in_memory(name, tmp_path):
    array = VALUES[name]
    np.save(tmp_path / "x.npy", array)
    wanted = load(tmp_path / "x.npy", test_fraction=0.3)
    many = shards(tmp_path / "many", array)
    paths = sorted(many.iterdir())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = load(many, test_fraction=0.3)
    alike(found, wanted)
    if name in ("bytes", "levels", "half"):
        for source in (paths, mapped, tmp_path / "x.npy"):
            alike(load(source, test_fraction=0.3, storage="disk"), wanted)
        alike(reload(load(paths, test_fraction=0.3).protocol), wanted)
        alike(load(many, test_fraction=0.3, storage="memory"), wanted)
    picked = torch.tensor([3, 0, 3, len(wanted.train) - 1])
    generator = torch.Generator()
    assert torch.equal(found.batch(picked, generator), wanted.train[picked])
    found.expect(picked)
    assert found.train_names[0].split("[")[0] in ("0", "1", "2")
    assert torch.equal(copy.deepcopy(found).train[:2], wanted.train[:2])


def test_npz_shards_a_split_of_folders_and_labels(tmp_path):
    for part, rows in (("train", BYTES[:90]), ("test", BYTES[90:])):
        (tmp_path / part).mkdir()
        for k, block in enumerate(np.array_split(rows, 2)):
            labels = np.array(["even" if k % 2 else "odd"] * len(block))
            np.savez(tmp_path / part / f"{k}.npz", x=block, y=labels)
    found = load(tmp_path, label="y")
    assert np.array_equal(found.train[:].numpy(), BYTES[:90])
    assert found.protocol["labels"] == ["even", "odd"]
    assert found.train_labels.tolist() == [1] * 45 + [0] * 45
    memory = load(tmp_path, label="y", storage="memory")
    assert torch.equal(memory.train, found.train[:])
    assert torch.equal(memory.train_labels, found.train_labels)
    np.savez_compressed(tmp_path / "train" / "0.npz", x=BYTES[:45], y=labels[:1].repeat(45))
    with pytest.raises(DataError, match=r"0\.npz: compressed, .* Try: numpy\.savez or numpy\.save"):
        load(tmp_path, label="y")


def test_bits_are_drawn_afresh_on_disk_as_in_memory(tmp_path):
    np.save(tmp_path / "x.npy", BYTES)
    both = [load(tmp_path / "x.npy", binarize="dynamic", storage=s) for s in ("memory", "disk")]
    picked = torch.arange(20)
    drawn = [one.batch(picked, torch.Generator().manual_seed(1)) for one in both]
    assert torch.equal(*drawn) and torch.equal(both[0].test, both[1].test)
    with pytest.raises(ArgumentValueError, match="binarize: expected dynamic or none for rows on"):
        load(tmp_path / "x.npy", binarize="static", storage="disk")


def test_a_share_held_out_stays_the_same_and_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", BYTES)
    both = [load(tmp_path / "x.npy", storage=s) for s in ("memory", "disk")]
    (rest, held), (stored, kept) = (hold_out(one, 0.2) for one in both)
    assert torch.equal(held, kept) and torch.equal(rest.train, stored.train[:])
    assert torch.equal(stored.moments().mean, rest.moments().mean)


def break_shards(how, folder):
    path = folder / "1.npy"
    if how == "missing":
        path.unlink()
    elif how == "shape":
        np.save(path, np.zeros((4, 5), np.uint8))
    elif how == "dtype":
        np.save(path, np.zeros((4, 6), np.float32))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "damaged":
        path.write_bytes(b"nonsense")
    elif how == "fortran":
        np.save(path, np.asfortranarray(BYTES[:40]))
    elif how == "nan":
        for k in range(3):
            np.save(folder / f"{k}.npy", RNG.normal(size=(3000, 2)).astype(np.float32))
        block = RNG.normal(size=(3000, 2)).astype(np.float32)
        block[2345, 1] = np.nan
        np.save(path, block)
    elif how == "off the grid":
        for k in range(3):
            np.save(folder / f"{k}.npy", RNG.integers(0, 5, (3000, 2)))
        block = RNG.integers(0, 5, (3000, 2))
        block[1234, 1] = 99
        np.save(path, block)


BROKEN = {
    "missing": r"1\.npy: a shard is missing or cannot be read: No such file",
    "shape": r"1\.npy: expected rows as in 0\.npy, uint8 \[6\]; got uint8 \[5\]",
    "dtype": r"1\.npy: expected rows as in 0\.npy, uint8 \[6\]; got float32 \[6\]",
    "cut": r"1\.npy: its header says 40 rows; the file is shorter",
    "damaged": r"1\.npy: damaged or not a NumPy file",
    "fortran": r"1\.npy: expected rows one after another \(C order\); got Fortran order",
    "nan": r"1\.npy: row 2,345: NaN, infinity or beyond float32",
    "off the grid": r"1\.npy: rows 0 to 2,999: .*99 in row 1234; .* from 40 rows",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_shard_is_named(how, tmp_path, monkeypatch):
    monkeypatch.setattr("kullback.data.limits.STORED_LOOK", 40)
    folder = shards(tmp_path / "s", BYTES)
    paths = sorted(folder.iterdir())
    break_shards(how, folder)
    with pytest.raises(DataError, match=BROKEN[how]):
        load(paths)


def test_a_shard_that_changes_or_goes_while_it_is_used_is_named(tmp_path):
    data = load(shards(tmp_path / "s", BYTES))
    other = load(shards(tmp_path / "t", BYTES))
    np.save(tmp_path / "s" / "2.npy", np.zeros((41, 6), np.uint8))
    (tmp_path / "t" / "2.npy").unlink()
    last = torch.tensor([len(data.train) - 1])
    with pytest.raises(DataError, match=r"2\.npy: changed since its rows were first read"):
        data.train.index_select(0, last)
    with pytest.raises(DataError, match=r"2\.npy: a shard is missing"):
        other.train.index_select(0, last)
    os.utime(shards(tmp_path / "v", BYTES) / "2.npy", (1e9, 1e9))  # clocks of files tick coarsely
    over = load(tmp_path / "v")
    over.train.index_select(0, last)  # it is open now
    np.save(tmp_path / "v" / "2.npy", 255 - np.load(tmp_path / "v" / "2.npy"))
    with pytest.raises(DataError, match=r"2\.npy: changed since its rows were first read"):
        over.train.index_select(0, last)
    cut = load(shards(tmp_path / "u", BYTES))
    cut.train.index_select(0, last)  # it is open now
    with (tmp_path / "u" / "2.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(DataError, match=r"2\.npy: ends before row"):
        cut.train.index_select(0, last)


def test_an_array_without_room_in_memory_stays_on_disk(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", BYTES)
    wanted = load(tmp_path / "x.npy")
    monkeypatch.setattr("kullback.data.given.free_memory", lambda: 1000)
    monkeypatch.setattr("kullback.data.limits.STORED_TEST_BYTES", 60)
    found = load(tmp_path / "x.npy")
    assert "on disk" in repr(found) and "on disk" not in repr(wanted)
    assert any("test_fraction 0.1 lowered to 0.0833" in note for note in found.protocol["notes"])
    with pytest.raises(DataError, match="Try: storage disk"):
        load(shards(tmp_path / "s", BYTES), storage="memory")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**16), st.floats(-1e3, 1e3))
def test_moments_by_numpy_and_the_same_in_any_pieces(rows, columns, seed, shift):
    x = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32) + shift
    found = moments_of(torch.from_numpy(x.astype(np.float32)))
    exact = x.astype(np.float32).astype(np.float64)
    assert found.mean.numpy() == pytest.approx(exact.mean(0), rel=1e-12, abs=1e-12)
    squares = ((exact - exact.mean(0)) ** 2).sum(0)
    assert found.squares.numpy() == pytest.approx(squares, rel=1e-9, abs=1e-9)
    assert (found.low.numpy() == exact.min(0)).all() and (found.high.numpy() == exact.max(0)).all()


class Pairs(torch.utils.data.Dataset):
    """A map-style data set as a user writes it."""

    def __len__(self):
        return len(BYTES)

    def __getitem__(self, k):
        return torch.from_numpy(BYTES[k]), k % 2


OBJECTS = {
    "a tensor": lambda: torch.from_numpy(BYTES),
    "an array": lambda: BYTES,
    "a map-style data set": Pairs,
    "a TensorDataset": lambda: torch.utils.data.TensorDataset(torch.from_numpy(BYTES)),
    "a list of arrays": lambda: list(BYTES),
    "a generator": lambda: (row for row in BYTES),
    "nested lists": lambda: BYTES.tolist(),
    "arrays by name": lambda: {"anything": BYTES},
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_in_memory_are_read_as_files_are(name, tmp_path):
    np.save(tmp_path / "x.npy", BYTES)
    wanted = load(tmp_path / "x.npy")
    found = load(OBJECTS[name]())
    alike(found, wanted)
    alike(reload(found.protocol, source=OBJECTS[name]()), wanted)
    with pytest.raises(DataError, match="made in memory, so it cannot be read again"):
        reload(found.protocol)


def test_labels_and_a_split_of_objects():
    found = load(Pairs(), label="y")
    assert found.protocol["labels"] == ["0", "1"]
    names = [int(name[2:-1]) for name in found.train_names]
    assert found.train_labels.tolist() == [k % 2 for k in names]
    split = load({"x_train": BYTES[:100], "x_test": BYTES[100:]})
    assert split.train.shape == (100, 6) and split.test.shape == (20, 6)


REFUSED = {
    "a loader": (torch.utils.data.DataLoader(BYTES), ArgumentTypeError, "Try: loader.dataset"),
    "a number": (3, ArgumentTypeError, "expected 'fashion', a path, .* got int"),
    "nothing": (iter(()), DataError, "expected examples; got none"),
    "two shapes": (
        [torch.zeros(2), torch.zeros(3)],
        DataError,
        r"like the first, float32 \[2\]; got float32 \[3\] in item 1",
    ),
    "dicts": (
        [{"image": row, "y": 1} for row in BYTES],
        DataError,
        r"got dict of 'image', 'y'. Try: \(one\['image'\] for one in data\)",
    ),
    "triples": (
        [(torch.zeros(2), 1, 2), (torch.ones(2), 1, 2)],
        DataError,
        r"got tuple of 3: Tensor, int, int. Try: \(one\[0\] for one in data\)",
    ),
    "a sparse tensor": (torch.eye(4).to_sparse(), DataError, "sparse_coo. Try: data.to_dense"),
    "objects": ([object(), object()], DataError, "expected numbers; got object"),
    "one axis": (torch.zeros(3), DataError, r"expected \[N, D\], .* got \[3\]"),
    "two arrays": ({"a": BYTES, "b": BYTES}, DataError, "or one array; got a, b"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_objects_are_refused(name):
    source, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        load(source)


def test_a_folder_of_pictures_with_an_array_in_it_stays_a_folder_of_pictures(tmp_path):
    from PIL import Image

    for k in range(5):
        Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / f"{k}.png")
    np.save(tmp_path / "labels.npy", np.arange(5))
    assert load(tmp_path).event_shape == (1, 8, 8)
    assert load(tmp_path).train_names[0].endswith(".png")


def test_a_model_takes_shards_and_files_with_labels(tmp_path):
    pictures = BYTES.reshape(60, 3, 4)
    labels = np.array(["a", "b"] * 30)
    for part, rows in (("train", slice(0, 40)), ("test", slice(40, 60))):
        (tmp_path / "shards" / part).mkdir(parents=True)
        np.savez(tmp_path / "shards" / part / "s.npz", x=pictures[rows], y=labels[rows])
    np.savez(tmp_path / "x.npz", x=pictures, y=labels)
    np.save(tmp_path / "x.npy", pictures)
    how = {"event_shape": (1, 3, 4), "kind": "8-bit", "label": "y"}
    for name in ("shards", "x.npz", "x.npy"):
        found, _ = load_images(tmp_path / name, **how)
        assert np.array_equal(found[:, 0].numpy(), pictures), name
    assert load_images(tmp_path / "shards", **how)[1][39:41] == ("train/s[39]", "test/s[0]")
    table = tmp_path / "x.csv"
    rows = [",".join(map(str, [*row, y])) for row, y in zip(BYTES, labels, strict=False)]
    table.write_text("\n".join(["a,b,c,d,e,f,y", *rows]))
    found, _ = load_images(table, event_shape=(6,), kind="8-bit", label="y")
    assert np.array_equal(found.numpy(), BYTES[: len(rows)])


def test_rows_on_disk_take_the_size_that_they_have(tmp_path):
    pictures = BYTES.reshape(60, 3, 4)
    folder = shards(tmp_path / "many", pictures)
    np.save(tmp_path / "x.npy", pictures)
    for channels in ("auto", "grey"):
        protocol = load(tmp_path / "x.npy", channels=channels).protocol
        found = reload(protocol, source=folder, whole=True)
        assert np.array_equal(found.test[:, 0].numpy(), pictures) and not found.protocol["notes"]
    with pytest.raises(ArgumentValueError, match="size"):
        load(folder, size=(4, 3))
    with pytest.raises(ArgumentValueError, match="channels"):
        load(folder, channels="rgb")


def test_data_that_are_gone_are_named_with_labels_too(tmp_path):
    with pytest.raises(DataError, match="gone: cannot be read: No such file"):
        load(tmp_path / "gone", label="y")


@pytest.mark.parametrize("kind", ["float64", "bytes", "bool", "int8"])
def test_labels_on_disk_are_those_in_memory(kind, tmp_path):
    numbers = np.arange(60) % 2
    labels = numbers.astype("S1" if kind == "bytes" else kind)
    (tmp_path / "s").mkdir()
    np.savez(tmp_path / "s" / "0.npz", x=BYTES[:60], y=labels)
    found = load(tmp_path / "s", label="y")
    wanted = load(tmp_path / "s" / "0.npz", label="y")
    assert found.protocol["labels"] == wanted.protocol["labels"]
    assert torch.equal(found.train_labels, wanted.train_labels)
    for bad in (numbers + 0.5, numbers[:59], np.stack([numbers, numbers], 1)):
        np.savez(tmp_path / "s" / "0.npz", x=BYTES[:60], y=bad)
        with pytest.raises(DataError, match="expected 60 labels, integers or text, one a row"):
            load(tmp_path / "s", label="y")


def test_a_shard_that_is_gone_or_holds_nan_is_named(tmp_path):
    data = load(shards(tmp_path / "a", BYTES))
    assert data.protocol["shards"] == ["0.npy", "1.npy", "2.npy"]
    (tmp_path / "a" / "1.npy").unlink()
    with pytest.raises(DataError, match=r"a: a shard is missing: 1\.npy$"):
        reload(data.protocol)
    (tmp_path / "a" / "2.npy").unlink()
    with pytest.raises(DataError, match=r"a: a shard is missing: 1\.npy and 1 more"):
        reload(data.protocol)
    values = BYTES.astype(np.float32)
    values[53, 2] = np.nan
    with pytest.raises(DataError, match=r"1\.npy: row 13: NaN, infinity or beyond float32"):
        load(shards(tmp_path / "b", values))
