"""augment beyond test_ops.py: Pillow, numpy and torch as oracles; layouts, edges, registration, refusals."""

import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import mtkernels
from mtkernels.backends import native, reference

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
NUMPY_MODES = {"constant": "constant", "reflect": "reflect", "symmetric": "symmetric", "replicate": "edge"}
borders = pytest.mark.parametrize("border", NUMPY_MODES)
backends = pytest.mark.parametrize("backend", [native, reference], ids=["native", "reference"])


def _images(*shape, seed=0):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _geometry(*matrices):
    """One view of each row."""
    return torch.tensor(matrices, dtype=F32).view(1, len(matrices), 2, 3)


def _hwc(images):
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _call(backend, images, geometry, **options):
    """A backend's form, with the public defaults."""
    given = {
        "index": None,
        "size": None,
        "color": None,
        "clamp": True,
        "erase": None,
        "mean": None,
        "std": None,
    }
    given |= {"border": "reflect", "fill": 0.0, "dtype": F32, "channels_last": False} | options
    return backend.augment(images, given.pop("index"), geometry, *given.values())


# ---- shifts and flips


@borders
@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-6, 5), (-40, 33), (7, 1000)])
def test_shifts_and_flips_copy(shift, as_float, border):
    """To the last bit, and however far the place is: numpy pads by reflecting over and over, too."""
    images = _images(4, 3, 6, 7)
    pixels = images.float() / 255 if as_float else images
    (dx, dy), (height, width) = shift, (6, 7)
    right, down = dx + width - 1, dy + height - 1
    geometry = _geometry(
        [[1, 0, dx], [0, 1, dy]], [[-1, 0, right], [0, 1, dy]], [[1, 0, dx], [0, -1, down]],
        [[-1, 0, right], [0, -1, down]],
    )  # fmt: skip
    found = mtkernels.augment(pixels, None, geometry, border=border, fill=0.5)
    by = max(abs(dx), abs(dy))
    options = {"constant_values": 127.5} if border == "constant" else {}
    padded = np.pad(
        images.double().numpy(), ((0, 0), (0, 0), (by, by), (by, by)), NUMPY_MODES[border], **options
    )
    window = torch.from_numpy(padded)[..., by + dy : by + dy + height, by + dx : by + dx + width]
    expected = [window[0], window[1].flip(-1), window[2].flip(-2), window[3].flip(-1, -2)]
    if as_float:
        assert torch.equal(found[0], torch.stack(expected).float() / 255)
    else:
        torch.testing.assert_close(found[0], (torch.stack(expected) / 255).float(), rtol=2e-7, atol=0)


@borders
@backends
def test_an_image_of_one_pixel(backend, border):
    images, places = torch.full((1, 2, 1, 1), 51, dtype=torch.uint8), [[1, 0, 5], [0, 1, -7]]
    for matrix in (places, [[0.3, 0.4, 0.2], [0.1, 2.5, 9.0]]):
        found = _call(backend, images, _geometry(matrix), size=(3, 4), border=border, fill=0.2)
        torch.testing.assert_close(found, torch.full((1, 1, 2, 3, 4), 0.2))


def test_normalisation_is_torchs():
    images, mean, std = _images(5, 3, 9, 9), (0.49, 0.48, 0.45), (0.2, 0.25, 0.3)
    columns = [torch.tensor(each)[:, None, None] for each in (mean, std)]
    identity = _geometry(*[[[1, 0, 0], [0, 1, 0]]] * 5)
    found = mtkernels.augment(images, None, identity, mean=mean, std=std)
    torch.testing.assert_close(found[0], (images.float() / 255 - columns[0]) / columns[1])


def test_nothing_but_the_pixel_itself_is_looked_at_by_a_copy():
    images = torch.ones(1, 1, 4, 5)
    images[0, 0, 1, 2] = torch.nan
    found = mtkernels.augment(images, None, _geometry([[-1, 0, 4], [0, 1, 1]]))
    assert found.isnan().nonzero().tolist() == [[0, 0, 0, 0, 2]]


# ---- the filter


