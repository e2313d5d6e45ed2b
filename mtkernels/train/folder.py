"""A run's folder: making it, filling it, reading its weights back."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from .checkpoint import checkpoints, clean_checkpoints, read_checkpoint, save_tensors
from .config import Config
from .data import Batches, Dataset, Pixels
from .data.dataset import resized
from .data.labels import write_label_file
from .data.raw import Facts
from .data.whiten import Whitener, Zca
from .distributed import ALONE, Ranks
from .environment import environment
from .files import free_path, write_csv, write_json, write_with
from .loop import build_model
from .meter import Record
from .resume import Start
from .state import below, gathered

Summary = dict[str, object]
# Written when a run ends; of one that goes on they would be old.
_AT_THE_END = ("summary.json", "teacher.safetensors", "student.safetensors", "metrics.csv", "curves.png")
_AT_THE_END += ("confusion.csv", "confusion.png", "mistakes.png")


def make_folder(config: Config) -> Path:
    """A new, empty folder. A taken name is an error if it was asked for; a made-up one gets a free number."""
    if config.name is not None:
        folder = config.out / config.name
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists and is not empty: choose another --name, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    labels = config.labels.stem if isinstance(config.labels, Path) else config.labels
    folder = free_path(config.out / f"{config.dataset}-{config.method}-{labels}-seed{config.seed}")
    folder.mkdir(parents=True)
    return folder


def describe_run(
    folder: Path,
    config: Config,
    data: Dataset,
    batches: Batches,
    start: Start,
    command: Sequence[str] | None = None,
) -> None:
    """Write what is known before the first step: settings, machine, data, some pairs of views.

    Of a run that goes on: what it had after the step it goes on from is removed, its machine noted beside the first.
    """
    from .pictures import write_pairs

    if start.checkpoint is not None:  # first: cut short, it must not be taken for a run that is further on
        for name in _AT_THE_END:
            (folder / name).unlink(missing_ok=True)
        clean_checkpoints(folder, after=start.step)
    write_json(folder / "config.json", config.as_dict())
    described = environment(data.device, command)
    if start.checkpoint is None:
        write_json(folder / "environment.json", described)
        describe_data(folder, data)
        if config.pictures:
            write_pairs(folder, config, data, batches)
        return
    first = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    again = [*first.get("resumed", []), {"step": start.step, **described, "changed": start.changed}]
    write_json(folder / "environment.json", first | {"resumed": again})


def describe_data(folder: Path, data: Dataset) -> None:
    """Write dataset.json and zca.npz, which a network's input and output are read by, and labels.txt: what was labeled.

    A ZCA that was fitted is kept beside the dataset, too: not before, as a dry run writes nothing.
    """
    described = asdict(data.raw) | {"whitening": data.whitening and data.whitening.kind}
    described |= {"images": len(data.pool), "labeled": len(data.labeled)}
    in_memory = isinstance(data.pool.images, Tensor)
    described |= {"size": list(data.pool.images.shape[-2:]) if in_memory else None, "on_disk": not in_memory}
    write_json(folder / "dataset.json", described)
    if data.whitening is not None:
        data.whitening.zca.save(folder / "zca.npz")
        data.whitening.keep()
    if len(data.labeled) < len(data.pool):
        write_label_file(folder / "labels.txt", data.pool.labels, data.pool.names, data.raw.class_names)


def finish_folder(
    folder: Path,
    config: Config,
    records: list[Record],
    best: Record | None,
    *,
    steps_done: int,
    steps: int,
    seconds: float,
) -> Summary:
    """Write metrics.jsonl and .csv, curves.png; summary.json last: its presence says that the run is whole."""
    from .plots import plot_curves

    summary: Summary = {
        "eval_split": config.eval_split,
        "steps_done": steps_done,
        "interrupted": steps_done < steps,
        "seconds": round(seconds, 3),
    }
    if records:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        write_with(folder / "metrics.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))
        write_csv(folder / "metrics.csv", records)
        write_with(folder / "curves.png", lambda path: plot_curves(path, config, records))
        if records[-1]["step"] == steps_done:
            summary = {role: records[-1][role] for role in ("student_error", "teacher_error")} | summary
    if best is not None:
        summary |= {f"best_{name}": best[name] for name in ("student_error", "teacher_error", "step")}
    write_json(folder / "summary.json", summary)
    return summary


def load_model(folder: Path, role: Literal["teacher", "student", "best"] = "teacher") -> nn.Module:
    """The trained network of a run, on the CPU in eval mode: maps what `load_pixels` makes of images to logits.

    best: the one that stands for the method, where its error was lowest. Of a run that was killed, teacher and student
    are those of its last checkpoint.
    """
    config, described = read_folder(folder)
    weights = _weights(folder, role)
    config = replace(config, pretrained=False)  # its weights are in the folder
    model = build_model(config, classes=len(described["class_names"]), channels=described["channels"])
    model.load_state_dict(weights)
    return model.eval()


def load_pixels(folder: Path) -> Callable[[Tensor], Tensor]:
    """What a run's networks take, of uint8 images [rows, channels, height, width] as its dataset has them.

    Images of another size than `image_size` become that size as a dataset's in memory do. Where images stay on disk,
    cut them as an evaluation does, by data.decode.resize_crop.
    """
    config, described = read_folder(folder)
    facts = facts_of(described)
    make: Callable[[Tensor], Tensor] = Pixels(facts, config)
    if described["whitening"] is not None:
        make = Whitener(described["whitening"], facts.levels, Zca.load(folder / "zca.npz"))
    return lambda images: make(resized(images, config.image_size))


def read_folder(folder: Path) -> tuple[Config, dict[str, Any]]:
    """A run's settings, and its dataset.json."""
    settings, described = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "dataset.json")
    )
    return Config.from_dict(settings), described


def facts_of(described: Mapping[str, Any]) -> Facts:
    """Those in a dataset.json."""
    return Facts(**{field.name: described[field.name] for field in fields(Facts)})


def _weights(folder: Path, role: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = folder / f"{role}.safetensors"
    if path.exists() or role == "best" or not checkpoints(folder):
        return load_file(path)
    tensors, _ = read_checkpoint(checkpoints(folder)[-1])
    return below(tensors, f"{role}.")


def write_weights(path: Path, model: nn.Module, ranks: Ranks = ALONE) -> None:
    """Whole tensors, on the main rank; all call it."""
    copies = gathered(((name, value, None) for name, value in model.state_dict().items()), ranks)
    if ranks.main:
        write_with(path, lambda temporary: save_tensors(temporary, copies))
