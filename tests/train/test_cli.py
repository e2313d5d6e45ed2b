"""The commands as users type them, each in a process of its own."""

import functools
import http.server
import json
import subprocess
import sys
import threading

import pytest

from mtkernels.train.cli import main

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


def test_presets_are_listed_with_what_was_published(command):
    done = command("presets", "cifar10", "shakeshake")
    assert done.returncode == 0, done.stderr
    assert "6.28 ± 0.15" in done.stdout and "10.08 ± 0.41" in done.stdout and "svhn" not in done.stdout


def test_a_dry_run_tells_and_writes_nothing(command, tmp_path):
    done = command("train", "--dry-run", "--steps", 100)
    assert done.returncode == 0, done.stderr
    data, network, length = done.stdout.splitlines()
    assert data == "digits: 1,297 training images, 20 of them labeled, 10 classes; errors on 500 test images"
    assert network == "convnet: 65,834 weights, 1 head"
    assert length == "mean-teacher: 100 steps, 8.3 epochs of 12 steps"
    assert list(tmp_path.iterdir()) == []


def test_broken_images_are_named(command, tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        (tmp_path / "mine" / part / "a").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "mine" / part / "a" / "sound.png")
    (tmp_path / "mine" / "train" / "a" / "broken.png").write_bytes(b"nothing")
    done = command("data", "verify", "mine")
    assert done.returncode == 1 and "1 broken" in done.stdout and "train/a/broken.png: " in done.stdout


def test_a_download_from_a_mirror(command, tmp_path):
    """The address reaches the download; what it gives is not the file that the authors published."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "cifar-10-python.tar.gz").write_bytes(b"another file")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = command("data", "download", "cifar10", "--url", f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    assert done.returncode == 1 and "data/cifar10/cifar-10-python.tar.gz" in done.stderr, done.stderr
    assert "sha256" in done.stderr and not list((tmp_path / "data" / "cifar10").iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("train", "--consistancy", 3), 2, "--consistency"),
        (("train", "--method", "mean-techer"), 2, "mean-teacher"),
        (
            ("train", "--preset", "cifar10-quick"),
            2,
            "got 'cifar10-quick': did you mean cifar10-1000-quick?\n",
        ),
        (("train", "--dataset", "cifar10"), 2, "mtkernels: data/cifar10 holds none of cifar-10-batches-py"),
        (("train", "--arch", "convnet31"), 2, "did you mean"),
        (
            ("train", "--resume", "x"),
            2,
            "mtkernels: resume must be a run's folder with a checkpoint, or a checkpoint in one, got x\n",
        ),
        (
            ("train", "--epochs", 3, "--steps", 4),
            2,
            "epochs or steps must be given, and not both, got 3 and 4",
        ),
        (("train", "--config-file", "no.toml"), 2, "mtkernels: config_file no.toml cannot be read: "),
        (("presets", "nothing"), 2, "mtkernels: no preset has 'nothing' in its name\n"),
        (("data", "verify", "nowhere"), 2, "mtkernels: nowhere"),
        (("trian",), 2, "train"),
        (("train", "--steps", "many"), 2, "many"),
        (("train", "--steps", 0), 2, "mtkernels: steps must be 1 or more, got 0\n"),
        (("train", "--labels", 5), 2, "mtkernels: labels must be between 10 (one per class) and 1297"),
        (("report", "nowhere"), 1, "mtkernels: nowhere does not exist\n"),
        (("report", "."), 1, "mtkernels: no finished run in .\n"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    assert main(list(map(str, arguments))) == code
    assert words in capsys.readouterr().err
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
