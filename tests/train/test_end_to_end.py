"""The digits, written out as other datasets are, train as well as the digits themselves; any arch and method runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtkernels.train.config import Config
from mtkernels.train.data.digits import digits
from mtkernels.train.run import run

from .data.formats import Images, write_cifar10_binary, write_cifar10_python, write_npz, write_svhn

# Enough for about 5 % of errors, in a few seconds.
PLAIN = Config(
    labels=200,
    steps=250,
    width=16,
    dropout=0.0,
    lr=0.2,
    batch_size=80,
    labeled_batch_size=40,
    eval_interval=0,
)
PLAIN = replace(PLAIN, consistency=10.0, consistency_rampup=100, weight_decay=5e-4, warp=0.3)


def blown_up() -> Images:
    """The digits as 32 x 32 pixels in three equal channels, in their order."""
    raw = digits()
    train, test = (
        (
            (part.images.double() * 255 / 16)
            .round()
            .to(torch.uint8)
            .repeat_interleave(4, 2)
            .repeat_interleave(4, 3)
        )
        for part in (raw.train, raw.test)
    )
    train, test = (images.expand(-1, 3, -1, -1).contiguous() for images in (train, test))
    return Images(train, raw.train.labels, test, raw.test.labels)


def write_folders(root: Path, images: Images) -> None:
    for part, pixels, labels in (
        ("train", images.train, images.train_labels),
        ("val", images.test, images.test_labels),
    ):
        for at, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            folder = root / part / f"digit {label}"
            folder.mkdir(parents=True, exist_ok=True)
            rgb = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
            rgb.save(folder / f"{at:04d}.jpg", quality=95)


WRITERS = {
    "cifar10": write_cifar10_python,
    "svhn": write_svhn,
    "npz": lambda root, images: (root.mkdir(), write_npz(root / "digits.npz", images)),
    "folder": write_folders,
}


@pytest.fixture(scope="module")
def plain_error(tmp_path_factory) -> float:
    return run(replace(PLAIN, out=tmp_path_factory.mktemp("plain")))[1]["teacher_error"]


@pytest.mark.parametrize("dataset", WRITERS)
def test_digits_in_a_real_format_reach_the_error_of_the_digits(dataset, plain_error, tmp_path):
    WRITERS[dataset](tmp_path / "data", blown_up())
    data = tmp_path / "data" / "digits.npz" if dataset == "npz" else tmp_path / "data"
    config = replace(PLAIN, dataset=dataset, data=data, image_size=8, out=tmp_path)
    folder, summary = run(config)
    assert plain_error < 12  # chance is 90
    assert summary["teacher_error"] < plain_error + 4
    assert (folder / "labels.txt").read_text().count("\n") == 200


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory) -> Config:
    """Few images in CIFAR-10's binary files, for runs of a few steps."""
    folder, images = tmp_path_factory.mktemp("cifar"), blown_up()
    few = Images(images.train[:200], images.train_labels[:200], images.test[:20], images.test_labels[:20])
    write_cifar10_binary(folder, few)
    return Config(dataset="cifar10", data=folder, labels=20, steps=2, batch_size=16, labeled_batch_size=4)


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "convnet13", "normalize": "image", "augment": "translate", "optimizer": "adam"},
        {"arch": "convnet13", "method": "pi-model", "shared_flip": True, "labeled_batch_size": None},
        {"arch": "wrn-28-1", "logit_distance_cost": 0.01, "teacher_init": "independent", "buffers": "keep"},
        {
            "arch": "cifar_shakeshake26",
            "image_size": 8,
            "batch_size": 6,
            "labeled_batch_size": 2,
            "normalize": "zca",
        },
        {"method": "supervised", "labels": "all", "exclude_unlabeled": True, "normalize": "channels"},
        {
            "unlabeled_from": "all",
            "labeled_batch_size": 1,
            "consistency_on_labeled": False,
            "consistency_trust": 0.5,
        },
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_combinations_train(small_cifar, tmp_path, changes):
    config = replace(small_cifar, augment="translate", noise=0.15, out=tmp_path)
    _, summary = run(replace(config, **changes))
    assert summary["steps_done"] == 2


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Two classes of JPEGs of several sizes, one of them broken, and images without a class."""
    root, random = tmp_path_factory.mktemp("photographs"), np.random.RandomState(0)
    for part, folder, count in (
        ("train", "dark", 8),
        ("train", "light", 8),
        ("train", "unlabeled", 12),
        ("val", "dark", 3),
        ("val", "light", 3),
    ):
        (root / part / folder).mkdir(parents=True)
        for at in range(count):
            low = 128 * (folder == "light" or (folder == "unlabeled" and at % 2))
            pixels = random.randint(low, low + 128, (40 + at, 64 - at, 3), np.uint8)
            Image.fromarray(pixels).save(root / part / folder / f"{at}.jpg")
    broken = root / "train" / "unlabeled" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    return root


def test_images_stream_from_disk(photographs, tmp_path):
    """The published ImageNet recipe on a folder of one's own: the same bits for any number of workers."""
    config = Config(dataset="imagenet", data=photographs, labels=8, epochs=2, steps=None, augment="imagenet")
    config = replace(
        config, image_size=24, batch_size=6, labeled_batch_size=2, normalize="channels", noise=0.0
    )
    config = replace(config, width=4, consistency_rampup=1, eval_interval=0, out=tmp_path)
    runs = [run(replace(config, workers=workers, name=f"workers-{workers}")) for workers in (0, 2)]
    weights = [(folder / "student.safetensors").read_bytes() for folder, _ in runs]
    assert weights[0] == weights[1]
    assert all(summary["steps_done"] == 2 * 5 for _, summary in runs)  # 12 + 8 unlabeled images, 4 a step
    assert "3.jpg" in (runs[0][0] / "broken.txt").read_text()
    labels = (runs[0][0] / "labels.txt").read_text()
    assert labels.count("dark\n") == labels.count("light\n") == 4
