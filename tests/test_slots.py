"""Slots: whether modules hold the tensors and parts that they held."""

import gc

import pytest
import torch
from torch import nn

from mtkernels import _C
from mtkernels._models import slots_of


def model():
    return nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Sequential())


def _replace(part, name):
    setattr(part, name, nn.Parameter(torch.zeros(2, 2)))


CHANGES = {
    "append": lambda net: net.append(nn.ReLU()),
    "first part": lambda net: net[2].append(nn.ReLU()),
    "part replaced": lambda net: net.__setitem__(0, nn.Linear(2, 2, bias=False)),
    "part deleted": lambda net: net.__delitem__(2),
    "parameter added": lambda net: net[0].register_parameter("scale", nn.Parameter(torch.ones(2))),
    "first parameter": lambda net: net[2].register_parameter("scale", nn.Parameter(torch.ones(2))),
    "None filled": lambda net: setattr(net[0], "bias", nn.Parameter(torch.ones(2))),
    "set to None": lambda net: setattr(net[1], "bias", None),
    "parameter replaced": lambda net: _replace(net[0], "weight"),
    "parameter deleted": lambda net: delattr(net[0], "weight"),
    "buffer replaced": lambda net: setattr(net[1], "running_mean", torch.ones(2)),
    "buffer added": lambda net: net[0].register_buffer("count", torch.zeros(())),
    "renamed": lambda net: net[0]._parameters.update(other=net[0]._parameters.pop("weight")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change):
    net = model()
    slots = _C.Slots(slots_of(net))
    assert slots.same()
    CHANGES[change](net)
    assert not slots.same()
    assert _C.Slots(slots_of(net)).same()


def test_values_and_training_are_no_change():
    net = model()
    slots = _C.Slots(slots_of(net) + slots_of(net))  # a dict twice counts once
    net(torch.rand(4, 2)).sum().backward()
    net.double().eval()
    with torch.no_grad():
        net[0].weight.add_(1)
    net[0].weight.data = torch.ones(2, 2)
    assert net[1].running_mean.dtype == torch.float64
    assert not slots.same()  # double() replaces buffers
    slots = _C.Slots(slots_of(net))
    net.requires_grad_(False).train()
    assert slots.same()


def test_entries_are_kept_alive():
    holder = {"a": torch.ones(2)}
    slots = _C.Slots([holder])
    for _ in range(100):  # a tensor that were freed could come back at its address
        holder["a"] = torch.ones(2)
        gc.collect(0)
        assert not slots.same()


def test_no_dicts():
    assert _C.Slots([]).same()
    assert _C.Slots([{}]).same()
    with pytest.raises(TypeError, match="holders must be dicts"):
        _C.Slots([3])
