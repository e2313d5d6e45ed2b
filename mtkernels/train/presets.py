"""Named settings: `mtkernels train --preset NAME`; each flag after it overrides a field."""

from .config import Config

PRESETS: dict[str, Config] = {
    "digits": Config(
        dataset="digits",
        labels=20,
        steps=3000,
        batch_size=120,
        labeled_batch_size=20,
        model="convnet",
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
}
