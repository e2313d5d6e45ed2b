"""Where a run begins: anew, or from a checkpoint of what was trained with the same data and network."""

from dataclasses import dataclass, field
from pathlib import Path

from .checkpoint import Checkpoint, newest_sound
from .config import Config, SettingError
from .meter import Record

# What the numbers in a checkpoint are of, and the order of the batches: they stay. All else may change.
FIXED = ("method", "dataset", "labels", "extra_unlabeled", "validation", "exclude_unlabeled", "seed")
FIXED += ("batch_size", "labeled_batch_size", "unlabeled_from", "arch", "width", "image_size", "optimizer")
FIXED += ("normalize",)


class AtItsEndError(SettingError):
    """A run whose training is done, as far as its settings ask for it."""


@dataclass(frozen=True)
class Start:
    """What was there before this session."""

    folder: Path | None = None
    checkpoint: Checkpoint | None = None
    step: int = 0  # steps done
    seconds: float = 0.0
    records: list[Record] = field(default_factory=list)
    best: Record | None = None
    finished: bool = False  # whether its files were written, too
    changed: dict[str, tuple[object, object]] = field(default_factory=dict)  # setting -> before, now

    def is_over(self, steps: int) -> bool:
        """Whether nothing is left to do. A run that was killed after its last step has its files to write."""
        evaluated = bool(self.records) and self.records[-1]["step"] == steps
        return self.step > steps or (self.step == steps and (self.finished or not evaluated))


def start_of(path: Path | None, config: Config) -> Start:
    """The start from a run's folder or a checkpoint; a damaged one, or one of other settings, is refused."""
    if path is None:
        return Start()
    found, checkpoint = newest_sound(path)
    numbers, folder = checkpoint.numbers, found.parents[1]
    before, now = numbers["config"], config.as_dict()
    changed = {name: (before.get(name), now[name]) for name in now if before.get(name) != now[name]}
    for name in FIXED:
        if name in changed:
            raise SettingError(
                f"{name} must be as in the run ({changed[name][0]}) to resume it, got {now[name]}"
            )
    if (before["logit_distance_cost"] >= 0) != (config.heads == 2):
        raise SettingError(
            f"logit_distance_cost must leave the network its heads to resume it ({before['logit_distance_cost']:g}"
            f" in the run), got {config.logit_distance_cost:g}"
        )
    return Start(
        folder,
        checkpoint,
        step=numbers["step"],
        seconds=numbers["seconds"],
        records=numbers["records"],
        best=None if "eval_split" in changed else numbers["best"],  # errors of two splits are not compared
        finished=(folder / "summary.json").exists(),
        changed=changed,
    )
