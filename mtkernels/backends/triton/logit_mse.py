"""logit_mse: row loss = (1/C) sum_c (a_c - b_c)^2."""

from mtkernels.backends.triton.consistency import loss_of

logit_mse = loss_of("logit_mse")
