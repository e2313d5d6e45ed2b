"""WeightEMA: swaps, copies, saved states, tensors that are replaced."""

import copy
import io
import pickle

import pytest
import torch
from ema_helpers import assert_equal, network, run_ahead, train, weights
from torch import nn

from mtkernels import WeightEMA, schedules


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("policy", [{}, {"buffers": "keep"}, {"include": "0.*"}], ids=str)
def test_swap(dtype, policy):
    model = network().eval()
    ema = WeightEMA(model, 0.5, dtype=dtype, **policy)
    run_ahead(model, ema, 3)
    own, average = weights(model), weights(ema.module)
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    images = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(model, backend="eager")
    first = compiled(images)
    with ema.swapped() as swapped:
        assert swapped is model
        chosen = [name for name in own if "include" not in policy or name.startswith("0.")]
        assert_equal(weights(model), own | {name: average[name].to(own[name].dtype) for name in chosen})
        assert [tensor.data_ptr() for tensor in model.state_dict().values()] == pointers
        assert not torch.equal(compiled(images), first)
        with pytest.raises(RuntimeError, match="update: the model must hold its own weights"):
            ema.update()
        with pytest.raises(RuntimeError, match="state_dict: the model must hold its own weights"):
            ema.state_dict()
    assert_equal(weights(model), own)
    assert_equal(weights(ema.module), average)
    assert torch.equal(compiled(images), first)


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_swapped_weights_come_back_as_they_were_or_not_at_all(dtype):
    """A model that is changed meanwhile is refused before anything is written, and taken when it is changed back."""
    model = network()
    ema = WeightEMA(model, 0.5, dtype=dtype)
    run_ahead(model, ema, 2)
    own = weights(model)
    ema.swap_()
    model[4].bfloat16()
    held = weights(model)
    with pytest.raises(
        RuntimeError, match=r"swap_: '4.weight' must be as it was when the average came in \(torch.float32"
    ):
        ema.swap_()
    assert_equal(weights(model), held)
    for method in (
        ema.update,
        ema.copy_to,
        ema.state_dict,
        lambda: ema.load_state_dict({}),
        lambda: ema.to("cpu"),
    ):
        with pytest.raises(RuntimeError, match="the model must hold its own weights, got swapped ones"):
            method()
    with pytest.raises(RuntimeError, match="swapped: the model must hold its own"), ema.swapped():
        pass
    with pytest.raises(RuntimeError, match="copy: the model must hold its own"):
        copy.deepcopy(ema)
    model[4].float()
    ema.swap_()
    assert_equal(
        {n: t for n, t in weights(model).items() if n[0] != "4"},
        {n: t for n, t in own.items() if n[0] != "4"},
    )


def test_a_later_swap_knows_the_models_new_dtype():
    model = network().bfloat16()
    ema = WeightEMA(model, 0.5, dtype=torch.float32)
    with ema.swapped():
        pass
    model.double()
    train(model)
    own = weights(model)
    with ema.swapped():
        pass
    assert_equal(weights(model), own)


def test_swapped_comes_back_after_an_error():
    model = network()
    ema = WeightEMA(model, 0.5)
    run_ahead(model, ema, 1)
    own = weights(model)
    with pytest.raises(KeyError), ema.swapped():
        raise KeyError
    assert_equal(weights(model), own)


def test_copy_to():
    model = network()
    ema = WeightEMA(model, 0.5, dtype=torch.float64)
    run_ahead(model, ema, 2)
    other = network(seed=3)
    ema.copy_to(other)
    assert_equal(
        weights(other),
        {name: t.to(other.state_dict()[name].dtype) for name, t in weights(ema.module).items()},
    )
    ema.copy_to()
    assert_equal(weights(model), weights(other))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "compensated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_saved_average_goes_on_to_the_bit(rounding, dtype):
    model = network()
    ema = WeightEMA(model, schedules.running_mean(0.99), dtype=dtype, rounding=rounding, seed=3)
    run_ahead(model, ema, 3)
    file = io.BytesIO()
    torch.save(ema.state_dict(), file)
    file.seek(0)
    other = WeightEMA(
        copy.deepcopy(model), schedules.running_mean(0.99), dtype=dtype, rounding=rounding, seed=3
    )
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.manual_seed(9)
    run_ahead(model, ema, 2)
    torch.manual_seed(9)
    run_ahead(other._model, other, 2)
    assert_equal(weights(other.module), weights(ema.module))
    assert_equal(other.state_dict()["averages"][0], ema.state_dict()["averages"][0])
    assert other.step == ema.step == 5


def test_a_state_survives_another_dtype_and_memory_format():
    model = network()
    ema = WeightEMA(model, 0.9)
    run_ahead(model, ema, 3)
    last = network().to(memory_format=torch.channels_last)
    other = WeightEMA(last, 0.9, dtype=torch.bfloat16, rounding="compensated")
    other.load_state_dict(ema.state_dict())
    assert_equal(other.state_dict()["averages"][0], ema.state_dict()["averages"][0])
    assert other.module[0].weight.is_contiguous(memory_format=torch.channels_last)
    other.update()


