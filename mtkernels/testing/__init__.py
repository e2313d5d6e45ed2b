"""What tests and benches read: OPS, a row per op; `check`, how a backend is held against the reference; others."""

from mtkernels.testing._check import check
from mtkernels.testing._ops import FLOATS, OPS, OTHERS, Op, Shapes, random_lists, refuses, visited
from mtkernels.testing._special import NAN_OPTIONS, check_empty_heads, check_ignored_weights, check_nan_rows

__all__ = [
    "FLOATS",
    "NAN_OPTIONS",
    "OPS",
    "OTHERS",
    "Op",
    "Shapes",
    "check",
    "check_empty_heads",
    "check_ignored_weights",
    "check_nan_rows",
    "random_lists",
    "refuses",
    "visited",
]
