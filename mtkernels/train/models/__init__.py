"""Networks by name: each is a constructor (classes, *, width, dropout) -> nn.Module that maps images to logits."""

from collections.abc import Callable

from torch import nn

from .convnet import ConvNet

MODELS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet}

__all__ = ["MODELS"]
