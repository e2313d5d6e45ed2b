"""`mtkernels presets`: what can be trained with one command."""

from dataclasses import dataclass

import tyro

from ..config import SettingError
from ..console import print_table
from ..presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class Presets:
    """List the presets, each with the error that its publishers report."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """List those alone whose name has all of these in it."""


def presets(command: Presets) -> int:
    """Do it, and return the exit code."""
    found = [name for name in PRESETS if all(word in name for word in command.words)]
    if not found:
        raise SettingError(f"no preset has {' and '.join(map(repr, command.words))} in its name")
    rows = [["preset", "what it is", "labels", "published error %"]]
    rows += [
        [name, PRESETS[name].about, str(PRESETS[name].config.labels), PRESETS[name].published]
        for name in found
    ]
    print_table(rows)
    return 0
