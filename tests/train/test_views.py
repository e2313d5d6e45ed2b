"""Views and evaluation are normalised alike; streamed images get the views that images in memory get."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtkernels.train.config import Config, SettingError
from mtkernels.train.data import Draw, ImageSet, Pixels, Quarantine, RawData, Views
from mtkernels.train.data.dataset import make_dataset
from mtkernels.train.data.views import StreamViews, with_noise

PLAIN = Config(labels=10, augment="translate", translate=0, flip=False, noise=0.0)


def dataset(config: Config, *, channels: int = 3, levels: int = 255, size: tuple[int, int] = (12, 16)):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(levels + 1, (40, channels, *size), dtype=torch.uint8, generator=draw)
    images = ImageSet(pixels, torch.arange(40) % 10)
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.3, 0.4)[:channels]
    raw = RawData(images, images, tuple("0123456789"), mean, std, levels=levels)
    return make_dataset(raw, config, Quarantine())


def draw_of(rows: int = 20, passes: int = 3) -> Draw:
    return Draw(torch.arange(rows).flip(0), torch.full((rows,), passes), 0)


@pytest.mark.parametrize("normalize", ["none", "channels", "image"])
@pytest.mark.parametrize(("channels", "levels"), [(3, 255), (1, 16)])
def test_an_unchanged_view_is_what_evaluation_sees(normalize, channels, levels):
    config = replace(PLAIN, normalize=normalize)
    data = dataset(config, channels=channels, levels=levels)
    (view,) = Views(config, data, 1)(draw_of(), 0)
    expected = Pixels(data.raw, config)(data.pool.images[draw_of().index])
    torch.testing.assert_close(view, expected, rtol=1e-5, atol=1e-5)
    (same,) = Views(replace(config, augment="none"), data, 1)(draw_of(), 0)
    assert torch.equal(same, expected)


def test_pixels():
    data = dataset(PLAIN)
    images = data.pool.images
    scaled = images.float() / 255
    assert torch.equal(Pixels(data.raw, PLAIN)(images), scaled)
    by_channel = Pixels(data.raw, replace(PLAIN, normalize="channels"))(images)
    torch.testing.assert_close(by_channel[:, 2], (scaled[:, 2] - 0.3) / 0.4)
    by_image = Pixels(data.raw, replace(PLAIN, normalize="image"))(images).flatten(1)
    torch.testing.assert_close(by_image.mean(1), torch.zeros(40), atol=1e-5, rtol=0)
    torch.testing.assert_close(by_image.var(1, unbiased=False), torch.ones(40))
    flat = torch.full((1, 3, 4, 4), 7, dtype=torch.uint8)
    assert not Pixels(data.raw, replace(PLAIN, normalize="image"))(flat).any()
    assert torch.equal(Pixels(data.raw, PLAIN)(scaled), scaled)  # whitened images are float32


@pytest.mark.parametrize("augment", ["translate", "imagenet"])
def test_views_depend_on_image_pass_and_view_alone(augment):
    config = replace(PLAIN, augment=augment, translate=3, flip=True, image_size=8)
    data = dataset(replace(config, image_size=None))
    views = Views(config, data, 2)
    first = views(draw_of(), 0)
    again = views(draw_of(), 99)  # the step does not matter
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    alone = views(Draw(torch.tensor([7]), torch.tensor([3]), 0), 0)
    assert all(torch.equal(one[0], many[12]) for one, many in zip(alone, first, strict=True))
    assert not torch.equal(first[0], first[1])
    for other in (views(draw_of(passes=4), 0), Views(replace(config, seed=1), data, 2)(draw_of(), 0)):
        assert not torch.equal(other[0], first[0])


AHEAD = {
    "translate": {"augment": "translate", "translate": 3, "flip": True, "normalize": "channels"},
    "noise": {"augment": "translate", "shared_flip": True, "normalize": "image", "noise": 0.1},
    "imagenet": {"augment": "imagenet", "image_size": 8, "normalize": "channels"},
    "affine": {"augment": "affine", "noise": 0.1},
    "none": {"augment": "none", "normalize": "image"},
}


@pytest.mark.parametrize("name", AHEAD)
def test_views_of_many_steps_are_those_of_each_to_the_bit(name):
    config = replace(PLAIN, **AHEAD[name])
    data = dataset(replace(config, image_size=None))
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(40, (7, 20), generator=random), torch.randint(5, (7, 20), generator=random)
    draws = [Draw(index, passes, 3) for index, passes in zip(*rows, strict=True)]
    views = Views(config, data, 2)
    steps = zip(draws, views.ahead(draws, 30), strict=True)
    for step, (draw, ahead) in enumerate(steps, 30):
        assert len(ahead) == 2 and all(view.is_contiguous() for view in ahead)
        assert all(map(torch.equal, ahead, views(draw, step)))
        assert all(
            map(torch.equal, ahead, Views(config, data, 2)(draw, step))
        )  # one that has seen no other batch


@pytest.mark.parametrize(("name", "each"), [("translate", 1), ("imagenet", 1), ("noise", 7)])
def test_the_random_parameters_of_many_steps_are_drawn_at_once(name, each):
    """So a step launches `mtkernels.augment` and its noise, three for each view."""
    config = replace(PLAIN, **AHEAD[name])
    views = Views(config, dataset(replace(config, image_size=None)), 2)
    views(draw_of(), 0)
    few, many = (launches(lambda count=count: list(views.ahead([draw_of()] * count, 0))) for count in (2, 66))
    assert many - few == 64 * each


def launches(run: Callable[[], object]) -> int:
    """Calls of operators that compute, views of memory left out."""

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += not func.is_view and func.overloadpacket is not torch.ops.aten.empty
            return func(*args, **(kwargs or {}))

    with Count() as count:
        run()
    return count.calls


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_channels_last_is_the_same_in_another_order_of_memory(noise):
    config = replace(PLAIN, translate=3, flip=True, noise=noise)
    data = dataset(config)
    plain = Views(config, data, 2)(draw_of(), 4)
    views = Views(replace(config, channels_last=True), data, 2)(draw_of(), 4)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in views)
    assert all(map(torch.equal, views, plain))


def test_batches_of_unequal_size_are_not_drawn_together():
    with pytest.raises(RuntimeError, match="equal size"):
        next(Views(PLAIN, dataset(PLAIN), 1).ahead([draw_of(20), draw_of(19)], 0))


@pytest.mark.parametrize("augment", ["translate", "imagenet"])
@pytest.mark.parametrize("normalize", ["none", "channels"])
def test_streamed_images_get_the_same_views(augment, normalize):
    config = replace(PLAIN, augment=augment, normalize=normalize, translate=2, flip=True, image_size=8)
    size = (12, 16) if augment == "imagenet" else (8, 8)  # in memory, others are made square as they are read
    data = dataset(replace(config, image_size=None), size=size)
    many = Views(config, data, 2)(draw_of(), 0)
    stream = StreamViews(config, data, 2)
    for row, sample in enumerate(draw_of().index.tolist()):
        image = data.pool.images[sample : sample + 1].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        (one, other) = stream([image], [sample], [3])[:, 0]
        torch.testing.assert_close(one, many[0][row])
        torch.testing.assert_close(other, many[1][row])


def test_a_shared_flip_turns_both_views():
    config = replace(PLAIN, flip=True, shared_flip=True)
    data = dataset(config)
    one, two = Views(config, data, 2)(draw_of(), 0)
    assert torch.equal(one, two) and not torch.equal(one, Views(PLAIN, data, 1)(draw_of(), 0)[0])
    one, two = Views(replace(config, shared_flip=False), data, 2)(draw_of(), 0)
    assert not torch.equal(one, two)


def test_noise_is_each_views_own():
    views = [torch.zeros(50, 3, 8, 8)] * 2
    config = replace(PLAIN, noise=0.15)
    one, two = with_noise(views, config, 4)
    assert torch.equal(with_noise(views, config, 4)[1], two)
    for other in (with_noise(views, config, 5)[0], with_noise(views, replace(config, seed=1), 4)[0], two):
        assert not torch.equal(other, one)
    assert one.std() == pytest.approx(0.15, rel=0.05) and abs(one.mean()) < 0.01
    assert with_noise(views, PLAIN, 4) is views


def test_streaming_needs_a_policy_of_matrices():
    with pytest.raises(SettingError, match=r"augment must be imagenet or translate .* disk, got 'affine'"):
        StreamViews(replace(PLAIN, augment="affine"), dataset(PLAIN), 2)
