"""mean_teacher_loss from raw logits: forward, autograd graph and backward.

Sizes: testing.OPS; peers: peers.py.
"""

OP = "mean_teacher_loss"


def test_mean_teacher_loss(interleaved, case, peer):
    interleaved(case, peer)
