"""The native module: checks arguments and runs the CPU and CUDA kernels. csrc/bindings.cpp."""

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

class BuildInfo(TypedDict):
    compiler: str
    cuda: str | None
    cuda_archs: list[str]
    cpu: str
    threads: int

def ema_update(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    decay: float | Tensor,
    copied: int = 0,
    names: list[str] | None = None,
) -> None: ...
def ema_rows(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    decay: float | Tensor,
    copied: int,
    names: list[str] | None,
    target_rows: int,
) -> bytes: ...
def softmax_mse(
    student: Tensor, teacher: Tensor, dim: int, reduction: str, with_gradient: bool
) -> tuple[Tensor, Tensor | None]: ...
def softmax_kl(
    student: Tensor, teacher: Tensor, dim: int, reduction: str, with_gradient: bool
) -> tuple[Tensor, Tensor | None]: ...
def check_consistency(op: str, student: Tensor, teacher: Tensor, dim: int, reduction: str) -> None: ...
def scale_(data: Tensor, factor: Tensor) -> None: ...
def build_info() -> BuildInfo: ...
