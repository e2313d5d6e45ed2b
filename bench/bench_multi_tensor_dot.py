"""multi_tensor_dot: inner product and norms of two lists.

Sizes: testing.OPS; peers: peers.py.
"""

OP = "multi_tensor_dot"


def test_multi_tensor_dot(interleaved, case, peer):
    interleaved(case, peer)
