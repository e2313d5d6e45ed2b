"""A trained network with all that its images need: from image files to probabilities of classes."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from torch import Tensor, nn

from .config import Config, SettingError
from .data.dataset import resized
from .data.decode import DecodeError, decode, in_threads, resize_crop
from .data.folder import IMAGENET_MEAN, SUFFIXES, walk
from .data.stream import default_side
from .folder import facts_of, load_model, load_pixels, read_folder
from .methods import METHODS
from .methods.method import heads_of

Role = Literal["teacher", "student", "best"]
_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32, "svhn": 32}  # of datasets whose images have one


@dataclass(frozen=True)
class Reader:
    """Reads an image file as a run's dataset and its evaluation do."""

    channels: int
    levels: int  # the pixel value that stands for 1
    size: tuple[int, int]  # height and width that networks get
    # The shorter side becomes so many pixels, then the centre is cut out. None: all of the image becomes `size`.
    side: int | None
    least: int = 0  # pixels that a scaled decode leaves of the shorter side (0: it is decoded in full)

    def __call__(self, path: Path) -> Tensor:
        """uint8 [channels, height, width]; DecodeError for an image that is broken, or cannot have that size."""
        image = decode(path, self.least)
        if self.side is not None:
            image = resize_crop(image, side=self.side, size=self.size[0])
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        if self.channels == 1:
            pixels = _grey(pixels)
        if self.levels != 255:
            pixels = (pixels.float() * (self.levels / 255)).round().to(torch.uint8)
        height, width = self.size
        if height == width:
            return resized(pixels[None], height)[0]
        if tuple(pixels.shape[1:]) != self.size:
            found = " x ".join(map(str, pixels.shape[1:]))
            raise DecodeError(path, f"must have {height} x {width} pixels, got {found}")
        return pixels


def _grey(pixels: Tensor) -> Tensor:
    """Luma of ITU-R 601, as Pillow has it; equal channels stay as they are."""
    red, green, blue = pixels.int()
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8)[None]


@dataclass(frozen=True)
class Predictor:
    """Maps uint8 images [rows, channels, height, width], as `reader` reads them, to logits [rows, classes]."""

    model: nn.Module
    pixels: Callable[[Tensor], Tensor]  # uint8 images -> what the model takes
    reader: Reader
    class_names: tuple[str, ...]
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return heads_of(self.model(self.pixels(images.to(self.device))))[0].float()


def load_run(folder: Path, role: Role | None = None, device: torch.device | str = "cpu") -> Predictor:
    """The predictor of a run; role None: the model whose error stands for the run's method."""
    config, described = read_run(folder)
    return Predictor(
        load_model(folder, role or METHODS[config.method].headline).to(device),
        load_pixels(folder),
        make_reader(config, described),
        tuple(described["class_names"]),
        torch.device(device),
    )


def read_run(folder: Path) -> tuple[Config, dict[str, Any]]:
    """A run's settings and its dataset.json; SettingError for what is no run's folder."""
    for name in ("config.json", "dataset.json"):
        if not (folder / name).is_file():
            raise SettingError(f"{folder} must be a run's folder: it has no {name}")
    return read_folder(folder)


def make_reader(config: Config, described: dict[str, Any]) -> Reader:
    """How the images of a run were read when it was evaluated; `described`: its dataset.json."""
    facts = facts_of(described)
    if facts.channels not in (1, 3):
        raise SettingError(
            f"images must have 1 or 3 channels to be read from files, got a run of {facts.channels}"
        )
    folders = config.dataset in ("imagenet", "folder")
    on_disk = described.get("on_disk", folders and tuple(facts.mean) == IMAGENET_MEAN)
    known = 224 if on_disk else _SIZES.get(config.dataset)
    size = described.get("size") or [config.image_size or known] * 2
    if size[0] is None:
        raise SettingError("the run's dataset.json must have the images' size: it is of an older version")
    side, least = None, 0
    if on_disk:
        side = default_side(size[0])
    elif folders:
        side, least = size[0], 2 * size[0]
    return Reader(facts.channels, facts.levels, (size[0], size[1]), side, least)


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Image files among `paths` and below those that are folders, each once, by name."""
    found: set[str] = set()
    for path in paths:
        if path.is_dir():
            below = list(walk(str(path), str(path), frozenset()))
            if not below:
                raise SettingError(f"{path} has no images ({', '.join(SUFFIXES)})")
            found.update(map(os.path.normpath, below))
        elif path.exists():
            found.add(os.path.normpath(path))
        else:
            raise FileNotFoundError(f"{path} does not exist")
    return [Path(name) for name in sorted(found)]


def predict(
    predictor: Predictor,
    paths: Sequence[Path],
    *,
    batch_size: int,
    workers: int,
    on_broken: Callable[[DecodeError], None],
) -> Iterator[tuple[list[Path], Tensor]]:
    """Files and their probabilities [rows, classes], in order; those that are broken are left out.

    workers: threads that decode, which do so beside each other and beside the network.
    """

    def read(at: int) -> Tensor | DecodeError:
        try:
            return predictor.reader(paths[at])
        except DecodeError as error:
            return error

    names, images = [], []
    for at, image in enumerate(in_threads(read, len(paths), max(workers, 1))):
        if isinstance(image, DecodeError):
            on_broken(image)
        else:
            names.append(paths[at])
            images.append(image)
        if names and (len(names) == batch_size or at + 1 == len(paths)):
            yield names, predictor(torch.stack(images)).softmax(1).cpu()
            names, images = [], []


def write_predictions(
    file: TextIO,
    batches: Iterable[tuple[list[Path], Tensor]],
    class_names: Sequence[str],
    *,
    all_classes: bool,
) -> int:
    """CSV file,class,probability, and with `all_classes` a column of probabilities for each; returns the rows."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "class", "probability", *(class_names if all_classes else ())])
    rows = 0
    for names, probs in batches:
        highest, classes = probs.max(1)
        for name, high, at, row in zip(
            names, highest.tolist(), classes.tolist(), probs.tolist(), strict=True
        ):
            rest = [f"{p:.6f}" for p in row] if all_classes else []
            writer.writerow([name, class_names[at], f"{high:.6f}", *rest])
        rows += len(names)
    return rows
