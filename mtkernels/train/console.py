"""What a run shows while it trains: a rich progress bar on a terminal, else one plain line per evaluation."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .config import Config
from .meter import Record

Show = Callable[[Record], None]


@contextmanager
def progress(config: Config, folder: Path) -> Iterator[Show]:
    """Yields a function to call with each record."""
    print(
        f"{config.method} on {config.dataset}, {config.labels} labels, seed {config.seed} -> {folder}",
        flush=True,
    )
    try:
        from rich.progress import Progress
    except ModuleNotFoundError:
        Progress = None
    if Progress is None or not sys.stdout.isatty():
        yield lambda record: print(f"step {record['step']:>6}/{config.steps}  {describe(record)}", flush=True)
        return
    with _rich_progress() as bar:
        task = bar.add_task("", total=config.steps, text="")
        yield lambda record: bar.update(task, completed=record["step"], text=describe(record))


def describe(record: Record) -> str:
    """The record in one line: losses, errors, speed."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in record.items() if name.endswith("_loss"))
    return (
        f"{losses}  error: student {record['student_error']:.1f}%, teacher {record['teacher_error']:.1f}%"
        f"  {record['images_per_second']:.0f} images/s"
    )


def _rich_progress():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )


def print_table(rows: list[list[str]]) -> None:
    """`rows`, the first of them the header, as a rich table, or in plain columns where rich is not there."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    header, *body = rows
    grid = Table(*header)
    for row in body:
        grid.add_row(*row)
    Console().print(grid)
