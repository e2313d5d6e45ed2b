"""Triton's kernels compiled for three GPUs, on a machine without any.

Run as a program this file does the compiling, in a process without TRITON_INTERPRET (read when a kernel is decorated).
sm_90 compiles what tells kernels apart: each loss, walk, schedule, set of options and dtype, though not each with each
other; the other two, whose code generation is what differs, each kernel once or twice, with much in it.
"""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from test_triton import BF16, F16, F32, F64, LOSSES, OBJECTIVE, SCHEDULES, _module

from mtkernels.ops.ema import EmaOptions
from mtkernels.testing import FLOATS, OPS

pytest.importorskip("triton", reason="Triton is not installed")


_FILES = ("ema_update", "scale", "swap", "nonfinite", "consistency", "mean_teacher_loss", "multi_tensor_dot")
_FILES += ("temporal_ensemble", "sharpen", "augment")
KERNELS = {f"_{name}_kernel": name for name in _FILES}


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_compiles(target, tmp_path):
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = kept | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, __file__, target]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr
    compiled = [line.split() for line in found.stdout.splitlines()]
    assert {name for name, _ in compiled} == {*KERNELS, "_count_kernel"}
    assert all(int(size) > 1000 for _, size in compiled), found.stdout


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
    for kernel, name in KERNELS.items():
        compile_only(getattr(_module(name), kernel))
    compile_only(_module("mean_teacher_loss")._count_kernel)
    _module("mean_teacher_loss")._COUNTED = 0
    triton.scale_(torch.ones(5000, dtype=BF16), torch.ones(()))
    data = [torch.ones(n, dtype=dtype) for n, dtype in itertools.product((7, 4096), FLOATS)]
    triton.swap_(data, [tensor.clone() for tensor in data])
    triton.nonfinite_(torch.zeros(()), data)
    if target == "sm_90":
        _compile_variants()
    else:
        _compile_each_once()


def _compile_each_once() -> None:
    pairs = [(F64, F32), (F32, BF16), (F16, F16)]
    triton.ema_update(*_pairs(pairs * 2), torch.tensor(0.99), len(pairs))
    _compile_ema_with_everything(averages=3)
    triton.multi_tensor_dot(*_pairs(pairs), True)
    for name, shape, dtype, options in (
        ("softmax_mse", (64, 1000), F32, _loaded(OPS["softmax_mse"])),
        ("softmax_js", (2, 20000), BF16, {}),
        ("softmax_cross_entropy", (2, 1200, 8, 8), F64, {"dim": 1, "label_smoothing": 0.1}),
        ("mean_teacher_loss", (64, 100), BF16, {"kl": True, "by_labeled": True}),
        ("temporal_ensemble_", (2, 20000), BF16, {"correction": "bias", "updates": torch.ones(1).int()}),
        ("sharpen", (64, 1000), F16, {"temperature": torch.tensor(0.5)}),
    ):
        OPS[name].call(triton, OPS[name].make((shape,), dtype), **options)
    augment = OPS["augment"]
    augment.call(triton, augment.make(next(iter(augment.cases.values())), BF16), **augment.options[-1])


def _compile_variants() -> None:
    every_pair = list(itertools.product(FLOATS, FLOATS))
    _compile_losses()
    for pairs, decay in (
        ([(F32, F32)], 0.99),
        ([(BF16, BF16)], torch.tensor(0.99)),
        (every_pair, 0.99),
    ):
        teacher, student = _pairs(pairs * 2)
        triton.ema_update(teacher, student, decay, len(pairs))
    _compile_ema_options()
    _compile_others(every_pair)


def _pairs(dtypes) -> tuple[list, list]:
    return tuple([torch.ones(4096, dtype=dtype) for dtype in side] for side in zip(*dtypes, strict=True))


def _loaded(op) -> dict:
    """With all options of a loss."""
    options = {"weight": True, "gradients": 3}
    if op.name == "logit_mse":
        return options
    return options | {
        "student_temperature": 0.5,
        "teacher_temperature": 2.0,
        "center": True,
        "threshold": 0.9,
    }


def _compile_losses() -> None:
    """Each loss in rows of one block, with all its options in turn with none; of several; strided classes."""
    for at, op in enumerate(LOSSES):
        op.call(triton, op.make(((64, 1000),), F32))
        if at % 2:
            op.call(triton, op.make(((2, 20000),), BF16), reduction="none")
        else:
            op.call(triton, op.make(((64, 10),), F64), reduction="sum", **_loaded(op))
    target = OPS["softmax_cross_entropy"]
    for shape, dtype, hard in (((2, 1200, 8, 8), F32, False), ((64, 100), F16, True)):
        options = {"hard": hard, "label_smoothing": 0.1, "threshold": torch.tensor(0.9), "dim": 1}
        target.call(triton, target.make((shape,), dtype), gradients=3 - 2 * hard, **options)
    for shape, dtype, options in (
        ((64, 10), F32, {"heads": 1}),
        ((64, 100), BF16, {"kl": True, "by_labeled": True, "consistency_weight": torch.tensor(1.0)}),
        ((2, 20000), F32, {"by_labeled": True}),
        ((2, 700, 4, 4), F64, {"heads": 1, "kl": True, "dim": 1, "with_gradient": False}),
    ):
        OBJECTIVE.call(triton, OBJECTIVE.make((shape,), dtype), **options)


def _compile_others(every_pair: list) -> None:
    for with_norms, pairs in ((False, [(F32, F32)]), (True, every_pair)):
        triton.multi_tensor_dot(*_pairs(pairs), with_norms)
    ensemble, sharpen = OPS["temporal_ensemble_"], OPS["sharpen"]
    for at, (dtype, shape) in enumerate(((F32, (64, 10)), (F64, (64, 1000)), (BF16, (2, 20000)))):
        for options in ensemble.options[at::3]:
            ensemble.call(triton, ensemble.make((shape,), dtype), **options)
        if dtype is not F32:  # an ensemble that is narrower than the accumulator, or wider than the logits
            (student,), (samples,) = ensemble.make((shape,), dtype)
            wide = [samples.to(BF16 if dtype is F64 else F64)]
            ensemble.call(triton, ([student], wide), correction="bias", updates=torch.ones(1).int())
        live = torch.tensor(0.5) if at else 0.5
        sharpen.call(triton, sharpen.make((shape,), dtype), temperature=live, dim=-(at % 2))
    augment = OPS["augment"]
    shapes, dtypes = itertools.cycle(list(augment.cases.values())[:5]), itertools.cycle((F32, BF16, F16))
    for options in augment.options:
        augment.call(triton, augment.make(next(shapes), next(dtypes)), **options)


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
        _compile_ema_with_everything(averages)


def _compile_ema_with_everything(averages: int) -> None:
    step, flag = torch.ones((), dtype=torch.int64), torch.zeros(())
    drift = torch.zeros(averages, dtype=torch.float64)
    teacher, student = _pairs([(F32, F32), (BF16, F32), (F64, F16)])
    low = [None, torch.zeros(4096, dtype=torch.int16), None] + [None] * 3 * (averages - 1)
    decays = [0.9, torch.tensor(0.9), SCHEDULES[0]][:averages]
    copies = [tensor.clone() for _ in range(averages) for tensor in teacher]
    triton.ema_update(
        copies, student, decays, 0, None, EmaOptions(step, low, True, 7, flag, drift, 2, 1, True)
    )


if __name__ == "__main__":
    from mtkernels.backends import triton

    _compile_for(sys.argv[1])
