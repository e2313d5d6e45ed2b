"""Preprocessing of whole datasets as the papers' ConvNets had it on CIFAR: GCN and ZCA whitening."""

import hashlib
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
from .raw import ImageSet, RawData

Whitening = Literal["gcn-zca", "zca"]
_CHUNK = 2048  # images taken at once


def whiten(data: RawData, kind: Whitening, *, cache: Path | None = None) -> RawData:
    """`data` with float32 images in place of uint8, and with mean 0, deviation 1 and level 1: nothing else to scale.

    gcn-zca: Mean Teacher's CIFAR, `gcn` with scale 55, then ZCA with covariance + 0.1 I. zca: Temporal Ensembling's
    CIFAR, ZCA of pixels 0 to 1 with covariance + 1e-5 I. ZCA is fitted on the training images, and read from the
    folder `cache` where it was fitted on the same ones before.
    """
    if kind not in _PREPARE:
        raise SettingError(f"whitening must be one of {', '.join(_PREPARE)}, got {kind!r}")
    prepare, regularizer = _PREPARE[kind]

    def prepared(images: ImageSet) -> ImageSet:
        if not isinstance(images.images, Tensor):
            raise SettingError(f"whitening {kind} needs a dataset whose images are held in memory")
        return replace(images, images=prepare(images.images, data.levels))

    train, test = prepared(data.train), prepared(data.test)
    extra = data.extra and prepared(data.extra)
    fitted = Zca.fit(train.images, regularizer=regularizer, cache=cache)
    train, test, extra = (
        part and replace(part, images=fitted.apply(part.images)) for part in (train, test, extra)
    )
    channels = len(data.mean)
    return replace(
        data, train=train, test=test, extra=extra, mean=(0.0,) * channels, std=(1.0,) * channels, levels=1
    )


def gcn(images: Tensor, scale: float = 55.0) -> Tensor:
    """Global contrast normalisation, each image for itself: scale * (x - mean(x)) / ||x - mean(x)||, as float32.

    pylearn2's convention, with mean and norm over all channels and pixels; where norm / scale is below 1e-8 (an image
    of one value) the divisor is 1.
    """
    result = torch.empty(images.shape, dtype=torch.float32)
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
    def fit(cls, images: Tensor, *, regularizer: float = 0.1, cache: Path | None = None) -> "Zca":
        """Fit on [N, ...]; covariance = sum (x - mean)(x - mean)^T / N, all in float64.

        With a folder `cache`, the result is kept there under a hash of the images, and found again.
        """
        if cache is None:
            return cls._fit(images, regularizer)
        path = cache / f"zca-{_hash(images, regularizer)}.npz"
        if path.exists():
            return cls.load(path)
        cache.mkdir(parents=True, exist_ok=True)  # before the fit, which can take minutes
        fitted = cls._fit(images, regularizer)
        fitted.save(path)
        return fitted

    @classmethod
    def _fit(cls, images: Tensor, regularizer: float) -> "Zca":
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
        result = torch.empty(images.shape, dtype=torch.float32)
        for chunk, out in zip(images.split(_CHUNK), result.split(_CHUNK), strict=True):
            torch.mm(chunk.flatten(1).float() - self.mean, self.matrix, out=out.view(len(out), -1))
        return result

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


def _hash(images: Tensor, regularizer: float) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{images.dtype} {list(images.shape)} {regularizer!r}".encode())
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
