"""One picture at a time: depth, transparency, orientation, fitting, and damage of every kind."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kullback.core import DataError
from kullback.data.examples import Fitting, Reading
from kullback.data.pictures import decoding, fit_to, header_size, read_frames, read_picture

NOISE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(image, kind="PNG", size=None, **options):
    return read_picture(encode(image, kind, **options), size=size).pixels


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": 1})])
def test_lossless_formats_return_the_pixels(kind, options):
    assert np.array_equal(pixels_of(Image.fromarray(NOISE), kind, **options), NOISE)
    grey = pixels_of(Image.fromarray(NOISE[..., 0]), kind, **options)
    assert np.array_equal(grey, NOISE[..., 0])


def test_jpeg_is_close():
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    found = pixels_of(Image.fromarray(smooth), "JPEG", quality=95)
    assert found.shape == (64, 64)
    assert abs(found.astype(int) - smooth).max() <= 4


def test_modes_become_grey_or_colour():
    grey = NOISE[..., 0]
    assert np.array_equal(pixels_of(Image.fromarray(np.stack([grey] * 3, -1))), grey)
    bits = Image.fromarray(grey > 127)
    assert np.array_equal(pixels_of(bits), (grey > 127) * np.uint8(255))
    palette = Image.fromarray(NOISE).quantize(16)
    assert np.array_equal(pixels_of(palette), np.asarray(palette.convert("RGB")))
    assert pixels_of(Image.fromarray(NOISE).convert("CMYK"), "JPEG").shape == (6, 9, 3)


def test_sixteen_bits_are_scaled_not_clipped():
    """v/65535 becomes round(255 v/65535): 257 k gives exactly k."""
    wide = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    assert np.array_equal(pixels_of(Image.fromarray(wide)).ravel(), np.arange(256))


def test_transparency_is_laid_over_black():
    """α over black is round(value · α / 255), to Pillow's one level of rounding."""
    alpha = np.arange(54, dtype=np.uint8).reshape(6, 9) * 4
    rgba = np.dstack([NOISE, alpha])
    picture = read_picture(encode(Image.fromarray(rgba)), size=None)
    expected = NOISE * (alpha[..., None] / 255)
    assert picture.transparent
    assert abs(picture.pixels - expected).max() <= 1
    opaque = np.dstack([NOISE, np.full((6, 9), 255, np.uint8)])
    picture = read_picture(encode(Image.fromarray(opaque)), size=None)
    assert not picture.transparent
    assert np.array_equal(picture.pixels, NOISE)
    la = Image.merge("LA", (Image.new("L", (2, 2), 200), Image.new("L", (2, 2), 0)))
    assert np.array_equal(pixels_of(la), np.zeros((2, 2)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_obeyed(kind, orientation):
    """What is stored turned is read upright: the bright corner goes where the tag sends it."""
    stored = np.zeros((16, 32), np.uint8)
    stored[:8, :8] = 255  # the stored top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(stored), kind, exif=exif)
    corner = {1: "TL", 2: "TR", 3: "BR", 4: "BL", 5: "TL", 6: "TR", 7: "BR", 8: "BL"}[orientation]
    shape = (16, 32) if orientation < 5 else (32, 16)
    found = read_picture(data, size=None).pixels
    assert found.shape == header_size(data) == shape
    bright = found[:8] if corner[0] == "T" else found[-8:]
    bright = bright[:, :8] if corner[1] == "L" else bright[:, -8:]
    assert bright.mean() > 200
    assert found.mean() < 100


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_a_moving_picture(kind):
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    data = encode(first, kind, save_all=True, append_images=[second], lossless=True)
    assert read_picture(data, size=None).pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("shape", "size", "fit", "words"),
    [
        ((28, 28), (28, 28), "crop", ""),
        ((28, 28), (28, 28), "pad", ""),
        ((64, 64), (32, 32), "crop", "shrunk"),
        ((64, 64), (32, 32), "pad", "shrunk"),
        ((64, 96), (32, 32), "crop", "shrunk and centre-cropped"),
        ((64, 96), (32, 32), "pad", "shrunk and padded with black"),
        ((28, 28), (32, 32), "crop", "enlarged"),
        ((28, 28), (32, 32), "pad", "padded with black"),
        ((32, 40), (32, 32), "crop", "centre-cropped"),
        ((29, 28), (28, 28), "crop", "centre-cropped"),
        ((1, 5000), (64, 64), "crop", "enlarged and centre-cropped"),
        ((1, 5000), (64, 64), "pad", "shrunk and padded with black"),
    ],
)
def test_fit_says_what_it_did(shape, size, fit, words):
    image, said = fit_to(Image.new("L", (shape[1], shape[0]), 255), size, fit=fit)
    assert (image.height, image.width) == size
    assert said == words


def test_crop_and_pad_without_scaling_move_no_pixel():
    grey = NOISE[..., 0]
    cropped, _ = fit_to(Image.fromarray(grey), (6, 5), fit="crop")
    assert np.array_equal(np.asarray(cropped), grey[:, 2:7])
    padded, _ = fit_to(Image.fromarray(grey), (8, 11), fit="pad")
    assert np.array_equal(np.asarray(padded), np.pad(grey, 1))


def test_crop_keeps_the_middle():
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 255
    cropped, _ = fit_to(Image.fromarray(wide), (10, 10), fit="crop")
    assert np.asarray(cropped)[:, 1:-1].min() > 200


def test_a_large_jpeg_read_small_is_the_same_picture():
    """Decoding at a reduced scale stays within a few levels of decoding everything."""
    ramp = np.linspace(0, 255, 1024)
    smooth = ((ramp[:, None] + ramp[None]) / 2).astype(np.uint8)
    found = read_picture(encode(Image.fromarray(smooth), "JPEG", quality=95), size=(32, 32))
    expected = smooth.reshape(32, 32, 32, 32).mean((1, 3))
    assert abs(found.pixels - expected).max() <= 3
    assert found.fitted == "shrunk"


def test_colour_to_grey_is_said():
    data = encode(Image.fromarray(NOISE))
    picture = read_picture(data, size=None, channels="grey")
    assert picture.recoloured
    luma = NOISE @ [0.299, 0.587, 0.114]  # ITU-R 601
    assert abs(picture.pixels - luma).max() <= 1
    grey = encode(Image.fromarray(NOISE[..., 0]))
    assert not read_picture(grey, size=None, channels="grey").recoloured


def bomb():
    """A PNG that claims 60,000 x 60,000 pixels in a few bytes."""
    data = bytearray(encode(Image.new("1", (8, 8))))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"not a picture at all", "not a PNG"),
        (encode(Image.new("L", (4, 4)), "GIF"), "not a PNG"),
        (encode(Image.fromarray(NOISE))[:60], "damaged"),
        (encode(Image.new("L", (300, 300), 7), "JPEG")[:-200], "damaged"),
        (bomb(), "safety limit"),
    ],
)
def test_damage_has_a_reason(data, says):
    with pytest.raises(DataError, match=says):
        read_picture(data, size=(8, 8))


