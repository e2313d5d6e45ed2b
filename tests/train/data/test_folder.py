"""Class folders: what is found in them, what they become in memory, and a verification that is kept."""

import os
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mtkernels.train.config import SettingError
from mtkernels.train.data import folder, verify
from mtkernels.train.data.decode import Quarantine, decode, resize_crop
from mtkernels.train.data.folder import Files, PathList, class_folders
from mtkernels.train.data.raw import NO_LABEL
from mtkernels.train.data.verify import CACHE, verify_folder

from .images import BROKEN, JPEG, write_digits


@pytest.fixture
def root(tmp_path):
    return write_digits(tmp_path / "digits", unlabeled=2)


def test_files_and_labels(root):
    raw = class_folders(root)
    assert raw.class_names == ("digit0", "digit1", "digit2")
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [NO_LABEL] * 2
    assert raw.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert raw.train.names[:3] == ("digit0/00.jpg", "digit0/01.png", "digit0/02.jpg")
    assert raw.train.names[-1] == "unlabeled/01.png" and len(raw.train.names) == 14
    assert isinstance(raw.train.images, Files) and len(raw.train.images) == 14
    assert raw.train.images.paths[1] == root / "train" / "digit0" / "01.png"
    assert raw.train.images.decode(1, 0).shape == (24, 32, 3)
    assert raw.mean == (0.485, 0.456, 0.406) and raw.std == (0.229, 0.224, 0.225)


