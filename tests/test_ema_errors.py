"""What ema_update's options and several averages get where they are wrong: a sentence, and nothing is written."""

import numpy as np
import pytest
import torch
from ema_helpers import assert_refused
from torch import nn

import mtkernels
from mtkernels import schedules

RUNNING = schedules.running_mean(0.9)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape or (4,), dtype=dtype)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape or (4,), dtype=dtype)


def counter(value=1):
    return torch.tensor(value)


def lone(**options):
    """One pair of floats under these options."""
    return lambda: (([ones()], [zeros()], 0.9), options)


def lone_half(**options):
    return lambda: (([ones(dtype=torch.bfloat16)], [zeros()], 0.9), options)


def several(*teachers, decay=(0.9, 0.8), **options):
    return lambda: (([list(teacher()) for teacher in teachers], [zeros(), zeros()], list(decay)), options)


def two():
    return ones(), ones()


class NoNumber:
    kernel = "no numbers"


NUMBER = "be a number, a torch.Tensor or a schedule"
SKIP = {"skip_nonfinite": True}
COUNTER = "be an int or a 0-d int64 tensor"
CASES = {
    # ---- the tensors
    "meta teacher": (
        lambda: (([torch.ones(4, device="meta")], [zeros()], 0.9), {}),
        TypeError,
        "teacher[0] must be a dense tensor in memory, got layout torch.strided, dtype torch.float32 on meta",
    ),
    "layout of a low-order dim": (
        lambda: (([torch.ones(4, 4).t()], [torch.zeros(4, 4)], 0.9), {}),
        ValueError,
        "student[0] must have the memory format of its teacher, strides [1, 4], got [4, 1]",
    ),
    "gaps on one side": (
        lambda: (([torch.ones(4, 8)[:, :4]], [torch.zeros(4, 4)], 0.9), {}),
        ValueError,
        "student[0] must have the memory format of its teacher, strides [8, 1], got [4, 1]",
    ),
    "rows over each other": (
        lambda: (
            (
                [torch.ones(8).as_strided((3, 4), (2, 1))],
                [torch.ones(8).as_strided((3, 4), (2, 1))],
                0.9,
            ),
            {},
        ),
        ValueError,
        "teacher[0] must fill its memory without overlaps, got strides [2, 1]",
    ),
    "shape of the second average": (
        several(two, lambda: (ones(), ones(5))),
        ValueError,
        "teacher[1][1] must have the shape of its student [4], got [5]",
    ),
    "dtype of the second average": (
        several(two, lambda: (ones(), ones().double())),
        TypeError,
        "teacher[1][1] must have the dtype of the first average's (torch.float32), got torch.float64",
    ),
    "length of the second average": (
        several(two, lambda: (ones(),)),
        ValueError,
        "teacher[1] must have as many tensors as student (2), got 1",
    ),
    # ---- low
    "low of int32": (
        lone_half(low=[zeros(dtype=torch.int32)]),
        TypeError,
        "low[0] must be int16, got torch.int32",
    ),
    "low of another shape": (
        lone_half(low=[zeros(5, dtype=torch.int16)]),
        ValueError,
        "low[0] must have the shape, memory format and device of its teacher ([4], strides [1], cpu), "
        "got [5], strides [1], cpu",
    ),
    "low with gaps": (
        lone_half(low=[zeros(8, dtype=torch.int16)[::2]]),
        ValueError,
        "low[0] must have the shape, memory format and device of its teacher ([4], strides [1], cpu), "
        "got [4], strides [2], cpu",
    ),
    "low of a float32 teacher": (
        lone(low=[zeros(dtype=torch.int16)]),
        TypeError,
        "low[0] must be None beside a teacher that is neither bfloat16 nor float16, "
        "got a low-order part of torch.float32",
    ),
    "low of no tensor": (lone_half(low=[3]), TypeError, "low[0] must be a torch.Tensor, got int"),
    "low a tensor": (
        lone_half(low=zeros(4, dtype=torch.int16)),
        TypeError,
        "low must be a mapping or a list of tensors, got Tensor",
    ),
    "low of several, not by average": (
        several(two, two, low={}),
        TypeError,
        "low must be a mapping or a list of tensors, 2 of them in a list, got dict",
    ),
    "low too short": (
        lone_half(low=[]),
        ValueError,
        "low must have one part, or None, for each of 1 teacher tensors, got 0",
    ),
    # ---- decay
    "no decay": (
        lambda: (([], [zeros()], []), {}),
        ValueError,
        "decay must be one, or a list of 1 to 8, got 0",
    ),
    "nine decays": (
        lambda: (([two() for _ in range(9)], two(), [0.9] * 9), {}),
        ValueError,
        "decay must be one, or a list of 1 to 8, got 9",
    ),
    "fewer teachers than decays": (
        several(two, decay=(0.9, 0.8)),
        ValueError,
        "teacher must be a list of one teacher for each of 2 decays, got 1",
    ),
    "a module for teachers": (
        lambda: ((nn.Linear(1, 1), nn.Linear(1, 1), [0.9]), {}),
        ValueError,
        "teacher must be a list of one teacher for each of 1 decays, got Linear",
    ),
    "function without step": (
        lambda: (([ones()], [zeros()], lambda step: 0.9), {}),
        TypeError,
        "step must be an int where decay is a function, got NoneType",
    ),
    "function with a step in memory": (
        several(two, two, decay=(0.9, lambda step: 0.9), step=counter()),
        TypeError,
        "step must be an int where decay is a function, got Tensor",
    ),
    "function at step 0": (
        lambda: (([ones()], [zeros()], lambda step: 1 / step), {"step": 0}),
        ValueError,
        "step must be at least 1 where decay is a function, got 0",
    ),
    "function of too large a value": (
        lambda: (([ones()], [zeros()], lambda step: 1.0 + step), {"step": 1}),
        ValueError,
        "decay must be between 0 and 1, got 2.0",
    ),
    "function of no number": (
        lambda: (([ones()], [zeros()], lambda step: "0.9"), {"step": 1}),
        TypeError,
        f"decay must {NUMBER}, got str",
    ),
    "second decay": (several(two, two, decay=(0.9, 1.5)), ValueError, "decay[1] must be between 0 and 1, got 1.5"),
    "second decay NaN": (
        several(two, two, decay=(0.9, torch.tensor(torch.nan))),
        ValueError,
        "decay[1] must be between 0 and 1, got nan",
    ),
    "second decay of no kind": (
        several(two, two, decay=(0.9, None)),
        TypeError,
        f"decay[1] must {NUMBER}, got NoneType",
    ),
    "decay with a kernel": (
        lambda: (([ones()], [zeros()], NoNumber()), {"step": 1}),
        TypeError,
        f"decay must {NUMBER}, got NoNumber",
    ),
    "schedule without step": (
        lambda: (([ones()], [zeros()], RUNNING), {}),
        ValueError,
        "step must be given where decay is a schedule, got None",
    ),
    # ---- step, seed, rounding
    "step 0": (lone(step=0), ValueError, "step must be at least 1 and below 2^63, got 0"),
    "step False": (lone(step=False), ValueError, "step must be at least 1 and below 2^63, got 0"),
    "step negative": (lone(step=-3), ValueError, "step must be at least 1 and below 2^63, got -3"),
    "step too large": (lone(step=2**63), ValueError, f"step must be at least 1 and below 2^63, got {2**63}"),
    "step float": (lone(step=1.0), TypeError, f"step must {COUNTER}, got float"),
    "step str": (lone(step="1"), TypeError, f"step must {COUNTER}, got str"),
    "step of int32": (lone(step=counter().int()), TypeError, "step must be int64, got torch.int32"),
    "step of floats": (lone(step=torch.tensor(1.0)), TypeError, "step must be int64, got torch.float32"),
    "step of two": (
        lone(step=torch.ones(2, dtype=torch.int64)),
        ValueError,
        "step must hold one number, got shape [2], strides [1]",
    ),
    "step on meta": (
        lone(step=torch.ones((), dtype=torch.int64, device="meta")),
        TypeError,
        "step must be a dense tensor in memory, got layout torch.strided, dtype torch.int64 on meta",
    ),
    "stochastic without step": (
        lone_half(rounding="stochastic"),
        ValueError,
        "step must be given where rounding is 'stochastic', got None",
    ),
    "rounding": (
        lone(rounding="up"),
        ValueError,
        "rounding must be 'nearest' or 'stochastic', got 'up'",
    ),
    "seed negative": (
        lone_half(rounding="stochastic", step=1, seed=-1),
        ValueError,
        "seed must be at least 0 and below 2^63, got -1",
    ),
    "seed too large": (
        lone_half(rounding="stochastic", step=1, seed=2**63),
        ValueError,
        f"seed must be at least 0 and below 2^63, got {2**63}",
    ),
    "seed float": (
        lone_half(rounding="stochastic", step=1, seed=1.5),
        TypeError,
        "seed must be an int, got float",
    ),
    # ---- found_inf, drift
    "found_inf of float64": (
        lone(found_inf=torch.zeros((), dtype=torch.float64)),
        TypeError,
        "found_inf must be float32, got torch.float64",
    ),
    "found_inf of two": (
        lone(found_inf=zeros(2)),
        ValueError,
        "found_inf must hold one number, got shape [2], strides [1]",
    ),
    "found_inf of no kind": (lone(found_inf=0.0), TypeError, "found_inf must be a torch.Tensor, got float"),
    "found_inf of no kind beside skip_nonfinite": (
        lone(found_inf=False, skip_nonfinite=True),
        TypeError,
        "found_inf must be a float32 tensor, got bool",
    ),
    "found_inf of two beside skip_nonfinite": (
        lone(found_inf=zeros(2), skip_nonfinite=True),
        ValueError,
        "found_inf must hold one number, got shape [2]",
    ),
    "student beside skip_nonfinite": (
        lambda: (({"a": ones(), "b": ones()}, {"a": zeros(), "b": torch.zeros(4).to_sparse()}, 0.9), SKIP),
        TypeError,
        "student[1] ('b') must be a dense tensor in memory, "
        "got layout torch.sparse_coo, dtype torch.float32 on cpu",
    ),
    "no tensor beside skip_nonfinite": (
        lambda: (([ones()], [3], 0.9), SKIP),
        TypeError,
        "student[0] must be a torch.Tensor, got int",
    ),
    "student beside skip_nonfinite on another device": (
        lambda: (([ones(), ones()], [zeros(), torch.zeros(4, device="meta")], 0.9), SKIP),
        TypeError,
        "student[1] must be a dense tensor in memory, got layout torch.strided, dtype torch.float32 on meta",
    ),
    "no students beside skip_nonfinite": (
        lambda: (([ones()], [], 0.9), SKIP),
        ValueError,
        "student must have as many tensors as teacher (1), got 0",
    ),
    "drift of float32": (lone(drift=zeros(1)), TypeError, "drift must be float64, got torch.float32"),
    "drift of two for one": (
        lone(drift=zeros(2).double()),
        ValueError,
        "drift must hold one number, got shape [2], strides [1]",
    ),
    "drift of one for two": (
        several(two, two, drift=zeros(1).double()),
        ValueError,
        "drift must be a vector of 2, contiguous, got shape [1], strides [1]",
    ),
    "drift expanded": (
        several(two, two, drift=zeros(1).double().expand(2)),
        ValueError,
        "drift must be a vector of 2, contiguous, got shape [2], strides [0]",
    ),
    # ---- lists
    "a set": (
        lambda: (([ones()], {zeros()}, 0.9), {}),
        TypeError,
        "student must be a module, a mapping or a sequence of tensors, as teacher is, got set",
    ),
    "a generator beside a module": (
        lambda: ((nn.Linear(1, 1), nn.Linear(1, 1).parameters(), 0.9), {}),
        TypeError,
        "teacher must be a module, a mapping or a sequence of tensors, as student is, got Linear",
    ),
    # ---- include, exclude
    "nothing included": (
        lambda: (({"a": ones()}, {"a": zeros()}, 0.9), {"include": "a*", "exclude": "a"}),
        ValueError,
        "include and exclude must leave at least one tensor of 1, got include='a*', exclude='a'",
    ),
    "a pattern of no name": (
        lambda: (({"a": ones()}, {"a": zeros()}, 0.9), {"include": ["a", "b*"]}),
        ValueError,
        "include must match at least one tensor, got 'b*'",
    ),
    "a pattern of no name to exclude": (
        lambda: ((nn.Linear(1, 1), nn.Linear(1, 1), 0.9), {"exclude": "bakbone.*"}),
        ValueError,
        "exclude must match at least one tensor, got 'bakbone.*'",
    ),
    "all excluded": (
        lambda: (({"a": ones()}, {"a": zeros()}, 0.9), {"exclude": ["*"]}),
        ValueError,
        "include and exclude must leave at least one tensor of 1, got include=None, exclude=['*']",
    ),
    "pattern of no kind": (
        lambda: (({"a": ones()}, {"a": zeros()}, 0.9), {"include": ["a", 3]}),
        TypeError,
        "include must be name patterns (such as 'head.*') or a function of a name, got int",
    ),
    "patterns of no kind": (
        lambda: (({"a": ones()}, {"a": zeros()}, 0.9), {"exclude": 3}),
        TypeError,
        "exclude must be name patterns (such as 'head.*') or a function of a name, got int",
    ),
    "include without names": (
        lone(include="a"),
        ValueError,
        "include must be None where teacher is a sequence (it has no names), got 'a'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused_and_nothing_written(case):
    assert_refused(*CASES[case])


def test_integers_of_numpy_and_bools_are_steps():
    for step in (np.int64(3), np.uint8(3), True):
        teacher = [zeros()]
        mtkernels.ema_update(teacher, [ones()], schedules.running_mean(0.9), step=step)
        assert torch.allclose(teacher[0], torch.full((4,), 1 / (int(step) + 1)))
