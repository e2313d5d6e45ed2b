"""softmax_kl: row loss = sum_c q_c (log q_c - log p_c), gradients = p_c - q_c and q_c (log q_c - log p_c - loss)."""

from mtkernels.backends.triton.consistency import loss_of

softmax_kl = loss_of("softmax_kl")
