"""The kernels of `_C`: CPU always, CUDA where the build found nvcc. Arguments are checked there."""

import torch

from mtkernels import _C

# A build with CUDA on a ROCm torch would be handed HIP pointers.
HAS_CUDA = _C.build_info()["cuda"] is not None and torch.version.hip is None

ema_update = _C.ema_update
ema_update_plan = _C.EmaPlan.update
swap_ = _C.swap_
nonfinite_ = _C.nonfinite_
softmax_mse = _C.softmax_mse
softmax_kl = _C.softmax_kl
softmax_reverse_kl = _C.softmax_reverse_kl
softmax_js = _C.softmax_js
softmax_cross_entropy = _C.softmax_cross_entropy
logit_mse = _C.logit_mse
mean_teacher_loss = _C.mean_teacher_loss
scale_ = _C.scale_
multi_tensor_dot = _C.multi_tensor_dot
sharpen = _C.sharpen
augment = _C.augment
temporal_ensemble_ = _C.temporal_ensemble_