def test_the_milder_bomb_limit_counts_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(DataError, match="safety limit"):
        read_picture(encode(Image.fromarray(NOISE)), size=None)
    with pytest.raises(DataError, match="safety limit"):
        header_size(encode(Image.fromarray(NOISE)))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_random_damage_raises_nothing_else(kind):
    """Cut and scrambled bytes give pixels or a DataError, never another exception or a warning."""
    chance = random.Random(kind)
    exif = {} if kind == "BMP" else {"exif": Image.Exif()}
    data = encode(Image.fromarray(NOISE).resize((40, 30)), kind, **exif)
    refused = 0
    for _ in range(400):
        broken = bytearray(data[: chance.choice([len(data), chance.randrange(len(data))])])
        for _ in range(chance.randrange(4)):
            if broken:
                broken[chance.randrange(len(broken))] = chance.randrange(256)
        for read in (header_size, lambda b: read_picture(b, size=(8, 8))):
            try:
                read(bytes(broken))
            except DataError:
                refused += 1
    assert refused > 50


def drawn(colour, alpha=255):
    """A 6x6 RGBA clip art: a square of one colour in a transparent frame."""
    pixels = np.zeros((6, 6, 4), np.uint8)
    pixels[1:5, 1:5] = (*colour, alpha)
    return encode(Image.fromarray(pixels))


