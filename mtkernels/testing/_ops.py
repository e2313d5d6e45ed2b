"""OPS: one row per op: how its tensors are made and its backends called, its options, cases and timed sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from mtkernels import schedules
from mtkernels._options import LossOptions
from mtkernels.backends import reference
from mtkernels.ops.ema import EmaOptions
from mtkernels.testing import _augment

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Neither weight averages nor losses.
OTHERS = ("augment", "multi_tensor_dot", "sharpen", "temporal_ensemble_")
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Op:
    """How an op's tensors are made from shapes, and how a backend's form of it is called on them.

    make(shapes, dtype, device, seed) gives the inputs: a tuple of lists of tensors.
    call(backend, inputs, **options) gives every output as a list of new tensors; the inputs stay as they are.
    """

    name: str
    make: Callable[..., tuple[list[Tensor], ...]]
    call: Callable[..., list[Tensor]]
    options: tuple[dict, ...]  # each a set of options to test under
    cases: dict[str, Shapes]  # tested sizes
    bench: dict[str, Shapes]  # timed sizes


def random_lists(shapes: Shapes, dtype: torch.dtype, device: str = "cpu", seed: int = 0, scale: float = 1.0):
    """Two lists of random tensors, drawn in float64 on the CPU: the same numbers for every dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        [
            (scale * torch.randn(shape, dtype=torch.float64, generator=generator)).to(device, dtype)
            for shape in shapes
        ]
        for _ in range(2)
    )


def _call_ema(
    backend: ModuleType, inputs, *, decay=0.99, copied=0, low=False, found_inf=None, step=None
) -> list[Tensor]:
    """A tuple of decays: as many averages. low: with low-order parts, which the result includes."""
    decays = decay if isinstance(decay, tuple) else (decay,)
    teacher, student = [tensor.clone() for _ in decays for tensor in inputs[0]], list(inputs[1])
    if not low and found_inf is step is None:
        backend.ema_update(teacher, student, list(decay) if len(decays) > 1 else decay, copied)
        return teacher
    averaged = range(len(student) - copied)
    parts = [
        torch.zeros_like(tensor, dtype=torch.int16)
        if low and at % len(student) in averaged and tensor.dtype in FLOATS[2:]
        else None
        for at, tensor in enumerate(teacher)
    ]
    device = teacher[0].device
    options = EmaOptions(
        step=None if step is None else torch.tensor(step, device=device),
        low=parts if low else None,
        found_inf=None if found_inf is None else torch.tensor(found_inf, device=device),
    )
    backend.ema_update(teacher, student, list(decay) if len(decays) > 1 else decay, copied, None, options)
    return [to if part is None else reference.join(to, part) for to, part in zip(teacher, parts, strict=True)]


def _call_loss(name: str) -> Callable[..., list[Tensor]]:
    def call(
        backend: ModuleType,
        inputs,
        *,
        dim=-1,
        reduction="mean",
        gradients=1,
        weight=False,
        center=False,
        **options,
    ) -> list[Tensor]:
        """weight, center: whether there are some; made here, of numbers that float16 holds."""
        (student,), (teacher,) = inputs
        wide = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
        if weight:
            shape = [size for at, size in enumerate(student.shape) if at != dim % student.dim()]
            options["weight"] = _numbers(shape, 5).to(student.device, wide)
        if center:
            options["center"] = _numbers([student.shape[dim]], 7).to(student.device, wide)
        given = LossOptions(**options) if options else None
        outputs = getattr(backend, name)(student, teacher, dim, reduction, gradients, given)
        return [output for output in outputs if output is not None]

    return call


def _numbers(shape: list[int], period: int) -> Tensor:
    """0, 1/4, 1/2 ... over and over."""
    return (torch.arange(torch.Size(shape).numel()) % period / 4).view(shape)


def _call_mean_teacher(
    backend: ModuleType, inputs, *, dim=-1, heads=2, with_gradient=True, **options
) -> list[Tensor]:
    """labels: every third row has none; drawn from the logits, the same for every dtype."""
    (student, second), (teacher, drawn) = inputs
    labels = drawn.double().movedim(dim, -1).argmax(-1)
    labels = torch.where(
        torch.arange(labels.numel()).view(labels.shape).to(labels.device) % 3 == 0, -1, labels
    )
    outputs = backend.mean_teacher_loss(
        student,
        teacher,
        labels,
        second if heads == 2 else None,
        dim,
        options.pop("consistency_weight", 3.0),
        options.pop("logit_distance_cost", 0.5),
        options.pop("kl", False),
        options.pop("by_labeled", False),
        -1,
        with_gradient,
    )
    assert not options, options
    return [output for output in outputs if output is not None]


