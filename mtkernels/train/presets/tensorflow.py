"""The experiments of Mean Teacher's TensorFlow version: the 13-layer network on CIFAR-10 and SVHN (1703.01780).

Tables 1 and 2 (with and without augmentation), the extra images of SVHN, and the ablations of figure 4. Where the class
loss is a mean over the batch, labeled or not, the consistency weights of 1 to 8 are all about 100 beside a mean over
the labeled images. CIFAR-10 images go through GCN and ZCA, SVHN images are normalised each by itself.
"""

from dataclasses import replace

from ..config import Config
from .preset import Preset

_BASE = Config(
    method="mean-teacher",
    arch="convnet13",
    steps=150_000,
    batch_size=100,
    labeled_batch_size=None,
    unlabeled_from="all",
    dropout=0.5,
    optimizer="adam",
    lr=0.003,
    lr_rampup=40_000,
    lr_rampup_shape="sigmoid",
    lr_rampdown=0,
    sigmoid_rampdown=25_000,
    weight_decay=0.0,
    adam_beta1=(0.9, 0.5),
    adam_beta2=(0.99, 0.999),
    ema_decay=0.999,
    ema_decay_rampup=0.99,
    ema_warmup=False,
    ema_order="before",
    teacher_init="copy",
    buffers="keep",
    consistency=100.0,
    consistency_rampup=40_000,
    logit_distance="sum",
    augment="translate",
    translate=2,
    border="reflect",
    flip=False,
    noise=0.15,
    normalize="image",
    eval_interval=500,
)
_WITHOUT_AUGMENTATION = {"translate": 0, "flip": False}

# ---- CIFAR-10

_CIFAR10 = replace(
    _BASE,
    dataset="cifar10",
    adam_beta2=(0.999, 0.999),
    ema_decay_rampup=None,
    flip=True,
    normalize="gcn-zca",
)
_CIFAR10_RESULTS = {
    "mean-teacher": {1000: "21.55 ± 1.48", 2000: "15.73 ± 0.31", 4000: "12.31 ± 0.28", "all": "5.94 ± 0.15"},
    "pi-model": {1000: "27.36 ± 1.20", 2000: "18.02 ± 0.60", 4000: "13.20 ± 0.27", "all": "6.06 ± 0.11"},
    "supervised": {1000: "46.43 ± 1.21", 2000: "33.94 ± 0.73", 4000: "20.66 ± 0.57", "all": "5.82 ± 0.15"},
}


