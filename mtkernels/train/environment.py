"""Where a run ran: versions, machine, command. What someone needs to explain a difference."""

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch

import mtkernels


def environment(device: torch.device, command: Sequence[str] | None = None) -> dict[str, object]:
    """Facts for environment.json; `command` stands for sys.argv where the program was not started by it."""
    return {
        "mtkernels": getattr(mtkernels, "__version__", None),
        "git_commit": _git_commit(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        **{
            name: _version(name) for name in ("Pillow", "simplejpeg", "scipy")
        },  # pixels depend on who decodes
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "command": shlex.join(sys.argv if command is None else command),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of mtkernels' own checkout; None for an installed copy, even inside some repository."""
    here = Path(__file__)
    try:
        for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            answer = subprocess.run(
                ["git", "-C", str(here.parent), *command],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
