"""The table of csrc/plan.h on the device, as the kernels of the multi-tensor ops walk it: one program per row.

A row is 4 int64 (src, count, code, first), then 2 (dst, low) for each average. Uploaded when it is new, and only then.
"""

import functools
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.triton.launch import is_capturing

TARGET_ROWS = 4096  # two waves of 16 programs on each of 132 multiprocessors
BLOCK = 1024  # elements of a step; a row's chunk is a multiple of 2048
_F64 = (1, 4, 5, 6, 7, 9, 13)  # the averages of pairs with fp64 in them; a conversion needs no accumulator
# dtype.h's f32, f64, f16, bf16; then a byte and a word of 4.
_TYPES = tl.constexpr((tl.float32, tl.float64, tl.float16, tl.bfloat16, tl.int8, tl.int32))


@triton.jit
def pointer(address, TAG: tl.constexpr, ALIGNED: tl.constexpr):
    typed = address.to(tl.pointer_type(_TYPES[TAG]))
    return tl.multiple_of(typed, 16) if ALIGNED else typed


class Table(NamedTuple):
    rows: Tensor  # [programs, 4 + 2 * averages] int64
    # 2 * code + aligned + 128 * (a bit for each average that has a low-order part): those that occur, in order. A
    # kernel compiles no other.
    variants: tuple[int, ...]
    doubles: bool  # whether any average needs fp64


_PLANS: WeakKeyDictionary[_C.EmaPlan, tuple[int, Table]] = WeakKeyDictionary()  # by number, of living plans


def table_of(op: str, rows: bytes, averages: int, device: torch.device) -> Table:
    """Found again by its content."""
    return _for_launch(_table_of(op, rows, averages, device))


def table_of_plan(plan: _C.EmaPlan, number: int) -> Table:
    """Found again by the number of the plan's table. It goes with the plan."""
    known = _PLANS.get(plan)
    if known is None or known[0] != number:
        averages = len(plan.teacher) // len(plan.student)
        table = _upload("ema_update", plan.rows(TARGET_ROWS), averages, plan.student[0].device)
        known = _PLANS[plan] = number, table
    return _for_launch(known[1])


def _for_launch(table: Table) -> Table:
    if is_capturing(table.rows.device):
        _keep(table.rows)
    return table


@functools.cache
def _keep(rows: Tensor) -> Tensor:
    """For good: a captured graph reads its table at every replay."""
    return rows


@functools.lru_cache(maxsize=64)
def _table_of(op: str, rows: bytes, averages: int, device: torch.device) -> Table:
    return _upload(op, rows, averages, device)


def _upload(op: str, rows: bytes, averages: int, device: torch.device) -> Table:
    if is_capturing(device):
        argument = {"nonfinite_": "tensors", "multi_tensor_dot": "first"}.get(op, "teacher")
        raise RuntimeError(
            f"{op}: {argument} must have been given to Triton once before the capture of a graph (its table is "
            "uploaded then), got tensors or addresses that are new"
        )
    width = 4 + 2 * averages
    # Where all tensors are empty, one row of no elements: a step advances all the same.
    table = np.frombuffer(rows or bytes(8 * width), dtype=np.int64).reshape(-1, width)
    places = np.bitwise_or.reduce(table[:, 4:], axis=1) | table[:, 0]
    code = table[:, 2]
    lows = (table[:, 5::2] != 0) @ (1 << np.arange(averages)) * (code < 16)
    variants = tuple(np.unique(2 * code + (places % 16 == 0) + 128 * lows).tolist())
    doubles = any(variant % 128 // 2 in _F64 for variant in variants)
    return Table(torch.from_numpy(table.copy()).to(device), variants, doubles)
