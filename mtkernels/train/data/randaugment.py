"""RandAugment with Cutout, the strong views of FixMatch, UDA and Meta Pseudo Labels: a batch at a time, as Pillow does.

Each operation changes the rows that drew it, and gives Pillow's very pixels (ImageOps, ImageEnhance, nearest affine).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import SettingError
from .policies import squares
from .random import ERASE, OPERATIONS, uniforms

# Cubuk et al., "RandAugment" (2019), and Sohn et al., "FixMatch" (2020): the same fourteen.
RANDAUGMENT_OPS = (
    *("identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast"),
    *("brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
)
# Xie et al., UDA (2019), and Pham et al., Meta Pseudo Labels (2020): invert and cutout too, no identity.
UDA_OPS = (*RANDAUGMENT_OPS[1:], "invert", "cutout")

Levels = Literal["rising", "released"]


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`n` operations in a row, each drawn from `ops`, and a cutout of `cutout` x `cutout` pixels at the end.

    At level = magnitude / 10: rotation of 30 level degrees, shear of 0.3 level, translation of `translate` level
    sides (cutout among the operations: a square of twice that), each with a random sign; enhancements by
    0.1 + 1.8 level. Levels "rising": posterize to 8 - 4 level bits, solarize from 256 - 256 level on (the papers'
    ranges). "released": 4 level bits, and from 256 level modulo 256 on, as Meta Pseudo Labels' public program has it.
    """

    ops: tuple[str, ...] = RANDAUGMENT_OPS
    n: int = 2
    magnitude: float | tuple[int, int] = 10  # a range: whole numbers, drawn for each operation
    probability: float | tuple[float, float] = (
        1.0  # that a drawn operation is applied; a range: drawn for each image
    )
    translate: float = 10 / 32
    levels: Levels = "rising"
    cutout: int = 16
    fill: int = 128  # what comes in from outside, and the cutout's value

    def __post_init__(self) -> None:
        unknown = sorted(set(self.ops) - set(_OPERATIONS))
        if unknown or not self.ops:
            raise SettingError(f"ops must be of {', '.join(_OPERATIONS)}, got {', '.join(unknown) or 'none'}")
        for name, least, most in (
            ("n", 0, 100),
            ("magnitude", 0, 30),
            ("probability", 0, 1),
            ("cutout", 0, 1e6),
        ):
            low, high = _range(getattr(self, name))
            if not least <= low <= high <= most:
                raise SettingError(f"{name} must be {least} to {most}, got {getattr(self, name)}")

    def __call__(self, images: Tensor, samples: Tensor, epochs: Tensor, *, seed: int, view: int) -> Tensor:
        """New images of uint8 images [rows, 3, height, width], of samples [rows] in epochs [rows].

        Which rows an operation has is worked out where `samples` are: keep these on the CPU beside images on a GPU,
        else each operation waits for the device.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise SettingError(
                f"images must be uint8 [rows, 3, height, width], got {images.dtype} {list(images.shape)}"
            )
        draw = uniforms(seed, samples, epochs, view=view, count=1 + 6 * self.n, stream=OPERATIONS).double()
        low, high = _range(self.probability)
        probability = low + (high - low) * draw[:, 0]
        images = images.clone(memory_format=torch.contiguous_format)
        for layer in draw[:, 1:].unflatten(1, (self.n, 6)).unbind(1):
            chosen = torch.where(layer[:, 1] < probability, (layer[:, 0] * len(self.ops)).floor(), -1)
            for number, name in enumerate(self.ops):
                rows = (chosen == number).nonzero().flatten()
                if name != "identity" and len(rows):
                    there = rows.to(images.device)
                    images[there] = self._changed(name, images[there], layer[rows].to(images.device))
        centre = uniforms(seed, samples, epochs, view=view, count=2, stream=ERASE).double().to(images.device)
        return cutout(images, centre, torch.full_like(centre[:, 0], self.cutout), self.fill)

    def _changed(self, name: str, images: Tensor, draw: Tensor) -> Tensor:
        """Draws [rows, 6]: operation, application, magnitude, sign, and the cutout's centre."""
        low, high = _range(self.magnitude)
        if isinstance(self.magnitude, tuple):
            level = (low + (draw[:, 2] * (high - low + 1)).floor()) / 10
        else:
            level = torch.full_like(draw[:, 2], low / 10)
        sign = torch.where(draw[:, 3] < 0.5, -1.0, 1.0).double()
        shift, rising = level * self.translate, self.levels == "rising"
        if name == "cutout":
            return cutout(images, draw[:, 4:], (shift * min(images.shape[-2:])).floor() * 2, self.fill)
        if name in _WARPS:
            amount = {"r": 30 * level, "s": 0.3 * level, "t": shift}[name[0]]
            return _WARPS[name](images, sign * amount, self.fill)
        if name in _ENHANCEMENTS:
            return _ENHANCEMENTS[name](images, 0.1 + 1.8 * level)
        if name == "posterize":
            bits = (4 * level).floor()
            return posterize(images, (8 - bits if rising else bits).clamp(1 if rising else 0, 8))
        if name == "solarize":
            start = (256 * level).floor()
            return solarize(images, (256 - start).clamp(min=0) if rising else start % 256)
        return _PLAIN[name](images)


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched to 0..255: ImageOps.autocontrast."""
    low, high = (ends.double() for ends in images.flatten(2).aminmax(dim=2))
    scale = torch.full_like(high, 255) / (high - low)  # 255 / tensor would be 255 x its rounded reciprocal
    stretched = images.double() * scale[..., None, None] + (-low * scale)[..., None, None]
    flat = (high <= low)[..., None, None]
    return torch.where(flat, images, stretched.clamp(0, 255).to(torch.uint8))


def equalize(images: Tensor) -> Tensor:
    """Each channel's histogram made even: ImageOps.equalize."""
    pixels = images.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - last) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step == 0, pixels, table.gather(2, pixels)).to(torch.uint8).view_as(images)