def _cifar10(method: str, labels: int | str) -> Config:
    config = replace(_CIFAR10, method=method, labels=labels)
    if method == "supervised":
        config = replace(config, exclude_unlabeled=True, consistency=0.0, consistency_on_labeled=False)
        if labels == "all":
            return config
        return replace(config, steps=750 * labels // 100, sigmoid_rampdown=100 * labels // 100)
    if labels == "all":
        return replace(config, exclude_unlabeled=True)
    return replace(config, consistency=100.0 * labels / 50_000)


# ---- SVHN

_SVHN = replace(_BASE, dataset="svhn", steps=180_000)
_SVHN_RESULTS = {
    "mean-teacher": {250: "4.35 ± 0.50", 500: "4.18 ± 0.27", 1000: "3.95 ± 0.19", "all": "2.50 ± 0.05"},
    "pi-model": {250: "9.69 ± 0.92", 500: "6.83 ± 0.66", 1000: "4.95 ± 0.26", "all": "2.50 ± 0.07"},
    "supervised": {250: "27.77 ± 3.18", 500: "16.88 ± 1.30", 1000: "12.32 ± 0.95", "all": "2.75 ± 0.10"},
}
_SVHN_LABELS = {
    "mean-teacher": (100, 250, 500, 1000, "all"),
    "pi-model": (100, 250, 500, 1000, "all"),
    "supervised": (250, 500, 1000, "all"),
}
_EXTRA_STEPS = {100_000: 400_000, 500_000: 600_000}
_EXTRA_RESULTS = {
    "mean-teacher": {100_000: "3.02 ± 0.16", 500_000: "2.46 ± 0.06"},
    "pi-model": {100_000: "4.49 ± 0.27", 500_000: "3.26 ± 0.14"},
}


def _svhn(method: str, labels: int | str) -> Config:
    config = replace(_SVHN, method=method, labels=labels)
    if method == "supervised":
        config = replace(config, exclude_unlabeled=True, consistency=0.0)
        return config if labels == "all" else replace(config, steps=40_000, sigmoid_rampdown=10_000)
    if labels == "all":
        return replace(config, exclude_unlabeled=True)
    return replace(config, labeled_batch_size=1, consistency=1.0, consistency_on_labeled=False)


# ---- ablations, on images held out of SVHN's training images (figure 4)

_ABLATED = replace(_svhn("mean-teacher", 250), validation=7325, eval_split="validation")
_ABLATED_500 = replace(_ABLATED, labels=500)  # so in the published code, though the figure says 250
_RATES = (0.0, 0.25, 0.5, 0.75)


def _ablations() -> dict[str, Preset]:
    """Each point of the figure; its errors are read from the figure, which has no table."""
    found = {}

    def add(name: str, about: str, config: Config = _ABLATED, **changes: object) -> None:
        found[f"svhn-{config.labels}-{name}"] = Preset(replace(config, **changes), about)

    for decay in (0.0, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9997, 0.9999):
        add(f"ema-decay-{decay:g}", "ablation: EMA decay", ema_decay=decay, ema_decay_rampup=None)
    add("ema-decay-0.99-0.999", "ablation: EMA decay 0.99, from the end of the ramp-up 0.999")
    for cost in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0):
        add(f"consistency-{cost:g}", "ablation: consistency weight", consistency=cost)
    for student in _RATES:
        for teacher in _RATES:
            if student in (teacher, 0.5):
                words = "ablation: dropout of student and teacher"
                add(f"dropout-{student:g}-{teacher:g}", words, dropout=student, teacher_dropout=teacher)
    for dropout in (0.5, 0.0):
        for noise in (0.15, 0.0):
            for augmented in (True, False):
                name = f"perturbation-dropout-{dropout:g}-noise-{noise:g}-{'augmented' if augmented else 'plain'}"
                changes = {"dropout": dropout, "noise": noise} | ({} if augmented else _WITHOUT_AUGMENTATION)
                add(name, "ablation: dropout, noise, augmentation", **changes)
    add("one-head", "ablation: one head", _ABLATED_500)
    for cost in (0.0, 0.001, 0.01, 0.1, 1.0):
        words = "ablation: two heads, and the cost of their distance"
        add(f"logit-distance-{cost:g}", words, _ABLATED_500, logit_distance_cost=cost)
    for trust in (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0):
        words = "ablation: consistency between mean squared error (0) and KL (1)"
        add(f"trust-{trust:g}", words, _ABLATED_500, consistency_trust=trust)
    return found


def _tables() -> dict[str, Preset]:
    found = {}

    def add(name: str, about: str, config: Config, published: str) -> None:
        found[name] = Preset(config, about, published)
        plain = replace(config, **_WITHOUT_AUGMENTATION)
        found[f"{name}-no-augmentation"] = Preset(plain, f"{about}, not augmented")

    for method, results in _CIFAR10_RESULTS.items():
        for labels, error in results.items():
            add(f"cifar10-{labels}-{method}", "13-layer network, CIFAR-10", _cifar10(method, labels), error)
    for method, counts in _SVHN_LABELS.items():
        for labels in counts:
            error = _SVHN_RESULTS[method].get(labels, "")
            add(f"svhn-{labels}-{method}", "13-layer network, SVHN", _svhn(method, labels), error)
    for method, results in _EXTRA_RESULTS.items():
        for extra, error in results.items():
            config = replace(_svhn(method, 500), extra_unlabeled=extra, steps=_EXTRA_STEPS[extra])
            words = f"13-layer network, SVHN and {extra:,} extra images without labels"
            found[f"svhn-500-{method}-extra-{extra}"] = Preset(config, words, error)
    return found


_QUICK = {
    "steps": 40_000,
    "lr_rampup": 5000,
    "consistency_rampup": 5000,
    "sigmoid_rampdown": 0,
    "consistency": 50.0,
    "labeled_batch_size": 50,
    "eval_split": "validation",
}
TENSORFLOW = {
    **_tables(),
    "cifar10-4000-convnet13-quick": Preset(
        replace(
            _BASE, dataset="cifar10", labels=4000, validation=5000, flip=True, normalize="gcn-zca", **_QUICK
        ),
        "13-layer network, CIFAR-10: the short form",
    ),
    "svhn-500-convnet13-quick": Preset(
        replace(_BASE, dataset="svhn", labels=500, validation=7325, **_QUICK),
        "13-layer network, SVHN: the short form",
    ),
    **_ablations(),
}
