"""augment and what else makes two views of a batch, for the benches: eager torch, kornia, Pillow image by image.

The candidates are handed the same drawn matrices and colours, but kornia, which draws its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import mtkernels
from bench.cases import Workload
from bench.objective import Candidate, Factory
from mtkernels.testing._augment import matrices


@dataclass
class Drawn:
    """A workload as the op takes it."""

    images: Tensor
    index: Tensor
    geometry: Tensor
    color: Tensor | None
    size: tuple[int, int]
    kind: str
    mean: Tensor  # [channels, 1, 1]
    std: Tensor

    @classmethod
    def of(cls, work: Workload) -> "Drawn":
        (images, index, _, size), (draws, colors) = work.students, work.teachers
        options = {
            "kind": "shift",
            "images": "uint8",
            "color": False,
            "mean": 0.5,
            "std": 0.25,
        } | work.options
        if options["images"] == "hwc":  # as decoders leave them
            images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        to_size = tuple(size.shape)
        geometry = matrices(draws.float(), options["kind"], tuple(images.shape[2:]), to_size)
        channels = images.shape[1]
        mean, std = (torch.tensor(options[name]).expand(channels)[:, None, None] for name in ("mean", "std"))
        mean, std = mean.to(images.device), std.to(images.device)
        color = colors.float() if options["color"] else None
        return cls(images, index, geometry, color, to_size, options["kind"], mean, std)


def _candidate(
    function: Callable[[Drawn], Callable[[], Tensor]], note: str = "", checked: bool = True
) -> Factory:
    def factory(work: Workload) -> Candidate:
        drawn, last = Drawn.of(work), {}
        call = function(drawn)

        def step() -> None:
            last["views"] = call()

        return Candidate(step, lambda: [last["views"] if checked else None], note, last.clear)

    return factory


def _fused(drawn: Drawn) -> Callable[[], Tensor]:
    options = {"size": drawn.size, "color": drawn.color}
    options |= {"mean": tuple(drawn.mean.flatten().tolist()), "std": tuple(drawn.std.flatten().tolist())}
    return lambda: mtkernels.augment(drawn.images, drawn.index, drawn.geometry, **options)


# ---- eager torch


def _eager(drawn: Drawn) -> Callable[[], Tensor]:
    make = {"shift": _eager_shift, "rotate": _eager_rotate, "inside": _eager_crop}[drawn.kind]
    return lambda: make(drawn)


def _reflected(at: Tensor, size: int) -> Tensor:
    return (size - 1 - (size - 1 - at.abs()).abs()).long()


def _eager_shift(drawn: Drawn) -> Tensor:
    """Indexing: F.pad and a slice for each image take longer."""
    (height, width), m = drawn.size, drawn.geometry
    y, x = (torch.arange(side, device=m.device) for side in (height, width))
    rows = _reflected(m[..., 1, 1, None] * y + m[..., 1, 2, None], height)[..., :, None]
    columns = _reflected(m[..., 0, 0, None] * x + m[..., 0, 2, None], width)[..., None, :]
    views = drawn.images.permute(0, 2, 3, 1)[drawn.index[:, None, None], rows, columns].permute(0, 1, 4, 2, 3)
    return (
        views.to(torch.float32, memory_format=torch.contiguous_format)
        .div_(255)
        .sub_(drawn.mean)
        .div_(drawn.std)
    )


def _eager_rotate(drawn: Drawn) -> Tensor:
    (height, width), m = drawn.size, drawn.geometry.flatten(0, 1)
    y, x = (torch.arange(side, device=m.device, dtype=torch.float32) for side in (height, width))
    places = [
        m[:, k, 0, None, None] * x + m[:, k, 1, None, None] * y[:, None] + m[:, k, 2, None, None]
        for k in (0, 1)
    ]
    grid = torch.stack([2 * places[0] / (width - 1) - 1, 2 * places[1] / (height - 1) - 1], -1)
    images = (drawn.images[drawn.index].float() / 255).repeat(len(drawn.geometry), 1, 1, 1)
    views = F.grid_sample(images, grid, padding_mode="reflection", align_corners=True).flatten(2)
    if drawn.color is not None:
        color = drawn.color.flatten(0, 1)
        views = torch.baddbmm(color[..., -1:], color[..., :-1], views).clamp_(0, 1)
    views = views.view(*drawn.geometry.shape[:2], -1, height, width)
    return views.sub_(drawn.mean).div_(drawn.std)


def _boxes(drawn: Drawn) -> list[list[tuple[int, tuple[float, ...], bool]]]:
    """Of each view of each row: its image, left, top, right and bottom, and whether it is flipped."""
    (height, width), found = drawn.size, []
    for view in drawn.geometry.tolist():
        found.append([])
        for sample, ((m00, _, m02), (_, m11, m12)) in zip(drawn.index.tolist(), view, strict=True):
            x, y = (sorted((shift - 0.5 * m + 0.5, shift + (side - 0.5) * m + 0.5)) for m, shift, side in (
                (m00, m02, width), (m11, m12, height)
            ))  # fmt: skip
            found[-1].append((sample, (x[0], y[0], x[1], y[1]), m00 < 0, m11 < 0))
    return found


def _eager_crop(drawn: Drawn) -> Tensor:
    views = []
    for row in (row for view in _boxes(drawn) for row in view):
        sample, box, flip_x, flip_y = row
        left, top, right, bottom = (round(side) for side in box)
        part = drawn.images[sample, None, :, top : max(bottom, top + 1), left : max(right, left + 1)].float()
        part = F.interpolate(part, drawn.size, mode="bilinear", antialias=True)
        views.append(part.flip([dim for dim, flip in ((-1, flip_x), (-2, flip_y)) if flip]))
    views = torch.cat(views).view(*drawn.geometry.shape[:2], -1, *drawn.size)
    return views.div_(255).sub_(drawn.mean).div_(drawn.std)


# ---- kornia


def _kornia(drawn: Drawn) -> Callable[[], Tensor]:
    from kornia import augmentation as K

    flips = K.RandomHorizontalFlip(p=0.5), K.RandomVerticalFlip(p=0.5)
    normalize = K.Normalize(drawn.mean.flatten(), drawn.std.flatten())
    if drawn.kind == "shift":
        kinds = [*flips, K.RandomCrop(drawn.size, padding=4, padding_mode="reflect", p=1.0)]
    elif drawn.kind == "rotate":
        kinds = [
            K.RandomAffine(180.0, padding_mode="reflection", p=1.0),
            K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0),
        ]
    else:
        kinds = [K.RandomResizedCrop(drawn.size, scale=(0.25, 1.0), p=1.0), *flips]
    augment = K.AugmentationSequential(*kinds, normalize)

    def call() -> Tensor:
        images = drawn.images[drawn.index].float() / 255
        return torch.stack([augment(images) for _ in drawn.geometry])

    return call


# ---- Pillow


def _pillow(drawn: Drawn) -> Callable[[], Tensor]:
    """As a torchvision dataset of uint8 arrays does it: an image, its transforms, a tensor, normalised."""
    from PIL import Image, ImageEnhance

    arrays = drawn.images.permute(0, 2, 3, 1).contiguous().numpy()
    size, channels = drawn.size[::-1], drawn.images.shape[1]
    flips = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM
    places, boxes = drawn.geometry.tolist(), _boxes(drawn)

    def shifted(picture, matrix, box):
        pad = np.pad(np.asarray(picture), ((4, 4), (4, 4), (0, 0)), "reflect")
        return Image.fromarray(pad).crop(tuple(round(side) + 4 for side in box[1]))

    def rotated(picture, matrix, box):
        turned = picture.transform(
            size, Image.Transform.AFFINE, [*matrix[0], *matrix[1]], Image.Resampling.BILINEAR
        )
        for kind, factor in (
            (ImageEnhance.Brightness, 1.2),
            (ImageEnhance.Contrast, 0.8),
            (ImageEnhance.Color, 1.3),
        ):
            turned = kind(turned).enhance(factor)
        hue, saturation, value = turned.convert("HSV").split()
        hue = Image.fromarray(np.asarray(hue) + np.uint8(20))
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")

    def cropped(picture, matrix, box):
        return picture.resize(size, Image.Resampling.BILINEAR, box=box[1])

    transform = {"shift": shifted, "rotate": rotated, "inside": cropped}[drawn.kind]

    def one(box, matrix) -> Tensor:
        picture = transform(Image.fromarray(arrays[box[0]]), matrix, box)
        for flip, wanted in zip(flips, box[2:], strict=True):
            if wanted and drawn.kind != "rotate":
                picture = picture.transpose(flip)
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div_(255)
        return tensor.sub_(drawn.mean).div_(drawn.std)

    def call() -> Tensor:
        views = [one(*each) for view in zip(boxes, places, strict=True) for each in zip(*view, strict=True)]
        return torch.stack(views).view(*drawn.geometry.shape[:2], channels, *drawn.size)

    return call


def _by_kind(function, notes: dict[str, str]) -> Factory:
    """notes: of the kinds that are not held against the reference, why."""

    def factory(work: Workload) -> Candidate:
        note = notes.get(work.options.get("kind", "shift"), "")
        return _candidate(function, note, checked=not note)(work)

    return factory


ROUNDS = "rounds to grey levels after each step: not checked"
OWN = "draws its own numbers, in the time: not checked"
PEERS = {
    "augment": {
        "eager torch": _by_kind(_eager, {"inside": "whole pixels, keeps to its box: not checked"}),
        "kornia": _by_kind(_kornia, dict.fromkeys(("shift", "rotate", "inside"), OWN)),
        "PIL": _by_kind(_pillow, {"rotate": ROUNDS + "; black beyond the edge", "inside": ROUNDS}),
    }
}
OURS = {"augment": {"mtkernels": _candidate(_fused)}}
