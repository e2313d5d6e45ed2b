"""All that a run's next step depends on, as named tensors and numbers: what a checkpoint holds.

Random numbers are not in it: they are functions of (seed, step). Nor are ranks: a sharded tensor is saved whole, so a
run goes on with another number of them.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint, DamagedCheckpointError
from .distributed import Ranks, local, part_of, whole
from .meter import Meter
from .step import Step

Numbers = dict[str, object]


def state_of(step: Step, meter: Meter) -> tuple[dict[str, Tensor], Numbers]:
    """Tensors on the CPU, on the main rank alone, and numbers. Ranks call it together; sums of losses are over all."""
    tensors = gathered(_tensors(step, meter), step.ranks)
    numbers: Numbers = {"teacher_updates": int(step.method.ema.step)}
    numbers |= {"meter_names": list(meter.sums), "meter_steps": meter.steps, "meter_images": meter.images}
    return tensors, numbers


def _tensors(step: Step, meter: Meter) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Name, tensor, and the sharded tensor that it is a rank's part of."""
    for role in ("student", "teacher"):
        for name, value in getattr(step.method, role).state_dict().items():
            yield f"{role}.{name}", value, None
    for name, weight, shard in _weights(step):
        for key, value in step.optimizer.state.get(shard, {}).items():
            if isinstance(value, Tensor):
                yield f"optimizer.{name}.{key}", value, weight
    for name, total in meter.sums.items():
        yield f"meter.{name}", step.ranks.sum_(total.clone()), None
    if step.scale is not None:
        yield "scale.scale", step.scale.scale, None
        yield "scale.good_steps", step.scale.good_steps, None


def restore(step: Step, meter: Meter, saved: Checkpoint) -> None:
    """Put a checkpoint's state into a run that has been made from the same settings."""
    tensors, numbers = saved
    ema, method = step.method.ema, step.method
    for role in ("student", "teacher"):
        _load(getattr(method, role), below(tensors, f"{role}."))
    ema.step.fill_(numbers["teacher_updates"])
    for name, weight, shard in _weights(step):
        state = {}
        for key, value in below(tensors, f"optimizer.{name}.").items():
            value = part_of(value, weight)
            like = shard.detach() if value.shape == shard.shape else value.to(shard.device)
            state[key] = torch.empty_like(like, dtype=value.dtype).copy_(value)
        if state:
            step.optimizer.state[shard] = state
    meter.restart()
    for name in numbers["meter_names"]:  # in this order
        total = tensors[f"meter.{name}"].to(step.device)
        meter.sums[name] = total if step.ranks.main else torch.zeros_like(total)
    meter.steps, meter.images = numbers["meter_steps"], numbers["meter_images"]
    if step.scale is not None and "scale.scale" in tensors:
        step.scale.scale.copy_(tensors["scale.scale"])
        step.scale.good_steps.copy_(tensors["scale.good_steps"])
    step.note_buffers()


def _weights(step: Step) -> list[tuple[str, Tensor, Tensor]]:
    """Name, parameter, and what of it the optimizer has here."""
    names = [name for name, _ in step.method.student.named_parameters()]
    return list(zip(names, step.weights, step.shards, strict=True))


@torch.no_grad()
def _load(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """In place, whatever the memory format: the optimizer and the average hold on to the tensors."""
    own = model.state_dict()
    if own.keys() != values.keys():
        other = sorted(own.keys() ^ values.keys())[0]
        raise DamagedCheckpointError(
            f"the checkpoint is of another network: only one of the two has {other!r}"
        )
    for name, tensor in own.items():
        if tensor.shape != values[name].shape:
            raise DamagedCheckpointError(
                f"the checkpoint is of another network: {name!r} must have shape {list(tensor.shape)},"
                f" got {list(values[name].shape)}"
            )
        local(tensor).copy_(part_of(values[name], tensor))


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def gathered(tensors: Iterable[tuple[str, Tensor, Tensor | None]], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the main rank, by name; all call it. With each what `whole` takes as `like`.

    safetensors has no strides and no shared storage: contiguous copies.
    """
    copies = {}
    for name, value, like in tensors:
        value = whole(value, like)  # one at a time: a sharded model may not fit on a device
        if ranks.main:
            copies[name] = value.detach().clone(memory_format=torch.contiguous_format).cpu()
    return copies
