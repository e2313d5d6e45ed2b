"""Views as distributions: each policy against Pillow, numpy or a loop that follows torchvision's rule."""

import colorsys
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from mtkernels.train.config import SettingError
from mtkernels.train.data.policies import (
    Affine,
    CenterCrop,
    Cutout,
    Parameters,
    Policy,
    ResizedCrop,
    TranslateFlip,
    color_jitter,
)

ROWS = torch.arange(4000)
FIRST = torch.zeros(4000, dtype=torch.int64)  # the epochs
POLICIES = [
    TranslateFlip(),
    TranslateFlip(translate=2, border="reflect", shared_flip=True),
    Affine(rotate=15, zoom=0.15, shear=0.2, shift=1),
    ResizedCrop(size=32),
    CenterCrop(size=32, resize=40),
    Cutout(policy=TranslateFlip(), size=16),
]


def draw(policy: Policy, samples=ROWS, epochs=FIRST, *, seed=0, views=2, size=(32, 32), **more) -> Parameters:
    return policy.parameters(samples, epochs, seed=seed, views=views, size=size, **more)


def places(geometry: Tensor, points: list[tuple[float, float]]) -> Tensor:
    """[..., points, 2]: where points of the output lie in the input."""
    ends = torch.tensor([[x, y, 1.0] for x, y in points], dtype=torch.float64)
    return (geometry.double() @ ends.T).transpose(-1, -2)


