"""swap_: teacher <-> student, over any number of tensors: one program per row of the plan."""

import triton
import triton.language as tl

from mtkernels import _C
from mtkernels.backends.triton.launch import FP_FUSION, on_device
from mtkernels.backends.triton.table import BLOCK, TARGET_ROWS, pointer, table_of


@triton.jit
def _step(teacher, student, mask):
    kept = tl.load(teacher, mask=mask)
    tl.store(teacher, tl.load(student, mask=mask), mask=mask)
    tl.store(student, kept, mask=mask)


@triton.jit
def _row(dst, src, count, CODE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    teacher = pointer(dst, CODE - 28, ALIGNED)
    student = pointer(src, CODE - 28, ALIGNED)
    at = tl.arange(0, BLOCK)
    whole = count // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        _step(teacher + start + at, student + start + at, None)  # without a mask: 16 bytes wide
    _step(teacher + whole + at, student + whole + at, whole + at < count)


@triton.jit
def _swap_kernel(rows, VARIANTS: tl.constexpr, BLOCK: tl.constexpr):
    row = rows + 6 * tl.program_id(0).to(tl.int64)
    src = tl.load(row)
    count = tl.load(row + 1)
    dst = tl.load(row + 4)
    variant = 2 * tl.load(row + 2) + ((dst | src) % 16 == 0).to(tl.int64)
    for i in tl.static_range(len(VARIANTS)):
        if variant == VARIANTS[i]:
            _row(dst, src, count, VARIANTS[i] // 2, VARIANTS[i] % 2 == 1, BLOCK)


def swap_(teacher, student, names=None) -> None:
    """Bits move as they are."""
    rows = _C.swap_rows(teacher, student, names, TARGET_ROWS)
    if rows:
        table = table_of("swap_", rows, 1, teacher[0].device)
        with on_device(teacher[0].device):
            _swap_kernel[(len(table.rows),)](
                table.rows, VARIANTS=table.variants, BLOCK=BLOCK, enable_fp_fusion=FP_FUSION
            )
