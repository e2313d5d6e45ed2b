"""The row of augment in OPS: how its tensors are made and its backends called, its options, cases and timed sizes."""

import math
from types import ModuleType

import torch
from torch import Tensor

OPTIONS = (
    {},
    {"kind": "rotate", "color": True},
    {"kind": "crop", "images": "hwc", "channels_last": True, "std": 2.0, "border": "symmetric"},
    {"kind": "zoom", "erase": True, "border": "constant"},
    {"color": True, "border": "constant", "channels_last": True, "mean": None, "std": None},
    {"kind": "crop", "images": "float32", "color": True, "clamp": False, "border": "constant"},
    {"kind": "rotate", "images": "float32", "border": "symmetric", "channels_last": True},
    {"kind": "crop", "border": "replicate", "erase": True},
    {"images": "hwc", "border": "symmetric"},
    {"kind": "zoom", "images": "hwc", "border": "replicate", "color": True},
    {"images": "float32", "border": "replicate", "mean": 0.0, "std": 1.0},
    {"kind": "inside", "channels_last": True},
)
CASES = {
    "digits": ((3, 1, 8, 8), (2, 5), (8, 8)),
    "three channels": ((2, 3, 13, 21), (2, 3), (9, 17)),
    "four channels": ((2, 4, 5, 3), (1, 3), (12, 7)),
    "two channels, one pixel": ((2, 2, 1, 1), (3, 2), (4, 3)),
    "one pixel of each": ((2, 3, 5, 4), (2, 9), (1, 1)),
    "smaller": ((2, 3, 40, 50), (1, 2), (10, 12)),
    "empty": ((2, 3, 4, 4), (2, 0), (4, 4)),
}
BENCH = {
    "2x256x3x32x32": ((10_000, 3, 32, 32), (2, 256), (32, 32)),
    "2x256x3x32x32 rotated": ((10_000, 3, 32, 32), (2, 256), (32, 32)),
    "2x1x3x375x500 to 224": ((4, 3, 375, 500), (2, 1), (224, 224)),
}
_PER_CHANNEL = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26)}
BENCH_OPTIONS = {
    "2x256x3x32x32": _PER_CHANNEL,
    "2x256x3x32x32 rotated": {"kind": "rotate", "color": True, **_PER_CHANNEL},
    "2x1x3x375x500 to 224": {"kind": "inside", "images": "hwc", **_PER_CHANNEL},
}


def call(
    backend: ModuleType,
    inputs,
    *,
    kind="shift",
    images="uint8",
    color=False,
    clamp=True,
    erase=False,
    mean=0.5,
    std=0.25,
    border="reflect",
    fill=0.25,
    channels_last=False,
) -> list[Tensor]:
    """The draws' dtype is the views'; the reference gives float64 too. images: uint8, float32, or hwc in memory."""
    (pixels, index, boxes, size), (draws, colors) = inputs
    if images == "float32":
        pixels = pixels.float() / 200
    if images == "hwc":
        pixels = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    geometry = matrices(draws.float(), kind, tuple(pixels.shape[2:]), tuple(size.shape))
    views = backend.augment(
        pixels, index, geometry, tuple(size.shape), colors.float() if color else None, clamp,
        boxes if erase else None, mean, std, border, fill, draws.dtype, channels_last,
    )  # fmt: skip
    views_in_memory = views.permute(0, 1, 3, 4, 2) if channels_last else views
    assert views_in_memory.is_contiguous()
    return [views]


def matrices(draws: Tensor, kind: str, size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Of draws within -1..1. shift: by up to 4 pixels, and flip. crop: from half to twice the image, and flip. inside:
    a part of it, and flip. rotate: by any angle. zoom: the same, and 1 to 4 times smaller."""
    image, view = (torch.tensor([w, h], device=draws.device).float() - 1 for h, w in (size, to_size))
    sign, amount, shift = draws[..., 0].sign(), draws[..., 1], draws[..., 2]
    sign, room = torch.where(sign == 0, 1.0, sign), 3.0
    if kind == "shift":
        linear = torch.diag_embed(sign)
    elif kind in ("crop", "inside"):
        part = 2 ** (amount if kind == "crop" else -amount.abs())
        linear = torch.diag_embed(sign * part * (image + 1) / (view + 1))
        room = 3.0 if kind == "crop" else (1 - part) * (image + 1) / 2
    else:
        cos, sin = (math.pi * amount[..., 0]).cos(), (math.pi * amount[..., 0]).sin()
        linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        if kind == "zoom":
            linear = linear @ torch.diag_embed(2 ** (1 + draws[..., 0]))
    middle = (image - (linear @ view.unsqueeze(-1)).squeeze(-1)) / 2
    offset = (middle + 4 * shift).round() if kind == "shift" else middle + room * shift
    return torch.cat([linear, offset.unsqueeze(-1)], -1).contiguous()


def random_images(
    shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: str = "cpu", seed: int = 0
):
    """Shapes of the images, of [views, rows], and of a view. The views' size goes as a tensor's shape."""
    images, (views, rows), size = shapes
    generator = torch.Generator().manual_seed(seed)
    channels = images[1]
    pixels = torch.randint(256, images, dtype=torch.uint8, generator=generator)
    index = torch.randint(max(images[0], 1), (rows,), generator=generator)
    boxes = torch.randint(
        -2, max(max(size) // 2, 1) + 2, (views, rows, 4), dtype=torch.int32, generator=generator
    )
    draws = torch.rand(views, rows, 2, 3, dtype=torch.float64, generator=generator) * 2 - 1
    colors = torch.rand(views, rows, channels, channels + 1, dtype=torch.float64, generator=generator) * 2 - 1
    dtype = torch.float32 if dtype == torch.float64 else dtype  # which the kernels do not give
    whole = [tensor.to(device) for tensor in (pixels, index, boxes)]
    return [*whole, torch.zeros(size, dtype=torch.bool, device=device)], [
        tensor.to(device, dtype) for tensor in (draws, colors)
    ]
