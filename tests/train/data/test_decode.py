"""Every kind of image file becomes RGB, or an error that says why; broken ones are counted."""

import pickle
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from mtkernels.train.config import SettingError
from mtkernels.train.data import decode as module
from mtkernels.train.data.decode import (
    DecodeError,
    Quarantine,
    decode,
    decode_noting,
    in_threads,
    resize_crop,
)

from .images import BROKEN, JPEG, encoded, photo


@pytest.fixture(params=["simplejpeg", "Pillow"], autouse=True)
def decoder(request, monkeypatch):
    """Each test runs with simplejpeg, and as where it is not installed."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    module._simplejpeg.cache_clear()
    yield request.param
    module._simplejpeg.cache_clear()


@pytest.fixture
def file(tmp_path):
    def write(data: bytes, name: str = "image.jpg"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def _difference(image: np.ndarray, expected: np.ndarray) -> int:
    assert image.dtype == np.uint8 and image.shape == expected.shape and image.flags.writeable
    return np.abs(image.astype(int) - expected).max()


def test_a_jpeg_is_what_pillow_makes_of_it(file):
    path = file(JPEG)
    with Image.open(path) as image:
        assert _difference(decode(path), np.asarray(image.convert("RGB"))) == 0


@pytest.mark.parametrize("name", ["image.png", "image.jpg"])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "PPM"])
def test_other_formats_whatever_the_name_says(kind, name, file):
    assert _difference(decode(file(encoded(photo(), kind, lossless=True), name)), photo()) == 0


def test_greyscale(file):
    grey = photo()[:, :, 0]
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    assert _difference(decode(file(encoded(grey, "PNG"))), rgb) == 0
    assert _difference(decode(file(encoded(grey))), rgb) < 12


def test_sixteen_bits_keep_the_upper_eight(file):
    deep = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13
    image = decode(file(encoded(deep, "PNG"), "deep.png"))
    assert _difference(image, np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, axis=2)) == 0
    assert image.max() == 243  # and not clipped to white


def test_cmyk(file):
    path = file(encoded(Image.fromarray(photo()).convert("CMYK")))
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        assert _difference(decode(path), np.asarray(image.convert("RGB"))) <= 1
    assert _difference(decode(path), photo()) < 30


def test_palette_and_alpha(file):
    palette = Image.fromarray(photo()).quantize(256)
    expected = np.asarray(palette.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _difference(decode(file(encoded(palette, "PNG"))), expected) == 0
        assert (
            _difference(decode(file(encoded(palette, "PNG", transparency=bytes(range(256))))), expected) == 0
        )
    clear = np.concatenate([photo(), np.zeros((60, 80, 1), np.uint8)], axis=2)
    assert _difference(decode(file(encoded(clear, "PNG"))), photo()) == 0


def test_orientation_is_not_applied(file):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = file(encoded(photo(), exif=exif))
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    assert decode(path).shape == (60, 80, 3)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_errors(name, file):
    path = file(BROKEN[name], name)
    with pytest.raises(DecodeError) as caught:
        decode(path, 16)
    assert caught.value.path == path and caught.value.reason
    assert str(path) in str(caught.value) and " at 0x" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(
        caught.value
    )  # it comes from a worker process


def test_a_missing_file_says_so(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(DecodeError, match=r"link\.jpg: No such file"):
        decode(tmp_path / "link.jpg")


def test_pillow_mends_what_simplejpeg_refuses(file, decoder):
    at = JPEG.index(b"\xff\xc4")
    pixels, refusal = decode_noting(file(JPEG[:at] + bytes(5) + JPEG[at:]))
    assert _difference(pixels, decode(file(JPEG, "whole.jpg"))) == 0
    assert (refusal is None) == (decoder == "Pillow")
    assert decode_noting(file(encoded(photo(), "PNG")))[1] is None  # a PNG is no damage


@pytest.mark.parametrize(("least", "height", "width"), [(0, 600, 800), (301, 600, 800), (300, 300, 400)])
def test_scaled_decode_keeps_both_sides_at_least(least, height, width, file):
    image = decode(file(encoded(photo(600, 800))), least)
    assert image.shape == (height, width, 3)
    expected = Image.fromarray(photo(600, 800)).resize((width, height), Image.Resampling.BOX)
    assert _difference(image, np.asarray(expected)) < 20


def test_scaled_decode_of_a_small_image_is_the_image(file):
    assert decode(file(JPEG), 224).shape == (60, 80, 3)
    assert min(decode(file(encoded(photo(600, 800))), 70).shape[:2]) in range(70, 120)


def test_resize_crop():
    """As torchvision's Resize(16) and CenterCrop(14); it need not be installed."""
    resized = Image.fromarray(photo(60, 83)).resize((22, 16), Image.Resampling.BILINEAR)
    cropped = resize_crop(photo(60, 83), side=16, size=14)
    assert np.array_equal(cropped, np.asarray(resized)[1:15, 4:18])
    assert resize_crop(photo(83, 60), side=16, size=16).shape == (16, 16, 3)


def test_in_threads_keeps_the_order_and_stops_at_an_error():
    assert list(in_threads(lambda at: at * at, 2500, 2)) == [at * at for at in range(2500)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda at: 1 / (at - 3), 2500, 2))


def test_quarantine_counts_each_name_once_up_to_its_share(tmp_path):
    quarantine = Quarantine(2000, max_broken=0.01)
    for _ in range(3):
        for number in range(20):
            quarantine.add(f"{number:02}.jpg", "cut short")
    assert len(quarantine.broken) == 20
    quarantine.write(tmp_path / "broken.txt")
    assert (tmp_path / "broken.txt").read_text().splitlines() == quarantine.lines()
    assert quarantine.lines()[7] == "07.jpg: cut short"
    with pytest.raises(
        SettingError, match=r"21 of 2,000 images .* max_broken 0\.01 allows 20 .*: 00\.jpg: cut"
    ):
        quarantine.add("20.jpg", "empty")


def test_quarantine_of_a_small_data_set_allows_ten_and_zero_allows_none(tmp_path):
    assert Quarantine(50).allowed == 10
    Quarantine(50).write(tmp_path / "broken.txt")
    assert not (tmp_path / "broken.txt").exists()
    with pytest.raises(SettingError, match="1 of 50 images"):
        Quarantine(50, max_broken=0).add("a.jpg", "cut short")
    with pytest.raises(SettingError, match=r"max_broken must be between 0 and 1, got 1\.5"):
        Quarantine(50, max_broken=1.5)
