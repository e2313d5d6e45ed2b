"""What is timed: lists of the sizes of OPS[op].bench, and modules of models.py; and their fewest bytes."""

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from bench import models
from mtkernels.backends import reference
from mtkernels.testing import OPS, Shapes
from mtkernels.testing._augment import BENCH_OPTIONS

DECAY = 0.9999  # the teacher stays far from its student for all of a run: no number on the way is special
SAMPLE, PART = (
    32,
    1 << 18,
)  # of a shared case: how many tensors, and of each the last how many elements, are checked
POOL = 1_000_003  # random numbers that fill a module: prime, so that no two tensors begin with the same

# Of the largest output. Losses sum up to 4 M terms: torch's own are off by up to 300 roundings at 64 x 65536.
LOSSES = [name for name in OPS if name.startswith("softmax_") or name in ("logit_mse", "mean_teacher_loss")]
ROUNDINGS = dict.fromkeys(LOSSES, 512)
OTHERS = ("multi_tensor_dot", "temporal_ensemble_", "sharpen", "augment")
CONSTANTS = ("sharpen", "augment")  # ops without a gradient
EMA_ROUNDINGS = 8
OTHER_ROUNDINGS = {"temporal_ensemble_": 512, "augment": 512}  # as the losses; places are rounded, too


