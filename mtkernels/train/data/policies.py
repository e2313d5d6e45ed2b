"""Random views: policies turn counter-based random numbers into the matrices that `mtkernels.augment` takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from ..config import SettingError
from .random import COLOR, ERASE, GEOMETRY, uniforms

Border = Literal["reflect", "symmetric", "replicate", "constant"]
Size = tuple[int | Tensor, int | Tensor]  # height and width, each one number or one a row
Views = int | Sequence[int]  # how many, numbered from 0, or their numbers

_TRIES = 10  # of RandomResizedCrop, before it takes the image's middle
_GREY = (0.299, 0.587, 0.114)  # weights of red, green, blue


@dataclass(frozen=True)
class Parameters:
    """The arguments of `mtkernels.augment` for one batch, on the device of its samples."""

    geometry: Tensor  # [views, rows, 2, 3] float32: an output pixel's (x, y, 1) to its place in the input
    color: Tensor | None = None  # [views, rows, 3, 4] float32: (r, g, b, 1) of 0..1 to (r, g, b)
    erase: Tensor | None = None  # [views, rows, 4] int32: top, left, height, width in the output

    def row(self, at: int) -> "Parameters":
        """Those of one row, as a batch of one."""
        parts = (self.geometry, self.color, self.erase)
        return Parameters(*(None if part is None else part[:, at : at + 1].contiguous() for part in parts))

    def batches(self, count: int) -> "list[Parameters]":
        """Those of `count` batches of as many rows each, that are one after the other here."""
        columns = []
        for part in (self.geometry, self.color, self.erase):
            if part is None:
                columns.append([None] * count)
            else:
                columns.append(part.unflatten(1, (count, -1)).transpose(0, 1).contiguous().unbind())
        return [Parameters(*parts) for parts in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Batch:
    """What a policy may look at."""

    samples: Tensor
    epochs: Tensor
    seed: int
    views: Views
    size: Size
    means: Tensor | None

    @property
    def height(self) -> Tensor:
        """Of the input images: one number or [rows], float64."""
        return _number(self.size[0], self.samples)

    @property
    def width(self) -> Tensor:
        """Of the input images: one number or [rows], float64."""
        return _number(self.size[1], self.samples)

    def draw(self, count: int, stream: int) -> Tensor:
        """[views, rows, count] in [0, 1); float64, so that devices differ by rounding to float32 at most."""
        numbers = range(self.views) if isinstance(self.views, int) else self.views
        if isinstance(numbers, range):  # made on the device: nothing is copied to it
            view = torch.arange(numbers.start, numbers.stop, numbers.step, device=self.samples.device)
        else:
            view = torch.tensor(numbers, device=self.samples.device)
        draw = uniforms(self.seed, self.samples, self.epochs, view=view[:, None], count=count, stream=stream)
        return draw.double()


class Policy:
    """A distribution of views."""

    border: Border = "constant"  # what lies outside of the image
    out_size: tuple[int, int] | None = None  # height and width of a view (None: the input's)

    def parameters(
        self,
        samples: Tensor,
        epochs: Tensor,
        *,
        seed: int,
        views: Views,
        size: Size,
        means: Tensor | None = None,
    ) -> Parameters:
        """Those of samples [rows] in epochs [rows]: a pure function of seed, epoch, sample and the view's number.

        size: height and width of the input images, numbers or [rows]. means: each image's mean colour [rows, 3]
        or grey [rows] in 0..1, for contrast.
        """
        return self.of(Batch(samples, epochs, seed, views, size, means))

    def of(self, batch: Batch) -> Parameters:
        """The same, for a policy to define."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TranslateFlip(Policy):
    """Shifts by whole pixels, uniform in +-translate along each axis, then a mirror image half of the time.

    Mean Teacher's CIFAR-10: 4 pixels, symmetric. Pi-model, Temporal Ensembling and Mean Teacher's ConvNet: 2 pixels,
    border "reflect"; the Pi-model's views share the flip and not the shift (shared_flip).
    """

    translate: int = 4
    flip: bool = True
    border: Border = "symmetric"
    shared_flip: bool = False

    def __post_init__(self) -> None:
        if int(self.translate) != self.translate:
            raise SettingError(f"translate must be a whole number of pixels, got {self.translate}")
        _check(translate=self.translate)

    def of(self, batch: Batch) -> Parameters:
        """See Policy.parameters; exact on every device."""
        draw = batch.draw(3, GEOMETRY)
        dx, dy = (_whole(draw[..., axis], 2 * self.translate + 1) - self.translate for axis in (0, 1))
        turn = draw[..., 2]
        if self.shared_flip:
            turn = replace(batch, views=1).draw(3, GEOMETRY)[..., 2].expand_as(turn)
        mirror = (turn < 0.5) & self.flip
        start = torch.where(mirror, batch.width - 1, 0) - dx  # the image moves right by dx
        return Parameters(_matrix(torch.where(mirror, -1.0, 1.0), 0, start, 0, 1, -dy).float())