def gather(image: np.ndarray, geometry: Tensor, mode: str) -> np.ndarray:
    """Whole-pixel maps of one image [height, width, channels], through numpy's padding."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    at = np.einsum("ij,jhw->ihw", geometry.double().numpy(), np.stack([x, y, np.ones_like(x)]))
    assert (at == at.round()).all()
    padded = np.pad(image, ((8, 8), (8, 8), (0, 0)), mode=mode)
    return padded[at[1].astype(int) + 8, at[0].astype(int) + 8]


def same(one: Parameters, two: Parameters, rows: Tensor) -> bool:
    pairs = zip(vars(one).values(), vars(two).values(), strict=True)
    return all(a is b is None or torch.equal(a, b[:, rows]) for a, b in pairs)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_row_depends_on_its_key_alone(policy):
    epochs = ROWS % 5
    whole = draw(policy, epochs=epochs)
    order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(1))[:77]
    assert same(draw(policy, ROWS[order], epochs[order]), whole, order)
    assert same(draw(policy, ROWS[order].int(), epochs[order].int()), whole, order)
    assert same(draw(policy, epochs=epochs, views=[1]), _second(whole), ROWS)
    sizes = torch.full((4000,), 32)
    assert same(draw(policy, epochs=epochs, size=(sizes, sizes)), whole, ROWS)
    assert whole.geometry.shape == (2, 4000, 2, 3) and whole.geometry.dtype == torch.float32
    if not isinstance(policy, CenterCrop):
        for other in ({"seed": 1}, {"epochs": FIRST + 9}, {"samples": ROWS + 4000}, {"views": [2, 3]}):
            assert (draw(policy, **other).geometry != draw(policy).geometry).any(
                (-1, -2)
            ).float().mean() > 0.4


def _second(parameters: Parameters) -> Parameters:
    return Parameters(*(None if part is None else part[1:] for part in vars(parameters).values()))


def test_translate_flip_is_what_pillow_does():
    images = np.random.RandomState(0).randint(0, 256, (60, 12, 10, 3), np.uint8)
    policy = TranslateFlip()
    geometry = draw(policy, ROWS[:60], FIRST[:60], size=(12, 10)).geometry.flatten(0, 1)
    seen = set()
    for image, matrix in zip(np.concatenate([images, images]), geometry, strict=True):
        flipped = bool(matrix[0, 0] < 0)
        shift = (9.0 if flipped else 0.0) - float(matrix[0, 2]), -float(matrix[1, 2])
        seen |= {(flipped, *shift)}
        pillow = _translated(Image.fromarray(image), int(shift[0]), int(shift[1]))
        pillow = ImageOps.mirror(pillow) if flipped else pillow
        assert (gather(image, matrix, "symmetric") == np.asarray(pillow)).all()
    assert len(seen) > 50


def _translated(image: Image.Image, dx: int, dy: int) -> Image.Image:
    """The image moved right and down over a canvas on which its mirror images lie all around: edges repeat."""
    width, height = image.size
    canvas = Image.new("RGB", (3 * width, 3 * height))
    for row in range(3):
        for column in range(3):
            tile = ImageOps.mirror(image) if column != 1 else image
            canvas.paste(ImageOps.flip(tile) if row != 1 else tile, (column * width, row * height))
    return canvas.crop((width - dx, height - dy, 2 * width - dx, 2 * height - dy))


@pytest.mark.parametrize("shared", [False, True])
def test_shifts_and_flips_are_uniform_and_independent(shared):
    geometry = draw(TranslateFlip(translate=2, border="reflect", shared_flip=shared)).geometry
    flip = geometry[..., 0, 0] < 0
    dx = torch.where(flip, 31.0, 0.0) - geometry[..., 0, 2]
    dy = -geometry[..., 1, 2]
    for shift in (dx, dy):
        counts = torch.bincount((shift + 2).long().flatten())
        assert len(counts) == 5 and (counts - 1600).abs().max() < 5 * math.sqrt(1600)
    assert abs(flip.float().mean() - 0.5) < 0.03
    assert torch.equal(flip[0], flip[1]) == shared
    alone = [flip[0], dx[0], dy[0], dx[1], dy[1]] + ([] if shared else [flip[1]])
    correlations = torch.corrcoef(torch.stack([part.double() for part in alone])) - torch.eye(len(alone))
    assert correlations.abs().max() < 5 / math.sqrt(4000)
    if shared:  # also by a call for the second view alone
        again = draw(TranslateFlip(translate=2, shared_flip=True), views=[1]).geometry
        assert torch.equal(again[0], geometry[1])


def test_no_flip_and_no_shift():
    assert (draw(TranslateFlip(flip=False)).geometry[..., 0, 0] == 1).all()
    still = draw(TranslateFlip(translate=0, flip=False)).geometry
    assert (still == torch.tensor([[1.0, 0, 0], [0, 1, 0]])).all()


def test_affine_is_the_map_of_affine_grid():
    """The same numbers in the units of torch's affine_grid and in pixels; for images that are not square."""
    policy = Affine(rotate=15, zoom=0.2, shear=0.3, shift=2)
    geometry = draw(policy, ROWS[:50], FIRST[:50], views=1, size=(9, 14)).geometry[0].double()
    scale = torch.tensor([7.0, 4.5], dtype=torch.float64)  # half of width and height
    linear = geometry[:, :, :2] * scale / scale[:, None]
    centre = torch.tensor([6.5, 4.0], dtype=torch.float64)
    offset = (geometry[:, :, :2] @ centre + geometry[:, :, 2] - centre) / scale
    grid = torch.nn.functional.affine_grid(torch.cat([linear, offset[..., None]], -1), [50, 1, 9, 14], False)
    ours = places(geometry, [(x, y) for y in range(9) for x in range(14)]).view(50, 9, 14, 2)
    torch.testing.assert_close((grid + 1) * scale - 0.5, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("amounts", "low", "high"),
    [
        ({"rotate": 20}, -math.radians(20), math.radians(20)),
        ({"zoom": 0.3}, 0.7, 1.3),
        ({"shear": 0.4}, -0.4, 0.4),
        ({"shift": 1.5}, -1.5, 1.5),
    ],
)
def test_affine_amounts(amounts, low, high):
    geometry = draw(Affine(**amounts)).geometry
    a, b, c, d, e, f = geometry.double().flatten(-2).unbind(-1)
    assert geometry.dtype == torch.float32
    name = next(iter(amounts))
    measured = {
        "rotate": torch.atan2(d, a),
        "zoom": torch.stack([a, e]),
        "shear": b,
        "shift": torch.stack([c, f]),
    }
    found = measured[name]
    span = high - low
    assert low - 1e-6 <= found.min() < low + 0.01 * span and high - 0.01 * span < found.max() <= high + 1e-6
    assert abs(found.mean() - (low + high) / 2) < 0.03 * span
    middle = places(geometry, [(15.5, 15.5)]).squeeze(-2)
    if name != "shift":
        torch.testing.assert_close(middle, torch.full_like(middle, 15.5), rtol=0, atol=1e-5)


