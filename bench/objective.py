"""The objective of a Mean Teacher step with two heads, for the benches: in torch's ops, and ours; and what is timed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import mtkernels
from bench.cases import Workload

WEIGHT, COST = 3.0, 0.5  # as testing.OPS has them


@dataclass
class Candidate:
    step: Callable[[], object]  # what is timed
    # After one step, in the reference's order; None: not its business.
    outputs: Callable[[], list[Tensor | None]]
    note: str = ""  # how it is set up, and what it leaves out
    release: Callable[[], None] = lambda: None  # frees what a step has left behind


Factory = Callable[[Workload], Candidate]


def eager(student: Tensor, second: Tensor, teacher: Tensor, labels: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Loss, its parts, and the correct predictions that a loop logs."""
    rows = labels.numel()
    class_loss = F.cross_entropy(student.movedim(dim, 1), labels, ignore_index=-1, reduction="sum") / rows
    consistency = WEIGHT * F.mse_loss(F.softmax(second, dim), F.softmax(teacher, dim))
    distance = COST * F.mse_loss(student, second)
    counts = [(labels >= 0).sum()]
    for logits in (student.detach(), teacher):
        right = logits.topk(min(5, logits.shape[dim]), dim).indices == labels.unsqueeze(dim)
        counts += [right.narrow(dim, 0, 1).sum(), right.sum()]
    parts = torch.stack([class_loss, consistency, distance])
    return parts.sum(), parts.detach(), torch.stack(counts)


def fused(student: Tensor, second: Tensor, teacher: Tensor, labels: Tensor, dim: int) -> tuple[Tensor, ...]:
    result = mtkernels.mean_teacher_loss(
        student, teacher, labels, second=second, dim=dim, consistency_weight=WEIGHT, logit_distance_cost=COST
    )
    return result.total, torch.stack(result[1:4]), torch.stack(result[4:])


def labels_of(drawn: Tensor, dim: int) -> Tensor:
    """As testing.OPS draws them: every third row has none."""
    labels = drawn.double().movedim(dim, -1).argmax(-1)
    every_third = torch.arange(labels.numel(), device=labels.device).view(labels.shape) % 3 == 0
    return torch.where(every_third, -1, labels)


def learner(
    forward: Callable[[], tuple[Tensor, ...]],
    outputs: Callable[..., list[Tensor | None]],  # of what forward gave
    learning: tuple[Tensor, ...],
    note: str,
) -> Candidate:
    """Forward, the autograd graph, and backward from its first output into `learning`, without gradients before."""
    last: list[Tensor] = []

    def release() -> None:
        for tensor in learning:
            tensor.grad = None
        last.clear()

    def step() -> None:
        release()
        last.extend(forward())
        last[0].backward()

    return Candidate(step, lambda: outputs(*last), note, release)


def step_of(function: Callable[..., tuple[Tensor, ...]], note: str = "") -> Factory:
    """Forward, the autograd graph, and backward into both heads, whose gradients are None before each step."""

    def factory(work: Workload) -> Candidate:
        (teacher, drawn), (student, second) = work.teachers, work.students
        labels, dim = labels_of(drawn, work.dim), work.dim
        return learner(
            lambda: function(student, second, teacher, labels, dim),
            lambda total, parts, counts: [total.detach(), parts, counts, student.grad, second.grad],
            (student, second),
            note or "two heads, counts of correct predictions",
        )

    return factory
