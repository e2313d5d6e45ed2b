"""WeightEMA: updates, policies, precision, places, inside compiled steps and CUDA graphs; what it refuses."""

import copy

import pytest
import torch
from ema_helpers import assert_equal, network, run_ahead, train, weights
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mtkernels
from mtkernels import WeightEMA, schedules
from mtkernels._offload import Offload
from mtkernels.ops.matching import named_tensors


def expected_average(model, steps, decay, *, start=0, every=1, seed=0, **options):
    """What `steps` updates make of the teacher, by ema_update and numbers alone."""
    teacher = copy.deepcopy(model).requires_grad_(False)
    torch.manual_seed(seed)
    for number in range(1, steps + 1):
        train(model)
        if number % every == 0:
            t = number - start
            mtkernels.ema_update(
                teacher, model, 0.0 if t <= 0 else decay(t) if callable(decay) else decay, **options
            )
    return weights(teacher)


SCHEDULES = [
    schedules.running_mean(0.9),
    schedules.ratio(0.99),
    schedules.inverse_gamma(0.99, inv_gamma=2.0, power=0.75, min_decay=0.1),
    schedules.switched(0.5, 0.9, at=3),
    schedules.cosine(0.8, steps=6),
    schedules.half_life(5, rampup=0.5),
    schedules.power_function(0.1),
    schedules.power_function(gamma=6.94),
    schedules.debiased(0.9),
    0.75,
    lambda step: 1 - 1 / (step + 1),
]


@pytest.mark.parametrize("decay", SCHEDULES, ids=lambda decay: getattr(decay, "__name__", str(decay)))
@pytest.mark.parametrize("options", [{}, {"start": 2}, {"every": 2}, {"start": 3, "every": 2}], ids=str)
def test_schedules(decay, options):
    expected = expected_average(network(), 7, decay, **options)
    model = network()
    ema = WeightEMA(model, decay, **options)
    torch.manual_seed(0)
    run_ahead(model, ema, 7)
    for name, tensor in ema.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)
    assert ema.step == 7


@pytest.mark.parametrize("buffers", ["average", "copy", "keep"])
def test_buffers(buffers):
    expected = expected_average(network(), 3, 0.9, buffers=buffers)
    model = network()
    ema = WeightEMA(model, 0.9, buffers=buffers)
    torch.manual_seed(0)
    run_ahead(model, ema, 3)
    assert_equal(weights(ema.module), expected)


def test_names():
    model = network()
    for options, moved in (
        ({"include": "0.*"}, {"0.weight", "0.bias"}),
        ({"exclude": ["0.*", "1.*"]}, {"4.weight", "4.bias"}),
        ({"include": ["*.weight"], "exclude": lambda name: name.startswith("4")}, {"0.weight", "1.weight"}),
    ):
        ema = WeightEMA(model, 0.9, **options)
        before = weights(ema.module)
        run_ahead(model, ema, 1)
        after = weights(ema.module)
        assert {name for name in before if not torch.equal(before[name], after[name])} == moved


def test_a_teacher_of_ones_own():
    model, teacher = network(), network(seed=1)
    before = weights(teacher)
    ema = WeightEMA(model, 0.75, teacher=teacher)
    assert ema.module is teacher and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert_equal(weights(teacher), before)
    train(model)
    ema.update()
    torch.testing.assert_close(teacher[0].weight, 0.75 * before["0.weight"] + 0.25 * model[0].weight.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype(dtype):
    model = network().to(torch.bfloat16)
    ema = WeightEMA(model, 0.9, dtype=dtype)
    expected = {name: tensor.double() for name, tensor in weights(model).items()}
    for _ in range(3):
        train(model)
        ema.update()
        expected = {
            n: 0.9 * e + 0.1 * t.double()
            for (n, e), t in zip(expected.items(), weights(model).values(), strict=True)
        }
    for name, tensor in ema.module.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == dtype
            torch.testing.assert_close(
                tensor.double(),
                expected[name],
                rtol=4 * torch.finfo(dtype).eps,
                atol=4 * torch.finfo(dtype).eps,
            )


def test_compensated_bf16_is_float32():
    model = network()
    exact, compensated = (
        WeightEMA(model, 0.999),
        WeightEMA(model, 0.999, dtype=torch.bfloat16, rounding="compensated"),
    )
    for _ in range(20):
        train(model)
        exact.update()
        compensated.update()
    assert_equal(compensated.state_dict()["averages"][0], exact.state_dict()["averages"][0])
    for name, tensor in compensated.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, exact.module.state_dict()[name].bfloat16(), rtol=2**-8, atol=0)


