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

from mtkernels.backends.triton.augment import augment
from mtkernels.backends.triton.ema_update import ema_update, ema_update_plan
from mtkernels.backends.triton.logit_mse import logit_mse
from mtkernels.backends.triton.mean_teacher_loss import mean_teacher_loss
from mtkernels.backends.triton.multi_tensor_dot import multi_tensor_dot
from mtkernels.backends.triton.nonfinite import nonfinite_
from mtkernels.backends.triton.scale import scale_
from mtkernels.backends.triton.sharpen import sharpen
from mtkernels.backends.triton.softmax_cross_entropy import softmax_cross_entropy
from mtkernels.backends.triton.softmax_js import softmax_js
from mtkernels.backends.triton.softmax_kl import softmax_kl
from mtkernels.backends.triton.softmax_mse import softmax_mse
from mtkernels.backends.triton.softmax_reverse_kl import softmax_reverse_kl
from mtkernels.backends.triton.swap import swap_
from mtkernels.backends.triton.temporal_ensemble import temporal_ensemble_

__all__ = [
    "augment",
    "ema_update",
    "ema_update_plan",
    "logit_mse",
    "mean_teacher_loss",
    "multi_tensor_dot",
    "nonfinite_",
    "scale_",
    "sharpen",
    "softmax_cross_entropy",
    "softmax_js",
    "softmax_kl",
    "softmax_mse",
    "softmax_reverse_kl",
    "swap_",
    "temporal_ensemble_",
]