def _resize(box, size, flip=False):
    """The matrix of Pillow's resize(size, box=box)."""
    left, top, right, bottom = box
    sx, sy = (right - left) / size[1], (bottom - top) / size[0]
    if flip:
        return [[-sx, 0, right - 0.5 * sx - 0.5], [0, sy, top + 0.5 * sy - 0.5]]
    return [[sx, 0, left + 0.5 * sx - 0.5], [0, sy, top + 0.5 * sy - 0.5]]


@pytest.mark.parametrize("hwc", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("box", "size"),
    [((20, 30, 70, 80), (24, 31)), ((33.3, 25.9, 61.7, 70.2), (40, 20)), ((40, 40, 50, 52), (64, 48))],
    ids=["smaller", "mixed", "larger"],
)
def test_resized_crops_are_pillows(box, size, flip, hwc):
    """Within a grey level: Pillow rounds twice. The box is away from edges, where Pillow's filter is cut off."""
    image_module = pytest.importorskip("PIL.Image")
    images = _images(1, 3, 100, 110)
    picture = image_module.fromarray(images[0].permute(1, 2, 0).numpy())
    # Pillow keeps to the box: what its filter meets beyond is taken from a larger one.
    sx, sy = (box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0]
    margin = 4
    wide = (box[0] - margin * sx, box[1] - margin * sy, box[2] + margin * sx, box[3] + margin * sy)
    resized = picture.resize((size[1] + 2 * margin, size[0] + 2 * margin), image_module.BILINEAR, box=wide)
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[:, margin:-margin, margin:-margin].float()
    given = _hwc(images) if hwc else images
    found = mtkernels.augment(given, None, _geometry(_resize(box, size, flip)), size=size)[0, 0] * 255
    assert (found - (expected.flip(-1) if flip else expected)).abs().max() <= 1


