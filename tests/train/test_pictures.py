"""The pictures of a run show what its networks get and do, and making them changes no bit of a training."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mtkernels.train import pictures
from mtkernels.train.config import Config
from mtkernels.train.data import NO_LABEL, Evaluation, Pixels, load_dataset, make_feed
from mtkernels.train.data.raw import Facts
from mtkernels.train.loop import make_batches
from mtkernels.train.meter import error_percents
from mtkernels.train.pictures import shown, write_pairs, write_pictures
from mtkernels.train.plots import plot_confusion

from .data.images import write_digits


class Oracle(nn.Module):
    """Knows the images, and calls those in `wrong` (image -> class) something else, the first of them most surely."""

    def __init__(self, images, labels, wrong):
        super().__init__()
        self.images = images.flatten(1)
        self.logits = 9.0 * torch.nn.functional.one_hot(labels, 10)
        for rank, (at, guess) in enumerate(wrong.items()):
            self.logits[at] = 0
            self.logits[at, guess] = 5 - 0.1 * rank

    def forward(self, images):
        assert not self.training
        return self.logits[torch.cdist(images.flatten(1), self.images).argmin(1)]


@pytest.fixture
def sheets(monkeypatch):
    """What was drawn: (images, captions, title), by file name."""
    drawn = {}

    def plot(path, images, captions, title, draw=pictures.plot_sheet):
        draw(path, images, captions, title)
        drawn[path.name.split(".")[1]] = images, captions, title

    monkeypatch.setattr(pictures, "plot_sheet", plot)
    return drawn


def oracle(data, config, wrong):
    (images, labels), *rest = Evaluation(config, data)
    assert not rest
    return Oracle(images, labels, wrong).train()


def test_confusions_and_the_surest_mistakes(small, tmp_path, sheets):
    data = load_dataset(small)
    labels = data.evaluation.labels
    wrong = {at: (int(labels[at]) + 1 + at % 3) % 10 for at in range(100, 140)}
    method = SimpleNamespace(teacher=oracle(data, small, wrong), student=None, headline="teacher")
    write_pictures(tmp_path, small, method, data, make_batches(small, data))
    assert method.teacher.training
    with open(tmp_path / "confusion.csv") as file:
        header, *rows = csv.reader(file)
    assert header == ["true class", *data.raw.class_names] and [row[0] for row in rows] == header[1:]
    counts = np.array([row[1:] for row in rows], int)
    expected = np.zeros((10, 10), int)
    for at, label in enumerate(labels.tolist()):
        expected[label, wrong.get(at, label)] += 1
    assert (counts == expected).all()
    images, captions, title = sheets["mistakes"]
    surest = list(wrong)[:24]
    assert [caption.split()[0] for caption in captions] == [str(int(labels[at])) for at in surest]
    assert [caption.split()[3] for caption in captions] == [f"{wrong[at]}," for at in surest]
    assert captions[0].endswith("94.3%")  # e^5 / (e^5 + 9)
    assert np.allclose(images, data.evaluation.images[surest].permute(0, 2, 3, 1).numpy() / 16)
    assert title == "mistakes on test images of which the teacher is surest"
    names = ["confusion.csv", "confusion.png", "mistakes.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names[1:])


def test_no_mistake_is_said(small, tmp_path, sheets):
    data = load_dataset(small)
    method = SimpleNamespace(teacher=oracle(data, small, {}), student=None, headline="teacher")
    write_pictures(tmp_path, small, method, data, make_batches(small, data))
    images, captions, title = sheets["mistakes"]
    assert len(images) == len(captions) == 0 and title == "the teacher makes no mistake on 500 test images"


class TwoHeads(nn.Module):
    """The class logits, and others."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        logits = self.model(images)
        return logits, -logits


def test_confusions_are_those_of_the_methods_own_model(small, tmp_path, sheets):
    """Which is reported. Mistakes are the teacher's."""
    data = load_dataset(small)
    labels = data.evaluation.labels
    students, teachers = (
        {at: int(labels[at] + 1) % 10 for at in range(*ends)} for ends in ((0, 50), (90, 93))
    )
    student, teacher = (TwoHeads(oracle(data, small, wrong)) for wrong in (students, teachers))
    method = SimpleNamespace(student=student, teacher=teacher, headline="student")
    write_pictures(tmp_path, small, method, data, make_batches(small, data))
    with open(tmp_path / "confusion.csv") as file:
        counts = np.array([row[1:] for row in csv.reader(file)][1:], int)
    (error, _), (other, _) = error_percents([student, teacher], Evaluation(small, data))
    assert 100 * (1 - counts.trace() / counts.sum()) == pytest.approx(error) == 10 and other == 0.6
    assert len(sheets["mistakes"][1]) == 3


