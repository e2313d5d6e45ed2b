"""A run that is killed again and again, at any moment, ends with the bits of one that nobody has touched.

Run as a program this file is the killer: it has imported what a run needs, so that a fork of it starts at once.
"""

import importlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtkernels.train.checkpoint import checkpoints, name_of, read_checkpoint

from .runs import metrics

ROOT = Path(__file__).parents[2]
KILLS, INSIDE = 30, 3  # at least, in all; of them within a save
MOST = 180  # in all, should INSIDE take so many
BY_CLOCK = (False, False, True, False, True, True)  # of one run
STEPS = 24
LINE = f"train --steps {STEPS} --eval-interval 5 --width 4 --batch-size 30 --labeled-batch-size 10"
LINE += " --validation 100 --eval-split validation --checkpoint-interval 1 --pictures False"
LINE += " --lr 0.5 --resume auto"
TRAINED = ("student.safetensors", "teacher.safetensors", "best.safetensors")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that it has forked")


def start(out: Path, name: str) -> int:
    """Fork a run; its process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from mtkernels.train.cli import main

        code = main([*LINE.split(), "--out", str(out), "--name", name])
    finally:
        os._exit(code)


def killed(child: int, folder: Path, step: int, seconds: float) -> bool:
    """Kill it so long after there is a checkpoint of `step`; False where it had ended by itself, which it may."""
    while step and not any(name_of(step) <= path.name for path in checkpoints(folder)):
        time.sleep(0.0005)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"exit code {code}"
    return code != 0


def newest(folder: Path) -> int:
    """Steps of the newest checkpoint; all of them must be sound."""
    return max([read_checkpoint(path).numbers["step"] for path in checkpoints(folder)], default=0)


def started_from(folder: Path) -> list[int]:
    """The steps that its sessions have begun at, as far as they came to note it."""
    path = folder / "environment.json"
    return [each["step"] for each in json.loads(path.read_text()).get("resumed", [])] if path.exists() else []


def place_of(folder: Path, before: int, sessions: int) -> str:
    """Where a kill has landed, by what is there, and what was there when its session began."""
    left = [path.name for path in (folder / "checkpoints").glob(".step-*.tmp")]
    if any(".gone." not in name for name in left):
        return "save"
    if left:
        return "removal"
    if newest(folder) == STEPS:
        return "finish"
    begun = newest(folder) > before or len(started_from(folder)) > sessions
    return "training" if begun else "preparation"


def times_of(out: Path) -> tuple[float, float, float]:
    """Seconds until a run that nobody kills begins its first step, has done its last one, has ended."""
    began = time.time()
    assert os.waitpid(start(out, "whole"), 0)[1] == 0
    files = ("environment.json", "student.safetensors", "summary.json")
    first, last, end = ((out / "whole" / name).stat().st_mtime - began for name in files)
    return first, last, end


def kill_again_and_again(out: Path) -> dict[str, object]:
    """Runs that are killed some times each, by the clock or after a step that is drawn. Facts of every kill."""
    first, last, end = times_of(out)
    dice, kills, names = random.Random(0), [], []
    while len(kills) < KILLS or (
        sum(each["place"] == "save" for each in kills) < INSIDE and len(kills) < MOST
    ):
        name, before, sessions = f"run-{len(names)}", 0, 0
        names.append(name)
        for by_clock in BY_CLOCK:
            left = STEPS - before
            step = 0 if by_clock or left < 2 else before + dice.randrange(1, 1 + left // 2)
            seconds = (last - first) / STEPS if step else first + (last - first) * left / STEPS + end - last
            if not killed(start(out, name), out / name, step, dice.uniform(0, seconds)):
                break
            kill = {"run": name, "place": place_of(out / name, before, sessions), "before": before}
            kills.append(kill | {"sessions": started_from(out / name), "after": newest(out / name)})
            before, sessions = kills[-1]["after"], len(kills[-1]["sessions"])
        assert os.waitpid(start(out, name), 0)[1] == 0
    return {"runs": names, "kills": kills}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def report(out):
    line = [sys.executable, "-m", "tests.train.test_kill", str(out)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        line, cwd=ROOT, env=os.environ | threads, capture_output=True, text=True, timeout=900
    )
    log = (out / "log.txt").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "Traceback" not in log
    return json.loads(done.stdout)


def test_kills_have_landed_everywhere(report):
    places = [each["place"] for each in report["kills"]]
    assert len(places) >= KILLS
    assert places.count("save") >= INSIDE, places
    assert places.count("training") >= INSIDE, places


def test_no_kill_costs_more_than_the_steps_since_the_last_checkpoint(report):
    """A checkpoint a step: a session goes on from the newest, and no kill takes one away."""
    for kill in report["kills"]:
        assert kill["after"] >= kill["before"], kill
    for name in report["runs"]:
        kills = [each for each in report["kills"] if each["run"] == name]
        for earlier, kill in itertools.pairwise(kills):
            new = kill["sessions"][len(earlier["sessions"]) :]
            assert new in ([], [earlier["after"]]), kill  # []: killed before it had noted where it began


def test_killed_runs_end_with_the_bits_of_one_that_was_not(report, out):
    whole = out / "whole"
    assert [line["step"] for line in metrics(whole)] == [5, 10, 15, 20, STEPS]
    for name in report["runs"]:
        for file in TRAINED:
            assert (out / name / file).read_bytes() == (whole / file).read_bytes(), f"{name}: {file}"
        assert metrics(out / name) == metrics(whole)
        for file in ("summary.json", "config.json"):
            ours, theirs = (json.loads((folder / file).read_text()) for folder in (out / name, whole))
            same = ours.keys() - {"seconds", "name"}
            assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


def test_ended_runs_have_nothing_left_over(report, out):
    files = sorted(path.name for path in (out / "whole").iterdir())
    for name in report["runs"]:
        assert sorted(path.name for path in (out / name).iterdir()) == files
        assert [path.name for path in sorted((out / name / "checkpoints").iterdir())] == [
            f"step-{STEPS - 1:09d}",
            f"step-{STEPS:09d}",
        ]


if __name__ == "__main__":
    for name in ("matplotlib.figure", "safetensors.torch", "sklearn.datasets", "torch._dynamo", "termios"):
        importlib.import_module(name)  # before the first fork, not in each
    for name in ("commands", "plots"):
        importlib.import_module(f"mtkernels.train.{name}")
    print(json.dumps(kill_again_and_again(Path(sys.argv[1]))))
