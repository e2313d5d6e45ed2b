"""The meaning of each op, in plain torch. Runs on any device; what every kernel is tested against."""

import torch
from torch import Tensor

from mtkernels import _C


def ema_update(teacher, student, decay, copied=0, names=None) -> None:
    """teacher <- decay * teacher + (1 - decay) * student. The last `copied` pairs, integers and bools are copied."""
    _C.ema_rows(teacher, student, decay, copied, names, 1)  # checks
    first_copied, written = len(teacher) - copied, set()
    with torch.no_grad():
        for index, (to, source) in enumerate(zip(teacher, student, strict=True)):
            if to.numel() and to.data_ptr() in written:
                continue  # a tied weight: listed twice, averaged once
            written.add(to.data_ptr())
            if index < first_copied and (to.is_floating_point() or to.is_complex()):
                source = _average(to, source, decay)
            to.copy_(source)


def _average(teacher: Tensor, student: Tensor, decay: float | Tensor) -> Tensor:
    wide = torch.promote_types(torch.promote_types(teacher.dtype, student.dtype), torch.float32)
    weight = (1 - decay.double()).to(teacher.device) if isinstance(decay, Tensor) else 1 - decay
    if isinstance(weight, Tensor):
        weight = weight.to(wide)
    t, s = teacher.to(wide), student.to(wide)
    average = torch.lerp(t, s, weight)
    # Equal sides stay as they are, infinite ones too; decay 1 keeps the teacher, 0 the student, whatever the other is.
    average = torch.where((t == s) | torch.as_tensor(weight == 0, device=t.device), t, average)
    return torch.where(torch.as_tensor(weight == 1, device=t.device), s, average)


def softmax_mse(student, teacher, dim=-1, reduction="mean", with_gradient=False):
    """Row loss (1/C) sum_c (p - q)^2; gradient (2/C) p ((p - q) - sum_k p_k (p_k - q_k))."""
    _C.check_consistency("softmax_mse", student, teacher, dim, reduction)
    a, b, masked = _logits(student, teacher, dim)
    p, q = torch.softmax(a, dim), torch.softmax(b, dim)
    losses = (p - q).square().mean(dim)
    along = (p * (p - q)).sum(dim, keepdim=True)
    dstudent = (2 / student.shape[dim]) * p * ((p - q) - along)
    return _reduce(losses, dstudent, masked, student, dim, reduction, with_gradient)


def softmax_kl(student, teacher, dim=-1, reduction="mean", with_gradient=False):
    """Row loss sum_c q (log q - log p); gradient p - q."""
    _C.check_consistency("softmax_kl", student, teacher, dim, reduction)
    a, b, masked = _logits(student, teacher, dim)
    log_p, log_q = torch.log_softmax(a, dim), torch.log_softmax(b, dim)
    p, q = log_p.exp(), log_q.exp()
    losses = torch.where(q == 0, 0, q * (log_q - log_p)).sum(dim)
    return _reduce(losses, p - q, masked, student, dim, reduction, with_gradient)


def scale_(data: Tensor, factor: Tensor) -> None:
    """data <- factor * data."""
    data.mul_(factor)


def gradient_dtype(student: Tensor) -> torch.dtype:
    """fp32 for fp16 logits: a gradient kept in fp16 would lose what a loss scale brings back later."""
    return torch.float32 if student.dtype == torch.float16 else student.dtype


def _logits(student: Tensor, teacher: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both as accumulators, and which rows are -inf throughout on either side: those have loss 0 and gradient 0."""
    wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    a, b = student.detach().to(wide), teacher.detach().to(wide)
    masked = (a.amax(dim, keepdim=True) == -torch.inf) | (b.amax(dim, keepdim=True) == -torch.inf)
    return a.masked_fill(masked, 0), b.masked_fill(masked, 0), masked


def _reduce(losses, dstudent, masked, student, dim, reduction, with_gradient):
    losses = losses.masked_fill(masked.squeeze(dim), 0)
    rows = max(losses.numel(), 1)  # a mean over no rows is 0
    scale = 1 / rows if reduction == "mean" else 1.0
    loss = losses if reduction == "none" else losses.sum() * scale
    if not with_gradient:
        return loss, None
    return loss, (dstudent.masked_fill(masked, 0) * scale).to(gradient_dtype(student))
