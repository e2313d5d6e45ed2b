"""temporal_ensemble_: loss, gradient and the ensemble's update.

Sizes: testing.OPS; peers: peers.py.
"""

OP = "temporal_ensemble_"


def test_temporal_ensemble(interleaved, case, peer):
    interleaved(case, peer)
