"""Label files: a line `filename class` for each labeled image; images that none names are unlabeled."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import SettingError
from ..files import write_with
from .raw import NO_LABEL, ImageSet


def image_names(images: ImageSet) -> tuple[str, ...]:
    """What a label file calls the images: their files' names or, where they have none, positions "0", "1" ..."""
    return images.names or tuple(map(str, range(len(images))))


def read_label_file(path: Path, names: Sequence[str], class_names: Sequence[str]) -> Tensor:
    """int64 labels of the images called `names` (`image_names`), NO_LABEL where the file has no line for one.

    Folders before a filename count neither in `names` nor in the file. Raises SettingError, with line and value, for
    a filename that is not in the data or not one image's alone, for one with two lines, and for an unknown class.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"label file {path} cannot be read: {error}") from error
    classes = {name: number for number, name in enumerate(class_names)}
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(_basename(name), []).append(place)
    labels = torch.full((len(names),), NO_LABEL)
    first_line: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        place, label = _place_and_label(line.strip(), places, classes, where)
        if place in first_line:
            raise SettingError(f"{where}: {names[place]} is also on line {first_line[place]}")
        first_line[place] = number
        labels[place] = label
    if not first_line:
        raise SettingError(f"label file {path} labels no image")
    return labels


def write_label_file(path: Path, labels: Tensor, names: Sequence[str], class_names: Sequence[str]) -> None:
    """A line for each image whose label is not NO_LABEL, in the images' order; `read_label_file` gives it back."""
    lines = [
        f"{_basename(name)} {class_names[label]}\n"
        for name, label in zip(names, labels.tolist(), strict=True)
        if label != NO_LABEL
    ]
    write_with(path, lambda temporary: temporary.write_text("".join(lines), encoding="utf-8"))


def _basename(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _place_and_label(
    line: str, places: dict[str, list[int]], classes: dict[str, int], where: str
) -> tuple[int, int]:
    halves = list(_halves(line))
    if not halves:
        raise SettingError(f"{where} must be `filename class`, got {line!r}")
    fitting = (half for half in halves if half[0] in places and half[1] in classes)
    name, class_name = next(fitting, halves[0])
    if name not in places:
        raise SettingError(f"{where}: no training image is called {name!r}")
    if class_name not in classes:
        raise SettingError(f"{where}: {class_name!r} is no class of this dataset")
    if len(places[name]) > 1:
        raise SettingError(f"{where}: {len(places[name])} training images are called {name!r}")
    return places[name][0], classes[class_name]


def _halves(line: str) -> Iterator[tuple[str, str]]:
    """Each way to read the line, as filenames and classes may have spaces too; the class of one word first."""
    words = line.split(" ")
    for at in range(len(words) - 1, 0, -1):
        yield _basename(" ".join(words[:at]).strip()), " ".join(words[at:]).strip()
