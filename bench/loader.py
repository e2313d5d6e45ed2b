"""Two loaders of the same JPEG files, two augmented views of 224 x 224 each: ours, and Pillow under a DataLoader."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtkernels.train.config import Config
from mtkernels.train.data import Quarantine
from mtkernels.train.data.dataset import make_dataset
from mtkernels.train.data.folder import IMAGENET_MEAN, IMAGENET_STD, class_folders
from mtkernels.train.data.stream import StreamBatches
from mtkernels.train.data.views import StreamViews

SIZE, VIEWS = 224, 2


def write_jpegs(root: Path, images: int, *, width: int = 500, height: int = 375, quality: int = 90) -> Path:
    """Class folders of smooth colours under noise, some 74 kB a file."""
    random = np.random.RandomState(0)
    for part, number in (("train", images), ("val", 1)):
        (root / part / "class").mkdir(parents=True)
        for at in range(number):
            coarse = random.randint(0, 256, (8, 10, 3), dtype=np.uint8)
            smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            noisy = np.asarray(smooth) + random.normal(0, 12, (height, width, 3))
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            image.save(root / part / "class" / f"{at:04}.jpg", quality=quality)
    return root


def ours(root: Path, *, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Endless batches of views [2, rows, 3, 224, 224], float32, normalised: random resized crops and flips."""
    config = Config(
        dataset="imagenet", labels="all", augment="imagenet", image_size=SIZE, normalize="channels"
    )
    config = replace(config, rotate=0.0, jitter=(0.0, 0.0, 0.0, 0.0))
    data = make_dataset(class_folders(root), config, Quarantine())
    files, labels, views_of = data.pool.images, data.pool.labels, StreamViews(config, data, VIEWS)
    batches = _endless(len(labels), batch_size)
    for views, _ in StreamBatches(files, labels, views_of, batches, size=SIZE, workers=workers):
        yield views


def plain(root: Path, *, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Endless batches of the same views, from what most training scripts do with Pillow: float32, normalised."""
    sampler = (at for indices, _ in _endless(len(_Plain(root)), batch_size) for at in indices.tolist())
    loader = DataLoader(
        _Plain(root),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
    )
    for views in loader:
        yield views.transpose(0, 1)


class _Plain(Dataset):
    def __init__(self, root: Path) -> None:
        self.paths = sorted((root / "train").rglob("*.jpg"))
        self.mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
        self.std = torch.tensor(IMAGENET_STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> Tensor:
        with Image.open(self.paths[at]) as image:
            whole = image.convert("RGB")
        random = np.random.RandomState(at)
        views = [np.array(_resized_crop(whole, random)) for _ in range(VIEWS)]
        pixels = [torch.from_numpy(view).permute(2, 0, 1).contiguous().float().div_(255) for view in views]
        return torch.stack([view.sub_(self.mean).div_(self.std) for view in pixels])


def _resized_crop(image: Image.Image, random: np.random.RandomState) -> Image.Image:
    """torchvision's RandomResizedCrop(224) and RandomHorizontalFlip()."""
    area = image.width * image.height
    for _ in range(10):
        part, ratio = area * random.uniform(0.08, 1), np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round(np.sqrt(part * ratio)), round(np.sqrt(part / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            break
    else:
        width = height = min(image.size)
    left, top = random.randint(image.width - width + 1), random.randint(image.height - height + 1)
    crop = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.randint(2) else crop


def _endless(images: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step in count():
        indices = torch.arange(step * rows, (step + 1) * rows)
        yield indices % images, indices // images
