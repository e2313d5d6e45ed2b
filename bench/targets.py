"""Candidates for the targets of the other systems: temporal_ensemble_ and sharpen, ours and torch's own."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import mtkernels
from bench.cases import Workload
from bench.objective import Candidate, Factory
from mtkernels.testing import visited

ALPHA, UPDATES, TEMPERATURE = 0.6, 3, 0.5  # as testing.OPS has them


def eager_ensemble(ensemble: Tensor, index: Tensor, student: Tensor) -> Tensor:
    p, z = student.softmax(-1), ensemble[index]
    loss = F.mse_loss(p, z / (1 - ALPHA**UPDATES))
    ensemble.index_copy_(0, index, torch.lerp(p.detach(), z, ALPHA))
    return loss


def _our_ensemble(ensemble: Tensor, index: Tensor, student: Tensor) -> Tensor:
    return mtkernels.temporal_ensemble_(ensemble, index, student, alpha=ALPHA, updates=UPDATES)


def _ensemble(function: Callable[[Tensor, Tensor, Tensor], Tensor], note: str = "") -> Factory:
    """Forward, the autograd graph, the update of the ensemble, and backward into student.grad, which is None before."""

    def factory(work: Workload) -> Candidate:
        (ensemble,), (student,) = work.teachers, work.students
        index, last = visited(ensemble, len(student)), {}

        def step():
            student.grad = None
            last["loss"] = function(ensemble, index, student)
            last["loss"].backward()

        return Candidate(step, lambda: [last["loss"].detach(), student.grad, ensemble], note)

    return factory


def eager_sharpen(probs: Tensor) -> Tensor:
    powers = probs ** (1 / TEMPERATURE)
    return powers / powers.sum(-1, keepdim=True)


def _our_sharpen(probs: Tensor) -> Tensor:
    return mtkernels.sharpen(probs, TEMPERATURE)


def _sharpen(function: Callable[[Tensor], Tensor], note: str = "") -> Factory:
    def factory(work: Workload) -> Candidate:
        probs, last = work.students[0].detach(), {}

        def step():
            last["sharpened"] = function(probs)

        return Candidate(step, lambda: [last["sharpened"]], note)

    return factory


def _compiled(make: Callable[..., Factory], function: Callable) -> Factory:
    def factory(work: Workload) -> Candidate:
        torch._dynamo.reset()  # no guards of other sizes to walk at each call
        compiled = torch.compile(function, fullgraph=True, dynamic=False)
        return make(compiled, "fullgraph, static shapes; compiled before the clock starts")(work)

    return factory


PEERS: dict[str, dict[str, Factory]] = {
    "temporal_ensemble_": {
        "eager torch": _ensemble(eager_ensemble),
        "torch.compile": _compiled(_ensemble, eager_ensemble),
    },
    "sharpen": {"eager torch": _sharpen(eager_sharpen), "torch.compile": _compiled(_sharpen, eager_sharpen)},
}
OURS: dict[str, dict[str, Factory]] = {
    "temporal_ensemble_": {"mtkernels": _ensemble(_our_ensemble)},
    "sharpen": {"mtkernels": _sharpen(_our_sharpen)},
}
