"""softmax_kl: row loss = sum_c q_c (log q_c - log p_c), gradient = p_c - q_c."""

from torch import Tensor

from mtkernels.backends.triton.consistency import consistency


def softmax_kl(
    student: Tensor, teacher: Tensor, dim: int = -1, reduction: str = "mean", with_gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    return consistency("softmax_kl", student, teacher, dim, reduction, with_gradient)
