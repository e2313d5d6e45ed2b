"""ema_update over modules, mappings and sequences: which tensors, in which way."""

import copy
import os
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import mtkernels
from mtkernels._models import state_names
from mtkernels.ops.matching import named_tensors


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))


def frozen(module):
    """A teacher: ema_update refuses one that requires grad where autograd records."""
    return module.requires_grad_(False)


@pytest.fixture
def pair():
    """A teacher and a student that differ in every parameter and buffer."""
    student = network()
    teacher = frozen(copy.deepcopy(student))
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) * 10 if tensor.is_floating_point() else torch.tensor(7))
    return teacher, student


@pytest.mark.parametrize("buffers", ["average", "copy", "keep"])
def test_modules(pair, buffers):
    teacher, student = pair
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    source = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    mtkernels.ema_update(teacher, student, 0.75, buffers=buffers)
    parameters = dict(teacher.named_parameters())
    for name, tensor in teacher.state_dict().items():
        average = 0.75 * before[name] + 0.25 * source[name]
        if not tensor.is_floating_point():
            expected = source[name]
        elif name in parameters or buffers == "average":
            expected = average
        else:
            expected = source[name] if buffers == "copy" else before[name]
        torch.testing.assert_close(tensor, expected)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, source[name])


def test_mappings_and_sequences(pair):
    teacher, student = pair
    expected = copy.deepcopy(teacher)
    mtkernels.ema_update(expected, student, 0.75)
    other = copy.deepcopy(teacher)
    mtkernels.ema_update(teacher.state_dict(), dict(reversed(student.state_dict().items())), 0.75)
    mtkernels.ema_update(tuple(other.state_dict().values()), list(student.state_dict().values()), 0.75)
    for module in (teacher, other):
        for ours, theirs in zip(module.state_dict().values(), expected.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)


def test_tied_weights_are_averaged_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.outside = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.outside.weight = self.inside.weight

    teacher, student = frozen(Tied()), Tied()
    expected = 0.5 * teacher.inside.weight.detach() + 0.5 * student.inside.weight.detach()
    states = copy.deepcopy(teacher), student
    mtkernels.ema_update(teacher, student, 0.5)
    mtkernels.ema_update(states[0].state_dict(), states[1].state_dict(), 0.5)  # lists the weight twice
    torch.testing.assert_close(teacher.inside.weight.detach(), expected)
    torch.testing.assert_close(states[0].inside.weight.detach(), expected)


