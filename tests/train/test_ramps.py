"""The ramps' values at points worked out by hand."""

import math

import pytest

from mtkernels.train.ramps import cosine_rampdown, linear_rampup, sigmoid_rampdown, sigmoid_rampup


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


def test_sigmoid_rampdown():
    assert [sigmoid_rampdown(step, 100, 20) for step in (0, 79, 80)] == [1, 1, 1]
    assert sigmoid_rampdown(90, 100, 20) == pytest.approx(math.exp(-12.5 / 4))
    assert sigmoid_rampdown(100, 100, 20) == pytest.approx(math.exp(-12.5))
    assert sigmoid_rampdown(100, 100, 0) == 1
