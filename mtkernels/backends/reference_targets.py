"""The meaning of the ops beside weight averages and losses, in plain torch: what the other systems need."""

import torch
from torch import Tensor

from mtkernels import _C
from mtkernels.backends.reference_losses import gradient_dtype

__all__ = ["multi_tensor_dot", "sharpen", "temporal_ensemble_"]


def multi_tensor_dot(first, second, with_norms=False) -> Tensor:
    """sum over pairs of first * second in float64; with norms [dot, |first|, |second|]. None skips its pair.

    The kernels work in fp64 throughout; here a pair's own sum is of its accumulator, fp32 or fp64.
    """
    sums = _C.multi_tensor_dot_rows(first, second, with_norms, 1)[1]  # checks
    with torch.no_grad():
        totals = sums.view(-1)
        for a, b in zip(first, second, strict=True):
            if a is None or b is None:
                continue
            wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
            a, b = a.to(wide), b.to(wide)
            totals[0] += (a * b).sum()
            if with_norms:
                totals[1] += a.square().sum()
                totals[2] += b.square().sum()
        totals[1:].sqrt_()
    return sums


def temporal_ensemble_(
    ensemble,
    index,
    student,
    alpha=0.6,
    updates=None,
    correction="bias",
    reduction="mean",
    with_gradient=False,
):
    """(loss, dstudent); row loss (1/C) sum_c (p - t)^2, and ensemble[index] <- alpha * ensemble[index] + (1 - alpha) p.

    gradient (2/C) p ((p - t) - sum_k p_k (p_k - t_k)); t is ensemble[index] as it was, corrected.
    """
    _C.check_temporal_ensemble(ensemble, index, student, alpha, updates, correction, reduction)
    wide = torch.promote_types(torch.promote_types(student.dtype, ensemble.dtype), torch.float32)
    a, rows = student.detach().to(wide), index.long()
    z = ensemble.detach()[rows].to(wide)
    masked = a.amax(-1, keepdim=True) == -torch.inf
    p = torch.softmax(a.masked_fill(masked, 0), -1)
    t, has_target = _corrected(z, alpha, None if updates is None else int(updates), correction)
    d, idle = p - t, masked | ~has_target
    losses = d.square().mean(-1).masked_fill(idle.squeeze(-1), 0)
    gradient = (2 / student.shape[-1]) * p * (d - (p * d).sum(-1, keepdim=True))
    moved = torch.where(masked, z, alpha * z + (1 - alpha) * p)
    ensemble.detach().index_copy_(0, rows, moved.to(ensemble.dtype))
    scale = 1 / max(len(losses), 1) if reduction == "mean" else 1.0
    loss = losses if reduction == "none" else losses.sum() * scale
    if not with_gradient:
        return loss, None
    dstudent = torch.empty_like(student, dtype=gradient_dtype(student))
    return loss, dstudent.copy_(gradient.masked_fill(idle, 0) * scale)


def _corrected(z: Tensor, alpha: float, updates: int | None, correction: str) -> tuple[Tensor, Tensor]:
    """The target of each row, and whether it has one: not before its first update."""
    has_target = torch.full_like(z[:, :1], updates is None or updates > 0, dtype=torch.bool)
    if correction == "bias":
        return z / (1 - alpha**updates) if updates else z, has_target
    if correction == "renormalize":
        total = z.sum(-1, keepdim=True)
        return z / total.masked_fill(total == 0, 1), has_target & (total != 0)
    return z, has_target


def sharpen(probs, temperature, dim=-1) -> Tensor:
    """p^(1/T) / sum_k p_k^(1/T); a row of zeros stays 0, one with a negative number is NaN."""
    _C.check_sharpen(probs, temperature, dim)
    p = probs.detach().to(torch.promote_types(probs.dtype, torch.float32))
    sharpened = torch.empty_like(probs)
    if not p.numel():
        return sharpened
    largest = p.amax(dim, keepdim=True)
    ratios = (p / largest.masked_fill(largest == 0, 1)).masked_fill(p == 0, 0)
    powers = (ratios ** (1 / float(temperature))).masked_fill(p == 0, 0)
    powers = torch.where(p >= 0, powers, torch.nan)  # also of a NaN, whose power of 0 is 1
    total = powers.sum(dim, keepdim=True)
    return sharpened.copy_(powers / total.masked_fill(total == 0, 1))
