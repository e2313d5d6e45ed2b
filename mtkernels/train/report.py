"""`mtkernels report`: run folders read back, grouped over seeds, as tables and a figure."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import Config
from .meter import Record
from .methods import METHODS

# What does not tell two experiments apart: the seed, and settings that a run's result does not depend on.
_NOT_COMPARED = {"seed", "name", "out", "threads", "eval_interval", "workers", "device", "data", "pictures"}
_NOT_COMPARED |= {"print_interval", "checkpoint_interval", "keep_checkpoints", "tensorboard", "best_by_test"}
_NOT_COMPARED |= {"compile", "channels_last", "cuda_graph", "fsdp"}
_CONFIG_NAMES = ("method", "labels", "seed", "eval_split")  # what a run needs to be reported
_SUMMARY_NAMES = ("interrupted", "steps_done", "seconds", "student_error", "teacher_error")


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    config: dict[str, object]
    summary: dict[str, object]
    records: list[Record]

    @property
    def headline(self) -> str:
        """Whose error stands for the method."""
        return METHODS[str(self.config["method"])].headline

    @property
    def error(self) -> float:
        """The headline model's last error, in percent."""
        return float(self.summary[f"{self.headline}_error"])


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All finished runs in and below `paths`, and a sentence for each one that is left out."""
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        folders.update(dict.fromkeys(file.parent for file in sorted(path.rglob("config.json"))))
    runs, notes = [], []
    for folder in folders:
        try:
            run = _read_run(folder)
        except (OSError, ValueError, KeyError) as error:
            notes.append(f"{folder} left out: {_reason(folder, error)}")
            continue
        if run.summary["interrupted"]:
            notes.append(f"{folder} left out: interrupted at step {run.summary['steps_done']}")
        else:
            runs.append(run)
    return runs, notes


def _read_run(folder: Path) -> Run:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for values, names in ((config, _CONFIG_NAMES), (summary, _SUMMARY_NAMES)):
        for name in names:
            values[name]  # a KeyError here names what is missing
    config = Config().as_dict() | config  # a run of an older version had what is now the default
    return Run(folder, config, summary, [json.loads(line) for line in lines])


def _reason(folder: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        name = Path(error.filename).name
        return f"it has no {name} (still running, or it died{_how_far(folder)})"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return f"a file of it cannot be read ({error})"


def _how_far(folder: Path) -> str:
    """', evaluated up to step 9 of 20' (or of 2 epochs) by the last whole line of metrics; '' where there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        step = json.loads(lines[-1])["step"]
    except (OSError, ValueError, KeyError, IndexError):
        return ""
    length = config["steps"] if config.get("steps") else f"{config.get('epochs')} epochs"
    return f", evaluated up to step {step} of {length}"


def group_runs(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], list[str]]:
    """Runs that differ by nothing but the seed, under a label that says what tells the groups apart.

    A seed that was run twice with the same settings counts once, in its last folder: it is no new evidence.
    """
    keys: dict[str, dict[object, Run]] = {}
    notes = []
    for run in runs:
        compared = {name: value for name, value in run.config.items() if name not in _NOT_COMPARED}
        seeds = keys.setdefault(json.dumps(compared, sort_keys=True), {})
        if run.config["seed"] in seeds:
            notes.append(f"{seeds[run.config['seed']].folder} left out: {run.folder} repeats it")
        seeds[run.config["seed"]] = run
    groups = [list(seeds.values()) for seeds in keys.values()]
    return {_label(group[0].config, [g[0].config for g in groups]): group for group in groups}, notes


def _label(config: Mapping[str, object], configs: Sequence[Mapping[str, object]]) -> str:
    """The method, then each other setting in which the groups differ."""
    names = [name for name in config if name not in _NOT_COMPARED and name != "method"]
    differing = [name for name in names if any(other.get(name) != config[name] for other in configs)]
    return ", ".join([str(config["method"]), *(f"{name} {config[name]}" for name in differing)])


def table(groups: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """Header and one row a group: labels, runs, student's and teacher's error (mean ± sample deviation)."""
    rows = [["runs that differ by the seed", "labels", "n", "student error %", "teacher error %", "seconds"]]
    for label, runs in groups.items():
        errors = [
            mean_and_deviation([float(run.summary[f"{role}_error"]) for run in runs])
            for role in ("student", "teacher")
        ]
        seconds = statistics.mean(float(run.summary["seconds"]) for run in runs)
        rows.append([label, str(runs[0].config["labels"]), str(len(runs)), *errors, f"{seconds:.0f}"])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header."""
    header, *body = (f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |\n" for row in rows)
    return header + "|---" * len(rows[0]) + "|\n" + "".join(body)


def each_run(groups: Mapping[str, Sequence[Run]]) -> list[dict[str, object]]:
    """A row a run, as CSV holds it: the group's label, folder, seed, errors in percent, steps, seconds."""
    return [
        {"runs": label, "folder": str(run.folder), "seed": run.config["seed"]}
        | {name: run.summary[name] for name in ("student_error", "teacher_error", "steps_done", "seconds")}
        for label, runs in groups.items()
        for run in runs
    ]


def mean_and_deviation(values: Sequence[float]) -> str:
    """'mean +- sample standard deviation'; the mean alone where there is one value."""
    mean = statistics.mean(values)
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ± {statistics.stdev(values):.2f}"