@dataclass(frozen=True, kw_only=True)
class Affine(Policy):
    """A rotation, zoom, shear and shift about the image's centre, amounts uniform in +- the field."""

    rotate: float = 0.0  # degrees
    zoom: float = 0.0  # scale factors 1 - zoom .. 1 + zoom, of width and height separately
    shear: float = 0.0  # horizontal shift per unit of height
    shift: float = 0.0  # pixels, each axis
    border: Border = "constant"

    def __post_init__(self) -> None:
        _check(rotate=self.rotate, zoom=self.zoom, shear=self.shear, shift=self.shift)

    def of(self, batch: Batch) -> Parameters:
        """See Policy.parameters."""
        amount = batch.draw(6, GEOMETRY) * 2 - 1
        angle = amount[..., 0] * math.radians(self.rotate)
        zoom_x, zoom_y = 1 + amount[..., 1] * self.zoom, 1 + amount[..., 2] * self.zoom
        shear, cos, sin = amount[..., 3] * self.shear, angle.cos(), angle.sin()
        dx, dy = amount[..., 4] * self.shift, amount[..., 5] * self.shift
        across, down = (shear * cos - sin) * zoom_y, (shear * sin + cos) * zoom_y
        return Parameters(_about_centre(batch, cos * zoom_x, across, dx, sin * zoom_x, down, dy).float())


@dataclass(frozen=True, kw_only=True)
class ResizedCrop(Policy):
    """ImageNet's views: rotation, RandomResizedCrop, flip, ColorJitter (torchvision's names), as two matrices.

    One interpolation in place of torchvision's two. For the colours see `color_jitter`.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)  # the crop's share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # its width / height
    flip: bool = True
    rotate: float = 10.0  # degrees
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue
    border: Border = "constant"

    def __post_init__(self) -> None:
        _check(1, size=self.size)
        _check(rotate=self.rotate)
        for name, ends, most in (("scale", self.scale, 1), ("ratio", self.ratio, math.inf)):
            if not 0 < ends[0] <= ends[1] <= most or len(ends) != 2:
                raise SettingError(f"{name} must be two rising numbers above 0, at most {most}, got {ends}")
        if len(self.jitter) != 4 or not min(self.jitter) >= 0 or self.jitter[3] > 0.5:
            raise SettingError(
                f"jitter must be four numbers, 0 or more, the last at most 0.5, got {self.jitter}"
            )

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of a view."""
        return self.size, self.size

    def of(self, batch: Batch) -> Parameters:
        """See Policy.parameters."""
        draw = batch.draw(4 + 2 * _TRIES, GEOMETRY)
        left, top, width, height = self.boxes(draw[..., 2:], batch.width, batch.height)
        step_x, step_y = width / self.size, height / self.size
        mirror = (draw[..., 0] < 0.5) & self.flip
        start_x = left - 0.5 + torch.where(mirror, width - 0.5 * step_x, 0.5 * step_x)
        start_y = top - 0.5 + 0.5 * step_y
        crop = _matrix(torch.where(mirror, -step_x, step_x), 0, start_x, 0, step_y, start_y)
        angle = (draw[..., 1] * 2 - 1) * math.radians(self.rotate)
        cos, sin = angle.cos(), angle.sin()
        geometry = _compose(_about_centre(batch, cos, -sin, 0, sin, cos, 0), crop).float()
        if not any(self.jitter):
            return Parameters(geometry)
        return Parameters(geometry, color_jitter(batch.draw(8, COLOR), self.jitter, batch.means).float())

    def boxes(self, draw: Tensor, full_width: Tensor, full_height: Tensor) -> tuple[Tensor, ...]:
        """Left, top, width, height in whole pixels, of draws [..., 2 + 2 x tries]: RandomResizedCrop's rule."""
        low, high = (math.log(end) for end in self.ratio)
        ratio = (low + (high - low) * draw[..., 2 + _TRIES :]).exp()
        share = self.scale[0] + (self.scale[1] - self.scale[0]) * draw[..., 2 : 2 + _TRIES]
        area = share * (full_width * full_height).unsqueeze(-1)
        widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (widths > 0) & (widths <= full_width.unsqueeze(-1))
        fits &= (heights > 0) & (heights <= full_height.unsqueeze(-1))
        found, first = fits.any(-1), fits.int().argmax(-1, keepdim=True)
        widest = full_width.minimum((full_height * self.ratio[1]).round())
        highest = full_height.minimum((full_width / self.ratio[0]).round())
        width = torch.where(found, widths.gather(-1, first).squeeze(-1), widest)
        height = torch.where(found, heights.gather(-1, first).squeeze(-1), highest)
        room_x, room_y = full_width - width, full_height - height
        left = torch.where(found, _whole(draw[..., 0], room_x + 1), (room_x / 2).floor())
        top = torch.where(found, _whole(draw[..., 1], room_y + 1), (room_y / 2).floor())
        return left, top, width, height


