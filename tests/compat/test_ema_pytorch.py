"""EMA against ema-pytorch's."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mtkernels.compat.ema_pytorch import EMA

from .models import Net, Training, assert_same, tensors

ema_pytorch = pytest.importorskip("ema_pytorch", reason="ema-pytorch is not installed")


def _pair(model, **options):
    return EMA(model, **options), ema_pytorch.EMA(model, **options)


def _run(model, emas, steps=12):
    training = Training(model)
    for _ in range(steps):
        training.step()
        for ema in emas:
            ema.update()


EVERY = {"update_every": 1, "update_after_step": 2}
OPTIONS = [
    {},
    EVERY,
    {"update_every": 3, "update_after_step": 4},
    {**EVERY, "beta": 0.5, "min_value": 0.2, "inv_gamma": 3.0, "power": 0.75},
    {**EVERY, "beta": 1.0},
    {**EVERY, "param_or_buffer_names_no_ema": {"head.weight", "norm.running_mean"}},
    {**EVERY, "ignore_names": {"head.weight"}, "ignore_startswith_names": {"norm.", "last"}},
    {**EVERY, "include_online_model": False, "use_foreach": True},
    {**EVERY, "lazy_init_ema": True},
    {**EVERY, "coerce_dtype": True, "allow_different_devices": True, "move_ema_to_online_device": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_same_as_ema_pytorch(options):
    model = Net()
    ours, theirs = _pair(model, **options)
    _run(model, (ours, theirs))
    assert_same(tensors(ours.ema_model), tensors(theirs.ema_model))
    assert int(ours.step) == int(theirs.step) == 12
    assert ours.initted and not any(parameter.requires_grad for parameter in ours.ema_model.parameters())
    assert ours.get_current_decay() == pytest.approx(theirs.get_current_decay(), abs=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_model_moves_toward_its_average(beta):
    models = Net(), Net()
    options = {**EVERY, "update_model_with_ema_every": 4, "update_model_with_ema_beta": beta}
    ours, theirs = EMA(models[0], **options), ema_pytorch.EMA(models[1], **options)
    for model, ema in zip(models, (ours, theirs), strict=True):
        _run(model, [ema])
    assert_same(tensors(models[0]), tensors(models[1]))
    assert_same(tensors(ours.ema_model), tensors(theirs.ema_model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model = Net().to(dtype)
    ours, theirs = _pair(model, **EVERY, beta=0.9)
    _run(model, (ours, theirs))
    # float64: theirs has a decay computed in float32
    assert_same(
        tensors(ours.ema_model), tensors(theirs.ema_model), ulps=4 if dtype == torch.bfloat16 else 2**30
    )


def test_a_float32_average_of_bfloat16_weights():
    models = Net().bfloat16(), Net()
    ours, theirs = _pair(models[0], ema_model=lambda: copy.deepcopy(models[1]), **EVERY, coerce_dtype=True)
    _run(models[0], (ours, theirs))
    assert ours.ema_model.head.weight.dtype == torch.float32
    assert_same(tensors(ours.ema_model), tensors(theirs.ema_model))


def test_state_dicts_both_ways():
    model = Net()
    emas = _pair(model, **EVERY)
    _run(model, emas, steps=5)
    assert list(emas[0].state_dict()) == list(emas[1].state_dict())
    loaded = _pair(model, **EVERY)
    _run(model, loaded, steps=1)  # so that the host knows a step, which the state then replaces
    loaded[0].load_state_dict(emas[1].state_dict())
    loaded[1].load_state_dict(emas[0].state_dict())
    _run(model, (*emas, *loaded), steps=5)
    for ema in (emas[1], *loaded):
        assert int(ema.step) == 10
        assert_same(tensors(emas[0].ema_model), tensors(ema.ema_model))


def test_step_and_initted_written_by_hand():
    model = Net()
    emas = _pair(model, **EVERY)
    _run(model, emas, steps=2)
    for ema in emas:
        ema.step.fill_(50)
    _run(model, emas, steps=2)
    for ema in emas:
        ema.step = torch.tensor(70)
        ema.initted.fill_(False)
    _run(model, emas, steps=3)
    assert int(emas[0].step) == int(emas[1].step) == 73
    assert_same(tensors(emas[0].ema_model), tensors(emas[1].ema_model))


def test_another_step_with_as_many_writes_behind_it():
    ema = EMA(Net(), **EVERY)
    _run(ema.online_model, [ema], steps=3)
    other = torch.tensor(0)
    for _ in range(ema.step._version):
        other.fill_(70)
    assert other._version == ema.step._version
    ema.step = other
    ema.update()
    assert int(ema.step) == 71


def test_nothing_is_read_back_in_a_steady_state(monkeypatch):
    model = Net()
    ema = EMA(model, **EVERY)
    _run(model, [ema], steps=4)
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("read back"))
    _run(model, [ema], steps=4)


def test_forward_methods_and_modes():
    model = Net()
    ours, theirs = _pair(model, **EVERY, forward_method_names=("project",))
    _run(model, (ours, theirs))
    images, features = torch.randn(2, 3, 5, 5), torch.randn(2, 8)
    torch.testing.assert_close(ours(images), theirs(images))
    torch.testing.assert_close(ours.project(features), theirs.project(features))
    torch.testing.assert_close(ours.forward_eval(images), theirs.forward_eval(images))
    assert ours.eval() is ours.ema_model and not ours.ema_model.training and model.training


def test_an_optimizers_hook():
    model = Net()
    ema = EMA(model, **EVERY)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = ema.add_to_optimizer_post_step_hook(optimizer)
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert int(ema.step) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.head, "weight", nn.Parameter(torch.ones(8, 8))),
        lambda model: setattr(model, "head", nn.Linear(8, 8, bias=False)),
        lambda model: setattr(model.head.weight, "data", torch.ones(8, 8)),
    ],
    ids=["parameter", "module", "data"],
)
def test_tensors_replaced_between_updates(change):
    model = Net()
    emas = _pair(model, **EVERY, include_online_model=False)
    _run(model, emas, steps=5)
    torch.manual_seed(3)
    change(model)
    _run(model, emas, steps=5)
    assert_same(tensors(emas[0].ema_model), tensors(emas[1].ema_model))


def test_names_changed_between_updates():
    model = Net()
    emas = _pair(model, **EVERY, ignore_names={"head.weight"})
    _run(model, emas, steps=5)
    for ema in emas:
        ema.ignore_names = {"last.weight"}
    _run(model, emas, steps=5)
    assert_same(tensors(emas[0].ema_model), tensors(emas[1].ema_model))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda ema: pickle.loads(pickle.dumps(ema))])
def test_copies_go_on(copied):
    model = Net()
    ema = EMA(model, **EVERY)
    _run(model, [ema], steps=5)
    other = copied(ema)
    _run(model, [ema], steps=5)
    _run(other.online_model, [other], steps=5)
    # the copy's model is the copy's own, and goes on from where it was
    assert int(other.step) == 10
    assert_same(tensors(other.ema_model), tensors(ema.ema_model))


def test_refused():
    with pytest.raises(TypeError, match=r"EMA: model must be a torch.nn.Module, got dict"):
        EMA({"weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"EMA: ema_model must be None with lazy_init_ema=True, got one"):
        EMA(Net(), Net(), lazy_init_ema=True)
    ema = EMA(nn.DataParallel(Net()), ema_model=Net(), **EVERY)
    with pytest.raises(
        ValueError, match=r"EMA: model must have the tensors of its average, got none named 'conv"
    ):
        ema.update()


@pytest.mark.gpu
def test_an_average_on_the_cpu():
    model = Net().cuda()
    options = {**EVERY, "allow_different_devices": True, "include_online_model": False}
    ours, theirs = EMA(model, Net(), **options), ema_pytorch.EMA(model, Net(), **options)
    training = Training(model)
    for _ in range(6):
        training.step()
        for ema in (ours, theirs):
            ema.update()
    assert_same(tensors(ours.ema_model), tensors(theirs.ema_model))
    refusing = EMA(model, Net(), **{**options, "allow_different_devices": False})
    refusing.update()
    with pytest.raises(ValueError, match="must be on the average's device"):
        refusing.update_moving_average(refusing.ema_model, model)
