"""The published flags mean here what they meant there; settings come from preset, file and flags, in that order."""

from dataclasses import replace
from pathlib import Path

import pytest
import tomllib

from mtkernels.train.commands import parse
from mtkernels.train.commands.train import as_toml
from mtkernels.train.config import Config, SettingError
from mtkernels.train.flags import INSTEAD, translate
from mtkernels.train.presets import PRESETS


def config_of(*argv: object) -> Config:
    return parse(["train", *map(str, argv)]).config


def test_every_published_flag():
    """The command line of the published quick run, and the flags that it leaves alone."""
    config = config_of(
        *("--dataset", "cifar10", "--train-subdir", "train+val", "--eval-subdir", "test"),
        *("--labels", "labels/00.txt", "--exclude-unlabeled", "no", "-a", "cifar_shakeshake26", "-j", 2),
        *(
            "--epochs",
            180,
            "-b",
            256,
            "--labeled-batch-size",
            62,
            "--learning-rate",
            0.2,
            "--initial-lr",
            0.1,
        ),
        *(
            "--lr-rampup",
            2,
            "--lr-rampdown-epochs",
            210,
            "--momentum",
            0.8,
            "--nesterov",
            "True",
            "--wd",
            2e-4,
        ),
        *("--ema-decay", 0.99, "--consistency", 100, "--consistency-type", "kl", "--consistency-rampup", 5),
        *("--logit-distance-cost", 0.01, "--evaluation-epochs", 3),
    )
    expected = replace(
        PRESETS["reference"].config,
        **{"dataset": "cifar10", "train_subdir": "train+val", "eval_subdir": "test", "workers": 2},
        **{"labels": Path("labels/00.txt"), "arch": "cifar_shakeshake26", "epochs": 180, "batch_size": 256},
        **{"labeled_batch_size": 62, "lr": 0.2, "initial_lr": 0.1, "lr_rampup": 2, "lr_rampdown": 210},
        **{"momentum": 0.8, "nesterov": True, "weight_decay": 2e-4, "ema_decay": 0.99, "consistency": 100},
        **{
            "consistency_type": "kl",
            "consistency_rampup": 5,
            "logit_distance_cost": 0.01,
            "eval_interval": 3,
        },
    )
    assert config == expected
    config.validate()


def test_published_defaults():
    """SPEC 1.1, for a dataset that is named without a preset."""
    config = config_of("--dataset", "cifar10")
    for name, value in {
        **{"epochs": 90, "steps": None, "batch_size": 256, "lr": 0.1, "initial_lr": 0.0, "lr_rampup": 0},
        **{"lr_rampdown": 0, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "ema_decay": 0.999},
        **{
            "consistency": 0.0,
            "consistency_type": "mse",
            "consistency_rampup": 30,
            "logit_distance_cost": -1,
        },
        **{"eval_interval": 1, "workers": 4, "exclude_unlabeled": False, "pretrained": False},
    }.items():
        assert getattr(config, name) == value, name
    assert config_of("--dataset", "imagenet").augment == "imagenet" and config_of().dataset == "digits"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--nesterov", "yes"], True),
        (["--nesterov", "0"], False),
        (["--nesterov=F"], False),
        (["--nesterov"], True),
        (["--no-nesterov"], False),
        (["--nesterov", "--seed", "3"], True),
        (["--nesterov", "--weight_decay=0.1", "-b256", "-b=256"], True),
    ],
)
def test_switches(words, value):
    assert config_of("--preset", "cifar10-1000-quick", *words).nesterov is value


def test_a_length_takes_the_others_place():
    assert translate(["--epochs", "3"]) == ["--epochs", "3", "--steps", "None"]
    rest = ("--eval-interval", 5, "--consistency-rampup", 2, "--lr-rampdown", 0)
    config = config_of("--preset", "cifar10-1000-shakeshake", "--steps", 10, *rest)
    assert (config.steps, config.epochs) == (10, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--epochs", 3),
            r"consistency_rampup, eval_interval must be given in epochs too, as 'digits' has them",
        ),
        (
            ("--preset", "cifar10-1000-quick", "--steps", 9, "--eval-interval", 9),
            r"lr_rampdown, consistency_rampup",
        ),
    ],
)
def test_lengths_do_not_change_their_unit_unseen(words, message):
    with pytest.raises(SettingError, match=f"^{message}"):
        config_of(*words)


@pytest.mark.parametrize("flag", INSTEAD)
def test_what_is_another_command_says_so(flag):
    with pytest.raises(SettingError, match=rf"^{flag} is not supported: "):
        translate(["--seed", "1", flag, "x"])


def test_published_flags_of_checkpoints_and_prints():
    config = config_of("--checkpoint-epochs", 3, "--print-freq", 10)
    assert (config.checkpoint_interval, config.print_interval) == (3, 10)
    assert config_of("-p", 7).print_interval == 7


@pytest.mark.parametrize(
    ("text", "labels"), [("20", 20), ("all", "all"), ("some/20.txt", Path("some/20.txt"))]
)
def test_labels(text, labels):
    assert config_of("--labels", text).labels == labels


def test_preset_then_file_then_flags(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "svhn-500-mean-teacher"\nseed = 4\nlr = 0.01\nlabels = 300\n')
    config = config_of("--config-file", file, "--lr", 0.02)
    assert (config.dataset, config.seed, config.lr, config.labels) == ("svhn", 4, 0.02, 300)
    assert config_of("--config-file", file, "--preset", "digits").dataset == "digits"
    file.write_text("consistancy = 3\n")
    with pytest.raises(SettingError, match=r"consistancy is no setting: did you mean consistency\?"):
        config_of("--config-file", file)
    file.write_text("lr = 0.77\n")
    assert config_of("--config_file", file).lr == 0.77
    file.write_text("seed = \n")
    with pytest.raises(SettingError, match=r"config_file .*mine.toml cannot be read: .*line 1"):
        config_of("--config-file", file)


@pytest.mark.parametrize("name", PRESETS)
def test_printed_settings_come_back(tmp_path, name):
    """Over whatever preset: nothing is left to it, None neither."""
    config = replace(PRESETS[name].config, data=Path('odd "folder"\\here'), seed=3, lr_rampdown=None)
    text = as_toml(config)
    assert tomllib.loads(text)["seed"] == 3
    (tmp_path / "all.toml").write_text(text)
    for other in ("digits", "cifar10-1000-quick"):
        assert config_of("--preset", other, "--config-file", tmp_path / "all.toml") == config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('batch_size = "64"', r"batch_size must be int, got '64'"),
        ("seed = 1.5", r"seed must be int, got 1.5"),
        ("seed = true", r"seed must be int, got True"),
        ('nesterov = "no"', r"nesterov must be bool, got 'no'"),
        ("jitter = [0.4]", r"jitter must be tuple\[float, float, float, float\], got \[0.4\]"),
        ('arch = "none"', None),
        ('method = "mt"', r"method must be Literal\['mean-teacher', .*\], got 'mt'"),
        ("labels = 1.5", r"labels must be .*, got 1.5"),
        ('steps = "none"\nepochs = 3\nconsistency_rampup = 1\neval_interval = 1', None),
    ],
)
def test_settings_of_a_file_have_their_types(tmp_path, line, message):
    (tmp_path / "mine.toml").write_text(line + "\n")
    if message is None:
        config_of("--config-file", tmp_path / "mine.toml")
        return
    with pytest.raises(SettingError, match=f"^{message}$"):
        config_of("--config-file", tmp_path / "mine.toml")
