"""What the networks see of a batch: augmented views for training, plain pixels for evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

import mtkernels

from ..config import Config, SettingError
from ..seeds import generator
from .augment import Augment
from .dataset import Dataset
from .decode import resize_crop
from .policies import Parameters, Policy, ResizedCrop, TranslateFlip
from .raw import Facts
from .sampler import Draw

Statistics = tuple[Tensor, Tensor]  # mean and inverse deviation, each [images]
_CHUNK = 4096  # images whose statistics are taken at once
_FLAT = 1e-8  # added to an image's variance: one of a single colour has none


class Pixels:
    """Stored pixels as networks get them: from 0 to 1, or less the mean and over the deviation of channel or image.

    Whitened images are that already.
    """

    def __init__(self, raw: Facts, config: Config) -> None:
        self.levels = raw.levels
        self.by_image, self.by_channel = config.normalize == "image", config.normalize == "channels"
        self.mean, self.std = (raw.mean, raw.std) if self.by_channel else ((0.0,), (1.0,))

    def __call__(self, images: Tensor) -> Tensor:
        """Of uint8 or float32 images [rows, channels, height, width]: float32."""
        if images.is_floating_point():
            return images
        pixels = images.float() / self.levels
        if self.by_image:
            mean, inverse = image_statistics(images, self.levels)
            return (pixels - mean.view(-1, 1, 1, 1)) * inverse.view(-1, 1, 1, 1)
        if not self.by_channel:
            return pixels
        # With numbers, not tensors of them, nothing is sent to a GPU.
        channels = zip(pixels.unbind(1), self.mean, self.std, strict=True)
        return torch.stack([(channel - mean) / std for channel, mean, std in channels], 1)

    def means(self, images: Tensor) -> Tensor:
        """Mean of each channel [rows, channels], on the scale 0 to 1."""
        return images.float().mean((2, 3)) / self.levels

    def statistics(self, images: Tensor) -> Statistics | None:
        """What `options` needs of uint8 images, where it needs any."""
        if images.is_floating_point() or not self.by_image:
            return None
        parts = [image_statistics(part, self.levels) for part in images.split(_CHUNK)]
        mean, inverse = (torch.cat(column) for column in zip(*parts, strict=True))
        return mean, inverse

    def options(self, images: Tensor, statistics: Statistics | None, views: int) -> dict[str, object]:
        """The same as arguments of `mtkernels.augment`; statistics: of its rows."""
        if images.is_floating_point():
            return {}
        scale = self.levels / 255  # the op's pixels are v / 255
        if statistics is None:
            return {"mean": tuple(m * scale for m in self.mean), "std": tuple(s * scale for s in self.std)}
        mean, inverse = statistics
        channels = images.shape[1]
        color = torch.zeros(len(mean), channels, channels + 1, device=images.device)
        color.diagonal(dim1=1, dim2=2).copy_((inverse / scale)[:, None].expand(-1, channels))
        color[:, :, channels] = -(mean * inverse)[:, None]
        return {"color": color.repeat(views, 1, 1, 1), "clamp": False}


def image_statistics(images: Tensor, levels: int) -> Statistics:
    """Mean and inverse deviation of each of uint8 images over all its pixels and channels, on the scale 0 to 1."""
    flat = images.flatten(1).float() / levels
    return flat.mean(1), (flat.var(1, unbiased=False) + _FLAT).rsqrt()


def make_policy(config: Config, data: Dataset) -> Policy:
    """What draws the parameters of `mtkernels.augment`."""
    if config.augment != "imagenet":
        return TranslateFlip(
            translate=config.translate, flip=config.flip, shared_flip=config.shared_flip, border=config.border
        )
    if any(config.jitter) and data.channels != 3:
        raise SettingError(
            f"jitter must be 0 0 0 0 for images of {data.channels} channels, got {config.jitter}"
        )
    return ResizedCrop(
        size=side_of(config, data),
        flip=config.flip,
        rotate=config.rotate,
        jitter=config.jitter,
        border=config.border,
    )


def side_of(config: Config, data: Dataset) -> int:
    """Pixels along a side of what the networks get: as set, as the images are in memory, or ImageNet's 224."""
    images = data.pool.images
    in_memory = min(images.shape[-2:]) if isinstance(images, Tensor) else 224
    return in_memory if config.image_size is None else config.image_size


