"""augment: views of images, drawn from uint8 pixels in one launch."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtkernels._library import define, functorch_levels, must_dispatch
from mtkernels.backends import backend_for
from mtkernels.ops import _loss

Border = Literal["constant", "reflect", "symmetric", "replicate"]
_OP = "augment"


def augment(
    images: Tensor,
    index: Tensor | None,
    geometry: Tensor,
    *,
    size: Sequence[int] | None = None,
    color: Tensor | None = None,
    clamp: bool = True,
    erase: Tensor | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    border: Border = "reflect",
    fill: float | Sequence[float] = 0.0,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Augmented views of images: gather, map, colour, erase, normalise and cast in one launch.

    (X, Y) = geometry (x, y, 1), the place in the image of a view's pixel (x, y), pixels' centres at whole numbers;
    v_c = sum_ij w((i - Y) / s_y) w((j - X) / s_x) pixel_c(i, j) / sum_ij w w,   w(t) = max(0, 1 - |t|),
    s_x = max(1, |(m00, m01)|), s_y = max(1, |(m10, m11)|);   u_c = sum_k color_ck v_k + color_c,channels, clamped;
    view_c = (u_c - mean_c) / std_c, in the erased box (fill_c - mean_c) / std_c

    So shifts and flips by whole pixels copy, others are bilinear, and antialiased where they make smaller.

    Args:
        images: `[samples, channels, height, width]`, 1 to 4 channels, of any strides (also `[samples, height, width,
            channels]` permuted): uint8, where v counts v / 255, or float32, as it is. A constant, as all here.
        index: `[rows]` int64 or int32: which images, any number of times. None: all, in order. An outside one is
            refused on the CPU; on a GPU the host does not look, and the views of such a row are NaN.
        geometry: `[views, rows, 2, 3]` float32, in pixels, from the view to the image. A matrix with a number that is
            not finite, one that makes more than 256 times smaller, or one with |m00| (width - 1) + |m01| (height - 1)
            + |m02| past 2^22, or so for y, gives a view of NaN. Places are float32.
        size: `(height, width)` of the views; the images' where None.
        color: `[views, rows, channels, channels + 1]` float32, on the scale on which uint8 pixels are 0..1.
        clamp: colours to 0..1. Without a colour nothing is clamped.
        erase: `[views, rows, 4]` int32: top, left, height, width of a box in the view. What is outside the view, or
            has no area, erases nothing.
        mean, std: a number or one for each channel; 0 and 1 where None.
        border: what is beyond the edge: "reflect" (dcb|abcd|cba), "symmetric" (dcba|abcd|dcba), "replicate"
            (aaa|abcd|ddd), as far as a place is; or "constant", which is fill.
        fill: a number or one for each channel, on the scale of color.
        dtype: of the views: float32, float16 or bfloat16; computed in float32.
        channels_last: the views' memory is `[views, rows, height, width, channels]`: each is `torch.channels_last`.

    Returns:
        `[views, rows, channels, *size]`, contiguous or channels_last. A pixel that is not finite makes what its filter
        meets so too, and where its weight is 0 may do, by backend.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Heckbert, "Fundamentals of texture mapping and image warping" (1989); antialiasing as in Pillow's resize.
    """
    tensors = {"images": images, "geometry": geometry, "color": color}
    _loss.refuse_tangents(_OP, **tensors)
    if torch.is_grad_enabled():
        _loss.refuse_gradient(_OP, **tensors)
    if functorch_levels() or any(map(must_dispatch, (images, index, geometry, color, erase))):
        mean, std, fill = (_listed(numbers) for numbers in (mean, std, fill))
        return torch.ops.mtkernels.augment(
            images, index, geometry, size, color, clamp, erase, mean, std, border, fill, dtype, channels_last
        )
    return _augment(
        images, index, geometry, size, color, clamp, erase, mean, std, border, fill, dtype, channels_last
    )


def _listed(numbers: float | Sequence[float] | None) -> list[float] | None:
    if numbers is None or isinstance(numbers, Sequence):
        return numbers
    return [numbers]


def _augment(images, *arguments):
    device = images.device.type if isinstance(images, Tensor) else "cpu"
    return backend_for(device, _OP).augment(images, *arguments)


def _fake(
    images, index, geometry, size, color, clamp, erase, mean, std, border, fill, dtype, channels_last
) -> Tensor:
    rows = images.shape[0] if index is None else index.shape[0]
    height, width = images.shape[2:] if size is None else size
    views = geometry.shape[0]
    if channels_last:
        memory = images.new_empty((views, rows, height, width, images.shape[1]), dtype=dtype)
        return memory.permute(0, 1, 4, 2, 3)
    return images.new_empty((views, rows, images.shape[1], height, width), dtype=dtype)


define(
    "augment(Tensor images, Tensor? index, Tensor geometry, SymInt[]? size, Tensor? color, bool clamp, Tensor? erase, "
    "float[]? mean, float[]? std, str border, float[] fill, ScalarType dtype, bool channels_last) -> Tensor",
    _augment,
    _fake,
)
