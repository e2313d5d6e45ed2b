"""softmax_mse: row loss = (1/C) sum_c (p_c - q_c)^2, gradient = (2/C) p_c ((p_c - q_c) - sum_k p_k (p_k - q_k))."""

from torch import Tensor

from mtkernels.backends.triton.consistency import consistency


def softmax_mse(
    student: Tensor, teacher: Tensor, dim: int = -1, reduction: str = "mean", with_gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    return consistency("softmax_mse", student, teacher, dim, reduction, with_gradient)
