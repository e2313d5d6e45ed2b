"""ema_update: the weight average of teacher-student training, over all tensors of a model in one launch."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mtkernels import _C
from mtkernels._library import define, must_dispatch
from mtkernels.backends import backend_for
from mtkernels.ops.matching import Names, Pairs, Tensors, local_shards, match, matched_averages
from mtkernels.schedules import Schedule

Decay = float | Tensor | Schedule


class EmaOptions(NamedTuple):
    """What an update takes beside tensors and decay; csrc/ema_update.h tells what each does. The binding checks it."""

    step: Tensor | int | None = None
    low: Sequence[Tensor | None] | None = None
    stochastic: bool = False
    seed: int = 0
    found_inf: Tensor | None = None
    drift: Tensor | None = None
    every: int = 1
    start: int = 0
    advance: bool = False


def ema_update(
    teacher: Tensors | Sequence[Tensors],
    student: Tensors,
    decay: Decay | Callable[[int], float] | Sequence[Decay | Callable[[int], float]],
    *,
    step: int | Tensor | None = None,
    buffers: Literal["average", "copy", "keep"] = "average",
    include: Names = None,
    exclude: Names = None,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    seed: int = 0,
    low: Mapping[str, Tensor] | Sequence[Tensor | None] | None = None,
    found_inf: Tensor | None = None,
    skip_nonfinite: bool = False,
    drift: Tensor | None = None,
) -> None:
    """Moves the teacher's weights toward the student's, in place.

    teacher <- decay * teacher + (1 - decay) * student

    Args:
        teacher, student: two modules (matched by name), two mappings of tensors (by key) or two sequences or
            generators (by position). Each pair has one shape, memory format and device. Floating dtypes (float16,
            bfloat16, float32, float64, and complex) may differ within a pair: the average is computed in float32, or
            float64 where either is, and rounded once. Integer and bool tensors are copied. Tied weights are averaged
            once. DTensors are averaged shard by shard, without communication.
        decay: between 0 (copy the student) and 1 (keep the teacher), without unit; a number, a 0-d float32 or float64
            tensor, one of `mtkernels.schedules`, or a function of the step (an int then). A tensor on the weights'
            device is read by the kernel, without a sync, also in a captured graph. A list of up to 8: as many
            averages, and `teacher` is a list of as many; each student weight is read once for all.
        step: the schedule's argument, from 1 on: an int, or a 0-d int64 tensor on the weights' device, which the kernel
            reads. 'stochastic' needs it too: each step has random numbers of its own.
        buffers: for modules, what happens to floating buffers (batch-norm statistics): averaged, copied, or kept as the
            teacher's own. Integer and bool buffers (counters, indices) are copied in every case.
        include, exclude: for modules and mappings, the names that move: patterns such as "head.*", or a function of the
            name that tells. Others stay as they are. A pattern that matches no name is refused.
        rounding: of bf16 and fp16 averages: 'stochastic' rounds up or down with the probability of what is cut off, so
            that steps smaller than a unit in the last place count (to nearest, they are lost). Philox, by `seed`,
            step and element: the same bits on every backend.
        low: the low-order parts of bf16 and fp16 averages: int16 tensors like their teachers, zeros at first, by name
            or by position (None where there is none). bf16 and its low part are an fp32 number together, fp16 and its
            low part have 22 bits.
        found_inf: one float32 on the weights' device, as torch.amp.GradScaler keeps it: where it is not 0 the update
            leaves the teacher as it is, without a sync.
        skip_nonfinite: likewise where any floating weight of the student is infinite or NaN: one more launch looks at
            them first. Not with DTensors: reduce a found_inf over the ranks.
        drift: float64 on the weights' device, one for each average: gets the norm of teacher - student over all
            averaged pairs (their local shards), after the update, from the same launch. Unchanged where the update is
            skipped.

    As torch's own in-place functions it refuses teachers that require grad while autograd records; of lists that were
    accepted before, the first tensor of each average alone is asked.

    Raises:
        TypeError, ValueError, NotImplementedError: naming the tensor, before anything is written.

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (2017), eq. 2.
    """
    decay = _evaluated(decay, step)
    if isinstance(decay, (list, tuple)):
        teacher = _several(teacher, decay)
        pairs = matched_averages(teacher, student, buffers, include, exclude)
    else:
        pairs = match(teacher, student, buffers, include, exclude)
    if not pairs.teachers and not pairs.students:
        return
    options = None
    if not (step is low is found_inf is drift is None and rounding == "nearest" and not skip_nonfinite):
        averages = len(decay) if isinstance(decay, (list, tuple)) else 1
        options = EmaOptions(
            step, _low_list(low, pairs, averages), _is_stochastic(rounding), seed, found_inf, drift
        )
        if skip_nonfinite:
            options = options._replace(found_inf=_skipping(pairs, decay, options))
    if pairs.teachers and must_dispatch(pairs.teachers[0]):
        dispatch(pairs, decay, options)
        return
    update(pairs, decay, options)


def update(pairs: Pairs, decay, options: EmaOptions | None = None) -> None:
    """The update of matched lists in eager mode."""
    try:
        _update(*pairs[:2], decay, pairs.copied, pairs.names, options)
    except TypeError:  # DTensors have no memory of their own; nothing has been written
        if (local := local_shards(pairs)) is None:
            raise
        _update(*local[:2], decay, local.copied, local.names, _local_low(options))


def dispatch(pairs: Pairs, decay, options: EmaOptions | None = None) -> None:
    """The same through the registered op, for tracers, modes and subclasses."""
    if (local := local_shards(pairs)) is not None:
        pairs, options = local, _local_low(options)
    teachers, students, copied, _ = pairs
    overload = torch.ops.mtkernels.ema_update
    if options is None and not isinstance(decay, (list, tuple, Schedule)):
        chosen = overload.tensor if isinstance(decay, Tensor) else overload.default
        chosen(teachers, students, decay, copied)
        return
    o = options or EmaOptions()
    decays = decay if isinstance(decay, (list, tuple)) else [decay]
    numbers, live = [], []
    for one in decays:
        if isinstance(one, Tensor):
            live.append(one)
        numbers += _LIVE if isinstance(one, Tensor) else _kernel(one)
    low = [] if o.low is None else [teachers[0].new_empty(0) if t is None else t for t in o.low]
    tensor_step = o.step if isinstance(o.step, Tensor) else None
    overload.full(
        teachers, students, numbers, live, low, tensor_step, o.found_inf, o.drift, copied,
        None if tensor_step is not None else o.step, o.stochastic, o.seed, o.every, o.start, o.advance,
    )  # fmt: skip


def nonfinite(tensors: Sequence[Tensor], found_inf: Tensor | None = None) -> Tensor:
    """1.0 where any floating element of the tensors is infinite or NaN, or found_inf says so, else 0.0."""
    if any(hasattr(tensor, "to_local") for tensor in tensors):
        raise NotImplementedError(
            "ema_update: skip_nonfinite must be False for DTensors (ranks would disagree: reduce a found_inf over "
            "them), got True"
        )
    device = tensors[0].device if tensors and isinstance(tensors[0], Tensor) else torch.device("cpu")
    found = torch.zeros((), device=device) if found_inf is None else found_inf.clone()
    if not tensors:
        return found
    look_for_nonfinite(found, tensors)
    return found


def look_for_nonfinite(found: Tensor, tensors: Sequence[Tensor]) -> None:
    """found <- 1.0 where any floating element of the tensors is infinite or NaN."""
    if must_dispatch(tensors[0]):
        torch.ops.mtkernels.nonfinite_(found, list(tensors))
    else:
        backend_for(found.device.type).nonfinite_(found, tensors)


def checked_found_inf(found_inf: Tensor | None, op: str = "ema_update") -> Tensor | None:
    """found_inf, which is None or one float32."""
    if found_inf is None:
        return None
    if not (isinstance(found_inf, Tensor) and found_inf.dtype == torch.float32):
        got = found_inf.dtype if isinstance(found_inf, Tensor) else type(found_inf).__name__
        raise TypeError(f"{op}: found_inf must be a float32 tensor, got {got}")
    if found_inf.numel() != 1:
        raise ValueError(f"{op}: found_inf must hold one number, got shape {list(found_inf.shape)}")
    return found_inf


def _skipping(pairs: Pairs, decay, options: EmaOptions) -> Tensor:
    """The flag of skip_nonfinite. What cannot be looked at is refused as the update itself would."""
    found_inf = checked_found_inf(options.found_inf)
    tensors = pairs.students
    if not tensors or must_dispatch(tensors[0]) or any(hasattr(tensor, "to_local") for tensor in tensors):
        return nonfinite(tensors, found_inf)
    try:
        return nonfinite(tensors, found_inf)
    except (TypeError, ValueError, NotImplementedError) as error:
        refused = error
    _C.ema_rows(*pairs[:2], decay, pairs.copied, pairs.names, options, 1)
    raise refused


_LIVE = (9.0, 0.0, 0.0, 0.0, 0.0)  # csrc/decay.h: a decay in memory


def _evaluated(decay, step):
    """A function of the step by its value there; other decays as they are."""
    if isinstance(decay, (list, tuple)):
        return [_evaluated(one, step) for one in decay]
    if not callable(decay) or isinstance(decay, Schedule):
        return decay
    if not isinstance(step, Integral):
        got = type(step).__name__
        raise TypeError(f"ema_update: step must be an int where decay is a function, got {got}")
    if step < 1:
        raise ValueError(f"ema_update: step must be at least 1 where decay is a function, got {step}")
    return decay(step)


def _kernel(decay: float | Schedule) -> tuple[float, ...]:
    if isinstance(decay, Schedule):
        return decay.kernel
    if not isinstance(decay, (int, float)) and not hasattr(decay, "__float__"):
        raise TypeError(
            f"ema_update: decay must be a number, a torch.Tensor or a schedule, got {type(decay).__name__}"
        )
    return (0.0, float(decay), 0.0, 0.0, 0.0)


def _local_low(options: EmaOptions | None) -> EmaOptions | None:
    """Low-order parts of DTensors by their local shards, as their teachers."""
    if options is None or options.low is None:
        return options
    return options._replace(
        low=[part.to_local() if hasattr(part, "to_local") else part for part in options.low]
    )


def _several(teacher, decay) -> Sequence[Tensors]:
    if not isinstance(teacher, (list, tuple)) or len(teacher) != len(decay):
        got = len(teacher) if isinstance(teacher, (list, tuple)) else type(teacher).__name__
        raise ValueError(
            f"ema_update: teacher must be a list of one teacher for each of {len(decay)} decays, got {got}"
        )
    if not 1 <= len(decay) <= 8:
        raise ValueError(f"ema_update: decay must be one, or a list of 1 to 8, got {len(decay)}")
    return teacher


def _is_stochastic(rounding: str) -> bool:
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"ema_update: rounding must be 'nearest' or 'stochastic', got {rounding!r}")
    return rounding == "stochastic"


def _low_list(low, pairs: Pairs, averages: int) -> list[Tensor | None] | None:
    """One for each teacher. For several averages `low` is a list of as many."""
    if low is None:
        return None
    found: list[Tensor | None] = []
    for part in [low] if averages == 1 else low if isinstance(low, (list, tuple)) else [None]:
        if isinstance(part, Mapping):
            found += [part.get(name) for name in pairs.names or ()]
        elif isinstance(part, (list, tuple)):
            found += part
        else:
            wanted = "a mapping or a list of tensors" + (
                f", {averages} of them in a list" if averages > 1 else ""
            )
            got = type(low if averages == 1 else part if isinstance(low, (list, tuple)) else low).__name__
            raise TypeError(f"ema_update: low must be {wanted}, got {got}")
    if len(found) != len(pairs.teachers):
        raise ValueError(
            f"ema_update: low must have one part, or None, for each of {len(pairs.teachers)} teacher tensors, "
            f"got {len(found)}"
        )
    return found


def _update(teacher, student, decay, copied=0, names=None, options=None):
    device = teacher[0].device.type if teacher and isinstance(teacher[0], Tensor) else "cpu"
    backend_for(device).ema_update(teacher, student, decay, copied, names, options)
    torch.autograd.graph.increment_version(teacher)
    if options is not None:
        written = (*(options.low or ()), options.drift, options.step if options.advance else None)
        torch.autograd.graph.increment_version([tensor for tensor in written if tensor is not None])


def _update_full(
    teacher, student, decays, live, low, step=None, found_inf=None, drift=None, copied=0, number=None,
    stochastic=False, seed=0, every=1, start=0, advance=False,
):  # fmt: skip
    # The dispatcher leaves out what equals its default in the schema.
    tensors = iter(live)
    decay = [
        next(tensors)
        if decays[at] == _LIVE[0]
        else Schedule("decay", (int(decays[at]), *decays[at + 1 : at + 5]))
        for at in range(0, len(decays), 5)
    ]
    decay = [one.kernel[1] if isinstance(one, Schedule) and one.kernel[0] == 0 else one for one in decay]
    step = number if step is None else step
    options = EmaOptions(step, low or None, stochastic, seed, found_inf, drift, every, start, advance)
    _update(teacher, student, decay, copied, None, options)


def _nonfinite(found, tensors):
    backend_for(found.device.type).nonfinite_(found, tensors)
    torch.autograd.graph.increment_version(found)


def _swap(teacher, student):
    backend_for(teacher[0].device.type if teacher else "cpu").swap_(teacher, student)
    torch.autograd.graph.increment_version([*teacher, *student])


def _nothing(*arguments, **named):
    return None


define(
    "ema_update(Tensor(a!)[] teacher, Tensor[] student, float decay, int copied=0) -> ()", _update, _nothing
)
define(
    "ema_update.tensor(Tensor(a!)[] teacher, Tensor[] student, Tensor decay, int copied=0) -> ()",
    _update,
    _nothing,
)
define(
    "ema_update.full(Tensor(a!)[] teacher, Tensor[] student, float[] decays, Tensor[] live, Tensor(b!)[] low, "
    "Tensor(c!)? step=None, Tensor? found_inf=None, Tensor(d!)? drift=None, int copied=0, int? number=None, "
    "bool stochastic=False, int seed=0, int every=1, int start=0, bool advance=False) -> ()",
    _update_full,
    _nothing,
)
define("nonfinite_(Tensor(a!) found, Tensor[] tensors) -> ()", _nonfinite, _nothing)
define("swap_(Tensor(a!)[] teacher, Tensor(b!)[] student) -> ()", _swap, _nothing)
