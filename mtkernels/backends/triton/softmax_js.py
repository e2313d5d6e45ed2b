"""softmax_js: row loss = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2."""

from mtkernels.backends.triton.consistency import loss_of

softmax_js = loss_of("softmax_js")
