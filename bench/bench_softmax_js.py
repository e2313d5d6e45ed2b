"""softmax_js from raw logits: forward, autograd graph and backward.

Sizes: testing.OPS; peers: peers.py.
"""

OP = "softmax_js"


def test_softmax_js(interleaved, case, peer):
    interleaved(case, peer)
