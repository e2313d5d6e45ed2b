"""The Triton backend without a GPU: its kernels in Triton's interpreter on CPU tensors."""

import importlib
import itertools
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtkernels import schedules
from mtkernels.backends import reference
from mtkernels.testing import FLOATS, OPS, OTHERS, check

pytest.importorskip("triton", reason="Triton is not installed")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(
        not interpreted, reason="TRITON_INTERPRET is not 1: test_ops.py runs the kernels on the GPU"
    ),
    pytest.mark.filterwarnings(
        "ignore::RuntimeWarning:triton"
    ),  # numpy's, of inf - inf in elements that are discarded
]
if interpreted:
    from mtkernels.backends import triton

F32, F64, F16, BF16 = FLOATS
OBJECTIVE = OPS["mean_teacher_loss"]
LOSSES = [op for name, op in OPS.items() if name not in ("ema_update", "mean_teacher_loss", *OTHERS)]
SCHEDULES = (
    schedules.running_mean(0.999),
    schedules.ratio(0.9999),
    schedules.inverse_gamma(0.9999, inv_gamma=3.0, power=0.75, min_decay=0.3),
    schedules.switched(0.99, 0.999, at=40),
    schedules.cosine(0.996, steps=1000),
    schedules.half_life(1000.0, rampup=0.05),
    schedules.power_function(0.05),
    schedules.debiased(0.999),
)
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))


def _module(name):
    return importlib.import_module(f"mtkernels.backends.triton.{name}")


def _check(op, make, draws=2, most=64, **options):
    """`check`, with the interpreter on the first draws alone, since it is slow: the yardstick gets them all."""
    drawn = itertools.count()

    def call(backend, inputs, **options):
        return op.call(
            reference if backend is triton and next(drawn) >= draws else backend, inputs, **options
        )

    check(replace(op, call=call), triton, make, draws=most, **options)


def _rows():  # op and shapes of each case, and its number; the losses have a file of their own
    for op in OPS.values():
        for at, (case, shapes) in (
            enumerate(op.cases.items()) if op not in LOSSES and op is not OBJECTIVE else ()
        ):
            yield pytest.param(op, shapes, at, id=f"{op.name}-{case.replace(' ', '_')}")


def _options(op, case, dtype):
    """All in fp32, else the first; of augment, of which there are many, a quarter in each case, else one."""
    if op.name != "augment":
        return op.options if dtype is F32 else op.options[:1]
    every = 4 if dtype is F32 else len(op.options)
    return op.options[case % every :: every]


@dtypes
@pytest.mark.parametrize(("op", "shapes", "case"), list(_rows()))
def test_op_equals_reference(op, shapes, case, dtype):
    if op.name == "augment" and dtype is F64:
        return  # which no view is
    large = max(torch.Size(shape).numel() for shape in shapes) > 50_000
    if large and dtype is not F32:
        pytest.skip("the interpreter is slow: fp32 only")
    for options in op.options[:1] if large else _options(op, case, dtype):
        most = 16 if op.name == "augment" else 64  # whose reference is slow
        _check(op, lambda seed: op.make(shapes, dtype, seed=seed), most=most, **options)


@pytest.fixture(autouse=True)
def bfloat16_to_nearest(monkeypatch):
    """As a GPU rounds and widens, where the interpreter truncates and takes subnormal numbers for others."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def rounding_cast(self, src, dst_type):
        if src.dtype.scalar == tl.bfloat16 and dst_type.scalar == tl.float32:
            return TensorHandle((src.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
        if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
            return cast(self, src, dst_type)
        bits = torch.from_numpy(np.array(src.data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return TensorHandle(bits, tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)


# ---- scale_


@dtypes
def test_scale(dtype):
    factor_dtype = F64 if dtype is F64 else F32
    for size, value in itertools.product((0, 1, 7, 5000), (1.0, 0.3)):
        data = torch.randn(size + 1).to(dtype)[1:]
        scaled, factor = data.clone(), torch.tensor(value, dtype=factor_dtype)
        triton.scale_(scaled, factor)
        torch.testing.assert_close(scaled, (data.double() * factor.double()).to(dtype))


# ---- without the interpreter


def _python(*arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments], env=kept | environment, capture_output=True, text=True, timeout=600
    )


def test_triton_is_imported_by_its_backend_alone():
    code = "import sys, mtkernels; assert 'triton' not in sys.modules; sys.modules['triton'] = None\n"
    found = _python("-c", code + "import mtkernels.backends.triton")
    assert "ImportError: mtkernels.backends.triton must have Triton" in found.stderr, found.stderr
