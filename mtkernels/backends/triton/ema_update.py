"""ema_update: teacher <- decay * teacher + (1 - decay) * student over a whole model: one program per row of the plan.

Rows and codes are those of csrc/plan.h, the arithmetic is that of csrc/ema_update.h.
"""

import functools
import struct

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.triton.launch import FP_FUSION, is_capturing, on_device

_TARGET_ROWS = 4096  # two waves of 16 programs on each of 132 multiprocessors
_BLOCK = 1024  # elements of a step; a row's chunk is a multiple of 2048
_F64 = (1, 4, 5, 6, 7, 9, 13)  # the averages of pairs with fp64 in them; a conversion needs no accumulator
# dtype.h's f32, f64, f16, bf16; then a byte and a word of 4.
_TYPES = tl.constexpr((tl.float32, tl.float64, tl.float16, tl.bfloat16, tl.int8, tl.int32))


@triton.jit
def _pointer(address, TAG: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(_TYPES[TAG]))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _step(dst, src, mask, weight, from_teacher, AVERAGE: tl.constexpr):
    dtype: tl.constexpr = dst.dtype.element_ty
    student = tl.load(src, mask=mask)
    if AVERAGE:
        doubles: tl.constexpr = dtype == tl.float64 or src.dtype.element_ty == tl.float64
        wide: tl.constexpr = tl.float64 if doubles else tl.float32
        student = student.to(wide)
        teacher = tl.load(dst, mask=mask).to(wide)
        near = tl.where(from_teacher, teacher, student)
        far = tl.where(from_teacher, student, teacher)
        weight = tl.cast(weight, wide)
        blended = tl.where(weight == 0, near, near + weight * (far - near))
        student = tl.where(far == near, near, blended)
    if student.dtype == tl.float64 and dtype != tl.float64:
        student = student.to(tl.float32)  # as torch narrows
    tl.store(dst, student.to(dtype), mask=mask)


@triton.jit
def _row(
    dst, src, count, weight, from_teacher, CODE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    # 32 and 33 are the copies of bytes and of words.
    dst_tag: tl.constexpr = CODE - 28 if CODE >= 32 else CODE % 16 // 4
    src_tag: tl.constexpr = CODE - 28 if CODE >= 32 else CODE % 4
    teacher = _pointer(dst, dst_tag, ALIGNED)
    student = _pointer(src, src_tag, ALIGNED)
    at = tl.arange(0, BLOCK)
    whole = count // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        # Without a mask, so that the accesses are 16 bytes wide.
        _step(teacher + start + at, student + start + at, None, weight, from_teacher, CODE < 16)
    rest = whole + at
    _step(teacher + rest, student + rest, rest < count, weight, from_teacher, CODE < 16)


@triton.jit(do_not_specialize=["weight", "from_teacher"])
def _ema_update_kernel(
    rows,  # [programs, 4] int64: dst, src, count, code
    weight,  # of the far side: a number; the bits of an fp64 one where DOUBLES; or, IN_MEMORY, where the decay lies
    from_teacher,  # whether the near side is the teacher's: decay > 1/2
    VARIANTS: tl.constexpr,  # the 2 * code + aligned that occur: no other is compiled
    DOUBLES: tl.constexpr,
    IN_MEMORY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if IN_MEMORY:
        decay = tl.load(weight)
        if DOUBLES:
            decay = decay.to(tl.float64)
        from_teacher = decay > 0.5
        weight = tl.where(from_teacher, 1 - decay, decay)
    else:
        from_teacher = from_teacher != 0
        if DOUBLES:
            weight = weight.to(tl.int64).to(tl.float64, bitcast=True)
    row = rows + 4 * tl.program_id(0).to(tl.int64)
    dst = tl.load(row)
    src = tl.load(row + 1)
    count = tl.load(row + 2)
    variant = 2 * tl.load(row + 3) + ((dst | src) % 16 == 0).to(tl.int64)
    for i in tl.static_range(len(VARIANTS)):
        if variant == VARIANTS[i]:
            _row(dst, src, count, weight, from_teacher, VARIANTS[i] // 2, VARIANTS[i] % 2 == 1, BLOCK)


def ema_update(teacher, student, decay: float | Tensor, copied: int = 0, names=None) -> None:
    """The last `copied` pairs, integers and bools are copied. A decay on the weights' device is read by the kernel."""
    rows = _C.ema_rows(teacher, student, decay, copied, names, _TARGET_ROWS)
    if not rows:
        return
    device = teacher[0].device
    table, variants, doubles = (_captured_table if is_capturing(device) else _table)(rows, device)
    in_memory = isinstance(decay, Tensor) and decay.device == device
    weight, from_teacher = (decay, 0) if in_memory else _weight(float(decay), doubles)
    with on_device(device):
        _ema_update_kernel[(len(rows) // 32,)](
            table,
            weight,
            from_teacher,
            VARIANTS=variants,
            DOUBLES=doubles,
            IN_MEMORY=in_memory,
            BLOCK=_BLOCK,
            enable_fp_fusion=FP_FUSION,
        )


def _weight(decay: float, doubles: bool) -> tuple[float | int, int]:
    """Triton hands a float over as fp32, so that an fp64 one goes as its bits."""
    from_teacher = decay > 0.5
    weight = 1.0 - decay if from_teacher else decay
    return struct.unpack("q", struct.pack("d", weight))[0] if doubles else weight, int(from_teacher)


@functools.lru_cache(maxsize=64)
def _table(rows: bytes, device: torch.device) -> tuple[Tensor, tuple[int, ...], bool]:
    """The plan's rows on the device, uploaded when they are new and only then; its variants; whether it has fp64."""
    if is_capturing(device):
        raise RuntimeError(
            "ema_update: teacher must have been updated by Triton once before the capture of a graph (its table is "
            "uploaded then), got tensors or addresses that are new"
        )
    table = np.frombuffer(rows, dtype=np.int64).reshape(-1, 4)
    dst, src, _, code = table.T
    variants = tuple(np.unique(2 * code + ((dst | src) % 16 == 0)).tolist())
    doubles = any(variant // 2 in _F64 for variant in variants)
    return torch.from_numpy(table.copy()).to(device), variants, doubles


@functools.cache
def _captured_table(rows: bytes, device: torch.device) -> tuple[Tensor, tuple[int, ...], bool]:
    """Kept for good: a captured graph reads its table at every replay."""
    return _table(rows, device)
