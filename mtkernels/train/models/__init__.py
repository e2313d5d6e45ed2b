"""Networks by name, each a module from images to logits: `make_model` makes any of them."""

import difflib
import inspect
import re
from collections.abc import Callable
from functools import partial

from torch import nn

from ..config import SettingError
from .convnet import ConvNet
from .convnet13 import ConvNet13
from .foreign import imported_model, timm_model
from .network import Logits
from .resnext import ResNeXt152
from .shake_shake import CifarShakeShake26
from .wide_resnet import WideResNet28

Constructor = Callable[..., nn.Module]  # (classes, *, channels, heads, and the options that it has)

MODELS: dict[str, Constructor] = {
    "convnet": ConvNet,
    "convnet13": ConvNet13,
    "cifar_shakeshake26": CifarShakeShake26,
    "resnext152": ResNeXt152,
}
NAMES = f"{', '.join(MODELS)}, wrn-28-K, timm:NAME or package.module:callable"  # what make_model takes


def make_model(
    arch: str,
    classes: int,
    *,
    channels: int,
    heads: int = 1,
    width: int = 32,
    dropout: float = 0.0,
    noise: float = 0.0,
    normalize: bool = False,
    pretrained: bool = False,
) -> nn.Module:
    """The network `arch`: images [rows, channels, height, width] to logits [rows, classes].

    With two heads it gives (class_logits, consistency_logits). `arch` is a name of MODELS, `wrn-28-K` (K >= 1),
    `timm:NAME`, or `package.module:callable`, called with num_classes=classes alone. An option that a network
    has not is ignored: `width` is convnet's, `noise` and `normalize` are convnet13's, `dropout` is theirs and
    wrn-28-K's. `pretrained` is timm's, an error for others.

    A network with a method `initialize(images)` wants it called on a first batch, before any copy is made.
    """
    if heads not in (1, 2):
        raise SettingError(f"heads must be 1 or 2, got {heads}")
    if arch.startswith("timm:"):
        name = arch.removeprefix("timm:")
        return timm_model(name, classes, channels=channels, heads=heads, pretrained=pretrained)
    if pretrained:
        raise SettingError(f"pretrained must be off for a model not of timm, got {arch!r}")
    if re.fullmatch(r"\w[\w.]*:\w[\w.]*", arch):
        return imported_model(arch, classes, heads=heads)
    build = _constructor(arch)
    options = {"width": width, "dropout": dropout, "noise": noise, "normalize": normalize}
    parameters = inspect.signature(build).parameters
    taken = {name: value for name, value in options.items() if name in parameters}
    return build(classes, channels=channels, heads=heads, **taken)


def _constructor(arch: str) -> Constructor:
    if wide := re.fullmatch(r"wrn-28-([1-9]\d*)", arch):
        return partial(WideResNet28, widen=int(wide[1]))
    if arch in MODELS:
        return MODELS[arch]
    close = difflib.get_close_matches(arch, [*MODELS, "wrn-28-2"], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise SettingError(f"model must be one of {NAMES}, got {arch!r}{hint}")


__all__ = ["MODELS", "NAMES", "Logits", "make_model"]