def test_a_state_that_does_not_fit_is_refused_before_anything_is_loaded():
    model = network()
    ema = WeightEMA(model, 0.9)
    state, before = ema.state_dict(), weights(ema.module)
    other = copy.deepcopy(state)
    other["averages"][0]["4.weight"] = torch.zeros(2, 2)
    less = copy.deepcopy(state)
    del less["averages"][0]["0.bias"]
    for wrong, message in (
        (other, r"must have '4.weight' in the shape \[4, 128\], got \[2, 2\]"),
        (less, "must have the tensors of its average, got none named '0.bias'"),
        (model.state_dict(), "must be one that state_dict\\(\\) gave, with 'step' and 'averages', got keys"),
        ({"step": 1, "averages": []}, "must hold 1 averages, got 0"),
    ):
        with pytest.raises(ValueError, match=f"load_state_dict: state {message}"):
            ema.load_state_dict(wrong)
    assert_equal(weights(ema.module), before)


def test_compensated_buffers_that_are_not_saved():
    model = network()
    model.register_buffer("unsaved", torch.rand(5), persistent=False)
    ema = WeightEMA(model, 0.9, dtype=torch.bfloat16, rounding="compensated")
    run_ahead(model, ema, 1)
    other = WeightEMA(copy.deepcopy(model), 0.9, dtype=torch.bfloat16, rounding="compensated")
    other.load_state_dict(ema.state_dict())
    assert_equal(other.state_dict()["averages"][0], ema.state_dict()["averages"][0])


def test_copy_to_refuses_another_shape():
    ema, other = WeightEMA(network()), network()
    other[4] = nn.Linear(1, 4)
    before = weights(other)
    with pytest.raises(
        ValueError, match=r"copy_to: '4.weight' of model must have the shape of its average \[4, 128\]"
    ):
        ema.copy_to(other)
    assert_equal(weights(other), before)


def test_compensated_layers_of_another_shape():
    model = network()
    ema = WeightEMA(model, 0.9, dtype=torch.bfloat16, rounding="compensated")
    model[4] = nn.Linear(128, 7)
    ema.module[4] = nn.Linear(128, 7).bfloat16().requires_grad_(False)
    run_ahead(model, ema, 2)


def test_deepcopy_and_pickle():
    model = network()
    ema = WeightEMA(
        model, [0.5, schedules.cosine(0.9, steps=9)], dtype=torch.bfloat16, rounding="compensated"
    )
    run_ahead(model, ema, 2)
    file = io.BytesIO()
    torch.save(ema, file)
    file.seek(0)
    copies = [copy.deepcopy(ema), pickle.loads(pickle.dumps(ema)), torch.load(file, weights_only=False)]
    for each in [ema, *copies]:
        torch.manual_seed(5)
        run_ahead(each._model, each, 2)
    for each in copies:
        own = weights(each._model)
        with each.swapped(1):
            assert not torch.equal(each._model[0].weight, own["0.weight"])
        assert_equal(weights(each._model), own)
        assert_equal(each.state_dict()["averages"][1], ema.state_dict()["averages"][1])
        assert each.step == 4 and each.module is not ema.module


def test_a_model_that_holds_its_average_is_copied():
    model = network()
    model.ema = WeightEMA(model, 0.5)
    other = copy.deepcopy(model)
    assert other.ema._model is other
    train(other)
    other.ema.update()
    assert not torch.equal(other.ema.module[0].weight, model.ema.module[0].weight)
    pickle.loads(pickle.dumps(other)).ema.update()


def test_replaced_tensors_are_found():
    """Another parameter object, another memory, another dtype: the average goes on with what the model has now."""
    model = network()
    ema = WeightEMA(model, 0.5)
    changes = (
        lambda: model.__setitem__(4, nn.Linear(128, 4)),
        lambda: ema.module.__setitem__(4, nn.Linear(128, 4).requires_grad_(False)),
        lambda: setattr(model[4], "weight", nn.Parameter(torch.ones(4, 128))),
        lambda: setattr(model[0].weight, "data", torch.randn(8, 3, 3, 3)),
        lambda: model.load_state_dict(network(seed=4).state_dict(), assign=True),
        lambda: ema.module.load_state_dict(weights(network(seed=5)), assign=True),
        lambda: model.double(),
        lambda: model.to(torch.bfloat16),
    )
    for change in changes:
        change()
        before = weights(ema.module)
        ema.update()
        for name, tensor in ema.module.state_dict().items():
            if tensor.is_floating_point():
                expected = 0.5 * before[name].double() + 0.5 * model.state_dict()[name].double()
                torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
