"""The digits: settings of our own.

Chosen by the error on the unlabeled training images (`--eval-split unlabeled`) at label seeds 100 to 104, never by the
test images, nor at the seeds 0 to 4 that results are reported for. There, with 20 labels, Mean Teacher's teacher ends
at 3.3 3.8 4.5 11.4 3.8 % (mean 5.3), supervised-only at a mean of 15.8 %. The high one is a draw in which both labeled
1s have a foot: the plain 1s end among the 8s, and no setting tried brought them back. What moved Mean Teacher's mean
most (three seeds): 1000 -> 3000 steps with twice the learning rate (9.6 -> 4.2), dropout 0.5 -> 0 (16 -> 10), noise
0 -> 0.1 (13 -> 10; 0.3 is as bad as none). Supervised-only is no better with a learning rate of 0.05 (15.9 against
14.9, both without the warp) or with dropout 0.5 (17.1 against 15.8).
"""

from ..config import Config
from .preset import Preset

DIGITS = {
    "digits": Preset(
        Config(
            dataset="digits",
            labels=20,
            steps=3000,
            batch_size=120,
            labeled_batch_size=20,
            arch="convnet",
            width=32,
            dropout=0.0,
            lr=0.2,
            weight_decay=5e-4,
            ema_decay=0.99,
            consistency=30.0,
            consistency_rampup=1000,
            rotate=15.0,
            zoom=0.15,
            shear=0.2,
            shift=1.0,
            warp=0.3,
            noise=0.1,
        ),
        "20 labels of 1,297 digits of 8 x 8 pixels: a minute on two CPU cores",
    )
}