def test_several_averages():
    model = network()
    decays = [0.5, schedules.power_function(0.1), torch.tensor(0.9)]
    together, apart = WeightEMA(model, decays), [WeightEMA(model, decay) for decay in decays]
    for _ in range(4):
        train(model)
        drifts = together.update(drift=True).clone()
        single = [ema.update(drift=True).clone() for ema in apart]
    for average, ema in zip(together.averages, apart, strict=True):
        assert_equal(weights(average), weights(ema.module))
    assert torch.equal(drifts, torch.stack(single))
    assert together.module is together.averages[0]


def test_drift():
    model = network()
    ema = WeightEMA(model, 0.9)
    train(model)
    drift = ema.update(drift=True)
    pairs = zip(ema.module.state_dict().values(), model.state_dict().values(), strict=True)
    flat = torch.cat([(a.double() - b.double()).flatten() for a, b in pairs if a.is_floating_point()])
    torch.testing.assert_close(drift, flat.norm())


def test_what_is_not_finite_stays_out():
    model = network()
    ema, before = WeightEMA(model, 0.9, skip_nonfinite=True), weights(model)
    with torch.no_grad():
        model[4].weight[3, 100] = torch.nan
    ema.update()
    assert ema.step == 0
    with torch.no_grad():
        model[4].weight[3, 100] = 1.0
    ema.update(found_inf=torch.ones(1))
    assert ema.step == 0
    assert_equal(weights(ema.module), before)
    ema.update(found_inf=torch.zeros(1))
    assert ema.step == 1


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "DataParallel"])
def test_wrappers_are_seen_through(wrap):
    model = network()
    ema = WeightEMA(wrap(model), 0.5)
    before = weights(ema.module)
    train(model)
    ema.update()
    assert not torch.equal(ema.module[0].weight, before["0.weight"])
    assert list(named_tensors(ema.module)[0]) == list(named_tensors(model)[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"skip_nonfinite": True},
        {"every": 2, "start": 1, "dtype": torch.bfloat16, "rounding": "stochastic"},
    ],
    ids=str,
)
def test_update_inside_a_compiled_step(options):
    """The same bits as outside, in one graph that is not made again at each step."""
    models = network(), network()
    inside, outside = (WeightEMA(model, [schedules.running_mean(0.9), 0.5], **options) for model in models)

    @torch.compile(fullgraph=True)
    def step(images):
        loss = models[0](images).sum()
        inside.update()
        return loss

    torch._dynamo.utils.counters.clear()
    for number in range(4):
        train(models[0], seed=number)
        train(models[1], seed=number)
        step(torch.randn(2, 3, 6, 6))
        models[1](torch.randn(2, 3, 6, 6))  # batch norm's buffers
        models[1].load_state_dict(models[0].state_dict())
        outside.update()
    for ours, expected in zip(inside.averages, outside.averages, strict=True):
        assert_equal(weights(ours), weights(expected))
    assert inside.step == 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


