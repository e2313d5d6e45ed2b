"""The meaning of augment, in plain torch."""

import torch
from torch import Tensor

from mtkernels import _C

__all__ = ["augment"]

# As csrc/augment.h.
_FARTHEST, _WIDEST, _PLAIN = 2.0**22, 256.0, 1 + 2.0**-16


def augment(
    images,
    index,
    geometry,
    size,
    color,
    clamp,
    erase,
    mean,
    std,
    border,
    fill,
    dtype,
    channels_last,
) -> Tensor:
    """See mtkernels.augment. float64, which the kernels do not give, is for tests: all of it is worked out in it."""
    wide = torch.promote_types(dtype, torch.float32)
    kernels = torch.float32 if dtype == torch.float64 else dtype
    size, *numbers = _C.check_augment(
        images, index, geometry, size, color, erase, mean, std, border, fill, kernels
    )
    mean, std, fill = (
        torch.tensor(each, dtype=wide, device=images.device)[:, None, None] for each in numbers
    )
    pixels, present = _rows(images, index, wide)
    matrices = geometry.detach().to(wide)
    views, sound = _sampled(pixels, matrices, size, border, fill)
    if color is not None:
        matrix = color.detach().to(wide)
        views = torch.einsum("vrck,vrkhw->vrchw", matrix[..., :-1], views) + matrix[..., -1, None, None]
        views = views.clamp(0, 1) if clamp else views
    if erase is not None:
        views = torch.where(_boxes(erase, size)[:, :, None], fill, views)
    views = ((views - mean) / std).masked_fill(~(sound & present)[..., None, None, None], torch.nan).to(dtype)
    return _channels_last(views) if channels_last else views


def _rows(images: Tensor, index: Tensor | None, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows' images, where pixels are 0..1, and whether each is there, which on a GPU was not looked at."""
    images = images.detach()
    scale = 255 if images.dtype == torch.uint8 else 1
    if index is None:
        return images.to(wide) / scale, images.new_ones(len(images), dtype=torch.bool)
    present = (index >= 0) & (index < len(images))
    if not len(images):
        return images.new_zeros(len(index), *images.shape[1:], dtype=wide), present
    return images[index.long().masked_fill(~present, 0)].to(wide) / scale, present


def _sampled(pixels, matrices, size, border, fill) -> tuple[Tensor, Tensor]:
    """The pixels at the matrices' places, filtered: [views, rows, channels, *size]; and which matrices are sound."""
    wide, device = pixels.dtype, pixels.device
    corner = torch.tensor([size[1] - 1, size[0] - 1, 1], dtype=wide, device=device)
    widths = torch.linalg.vector_norm(matrices[..., :2], dim=-1)
    sound = (((matrices.abs() * corner).sum(-1) <= _FARTHEST) & (widths <= _WIDEST)).all(-1)
    matrices, widths = (torch.where(sound[(..., *[None] * n)], t, 0) for t, n in ((matrices, 2), (widths, 1)))
    widths = torch.where(widths < _PLAIN, 1, widths)[..., None, None]
    y, x = (torch.arange(side, dtype=wide, device=device) for side in size)
    x_place, y_place = (
        matrices[..., k, 0, None, None] * x
        + (matrices[..., k, 1, None, None] * y[:, None] + matrices[..., k, 2, None, None])
        for k in (0, 1)
    )
    total = norm = 0
    for i, y_weight in _taps(y_place, widths[:, :, 1]):
        for j, x_weight in _taps(x_place, widths[:, :, 0]):
            weight = (y_weight * x_weight)[:, :, None]
            total = total + weight * _pixels_at(pixels, i, j, border, fill)
            norm = norm + weight
    return total / norm, sound


def _taps(place: Tensor, half_width: Tensor):
    """The whole numbers within half_width of each place, and their weights."""
    first = (place - half_width).floor() + 1
    for step in range(int((2 * half_width).ceil().max()) if half_width.numel() else 2):
        yield first + step, (1 - (first + step - place).abs() / half_width).clamp(min=0)


def _pixels_at(pixels: Tensor, y: Tensor, x: Tensor, border: str, fill: Tensor) -> Tensor:
    """[views, rows, channels, h, w] of [rows, channels, H, W] at whole places [views, rows, h, w]."""
    rows, channels, height, width = pixels.shape
    (y, x), inside = (_within(y.long(), height, border), _within(x.long(), width, border)), None
    if border == "constant":
        inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width))[:, :, None]
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    places = (y * width + x).flatten(2)[:, :, None].expand(-1, -1, channels, -1)
    found = pixels.flatten(2).expand(len(places), -1, -1, -1).gather(-1, places)
    found = found.view(len(places), rows, channels, *y.shape[2:])
    return found if inside is None else torch.where(inside, found, fill)


def _within(at: Tensor, size: int, border: str) -> Tensor:
    if border == "constant":
        return at
    if border == "replicate":
        return at.clamp(0, size - 1)
    repeated = int(border == "symmetric")
    period = max(1, 2 * (size - 1 + repeated))
    at = at.remainder(period)
    return torch.where(at < size, at, period - at - repeated)


def _boxes(erase: Tensor, size: tuple[int, int]) -> Tensor:
    """Whether a pixel is in its view's box: [views, rows, *size]."""
    top, left, height, width = erase.long()[..., None, None].unbind(2)
    y, x = (torch.arange(side, device=erase.device) for side in size)
    y = y[:, None]
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def _channels_last(views: Tensor) -> Tensor:
    """With the channels of a pixel side by side in memory."""
    return views.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
