"""The meaning of the losses on logits, in plain torch and the letters of csrc/consistency.h and mean_teacher_loss.h."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtkernels import _C
from mtkernels._options import LossOptions

__all__ = [
    "gradient_dtype",
    "logit_mse",
    "mean_teacher_loss",
    "softmax_cross_entropy",
    "softmax_js",
    "softmax_kl",
    "softmax_mse",
    "softmax_reverse_kl",
]


class _Sides(NamedTuple):
    """Both sides as accumulators [rows..., classes], and what their softmax gives."""

    a: Tensor
    b: Tensor
    x: Tensor  # less their largest, over the temperature
    y: Tensor
    log_p: Tensor
    log_q: Tensor
    p: Tensor
    q: Tensor

    @property
    def classes(self) -> int:
        return self.a.shape[-1]


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """0 times anything is 0: 0 log 0, and a class that is masked on one side."""
    return torch.where(weight == 0, 0, weight * value)


def _about_mean(weight: Tensor, value: Tensor) -> Tensor:
    """weight (value - sum weight value): of log q - log p, whose constants for the row drop out."""
    return _times(weight, value - _times(weight, value).sum(-1, keepdim=True))


def _mean_square(s: _Sides, options):
    d = s.p - s.q
    student = (2 / s.classes) * s.p * (d - (s.p * d).sum(-1, keepdim=True))
    teacher = (-2 / s.classes) * s.q * (d - (s.q * d).sum(-1, keepdim=True))
    return d.square().mean(-1), student, teacher


def _kl(s: _Sides, options):
    losses = _times(s.q, s.log_q - s.log_p).sum(-1)
    return losses, s.p - s.q, _about_mean(s.q, s.y - s.x)


def _reverse_kl(s: _Sides, options):
    losses = _times(s.p, s.log_p - s.log_q).sum(-1)
    return losses, _about_mean(s.p, s.x - s.y), s.q - s.p


def _js(s: _Sides, options):
    of_p, of_q = _times(s.p, _log_of_mean(s.p, s.q)), _times(s.q, _log_of_mean(s.q, s.p))
    along_p, along_q = of_p.sum(-1, keepdim=True), of_q.sum(-1, keepdim=True)
    losses = (of_p + of_q).sum(-1) / 2
    return losses, (of_p - s.p * along_p) / 2, (of_q - s.q * along_q) / 2


def _log_of_mean(p: Tensor, q: Tensor) -> Tensor:
    """log(p / m) with m = (p + q) / 2, which loses nothing where p and q are close, nor where p is small."""
    r = (p - q) / (p + q)
    return torch.where(r > -0.5, r.log1p(), (2 * p / (p + q)).log())


def _cross_entropy(s: _Sides, options):
    smoothing, target = options.label_smoothing, s.q
    if options.hard:
        target = torch.zeros_like(s.q).scatter_(-1, _first_largest(s.b), 1)
    target = (1 - smoothing) * target + smoothing / s.classes
    teacher = (1 - smoothing) * _about_mean(s.q, -s.x)
    return -_times(target, s.log_p).sum(-1), s.p - target, teacher


def _logit_mean_square(s: _Sides, options):
    d = torch.where(s.a == s.b, 0, s.a - s.b)  # equal sides, infinite ones too
    return d.square().mean(-1), (2 / s.classes) * d, (-2 / s.classes) * d


def _first_largest(b: Tensor) -> Tensor:
    """The first of the largest, NaN counting as largest: `argmax` leaves open which."""
    largest = b == b.amax(-1, keepdim=True)
    return (largest | b.isnan()).to(torch.uint8).argmax(-1, keepdim=True)


_ROW = {
    "softmax_mse": _mean_square,
    "softmax_kl": _kl,
    "softmax_reverse_kl": _reverse_kl,
    "softmax_js": _js,
    "softmax_cross_entropy": _cross_entropy,
    "logit_mse": _logit_mean_square,
}


def _loss(op: str):
    def loss(student, teacher, dim=-1, reduction="mean", gradients=0, options=None):
        """(loss, dstudent, dteacher, utilization); gradients: 1 the student's, 2 the teacher's, 3 both."""
        _C.check_consistency(op, student, teacher, dim, reduction, options, gradients)
        options = options or LossOptions()
        sides, masked = _sides(student, teacher, dim, options)
        losses, of_student, of_teacher = _ROW[op](sides, options)
        factor = _factor(options, losses)
        utilization = None
        if options.threshold is not None:
            kept = ~masked & ~(sides.q.amax(-1) < _on(options.threshold, losses))
            utilization = kept.to(losses.dtype).mean() if kept.numel() else losses.new_zeros(())
            factor = torch.where(kept, factor, 0)  # whatever it is
        factor = factor.masked_fill(masked, 0)
        scale = 1 / max(losses.numel(), 1) if reduction == "mean" else 1.0  # a mean over no rows is 0
        losses = _times(factor, losses)
        result = losses if reduction == "none" else losses.sum() * scale
        scaled = (factor * scale).unsqueeze(-1)

        def gradient(wanted, of, side, temperature):
            if not gradients & wanted:
                return None
            return (_times(scaled, of) / temperature).movedim(-1, dim).to(gradient_dtype(side))

        return (
            result,
            gradient(1, of_student, student, options.student_temperature),
            gradient(2, of_teacher, teacher, options.teacher_temperature),
            utilization,
        )

    loss.__name__ = loss.__qualname__ = op
    return loss


softmax_mse = _loss("softmax_mse")
softmax_kl = _loss("softmax_kl")
softmax_reverse_kl = _loss("softmax_reverse_kl")
softmax_js = _loss("softmax_js")
softmax_cross_entropy = _loss("softmax_cross_entropy")
logit_mse = _loss("logit_mse")


def gradient_dtype(logits: Tensor) -> torch.dtype:
    """fp32 for fp16 logits: a gradient kept in fp16 would lose what a loss scale brings back later."""
    return torch.float32 if logits.dtype == torch.float16 else logits.dtype


def _sides(student: Tensor, teacher: Tensor, dim: int, options) -> tuple[_Sides, Tensor]:
    """And which rows are -inf throughout on either side: those have loss 0 and gradient 0."""
    wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    a, b = student.detach().to(wide).movedim(dim, -1), teacher.detach().to(wide).movedim(dim, -1)
    if options.center is not None:
        b = b - options.center.to(wide)
    masked = (a.amax(-1) == -torch.inf) | (b.amax(-1) == -torch.inf)
    a, b = a.masked_fill(masked.unsqueeze(-1), 0), b.masked_fill(masked.unsqueeze(-1), 0)
    x, y = a / options.student_temperature, b / options.teacher_temperature
    x, y = x - x.amax(-1, keepdim=True), y - y.amax(-1, keepdim=True)
    (log_p, p), (log_q, q) = _softmax(x), _softmax(y)
    return _Sides(a, b, x, y, log_p, log_q, p, q), masked


def _softmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and probabilities. torch's own in float64 loses up to 7 units in the last place on a CPU."""
    if x.dtype != torch.float64:
        return x.log_softmax(-1), x.softmax(-1)
    powers = x.exp()
    total = powers.sum(-1, keepdim=True)
    return x - total.log(), powers / total


