"""A user's .npz: the three layouts, one file or two, computed statistics, and what is refused."""

import numpy as np
import pytest
import torch

from mtkernels.train.config import SettingError
from mtkernels.train.data.npz import npz
from mtkernels.train.data.raw import channel_statistics

from . import formats


def test_one_file(tmp_path, digits):
    data = npz(formats.write_npz(tmp_path / "digits.npz", digits))
    assert torch.equal(data.train.images, digits.train) and torch.equal(data.test.images, digits.test)
    assert data.train.images.is_contiguous() and data.train.images.dtype == torch.uint8
    assert torch.equal(data.train.labels, digits.train_labels)
    assert torch.equal(data.test.labels, digits.test_labels)
    assert data.class_names == tuple(formats.DIGITS) and data.train.names is None


@pytest.mark.parametrize(
    "layout, shape",
    [
        (lambda images: images[:, 0], (1, 32, 32)),
        (lambda images: images, (3, 32, 32)),
        (lambda images: images.transpose(0, 2, 3, 1), (3, 32, 32)),
        (lambda images: images[:, :1], (1, 32, 32)),
    ],
    ids=["NHW", "NCHW", "NHWC", "N1HW"],
)
def test_folder_and_layouts(layout, shape, tmp_path, digits):
    labels = digits.train_labels.numpy().astype(np.int32)
    labels[7] = -1
    np.savez(tmp_path / "train.npz", images=layout(digits.train.numpy()), labels=labels)
    np.savez_compressed(
        tmp_path / "test.npz", images=layout(digits.test.numpy()), labels=digits.test_labels.numpy()
    )
    data = npz(tmp_path)
    assert torch.equal(data.train.images, digits.train[:, : shape[0]])
    assert torch.equal(data.test.images, digits.test[:, : shape[0]])
    assert data.train.labels.tolist() == labels.tolist() and data.train.labels.dtype == torch.int64
    assert data.class_names == tuple("0123456789")


def test_moments_are_those_of_the_pixels(digits):
    mean, std = channel_statistics(digits.train)
    pixels = digits.train.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-12)
    assert channel_statistics(torch.full((5, 1, 4, 4), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"train_images": np.zeros((9, 3, 32, 3), np.uint8)}, "either its second or its last dimension"),
        ({"train_images": np.zeros((9, 32, 32, 2), np.uint8)}, "either its second or its last dimension"),
        ({"train_images": np.zeros((9, 32, 32, 3))}, "train_images must be uint8 .* got float64"),
        (
            {"test_images": np.zeros((9, 3072), np.uint8)},
            r"test_images must be uint8 .* got uint8 \[9, 3072\]",
        ),
        ({"train_images": np.zeros((0, 32, 32, 3), np.uint8)}, "train_images must be"),
        ({"test_images": np.zeros((60, 28, 28), np.uint8)}, r"got \[3, 32, 32\] and \[1, 28, 28\]"),
        (
            {"train_labels": np.zeros(199, int)},
            r"train_labels must be as many as the images \(200\), got 199",
        ),
        ({"train_labels": np.zeros(200)}, "train_labels must be integers .* got float64"),
        ({"train_labels": np.zeros(0, int), "class_names": None}, r"train_labels must be integers .* \[0\]"),
        ({"train_labels": np.full(200, 10)}, "train_labels must be between -1 and 9, got 10"),
        ({"train_labels": np.full(200, -2)}, "train_labels must be between -1 and 9, got -2"),
        ({"test_labels": np.full(60, -1)}, "test_labels must be between 0 and 9, got -1"),
        ({"test_labels": None}, "has no array test_labels, only train_images"),
        ({"class_names": np.array(["a", "a"])}, "class_names must be different strings"),
        ({"class_names": np.arange(10)}, "class_names must be different strings"),
        ({"class_names": np.array([{}], object)}, "is no .npz of plain arrays"),
    ],
)
def test_wrong_arrays_are_refused(change, words, tmp_path, digits):
    path = formats.write_npz(tmp_path / "digits.npz", digits)
    with np.load(path) as file:
        arrays = dict(file) | change
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(SettingError, match=f"digits.npz.*{words}"):
        npz(path)


def test_files_that_are_missing_or_no_npz(tmp_path, digits):
    with pytest.raises(SettingError, match=r"absent.npz does not exist"):
        npz(tmp_path / "absent.npz")
    with pytest.raises(SettingError, match=r"train.npz does not exist"):
        npz(tmp_path)
    path = formats.write_npz(tmp_path / "digits.npz", digits)
    whole = path.read_bytes()
    for content in (b"", b"words", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(SettingError, match=r"digits.npz is no .npz of plain arrays"):
            npz(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(SettingError, match=r"it is one .npy array"):
        npz(tmp_path / "one.npy")
