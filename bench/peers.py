"""PEERS: what ours is compared with, per op; OURS: our own ways in. Factories, called only when needed.

A factory takes a Workload and gives a Candidate. It raises where its library is missing or cannot do the
case, and the error's text stands in the report in place of a time. All are set up to do the same maths: no
warm-up of the decay, every step counts, and buffers are copied, as `AveragedModel` does unless told
otherwise.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import mtkernels
from bench.cases import DECAY, Workload, tensors_of


@dataclass
class Candidate:
    step: Callable[[], object]  # what is timed
    outputs: Callable[
        [], list[Tensor | None]
    ]  # after one step, in the reference's order; None: not its business
    note: str = ""  # how it is set up, and what it leaves out


Factory = Callable[[Workload], Candidate]


def _ema_mtkernels(work: Workload) -> Candidate:
    def modules():
        mtkernels.ema_update(work.teacher, work.student, DECAY, buffers="copy")

    def lists():
        mtkernels.ema_update(work.teachers, work.students, DECAY)

    return Candidate(modules if work.is_module else lists, lambda: work.teachers)


def _ema_backend(name: str) -> Factory:
    def factory(work: Workload) -> Candidate:
        update = _backend(name, work).ema_update
        return Candidate(
            lambda: update(work.teachers, work.students, DECAY, work.copied), lambda: work.teachers
        )

    return factory


def _ema_lerp_loop(work: Workload) -> Candidate:
    pairs = list(zip(work.teachers, work.students, strict=True))
    averaged, copied = pairs[: len(pairs) - work.copied], pairs[len(pairs) - work.copied :]

    @torch.no_grad()
    def step():
        for teacher, student in averaged:
            teacher.lerp_(student, 1 - DECAY)
        for teacher, student in copied:
            teacher.copy_(student)

    return Candidate(step, lambda: work.teachers)


def _ema_foreach(work: Workload) -> Candidate:
    split = len(work.teachers) - work.copied
    teachers, students = work.teachers[:split], work.students[:split]
    teacher_buffers, student_buffers = work.teachers[split:], work.students[split:]

    @torch.no_grad()
    def step():
        torch._foreach_lerp_(teachers, students, 1 - DECAY)
        if teacher_buffers:
            torch._foreach_copy_(teacher_buffers, student_buffers)

    return Candidate(step, lambda: work.teachers, "prepared lists")


def _ema_averaged_model(work: Workload) -> Candidate:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    averaged = AveragedModel(work.teacher, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    averaged.n_averaged += 1  # the first update only copies
    return Candidate(
        lambda: averaged.update_parameters(work.student),
        lambda: tensors_of(averaged.module),
        "get_ema_multi_avg_fn",
    )


def _ema_pytorch(work: Workload) -> Candidate:
    from ema_pytorch import EMA

    copied = {name for name, _ in work.teacher.named_buffers()}
    ema = EMA(
        work.student,
        ema_model=work.teacher,
        beta=DECAY,
        min_value=DECAY,
        update_after_step=0,
        update_every=1,
        param_or_buffer_names_no_ema=copied,
        use_foreach=True,
    )
    ema.initted.fill_(True)  # the first updates only copy
    ema.step.fill_(100)

    def outputs():
        return [tensor if tensor.is_floating_point() else None for tensor in work.teachers]

    leaves = "; leaves integer buffers alone" if work.copied else ""
    return Candidate(ema.update, outputs, "use_foreach=True" + leaves)


def _ema_torch_ema(work: Workload) -> Candidate:
    from torch_ema import ExponentialMovingAverage

    parameters = list(work.student.parameters())
    ema = ExponentialMovingAverage(list(work.teacher.parameters()), decay=DECAY, use_num_updates=False)
    return Candidate(
        lambda: ema.update(parameters),
        lambda: ema.shadow_params + [None] * work.copied,
        "parameters only" if work.copied else "",
    )


def _ema_timm(work: Workload) -> Candidate:
    ema = _timm_model_ema().ModelEmaV3(work.teacher, decay=DECAY, exclude_buffers=True)
    return Candidate(lambda: ema.update(work.student), lambda: tensors_of(ema.module), "exclude_buffers=True")


def _timm_model_ema():
    """timm.utils.model_ema; from its file where `import timm` fails for want of torchvision."""
    try:
        from timm.utils import model_ema
    except ImportError:
        spec = importlib.util.find_spec("timm")
        if spec is None:
            raise
        path = Path(spec.origin).parent / "utils" / "model_ema.py"
        spec = importlib.util.spec_from_file_location("_timm_model_ema", path)
        model_ema = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(model_ema)
    return model_ema


def eager_mse(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(F.softmax(student, -1), F.softmax(teacher, -1))


def eager_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(student, -1), F.softmax(teacher, -1), reduction="batchmean")


def _liger_kl(student: Tensor, teacher: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_kl_div

    return liger_kl_div(F.log_softmax(student, -1), F.softmax(teacher, -1), reduction="batchmean")


def _loss(function: Callable[[Tensor, Tensor], Tensor], note: str = "") -> Factory:
    """Forward, the autograd graph, and backward into student.grad, which is None before each step."""

    def factory(work: Workload) -> Candidate:
        (teacher,), (student,) = work.teachers, work.students
        last = {}

        def step():
            student.grad = None
            last["loss"] = function(student, teacher)
            last["loss"].backward()

        return Candidate(step, lambda: [last["loss"].detach(), student.grad], note)

    return factory


def _compiled(function: Callable[[Tensor, Tensor], Tensor]) -> Factory:
    def factory(work: Workload) -> Candidate:
        torch._dynamo.reset()  # no guards of other sizes to walk at each call
        compiled = torch.compile(function, fullgraph=True, dynamic=False)
        return _loss(compiled, "fullgraph, static shapes; compiled before the clock starts")(work)

    return factory


def _cuda_only(factory: Factory) -> Factory:
    def guarded(work: Workload) -> Candidate:
        if work.teachers[0].device.type != "cuda":
            raise RuntimeError("needs a GPU")
        return factory(work)

    return guarded


def _loss_backend(op: str, name: str) -> Factory:
    def factory(work: Workload) -> Candidate:
        (teacher,), (student,) = work.teachers, work.students
        student, last = student.detach(), {}
        function = getattr(_backend(name, work), op)

        def step():
            last["outputs"] = function(student, teacher, -1, "mean", True)

        return Candidate(step, lambda: list(last["outputs"]), "loss and gradient without autograd")

    return factory


def _backend(name: str, work: Workload):
    if name == "native":
        from mtkernels.backends import native

        if work.teachers[0].is_cuda and not native.HAS_CUDA:
            raise RuntimeError("this build has no CUDA kernels")
        return native
    from mtkernels.backends import triton

    return triton


PEERS: dict[str, dict[str, Factory]] = {
    "ema_update": {
        "torch lerp loop": _ema_lerp_loop,
        "torch _foreach_lerp_": _ema_foreach,
        "torch AveragedModel": _ema_averaged_model,
        "ema-pytorch": _ema_pytorch,
        "torch_ema": _ema_torch_ema,
        "timm ModelEmaV3": _ema_timm,
    },
    "softmax_mse": {"eager torch": _loss(eager_mse), "torch.compile": _compiled(eager_mse)},
    "softmax_kl": {
        "eager torch": _loss(eager_kl),
        "torch.compile": _compiled(eager_kl),
        "Liger": _cuda_only(_loss(_liger_kl, "log_softmax and softmax by torch")),
    },
}


def _ours(public: Factory, backend: Callable[[str], Factory]) -> dict[str, Factory]:
    return {"mtkernels": public, "mtkernels native": backend("native"), "mtkernels triton": backend("triton")}


OURS: dict[str, dict[str, Factory]] = {
    "ema_update": _ours(_ema_mtkernels, _ema_backend),
    "softmax_mse": _ours(_loss(mtkernels.softmax_mse), partial(_loss_backend, "softmax_mse")),
    "softmax_kl": _ours(_loss(mtkernels.softmax_kl), partial(_loss_backend, "softmax_kl")),
}


def candidates(op: str, device: str) -> dict[str, Factory]:
    """Ours first: on the CPU the public function alone, on a GPU also the backends by name."""
    ours = OURS[op] if device != "cpu" else {"mtkernels": OURS[op]["mtkernels"]}
    return {**ours, **PEERS[op]}