REFUSED = {
    "model": ((lambda: [1]), {}, TypeError, "model must be a torch.nn.Module, got list"),
    "nothing to average": (
        nn.ReLU,
        {},
        ValueError,
        "model must have floating parameters or buffers that are averaged, got none in a ReLU",
    ),
    "rounding": (
        network,
        {"rounding": "up"},
        ValueError,
        "rounding must be 'nearest', 'stochastic' or 'compensated', got 'up'",
    ),
    "one teacher for two": (
        network,
        {"decay": [0.9, 0.5], "teacher": network()},
        ValueError,
        "teacher must be one for each of 2 decays, got 1",
    ),
    "teacher": (
        network,
        {"teacher": 3},
        TypeError,
        "teacher must be a torch.nn.Module, a list of them or None, got int",
    ),
    "dtype": (network, {"dtype": "float32"}, TypeError, "dtype must be a torch.dtype or None, got str"),
    "dtype of integers": (
        network,
        {"dtype": torch.int32},
        ValueError,
        "dtype must be a floating one, got torch.int32",
    ),
    "complex weights as real ones": (
        lambda: nn.Linear(2, 2, dtype=torch.complex64),
        {"dtype": torch.float32},
        ValueError,
        "dtype must be None for a model with complex weights ('weight'), got torch.float32",
    ),
    "decay": (network, {"decay": 1.5}, ValueError, "decay must be between 0 and 1, got 1.5"),
    "no decay": (network, {"decay": []}, ValueError, "decay must be one, or a list of 1 to 8, got 0"),
    "decay of no kind": (
        network,
        {"decay": "0.9"},
        TypeError,
        "decay must be a number, a tensor, a schedule or a function of the step, got str",
    ),
    "every": (network, {"every": 0}, ValueError, "every must be at least 1, got 0"),
    "start": (network, {"start": -1}, ValueError, "start must be at least 0, got -1"),
    "seed": (network, {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    "start of no kind": (network, {"start": 0.5}, TypeError, "start must be an int, got float"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    make, options, error, message = REFUSED[case]
    with pytest.raises(error) as caught:
        WeightEMA(make(), **options)
    assert str(caught.value) == f"WeightEMA: {message}"


def test_a_function_of_the_step():
    """Called with the number of the update, under a dispatch mode too; refused where one call would be for all."""
    model = network()
    seen = []
    ema = WeightEMA(model, [0.5, lambda step: seen.append(step) or 0.5], start=1)
    for _ in range(2):
        ema.update()
    with FlopCounterMode(display=False):
        ema.update()
    assert seen == [1, 2]
    torch.compile(ema.update, backend="eager")()  # leaves the graph: as eager
    assert seen == [1, 2, 3]
    torch._dynamo.reset()
    with pytest.raises(Exception, match="decay must be a number, a tensor or a schedule in a compiled step"):
        torch.compile(ema.update, backend="eager", fullgraph=True)()


def test_offloaded_updates_are_not_lost_where_a_layer_is_replaced():
    model = network()
    ema = WeightEMA(model, 0.5)
    ema._offload = Offload(list(ema._pairs.students), torch.device("cpu"))
    ema.update()
    model[4] = nn.Linear(128, 4)
    ema.update()
    assert ema.module is not None and ema.step == 2


def test_refusals_of_what_does_not_match():
    model = network()
    with pytest.raises(
        ValueError, match=r"teacher\[0\] must be a module of its own, got the model or an earlier one"
    ):
        WeightEMA(model, teacher=model)
    with pytest.raises(
        ValueError, match="student must have the parameters of its teacher, got none named 'weight'"
    ):
        WeightEMA(model, teacher=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="include must match at least one tensor, got 'x"):
        WeightEMA(model, include="x.*")
    ema = WeightEMA(model)
    with pytest.raises(TypeError, match=r"update: found_inf must be a float32 tensor, got bool"):
        ema.update(found_inf=True)
    with pytest.raises(ValueError, match=r"swap_: average must be 0 to 0, got 1"):
        ema.swap_(1)


def test_offloaded_weights_are_those_of_the_update():
    """The way to host memory, here within it: what is sent is as it was, whatever becomes of the weights."""
    weight, view = torch.randn(5, 3), torch.randn(4, 6, 3, 3).contiguous(memory_format=torch.channels_last)
    tensors = [weight, view, torch.tensor(7), torch.empty(0, 2), torch.randn(9)[::1].bfloat16()]
    offload = Offload(tensors, torch.device("cpu"))
    assert offload.receive() is None
    before = [tensor.clone() for tensor in tensors]
    offload.send(torch.ones(1), True)
    for tensor in tensors:
        tensor.zero_()
    found_inf, drift = offload.receive()
    assert found_inf == 1 and drift and offload.receive() is None
    for received, tensor, original in zip(offload.received, before, tensors, strict=True):
        assert torch.equal(received, tensor) and received.stride() == original.stride()
    with pytest.raises(
        NotImplementedError, match=r"device must be that of the model \(cpu\) or the CPU, got meta"
    ):
        Offload(tensors, torch.device("meta"))


@pytest.mark.gpu
def test_an_average_in_host_memory():
    model = network().cuda()
    here, there = WeightEMA(model, 0.9), WeightEMA(model, 0.9, device="cpu")
    scaler_flag = torch.zeros(1, device="cuda")
    for number in range(5):
        train(model)
        scaler_flag.fill_(number == 2)
        torch.cuda.set_sync_debug_mode("error")
        here.update(found_inf=scaler_flag)
        torch.cuda.set_sync_debug_mode("default")
        there.update(found_inf=scaler_flag)
    assert there.module[0].weight.device.type == "cpu" and there.step == here.step == 4
    for name, tensor in there.module.state_dict().items():
        torch.testing.assert_close(tensor, here.module.state_dict()[name].cpu())
    before = weights(model)
    with there.swapped():
        torch.testing.assert_close(model[0].weight.cpu(), there.module[0].weight)
    assert_equal(weights(model), before)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"skip_nonfinite": True},
        {"dtype": torch.bfloat16, "rounding": "stochastic"},
        {"every": 2, "start": 1},
    ],
    ids=str,
)
def test_update_inside_a_cuda_graph(options):
    """The same bits as outside, the schedule going on from replay to replay, and found_inf live."""
    models = network().cuda(), network().cuda()
    inside, outside = (WeightEMA(model, schedules.running_mean(0.9), **options) for model in models)
    flag = torch.zeros(1, device="cuda")
    start = copy.deepcopy(inside.state_dict())
    inside.update(found_inf=flag)  # tables are uploaded
    inside.load_state_dict(start)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inside.update(found_inf=flag)
    for number in range(6):
        train(models[0])
        models[1].load_state_dict(models[0].state_dict())
        flag.fill_(number == 3)
        graph.replay()
        outside.update(found_inf=flag)
        assert_equal(weights(inside.module), weights(outside.module))
    assert inside.step == outside.step == 5