def _torchvision_boxes(count: int, width: int, height: int, scale, ratio) -> np.ndarray:
    """[count, 4] left, top, width, height by the loop that RandomResizedCrop documents."""
    chance, boxes = random.Random(0), []
    for _ in range(count):
        for _ in range(10):
            area = width * height * chance.uniform(*scale)
            aspect = math.exp(chance.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                boxes.append((chance.randint(0, width - w), chance.randint(0, height - h), w, h))
                break
        else:
            w, h = width, height
            if width / height < ratio[0]:
                h = round(width / ratio[0])
            elif width / height > ratio[1]:
                w = round(height * ratio[1])
            boxes.append(((width - w) // 2, (height - h) // 2, w, h))
    return np.array(boxes)


def _boxes(geometry: Tensor, size: int) -> np.ndarray:
    """Left, top, width, height of unrotated crops."""
    ends = places(geometry, [(-0.5, -0.5), (size - 0.5, size - 0.5)]) + 0.5
    low, high = ends.amin(-2), ends.amax(-2)
    return torch.cat([low, high - low], -1).flatten(0, -2).numpy()


@pytest.mark.parametrize(("width", "height"), [(400, 300), (100, 300), (900, 200), (33, 31)])
def test_crops_are_distributed_as_torchvisions(width, height):
    policy = ResizedCrop(rotate=0, jitter=(0, 0, 0, 0))
    parameters = draw(policy, size=(height, width))
    assert parameters.color is None and policy.out_size == (224, 224)
    ours = _boxes(parameters.geometry, 224)
    whole = ours.round()
    assert np.abs(ours - whole).max() < 1e-3
    assert (whole[:, :2] >= 0).all() and (whole[:, 2:] >= 1).all()
    assert (whole[:, 0] + whole[:, 2] <= width).all() and (whole[:, 1] + whole[:, 3] <= height).all()
    theirs = _torchvision_boxes(8000, width, height, policy.scale, policy.ratio)
    for one, two in zip(_statistics(whole, width, height), _statistics(theirs, width, height), strict=True):
        values = np.union1d(one, two)
        steps = [np.searchsorted(np.sort(part), values, "right") / len(part) for part in (one, two)]
        assert np.abs(steps[0] - steps[1]).max() < 1.95 * math.sqrt(2 / 8000)  # Kolmogorov, 0.1 %
    assert abs(float((parameters.geometry[..., 0, 0] < 0).float().mean()) - 0.5) < 0.03


def _statistics(boxes: np.ndarray, width: int, height: int) -> list[np.ndarray]:
    left, top, w, h = boxes.T
    return [w * h / (width * height), w / h, left, top, left + w]


def test_the_fallback_is_the_middle():
    policy = ResizedCrop(size=50, scale=(1, 1), ratio=(3 / 4, 4 / 3), flip=False, rotate=0)
    for width, height, box in ((100, 300, (0, 83, 100, 133)), (300, 100, (83, 0, 133, 100))):
        found = _boxes(draw(policy, size=(height, width)).geometry, 50)
        assert np.abs(found - np.array(box)).max() < 1e-3
    assert (_boxes(draw(policy, size=(90, 90)).geometry, 50)[:, 2:] > 77).all()


def test_sizes_per_row():
    heights, widths = ROWS % 50 + 60, ROWS % 70 + 40
    policy = ResizedCrop(size=20)
    mixed = draw(policy, size=(heights, widths), means=torch.full((4000,), 0.3))
    for row in (0, 17, 3999):
        key = ROWS[row : row + 1], FIRST[row : row + 1]
        alone = draw(policy, *key, size=(int(heights[row]), int(widths[row])), means=torch.tensor([0.3]))
        assert same(alone, mixed, ROWS[row : row + 1])


def test_rotation_and_crop_are_one_map():
    """Crop, flip and Image.rotate in turn, for the corners of the view."""
    policy, width, height = ResizedCrop(size=40, rotate=30, jitter=(0, 0, 0, 0)), 90, 70
    corners = [(0.0, 0.0), (39.0, 0.0), (0.0, 39.0), (39.0, 39.0)]
    turned = draw(policy, size=(height, width)).geometry
    plain = draw(ResizedCrop(size=40, rotate=0, jitter=(0, 0, 0, 0)), size=(height, width)).geometry
    linear = turned[..., :2].double() @ plain[..., :2].double().inverse()
    angle = torch.atan2(linear[..., 1, 0], linear[..., 0, 0])
    limit = math.radians(30)
    assert -limit - 1e-6 < angle.min() < -0.98 * limit and 0.98 * limit < angle.max() < limit + 1e-6
    # Image.rotate(degrees) takes output (x, y) from where its inverse matrix, about the centre, sends it.
    at = places(plain, corners) - torch.tensor([(width - 1) / 2, (height - 1) / 2])
    cos, sin = angle.cos()[..., None], angle.sin()[..., None]
    x = cos * at[..., 0] - sin * at[..., 1] + (width - 1) / 2
    y = sin * at[..., 0] + cos * at[..., 1] + (height - 1) / 2
    torch.testing.assert_close(places(turned, corners), torch.stack([x, y], -1), rtol=0, atol=1e-4)
    row = int(angle[0].argmax())
    dot = Image.new("L", (width, height))
    dot.paste(255, (60, 30, 62, 32))  # its centre: (60.5, 30.5)
    moved = np.asarray(dot.rotate(math.degrees(angle[0, row]), Image.Resampling.BILINEAR)).astype(float)
    centre = (moved * np.arange(width)).sum() / moved.sum(), (moved.T * np.arange(height)).sum() / moved.sum()
    whole = torch.linalg.solve(
        torch.cat([plain[0, row], torch.tensor([[0.0, 0, 1]])]).double(),
        torch.tensor([*centre, 1.0]).double(),
    )
    back = places(turned[0, row], [(float(whole[0]), float(whole[1]))])[0]
    assert (back - torch.tensor([60.5, 30.5])).abs().max() < 0.05


@pytest.mark.parametrize(
    ("width", "height", "resize", "crop"), [(500, 375, 256, 224), (333, 500, 256, 224), (32, 40, None, 30)]
)
def test_center_crop_is_resize_and_middle(width, height, resize, crop):
    parameters = draw(CenterCrop(size=crop, resize=resize), ROWS[:3], FIRST[:3], size=(height, width))
    short = min(width, height)
    new_width = width if resize is None else int(resize * width / short)
    new_height = height if resize is None else int(resize * height / short)
    left, top = round((new_width - crop) / 2), round((new_height - crop) / 2)
    x_scale, y_scale = width / new_width, height / new_height
    box = left * x_scale, top * y_scale, crop * x_scale, crop * y_scale
    assert np.abs(_boxes(parameters.geometry, crop) - np.array(box)).max() < 1e-3
    assert parameters.color is None and parameters.geometry.shape == (2, 3, 2, 3)


def test_cutout_is_uniform_and_clipped():
    inner = TranslateFlip()
    parameters = draw(Cutout(policy=inner, size=16))
    assert torch.equal(parameters.geometry, draw(inner).geometry) and parameters.erase.dtype == torch.int32
    top, left, height, width = parameters.erase.long().flatten(0, 1).unbind(-1)
    for start, length in ((top, height), (left, width)):
        assert start.min() == 0 and (start + length).max() == 32 and length.min() == 8 and length.max() == 16
        centre = torch.where(length == 16, start + 8, torch.where(start == 0, length - 8, start + 8))
        counts = torch.bincount(centre, minlength=32)
        assert len(counts) == 32 and (counts - 250).abs().max() < 5 * math.sqrt(250)
    assert abs(torch.corrcoef(torch.stack([top, left]).double())[0, 1]) < 0.05
    crop = Cutout(policy=ResizedCrop(size=8), size=3)
    assert crop.out_size == (8, 8) and crop.border == "constant"
    assert (draw(crop, size=(99, 99)).erase[..., :2] < 8).all()


COLORS = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
STILL = [0.5, 0.5, 0.5, 0.5]


def _jittered(
    draw: list[float], amounts: tuple[float, ...], order=(0.1, 0.2, 0.3, 0.4), means=None
) -> Tensor:
    matrix = color_jitter(torch.tensor([[*draw, *order]], dtype=torch.float64), amounts, means)[0]
    return (COLORS @ matrix[:, :3].T + matrix[:, 3]).clamp(0, 1)


@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.9999])
def test_one_factor_is_pillows(name, amount):
    """Factors 0.6 to 1.4; Pillow cuts fractions off, and takes grey and its mean as whole numbers."""
    place = ["Brightness", "Contrast", "Color"].index(name)
    numbers = (COLORS * 255).round().to(torch.uint8)
    image = Image.fromarray(numbers.numpy()[None])
    pillow = np.asarray(getattr(ImageEnhance, name)(image).enhance(0.6 + 0.8 * amount))[0] / 255
    grey = (numbers.double() / 255 @ torch.tensor([0.299, 0.587, 0.114]).double()).mean()[None]
    draws, amounts = [*STILL], [0.0] * 4
    draws[place], amounts[place] = amount, 0.4
    ours = _jittered(draws, tuple(amounts), means=grey)
    assert np.abs(ours.numpy() - pillow).max() * 255 < 2


def test_contrast_knows_the_mean_after_the_other_changes():
    """In any order, without clamping, against the same four changes one after the other."""
    colors = COLORS * 0.2 + 0.4
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    draws, amounts = [0.7, 0.2, 0.9, 0.8], (0.1, 0.1, 0.1, 0.02)
    hue = color_jitter(torch.tensor([[*draws, *STILL]], dtype=torch.float64), (0, 0, 0, 0.02))[0, :, :3]
    orders = [(0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1), (0.2, 0.4, 0.1, 0.3), (0.3, 0.1, 0.4, 0.2)]
    for order in orders:
        key = torch.tensor([[*draws, *order]], dtype=torch.float64)
        matrix = color_jitter(key, amounts, colors.mean(0, keepdim=True))[0]
        expected = colors
        for change in np.argsort(order):
            factor = 0.9 + 0.2 * draws[change]
            if change == 0:
                expected = expected * factor
            elif change == 1:
                expected = expected * factor + (1 - factor) * (expected @ weights).mean()
            elif change == 2:
                expected = expected * factor + (1 - factor) * (expected @ weights)[:, None]
            else:
                expected = expected @ hue.T
        torch.testing.assert_close(colors @ matrix[:, :3].T + matrix[:, 3], expected)


def test_hue_turns_as_hsv_does():
    """Exact for thirds of the circle and for greys; near otherwise: the figures of color_jitter's docstring."""
    ramp = np.linspace(0, 1, 12)
    colors = np.stack(np.meshgrid(ramp, ramp, ramp, indexing="ij"), -1).reshape(-1, 3)
    hsv = np.array([colorsys.rgb_to_hsv(*color) for color in colors])
    for hue, mean, most in (
        (1 / 3, 1e-9, 1e-9),
        (-1 / 3, 1e-9, 1e-9),
        (0.1, 18, 63),
        (-0.1, 18, 63),
        (0.02, 5.2, 17),
    ):
        key = torch.tensor([[0.5, 0.5, 0.5, 0.5 + hue, *STILL]], dtype=torch.float64)
        matrix = color_jitter(key, (0, 0, 0, 0.5))[0].numpy()
        theirs = np.array([colorsys.hsv_to_rgb((h + hue) % 1, s, v) for h, s, v in hsv])
        apart = np.abs((colors @ matrix[:, :3].T + matrix[:, 3]).clip(0, 1) - theirs) * 255
        assert apart.mean() <= mean and apart.max() <= most
        assert np.allclose(matrix[:, :3].sum(1), 1) and np.allclose(matrix[:, 3], 0)


def test_jitter_draws_each_factor_and_all_orders():
    policy = ResizedCrop(size=8, jitter=(0.4, 0, 0, 0))
    factors = draw(policy).color[..., 0, 0]
    assert 0.6 <= factors.min() < 0.605 and 1.395 < factors.max() < 1.4 and abs(factors.mean() - 1) < 0.01
    assert not torch.equal(factors[0], factors[1])
    assert draw(ResizedCrop(size=8, jitter=(1.5, 0, 0, 0))).color.min() >= 0
    saturation = draw(ResizedCrop(size=8, jitter=(0, 0, 0.4, 0))).color[..., :3]
    hue = draw(ResizedCrop(size=8, jitter=(0, 0, 0, 0.1))).color[..., :3]
    both = draw(ResizedCrop(size=8, jitter=(0, 0, 0.4, 0.1))).color[..., :3]
    hue_last, saturation_last = (
        (both - ab).abs().amax((-1, -2)) for ab in (hue @ saturation, saturation @ hue)
    )
    assert torch.minimum(hue_last, saturation_last).max() < 1e-6
    assert abs((hue_last < saturation_last).float().mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TranslateFlip(translate=-1), "translate must be 0 or more, got -1"),
        (lambda: TranslateFlip(translate=1.5), "translate must be a whole number of pixels, got 1.5"),
        (lambda: Affine(zoom=float("nan")), "zoom must be 0 or more, got nan"),
        (lambda: ResizedCrop(size=0), "size must be 1 or more, got 0"),
        (lambda: ResizedCrop(scale=(0.5, 1.5)), "scale must be two rising numbers above 0, at most 1, got "),
        (lambda: ResizedCrop(ratio=(2, 1)), "ratio must be two rising numbers above 0, at most inf, got "),
        (
            lambda: ResizedCrop(jitter=(0.4, 0.4, 0.4, 0.6)),
            "jitter must be four numbers, .* at most 0.5, got",
        ),
        (lambda: CenterCrop(resize=0), "resize must be 1 or more, got 0"),
        (lambda: Cutout(policy=TranslateFlip(), size=-2), "size must be 0 or more, got -2"),
    ],
)
def test_settings_without_sense_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()