def test_nested_linked_upper_case_and_hidden_files(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.JPEG").write_bytes(JPEG)
    first = root / "train" / "digit0"
    (first / "more" / "still").mkdir(parents=True)
    (first / "more" / "still" / "a.Jpg").write_bytes(JPEG)
    (first / "linked").symlink_to(tmp_path / "elsewhere")
    (first / "more" / "up").symlink_to(root / "train" / "digit0")  # must not be followed for ever
    for name in (".hidden.jpg", "notes.txt"):
        (first / name).write_bytes(JPEG)
    (root / "train" / ".cache").mkdir()
    (root / "train" / "README.md").write_text("ours")
    names = class_folders(root).train.names
    assert [name for name in names if name.startswith("digit0")] == [
        *(f"digit0/0{number}" for number in ("0.jpg", "1.png", "2.jpg", "3.png")),
        "digit0/linked/z.JPEG",
        "digit0/more/still/a.Jpg",
    ]
    assert class_folders(root).class_names == ("digit0", "digit1", "digit2")


def test_other_names_of_the_parts(root):
    (root / "train").rename(root / "a")
    (root / "val").rename(root / "b")
    assert len(class_folders(root, train="a", test="b").train) == 14
    with pytest.raises(SettingError, match=re.escape(str(root / "train"))):
        class_folders(root)


def test_layouts_that_cannot_be_used(root):
    (root / "val" / "zebra").mkdir()
    with pytest.raises(SettingError, match=r"val/zebra is of no class: .* no folder 'zebra'"):
        class_folders(root)
    (root / "val" / "zebra").rename(root / "train" / "empty")
    with pytest.raises(SettingError, match="train/empty has no images"):
        class_folders(root)
    (root / "train" / "empty").rmdir()
    (root / "train" / "loose.png").write_bytes(JPEG)
    with pytest.raises(SettingError, match=r"loose\.png is in no class folder.* train/unlabeled/"):
        class_folders(root)


def test_no_classes_and_no_test_images(tmp_path):
    (tmp_path / "train" / "unlabeled").mkdir(parents=True)
    (tmp_path / "train" / "unlabeled" / "a.jpg").write_bytes(JPEG)
    (tmp_path / "val").mkdir()
    with pytest.raises(SettingError, match="train has no class folders"):
        class_folders(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "cat" / "a.jpg").write_bytes(JPEG)
    with pytest.raises(SettingError, match="val has no images"):
        class_folders(tmp_path)


def test_in_memory(root):
    raw = class_folders(root, image_size=16)
    assert raw.train.images.shape == (14, 3, 16, 16) and raw.train.images.dtype == torch.uint8
    assert raw.test.images.shape == (6, 3, 16, 16) and raw.train.labels.tolist()[-3:] == [2, -1, -1]
    for at in (0, 1, 13):
        path = root / "train" / raw.train.names[at]
        with Image.open(path) as image:
            expected = image.convert("RGB").resize((21, 16), Image.Resampling.BILINEAR).crop((2, 0, 18, 16))
        assert np.array_equal(raw.train.images[at].permute(1, 2, 0), np.asarray(expected))
    pixels = raw.train.images.double() / 255
    assert torch.allclose(torch.tensor(raw.mean).double(), pixels.mean((0, 2, 3)))
    assert torch.allclose(torch.tensor(raw.std).double(), pixels.std((0, 2, 3), correction=0))
    assert isinstance(class_folders(root, image_size=16, in_memory=False).train.images, Files)
    with pytest.raises(SettingError, match="in_memory needs an image_size"):
        class_folders(root, in_memory=True)


def test_too_many_for_memory_stay_on_disk_unless_asked(root, monkeypatch):
    monkeypatch.setattr(folder, "_MOST_BYTES", 20 * 16 * 16 * 3 - 1)
    assert isinstance(class_folders(root, image_size=16).train.images, Files)
    assert isinstance(class_folders(root, image_size=16, in_memory=True).train.images, torch.Tensor)
    monkeypatch.setattr(folder, "_MOST_BYTES", 20 * 16 * 16 * 3)
    assert isinstance(class_folders(root, image_size=16).train.images, torch.Tensor)


def test_broken_images_are_left_out_of_memory_and_named(root):
    sound = class_folders(root, image_size=16)
    for name, data in BROKEN.items():
        (root / "train" / "digit1" / name).write_bytes(data)
    (root / "val" / "digit0" / "gone.jpg").symlink_to(root / "gone.jpg")
    with pytest.warns(UserWarning, match=r"7 broken images are left out: .*gone\.jpg: No such file"):
        raw = class_folders(root, image_size=16)
    for part in ("train", "test"):
        one, two = getattr(sound, part), getattr(raw, part)
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
        assert one.names == two.names
    quarantine = Quarantine()
    class_folders(root, image_size=16, quarantine=quarantine)
    assert quarantine.images == 27 and len(quarantine.broken) == 7
    with pytest.raises(SettingError, match="max_broken 0 allows 0"):
        class_folders(root, image_size=16, quarantine=Quarantine(max_broken=0))


def test_path_list_is_a_sequence_of_paths_and_small(tmp_path):
    names = ["a/1.jpg", "b/ü.jpg", "c/" + os.fsdecode(b"\xff.jpg")]
    paths = PathList(tmp_path, names)
    assert list(paths) == [tmp_path / name for name in names] and len(paths) == 3
    assert paths[-1] == tmp_path / names[2] and paths[1:] == [tmp_path / name for name in names[1:]]
    with pytest.raises(IndexError):
        paths[3]
    many = PathList(tmp_path, [f"n01440764/n01440764_{number}.JPEG" for number in range(1000)])
    assert len(pickle.dumps(many)) < 50_000


def test_verify_lists_what_is_broken_and_keeps_it(root, monkeypatch):
    (root / "train" / "digit1" / "cut.jpg").write_bytes(BROKEN["cut.jpg"])
    at = JPEG.index(b"\xff\xc4")
    (root / "val" / "digit2" / "odd.jpg").write_bytes(JPEG[:at] + bytes(5) + JPEG[at:])
    calls = []
    report = verify_folder(root, workers=2, progress=lambda done, images: calls.append((done, images)))
    assert calls == [(done, 22) for done in range(1, 23)]
    assert (report.classes, report.train, report.unlabeled, report.test) == (3, 13, 2, 7)
    assert [name for name, _ in report.broken] == ["train/digit1/cut.jpg"]
    assert report.shorter_side == (24, 24, 60)
    lines = report.lines()
    assert "3 classes, 13 training images, 2 unlabeled, 7 test images; shorter side 24 to 60" in lines[0]
    assert lines[1] == "1 broken:" and lines[2].startswith("  train/digit1/cut.jpg: ")
    if report.mended:  # with simplejpeg alone
        assert lines[3:5] == [
            "1 damaged, and decoded by Pillow:",
            f"  val/digit2/odd.jpg: {report.mended[0][1]}",
        ]

    monkeypatch.setattr(verify, "decode_noting", None)  # a second time decodes nothing
    assert verify_folder(root) == report
    for again in (lambda: verify_folder(root, again=True), lambda: _touched(root)):
        with pytest.raises(TypeError):
            again()
    (root / CACHE).write_text("[]")
    with pytest.raises(TypeError):
        verify_folder(root)


def _touched(root):
    os.utime(root / "train" / "digit0" / "00.jpg", ns=(1, 1))
    return verify_folder(root)


def test_verify_of_nothing_but_broken_images(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        (tmp_path / part / "cat" / "zero.jpg").write_bytes(b"")
    with pytest.raises(SettingError, match=r"all 2 images of .* the first: train/cat/zero\.jpg: empty file"):
        verify_folder(tmp_path)


def test_verify_where_its_findings_cannot_be_kept(root, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(verify, "write_json", refuse)  # root may write anywhere, so permissions would not do
    report = verify_folder(root)
    assert not report.kept and "could not be written" in report.lines()[-1]
    assert not (root / CACHE).exists()


def test_decoding_for_memory_may_be_scaled(root):
    """Large JPEGs: the pixels stay those of a decode in full, but for rounding."""
    large = Image.open(root / "train" / "digit0" / "00.jpg").resize((640, 480), Image.Resampling.BICUBIC)
    large.save(root / "train" / "digit0" / "00.jpg", quality=95)
    loaded = class_folders(root, image_size=16).train.images[0].permute(1, 2, 0).int()
    exact = resize_crop(decode(root / "train" / "digit0" / "00.jpg"), side=16, size=16)
    assert (loaded - torch.from_numpy(exact).int()).abs().max() <= 24
