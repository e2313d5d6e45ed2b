"""WeightEMA's features, each against what it takes with torch's own multi-tensor calls, or with timm.

Sizes and candidates: features.py.
"""

OP = "ema_update features"


def test_ema_features(interleaved, case, peer):
    interleaved(case, peer)
