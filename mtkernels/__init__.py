"""Teacher-student training primitives: weight averages and consistency losses, each in a single launch."""

from mtkernels.ops.consistency import softmax_kl, softmax_mse
from mtkernels.ops.ema import ema_update

__version__ = "0.1.0"
__all__ = ["ema_update", "softmax_kl", "softmax_mse"]
