"""softmax_cross_entropy from raw logits: forward, autograd graph and backward.

Sizes: testing.OPS; peers: peers.py.
"""

OP = "softmax_cross_entropy"


def test_softmax_cross_entropy(interleaved, case, peer):
    interleaved(case, peer)
