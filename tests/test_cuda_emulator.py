"""The CUDA kernels of the losses without a GPU: g++ compiles them, fibers run their threads (cuda_emulator/)."""

import shutil

import pytest
import torch
from cuda_emulator.build import OPS as NAMES
from cuda_emulator.build import build, load

from mtkernels._options import LossOptions
from mtkernels.backends import reference
from mtkernels.testing import (
    FLOATS,
    NAN_OPTIONS,
    OPS,
    check,
    check_empty_heads,
    check_ignored_weights,
    check_nan_rows,
)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

# Multiprocessors, bytes of shared memory, major compute capability: all rows in shared memory; long rows shared by
# clusters, or streamed; everything streamed; one thread for each of many rows.
DEVICES = {
    "large": (130, 200 * 1024, 9),
    "clusters": (2, 16 * 1024, 9),
    "no clusters": (2, 16 * 1024, 8),
    "tiny": (1, 5 * 1024, 9),
}
SHAPES = [(3, 4100), (40, 77), (2, 9000), (300, 10), (2, 7, 5, 33), (5, 1003)]


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    pytest.importorskip("pybind11")
    module = build(tmp_path_factory.mktemp("cuda_emulator"))
    return {name: load(module, *device) for name, device in DEVICES.items()}


def layouts(tensors, turn):
    """Contiguous; an element past an aligned address; rows that are not beside each other; classes that are not."""
    for tensor in tensors:
        wide = torch.empty((*tensor.shape[:-1], tensor.shape[-1] + turn % 4), dtype=tensor.dtype)
        laid = wide[..., turn % 4 :] if turn % 5 else torch.empty_like(tensor.mT).mT
        turn += 1
        yield laid.copy_(tensor)


# Each set of an op's options once, on the devices in turn: the emulator takes its time.
CASES = [(name, at) for name in NAMES for at in range(len(OPS[name].options))]


@pytest.mark.parametrize("turn", range(len(CASES)), ids=[f"{name}-{at}" for name, at in CASES])
def test_is_as_exact_as_the_reference(turn, devices):
    name, at = CASES[turn]
    device = devices[list(DEVICES)[turn % len(DEVICES)]]
    op, dtype, shape = OPS[name], FLOATS[turn // 4 % len(FLOATS)], SHAPES[turn % len(SHAPES)]
    scale = (0.5, 3.0, 10.0)[turn % 3]

    def make(seed):
        made = op.make((shape,), dtype, seed=seed, scale=scale)
        return tuple(list(layouts(tensors, turn)) for tensors in made)

    if dtype != torch.float64:
        return check(op, device, make, **op.options[at])
    inputs = make(0)  # no yardstick is good enough for a few numbers
    outputs, truths = (op.call(backend, inputs, **op.options[at]) for backend in (device, reference))
    lost = 8 * scale * torch.finfo(dtype).eps  # by a logarithm of a probability, as large as the logits' span
    for ours, truth in zip(outputs, truths, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=lost)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES[:-1])
def test_equal_sides_and_masked_rows_give_exactly_0(name, device, devices):
    logits = torch.randn(7, 2051) * 10
    logits[1, :] = -torch.inf
    logits[2, 5:] = -torch.inf
    for options in (None, LossOptions(student_temperature=0.3, teacher_temperature=0.3)):
        if name == "logit_mse" and options:
            continue
        loss, of_student, of_teacher, _ = getattr(devices[device], name)(
            logits, logits, -1, "none", 3, options
        )
        assert (of_student == 0).all()
        if name != "softmax_cross_entropy":
            assert (loss == 0).all() and (of_teacher == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES[:-1])
def test_nan_rows_and_weights_of_rows_that_do_not_count(name, device, devices):
    dtype, options = FLOATS[list(DEVICES).index(device)], NAN_OPTIONS[name]
    for classes in (10, 77, 1003):
        for chosen in options if classes == 77 else options[:1]:
            check_nan_rows(OPS[name], devices[device], dtype, classes, **chosen)
        check_ignored_weights(OPS[name], devices[device], classes)


@pytest.mark.parametrize("device", DEVICES)
def test_a_head_that_is_masked_throughout_has_no_distance(device, devices):
    for kl, classes in ((False, 10), (True, 10), (False, 1003), (True, 1003)):
        check_empty_heads(devices[device], kl, classes)


@pytest.mark.parametrize("device", DEVICES)
def test_one_launch(device, devices):
    logits, labels = torch.randn(70, 40), torch.arange(70) % 40
    emulated = devices[device]
    for name in NAMES[:-1]:
        before = emulated.launches()
        getattr(emulated, name)(logits, logits, -1, "mean", 3, None)
        assert emulated.launches() == before + 1
    before = emulated.launches()
    emulated.mean_teacher_loss(logits, logits, labels, logits, -1, 1.0, 0.1, True, True, -1, True)
    assert emulated.launches() == before + 1
