"""Images in a folder for each class: ImageNet as it is unpacked, and anyone's own data set.

ROOT/train/CLASS/*.jpg       the classes are the folders' names, sorted; images may lie in folders further down
ROOT/train/unlabeled/*.jpg   images without a label (optional)
ROOT/val/CLASS/*.jpg         the test set, of classes that train/ has
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from ..config import SettingError
from .decode import DecodeError, Quarantine, decode, in_threads, resize_crop
from .raw import NO_LABEL, ImageSet, RawData, channel_statistics

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")  # in upper case, too
UNLABELED = "unlabeled"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MOST_BYTES = 2 << 30  # of pixels, that are held in memory unasked


class PathList(Sequence[Path]):
    """Paths below one folder, in two arrays: a million Path objects would be copied into each worker process."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.folder = folder
        self._text = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> Path: ...
    @overload
    def __getitem__(self, at: slice) -> list[Path]: ...
    def __getitem__(self, at: int | slice) -> Path | list[Path]:
        if isinstance(at, slice):
            return [self[place] for place in range(len(self))[at]]
        at = range(len(self))[at]
        return self.folder / os.fsdecode(self._text[self._ends[at] : self._ends[at + 1]].tobytes())


@dataclass(frozen=True)
class Files:
    """Images that stay on disk (raw.ImageFiles)."""

    paths: Sequence[Path]

    def decode(self, at: int, least: int) -> np.ndarray:
        """Image `at` as uint8 [height, width, 3] (decode.decode)."""
        return decode(self.paths[at], least)

    def __len__(self) -> int:
        return len(self.paths)


class Listing(NamedTuple):
    """The images below one folder."""

    files: Files
    names: tuple[str, ...]  # CLASS/FILE; labeled images by class and name, then unlabeled ones
    labels: Tensor  # [count] int64


def class_folders(
    root: Path,
    *,
    train: str = "train",
    test: str = "val",
    image_size: int | None = None,
    in_memory: bool | None = None,
    quarantine: Quarantine | None = None,
) -> RawData:
    """The images of ROOT/train and ROOT/val; `image_size` pixels square and in memory, or on disk (Files).

    `in_memory` None: where `image_size` is given and all take at most 2 GiB. Broken images are then left out and noted
    in `quarantine`, or told of by a warning; on disk, nothing is opened yet. Channel means are those of the images in
    memory, or ImageNet's.
    """
    if in_memory and image_size is None:
        raise SettingError("in_memory needs an image_size: images must be of one size to be held in memory")
    classes, listings = scan(Path(root), train=train, test=test)
    images = sum(len(listing.names) for listing in listings)
    warn, quarantine = quarantine is None, quarantine or Quarantine()
    quarantine.images += images
    if (
        image_size is None
        or in_memory is False
        or (not in_memory and images * image_size**2 * 3 > _MOST_BYTES)
    ):
        sets = [ImageSet(listing.files, listing.labels, listing.names) for listing in listings]
        return RawData(*sets, tuple(classes), IMAGENET_MEAN, IMAGENET_STD)
    sets = [_load(listing, image_size, quarantine) for listing in listings]
    if warn and quarantine.broken:
        lines = "; ".join(quarantine.lines())
        warnings.warn(f"{len(quarantine.broken)} broken images are left out: {lines}", stacklevel=2)
    return RawData(*sets, tuple(classes), *channel_statistics(sets[0].images))


def scan(root: Path, *, train: str, test: str) -> tuple[list[str], tuple[Listing, Listing]]:
    """Class names, and what ROOT/train and ROOT/val hold; raises SettingError for a layout that cannot be used."""
    train_images, test_images = (_images_by_folder(root / part) for part in (train, test))
    classes = [name for name in train_images if name != UNLABELED]
    if not classes:
        raise SettingError(f"{root / train} has no class folders: images belong in {root / train}/CLASS/")
    for name in classes:
        if not train_images[name]:
            raise SettingError(f"{root / train / name} has no images ({', '.join(SUFFIXES)})")
    for name in test_images:
        if name not in classes:
            raise SettingError(f"{root / test / name} is of no class: {root / train} has no folder {name!r}")
    if not any(test_images.values()):
        raise SettingError(f"{root / test} has no images ({', '.join(SUFFIXES)}) in class folders")
    folders = [*classes, UNLABELED]
    return classes, (
        _listing(root / train, train_images, folders),
        _listing(root / test, test_images, folders),
    )


def _images_by_folder(folder: Path) -> dict[str, list[str]]:
    """Sorted subfolders -> their images, named from `folder` on."""
    if not folder.is_dir():
        raise SettingError(f"{folder} is not there: images belong in {folder}/CLASS/")
    found = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found[entry.name] = sorted(walk(entry.path, entry.name, frozenset()))
        elif entry.name.lower().endswith(SUFFIXES):
            raise SettingError(
                f"{entry.path} is in no class folder: move it into one, or without a label into train/{UNLABELED}/"
            )
    return found


def walk(folder: str, name: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """The images in and below `folder`, as paths that begin with `name`; links that lead back up are not followed."""
    stat = os.stat(folder)
    here = (stat.st_dev, stat.st_ino)
    if here in above:  # a link back up
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(entry.path, f"{name}/{entry.name}", above | {here})
            elif entry.name.lower().endswith(
                SUFFIXES
            ):  # a broken link, too: it is reported when it is decoded
                yield f"{name}/{entry.name}"


def _listing(folder: Path, images: dict[str, list[str]], folders: Sequence[str]) -> Listing:
    names, labels = [], []
    for label, name in enumerate(folders):
        names += images.get(name, [])
        labels += [NO_LABEL if name == UNLABELED else label] * len(images.get(name, []))
    return Listing(Files(PathList(folder, names)), tuple(names), torch.tensor(labels))


def _load(listing: Listing, size: int, quarantine: Quarantine) -> ImageSet:
    """The sound images in memory, uint8 [count, 3, size, size]."""
    files, names, labels = listing
    images = np.empty((len(files), 3, size, size), np.uint8)

    def load(at: int) -> DecodeError | None:
        try:
            # Scaled decode to no less than twice the size: what is left to the antialiased resize decides the pixels.
            images[at] = resize_crop(files.decode(at, 2 * size), side=size, size=size).transpose(2, 0, 1)
        except DecodeError as error:
            return error
        return None

    sound = torch.ones(len(files), dtype=torch.bool)
    for at, error in enumerate(in_threads(load, len(files))):
        if error is not None:
            sound[at] = False
            quarantine.add(str(error.path), error.reason)
    if sound.all():
        return ImageSet(torch.from_numpy(images), labels, names)
    kept = tuple(name for name, whole in zip(names, sound.tolist(), strict=True) if whole)
    return ImageSet(torch.from_numpy(images)[sound], labels[sound], kept)
