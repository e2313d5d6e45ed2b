"""What 10,000 steps cost in precision, against float64: each dtype and rounding, on a constant and on a random walk.

`python tests/test_ema_precision.py` prints the table.
"""

import math

import pytest
import torch

import mtkernels
from mtkernels.backends import reference

STEPS, DECAY = 10_000, 0.999
KINDS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "bfloat16 stochastic": (torch.bfloat16, "stochastic"),
    "float16 stochastic": (torch.float16, "stochastic"),
    "bfloat16 + low": (torch.bfloat16, "low"),
    "float16 + low": (torch.float16, "low"),
}


def _averages(kinds, first, students):
    """The averages of all kinds, and in float64, after following the students; low parts included."""
    exact = first.double()
    teachers = {kind: first.to(KINDS[kind][0]) for kind in kinds}
    lows = {kind: torch.zeros(first.shape, dtype=torch.int16) for kind in kinds if KINDS[kind][1] == "low"}
    for step, student in enumerate(students, 1):
        mtkernels.ema_update([exact], [student.double()], DECAY)
        for kind, teacher in teachers.items():
            how = {"low": [lows[kind]]} if kind in lows else {}
            if KINDS[kind][1] == "stochastic":
                how = {"rounding": "stochastic", "step": step, "seed": 1}
            mtkernels.ema_update([teacher], [student], DECAY, **how)
    return exact, {k: reference.join(t, lows[k]) if k in lows else t.float() for k, t in teachers.items()}


def constant(kinds=KINDS, count=256):
    """The average of the constant 1 from 0: 1 - 0.999^10000 = 0.99995."""
    return _averages(kinds, torch.zeros(count), (torch.ones(count) for _ in range(STEPS)))


def random_walk(kinds=KINDS, count=256):
    """A student that starts at randn and moves by 0.001 * randn a step, as weights under a small learning rate."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(count, generator=generator).half().bfloat16().float()

    def students():
        student = first.clone()
        for _ in range(STEPS):
            yield student.add_(torch.randn(count, generator=generator), alpha=1e-3)

    return _averages(kinds, first, students())


def relative_error(average, exact):
    """Root mean square of the error, over that of the average."""
    return ((average.double() - exact).square().mean() / exact.square().mean()).sqrt().item()


@pytest.mark.parametrize(("kind", "stops_at"), [("bfloat16", 0.25), ("float16", 0.756)])
def test_an_average_to_nearest_stalls(kind, stops_at):
    """It stops where a step, 0.001 of what is left, is half a unit in the last place."""
    exact, averages = constant([kind])
    average = averages[kind].unique()
    assert len(average) == 1 and round(average.item(), 3) == stops_at, (
        f"{kind} stopped at {average.tolist()} instead of {stops_at}; float64 is at {exact[0]:.5f}"
    )


@pytest.mark.parametrize(
    ("kind", "within"), [("float32", 5e-6), ("bfloat16 + low", 5e-6), ("float16 + low", 2e-6)]
)
def test_a_constant_is_reached(kind, within):
    exact, averages = constant([kind])
    error = (averages[kind].double() - exact).abs().max().item()
    assert error < within, f"{kind}: {error:.2g} from float64's {exact[0]:.5f}, more than {within}"


@pytest.mark.parametrize(("kind", "noise"), [("bfloat16 stochastic", 2e-3), ("float16 stochastic", 1e-3)])
def test_a_constant_is_reached_on_average(kind, noise):
    exact, averages = constant([kind], count=1024)
    error = averages[kind].double() - exact
    mean, rms = error.mean().item(), error.square().mean().sqrt().item()
    assert abs(mean) < 5 * rms / math.sqrt(1024) + 1e-4 and rms < noise, (
        f"{kind}: mean {mean:.2g}, rms {rms:.2g}"
    )


def test_a_random_walk():
    exact, averages = random_walk()
    errors = {kind: relative_error(average, exact) for kind, average in averages.items()}
    text = ", ".join(f"{kind} {error:.2g}" for kind, error in errors.items())
    assert errors["float32"] < 2e-6, text
    assert errors["bfloat16 + low"] == errors["float32"], text
    assert errors["float16 + low"] < 3e-6, text
    for half in ("bfloat16", "float16"):
        assert errors[f"{half} + low"] < errors[f"{half} stochastic"] < errors[half], text
    assert errors["bfloat16 stochastic"] < 0.02 and errors["float16 stochastic"] < 0.006, text
    assert errors["bfloat16"] > 0.03 and errors["float16"] > 0.01, text


def main():
    rows = {kind: [] for kind in KINDS}
    for exact, averages in (constant(), random_walk()):
        for kind, average in averages.items():
            rows[kind] += [average.double().mean().item(), relative_error(average, exact)]
    print("| average | constant 1 from 0: mean | error | random walk: error |\n|---|---|---|---|")
    for kind, (mean, error, _, walk) in rows.items():
        print(f"| {kind} | {mean:.5f} | {error:.2g} | {walk:.2g} |")


if __name__ == "__main__":
    main()
