"""Folders of pictures as users have them: nested, mixed, broken, linked, hidden, split."""

import hashlib
import os

import numpy as np
import pytest
import torch
from PIL import Image

from kullback.core import DataError
from kullback.data import describe_protocol, load, load_images, reload
from kullback.data.file_listing import files_under
from kullback.data.pictures import SUFFIXES, many_files


def save(path, seed, shape=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Forty grey 8x8 pictures, nested, in three formats."""
    for k in range(40):
        suffix = (".png", ".bmp", ".PNG")[k % 3]
        save(tmp_path / f"level{k % 4}" / f"deep{k % 2}" / f"{k:02d}{suffix}", k)
    return tmp_path


def test_pixels_names_and_split_are_those_of_the_files(folder):
    data = load(folder, test_fraction=0.3)
    assert data.kind == "8-bit"
    assert data.event_shape == (1, 8, 8)
    assert data.train.dtype == data.test.dtype == torch.uint8
    for side, names in ((data.train, data.train_names), (data.test, data.test_names)):
        assert len(side) == len(names)
        assert list(names) == sorted(names)
        for row, name in zip(side, names, strict=True):
            assert np.array_equal(row[0], np.asarray(Image.open(folder / name)))
            digest = hashlib.sha256((folder / name).read_bytes()).digest()
            held_out = int.from_bytes(digest[:8], "big") / 2**64 < 0.3
            assert held_out == (side is data.test)
    assert len(data.train) + len(data.test) == 40
    assert data.protocol["split"] == "files by SHA-256, test_fraction 0.3"


def test_the_split_ignores_names_order_and_company(folder):
    held = load(folder, test_fraction=0.3)
    for k in range(40, 60):
        save(folder / "more" / f"{k}.png", k)
    (folder / "level0").rename(folder / "zzz")
    after = load(folder, test_fraction=0.3)
    old = {bytes(row.numpy()) for row in held.test}
    assert old <= {bytes(row.numpy()) for row in after.test}


def test_copies_stay_on_one_side(folder):
    for k in range(40):
        source = next(folder.rglob(f"{k:02d}.*"))
        (folder / f"copy{k}{source.suffix}").write_bytes(source.read_bytes())
    data = load(folder, test_fraction=0.3)
    train = {bytes(row.numpy()) for row in data.train}
    assert not train & {bytes(row.numpy()) for row in data.test}


def test_train_and_test_folders_are_the_split(folder):
    for k in range(5):
        save(folder / "train" / "a" / f"{k}.png", 100 + k)
        save(folder / "test" / f"{k}.png", 200 + k)
    save(folder / "test" / "leaked.png", 100)
    data = load(folder)
    assert data.train_names == tuple(f"train/a/{k}.png" for k in range(5))
    assert len(data.test) == 6
    notes = data.protocol["notes"]
    assert "40 images outside train/ and test/ left out" in notes
    assert "1 test example also in the training set" in notes


def test_broken_images_are_skipped_counted_and_named(folder):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "gone.webp").symlink_to(folder / "nowhere")
    calls = []
    data = load(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 43) for k in range(1, 44)]
    skipped = data.protocol["skipped"]
    assert skipped["count"] == 3
    reasons = {entry["name"]: entry["reason"] for entry in skipped["files"]}
    assert reasons["empty.jpg"] == "the file is empty"
    assert "link to nothing" in reasons["gone.webp"]
    assert "broken.png" in reasons
    assert ", 3 skipped, " in describe_protocol(data.protocol)


def test_at_most_twenty_skips_are_named(folder):
    for k in range(30):
        (folder / f"broken{k}.png").write_bytes(b"x")
    skipped = load(folder).protocol["skipped"]
    assert skipped["count"] == 30
    assert len(skipped["files"]) == 20


def test_nothing_readable_nothing_found_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"no PNG, JPEG, WebP or BMP images found$"):
        load(tmp_path)
    (tmp_path / "song.mid").write_bytes(b"x")
    with pytest.raises(DataError, match=r"other files: 1 \.mid"):
        load(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no image of 1 can be read. a\.png: not a PNG"):
        load(tmp_path)
    for nowhere in (tmp_path / "elsewhere", "x" * 5000, "nul\0l"):
        with pytest.raises(DataError, match=r"cannot be read: .*'fashion' is the embedded set"):
            load(nowhere)
    with pytest.raises(DataError, match="expected a folder"):
        load(tmp_path / "song.mid")
    with pytest.raises(DataError, match="expected a folder"):
        load(tmp_path / "a.png")


@pytest.mark.sweep(3)
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.999999])
@pytest.mark.parametrize("count", [2, 3, 4, 60])
def test_a_split_always_has_both_parts(tmp_path, count, fraction):
    """Something to train on, something to test on, copies together, the same every time."""
    for k in range(count):
        save(tmp_path / f"{k}.png", k)
        (tmp_path / f"{k}-copy.png").write_bytes((tmp_path / f"{k}.png").read_bytes())
    data = load(tmp_path, test_fraction=fraction)
    assert len(data.train) >= 2
    assert len(data.test) >= 2
    assert not {bytes(r.numpy()) for r in data.train} & {bytes(r.numpy()) for r in data.test}
    assert load(tmp_path, test_fraction=fraction).test_names == data.test_names


@pytest.mark.slow
def test_sixty_pictures_are_never_refused(tmp_path):
    """Chance leaves fewer than 2 of 60 below a tenth in 1.4 % of folders: 400 of them."""
    rng = np.random.default_rng(0)
    for _ in range(400):
        np.save(tmp_path / "a.npy", rng.integers(0, 256, (60, 2), dtype=np.uint8))
        counts = load(tmp_path / "a.npy").protocol["counts"]
        assert counts["test"] >= 2
        assert counts["train"] >= 1


def test_copies_of_one_picture_have_no_split(tmp_path):
    for k in range(9):
        save(tmp_path / f"{k}.png", 0)
    with pytest.raises(DataError, match=r"at least 2 different examples.*9 examples, all the same"):
        load(tmp_path)


def test_mixed_sizes_are_named_and_size_helps(folder):
    save(folder / "wide.png", 1, (10, 20))
    with pytest.raises(DataError, match=r"8x8 \(40 images\), 10x20 \(1 image\).* --size 64"):
        load(folder)
    data = load(folder, size=8)
    assert data.protocol["notes"] == ["1 image shrunk and centre-cropped to 8x8"]
    assert data.protocol["size"] == [8, 8]
    assert load(folder, size=(8, 16), fit="pad").event_shape == (1, 8, 16)


def test_large_images_shrink_to_64_and_say_so(tmp_path):
    for k in range(20):
        save(tmp_path / f"{k}.png", k, (100, 200, 3))
    data = load(tmp_path, test_fraction=0.4)
    assert data.event_shape == (3, 64, 128)
    assert data.protocol["notes"][0] == "no size was given: 100x200 became 64x128"
    assert "20 images shrunk to 64x128" in data.protocol["notes"]


def test_channels(folder):
    assert load(folder, channels="rgb").event_shape == (3, 8, 8)
    grey = load(folder)
    save(folder / "colour.png", 0, (8, 8, 3))
    data = load(folder)
    assert data.event_shape == (3, 8, 8)
    assert data.protocol["notes"] == ["40 images grey, repeated in three channels"]
    assert torch.equal(data.train[data.train_names.index(grey.train_names[0]), 2], grey.train[0, 0])
    data = load(folder, channels="grey")
    assert data.event_shape == (1, 8, 8)
    assert data.protocol["notes"] == ["1 image turned from colour to grey"]


def test_transparency_is_said(folder):
    save(folder / "clear.png", 0, (8, 8, 4))
    notes = load(folder).protocol["notes"]
    assert "1 image with transparency laid over black" in notes


def test_hidden_files_and_circles_of_links(folder):
    save(folder / ".hidden.png", 1)
    save(folder / ".cache" / "a.png", 1)
    (folder / "level0" / "circle").symlink_to(folder)
    (folder / "level1" / "again").symlink_to(folder / "level0")
    paths, others = files_under(folder, SUFFIXES)
    assert len(paths) == 40
    assert not others


def test_a_linked_folder_is_read(tmp_path, folder):
    elsewhere = tmp_path.parent / f"{tmp_path.name}-links"
    elsewhere.mkdir()
    (elsewhere / "images").symlink_to(folder)
    assert len(load_images(elsewhere, event_shape=(1, 8, 8))[1]) == 40


def test_a_folder_named_like_the_embedded_set(tmp_path, monkeypatch):
    for k in range(20):
        save(tmp_path / "fashion" / f"{k}.png", k)
    monkeypatch.chdir(tmp_path)
    assert load("fashion").protocol["counts"]["train"] == 10_000
    assert load("./fashion", test_fraction=0.4).event_shape == (1, 8, 8)


def test_black_and_white_pictures_are_told_about_binarize(tmp_path):
    for k in range(20):
        bits = np.random.default_rng(k).random((8, 8)) < 0.5
        Image.fromarray(bits).save(tmp_path / f"{k}.png")
    data = load(tmp_path, test_fraction=0.4)
    assert data.kind == "8-bit"
    assert "values are only 0 and 255" in data.protocol["notes"][0]
    binary = load(tmp_path, test_fraction=0.4, binarize="static")
    assert torch.equal(binary.train * 255, data.train)
    assert torch.equal(binary.test * 255, data.test)


def test_load_images_says_what_it_skips(folder):
    (folder / "broken.png").write_bytes(b"x")
    said = []
    images, names = load_images(folder, event_shape=(3, 16, 16), say=said.append)
    assert images.shape == (40, 3, 16, 16)
    assert len(names) == 40
    assert said[0] == "40 images enlarged to 16x16"
    assert said[-1].startswith("1 image skipped: broken.png: not a PNG")
    with pytest.warns(UserWarning) as warned:
        load_images(folder, event_shape=(1, 8, 8))
    assert "1 image skipped: broken.png" in str(warned[0].message)


def test_load_images_of_one_file(folder):
    path = next(folder.rglob("03.png"))
    images, names = load_images(path, event_shape=(1, 8, 8))
    assert names == ("03.png",)
    assert np.array_equal(images[0, 0], np.asarray(Image.open(path)))
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"03\.png: not a PNG"):
        load_images(path, event_shape=(1, 8, 8))


def test_a_model_of_vectors_refuses_pictures(folder):
    for source in (folder, "fashion", next(folder.rglob("*.png"))):
        with pytest.raises(DataError, match=r"vectors \[64\]; got images"):
            load_images(source, event_shape=(64,))


def test_clip_art_keeps_its_drawing(tmp_path):
    """Black and white drawings on transparent ground: over black, the black ones were all black."""
    for k in range(20):
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[2:6, 2 : 3 + k % 4] = 255 * (k % 2), 255 * (k % 2), 255 * (k % 2), 255
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    data = load(tmp_path, test_fraction=0.4)
    assert "10 images with transparency laid over white" in data.protocol["notes"]
    assert "10 images with transparency laid over black" in data.protocol["notes"]
    assert all(row.float().std() > 0 for row in torch.cat([data.train, data.test]))
    black = load(tmp_path, test_fraction=0.4, background="black")
    assert "10 images of one colour everywhere" in black.protocol["notes"]
    old = {k: v for k, v in black.protocol.items() if k not in ("background", "frames")}
    assert reload(old | {"rules": 2}).protocol["sha256"] == black.protocol["sha256"]
    assert reload(data.protocol).protocol == data.protocol
    for wrong in ("teal", "#12", ""):
        with pytest.raises(ValueError, match="background: expected auto, white, black or #rrggbb"):
            load(tmp_path, background=wrong)


def test_pictures_that_are_all_alike_are_said(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.png").parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 7).save(tmp_path / f"{k}.png", compress_level=k, dpi=(k + 1, 1))
    notes = load(tmp_path, test_fraction=0.5).protocol["notes"]
    assert any(note.startswith("all 4 examples are identical") for note in notes)


def test_frames_of_a_file_stay_on_one_side(tmp_path):
    for k in range(12):
        frames = [Image.new("L", (8, 8), 20 * k + j) for j in range(3)]
        frames[0].save(tmp_path / f"{k}.gif", save_all=True, append_images=frames[1:])
    first = load(tmp_path, test_fraction=0.4)
    assert len(first.train) + len(first.test) == 12
    assert "12 animations: first frames taken, 24 others left out" in first.protocol["notes"]
    data = load(tmp_path, test_fraction=0.4, frames="all")
    assert len(data.train) + len(data.test) == 36
    assert "12 animations: all 36 frames taken" in data.protocol["notes"]
    files = [{name.partition("[")[0] for name in s} for s in (data.train_names, data.test_names)]
    assert not files[0] & files[1]


@pytest.fixture
def cached(folder, tmp_path_factory, monkeypatch):
    """The folder of 40 pictures, with a cache of its own that takes folders of any size at once."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    monkeypatch.setattr("kullback.data.limits.CACHED_FILES", 1)
    monkeypatch.setattr("kullback.data.limits.SETTLED_SECONDS", -1.0)
    return place / "kullback" / "pictures"


def same(one, other):
    assert one.protocol == other.protocol
    assert torch.equal(one.train, other.train)
    assert torch.equal(one.test, other.test)
    assert one.train_names == other.train_names


def test_a_cached_folder_is_read_and_not_decoded(folder, cached, monkeypatch):
    (folder / "broken.png").write_bytes(b"x")
    settings = {"test_fraction": 0.3, "size": 6}
    before = load(folder, **settings)
    (entry,) = cached.glob("*.npy")
    with monkeypatch.context() as patch:
        patch.setattr(many_files, "_decode_file", None)  # called, it would raise
        same(load(folder, **settings), before)
    load(folder, test_fraction=0.3, size=8)  # other options are another entry
    assert len(list(cached.iterdir())) == 2
    content = entry.read_bytes()
    for damaged in (content[:-1], content[:40], b"", content[:200] + b"\0" + content[201:]):
        entry.write_bytes(damaged)
        same(load(folder, **settings), before)
        assert entry.read_bytes() == content


@pytest.mark.parametrize("change", ["content", "new", "gone", "same size and time"])
def test_a_changed_folder_is_decoded_again(folder, cached, monkeypatch, change):
    path = (
        next(folder.rglob("04.PNG")) if list(folder.rglob("04.PNG")) else next(folder.rglob("04.*"))
    )
    before, about = load(folder, test_fraction=0.3), path.stat()
    if change == "gone":
        path.unlink()
    elif change == "new":
        save(folder / "new.png", 99)
    elif change == "content":
        Image.new("L", (8, 8), 3).save(path)
    else:
        other = bytearray(path.read_bytes())
        path.write_bytes(other)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    monkeypatch.setattr("kullback.data.limits.SETTLED_SECONDS", 3600.0)
    truth = load(folder, test_fraction=0.3)  # too fresh for the cache
    monkeypatch.setattr("kullback.data.limits.SETTLED_SECONDS", -1.0)
    same(load(folder, test_fraction=0.3), truth)
    entries = len(list(cached.iterdir()))
    assert entries == 2
    assert (before.protocol == truth.protocol) == (change == "same size and time")


@pytest.mark.parametrize("what", ["grey and colour", "16 bits", "8 and 16 bits", "fewer levels"])
def test_an_entry_holds_what_was_decoded_also_where_that_is_changed_afterwards(
    folder, cached, monkeypatch, what
):
    for place in folder.rglob("*.*"):
        if what == "16 bits" or (what == "8 and 16 bits" and place.stem.endswith("3")):
            place.unlink()
            deep = np.full((8, 8), 257 * (1 + int(place.stem)), np.uint16)
            Image.fromarray(deep).save(place.with_suffix(".png"))
    if what == "grey and colour":
        Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "zz.png")
    settings = {"test_fraction": 0.3, "levels": 16 if what == "fewer levels" else "auto"}
    before = load(folder, **settings)
    assert len(list(cached.iterdir())) == 1
    monkeypatch.setattr(many_files, "_decode_file", None)  # called, it would raise
    same(load(folder, **settings), before)
    names = [*before.train_names, *before.test_names]
    rows = torch.cat([before.train, before.test])
    monkeypatch.undo()
    monkeypatch.setenv("KULLBACK_CACHE", "off")
    again = load(folder, **settings)
    assert [*again.train_names, *again.test_names] == names
    assert torch.equal(torch.cat([again.train, again.test]), rows)


