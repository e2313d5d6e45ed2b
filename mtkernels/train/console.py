"""What a run shows while it trains: a line of metrics per evaluation and, on a terminal, a progress bar."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Config
from .meter import Record

if TYPE_CHECKING:
    from rich.progress import Progress

Write = Callable[[str], None]


@contextmanager
def progress(config: Config, folder: Path, steps: int, start: int = 0) -> Iterator["Lines"]:
    """Yields what shows a run of so many steps, of which `start` were done before this session."""
    title = f"{config.method} on {config.dataset}, {config.labels} labels, seed {config.seed}"
    print(f"{title} -> {folder}", flush=True)
    if not sys.stdout.isatty() or not (bar := _bar("step", words=True)):
        yield Lines(partial(print, flush=True), told=config.print_interval is not None)
        return
    with bar:
        yield _LinesAndBar(bar, steps, start)


class Lines:
    """Writes records as a table that fits 80 columns; the first record brings the header."""

    def __init__(self, write: Write, *, told: bool) -> None:
        """told: whether the losses between two records are, too."""
        self.write, self.told = write, told
        self.widths: dict[str, int] = {}

    def __call__(self, record: Record) -> None:
        """Show the metrics of an evaluation."""
        cells = {"step": f"{record['step']}"}
        cells |= {name: f"{value:.4f}" for name, value in record.items() if name.endswith("_loss")}
        cells |= {f"{role}_error": f"{record[f'{role}_error']:.2f}%" for role in ("student", "teacher")}
        cells["images/s"] = f"{record['images_per_second']:.0f}"
        if not self.widths:
            self.widths = {name: max(len(name), 7) for name in cells}
            self.write("  ".join(name.rjust(width) for name, width in self.widths.items()))
        self.write("  ".join(cell.rjust(self.widths[name]) for name, cell in cells.items()))

    def tick(self, steps_done: int, losses: Mapping[str, float], images_per_second: float) -> None:
        """Show how far the run is between two evaluations."""
        if self.told:
            self.write(f"step {steps_done}: {_words(losses)}, {images_per_second:.0f} images/s")


class _LinesAndBar(Lines):
    """The same above a progress bar, which has the losses."""

    def __init__(self, bar: "Progress", steps: int, start: int) -> None:
        super().__init__(partial(bar.console.print, highlight=False, soft_wrap=True), told=False)
        self.bar, self.steps, self.start = bar, steps, start
        self.task = bar.add_task("", total=steps, completed=start, words="", left="")
        self.started = time.perf_counter()

    def __call__(self, record: Record) -> None:
        super().__call__(record)
        self._move(int(record["step"]))

    def tick(self, steps_done: int, losses: Mapping[str, float], images_per_second: float) -> None:
        self._move(steps_done, words=f"{images_per_second:.0f} images/s  {_words(losses)}")

    def _move(self, step: int, **fields: str) -> None:
        left = time_left(time.perf_counter() - self.started, step - self.start, self.steps - step)
        self.bar.update(self.task, completed=step, left=left, **fields)


def time_left(seconds: float, done: int, rest: int) -> str:
    """'2 d 3:04:05 left' for `rest` steps, where `done` steps took so many seconds; '' where none is done."""
    if done <= 0:
        return ""
    minutes, second = divmod(round(seconds / done * rest), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d " * (days > 0) + f"{hour}:{minute:02}:{second:02} left"


def _words(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in losses.items())


@contextmanager
def progress_of(unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yields a function to call with what is done and what there is, of something else than a run."""
    if not sys.stdout.isatty() or not (bar := _bar(unit)):
        yield lambda done, total: None
        return
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bar(unit: str, *, words: bool = False) -> "Progress | None":
    """rich's progress bar, with the fields `left` and `words` of its task or rich's time; None without rich."""
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column
    except ModuleNotFoundError:
        return None
    whole = {"table_column": Column(no_wrap=True)}
    start = (TextColumn(unit), MofNCompleteColumn(**whole))
    if not words:
        return Progress(*start, BarColumn(), TimeRemainingColumn())
    # rich's own time is that of the last 30 seconds, in which there may be no step.
    left = TextColumn("{task.fields[left]}", **whole)
    rest = TextColumn("{task.fields[words]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    return Progress(*start, BarColumn(bar_width=12), left, rest, expand=True)


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
