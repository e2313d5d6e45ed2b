"""A run's folder is enough to use its networks: raw images give the error that the run reported."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from mtkernels.train.config import Config
from mtkernels.train.data import NO_LABEL, load_dataset
from mtkernels.train.data.cifar import cifar10
from mtkernels.train.data.digits import digits
from mtkernels.train.folder import load_model, load_pixels
from mtkernels.train.run import run

from .data.formats import digit_images, write_cifar10_python


@torch.no_grad()
def error(folder, images, labels):
    assert images.dtype == torch.uint8
    wrong = load_model(folder)(load_pixels(folder)(images)).argmax(1) != labels
    return 100 * wrong.double().mean().item()


@pytest.mark.parametrize(
    "changes",
    [
        *({"normalize": normalize} for normalize in ("none", "channels", "image", "gcn-zca", "zca")),
        {"image_size": 12},
        {"image_size": 6, "normalize": "gcn-zca"},
    ],
    ids=str,
)
def test_raw_images_give_the_reported_error(small, tmp_path, changes):
    learning = replace(
        small, steps=40, eval_interval=0, labels=200, width=16, lr=0.2, dropout=0.0, ema_decay=0.8
    )
    folder, summary = run(replace(learning, out=tmp_path, **changes))
    test = digits().test
    assert summary["teacher_error"] < 80  # guesses are wrong nine times in ten
    assert error(folder, test.images, test.labels) == pytest.approx(summary["teacher_error"], abs=1e-9)
    described = json.loads((folder / "dataset.json").read_text())
    kind = changes.get("normalize")
    assert described["whitening"] == (kind if kind in ("zca", "gcn-zca") else None)
    assert (folder / "zca.npz").exists() == (described["whitening"] is not None)
    assert described["levels"] == 16 and described["channels"] == 1


def test_whitened_without_the_data_and_written_by_the_run_alone(small, tmp_path):
    data = tmp_path / "cifar"
    write_cifar10_python(data, digit_images())
    before = sorted(data.rglob("*"))
    config = Config(dataset="cifar10", data=data, image_size=8, normalize="gcn-zca", out=tmp_path / "runs")
    settings = {"steps": 6, "eval_interval": 0, "width": 4, "batch_size": 30, "labeled_batch_size": 10}
    config = replace(config, labels=20, **settings)
    test = cifar10(data).test
    assert (load_dataset(config).pool.labels == NO_LABEL).any() and sorted(data.rglob("*")) == before
    folder, summary = run(config)
    assert len(list(data.glob("zca-*.npz"))) == 1 and len(list(data.rglob("*"))) == len(before) + 1
    shutil.rmtree(data)
    assert error(folder, test.images, test.labels) == pytest.approx(summary["teacher_error"], abs=1e-9)
