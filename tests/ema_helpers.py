"""A small model for the tests of weight averages, and what they do with it."""

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import nn

import mtkernels


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))


def train(model, seed=None):
    """Moves every tensor, as a step of training would."""
    if seed is not None:
        torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.rand_like(tensor) if tensor.is_floating_point() else 1)


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, expected[name]), name


def run_ahead(model, ema, steps, **options):
    for _ in range(steps):
        train(model)
        ema.update(**options)


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return list(value.state_dict().values())
    if isinstance(value, Mapping):
        value = value.values()
    return (
        [t for item in value for t in _tensors(item)]
        if isinstance(value, (list, tuple, type({}.values())))
        else []
    )


def assert_refused(make, error, message):
    """What make() gives is refused by ema_update with this error and sentence, and no tensor of it is written."""
    arguments, options = make()
    tensors = [t for t in _tensors((*arguments, options)) if t.device.type == "cpu"]
    before = copy.deepcopy([t.detach() for t in tensors])
    with pytest.raises(error) as caught:
        mtkernels.ema_update(*arguments, **options)
    assert str(caught.value) == f"ema_update: {message}"
    assert type(caught.value) is error
    for tensor, kept in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor.detach(), kept, rtol=0, atol=0, equal_nan=True)
