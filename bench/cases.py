"""What is timed: the sizes of OPS[op].bench and a ResNet-50-shaped module, and their fewest bytes."""

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mtkernels.backends import reference
from mtkernels.testing import OPS, Shapes

DECAY = 0.9999  # the teacher stays far from its student for all of a run: no number on the way is special

# Of the largest output. Losses sum up to 4 M terms: torch's own are off by up to 300 roundings at 64 x 65536.
ROUNDINGS = {"ema_update": 8, "softmax_mse": 512, "softmax_kl": 512}


@dataclass
class Workload:
    """One candidate's own tensors. Losses: one student, which requires grad, and one teacher."""

    teachers: list[Tensor]
    students: list[Tensor]
    copied: int = 0  # how many at the end of the lists are copied rather than averaged
    teacher: nn.Module | None = None  # weight averages: modules that hold the same tensors
    student: nn.Module | None = None
    is_module: bool = False  # whether the case is about modules, or about lists


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    device: str
    shapes: Shapes | None  # None: the ResNet-50-shaped module
    _built: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def group(self) -> str:
        return f"{self.op} {self.name}"

    @property
    def copied(self) -> int:
        """How many tensors at the end of the lists are buffers, which are copied rather than averaged."""
        return len(list(self._modules()[0].buffers())) if self.shapes is None else 0

    @property
    def inputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """As OPS[op].make gives them; nothing writes to these."""
        if "inputs" not in self._built:
            if self.shapes is None:
                self._built["inputs"] = tuple(map(tensors_of, self._modules()))
            else:
                self._built["inputs"] = OPS[self.op].make(self.shapes, torch.float32, self.device)
        return self._built["inputs"]

    def workload(self) -> Workload:
        """Fresh copies, one for each candidate, so that no candidate finds another's tensors in the cache."""
        if self.shapes is None:
            teacher, student = map(deepcopy, self._modules())
            return Workload(tensors_of(teacher), tensors_of(student), self.copied, teacher, student, True)
        first, second = ([tensor.clone() for tensor in tensors] for tensors in self.inputs)
        if self.op == "ema_update":
            return Workload(first, second, 0, nn.ParameterList(first), nn.ParameterList(second))
        return Workload(second, [tensor.requires_grad_() for tensor in first])

    def call(self, backend, inputs) -> list[Tensor]:
        """The op on lists, as the tests call it."""
        options = {"decay": DECAY, "copied": self.copied} if self.op == "ema_update" else {}
        return OPS[self.op].call(backend, inputs, **options)

    def floor_bytes(self) -> int:
        """Each input read once, each output written once; of a copied buffer the old value is not read."""
        first, second = self.inputs
        if self.op != "ema_update":
            return 3 * first[0].nbytes  # both logits, and the student's gradient
        unread = sum(tensor.nbytes for tensor in first[len(first) - self.copied :])
        return 2 * sum(tensor.nbytes for tensor in first) + sum(tensor.nbytes for tensor in second) - unread

    def resident_bytes(self) -> int:
        """What a candidate keeps touching: in cache from one call to the next where it fits."""
        extra = 0 if self.op == "ema_update" else self.inputs[0][0].nbytes
        return extra + sum(t.nbytes for tensors in self.inputs for t in tensors)

    def truths(self) -> tuple[list[Tensor], list[Tensor]]:
        """The reference's outputs in float64, and on the inputs as they are."""
        if "truths" not in self._built:
            wide = tuple(
                [t.double() if t.is_floating_point() else t for t in tensors] for tensors in self.inputs
            )
            self._built["truths"] = self.call(reference, wide), self.call(reference, self.inputs)
        return self._built["truths"]

    def forget(self) -> None:
        """Frees the inputs; they are built again when asked for."""
        self._built.clear()

    def _modules(self) -> tuple[nn.Module, nn.Module]:
        if "modules" not in self._built:
            self._built["modules"] = tuple(_randomised(resnet50_like(), seed, self.device) for seed in (0, 1))
        return self._built["modules"]


def cases(op: str, device: str) -> list[Case]:
    found = [Case(op, name, device, shapes) for name, shapes in OPS[op].bench.items()]
    return [*found, Case(op, "resnet50-like", device, None)] if op == "ema_update" else found


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters, then buffers."""
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]


def resnet50_like() -> nn.Module:
    """The parameters and buffers of ResNet-50, without its forward: 161 + 159 tensors, 25.6 M parameters."""
    layers: list[nn.Module] = [*_conv(3, 64, 7)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers += [*_conv(channels, width, 1), *_conv(width, width, 3), *_conv(width, 4 * width, 1)]
            if block == 0:
                layers += _conv(channels, 4 * width, 1)
            channels = 4 * width
    return nn.Sequential(*layers, nn.Linear(channels, 1000))


def _conv(channels: int, filters: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, filters, kernel, bias=False), nn.BatchNorm2d(filters)


def _randomised(module: nn.Module, seed: int, device: str) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors_of(module):
        if tensor.is_floating_point():
            tensor.normal_(generator=generator)
        else:
            tensor.random_(1, 1000, generator=generator)
    return module.to(device)


def disagreement(case: Case, outputs: list[Tensor | None]) -> str | None:
    """How outputs differ from the reference, or None. A peer gives None for what is not its business.

    The reference runs in float64 as the truth and as it is as the yardstick, as in testing.check. The bound
    is wider, 8 times the yardstick's error and ROUNDINGS: a peer is asked for the same maths, not the same
    order of sums.
    """
    truths, yardsticks = case.truths()
    if len(outputs) != len(truths):
        return f"gives {len(outputs)} outputs, not {len(truths)}"
    slack = ROUNDINGS[case.op] / 2
    for index, (output, truth, yardstick) in enumerate(zip(outputs, truths, yardsticks, strict=True)):
        if output is None:
            continue
        if output.shape != truth.shape:
            return f"output {index} has shape {list(output.shape)}, not {list(truth.shape)}"
        eps = torch.finfo(output.dtype).eps if output.is_floating_point() else 0.0
        error = (output.double() - truth.double()).abs().max()
        bound = (
            8 * (yardstick.double() - truth.double()).abs().max() + slack * eps * truth.double().abs().max()
        )
        if not error <= bound:  # also NaN
            return f"wrong result: output {index} is off by {error:.2g}, more than {bound:.2g}"
    return None
