"""EMAModel against diffusers'."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mtkernels.compat.diffusers import EMAModel

from .models import Net, Training, assert_same

training_utils = pytest.importorskip("diffusers.training_utils", reason="diffusers is not installed")
Theirs = training_utils.EMAModel


def _pair(model, **options):
    return EMAModel(model.parameters(), **options), Theirs(model.parameters(), **options)


def _run(model, emas, steps=6):
    training = Training(model)
    for _ in range(steps):
        training.step()
        for ema in emas:
            ema.step(model.parameters())


OPTIONS = [
    {},
    {"decay": 0.9, "min_decay": 0.3},
    {"decay": 0.9, "update_after_step": 2},
    {"decay": 0.9, "use_ema_warmup": True, "inv_gamma": 2.0, "power": 0.75},
    {"foreach": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_same_as_diffusers(options, dtype):
    model = Net().to(dtype)
    model.head.requires_grad_(False)
    ours, theirs = _pair(model, **options)
    _run(model, (ours, theirs))
    # theirs rounds three times a step, ours once
    assert_same(ours.shadow_params, theirs.shadow_params, ulps=8)
    assert_same([ours.shadow_params[4]], [model.head.weight], ulps=0)
    assert ours.cur_decay_value == theirs.cur_decay_value
    assert ours.optimization_step == theirs.optimization_step == 6
    assert [ours.get_decay(step) for step in range(20)] == [theirs.get_decay(step) for step in range(20)]


def test_a_float32_average_of_bfloat16_weights():
    model = Net().bfloat16()
    ours, theirs = _pair(model, decay=0.9)
    for ema in (ours, theirs):
        ema.to(dtype=torch.float32)
    _run(model, (ours, theirs))
    assert_same(ours.shadow_params, theirs.shadow_params, ulps=8)


def test_what_trains_may_change():
    model = Net()
    emas = _pair(model, decay=0.9)
    _run(model, emas, steps=3)
    model.head.requires_grad_(False)
    _run(model, emas, steps=3)
    assert_same(emas[0].shadow_params, emas[1].shadow_params)


def test_store_copy_to_restore():
    model = Net()
    ema = EMAModel(model.parameters(), decay=0.9)
    _run(model, [ema])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    assert_same(model.parameters(), ema.shadow_params, ulps=0)
    ema.restore(model.parameters())
    assert_same(model.parameters(), before, ulps=0)
    with pytest.raises(
        RuntimeError, match=r"EMAModel.restore: parameters must be stored before, got none stored"
    ):
        ema.restore(model.parameters())


def test_state_dicts_both_ways():
    model = Net()
    emas = _pair(model, decay=0.9, update_after_step=1)
    _run(model, emas, steps=3)
    assert list(emas[0].state_dict()) == list(emas[1].state_dict())
    loaded = _pair(model)
    loaded[0].load_state_dict(emas[1].state_dict())
    loaded[1].load_state_dict(emas[0].state_dict())
    _run(model, (*emas, *loaded), steps=3)
    for ema in (emas[1], *loaded):
        assert_same(emas[0].shadow_params, ema.shadow_params)
        assert {**ema.state_dict(), "shadow_params": 0} == {**emas[0].state_dict(), "shadow_params": 0}


def test_save_and_from_pretrained(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    )
    for ours, theirs, name in ((EMAModel, Theirs, "ours"), (Theirs, EMAModel, "theirs")):
        ema = ours(model.parameters(), decay=0.8, model_cls=type(model), model_config=model.config)
        _run(model, [ema], steps=3)
        ema.save_pretrained(str(tmp_path / name))
        loaded = theirs.from_pretrained(str(tmp_path / name), type(model))
        assert_same(loaded.shadow_params, ema.shadow_params, ulps=0)
        assert loaded.decay == 0.8 and loaded.optimization_step == 3


def test_under_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(Net())
    ema = EMAModel(model.parameters(), decay=0.9)
    accelerator.register_for_checkpointing(ema)
    _run(model, [ema], steps=2)
    accelerator.save_state(str(tmp_path / "state"))
    saved = [tensor.clone() for tensor in ema.shadow_params]
    _run(model, [ema], steps=2)
    accelerator.load_state(str(tmp_path / "state"))
    assert_same(ema.shadow_params, saved, ulps=0)
    assert ema.optimization_step == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda ema: pickle.loads(pickle.dumps(ema))])
def test_copies_go_on(copied):
    model = Net()
    ema = EMAModel(model.parameters(), decay=0.9)
    _run(model, [ema], steps=2)
    other = copied(ema)
    _run(model, [ema, other], steps=2)
    assert_same(other.shadow_params, ema.shadow_params, ulps=0)


def test_refused():
    model = Net()
    with pytest.raises(
        TypeError, match=r"EMAModel: parameters must be tensors \(pass model.parameters\(\)\), got a Net"
    ):
        EMAModel(model)
    with pytest.raises(TypeError, match="max_value"):
        EMAModel(model.parameters(), max_value=0.9)
    ema = EMAModel(model.parameters())
    with pytest.raises(ValueError, match=r"parameters must be as many as in the average \(7\), got 1"):
        ema.step([nn.Parameter(torch.zeros(3))])
    partitioned = nn.Parameter(torch.zeros(3))
    partitioned.ds_id = 0
    with pytest.raises(NotImplementedError, match=r"partitioned by DeepSpeed's ZeRO stage 3"):
        ema.step([partitioned])
    with pytest.raises(
        ValueError, match=r"EMAModel.save_pretrained: model_cls must be given to EMAModel, got None"
    ):
        ema.save_pretrained("nowhere")
    for name, value, error, words in (
        ("decay", 2.0, ValueError, "decay must be between 0 and 1, got 2.0"),
        ("optimization_step", 1.5, TypeError, "optimization_step must be an int, got float"),
        ("use_ema_warmup", 1, TypeError, "use_ema_warmup must be a bool, got int"),
        ("shadow_params", (), TypeError, "shadow_params must be a list of tensors, got tuple"),
    ):
        with pytest.raises(error, match=words):
            ema.load_state_dict({**ema.state_dict(), name: value})
    assert ema.optimization_step == 0
