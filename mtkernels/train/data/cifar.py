"""CIFAR-10 and CIFAR-100 from their authors' files: python or binary version, unpacked or still a .tar.gz."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..config import SettingError
from .raw import ImageSet, RawData

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


def cifar10(root: Path) -> RawData:
    """CIFAR-10 in `root`: a folder with cifar-10-batches-py, cifar-10-batches-bin or either's .tar.gz, or one of these.

    Images are named `<position>_<class>.png`, position in the concatenated batches: as label files name them.
    """
    return _load(root, _CIFAR10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def cifar100(root: Path) -> RawData:
    """CIFAR-100 with its 100 fine classes, from cifar-100-python, cifar-100-binary or a .tar.gz; as `cifar10`."""
    return _load(root, _CIFAR100, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))


@dataclass(frozen=True)
class _Version:
    """One of the two forms that a dataset is given in."""

    archive: str
    folder: str  # in the archive
    train: tuple[str, ...]
    test: str
    meta: str  # the file with the class names
    read_batch: Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]  # (content, file) -> images, labels
    read_names: Callable[[bytes, str], Sequence[object]]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.meta)


def _load(
    root: Path, versions: Sequence[_Version], *, mean: tuple[float, ...], std: tuple[float, ...]
) -> RawData:
    version, where, contents = _find(root, versions)
    for name in version.files:
        if name not in contents:
            raise SettingError(f"{where} has no file {name}")
    meta = version.read_names(contents[version.meta], f"{where / version.meta}")
    class_names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in meta)

    def image_set(names: Sequence[str]) -> ImageSet:
        batches = [_batch(version, contents[name], f"{where / name}", len(class_names)) for name in names]
        images, labels = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*batches, strict=True))
        files = tuple(f"{at}_{class_names[label]}.png" for at, label in enumerate(labels.tolist()))
        return ImageSet(images.view(-1, *_SHAPE), labels, files)

    return RawData(
        train=image_set(version.train),
        test=image_set([version.test]),
        class_names=class_names,
        mean=mean,
        std=std,
    )


def _find(root: Path, versions: Sequence[_Version]) -> tuple[_Version, Path, dict[str, bytes]]:
    """The version that is there, where, and its files' contents; unpacked folders come before archives."""
    for version in versions:
        for folder in (root / version.folder, root):
            if any((folder / name).is_file() for name in (version.meta, version.test)):
                present = [name for name in version.files if (folder / name).is_file()]
                return version, folder, {name: (folder / name).read_bytes() for name in present}
    for version in versions:
        for archive in (root / version.archive, root):
            if archive.name == version.archive and archive.is_file():
                return version, archive, _unpack(archive, version)
    looked_for = ", ".join(f"{version.folder}, {version.archive}" for version in versions)
    raise SettingError(f"{root} holds none of {looked_for}")


def _unpack(archive: Path, version: _Version) -> dict[str, bytes]:
    wanted = {f"{version.folder}/{name}": name for name in version.files}
    contents = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                if name and member.isfile():
                    contents[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise SettingError(f"{archive} cannot be read: {error}") from error
    return contents


def _batch(version: _Version, content: bytes, file: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = version.read_batch(content, file)
    if len(images) != len(labels):
        raise SettingError(f"{file} must have one label for each image, got {len(images)} and {len(labels)}")
    if not len(images):
        raise SettingError(f"{file} holds no image")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise SettingError(f"{file}: labels must be between 0 and {classes - 1}, got {wrong}")
    return images, labels


def _latin1(text: str, encoding: str) -> bytes:
    """All of `_codecs.encode` that pickles need: Python 3 writes bytes with it at protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """A pickle can name any function to call; this one makes numpy arrays, and nothing else."""

    def __init__(self, content: bytes, file: str) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.file = file

    def find_class(self, module: str, name: str) -> object:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # whatever this numpy calls its module
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise SettingError(f"{self.file} asks for {module}.{name}, which no CIFAR batch needs: not loaded")


def _unpickle(content: bytes, file: str, key: str) -> dict[str, object]:
    try:
        loaded = _Unpickler(content, file).load()
    except SettingError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise SettingError(f"{file} is damaged or no pickle: {error}") from error
    items = loaded.items() if isinstance(loaded, dict) else ()
    named = {name.decode() if isinstance(name, bytes) else name: value for name, value in items}
    if key not in named:
        raise SettingError(f"{file} must be a pickled dict with {key!r}, got {', '.join(map(str, named))}")
    return named


def _pickled_batch(content: bytes, file: str, *, key: str) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(content, file, key)
    images, labels = batch.get("data"), batch[key]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (_PIXELS,):
        found = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images)
        raise SettingError(f"{file}: data must be uint8 [images, {_PIXELS}], got {found}")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise SettingError(f"{file}: {key} must be a list of integers, got {type(labels).__name__}")
    return images, np.array(labels, np.int64)


def _pickled_names(content: bytes, file: str, *, key: str) -> Sequence[object]:
    names = _unpickle(content, file, key)[key]
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise SettingError(f"{file}: {key} must be a list of strings, got {names!r}")
    return names


def _binary_batch(content: bytes, file: str, *, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    record = label_bytes + _PIXELS
    if len(content) % record:
        raise SettingError(
            f"{file} must be a multiple of {record} bytes long, got {len(content)}: truncated?"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)  # the fine label is last


def _text_names(content: bytes, file: str) -> Sequence[object]:
    return content.split()


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_CIFAR10 = (
    _Version(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=_BATCHES,
        test="test_batch",
        meta="batches.meta",
        read_batch=partial(_pickled_batch, key="labels"),
        read_names=partial(_pickled_names, key="label_names"),
    ),
    _Version(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        train=tuple(f"{name}.bin" for name in _BATCHES),
        test="test_batch.bin",
        meta="batches.meta.txt",
        read_batch=partial(_binary_batch, label_bytes=1),
        read_names=_text_names,
    ),
)
_CIFAR100 = (
    _Version(
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        meta="meta",
        read_batch=partial(_pickled_batch, key="fine_labels"),
        read_names=partial(_pickled_names, key="fine_label_names"),
    ),
    _Version(
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        meta="fine_label_names.txt",
        read_batch=partial(_binary_batch, label_bytes=2),
        read_names=_text_names,
    ),
)
