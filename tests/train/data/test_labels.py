"""Label files: what is written reads back; each wrong line is refused with its number and value."""

import pytest
import torch

from mtkernels.train.config import SettingError
from mtkernels.train.data.cifar import cifar10
from mtkernels.train.data.labels import image_names, read_label_file, write_label_file
from mtkernels.train.data.raw import NO_LABEL, ImageSet
from mtkernels.train.data.split import choose_labels

from . import formats

NAMES = ("cat/0_cat.png", "dog/1_dog.png", "my dog 2.png", "red car/3 x.png", "4.png")
CLASSES = ("cat", "dog", "car", "red car")


def write(tmp_path, text):
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_label_their_images_and_the_rest_have_none(tmp_path):
    path = write(tmp_path, "1_dog.png dog\n\nsome/where/0_cat.png cat\r\nmy dog 2.png dog\n3 x.png red car\n")
    assert read_label_file(path, NAMES, CLASSES).tolist() == [0, 1, 1, 3, NO_LABEL]


def test_round_trip_of_a_split(tmp_path, digits):
    data = cifar10(formats.write_cifar10_python(tmp_path, digits))
    names = image_names(data.train)
    labels = choose_labels(data.train.labels, 30, seed=3)
    write_label_file(tmp_path / "labels.txt", labels, names, data.class_names)
    lines = (tmp_path / "labels.txt").read_text().splitlines()
    assert len(lines) == 30 and all(
        line.split(" ")[0].endswith(f"_{line.split(' ')[1]}.png") for line in lines
    )
    assert torch.equal(read_label_file(tmp_path / "labels.txt", names, data.class_names), labels)


def test_round_trip_with_spaces(tmp_path):
    labels = torch.tensor([0, NO_LABEL, 2, 3, 1])
    write_label_file(tmp_path / "labels.txt", labels, NAMES, CLASSES)
    assert torch.equal(read_label_file(tmp_path / "labels.txt", NAMES, CLASSES), labels)


def test_positions_serve_as_names(tmp_path):
    names = image_names(ImageSet(torch.zeros(12, 1, 2, 2), torch.zeros(12, dtype=torch.int64)))
    labels = read_label_file(write(tmp_path, "11 dog\n0 cat\n"), names, CLASSES)
    assert labels.tolist() == [0] + [NO_LABEL] * 10 + [1]
    assert image_names(ImageSet(torch.zeros(1), torch.zeros(1), ("a.png",))) == ("a.png",)


@pytest.mark.parametrize(
    "text, words",
    [
        ("4.png cat\n5.png dog\n", "line 2: no training image is called '5.png'"),
        ("4.png bird\n", "line 1: 'bird' is no class of this dataset"),
        ("4.png cat\n\n4.png cat\n", "line 3: 4.png is also on line 1"),
        ("4.png cat\na/4.png dog\n", "line 2: 4.png is also on line 1"),
        ("4.png\n", "line 1 must be `filename class`, got '4.png'"),
        ("\n", "labels no image"),
        ("", "labels no image"),
    ],
)
def test_wrong_lines_are_refused(text, words, tmp_path):
    with pytest.raises(SettingError, match=f"labels.txt,? {words}"):
        read_label_file(write(tmp_path, text), NAMES, CLASSES)


def test_a_name_of_two_images_is_refused_only_where_it_is_used(tmp_path):
    names = ("a/1.png", "b/1.png", "b/2.png")
    assert read_label_file(write(tmp_path, "2.png cat\n"), names, CLASSES).tolist() == [-1, -1, 0]
    with pytest.raises(SettingError, match=r"line 1: 2 training images are called '1\.png'"):
        read_label_file(write(tmp_path, "1.png cat\n"), names, CLASSES)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(SettingError, match=r"label file .*absent\.txt cannot be read"):
        read_label_file(tmp_path / "absent.txt", NAMES, CLASSES)
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match=r"labels.txt cannot be read"):
        read_label_file(tmp_path / "labels.txt", NAMES, CLASSES)
