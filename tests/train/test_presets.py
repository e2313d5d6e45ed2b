"""`mtkernels train --preset NAME --print-config` against the published experiments, row by row and field by field.

The tables here are written out from the publications' settings, apart from how the presets are put together.
"""

import contextlib
import io

import pytest
import tomllib

from mtkernels.train.cli import main
from mtkernels.train.presets import PRESETS

# ---- the PyTorch version: what it says of its 13 settings, at the published number of GPUs

PYTORCH_COMMON = {
    "method": "mean-teacher",
    "consistency_rampup": 5,
    "logit_distance_cost": 0.01,
    "logit_distance": "mean",
    "momentum": 0.9,
    "nesterov": True,
    "optimizer": "sgd",
    "teacher_init": "independent",
    "buffers": "keep",
    "ema_warmup": True,
    "ema_order": "after",
    "class_loss_over": "batch",
    "consistency_on_labeled": True,
    "unlabeled_from": "unlabeled",
    "exclude_unlabeled": False,
    "normalize": "channels",
    "noise": 0.0,
    "eval_split": "test",
    "eval_interval": 1,
    "validation": 0,
}
CIFAR_VIEWS = {
    "augment": "translate",
    "translate": 4,
    "flip": True,
    "shared_flip": False,
    "border": "symmetric",
}
IMAGENET_VIEWS = {
    "augment": "imagenet",
    "image_size": 224,
    "rotate": 10.0,
    "jitter": [0.4, 0.4, 0.4, 0.1],
    "flip": True,
}
PYTORCH = {
    "cifar10-4000-shakeshake": PYTORCH_COMMON
    | CIFAR_VIEWS
    | {"dataset": "cifar10", "arch": "cifar_shakeshake26", "labels": 4000, "epochs": 300, "lr_rampdown": 350}
    | {"batch_size": 512, "labeled_batch_size": 124, "lr": 0.2, "initial_lr": 0.0, "lr_rampup": 0}
    | {
        "ema_decay": 0.99,
        "consistency": 100.0,
        "consistency_type": "mse",
        "weight_decay": 2e-4,
        "workers": 2,
    },
    "cifar10-1000-shakeshake": PYTORCH_COMMON
    | CIFAR_VIEWS
    | {"dataset": "cifar10", "arch": "cifar_shakeshake26", "labels": 1000, "epochs": 180, "lr_rampdown": 210}
    | {"batch_size": 512, "labeled_batch_size": 124, "lr": 0.2, "initial_lr": 0.0, "lr_rampup": 0}
    | {
        "ema_decay": 0.97,
        "consistency": 100.0,
        "consistency_type": "mse",
        "weight_decay": 2e-4,
        "workers": 2,
    },
    "imagenet-10percent-resnext152": PYTORCH_COMMON
    | IMAGENET_VIEWS
    | {"dataset": "imagenet", "arch": "resnext152", "labels": 128_000, "epochs": 60, "lr_rampdown": 75}
    | {"batch_size": 400, "labeled_batch_size": 200, "lr": 0.25, "initial_lr": 0.1, "lr_rampup": 2}
    | {
        "ema_decay": 0.9997,
        "consistency": 10.0,
        "consistency_type": "kl",
        "weight_decay": 5e-5,
        "workers": 20,
    },
    "cifar10-1000-quick": PYTORCH_COMMON
    | CIFAR_VIEWS
    | {"dataset": "cifar10", "arch": "cifar_shakeshake26", "labels": 1000, "epochs": 180, "lr_rampdown": 210}
    | {"batch_size": 256, "labeled_batch_size": 62, "lr": 0.1, "initial_lr": 0.0, "lr_rampup": 0}
    | {"ema_decay": 0.999, "consistency": 100.0, "consistency_type": "mse", "weight_decay": 1e-4}
    | {"nesterov": False, "logit_distance_cost": -1.0},
}
for _name, _batch in (
    ("cifar10-4000-shakeshake", (128, 31, 0.05, 0.0)),
    ("cifar10-1000-shakeshake", (128, 31, 0.05, 0.0)),
):
    PYTORCH[f"{_name}-1gpu"] = PYTORCH[_name] | dict(
        zip(("batch_size", "labeled_batch_size", "lr", "initial_lr"), _batch, strict=True)
    )
PYTORCH["imagenet-10percent-resnext152-1gpu"] = PYTORCH["imagenet-10percent-resnext152"] | {
    **{"batch_size": 40, "labeled_batch_size": 20, "lr": 0.025, "initial_lr": 0.01}
}

# ---- the TensorFlow version: its defaults, then what each script changes

