"""The weight average in place, over lists of tensors and over modules with their buffers.

Sizes: testing.OPS and models.py; peers: peers.py.
"""

OP = "ema_update"


def test_ema_update(interleaved, case, peer):
    interleaved(case, peer)
