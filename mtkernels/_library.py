"""The registrations with torch.library, written once: schema, kernel, fake and autograd of `torch.ops.mtkernels.<op>`.

The eager path of the public functions calls the backends directly; the registered ops are for torch.compile, export,
functorch and dispatch modes, which have to see an op.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LIBRARY = torch.library.Library("mtkernels", "DEF")

_PLAIN = (Tensor, torch.nn.Parameter)
_is_compiling = torch.compiler.is_compiling
_modes = torch._C._len_torch_dispatch_stack
_tracing = torch._C._get_tracing_state
_functorch_top = torch._C._functorch.peek_interpreter_stack


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


def functorch_transforms() -> list:
    """The kinds of the torch.func transforms that are running, the outermost first; dynamo traces those itself."""
    if _is_compiling() or _functorch_top() is None:
        return []
    return [interpreter.key() for interpreter in torch._C._functorch.get_interpreter_stack()]


def functorch_levels() -> int:
    """How many torch.func transforms are running, one inside the other."""
    return len(functorch_transforms())


def must_dispatch(*tensors: object) -> bool:
    """Whether somebody other than the kernels has to see the op: a tracer, a dispatch mode, or a tensor subclass."""
    if _is_compiling() or _modes() > 0 or _tracing() is not None:
        return True
    # DTensor has no rule for these ops: left to the kernels' own refusal, which says what to pass.
    return any(
        type(tensor) not in _PLAIN and isinstance(tensor, Tensor) and not hasattr(tensor, "to_local")
        for tensor in tensors
    )
