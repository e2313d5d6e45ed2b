"""A run small enough to train in a second, and the command line as users start it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mtkernels.train.config import Config

# A machine that tests the kernels alone has none of these, and the test files need them to be collected.
MISSING = [
    name
    for name in ("tyro", "matplotlib", "safetensors", "sklearn", "scipy", "PIL")
    if find_spec(name) is None
]
collect_ignore_glob = ["test_*.py", "data"] if MISSING else []


def pytest_report_header() -> list[str]:
    """Says so when the trainer's tests are left out."""
    return (
        [f"tests/train left out: no {', '.join(MISSING)} (pip install mtkernels[train])"] if MISSING else []
    )


# Such small models gain nothing from a second thread, and on a busy machine threads that wait cost a lot.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Trains on one thread, and leaves torch's number as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small() -> Config:
    """Mean Teacher on the digits for six steps, evaluated twice."""
    return Config(steps=6, eval_interval=3, width=4, batch_size=30, labeled_batch_size=10, pictures=False)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `mtkernels ARGUMENTS` in an empty folder, in a process of its own."""

    def start(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "mtkernels.train.cli", *map(str, arguments)]
        return subprocess.run(
            line, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
        )

    return start


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the figure that is most of a small run's time."""
    from mtkernels.train import plots

    monkeypatch.setattr(plots, "plot_curves", lambda path, *_: path.touch())


@pytest.fixture
def every_step(small: Config, tmp_path: Path) -> Config:
    """Eight steps, all of whose checkpoints are kept."""
    return replace(
        small, steps=8, lr=0.3, checkpoint_interval=1, keep_checkpoints=99, out=tmp_path, name="whole"
    )
