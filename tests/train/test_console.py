"""What a run shows: lines of records, losses between them where asked, and on a terminal a bar with the time left."""

import io
import sys

import pytest

from mtkernels.train.config import Config
from mtkernels.train.console import progress, time_left

LOSSES = {"class_loss": 0.12345, "consistency_loss": 0.5}
RECORD = {"step": 300, **LOSSES, "student_error": 2.5, "teacher_error": 1.25, "images_per_second": 1234.5}


def show(tmp_path, config: Config = Config(), start: int = 0) -> None:  # noqa: B008 -- frozen
    with progress(config, tmp_path, 400, start) as shown:
        shown.tick(250, LOSSES, 1234.5)
        shown(RECORD)
        shown.write("something")


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns; returns what rich has written to it."""
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr("rich._console", console)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    return console.file


def test_without_a_terminal_lines_of_records(tmp_path, capsys):
    show(tmp_path)
    _, header, line, note = capsys.readouterr().out.splitlines()
    assert header.split() == ["step", *LOSSES, "student_error", "teacher_error", "images/s"]
    assert line.split() == ["300", "0.1235", "0.5000", "2.50%", "1.25%", "1234"] and note == "something"


def test_and_of_losses_where_asked(tmp_path, capsys):
    show(tmp_path, Config(print_interval=50))
    line = "step 250: class_loss 0.1235, consistency_loss 0.5000, 1234 images/s"
    assert capsys.readouterr().out.splitlines()[1] == line


def test_on_a_terminal_a_bar(tmp_path, terminal):
    show(tmp_path, start=100)
    text = terminal.getvalue()
    assert "300/400" in text and "1234 images/s" in text and " left" in text and "class_loss 0.1" in text
    assert "something" in text and " 2.50%" in text


def test_a_terminal_without_rich_has_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show(tmp_path)
    assert capsys.readouterr().out.splitlines()[2].split()[0] == "300"


@pytest.mark.parametrize(
    ("seconds", "done", "rest", "words"),
    [
        (10, 0, 100, ""),  # just resumed
        (10, 5, 100, "0:03:20 left"),
        (10, 5, 0, "0:00:00 left"),
        (1, 1, 200000, "2 d 7:33:20 left"),
    ],
)
def test_time_left_by_the_steps_of_this_session(seconds, done, rest, words):
    assert time_left(seconds, done, rest) == words