@pytest.mark.parametrize(
    ("colour", "background", "expected"),
    [
        ((0, 0, 0), "auto", "white"),  # was all black
        ((255, 255, 255), "auto", "black"),
        ((10, 20, 130), "auto", "white"),
        ((250, 240, 90), "auto", "black"),
        ((0, 0, 0), "black", "black"),
        ((255, 255, 255), "white", "white"),
        ((0, 0, 0), "#ff8000", "#ff8000"),
    ],
)
def test_transparency_is_laid_over_the_background_that_is_asked_for(colour, background, expected):
    how = Reading(background=background)
    (picture,) = read_frames(drawn(colour), Fitting(None, "crop", "auto"), how)
    assert picture.background == expected
    shown = {"white": (255,) * 3, "black": (0,) * 3, "#ff8000": (255, 128, 0)}[expected]
    pixels = np.broadcast_to(
        picture.pixels[..., None] if picture.pixels.ndim == 2 else picture.pixels, (6, 6, 3)
    )
    assert pixels[0, 0].tolist() == list(shown)
    assert pixels[2, 2].tolist() == list(colour)
    assert (len(np.unique(pixels)) > 1) == (colour != shown or background == "#ff8000")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_all_frames_of_a_file(kind):
    frames = [Image.new("RGB", (5, 4), (90 * k, 20, 200 - 60 * k)) for k in range(3)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    found = read_frames(data, Fitting(None, "crop", "auto"), Reading(frames="all"))
    assert len(found) == 3
    for frame, picture in zip(frames, found, strict=True):
        assert np.array_equal(picture.pixels, np.asarray(frame))
    (first,) = read_frames(data, Fitting(None, "crop", "auto"), Reading(frames="first"))
    assert np.array_equal(first.pixels, found[0].pixels)
    assert first.frames == 2


def test_frames_beyond_the_limit_and_of_other_sizes_are_refused(monkeypatch):
    pages = [Image.new("L", (5, 4)), Image.new("L", (4, 4))]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="frames of different sizes"):
        read_frames(data, Fitting(None, "crop", "auto"), Reading(frames="all"))
    assert len(read_frames(data, Fitting((4, 4), "crop", "auto"), Reading(frames="all"))) == 2
    monkeypatch.setattr("kullback.data.limits.MAX_FRAMES", 1)
    with pytest.raises(DataError, match="2 frames, more than the safety limit"):
        read_frames(data, Fitting((4, 4), "crop", "auto"), Reading(frames="all"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((4, 4), 0.5, np.float32), "floating-point"),
        (np.full((4, 4), 70_000, np.int32), "more than 16 bits"),
        (np.full((4, 4), -1, np.int32), "more than 16 bits"),
    ],
)
def test_tiff_of_values_that_are_no_levels_is_refused(values, says):
    with pytest.raises(DataError, match=says):
        read_frames(
            encode(Image.fromarray(values), "TIFF"),
            Fitting(None, "crop", "auto"),
            Reading(frames="first"),
        )


def test_grey_tiff_of_sixteen_bits_keeps_them():
    wide = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    data = encode(Image.fromarray(wide), "TIFF")
    (picture,) = read_frames(data, Fitting(None, "crop", "auto"), Reading(frames="first"))
    assert picture.pixels.dtype == np.uint16
    assert np.array_equal(picture.pixels, wide)


