"""What the native module refuses where it is called past the public functions, as registered ops and WeightEMA do."""

from types import SimpleNamespace

import pytest
import torch

from mtkernels import _C, schedules
from mtkernels.ops.ema import EmaOptions

RUNNING = schedules.running_mean(0.9)
GRAD = "not require grad where autograd records (use requires_grad_(False), or torch.no_grad())"
OWN = "must have memory of its own, got"


def ones(*shape):
    return torch.ones(shape or (4,))


def zeros(*shape):
    return torch.zeros(shape or (4,))


def counter(value=1):
    return torch.tensor(value)


def direct(**options):
    return lambda: _C.ema_update([ones()], [zeros()], 0.9, options=EmaOptions(**options))


ADVANCE = "be a tensor where it advances, or every or start is given"
DIRECT = {
    "options of no kind": (lambda: _C.ema_update([ones()], [zeros()], 0.9, options={}), TypeError,
        "ema_update: options must be EmaOptions, got dict"),
    "options without low": (
        lambda: _C.ema_update([ones()], [zeros()], 0.9, options=SimpleNamespace(step=1)), TypeError,
        "ema_update: options must be EmaOptions, got types.SimpleNamespace"),
    "low of no kind": (direct(low=3), TypeError, "ema_update: low must be a list of tensors or None, got int"),
    "low too short": (direct(low=[None, None]), ValueError,
        "ema_update: low must have one part, or None, for each of teacher's tensors (1), got 2"),
    "every 0": (direct(step=counter(), every=0), ValueError,
        "ema_update: every must be at least 1 and below 2^63, got 0"),
    "every float": (direct(step=counter(), every=2.0), TypeError, "ema_update: every must be an int, got float"),
    "start negative": (direct(step=counter(), start=-1), ValueError,
        "ema_update: start must be at least 0 and below 2^63, got -1"),
    "stochastic no bool": (direct(step=1, stochastic=1), TypeError,
        "ema_update: stochastic must be a bool, got int"),
    "advance without step": (direct(advance=True), ValueError, f"ema_update: step must {ADVANCE}, got None"),
    "advance of a number": (direct(step=3, advance=True), ValueError, f"ema_update: step must {ADVANCE}, got 3"),
    "every of a number": (direct(step=3, every=2), ValueError, f"ema_update: step must {ADVANCE}, got 3"),
    "start without step": (direct(start=2), ValueError, f"ema_update: step must {ADVANCE}, got None"),
    "names too few": (lambda: _C.ema_update([ones()], [zeros(5)], 0.9, names=[]), TypeError,
        "ema_update: names must be None or a list of 1 names, got []"),
    "low of a copy": (
        lambda: _C.ema_update([ones().half()], [zeros()], 0.9, 1, options=EmaOptions(low=[zeros().short()])),
        ValueError,
        "ema_update: low[0] must be None beside a teacher that is copied, got a tensor"),
    "copied negative": (lambda: _C.ema_update([ones()], [zeros()], 0.9, -1), ValueError,
        "ema_update: copied must be between 0 and the number of pairs, 1, got -1"),
    "copied too many": (lambda: _C.ema_update([ones()], [zeros()], 0.9, 2), ValueError,
        "ema_update: copied must be between 0 and the number of pairs, 1, got 2"),
    "three teachers of one student": (lambda: _C.ema_update([ones()] * 3, [zeros()], [0.9, 0.8]), ValueError,
        "ema_update: teacher must have 2 tensors for each of student (1), got 3"),
    "plan of no averages": (lambda: _C.EmaPlan([ones()], [zeros()], 0), ValueError,
        "ema_update: averages must be between 1 and 8, got 0"),
    "decays of a plan": (lambda: _C.EmaPlan([ones()], [zeros()]).update([0.9, 0.8]), ValueError,
        "ema_update: decay must be one for each of 1 averages, got 2"),
    "plan that requires grad": (lambda: _C.EmaPlan([ones().requires_grad_()], [zeros()]), ValueError,
        f"ema_update: teacher[0] must {GRAD}, got requires_grad=True"),
    "schedule's step": (lambda: RUNNING("x"), TypeError, "schedule: step must be a number, got str"),
    "swap of dtypes": (lambda: _C.swap_([ones()], [zeros().double()]), TypeError,
        "swap_: teacher[0] must have the dtype of its student (torch.float64), got torch.float32"),
    "swap of one": (lambda: (lambda t: _C.swap_([t], [t]))(ones()), ValueError,
        f"swap_: teacher[0] {OWN} that of its student"),
    "swap with grad": (lambda: _C.swap_([ones()], [zeros().requires_grad_()]), ValueError,
        f"swap_: student[0] must {GRAD}, got requires_grad=True"),
    "flag of another dtype": (lambda: _C.nonfinite_(torch.zeros((), dtype=torch.float64), [ones()]), TypeError,
        "nonfinite_: found must be float32, got torch.float64"),
    "flag of two": (lambda: _C.nonfinite_(zeros(2), [ones()]), ValueError,
        "nonfinite_: found must hold one number, got shape [2], strides [1]"),
    "flag of no kind": (lambda: _C.nonfinite_(True, [ones()]), TypeError,
        "nonfinite_: found must be a torch.Tensor, got bool"),
    "nonfinite of no tensor": (lambda: _C.nonfinite_(zeros(1), [ones(), None]), TypeError,
        "nonfinite_: tensors[1] must be a torch.Tensor, got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("case", DIRECT)
def test_the_module_refuses(case):
    call, error, message = DIRECT[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
