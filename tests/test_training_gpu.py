"""The trainer on a GPU, some of it on a CPU too: nothing waits, a captured step is the step, half precision trains."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from gpu_helpers import devices

from mtkernels.train.config import Config, SettingError
from mtkernels.train.data import load_dataset, make_feed
from mtkernels.train.loop import make_batches, make_method, make_step
from mtkernels.train.meter import Meter, NonFiniteError
from mtkernels.train.run import run

SMALL = Config(steps=12, eval_interval=0, width=8, batch_size=60, labeled_batch_size=20, pictures=False)


def trained(config, steps=12):
    """The method after so many steps, its meter, and the losses of each step."""
    data = load_dataset(config).to(torch.device(config.device))
    batches = make_batches(config, data)
    method = make_method(config, data, batches)
    step = make_step(method)
    meter, losses = Meter(step, data), []
    with make_feed(config, data, batches, method.views) as feed:
        for number in range(steps):
            terms = step(feed.batch(number), number)
            meter.add(terms, images=config.batch_size)
            losses.append(torch.stack(list(terms.values())).clone())
    return method, meter, torch.stack(losses)


def same(one, two, **tolerances):
    for role in ("student", "teacher"):
        for (name, ours), theirs in zip(
            getattr(one, role).state_dict().items(), getattr(two, role).state_dict().values(), strict=True
        ):
            torch.testing.assert_close(
                ours, theirs, msg=lambda text, name=name: f"{name}: {text}", **tolerances
            )


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.3},
        {"method": "pi-model", "logit_distance_cost": 0.1},
        {"precision": "bf16", "channels_last": True, "class_loss_over": "labeled"},
        {"precision": "fp16"},
        {"optimizer": "adam", "adam_beta2": (0.99, 0.99), "adam_epsilon": 1e-2, "ema_order": "before"},
    ],
)
def test_a_captured_step_is_the_step(changes):
    config = replace(SMALL, device="cuda", lr_rampup=5, consistency_rampup=6, **changes)
    plain, _, losses = trained(config)
    captured, _, replayed = trained(replace(config, cuda_graph=True))
    assert losses[-1].isfinite().all()
    half = config.precision != "fp32"
    torch.testing.assert_close(losses, replayed, rtol=2e-2 if half else 1e-3, atol=2e-3 if half else 1e-5)
    if not half:
        same(plain, captured, rtol=1e-2, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("arch", ["convnet13", "cifar_shakeshake26", "wrn-28-1"])
def test_the_networks_are_captured(arch):
    """On 32 x 32 pixels: the dataset's, repeated."""
    from mtkernels.train.step import Step

    config = replace(SMALL, arch=arch, batch_size=16, labeled_batch_size=4, device="cuda", lr=0.01)
    data = load_dataset(config).to(torch.device("cuda"))
    batches = make_batches(replace(config, arch="convnet"), data)

    def losses(cuda_graph):
        from mtkernels.train.loop import build_model
        from mtkernels.train.methods import METHODS
        from mtkernels.train.timeline import Timeline

        own = replace(config, cuda_graph=cuda_graph)
        torch.manual_seed(0)
        student = build_model(own, classes=10, channels=1).cuda()
        method = METHODS["mean-teacher"](student, Timeline(own, 80))
        step, found = make_step(method), []
        assert isinstance(step, Step)
        with make_feed(own, data, batches, 2) as feed:
            for number in range(7):
                batch = feed.batch(number)
                large = [view.repeat_interleave(4, 2).repeat_interleave(4, 3) for view in batch.views]
                terms = step(batch._replace(views=large), number)
                found.append(torch.stack(list(terms.values())).clone())
        return torch.stack(found)

    torch.testing.assert_close(losses(True), losses(False), rtol=2e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_step_waits_for_the_gpu(precision, cuda_graph):
    config = replace(SMALL, device="cuda", precision=precision, cuda_graph=cuda_graph)
    data = load_dataset(config).to(torch.device("cuda"))
    batches = make_batches(config, data)
    step = make_step(make_method(config, data, batches))
    meter = Meter(step, data)
    with make_feed(config, data, batches, 2) as feed:
        for number in range(10):
            if number == 6:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            try:
                batch = feed.batch(number)
                meter.add(step(batch, number), images=60)
            finally:
                if number == 9:
                    torch.cuda.set_sync_debug_mode("default")
    assert all(loss == loss for loss in meter.look(10).values())


@devices
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_like_single(device, precision):
    config = replace(
        SMALL, device=device, channels_last=True, labels=200, dropout=0.0, lr=0.05, consistency=1.0, steps=60
    )
    _, single, _ = trained(config, steps=60)
    method, half, losses = trained(replace(config, precision=precision), steps=60)
    assert all(weight.dtype == torch.float32 for weight in method.student.parameters())
    assert losses.isfinite().all()
    assert half.record(60)["student_error"] < single.record(60)["student_error"] + 12  # chance is 90


@devices
def test_a_step_that_is_not_finite_moves_nothing(device):
    config = replace(SMALL, device=device, lr=1e9, momentum=0.0, nesterov=False)
    method, meter, _ = trained(config)
    with pytest.raises(
        NonFiniteError, match=r"must stay finite, got .* at step \d+: try a lower lr"
    ) as error:
        meter.look(12)
    assert 0 < error.value.step < 12
    assert all(weight.isfinite().all() for weight in method.teacher.parameters())
    meter.step.restore_buffers()
    for model in (method.student, method.teacher):
        assert all(value.isfinite().all() for value in model.state_dict().values())


@devices
def test_a_run_is_resumed(device, tmp_path):
    config = replace(
        SMALL, device=device, out=tmp_path, checkpoint_interval=5, keep_checkpoints=5, lr_rampdown=0
    )
    whole, _ = run(replace(config, name="whole"))
    run(replace(config, name="cut", steps=5))
    cut, summary = run(replace(config, name="cut"), resume=tmp_path / "cut")
    from mtkernels.train.folder import load_model

    assert summary["steps_done"] == 12 and not summary["interrupted"]
    tolerances = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-3, "atol": 1e-4}
    for role in ("student", "teacher"):
        pairs = zip(load_model(whole, role).parameters(), load_model(cut, role).parameters(), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, **tolerances)


def test_cuda_graphs_need_a_gpu():
    with pytest.raises(
        SettingError, match="cuda_graph must be off but for one CUDA GPU, got True with device cpu"
    ):
        trained(replace(SMALL, cuda_graph=True))