def _call_dot(backend: ModuleType, inputs, *, with_norms=False) -> list[Tensor]:
    return [backend.multi_tensor_dot(*inputs, with_norms)]


def _call_ensemble(
    backend: ModuleType, inputs, *, updates=3, correction="bias", reduction="mean", with_gradient=True
) -> list[Tensor]:
    """Loss, gradient and the ensemble."""
    (student,), (ensemble,) = inputs
    index, moved = visited(ensemble, len(student)), ensemble.clone()
    outputs = backend.temporal_ensemble_(
        moved, index, student, 0.6, updates, correction, reduction, with_gradient
    )
    return [output for output in (*outputs, moved) if output is not None]


def visited(ensemble: Tensor, rows: int) -> Tensor:
    """Which of an ensemble's rows: far from each other and in another order than they lie, where there is room."""
    generator = torch.Generator().manual_seed(len(ensemble))
    return torch.randperm(len(ensemble), generator=generator)[:rows].to(ensemble.device)


def _random_ensemble(shapes: Shapes, dtype: torch.dtype, device: str = "cpu", seed: int = 0):
    """Logits, and an ensemble of as many samples as a second shape says, or of 3 more than there are logits."""
    (rows, classes), *more = shapes
    samples = more[0][0] if more else rows + 3
    student, ensemble = random_lists(((samples, classes),), torch.float64, "cpu", seed, 3.0)
    return (
        [tensor[:rows].clone().to(device, dtype) for tensor in student],
        [tensor.softmax(-1).to(device, dtype) for tensor in ensemble],
    )


def _call_sharpen(backend: ModuleType, inputs, *, temperature=0.5, dim=-1) -> list[Tensor]:
    return [backend.sharpen(inputs[0][0], temperature, dim)]


def _random_probs(shapes: Shapes, dtype: torch.dtype, device: str = "cpu", seed: int = 0):
    probs, _ = random_lists(shapes, torch.float64, "cpu", seed, 3.0)
    return [tensor.softmax(-1).to(device, dtype) for tensor in probs], []


def _random_logits(
    shapes: Shapes, dtype: torch.dtype, device: str = "cpu", seed: int = 0, scale: float = 3.0
):
    return random_lists(shapes, dtype, device, seed, scale)


_PLAIN = (
    *({"reduction": reduction} for reduction in ("mean", "sum", "none")),
    {"gradients": 0},
    {"dim": 0},
)
_SOFTMAX_OPTIONS = (
    *_PLAIN,
    {"gradients": 3},
    {"gradients": 2, "student_temperature": 0.25, "teacher_temperature": 2.0, "reduction": "none"},
    {"weight": True, "center": True, "gradients": 3, "reduction": "sum"},
    {"threshold": 0.3, "teacher_temperature": 0.5, "reduction": "none"},
    {"threshold": 0.3, "weight": True, "center": True, "gradients": 3, "dim": 0},
)
_TARGET_OPTIONS = (
    *_SOFTMAX_OPTIONS,
    {"label_smoothing": 0.25, "gradients": 3},
    {"hard": True, "center": True, "reduction": "none"},
    {"hard": True, "label_smoothing": 0.125, "threshold": 0.2, "weight": True, "student_temperature": 0.5},
)
_LOGIT_OPTIONS = (*_PLAIN, {"gradients": 3}, {"gradients": 2, "weight": True, "reduction": "sum"})
_OBJECTIVE_OPTIONS = (
    {},
    {"kl": True, "by_labeled": True},
    {"heads": 1},
    {"heads": 1, "kl": True, "dim": 0},
    {"consistency_weight": 0.0, "logit_distance_cost": 0.0},
    {"with_gradient": False},
)
_LIST_CASES = {
    "one": ((7, 5),),
    "scalar": ((),),
    "empty": ((0,), (3, 0, 2)),
    "network": ((16, 3, 3, 3), (16,), (), (0,), (33, 17), (1,)),
    "long": ((70_001,), (4096, 33)),
}
_ROW_CASES = {
    "one row": ((1, 10),),
    "one class": ((5, 1),),
    "few classes": ((37, 10),),
    "row edge": ((17, 64),),
    "1000 classes": ((9, 1000),),
    "20000 classes": ((2, 20_000),),
    "empty": ((0, 10),),
}
_LOSS_CASES = {
    "one row": ((1, 10),),
    "one class": ((5, 1),),
    "few classes": ((37, 10),),
    "tile edge": ((16, 47),),
    "row edge": ((17, 48),),
    "1000 classes": ((9, 1000),),
    "131072 classes": ((2, 131072),),
    "empty": ((0, 10),),
    "vector": ((100,),),
    "dense map": ((2, 7, 5, 3),),
}
_LOSS_BENCH = {
    f"{rows}x{classes}": ((rows, classes),)
    for rows, classes in (
        (100, 10),
        (256, 100),
        (256, 1000),
        (4096, 1000),
        (64, 65536),
        (16, 131072),
    )
} | {"2x21x512x512": ((2, 21, 512, 512),)}
_FEW_SIZES = {name: _LOSS_BENCH[name] for name in ("100x10", "256x1000", "4096x1000")}


