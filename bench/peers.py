"""PEERS: what ours is compared with, per op; OURS: our own ways in. Factories, called only when needed.

A factory takes a Workload and gives a Candidate. It raises where its library is missing or cannot do the
case, and the error's text stands in the report in place of a time. All are set up to do the same maths: no
warm-up of the decay, every step counts, and buffers are copied, as `AveragedModel` does unless told
otherwise.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import mtkernels
from bench import augmentations, objective, targets
from bench.cases import DECAY, LOSSES, Case, Workload, tensors_of
from bench.objective import Candidate, Factory
from mtkernels import _C
from mtkernels.backends import backend_for
from mtkernels.ema import WeightEMA


def _ema_mtkernels(work: Workload) -> Candidate:
    def modules():
        mtkernels.ema_update(work.teacher, work.student, DECAY, buffers="copy")

    def lists():
        mtkernels.ema_update(work.teachers, work.students, DECAY)

    return Candidate(modules if work.is_module else lists, lambda: work.teachers, "stateless")


def _ema_weight_ema(work: Workload) -> Candidate:
    ema = WeightEMA(work.student, DECAY, teacher=work.teacher, buffers="copy")
    return Candidate(ema.update, lambda: work.teachers, "bound; counts its steps")


def _ema_plan(work: Workload) -> Candidate:
    """The bound table alone, as the drop-ins of mtkernels.compat use it."""
    plan = _C.EmaPlan(work.teachers, work.students, 1, work.copied)
    update = backend_for(work.teachers[0].device.type).ema_update_plan

    def step():
        update(plan, DECAY)
        torch.autograd.graph.increment_version(plan.teacher)

    return Candidate(step, lambda: work.teachers, "the bound table alone")


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


def foreach_lerp(work: Workload) -> Candidate:
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
    averaged.module = work.teacher  # it has made a copy
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
    ema = ExponentialMovingAverage(parameters, decay=DECAY, use_num_updates=False)
    ema.shadow_params = work.teachers[: len(parameters)]
    return Candidate(
        lambda: ema.update(parameters),
        lambda: ema.shadow_params + [None] * work.copied,
        "parameters only" if work.copied else "",
    )


def timm_ema(work: Workload, stochastic: bool = False) -> Candidate:
    """stochastic: of bf16 averages; what newer versions do unless told otherwise."""
    ema = _timm_model_ema().ModelEmaV3(work.teacher, decay=DECAY, exclude_buffers=True)
    if stochastic and not hasattr(ema, "stochastic_rounding"):
        raise RuntimeError("this timm has no stochastic rounding")
    ema.stochastic_rounding = stochastic
    ema.module = work.teacher  # it has made a copy
    return Candidate(lambda: ema.update(work.student), lambda: tensors_of(ema.module), "exclude_buffers=True")


def _ema_diffusers(work: Workload) -> Candidate:
    from diffusers.training_utils import EMAModel

    parameters = list(work.student.parameters())
    ema = EMAModel(parameters, decay=DECAY, min_decay=DECAY, foreach=True)
    ema.shadow_params = work.teachers[: len(parameters)]
    ema.optimization_step = 100  # the first update only copies
    return Candidate(
        lambda: ema.step(parameters),
        lambda: ema.shadow_params + [None] * work.copied,
        "foreach=True" + ("; parameters only" if work.copied else ""),
    )


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


def eager_mse(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    return F.mse_loss(F.softmax(student, dim), F.softmax(teacher, dim))


def eager_kl(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    divergences = F.kl_div(F.log_softmax(student, dim), F.softmax(teacher, dim), reduction="none")
    return divergences.sum(dim).mean()


def eager_reverse_kl(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    return eager_kl(teacher, student, dim)


def eager_js(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    p, q = F.softmax(student, dim), F.softmax(teacher, dim)
    m = ((p + q) / 2).log()
    return (F.kl_div(m, p, reduction="none") + F.kl_div(m, q, reduction="none")).sum(dim).mean() / 2


def eager_cross_entropy(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    return -(F.softmax(teacher, dim) * F.log_softmax(student, dim)).sum(dim).mean()


def eager_logit_mse(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    return F.mse_loss(student, teacher)


def _liger_kl(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    from liger_kernel.transformers.functional import liger_kl_div

    return liger_kl_div(F.log_softmax(student, -1), F.softmax(teacher, -1), reduction="batchmean")


def _liger_js(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    from liger_kernel.transformers.functional import liger_jsd

    return liger_jsd(F.log_softmax(student, -1), F.log_softmax(teacher, -1))


def ours(op: str) -> Callable[[Tensor, Tensor, int], Tensor]:
    function = getattr(mtkernels, op)
    options = {"two_sided": False} if op == "logit_mse" else {}
    return lambda student, teacher, dim: function(student, teacher, dim=dim, **options)


def _loss(function: Callable[[Tensor, Tensor, int], Tensor], note: str = "") -> Factory:
    """Forward, the autograd graph, and backward into student.grad, which is None before each step."""

    def factory(work: Workload) -> Candidate:
        (teacher,), (student,) = work.teachers, work.students
        dim = work.dim
        return objective.learner(
            lambda: (function(student, teacher, dim),),
            lambda loss: [loss.detach(), student.grad],
            (student,),
            note,
        )

    return factory


def _compiled(function: Callable, factory_of: Callable[..., Factory] | None = None) -> Factory:
    def factory(work: Workload) -> Candidate:
        torch._dynamo.reset()  # no guards of other sizes to walk at each call
        compiled = torch.compile(function, fullgraph=True, dynamic=False)
        note = "fullgraph, static shapes; compiled before the clock starts"
        return (factory_of or _loss)(compiled, note)(work)

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
            last["outputs"] = function(student, teacher, work.dim, "mean", 1)

        return Candidate(step, lambda: list(last["outputs"][:2]), "loss and gradient without autograd")

    return factory


def _objective_backend(name: str) -> Factory:
    def factory(work: Workload) -> Candidate:
        (teacher, drawn), (student, second) = work.teachers, work.students
        heads, labels, last = (student.detach(), second.detach()), objective.labels_of(drawn, work.dim), {}
        function = _backend(name, work).mean_teacher_loss
        weights = objective.WEIGHT, objective.COST

        def step():
            last["outputs"] = function(
                heads[0], teacher, labels, heads[1], work.dim, *weights, False, False, -1, True
            )

        return Candidate(step, lambda: list(last["outputs"]), "loss and gradients without autograd")

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
        "torch _foreach_lerp_": foreach_lerp,
        "torch AveragedModel": _ema_averaged_model,
        "ema-pytorch": _ema_pytorch,
        "torch_ema": _ema_torch_ema,
        "timm ModelEmaV3": timm_ema,
        "diffusers EMAModel": _ema_diffusers,
    },
    **{
        f"softmax_{name}": {"eager torch": _loss(eager), "torch.compile": _compiled(eager)}
        for name, eager in (
            ("mse", eager_mse),
            ("kl", eager_kl),
            ("reverse_kl", eager_reverse_kl),
            ("js", eager_js),
            ("cross_entropy", eager_cross_entropy),
        )
    },
    "logit_mse": {"eager torch": _loss(eager_logit_mse), "torch.compile": _compiled(eager_logit_mse)},
    "mean_teacher_loss": {
        "eager torch": objective.step_of(objective.eager),
        "torch.compile": _compiled(objective.eager, objective.step_of),
    },
}
PEERS |= targets.PEERS | augmentations.PEERS
PEERS["softmax_kl"]["Liger"] = _cuda_only(_loss(_liger_kl, "log_softmax and softmax by torch"))
PEERS["softmax_js"]["Liger"] = _cuda_only(_loss(_liger_js, "log_softmax by torch"))


def _ours(public: Factory, backend: Callable[[str], Factory]) -> dict[str, Factory]:
    return {"mtkernels": public, "mtkernels native": backend("native"), "mtkernels triton": backend("triton")}


OURS: dict[str, dict[str, Factory]] = {
    "ema_update": {
        **_ours(_ema_mtkernels, _ema_backend),
        "mtkernels WeightEMA": _ema_weight_ema,
        "mtkernels EmaPlan": _ema_plan,
    },
    **{op: _ours(_loss(ours(op)), partial(_loss_backend, op)) for op in LOSSES if op != "mean_teacher_loss"},
    "mean_teacher_loss": _ours(objective.step_of(objective.fused), _objective_backend),
    **targets.OURS,
    **augmentations.OURS,
}


def candidates(case: Case) -> dict[str, Factory]:
    """Ours first; the backends by name on a GPU alone. A case may have candidates of its own."""
    if case.contenders is not None:
        return case.contenders
    by_name = ("mtkernels native", "mtkernels triton") if case.device == "cpu" else ()
    ours = {name: make for name, make in OURS[case.op].items() if name not in by_name}
    return {**ours, **PEERS[case.op]}
