"""augment: csrc/augment.h in its letters; a program makes BLOCK pixels of one view, all channels of each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.triton.launch import FP_FUSION, on_device
from mtkernels.backends.triton.row_math import divide, narrowed

_FARTHEST, _WIDEST, _PLAIN = tl.constexpr(2.0**22), tl.constexpr(256.0), tl.constexpr(1 + 2.0**-16)
_PIXELS = 256  # of a program


@triton.jit
def _within(at, size, BORDER: tl.constexpr):
    """Where on an axis of `size` pixels `at` is found, and whether it is the image's own rather than the fill."""
    inside = (at >= 0) & (at < size)
    if BORDER == "constant":
        return tl.where(inside, at, 0), inside
    elif BORDER == "replicate":
        return tl.minimum(tl.maximum(at, 0), size - 1), at == at
    else:
        repeated: tl.constexpr = 1 if BORDER == "symmetric" else 0
        period = tl.maximum(2 * (size - 1 + repeated), 1)
        at = at % period
        at = tl.where(at < 0, at + period, at)
        return tl.where(at < size, at, period - at - repeated), at == at


@triton.jit
def _tap(first, step, place, half_width, size, BORDER: tl.constexpr):
    """Pixel `first + step` of an axis: its weight, where it is found, and whether it is the image's own."""
    at = first + step
    weight = tl.maximum(1 - tl.abs(at - place) / half_width, 0.0)
    found, inside = _within(at.to(tl.int32), size, BORDER)
    return weight, found.to(tl.int64), inside


@triton.jit
def _axis(matrix, last_x, last_y):
    """A matrix's row, its filter's half-width, and whether both can be used."""
    along_x, along_y, shift = tl.load(matrix), tl.load(matrix + 1), tl.load(matrix + 2)
    far = tl.abs(along_x) * last_x + tl.abs(along_y) * last_y + tl.abs(shift)
    width = tl.sqrt(along_x * along_x + along_y * along_y)
    return along_x, along_y, shift, width, (far <= _FARTHEST) & (width <= _WIDEST)


@triton.jit
def _by_channel(numbers, channel):
    """Numbers of the host as a column."""
    column = tl.zeros(channel.shape, tl.float32)
    for c in tl.static_range(len(numbers)):
        column = tl.where(channel == c, numbers[c], column)
    return column


@triton.jit
def _colored(v, color, channel, CLAMP: tl.constexpr, C: tl.constexpr, PADDED: tl.constexpr):
    source = tl.arange(0, PADDED)[None, :]
    matrix = tl.load(color + channel * (C + 1) + source, mask=(channel < C) & (source < C), other=0.0)
    u = tl.sum(matrix[:, :, None] * v[None, :, :], axis=1)
    u += tl.load(color + channel * (C + 1) + C, mask=channel < C, other=0.0)
    if CLAMP:
        u = tl.where(u < 0, 0.0, tl.where(u > 1, 1.0, u))
    return u


