"""Who is told how a run goes: metrics.jsonl, the console, TensorBoard where it is asked for."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from .config import Config
from .console import progress
from .meter import Record


class Show:
    """All of them, on the main rank; on the others nobody. A context: leaving it closes what is open."""

    def __init__(
        self, config: Config, folder: Path, steps: int, *, earlier: Sequence[Record] = (), first: int = 0
    ) -> None:
        """earlier: the records of a run that goes on after its step `first`."""
        self.config, self.folder, self.steps = config, folder, steps
        self.earlier, self.first = earlier, first
        self.stack = ExitStack()

    def __enter__(self) -> "Show":
        self.lines = self.stack.enter_context(open(self.folder / "metrics.jsonl", "w", encoding="utf-8"))
        self.board = None
        if self.config.tensorboard:
            from .board import Board

            self.board = Board(self.folder, start=self.first)
            self.stack.callback(self.board.close)
            if (self.folder / "pairs.png").exists():
                self.board.picture(self.folder / "pairs.png", self.first)
        self.console = self.stack.enter_context(
            progress(self.config, self.folder, self.steps, start=self.first)
        )
        for record in self.earlier:
            self._write(record)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def record(self, record: Record) -> None:
        """An evaluation's metrics."""
        self._write(record)
        self.console(record)
        if self.board is not None:
            self.board.record(record)

    def losses(self, steps_done: int, losses: Mapping[str, float], images_per_second: float) -> None:
        """Mean losses since the last evaluation."""
        self.console.tick(steps_done, losses, images_per_second)
        if self.board is not None:
            self.board.losses(steps_done, losses, images_per_second)

    def note(self, sentence: str) -> None:
        """Something out of the ordinary."""
        self.console.write(f"mtkernels: {sentence}")

    def _write(self, record: Record) -> None:
        try:
            self.lines.write(json.dumps(record) + "\n")
            self.lines.flush()  # a run that is killed keeps its metrics
        except OSError as error:  # they are written once more at the end
            self.note(f"metrics.jsonl could not be written: {error}")


class Silent(Show):
    """For the ranks that do not write."""

    def __enter__(self) -> "Silent":
        return self

    def record(self, record: Record) -> None:
        """Nothing."""

    def losses(self, steps_done: int, losses: Mapping[str, float], images_per_second: float) -> None:
        """Nothing."""

    def note(self, sentence: str) -> None:
        """Nothing."""
