"""The meaning of the ops beside weight averages and losses, in plain torch: what the other systems need."""

import torch
from torch import Tensor

from mtkernels import _C

__all__ = ["multi_tensor_dot"]


def multi_tensor_dot(first, second, with_norms=False) -> Tensor:
    """sum over pairs of first * second in float64; with norms [dot, |first|, |second|]. None skips its pair.

    The kernels work in fp64 throughout; here a pair's own sum is of its accumulator, fp32 or fp64.
    """
    sums = _C.multi_tensor_dot_rows(first, second, with_norms, 1)[1]  # checks
    with torch.no_grad():
        totals = sums.view(-1)
        for a, b in zip(first, second, strict=True):
            if a is None or b is None:
                continue
            wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
            a, b = a.to(wide), b.to(wide)
            totals[0] += (a * b).sum()
            if with_norms:
                totals[1] += a.square().sum()
                totals[2] += b.square().sum()
        totals[1:].sqrt_()
    return sums
