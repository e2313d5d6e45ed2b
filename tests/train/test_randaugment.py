"""Each operation gives Pillow's pixels; RandAugment draws operations, magnitudes and signs as it says."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from mtkernels.train.config import SettingError
from mtkernels.train.data import randaugment as ra

NUMBERS = np.random.RandomState(0)
ROWS = torch.arange(3000)
FIRST = torch.zeros(3000, dtype=torch.int64)


def _images(count: int = 24, height: int = 32, width: int = 32) -> Tensor:
    """Smooth, noisy, dark, flat and two-valued images."""
    noise = NUMBERS.randint(0, 256, (count, 3, height, width))
    ramp = (
        np.add.outer(np.arange(height), np.arange(width))[None, None] * 3
        + np.arange(count)[:, None, None, None]
    )
    images = np.where(np.arange(count)[:, None, None, None] % 2 == 0, noise, ramp % 256)
    images[2::5] = images[2::5] // 3 + 40
    images[3] = 77
    images[4] = np.where(images[4] > 100, 200, 3)
    return torch.from_numpy(images.astype(np.uint8))


IMAGES = _images()
AMOUNTS = torch.from_numpy(NUMBERS.uniform(-1, 1, len(IMAGES)))
FACTORS = (AMOUNTS + 1) * 1.5


def _pillow(images: Tensor, change) -> np.ndarray:
    """`change` (image, row) by row."""
    rows = [
        np.asarray(change(Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())), row))
        for row, image in enumerate(images)
    ]
    return np.stack(rows).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "invert"])
@pytest.mark.parametrize("size", [(32, 32), (20, 9), (100, 130)])
def test_tables_are_pillows(name, size):
    images = _images(12, *size)
    assert (
        getattr(ra, name)(images).numpy() == _pillow(images, lambda x, _: getattr(ImageOps, name)(x))
    ).all()


def test_posterize_and_solarize_are_pillows():
    bits = torch.arange(len(IMAGES)) % 8 + 1
    expected = _pillow(IMAGES, lambda x, row: ImageOps.posterize(x, int(bits[row])))
    assert (ra.posterize(IMAGES, bits).numpy() == expected).all()
    assert not ra.posterize(IMAGES, bits * 0).any()
    threshold = torch.arange(len(IMAGES)) * 256 // (len(IMAGES) - 1)
    expected = _pillow(IMAGES, lambda x, row: ImageOps.solarize(x, int(threshold[row])))
    assert (ra.solarize(IMAGES, threshold).numpy() == expected).all()


@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
@pytest.mark.parametrize("size", [(32, 32), (2, 5)])
def test_enhancements_are_pillows(name, size):
    images = _images(24, *size)
    enhance = getattr(ImageEnhance, name.capitalize())
    expected = _pillow(images, lambda x, row: enhance(x).enhance(float(FACTORS[row])))
    assert (getattr(ra, name)(images, FACTORS).numpy() == expected).all()
    assert torch.equal(getattr(ra, name)(images, torch.ones(24)), images)


@pytest.mark.parametrize("size", [(32, 32), (21, 40)])
def test_rotate_is_pillows(size):
    images, degrees = _images(24, *size), AMOUNTS * 60
    fill = (128, 128, 128)
    expected = _pillow(images, lambda x, row: x.rotate(float(degrees[row]), fillcolor=fill))
    assert (ra.rotate(images, degrees, 128).numpy() == expected).all()


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_shears_and_translations_are_pillows(name):
    images, fill = _images(24, 30, 40), (9, 9, 9)
    matrices = {
        "shear_x": lambda v: (1, v, 0, 0, 1, 0),
        "shear_y": lambda v: (1, 0, 0, v, 1, 0),
        "translate_x": lambda v: (1, 0, int(v * 40), 0, 1, 0),
        "translate_y": lambda v: (1, 0, 0, 0, 1, int(v * 30)),
    }

    def change(image: Image.Image, row: int) -> Image.Image:
        matrix = matrices[name](float(AMOUNTS[row]))
        return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=fill)

    assert (getattr(ra, name)(images, AMOUNTS, 9).numpy() == _pillow(images, change)).all()


def test_cutout_fills_clipped_squares():
    centre = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.999, 0.25]])
    cut = ra.cutout(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), centre, torch.tensor([8, 16, 0]), 128)
    assert (cut[0, :, :4, :4] == 128).all() and (cut[0] > 0).sum() == 3 * 16
    assert (cut[1, :, 8:24, 8:24] == 128).all() and (cut[1] > 0).sum() == 3 * 256
    assert not cut[2].any()


def augment(policy: ra.RandAugment, images: Tensor, rows: Tensor, *, seed=0, view=0) -> Tensor:
    return policy(images, rows, rows * 0, seed=seed, view=view)


@pytest.mark.parametrize(
    "policy", [ra.FIXMATCH, ra.UDA, ra.MPL, ra.RandAugment(n=3)], ids=["fm", "uda", "mpl", "n"]
)
def test_a_row_depends_on_its_key_alone(policy):
    images, rows = IMAGES[ROWS[:200] % len(IMAGES)], ROWS[:200]
    before, whole = images.clone(), augment(policy, images, rows)
    assert torch.equal(images, before) and whole.dtype == torch.uint8 and whole.shape == images.shape
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:37]
    assert torch.equal(augment(policy, images[order], rows[order]), whole[order])
    transposed = images.to(memory_format=torch.channels_last)
    assert torch.equal(augment(policy, transposed, rows), whole)
    for other in ({"seed": 1}, {"view": 1}):
        assert (augment(policy, images, rows, **other) != whole).flatten(1).any(1).float().mean() > 0.9
    assert augment(policy, images[:0], rows[:0]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("probability", [1.0, 0.5, (0.2, 0.8)])
def test_each_operation_has_its_share(probability):
    """One operation, on an image that each of them changes to something else (identity apart)."""
    ops = ("autocontrast", "equalize", "invert", "posterize", "solarize", "brightness", "color", "contrast")
    image = IMAGES[:1].clamp(20, 235)
    policy = ra.RandAugment(ops=ops, n=1, magnitude=4, probability=probability, cutout=0)
    outcomes = {
        augment(ra.RandAugment(ops=(op,), n=1, magnitude=4, cutout=0), image, ROWS[:1]).numpy().tobytes()
        for op in ops
    }
    assert len(outcomes) == len(ops)
    views = augment(policy, image.expand(3000, -1, -1, -1), ROWS)
    found = [view.numpy().tobytes() for view in views]
    counts = {outcome: found.count(outcome) for outcome in outcomes}
    applied = 3000 * (probability if isinstance(probability, float) else 0.5)
    assert found.count(image.numpy().tobytes()) + sum(counts.values()) == 3000
    expected = applied / len(ops)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values())


def test_two_operations_are_applied_one_after_the_other():
    policy = ra.RandAugment(ops=("invert",), n=2, cutout=0)
    assert torch.equal(augment(policy, IMAGES, ROWS[: len(IMAGES)]), IMAGES)
    assert torch.equal(augment(ra.RandAugment(n=0, cutout=0), IMAGES, ROWS[: len(IMAGES)]), IMAGES)


def test_signs_and_magnitudes():
    line = torch.zeros(1, 3, 1, 65, dtype=torch.uint8)
    line[..., 32] = 255
    lines = line.expand(3000, -1, -1, -1)
    policy = ra.RandAugment(ops=("translate_x",), n=1, magnitude=(1, 9), translate=20 / 65, cutout=0, fill=0)
    moved = augment(policy, lines, ROWS)[:, 0, 0].long().argmax(1) - 32
    counts = torch.bincount(moved + 18, minlength=37)
    steps = counts[0::2]  # by 2 level pixels, to either side
    assert counts.sum() == steps.sum() == 3000 and steps[9] == 0
    assert (torch.cat([steps[:9], steps[10:]]) - 3000 / 18).abs().max() < 5 * math.sqrt(3000 / 18)
    fixed = augment(
        ra.RandAugment(ops=("translate_x",), n=1, magnitude=3, translate=20 / 65, cutout=0, fill=0),
        lines,
        ROWS,
    )
    assert set((fixed[:, 0, 0].long().argmax(1) - 32).tolist()) == {-6, 6}


@pytest.mark.parametrize(
    ("op", "magnitude", "levels", "change"),
    [
        ("brightness", 5, "rising", lambda x: x),
        ("color", 9, "rising", lambda x: ImageEnhance.Color(x).enhance(1.72)),
        ("sharpness", 0, "rising", lambda x: ImageEnhance.Sharpness(x).enhance(0.1)),
        ("posterize", 9, "rising", lambda x: ImageOps.posterize(x, 5)),
        ("posterize", 16, "released", lambda x: ImageOps.posterize(x, 6)),
        ("posterize", 30, "rising", lambda x: ImageOps.posterize(x, 1)),
        ("solarize", 3, "rising", lambda x: ImageOps.solarize(x, 180)),
        ("solarize", 16, "rising", ImageOps.invert),
        ("solarize", 16, "released", lambda x: ImageOps.solarize(x, 153)),
        ("identity", 9, "rising", lambda x: x),
    ],
)
def test_levels(op, magnitude, levels, change):
    policy = ra.RandAugment(ops=(op,), n=1, magnitude=magnitude, levels=levels, cutout=0)
    ours = augment(policy, IMAGES, ROWS[: len(IMAGES)])
    assert (ours.numpy() == _pillow(IMAGES, lambda x, _: change(x))).all()


def test_rotations_and_shears_at_their_level():
    for op, arguments in (("rotate", 27.0), ("shear_x", 0.27), ("shear_y", 0.27)):
        views = augment(
            ra.RandAugment(ops=(op,), n=1, magnitude=9, cutout=0),
            IMAGES[:1].expand(50, -1, -1, -1),
            ROWS[:50],
        )
        ends = [
            getattr(ra, op)(IMAGES[:1], torch.tensor([sign * arguments], dtype=torch.float64), 128)[0]
            for sign in (-1, 1)
        ]
        kinds = [[torch.equal(view, end) for end in ends] for view in views]
        assert all(sum(kind) == 1 for kind in kinds) and 10 < sum(kind[0] for kind in kinds) < 40


def test_cutout_comes_last_and_cutout_as_an_operation():
    black = torch.zeros(300, 3, 32, 32, dtype=torch.uint8)
    last = augment(ra.RandAugment(n=0, cutout=16, fill=200), black, ROWS[:300])
    area = (last == 200)[:, 0].sum((1, 2))
    assert 64 <= area.min() < 100 and area.max() == 256 and ((last == 0) | (last == 200)).all()
    mpl = ra.RandAugment(ops=("cutout",), n=1, magnitude=16, translate=4 / 32, cutout=0)
    assert (augment(mpl, black, ROWS[:300]) > 0)[:, 0].sum((1, 2)).max() == 12 * 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ra.RandAugment(ops=("rotate", "blur")), "ops must be of identity, .*, got blur"),
        (lambda: ra.RandAugment(ops=()), "ops must be of identity, .*, got none"),
        (lambda: ra.RandAugment(magnitude=31), "magnitude must be 0 to 30, got 31"),
        (lambda: ra.RandAugment(probability=(0.8, 0.2)), "probability must be 0 to 1, got"),
        (
            lambda: augment(ra.FIXMATCH, IMAGES.float(), ROWS[:24]),
            r"images must be uint8 .*, got torch.float32",
        ),
        (
            lambda: augment(ra.FIXMATCH, IMAGES[:, :1], ROWS[:24]),
            r"images must be uint8 .*, got .* \[24, 1, 32, 32\]",
        ),
    ],
)
def test_what_has_no_sense_is_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()
