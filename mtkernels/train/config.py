"""Every setting of a training run, its unit and its check: the one place for all three."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints


class SettingError(ValueError):
    """A setting that cannot be used: the sentence is for its user, so the command line prints it alone."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training run.

    Lengths and intervals (ramps, evaluation) are in epochs where `epochs` is given, else in steps. A step is one batch;
    an epoch is one pass over the unlabeled images, or over whatever fills the larger part of a batch.
    """

    method: Literal["mean-teacher", "pi-model", "supervised"] = "mean-teacher"
    """What to train with."""
    dataset: Literal["digits", "cifar10", "cifar100", "svhn", "imagenet", "folder", "npz"] = "digits"
    """What to train on; `folder` is a folder of images for each class."""
    data: Path | None = None
    """Where the dataset's files are (None: data/ and the dataset's name)."""
    train_subdir: str = "train"
    """Subfolder of training images, of `imagenet` and `folder`."""
    eval_subdir: str = "val"
    """Subfolder of test images, of `imagenet` and `folder`."""
    image_size: int | None = None
    """Side in pixels that images are resized to when they are read (None: as they are; of `imagenet` 224)."""
    labels: int | Literal["all"] | Path = 20
    """Labeled images, spread evenly over the classes by the seed; or all; or a file of lines `filename class`."""
    extra_unlabeled: int = 0
    """Images of the dataset's extra part (SVHN's) that are added without their labels."""
    validation: int = 0
    """Training images that are held out, spread evenly over the classes, for `eval_split validation`."""
    exclude_unlabeled: bool = False
    """Train on labeled images alone: all of a batch is drawn from them."""
    seed: int = 0
    """Seed of everything random: which images are labeled, first weights, batches, views, dropout."""

    epochs: int | None = None
    """Length of the training in epochs; the alternative to steps."""
    steps: int | None = 2000
    """Length of the training in optimizer steps; the alternative to epochs."""
    batch_size: int = 120
    """Images in a batch, labeled and unlabeled together."""
    labeled_batch_size: int | None = 20
    """Labeled images in a batch (None: as many as come, batches being drawn from all images alike)."""
    unlabeled_from: Literal["unlabeled", "all"] = "unlabeled"
    """What the unlabeled part of a batch is drawn from: images without a label, or all, with their labels hidden."""

    arch: str = "convnet"
    """Network: convnet, convnet13, cifar_shakeshake26, resnext152, wrn-28-K, timm:NAME or package.module:function."""
    pretrained: bool = False
    """Start from timm's weights, of an arch timm:NAME."""
    width: int = 32
    """Filters of convnet's first block; the second has twice as many."""
    dropout: float = 0.5
    """Probability that dropout zeroes a unit, in student and teacher."""
    teacher_dropout: float | None = None
    """The same of the teacher, where it differs."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """What moves the student."""
    lr: float = 0.1
    """Highest learning rate."""
    initial_lr: float = 0.0
    """Learning rate at the beginning of the linear ramp-up."""
    lr_rampup: float = 0
    """Length of the learning rate's ramp-up (0: none)."""
    lr_rampup_shape: Literal["linear", "sigmoid"] = "linear"
    """From initial_lr to lr in a line, or exp(-5 (1 - t/length)^2) times lr."""
    lr_rampdown: float | None = None
    """When the learning rate's cosine ramp-down reaches 0 (None: at the end, 0: no such ramp-down)."""
    sigmoid_rampdown: float = 0
    """Length of the end, over which lr falls by exp(-12.5 (1 - left/length)^2) (0: none)."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's form of SGD's momentum."""
    weight_decay: float = 1e-4
    """L2 penalty on all parameters."""
    adam_beta1: tuple[float, float] = (0.9, 0.5)
    """Adam's beta1 before the sigmoid ramp-down, and at its end."""
    adam_beta2: tuple[float, float] = (0.99, 0.999)
    """Adam's beta2 during consistency_rampup, and after it."""
    adam_epsilon: float = 1e-8
    """Adam's epsilon."""

    ema_decay: float = 0.99
    """teacher <- decay * teacher + (1 - decay) * student."""
    ema_decay_rampup: float | None = None
    """The decay during consistency_rampup, where it differs."""
    ema_warmup: bool = True
    """Begin with the mean of all weights so far: decay = min(1 - 1/(step + 1), ema_decay), from step 1."""
    ema_order: Literal["after", "before"] = "after"
    """When the teacher moves: after the optimizer's step, or before it, one step behind."""
    teacher_init: Literal["copy", "independent"] = "copy"
    """First weights of the teacher: the student's, or its own."""
    buffers: Literal["average", "copy", "keep"] = "average"
    """Batch norm's statistics in the teacher: averaged like weights, the student's, or the teacher's own."""

    consistency: float = 100.0
    """Highest weight of the consistency loss; the class loss is a sum over labeled images / batch_size."""
    consistency_type: Literal["mse", "kl"] = "mse"
    """Distance of the predictions: mean squared difference of probabilities, or KL(teacher || student)."""
    consistency_trust: float | None = None
    """In place of consistency_type, between mse (0) and KL (1): KL of predictions mixed with uniform ones."""
    consistency_rampup: float = 500
    """Length of the sigmoid ramp-up of the consistency weight (0: none)."""
    consistency_on_labeled: bool = True
    """Whether labeled images too count in the consistency loss; its denominator is batch_size in any case."""
    logit_distance_cost: float = -1.0
    """Weight of the squared distance of two heads, one for each loss (below 0: one head for both)."""
    logit_distance: Literal["mean", "sum"] = "mean"
    """Over the classes; the published PyTorch version has the mean, the TensorFlow version the sum."""
    class_loss_over: Literal["batch", "labeled"] = "batch"
    """What the class loss is divided by: batch_size as published, or the labeled images of the batch."""

    augment: Literal["affine", "translate", "imagenet", "none"] = "affine"
    """Views: rotate, zoom, shear, shift, warp; whole-pixel shifts and flips; crops, rotations, colours; or none."""
    rotate: float = 15.0
    """affine, imagenet: rotation, uniform in +- this many degrees."""
    zoom: float = 0.15
    """affine: width and height each scaled by a factor uniform in 1 +- this."""
    shear: float = 0.2
    """affine: horizontal shear, uniform in +- this (shift per unit of height)."""
    shift: float = 1.0
    """affine: shift along each axis, uniform in +- this many pixels."""
    warp: float = 0.0
    """affine: smooth random warp, standard deviation in pixels of its 3 x 3 control points."""
    translate: int = 4
    """translate: whole pixels along each axis, uniform in +- this."""
    border: Literal["symmetric", "reflect", "constant"] = "symmetric"
    """translate, imagenet: what lies outside an image: itself mirrored, edge repeated or not, or black."""
    flip: bool = True
    """translate, imagenet: mirror half of the views."""
    shared_flip: bool = False
    """Mirror all views of an image or none, as Laine and Aila did for the Pi-model."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """imagenet: brightness, contrast, saturation by factors uniform in 1 +- this, hue by +- this part of a turn."""
    noise: float = 0.1
    """Standard deviation of Gaussian noise on each view's pixels, after `normalize`."""
    normalize: Literal["none", "channels", "image", "gcn-zca", "zca"] = "none"
    """Pixels from 0 to 1; or minus mean, over deviation, of the dataset's channels, or of each image; or whitened."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward and backward passes, by autocast; fp16 with a loss scale. All weights stay in fp32."""
    channels_last: bool = False
    """Keep images and weights with the channels innermost, which GPUs prefer in half precision."""
    compile: bool = False
    """Run student and teacher through torch.compile."""
    cuda_graph: bool = False
    """Replay each step as one CUDA graph: for small networks, whose GPU waits for the host."""
    accumulate: int = 1
    """Parts of a batch that go through the network one after the other, for less memory."""
    sync_batch_norm: bool = True
    """Several ranks: batch statistics over all of them, so that their number changes nothing."""
    fsdp: bool = False
    """Several ranks: shard student, teacher and optimizer by FSDP2, for networks too large for one GPU."""

    eval_interval: int = 100
    """Length between evaluations of student and teacher, each one line of metrics (0: at the end alone)."""
    eval_split: Literal["test", "validation", "unlabeled"] = "test"
    """Errors on the test images, on those held out, or on the unlabeled training images (their labels are known)."""
    best_by_test: bool = False
    """Keep the weights of the lowest test error, as the published scripts do; of validation's in any case."""
    checkpoint_interval: float | None = None
    """Length between checkpoints to resume from (None: an epoch, or 1000 steps; 0: only when the run ends or stops)."""
    keep_checkpoints: int = 2
    """How many checkpoints are kept, the newest."""
    print_interval: int | None = None
    """Steps between lines of the losses (None: shown on a terminal alone, every 50 steps)."""
    pictures: bool = True
    """Draw some pairs of views, the confusion matrix, and the teacher's surest mistakes."""
    tensorboard: bool = False
    """Write TensorBoard's files into the run's folder too."""

    out: Path = Path("runs")
    """Folder that the run's own folder is made in."""
    name: str | None = None
    """Name of the run's folder; made from dataset, method, labels and seed when not given."""
    device: str = "cpu"
    """torch device: cpu, cuda, cuda:1 ..."""
    threads: int = 0
    """CPU threads (0: torch's default)."""
    workers: int = 4
    """Processes that read and augment images which are too many for memory."""

    def validate(self) -> None:
        """Raise SettingError, one sentence with field and value, for the first setting without sense."""
        for names, low, high, words in _RANGES:
            for name in names:
                value = getattr(self, name)
                for number in value if isinstance(value, tuple) else (value,):
                    if isinstance(number, (int, float)) and not low <= number <= high:  # also refuses nan
                        raise SettingError(f"{name} must be {words}, got {number}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        self._check_labels()
        self._check_together()
        if self.name is not None and not re.fullmatch(r"[\w][\w.+=-]*", self.name):
            raise SettingError(f"name must be letters, digits and . _ + = - only, got {self.name!r}")

    def _check_labels(self) -> None:
        if isinstance(self.labels, str) and self.labels != "all":
            raise SettingError(f"labels must be a number, 'all' or a path, got {self.labels!r}")
        alone = self.exclude_unlabeled or self.method == "supervised" or self.labeled_batch_size is None
        if not alone and self.labeled_batch_size >= self.batch_size:
            raise SettingError(
                f"labeled_batch_size must be below batch_size ({self.batch_size}), got {self.labeled_batch_size}"
            )

    def _check_together(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise SettingError(
                f"epochs or steps must be given, and not both, got {self.epochs} and {self.steps}"
            )
        if self.lr_rampdown and self.lr_rampdown < self.length:
            raise SettingError(
                f"lr_rampdown must be 0 or at least {self.unit} ({self.length}), got {self.lr_rampdown:g}"
            )
        if self.sigmoid_rampdown > self.length:
            raise SettingError(
                f"sigmoid_rampdown must be at most {self.unit} ({self.length}), got {self.sigmoid_rampdown:g}"
            )
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise SettingError("momentum must be above 0 where nesterov is on, got 0")
        if self.ema_decay_rampup is not None and self.ema_warmup:
            raise SettingError("ema_warmup must be off where ema_decay_rampup is given, got True")
        if self.accumulate > self.batch_size:
            raise SettingError(
                f"accumulate must be at most batch_size ({self.batch_size}), got {self.accumulate}"
            )
        if self.cuda_graph and self.accumulate > 1:
            raise SettingError(f"accumulate must be 1 where cuda_graph is on, got {self.accumulate}")
        if self.cuda_graph and self.optimizer == "adam" and self._betas_change:
            raise SettingError("cuda_graph must be off where Adam's betas change in the training, got True")
        if self.eval_split == "validation" and not self.validation:
            raise SettingError("validation must be 1 or more where eval_split is validation, got 0")
        if self.augment == "imagenet" and self.jitter[3] > 0.5:
            raise SettingError(f"jitter's hue must be at most half a turn, 0.5, got {self.jitter[3]}")
        if self.normalize not in ("none", "channels") and self.augment == "imagenet":
            raise SettingError(f"normalize must not be {self.normalize} where augment is imagenet")

    @property
    def unit(self) -> Literal["epochs", "steps"]:
        """What lengths and intervals are in."""
        return "steps" if self.epochs is None else "epochs"

    @property
    def length(self) -> int:
        """Of the training, in its unit."""
        return self.steps if self.epochs is None else self.epochs

    @property
    def _betas_change(self) -> bool:
        first, last = self.adam_beta1
        return (first != last and bool(self.sigmoid_rampdown)) or self.adam_beta2[0] != self.adam_beta2[1]

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the lowest error are kept."""
        return self.eval_split == "validation" or (self.eval_split == "test" and self.best_by_test)

    @property
    def heads(self) -> int:
        """Of the network: two where their logits are held together."""
        return 2 if self.logit_distance_cost >= 0 else 1

    @property
    def folder(self) -> Path:
        """Where the dataset's files are."""
        return Path("data") / self.dataset if self.data is None else self.data

    def as_dict(self) -> dict[str, object]:
        """The fields as JSON can hold them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        plain |= {name: str(value) for name, value in values.items() if isinstance(value, Path)}
        return values | plain

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Config":
        """The settings that `as_dict` gave; unknown names are refused, missing ones have their defaults."""
        kinds = get_type_hints(cls)
        for name in values:
            if name not in kinds:
                raise SettingError(f"{name} is no setting{suggestion(name, kinds)}")
        return cls(**{name: _read(name, kinds[name], value) for name, value in values.items()})


def _read(name: str, kind: object, value: object) -> object:
    """A value from JSON or TOML as the field's type has it. TOML has no None: there it is the word none."""
    kinds = get_args(kind) if isinstance(kind, UnionType) or get_origin(kind) is Union else (kind,)
    if type(None) in kinds and value in (None, "none"):
        return None
    for each in kinds:
        if get_origin(each) is Literal and value in get_args(each):
            return value
        if (
            get_origin(each) is tuple
            and isinstance(value, (list, tuple))
            and len(value) == len(get_args(each))
        ):
            return tuple(_read(name, part, item) for part, item in zip(get_args(each), value, strict=True))
        if each is float and type(value) in (int, float):
            return float(value)
        if each is Path and isinstance(value, (str, Path)):
            return Path(value)
        if each in (int, str, bool) and type(value) is each:
            return value
    raise SettingError(f"{name} must be {_words(kind)}, got {value!r}")


def _words(kind: object) -> str:
    return re.sub(
        r"typing\.|pathlib\.", "", str(getattr(kind, "__name__", kind) if isinstance(kind, type) else kind)
    )


def suggestion(word: str, known: Iterable[str]) -> str:
    """': did you mean ...?', or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else ""


_CHOICES = {
    name: get_args(hint) for name, hint in get_type_hints(Config).items() if get_origin(hint) is Literal
}  # field -> what it may be
# In the training's unit.
LENGTHS = (
    "lr_rampup",
    "lr_rampdown",
    "sigmoid_rampdown",
    "consistency_rampup",
    "eval_interval",
    "checkpoint_interval",
)
_LARGE = 1e9  # refuses inf
_RANGES = (
    (("labels", "steps", "epochs", "width", "image_size"), 1, _LARGE, "1 or more"),
    (("accumulate", "keep_checkpoints", "print_interval"), 1, _LARGE, "1 or more"),
    (("checkpoint_interval",), 0, _LARGE, "0 or more"),
    (("batch_size", "labeled_batch_size"), 1, _LARGE, "1 or more"),
    (("seed",), 0, 2**32 - 1, "between 0 and 2**32 - 1"),
    (("extra_unlabeled", "validation", "threads", "workers", "eval_interval"), 0, _LARGE, "0 or more"),
    (("lr", "initial_lr", "lr_rampup", "lr_rampdown", "sigmoid_rampdown"), 0, _LARGE, "0 or more"),
    (("weight_decay", "adam_epsilon", "consistency", "consistency_rampup"), 0, _LARGE, "0 or more"),
    (("logit_distance_cost",), -1, _LARGE, "-1 (one head) or more"),
    (("rotate", "shear", "shift", "warp", "noise", "translate"), 0, _LARGE, "0 or more"),
    (("momentum", "ema_decay", "ema_decay_rampup", "consistency_trust"), 0, 1, "between 0 and 1"),
    (("dropout", "teacher_dropout", "zoom"), 0, 1, "between 0 and 1"),
    (("adam_beta1", "adam_beta2"), 0, 1 - 1e-9, "at least 0 and below 1"),
    (("jitter",), 0, 1, "between 0 and 1"),
)  # fields, low, high, the words for it
