"""The commands behind cli.py: their arguments as dataclasses, and what they do."""

import argparse
import contextlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .cli import INTERRUPTED
from .config import Config
from .console import print_table
from .files import free_path, write_with
from .plots import plot_groups
from .presets import PRESETS
from .report import Run, group_runs, mean_and_deviation, read_runs, table
from .run import run

PresetName = Literal["digits"]
_DEMO_METHODS = {"supervised": "supervised-only", "mean-teacher": "Mean Teacher"}


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
    steps: int = PRESETS["digits"].steps
    """Length of each training, in optimizer steps."""
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


def check_libraries() -> None:
    """Missing libraries must show before a training, not after it; importing them here takes a second."""
    for name in ("matplotlib", "safetensors", "sklearn"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def perform(command: Train | Report | Demo) -> int:
    """Do it, and return the exit code."""
    check_libraries()
    if isinstance(command, Train):
        return _train(command.config)
    return _report(command) if isinstance(command, Report) else _demo(command)


def _train(config: Config) -> int:
    folder, summary = run(config)
    end = "stopped at step" if summary["interrupted"] else "finished step"
    errors = [f"{role} {summary[f'{role}_error']:.2f}%" for role in ("student", "teacher")]
    print(
        f"{end} {summary['steps_done']} after {summary['seconds']:.0f} s,"
        f" error on {config.eval_split} images: {', '.join(errors)}; all in {folder}"
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
    folder = free_path(command.out / "demo")
    shared = replace(PRESETS["digits"], labels=command.labels, steps=command.steps, out=folder)
    for seed in dict.fromkeys(command.seeds):
        for method in _DEMO_METHODS:
            config = replace(shared, method=method, seed=seed, name=f"{method}-seed{seed}")
            if code := _train(config):
                return code
    found, _ = group_runs(read_runs([folder])[0])
    groups = {method: found[method] for method in _DEMO_METHODS}
    _save_groups(folder / "demo.png", groups)
    seeds = "seed" if len(command.seeds) == 1 else "seeds"
    print(f"\nTest error with {command.labels} labeled images, {seeds} {' '.join(map(str, command.seeds))}:")
    for method, words in _DEMO_METHODS.items():
        print(f"  {words:<16} {mean_and_deviation([each.error for each in groups[method]])} %")
    print(f"figure: {folder / 'demo.png'}")
    return 0


def _save_groups(path: Path, groups: dict[str, list[Run]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_with(path, lambda temporary: plot_groups(temporary, groups))
