"""What augment refuses, in words."""

import pytest
import torch

import mtkernels

IMAGES, MATRICES = torch.zeros(4, 3, 5, 6, dtype=torch.uint8), torch.zeros(2, 4, 2, 3)
COLORS, BOXES = torch.zeros(2, 4, 3, 4), torch.zeros(2, 4, 4, dtype=torch.int32)
GRADIENT = "must not require grad (it is a constant: detach it), got requires_grad=True"
ERRORS = {
    "images' gradient": (
        {"images": torch.rand(4, 3, 5, 6).requires_grad_()},
        ValueError,
        f"images {GRADIENT}",
    ),
    "geometry's gradient": (
        {"geometry": MATRICES.clone().requires_grad_()},
        ValueError,
        f"geometry {GRADIENT}",
    ),
    "color's gradient": ({"color": COLORS.clone().requires_grad_()}, ValueError, f"color {GRADIENT}"),
    "no tensor": ({"images": [1]}, TypeError, "images must be a torch.Tensor, got list"),
    "images' dtype": (
        {"images": IMAGES.double()},
        TypeError,
        "images must be uint8 or float32, got torch.float64",
    ),
    "images' dims": (
        {"images": IMAGES[0]},
        ValueError,
        "images must have shape [samples, channels, height, width], got [3, 5, 6]",
    ),
    "channels": (
        {"images": IMAGES.new_zeros(4, 5, 2, 2)},
        ValueError,
        "images must have 1 to 4 channels, got 5",
    ),
    "no pixel": (
        {"images": IMAGES[:, :, :0]},
        ValueError,
        "images must have a height and width from 1 to 1048576, got [4, 3, 0, 6]",
    ),
    "index' dtype": ({"index": torch.zeros(4)}, TypeError, "index must be int64 or int32, got torch.float32"),
    "index' dims": (
        {"index": torch.zeros(2, 2).long()},
        ValueError,
        "index must have shape [rows], got [2, 2]",
    ),
    "outside": (
        {"index": torch.tensor([0, 3, 4, 1])},
        ValueError,
        "index[2] must be one of the 4 images, counted from 0, got 4",
    ),
    "negative": (
        {"index": torch.tensor([0, -1, 4, 1])},
        ValueError,
        "index[1] must be one of the 4 images, counted from 0, got -1",
    ),
    "geometry's dtype": (
        {"geometry": MATRICES.half()},
        TypeError,
        "geometry must be float32, got torch.float16",
    ),
    "geometry's shape": (
        {"geometry": MATRICES[:, :3]},
        ValueError,
        "geometry must have shape [views, 4, 2, 3], got [2, 3, 2, 3]",
    ),
    "geometry's dims": (
        {"geometry": MATRICES[0]},
        ValueError,
        "geometry must have shape [views, 4, 2, 3], got [4, 2, 3]",
    ),
    "geometry's strides": (
        {"geometry": torch.zeros(4, 2, 2, 3).transpose(0, 1)},
        ValueError,
        "geometry must be contiguous, got strides [6, 12, 3, 1]",
    ),
    "color's shape": (
        {"color": COLORS[:1]},
        ValueError,
        "color must have shape [2, 4, 3, 4], got [1, 4, 3, 4]",
    ),
    "color's dtype": ({"color": COLORS.double()}, TypeError, "color must be float32, got torch.float64"),
    "boxes' dtype": ({"erase": BOXES.long()}, TypeError, "erase must be int32, got torch.int64"),
    "boxes' shape": ({"erase": BOXES[..., :2]}, ValueError, "erase must have shape [2, 4, 4], got [2, 4, 2]"),
    "no memory": (
        {"geometry": MATRICES.to("meta")},
        TypeError,
        "geometry must be a dense tensor in memory, got layout torch.strided, dtype torch.float32 on meta",
    ),
    "size": ({"size": 32}, TypeError, "size must be None or two ints, height and width, got 32"),
    "size of three": (
        {"size": (1, 2, 3)},
        TypeError,
        "size must be None or two ints, height and width, got (1, 2, 3)",
    ),
    "no height": ({"size": (0, 4)}, ValueError, "size[0] must be from 1 to 1048576, got 0"),
    "width as a float": ({"size": (4, 4.0)}, TypeError, "size[1] must be an int, got float"),
    "mean": (
        {"mean": (0.5, 0.5)},
        ValueError,
        "mean must be one number, or 3, one for each channel, got (0.5, 0.5)",
    ),
    "mean as a tensor": (
        {"mean": torch.zeros(3)},
        TypeError,
        "mean must be a number or a sequence of numbers, got Tensor",
    ),
    "a word among means": ({"mean": (0.5, "x", 0.5)}, TypeError, "mean[1] must be a number, got str"),
    "std": ({"std": (0.5, 0.0, 0.5)}, ValueError, "std[1] must be positive and finite, got 0.0"),
    "fill": ({"fill": float("nan")}, ValueError, "fill must be finite, got nan"),
    "border": (
        {"border": "wrap"},
        ValueError,
        "border must be 'constant', 'reflect', 'symmetric' or 'replicate', got 'wrap'",
    ),
    "dtype": (
        {"dtype": torch.float64},
        TypeError,
        "dtype must be torch.float32, torch.float16 or torch.bfloat16, got torch.float64",
    ),
    "dtype as a word": (
        {"dtype": "torch.float32"},
        TypeError,
        "dtype must be torch.float32, torch.float16 or torch.bfloat16, got 'torch.float32'",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refuses(case):
    changed, kind, message = ERRORS[case]
    arguments = {"images": IMAGES, "index": None, "geometry": MATRICES} | changed
    with pytest.raises(kind) as refused:
        mtkernels.augment(**arguments)
    assert str(refused.value) == "augment: " + message
