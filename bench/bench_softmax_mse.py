"""softmax_mse from raw logits: forward, autograd graph and backward.

Sizes: testing.OPS; peers: peers.py.
"""

OP = "softmax_mse"


def test_softmax_mse(interleaved, case, peer):
    interleaved(case, peer)
