"""Schedules of the decay: what the papers say, and that CPU kernel and reference evaluate them alike."""

import math

import pytest
import torch

import mtkernels
from mtkernels import schedules
from mtkernels.backends import native, reference
from mtkernels.ops.ema import EmaOptions

ALL = [
    schedules.running_mean(0.99),
    schedules.ratio(0.999),
    schedules.inverse_gamma(0.9999, inv_gamma=2.0, power=0.75, min_decay=0.1),
    schedules.switched(0.9, 0.99, at=5),
    schedules.cosine(0.9, steps=100),
    schedules.half_life(10, rampup=0.05),
    schedules.half_life(10),
    schedules.power_function(0.1),
    schedules.debiased(0.9),
]


def test_schedules_say_what_the_papers_say():
    assert [schedules.running_mean(0.999)(t) for t in (0, 1, 2, 998, 10_000)] == [
        0,
        0.5,
        1 - 1 / 3,
        1 - 1 / 999,
        0.999,
    ]
    assert schedules.ratio(0.999)(1) == 2 / 11 and schedules.ratio(0.9)(1000) == 0.9
    assert schedules.inverse_gamma(0.9999)(1) == pytest.approx(1 - 2 ** (-2 / 3))
    assert [schedules.switched(0.99, 0.999, at=40_000)(t) for t in (39_999, 40_000)] == [0.99, 0.999]
    assert schedules.cosine(0.996, steps=100)(100) == schedules.cosine(0.996, steps=100)(1000) == 1
    assert schedules.cosine(0.996, steps=100)(50) == pytest.approx(0.998)
    assert schedules.half_life(500)(1) ** 500 == pytest.approx(0.5)
    assert schedules.half_life(500, rampup=0.05)(100) == pytest.approx(0.5 ** (1 / 5))
    for sigma_rel, gamma in ((0.05, 16.97), (0.10, 6.94)):
        assert schedules.power_function(sigma_rel).kernel[1] == pytest.approx(gamma, abs=0.06)
    assert schedules.power_function(0.1)(1) == schedules.debiased(0.9)(1) == 0


@pytest.mark.parametrize(("decay", "last_warm"), [(0.97, 32), (0.99, 98), (0.999, 998), (0.9997, 3332)])
def test_decay_is_a_running_mean_until_it_is_the_decay(decay, last_warm):
    assert schedules.running_mean(decay)(1) == 0.5  # the first update comes after the first optimizer step
    assert schedules.running_mean(decay)(last_warm) == pytest.approx(1 - 1 / (last_warm + 1))
    assert schedules.running_mean(decay)(last_warm) < decay
    assert schedules.running_mean(decay)(last_warm + 2) == decay


def test_debiased_equals_adams_correction():
    """An average from zero divided by 1 - decay^t."""
    values, zero, ours = (
        torch.rand(20, 7, dtype=torch.float64),
        torch.zeros(7, dtype=torch.float64),
        torch.zeros(7),
    )
    ours = ours.double()
    for t, value in enumerate(values, 1):
        zero = 0.9 * zero + 0.1 * value
        mtkernels.ema_update([ours], [value], schedules.debiased(0.9), step=t)
        torch.testing.assert_close(ours, zero / (1 - 0.9**t))


def test_power_function_is_the_papers_integral():
    """Weights proportional to t^gamma: EDM2 (2024), eq. 3."""
    gamma, ours = 6.94, torch.zeros(1, dtype=torch.float64)
    for t in range(1, 2001):
        mtkernels.ema_update(
            [ours], [torch.tensor([float(t)]).double()], schedules.power_function(gamma=gamma), step=t
        )
    assert ours.item() / 2000 == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_backends_agree(schedule):
    """Numbers of the reference, of `schedule(t)`, and of the kernel that reads the step in memory."""
    for step in (1, 2, 4, 5, 99, 100, 10_000):
        expected = reference._decay_at(schedule, step, EmaOptions())
        assert schedule(step) == pytest.approx(expected, rel=1e-14)
        for given in (step, torch.tensor(step)):
            teacher = [torch.ones(1, dtype=torch.float64)]
            zero = [torch.zeros(1, dtype=torch.float64)]
            native.ema_update(teacher, zero, schedule, 0, None, EmaOptions(step=given))
            assert teacher[0].item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_a_decay_is_between_0_and_1(schedule):
    assert schedule(0) == 0 and all(0 <= schedule(t) <= 1 for t in (1, 2, 3, 10, 1000, 10**6, 10**9))
    assert repr(schedule).split("(")[0] in dir(schedules)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.running_mean(1.5), "running_mean: decay must be between 0 and 1, got 1.5"),
        (lambda: schedules.ratio(math.nan), "ratio: decay must be between 0 and 1, got nan"),
        (lambda: schedules.inverse_gamma(inv_gamma=0), "inverse_gamma: inv_gamma must be above 0, got 0"),
        (lambda: schedules.switched(0.9, 2, at=1), "switched: then must be between 0 and 1, got 2"),
        (lambda: schedules.cosine(0.9, steps=0), "cosine: steps must be at least 1, got 0"),
        (lambda: schedules.half_life(-1), "half_life: steps must be above 0, got -1"),
        (lambda: schedules.half_life(9, rampup=0), "half_life: rampup must be above 0, got 0"),
        (
            lambda: schedules.power_function(0.3),
            "power_function: sigma_rel must be above 0 and below 0.2886, got 0.3",
        ),
        (
            lambda: schedules.power_function(),
            "power_function: sigma_rel or gamma must be given, and not both, got None and None",
        ),
        (lambda: schedules.debiased(1), "debiased: decay must be at least 0 and below 1, got 1"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message
