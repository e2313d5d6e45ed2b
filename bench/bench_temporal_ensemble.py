"""temporal_ensemble_: loss, gradient and the update of the ensemble, from raw logits.

Sizes: testing.OPS; peers: targets.py.
"""

OP = "temporal_ensemble_"


def test_temporal_ensemble(interleaved, case, peer):
    interleaved(case, peer)
