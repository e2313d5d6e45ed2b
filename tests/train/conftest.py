"""A run small enough to train in a second, and the command line as users start it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the trainer's tests need mtkernels[train]")

from mtkernels.train.config import Config


@pytest.fixture
def small() -> Config:
    """Mean Teacher on the digits for six steps, evaluated twice."""
    return Config(steps=6, eval_interval=3, width=4, batch_size=30, labeled_batch_size=10)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `mtkernels ARGUMENTS` in an empty folder, in a process of its own."""

    def start(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "mtkernels.train.cli", *map(str, arguments)]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return start
