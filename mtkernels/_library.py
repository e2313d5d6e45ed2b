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
    schema: str,
    kernel: Callable,
    fake: Callable,
    *,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> None:
    """Registers an op. Without `backward` it is one that autograd does not record (in-place updates)."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mtkernels::{name}", fake, lib=LIBRARY)
    if backward is None:
        LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    else:
        torch.library.register_autograd(f"mtkernels::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def must_dispatch(tensor: object) -> bool:
    """Whether somebody other than the kernels has to see the op: a tracer, a dispatch mode, or a tensor subclass."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return type(tensor) not in _PLAIN and isinstance(tensor, Tensor)
