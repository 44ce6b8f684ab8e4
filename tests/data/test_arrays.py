"""NumPy files: layouts, dtypes and ranges read right, and everything else refused with a reason."""

import io
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from kullback.core import DataError
from kullback.data import load, load_images
from kullback.data.arrays import read_arrays

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 5, 7), dtype=np.uint8)


LETTERS = np.array(list("ab" * 20))


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def saved(path, array=None, **arrays):
    """Save one array as .npy, or several as .npz, and return the path."""
    target = path / ("data.npz" if arrays else "data.npy")
    if arrays:
        np.savez(target, **arrays)
    else:
        np.save(target, array)
    return target


def everything(path, **options):
    """Every example of the file, back in the order of its rows."""
    data = load(path, test_fraction=0.4, **options)
    names = data.train_names + data.test_names
    rows = torch.cat([data.train, data.test])
    order = sorted(range(len(names)), key=lambda i: int(names[i].split("[")[1][:-1]))
    return rows[order], data


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY[:, None]),
        (GREY[:, None], GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (np.stack([GREY, GREY // 2, GREY // 3], -1), np.stack([GREY, GREY // 2, GREY // 3], 1)),
        (np.stack([GREY, GREY // 2, GREY // 3], 1), np.stack([GREY, GREY // 2, GREY // 3], 1)),
        (GREY.reshape(40, 35), GREY.reshape(40, 35)),
        (np.asfortranarray(GREY), GREY[:, None]),
        (GREY.astype(np.int64), GREY[:, None]),
        (GREY.astype(">u2"), GREY[:, None]),
        (GREY.astype(np.float32), GREY[:, None]),
        (GREY.astype(np.float64), GREY[:, None]),
        (GREY / 255, GREY[:, None]),
        (GREY.astype(np.float32) / np.float32(255), GREY[:, None]),
        (GREY.astype(np.float32) * np.float32(1 / 255), GREY[:, None]),
        ((GREY / 255).astype(np.float16), GREY[:, None]),
    ],
)
def test_layouts_and_dtypes_become_eight_bit_images(tmp_path, array, expected):
    rows, data = everything(saved(tmp_path, array))
    assert data.kind == "8-bit"
    assert rows.dtype == torch.uint8
    assert np.array_equal(rows, expected)
    assert len(data.protocol["notes"]) == (array.dtype.kind == "f")


def test_the_split_is_that_of_the_values_not_of_how_they_are_stored(tmp_path):
    as_bytes = load(saved(tmp_path, GREY))
    as_floats = load(saved(tmp_path, GREY / 255))
    shuffled = RNG.permutation(40)
    moved = load(saved(tmp_path, GREY[shuffled]))
    assert as_bytes.test_names == as_floats.test_names
    assert {bytes(row.numpy()) for row in moved.test} == {bytes(r.numpy()) for r in as_bytes.test}


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32])
def test_zeros_and_ones_are_binary_and_stay_so(tmp_path, dtype):
    bits = (GREY > 127).astype(dtype)
    rows, data = everything(saved(tmp_path, bits), binarize="dynamic")
    assert data.kind == "binary"
    assert not data.dynamic
    assert data.protocol["binarize"] == "none"
    assert "nothing to binarise" in data.protocol["notes"][-1]
    assert np.array_equal(rows[:, 0], bits)


def test_integers_of_one_large_value_are_refused_in_words(tmp_path):
    """One level has no step; what is refused is that nothing differs."""
    np.save(tmp_path / "a.npy", np.full((50, 4), 1000))
    with pytest.raises(DataError, match="2 different examples"):
        load(tmp_path / "a.npy")


def test_continuous_values(tmp_path):
    normal = RNG.normal(size=(40, 3))
    rows, data = everything(saved(tmp_path, normal))
    assert data.kind == "continuous"
    assert rows.dtype == torch.float32
    assert np.array_equal(rows, normal.astype(np.float32))
    with pytest.raises(DataError, match=r"expected values in 0\.\.1 to binarise"):
        load(saved(tmp_path, normal), binarize="static")


def test_continuous_in_the_unit_interval_can_be_binarised(tmp_path):
    uniform = RNG.random((60, 30))
    data = load(saved(tmp_path, uniform), binarize="dynamic", test_fraction=0.3)
    assert data.kind == "binary"
    assert data.dynamic
    assert "rounded to 8 bits" in data.protocol["notes"][0]
    rows = [int(name.split("[")[1][:-1]) for name in data.train_names]
    assert np.array_equal(data.train, np.rint(uniform[rows].astype(np.float32) * 255))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_no_numbers_are_located(tmp_path, bad):
    array = RNG.normal(size=(40, 3))
    array[[17, 30], 1] = bad
    with pytest.raises(DataError, match=r"data: .* in 2 rows of 40, the first is row 17"):
        load(saved(tmp_path, array))


def test_train_and_test_arrays(tmp_path):
    path = saved(tmp_path, x_test=GREY[:10], y_train=np.arange(30), x_train=GREY[8:])
    data = load(path)
    assert np.array_equal(data.train[:, 0], GREY[8:])
    assert np.array_equal(data.test[:, 0], GREY[:10])
    assert data.train_names[3] == "x_train[3]"
    assert data.test_names[-1] == "x_test[9]"
    assert data.protocol["split"] == "x_train and x_test"
    assert data.protocol["notes"] == [
        "arrays left out: y_train",
        "2 test examples also in the training set",
    ]
    labels = np.array([Hostile()], dtype=object)
    alone = load(saved(tmp_path, x_train=GREY, y_train=labels), test_fraction=0.4)
    assert alone.train_names[0].startswith("x_train[")


def test_train_and_test_are_judged_together(tmp_path):
    """A test set that happens to hold only 0 and 1 has the scale of its training set."""
    train, test = GREY / 255, np.zeros((5, 5, 7))
    test[:, 0] = 1
    data = load(saved(tmp_path, x_train=train, x_test=test))
    assert data.kind == "8-bit"
    assert data.test.max() == 255


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            {"a": GREY, "b": GREY},
            r"exactly one array; got a uint8 \[40, 5, 7\], b uint8 \[.*: those",
        ),
        ({"x": GREY, "y": np.arange(40)}, r"y int64 \[40\]. Try: label='y', or save x alone"),
        ({"w": np.arange(3.0), "u": GREY, "v": LETTERS}, "Try: label='v', or save u alone"),
        ({"x_train": GREY, "x_test": GREY[:, :4]}, "alike in shape and kind"),
        ({"x_train": GREY, "x_test": GREY / 255}, "alike in shape and kind"),
        ({"x_train": GREY, "x_test": GREY[:1]}, "got 40 and 1"),
        ({"x_train": GREY, "x_test": GREY[:0]}, "not empty; got"),
        ({"x_test": GREY[0, 0]}, r"\[N, D\].*; got \[7\]"),
        ({"x": GREY.reshape(8, 5, 5, 7)}, "1 or 3 channels"),
        ({"x": GREY[None, None]}, "expected .N, D."),
        ({"x": GREY.astype(np.int16) - 1}, r"0\.\.255; got -1 to 254"),
        ({"x": GREY.astype(np.int64) * 300 + GREY // 9}, r"0\.\.255; got 0 to 76528"),
        ({"x": GREY.astype(complex)}, "got complex128"),
        ({"x": GREY.astype(str)}, "got <U3"),
        ({"x": GREY.astype("datetime64[s]")}, "got datetime64"),
        ({"x": np.zeros(4, dtype=[("a", "f4")])}, "expected numbers"),
        ({"x": np.array(3.0)}, r"got \[\]"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, arrays, says):
    with pytest.raises(DataError, match=says):
        load(saved(tmp_path, **arrays))


def test_pickles_are_never_run(tmp_path):
    array = np.array([Hostile()], dtype=object)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    (tmp_path / "a.npy").write_bytes(header.getvalue() + pickle.dumps(array))
    (tmp_path / "b.npy").write_bytes(pickle.dumps(array))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(DataError, match=f"{name}: damaged or not a NumPy file"):
            load(tmp_path / name)


def test_an_archive_of_other_things(tmp_path):
    for names in (["readme.txt"], ["a.txt", "b.txt"], []):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            for name in names:
                archive.writestr(name, b"hello")
        with pytest.raises(DataError, match=r"a\.npz: "):
            load(tmp_path / "a.npz")


def test_a_header_that_claims_too_much(tmp_path):
    for shape in ((10**15, 4), (2**62, 2**62)):
        header = io.BytesIO()
        fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, fields)
        (tmp_path / "a.npy").write_bytes(header.getvalue() + b"1234")
        with pytest.raises(DataError, match=r"a\.npy: "):
            load(tmp_path / "a.npy")
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", header.getvalue() + b"1234")
        with pytest.raises(DataError, match=r"a\.npz: "):
            load(tmp_path / "a.npz")


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_random_damage_raises_nothing_else(tmp_path, kind):
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, GREY)
    else:
        np.savez_compressed(buffer, x_train=GREY, x_test=GREY[:9])
    whole, chance, refused = buffer.getvalue(), random.Random(kind), 0
    path = tmp_path / f"a.{kind}"
    for _ in range(300):
        broken = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        for _ in range(chance.randrange(4)):
            if broken:
                broken[chance.randrange(min(200, len(broken)))] = chance.randrange(256)
        path.write_bytes(bytes(broken))
        try:
            load(path, test_fraction=0.4)
        except DataError:
            refused += 1
    assert refused > 50


def test_sizes_and_channels_of_arrays(tmp_path):
    path = saved(tmp_path, GREY)
    padded, data = everything(path, size=9, fit="pad")
    assert np.array_equal(padded[:, 0], np.pad(GREY, ((0, 0), (2, 2), (1, 1))))
    assert data.protocol["notes"] == ["40 images padded with black to 9x9"]
    assert everything(path, size=(10, 14))[1].protocol["notes"] == ["40 images enlarged to 10x14"]
    rgb, data = everything(path, channels="rgb")
    assert torch.equal(rgb[:, 2], rgb[:, 0])
    assert data.protocol["notes"] == ["40 images grey, repeated in three channels"]
    colour = saved(tmp_path, np.stack([GREY, GREY, GREY], 1))
    assert np.array_equal(everything(colour, channels="grey")[0][:, 0], GREY)


def test_resampled_levels_stay_between_the_least_and_the_most(tmp_path):
    """Lanczos resampling overshoots at an edge of black and white."""
    edge = np.zeros((40, 12, 12), np.uint16)
    edge[:, :, 5:], edge[:, 3, 3] = 65535, np.arange(40)
    images, data = everything(saved(tmp_path, edge), size=9)
    assert data.levels == 65536
    assert (int(images.min()), int(images.max())) == (0, 65535)
    assert bool(((images > 0) & (images < 65535)).any())


@pytest.mark.parametrize(
    ("array", "options", "says"),
    [
        (GREY.reshape(40, 35), {"size": 8}, "vectors of 35"),
        (GREY.reshape(40, 35), {"channels": "rgb"}, "vectors of 35"),
        (GREY + RNG.random(GREY.shape), {"size": 8}, "expected 8-bit images"),
        (GREY > 127, {"size": 64}, "multiply by 255"),
    ],
)
def test_sizes_that_make_no_sense(tmp_path, array, options, says):
    with pytest.raises(DataError, match=rf"data\.npy: .*{says}"):
        load(saved(tmp_path, array), **options)


def test_load_images_of_arrays(tmp_path):
    vectors = saved(tmp_path, GREY.reshape(40, 35))
    rows, names = load_images(vectors, event_shape=(35,))
    assert np.array_equal(rows, GREY.reshape(40, 35))
    assert names[0] == "data[0]"
    with pytest.raises(DataError, match=r"expected examples of shape \[36\]; got \[35\]"):
        load_images(vectors, event_shape=(36,))
    with pytest.raises(DataError, match="got vectors of 35"):
        load_images(vectors, event_shape=(1, 5, 7))
    both = saved(tmp_path, x_train=GREY[:30], x_test=GREY[30:])
    rows, names = load_images(both, event_shape=(1, 5, 7))
    assert np.array_equal(rows[:, 0], GREY)
    assert names[30] == "x_test[0]"
    with pytest.raises(DataError, match=r"shape \[35\]; got \[1, 5, 7\]"):
        load_images(both, event_shape=(35,))


def header_of(shape, dtype="<f4"):
    """The bytes of a `.npy` header that claims a shape."""
    buffer = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def test_declared_sizes_are_checked_before_memory_is_taken(tmp_path, monkeypatch):
    """A header of 4 TB in a file of 200 bytes, and 80 MB of zeros in 80 kB: refused by name."""
    path = tmp_path / "a.npy"
    path.write_bytes(header_of((10**12, 4)) + bytes(100))
    with pytest.raises(DataError, match=r"its header says 16,000,000,000,000 bytes; the file has"):
        read_arrays(path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", header_of((10**12, 4)) + bytes(100))
    with pytest.raises(DataError, match=r"x_train: its header says 16,000,000,000,000 bytes; got"):
        read_arrays(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros((100_000, 800), np.uint8))
    with pytest.raises(DataError, match=r"x: .* inflate to 80,000,128; at most 200 times"):
        read_arrays(tmp_path / "b.npz")
    monkeypatch.setattr("kullback.data.arrays.free_memory", lambda: 10_000)
    np.save(path, np.zeros((100, 100), np.uint8))
    with pytest.raises(DataError, match=r"3 times as much while they are read; 0\.0 GB of memory"):
        read_arrays(path)


def test_a_refused_array_says_what_to_do_about_it(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 4))
    cases = {
        r"beyond float32 in 6 rows.* Try: scale the values": x * 1e300,
        r"NaN, infinity .* in 1 row of 6.* Try: leave them out": np.where(x == x[2, 1], np.nan, x),
        r"got complex128\. Try: x\.real": x + 1j,
        r"got \[1, 1, 1, 6, 4\]\. Try: x\.reshape": x[None, None, None],
        r"got \[6\]\. Try: x\[:, None\]": x[:, 0],
        r"1 or 3 channels; .* Try: three of the channels": np.ones((6, 4, 5, 5)),
        r"2 different examples, .* got 1 example\. Try: more": x[:1],
    }
    for said, array in cases.items():
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(DataError, match=said):
            load(tmp_path / "a.npy")


def test_columns_that_float32_rounds_to_few_values_are_told(tmp_path):
    """Times in seconds since 1970 lie 128 s apart in float32; less than one step is refused."""
    x = np.random.default_rng(0).normal(size=(200, 3))
    for shift, scale, told in (
        (1.7e9, 1000.0, "note"),
        (1.7e9, 1.0, "error"),
        (0, 1e-300, "error"),
    ):
        array = np.column_stack([x[:, :2], shift + scale * x[:, 2]])
        np.save(tmp_path / "a.npy", array)
        if told == "error":
            with pytest.raises(DataError, match=r"column 2 lies in .* float32 .* Try: subtract"):
                load(tmp_path / "a.npy")
            continue
        notes = load(tmp_path / "a.npy").protocol["notes"]
        assert any("column 2 lies in 1" in one and "steps of 128" in one for one in notes)
    np.save(tmp_path / "a.npy", 1e6 * x)
    assert not any("float32" in one for one in load(tmp_path / "a.npy").protocol["notes"])
