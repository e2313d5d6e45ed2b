"""ema_update: the weight average of teacher-student training, over all tensors of a model in one launch."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtkernels._library import define, must_dispatch
from mtkernels.backends import backend_for

Tensors = nn.Module | Mapping[str, Tensor] | Sequence[Tensor]


def ema_update(
    teacher: Tensors,
    student: Tensors,
    decay: float | Tensor,
    *,
    buffers: Literal["average", "copy", "keep"] = "average",
) -> None:
    """Moves the teacher's weights toward the student's, in place.

    teacher <- decay * teacher + (1 - decay) * student

    Args:
        teacher, student: two modules (matched by name), two mappings of tensors (by key) or two sequences (by
            position). Each pair has one shape, memory format and device. Floating dtypes (float16, bfloat16, float32,
            float64, and complex) may differ within a pair: the average is computed in float32, or float64 where
            either is, and rounded once. Integer and bool tensors are copied. Tied weights are averaged once.
        decay: between 0 (copy the student) and 1 (keep the teacher), without unit; a number, or a 0-d float32 or
            float64 tensor. One on the weights' device is read by the kernel, without a sync, also in a captured graph.
        buffers: for modules, what happens to floating buffers (batch-norm statistics): averaged, copied, or kept as the
            teacher's own. Integer and bool buffers (counters, indices) are copied in every case.

    Like an optimizer's step it runs outside autograd, also where the teacher's weights require grad.

    Raises:
        TypeError, ValueError, NotImplementedError: naming the tensor, before anything is written.

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (2017), eq. 2.
    """
    teachers, students, copied, names = _pairs(teacher, student, buffers)
    if not teachers and not students:
        return
    if teachers and must_dispatch(teachers[0]):
        overload = torch.ops.mtkernels.ema_update
        (overload.tensor if isinstance(decay, Tensor) else overload.default)(
            teachers, students, decay, copied
        )
        return
    _update(teachers, students, decay, copied, names)


def _update(teacher, student, decay, copied=0, names=None):
    device = teacher[0].device.type if teacher and isinstance(teacher[0], Tensor) else "cpu"
    backend_for(device).ema_update(teacher, student, decay, copied, names)
    torch.autograd.graph.increment_version(teacher)


def _fake(teacher, student, decay, copied=0):
    return None


define("ema_update(Tensor(a!)[] teacher, Tensor[] student, float decay, int copied=0) -> ()", _update, _fake)
define(
    "ema_update.tensor(Tensor(a!)[] teacher, Tensor[] student, Tensor decay, int copied=0) -> ()",
    _update,
    _fake,
)


def _pairs(teacher, student, buffers):
    """Lists of teachers and students, how many at their end are copied, and names for messages (None for sequences)."""
    if buffers not in ("average", "copy", "keep"):
        raise ValueError(f"ema_update: buffers must be 'average', 'copy' or 'keep', got {buffers!r}")
    if isinstance(teacher, nn.Module) and isinstance(student, nn.Module):
        return _module_pairs(teacher, student, buffers)
    if buffers != "average":
        raise ValueError(
            f"ema_update: buffers must be 'average' where teacher is no module (a {type(teacher).__name__} does not "
            f"tell its buffers), got {buffers!r}"
        )
    if isinstance(teacher, Mapping) and isinstance(student, Mapping):
        names = _same_names(teacher, student, "tensors")
        return [teacher[name] for name in names], [student[name] for name in names], 0, names
    for argument, value in (("teacher", teacher), ("student", student)):
        if isinstance(value, (nn.Module, Mapping, Tensor, str)) or not isinstance(value, Sequence):
            other = "student" if argument == "teacher" else "teacher"
            raise TypeError(
                f"ema_update: {argument} must be a module, a mapping or a sequence of tensors, as {other} is, "
                f"got {type(value).__name__}"
            )
    return _listed(teacher), _listed(student), 0, None


def _listed(tensors: Sequence[Tensor]) -> list[Tensor] | tuple[Tensor, ...]:
    """Read once: a sequence may make its tensors on the way."""
    return tensors if isinstance(tensors, (list, tuple)) else list(tensors)


def _module_pairs(teacher, student, buffers):
    (weights, kept), (student_weights, student_kept) = _named(teacher), _named(student)
    weights, student_weights, names = _matched(weights, student_weights, "parameters")
    kept, student_kept, kept_names = _matched(kept, student_kept, "buffers")
    if buffers == "keep":
        kept_names = [name for name in kept_names if not _is_average(kept[name])]
    teachers = [weights[name] for name in names] + [kept[name] for name in kept_names]
    students = [student_weights[name] for name in names] + [student_kept[name] for name in kept_names]
    return teachers, students, 0 if buffers == "average" else len(kept_names), names + kept_names


def _is_average(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _named(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers, each once, by their first names less what torch.compile puts in; in one walk."""
    parameters, buffers, seen = {}, {}, set()
    for prefix, part in module.named_modules():
        prefix = f"{prefix}.".replace("_orig_mod.", "") if prefix else ""
        for tensors, named in ((part._parameters, parameters), (part._buffers, buffers)):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    named[prefix + name] = tensor
    return parameters, buffers


def _matched(teacher: dict, student: dict, kind: str) -> tuple[dict, dict, list[str]]:
    """Both by the same names: DataParallel's prefix goes where only one side has it."""
    if teacher.keys() != student.keys():
        if teacher.keys() == (bare := _without_prefix(student)).keys():
            student = bare
        elif (bare := _without_prefix(teacher)).keys() == student.keys():
            teacher = bare
    return teacher, student, _same_names(teacher, student, kind)


def _without_prefix(named: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(name.startswith("module.") for name in named):
        return named
    return {name.removeprefix("module."): tensor for name, tensor in named.items()}


def _same_names(teacher: Mapping, student: Mapping, kind: str) -> list[str]:
    names = list(teacher)
    if teacher.keys() != student.keys():
        missing = next((name for name in names if name not in student), None)
        extra = next((name for name in student if name not in teacher), None)
        difference = f"none named {missing!r}" if missing is not None else f"also one named {extra!r}"
        raise ValueError(f"ema_update: student must have the {kind} of its teacher, got {difference}")
    return names
