"""Random views of small images: batched operations on the images' device, each row with its own draw."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..seeds import generator


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Affine map, smooth warp, Gaussian noise, drawn per image; the map's amounts uniform in +- field."""

    rotate: float = 0.0  # degrees
    zoom: float = 0.0  # scale factors 1 - zoom .. 1 + zoom, of width and height separately
    shear: float = 0.0  # horizontal shift per unit of height
    shift: float = 0.0  # pixels, each axis
    warp: float = 0.0  # pixels, standard deviation at the 3 x 3 control points of a smooth displacement
    noise: float = 0.0  # standard deviation, where pixels are 0..1

    def __call__(self, images: Tensor, *, seed: int, step: int, view: int) -> Tensor:
        """Views [rows, channels, height, width]: a pure function of `images` and (seed, step, view)."""
        draw = generator(images.device, seed, "view", step, view)
        grid = F.affine_grid(self._affine(images, draw), list(images.shape), align_corners=False)
        if self.warp:
            grid = grid + self._displacement(images, draw)
        views = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if self.noise:
            views = views + self.noise * torch.randn(
                views.shape, generator=draw, device=views.device, dtype=views.dtype
            )
        return views

    def _affine(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Maps [rows, 2, 3] from a view's coordinates to the image's, both -1..1 across height and width."""
        rows, _, height, width = images.shape
        amount = torch.rand(rows, 6, generator=draw, device=images.device, dtype=images.dtype) * 2 - 1
        angle = amount[:, 0] * math.radians(self.rotate)
        zoom_x, zoom_y = 1 + amount[:, 1] * self.zoom, 1 + amount[:, 2] * self.zoom
        shear = amount[:, 3] * self.shear
        cos, sin = angle.cos(), angle.sin()
        maps = torch.stack(
            [
                cos * zoom_x,
                (shear * cos - sin) * zoom_y * (height / width),
                amount[:, 4] * (2 * self.shift / width),
                sin * zoom_x * (width / height),
                (shear * sin + cos) * zoom_y,
                amount[:, 5] * (2 * self.shift / height),
            ],
            dim=1,
        )
        return maps.view(rows, 2, 3)

    def _displacement(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """A smooth field [rows, height, width, 2] in the grid's units."""
        rows, _, height, width = images.shape
        control = torch.randn(rows, 2, 3, 3, generator=draw, device=images.device, dtype=images.dtype)
        field = F.interpolate(control, (height, width), mode="bicubic", align_corners=True)
        per_pixel = (2 * self.warp / width, 2 * self.warp / height)
        return torch.stack([field[:, axis] * per_pixel[axis] for axis in (0, 1)], dim=-1)
