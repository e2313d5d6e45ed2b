"""The losses on a GPU: numbers that stay live in a captured graph, rows of every length, labels out of range.

On a CPU the same, smaller: gpu_helpers.py.
"""

import pytest
import torch
from gpu_helpers import captured, devices, same

import mtkernels
from mtkernels.backends import native
from mtkernels.testing import OPS, check


@devices
def test_a_threshold_stays_live_in_a_graph(device):
    student = torch.randn(256, 100, device=device, requires_grad=True)
    teacher = torch.randn(256, 100, device=device)
    threshold = torch.tensor(0.0, device=device)

    def call():
        loss = mtkernels.softmax_cross_entropy(student, teacher, threshold=threshold, hard=True)
        return loss, *torch.autograd.grad(loss, student)

    outputs, replay = captured(call, device)
    before = outputs[0].item()
    for value in (0.05, 0.1, 1.0):
        threshold.fill_(value)
        replay()
        assert same(outputs, call()) and outputs[0] < before
        before = outputs[0].item()


@devices
def test_the_weights_of_mean_teacher_loss_stay_live_in_a_graph(device):
    student, second, teacher = (torch.randn(4096, 10, device=device) for _ in range(3))
    labels = torch.arange(4096, device=device) % 11 - 1
    weight, cost = torch.tensor(0.0, device=device), torch.tensor(0.0, device=device, dtype=torch.float64)

    def call():
        return native.mean_teacher_loss(
            student, teacher, labels, second, -1, weight, cost, True, True, -1, True
        )

    outputs, replay = captured(call, device)
    for value in (100.0, 0.0, 0.5):
        weight.fill_(value), cost.fill_(value / 2)
        replay()
        assert same(outputs, call())


@pytest.mark.parametrize("name", [name for name in OPS if name.startswith("softmax_") or name == "logit_mse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [8191, 32768, 131072, 262147, 600_000])
@devices
def test_long_rows(device, classes, dtype, name):
    """In a block, in clusters of 2 to 16 blocks, streamed; the second time more rows than there are multiprocessors."""
    if device == "cpu":
        classes = classes // 1000 + 4

    def make(rows, classes):
        def logits(seed):  # drawn on the device: in host memory that takes seconds
            generator = torch.Generator(device).manual_seed(seed)
            sides = (torch.randn(rows, classes, device=device, generator=generator) for _ in range(2))
            return tuple([(3 * side).to(dtype)] for side in sides)

        return logits

    # A few classes decide how exact a row is: numbers of rows, not of classes, are what makes the largest error sure.
    check(OPS[name], native, make(3, classes), draws=16, least=16, gradients=3)
    check(OPS[name], native, make(150, classes // 4), draws=16)


@devices
def test_more_than_2_to_the_31_logits(device):
    rows, classes = (8200, 262_144) if device == "cuda" else (8, 256)
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 14 GB of free GPU memory")
    logits = torch.randn(1, classes, device=device, dtype=torch.bfloat16)
    student = torch.zeros(rows, classes, device=device, dtype=torch.bfloat16)
    student[-1] = logits
    losses, gradient, _, _ = native.softmax_mse(student, logits.expand_as(student), -1, "none", 1)
    assert losses[-1] == 0 and (gradient[-1] == 0).all()
    assert (losses[:-1] == losses[0]).all() and losses[0] > 0
    assert torch.equal(gradient[0], gradient[-2])


@pytest.mark.parametrize("label", [-2, 10, 2**40])
@devices
def test_a_label_out_of_range_makes_the_total_and_its_row_nan(device, label):
    logits = torch.randn(64, 10, device=device)
    labels = torch.zeros(64, dtype=torch.int64, device=device)
    labels[7] = label

    def call():
        return native.mean_teacher_loss(logits, logits, labels, None, -1, 1.0, 0.0, False, False, -1, True)

    if device == "cpu":  # where it can be seen before the launch
        with pytest.raises(ValueError, match="mean_teacher_loss: labels"):
            call()
        return
    total, parts, counts, gradient, _ = call()
    assert total.isnan() and parts[0].isnan() and parts[1] == 0
    assert counts[0] == 64 and gradient[7].isnan().all()
    assert gradient[:7].isfinite().all() and gradient[8:].isfinite().all()