@pytest.mark.parametrize("method", ["mean-teacher", "supervised"])
def test_pairs_are_the_first_batchs_views(small, tmp_path, sheets, method):
    config = replace(small, method=method, normalize="channels")
    data = load_dataset(config)
    batches = make_batches(config, data)
    state = torch.random.get_rng_state()
    write_pairs(tmp_path, config, data, batches)
    assert (torch.random.get_rng_state() == state).all()
    images, captions, _ = sheets["pairs"]
    count = 1 if method == "supervised" else 2
    views, labels = make_feed(config, data, batches, count).batch(0)[:2]
    rows = list(range(10)) if method == "supervised" else [*range(6), *range(24, 30)]
    width = (count * 8) + (count - 1)
    assert images.shape == (len(rows), 8, width, 3)
    for number, view in enumerate(views):
        expected = (view[rows, 0] * data.raw.std[0] + data.raw.mean[0]).clamp(0, 1)
        assert np.allclose(images[:, :, number * 9 : number * 9 + 8, 0], expected, atol=1e-6)
    names = [data.raw.class_names[label] for label in labels[rows].tolist()]
    known = [
        name if label != NO_LABEL else "unlabeled" for name, label in zip(names, labels[rows], strict=True)
    ]
    assert captions == known and (method == "supervised" or captions[:6] == ["unlabeled"] * 6)


def test_pairs_of_images_on_disk_read_those_alone(tmp_path, sheets, monkeypatch):
    write_digits(tmp_path / "data", train=10, test=2, classes=3, unlabeled=30)
    config = Config(dataset="imagenet", data=tmp_path / "data", image_size=16, labels=9, augment="imagenet")
    config = replace(config, batch_size=24, labeled_batch_size=8, noise=0.0, normalize="channels", workers=3)
    data = load_dataset(config)
    batches = make_batches(config, data)
    views = make_feed(replace(config, workers=0), data, batches, 2).batch(0).views
    read, kind = [], type(data.pool.images)
    decode = kind.decode
    monkeypatch.setattr(kind, "decode", lambda self, at, least: read.append(at) or decode(self, at, least))
    state = torch.random.get_rng_state()
    write_pairs(tmp_path, config, data, batches)
    assert (torch.random.get_rng_state() == state).all()
    assert len(read) == 12  # in this process
    images, captions, _ = sheets["pairs"]
    rows = [*range(6), *range(18, 24)]
    assert np.allclose(images[:, :, 17:], shown(views[1][rows], config, data.raw))
    assert captions[:6] == ["unlabeled"] * 6 and "unlabeled" not in captions[6:]


def test_shown_undoes_the_normalisation():
    facts = Facts(("a",), 3, (0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    images = torch.randint(0, 256, (4, 3, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    plain = images.permute(0, 2, 3, 1).numpy() / 255
    for normalize in ("none", "channels"):
        config = Config(normalize=normalize)
        assert np.allclose(shown(Pixels(facts, config)(images), config, facts), plain, atol=1e-6)
    config = Config(normalize="image")
    stretched = shown(Pixels(facts, config)(images), config, facts)
    assert stretched.min() == 0 and stretched.max() == 1
    order = np.argsort(plain[0], axis=None)
    assert (np.diff(stretched[0].flatten()[order]) >= 0).all()
    assert shown(images[:, :1] / 255, Config(), facts).shape == (4, 6, 6, 3)
    assert np.allclose(shown(torch.cat([images, images[:, :1]], 1) / 255, Config(), facts), plain)
    assert shown(torch.full((1, 1, 2, 2), 3.0), Config(normalize="zca"), facts).max() == 0  # of one value


@pytest.mark.parametrize("classes", [2, 210])
def test_a_confusion_matrix_of_any_number_of_classes(tmp_path, classes, recwarn):
    counts = np.random.RandomState(0).poisson(0.1, (classes, classes)) + 5 * np.eye(classes, dtype=int)
    counts[1] = 0  # a class without an image
    names = ["a very long name of $ a class", "$x$", *map(str, range(2, classes))]
    plot_confusion(tmp_path / "matrix.png", counts, names, "title")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG") and not list(recwarn)
