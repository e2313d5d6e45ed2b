"""A user's own small images as numpy arrays: train.npz and test.npz in a folder, or one .npz with both."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import SettingError
from .raw import NO_LABEL, ImageSet, RawData, channel_statistics

_CHANNELS = (1, 3, 4)


def npz(path: Path) -> RawData:
    """`path` is a folder with train.npz and test.npz, arrays `images` and `labels`; or one file with the four arrays
    train_images, train_labels, test_images, test_labels.

    Images: uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], C = 1, 3 or 4. Labels: integers [N], -1 (train only) for
    none. The training file may hold `class_names`, strings; without them the classes are "0", "1" ...
    Images have no names: a label file gives their positions. Mean and deviation are those of the training images.
    """
    if path.is_dir():
        train, test, prefixes = _arrays(path / "train.npz"), _arrays(path / "test.npz"), ("", "")
        files = path / "train.npz", path / "test.npz"
    else:
        train = test = _arrays(path)
        prefixes, files = ("train_", "test_"), (path, path)
    parts = [
        ImageSet(_images(arrays, f"{prefix}images", file), _labels(arrays, f"{prefix}labels", file))
        for arrays, prefix, file in zip((train, test), prefixes, files, strict=True)
    ]
    class_names = _class_names(train, parts, files[0])
    _check(parts, prefixes, files, len(class_names))
    mean, std = channel_statistics(parts[0].images)
    return RawData(train=parts[0], test=parts[1], class_names=class_names, mean=mean, std=std)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise SettingError(f"{path} does not exist")
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is one .npy array")
        with file:
            return dict(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise SettingError(f"{path} is no .npz of plain arrays: {error}") from error


def _array(arrays: Mapping[str, np.ndarray], name: str, file: Path) -> np.ndarray:
    if name not in arrays:
        raise SettingError(f"{file} has no array {name}, only {', '.join(arrays) or 'none'}")
    return arrays[name]


def _images(arrays: Mapping[str, np.ndarray], name: str, file: Path) -> Tensor:
    images = _array(arrays, name, file)
    shape = list(images.shape)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in shape:
        raise SettingError(
            f"{file}: {name} must be uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], got {images.dtype} {shape}"
        )
    if images.ndim == 3:
        return torch.from_numpy(images[:, None])
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first == last:
        raise SettingError(
            f"{file}: {name} must have 1, 3 or 4 channels in either its second or its last dimension, got {shape}"
        )
    return torch.from_numpy(images if first else np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _labels(arrays: Mapping[str, np.ndarray], name: str, file: Path) -> Tensor:
    labels = _array(arrays, name, file)
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or not labels.size:
        raise SettingError(f"{file}: {name} must be integers [N], got {labels.dtype} {list(labels.shape)}")
    return torch.from_numpy(labels.astype(np.int64))


def _class_names(arrays: Mapping[str, np.ndarray], parts: list[ImageSet], file: Path) -> tuple[str, ...]:
    names = arrays.get("class_names")
    if names is None:
        return tuple(str(number) for number in range(1 + max(int(part.labels.max()) for part in parts)))
    if names.dtype.kind != "U" or names.ndim != 1 or len(set(names.tolist())) != len(names):
        raise SettingError(f"{file}: class_names must be different strings [classes], got {names.tolist()}")
    return tuple(names.tolist())


def _check(parts: list[ImageSet], prefixes: tuple[str, str], files: tuple[Path, Path], classes: int) -> None:
    train, test = parts
    for part, prefix, file, lowest in zip(parts, prefixes, files, (NO_LABEL, 0), strict=True):
        if len(part.images) != len(part.labels):
            raise SettingError(
                f"{file}: {prefix}labels must be as many as the images ({len(part.images)}), got {len(part)}"
            )
        wrong = part.labels[(part.labels < lowest) | (part.labels >= classes)]
        if len(wrong):
            raise SettingError(
                f"{file}: {prefix}labels must be between {lowest} and {classes - 1}, got {int(wrong[0])}"
            )
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = " and ".join(str(list(part.images.shape[1:])) for part in parts)
        raise SettingError(f"{files[1]}: test images must have the training images' shape, got {shapes}")
