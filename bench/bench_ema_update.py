"""ema_update in place, over lists of tensors and over a ResNet-50-shaped module with its buffers.

Sizes: testing.OPS and cases.resnet50_like; peers: peers.py.
"""

OP = "ema_update"


def test_ema_update(interleaved, case, peer):
    interleaved(case, peer)