class Views:
    """Augmented views of images that are in memory: a function of the draw and, for noise and `affine`, of the step."""

    def __init__(self, config: Config, data: Dataset, count: int) -> None:
        self.config, self.count, self.images = config, count, data.pool.images
        self.pixels = Pixels(data.raw, config)
        amounts = ("rotate", "zoom", "shear", "shift", "warp", "noise")
        self.affine = Augment(**{name: getattr(config, name) for name in amounts})
        self.policy = make_policy(config, data) if config.augment in ("translate", "imagenet") else None

    # Of all images, where batches need them; seconds for half a million, so not before there is a batch.
    @cached_property
    def statistics(self) -> Statistics | None:
        """What `normalize image` needs of each image."""
        return self.pixels.statistics(self.images)

    @cached_property
    def means(self) -> Tensor | None:
        """Mean colours [images, channels], where the policy's contrast needs them."""
        if not _needs_means(self.policy):
            return None
        return torch.cat([self.pixels.means(part) for part in self.images.split(_CHUNK)])

    def __call__(self, draw: Draw, step: int) -> list[Tensor]:
        """`count` views [rows, channels, height, width] of the images of a batch."""
        return next(self.ahead([draw], step))

    def ahead(self, draws: Sequence[Draw], step: int) -> Iterator[list[Tensor]]:
        """The views of `step` and of the steps after it, one by one; of as many rows each.

        What is random of them is drawn for all at once: on a GPU it takes hundreds of launches, for any number of rows.
        """
        if self.policy is None:
            for at, draw in enumerate(draws, step):
                yield self._pixelwise(draw, at)
            return
        parameters, options = self._arguments(draws)
        for at, (draw, drawn) in enumerate(zip(draws, parameters, strict=True), step):
            views = augmented(self.images, draw.index, self.policy, drawn, options)
            yield with_noise(list(views), self.config, at)

    def _arguments(self, draws: Sequence[Draw]) -> tuple[list[Parameters], dict[str, object]]:
        """Of `augmented`, each batch's own and what they share."""
        index = torch.stack([draw.index for draw in draws]).flatten()
        passes = torch.stack([draw.passes for draw in draws]).flatten()
        known = self.statistics and tuple(numbers[index] for numbers in self.statistics)
        drawn = self.policy.parameters(
            index,
            passes,
            seed=self.config.seed,
            views=self.count,
            size=tuple(self.images.shape[-2:]),
            means=None if self.means is None else self.means[index],
        )
        options = self.pixels.options(self.images, known, self.count)
        options["channels_last"] = self.config.channels_last
        if "color" in options:
            drawn = replace(drawn, color=options.pop("color"))
        return drawn.batches(len(draws)), options

    def _pixelwise(self, draw: Draw, step: int) -> list[Tensor]:
        """Views that are no call of `mtkernels.augment`."""
        pixels = self.pixels(self.images[draw.index])
        if self.config.augment == "affine":
            seed = self.config.seed
            return [self.affine(pixels, seed=seed, step=step, view=view) for view in range(self.count)]
        return with_noise([pixels] * self.count, self.config, step)


class StreamViews:
    """Views of images of several sizes, in worker processes; the same as `Views` would make."""

    def __init__(self, config: Config, data: Dataset, count: int) -> None:
        if config.augment not in ("translate", "imagenet"):
            raise SettingError(
                f"augment must be imagenet or translate for images that stay on disk, got {config.augment!r}"
            )
        self.seed, self.count, self.size = config.seed, count, side_of(config, data)
        self.pixels, self.policy = Pixels(data.raw, config), make_policy(config, data)

    def __call__(self, images: Sequence[Tensor], samples: Sequence[int], epochs: Sequence[int]) -> Tensor:
        """Of images, each [1, 3, height, width]: [count, images, 3, size, size]."""
        if self.policy.out_size is None:
            images = [self._square(image) for image in images]
        size = tuple(torch.tensor([image.shape[axis] for image in images]) for axis in (2, 3))
        draw = Draw(torch.tensor(samples), torch.tensor(epochs), 0)
        means = (
            torch.cat([self.pixels.means(image) for image in images]) if _needs_means(self.policy) else None
        )
        parameters = self.policy.parameters(
            draw.index, draw.passes, seed=self.seed, views=self.count, size=size, means=means
        )
        views = []
        for row, image in enumerate(images):
            options = self.pixels.options(image, self.pixels.statistics(image), self.count)
            views.append(augmented(image, None, self.policy, parameters.row(row), options))
        return torch.cat(views, 1)

    def _square(self, image: Tensor) -> Tensor:
        """The middle of an image, for policies that keep the size."""
        pixels = resize_crop(image[0].permute(1, 2, 0).numpy(), side=self.size, size=self.size)
        return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


def _needs_means(policy: Policy | None) -> bool:
    """Contrast turns about an image's own mean."""
    return isinstance(policy, ResizedCrop) and any(policy.jitter)


def augmented(
    images: Tensor, index: Tensor | None, policy: Policy, drawn: Parameters, options: dict[str, object]
) -> Tensor:
    """Views [count, rows, channels, height, width] of images[index], or of all of them, in one launch."""
    if drawn.color is not None:
        options = options | {"color": drawn.color}
    return mtkernels.augment(
        images, index, drawn.geometry, size=policy.out_size, border=policy.border, **options
    )


def with_noise(
    views: list[Tensor], config: Config, step: int, rows: Tensor | None = None, total: int = 0
) -> list[Tensor]:
    """Gaussian noise on each view by itself. rows: which of `total` the views' are, for all of which it is drawn."""
    if not config.noise:
        return views
    noisy = []
    for number, view in enumerate(views):
        draw = generator(view.device, config.seed, "noise", step, number)
        shape = view.shape if rows is None else (total, *view.shape[1:])
        noise = torch.randn(shape, generator=draw, device=view.device, dtype=view.dtype)
        noisy.append(view + (noise if rows is None else noise[rows]).mul_(config.noise))
    return noisy
