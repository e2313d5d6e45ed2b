"""Batches from disk: the same for any number of workers, with broken images replaced, counted and reported."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtkernels.train.config import SettingError
from mtkernels.train.data.decode import Quarantine
from mtkernels.train.data.folder import class_folders
from mtkernels.train.data.raw import NO_LABEL
from mtkernels.train.data.stream import EvalBatches, StreamBatches

from ..conftest import ENVIRONMENT
from .images import BROKEN, write_digits

SIZE = 16
WORKERS = pytest.mark.parametrize("workers", [0, 2])


def views_of(images, samples, epochs):
    """Two random crops of each, told apart by all that they are drawn from."""
    return torch.stack([crops(*each) for each in zip(images, samples, epochs, strict=True)], 1)


def crops(image, sample, epoch):
    assert image.dtype == torch.uint8 and image.shape[:2] == (1, 3)
    height, width = image.shape[2:]
    draw = np.random.RandomState([sample, epoch])
    corners = [(draw.randint(height - SIZE + 1), draw.randint(width - SIZE + 1)) for _ in range(2)]
    return torch.cat([image[:, :, top : top + SIZE, left : left + SIZE] for top, left in corners])


def refusing_views(images, samples, epochs):
    raise ArithmeticError(f"no views of {samples[0]}")


def drawn(indices, epoch=0):
    return torch.tensor(indices), torch.full((len(indices),), epoch)


def endless(rows, images, start=0):
    """Batches of a run from step `start` on."""
    for step in count(start):
        indices = torch.arange(step * rows, (step + 1) * rows)
        yield indices % images, indices // images


@pytest.fixture
def root(tmp_path):
    return write_digits(tmp_path / "digits", unlabeled=3)


@pytest.fixture
def stream(root):
    """Makes StreamBatches of the folder's training images as they are now; stops them after the test."""
    made = []

    def make(batches, views=views_of, **options):
        train = class_folders(root).train
        made.append(StreamBatches(train.images, train.labels, views, batches, size=SIZE, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not multiprocessing.active_children()


def test_views_and_labels(root, stream):
    train = class_folders(root).train
    [(views, labels), (more, _)] = stream(iter([drawn([3, 12, 3]), drawn([3, 0], 5)]))
    assert views.shape == (2, 3, 3, SIZE, SIZE) and views.dtype == torch.uint8
    assert labels.tolist() == [0, NO_LABEL, 0] and labels.dtype == torch.int64
    for row, at in enumerate([3, 12]):
        image = torch.from_numpy(train.images.decode(at, 0)).permute(2, 0, 1).unsqueeze(0)
        assert torch.equal(views[:, row], crops(image, at, 0))
    assert not torch.equal(more[:, 0], views[:, 0])  # another epoch


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
def test_the_same_for_any_number_of_workers(root, stream):
    (root / "train" / "digit1" / "00.jpg").write_bytes(BROKEN["cut.jpg"])
    expected = list(islice(stream(endless(5, 15)), 8))
    for workers in (1, 3):
        batches = stream(endless(5, 15), workers=workers)
        for (views, labels), (other_views, other_labels) in zip(expected, islice(batches, 8), strict=True):
            assert torch.equal(views, other_views) and torch.equal(labels, other_labels)
        assert list(batches.quarantine.broken) == [str(root / "train" / "digit1" / "00.jpg")]
    [(views, _)] = islice(stream(endless(5, 15, start=7)), 1)  # resumed
    assert torch.equal(views, expected[7][0])


@WORKERS
def test_a_broken_image_is_replaced_by_the_next_of_its_label(root, stream, workers):
    sound, _ = next(stream(iter([drawn([4, 5, 6, 7, 12, 13, 14])])))
    for name in ("digit1/02.jpg", "digit1/03.png", "unlabeled/01.png"):
        (root / "train" / name).write_bytes(BROKEN["cut.jpg"])
    batches = stream(iter([drawn([4, 5, 6, 7, 12, 13, 14])]), workers=workers)
    [(views, labels)] = batches
    assert labels.tolist() == [1, 1, 1, 1, -1, -1, -1]
    paths = class_folders(root).train.images
    for row, sample, stand_in in ((2, 6, 4), (3, 7, 4), (5, 13, 14)):
        image = torch.from_numpy(paths.decode(stand_in, 0)).permute(2, 0, 1).unsqueeze(0)
        assert torch.equal(views[:, row], crops(image, sample, 0))
    assert torch.equal(views[:, [0, 1, 4, 6]], sound[:, [0, 1, 4, 6]])
    assert [os.path.relpath(name, root / "train") for name in sorted(batches.quarantine.broken)] == [
        "digit1/02.jpg",
        "digit1/03.png",
        "unlabeled/01.png",
    ]
    assert all("truncated" in reason for reason in batches.quarantine.broken.values())


@WORKERS
def test_no_sound_image_of_a_label(root, stream, workers):
    for image in (root / "train" / "digit1").iterdir():
        image.write_bytes(b"")
    batches = stream(iter([drawn([0, 4])]), workers=workers)
    with pytest.raises(
        SettingError, match=r"^\S*digit1/00\.jpg is broken, .* every other image with label 1$"
    ):
        next(batches)
    assert len(batches.quarantine.broken) == 4


@WORKERS
def test_too_many_broken_images(tmp_path, workers):
    train = class_folders(write_digits(tmp_path, unlabeled=40)).train  # 12 labeled ones before them
    for path in train.images.paths[20:40]:
        path.write_bytes(b"")
    batches = [drawn([at]) for at in range(12, 52)]
    many = Quarantine(52, max_broken=0.5)
    stream = partial(StreamBatches, train.images, train.labels, views_of, size=SIZE, workers=workers)
    assert len(list(stream(batches, quarantine=many))) == 40 and len(many.broken) == 20
    with pytest.raises(
        SettingError, match=r"^11 of 52 images are broken.* allows 10 .*: \S*08\.jpg: empty file"
    ):
        list(stream(batches))
    few = Quarantine(52, max_broken=0)
    with pytest.raises(SettingError, match=r"^1 of 52 images are broken"):
        list(stream(batches, quarantine=few))
    assert len(few.broken) == 1 and not multiprocessing.active_children()


@WORKERS
def test_an_error_in_the_views_ends_the_stream_and_its_workers(stream, workers):
    batches = stream(endless(2, 15), refusing_views, workers=workers)
    with pytest.raises(ArithmeticError, match="no views of 0"):
        next(batches)
    assert not multiprocessing.active_children()
    with pytest.raises(StopIteration):
        next(batches)


def test_an_end_and_a_close_stop_the_workers(stream):
    batches = stream(iter([drawn([0]), drawn([1])]), workers=2)
    assert len(multiprocessing.active_children()) == 2
    assert len(list(batches)) == 2 and not multiprocessing.active_children()
    batches = stream(endless(2, 15), workers=2)
    next(batches)
    batches.close()
    assert not multiprocessing.active_children()


def test_torchs_own_random_numbers_are_left_alone(root, stream):
    state = torch.get_rng_state()
    next(stream(endless(2, 15), workers=1))
    test = class_folders(root).test
    list(EvalBatches(test.images, test.labels, size=SIZE, batch_size=4))
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_that_are_spawned_can_be_given_all_they_need(root):
    from mtkernels.train.data import stream as module

    train = class_folders(root).train
    rows = module._TrainRows(train.images, train.labels.numpy(), partial(views_of), SIZE, 10)
    loaded = pickle.loads(pickle.dumps(rows))[[0, 5], [0, 0]]
    assert torch.equal(loaded.views, rows[[0, 5], [0, 0]].views)


def test_a_batch_of_more_images_than_are_decoded_at_once(root, stream, monkeypatch):
    together = next(stream(iter([drawn([0, 1, 2, 4, 5])])))[0]
    monkeypatch.setattr("mtkernels.train.data.stream._TOGETHER", 2)
    assert torch.equal(next(stream(iter([drawn([0, 1, 2, 4, 5])])))[0], together)


def test_least_is_what_the_decoder_is_asked_for(root, stream):
    image = Image.open(root / "train" / "digit0" / "00.jpg").resize((640, 480))
    image.save(root / "train" / "digit0" / "00.jpg")

    def sides(least):
        shapes = []
        views = lambda images, *_: shapes.append(images[0].shape[2:]) or images[0][None, 0, :, :1, :1]  # noqa: E731
        next(stream(iter([drawn([0])]), views, least=least))
        return tuple(shapes[0])

    assert sides(240) == (240, 320) and sides(480) == (480, 640)
    assert min(sides(None)) in range(18, 121)  # 8/7 of 16


@WORKERS
def test_evaluation_takes_each_image_once_in_order(root, workers):
    test = class_folders(root).test
    batches = EvalBatches(test.images, test.labels, size=14, batch_size=4, workers=workers)
    for _ in range(2):
        (first, first_labels), (last, last_labels) = batches
        assert first.shape == (4, 3, 14, 14) and last.shape == (2, 3, 14, 14) and first.dtype == torch.uint8
        assert [*first_labels.tolist(), *last_labels.tolist()] == [0, 0, 1, 1, 2, 2]
    with Image.open(test.images.paths[5]) as image:
        resized = image.convert("RGB").resize((21, 16), Image.Resampling.BILINEAR).crop((4, 1, 18, 15))
    assert np.array_equal(last[1].permute(1, 2, 0), np.asarray(resized))


@WORKERS
def test_evaluation_leaves_broken_images_out(root, workers):
    for name in ("digit0/00.jpg", "digit1/00.jpg", "digit1/01.png"):
        (root / "val" / name).write_bytes(BROKEN["text.jpg"])
    test = class_folders(root).test
    batches = EvalBatches(test.images, test.labels, size=14, batch_size=2, workers=workers)
    assert [labels.tolist() for _, labels in batches] == [[0], [2, 2]]
    assert len(batches.quarantine.broken) == 3
    with pytest.raises(SettingError, match=r"^1 of 6 images"):
        strict = Quarantine(6, max_broken=0)
        list(EvalBatches(test.images, test.labels, size=14, batch_size=2, workers=workers, quarantine=strict))


STREAM = """
import signal, sys
from itertools import islice
from pathlib import Path
from mtkernels.train.data.folder import class_folders
from mtkernels.train.data.stream import StreamBatches
from tests.train.data.test_stream import endless, views_of
train = class_folders(Path({root!r})).train
batches = StreamBatches(train.images, train.labels, views_of, endless(2, 15), size=16, workers=2)
next(batches)
"""


@pytest.fixture
def program(root):
    """A Python of its own, and a group of processes of its own, which has taken one batch and goes on with a text."""
    with contextlib.ExitStack() as started:

        def start(text, begin=""):
            process = subprocess.Popen(
                [sys.executable, "-c", begin + STREAM.format(root=str(root)) + text],
                env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                cwd=Path(__file__).parents[3],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            limit = threading.Timer(100, end, (process,))
            limit.start()
            started.callback(limit.cancel)
            started.callback(end, process)
            return process

        yield start


def end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="a signal's sender is not known")
@pytest.mark.parametrize(
    ("number", "method"),
    [(signal.SIGINT, "fork"), (signal.SIGTERM, "fork"), (signal.SIGTERM, "spawn")],
)
def test_a_signal_is_the_parents_alone(program, number, method):
    """Ctrl-C and clusters signal all processes of a job: a parent that finishes its step must still get its batches."""
    process = program(
        f"""
seen = []
signal.signal({int(number)}, lambda *_: seen.append(1))
print("ready", flush=True)
while not seen:
    next(batches)
print(len(list(islice(batches, 50))), flush=True)
try:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("ready", flush=True)
    while True:
        next(batches)
except KeyboardInterrupt:
    print("interrupted")
""",
        f"import multiprocessing; multiprocessing.set_start_method('{method}')",
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)
    assert process.stdout.readline() == "50\n" and process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (output, errors, process.returncode) == ("interrupted\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="ends a group of processes")
@pytest.mark.parametrize("first", ["", "atexit.unregister(stream._stop_all)\n"])
def test_a_program_may_end_without_closing_its_batches(program, first):
    """At its end it stops the workers; were that left out, multiprocessing would."""
    process = program(f"import atexit; from mtkernels.train.data import stream\n{first}sys.exit(3)")
    output, errors = process.communicate(timeout=60)
    assert (output, errors, process.returncode) == ("", "", 3)
