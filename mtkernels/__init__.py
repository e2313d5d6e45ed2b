"""Teacher-student training primitives: weight averages and consistency losses, each in a single launch."""

try:
    from mtkernels import _C as _C
except ImportError as error:
    from pathlib import Path

    raise ImportError(
        f"mtkernels: {Path(__file__).parent} has no native module: in a checkout install with `pip install -e .`, "
        f"or run Python in another folder ({error})"
    ) from error

from mtkernels import nn, schedules
from mtkernels.compat.averaged_model import ema_multi_avg_fn
from mtkernels.ema import WeightEMA
from mtkernels.ops.augment import augment
from mtkernels.ops.consistency import (
    LossAndUtilization,
    logit_mse,
    softmax_cross_entropy,
    softmax_js,
    softmax_kl,
    softmax_mse,
    softmax_reverse_kl,
)
from mtkernels.ops.ema import ema_update
from mtkernels.ops.mean_teacher import MeanTeacherLoss, mean_teacher_loss
from mtkernels.ops.multi_tensor import multi_tensor_cosine, multi_tensor_dot, multi_tensor_norm
from mtkernels.ops.targets import sharpen, temporal_ensemble_

__version__ = "0.1.0"
__all__ = [
    "LossAndUtilization",
    "MeanTeacherLoss",
    "WeightEMA",
    "augment",
    "ema_multi_avg_fn",
    "ema_update",
    "logit_mse",
    "mean_teacher_loss",
    "multi_tensor_cosine",
    "multi_tensor_dot",
    "multi_tensor_norm",
    "nn",
    "schedules",
    "sharpen",
    "softmax_cross_entropy",
    "softmax_js",
    "softmax_kl",
    "softmax_mse",
    "softmax_reverse_kl",
    "temporal_ensemble_",
]
