"""The commands as users type them, each in a process of its own."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("tyro", reason="the command line needs mtkernels[train]")

FAST = ("--steps", 4, "--eval-interval", 2, "--width", 4)


def test_train_then_report(command, tmp_path):
    for method in ("mean-teacher", "supervised"):
        for seed in (0, 1):
            done = command(
                "train", "--preset", "digits", "--method", method, "--seed", seed, "--labels", 30, *FAST
            )
            assert done.returncode == 0, done.stderr
            assert f"all in runs/digits-{method}-30-seed{seed}" in done.stdout.splitlines()[-1]
    config = json.loads((tmp_path / "runs/digits-supervised-30-seed1/config.json").read_text())
    assert (config["method"], config["labels"], config["seed"], config["width"]) == ("supervised", 30, 1, 4)
    environment = json.loads((tmp_path / "runs/digits-supervised-30-seed1/environment.json").read_text())
    assert "--method supervised" in environment["command"]

    folders = sorted((tmp_path / "runs").iterdir())
    report = command("report", *folders)
    assert report.returncode == 0, report.stderr
    assert "mean-teacher" in report.stdout and "supervised" in report.stdout and " ± " in report.stdout
    assert (tmp_path / "runs/report.png").read_bytes().startswith(b"\x89PNG")
    again = command("report", "runs", "--out", "elsewhere/figure.png")
    assert again.returncode == 0 and (tmp_path / "elsewhere/figure.png").exists()


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
    script = "import sys; sys.modules['tyro'] = None; from mtkernels.train.cli import main; sys.exit(main(['train']))"
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
