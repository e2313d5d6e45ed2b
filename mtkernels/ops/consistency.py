"""The losses between a student's logits and a teacher's: loss and gradients in one launch."""

from torch import Tensor

from mtkernels._options import LossOptions
from mtkernels.ops._consistency import LossAndUtilization, Reduction, options_of, run


def softmax_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    dim: int = -1,
    reduction: Reduction = "mean",
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    center: Tensor | None = None,
    weight: Tensor | None = None,
    threshold: float | Tensor | None = None,
    two_sided: bool = False,
    return_utilization: bool = False,
) -> Tensor | LossAndUtilization:
    """Mean squared error between the softmax of two tensors of logits.

    With T = student_temperature, p = softmax(student / T), q = softmax((teacher - center) / teacher_temperature) and C
    classes:
    row loss = (1/C) sum_c (p_c - q_c)^2,   d/dstudent_c = (2/C) p_c ((p_c - q_c) - sum_k p_k (p_k - q_k)) / T

    Args:
        student, teacher: raw logits of one shape, `[rows, classes]` or any with the classes along `dim`; float16,
            bfloat16, float32 or float64, also one of each.
        dim: the dim of the classes.
        reduction: over rows. "mean" equals `F.mse_loss(p, q)`: weights and thresholds do not change what it divides by;
            "none" gives one loss per row.
        student_temperature, teacher_temperature: what logits are divided by; a teacher's below 1 sharpens its
            probabilities, to q^(1/T) / sum q^(1/T).
        center: subtracted from the teacher's logits (DINO), one number per class. A constant.
        weight: of each row: the student's shape without `dim`, floating. A row of weight 0 counts as 0, whatever it
            holds. A constant.
        threshold: rows whose largest q is below it count as 0; a number in [0, 1], or a 0-d float32 or float64 tensor,
            which stays live in a captured CUDA graph.
        two_sided: both sides learn, as in the Pi-model; else the teacher is a constant, which must not require grad.
        return_utilization: also return the share of rows at the threshold or above it.

    Returns:
        float32, or float64 where either side is. 0-d, or the student's shape without `dim` for "none". A row that is
        -inf throughout on either side counts as 0, and so does a mean over no rows. With return_utilization:
        (loss, utilization).

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (2017).
    """
    options = options_of("softmax_mse", student_temperature, teacher_temperature, center, weight, threshold)
    return run("softmax_mse", student, teacher, dim, reduction, options, two_sided, return_utilization)


def softmax_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    dim: int = -1,
    reduction: Reduction = "mean",
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    center: Tensor | None = None,
    weight: Tensor | None = None,
    threshold: float | Tensor | None = None,
    two_sided: bool = False,
    return_utilization: bool = False,
) -> Tensor | LossAndUtilization:
    """Kullback-Leibler divergence of a student's softmax from a teacher's: KL(q || p), in nats.

    With T = student_temperature, p = softmax(student / T), q = softmax((teacher - center) / teacher_temperature):
    row loss = sum_c q_c (log q_c - log p_c),   d/dstudent_c = (p_c - q_c) / T

    Args:
        reduction: "mean" equals `F.kl_div(log p, q, reduction="batchmean")` of `[rows, classes]`.
        student, teacher, dim, student_temperature, teacher_temperature, center, weight, threshold, two_sided,
            return_utilization: as in `softmax_mse`. With temperatures T on both sides Hinton multiplies by T^2: that is
            left to you.

    Returns:
        As `softmax_mse`. A class that only the student excludes makes the loss infinite.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015).
    """
    options = options_of("softmax_kl", student_temperature, teacher_temperature, center, weight, threshold)
    return run("softmax_kl", student, teacher, dim, reduction, options, two_sided, return_utilization)


def softmax_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    dim: int = -1,
    reduction: Reduction = "mean",
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    center: Tensor | None = None,
    weight: Tensor | None = None,
    threshold: float | Tensor | None = None,
    two_sided: bool = False,
    return_utilization: bool = False,
) -> Tensor | LossAndUtilization:
    """Reverse Kullback-Leibler divergence: KL(p || q) of a teacher's softmax from a student's, in nats.

    With T, p and q as in `softmax_kl`:
    row loss = sum_c p_c (log p_c - log q_c),   d/dstudent_c = p_c ((log p_c - log q_c) - row loss) / T

    Args:
        student, teacher, dim, reduction, student_temperature, teacher_temperature, center, weight, threshold,
            two_sided, return_utilization: as in `softmax_mse`.

    Returns:
        As `softmax_mse`. A class that only the teacher excludes makes the loss infinite.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Gu et al., "MiniLLM: knowledge distillation of large language models" (2023).
    """
    options = options_of(
        "softmax_reverse_kl", student_temperature, teacher_temperature, center, weight, threshold
    )
    return run("softmax_reverse_kl", student, teacher, dim, reduction, options, two_sided, return_utilization)


