"""softmax_reverse_kl: row loss = sum_c p_c (log p_c - log q_c)."""

from mtkernels.backends.triton.consistency import loss_of

softmax_reverse_kl = loss_of("softmax_reverse_kl")
