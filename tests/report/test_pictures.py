"""Pictures: every pixel where it belongs, levels exact, files never overwritten."""

import numpy as np
import pytest
import torch
from PIL import Image

from kullback.core import RunError
from kullback.report import pictures
from kullback.report.html import shrunk


def levels(*values):
    """One 1x1 grey image a value."""
    return torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, 1)


def test_grid_places_every_pixel():
    image = pictures.grid(levels(10, 20, 30, 40, 50), kind="8-bit", columns=3, gap=1)
    expected = [[10, 255, 20, 255, 30], [255] * 5, [40, 255, 50, 255, 255]]
    assert image.mode == "L"
    assert np.asarray(image).tolist() == expected


def test_grid_keeps_the_order_inside_an_image_and_of_colours():
    x = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).reshape(2, 3, 2, 2)
    pixels = np.asarray(pictures.grid(x, kind="8-bit", columns=2, gap=0))
    assert pixels.shape == (2, 4, 3)
    for image in range(2):
        for row in range(2):
            for column in range(2):
                assert pixels[row, 2 * image + column].tolist() == x[image, :, row, column].tolist()


def test_scale_repeats_pixels():
    x = torch.randint(256, (3, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    small = np.asarray(pictures.grid(x, kind="8-bit", gap=1))
    large = np.asarray(pictures.grid(x, kind="8-bit", gap=1, scale=3))
    assert (large == small.repeat(3, 0).repeat(3, 1)).all()


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (64, 8), (65, 9)])
def test_default_columns_are_the_root_rounded_up(n, columns):
    image = pictures.grid(torch.zeros(n, 1, 1, 1), kind="binary", gap=0)
    assert image.width == columns


def test_all_8_bit_levels_are_exact():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert np.asarray(pictures.grid(x, kind="8-bit")).flatten().tolist() == list(range(256))


def test_probabilities_round_to_the_nearest_level():
    x = torch.tensor([0.0, 0.25, 0.5, 1.0]).reshape(1, 1, 2, 2)
    assert np.asarray(pictures.grid(x, kind="binary")).tolist() == [[0, 64], [128, 255]]


def test_continuous_images_say_their_range():
    x = torch.tensor([-2.0, 0.0, 2.0, 6.0]).reshape(1, 1, 2, 2)
    image = pictures.grid(x, kind="continuous")
    assert np.asarray(image).tolist() == [[0, 64], [128, 255]]
    assert image.info["range"] == "black is -2, white is 6"


def test_a_constant_continuous_image_is_black():
    image = pictures.grid(torch.full((1, 1, 2, 2), 3.0), kind="continuous")
    assert np.asarray(image).max() == 0


def test_pairs_put_reconstructions_below():
    image = pictures.pairs(levels(1, 2, 3), levels(11, 12, 13), kind="8-bit", columns=2, gap=1)
    w = 255
    expected = [[1, w, 2], [w] * 3, [11, w, 12], [w] * 3, [w] * 3, [w] * 3]
    expected += [[3, w, w], [w] * 3, [13, w, w]]
    assert np.asarray(image).tolist() == expected


def test_pairs_of_continuous_images_share_one_range():
    image = pictures.pairs(
        torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 4.0), kind="continuous", gap=0
    )
    assert np.asarray(image).tolist() == [[0], [255]]


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (torch.zeros(3, 4), {"kind": "binary"}, "vectors have no picture"),
        (torch.zeros(2, 2, 4, 4), {"kind": "binary"}, r"C = 1 or 3"),
        (torch.zeros(0, 1, 4, 4), {"kind": "binary"}, r"\[N, C, H, W\]"),
        (torch.full((1, 1, 2, 2), 9.0), {"kind": "binary"}, r"binary values in \[0, 1\]; got"),
        (torch.full((1, 1, 2, 2), -1.0), {"kind": "8-bit"}, r"8-bit values in \[0, 255\]"),
        (torch.full((1, 1, 2, 2), torch.nan), {"kind": "continuous"}, "finite"),
        (torch.zeros(1, 1, 2, 2), {"kind": "grey"}, "one of binary, 8-bit, continuous"),
        (torch.zeros(1, 1, 2, 2), {"kind": "binary", "columns": 0}, "columns"),
        (torch.zeros(1, 1, 2, 2), {"kind": "binary", "gap": -1}, "gap"),
        (torch.zeros(1, 1, 2, 2), {"kind": "binary", "scale": 0}, "scale"),
        (torch.zeros(1, 1, 2, 2), {"kind": "binary", "scale": 1.5}, "scale"),
    ],
)
def test_grid_refuses_what_is_no_picture(images, options, words):
    with pytest.raises(ValueError, match=words):
        pictures.grid(images, **options)


def test_pairs_refuse_different_shapes():
    with pytest.raises(ValueError, match="reconstructions: expected the originals' shape"):
        pictures.pairs(torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4), kind="binary")


def test_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="images: expected Tensor; got list"):
        pictures.grid([1], kind="binary")
    with pytest.raises(TypeError, match="originals: expected Tensor; got list"):
        pictures.pairs([1], [1], kind="binary")


def test_save_writes_what_was_made_and_refuses_to_overwrite(tmp_path):
    x = torch.tensor([0.0, 8.0]).reshape(2, 1, 1, 1)
    first = pictures.grid(x, kind="continuous", gap=0)
    path = pictures.save(first, tmp_path / "a.png")
    with Image.open(path) as image:
        assert np.asarray(image).tolist() == [[0, 255]]
        assert image.text == {"range": "black is 0, white is 8"}
    before = path.read_bytes()
    with pytest.raises(RunError, match="exists already"):
        pictures.save(pictures.grid(levels(7), kind="8-bit"), path)
    assert path.read_bytes() == before
    pictures.save(pictures.grid(levels(7), kind="8-bit"), path, overwrite=True)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_save_says_what_the_disk_refuses(tmp_path):
    image = pictures.grid(levels(7), kind="8-bit")
    with pytest.raises(RunError, match="cannot be written"):
        pictures.save(image, tmp_path / "no such folder" / "a.png")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        pictures.save(image, tmp_path / "a.jpg")


def test_shrinking_averages_areas():
    x = torch.tensor([[0, 10], [20, 30]], dtype=torch.uint8).reshape(1, 2, 2, 1)
    assert shrunk(x, limit=1).flatten().tolist() == [15]
    assert shrunk(x, limit=2) is x