DEFAULTS = {
    "method": "mean-teacher",
    "arch": "convnet13",
    "batch_size": 100,
    "consistency_on_labeled": True,
    "consistency": 100.0,
    "consistency_rampup": 40_000,
    "lr_rampup": 40_000,
    "lr_rampup_shape": "sigmoid",
    "lr_rampdown": 0,
    "sigmoid_rampdown": 25_000,
    "steps": 150_000,
    "ema_decay_rampup": 0.99,
    "ema_decay": 0.999,
    "ema_warmup": False,
    "ema_order": "before",
    "teacher_init": "copy",
    "buffers": "keep",
    "optimizer": "adam",
    "lr": 0.003,
    "adam_beta1": [0.9, 0.5],
    "adam_beta2": [0.99, 0.999],
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
    "noise": 0.15,
    "dropout": 0.5,
    "logit_distance_cost": -1.0,
    "logit_distance": "sum",
    "consistency_type": "mse",
    "class_loss_over": "batch",
    "unlabeled_from": "all",
    "augment": "translate",
    "translate": 2,
    "flip": False,
    "border": "reflect",
    "eval_interval": 500,
    "eval_split": "test",
    "validation": 0,
    "extra_unlabeled": 0,
    "exclude_unlabeled": False,
}
ABSENT = {"labeled_batch_size", "teacher_dropout", "consistency_trust", "ema_decay_rampup", "epochs"}  # None
PLAIN = {"translate": 0, "flip": False}


def tensorflow() -> dict[str, dict]:
    rows = {}
    cifar10 = DEFAULTS | {"dataset": "cifar10", "flip": True, "normalize": "gcn-zca"}
    cifar10 |= {"adam_beta2": [0.999, 0.999], "ema_decay_rampup": None}
    for labels, cost in ((1000, 2.0), (2000, 4.0), (4000, 8.0), ("all", 100.0)):
        for method in ("mean-teacher", "pi-model"):
            row = cifar10 | {
                "method": method,
                "labels": labels,
                "consistency": cost,
                "labeled_batch_size": None,
            }
            rows[f"cifar10-{labels}-{method}"] = row | {"exclude_unlabeled": labels == "all"}
    for labels, steps, down in (
        (1000, 7500, 1000),
        (2000, 15_000, 2000),
        (4000, 30_000, 4000),
        ("all", 150_000, 25_000),
    ):
        rows[f"cifar10-{labels}-supervised"] = cifar10 | {
            **{"method": "supervised", "labels": labels, "steps": steps, "sigmoid_rampdown": down},
            **{"consistency": 0.0, "exclude_unlabeled": True, "consistency_on_labeled": False},
        }
    svhn = DEFAULTS | {"dataset": "svhn", "normalize": "image", "steps": 180_000}
    few = {"labeled_batch_size": 1, "consistency": 1.0, "consistency_on_labeled": False}
    for method in ("mean-teacher", "pi-model"):
        for labels in (100, 250, 500, 1000):
            rows[f"svhn-{labels}-{method}"] = svhn | few | {"method": method, "labels": labels}
        rows[f"svhn-all-{method}"] = svhn | {"method": method, "labels": "all", "exclude_unlabeled": True}
    for labels in (250, 500, 1000):
        rows[f"svhn-{labels}-supervised"] = svhn | {
            **{"method": "supervised", "labels": labels, "steps": 40_000, "sigmoid_rampdown": 10_000},
            **{"consistency": 0.0, "exclude_unlabeled": True},
        }
    rows["svhn-all-supervised"] = svhn | {
        **{"method": "supervised", "labels": "all", "consistency": 0.0, "exclude_unlabeled": True}
    }
    rows |= {f"{name}-no-augmentation": row | PLAIN for name, row in rows.items()}
    for method in ("mean-teacher", "pi-model"):
        for extra, steps in ((100_000, 400_000), (500_000, 600_000)):
            rows[f"svhn-500-{method}-extra-{extra}"] = (
                svhn | few | {**{"method": method, "labels": 500, "extra_unlabeled": extra, "steps": steps}}
            )
    return rows | ablations(svhn | few | {"eval_split": "validation", "validation": 7325}) | quick()


def ablations(base: dict) -> dict[str, dict]:
    rows, few, more = {}, base | {"labels": 250}, base | {"labels": 500}
    for decay in (0, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9997, 0.9999):
        rows[f"svhn-250-ema-decay-{decay}"] = few | {"ema_decay": float(decay), "ema_decay_rampup": None}
    rows["svhn-250-ema-decay-0.99-0.999"] = few
    for cost in (0, 0.1, 0.3, 1, 3, 10, 30):
        rows[f"svhn-250-consistency-{cost}"] = few | {"consistency": float(cost)}
    pairs = [(0.5, rate) for rate in (0, 0.25, 0.5, 0.75)] + [(rate, rate) for rate in (0, 0.25, 0.75)]
    for student, teacher in pairs:
        dropout = {"dropout": float(student), "teacher_dropout": float(teacher)}
        rows[f"svhn-250-dropout-{student}-{teacher}"] = few | dropout
    for dropout in (0.5, 0):
        for noise in (0.15, 0):
            for name, views in (("augmented", {}), ("plain", PLAIN)):
                row = few | views | {"dropout": float(dropout), "noise": float(noise)}
                rows[f"svhn-250-perturbation-dropout-{dropout}-noise-{noise}-{name}"] = row
    rows["svhn-500-one-head"] = more
    for cost in (0, 0.001, 0.01, 0.1, 1):
        rows[f"svhn-500-logit-distance-{cost}"] = more | {"logit_distance_cost": float(cost)}
    for trust in (0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1):
        rows[f"svhn-500-trust-{trust}"] = more | {"consistency_trust": float(trust)}
    return rows


