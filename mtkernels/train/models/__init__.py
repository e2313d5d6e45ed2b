"""Networks by name: each a constructor (classes, *, width, dropout) of a module from images to logits."""

from collections.abc import Callable

from torch import nn

from .convnet import ConvNet

MODELS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet}

__all__ = ["MODELS"]
