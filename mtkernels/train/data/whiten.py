"""Preprocessing of whole datasets as the papers' ConvNets had it on CIFAR: GCN and ZCA whitening."""

import contextlib
import hashlib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..config import SettingError
from ..files import write_with
from .raw import RawData

Whitening = Literal["gcn-zca", "zca"]
_CHUNK = 2048  # images taken at once


def whiten(data: RawData, kind: Whitening, *, cache: Path | None = None) -> tuple[RawData, "Whitener"]:
    """`data` with float32 images in place of uint8, and what made them, fitted on the training images (`fit`)."""
    for part in (data.train, data.test):
        if not isinstance(part.images, Tensor):
            raise SettingError(f"whitening {kind} needs a dataset whose images are held in memory")
    whitener = Whitener.fit(data.train.images, kind, levels=data.levels, cache=cache)
    train, test, extra = (
        part and replace(part, images=whitener(part.images)) for part in (data.train, data.test, data.extra)
    )
    return replace(data, train=train, test=test, extra=extra), whitener


@dataclass(frozen=True)
class Whitener:
    """Whitens uint8 images as those that it was fitted on.

    gcn-zca: Mean Teacher's CIFAR, `gcn` with scale 55, then ZCA with covariance + 0.1 I. zca: Temporal Ensembling's
    CIFAR, ZCA of pixels 0 to 1 with covariance + 1e-5 I.
    """

    kind: Whitening
    levels: int  # the pixel value that stands for 1
    zca: "Zca"
    cache: Path | None = None  # file to keep the ZCA in, where it is not there yet

    @classmethod
    def fit(cls, images: Tensor, kind: Whitening, *, levels: int, cache: Path | None = None) -> "Whitener":
        """Fit on uint8 [N, ...], or read what `keep` left in the folder `cache` for the same images."""
        if kind not in _PREPARE:
            raise SettingError(f"whitening must be one of {', '.join(_PREPARE)}, got {kind!r}")
        prepare, regularizer = _PREPARE[kind]
        path = cache and cache / f"zca-{_hash(images, f'{kind} {levels} {regularizer!r}')}.npz"
        if path is not None:
            with contextlib.suppress(OSError):
                return cls(kind, levels, Zca.load(path))
        return cls(kind, levels, Zca.fit(prepare(images, levels), regularizer=regularizer), path)

    def keep(self) -> None:
        """Save a ZCA that was fitted for the next `fit`; warns where that cannot be."""
        if self.cache is None:
            return
        try:
            self.zca.save(self.cache)
        except OSError as error:
            warnings.warn(f"the next run fits its whitening anew, as none can be kept: {error}", stacklevel=2)

    def __call__(self, images: Tensor) -> Tensor:
        """The images [N, ...] whitened, in their shape, as float32."""
        prepare, _ = _PREPARE[self.kind]
        result = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        for chunk, out in zip(images.split(_CHUNK), result.split(_CHUNK), strict=True):
            out.copy_(self.zca.apply(prepare(chunk, self.levels)))
        return result


def gcn(images: Tensor, scale: float = 55.0) -> Tensor:
    """Global contrast normalisation, each image for itself: scale * (x - mean(x)) / ||x - mean(x)||, as float32.

    pylearn2's convention, with mean and norm over all channels and pixels; where norm / scale is below 1e-8 (an image
    of one value) the divisor is 1.
    """
    result = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    for chunk, out in zip(images.split(_CHUNK), result.split(_CHUNK), strict=True):
        rows = chunk.flatten(1).double()
        rows -= rows.mean(1, keepdim=True)
        divisor = rows.norm(dim=1, keepdim=True) / scale
        out.copy_((rows / torch.where(divisor < 1e-8, 1.0, divisor)).view_as(out))
    return result


@dataclass(frozen=True)
class Zca:
    """x -> (x - mean) W with W = (covariance + regularizer I)^(-1/2), the symmetric root; x is an image as a row."""

    mean: Tensor  # [pixels] float32
    matrix: Tensor  # [pixels, pixels] float32

    @classmethod
    def fit(cls, images: Tensor, *, regularizer: float = 0.1) -> "Zca":
        """Fit on [N, ...]; covariance = sum (x - mean)(x - mean)^T / N, all in float64."""
        mean = sum(chunk.sum(0) for chunk in _rows(images)) / len(images)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for chunk in _rows(images):
            chunk -= mean
            covariance.addmm_(chunk.T, chunk, alpha=1 / len(images))
        values, vectors = torch.linalg.eigh(covariance)
        # Rounding can make an eigenvalue of 0 negative, more so than a small regularizer is positive.
        roots = (values.clamp_(min=0) + regularizer).rsqrt_()
        return cls(mean.float(), ((vectors * roots) @ vectors.T).float())

    def apply(self, images: Tensor) -> Tensor:
        """The images whitened, in their shape, as float32."""
        mean, matrix = self.mean.to(images.device), self.matrix.to(images.device)
        return ((images.flatten(1).float() - mean) @ matrix).view(images.shape)

    def save(self, path: Path) -> None:
        """As an .npz of two arrays."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # to a name, numpy would append .npz
                np.savez(file, mean=self.mean.numpy(), matrix=self.matrix.numpy())

        write_with(path, write)

    @classmethod
    def load(cls, path: Path) -> "Zca":
        """What `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(torch.from_numpy(file["mean"]), torch.from_numpy(file["matrix"]))
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise SettingError(f"{path} is no saved ZCA; remove it to have it made again: {error}") from error


def _rows(images: Tensor) -> Iterator[Tensor]:
    """Chunks of the images as float64 rows, each a copy."""
    for chunk in images.split(_CHUNK):
        yield chunk.flatten(1).to(torch.float64, copy=True)


def _hash(images: Tensor, options: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{images.dtype} {list(images.shape)} {options}".encode())
    for chunk in images.split(_CHUNK):
        digest.update(np.ascontiguousarray(chunk.numpy()))
    return digest.hexdigest()


def _pixels(images: Tensor, levels: int) -> Tensor:
    return images.float() / levels


# kind -> what each image becomes (images, levels), the regularizer of the ZCA after it
_PREPARE: dict[str, tuple[Callable[[Tensor, int], Tensor], float]] = {
    "gcn-zca": (lambda images, levels: gcn(images), 0.1),
    "zca": (_pixels, 1e-5),
}
