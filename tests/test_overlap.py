"""Teachers that autograd would have to record, and tensors that share memory: refused, on known tables too."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ema_helpers import assert_refused
from torch import nn

import mtkernels

GRAD = "not require grad where autograd records (use requires_grad_(False), or torch.no_grad())"
OWN = "must have memory of its own, got"


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape or (4,), dtype=dtype)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape or (4,), dtype=dtype)


def several(*teachers, decay=(0.9, 0.8), **options):
    return lambda: (([list(teacher()) for teacher in teachers], [zeros(), zeros()], list(decay)), options)


def two():
    return ones(), ones()


def inference():
    with torch.inference_mode():
        return ones()


def shared(make):
    """make(tensor of 16) gives teachers, students, and options, which are views of it."""

    def case():
        teacher, student, decay, *options = make(torch.ones(16), zeros())
        return (teacher, student, decay), options[0] if options else {}

    return case


CASES = {
    "leaf that requires grad": (
        lambda: (([ones(), ones().requires_grad_()], two(), 0.9), {}),
        ValueError,
        f"teacher[1] must {GRAD}, got requires_grad=True",
    ),
    "result that requires grad": (
        lambda: (([ones().requires_grad_() * 2], [zeros()], 0.9), {}),
        ValueError,
        f"teacher[0] must {GRAD}, got requires_grad=True",
    ),
    "a model that is trained": (
        lambda: ((nn.Linear(2, 2), nn.Linear(2, 2), 0.9), {}),
        ValueError,
        f"teacher[0] ('weight') must {GRAD}, got requires_grad=True",
    ),
    "second average requires grad": (
        several(two, lambda: (ones(), ones().requires_grad_())),
        ValueError,
        f"teacher[1][1] must {GRAD}, got requires_grad=True",
    ),
    "inference tensor": (
        lambda: (([inference()], [zeros()], 0.9), {}),
        ValueError,
        "teacher[0] must be no inference tensor outside torch.inference_mode(), got is_inference()=True",
    ),
    "its student, shifted": (
        shared(lambda memory, other: ([memory[:8]], [memory[4:12]], 0.9)),
        ValueError,
        f"teacher[0] {OWN} that of its student",
    ),
    "another student": (
        shared(lambda memory, other: ([other, memory[4:8]], [memory[2:6], zeros()], 0.9)),
        ValueError,
        f"teacher[1] {OWN} that of student[0]",
    ),
    "another teacher": (
        shared(lambda memory, other: ([memory[2:6], memory[:4]], [other, other], 0.9)),
        ValueError,
        f"teacher[1] {OWN} that of an earlier teacher in another pair",
    ),
    "inside another teacher's reach": (
        shared(
            lambda memory, other: ([memory, memory[1:2], memory[4:8]], [ones(16), other[:1], zeros()], 0.9)
        ),
        ValueError,
        f"teacher[1] {OWN} that of an earlier teacher in another pair",
    ),
    "between the runs of another": (
        lambda: (lambda m: (([m[:, :2], m[:, 1:3]], [torch.zeros(3, 4)[:, :2]] * 2, 0.9), {}))(
            torch.ones(3, 4)
        ),
        ValueError,
        f"teacher[1] {OWN} that of an earlier teacher in another pair",
    ),
    "another average": (
        shared(lambda memory, other: ([[memory[:4]], [memory[3:7]]], [other], [0.9, 0.8])),
        ValueError,
        f"teacher[1][0] {OWN} that of another average",
    ),
    "one tensor for two averages": (
        shared(lambda memory, other: ([[memory]] * 2, [zeros(16)], [0.9, 0.8])),
        ValueError,
        f"teacher[1][0] {OWN} that of another average",
    ),
    "one pair with two low-order parts": (
        lambda: (lambda t, s: (([t, t], [s, s], 0.9), {"low": [zeros(dtype=torch.int16) for _ in "ab"]}))(
            ones(dtype=torch.bfloat16), zeros()
        ),
        ValueError,
        f"teacher[1] {OWN} that of an earlier teacher in another pair",
    ),
    "low that is its teacher": (
        lambda: (lambda t: (([t], [zeros()], 0.9), {"low": [t.view(torch.int16)]}))(
            ones(dtype=torch.bfloat16)
        ),
        ValueError,
        f"low[0] {OWN} that of its teacher",
    ),
    "low twice": (
        lambda: (lambda low: (([t.bfloat16() for t in two()], two(), 0.9), {"low": [low, low]}))(
            zeros(dtype=torch.int16)
        ),
        ValueError,
        f"low[1] {OWN} that of low[0]",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_and_nothing_written(case):
    assert_refused(*CASES[case])


def test_grad_is_asked_for_again_where_the_table_is_known():
    """First seen under no_grad, then where autograd records; first without requires_grad, then with it."""
    teacher, student = [ones(), ones()], [zeros(), zeros()]
    teacher[1].requires_grad_()
    with torch.no_grad():
        mtkernels.ema_update(teacher, student, 0.5)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"teacher\[1\] must not require grad"):
            mtkernels.ema_update(teacher, student, 0.5)
    module, source = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    mtkernels.ema_update(module, source, 0.5)
    module.requires_grad_()
    with pytest.raises(ValueError, match=r"teacher\[0\] \('weight'\) must not require grad"):
        mtkernels.ema_update(module, source, 0.5)
    with torch.no_grad():
        mtkernels.ema_update(module, source, 0.5)
    assert module.weight.requires_grad and module.weight.is_leaf


def test_a_student_of_two_teachers_and_views_of_one_buffer_are_taken():
    student, buffer = ones(), zeros(8)
    mtkernels.ema_update([buffer[:4], buffer[4:]], [student, student], 0.5)
    assert torch.equal(buffer, torch.full((8,), 0.5))


def test_threads_may_update_different_models_at_once():
    """What is known of tables is shared between them."""

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(100):
            sizes = torch.randint(1, 50, (5,), generator=generator).tolist()
            teacher, student = [zeros(size) for size in sizes], [ones(size) for size in sizes]
            for _ in range(3):
                mtkernels.ema_update([*teacher, teacher[0]], [*student, student[0]], 0.5)
            assert all((tensor == 0.875).all() for tensor in teacher)
            with pytest.raises(ValueError, match="must have memory of its own"):
                mtkernels.ema_update(
                    [*teacher, teacher[0]], [*student, student[1][:0].new_ones(sizes[0])], 0.5
                )
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
