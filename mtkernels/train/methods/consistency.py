"""The consistency loss and the logits' distance, as the published systems have them, on one batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

import mtkernels

from ..config import Config
from ..data.raw import NO_LABEL


def consistency_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, config: Config, *, two_sided: bool = False
) -> Tensor:
    """The mean over all rows of the distance between the predictions; rows that do not count add 0 to it."""
    weight = None if config.consistency_on_labeled else (labels == NO_LABEL).to(torch.float32)
    if config.consistency_trust:
        rows = trusting_kl(student, teacher if two_sided else teacher.detach(), config.consistency_trust)
        return (rows if weight is None else rows * weight).mean()
    distance = {"mse": mtkernels.softmax_mse, "kl": mtkernels.softmax_kl}[distance_name(config)]
    return distance(student, teacher, weight=weight, two_sided=two_sided)


def distance_name(config: Config) -> str:
    """Of the distance where there is no trust, or one of 0."""
    return config.consistency_type if config.consistency_trust is None else "mse"


def trusting_kl(student: Tensor, teacher: Tensor, trust: float) -> Tensor:
    """Row losses between mean squared error (trust near 0) and Kullback-Leibler (1), of the mixed predictions.

    m * KL(q' || p'), p' = trust * p + (1 - trust) / C, q' likewise, m = 2 (1 - 1/C) / C^2 / trust^2: m makes gradients
    as large as those of the mean squared error. Source: Tarvainen and Valpola, 1703.01780, appendix C.
    """
    classes = student.shape[1]
    scale = 2 * (1 - 1 / classes) / classes**2 / trust**2
    if trust == 1:
        return scale * mtkernels.softmax_kl(
            student, teacher, reduction="none", two_sided=teacher.requires_grad
        )
    p, q = (trust * F.softmax(logits, 1) + (1 - trust) / classes for logits in (student, teacher))
    return scale * (q * (q.log() - p.log())).sum(1)


def distance_cost(config: Config, classes: int) -> float:
    """The weight of the mean squared difference over the classes; a published sum is so many times the mean."""
    return max(config.logit_distance_cost, 0.0) * (classes if config.logit_distance == "sum" else 1)