@dataclass
class Workload:
    """One candidate's own tensors. Losses: one student, which requires grad, and one teacher."""

    teachers: list[Tensor]  # of several averages: all of the first, then all of the second ...
    students: list[Tensor]
    copied: int = 0  # how many at the end of the lists are copied rather than averaged
    averages: list[nn.Module] = field(default_factory=list)  # modules that hold the teachers, one an average
    student: nn.Module | None = None
    dim: int = -1  # of a loss's classes
    options: dict = field(default_factory=dict)  # of the op

    @property
    def is_module(self) -> bool:
        """Whether the case is about modules, or about lists."""
        return not isinstance(self.student, nn.ParameterList)

    @property
    def teacher(self) -> nn.Module:
        return self.averages[0]


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    device: str
    shapes: Shapes | None = None  # of a loss
    model: Callable[[], nn.Module] | None = (
        None  # of a weight average; a ParameterList: the lists of its tensors
    )
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)  # of the average, of the weights
    averages: int = 1
    shared: bool = False  # past any cache: all candidates work on one set of tensors, checked on a sample
    contenders: dict[str, Callable] | None = None  # its own candidates, in place of the op's
    _built: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def group(self) -> str:
        return f"{self.op} {self.name}"

    @property
    def copied(self) -> int:
        """How many tensors at the end of the lists are buffers, which are copied rather than averaged."""
        return 0 if self.model is None else len(list(self._modules()[-1].buffers()))

    @property
    def inputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """As OPS[op].make gives them; nothing but the candidates of a shared case writes to these."""
        if "inputs" not in self._built:
            if self.model is None:
                self._built["inputs"] = OPS[self.op].make(self.shapes, torch.float32, self.device)
            else:
                *teachers, student = self._modules()
                self._built["inputs"] = _flat(teachers), tensors_of(student)
        return self._built["inputs"]

    def workload(self) -> Workload:
        """Fresh copies, one for each candidate, so that no candidate finds another's tensors in the cache."""
        if self.model is not None:
            if self.shared:
                self._restore()
            *teachers, student = self._modules() if self.shared else deepcopy(self._modules())
            return Workload(_flat(teachers), tensors_of(student), self.copied, teachers, student)
        first, second = ([tensor.clone() for tensor in tensors] for tensors in self.inputs)
        learning = self.op not in CONSTANTS
        students = [tensor.requires_grad_(learning) for tensor in first]
        return Workload(second, students, dim=self.dim, options=self.options)

    @property
    def dim(self) -> int:
        """Of a loss's classes: in a dense map after the images."""
        return 1 if self.shapes and len(self.shapes[0]) > 2 else -1

    @property
    def options(self) -> dict:
        """Of an op of OTHERS."""
        return {"multi_tensor_dot": {"with_norms": True}, "augment": BENCH_OPTIONS.get(self.name, {})}.get(
            self.op, {}
        )

    def call(self, backend, inputs, copied: int) -> list[Tensor]:
        """The op on lists, as the tests call it."""
        if self.op in ROUNDINGS:
            return OPS[self.op].call(backend, inputs, dim=self.dim)
        if self.op in OTHERS:
            return OPS[self.op].call(backend, inputs, **self.options)
        return OPS["ema_update"].call(backend, inputs, decay=decays(self.averages), copied=copied)

    def truths(self) -> tuple[list[Tensor], list[Tensor]]:
        """The reference's outputs in float64, and on the inputs as they are. Of a shared case: of its sample."""
        if "truths" not in self._built:
            inputs, copied = self.inputs, self.copied
            if self.shared:
                students, chosen = self.inputs[1], self._sample()
                inputs = self._kept(), [_part(students[at]) for at in chosen]
                copied = sum(at >= len(students) - self.copied for at in chosen)
            wide = tuple([t.double() if t.is_floating_point() else t for t in tensors] for tensors in inputs)
            self._built["truths"] = self.call(reference, wide, copied), self.call(reference, inputs, copied)
        return self._built["truths"]

    def places(self) -> list[int] | None:
        """Where in the outputs a shared case's sample is; None: all outputs are held against the reference."""
        count = len(self.inputs[1])
        return (
            [k * count + at for k in range(self.averages) for at in self._sample()] if self.shared else None
        )

    def floor_bytes(self) -> int:
        """Each input read once, each output written once; of a copied buffer the old value is not read."""
        first, second = self.inputs
        if self.op in ROUNDINGS:
            if self.op == "mean_teacher_loss":
                return 5 * first[0].nbytes  # two heads, the teacher's one, two gradients
            return (4 if self.op == "logit_mse" else 3) * first[0].nbytes  # both logits, and the gradients
        if self.op == "augment":  # the rows' images, and four bytes for each number of their views
            (_, channels, height, width), (views, rows), size = self.shapes
            return rows * channels * (height * width + 4 * views * math.prod(size))
        if self.op == "multi_tensor_dot":
            return sum(tensor.nbytes for tensor in (*first, *second))
        if (
            self.op in OTHERS
        ):  # logits, gradient, and the ensemble's rows that are visited, in and out; probs in and out
            return (4 if self.op == "temporal_ensemble_" else 2) * first[0].nbytes
        unread = sum(tensor.nbytes for tensor in first[len(first) - self.copied :])
        return 2 * sum(tensor.nbytes for tensor in first) + sum(tensor.nbytes for tensor in second) - unread

    def resident_bytes(self) -> int:
        """What a candidate keeps touching: in cache from one call to the next where it fits."""
        if self.op == "augment":
            return self.floor_bytes()
        extra = self.inputs[0][0].nbytes if self.op in ROUNDINGS else 0
        return extra + sum(t.nbytes for tensors in self.inputs for t in tensors)

    def forget(self) -> None:
        """Frees the inputs; they are built again when asked for."""
        self._built.clear()

    def _modules(self) -> list[nn.Module]:
        """The averages, then the model."""
        if "modules" not in self._built:
            kinds = [self.dtypes[0]] * self.averages + [self.dtypes[1]]
            modules = [
                _filled(self.model, seed, dtype, self.device).requires_grad_(seed == self.averages)
                for seed, dtype in enumerate(kinds)
            ]
            self._built["modules"] = modules
        return self._built["modules"]

    def _sample(self) -> list[int]:
        last = len(self.inputs[1]) - 1
        return sorted({round(at * last / (SAMPLE - 1)) for at in range(SAMPLE)})

    def _kept(self) -> list[Tensor]:
        """A shared case's sampled teachers as they were at first."""
        if "kept" not in self._built:
            self._built["kept"] = [_part(self.inputs[0][place]).clone() for place in self.places()]
        return self._built["kept"]

    def _restore(self) -> None:
        for place, kept in zip(self.places(), self._kept(), strict=True):
            _part(self.inputs[0][place]).copy_(kept)


