"""What no peer has in one pass, against what it takes with torch's own calls or timm: cases with own candidates."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench import models
from bench.cases import DECAY, Case, Workload, decays
from bench.peers import Candidate, Factory, foreach_lerp, timm_ema
from mtkernels.ema import WeightEMA
from mtkernels.testing import OPS

OP = "ema_update features"
_BF16 = torch.bfloat16
Lists = list[Tensor]


def _ema(note: str = "", flag: bool = False, drift: bool = False, **options) -> Factory:
    """WeightEMA.update, of one or several averages."""

    def factory(work: Workload) -> Candidate:
        ema = WeightEMA(work.student, decays(len(work.averages)), teacher=work.averages, **options)
        found = torch.zeros((), device=work.students[0].device) if flag else None

        def joined():
            return list(ema.state_dict()["averages"][0].values())

        compensated = options.get("rounding") == "compensated"
        step = (lambda: ema.update(found_inf=found, drift=drift)) if flag or drift else ema.update
        return Candidate(step, joined if compensated else lambda: work.teachers, note)

    return factory


def _one_each(work: Workload) -> Candidate:
    updates = [
        WeightEMA(work.student, decay, teacher=average).update
        for decay, average in zip(decays(len(work.averages)), work.averages, strict=True)
    ]

    def step():
        for update in updates:
            update()

    return Candidate(step, lambda: work.teachers)


def _torch_each(work: Workload) -> Candidate:
    count, every = len(work.students), decays(len(work.averages))
    weights = [1 - decay for decay in (every if isinstance(every, list) else [every])]
    teachers = [work.teachers[k * count : (k + 1) * count] for k in range(len(weights))]

    @torch.no_grad()
    def step():
        for average, weight in zip(teachers, weights, strict=True):
            torch._foreach_lerp_(average, work.students, weight)

    return Candidate(step, lambda: work.teachers)


def _torch(make: Callable[[Lists, Lists], Callable[[], object]], note: str = "") -> Factory:
    """A step out of torch's own multi-tensor calls, on prepared lists."""

    def factory(work: Workload) -> Candidate:
        return Candidate(torch.no_grad()(make(work.teachers, work.students)), lambda: work.teachers, note)

    return factory


def _converted(teachers: Lists, students: Lists) -> Callable[[], object]:
    wide = [torch.empty_like(teacher) for teacher in teachers]

    def step():
        torch._foreach_copy_(wide, students)
        torch._foreach_lerp_(teachers, wide, 1 - DECAY)

    return step


def _then_norms(teachers: Lists, students: Lists) -> Callable[[], object]:
    def step():
        torch._foreach_lerp_(teachers, students, 1 - DECAY)
        return torch.stack(torch._foreach_norm(torch._foreach_sub(teachers, students))).norm()

    return step


def _if_finite(teachers: Lists, students: Lists) -> Callable[[], object]:
    def step():
        if torch.stack(torch._foreach_norm(students, float("inf"))).isfinite().all():
            torch._foreach_lerp_(teachers, students, 1 - DECAY)

    return step


def _three_copies(teachers: Lists, students: Lists) -> Callable[[], object]:
    kept = [torch.empty_like(student) for student in students]

    def step():
        torch._foreach_copy_(kept, students)
        torch._foreach_copy_(students, teachers)
        torch._foreach_copy_(teachers, kept)

    return step


def _swap(work: Workload) -> Candidate:
    ema = WeightEMA(work.student, DECAY, teacher=work.averages)
    return Candidate(ema.swap_, lambda: work.teachers, "tensors matched at each call")


class _SwapCase(Case):
    def call(self, backend, inputs, copied: int) -> Lists:
        return list(inputs[1])

    def floor_bytes(self) -> int:
        return 2 * sum(tensor.nbytes for tensors in self.inputs for tensor in tensors)


def _averages(count: int) -> dict:
    contenders = {"mtkernels": _ema("WeightEMA"), "torch _foreach_lerp_, a call each": _torch_each}
    more = {"mtkernels, a call each": _one_each} if count > 1 else {}
    return {"averages": count, "contenders": {**contenders, **more}}


_FEATURES: dict[str, dict] = {
    "1 average": _averages(1),
    "2 averages": _averages(2),
    "4 averages": _averages(4),
    "fp32 average of bf16": {
        "dtypes": (torch.float32, _BF16),
        "contenders": {
            "mtkernels": _ema(),
            "torch, converted": _torch(_converted, "_foreach_copy_ to an fp32 list, then _foreach_lerp_"),
            "timm ModelEmaV3": timm_ema,
        },
    },
    "bf16 average of bf16": {
        "dtypes": (_BF16, _BF16),
        "contenders": {
            "mtkernels": _ema("nearest: small steps are lost"),
            "mtkernels stochastic": _ema(rounding="stochastic"),
            "mtkernels compensated": _ema(
                "16 more bits an element, read and written", rounding="compensated"
            ),
            "torch _foreach_lerp_": foreach_lerp,
            "timm ModelEmaV3 stochastic": partial(timm_ema, stochastic=True),
        },
    },
    "drift": {
        "contenders": {
            "mtkernels": _ema("with drift", drift=True),
            "mtkernels without": _ema(),
            "torch, then norms": _torch(_then_norms, "_foreach_lerp_, _foreach_sub, _foreach_norm"),
        }
    },
    "skip if not finite": {
        "contenders": {
            "mtkernels": _ema("skip_nonfinite", skip_nonfinite=True),
            "mtkernels found_inf": _ema("flag given", flag=True),
            "mtkernels without": _ema(),
            "torch, looked first": _torch(_if_finite, "_foreach_norm, a sync, _foreach_lerp_"),
        }
    },
}
_SWAP = {"mtkernels": _swap, "torch, three copies": _torch(_three_copies, "_foreach_copy_")}


def _wrn_parameters() -> nn.Module:
    return nn.ParameterList(models.wrn28_2().parameters())


SIZES = {
    "wrn-28-2": (_wrn_parameters, False),
    "160x160000": (partial(models.listed, OPS["ema_update"].bench["160x160000"]), True),
}


def cases(device: str) -> list[Case]:
    found: list[Case] = []
    for size, (model, shared) in SIZES.items():
        for name, options in _FEATURES.items():
            found.append(Case(OP, f"{name}, {size}", device, model=model, shared=shared, **options))
        found.append(_SwapCase(OP, f"swap, {size}", device, model=model, contenders=_SWAP))
    return found
