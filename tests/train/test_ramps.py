"""The schedules' values at points worked out by hand."""

from dataclasses import replace

import pytest

from mtkernels.train.config import Config
from mtkernels.train.ramps import cosine_rampdown, learning_rate, linear_rampup, sigmoid_rampup


@pytest.mark.parametrize(
    ("step", "length", "value"),
    [(0, 5, 0.0067379), (2.5, 5, 0.2865048), (5, 5, 1), (9, 5, 1), (-1, 5, 0.0067379), (0, 0, 1), (3, 0, 1)],
)
def test_sigmoid_rampup(step, length, value):
    assert sigmoid_rampup(step, length) == pytest.approx(value, abs=5e-8)


def test_linear_rampup():
    assert [linear_rampup(step, 4) for step in (0, 1, 4, 7)] == [0, 0.25, 1, 1]
    assert linear_rampup(0, 0) == 1


def test_cosine_rampdown():
    assert [cosine_rampdown(step, 4) for step in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    with pytest.raises(ValueError, match=r"step must be between 0 and length 4, got 5"):
        cosine_rampdown(5, 4)


def test_learning_rate_rises_then_falls():
    config = Config(steps=100, lr=0.4, initial_lr=0.1, lr_rampup=10, lr_rampdown=100)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(5, config) == pytest.approx(0.25 * cosine_rampdown(5, 100))
    assert learning_rate(50, config) == pytest.approx(0.2)
    assert learning_rate(99, config) < 1e-3
    assert learning_rate(50, replace(config, lr_rampdown=None)) == pytest.approx(0.2)  # None: at the end
    assert learning_rate(99, replace(config, lr_rampdown=0)) == pytest.approx(0.4)