@pytest.mark.parametrize("size", [(7, 9), (40, 33), (16, 16)])
def test_whole_images_are_torchs_interpolate(size):
    """Larger ones in whole, at the edge too: there torch repeats it. Smaller ones where the filter is not cut off."""
    images = _images(2, 3, 16, 16)
    matrix = _resize((0, 0, 16, 16), size)
    found = mtkernels.augment(images, None, _geometry(matrix, matrix), size=size, border="replicate")[0]
    expected = F.interpolate(images.float() / 255, size, mode="bilinear", antialias=True)
    inner = ... if min(size) >= 16 else (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(found[inner], expected[inner], rtol=0, atol=2e-6)


GRID_MODES = {"constant": "zeros", "reflect": "reflection", "replicate": "border"}


@pytest.mark.parametrize("border", GRID_MODES)
@pytest.mark.parametrize("angle", [0.3, 2.0, -math.pi / 2])
@pytest.mark.parametrize("hwc", [False, True])
def test_rotations_are_torchs_grid_sample(hwc, angle, border):
    height, width, cos, sin = 13, 17, math.cos(angle), math.sin(angle)
    x, y = 8.0 + 1.3, 6.0 - 2.1  # where the view's middle is, a bit off the image's
    matrix = [[cos, -sin, x - 8 * cos + 6 * sin], [sin, cos, y - 8 * sin - 6 * cos]]
    images = _images(1, 3, height, width)
    found = mtkernels.augment(_hwc(images) if hwc else images, None, _geometry(matrix), border=border)[0]
    rows, columns = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    (a, b, c), (d, e, f) = matrix
    places = a * columns + b * rows + c, d * columns + e * rows + f
    grid = torch.stack([2 * places[0] / (width - 1) - 1, 2 * places[1] / (height - 1) - 1], -1)[None]
    expected = F.grid_sample(
        images.double() / 255, grid, mode="bilinear", padding_mode=GRID_MODES[border], align_corners=True
    )
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_large_images_are_as_small_ones():
    """Past what the CPU packs: the same rotation of an image and of one that has it in its corner."""
    angle = 0.4
    matrix = [[math.cos(angle), -math.sin(angle), 20], [math.sin(angle), math.cos(angle), 3]]
    small = _images(1, 3, 40, 50)
    large = torch.zeros(1, 3, 400, 800, dtype=torch.uint8)
    large[..., :40, :50] = small
    found, expected = (
        mtkernels.augment(images, None, _geometry(matrix), size=(20, 25)) for images in (large, small)
    )
    torch.testing.assert_close(found[..., :16], expected[..., :16], rtol=0, atol=1e-5)


def test_torchvision_agrees():
    try:
        functional = importlib.import_module("torchvision.transforms.v2.functional")
    except Exception:  # also where its build is not torch's
        pytest.skip("torchvision is not installed")
    images = _images(1, 3, 40, 50)
    expected = functional.normalize(functional.to_dtype(images, F32, scale=True), [0.4] * 3, [0.2] * 3)
    found = mtkernels.augment(images, None, _geometry([[1, 0, 0], [0, 1, 0]]), mean=0.4, std=0.2)
    torch.testing.assert_close(found[0], expected)
    crop = functional.resized_crop(images.float() / 255, 10, 12, 20, 30, [15, 16], antialias=True)
    found = mtkernels.augment(images, None, _geometry(_resize((12, 10, 42, 30), (15, 16))), size=(15, 16))
    inner = ..., slice(2, -2), slice(2, -2)
    torch.testing.assert_close(found[0][inner], crop[inner], rtol=0, atol=2e-6)
    angle = math.radians(20)  # the view is turned counter-clockwise, about the middle
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = [[cos, -sin, 24.5 - 24.5 * cos + 19.5 * sin], [sin, cos, 19.5 - 24.5 * sin - 19.5 * cos]]
    turned = functional.rotate(images.float() / 255, 20, functional.InterpolationMode.BILINEAR)
    found = mtkernels.augment(images, None, _geometry(matrix), border="constant")
    both = functional.rotate(torch.ones(1, 3, 40, 50), 20, functional.InterpolationMode.BILINEAR) > 0.9999
    torch.testing.assert_close(found[0][both], turned[both], rtol=0, atol=1e-4)
    grey = torch.tensor([0.2989, 0.587, 0.114]).expand(3, 3)
    for factor in (0.3, 1.8):
        mixed = factor * torch.eye(3) + (1 - factor) * grey
        color = torch.cat([mixed, torch.zeros(3, 1)], 1).view(1, 1, 3, 4)
        found = mtkernels.augment(images, None, _geometry([[1, 0, 0], [0, 1, 0]]), color=color)
        torch.testing.assert_close(found[0], functional.adjust_saturation(images.float() / 255, factor))


# ---- colour, boxes


def test_colour_is_pillows_saturation_and_brightness():
    enhance, image_module = pytest.importorskip("PIL.ImageEnhance"), pytest.importorskip("PIL.Image")
    images = _images(1, 3, 20, 30)
    picture = image_module.fromarray(images[0].permute(1, 2, 0).numpy())
    grey = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    for factor in (0.4, 1.5):
        matrices = factor * torch.eye(3) + (1 - factor) * grey, factor * torch.eye(3)
        for matrix, kind in zip(matrices, (enhance.Color, enhance.Brightness), strict=True):
            expected = torch.from_numpy(np.array(kind(picture).enhance(factor))).permute(2, 0, 1)
            color = torch.cat([matrix, torch.zeros(3, 1)], 1).view(1, 1, 3, 4)
            found = mtkernels.augment(images, None, _geometry([[1, 0, 0], [0, 1, 0]]), color=color)
            assert (found[0, 0] * 255 - expected.float()).abs().max() <= 2  # its grey and its mix are rounded


@backends
@pytest.mark.parametrize("kind", [torch.uint8, F32])
def test_clamp_is_of_colours(kind, backend):
    images = torch.full((1, 1, 2, 2), 3.0) if kind is F32 else torch.full((1, 1, 2, 2), 200, dtype=kind)
    identity = _geometry([[1, 0, 0], [0, 1, 0]])
    color = torch.tensor([2.0, 0.5]).view(1, 1, 1, 2)
    value = 3.0 if kind is F32 else 200 / 255
    for options, expected in (
        ({}, value),
        ({"color": color}, 1.0),
        ({"color": -color}, 0.0),
        ({"color": color, "clamp": False}, 2 * value + 0.5),
        ({"color": color * torch.nan}, torch.nan),
    ):
        found = _call(backend, images, identity, **options)
        torch.testing.assert_close(found, torch.full_like(found, expected), equal_nan=True)


@backends
@pytest.mark.parametrize("channels_last", [False, True])
def test_boxes_are_erased(channels_last, backend):
    boxes = [[1, 2, 2, 3], [-3, -1, 5, 3], [4, 5, 100, 2**31 - 1], [0, 0, 0, 4], [2, 2, -1, 3], [9, 0, 2, 2]]
    images = _images(len(boxes), 2, 6, 7)
    identity = _geometry(*[[[1, 0, 0], [0, 1, 0]]] * len(boxes))
    options = {"fill": (0.25, 0.75), "mean": 0.5, "std": 0.125, "channels_last": channels_last}
    plain = _call(backend, images, identity, **options)
    erase = torch.tensor(boxes, dtype=torch.int32)[None]
    found = _call(backend, images, identity, erase=erase, **options)
    for row, (top, left, height, width) in enumerate(boxes):
        rows, columns = slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0))
        if height > 0:
            plain[0, row, :, rows, columns] = torch.tensor([-2.0, 2.0])[:, None, None]
    assert torch.equal(found, plain)


