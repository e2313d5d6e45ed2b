"""ema_multi_avg_fn in torch's AveragedModel, against torch's own."""

import itertools

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from mtkernels import schedules
from mtkernels.compat.averaged_model import ema_multi_avg_fn

from .models import Net, Training, assert_same, tensors


def _run(multi_avg_fn, steps=6, dtype=torch.float32, after=lambda average, step: None, **options):
    model = Net().to(dtype)
    average = AveragedModel(model, multi_avg_fn=multi_avg_fn, **options)
    training = Training(model)
    for step in range(steps):
        training.step()
        average.update_parameters(model)
        after(average, step)
    return average


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999, 1.0])
def test_same_as_torch(decay):
    ours, theirs = _run(ema_multi_avg_fn(decay)), _run(get_ema_multi_avg_fn(decay))
    assert_same(tensors(ours), tensors(theirs))
    assert int(ours.n_averaged) == 6


def test_averaged_buffers_and_copied_counters():
    ours = _run(ema_multi_avg_fn(0.9), use_buffers=True)
    theirs = _run(get_ema_multi_avg_fn(0.9), use_buffers=True)
    for one, other in zip(tensors(ours.module), tensors(theirs.module), strict=True):
        if one.is_floating_point():
            assert_same([one], [other])
    # torch averages the counter and cuts it off: 1 stays 1, since 0.9 * 1 + 0.1 * 2 = 1.1.
    assert int(ours.module.norm.num_batches_tracked) == 6
    assert int(theirs.module.norm.num_batches_tracked) < 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    assert_same(
        tensors(_run(ema_multi_avg_fn(0.9), dtype=dtype)),
        tensors(_run(get_ema_multi_avg_fn(0.9), dtype=dtype)),
    )


def test_a_running_mean_is_swa():
    # torch averages with 1 / (n_averaged + 1): the mean of all weights since the first update, which copies.
    ours, theirs = _run(ema_multi_avg_fn(schedules.running_mean(1.0))), _run(get_swa_multi_avg_fn())
    assert_same(tensors(ours), tensors(theirs))


SCHEDULES = [
    schedules.running_mean(0.9),
    schedules.ratio(0.9),
    schedules.inverse_gamma(0.9),
    schedules.switched(0.5, 0.9, at=3),
    schedules.cosine(0.9, steps=5),
    schedules.half_life(10, rampup=0.5),
    schedules.power_function(0.1),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedules_count_from_the_second_update(schedule):
    def by_hand(averaged, current, num_averaged):
        torch._foreach_lerp_(averaged, current, 1 - schedule(int(num_averaged)))

    assert_same(tensors(_run(ema_multi_avg_fn(schedule))), tensors(_run(by_hand)))


def test_the_step_as_an_int_or_another_dtype():
    averaged, current = [torch.zeros(3)], [torch.ones(3)]
    function = ema_multi_avg_fn(schedules.running_mean(0.999))
    for step in (1, torch.tensor(1, dtype=torch.int32), torch.tensor(1)):
        averaged[0].zero_()
        function(averaged, current, step)
        assert torch.equal(averaged[0], torch.full((3,), 0.5))
    function([], [], torch.tensor(1))


@pytest.mark.gpu
def test_the_step_on_another_device():
    averaged, current = [torch.zeros(3, device="cuda")], [torch.ones(3, device="cuda")]
    ema_multi_avg_fn(schedules.running_mean(0.999))(averaged, current, torch.tensor(1))
    assert torch.equal(averaged[0].cpu(), torch.full((3,), 0.5))


def test_a_decay_that_lives_in_a_tensor():
    decay = torch.tensor(0.5)

    def after(average, step):
        decay.fill_(0.9)

    values = itertools.chain([0.5], itertools.repeat(0.9))

    def by_hand(averaged, current, num_averaged):
        torch._foreach_lerp_(averaged, current, 1 - by_hand.decay)

    by_hand.decay = next(values)

    def after_by_hand(average, step):
        by_hand.decay = next(values)

    assert_same(
        tensors(_run(ema_multi_avg_fn(decay), after=after)), tensors(_run(by_hand, after=after_by_hand))
    )


def test_the_state_dict_is_torchs():
    ours = _run(ema_multi_avg_fn(0.9))
    theirs = AveragedModel(Net(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.load_state_dict(ours.state_dict())
    assert_same(tensors(theirs), tensors(ours), ulps=0)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_refused_values(decay):
    with pytest.raises(ValueError, match=r"ema_multi_avg_fn: decay must be between 0 and 1, got"):
        ema_multi_avg_fn(decay)


@pytest.mark.parametrize("decay", [None, True, "0.9", [0.9]])
def test_refused_types(decay):
    with pytest.raises(TypeError, match=r"ema_multi_avg_fn: decay must be a number, a 0-d tensor or one of"):
        ema_multi_avg_fn(decay)
