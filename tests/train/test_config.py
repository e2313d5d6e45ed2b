"""Each refused setting names its field and value, and the lists that are written twice are equal."""

import inspect
import json
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest

from mtkernels.train.config import Config
from mtkernels.train.data import DATASETS
from mtkernels.train.methods import METHODS
from mtkernels.train.models import MODELS
from mtkernels.train.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    PRESETS[preset].validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"steps must be 1 or more, got 0"),
        ({"lr": float("nan")}, r"lr must be 0 or more, got nan"),
        ({"lr": float("inf")}, r"lr must be 0 or more, got inf"),
        ({"consistency": -1.0}, r"consistency must be 0 or more, got -1.0"),
        ({"ema_decay": 1.5}, r"ema_decay must be between 0 and 1, got 1.5"),
        ({"dropout": -0.1}, r"dropout must be between 0 and 1, got -0.1"),
        ({"seed": -1}, r"seed must be between 0 and 2\*\*32 - 1, got -1"),
        ({"method": "pi"}, r"method must be one of mean-teacher, supervised, got 'pi'"),
        ({"buffers": "mean"}, r"buffers must be one of average, copy, keep, got 'mean'"),
        (
            {"batch_size": 20, "labeled_batch_size": 20},
            r"labeled_batch_size must be below batch_size \(20\), got 20",
        ),
        ({"steps": 100, "lr_rampdown": 50}, r"lr_rampdown must be 0 or at least steps \(100\), got 50"),
        ({"lr_rampdown": -1}, r"lr_rampdown must be 0 or more, got -1"),
        ({"nesterov": True, "momentum": 0.0}, r"momentum must be above 0 where nesterov is on, got 0"),
        ({"name": "a/b"}, r"name must be letters, digits and . _ \+ = - only, got 'a/b'"),
        ({"name": ".."}, r"name must be .*, got '..'"),
        ({"name": "12:30"}, r"name must be .*, got '12:30'"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message + "$"):
        replace(Config(), **changes).validate()


def test_every_number_is_checked():
    numbers = [name for name, hint in get_type_hints(Config).items() if hint in (int, float)]
    for name in numbers:
        with pytest.raises(ValueError, match=f"^{name} must be"):
            replace(Config(), **{name: -1}).validate()


def test_every_field_has_its_words():
    lines = inspect.getsource(Config)
    for field in fields(Config):
        after = lines.split(f"\n    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""') and after.rstrip().endswith('."""'), field.name


def test_choices_are_the_registries():
    hints = get_type_hints(Config)
    for name, registry in (("method", METHODS), ("dataset", DATASETS), ("model", MODELS)):
        assert set(get_args(hints[name])) == set(registry)


def test_as_dict_is_json():
    assert json.loads(json.dumps(Config().as_dict()))["out"] == "runs"
