"""Lengths are in the training's unit: the same numbers mean epochs in one run and steps in another."""

import math
from dataclasses import replace

import pytest

from mtkernels import schedules
from mtkernels.train.config import Config
from mtkernels.train.presets import PRESETS
from mtkernels.train.ramps import cosine_rampdown, sigmoid_rampup
from mtkernels.train.timeline import Timeline

IN_STEPS = Config(steps=100, lr=0.4, initial_lr=0.1, lr_rampup=10, lr_rampdown=100, consistency_rampup=20)
IN_EPOCHS = Config(
    epochs=10, steps=None, lr=0.4, initial_lr=0.1, lr_rampup=2, lr_rampdown=20, consistency_rampup=5
)


def test_learning_rate_in_steps():
    rate = Timeline(IN_STEPS, 7).learning_rate
    assert rate(0) == pytest.approx(0.1)
    assert rate(5) == pytest.approx(0.25 * cosine_rampdown(5, 100))
    assert rate(50) == pytest.approx(0.2) and rate(99) < 1e-3
    assert Timeline(replace(IN_STEPS, lr_rampdown=None), 7).learning_rate(50) == pytest.approx(0.2)
    assert Timeline(replace(IN_STEPS, lr_rampdown=0), 7).learning_rate(99) == pytest.approx(0.4)


def test_learning_rate_in_epochs_moves_with_each_step():
    timeline = Timeline(IN_EPOCHS, 4)
    assert timeline.steps == 40
    assert timeline.learning_rate(5) == pytest.approx((0.1 + 0.3 * 1.25 / 2) * cosine_rampdown(1.25, 20))
    assert timeline.learning_rate(39) == pytest.approx(0.4 * cosine_rampdown(9.75, 20))


def test_consistency_weight_is_a_staircase_in_epochs():
    timeline = Timeline(IN_EPOCHS, 4)
    weights = [timeline.consistency_weight(step) for step in range(24)]
    assert (
        weights[:4] == [100 * sigmoid_rampup(0, 5)] * 4 and weights[4:8] == [100 * sigmoid_rampup(1, 5)] * 4
    )
    assert weights[20:] == [100] * 4
    in_steps = Timeline(IN_STEPS, 4)
    assert in_steps.consistency_weight(5) == pytest.approx(100 * sigmoid_rampup(5, 20))


def test_the_teachers_decay():
    assert Timeline(replace(IN_STEPS, ema_decay=0.9), 4).ema_decay() == schedules.running_mean(0.9)
    assert Timeline(replace(IN_STEPS, ema_warmup=False), 4).ema_decay() == 0.99
    switched = replace(IN_STEPS, ema_warmup=False, ema_decay=0.999, ema_decay_rampup=0.99)
    decay = Timeline(switched, 4).ema_decay()
    # Steps count from 0 and updates from 1: the last step of the ramp-up is number 19, its update number 20.
    assert [decay(update) for update in (1, 20, 21)] == [0.99, 0.99, 0.999]


def test_evaluations():
    timeline = Timeline(replace(IN_EPOCHS, eval_interval=3), 4)
    assert [step for step in range(1, 41) if timeline.evaluates(step)] == [12, 24, 36, 40]
    only_last = Timeline(replace(IN_EPOCHS, eval_interval=0), 4)
    assert [step for step in range(1, 41) if only_last.evaluates(step)] == [40]


def test_the_tensorflow_versions_numbers():
    """SPEC: lr = up * down * max; beta1 = down * .9 + (1 - down) * .5; beta2 and the decay switch after the ramp-up."""
    timeline = Timeline(PRESETS["svhn-500-mean-teacher"].config, 700)
    assert timeline.steps == 180_000
    up = math.exp(-5 * (1 - 10_000 / 40_000) ** 2)
    assert timeline.learning_rate(10_000) == pytest.approx(0.003 * up)
    assert timeline.consistency_weight(10_000) == pytest.approx(up)
    down = math.exp(-12.5 * (1 - 5_000 / 25_000) ** 2)
    assert timeline.learning_rate(175_000) == pytest.approx(0.003 * down)
    assert timeline.adam_betas(175_000) == pytest.approx((down * 0.9 + (1 - down) * 0.5, 0.999))
    assert timeline.adam_betas(39_999) == (0.9, 0.99) and timeline.adam_betas(40_000) == (0.9, 0.999)
    decay = timeline.ema_decay()
    assert (decay(40_000), decay(40_001)) == (0.99, 0.999)
