"""What a run shows while it trains: a line of metrics per evaluation and, on a terminal, a progress bar."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .config import Config
from .meter import Record

Show = Callable[[Record], None]


@contextmanager
def progress(config: Config, folder: Path, steps: int) -> Iterator[Show]:
    """Yields a function to call with each record of a run of so many steps."""
    title = f"{config.method} on {config.dataset}, {config.labels} labels, seed {config.seed}"
    print(f"{title} -> {folder}", flush=True)
    write: Callable[[str], None] = partial(print, flush=True)
    if not sys.stdout.isatty() or not (bar := _bar("step")):
        yield _lines(write)
        return
    with bar:
        task = bar.add_task("", total=steps)
        show_line = _lines(partial(bar.console.print, highlight=False, soft_wrap=True))

        def show(record: Record) -> None:
            show_line(record)
            bar.update(task, completed=record["step"])

        yield show


@contextmanager
def progress_of(unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yields a function to call with what is done and what there is, of something else than a run."""
    if not sys.stdout.isatty() or not (bar := _bar(unit)):
        yield lambda done, total: None
        return
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(write: Callable[[str], None]) -> Show:
    """Writes records as a table that fits 80 columns; the first record brings the header."""
    widths: dict[str, int] = {}

    def show(record: Record) -> None:
        cells = {"step": f"{record['step']}"}
        cells |= {name: f"{value:.4f}" for name, value in record.items() if name.endswith("_loss")}
        cells |= {f"{role}_error": f"{record[f'{role}_error']:.2f}%" for role in ("student", "teacher")}
        cells["images/s"] = f"{record['images_per_second']:.0f}"
        if not widths:
            widths.update({name: max(len(name), 7) for name in cells})
            write("  ".join(name.rjust(width) for name, width in widths.items()))
        write("  ".join(cell.rjust(widths[name]) for name, cell in cells.items()))

    return show


def _bar(unit: str):
    """rich's progress bar, or None where rich is not installed."""
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        return None
    return Progress(TextColumn(unit), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())


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
    grid = Table()
    for name in header:
        grid.add_column(name, overflow="fold")  # names are to be copied, not cut
    for row in body:
        grid.add_row(*row)
    Console().print(grid)