# ---- what cannot be


@backends
def test_matrices_that_cannot_be_used_make_nan_of_their_view_alone(backend):
    nan, inf = torch.nan, torch.inf
    bad = [
        [[1, 0, nan], [0, 1, 0]], [[1, 0, 0], [0, inf, 0]], [[nan, 0, 0], [0, 1, 0]], [[1, 0, 1e30], [0, 1, 0]],
        [[1, 0, 0], [0, 1, 5e6]], [[300, 0, 0], [0, 1, 0]], [[200, 200, 0], [0, 1, 0]], [[1, 0, 0], [-inf, 1, 0]],
        [[1, 3.4e38, 0], [0, 1, 0]],
    ]  # fmt: skip
    good = [[0.9, 0.1, 4e6], [0, 1, -4e6]]
    images = _images(1, 3, 5, 6)
    index = torch.zeros(len(bad) + 1, dtype=torch.int64)
    for color in (None, torch.eye(3, 4).expand(1, len(index), 3, 4).contiguous()):
        for border in NUMPY_MODES:
            found = _call(backend, images, _geometry(*bad, good), index=index, border=border, color=color)
            assert found[0, :-1].isnan().all() and found[0, -1].isfinite().all()


@backends
@pytest.mark.parametrize(
    "matrix", [[[1.5, 0, 0], [0, 0.7, 0]], [[0.8, 0.6, 0], [-0.6, 0.8, 0]], [[3, 1, 0], [0, 1, 0]]]
)
def test_far_from_the_image_is_the_constant(matrix, backend):
    images = _images(1, 3, 20, 30)
    for dx, dy in ((100, 0), (-100, 0), (0, 90), (0, -90), (200, 200), (-3e6, 1e6)):
        moved = [[*matrix[0][:2], dx], [*matrix[1][:2], dy]]
        for given in (images, _hwc(images)):
            found = _call(
                backend, given, _geometry(moved), size=(16, 9), border="constant", fill=(0.1, 0.2, 0.3)
            )
            expected = torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(1, 1, 3, 16, 9)
            torch.testing.assert_close(found, expected)


def test_the_widest_filter_is_an_average():
    images, matrix = _images(1, 1, 4, 4), [[256, 0, 1000], [0, 256, -30]]
    found = mtkernels.augment(images, None, _geometry(matrix), size=(1, 1), border="symmetric")
    torch.testing.assert_close(found.flatten(), images.double().mean().float()[None] / 255, rtol=1e-3, atol=0)


# ---- layouts


def _random_views(rows=3, views=2, channels=3):
    draw = torch.Generator().manual_seed(1)
    geometry = torch.rand(views, rows, 2, 3, generator=draw)
    geometry[0, :, 0] = torch.tensor([-1.0, 0, 5])
    geometry[0, :, 1] = torch.tensor([0.0, 1, 2])
    geometry[1, 0] = torch.tensor([[1.7, 0, 0.3], [0, 0.6, 1]])
    return geometry, torch.rand(views, rows, channels, channels + 1, generator=draw)


