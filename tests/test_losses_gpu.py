"""The losses on a GPU: numbers that stay live in a captured graph, rows of every length, labels out of range."""

import pytest
import torch

import mtkernels
from mtkernels.backends import native
from mtkernels.testing import OPS, check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not native.HAS_CUDA, reason="a build without CUDA kernels"),
]


def captured(call):
    """call(), and a graph that repeats it into what it gave."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return outputs, graph


def same(outputs, expected):
    return all(torch.equal(ours, theirs) for ours, theirs in zip(outputs, expected, strict=True))


def test_a_threshold_stays_live_in_a_graph():
    student, teacher = (torch.randn(256, 100, device="cuda", requires_grad=True) for _ in range(2))
    threshold = torch.tensor(0.0, device="cuda")

    def call():
        loss = mtkernels.softmax_cross_entropy(student, teacher, threshold=threshold, hard=True)
        return loss, *torch.autograd.grad(loss, student)

    outputs, graph = captured(call)
    for value in (0.05, 0.1, 1.0):
        threshold.fill_(value)
        graph.replay()
        assert same(outputs, call())


def test_the_weights_of_mean_teacher_loss_stay_live_in_a_graph():
    student, second, teacher = (torch.randn(4096, 10, device="cuda", requires_grad=True) for _ in range(3))
    labels = torch.arange(4096, device="cuda") % 11 - 1
    weight, cost = torch.tensor(0.0, device="cuda"), torch.tensor(0.0, device="cuda", dtype=torch.float64)

    def call():
        return native.mean_teacher_loss(
            student.detach(),
            teacher.detach(),
            labels,
            second.detach(),
            -1,
            weight,
            cost,
            True,
            True,
            -1,
            True,
        )

    outputs, graph = captured(call)
    for value in (100.0, 0.0, 0.5):
        weight.fill_(value), cost.fill_(value / 2)
        graph.replay()
        assert same(outputs, call())


@pytest.mark.parametrize("name", [name for name in OPS if name.startswith("softmax_") or name == "logit_mse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [8191, 32768, 131072, 262147, 600_000])
def test_long_rows(classes, dtype, name):
    """In a block, in clusters of 2 to 16 blocks, streamed."""
    op = OPS[name]
    check(op, native, lambda seed: op.make(((3, classes),), dtype, "cuda", seed), gradients=3)
    check(op, native, lambda seed: op.make(((300, classes // 4),), dtype, "cuda", seed))


def test_more_than_2_to_the_31_logits():
    rows, classes = 8200, 262_144
    if torch.cuda.get_device_properties(0).total_memory < 20 * 2**30:
        pytest.skip("needs 14 GB of GPU memory")
    logits = torch.randn(1, classes, device="cuda", dtype=torch.bfloat16)
    student = torch.zeros(rows, classes, device="cuda", dtype=torch.bfloat16)
    student[-1] = logits
    losses, gradient, _, _ = native.softmax_mse(student, logits.expand_as(student), -1, "none", 1)
    assert losses[-1] == 0 and (gradient[-1] == 0).all()
    assert (losses[:-1] == losses[0]).all() and losses[0] > 0
    assert torch.equal(gradient[0], gradient[-2])


@pytest.mark.parametrize("label", [-2, 10, 2**40])
def test_a_label_out_of_range_makes_the_total_and_its_row_nan(label):
    logits = torch.randn(64, 10, device="cuda")
    labels = torch.zeros(64, dtype=torch.int64, device="cuda")
    labels[7] = label
    total, parts, counts, gradient, _ = native.mean_teacher_loss(
        logits, logits, labels, None, -1, 1.0, 0.0, False, False, -1, True
    )
    assert total.isnan() and parts[0].isnan() and parts[1] == 0
    assert counts[0] == 64 and gradient[7].isnan().all()
    assert gradient[:7].isfinite().all() and gradient[8:].isfinite().all()
