"""Files that are either whole or absent (written beside their name, then renamed), and names for them."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def free_path(path: Path) -> Path:
    """`path`, or path-2, -3 ... where that exists."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file, then move it to `path` in one step; a failure leaves nothing."""
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
