"""The registered multi-tensor ops with all their options: opcheck, and torch.compile against eager, bit for bit."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mtkernels
from mtkernels import schedules

LIVE = [9.0, 0.0, 0.0, 0.0, 0.0]
RUNNING = [1.0, 0.99, 0.0, 0.0, 0.0]


def tensors(*dtypes):
    return [torch.randn(3, 5).to(dtype) for dtype in dtypes]


def test_opcheck_of_the_full_update():
    halves = (torch.bfloat16, torch.float32)
    teacher, student = tensors(*halves, *halves), tensors(*halves)
    low = [torch.zeros(3, 5, dtype=torch.int16), torch.zeros(0)]
    torch.library.opcheck(
        torch.ops.mtkernels.ema_update.full,
        (teacher, student, RUNNING + LIVE, [torch.tensor(0.9)], low * 2),
        {
            "step": torch.tensor(3),
            "found_inf": torch.zeros(()),
            "drift": torch.zeros(2, dtype=torch.float64),
            "every": 2,
            "start": 1,
            "advance": True,
        },
    )
    torch.library.opcheck(
        torch.ops.mtkernels.ema_update.full,
        (teacher[:2], student, RUNNING, [], []),
        {"number": 3, "stochastic": True, "seed": 5, "copied": 1},
    )


def test_opcheck_of_nonfinite_and_swap():
    torch.library.opcheck(
        torch.ops.mtkernels.nonfinite_, (torch.zeros(()), tensors(torch.float32, torch.float16))
    )
    torch.library.opcheck(torch.ops.mtkernels.swap_, (tensors(torch.float32), tensors(torch.float32)))


def test_in_place_ops_bump_version_counters():
    one, other, flag = torch.ones(3), torch.zeros(3), torch.zeros(())
    torch.ops.mtkernels.swap_([one], [other])
    torch.ops.mtkernels.nonfinite_(flag, [one])
    assert one._version > 0 and other._version > 0 and flag._version > 0


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 40), nn.BatchNorm1d(40), nn.Linear(40, 7, dtype=torch.bfloat16))


def update(teachers, student, state, **options):
    decay = [schedules.running_mean(0.9), 0.5, state["decay"]]
    mtkernels.ema_update(
        teachers,
        student,
        decay,
        step=state["step"],
        found_inf=state["found"],
        drift=state["drift"],
        **options,
    )
    state["step"].add_(1)
    return teachers[1][0].weight * 2


def fresh():
    teachers = [copy.deepcopy(network()).requires_grad_(False) for _ in range(3)]
    state = {
        "step": torch.tensor(1),
        "found": torch.zeros(()),
        "drift": torch.zeros(3, dtype=torch.float64),
        "decay": torch.tensor(0.25),
    }
    return teachers, state


@pytest.mark.parametrize(
    "options",
    [
        {"rounding": "stochastic", "seed": 7},
        {"skip_nonfinite": True, "buffers": "copy"},
        {"exclude": "1.*"},
        {"low": "make"},
    ],
    ids=lambda options: "-".join(options),
)
def test_a_compiled_update_has_the_bits_of_eager(options):
    compiled, student = torch.compile(update, fullgraph=True), network()
    (ours, our_state), (theirs, their_state) = fresh(), fresh()
    lows = [[{"2.weight": torch.zeros(7, 40, dtype=torch.int16)} for _ in ours] for _ in "ab"]
    for number in range(4):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn(parameter.shape).to(parameter.dtype))
        for state in (our_state, their_state):
            state["found"].fill_(number == 2)
        our_options, their_options = (
            {**options, **({"low": low} if "low" in options else {})} for low in lows
        )
        ours_doubled = compiled(ours, student, our_state, **our_options)
        theirs_doubled = update(theirs, student, their_state, **their_options)
        assert torch.equal(ours_doubled, theirs_doubled)
        for one, other in zip(ours, theirs, strict=True):
            for name, tensor in one.state_dict().items():
                assert torch.equal(tensor, other.state_dict()[name]), (number, name)
        assert all(torch.equal(our_state[name], their_state[name]) for name in our_state)
    assert our_state["drift"].all()
    if "low" in options:
        assert lows[0][0]["2.weight"].any()
        assert all(torch.equal(a["2.weight"], b["2.weight"]) for a, b in zip(*lows, strict=True))


def test_refusals_under_compile():
    teacher, student = [torch.zeros(3)], [torch.ones(3)]
    compiled = torch.compile(lambda **options: mtkernels.ema_update(teacher, student, 0.9, **options))
    for options, message in (
        ({"step": 0}, "step must be at least 1"),
        ({"rounding": "stochastic"}, "step must be given where rounding is 'stochastic'"),
        ({"drift": torch.zeros(2)}, "drift must be float64"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            compiled(**options)
    assert not teacher[0].any()


def test_fake_tensors_take_every_option():
    with FakeTensorMode():
        teacher, student = [torch.zeros(3)], [torch.ones(3)]
        mtkernels.ema_update(
            teacher,
            student,
            schedules.debiased(0.9),
            step=torch.tensor(1),
            drift=torch.zeros((), dtype=torch.float64),
            skip_nonfinite=True,
        )
