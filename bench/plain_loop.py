"""The training loop that people write: transforms of single images in workers, eager losses, an average by foreach.

Mean Teacher with the networks and settings of the trainer here, from documented parts of PyTorch and nothing of ours.
The transforms are torchvision's; without torchvision, what these do, with Pillow.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mtkernels.train.config import Config

try:
    from torchvision import transforms
except ImportError:
    transforms = None

Transform = Callable[[Image.Image], Tensor]
NO_LABEL = -1
LOG_INTERVAL = 10  # steps between two looks at the losses, each of which waits for the device


class TwoViews(Dataset):
    """Two views of an image [height, width, 3] and its label."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: Transform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor, int]:
        image = Image.fromarray(self.images[at])
        return self.transform(image), self.transform(image), self.labels[at]


class TwoStreams:
    """Endless batches of indices: unlabeled images first, then labeled ones; or of all images alike."""

    def __init__(self, labels: list[int], batch_size: int, labeled_batch_size: int | None) -> None:
        known = np.array(labels) != NO_LABEL
        if labeled_batch_size is None:
            self.streams = [(np.arange(len(labels)), batch_size)]
        else:
            unlabeled = np.flatnonzero(~known), batch_size - labeled_batch_size
            self.streams = [unlabeled, (np.flatnonzero(known), labeled_batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        endless = [(_shuffled(indices), count) for indices, count in self.streams]
        while True:
            yield [next(stream) for stream, count in endless for _ in range(count)]


def _shuffled(indices: np.ndarray) -> Iterator[int]:
    while True:
        yield from np.random.permutation(indices).tolist()


class PlainLoop:
    """A step at a time, on images [count, height, width, 3] uint8 and labels, NO_LABEL where there is none."""

    def __init__(
        self, config: Config, networks: tuple[nn.Module, nn.Module], data: TwoViews, *, workers: int
    ) -> None:
        """networks: student and teacher."""
        self.config, self.data, self.workers = config, data, workers
        self.student, self.teacher = networks
        self.device, self.steps = torch.device(config.device), 0
        for weight in self.teacher.parameters():
            weight.requires_grad_(False)
        self.optimizer = make_optimizer(config, self.student)
        self.loss = float("nan")

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Workers run within it alone."""
        loader = DataLoader(
            self.data,
            batch_sampler=TwoStreams(
                self.data.labels, self.config.batch_size, self.config.labeled_batch_size
            ),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        self.batches = iter(loader)
        try:
            yield
        finally:
            del self.batches  # stops the workers

    def step(self) -> None:
        """Student, then teacher."""
        first, second, labels = (part.to(self.device, non_blocking=True) for part in next(self.batches))
        autocast = self.config.precision != "fp32"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            output = self.student(first)
            with torch.no_grad():
                target = self.teacher(second)
        loss = self._objective(_heads(output), _heads(target)[0].float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._average()
        self.steps += 1
        if self.steps % LOG_INTERVAL == 0:
            self.loss = loss.item()

    def _objective(self, heads: list[Tensor], target: Tensor, labels: Tensor) -> Tensor:
        logits, consistent = heads[0].float(), heads[-1].float()
        class_loss = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum") / len(labels)
        if self.config.consistency_type == "kl":
            probs = F.softmax(target, 1)
            distance = F.kl_div(F.log_softmax(consistent, 1), probs, reduction="batchmean")
        else:
            distance = F.mse_loss(F.softmax(consistent, 1), F.softmax(target, 1))
        loss = class_loss + self.config.consistency * distance
        if len(heads) == 2:
            loss = loss + self.config.logit_distance_cost * F.mse_loss(logits, consistent)
        return loss

    @torch.no_grad()
    def _average(self) -> None:
        teacher, student = list(self.teacher.parameters()), list(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - self.config.ema_decay)
        if self.config.buffers != "keep":
            for kept, new in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
                kept.copy_(new)

    def wait(self) -> None:
        """For the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _heads(output: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


def make_optimizer(config: Config, student: nn.Module) -> torch.optim.Optimizer:
    """As people make them: torch chooses between its loops."""
    if config.optimizer == "adam":
        return torch.optim.Adam(student.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        student.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def transform_of(config: Config, mean: tuple[float, ...], std: tuple[float, ...]) -> Transform:
    """The random views of `augment translate` or `imagenet`, as a tensor, normalised, with noise."""
    if config.augment == "translate":
        shape = _translations(config)
    elif config.augment == "imagenet" and transforms is not None:
        shape = _crops(config)
    else:
        raise SystemExit(f"augment must be translate, or with torchvision imagenet, got {config.augment}")
    steps = [*shape, to_tensor if transforms is None else transforms.ToTensor()]
    if config.normalize == "image":
        steps.append(_Whole())
    elif config.normalize == "channels":
        steps.append(_Normalize(mean, std) if transforms is None else transforms.Normalize(mean, std))
    if config.noise:
        steps.append(_Noise(config.noise))
    return _Compose(steps) if transforms is None else transforms.Compose(steps)


def _translations(config: Config) -> list[Transform]:
    if transforms is None:
        return [_RandomCrop(config.translate, config.border), *([_flipped] if config.flip else [])]
    crop = transforms.RandomCrop(32, padding=config.translate, padding_mode=config.border)
    return [crop, *([transforms.RandomHorizontalFlip()] if config.flip else [])]


def _crops(config: Config) -> list[Transform]:
    return [
        transforms.RandomRotation(config.rotate),
        transforms.RandomResizedCrop(config.image_size),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(*config.jitter),
    ]


class _Whole:
    """An image to mean 0 and deviation 1 over all of it."""

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels - pixels.mean()) / pixels.std()


class _Noise:
    """Gaussian noise."""

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels + self.deviation * torch.randn_like(pixels)


# What torchvision's transforms of these names do, for where there is no torchvision.


class _Compose:
    def __init__(self, steps: list) -> None:
        self.steps = steps

    def __call__(self, image: Image.Image) -> Tensor:
        for step in self.steps:
            image = step(image)
        return image


class _RandomCrop:
    def __init__(self, padding: int, mode: str) -> None:
        self.padding, self.mode = padding, mode

    def __call__(self, image: Image.Image) -> Image.Image:
        pixels, around = np.asarray(image), (self.padding, self.padding)
        padded = Image.fromarray(np.pad(pixels, (around, around, (0, 0)), mode=self.mode))
        left, top = (random.randint(0, 2 * self.padding) for _ in range(2))
        return padded.crop((left, top, left + image.width, top + image.height))


def _flipped(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def to_tensor(image: Image.Image) -> Tensor:
    """[3, height, width] float32 in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


class _Normalize:
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.clone().sub_(self.mean).div_(self.std)
