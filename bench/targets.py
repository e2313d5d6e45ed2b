"""The ops that make targets of other systems, for the benches: multi_tensor_dot, temporal_ensemble_, sharpen."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import mtkernels
from bench.cases import Workload
from bench.objective import Candidate, Factory, learner
from mtkernels.testing import visited

TEMPERATURE, ALPHA, UPDATES = 0.5, 0.6, 3  # as testing.OPS has them by default


def _dot(work: Workload) -> Candidate:
    return _sums(lambda: mtkernels.multi_tensor_dot(work.students, work.teachers, with_norms=True))


def _dot_loop(work: Workload) -> Candidate:
    """In float32, as training loops have it."""
    pairs = [(a.detach().view(-1), b.view(-1)) for a, b in zip(work.students, work.teachers, strict=True)]

    def step():
        dot = sum(torch.dot(a, b) for a, b in pairs)
        return (
            dot,
            sum(torch.dot(a, a) for a, _ in pairs).sqrt(),
            sum(torch.dot(b, b) for _, b in pairs).sqrt(),
        )

    return _sums(step)


def _dot_foreach(work: Workload) -> Candidate:
    first, second = [tensor.detach() for tensor in work.students], work.teachers

    def step():
        dot = torch.stack([product.sum() for product in torch._foreach_mul(first, second)]).sum()
        norms = (torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (first, second))
        return dot, *norms

    return _sums(step)


def _sums(step: Callable[[], tuple[Tensor, ...]]) -> Candidate:
    """Of sums whose terms cancel float32 leaves few digits: the dot product is ours to test, not theirs to meet."""
    return Candidate(step, lambda: [None], "dot product and both norms")


def _ensemble(function: Callable[[Tensor, Tensor, Tensor], Tensor], note: str = "") -> Factory:
    """Forward, which moves the ensemble, the autograd graph, and backward into student.grad, which is None before."""

    def factory(work: Workload) -> Candidate:
        (ensemble,), (student,) = work.teachers, work.students
        index = visited(ensemble, len(student))
        return learner(
            lambda: (function(ensemble, index, student),),
            lambda loss: [loss.detach(), student.grad, ensemble],
            (student,),
            note,
        )

    return factory


def _fused_ensemble(ensemble: Tensor, index: Tensor, student: Tensor) -> Tensor:
    return mtkernels.temporal_ensemble_(ensemble, index, student, alpha=ALPHA, updates=UPDATES)


def _eager_ensemble(ensemble: Tensor, index: Tensor, student: Tensor) -> Tensor:
    probs, rows = F.softmax(student, -1), ensemble[index]
    loss = F.mse_loss(probs, rows / (1 - ALPHA**UPDATES))
    ensemble.index_copy_(0, index, torch.lerp(probs.detach(), rows, ALPHA))
    return loss


def _sharpen(function: Callable[[Tensor], Tensor], note: str = "") -> Factory:
    def factory(work: Workload) -> Candidate:
        (probs,), last = work.students, {}

        def step():
            last["output"] = function(probs)

        return Candidate(step, lambda: [last["output"]], note)

    return factory


def _eager_sharpen(probs: Tensor) -> Tensor:
    powers = probs ** (1 / TEMPERATURE)
    return powers / powers.sum(-1, keepdim=True)


def _compiled(make: Callable[..., Factory], function: Callable) -> Factory:
    def factory(work: Workload) -> Candidate:
        torch._dynamo.reset()  # no guards of other sizes to walk at each call
        compiled = torch.compile(function, fullgraph=True, dynamic=False)
        return make(compiled, "fullgraph, static shapes; compiled before the clock starts")(work)

    return factory


PEERS = {
    "multi_tensor_dot": {"torch.dot loop": _dot_loop, "torch _foreach": _dot_foreach},
    "temporal_ensemble_": {
        "eager torch": _ensemble(_eager_ensemble),
        "torch.compile": _compiled(_ensemble, _eager_ensemble),
    },
    "sharpen": {
        "eager torch": _sharpen(_eager_sharpen),
        "torch.compile": _compiled(_sharpen, _eager_sharpen),
    },
}
OURS = {
    "multi_tensor_dot": {"mtkernels": _dot},
    "temporal_ensemble_": {"mtkernels": _ensemble(_fused_ensemble)},
    "sharpen": {"mtkernels": _sharpen(lambda probs: mtkernels.sharpen(probs, TEMPERATURE))},
}
