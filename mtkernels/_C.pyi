"""The native module: checks arguments and runs the CPU and CUDA kernels.

csrc/bindings.cpp, with ema_bindings.cpp, loss_bindings.cpp, target_bindings.cpp and augment_bindings.cpp.
"""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from mtkernels._options import LossOptions
from mtkernels.ops.ema import Decay, EmaOptions
from mtkernels.schedules import Schedule

class BuildInfo(TypedDict):
    compiler: str
    cuda: str | None
    cuda_archs: list[str]
    cpu: str
    threads: int

class EmaPlan:
    """Lists of tensors whose table is made once; each update looks whether one moved, and only then makes it again."""

    teacher: tuple[Tensor, ...]
    student: tuple[Tensor, ...]
    low: tuple[Tensor | None, ...]
    copied: int
    names: list[str] | None
    def __init__(
        self,
        teacher: Sequence[Tensor],
        student: Sequence[Tensor],
        averages: int = 1,
        copied: int = 0,
        names: list[str] | None = None,
        low: Sequence[Tensor | None] | None = None,
    ) -> None: ...
    def update(self, decay: Decay | Sequence[Decay], options: EmaOptions | None = None) -> None: ...
    def check(self, decay: Decay | Sequence[Decay], options: EmaOptions | None = None) -> int: ...
    def rows(self, target_rows: int) -> bytes: ...

class Slots:
    """Dicts, and the entries that they had."""

    def __init__(self, holders: Sequence[dict]) -> None: ...
    def same(self) -> bool: ...

def ema_update(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    decay: Decay | Sequence[Decay],
    copied: int = 0,
    names: list[str] | None = None,
    options: EmaOptions | None = None,
) -> None: ...
def ema_rows(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    decay: Decay | Sequence[Decay],
    copied: int,
    names: list[str] | None,
    options: EmaOptions | None,
    target_rows: int,
) -> bytes: ...
def decay_at(schedule: Schedule, step: float) -> float: ...
def swap_(teacher: Sequence[Tensor], student: Sequence[Tensor], names: list[str] | None = None) -> None: ...
def swap_rows(
    teacher: Sequence[Tensor], student: Sequence[Tensor], names: list[str] | None, target_rows: int
) -> bytes: ...
def nonfinite_(found: Tensor, tensors: Sequence[Tensor]) -> None: ...
def nonfinite_rows(found: Tensor, tensors: Sequence[Tensor], target_rows: int) -> bytes: ...

# The loss, the student's gradient, the teacher's, and the utilization.
Loss = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]

def softmax_mse(
    student: Tensor,
    teacher: Tensor,
    dim: int = -1,
    reduction: str = "mean",
    gradients: int = 0,
    options: LossOptions | None = None,
) -> Loss: ...
def softmax_kl(
    student: Tensor,
    teacher: Tensor,
    dim: int = -1,
    reduction: str = "mean",
    gradients: int = 0,
    options: LossOptions | None = None,
) -> Loss: ...
def softmax_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    dim: int = -1,
    reduction: str = "mean",
    gradients: int = 0,
    options: LossOptions | None = None,
) -> Loss: ...
def softmax_js(
    student: Tensor,
    teacher: Tensor,
    dim: int = -1,
    reduction: str = "mean",
    gradients: int = 0,
    options: LossOptions | None = None,
) -> Loss: ...
def softmax_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    dim: int = -1,
    reduction: str = "mean",
    gradients: int = 0,
    options: LossOptions | None = None,
) -> Loss: ...
def logit_mse(
    student: Tensor,
    teacher: Tensor,
    dim: int = -1,
    reduction: str = "mean",
    gradients: int = 0,
    options: LossOptions | None = None,
) -> Loss: ...
def check_consistency(
    op: str,
    student: Tensor,
    teacher: Tensor,
    dim: int,
    reduction: str,
    options: LossOptions | None = None,
    gradients: int = 0,
) -> None: ...
def mean_teacher_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    second: Tensor | None = None,
    dim: int = -1,
    consistency_weight: float | Tensor = 1.0,
    logit_distance_cost: float | Tensor = 0.0,
    kl: bool = False,
    by_labeled: bool = False,
    ignore_index: int = -1,
    with_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]: ...
def check_mean_teacher_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    second: Tensor | None,
    dim: int,
    consistency_weight: float | Tensor,
    logit_distance_cost: float | Tensor,
    ignore_index: int,
) -> None: ...
def scale_(data: Tensor, factor: Tensor) -> None: ...
def multi_tensor_dot(
    first: Sequence[Tensor | None], second: Sequence[Tensor | None], with_norms: bool = False
) -> Tensor: ...
def multi_tensor_dot_rows(
    first: Sequence[Tensor | None], second: Sequence[Tensor | None], with_norms: bool, target_rows: int
) -> tuple[bytes, Tensor]: ...
def temporal_ensemble_(
    ensemble: Tensor,
    index: Tensor,
    student: Tensor,
    alpha: float = 0.6,
    updates: int | Tensor | None = None,
    correction: str = "bias",
    reduction: str = "mean",
    with_gradient: bool = False,
) -> tuple[Tensor, Tensor | None]: ...
def check_temporal_ensemble(
    ensemble: Tensor,
    index: Tensor,
    student: Tensor,
    alpha: float,
    updates: int | Tensor | None,
    correction: str,
    reduction: str,
) -> None: ...
def sharpen(probs: Tensor, temperature: float | Tensor, dim: int = -1) -> Tensor: ...
def check_sharpen(probs: Tensor, temperature: float | Tensor, dim: int) -> None: ...
def augment(
    images: Tensor,
    index: Tensor | None,
    geometry: Tensor,
    size: Sequence[int] | None,
    color: Tensor | None,
    clamp: bool,
    erase: Tensor | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    border: str,
    fill: float | Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor: ...
def check_augment(
    images: Tensor,
    index: Tensor | None,
    geometry: Tensor,
    size: Sequence[int] | None,
    color: Tensor | None,
    erase: Tensor | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    border: str,
    fill: float | Sequence[float],
    dtype: torch.dtype,
) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...], tuple[float, ...]]: ...
def build_info() -> BuildInfo: ...
