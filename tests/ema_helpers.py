"""A small model for the tests of weight averages, and what they do with it."""

import torch
from torch import nn


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