def quick() -> dict[str, dict]:
    short = {"steps": 40_000, "lr_rampup": 5000, "consistency_rampup": 5000, "sigmoid_rampdown": 0}
    short |= {"consistency": 50.0, "labeled_batch_size": 50, "eval_split": "validation"}
    cifar10 = {"dataset": "cifar10", "labels": 4000, "validation": 5000, "flip": True, "normalize": "gcn-zca"}
    svhn = {"dataset": "svhn", "labels": 500, "validation": 7325, "normalize": "image"}
    return {
        "cifar10-4000-convnet13-quick": DEFAULTS | short | cifar10,
        "svhn-500-convnet13-quick": DEFAULTS | short | svhn,
    }


ROWS = PYTORCH | tensorflow()


def printed(name: str) -> dict[str, object]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["train", "--preset", name, "--print-config"]) == 0
    return tomllib.loads(out.getvalue())


@pytest.mark.parametrize("name", ROWS)
def test_preset(name):
    config = printed(name)
    for field, value in ROWS[name].items():
        assert field in ABSENT or value is not None
        assert config.get(field) == value, field


def test_every_preset_is_a_row():
    assert set(PRESETS) - set(ROWS) == {"digits", "reference", "reference-imagenet"}


def test_published_results():
    """Tables 1 and 2 of 1703.01780, and table 3's residual networks; errors in percent."""
    expected = {
        "svhn-250-mean-teacher": "4.35 ± 0.50",
        "svhn-500-mean-teacher": "4.18 ± 0.27",
        "svhn-1000-mean-teacher": "3.95 ± 0.19",
        "svhn-all-mean-teacher": "2.50 ± 0.05",
        "svhn-250-pi-model": "9.69 ± 0.92",
        "svhn-500-pi-model": "6.83 ± 0.66",
        "svhn-1000-pi-model": "4.95 ± 0.26",
        "svhn-all-pi-model": "2.50 ± 0.07",
        "svhn-250-supervised": "27.77 ± 3.18",
        "svhn-500-supervised": "16.88 ± 1.30",
        "svhn-1000-supervised": "12.32 ± 0.95",
        "svhn-all-supervised": "2.75 ± 0.10",
        "svhn-500-pi-model-extra-100000": "4.49 ± 0.27",
        "svhn-500-pi-model-extra-500000": "3.26 ± 0.14",
        "svhn-500-mean-teacher-extra-100000": "3.02 ± 0.16",
        "svhn-500-mean-teacher-extra-500000": "2.46 ± 0.06",
        "cifar10-1000-mean-teacher": "21.55 ± 1.48",
        "cifar10-2000-mean-teacher": "15.73 ± 0.31",
        "cifar10-4000-mean-teacher": "12.31 ± 0.28",
        "cifar10-all-mean-teacher": "5.94 ± 0.15",
        "cifar10-1000-pi-model": "27.36 ± 1.20",
        "cifar10-2000-pi-model": "18.02 ± 0.60",
        "cifar10-4000-pi-model": "13.20 ± 0.27",
        "cifar10-all-pi-model": "6.06 ± 0.11",
        "cifar10-1000-supervised": "46.43 ± 1.21",
        "cifar10-2000-supervised": "33.94 ± 0.73",
        "cifar10-4000-supervised": "20.66 ± 0.57",
        "cifar10-all-supervised": "5.82 ± 0.15",
        "cifar10-4000-shakeshake": "6.28 ± 0.15",
        "cifar10-1000-shakeshake": "10.08 ± 0.41",
        "imagenet-10percent-resnext152": "top-5 9.11 ± 0.12",
    }
    assert {name: preset.published for name, preset in PRESETS.items() if preset.published} == expected


@pytest.mark.parametrize(
    ("name", "unlabeled", "steps"),
    [
        ("cifar10-4000-shakeshake", 46_000, 35_400),
        ("cifar10-4000-shakeshake-1gpu", 46_000, 142_200),
        ("cifar10-1000-shakeshake", 49_000, 22_680),
        ("imagenet-10percent-resnext152", 1_153_167, 345_900),
    ],
)
def test_published_number_of_steps(name, unlabeled, steps):
    import torch

    from mtkernels.train.data import TwoStreamBatches
    from mtkernels.train.timeline import Timeline

    config = PRESETS[name].config
    batches = TwoStreamBatches(
        torch.arange(unlabeled),
        torch.arange(1000),
        batch_size=config.batch_size,
        labeled_batch_size=config.labeled_batch_size,
        seed=0,
    )
    assert Timeline(config, batches.steps_per_epoch).steps == steps
