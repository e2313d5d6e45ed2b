"""The registrations with torch.library, written once: schema, kernel, fake and autograd of `torch.ops.mtkernels.<op>`.

The eager path of the public functions calls the backends directly; the registered ops are for torch.compile, export,
functorch and dispatch modes, which have to see an op.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LIBRARY = torch.library.Library("mtkernels", "DEF")

_PLAIN = (Tensor, torch.nn.Parameter)


def define(
    schema: str, kernel: Callable, fake: Callable, *, recorded: type[torch.autograd.Function] | None = None
) -> None:
    """Registers an op for every device.

    recorded: the Function that autograd records; its forward calls the op below autograd. None for in-place
    updates, which autograd does not see.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mtkernels::{name}", fake, lib=LIBRARY)
    LIBRARY.impl(name, recorded.apply if recorded else torch.library.fallthrough_kernel, "Autograd")


def functorch_levels() -> int:
    """How many torch.func transforms are running, one inside the other; dynamo traces those itself."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return 0
    return len(torch._C._functorch.get_interpreter_stack())


def must_dispatch(tensor: object) -> bool:
    """Whether somebody other than the kernels has to see the op: a tracer, a dispatch mode, or a tensor subclass."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    if torch._C._get_tracing_state() is not None:
        return True
    # DTensor has no rule for these ops: left to the kernels' own refusal, which says what to pass.
    return type(tensor) not in _PLAIN and isinstance(tensor, Tensor) and not hasattr(tensor, "to_local")
