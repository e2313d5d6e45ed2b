"""Files that are either whole or absent: written beside their name, then renamed."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file, then move it to `path` in one step; on failure nothing is left behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """`value` as indented JSON."""
    text = json.dumps(value, indent=2) + "\n"
    write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_csv(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """One line a row under the names of all rows' columns; a row without a column leaves it empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_with(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))
