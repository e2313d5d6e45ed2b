"""softmax_cross_entropy: row loss = -sum_c t_c log p_c, t = q, smoothed or hard."""

from mtkernels.backends.triton.consistency import loss_of

softmax_cross_entropy = loss_of("softmax_cross_entropy")