def test_a_compiled_student_matches_its_plain_teacher(pair):
    teacher, student = pair
    expected = copy.deepcopy(teacher)
    mtkernels.ema_update(expected, student, 0.75)
    inner = copy.deepcopy(student)
    inner[0] = torch.compile(inner[0])
    mtkernels.ema_update(copy_of := copy.deepcopy(teacher), inner, 0.75)
    mtkernels.ema_update(teacher, torch.compile(student), 0.75)
    for module in (teacher, copy_of):
        for ours, theirs in zip(module.state_dict().values(), expected.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_data_parallel_student_matches_its_plain_teacher(pair):
    teacher, student = pair
    expected = copy.deepcopy(teacher)
    mtkernels.ema_update(expected, student, 0.75)
    mtkernels.ema_update(teacher, nn.DataParallel(student), 0.75)
    assert torch.equal(teacher[0].weight, expected[0].weight)


def test_a_data_parallel_model_that_has_a_part_named_module():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    teacher, student = frozen(Holder()), Holder()
    expected = 0.5 * teacher.module.weight.detach() + 0.5 * student.module.weight.detach()
    mtkernels.ema_update(teacher, nn.DataParallel(student), 0.5)
    torch.testing.assert_close(teacher.module.weight.detach(), expected)


def test_a_sequence_may_make_its_tensors_on_the_way():
    class Lazy(Sequence):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            if index >= 6:
                raise IndexError
            return torch.full((2**18,), float(index), dtype=torch.float64).float()

    teacher = [torch.zeros(2**18) for _ in range(6)]
    mtkernels.ema_update(teacher, Lazy(), 0.5)
    for index, tensor in enumerate(teacher):
        assert torch.equal(tensor, torch.full_like(tensor, index / 2))


def test_generators(pair):
    teacher, student = pair
    expected = copy.deepcopy(teacher)
    mtkernels.ema_update(list(expected.parameters()), list(student.parameters()), 0.75)
    several = [copy.deepcopy(teacher) for _ in range(2)]
    mtkernels.ema_update([t.parameters() for t in several], student.parameters(), [0.75, 0.75])
    compiled = copy.deepcopy(teacher)
    mtkernels.ema_update(teacher.parameters(), student.parameters(), 0.75)
    torch.compile(
        lambda: mtkernels.ema_update(compiled.parameters(), student.parameters(), 0.75),
        fullgraph=True,
        backend="eager",
    )()
    for module in (teacher, compiled, *several):
        for ours, theirs in zip(module.parameters(), expected.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_names_that_look_like_a_wrapper():
    def look_alike():
        return nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a_orig_mod", "a", "_orig_modest")})

    student, teacher = look_alike(), frozen(look_alike())
    names = [name for name, _ in student.named_parameters()]
    assert list(named_tensors(student)[0]) == names
    assert list(state_names(student.state_dict())) == names
    student["a"] = torch.compile(student["a"])
    wrapped = torch.compile(student)
    assert set(named_tensors(wrapped)[0]) == set(names) == set(state_names(wrapped.state_dict()))
    expected = {name: tensor / 2 for name, tensor in named_tensors(student)[0].items()}
    before = {name: tensor / 2 for name, tensor in teacher.named_parameters()}
    mtkernels.ema_update(teacher, wrapped, 0.5)
    for name, tensor in teacher.named_parameters():
        torch.testing.assert_close(tensor, (before[name] + expected[name]).detach())


def test_patterns_and_wrappers_are_traced():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    teacher = frozen(copy.deepcopy(student))
    with torch.no_grad():
        for tensor in student.parameters():
            tensor.add_(1)
    expected = copy.deepcopy(teacher)
    bias = student[0].bias.detach() - 1
    options = {"include": ["0.*", "1.running_*"], "exclude": "*.bias", "buffers": "keep"}
    mtkernels.ema_update(expected, student, lambda step: 1 / (1 + step), step=3, **options)
    student[0] = torch.compile(student[0])

    def update():
        mtkernels.ema_update(teacher, student, lambda step: 1 / (1 + step), step=3, **options)

    torch.compile(update, fullgraph=True, backend="eager")()
    torch.testing.assert_close(teacher.state_dict(), expected.state_dict())
    assert not torch.equal(teacher[0].weight, student[0].weight)
    torch.testing.assert_close(teacher[0].bias, bias)


def test_decay_may_be_a_function_of_the_step():
    for step, decay in ((1, 0.5), (3, 0.25), (np.int64(3), 0.25)):
        teacher = [torch.zeros(4)]
        mtkernels.ema_update(teacher, [torch.ones(4)], lambda t: 1 / (1 + t), step=step)
        assert torch.equal(teacher[0], torch.full((4,), 1 - decay))
    teachers = [[torch.zeros(4)], [torch.zeros(4)]]
    mtkernels.ema_update(teachers, [torch.ones(4)], [lambda t: 1 / (1 + t), 0.75], step=3)
    assert [t[0][0].item() for t in teachers] == [0.75, 0.25]


def test_decay_may_be_any_real_number():
    for decay in (np.float32(0.5), np.float64(0.5), Fraction(1, 2), True):
        teacher = [torch.zeros(4)]
        mtkernels.ema_update(teacher, [torch.ones(4)], decay)
        assert torch.equal(teacher[0], torch.full((4,), 1 - float(decay)))


def test_nothing_to_average():
    mtkernels.ema_update([], [], 0.9)
    mtkernels.ema_update({}, {}, 0.9)
    mtkernels.ema_update(nn.ReLU(), nn.ReLU(), 0.9)


def test_pointers_are_read_again_at_each_call():
    """`.data = ` and load_state_dict(assign=True) move a parameter without changing its identity."""
    teacher, student = frozen(nn.Linear(2, 2)), nn.Linear(2, 2)
    for _ in range(3):
        student.weight.data = torch.randn(2, 2)
        expected = 0.5 * teacher.weight.detach() + 0.5 * student.weight.detach()
        mtkernels.ema_update(teacher, student, 0.5)
        torch.testing.assert_close(teacher.weight.detach(), expected)


def test_a_long_run_equals_the_closed_form():
    """t steps from 0 toward 1: 1 - decay^t."""
    teacher, student = [torch.zeros(100, dtype=torch.float64)], [torch.ones(100, dtype=torch.float64)]
    for step in range(1, 1001):
        mtkernels.ema_update(teacher, student, 0.995)
        if step % 100 == 0:
            torch.testing.assert_close(teacher[0], torch.full_like(teacher[0], 1 - 0.995**step))


@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 14e9, reason="takes 9 GB of memory"
)
def test_more_elements_than_an_int32_counts():
    """2^31 + 1 fp16 elements."""
    count = 2**31 + 1
    teacher, student = torch.zeros(count, dtype=torch.float16), torch.ones(count, dtype=torch.float16)
    mtkernels.ema_update([teacher], [student], 0.75)
    assert teacher[0] == teacher[-1] == teacher[2**31] == teacher[count // 2] == 0.25
    assert torch.equal(teacher[-4096:], torch.full((4096,), 0.25, dtype=torch.float16))
