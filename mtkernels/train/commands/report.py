"""`mtkernels report` and `mtkernels demo`: runs side by side."""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from ..console import print_table
from ..files import free_path, write_csv, write_with
from ..plots import plot_groups
from ..presets import PRESETS
from ..report import Run, each_run, group_runs, markdown, mean_and_deviation, read_runs, table
from .train import train_one

_DEMO_METHODS = {"supervised": "supervised-only", "mean-teacher": "Mean Teacher"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Print a table over runs (mean and standard deviation over seeds); save it, a figure and each run's errors."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Run folders, or folders that hold them."""
    out: Path = Path("runs/report.png")
    """Where the figure goes; the table lies beside it as .md, the runs as .csv."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train supervised-only and Mean Teacher on the same few labels of real digits, and compare them."""

    labels: int = 20
    """Labeled images, of 1,297."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each trains both methods."""
    steps: int = PRESETS["digits"].config.steps
    """Length of each training, in optimizer steps."""
    out: Path = Path("runs")
    """Folder that the demo's own folder is made in."""


def report(command: Report) -> int:
    """Do it, and return the exit code."""
    runs, notes = read_runs(command.runs)
    groups, more_notes = group_runs(runs)
    for note in notes + more_notes:
        print(note)
    if not groups:
        raise FileNotFoundError(f"no finished run in {', '.join(map(str, command.runs))}")
    _save_groups(command.out, groups)
    rows = table(groups)
    write_with(command.out.with_suffix(".md"), lambda path: path.write_text(markdown(rows), encoding="utf-8"))
    write_csv(command.out.with_suffix(".csv"), each_run(groups))
    print_table(rows)
    print(f"figure: {command.out}; beside it the table (.md) and each run (.csv)")
    return 0


def demo(command: Demo) -> int:
    """Do it, and return the exit code."""
    folder = free_path(command.out / "demo")
    shared = replace(PRESETS["digits"].config, labels=command.labels, steps=command.steps, out=folder)
    for seed in dict.fromkeys(command.seeds):
        for method in _DEMO_METHODS:
            config = replace(shared, method=method, seed=seed, name=f"{method}-seed{seed}")
            if code := train_one(config):
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
