"""Label files: a line `filename class` for each labeled image; images that none names are unlabeled."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import SettingError
from ..files import write_with
from .raw import NO_LABEL, ImageSet


def image_names(images: ImageSet) -> tuple[str, ...]:
    """What a label file calls the images: positions "0", "1" ... where they have no names, else those of their files.

    Without folders, but where several files have the same name: CLASS/FILE then.
    """
    if not images.names:
        return tuple(map(str, range(len(images))))
    count = Counter(map(_basename, images.names))
    return tuple(base if count[base := _basename(name)] == 1 else name for name in images.names)


def read_label_file(path: Path, names: Sequence[str], class_names: Sequence[str]) -> Tensor:
    """int64 labels of the images called `names` (`image_names`), NO_LABEL where the file has no line for one.

    A filename is looked for as it stands first, then without folders, here and there. Raises SettingError, with line
    and value, for one that is not in the data or not one image's alone, for one with two lines, and for an unknown
    class.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"label file {path} cannot be read: {error}") from error
    classes = {name: number for number, name in enumerate(class_names)}
    images = _Images(names)
    labels = torch.full((len(names),), NO_LABEL)
    first_line: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        place, label = _place_and_label(line.strip(), images, classes, where)
        if place in first_line:
            raise SettingError(f"{where}: {names[place]} is also on line {first_line[place]}")
        first_line[place] = number
        labels[place] = label
    if not first_line:
        raise SettingError(f"label file {path} labels no image")
    return labels


def write_label_file(path: Path, labels: Tensor, names: Sequence[str], class_names: Sequence[str]) -> None:
    """A line for each image whose label is not NO_LABEL, in the images' order; `read_label_file` gives it back.

    `names` are written as they stand: those that `image_names` gives for all the training images.
    """
    lines = [
        f"{name} {class_names[label]}\n"
        for name, label in zip(names, labels.tolist(), strict=True)
        if label != NO_LABEL
    ]
    write_with(path, lambda temporary: temporary.write_text("".join(lines), encoding="utf-8"))


def _basename(name: str) -> str:
    return name.rsplit("/", 1)[-1]


class _Images:
    """Their places by name, whole and without folders."""

    def __init__(self, names: Sequence[str]) -> None:
        self.whole: dict[str, list[int]] = {}
        self.base: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            self.whole.setdefault(name, []).append(place)
            self.base.setdefault(_basename(name), []).append(place)

    def called(self, name: str) -> list[int]:
        return self.whole.get(name) or self.base.get(_basename(name), [])


def _place_and_label(line: str, images: _Images, classes: dict[str, int], where: str) -> tuple[int, int]:
    halves = list(_halves(line))
    if not halves:
        raise SettingError(f"{where} must be `filename class`, got {line!r}")
    fitting = (half for half in halves if half[1] in classes and images.called(half[0]))
    name, class_name = next(fitting, halves[0])
    places = images.called(name)
    if not places:
        raise SettingError(f"{where}: no training image is called {name!r}")
    if class_name not in classes:
        raise SettingError(f"{where}: {class_name!r} is no class of this dataset")
    if len(places) > 1:
        raise SettingError(f"{where}: {len(places)} training images are called {name!r}")
    return places[0], classes[class_name]


def _halves(line: str) -> Iterator[tuple[str, str]]:
    """Each way to read the line, as filenames and classes may have spaces too; the class of one word first."""
    words = line.split(" ")
    for at in range(len(words) - 1, 0, -1):
        yield " ".join(words[:at]).strip(), " ".join(words[at:]).strip()
