"""ModelEmaV3 against timm's."""

import copy
import importlib.util
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from mtkernels.compat.timm import ModelEmaV3

from .models import Net, Training, assert_same, tensors

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def _timm():
    """timm.utils.model_ema; from its file where `import timm` fails for want of torchvision."""
    try:
        from timm.utils import model_ema
    except ImportError:
        path = Path(importlib.util.find_spec("timm").origin).parent / "utils" / "model_ema.py"
        spec = importlib.util.spec_from_file_location("_timm_model_ema", path)
        model_ema = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(model_ema)
    return model_ema


def _pair(model, **options):
    return ModelEmaV3(model, **options), _timm().ModelEmaV3(model, **options)


def _run(model, emas, steps=6, with_step=False):
    training = Training(model)
    for step in range(steps):
        training.step()
        for ema in emas:
            ema.update(model, step if with_step else None)


OPTIONS = [
    {},
    {"decay": 0.9},
    {"decay": 0.9, "exclude_buffers": True},
    {"decay": 0.9, "foreach": False, "device": "cpu"},
    {"decay": 0.9, "update_after_step": 2},
    {"decay": 0.9, "use_warmup": True, "warmup_gamma": 2.0, "warmup_power": 0.75, "min_decay": 0.1},
    {"decay": 0.9, "dtype": torch.float64},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("with_step", [False, True])
def test_same_as_timm(options, with_step):
    model = Net()
    ours, theirs = _pair(model, **options)
    assert not ours.module.training and not ours.module.conv.training
    _run(model, (ours, theirs), with_step=with_step)
    # A float64 average: timm adds in float64 what it multiplied before; ours is the same to a few roundings.
    assert_same(tensors(ours.module), tensors(theirs.module))
    assert [ours.get_decay(step) for step in (None, 0, 1, 5, 99)] == [
        theirs.get_decay(step) for step in (None, 0, 1, 5, 99)
    ]


def test_a_float32_average_of_bfloat16_weights():
    model = Net().bfloat16()
    ours, theirs = _pair(model, decay=0.9, dtype=torch.float32)
    _run(model, (ours, theirs))
    # timm: mul_, then add_: two roundings a step; ours: one.
    assert_same(tensors(ours.module), tensors(theirs.module))


def test_float16_averages_are_rounded_to_nearest():
    model = Net().half()
    ours, theirs = _pair(model, decay=0.9)
    _run(model, (ours, theirs))
    assert_same(tensors(ours.module), tensors(theirs.module), ulps=2)


def test_bfloat16_averages_move_in_the_mean():
    model = nn.Linear(400, 400, bias=False).bfloat16()
    nn.init.zeros_(model.weight)
    emas = _pair(model, decay=0.999)
    nearest = ModelEmaV3(model, decay=0.999, stochastic_rounding=False)
    nn.init.ones_(model.weight)
    for _ in range(1000):
        for ema in (*emas, nearest):
            ema.update(model)
    expected = 1 - 0.999**1000
    for ema in emas:
        assert abs(ema.module.weight.double().mean().item() - expected) < 0.002
    assert nearest.module.weight.double().mean().item() < 0.4  # stalls


def test_stochastic_rounding_by_seed():
    def run(seed):
        model = Net().bfloat16()
        ema = ModelEmaV3(model, decay=0.99, stochastic_rounding_seed=seed)
        _run(model, [ema])
        return tensors(ema.module)

    assert_same(run(0), run(0), ulps=0)
    assert any(not torch.equal(one, other) for one, other in zip(run(0), run(1), strict=True))


def test_state_dicts_both_ways():
    model = Net()
    ours, theirs = _pair(model, decay=0.9)
    _run(model, (ours, theirs), steps=3)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours_after, theirs_after = _pair(Net(), decay=0.9)
    ours_after.load_state_dict(theirs.state_dict())
    theirs_after.load_state_dict(ours.state_dict())
    _run(model, (ours, theirs, ours_after, theirs_after), steps=3)
    assert_same(tensors(ours_after), tensors(theirs_after))
    assert_same(tensors(ours), tensors(ours_after))


def test_set_and_forward():
    model = Net()
    ours, theirs = _pair(model, decay=0.9)
    Training(model).step()
    ours.set(model)
    theirs.set(model)
    assert_same(tensors(ours.module), tensors(model), ulps=0)
    images = torch.randn(2, 3, 5, 5)
    assert torch.equal(ours(images), theirs(images))


def test_tied_weights_are_averaged_once():
    model = Net(tied=True)
    ema = ModelEmaV3(model, decay=0.5)
    before = ema.module.head.weight.detach().clone()
    _run(model, [ema], steps=1)
    assert ema.module.head.weight is ema.module.last.weight
    assert_same([ema.module.head.weight], [torch.lerp(before, model.head.weight, 0.5)])


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.head, "weight", nn.Parameter(torch.ones(8, 8))),
        lambda model: setattr(model, "head", nn.Linear(8, 8, bias=False)),
        lambda model: setattr(model.head.weight, "data", torch.ones(8, 8)),
        lambda model: model.norm.register_buffer("running_mean", torch.ones(8)),
    ],
    ids=["parameter", "module", "data", "buffer"],
)
@pytest.mark.parametrize("side", ["model", "average"])
def test_tensors_replaced_between_updates(change, side):
    model = Net()
    emas = _pair(model, decay=0.9)
    _run(model, emas, steps=2)
    torch.manual_seed(3)
    for part in [model] if side == "model" else [ema.module for ema in emas]:
        torch.manual_seed(3)
        change(part)
    _run(model, emas, steps=2)
    assert_same(tensors(emas[0].module), tensors(emas[1].module))