def test_a_reading_that_fails_leaves_no_entry(folder, cached):
    with pytest.raises(DataError, match="different sizes"):
        Image.new("L", (9, 9)).save(folder / "zz.png")
        load(folder)
    assert not any(cached.iterdir())


def test_the_cache_keeps_to_its_limit_and_can_be_off(folder, cached, monkeypatch):
    monkeypatch.setenv("KULLBACK_CACHE", "off")
    load(folder, size=4)
    assert not cached.exists()
    monkeypatch.delenv("KULLBACK_CACHE")
    monkeypatch.setattr("kullback.data.limits.MAX_CACHE_BYTES", 12_000)
    for size in (4, 5, 6, 7):
        load(folder, size=size)
        assert sum(entry.stat().st_size for entry in cached.iterdir()) <= 12_000
    kept = sorted(cached.iterdir())
    assert kept
    monkeypatch.setattr("kullback.data.limits.MAX_CACHE_BYTES", 100)
    load(folder, size=8)  # larger than all of it: not kept, and nothing goes for it
    assert sorted(cached.iterdir()) == kept


def test_pixels_of_many_pictures_stand_in_one_array_in_their_order():
    """Grey ones, then one of colour, more than were expected; and more than memory holds."""
    rng = np.random.default_rng(0)
    parts = [
        rng.integers(0, 256, (n, c, 3, 2), dtype=np.uint8) for n, c in ((2, 1), (1, 3), (5, 1))
    ]
    for expected in (0, 3, 8, 20):
        stacked = many_files._Stacked(expected, coloured=False)
        for k, part in enumerate(parts):
            stacked.add(part)
            channels = 1 if k == 0 else 3
            truth = [np.broadcast_to(one, (len(one), channels, 3, 2)) for one in parts[: k + 1]]
            assert np.array_equal(stacked.values(), np.concatenate(truth))
    with pytest.raises(
        DataError, match=r"not enough memory for .* images of 3x2, which take .* GB"
    ):
        many_files._Stacked(10**17, coloured=False).add(parts[0])  # more than there are addresses


