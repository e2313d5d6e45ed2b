"""Which student tensor belongs to which teacher tensor: modules by name, mappings by key, sequences by position."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

Tensors = nn.Module | Mapping[str, Tensor] | Iterable[Tensor]
Names = str | Sequence[str] | Callable[[str], bool] | None

# What wrappers put into the names of the model that they wrap: torch.compile, FSDP, activation checkpointing.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class Pairs(NamedTuple):
    teachers: Sequence[Tensor]
    students: Sequence[Tensor]
    copied: int  # how many at their end are copied
    names: list[str] | None  # None for sequences


def match(
    teacher: Tensors, student: Tensors, buffers: str = "average", include: Names = None, exclude: Names = None
) -> Pairs:
    """The pairs of ema_update; its docstring tells which."""
    if buffers not in ("average", "copy", "keep"):
        raise ValueError(f"ema_update: buffers must be 'average', 'copy' or 'keep', got {buffers!r}")
    if isinstance(teacher, nn.Module) and isinstance(student, nn.Module):
        pairs, names = _module_pairs(teacher, student, buffers)
        return _chosen(pairs, names, include, exclude)
    if buffers != "average":
        raise ValueError(
            f"ema_update: buffers must be 'average' where teacher is no module (a {type(teacher).__name__} does not "
            f"tell its buffers), got {buffers!r}"
        )
    if isinstance(teacher, Mapping) and isinstance(student, Mapping):
        names = _same_names(teacher, student, "tensors")
        pairs = Pairs([teacher[name] for name in names], [student[name] for name in names], 0, names)
        return _chosen(pairs, names, include, exclude)
    for argument, value in (("teacher", teacher), ("student", student)):
        if not _is_list(value):
            other = "student" if argument == "teacher" else "teacher"
            raise TypeError(
                f"ema_update: {argument} must be a module, a mapping or a sequence of tensors, as {other} is, "
                f"got {type(value).__name__}"
            )
    for argument, names in (("include", include), ("exclude", exclude)):
        if names is not None:
            raise ValueError(
                f"ema_update: {argument} must be None where teacher is a sequence (it has no names), got {names!r}"
            )
    return Pairs(_listed(teacher), _listed(student), 0, None)


def matched_averages(
    teachers: Sequence[Tensors], student: Tensors, buffers: str, include: Names, exclude: Names
) -> Pairs:
    """Several teachers of one student: all tensors of the first, then all of the second ..."""
    student = _listed(student) if _is_list(student) else student
    pairs = [match(teacher, student, buffers, include, exclude) for teacher in teachers]
    first = pairs[0]
    for index, other in enumerate(pairs):
        if len(other.teachers) != len(first.students):
            raise ValueError(
                f"ema_update: teacher[{index}] must have as many tensors as student ({len(first.students)}), "
                f"got {len(other.teachers)}"
            )
        if other.names != first.names:
            named = dict(zip(other.names, other.teachers, strict=True))
            if named.keys() != set(first.names):  # DataParallel's prefix, on one teacher and not on another
                named = {name.removeprefix("module."): tensor for name, tensor in named.items()}
            tensors = [
                named[name] if name in named else named[name.removeprefix("module.")] for name in first.names
            ]
            pairs[index] = other._replace(teachers=tensors)
    return first._replace(teachers=[tensor for other in pairs for tensor in other.teachers])


def is_average(tensor: Tensor) -> bool:
    """Whether a tensor is averaged rather than copied."""
    return tensor.is_floating_point() or tensor.is_complex()


def local_shards(pairs: Pairs) -> Pairs | None:
    """DTensors by their local shards, with no communication; None where there is no DTensor."""
    tensors = [*pairs.teachers, *pairs.students]
    if not any(hasattr(tensor, "to_local") for tensor in tensors):
        return None
    averages = len(pairs.teachers) // max(len(pairs.students), 1)
    for index, (to, source) in enumerate(
        zip(pairs.teachers, list(pairs.students) * averages, strict=True) if averages else ()
    ):
        ours, theirs = (getattr(tensor, "placements", None) for tensor in (to, source))
        if ours != theirs or getattr(to, "device_mesh", None) != getattr(source, "device_mesh", None):
            at = index % len(pairs.students)
            name = f" ({pairs.names[at]!r})" if pairs.names else ""
            raise ValueError(
                f"ema_update: teacher[{at}]{name} must be sharded as its student is "
                f"({_sharding(source)}), got {_sharding(to)}"
            )
    with torch.no_grad():
        teachers, students = (
            [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in side]
            for side in (pairs.teachers, pairs.students)
        )
    return pairs._replace(teachers=teachers, students=students)


def _sharding(tensor: Tensor) -> str:
    if not hasattr(tensor, "placements"):
        return "not a DTensor"
    return f"{tensor.placements} on {tensor.device_mesh}"


def _is_list(value) -> bool:
    """Tensors in an order: a sequence, a generator such as module.parameters(), the values of a dict."""
    return isinstance(value, Iterable) and not isinstance(
        value, (nn.Module, Mapping, Tensor, str, bytes, Set)
    )


def _listed(tensors: Iterable[Tensor]) -> list[Tensor] | tuple[Tensor, ...]:
    """Read once: it may make its tensors on the way."""
    return tensors if isinstance(tensors, (list, tuple)) else list(tensors)


def _chosen(pairs: Pairs, names: list[str], include: Names, exclude: Names) -> Pairs:
    """names: of all tensors, also of those that stay as they are in any case."""
    if include is None and exclude is None:
        return pairs
    wanted, unwanted = _predicate("include", include, names), _predicate("exclude", exclude, names)
    kept = [
        at
        for at, name in enumerate(pairs.names)
        if (include is None or wanted(name)) and not (exclude is not None and unwanted(name))
    ]
    if not kept:
        raise ValueError(
            f"ema_update: include and exclude must leave at least one tensor of {len(pairs.names)}, "
            f"got include={include!r}, exclude={exclude!r}"
        )
    copied = sum(at >= len(pairs.names) - pairs.copied for at in kept)
    return Pairs(
        [pairs.teachers[at] for at in kept],
        [pairs.students[at] for at in kept],
        copied,
        [pairs.names[at] for at in kept],
    )


def _predicate(argument: str, chosen: Names, names: list[str]) -> Callable[[str], bool]:
    if chosen is None or callable(chosen):
        return chosen or bool
    patterns = (
        [chosen] if isinstance(chosen, str) else list(chosen) if isinstance(chosen, Iterable) else [chosen]
    )
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"ema_update: {argument} must be name patterns (such as 'head.*') or a function of a name, "
                f"got {type(pattern).__name__}"
            )
    for pattern in patterns:
        if not _matches_any(pattern, *names):
            raise ValueError(f"ema_update: {argument} must match at least one tensor, got {pattern!r}")
    return lambda name: _matches(name, *patterns)


def _matches(name: str, *patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _matches_any(pattern: str, *names: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


# torch.compile cannot trace fnmatch: as torch.compiler.assume_constant_result
_matches._dynamo_marked_constant = _matches_any._dynamo_marked_constant = True


def _module_pairs(teacher: nn.Module, student: nn.Module, buffers: str) -> tuple[Pairs, list[str]]:
    """The pairs, and the names of all tensors."""
    (weights, kept), (student_weights, student_kept) = named_tensors(teacher), named_tensors(student)
    weights, student_weights, names = _matched(weights, student_weights, "parameters")
    kept, student_kept, kept_names = _matched(kept, student_kept, "buffers")
    all_names = names + kept_names
    if buffers == "keep":
        kept_names = [name for name in kept_names if not is_average(kept[name])]
    teachers = [weights[name] for name in names] + [kept[name] for name in kept_names]
    students = [student_weights[name] for name in names] + [student_kept[name] for name in kept_names]
    copied = 0 if buffers == "average" else len(kept_names)
    return Pairs(teachers, students, copied, names + kept_names), all_names


def named_tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers, each once, by their first names less what wrappers put in; in one walk."""
    parameters, buffers, seen = {}, {}, set()
    for prefix, part in module.named_modules():
        prefix = bare_name(prefix)
        prefix = prefix and prefix + "."
        for tensors, named in ((part._parameters, parameters), (part._buffers, buffers)):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    named[prefix + name] = tensor
    return parameters, buffers


def bare_name(name: str) -> str:
    """A name without the parts that wrappers put in."""
    for wrapper in WRAPPERS if "_" in name else ():
        if wrapper in name:
            return ".".join([part for part in name.split(".") if part not in WRAPPERS])
    return name


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
