"""Which backend runs an op: one table, by the device of its tensors. To force one, call it by name."""

from types import ModuleType

from mtkernels.backends import native, reference


def backend_for(device_type: str) -> ModuleType:
    """CPU: native. CUDA: native where `_C` has it, else Triton, as on ROCm and XPU. Anything else: reference."""
    if device_type == "cpu" or (device_type == "cuda" and native.HAS_CUDA):
        return native
    if device_type in ("cuda", "xpu"):
        from mtkernels.backends import triton

        return triton
    return reference
