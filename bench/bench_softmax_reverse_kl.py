"""softmax_reverse_kl from raw logits: forward, autograd graph and backward.

Sizes: testing.OPS; peers: peers.py.
"""

OP = "softmax_reverse_kl"


def test_softmax_reverse_kl(interleaved, case, peer):
    interleaved(case, peer)
