"""The commands as users type them, each in a process of its own."""

import json
import subprocess
import sys

import pytest

FAST = ("--steps", 4, "--eval-interval", 2, "--width", 4)


def test_train_then_report(command, tmp_path):
    for method in ("mean-teacher", "supervised"):
        done = command("train", "--preset", "digits", "--method", method, "--seed", 1, "--labels", 30, *FAST)
        assert done.returncode == 0, done.stderr
        assert f"all in runs/digits-{method}-30-seed1" in done.stdout.splitlines()[-1]
    folder = tmp_path / "runs/digits-supervised-30-seed1"
    config = json.loads((folder / "config.json").read_text())
    assert (config["method"], config["labels"], config["seed"], config["width"]) == ("supervised", 30, 1, 4)
    assert "--method supervised" in json.loads((folder / "environment.json").read_text())["command"]

    report = command("report", *sorted((tmp_path / "runs").iterdir()))
    assert report.returncode == 0, report.stderr
    assert "mean-teacher" in report.stdout and "supervised" in report.stdout
    assert (tmp_path / "runs/report.png").read_bytes().startswith(b"\x89PNG")


def test_demo_compares_both_methods(command, tmp_path):
    done = command("demo", "--steps", 2, "--seeds", 3)
    assert done.returncode == 0, done.stderr
    *_, title, supervised, mean_teacher, figure = done.stdout.splitlines()
    assert title == "Test error with 20 labeled images, seed 3:"
    assert supervised.split()[0] == "supervised-only" and supervised.endswith("%")
    assert mean_teacher.split()[:2] == ["Mean", "Teacher"] and mean_teacher.endswith("%")
    assert figure == "figure: runs/demo/demo.png" and (tmp_path / "runs/demo/demo.png").exists()
    names = {path.name for path in (tmp_path / "runs/demo").iterdir() if path.is_dir()}
    assert names == {"supervised-seed3", "mean-teacher-seed3"}


def test_help_shows_the_words_of_every_field(command):
    done = command("train", "--help")
    assert done.returncode == 0
    for words in ("--consistency-rampup", "--ema-decay", "--preset", "sigmoid ramp-up", "in steps"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("train", "--consistancy", 3), 2, "--consistency"),
        (("train", "--method", "mean-techer"), 2, "mean-teacher"),
        (("train", "--preset", "cifar"), 2, "digits"),
        (("trian",), 2, "train"),
        (("train", "--steps", "many"), 2, "many"),
        (("train", "--steps", 0), 2, "mtkernels: steps must be 1 or more, got 0\n"),
        (("train", "--labels", 5), 2, "mtkernels: labels must be between 10 (one per class) and 1297"),
        (("report", "nowhere"), 1, "mtkernels: nowhere does not exist\n"),
        (("report", "."), 1, "mtkernels: no finished run in .\n"),
    ],
)
def test_mistakes(command, tmp_path, arguments, code, words):
    done = command(*arguments)
    assert done.returncode == code
    assert words in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_one_sentence(tmp_path):
    script = "import sys; sys.modules['tyro'] = None; from mtkernels.train.cli import main; exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "mtkernels: this command needs tyro: pip install mtkernels[train]\n"


def test_without_rich_the_same_in_plain_print(tmp_path):
    script = (
        "import sys; sys.modules['rich'] = sys.modules['rich.progress'] = None;"
        "from mtkernels.train.console import print_table; print_table([['name', 'n'], ['long name', '3']])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "name       n\nlong name  3\n", done.stderr