def readers_alone(patch):
    """Let Pillow's readers open every file."""
    patch.setattr("kullback.data.pictures.decoding.plain_image", lambda data, wanted: None)


def found(data, size=(5, 7), **options):
    """All that is said of one file, its pixels or why it has none."""
    fitting = Fitting(size, "crop", options.pop("channels", "auto"))
    try:
        read = read_frames(data, fitting, Reading(frames="first", background="auto"))
    except DataError as error:
        return str(error)
    return [(one.pixels.tobytes(), one.pixels.shape, one[1:]) for one in read]


GREY = NOISE[..., 0]
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
PLAIN = [
    (NOISE, "PNG", {}),
    (GREY, "PNG", {}),
    (NOISE, "PNG", {"compress_level": 0}),
    (NOISE, "PNG", {"optimize": True, "dpi": (72, 72)}),
    (np.stack([GREY] * 3, -1), "PNG", {}),
    (np.tile(NOISE, (60, 60, 1)), "PNG", {}),  # several IDAT
    (NOISE, "JPEG", {}),
    (GREY, "JPEG", {"quality": 20}),
    (NOISE, "JPEG", {"progressive": True, "subsampling": 0}),
    (NOISE, "JPEG", {"optimize": True, "comment": b"a word", "dpi": (72, 72)}),
    (np.tile(NOISE, (9, 9, 1)), "JPEG", {"restart_marker_blocks": 3}),
]
NOT_PLAIN = [
    (np.dstack([NOISE, GREY]), "PNG", {}),
    (GREY > 99, "PNG", {}),
    (NOISE, "PNG", {"transparency": (1, 2, 3)}),
    (GREY.astype(np.uint16) * 257, "PNG", {}),
    (
        NOISE,
        "PNG",
        {"exif": TURNED},
    ),
    (
        NOISE,
        "JPEG",
        {"exif": TURNED},
    ),
    (NOISE, "JPEG", {"icc_profile": b"a profile"}),
    (NOISE, "JPEG", {"inks": True}),
    (NOISE, "WEBP", {"lossless": True}),
    (NOISE, "BMP", {}),
]


@pytest.mark.parametrize("channels", ["auto", "grey", "rgb"])
@pytest.mark.parametrize(("pixels", "kind", "options"), PLAIN + NOT_PLAIN)
def test_a_file_without_extras_is_read_as_pillow_reads_it(
    monkeypatch, pixels, kind, options, channels
):
    plain = any(options is one[2] for one in PLAIN)
    image = Image.fromarray(pixels)
    data = encode(image.convert("CMYK") if options.get("inks") else image, kind, **options)
    sizes = (None, (5, 7), pixels.shape[:2])
    assert (decoding.plain_image(data, lambda *_: True) is not None) == plain
    here = [found(data, size, channels=channels) for size in sizes]
    readers_alone(monkeypatch)
    assert here == [found(data, size, channels=channels) for size in sizes]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damage_is_found_in_files_without_extras_too(monkeypatch, kind):
    """Cut files and changed bytes give the pixels or the reason that Pillow's readers give."""
    chance = random.Random(kind)
    whole = [encode(Image.fromarray(one), kind) for one in (np.tile(NOISE, (3, 3, 1)), GREY)]
    broken = [data[:place] for data in whole for place in range(0, len(data), 7)]
    for _ in range(600):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(1, 4)):  # early ones: headers and tables
            data[int(len(data) * chance.random() ** 2)] = chance.randrange(256)
        broken.append(bytes(data))
    place = 16 if kind == "PNG" else whole[0].index(b"\xff\xc0") + 5
    for sides in ((0, 5), (5, 0)):
        data = bytearray(whole[0])
        struct.pack_into(">II" if kind == "PNG" else ">HH", data, place, *sides)
        if kind == "PNG":
            struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
        broken.append(bytes(data))
    here = [found(data) for data in broken]
    assert sum(isinstance(one, list) for one in here) > 20
    readers_alone(monkeypatch)
    assert here == [found(data) for data in broken]
