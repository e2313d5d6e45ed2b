"""The Triton backend without a GPU: its kernels in Triton's interpreter on CPU tensors, and compiled for three GPUs.

Run as a program this file does the compiling, in a process without TRITON_INTERPRET (read when a kernel is decorated).
"""

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
from mtkernels.ops.ema import EmaOptions
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
if interpreted or __name__ == "__main__":
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


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_compiles(target, tmp_path):
    found = _python(__file__, target, TRITON_CACHE_DIR=str(tmp_path))
    assert found.returncode == 0, found.stderr
    compiled = found.stdout.splitlines()
    assert len(compiled) > 20 and all(int(line.split()[1]) > 1000 for line in compiled), found.stdout


def _compile_for(target: str) -> None:
    """Prints each compiled kernel's name and the size of its code. The launches are the backend's, stopped short."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(
            lambda: (
                GPUTarget("hip", target, 64)
                if target.startswith("gfx")
                else GPUTarget("cuda", int(target[3:]), 32)
            )
        )

    def compile_only(kernel):
        run = kernel.run

        def warmup(*args, grid, warmup, **options):
            compiled = run(*args, grid=grid, warmup=True, **options)
            print(kernel.__name__, len(compiled.asm["amdgcn" if target.startswith("gfx") else "ptx"]))

        kernel.run = warmup

    driver.set_active(Driver())
    names = (
        "consistency",
        "mean_teacher_loss",
        "multi_tensor_dot",
        "temporal_ensemble",
        "sharpen",
        "augment",
    )
    for name in ("ema_update", "scale", "swap", "nonfinite", *names):
        compile_only(getattr(_module(name), f"_{name}_kernel"))
    compile_only(_module("mean_teacher_loss")._count_kernel)
    _compile_losses()
    for dtype in (F32, BF16):
        triton.scale_(torch.ones(5000, dtype=dtype), torch.ones(()))
    for pairs in ([(F32, F32)], [(BF16, BF16)], list(itertools.product(FLOATS, FLOATS))):
        for decay in (0.99, torch.tensor(0.99)):
            teacher, student = _pairs(pairs * 2)
            triton.ema_update(teacher, student, decay, len(pairs))
    _compile_ema_options()
    _compile_others()
    data = [torch.ones(n, dtype=dtype) for n, dtype in itertools.product((7, 4096), FLOATS)]
    triton.swap_(data, [tensor.clone() for tensor in data])
    triton.nonfinite_(torch.zeros(()), data)


def _pairs(dtypes) -> tuple[list, list]:
    return tuple([torch.ones(4096, dtype=dtype) for dtype in side] for side in zip(*dtypes, strict=True))


def _compile_losses() -> None:
    """Each loss plain, in rows of one block and of several, and with all its options; strided classes; each dtype."""
    for op in LOSSES:
        options = {"weight": True, "gradients": 3}
        if op.name != "logit_mse":
            options |= {
                "student_temperature": 0.5,
                "teacher_temperature": 2.0,
                "center": True,
                "threshold": 0.9,
            }
        op.call(triton, op.make(((64, 1000),), F32))
        op.call(triton, op.make(((2, 20000),), BF16), reduction="none")
        op.call(triton, op.make(((64, 10),), F64), reduction="sum", **options)
    target = OPS["softmax_cross_entropy"]
    for shape, dtype, hard in (((2, 1200, 8, 8), F32, False), ((64, 100), F16, True)):
        options = {"hard": hard, "label_smoothing": 0.1, "threshold": torch.tensor(0.9), "dim": 1}
        target.call(triton, target.make((shape,), dtype), gradients=3 - 2 * hard, **options)
    _module("mean_teacher_loss")._COUNTED = 0
    for shape, dtype, options in (
        ((64, 10), F32, {"heads": 1}),
        ((64, 100), BF16, {"kl": True, "by_labeled": True, "consistency_weight": torch.tensor(1.0)}),
        ((2, 20000), F32, {"by_labeled": True}),
        ((2, 700, 4, 4), F64, {"heads": 1, "kl": True, "dim": 1, "with_gradient": False}),
    ):
        OBJECTIVE.call(triton, OBJECTIVE.make((shape,), dtype), **options)


def _compile_others() -> None:
    for with_norms in (False, True):
        for pairs in ([(F32, F32)], list(itertools.product(FLOATS, FLOATS))):
            triton.multi_tensor_dot(*_pairs(pairs), with_norms)
    ensemble, sharpen = OPS["temporal_ensemble_"], OPS["sharpen"]
    for dtype, shape in ((F32, (64, 10)), (F64, (64, 1000)), (BF16, (2, 20000))):
        for options in ensemble.options:
            ensemble.call(triton, ensemble.make((shape,), dtype), **options)
        updates = torch.ones(1).int()
        if dtype is not F32:  # an ensemble that is narrower than the accumulator, or wider than the logits
            (student,), (samples,) = ensemble.make((shape,), dtype)
            ensemble.call(triton, ([student], [samples.to(BF16 if dtype is F64 else F64)]))
        ensemble.call(triton, ensemble.make((shape,), dtype), correction="bias", updates=updates)
        for temperature, dim in ((0.5, 0), (torch.tensor(0.5), -1)):
            sharpen.call(triton, sharpen.make((shape,), dtype), temperature=temperature, dim=dim)
    augment = OPS["augment"]
    for options, shapes, dtype in zip(
        augment.options, itertools.cycle(list(augment.cases.values())[:5]), itertools.cycle((F32, BF16, F16))
    ):
        augment.call(triton, augment.make(shapes, dtype), **options)


def _compile_ema_options() -> None:
    step, flag = torch.ones((), dtype=torch.int64), torch.zeros(())
    for schedule in SCHEDULES:
        triton.ema_update(*_pairs([(F32, F32)]), schedule, 0, None, EmaOptions(step))
    halves = list(itertools.product((BF16, F16), (F32, F64, BF16)))
    teacher, student = _pairs(halves)
    low = [torch.zeros(4096, dtype=torch.int16) for _ in teacher]
    triton.ema_update(teacher, student, 0.9, 0, None, EmaOptions(step, stochastic=True))
    triton.ema_update(teacher, student, 0.9, 0, None, EmaOptions(7, low, found_inf=flag))
    for averages in (1, 3):
        drift = torch.zeros(averages, dtype=torch.float64)
        options = EmaOptions(step, None, True, 7, flag, drift, 2, 1, True)
        teacher, student = _pairs([(F32, F32), (BF16, F32), (F64, F16)])
        low = [None, torch.zeros(4096, dtype=torch.int16), None] + [None] * 3 * (averages - 1)
        decays = [0.9, torch.tensor(0.9), SCHEDULES[0]][:averages]
        copies = [tensor.clone() for _ in range(averages) for tensor in teacher]
        triton.ema_update(copies, student, decays, 0, None, options._replace(low=low))


if __name__ == "__main__":
    _compile_for(sys.argv[1])
