"""SVHN's MATLAB files: images the right way round, label 10 as the digit 0, damaged files refused by name."""

import numpy as np
import pytest
import torch

from mtkernels.train.config import SettingError
from mtkernels.train.data.svhn import svhn

from . import formats


def test_round_trip(tmp_path, digits):
    data = svhn(formats.write_svhn(tmp_path, digits))
    assert torch.equal(data.train.images, digits.train) and torch.equal(data.test.images, digits.test)
    assert torch.equal(data.train.labels, digits.train_labels) and (data.train.labels == 0).any()
    assert torch.equal(data.test.labels, digits.test_labels)
    assert data.train.images.is_contiguous() and data.train.labels.dtype == torch.int64
    assert data.class_names == tuple("0123456789") and data.extra is None and data.train.names is None
    assert data.mean == (0.4377, 0.4438, 0.4728) and data.std == (0.1980, 0.2010, 0.1970)


def test_extra(tmp_path, digits):
    root = formats.write_svhn(tmp_path, digits, extra=formats.digit_images(300, 0))
    data = svhn(root, extra=True)
    assert torch.equal(data.extra.images[:200], digits.train) and len(data.extra) == 300
    (root / "extra_32x32.mat").unlink()
    assert svhn(root).extra is None
    with pytest.raises(SettingError, match=r"extra_32x32.mat does not exist"):
        svhn(root, extra=True)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"y": np.ones((59, 1), np.uint8)}, "must have one label for each image, got 60 and 59"),
        ({"y": np.full((60, 1), 11, np.uint8)}, "labels must be between 1 and 10, got 11"),
        ({"y": np.zeros((60, 1), np.uint8)}, "labels must be between 1 and 10, got 0"),
        ({"X": np.zeros((32, 32, 3, 60))}, r"X must be uint8 \[32, 32, 3, N\], got float64"),
        ({"X": np.zeros((60, 3, 32, 32), np.uint8)}, r"X must be .* got uint8 \[60, 3, 32, 32\]"),
        ({"X": None}, "has no array X"),
    ],
)
def test_wrong_arrays_are_refused(change, words, tmp_path, digits):
    from scipy.io import savemat

    root = formats.write_svhn(tmp_path, digits)
    good = {"X": np.zeros((32, 32, 3, 60), np.uint8), "y": np.ones((60, 1), np.uint8)}
    arrays = {name: value for name, value in (good | change).items() if value is not None}
    savemat(root / "test_32x32.mat", arrays)
    with pytest.raises(SettingError, match=f"test_32x32.mat.* {words}"):
        svhn(root)


@pytest.mark.parametrize("keep", [0, 100, 1000, -50])
def test_a_truncated_file_is_refused(keep, tmp_path, digits):
    path = formats.write_svhn(tmp_path, digits) / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SettingError, match=r"train_32x32.mat is damaged or no MATLAB 5 file"):
        svhn(tmp_path)
