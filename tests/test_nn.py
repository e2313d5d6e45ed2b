"""mtkernels.nn: options as attributes, that change, move, are copied and shown."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import mtkernels

MODULES = {
    "softmax_mse": mtkernels.nn.SoftmaxMSE,
    "softmax_kl": mtkernels.nn.SoftmaxKL,
    "softmax_reverse_kl": mtkernels.nn.SoftmaxReverseKL,
    "softmax_js": mtkernels.nn.SoftmaxJS,
    "softmax_cross_entropy": mtkernels.nn.SoftmaxCrossEntropy,
    "logit_mse": mtkernels.nn.LogitMSE,
    "mean_teacher_loss": mtkernels.nn.MeanTeacherLoss,
}
family = pytest.mark.parametrize("name", [name for name in MODULES if name != "mean_teacher_loss"])
everyone = pytest.mark.parametrize("name", MODULES)
LABELS = torch.tensor([1, -1, 0, 4])


def logits(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(4, 5, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2)]


def test_every_module_is_here():
    assert {module.__name__ for module in MODULES.values()} == set(mtkernels.nn.__all__)


@family
def test_modules_say_what_they_hold(name):
    module = MODULES[name](dim=1, reduction="sum")
    student, teacher = logits()
    weight = torch.rand(4)
    assert torch.equal(
        module(student, teacher, weight=weight),
        getattr(mtkernels, name)(student, teacher, dim=1, reduction="sum", weight=weight),
    )
    assert repr(nn.Sequential(module)).splitlines()[1].endswith("(dim=1, reduction='sum')")


@everyone
def test_every_option_is_an_attribute(name):
    module = MODULES[name]()
    assert module.extra_repr() == "" and not module.state_dict()
    for parameter in inspect.signature(getattr(mtkernels, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in ("weight", "second"):
            assert getattr(module, parameter.name) == parameter.default, parameter.name


def test_an_option_may_be_set_that_was_not_given():
    student, teacher = logits()
    module = mtkernels.nn.SoftmaxKL()
    module.threshold, module.student_temperature, module.reduction = 0.6, 0.5, "none"
    expected = {"threshold": 0.6, "student_temperature": 0.5, "reduction": "none"}
    assert torch.equal(module(student, teacher), mtkernels.softmax_kl(student, teacher, **expected))
    assert not torch.equal(
        module(student, teacher), mtkernels.nn.SoftmaxKL(reduction="none")(student, teacher)
    )
    assert module.extra_repr() == "reduction='none', student_temperature=0.5, threshold=0.6"
    module.threshold = None
    assert module.extra_repr() == "reduction='none', student_temperature=0.5"


@pytest.mark.parametrize(
    "first", [{}, {"consistency_weight": 1.0}, {"consistency_weight": torch.tensor(1.0)}], ids=str
)
def test_numbers_and_tensors_take_each_others_place(first):
    student, teacher = logits()
    module = mtkernels.nn.MeanTeacherLoss(**first)

    def weighs(weight) -> bool:
        expected = mtkernels.mean_teacher_loss(student, teacher, LABELS, consistency_weight=weight)
        return torch.equal(module(student, teacher, LABELS).total, expected.total)

    assert weighs(1.0)
    for weight in (3.0, torch.tensor(4.0), 5, torch.tensor(6.0), torch.tensor(7.0, dtype=torch.float64)):
        module.consistency_weight = weight
        assert weighs(float(weight))
        assert (
            module.extra_repr()
            == f"consistency_weight={'tensor[]' if isinstance(weight, torch.Tensor) else weight}"
        )
        assert ("consistency_weight" in dict(module.named_buffers())) == isinstance(weight, torch.Tensor)
    module.consistency_weight.fill_(8.0)
    assert weighs(8.0)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scalar_tensors_keep_their_dtype_when_a_module_is_cast(cast, dtype):
    """A loss takes no half-precision threshold or weight."""
    student, teacher = logits(torch.float16)
    threshold, weight = torch.tensor(0.3, dtype=dtype), torch.tensor(2.0, dtype=dtype)
    losses = mtkernels.nn.SoftmaxKL(threshold=threshold, center=torch.ones(5)), mtkernels.nn.MeanTeacherLoss()
    losses[1].consistency_weight = weight
    getattr(nn.ModuleList(losses), cast)()
    assert losses[0].threshold is threshold and losses[1].consistency_weight is weight  # still live
    assert losses[0].center.dtype == getattr(torch.ones(()), cast)().dtype
    assert torch.equal(losses[0](student, teacher), mtkernels.softmax_kl(student, teacher, threshold=0.3))
    expected = mtkernels.mean_teacher_loss(student, teacher, LABELS, consistency_weight=2.0)
    assert torch.equal(losses[1](student, teacher, LABELS).total, expected.total)


def test_a_module_takes_its_tensors_along():
    module = mtkernels.nn.SoftmaxKL(center=torch.ones(5), threshold=torch.tensor(0.5))
    assert "center=tensor[5], threshold=tensor[]" in repr(module)
    assert module.double().center.dtype == torch.float64
    module.to("meta", torch.bfloat16)
    assert module.center.is_meta and module.threshold.is_meta
    assert (module.center.dtype, module.threshold.dtype) == (torch.bfloat16, torch.float32)
    module.load_state_dict(module.state_dict())  # empty, whatever is a tensor


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
def test_copies_are_apart(copied):
    student, teacher = logits()
    module = mtkernels.nn.SoftmaxKL(center=torch.arange(5.0), teacher_temperature=0.5)
    module.threshold = torch.tensor(0.3)
    other = copied(module)
    assert repr(other) == repr(module)
    assert torch.equal(other(student, teacher), module(student, teacher))
    other.threshold, other.center = 0.9, None
    other.dim = 0
    assert module.extra_repr() == "teacher_temperature=0.5, center=tensor[5], threshold=tensor[]"
    assert other.extra_repr() == "dim=0, teacher_temperature=0.5, threshold=0.9"


def test_a_compiled_step_sees_what_changes():
    student, teacher = logits()
    module = mtkernels.nn.MeanTeacherLoss(logit_distance_cost=torch.tensor(0.0))
    step = torch.compile(lambda *sides: module(*sides, LABELS).total, fullgraph=True, backend="eager")
    for weight, cost in ((1.0, 0.0), (2.0, 1.0), (torch.tensor(3.0), 2.0)):
        module.consistency_weight = weight
        module.logit_distance_cost.fill_(cost)
        assert torch.equal(step(student, teacher), module(student, teacher, LABELS).total)


OPTIONS = "dim, reduction, student_temperature, teacher_temperature, center, threshold, two_sided, return_utilization"
OBJECTIVE = "dim, consistency, consistency_weight, logit_distance_cost, normalize, ignore_index"
ERRORS = {
    "typo": (
        lambda: mtkernels.nn.SoftmaxKL(temperatur=2.0),
        f"SoftmaxKL: temperatur must be one of its options ({OPTIONS}), got temperatur=2.0",
    ),
    "typo with a tensor": (
        lambda: mtkernels.nn.MeanTeacherLoss(weight=torch.ones(4)),
        f"MeanTeacherLoss: weight must be one of its options ({OBJECTIVE}), got weight=tensor[4]",
    ),
    "position": (
        lambda: mtkernels.nn.SoftmaxMSE(0.5, torch.ones(3)),
        f"SoftmaxMSE: options must be given by name ({OPTIONS}), got 0.5, tensor[3] by position",
    ),
    "of forward": (
        lambda: mtkernels.nn.SoftmaxJS(weight=torch.ones(4)),
        "SoftmaxJS: weight must be given to forward, got tensor[4] here",
    ),
    "of forward, set": (
        lambda: setattr(mtkernels.nn.MeanTeacherLoss(), "second", None),
        "MeanTeacherLoss: second must be given to forward, got None here",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_modules_refuse(case):
    make, message = ERRORS[case]
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value) == message