def _part(tensor: Tensor) -> Tensor:
    return tensor.view(-1)[-PART:]


def decays(averages: int) -> float | list[float]:
    return DECAY if averages == 1 else [DECAY - 1e-5 * k for k in range(averages)]


def cases(op: str, device: str, large: bool = False) -> list[Case]:
    if op in (*ROUNDINGS, *OTHERS):
        return [Case(op, name, device, shapes) for name, shapes in OPS[op].bench.items()]
    found = []
    for name, shapes in OPS[op].bench.items():
        shared = sum(map(math.prod, shapes)) > 10_000_000
        found.append(Case(op, name, device, model=partial(models.listed, shapes), shared=shared))
    found += [Case(op, "wrn-28-2", device, model=models.wrn28_2)]
    found += [Case(op, "resnet-50", device, model=models.resnet50, shared=True)]
    found += [Case(op, "resnext-152", device, model=models.resnext152, shared=True)]
    if large:
        found += [Case(op, "vit-b-16", device, model=models.vit_b16, shared=True)]
        for name, average in (("gpt-1b-bf16", torch.bfloat16), ("gpt-1b-bf16-to-fp32", torch.float32)):
            if device == "cuda" or average == torch.bfloat16:
                kinds = average, torch.bfloat16
                found += [Case(op, name, device, model=models.gpt_1b, dtypes=kinds, shared=True)]
    return found


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters, then buffers."""
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]


def _flat(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in tensors_of(module)]


@torch.no_grad()
def _filled(make: Callable[[], nn.Module], seed: int, dtype: torch.dtype, device: str) -> nn.Module:
    """A module with random weights and counters: normal numbers from a pool, over and over."""
    with torch.device("meta"):
        module = make().to(dtype)
    module = module.to_empty(device=device)
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    at = 0
    for tensor in tensors_of(module):
        if not tensor.is_floating_point():
            tensor.fill_(at % 1000 + seed)
            continue
        flat = tensor.view(-1)
        while flat.numel():
            part = pool[at : at + flat.numel()]
            flat[: len(part)] = part
            flat, at = flat[len(part) :], (at + len(part)) % POOL
    return module


def disagreement(case: Case, outputs: list[Tensor | None]) -> str | None:
    """How outputs differ from the reference, or None. A peer gives None for what is not its business.

    The reference runs in float64 as the truth and as it is as the yardstick, as in testing.check. The bound
    is wider, 8 times the yardstick's error and ROUNDINGS: a peer is asked for the same maths, not the same
    order of sums. An output of a finer dtype than the yardstick's is held against ROUNDINGS alone. To
    nearest, a bf16 average at this decay mostly stays: for it the tests of the library are what counts.
    """
    (truths, yardsticks), places = case.truths(), case.places()
    wanted = len(truths) if places is None else len(case.inputs[0])
    if len(outputs) != wanted:
        return f"gives {len(outputs)} outputs, not {wanted}"
    slack = ROUNDINGS.get(case.op, OTHER_ROUNDINGS.get(case.op, EMA_ROUNDINGS)) / 2
    for index, truth, yardstick in zip(places or range(wanted), truths, yardsticks, strict=True):
        output = outputs[index]
        if output is None:
            continue
        if places is not None:
            output = _part(output)
        if output.shape != truth.shape:
            return f"output {index} has shape {list(output.shape)}, not {list(truth.shape)}"
        eps = torch.finfo(output.dtype).eps if output.is_floating_point() else 0.0
        error = (output.double() - truth.double()).abs().max()
        bound = slack * eps * truth.double().abs().max()
        if output.dtype == yardstick.dtype:
            bound += 8 * (yardstick.double() - truth.double()).abs().max()
        if not error <= bound:  # also NaN
            return f"wrong result: output {index} is off by {error:.2g}, more than {bound:.2g}"
    return None
