"""Which backend runs an op: one table, by the device of its tensors. To force one, call it by name."""

from types import ModuleType

from mtkernels.backends import native, reference

# Ops without a CUDA kernel of their own: on CUDA tensors Triton's runs, also where `_C` has CUDA.
WITHOUT_CUDA = frozenset({"augment", "multi_tensor_dot", "sharpen", "temporal_ensemble_"})


def backend_for(device_type: str, op: str | None = None) -> ModuleType:
    """CPU: native. CUDA: native where it has the op, else Triton, as on ROCm and XPU. Anything else: reference."""
    if device_type == "cpu" or (device_type == "cuda" and native.HAS_CUDA and op not in WITHOUT_CUDA):
        return native
    if device_type in ("cuda", "xpu"):
        from mtkernels.backends import triton

        return triton
    return reference
