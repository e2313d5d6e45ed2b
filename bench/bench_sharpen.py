"""sharpen: probabilities made more certain.

Sizes: testing.OPS; peers: peers.py.
"""

OP = "sharpen"


def test_sharpen(interleaved, case, peer):
    interleaved(case, peer)
