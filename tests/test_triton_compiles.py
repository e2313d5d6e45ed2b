"""Triton's kernels compiled for three GPUs, on a machine without any.

Run as a program this file does the compiling, in a process without TRITON_INTERPRET (read when a kernel is decorated).
sm_90 compiles every variant that the launches below ask for; the others leave out what repeats itself, as all pairs of
dtypes and the losses that differ by a line.
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


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_compiles(target, tmp_path):
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = kept | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, __file__, target]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr
    compiled = found.stdout.splitlines()
    assert len(compiled) > 20 and all(int(line.split()[1]) > 1000 for line in compiled), found.stdout


def _compile_for(target: str) -> None:
    """Prints each compiled kernel's name and the size of its code. The launches are the backend's, stopped short."""
    thorough = target == "sm_90"
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
    _compile_losses(LOSSES if thorough else LOSSES[:2])
    every_pair = (
        list(itertools.product(FLOATS, FLOATS)) if thorough else [(F64, F32), (F32, BF16), (F16, F16)]
    )
    for dtype in (F32, BF16):
        triton.scale_(torch.ones(5000, dtype=dtype), torch.ones(()))
    for pairs in ([(F32, F32)], [(BF16, BF16)], every_pair):
        for decay in (0.99, torch.tensor(0.99)):
            teacher, student = _pairs(pairs * 2)
            triton.ema_update(teacher, student, decay, len(pairs))
    _compile_ema_options(SCHEDULES if thorough else SCHEDULES[:2])
    _compile_others(every_pair, thorough)
    data = [torch.ones(n, dtype=dtype) for n, dtype in itertools.product((7, 4096), FLOATS)]
    triton.swap_(data, [tensor.clone() for tensor in data])
    triton.nonfinite_(torch.zeros(()), data)


def _pairs(dtypes) -> tuple[list, list]:
    return tuple([torch.ones(4096, dtype=dtype) for dtype in side] for side in zip(*dtypes, strict=True))


def _compile_losses(losses: list) -> None:
    """Each loss plain, in rows of one block and of several, and with all its options; strided classes; each dtype."""
    for op in losses:
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


def _compile_others(every_pair: list, thorough: bool) -> None:
    for with_norms in (False, True):
        for pairs in ([(F32, F32)], every_pair):
            triton.multi_tensor_dot(*_pairs(pairs), with_norms)
    ensemble, sharpen = OPS["temporal_ensemble_"], OPS["sharpen"]
    for dtype, shape in ((F32, (64, 10)), (F64, (64, 1000)), (BF16, (2, 20000))):
        for options in ensemble.options if thorough else ensemble.options[:1]:
            ensemble.call(triton, ensemble.make((shape,), dtype), **options)
        updates = torch.ones(1).int()
        if dtype is not F32:  # an ensemble that is narrower than the accumulator, or wider than the logits
            (student,), (samples,) = ensemble.make((shape,), dtype)
            ensemble.call(triton, ([student], [samples.to(BF16 if dtype is F64 else F64)]))
        ensemble.call(triton, ensemble.make((shape,), dtype), correction="bias", updates=updates)
        for temperature, dim in ((0.5, 0), (torch.tensor(0.5), -1)):
            sharpen.call(triton, sharpen.make((shape,), dtype), temperature=temperature, dim=dim)
    augment = OPS["augment"]
    shapes, dtypes = itertools.cycle(list(augment.cases.values())[:5]), itertools.cycle((F32, BF16, F16))
    for options in augment.options if thorough else augment.options[::3]:
        augment.call(triton, augment.make(next(shapes), next(dtypes)), **options)


def _compile_ema_options(schedules: tuple) -> None:
    step, flag = torch.ones((), dtype=torch.int64), torch.zeros(())
    for schedule in schedules:
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
    from mtkernels.backends import triton

    _compile_for(sys.argv[1])
