"""The experiments of Mean Teacher's PyTorch version: residual networks on CIFAR-10 and ImageNet (1703.01780, table 3).

Batch sizes and learning rates are the published ones of one GPU times the number of GPUs that they were run on, which
split a batch among them, each normalising its own part: a run on one GPU is not exactly the same experiment. Those
called -1gpu have the numbers of one GPU. The published ImageNet runs all had one choice of labels, by an oversight;
here the seed chooses.
"""

from dataclasses import replace

from ..config import Config
from .preset import Preset

_CIFAR10 = Config(
    dataset="cifar10",
    method="mean-teacher",
    arch="cifar_shakeshake26",
    steps=None,
    epochs=180,
    labels=1000,
    batch_size=128,
    labeled_batch_size=31,
    dropout=0.0,
    lr=0.05,
    lr_rampup=0,
    lr_rampdown=210,
    momentum=0.9,
    nesterov=True,
    weight_decay=2e-4,
    ema_decay=0.97,
    teacher_init="independent",
    buffers="keep",
    consistency=100.0,
    consistency_rampup=5,
    logit_distance_cost=0.01,
    augment="translate",
    translate=4,
    border="symmetric",
    flip=True,
    noise=0.0,
    normalize="channels",
    eval_interval=1,
    workers=2,
)
_CIFAR10_4000 = replace(_CIFAR10, labels=4000, epochs=300, lr_rampdown=350, ema_decay=0.99)
_CROPS = {"augment": "imagenet", "image_size": 224, "rotate": 10.0, "jitter": (0.4, 0.4, 0.4, 0.1)}
_IMAGENET = replace(
    _CIFAR10,
    dataset="imagenet",
    arch="resnext152",
    labels=128_000,
    epochs=60,
    batch_size=40,
    labeled_batch_size=20,
    lr=0.025,
    initial_lr=0.01,
    lr_rampup=2,
    lr_rampdown=75,
    weight_decay=5e-5,
    ema_decay=0.9997,
    consistency=10.0,
    consistency_type="kl",
    workers=20,
    **_CROPS,
)
_QUICK = replace(
    _CIFAR10,
    batch_size=256,
    labeled_batch_size=62,
    lr=0.1,
    nesterov=False,
    weight_decay=1e-4,
    ema_decay=0.999,
    logit_distance_cost=-1.0,
    workers=4,
)
_REFERENCE = replace(
    _QUICK, epochs=90, labeled_batch_size=None, lr_rampdown=0, consistency=0.0, consistency_rampup=30
)


def _on_gpus(config: Config, gpus: int) -> Config:
    return replace(
        config,
        batch_size=config.batch_size * gpus,
        labeled_batch_size=config.labeled_batch_size * gpus,
        lr=round(config.lr * gpus, 6),
        initial_lr=round(config.initial_lr * gpus, 6),
    )


PYTORCH = {
    "reference": Preset(_REFERENCE, "the published PyTorch version's own defaults, for flags to start from"),
    "reference-imagenet": Preset(
        replace(_REFERENCE, dataset="imagenet", arch="resnext152", **_CROPS),
        "the same for images of ImageNet's size",
    ),
    "cifar10-1000-shakeshake": Preset(
        _on_gpus(_CIFAR10, 4), "shake-shake 26, 1,000 labels, 4 GPUs", "10.08 ± 0.41"
    ),
    "cifar10-1000-shakeshake-1gpu": Preset(_CIFAR10, "the same, with the numbers of one GPU"),
    "cifar10-4000-shakeshake": Preset(
        _on_gpus(_CIFAR10_4000, 4), "shake-shake 26, 4,000 labels, 4 GPUs", "6.28 ± 0.15"
    ),
    "cifar10-4000-shakeshake-1gpu": Preset(_CIFAR10_4000, "the same, with the numbers of one GPU"),
    "cifar10-1000-quick": Preset(_QUICK, "shake-shake 26, 1,000 labels: the short form, one head"),
    "imagenet-10percent-resnext152": Preset(
        _on_gpus(_IMAGENET, 10), "ResNeXt-152, a tenth of the labels, 10 GPUs", "top-5 9.11 ± 0.12"
    ),
    "imagenet-10percent-resnext152-1gpu": Preset(_IMAGENET, "the same, with the numbers of one GPU"),
}
