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
        assert_equal(weights(model), {name: tensor.to(own[name].dtype) for name, tensor in average.items()})
        assert [tensor.data_ptr() for tensor in model.state_dict().values()] == pointers
        assert not torch.equal(compiled(images), first)
        with pytest.raises(RuntimeError, match="update: the model must hold its own weights"):
            ema.update()
        with pytest.raises(RuntimeError, match="state_dict: the average must be in its place"):
            ema.state_dict()
    assert_equal(weights(model), own)
    assert_equal(weights(ema.module), average)
    assert torch.equal(compiled(images), first)


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
    with pytest.raises(ValueError, match=r"load_state_dict: state must hold 2 averages, got 1"):
        WeightEMA(model, [0.5, 0.9]).load_state_dict(ema.state_dict())


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