def test_another_model_each_time():
    first, second = Net(), Net()
    Training(second, seed=5).step()
    emas = _pair(first, decay=0.9)
    for model in (first, second, first, second):
        for ema in emas:
            ema.update(model)
    assert_same(tensors(emas[0].module), tensors(emas[1].module))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda ema: pickle.loads(pickle.dumps(ema))])
def test_copies_go_on(copied):
    model = Net()
    ema = ModelEmaV3(model, decay=0.9)
    _run(model, [ema], steps=2)
    other = copied(ema)
    _run(model, [ema, other], steps=2)
    assert_same(tensors(other.module), tensors(ema.module), ulps=0)


def test_a_compiled_models_prefix():
    model = Net()
    emas = _pair(model, decay=0.9)
    _run(torch.compile(model, backend="eager"), emas)
    assert_same(tensors(emas[0].module), tensors(emas[1].module))


def test_a_bump_of_the_version():
    model = Net()
    ema = ModelEmaV3(model)
    before = ema.module.head.weight._version
    ema.update(model)
    assert ema.module.head.weight._version > before


def test_refused():
    model = Net()
    ema = ModelEmaV3(model)
    with pytest.raises(
        ValueError, match=r"ModelEmaV3: model must have as many tensors as its average \(10\), got 1"
    ):
        ema.update(nn.Linear(2, 2, bias=False))
    other = Net()
    other.head = nn.Linear(8, 7, bias=False)
    with pytest.raises(ValueError, match=r"teacher\[7\] \('head.weight'\)"):
        ema.update(other)
    ema.update(model)  # a refusal leaves it usable

    hooked = Net()
    hooked.register_state_dict_post_hook(
        lambda module, state, prefix, local: state.update({"head.weight": state["head.weight"] + 1})
    )
    with pytest.raises(NotImplementedError, match=r"state_dict, got another for 'head.weight', from a hook"):
        ema.update(hooked)


@pytest.mark.gpu
def test_an_average_on_the_cpu():
    model = Net().cuda()
    ours, theirs = _pair(model, decay=0.9, device="cpu")
    training = Training(model)
    for _ in range(4):
        training.step()
        for ema in (ours, theirs):
            ema.update(model)
    assert ours.module.head.weight.device.type == "cpu"
    assert_same(tensors(ours.module), tensors(theirs.module))