def softmax_js(
    student: Tensor,
    teacher: Tensor,
    *,
    dim: int = -1,
    reduction: Reduction = "mean",
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    center: Tensor | None = None,
    weight: Tensor | None = None,
    threshold: float | Tensor | None = None,
    two_sided: bool = False,
    return_utilization: bool = False,
) -> Tensor | LossAndUtilization:
    """Jensen-Shannon divergence between a student's softmax and a teacher's, in nats: at most log 2.

    With T, p and q as in `softmax_kl`, m = (p + q) / 2:
    row loss = (KL(p || m) + KL(q || m)) / 2,   d/dstudent_c = p_c (log(p_c / m_c) - KL(p || m)) / (2 T)

    Args:
        student, teacher, dim, reduction, student_temperature, teacher_temperature, center, weight, threshold,
            two_sided, return_utilization: as in `softmax_mse`.

    Returns:
        As `softmax_mse`. Always finite: a class that one side excludes adds at most p_c log 2 / 2.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Lin, "Divergence measures based on the Shannon entropy" (1991).
    """
    options = options_of("softmax_js", student_temperature, teacher_temperature, center, weight, threshold)
    return run("softmax_js", student, teacher, dim, reduction, options, two_sided, return_utilization)


def softmax_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    *,
    dim: int = -1,
    reduction: Reduction = "mean",
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    center: Tensor | None = None,
    weight: Tensor | None = None,
    threshold: float | Tensor | None = None,
    hard: bool = False,
    label_smoothing: float = 0.0,
    two_sided: bool = False,
    return_utilization: bool = False,
) -> Tensor | LossAndUtilization:
    """Cross-entropy of a student's softmax against a teacher's, or against the teacher's pseudo-labels, in nats.

    With T, p and q as in `softmax_kl`, s = label_smoothing, and the target t = (1 - s) q + s / C:
    row loss = -sum_c t_c log p_c,   d/dstudent_c = (p_c - t_c) / T

    Args:
        hard: q becomes 1 at the teacher's largest class (the first of equal ones) and 0 elsewhere: with a threshold,
            FixMatch's pseudo-labels. The threshold still looks at the tempered softmax.
        label_smoothing: s, at least 0 and below 1.
        student, teacher, dim, reduction, student_temperature, teacher_temperature, center, weight, threshold,
            two_sided, return_utilization: as in `softmax_mse`; two_sided takes soft targets only.

    Returns:
        As `softmax_mse`. Infinite where the student excludes a class of the target: one that the teacher does not
        exclude; with hard the label's; with label_smoothing any, even one that both exclude. Of equal sides the
        entropy, without a gradient (soft targets, no smoothing).

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Sohn et al., "FixMatch" (2020); Caron et al., "Emerging properties in self-supervised vision
    transformers" (2021); Szegedy et al., "Rethinking the Inception architecture" (2015).
    """
    op = "softmax_cross_entropy"
    if two_sided and hard:
        raise ValueError(
            f"{op}: hard must be False where two_sided is True (labels have no gradient), got True"
        )
    options = options_of(
        op, student_temperature, teacher_temperature, center, weight, threshold, hard, label_smoothing
    )
    return run(op, student, teacher, dim, reduction, options, two_sided, return_utilization)


def logit_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    dim: int = -1,
    reduction: Reduction = "mean",
    weight: Tensor | None = None,
    two_sided: bool = True,
) -> Tensor:
    """Mean squared error between logits: what keeps two heads of a student together. Both sides learn.

    row loss = (1/C) sum_c (a_c - b_c)^2,   d/dstudent_c = (2/C) (a_c - b_c),   d/dteacher_c = -d/dstudent_c

    Args:
        student, teacher, dim, reduction, weight: as in `softmax_mse`.
        two_sided: False: the teacher is a constant, which must not require grad.

    Returns:
        As `softmax_mse`. A class of the same infinity on both sides adds 0.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (2017), the two-output experiments.
    """
    options = None if weight is None else LossOptions(weight=weight)
    return run("logit_mse", student, teacher, dim, reduction, options, two_sided, False)
