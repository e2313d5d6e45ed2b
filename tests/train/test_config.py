"""Each refused setting names its field and value, and the lists that are written twice are equal."""

import inspect
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from mtkernels.train.config import Config
from mtkernels.train.data import DATASETS
from mtkernels.train.methods import METHODS
from mtkernels.train.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    PRESETS[preset].config.validate()


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
        ({"method": "pi"}, r"method must be one of mean-teacher, pi-model, supervised, got 'pi'"),
        ({"buffers": "mean"}, r"buffers must be one of average, copy, keep, got 'mean'"),
        (
            {"batch_size": 20, "labeled_batch_size": 20},
            r"labeled_batch_size must be below batch_size \(20\), got 20",
        ),
        ({"steps": 100, "lr_rampdown": 50}, r"lr_rampdown must be 0 or at least steps \(100\), got 50"),
        ({"lr_rampdown": -1}, r"lr_rampdown must be 0 or more, got -1"),
        ({"steps": 100, "sigmoid_rampdown": 200}, r"sigmoid_rampdown must be at most steps \(100\), got 200"),
        ({"epochs": 3}, r"epochs or steps must be given, and not both, got 3 and 2000"),
        ({"steps": None}, r"epochs or steps must be given, and not both, got None and None"),
        ({"labels": "some"}, r"labels must be a number, 'all' or a path, got 'some'"),
        ({"eval_split": "validation"}, r"validation must be 1 or more where eval_split is validation, got 0"),
        ({"normalize": "zca", "augment": "imagenet"}, r"normalize must not be zca where augment is imagenet"),
        ({"ema_decay_rampup": 0.9}, r"ema_warmup must be off where ema_decay_rampup is given, got True"),
        ({"adam_beta1": (0.9, 1.0)}, r"adam_beta1 must be at least 0 and below 1, got 1.0"),
        ({"jitter": (0.4, 0.4, 0.4, 2.0)}, r"jitter must be between 0 and 1, got 2.0"),
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
    kinds = (int, float, int | None, float | None)
    numbers = [name for name, hint in get_type_hints(Config).items() if hint in kinds]
    assert len(numbers) > 30
    for name in numbers:
        with pytest.raises(ValueError, match=f"^{name} must be"):
            replace(Config(), **{name: -2}).validate()


def test_every_field_has_its_words():
    lines = inspect.getsource(Config)
    for field in fields(Config):
        after = lines.split(f"\n    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""') and after.rstrip().endswith('."""'), field.name


def test_choices_are_the_registries():
    hints = get_type_hints(Config)
    for name, registry in (("method", METHODS), ("dataset", DATASETS)):
        assert set(get_args(hints[name])) == set(registry)


@pytest.mark.parametrize("labels", [20, "all", Path("some/labels.txt")])
def test_settings_come_back_from_json(labels):
    config = Config(
        labels=labels, data=Path("here"), lr=1.0, jitter=(0.1, 0.2, 0.3, 0.0), exclude_unlabeled=True
    )
    assert Config.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match=r"^consistancy is no setting: did you mean consistency\?$"):
        Config.from_dict({"consistancy": 3})
