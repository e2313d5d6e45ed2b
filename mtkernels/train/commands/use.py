"""`mtkernels evaluate`, `predict` and `export`: what a run has trained, put to use."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from ..config import Config, SettingError
from ..data import Evaluation, load_dataset
from ..data.decode import DecodeError
from ..export import export_onnx, export_safetensors, load_exported
from ..files import write_json, write_with
from ..folder import load_model, load_pixels
from ..meter import FEW, error_percents
from ..predict import Predictor, Role, find_images, load_run, predict, read_run, write_predictions
from ..run import usable_device


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure the error of a run's networks once more, on its own images or on others of the same classes."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    role: Role | None = None
    """Which network (when not given: student and teacher)."""
    data: Path | None = None
    """Where the dataset's files are (when not given: where the run had them)."""
    eval_split: Literal["test", "validation", "unlabeled"] | None = None
    """Which of its images (when not given: those that the run was evaluated on)."""
    device: str = "cpu"
    """torch device."""
    workers: int | None = None
    """Processes that read images which are too many for memory (when not given: as many as the run had)."""
    out: Path | None = None
    """File to write the errors to, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Write the class of each image, and how probable it is, as CSV: file,class,probability."""

    run: tyro.conf.Positional[Path]
    """The run's folder, or a .safetensors file of `mtkernels export`."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, and folders: all images in and below them."""
    out: Path = Path("predictions.csv")
    """Where to (-: standard output)."""
    all: bool = False
    """A column for each class, with its probability."""
    role: Role | None = None
    """Which network (when not given: the one whose error stands for the run's method)."""
    device: str = "cpu"
    """torch device."""
    workers: int = 4
    """Threads that read images."""
    batch_size: int = 100
    """Images that go through the network at once."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run's network as one file, with all that its images need."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    role: Role | None = None
    """Which network (when not given: the one whose error stands for the run's method)."""
    format: Literal["safetensors", "onnx"] = "safetensors"
    """safetensors, which mtkernels.train.export.load_exported reads; or onnx, from uint8 images to logits."""
    out: Path | None = None
    """Where to (when not given: `exported` and the format's suffix, in the run's folder)."""


def evaluate(command: Evaluate) -> int:
    """Do it, and return the exit code."""
    config, described = read_run(command.run)
    given = {name: getattr(command, name) for name in ("data", "eval_split", "workers", "device")}
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    config.validate()
    device = usable_device(command.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    roles: list[Role] = [command.role] if command.role else ["student", "teacher"]
    models = [load_model(command.run, role).to(device) for role in roles]
    evaluation = _evaluation(command.run, config, tuple(described["class_names"]), device)
    found = dict(zip(roles, error_percents(models, evaluation), strict=True))
    broken = evaluation.batches.quarantine.broken if evaluation.batches is not None else {}
    for name, reason in sorted(broken.items()):
        print(f"{name} left out: {reason}", file=sys.stderr)
    top5 = evaluation.classes > FEW
    words = [f"{role} {one:.2f}%" + f" (top-5 {five:.2f}%)" * top5 for role, (one, five) in found.items()]
    images = len(evaluation) - len(broken)
    print(f"error on {images:,} {config.eval_split} images: {', '.join(words)}")
    if command.out is not None:
        errors: dict[str, object] = {f"{role}_error": one for role, (one, _) in found.items()}
        errors |= {f"{role}_error5": five for role, (_, five) in found.items() if top5}
        write_json(command.out, errors | {"eval_split": config.eval_split, "images": images})
    return 0


def _evaluation(
    folder: Path, config: Config, class_names: tuple[str, ...], device: torch.device
) -> Evaluation:
    """The images of `config`, normalised as the run's: by the statistics of the images that it was trained on."""
    config = replace(config, normalize="none")
    if config.eval_split == "test":  # whatever is labeled
        config = replace(config, labels="all", extra_unlabeled=0)
    data = load_dataset(config).to(device)
    if data.raw.class_names != class_names:
        strange = sorted(set(data.raw.class_names) ^ set(class_names))
        raise SettingError(
            f"data must have the run's {len(class_names)} classes, got {len(data.raw.class_names)},"
            f" of which {', '.join(strange[:3]) or 'the order'} differ"
        )
    evaluation = Evaluation(config, data)
    evaluation.pixels = load_pixels(folder)
    return evaluation


def predict_files(command: Predict) -> int:
    """Do it, and return the exit code: 1 where images are broken."""
    if command.batch_size < 1:
        raise SettingError(f"batch_size must be 1 or more, got {command.batch_size}")
    if not command.images:
        raise SettingError("images must be files or folders, got none")
    paths = find_images(command.images)
    predictor = _predictor(command)
    broken: list[DecodeError] = []
    batches = predict(
        predictor, paths, batch_size=command.batch_size, workers=command.workers, on_broken=broken.append
    )

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            write_predictions(file, batches, predictor.class_names, all_classes=command.all)

    if str(command.out) == "-":
        write_predictions(sys.stdout, batches, predictor.class_names, all_classes=command.all)
    else:
        write_with(command.out, write)
        print(f"{len(paths) - len(broken):,} images: {command.out}")
    for error in broken:
        print(f"{error.path} left out: {error.reason}", file=sys.stderr)
    return 1 if broken else 0


def _predictor(command: Predict) -> Predictor:
    device = usable_device(command.device)
    if not command.run.is_file():
        return load_run(command.run, command.role, device)
    if command.role is not None:
        raise SettingError(f"role must not be given for an exported network, got {command.role}")
    return load_exported(command.run, device)


def export(command: Export) -> int:
    """Do it, and return the exit code."""
    suffix = "safetensors" if command.format == "safetensors" else "onnx"
    out = command.run / f"exported.{suffix}" if command.out is None else command.out
    if command.format == "onnx":
        print(f"{out}: {export_onnx(command.run, out, command.role)}")
    else:
        export_safetensors(command.run, out, command.role)
        print(f"{out}: for mtkernels.train.export.load_exported")
    return 0
