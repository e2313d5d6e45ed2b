"""Small datasets written as the real ones are: scikit-learn's digits in the files of CIFAR, SVHN and .npz.

Images are uint8 [N, 3, 32, 32], labels int64, classes 0 to 9; `write_X` fills a folder that the loader X reads.
"""

import pickle
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass(frozen=True)
class Images:
    """Train and test images with their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def digit_images(train: int = 200, test: int = 60) -> Images:
    """The first digits, 8 x 8 pixels blown up to 32 x 32, each channel with a tint of its own."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images[: train + test]).repeat_interleave(4, 1).repeat_interleave(4, 2)
    tints = torch.tensor([15.9, 12.0, 8.0]).view(1, 3, 1, 1)
    rgb = (images[:, None] * tints).to(torch.uint8)
    labels = torch.from_numpy(bunch.target[: train + test].astype(np.int64))
    return Images(rgb[:train], labels[:train], rgb[train:], labels[train:])


class _Python2Pickler(pickle._Pickler):
    """Writes str and bytes as Python 2 wrote its strings, which is what the published batches hold."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        short = len(raw) < 256
        head = (
            pickle.SHORT_BINSTRING + bytes([len(raw)])
            if short
            else pickle.BINSTRING + struct.pack("<i", len(raw))
        )
        self.write(head + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def write_pickle(path: Path, value: object) -> None:
    """`value` as Python 2 and an old numpy pickled it."""
    with path.open("wb") as file:
        _Python2Pickler(file, protocol=2).dump(value)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))


def _rows(images: Tensor) -> np.ndarray:
    return images.flatten(1).numpy()


def write_cifar10_python(root: Path, images: Images) -> Path:
    """cifar-10-batches-py with five training batches; returns it."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batches = zip(images.train.chunk(5), images.train_labels.chunk(5), strict=True)
    parts = {f"data_batch_{number}": part for number, part in enumerate(batches, 1)}
    parts["test_batch"] = images.test, images.test_labels
    for name, (pixels, labels) in parts.items():
        filenames = [f"digit_s_{at:06d}.png" for at in range(len(labels))]
        batch = {
            "batch_label": name,
            "labels": labels.tolist(),
            "data": _rows(pixels),
            "filenames": filenames,
        }
        write_pickle(folder / name, batch)
    write_pickle(folder / "batches.meta", {"num_cases_per_batch": 40, "label_names": DIGITS, "num_vis": 3072})
    return folder


def write_cifar10_binary(root: Path, images: Images) -> Path:
    """cifar-10-batches-bin; returns it."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    batches = list(zip(images.train.chunk(5), images.train_labels.chunk(5), strict=True))
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, (pixels, labels) in zip(names, [*batches, (images.test, images.test_labels)], strict=True):
        records = np.concatenate([labels.numpy().astype(np.uint8)[:, None], _rows(pixels)], axis=1)
        (folder / name).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(DIGITS) + "\n\n")
    return folder


def write_cifar100_python(root: Path, images: Images) -> Path:
    """cifar-100-python: the digits as fine classes, even or odd as coarse ones; returns it."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    parts = {"train": (images.train, images.train_labels), "test": (images.test, images.test_labels)}
    for name, (pixels, labels) in parts.items():
        coarse = (labels % 2).tolist()
        batch = {"fine_labels": labels.tolist(), "coarse_labels": coarse, "data": _rows(pixels)}
        write_pickle(folder / name, batch)
    write_pickle(folder / "meta", {"fine_label_names": DIGITS, "coarse_label_names": ["even", "odd"]})
    return folder


def write_cifar100_binary(root: Path, images: Images) -> Path:
    """cifar-100-binary; returns it."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    parts = {"train.bin": (images.train, images.train_labels), "test.bin": (images.test, images.test_labels)}
    for name, (pixels, labels) in parts.items():
        both = torch.stack([labels % 2, labels], 1).to(torch.uint8).numpy()
        (folder / name).write_bytes(np.concatenate([both, _rows(pixels)], axis=1).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(DIGITS) + "\n")
    (folder / "coarse_label_names.txt").write_text("even\nodd\n")
    return folder


def pack(folder: Path, archive: Path) -> Path:
    """`folder` as the .tar.gz `archive`; returns it."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return archive


def write_svhn(root: Path, images: Images, extra: Images | None = None) -> Path:
    """train_32x32.mat and test_32x32.mat, and extra_32x32.mat of `extra`'s training images; returns the folder."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    parts = {"train": (images.train, images.train_labels), "test": (images.test, images.test_labels)}
    if extra:
        parts["extra"] = extra.train, extra.train_labels
    for name, (pixels, labels) in parts.items():
        y = torch.where(labels == 0, 10, labels).to(torch.uint8).numpy()[:, None]
        arrays = {"X": pixels.permute(2, 3, 1, 0).numpy(), "y": y}
        savemat(root / f"{name}_32x32.mat", arrays, do_compression=True)
    return root


def write_npz(path: Path, images: Images) -> Path:
    """One .npz with all, images as [N, H, W, C] and class names; returns it."""
    np.savez(
        path,
        train_images=images.train.permute(0, 2, 3, 1).numpy(),
        train_labels=images.train_labels.numpy(),
        test_images=images.test.permute(0, 2, 3, 1).numpy(),
        test_labels=images.test_labels.numpy(),
        class_names=np.array(DIGITS),
    )
    return path
