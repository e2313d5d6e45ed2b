"""The benches of a training step, of the training beside a plain loop, and of the loader run, on little."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bench import plain_loop, train_step, training
from mtkernels.train.presets import PRESETS

SMALL = {"arch": "convnet", "width": 4, "batch_size": 32, "labeled_batch_size": 8}


@pytest.fixture(params=["cifar10-1000-shakeshake-1gpu", "svhn-500-mean-teacher"])
def config(request):
    return train_step.setting(request.param, **SMALL, labels=20)


def test_parts_of_a_step(config):
    trainer = train_step.Trainer(config)
    seconds = trainer.parts(steps=3)
    assert list(seconds) == list(train_step.PARTS)
    assert all(len(times) == 3 and min(times) > 0 for times in seconds.values())
    cells = train_step.line(config, seconds)
    assert len(cells) == len(train_step.HEADER) and cells[:2] == ["convnet", "32"] and cells[-1][-1] == "%"
    before = trainer.steps
    assert 0 < trainer.seconds(2) < 60 and trainer.steps == before + 2 + trainer.warm
    assert trainer.method.ema.update.__self__ is trainer.method.ema  # no longer watched
    seen = trainer.profiled(1)
    assert any(event.key.endswith("convolution_backward") for event in seen.key_averages())
    assert train_step.gpu_work(seen, 1) == (0.0, 0.0)


def test_few_large_images():
    config = train_step.setting("imagenet-10percent-resnext152-1gpu:convnet13", width=4)
    trainer = train_step.Trainer(train_step.resized(config, 4))
    assert trainer.feed.batch(0).views[0].shape == (4, 3, 224, 224)


def test_the_share_outside_the_network():
    seconds = dict.fromkeys(train_step.PARTS, 1.0)
    assert train_step.outside(seconds) == pytest.approx(5 / 8)
    assert train_step.outside(seconds | {"backward": 993.0}) == pytest.approx(0.005)


def test_a_setting_by_preset_and_network():
    config = train_step.setting("cifar10-4000-shakeshake-1gpu:wrn-28-2", precision="bf16")
    assert (config.arch, config.batch_size, config.precision) == ("wrn-28-2", 128, "bf16")
    config.validate()
    smaller = train_step.resized(config, 32)
    assert (smaller.batch_size, smaller.labeled_batch_size) == (32, 7)
    imagenet = train_step.setting("imagenet-10percent-resnext152-1gpu")
    assert imagenet.image_size == 224 and imagenet.arch == "resnext152"
    assert train_step.setting("cifar10-4000-mean-teacher").normalize == "channels"


@pytest.mark.parametrize("workers", [0, 1])
def test_both_loops_train_on_the_same(config, workers):
    plain, ours = training.compare(config, steps=1, rounds=2, workers=workers)
    assert len(plain) == len(ours) == 2 and min(plain + ours) > 0
    cells = training.line(config, ([10.0, 20.0], [20.0, 80.0]))
    assert cells == ["convnet", "32", "15", "50", "3.00x"]
    table = train_step.table(training.HEADER, [cells])
    assert table.splitlines()[2] == "| convnet | 32 | 15 | 50 | 3.00x |"


def test_the_plain_loop_learns_and_averages(config):
    config = replace(config, lr=0.01, consistency=1.0, normalize="channels", noise=0.0, ema_decay=0.5)
    trainer = train_step.Trainer(config)
    images, labels = trainer.data.pool.images, trainer.data.pool.labels
    images.copy_((labels.clamp(min=0) * 25)[:, None, None, None].expand_as(images))
    plain = training.plain_loop(trainer, 0)
    losses = []
    with plain.loading():
        for _ in range(40):
            before = [weight.clone() for weight in plain.teacher.parameters()]
            plain.step()
            losses.append(plain.loss)
    pairs = zip(plain.teacher.parameters(), before, plain.student.parameters(), strict=True)
    for teacher, old, student in pairs:
        torch.testing.assert_close(teacher, (old + student) / 2)
    assert losses[-1] < losses[9] and not any(weight.requires_grad for weight in plain.teacher.parameters())


def test_plain_views_are_the_policys():
    """Without torchvision or with it: every view is one of the 81 shifts of the padded image, or its mirror image."""
    config = train_step.setting("cifar10-4000-shakeshake-1gpu")
    transform = plain_loop.transform_of(config, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pixels = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8)
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="symmetric")
    crops = np.lib.stride_tricks.sliding_window_view(padded, (32, 32), axis=(0, 1)).reshape(81, 3, 32, 32)
    shifts = set()
    for _ in range(50):
        view = transform(Image.fromarray(pixels))
        levels = view * torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1) + torch.tensor([0.5, 0.4, 0.3]).view(
            3, 1, 1
        )
        levels = (levels * 255).round().numpy()
        found = [at for at in range(81) for turn in (1, -1) if (crops[at, :, :, ::turn] == levels).all()]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 20


def test_plain_batches_have_two_streams():
    labels = [-1] * 20 + [3] * 5
    batches = iter(plain_loop.TwoStreams(labels, 8, 2))
    first = [next(batches) for _ in range(3)]
    assert all(max(batch[:6]) < 20 <= min(batch[6:]) and len(batch) == 8 for batch in first)
    assert len({at for batch in first for at in batch[:6]}) == 18  # no image twice in a pass
    alike = iter(plain_loop.TwoStreams(labels, 25, None))
    assert sorted(next(alike)) == list(range(25))


def test_loaders_give_batches_of_two_views(tmp_path):
    from bench import loader

    root = loader.write_jpegs(tmp_path, 4, width=64, height=48)
    for load in (loader.ours, loader.plain):
        views = next(load(root, batch_size=3, workers=0))
        assert views.shape == (2, 3, 3, 224, 224) and 0.3 < views.std() < 3


def test_default_presets_exist():
    for name in (*train_step.DEFAULT, *training.DEFAULT):
        assert name.partition(":")[0] in PRESETS
