"""The commands behind cli.py: their arguments as dataclasses, and what they do."""

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import matplotlib  # noqa: F401  missing libraries must show before a training, not after it
import safetensors  # noqa: F401
import sklearn  # noqa: F401
import tyro

from .cli import INTERRUPTED
from .config import Config
from .console import print_table
from .files import write_with
from .plots import plot_groups
from .presets import PRESETS
from .report import Run, group_runs, read_runs, table
from .run import run

PresetName = Literal["digits"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one model, and write its run folder."""

    preset: PresetName = "digits"
    """Named settings that all other flags start from."""
    config: tyro.conf.OmitArgPrefixes[Config]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Print a table over runs (mean and standard deviation over seeds), and save a figure."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Run folders, or folders that hold them."""
    out: Path = Path("runs/report.png")
    """Where the figure goes."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train supervised-only and Mean Teacher on the same few labels of real digits, and compare them."""

    labels: int = 20
    """Labeled images, of 1,297."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each trains both methods."""
    out: Path = Path("runs")
    """Folder that the demo's own folder is made in."""


def parse(argv: Sequence[str]) -> Train | Report | Demo:
    """The command line as one of the three; wrong ones exit with 2 and tyro's suggestions."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", choices=PRESETS, default="digits")
    preset = "digits"
    with contextlib.suppress(argparse.ArgumentError):  # tyro will say what is wrong with it
        preset = early.parse_known_args(argv)[0].preset
    defaults = Train(preset=preset, config=PRESETS[preset])
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=defaults)]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Demo, tyro.conf.subcommand("demo")]
    )
    return tyro.cli(
        commands, prog="mtkernels", args=argv, description="Train against a teacher; see what it gave."
    )


def perform(command: Train | Report | Demo) -> int:
    """Do it, and return the exit code."""
    if isinstance(command, Train):
        return _train(command.config)
    return _report(command) if isinstance(command, Report) else _demo(command)


def _train(config: Config) -> int:
    folder, summary = run(config)
    steps = (
        f"stopped at step {summary['steps_done']}"
        if summary["interrupted"]
        else f"{summary['steps_done']} steps"
    )
    print(
        f"{steps} in {summary['seconds']:.0f} s: {config.eval_split} error of the student"
        f" {summary['student_error']:.2f}%, of the teacher {summary['teacher_error']:.2f}%; all in {folder}"
    )
    return INTERRUPTED if summary["interrupted"] else 0


def _report(command: Report) -> int:
    runs, notes = read_runs(command.runs)
    groups, more_notes = group_runs(runs)
    for note in notes + more_notes:
        print(note)
    if not groups:
        raise FileNotFoundError(f"no finished run in {', '.join(map(str, command.runs))}")
    _save_groups(command.out, groups)
    print_table(table(groups))
    print(f"figure: {command.out}")
    return 0


def _demo(command: Demo) -> int:
    folder = _free_folder(command.out / "demo")
    for seed in command.seeds:
        for method in ("supervised", "mean-teacher"):
            config = replace(
                PRESETS["digits"],
                method=method,
                labels=command.labels,
                seed=seed,
                out=folder,
                name=f"{method}-seed{seed}",
            )
            if code := _train(config):
                return code
    groups, _ = group_runs(read_runs([folder])[0])
    _save_groups(folder / "demo.png", groups)
    print(f"\ntest error with {command.labels} labeled images, seeds {', '.join(map(str, command.seeds))}:")
    for label, words in (("supervised", "supervised-only"), ("mean-teacher", "Mean Teacher")):
        errors = [each.error for each in groups[label]]
        print(f"  {words:<16} {sum(errors) / len(errors):6.2f}%")
    print(f"figure: {folder / 'demo.png'}")
    return 0


def _free_folder(folder: Path) -> Path:
    """`folder`, or folder-2, -3 ... where a demo has been before."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _save_groups(path: Path, groups: dict[str, list[Run]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_with(path, lambda temporary: plot_groups(temporary, groups))