@dataclass(frozen=True, kw_only=True)
class CenterCrop(Policy):
    """For evaluation: the shorter side resized to `resize` (None: as it is), then the middle size x size pixels."""

    size: int = 224
    resize: int | None = 256
    border: Border = "constant"

    def __post_init__(self) -> None:
        _check(1, size=self.size)
        if self.resize is not None:
            _check(1, resize=self.resize)

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of a view."""
        return self.size, self.size

    def of(self, batch: Batch) -> Parameters:
        """See Policy.parameters; nothing is random."""
        short = batch.height.minimum(batch.width)
        steps, starts = [], []
        for side in (batch.width, batch.height):
            resized = side if self.resize is None else (side * self.resize / short).floor()
            start = ((resized - self.size) / 2).round()
            steps.append(side / resized)
            starts.append((start + 0.5) * side / resized - 0.5)
        geometry = _matrix(steps[0], 0, starts[0], 0, steps[1], starts[1]).float()
        views = batch.views if isinstance(batch.views, int) else len(batch.views)
        return Parameters(geometry.expand(views, len(batch.samples), 2, 3).contiguous())


@dataclass(frozen=True, kw_only=True)
class Cutout(Policy):
    """`policy`, then a square of `size` pixels set to the fill colour, its centre uniform, clipped at the borders."""

    policy: Policy
    size: int = 16

    def __post_init__(self) -> None:
        _check(size=self.size)

    @property
    def border(self) -> Border:
        """The inner policy's."""
        return self.policy.border

    @property
    def out_size(self) -> tuple[int, int] | None:
        """The inner policy's."""
        return self.policy.out_size

    def of(self, batch: Batch) -> Parameters:
        """See Policy.parameters."""
        height, width = self.out_size or batch.size
        return replace(self.policy.of(batch), erase=squares(batch.draw(2, ERASE), self.size, height, width))


