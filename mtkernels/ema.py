"""WeightEMA: the weight average of a model, kept: its steps, its schedule, its precision, its place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtkernels import _C
from mtkernels._ema_checks import check_counts, check_settings, check_state
from mtkernels._library import must_dispatch
from mtkernels._models import slots_of, state_names, teachers_of, unwrapped
from mtkernels._offload import Offload
from mtkernels._swap import Swap, copy_all
from mtkernels.backends import backend_for
from mtkernels.backends.reference import join
from mtkernels.ops.ema import Decay, EmaOptions, checked_found_inf, dispatch, ema_update, look_for_nonfinite
from mtkernels.ops.matching import (
    Names,
    Pairs,
    is_average,
    local_shards,
    match,
    matched_averages,
    named_tensors,
)
from mtkernels.schedules import Schedule

_HALVES = (torch.bfloat16, torch.float16)


class WeightEMA:
    """A weight average of `model`, moved by `update()` in one launch for all parameters and buffers.

    average <- decay * average + (1 - decay) * model

    Args:
        model: what is averaged. Wrappers (torch.compile, DistributedDataParallel, FSDP) are seen through. Sharded by
            `fully_shard`, it needs `teacher`: built before, and sharded alike.
        decay: a number, a 0-d tensor, one of `mtkernels.schedules`, or a function of the step, called on the host with
            the number of the call, so not for CUDA graphs and compiled steps. A list of up to 8: as many averages, for
            which each weight is read once.
        every, start: an update moves the average if its number is a multiple of `every`; up to number `start` it copies
            the model. Schedules count from there: t = number - start.
        buffers, include, exclude: as in `ema_update`. What does not move stays as it was at the beginning.
        dtype: of the average's floating tensors; None: the model's. float32 for an average of bfloat16 weights.
        rounding: of bf16 and fp16 averages: "nearest" (small steps are lost), "stochastic" (by `seed`: right in the
            mean), or "compensated" (a low-order part of 16 bits beside each weight: as good as float32, in bf16).
        device: where the average lives; None: with the model. "cpu" for a model on a GPU: weights are copied on
            the GPU, brought over while the next step runs, and averaged by the CPU at the next update or read.
        teacher: the average's module, in place of a copy of the model: independently initialised, say, or sharded. A
            list of them for several averages. They stop requiring grad.
        skip_nonfinite: leave the average as it is where the model has an infinite weight or NaN, without a sync.

    Attributes:
        module: the average, a module as the model is, without its wrappers. `averages`: all of them, in a list.
        step: how many updates there have been, a 0-d int64 tensor with the average; skipped ones do not count.

    Raises:
        TypeError, ValueError, NotImplementedError: naming the argument or the tensor, before anything is written.

    Source: Tarvainen and Valpola, "Mean teachers are better role models" (2017).
    """

    def __init__(
        self,
        model: nn.Module,
        decay: Decay | Callable[[int], float] | Sequence[Decay] = 0.999,
        *,
        every: int = 1,
        start: int = 0,
        buffers: Literal["average", "copy", "keep"] = "average",
        include: Names = None,
        exclude: Names = None,
        dtype: torch.dtype | None = None,
        rounding: Literal["nearest", "stochastic", "compensated"] = "nearest",
        seed: int = 0,
        device: torch.device | str | None = None,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        check_settings(model, decay, rounding, dtype, teacher)
        check_counts(every=(every, 1), start=(start, 0), seed=(seed, 0))
        self.decay, self.every, self.start = decay, every, start
        self.buffers, self.include, self.exclude = buffers, include, exclude
        self.rounding, self.seed, self.skip_nonfinite = rounding, seed, skip_nonfinite
        self._model = model
        self._listed = isinstance(decay, (list, tuple))
        self._calls = 0  # of update(): what a function of the step gets
        self._swap: tuple[int, Swap] | None = None  # the average that the model holds
        self.averages = teachers_of(unwrapped(model), len(decay) if self._listed else 1, teacher)
        for average in self.averages:
            average.requires_grad_(False).to(device=device, dtype=dtype)
        self._bind()
        self.step = torch.zeros((), dtype=torch.int64, device=self._pairs.teachers[0].device)
        if teacher is None and any(self._low):  # what a copy in half precision has lost
            for average, low in zip(self._averages, self._low, strict=True):
                pairs = match(average, unwrapped(model), buffers, include, exclude)
                students = [tensor.to(self.step.device) for tensor in pairs.students]
                ema_update(pairs.teachers, students, 0.0, low=[low.get(name) for name in pairs.names])

    # ---- moving

    def update(self, *, found_inf: Tensor | None = None, drift: bool = False) -> Tensor | None:
        """Moves the average toward the model; after the optimizer's step, or before it: as you call it.

        Args:
            found_inf: one float32 with the model, as torch.amp.GradScaler keeps it: unless it is 0 the average stays.
            drift: give the norm of average - model over what is averaged, after the update, from the same launch:
                float64 with the average, 0-d, or one for each of several; overwritten by the next call, unchanged where
                the average stays.
        """
        checked_found_inf(found_inf, "WeightEMA.update")
        self._must_be_home("update")
        compiling = torch.compiler.is_compiling()
        if self._plan is None or not (compiling or self._slots.same()):
            self.flush()
            self._bind()  # a module holds another tensor, or part, than it did
        self.flush()
        if not compiling:
            self._calls += 1
        if compiling or must_dispatch(self._pairs.teachers[0]):
            dispatch(self._pairs, self._decay(), self._options(found_inf, drift))
        elif self._offload is None:
            self._run(found_inf, drift)
        else:
            self._offload.send(found_inf, drift)
            if drift:
                self.flush()
        return self._drift if drift else None

    def flush(self) -> None:
        """Makes the average on the CPU catch up with a model on a GPU. Reading `module` and `averages` does it."""
        if self._offload is not None and (pending := self._offload.receive()) is not None:
            self._run(*pending)

    @property
    def module(self) -> nn.Module:
        return self.averages[0]

    @property
    def averages(self) -> list[nn.Module]:
        self.flush()
        return self._averages

    @averages.setter
    def averages(self, modules: list[nn.Module]) -> None:
        self._offload = None
        self._averages = modules

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The average's forward."""
        return self.module(*arguments, **named)

    # ---- using the average in the model's place

    def swap_(self, average: int = 0) -> None:
        """Swaps the weights of model and average, where they lie: a compiled or captured model sees it. Again: back.

        In one launch; tensors whose dtype, device or memory format differs go through a copy of the model's. What
        include and exclude leave out stays. Until it is swapped back the model must stay as it is.
        """
        self._check_average("swap_", average)
        if self._swap is not None:
            held, swap = self._swap
            if held != average:
                raise RuntimeError(
                    f"WeightEMA.swap_: average must be the one swapped in before ({held}), got {average}"
                )
            swap.leave()
            self._swap = None
            return
        swap = Swap(self._whole(average))
        swap.enter()
        self._swap = average, swap

    @contextmanager
    def swapped(self, average: int = 0) -> Iterator[nn.Module]:
        """`with ema.swapped() as model:` the model with the average's weights; its own come back afterwards."""
        self._must_be_home("swapped")
        self.swap_(average)
        try:
            yield self._model
        finally:
            self.swap_(average)

    def copy_to(self, model: nn.Module | None = None, average: int = 0) -> None:
        """Copies the average, parameters and buffers, to a model like it; None: to its own. Not what is excluded."""
        self._must_be_home("copy_to")
        self._check_average("copy_to", average)
        pairs = self._whole(average, model)
        for name, to, source in zip(pairs.names, pairs.students, pairs.teachers, strict=True):
            if to.shape != source.shape:
                raise ValueError(
                    f"WeightEMA.copy_to: {name!r} of model must have the shape of its average {list(source.shape)}, "
                    f"got {list(to.shape)}"
                )
        copy_all(pairs.students, pairs.teachers)

    # ---- keeping

    def state_dict(self) -> dict[str, Any]:
        """Steps and averages, for torch.save. Compensated weights are in it in float32, both parts."""
        self._must_be_home("state_dict")
        states = [average.state_dict() for average in self.averages]
        for state, low in zip(states, self._low, strict=True):
            for name, own in state_names(state).items():
                if low.get(name) is not None:
                    state[own] = _joined(state[own], low[name])
        return {"step": int(self.step), "averages": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what state_dict gave: also one of another dtype, device or memory format."""
        self._must_be_home("load_state_dict")
        check_state(state, self.averages)
        for average, low, saved in zip(self.averages, self._low, state["averages"], strict=True):
            average.load_state_dict(saved)
            tensors = {name: tensor for part in named_tensors(average) for name, tensor in part.items()}
            found = state_names(saved)
            for name, part in low.items():
                part.zero_()
                if name in found:
                    exact = torch.empty_like(tensors[name], dtype=torch.float32).copy_(saved[found[name]])
                    ema_update([tensors[name]], [exact], 0.0, low=[part])
        self.step.fill_(state["step"])
        self._calls = int(state["step"])

    def to(self, device: torch.device | str) -> "WeightEMA":
        """Moves the average, as module.to does."""
        self._must_be_home("to")
        for average in self.averages:
            average.to(device)
        self._low = [{name: part.to(device) for name, part in low.items()} for low in self._low]
        self.step = self.step.to(device)
        self._bind()
        return self

    def __getstate__(self) -> dict[str, Any]:
        self._must_be_home("copy")
        self.flush()
        return {name: value for name, value in self.__dict__.items() if name not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Bound at the first use: a model that holds its average is not there yet.
        self._plan = self._offload = None

    def __repr__(self) -> str:
        return f"WeightEMA({type(self.module).__name__}, decay={self.decay}, step={int(self.step)})"

    # ---- inside

    def _bind(self) -> None:
        """Lists of tensors with their table, and what tells that a module's tensors have been replaced."""
        model = unwrapped(self._model)
        pairs = matched_averages(self._averages, model, self.buffers, self.include, self.exclude)
        if not any(is_average(tensor) for tensor in pairs.students):
            raise ValueError(
                f"WeightEMA: model must have floating parameters or buffers that are averaged, "
                f"got none in a {type(model).__name__}"
            )
        local = local_shards(pairs)
        self._sharded, pairs = local is not None, local or pairs
        self._slots = _C.Slots([slot for module in (model, *self._averages) for slot in slots_of(module)])
        self._offload, students = None, pairs.students
        device = pairs.teachers[0].device
        if device != students[0].device:
            self._offload = Offload(students, device)
            pairs = pairs._replace(students=self._offload.received)
        self._low = self._low_parts(pairs)
        flat_low = [low.get(name) for low in self._low for name in pairs.names] if any(self._low) else None
        count = len(self._averages)
        self._pairs, self._flat_low = pairs, flat_low
        with torch.no_grad():
            self._plan = _C.EmaPlan(
                pairs.teachers, pairs.students, count, pairs.copied, pairs.names, flat_low
            )
        if getattr(self, "_found", None) is None or self._found.device != device:
            self._found = torch.zeros((), device=device)
            self._drift = torch.zeros((count,) if self._listed else (), dtype=torch.float64, device=device)
        self._plain = None

    def _low_parts(self, pairs: Pairs) -> list[dict[str, Tensor]]:
        """By name, for each average; those that there are stay."""
        known = getattr(self, "_low", None) or [{} for _ in self._averages]
        if self.rounding != "compensated":
            return known
        count = len(pairs.students)
        for k, low in enumerate(known):
            for at in range(count - pairs.copied):
                name, tensor = pairs.names[at], pairs.teachers[k * count + at]
                if tensor.dtype not in _HALVES:
                    low.pop(name, None)
                elif name not in low or not _fits(low[name], tensor):
                    low[name] = torch.zeros_like(tensor, dtype=torch.int16)
        return known

    def _decay(self) -> Decay | list[Decay]:
        return [self._evaluated(one) for one in self.decay] if self._listed else self._evaluated(self.decay)

    def _evaluated(self, decay: Any) -> Decay:
        if isinstance(decay, (Real, Tensor, Schedule)):
            return decay
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "WeightEMA.update: decay must be a number, a tensor or a schedule in a compiled step (a function "
                "would be called once, for all), got a function"
            )
        step = self._calls - self.start
        return decay(step) if step > 0 else 0.0

    def _options(self, found_inf: Tensor | None, drift: bool) -> EmaOptions:
        return EmaOptions(
            step=self.step,
            low=self._flat_low,
            stochastic=self.rounding == "stochastic",
            seed=self.seed,
            found_inf=self._checked(found_inf) if self.skip_nonfinite else found_inf,
            drift=self._drift if drift else None,
            every=self.every,
            start=self.start,
            advance=True,
        )

    def _checked(self, found_inf: Tensor | None) -> Tensor:
        """A flag that is set where found_inf is, or the model has a weight that is not finite."""
        if self._sharded:
            raise NotImplementedError(
                "WeightEMA: skip_nonfinite must be False for a sharded model (ranks would disagree: reduce a found_inf "
                "over them), got True"
            )
        if found_inf is None:
            self._found.zero_()
        else:
            self._found.copy_(found_inf.reshape(()))
        look_for_nonfinite(self._found, self._pairs.students)
        return self._found

    def _run(self, found_inf: Tensor | None, drift: bool) -> None:
        if found_inf is None and not drift and not self.skip_nonfinite:
            options = self._plain = self._plain or self._options(None, False)
        else:
            options = self._options(found_inf, drift)
        device = self._pairs.teachers[0].device.type
        backend_for(device).ema_update_plan(self._plan, self._decay(), options)
        torch.autograd.graph.increment_version(self._plan.teacher)

    def _whole(self, average: int, model: nn.Module | None = None) -> Pairs:
        """The tensors of an average and of a model that include and exclude choose, buffers kept apart too."""
        pairs = match(
            self.averages[average], unwrapped(model or self._model), "average", self.include, self.exclude
        )
        return local_shards(pairs) or pairs

    def _must_be_home(self, method: str) -> None:
        if self._swap is not None:
            raise RuntimeError(f"WeightEMA.{method}: the model must hold its own weights, got swapped ones")

    def _check_average(self, method: str, average: int) -> None:
        if not isinstance(average, int) or not 0 <= average < len(self._averages):
            raise ValueError(
                f"WeightEMA.{method}: average must be 0 to {len(self._averages) - 1}, got {average!r}"
            )


_DERIVED = ("_plan", "_pairs", "_flat_low", "_slots", "_offload", "_plain")


def _fits(low: Tensor, tensor: Tensor) -> bool:
    return low.shape == tensor.shape and low.stride() == tensor.stride() and low.device == tensor.device


def _joined(high: Tensor, low: Tensor) -> Tensor:
    """Both parts as fp32; of a DTensor by its local shards."""
    if not isinstance(high, Tensor) or not hasattr(high, "to_local"):
        return join(high, low)
    local = join(high.to_local(), low)
    return type(high).from_local(
        local, high.device_mesh, high.placements, run_check=False, shape=high.shape, stride=high.stride()
    )
