"""`mtkernels train`: settings from a preset, then a TOML file, then flags."""

import argparse
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

from ..checkpoint import checkpoints, find_checkpoint
from ..config import LENGTHS, Config, SettingError, suggestion
from ..distributed import is_main
from ..interrupt import Noted
from ..presets import PRESETS
from ..resume import AtItsEndError
from ..run import prepare, run

_REFERENCE = {
    "digits": "digits",
    "imagenet": "reference-imagenet",
}  # where no preset is named; by the dataset


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one model, and write its run folder. The preset's settings come first, then the file's, then the flags'."""

    preset: str = "digits"
    """Named settings (`mtkernels presets` lists them); when not given, the published defaults for the dataset."""
    config_file: Path | None = None
    """TOML file of settings, as --print-config writes it."""
    print_config: bool = False
    """Print the settings as TOML, and do nothing."""
    dry_run: bool = False
    """Read the data, build the networks, say what would be trained; write nothing."""
    resume: str | None = None
    """Go on from a run's folder or one of its checkpoints, with its settings and those given here; auto: from the
    folder that --name names, where there is one (the same command starts a run and restarts it)."""
    config: tyro.conf.FlagConversionOff[tyro.conf.OmitArgPrefixes[Config]]


def defaults(argv: Sequence[str]) -> Train:
    """What the flags of `argv` start from."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("preset", "config-file", "dataset", "resume"):
        early.add_argument(f"--{name}")
    found = argparse.Namespace(preset=None, config_file=None, dataset=None, resume=None)
    with contextlib.suppress(argparse.ArgumentError):  # tyro will say what is wrong with it
        found = early.parse_known_args(argv)[0]
    if found.resume not in (None, "auto") and not (found.preset or found.config_file):
        return Train(preset="the run's", config=settings_of_run(Path(found.resume)))
    settings = read_settings(Path(found.config_file)) if found.config_file else {}
    dataset = found.dataset or settings.get("dataset", "digits")
    preset = found.preset or settings.pop("preset", None) or _REFERENCE.get(dataset, "reference")
    settings.pop("preset", None)
    if preset not in PRESETS:
        raise SettingError(
            f"preset must be one that `mtkernels presets` lists, got {preset!r}{suggestion(preset, PRESETS)}"
        )
    base = PRESETS[preset].config.as_dict()
    _check_units(base, settings, argv, preset)
    for given, other in (("epochs", "steps"), ("steps", "epochs")):
        if given in settings and other not in settings:
            settings[other] = None
    file = Path(found.config_file) if found.config_file else None
    return Train(preset=preset, config_file=file, config=Config.from_dict(base | settings))


def _check_units(
    base: Mapping[str, object], settings: Mapping[str, object], argv: Sequence[str], preset: str
) -> None:
    """A training that is given in the other unit than the preset's must give its other lengths too."""
    given = set(settings)
    for word, value in zip(argv, [*argv[1:], ""], strict=False):
        if word.startswith("--") and value != "None":
            given.add(word[2:].replace("-", "_"))
    for unit, other in (("epochs", "steps"), ("steps", "epochs")):
        if unit in given and other not in given and base[unit] is None:
            left = [name for name in LENGTHS if base[name] and name not in given]
            if left:
                raise SettingError(
                    f"{', '.join(left)} must be given in {unit} too, as {preset!r} has them in {other}"
                )


def settings_of_run(path: Path) -> Config:
    """Those that a run's folder, or that of its checkpoint, was trained with."""
    return settings_in(find_checkpoint(path).parents[1])


def settings_in(folder: Path) -> Config:
    """Those in a run's folder."""
    file = folder / "config.json"
    try:
        return Config.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SettingError(
            f"resume must be a run's folder, or a checkpoint in it: {file}: {error}"
        ) from error


def read_settings(path: Path) -> dict[str, object]:
    """The settings of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"config_file {path} cannot be read: {error}") from error


def as_toml(config: Config) -> str:
    """The settings as TOML, which has no None: there it is the word none."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in config.as_dict().items())


def _toml(value: object) -> str:
    if value is None or isinstance(value, bool):
        return '"none"' if value is None else str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else repr(value)


def resumed(command: Train) -> Path | None:
    """The run or checkpoint to go on from."""
    if command.resume != "auto":
        return None if command.resume is None else Path(command.resume)
    config = command.config
    if config.name is None:
        raise SettingError("name must be given where resume is auto, got None")
    folder = config.out / config.name
    if checkpoints(folder):
        return folder
    if is_main() and _is_begun(folder):
        _clear(folder)
    return None


def _is_begun(folder: Path) -> bool:
    """Whether it is what a run has left that was killed before its first checkpoint."""
    names = os.listdir(folder) if folder.is_dir() else []
    if "config.json" not in names or {"summary.json", "best.safetensors"} & set(names):
        return all(name.startswith(".") and name.endswith(".tmp") for name in names)
    try:
        settings_in(folder)
    except SettingError:  # another program's
        return False
    return True


def _clear(folder: Path) -> None:
    """What tells that it may be removed goes last: this may be killed, too."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def train(command: Train) -> int:
    """Do it, and return the exit code."""
    if command.print_config:
        command.config.validate()
        print(as_toml(command.config), end="")
        return 0
    if command.dry_run:
        return dry_run(command.config)
    try:
        return train_one(command.config, resume=resumed(command))
    except AtItsEndError as end:
        if command.resume != "auto":
            raise
        if is_main():
            print(f"mtkernels: {end}")
        return 0


def dry_run(config: Config) -> int:
    """Say what would be trained."""
    data, batches, method = prepare(config)
    weights = sum(weight.numel() for weight in method.student.parameters())
    pool, labeled = len(data.pool), len(data.labeled)
    print(
        f"{config.dataset}: {pool:,} training images, {labeled:,} of them labeled, {data.classes} classes;",
        end=" ",
    )
    print(f"errors on {len(data.evaluation):,} {config.eval_split} images")
    print(f"{config.arch}: {weights:,} weights, {config.heads} head{'s' * (config.heads > 1)}")
    timeline = method.timeline
    epochs = timeline.steps / batches.steps_per_epoch
    print(
        f"{config.method}: {timeline.steps:,} steps, {epochs:,.1f} epochs of {batches.steps_per_epoch:,} steps"
    )
    return 0


def train_one(config: Config, *, resume: Path | None = None) -> int:
    """Train, say how it ended, and return the exit code."""
    with Noted() as noted:
        folder, summary = run(config, resume=resume)
    code = 128 + (noted.signal or signal.SIGINT) if summary["interrupted"] else 0  # as shells have it
    if not is_main():
        return code
    end = "stopped at step" if summary["interrupted"] else "finished step"
    found = [role for role in ("student", "teacher") if f"{role}_error" in summary]
    errors = ", ".join(f"{role} {summary[f'{role}_error']:.2f}%" for role in found)
    error = f", error on {config.eval_split} images: {errors}" if errors else ""
    print(f"{end} {summary['steps_done']} after {summary['seconds']:.0f} s{error}; all in {folder}")
    return code
