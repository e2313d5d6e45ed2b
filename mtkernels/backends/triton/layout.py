"""How a consistency kernel walks its logits: the row dims merged, the tile, the number of programs. Cached by shape."""

import functools
import math
from dataclasses import dataclass

import triton
import triton.language as tl

_ROW_DIMS = 4  # as csrc/consistency.h
_TILE = 2048  # logits of a tile of short rows
_PROGRAMS = 4096  # each walks several tiles where there are more: the last one adds up as many partial losses


@dataclass(frozen=True)
class Layout:
    rows: int
    tiles: int  # of the whole: each of `tile_rows` rows of the innermost row dim
    inner: int  # rows of that dim
    inner_tiles: int
    classes: int  # in units
    sizes: tuple[int, int]  # of the middle two of the four row dims
    strides: tuple[
        tuple[int, ...], ...
    ]  # of the logits and gradients: classes, then the four row dims in units
    row_strides: tuple[tuple[int, ...], ...]  # of what has a number for each row: 0, then the four row dims
    unit: int
    tile_rows: int
    block: int
    one_block: bool
    num_warps: int

    @property
    def programs(self) -> int:
        return max(1, min(self.tiles, _PROGRAMS))


@functools.lru_cache(maxsize=256)
def layout(
    op: str,
    shape: tuple[int, ...],
    dim: int,
    strides: tuple[tuple[int, ...], ...],
    row_strides: tuple[tuple[int, ...], ...] = (),
    halvings: int = 0,
    argument: str = "student",
) -> Layout:
    """strides: of student, teacher and other tensors of their shape; row_strides: of tensors without `dim`.

    halvings: of the tile, for kernels that hold much of each logit.
    """
    dim %= len(shape)
    logits = len(strides)
    strides = (*strides, *((*stride[:dim], 0, *stride[dim:]) for stride in row_strides))
    dims = _merged(shape, dim, strides)
    if len(dims) > _ROW_DIMS:
        raise NotImplementedError(
            f"{op}: {argument} must have rows along at most {_ROW_DIMS} dims that lie apart in memory, "
            f"got strides {list(strides[0])}"
        )
    *outer, (inner, inner_strides) = dims or [(1, (0,) * len(strides))]
    outer += [(1, (0,) * len(strides))] * (_ROW_DIMS - 1 - len(outer))
    by_row = [(*(stride[k] for _, stride in outer), inner_strides[k]) for k in range(len(strides))]
    class_strides = [stride[dim] if shape[dim] > 1 else 1 for stride in strides[:logits]]
    unit = 1
    if all(stride == 1 for stride in class_strides):
        unit = math.gcd(16, shape[dim], *(stride for operand in by_row[:logits] for stride in operand))
    block, tile_rows, one_block = _tile(shape[dim], inner, class_strides[0] > inner_strides[0] > 0, halvings)
    inner_tiles = triton.cdiv(inner, tile_rows)
    return Layout(
        rows=inner * math.prod(size for size, _ in outer),
        tiles=inner_tiles * math.prod(size for size, _ in outer),
        inner=inner,
        inner_tiles=inner_tiles,
        classes=shape[dim] // unit,
        sizes=(outer[1][0], outer[2][0]),
        strides=tuple(
            (along, *(stride // unit for stride in operand))
            for along, operand in zip(class_strides, by_row[:logits], strict=True)
        ),
        row_strides=tuple((0, *operand) for operand in by_row[logits:]),
        unit=unit,
        tile_rows=tile_rows,
        block=block,
        one_block=one_block,
        num_warps=min(16, max(4, tile_rows * block // 512)),
    )


def _merged(shape, dim, strides) -> list[tuple[int, tuple[int, ...]]]:
    """(size, strides) of the row dims, the last fastest; neighbours that lie together in every operand are one."""
    dims: list[tuple[int, tuple[int, ...]]] = []
    for i in reversed(range(len(shape))):
        if i == dim or shape[i] == 1:
            continue
        along = tuple(stride[i] for stride in strides)
        if dims and along == tuple(stride * dims[0][0] for stride in dims[0][1]):
            dims[0] = (dims[0][0] * shape[i], dims[0][1])
        else:
            dims.insert(0, (shape[i], along))
    return dims


def _tile(classes: int, inner: int, strided: bool, halvings: int) -> tuple[int, int, bool]:
    """Classes and rows of a tile, and whether a row fits one. Strided classes: rows lie together, 16 at a time."""
    if strided:
        limit, least_rows = 1024 >> halvings, 16
    else:
        limit, least_rows = 16384 >> halvings, 1
    one_block = classes <= limit
    block = triton.next_power_of_2(classes) if one_block else limit // 2
    rows = max(least_rows, _TILE // block)
    return block, min(rows, triton.next_power_of_2(max(inner, 1))), one_block


@triton.jit
def first_of_row(pointer, outer, row, sizes, strides, UNIT: tl.constexpr):
    """Pointers to class 0 of rows of the innermost row dim, at an index over the three outer ones."""
    offset = outer // sizes[1] // sizes[0] * strides[1]
    offset += outer // sizes[1] % sizes[0] * strides[2]
    offset += outer % sizes[1] * strides[3]
    return pointer + (offset + row * strides[4]) * UNIT