LAYOUTS = {
    "hwc": _hwc,
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "gaps": lambda t: torch.stack([t, t], -1)[..., 0],
    "one sample": lambda t: t[:1].expand_as(t),
    "part": lambda t: F.pad(t, (3, 2, 1, 4))[..., 1:-4, 3:-2],
    "grey": lambda t: t[:, :1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("border", ["reflect", "constant"])
@pytest.mark.parametrize("kind", [torch.uint8, F32])
def test_strides_of_images(kind, border, layout):
    images = LAYOUTS[layout](_images(4, 3, 9, 8).to(kind))
    geometry, color = _random_views()
    index = torch.tensor([3, 0, 3, 1])[::2].repeat(2)[:3]
    for options in ({}, {"color": color}, {"channels_last": True}):
        found = mtkernels.augment(images, index, geometry, border=border, **options)
        expected = mtkernels.augment(images.contiguous(), index, geometry, border=border, **options)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_views_are_channels_last(dtype):
    images, (geometry, _) = _images(3, 3, 9, 8), _random_views()
    found = mtkernels.augment(images, None, geometry, size=(5, 4), channels_last=True, dtype=dtype)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in found)
    plain = mtkernels.augment(images, None, geometry, size=(5, 4), dtype=dtype)
    assert plain.is_contiguous() and torch.equal(found, plain) and found.dtype == plain.dtype == dtype


def test_index():
    images, (geometry, _) = _images(7, 1, 5, 5), _random_views(channels=1)
    index = torch.tensor([6, 0, 6])
    found = mtkernels.augment(images, index, geometry)
    assert torch.equal(found, mtkernels.augment(images[index], None, geometry))
    assert torch.equal(found, mtkernels.augment(images, index.int(), geometry))
    assert torch.equal(found, mtkernels.augment(images, torch.tensor([6, 1, 0, 1, 6])[::2], geometry))
    for rows, views in ((0, 2), (3, 0)):
        empty = mtkernels.augment(images, index[:rows], geometry[:views, :rows].contiguous())
        assert empty.shape == (views, rows, 1, 5, 5)
    assert mtkernels.augment(images[:0], None, geometry[:, :0].contiguous()).shape == (2, 0, 1, 5, 5)


def test_the_same_bits_for_any_number_of_threads():
    images, draw = _images(40, 3, 32, 32), torch.Generator().manual_seed(0)
    geometry = torch.randn(2, 40, 2, 3, generator=draw)
    geometry[0, ::2] = torch.tensor([[1.0, 0, 3], [0, -1, 30]])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(mtkernels.augment(images, None, geometry))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


# ---- registration


def test_registered():
    images, (geometry, color) = _images(3, 3, 6, 5), _random_views()
    index, boxes = torch.tensor([2, 0, 2]), torch.ones(2, 3, 4, dtype=torch.int32)
    op = torch.ops.mtkernels.augment.default
    plain = (None, None, True, None, None, None, "reflect", [0.0], F32, False)
    torch.library.opcheck(op, (images, index, geometry, *plain))
    torch.library.opcheck(
        op,
        (
            images.float(),
            None,
            geometry,
            [4, 7],
            color,
            False,
            boxes,
            [0.1, 0.2, 0.3],
            [2.0],
            "constant",
            [0.5],
            F16,
            True,
        ),
    )

    def step(images, index, geometry, color):
        options = {"color": color, "mean": 0.5, "std": (0.1, 0.2, 0.3), "channels_last": True}
        return mtkernels.augment(images, index, geometry, size=(4, 4), **options) * 2

    inputs = images, index, geometry, color
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(*inputs), step(*inputs))
    with FakeTensorMode():
        fake = mtkernels.augment(torch.rand(5, 3, 8, 8), None, torch.rand(2, 5, 2, 3), dtype=BF16)
        assert fake.dtype == BF16 and fake.shape == (2, 5, 3, 8, 8)
    with torch.no_grad():
        assert not mtkernels.augment(images.float().requires_grad_(), index, geometry).requires_grad


def test_eager_does_not_pay_for_the_registered_op():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        mtkernels.augment(_images(3, 3, 6, 5), None, _random_views()[0])
    assert not [event.name for event in profile.events() if event.name.startswith("mtkernels::")]
