"""TensorBoard's files hold what a run tells, and after a resumption nothing of what was undone."""

import sys

import pytest

from mtkernels.train.board import Board
from mtkernels.train.config import SettingError


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def record(step: int, error: float) -> dict[str, float]:
    return {"step": step, "class_loss": 0.5, "teacher_error": error}


def test_metrics_are_read_back_and_a_resumed_run_goes_on(tmp_path):
    pytest.importorskip("tensorboard")
    board = Board(tmp_path)
    board.record(record(100, 50.0))
    board.losses(150, {"class_loss": 0.25}, 1000.0)
    board.record(record(200, 40.0))
    board.close()
    assert scalars(tmp_path) == {
        "evaluation/class_loss": [(100, 0.5), (200, 0.5)],
        "evaluation/teacher_error": [(100, 50.0), (200, 40.0)],
        "training/class_loss": [(150, 0.25)],
        "training/images_per_second": [(150, 1000.0)],
    }
    board = Board(tmp_path, start=100)
    board.record(record(180, 45.0))
    board.close()
    assert scalars(tmp_path)["evaluation/teacher_error"] == [(100, 50.0), (180, 45.0)]
    assert "training/class_loss" not in scalars(tmp_path) or scalars(tmp_path)["training/class_loss"] == []


def test_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from PIL import Image

    Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / "pairs.png")
    board = Board(tmp_path)
    board.picture(tmp_path / "pairs.png", 7)
    board.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (picture,) = events.Images("pairs")
    assert (picture.step, picture.width, picture.height) == (7, 5, 4)


def test_without_tensorboard_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingError, match=r"^tensorboard must be installed where --tensorboard is on: pip "):
        Board(tmp_path)
    assert list(tmp_path.iterdir()) == []
