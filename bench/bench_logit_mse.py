"""logit_mse from raw logits: forward, autograd graph and backward.

Sizes: testing.OPS; peers: peers.py.
"""

OP = "logit_mse"


def test_logit_mse(interleaved, case, peer):
    interleaved(case, peer)
