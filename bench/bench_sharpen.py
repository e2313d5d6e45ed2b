"""sharpen: the target of MixMatch from probabilities.

Sizes: testing.OPS; peers: targets.py.
"""

OP = "sharpen"


def test_sharpen(interleaved, case, peer):
    interleaved(case, peer)