def squares(centre: Tensor, side: int | Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Boxes [..., 4] int32 (top, left, height, width), clipped to the image, of centres [..., 2] from [0, 1)."""
    ends = []
    for place, full in enumerate((height, width)):
        full = _number(full, centre)
        start = _whole(centre[..., place], full) - side // 2
        ends.append((start.clamp(min=0), (start + side).minimum(full)))
    (top, bottom), (left, right) = ends
    return torch.stack([top, left, bottom - top, right - left], -1).int()


def color_jitter(draw: Tensor, amounts: Sequence[float], means: Tensor | None = None) -> Tensor:
    """Matrices [..., 3, 4] that change brightness, contrast, saturation and hue, in a random order: ColorJitter.

    draw: [..., 8] of [0, 1), four amounts and the order. amounts: factors uniform in max(0, 1 - a) .. 1 + a, hue
    uniform in +-a of the whole circle. means: the image's mean colour [rows, 3] or grey [rows] in 0..1, else 0.5.

    Contrast blends with the mean grey of what it gets. Colours are clamped once, where torchvision clamps after each
    of the four. Hue turns the colours about the grey axis of RGB, where torchvision turns HSV's hue, which no matrix
    does: over all RGB colours at hue +-0.1 the two are 17 of 255 levels apart on average and 62 at most (in YIQ they
    would be 22 and 123, and least squares finds no matrix below 17), while the change itself is 27 on average.
    """
    brightness, contrast, saturation = (
        max(0.0, 1 - amount) + (1 + amount - max(0.0, 1 - amount)) * draw[..., place]
        for place, amount in enumerate(amounts[:3])
    )
    zero = torch.zeros_like(contrast)
    scaled, desaturated = _color(brightness, zero, zero), _color(saturation, 1 - saturation, zero)
    turned = _hue((draw[..., 3] * 2 - 1) * (2 * math.pi * amounts[3]))
    means = contrast.new_full((1,), 0.5) if means is None else means.to(contrast)
    means = (means.unsqueeze(-1) if means.dim() == 1 else means).expand(*contrast.shape, 3).unsqueeze(-1)
    color = _color(zero + 1, zero, zero)
    for change in draw[..., 4:].argsort(dim=-1, stable=True).unbind(-1):
        red, green, blue = (_product(color[..., :3], means) + color[..., 3:]).squeeze(-1).unbind(-1)
        grey = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
        changes = torch.stack(
            [scaled, _color(contrast, zero, (1 - contrast) * grey), desaturated, turned], -3
        )
        color = _compose(changes.take_along_dim(change[..., None, None, None], -3).squeeze(-3), color)
    return color


def _color(own: Tensor, grey: Tensor, offset: Tensor) -> Tensor:
    """[..., 3, 4]: own x the channel + grey x the pixel's grey + offset."""
    rows = [[own * float(i == j) + grey * _GREY[j] for j in range(3)] + [offset] for i in range(3)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _hue(angle: Tensor) -> Tensor:
    """[..., 3, 4]: a turn about the grey axis, from red to green to blue."""
    cos, sin = angle.cos(), angle.sin() / math.sqrt(3)
    ahead, behind = (1 - cos) / 3 + sin, (1 - cos) / 3 - sin
    circle = [(1 - cos) / 3 + cos, behind, ahead]  # of red; each row is the one above, moved by one
    rows = [[circle[(j - i) % 3] for j in range(3)] + [torch.zeros_like(cos)] for i in range(3)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _whole(draw: Tensor, count: int | Tensor) -> Tensor:
    """Whole numbers from 0 to count - 1, in float64; a draw has 24 bits, so the product is exact."""
    return (draw * count).floor()


def _number(value: float | Tensor, like: Tensor) -> Tensor:
    """`value` in float64 on the device of `like`, without a copy from the host."""
    if isinstance(value, Tensor):
        return value.to(like.device, torch.float64)
    return torch.full((), float(value), dtype=torch.float64, device=like.device)


def _matrix(*entries: Tensor | float) -> Tensor:
    """[..., 2, 3] float64 of six entries, row by row."""
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    return torch.stack(torch.broadcast_tensors(*(_number(e, like) for e in entries)), -1).unflatten(
        -1, (2, 3)
    )


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The affine map `inner`, then `outer`: [..., n, n + 1]."""
    product = _product(outer[..., :-1], inner)
    return torch.cat([product[..., :-1], product[..., -1:] + outer[..., -1:]], -1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, with the same bits for any number of rows: a GPU's matrix product may go by it."""
    inner = range(left.shape[-1])
    return reduce(torch.add, (left[..., k : k + 1] * right[..., k : k + 1, :] for k in inner))


def _about_centre(batch: Batch, *entries: Tensor | float) -> Tensor:
    """The matrix of six entries, with the image's centre as its origin."""
    x, y = (batch.width - 1) / 2, (batch.height - 1) / 2
    return _compose(_compose(_matrix(1, 0, x, 0, 1, y), _matrix(*entries)), _matrix(1, 0, -x, 0, 1, -y))


def _check(least: float = 0, /, **amounts: float) -> None:
    for name, amount in amounts.items():
        if not least <= amount < math.inf:
            raise SettingError(f"{name} must be {least} or more, got {amount}")