def _factor(options, losses: Tensor) -> Tensor:
    return torch.ones_like(losses) if options.weight is None else options.weight.to(losses.dtype)


def _on(number: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(number, device=like.device, dtype=like.dtype)


def mean_teacher_loss(
    student,
    teacher,
    labels,
    second=None,
    dim=-1,
    consistency_weight=1.0,
    logit_distance_cost=0.0,
    kl=False,
    by_labeled=False,
    ignore_index=-1,
    with_gradient=False,
):
    """(total, parts, counts, dstudent, dsecond): csrc/mean_teacher_loss.h."""
    arguments = (student, teacher, labels, second, dim, consistency_weight, logit_distance_cost)
    _C.check_mean_teacher_loss(*arguments, ignore_index)
    both, masked = _sides(student if second is None else second, teacher, dim, LossOptions())
    wide = torch.promote_types(both.a.dtype, student.dtype)
    a = student.detach().to(wide).movedim(dim, -1)
    rows, classes = labels.numel(), a.shape[-1]
    labeled = labels != ignore_index
    scale = 1 / max(rows, 1)
    class_scale = 1 / labeled.sum().clamp(min=1).to(wide) if by_labeled else scale

    taught = labeled & (a.amax(-1) != -torch.inf)
    safe = torch.where(labeled, labels, 0).long().unsqueeze(-1)
    log_p = torch.log_softmax(a.masked_fill(~taught.unsqueeze(-1), 0), -1)
    class_loss = torch.where(taught, -log_p.gather(-1, safe).squeeze(-1), 0).sum() * class_scale
    of_class = log_p.exp().scatter_add(-1, safe, -torch.ones_like(log_p[..., :1]))
    dstudent = torch.where(taught.unsqueeze(-1), of_class, 0) * class_scale

    losses, of_student, _ = _ROW["softmax_kl" if kl else "softmax_mse"](both, None)
    weight, cost = _on(consistency_weight, losses), _on(logit_distance_cost, losses)
    consistency_loss = _times(weight, losses.masked_fill(masked, 0).sum() * scale)
    dsecond = _times(weight * scale, of_student.masked_fill(masked.unsqueeze(-1), 0))
    logit_distance = torch.zeros_like(class_loss)
    if second is None:
        dstudent, dsecond = dstudent + dsecond, None
    else:
        d = second.detach().to(wide).movedim(dim, -1)
        empty = (a.amax(-1) == -torch.inf) | (d.amax(-1) == -torch.inf)
        difference = torch.where((a == d) | empty.unsqueeze(-1), 0, a - d)
        logit_distance = _times(cost, difference.square().mean(-1).sum() * scale)
        along = _times(cost * scale * 2 / classes, difference)
        dstudent, dsecond = dstudent + along, dsecond - along

    parts = torch.stack([class_loss, consistency_loss, logit_distance])
    counts = [labeled.sum()]
    for logits in (a, teacher.detach().movedim(dim, -1)):
        rank = _rank(logits, safe)
        counts += [(labeled & (rank < k)).sum() for k in (1, 5)]
    gradients = [
        gradient.movedim(-1, dim).to(gradient_dtype(logits))
        if with_gradient and gradient is not None
        else None
        for gradient, logits in ((dstudent, student), (dsecond, second))
    ]
    return parts.sum(), parts, torch.stack(counts), *gradients


def _rank(logits: Tensor, labels: Tensor) -> Tensor:
    """How many logits are larger than the label's, or equal and before it; all of them where the label's is NaN."""
    own = logits.gather(-1, labels)
    before = torch.arange(logits.shape[-1], device=logits.device) < labels
    ahead = (logits > own) | ((logits == own) & before) | own.isnan()
    return torch.where(own.isnan().squeeze(-1), logits.shape[-1] + 5, ahead.sum(-1))
