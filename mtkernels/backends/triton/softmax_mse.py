"""softmax_mse: row loss = (1/C) sum_c (p_c - q_c)^2."""

from mtkernels.backends.triton.consistency import loss_of

softmax_mse = loss_of("softmax_mse")
