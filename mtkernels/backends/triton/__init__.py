"""The kernels in Triton: CUDA where `_C` was built without nvcc, ROCm, XPU; on CPU tensors under TRITON_INTERPRET=1."""

try:
    import triton as _triton  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    raise ImportError(
        "mtkernels.backends.triton must have Triton 3.6 or newer: install it with `pip install triton` "
        "(builds of torch for CUDA, ROCm and XPU bring it), got no module named 'triton'"
    ) from None

from mtkernels.backends.triton.ema_update import ema_update
from mtkernels.backends.triton.scale import scale_
from mtkernels.backends.triton.softmax_kl import softmax_kl
from mtkernels.backends.triton.softmax_mse import softmax_mse

__all__ = ["ema_update", "scale_", "softmax_kl", "softmax_mse"]
