"""What a WeightEMA asks of modules: what is in a wrapper, copies, where tensors are held, names."""

import copy

from torch import Tensor, nn

from mtkernels.ops.matching import bare_name


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def teachers_of(model: nn.Module, count: int, teacher) -> list[nn.Module]:
    """The modules of the averages: copies, or what the caller gives."""
    if teacher is None:
        if any(hasattr(parameter, "to_local") for parameter in model.parameters()):
            raise ValueError(
                "WeightEMA: teacher must be given where model is sharded (build it before fully_shard, and shard it "
                "alike), got None"
            )
        return [copy.deepcopy(model) for _ in range(count)]
    teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    if len(teachers) != count:
        raise ValueError(f"WeightEMA: teacher must be one for each of {count} decays, got {len(teachers)}")
    for index, module in enumerate(teachers):
        if unwrapped(module) is model or any(module is other for other in teachers[:index]):
            raise ValueError(
                f"WeightEMA: teacher[{index}] must be a module of its own, got the model or an earlier one"
            )
    return [unwrapped(module) for module in teachers]


def slots_of(module: nn.Module) -> list[dict[str, Tensor | nn.Module | None]]:
    """The dicts in which a module and its parts hold tensors and parts."""
    return [
        holder for part in module.modules() for holder in (part._parameters, part._buffers, part._modules)
    ]


def state_names(state: dict[str, Tensor]) -> dict[str, str]:
    """Names without wrappers' prefixes -> the state's own."""
    return {bare_name(own): own for own in state}
