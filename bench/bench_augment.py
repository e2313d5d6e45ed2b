"""augment: two views of small images, shifted or rotated and coloured; two resized crops of a large one.

Sizes: testing.OPS; peers: peers.py.
"""

OP = "augment"


def test_augment(interleaved, case, peer):
    interleaved(case, peer)
