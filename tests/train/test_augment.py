"""Views are reproducible, independent, per image, and do what their amounts say."""

import pytest
import torch

from mtkernels.train.data.augment import Augment
from mtkernels.train.data.digits import digits

IMAGES = digits().train.images[:64] / 16
FULL = Augment(rotate=15, zoom=0.2, shear=0.2, shift=1, warp=0.5, noise=0.1)


def view(augment: Augment = FULL, images: torch.Tensor = IMAGES, seed=0, step=0, view=0) -> torch.Tensor:
    return augment(images, seed=seed, step=step, view=view)


def test_a_view_depends_on_its_key_alone():
    first = view()
    torch.manual_seed(5)
    torch.rand(3)
    assert torch.equal(view(), first)
    for other in ({"seed": 1}, {"step": 1}, {"view": 1}):
        assert not torch.isclose(view(**other), first).all(dim=(1, 2, 3)).any()


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    view()
    assert torch.equal(torch.rand(3), expected)


def test_the_two_views_are_independent():
    noise = Augment(noise=1.0)
    one, two = view(noise, view=0) - IMAGES, view(noise, view=1) - IMAGES
    assert abs(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]) < 5 / one.numel() ** 0.5
    assert one.std() == pytest.approx(1, abs=0.05)


def test_each_image_has_its_own_draw():
    same = IMAGES[:1].expand(64, -1, -1, -1)
    views = view(Augment(rotate=15), same)
    assert len({tuple(one.flatten().tolist()) for one in views}) == 64


def test_no_amounts_change_nothing():
    torch.testing.assert_close(view(Augment()), IMAGES, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("augment", "limit"), [(Augment(shift=1.5), 1.5), (Augment(warp=0.2), 1.2), (Augment(rotate=20), 0.9)]
)
def test_amounts_are_in_pixels_and_degrees(augment, limit):
    """A spot 2 pixels from the centre moves by no more than `limit`, and does move."""
    spot = torch.zeros(256, 1, 17, 17)
    spot[:, :, 8, 10] = 1
    views = view(augment, spot)
    rows = (views.sum(3)[:, 0] * torch.arange(17)).sum(1) / views.sum((1, 2, 3))
    columns = (views.sum(2)[:, 0] * torch.arange(17)).sum(1) / views.sum((1, 2, 3))
    moved = torch.stack([rows - 8, columns - 10]).abs().amax(0)
    assert moved.max() <= limit + 1e-3 and moved.max() > limit / 3


def test_shift_and_rotation_go_both_ways_and_average_out():
    moved = view(Augment(shift=1.0), torch.zeros(4096, 1, 9, 9).index_fill(3, torch.tensor(4), 1.0))
    columns = (moved.sum(2)[:, 0] * torch.arange(9)).sum(1) / moved.sum((1, 2, 3)) - 4
    assert abs(columns.mean()) < 0.05 and columns.min() < -0.8 and columns.max() > 0.8


def test_rectangular_images_and_several_channels():
    assert view(images=torch.rand(5, 3, 12, 20)).shape == (5, 3, 12, 20)