def refuses(op: Op, shapes: Shapes, options: dict) -> bool:
    """Whether a case has no classes under these options, which a loss refuses."""
    return op.cases is _LOSS_CASES and shapes[0][options.get("dim", -1)] == 0


def _many(count: int, size: int) -> Shapes:
    return ((size,),) * count


OPS = {
    op.name: op
    for op in (
        Op(
            name="ema_update",
            make=random_lists,
            call=_call_ema,
            options=(
                *({"decay": decay} for decay in (0.99, 0.25, 0.0, 1.0)),
                {"copied": 1},
                {"decay": (0.99, 0.5, 0.9)},
                {"low": True, "decay": (0.99, 0.3)},
                {"low": True, "copied": 1},
                {"found_inf": 1.0},
                {"decay": (schedules.running_mean(0.9), schedules.cosine(0.9, steps=10), 0.75), "step": 4},
            ),
            cases=_LIST_CASES,
            bench={
                "500x16": _many(500, 16),
                "500x1000": _many(500, 1000),
                "160x160000": _many(160, 160_000),
                "4x6M": _many(4, 6_000_000),
            },
        ),
        *(
            Op(name, _random_logits, _call_loss(name), options, _LOSS_CASES, sizes)
            for name, options, sizes in (
                ("softmax_mse", _SOFTMAX_OPTIONS, _LOSS_BENCH),
                ("softmax_kl", _SOFTMAX_OPTIONS, _LOSS_BENCH),
                ("softmax_reverse_kl", _SOFTMAX_OPTIONS, _FEW_SIZES),
                ("softmax_js", _SOFTMAX_OPTIONS, _FEW_SIZES),
                ("softmax_cross_entropy", _TARGET_OPTIONS, _FEW_SIZES),
                ("logit_mse", _LOGIT_OPTIONS, _FEW_SIZES),
            )
        ),
        Op(
            "mean_teacher_loss",
            lambda shapes, *args, **kwargs: _random_logits(shapes * 2, *args, **kwargs),
            _call_mean_teacher,
            _OBJECTIVE_OPTIONS,
            _LOSS_CASES,
            _FEW_SIZES,
        ),
        Op(
            name="multi_tensor_dot",
            make=random_lists,
            call=_call_dot,
            options=({}, {"with_norms": True}),
            cases=_LIST_CASES | {"empty": ((2,), (0,), (3, 0, 2))},
            bench={
                "500x16": _many(500, 16),
                "500x1000": _many(500, 1000),
                "160x160000": _many(160, 160_000),
            },
        ),
        Op(
            name="temporal_ensemble_",
            make=_random_ensemble,
            call=_call_ensemble,
            options=(
                {},
                {"correction": "renormalize", "updates": None, "reduction": "sum"},
                {"correction": "none", "updates": None, "reduction": "none"},
                {"updates": 0, "reduction": "sum"},
                {"with_gradient": False},
            ),
            cases=_ROW_CASES,
            bench={"100x10": ((100, 10), (60_000,)), "256x1000": ((256, 1000), (2560,))},
        ),
        Op(
            name="sharpen",
            make=_random_probs,
            call=_call_sharpen,
            options=(
                *({"temperature": temperature} for temperature in (0.5, 1.0, 0.07, 4.0)),
                {"dim": 0},
            ),
            cases=_ROW_CASES | {"vector": ((100,),), "dense map": ((2, 7, 5, 3),)},
            bench={"256x10": ((256, 10),), "256x1000": ((256, 1000),)},
        ),
        Op(
            name="augment",
            make=_augment.random_images,
            call=_augment.call,
            options=_augment.OPTIONS,
            cases=_augment.CASES,
            bench=_augment.BENCH,
        ),
    )
}