def test_a_link_to_itself_is_skipped_by_name(folder):
    """It cannot be asked whether it is a folder; the pictures beside it are read all the same."""
    (folder / "ring.png").symlink_to("ring.png")
    data = load(folder, test_fraction=0.3)
    (skipped,) = data.protocol["skipped"]["files"]
    assert skipped["name"] == "ring.png"
    assert len(data.train) + len(data.test) == 40


def test_a_link_to_a_folder_above_adds_no_pictures(folder):
    save(folder.parent / "beside.png", 9)
    (folder / "up").symlink_to("..")
    data = load(folder, test_fraction=0.3)
    assert len(data.train) + len(data.test) == 40


def test_pictures_of_other_kinds_and_folders_like_a_split_are_told(folder):
    (folder / "a.heic").write_bytes(b"x")
    (folder / "b.HEIC").write_bytes(b"x")
    (folder / "more.zip").write_bytes(b"x")
    (folder / "notes.txt").write_bytes(b"x")
    for number, name in enumerate(("Train", "val")):  # no split, since test/ is missing
        (folder / name).mkdir()
        save(folder / name / "new.png", 200 + number)
    notes = load(folder, test_fraction=0.3).protocol["notes"]
    assert (
        "left out, since files of these kinds are not read: 2 .heic, 1 .zip. Try: convert them to "
        "PNG by heif-convert (libheif), unpack the archives"
    ) in notes
    assert sum(note.startswith("Train/ and val/ read as one set") for note in notes) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [("x.heic", "convert them to PNG"), ("x.zip", "unpack the archives")],
)
def test_a_folder_of_other_kinds_says_what_to_do(tmp_path, name, hint):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=f"Try: {hint}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("x.zip", "unpack it"), ("x.parquet", "save it as .csv"), ("x.png", "folder")],
)
def test_a_file_of_another_kind_says_what_to_do(tmp_path, name, hint):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=f"Try: .*{hint}"):
        load(tmp_path / name)
