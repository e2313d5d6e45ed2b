"""What tests and benches read: OPS, a row per op, and `check`, how a backend is held against the reference."""

from mtkernels.testing._check import check
from mtkernels.testing._ops import FLOATS, OPS, OTHERS, Op, Shapes, random_lists, visited

__all__ = ["FLOATS", "OPS", "OTHERS", "Op", "Shapes", "check", "random_lists", "visited"]
