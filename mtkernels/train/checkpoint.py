"""Checkpoints: folders that are whole or absent, are checked byte by byte when they are read, and run no code.

    checkpoints/step-000002000/ state.safetensors  state.json  manifest.json: size and SHA-256 of the two

A checkpoint is written into a folder with another name, flushed to the disk, then renamed; older ones go after that.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .config import SettingError

FOLDER = "checkpoints"
_TENSORS, _NUMBERS, _MANIFEST = "state.safetensors", "state.json", "manifest.json"
_FORMAT = 1
_NAME = r"step-\d{9,}"


class Checkpoint(NamedTuple):
    """What was read from one."""

    tensors: dict[str, Tensor]  # on the CPU
    numbers: dict[str, object]  # as JSON has them


class DamagedCheckpointError(SettingError):
    """A checkpoint of which a file is missing, shorter, longer or changed."""


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, object], *, keep: int = 2
) -> Path:
    """Write checkpoints/step-N of a run's folder, and leave the `keep` newest. Tensors: contiguous, on the CPU.

    OSError where that fails, a full disk say: then what was there before is still there, and nothing else.
    """
    parent = folder / FOLDER
    parent.mkdir(exist_ok=True)
    target, temporary = parent / name_of(step), parent / f".{name_of(step)}.{os.getpid()}.tmp"
    temporary.mkdir()
    try:
        save_tensors(temporary / _TENSORS, tensors)
        _write_json(temporary / _NUMBERS, {"format": _FORMAT, "step": step, **numbers})
        files = {name: _facts(temporary / name) for name in (_TENSORS, _NUMBERS)}
        _write_json(temporary / _MANIFEST, {"format": _FORMAT, "files": files})
        for name in (*files, _MANIFEST):
            _flush(temporary / name)
        _flush(temporary)
        if target.exists():  # a run that went back to an earlier checkpoint comes by again
            _remove(target)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush(parent)
    _flush(folder)  # of `parent`, which may be new
    with contextlib.suppress(OSError):  # the new one is there, whatever becomes of the old ones
        for old in checkpoints(folder)[:-keep]:
            _remove(old)
    return target


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file; OSError where the disk refuses it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # how it reports what the disk says
        raise OSError(str(error)) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check one; DamagedCheckpointError names the file that is not as it was written."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = _read_json(path / _MANIFEST)
    if manifest.get("format") != _FORMAT:
        raise DamagedCheckpointError(
            f"{path / _MANIFEST} must be of format {_FORMAT}, got {manifest.get('format')}"
        )
    for name in (_TENSORS, _NUMBERS):
        _check(path / name, manifest)
    try:
        return Checkpoint(load_file(path / _TENSORS), _read_json(path / _NUMBERS))
    except SafetensorError as error:
        raise DamagedCheckpointError(f"{path / _TENSORS} is damaged: {error}") from None


def _check(file: Path, manifest: Mapping[str, Any]) -> None:
    """Hold a file against the manifest of its checkpoint."""
    try:
        known = manifest["files"][file.name]
        size, digest = known["bytes"], known["sha256"]
    except (KeyError, TypeError):
        raise DamagedCheckpointError(
            f"{file.with_name(_MANIFEST)} is damaged: it has no size and SHA-256 of {file.name}"
        ) from None
    if not file.exists():
        raise DamagedCheckpointError(f"{file} is missing")
    facts = _facts(file)
    if facts["bytes"] != size:
        raise DamagedCheckpointError(f"{file} is damaged: it must have {size} bytes, got {facts['bytes']}")
    if facts["sha256"] != digest:
        raise DamagedCheckpointError(f"{file} is damaged: its SHA-256 is not what {_MANIFEST} says")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` is, or the newest of the run's folder that it is; SettingError where there is none."""
    whole = Path(os.path.abspath(path))  # step-000000010 alone, say, within the folder that it is in
    if whole.parent.name == FOLDER and re.fullmatch(_NAME, whole.name):
        return whole
    found = checkpoints(path)
    if not found:
        raise SettingError(
            f"resume must be a run's folder with a checkpoint, or a checkpoint in one, got {path}"
        )
    return found[-1]


def newest_sound(path: Path) -> tuple[Path, Checkpoint]:
    """The checkpoint at `path`. Where it is damaged, the sentence says so, and which one before it is not."""
    found = find_checkpoint(path)
    try:
        return found, read_checkpoint(found)
    except DamagedCheckpointError as error:
        before = [other for other in checkpoints(found.parents[1]) if other.name < found.name]
        for other in reversed(before):
            try:
                read_checkpoint(other)
            except DamagedCheckpointError:
                continue
            raise DamagedCheckpointError(f"{error}; the one before is sound: --resume {other}") from error
        raise DamagedCheckpointError(f"{error}; there is no sound one before it") from error


def checkpoints(folder: Path) -> list[Path]:
    """Those of a run's folder, the oldest first."""
    parent = folder / FOLDER
    names = os.listdir(parent) if parent.is_dir() else []
    return [parent / name for name in sorted(names) if re.fullmatch(_NAME, name)]


def clean_checkpoints(folder: Path, *, after: int) -> None:
    """Remove those of later steps than `after`, and what writes and removals that were cut short have left in a run."""
    for path in (folder / FOLDER).glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for path in checkpoints(folder):
        if path.name > name_of(after):
            _remove(path)


def name_of(step: int) -> str:
    """A checkpoint's folder; names sort as steps do."""
    return f"step-{step:09d}"


def _remove(path: Path) -> None:
    """At once, for those who look: a folder that is half gone has another name."""
    going = path.with_name(f".{path.name}.gone.tmp")
    shutil.rmtree(going, ignore_errors=True)
    os.rename(path, going)
    shutil.rmtree(going, ignore_errors=True)


def _facts(path: Path) -> dict[str, object]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path} is missing") from None
    except ValueError as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise DamagedCheckpointError(f"{path} is damaged: it must hold an object, got {type(value).__name__}")
    return value


def _flush(path: Path) -> None:
    """Until the disk has it: a file's contents, or a folder's names."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