def invert(images: Tensor) -> Tensor:
    """255 - pixel."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest `bits` [rows] of a pixel's eight."""
    unit = torch.exp2(8 - bits.double())[:, None, None, None]
    return ((images / unit).floor() * unit).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Pixels from `threshold` [rows] on inverted."""
    return torch.where(images < threshold[:, None, None, None], images, 255 - images)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """ImageEnhance.Brightness, as the two below by their names, with factors [rows]."""
    return _blend(torch.zeros_like(images), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Towards grey, or away from it."""
    return _blend(_grey(images).expand_as(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Towards the mean grey, a whole number, or away from it."""
    mean = (_grey(images).double().mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(mean.expand_as(images), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Towards 3 x 3 means in which the middle counts five times, or away from them; the border stays."""
    smooth = images.clone()
    if min(images.shape[-2:]) > 2:
        pixels = images.flatten(0, 1).unsqueeze(1).float()
        sums = F.avg_pool2d(pixels, 3, stride=1, divisor_override=1) + 4 * pixels[..., 1:-1, 1:-1]
        middle = torch.div(2 * sums + 13, 26, rounding_mode="floor")  # sums / 13 to nearest: never a tie
        smooth[..., 1:-1, 1:-1] = middle.to(torch.uint8).unflatten(0, images.shape[:2]).squeeze(2)
    return _blend(smooth, images, factor)


def rotate(images: Tensor, degrees: Tensor, fill: int) -> Tensor:
    """Counterclockwise about the image's centre: Image.rotate."""
    angle, (height, width) = degrees.double().deg2rad(), images.shape[-2:]
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return affine(images, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fill)


def shear_x(images: Tensor, amount: Tensor, fill: int) -> Tensor:
    """Row y comes from `amount` x y pixels further right; shear_y the same for columns."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return affine(images, (one, amount, zero, zero, one, zero), fill)


def shear_y(images: Tensor, amount: Tensor, fill: int) -> Tensor:
    """See shear_x."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return affine(images, (one, zero, zero, amount, one, zero), fill)


def translate_x(images: Tensor, share: Tensor, fill: int) -> Tensor:
    """Each pixel comes from a share of the width further right, in whole pixels; translate_y from further down."""
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return affine(images, (one, zero, (share * images.shape[-1]).trunc(), zero, one, zero), fill)


def translate_y(images: Tensor, share: Tensor, fill: int) -> Tensor:
    """See translate_x."""
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return affine(images, (one, zero, zero, zero, one, (share * images.shape[-2]).trunc()), fill)


def cutout(images: Tensor, centre: Tensor, side: Tensor, fill: int) -> Tensor:
    """Squares of `side` [rows] pixels filled, with centres [rows, 2] in 0..1."""
    height, width = images.shape[-2:]
    box = squares(centre, side, height, width).long()[:, :, None]
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    down, across = (
        (y >= box[:, 0]) & (y < box[:, 0] + box[:, 2]),
        (x >= box[:, 1]) & (x < box[:, 1] + box[:, 3]),
    )
    return images.masked_fill((down[:, :, None] & across[:, None, :])[:, None], fill)


def affine(images: Tensor, matrix: tuple[Tensor, ...], fill: int) -> Tensor:
    """Image.transform(AFFINE), nearest: six entries [rows] map a pixel's (x, y, 1), corner-based, to the input.

    In Pillow's 16-bit fixed point, so that the same pixel is taken where two are nearly as near.
    """
    a, b, c, d, e, f = (entry.double()[:, None, None] for entry in matrix)
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    from_x = _fixed(a) * x + _fixed(b) * y + _fixed(c + a * 0.5 + b * 0.5) >> 16
    from_y = _fixed(d) * x + _fixed(e) * y + _fixed(f + d * 0.5 + e * 0.5) >> 16
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    place = from_y.clamp(0, height - 1) * width + from_x.clamp(0, width - 1)
    moved = images.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return moved.view_as(images).masked_fill(~inside[:, None], fill)


def _fixed(value: Tensor) -> Tensor:
    return (value * 65536 + 0.5).floor().long()


def _grey(images: Tensor) -> Tensor:
    """Pillow's mode L: [rows, 1, height, width]."""
    red, green, blue = images.long().split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16).to(torch.uint8)


def _blend(zero: Tensor, one: Tensor, factor: Tensor) -> Tensor:
    """Image.blend: `zero` at factor 0, `one` at 1, cut to whole numbers within 0..255; in float32, as Pillow."""
    zero, factor = zero.float(), factor.float()[:, None, None, None]
    return (zero + factor * (one.float() - zero)).clamp(0, 255).to(torch.uint8)


def _range(value: float | tuple[float, float]) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}
_ENHANCEMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
}
_WARPS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "rotate": rotate,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
_OPERATIONS = ("identity", "posterize", "solarize", "cutout", *_PLAIN, *_ENHANCEMENTS, *_WARPS)

# FixMatch's published program: half of the drawn operations are applied, at magnitudes from 1 to 9.
FIXMATCH = RandAugment(magnitude=(1, 9), probability=0.5)
UDA = RandAugment(ops=UDA_OPS, magnitude=(1, 9), probability=0.5)
MPL = RandAugment(ops=UDA_OPS, magnitude=16, probability=(0.2, 0.8), translate=4 / 32, levels="released")