@triton.jit(do_not_specialize=["samples", "rows", "views", "tiles"])
def _augment_kernel(
    images,
    index,  # None: the images in order
    geometry,
    color,  # None: the pixels as they are
    erase,  # or None
    view,
    samples,
    rows,
    views,
    tiles,  # of a view
    image_size,  # height, width
    view_size,
    image_strides,  # of samples, channels, rows and columns
    index_stride,
    unit,  # what pixels are multiplied by before a colour
    fill,  # in the images' unit; like the next three a number for each channel
    center,
    scale,
    erased,  # as it is written
    BORDER: tl.constexpr,
    CLAMP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    C: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    item = tl.program_id(0) // tiles  # views of one image follow each other
    row = (item // views).to(tl.int64)
    at = (item % views).to(tl.int64) * rows + row
    sample = row if index is None else tl.load(index + row * index_stride).to(tl.int64)
    last_x, last_y = view_size[1] - 1.0, view_size[0] - 1.0
    m00, m01, m02, width_x, sound_x = _axis(geometry + at * 6, last_x, last_y)
    m10, m11, m12, width_y, sound_y = _axis(geometry + at * 6 + 3, last_x, last_y)
    sound = sound_x & sound_y & (sample >= 0) & (sample < samples)
    half_x = tl.where(sound & (width_x >= _PLAIN), width_x, 1.0)
    half_y = tl.where(sound & (width_y >= _PLAIN), width_y, 1.0)
    sample = tl.where(sound, sample, 0)
    # The interpreter cannot widen a lone truth value.
    sound = tl.full([1], 1, tl.int32) * sound.to(tl.int32) == 1

    pixel = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    pixels = view_size[0] * view_size[1]
    y, x = pixel // view_size[1], pixel % view_size[1]
    fx, fy = x.to(tl.float32), y.to(tl.float32)
    x_place = tl.where(sound, m00 * fx + (m01 * fy + m02), 0.0)
    y_place = tl.where(sound, m10 * fx + (m11 * fy + m12), 0.0)
    first_x, first_y = tl.floor(x_place - half_x) + 1, tl.floor(y_place - half_y) + 1

    channel = tl.arange(0, PADDED)[:, None]
    source = images + sample * image_strides[0] + channel.to(tl.int64) * image_strides[1]
    wanted = sound & (pixel < pixels)
    filler = _by_channel(fill, channel)
    total = tl.zeros([PADDED, BLOCK], tl.float32)
    norm = tl.zeros([BLOCK], tl.float32)
    for j in range(0, tl.ceil(2 * half_y).to(tl.int32)):
        weight_y, row_at, inside_y = _tap(first_y, j, y_place, half_y, image_size[0], BORDER)
        for i in range(0, tl.ceil(2 * half_x).to(tl.int32)):
            weight_x, column_at, inside_x = _tap(first_x, i, x_place, half_x, image_size[1], BORDER)
            weight, inside = weight_y * weight_x, inside_y & inside_x
            place = source + (row_at * image_strides[2] + column_at * image_strides[3])[None, :]
            mask = (wanted & inside & (weight > 0))[None, :] & (channel < C)
            found = tl.load(place, mask=mask, other=0).to(tl.float32)
            total += weight[None, :] * tl.where(inside[None, :], found, filler)
            norm += weight
    u = divide(total, tl.broadcast_to(norm[None, :], total.shape))
    if color is not None:
        u = _colored(u * unit, color + at * (C * (C + 1)), channel, CLAMP, C, PADDED)
    written = (u - _by_channel(center, channel)) * _by_channel(scale, channel)
    if erase is not None:
        box = erase + at * 4
        top, left = tl.load(box).to(tl.int64), tl.load(box + 1).to(tl.int64)
        below, beside = top + tl.load(box + 2), left + tl.load(box + 3)
        boxed = (y >= top) & (y < below) & (x >= left) & (x < beside)
        written = tl.where(boxed[None, :], _by_channel(erased, channel), written)
    written = tl.where(sound, written, float("nan"))
    pixel_at = pixel[None, :].to(tl.int64)
    channel_at = channel.to(tl.int64)
    to = (
        view
        + at * C * pixels
        + (pixel_at * C + channel_at if CHANNELS_LAST else channel_at * pixels + pixel_at)
    )
    tl.store(to, narrowed(written, view.dtype.element_ty), mask=(pixel < pixels)[None, :] & (channel < C))


def augment(
    images: Tensor,
    index: Tensor | None,
    geometry: Tensor,
    size,
    color: Tensor | None,
    clamp: bool,
    erase: Tensor | None,
    mean,
    std,
    border: str,
    fill,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """See mtkernels.augment."""
    size, mean, std, fill = _C.check_augment(
        images, index, geometry, size, color, erase, mean, std, border, fill, dtype
    )
    (views, rows), channels = geometry.shape[:2], images.shape[1]
    if size[0] * size[1] >= 2**31:
        raise NotImplementedError(f"augment: size must be of fewer than 2^31 pixels, got {size}")
    shape = (*size, channels) if channels_last else (channels, *size)
    memory = images.new_empty((views, rows, *shape), dtype=dtype)
    view = memory.permute(0, 1, 4, 2, 3) if channels_last else memory
    if not view.numel():
        return view
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    written = 1.0 if color is not None else unit  # the unit of what is normalised
    block = min(_PIXELS, triton.next_power_of_2(size[0] * size[1]))
    tiles = triton.cdiv(size[0] * size[1], block)
    with on_device(images.device):
        _augment_kernel[(tiles * views * rows,)](
            images, index, geometry, color, erase, memory,
            samples=len(images), rows=rows, views=views, tiles=tiles,
            image_size=tuple(images.shape[2:]), view_size=size, image_strides=images.stride(),
            index_stride=index.stride(0) if index is not None else 0, unit=1 / unit,
            fill=tuple(number * unit for number in fill),
            center=tuple(number * written for number in mean),
            scale=tuple(1 / (number * written) for number in std),
            erased=tuple((f - m) / s for f, m, s in zip(fill, mean, std, strict=True)),
            BORDER=border, CLAMP=clamp, CHANNELS_LAST=channels_last,
            C=channels, PADDED=triton.next_power_of_2(channels), BLOCK=block,
            num_warps=4, enable_fp_fusion=FP_FUSION,
        )  # fmt: skip
    return view
