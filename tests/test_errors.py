"""What bad input gets: one sentence with op, argument, must and is, and nothing is written."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import mtkernels

A, B = torch.ones(3), torch.zeros(3)


class Elsewhere(nn.Module):
    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(2)))


def quantized():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


EMA = {
    "shape": (
        lambda: ([A, torch.ones(64, 3)], [B, torch.ones(64, 4)], 0.9),
        ValueError,
        "ema_update: teacher[1] must have the shape of its student [64, 4], got [64, 3]",
    ),
    "shape of a named tensor": (
        lambda: ({"conv1.weight": torch.ones(2)}, {"conv1.weight": torch.ones(3)}, 0.9),
        ValueError,
        "ema_update: teacher[0] ('conv1.weight') must have the shape of its student [3], got [2]",
    ),
    "length": (
        lambda: ([A, A], [B], 0.9),
        ValueError,
        "ema_update: student must have as many tensors as teacher (2), got 1",
    ),
    "empty against one": (
        lambda: ([], [B], 0.9),
        ValueError,
        "ema_update: student must have as many tensors as teacher (0), got 1",
    ),
    "no tensor": (
        lambda: ([A], [[1.0, 2.0, 3.0]], 0.9),
        TypeError,
        "ema_update: student[0] must be a torch.Tensor, got list",
    ),
    "a number": (
        lambda: ([1.0], [A], 0.9),
        TypeError,
        "ema_update: teacher[0] must be a torch.Tensor, got float",
    ),
    "integers into floats": (
        lambda: ([A], [torch.ones(3, dtype=torch.int64)], 0.9),
        TypeError,
        "ema_update: teacher[0] must have the dtype of its student (torch.int64) or a floating one like it, "
        "got torch.float32",
    ),
    "complex into real": (
        lambda: ([A], [torch.ones(3, dtype=torch.complex64)], 0.9),
        TypeError,
        "ema_update: teacher[0] must have the dtype of its student (torch.complex64) or a floating one like it, "
        "got torch.float32",
    ),
    "float8": (
        lambda: ([A.to(torch.float8_e4m3fn)], [A.to(torch.float8_e4m3fn)], 0.9),
        NotImplementedError,
        "ema_update: teacher[0] must be float16, bfloat16, float32 or float64, complex, integer or bool, "
        "got torch.float8_e4m3fn",
    ),
    "memory format": (
        lambda: (
            [torch.ones(2, 3, 4, 4)],
            [torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)],
            0.9,
        ),
        ValueError,
        "ema_update: student[0] must have the memory format of its teacher, strides [48, 16, 4, 1], got [48, 1, 12, 3]",
    ),
    "expanded teacher": (
        lambda: ([torch.ones(1).expand(3)], [B], 0.9),
        ValueError,
        "ema_update: teacher[0] must fill its memory without overlaps, got strides [0]",
    ),
    "gaps": (
        lambda: ([torch.ones(6)[::2]], [torch.ones(6)[::2]], 0.9),
        ValueError,
        "ema_update: teacher[0] must have a dim of stride 1, got strides [2]",
    ),
    "meta": (
        lambda: ([A], [torch.ones(3, device="meta")], 0.9),
        TypeError,
        "ema_update: student[0] must be a dense tensor in memory, "
        "got layout torch.strided, dtype torch.float32 on meta",
    ),
    "sparse": (
        lambda: ([A], [torch.ones(3).to_sparse()], 0.9),
        TypeError,
        "ema_update: student[0] must be a dense tensor in memory, "
        "got layout torch.sparse_coo, dtype torch.float32 on cpu",
    ),
    "quantized": (
        lambda: ([A], [quantized()], 0.9),
        TypeError,
        "ema_update: student[0] must be a dense tensor in memory, got layout torch.strided, dtype torch.qint8 on cpu",
    ),
    "conj": (
        lambda: ([torch.ones(3, dtype=torch.complex64)], [torch.ones(3, dtype=torch.complex64).conj()], 0.9),
        TypeError,
        "ema_update: student[0] must hold its values in memory (use resolve_conj()), got a lazy conj view",
    ),
    "neg": (
        lambda: ([torch.ones(2)[:1]], [torch.ones(1, dtype=torch.complex64).conj().imag], 0.9),
        TypeError,
        "ema_update: student[0] must hold its values in memory (use resolve_neg()), got a lazy neg view",
    ),
    "the student itself": (
        lambda: ([A], [A], 0.9),
        ValueError,
        "ema_update: teacher[0] must have memory of its own, got that of its student",
    ),
    "a teacher twice": (
        lambda: ([A, A], [B, torch.ones(3)], 0.9),
        ValueError,
        "ema_update: teacher[1] must have memory of its own, got that of an earlier teacher in another pair",
    ),
    "a part of a teacher": (
        lambda: ([A[:2], A], [B[:2], B], 0.9),
        ValueError,
        "ema_update: teacher[1] must have memory of its own, got that of an earlier teacher in another pair",
    ),
    "neg with a dim of one": (
        lambda: ([torch.ones(3, 1)], [torch.ones(3, dtype=torch.complex64).conj().imag.unsqueeze(-1)], 0.9),
        TypeError,
        "ema_update: student[0] must hold its values in memory (use resolve_neg()), got a lazy neg view",
    ),
    "decay past floats": (
        lambda: ([A], [B], 10**400),
        ValueError,
        "ema_update: decay must be between 0 and 1, got a larger number than a float holds",
    ),
    "decay above 1": (
        lambda: ([A], [B], 1.5),
        ValueError,
        "ema_update: decay must be between 0 and 1, got 1.5",
    ),
    "decay NaN": (
        lambda: ([A], [B], float("nan")),
        ValueError,
        "ema_update: decay must be between 0 and 1, got nan",
    ),
    "decay tensor out of range": (
        lambda: ([A], [B], torch.tensor(-0.5)),
        ValueError,
        "ema_update: decay must be between 0 and 1, got -0.5",
    ),
    "decay of two": (
        lambda: ([A], [B], torch.ones(2)),
        ValueError,
        "ema_update: decay must be a number or hold one, got shape [2]",
    ),
    "decay of integers": (
        lambda: ([A], [B], torch.tensor(1)),
        TypeError,
        "ema_update: decay must be float32 or float64, got torch.int64",
    ),
    "decay of no kind": (
        lambda: ([A], [B], "0.9"),
        TypeError,
        "ema_update: decay must be a number, a torch.Tensor or a schedule, got str",
    ),
    "names": (
        lambda: ({"a": A}, {"b": B}, 0.9),
        ValueError,
        "ema_update: student must have the tensors of its teacher, got none named 'a'",
    ),
    "names of parameters": (
        lambda: (Elsewhere("a"), Elsewhere("a", "b"), 0.9),
        ValueError,
        "ema_update: student must have the parameters of its teacher, got also one named 'b'",
    ),
    "two kinds": (
        lambda: (Elsewhere("a"), {"a": A}, 0.9),
        TypeError,
        "ema_update: teacher must be a module, a mapping or a sequence of tensors, as student is, got Elsewhere",
    ),
    "a tensor for a list": (
        lambda: (A, B, 0.9),
        TypeError,
        "ema_update: teacher must be a module, a mapping or a sequence of tensors, as student is, got Tensor",
    ),
}


@pytest.mark.parametrize("case", EMA)
def test_ema_update_refuses(case):
    make, error, message = EMA[case]
    with pytest.raises(error) as caught:
        mtkernels.ema_update(*make())
    assert str(caught.value) == message
    assert torch.equal(A, torch.ones(3)) and torch.equal(B, torch.zeros(3))


def test_ema_update_refuses_buffers():
    with pytest.raises(ValueError) as caught:
        mtkernels.ema_update(nn.Linear(1, 1), nn.Linear(1, 1), 0.9, buffers="mean")
    assert str(caught.value) == "ema_update: buffers must be 'average', 'copy' or 'keep', got 'mean'"
    with pytest.raises(ValueError) as caught:
        mtkernels.ema_update([A], [B], 0.9, buffers="copy")
    assert str(caught.value) == (
        "ema_update: buffers must be 'average' where teacher is no module (a list does not tell its buffers), "
        "got 'copy'"
    )


def test_a_refused_update_writes_nothing():
    """The bad pair comes last."""
    teacher = [torch.ones(1000) for _ in range(50)] + [torch.ones(2)]
    student = [torch.zeros(1000) for _ in range(50)] + [torch.ones(3)]
    with pytest.raises(ValueError, match=r"teacher\[50\] must have the shape"):
        mtkernels.ema_update(teacher, student, 0.9)
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in teacher)


def test_dtensors_beside_plain_tensors_are_refused_by_name(tmp_path):
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = torch.distributed.tensor.distribute_tensor(torch.ones(3), mesh)
        for teacher, student, message in (
            (
                [B, sharded],
                [A, A],
                r"teacher\[1\] must be sharded as its student is \(not a DTensor\), got .*Replicate",
            ),
            (
                {"a": B},
                {"a": sharded},
                r"teacher\[0\] \('a'\) must be sharded as .*Replicate.*, got not a DTensor",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                mtkernels.ema_update(teacher, student, 0.9)
        assert not B.any() and sharded.to_local().all()
        with pytest.raises(TypeError, match=r"must hold its data in this process .*, got DTensor"):
            mtkernels.softmax_mse(sharded, torch.ones(3))
    finally:
        torch.distributed.destroy_process_group()


def test_inference_tensors_are_taken():
    with torch.inference_mode():
        teacher, student = torch.ones(3), torch.zeros(3)
        mtkernels.ema_update([teacher], [student], 0.5)
        assert torch.equal(teacher, torch.full((3,), 0.5))
        assert mtkernels.softmax_mse(torch.randn(2, 3), torch.randn(2, 3)).ndim == 0
