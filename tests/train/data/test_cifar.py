"""CIFAR's files: both versions, unpacked and packed, give the same; damaged and hostile ones are refused."""

import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from mtkernels.train.config import SettingError
from mtkernels.train.data.cifar import cifar10, cifar100

from . import formats

VERSIONS = {
    "cifar10-python": (formats.write_cifar10_python, cifar10, "cifar-10-python.tar.gz"),
    "cifar10-binary": (formats.write_cifar10_binary, cifar10, "cifar-10-binary.tar.gz"),
    "cifar100-python": (formats.write_cifar100_python, cifar100, "cifar-100-python.tar.gz"),
    "cifar100-binary": (formats.write_cifar100_binary, cifar100, "cifar-100-binary.tar.gz"),
}


def check(data, digits):
    assert torch.equal(data.train.images, digits.train) and torch.equal(data.test.images, digits.test)
    assert torch.equal(data.train.labels, digits.train_labels)
    assert torch.equal(data.test.labels, digits.test_labels)
    assert data.train.images.dtype == torch.uint8 and data.train.labels.dtype == torch.int64
    assert data.class_names == tuple(formats.DIGITS) and data.levels == 255 and data.extra is None
    assert data.train.names[:3] == ("0_zero.png", "1_one.png", "2_two.png")
    assert data.train.names[123] == f"123_{formats.DIGITS[digits.train_labels[123]]}.png"
    assert len(set(data.train.names)) == len(data.train) == 200


@pytest.mark.parametrize("version", VERSIONS)
def test_folder_its_parent_and_archive_are_read_alike(version, tmp_path, digits):
    write, load, archive = VERSIONS[version]
    folder = write(tmp_path / "unpacked", digits)
    packed = formats.pack(folder, tmp_path / "packed" / archive)
    for root in (folder, folder.parent, packed, packed.parent):
        check(load(root), digits)
    assert os.listdir(packed.parent) == [archive]  # read without unpacking


def test_published_statistics(tmp_path, digits):
    data = cifar10(formats.write_cifar10_python(tmp_path, digits))
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2470, 0.2435, 0.2616)
    data = cifar100(formats.write_cifar100_python(tmp_path, digits))
    assert data.mean == (0.5071, 0.4865, 0.4409) and data.std == (0.2673, 0.2564, 0.2762)


@pytest.mark.parametrize("protocol", [2, 4])
def test_batches_pickled_by_python_3(protocol, tmp_path, digits):
    folder = formats.write_cifar10_python(tmp_path, digits)
    rows = np.frombuffer(digits.test.numpy().tobytes(), np.uint8).reshape(-1, 3072).copy()
    batch = {b"labels": digits.test_labels.tolist(), b"data": rows, b"filenames": [b"a.png"] * 60}
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    check(cifar10(folder), digits)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "function, arguments, asked",
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open({!r}, 'w')",), "builtins.eval"),
        (np.load, ("{}",), "numpy.load"),
    ],
)
def test_a_pickle_that_calls_anything_is_refused(function, arguments, asked, tmp_path, digits):
    folder, trace = formats.write_cifar10_python(tmp_path, digits), tmp_path / "trace"
    hostile = {b"labels": [], b"data": Call(function, *(text.format(str(trace)) for text in arguments))}
    for protocol in (2, 4):
        (folder / "data_batch_3").write_bytes(pickle.dumps(hostile, protocol=protocol))
        with pytest.raises(SettingError, match=rf"data_batch_3 asks for \S*{asked.split('.')[1]}, "):
            cifar10(folder)
    assert not trace.exists()


def test_a_pickle_reaches_no_codec_but_latin1(tmp_path, digits):
    import _codecs

    folder = formats.write_cifar10_python(tmp_path, digits)
    (folder / "data_batch_1").write_bytes(pickle.dumps(Call(_codecs.encode, "x", "utf-7"), protocol=2))
    with pytest.raises(SettingError, match="data_batch_1 is damaged or no pickle: encoding 'utf-7'"):
        cifar10(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": [1] * 59}, "test_batch must have one label for each image, got 60 and 59"),
        ({"labels": [10] * 60}, "test_batch: labels must be between 0 and 9, got 10"),
        ({"labels": [-1] * 60}, "test_batch: labels must be between 0 and 9, got -1"),
        ({"labels": "1" * 60}, "test_batch: labels must be a list of integers, got bytes"),
        (
            {"data": np.zeros((60, 3071), np.uint8)},
            r"data must be uint8 \[images, 3072\], got uint8 \[60, 3071\]",
        ),
        ({"data": np.zeros((60, 3072), np.int16)}, r"data must be uint8 \[images, 3072\], got int16"),
        ({"data": [1, 2]}, r"data must be uint8 \[images, 3072\], got <class 'list'>"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "test_batch holds no image"),
    ],
)
def test_wrong_batches_are_refused_by_name(change, words, tmp_path, digits):
    folder = formats.write_cifar10_python(tmp_path, digits)
    good = {"labels": digits.test_labels.tolist(), "data": digits.test.flatten(1).numpy()}
    formats.write_pickle(folder / "test_batch", good | change)
    with pytest.raises(SettingError, match=words):
        cifar10(folder)


@pytest.mark.parametrize("content", [b"", b"\x80", b"no pickle", pickle.dumps([1]), pickle.dumps({"x": 1})])
def test_what_is_no_batch_is_refused_by_name(content, tmp_path, digits):
    folder = formats.write_cifar10_python(tmp_path, digits)
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(SettingError, match=r"cifar-10-batches-py.test_batch "):
        cifar10(folder)


@pytest.mark.parametrize("version", VERSIONS)
def test_truncated_and_missing_files_are_refused_by_name(version, tmp_path, digits):
    write, load, archive = VERSIONS[version]
    folder = write(tmp_path / "unpacked", digits)
    packed = formats.pack(folder, tmp_path / "packed" / archive)
    packed.write_bytes(packed.read_bytes()[:-2000])
    with pytest.raises(SettingError, match=f"{archive} cannot be read: "):
        load(packed)
    test = next(path for path in folder.iterdir() if path.name.startswith("test"))
    whole = test.read_bytes()
    test.write_bytes(whole[:-7])
    with pytest.raises(SettingError, match=rf"{test.name} (is damaged|must be a multiple of 307\d bytes)"):
        load(folder)
    test.unlink()
    for root in (folder, formats.pack(folder, tmp_path / archive)):
        with pytest.raises(SettingError, match=f"{root} has no file {test.name}"):
            load(root)


def test_nothing_there(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            SettingError, match=f"{root} holds none of cifar-10-batches-py, cifar-10-python.tar.gz, "
        ):
            cifar10(root)


def test_links_in_an_archive_are_not_followed(tmp_path, digits):
    folder = formats.write_cifar10_binary(tmp_path / "unpacked", digits)
    (folder / "test_batch.bin").rename(tmp_path / "elsewhere")
    (folder / "test_batch.bin").symlink_to(tmp_path / "elsewhere")
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    with pytest.raises(SettingError, match=r"has no file test_batch.bin"):
        cifar10(archive)
