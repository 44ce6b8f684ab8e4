"""Levels found in numbers: every scaling in use, to the rounding of every dtype, not by chance."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kullback.core import DataError
from kullback.data import Grid, load, load_images, reload
from kullback.data.pictures import fit_to
from kullback.data.quantisation import find_grid, grid_of

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (60, 3, 6, 6))
MEAN, SD = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SCALINGS = {
    "(x/255 - 1/2)/(1/2)": lambda x, t: (x / t(255) - t(0.5)) / t(0.5),
    "x/127.5 - 1": lambda x, t: x / t(127.5) - t(1),
    "x/255 - 1/2": lambda x, t: x / t(255) - t(0.5),
    "x/255": lambda x, t: x / t(255),
    "x/256": lambda x, t: x / t(256),
    "x/16": lambda x, t: x / t(16),
    "128 - x": lambda x, t: t(128) - x,
    "-x/255": lambda x, t: -x / t(255),
    "mean and deviation of each channel": lambda x, t: (x / t(255) - MEAN.astype(t)) / SD.astype(t),
    "VGG means": lambda x, t: x - np.array([123.68, 116.779, 103.939], t).reshape(3, 1, 1),
    "the set's own mean and deviation": lambda x, t: (x - t(GREY.mean())) / t(GREY.std()),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("name", SCALINGS)
def test_eight_bits_in_any_scaling_are_eight_bits(name, dtype):
    values = SCALINGS[name](GREY.astype(dtype), dtype).astype(dtype)
    grid = grid_of(values)
    assert grid.count == 256
    levels = grid.levels_of(values).astype(int)
    turned = 255 - GREY if name in ("128 - x", "-x/255") else GREY
    assert np.array_equal(levels, turned)
    assert abs(grid.values_of(levels) - values).max() < 0.4 * min(grid.step)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 2000),
    st.floats(1e-6, 1e6),
    st.floats(-3, 3),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
)
def test_any_offset_and_step_with_levels_missing(count, step, place, dtype, seed):
    """The levels come back up to a shift (and a common factor, when all present share one)."""
    rng = np.random.default_rng(seed)
    present = rng.choice(count, size=max(2, count // 3), replace=False)
    k = rng.choice(present, size=(400, 4))
    k[0, 0], k[0, 1] = 0, count - 1
    offset = place * step * count
    grid = grid_of((offset + step * k.astype(np.float64)).astype(dtype))
    assert grid is not None
    levels = grid.levels_of((offset + step * k).astype(dtype)).astype(int)
    moved = levels - levels.min()
    factor = np.gcd.reduce(k.ravel() - k.min())
    assert np.array_equal(moved * factor, k - k.min())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 60),
    st.integers(1, 5),
    st.integers(-8, 8),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from(["normal", "lognormal", "uniform"]),
    st.integers(0, 2**32 - 1),
)
def test_continuous_values_lie_on_no_grid(rows, columns, power, dtype, law, seed):
    draw = getattr(np.random.default_rng(seed), law)
    assert grid_of((draw(size=(rows, columns)) * 10.0**power).astype(dtype)) is None


@pytest.mark.sweep(15)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("most", range(3, 24))
@pytest.mark.parametrize("law", [np.log1p, np.sqrt, np.cbrt, lambda k: np.pi**k])
def test_few_unequal_values_are_levels_by_rank(law, most, dtype):
    """Logs of counts have few independent values, so chance puts them on a grid of 65,536."""
    counts = np.random.default_rng(most).integers(0, most + 1, (600, 8))
    values = law(counts.astype(np.float64)).astype(dtype)
    grid = grid_of(values)
    assert grid.values and np.array_equal(grid.levels_of(values), counts)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("last", [3, 5, 15, 17, 51, 85])
def test_thirds_fifths_and_four_bits_are_not_eight_bits(last, dtype, tmp_path):
    """k/m with m a divisor of 255 is j/255 too: its levels are m + 1, not 256."""
    k = np.random.default_rng(last).integers(0, last + 1, (600, 8))
    k[0, 0], k[0, 1], k[0, 2] = 0, 1, last
    np.save(tmp_path / "x.npy", (k.astype(dtype) / dtype(last)).astype(dtype))
    data = load(tmp_path / "x.npy")
    assert data.kind == "levels" and data.protocol["grid"]["count"] == last + 1


def test_the_rounding_of_a_format_is_no_grid():
    assert grid_of(RNG.normal(size=(2000, 3)).astype(np.float16)) is None
    assert grid_of((1e5 + RNG.normal(size=(2000, 3))).astype(np.float32)) is None


@pytest.mark.parametrize(
    ("array", "kind", "levels", "said"),
    [
        (
            ((GREY / 255 - 0.5) / 0.5).astype(np.float32),
            "8-bit",
            256,
            "values are 256 equally spaced levels from -1 to 1: modelled as 8-bit",
        ),
        (RNG.integers(0, 17, (60, 64)) / 16, "levels", 17, "modelled as 17 levels"),
        (RNG.integers(0, 17, (60, 64)), "levels", 17, "modelled as 17 levels"),
        (RNG.integers(0, 4096, (60, 1, 6, 6), dtype=np.uint16), "levels", 4096, "12-bit"),
        (RNG.integers(0, 4096, (60, 1, 6, 6)) * 16, "levels", 4096, "from 0 to 65520: .* 12-bit"),
        (RNG.integers(-128, 128, (60, 36), dtype=np.int8), "8-bit", 256, "from -128 to 127"),
        (GREY.astype(np.int64) * 300, "8-bit", 256, "from 0 to 76500: modelled as 8-bit"),
        (RNG.choice([-1.0, 1.0], (60, 8)), "binary", 2, "modelled as bits"),
        (RNG.integers(-1, 2, (60, 8)), "levels", 3, "from -1 to 1"),
        (((GREY / 255) ** 2.2), "8-bit", 256, "not equally spaced"),
        (
            (lambda x: (x - x.mean(0)) / x.std(0))(GREY[:, 0].reshape(60, 36) % 17 * 1.0),
            "levels",
            17,
            "for each column",
        ),
    ],
)
def test_what_is_found_is_said_and_modelled(tmp_path, array, kind, levels, said):
    np.save(tmp_path / "a.npy", array)
    data = load(tmp_path / "a.npy", test_fraction=0.3)
    assert (data.kind, data.levels) == (kind, levels)
    assert any(re.search(said, note) for note in data.protocol["notes"])


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.where(RNG.random((60, 8)) < 0.1, -1, GREY[:, 0, 0, :1] % 90), "mark for missing"),
        (np.where(RNG.random((60, 8)) < 0.1, -1.0, GREY[:, 0, 0, :1] % 90), "mark for missing"),
        (GREY / 255 - (GREY / 255).mean(0), "subtracting a mean picture"),
        ((GREY / 255 - (GREY / 255).mean(0)).astype(np.float32), "subtracting a mean picture"),
        (np.full((60, 4), 3.7), "all the same"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, array, says):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=says):
        load(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (np.where(RNG.random(300) < 0.1, -1.0, RNG.gamma(2, size=300)), "exactly -1"),
        (np.where(RNG.random(300) < 0.3, 0.0, RNG.normal(size=300)), "exactly 0"),
        (RNG.integers(0, 2, 300) * 1.0, "2 values"),
        (np.r_[RNG.normal(size=299), 1e4], "tails too heavy"),
        (RNG.integers(0, 10**7, 300) * 1.0, "whole numbers taken as continuous"),
    ],
)
def test_what_a_density_does_not_suit_is_said(tmp_path, column, said):
    table = np.c_[RNG.normal(size=300), column]
    np.save(tmp_path / "a.npy", table)
    data = load(tmp_path / "a.npy")
    assert data.kind == "continuous"
    notes = [note for note in data.protocol["notes"] if said in note]
    assert notes
    assert "column 1" in notes[0]
    assert "column 0" not in notes[0]


def test_other_readings_on_request(tmp_path):
    np.save(tmp_path / "a.npy", GREY / 255)
    assert load(tmp_path / "a.npy", levels="none").kind == "continuous"
    data = load(tmp_path / "a.npy", levels=32)
    assert (data.kind, data.levels) == ("levels", 32)
    assert "quantised to 32 equally spaced levels" in data.protocol["notes"][0]
    with pytest.raises(ValueError, match="levels: expected auto, none or a number"):
        load(tmp_path / "a.npy", levels=1)


def test_a_model_reads_few_rows_on_its_own_grid(tmp_path):
    """Three rows that lie on a coarser grid by chance, and levels themselves."""
    grid = Grid(256, (-1.0,), (2 / 255,))
    rows = (GREY[:3, :1] // 51 * 51 / 255 - 0.5) / 0.5
    np.save(tmp_path / "a.npy", rows.astype(np.float32))
    x, _ = load_images(tmp_path / "a.npy", event_shape=(1, 6, 6), kind="8-bit", grid=grid)
    assert np.array_equal(x, GREY[:3, :1] // 51 * 51)
    np.save(tmp_path / "a.npy", GREY[:3, :1].astype(np.uint8))
    x, _ = load_images(tmp_path / "a.npy", event_shape=(1, 6, 6), kind="8-bit", grid=grid)
    assert np.array_equal(x, GREY[:3, :1])
    np.save(tmp_path / "a.npy", rows * 1.1)
    with pytest.raises(DataError, match="expected 256 equally spaced levels from -1 to 1; got"):
        load_images(tmp_path / "a.npy", event_shape=(1, 6, 6), kind="8-bit", grid=grid)


@pytest.mark.parametrize(
    ("pixels", "kind", "levels", "said"),
    [
        (RNG.integers(0, 4096, (20, 8, 8)), "levels", 4096, "modelled as 12-bit"),
        (RNG.integers(0, 4096, (20, 8, 8)) * 16, "levels", 4096, "all multiples of 16, modelled"),
        (RNG.integers(0, 65536, (20, 8, 8)), "levels", 65536, "modelled as 16-bit"),
        (RNG.integers(0, 256, (20, 8, 8)) * 257, "8-bit", 256, "multiples of 257, modelled as 8"),
    ],
)
def test_sixteen_bit_pictures_keep_the_levels_they_use(tmp_path, pixels, kind, levels, said):
    for number, values in enumerate(pixels.astype(np.uint16)):
        Image.fromarray(values).save(tmp_path / f"{number:02}.png")
    data = load(tmp_path, test_fraction=0.4)
    assert (data.kind, data.levels) == (kind, levels)
    assert any(said in note for note in data.protocol["notes"])
    step = pixels.max() // max(int(data.train.max()), int(data.test.max()))
    row = pixels[int(data.train_names[0][:2])]
    assert np.array_equal(data.train[0, 0], row // step)
    few = load(tmp_path, test_fraction=0.4, levels=256)
    assert few.kind == "8-bit"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "eight.png")
    mixed = load(tmp_path, test_fraction=0.4)
    assert mixed.kind == "8-bit"
    assert any("cut to 8 bits like the others" in note for note in mixed.protocol["notes"])


def test_frames_alpha_and_turns_are_counted(tmp_path):
    def grey():
        return Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8))

    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(5):
        grey().save(tmp_path / f"t{number}.png", exif=exif)
        grey().save(tmp_path / f"m{number}.png", save_all=True, append_images=[grey(), grey()])
        opaque = np.dstack([np.asarray(grey())] * 3 + [np.full((8, 8), 255, np.uint8)])
        Image.fromarray(opaque).save(tmp_path / f"a{number}.png")
    notes = load(tmp_path, test_fraction=0.4).protocol["notes"]
    assert "5 images turned or mirrored as their EXIF orientation says" in notes
    assert "5 animations: first frames taken, 10 others left out" in notes
    assert "5 images with an alpha channel that was left out" in notes


def test_other_data_are_read_as_a_runs_own(tmp_path):
    """Values 0 to 1 for a run on 0 to 1 and continuous stay so, on any grid; levels keep theirs."""
    continuous, grey = tmp_path / "c.npy", tmp_path / "g.npy"
    np.save(continuous, RNG.random((60, 1, 6, 6)))
    np.save(grey, (GREY[:, :1] // 51 * 51 / 255 - 0.5) / 0.5)
    other = reload(load(continuous).protocol, source=str(grey))
    assert other.kind == "continuous"
    assert float(other.train.min()) == -1.0
    np.save(continuous, (GREY[:, :1] / 255 - 0.5) / 0.5)
    other = reload(load(continuous).protocol, source=str(grey))
    assert sorted(set(other.train.flatten().tolist())) == [0, 51, 102, 153, 204, 255]


@pytest.mark.parametrize("value", [0.55, 1.045, 1.055, 1.2, 3.1])
def test_values_between_unequal_levels_are_off_by_shares_of_the_lesser_gap(value):
    grid = Grid(4, values=(0.0, 1.0, 1.1, 5.0))
    with pytest.raises(DataError, match=f"got {value:g} in row 0"):
        grid.levels_of(np.array([[value]]))


def test_values_near_unequal_levels_are_theirs():
    grid = Grid(4, values=(0.0, 1.0, 1.1, 5.0))
    near = np.array([[-0.3, 0.3, 0.97, 1.03, 1.07, 1.13, 3.5, 6.5]])
    assert grid.levels_of(near).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]


@pytest.mark.parametrize(("roundings", "on_it"), [(0, True), (5, True), (7.5, False)])
def test_values_on_a_grid_may_be_off_by_a_few_roundings(roundings, on_it):
    off = roundings * np.finfo(np.float32).eps * np.where(np.arange(17) % 2, 1, -1)
    assert (find_grid(np.arange(17) / 16 + off, 1000, np.float32) is not None) == on_it


@pytest.mark.parametrize(
    ("step", "top", "kind", "levels"),
    [
        (257, 255, "8-bit", 256),
        (257, 250, "8-bit", 256),  # none is white
        (256, 199, "8-bit", 256),
        (16, 4095, "levels", 4096),
        (16, 700, "levels", 1024),
        (1, 4095, "levels", 4096),
    ],
)
def test_the_depth_of_sixteen_bit_pictures_is_that_before_resizing(
    tmp_path, step, top, kind, levels
):
    smooth = np.clip(np.add.outer(np.arange(24), np.arange(20)) * top // 42, 0, top)
    pixels = [np.roll(smooth, k, 0) * step for k in range(20)]
    for number, values in enumerate(pixels):
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"{number:02}.png")
    data = load(tmp_path, size=8, test_fraction=0.4)
    assert (data.kind, data.levels) == (kind, levels)
    every = f", all multiples of {step}," if step > 1 else ""
    assert f"up to {top * step:,}{every} modelled" in " ".join(data.protocol["notes"])
    resized = Image.fromarray(pixels[int(data.train_names[0][:2])].astype(np.int32))
    there = np.asarray(fit_to(resized, (8, 8), fit="crop")[0])
    expected = np.rint(there / step).clip(0, levels - 1)
    assert np.array_equal(data.train[0, 0].numpy(), expected)
    grid = Grid.from_dict(data.protocol["grid"])
    told: list[str] = []
    read = {"event_shape": (1, 8, 8), "kind": kind, "grid": grid, "say": told.append}
    again, names = load_images(tmp_path, **read)
    assert np.array_equal(again[names.index(data.train_names[0])], data.train[0])
    before = load(tmp_path, size=8, test_fraction=0.4, rules=3)
    assert step == 1 or before.levels > levels


@pytest.mark.parametrize(
    ("value", "most", "levels"), [(65535, 1, 256), (1000, 3, 512), (251, 5, 2048), (1, 3, 4)]
)
def test_a_resized_mask_of_sixteen_bits_keeps_the_levels_between(tmp_path, value, most, levels):
    for number in range(12):
        mask = np.roll(np.arange(24 * 20).reshape(24, 20) % 7 % (most + 1), number, 0)
        Image.fromarray((mask * value).astype(np.uint16)).save(tmp_path / f"{number:02}.png")
    data = load(tmp_path, size=9, test_fraction=0.4)
    assert data.levels == levels
    assert value == 1 or len(np.unique(data.train)) > 20
    grid = Grid.from_dict(data.protocol["grid"])
    told: list[str] = []
    read = {"event_shape": (1, 9, 9), "kind": data.kind, "grid": grid, "say": told.append}
    again, names = load_images(tmp_path, **read)  # its own files are on its levels
    assert np.array_equal(again[names.index(data.train_names[0])], data.train[0])
    assert load(tmp_path, test_fraction=0.4).levels == most + 1
