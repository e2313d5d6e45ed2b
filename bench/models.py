"""Networks by their parameters and buffers alone, for the weight average: they have no forward. And plain lists."""

from itertools import pairwise

import torch
from torch import nn

from mtkernels.testing import Shapes


def listed(shapes: Shapes) -> nn.ParameterList:
    return nn.ParameterList([torch.empty(shape) for shape in shapes])


def wrn28_2() -> nn.Module:
    """Wide ResNet 28-2 for ten classes: 1,467,610 parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, bias=False)]
    for before, channels in pairwise((16, 32, 64, 128)):
        layers.append(nn.Conv2d(before, channels, 1, bias=False))
        for inputs in (before, channels, channels, channels):
            layers += [nn.BatchNorm2d(inputs), nn.Conv2d(inputs, channels, 3, bias=False)]
            layers += [nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(128), nn.Linear(128, 10))


def resnet50() -> nn.Module:
    """ResNet-50: 25,557,032 parameters."""
    return nn.Sequential(*_bottlenecks((3, 4, 6, 3), width=1, groups=1), nn.Linear(2048, 1000))


def resnext152() -> nn.Module:
    """ResNeXt-152 32x4d with two heads, as Mean Teacher's on ImageNet: 62,000,400 parameters."""
    layers = _bottlenecks((3, 8, 36, 3), width=2, groups=32)
    return nn.Sequential(*layers, nn.Linear(2048, 1000), nn.Linear(2048, 1000))


def _bottlenecks(blocks: tuple[int, ...], width: int, groups: int) -> list[nn.Module]:
    """A ResNet's convolutions with their batch norms. `width`: of the 3x3 ones, over a ResNet's."""
    layers = [*_conv(3, 64, 7)]
    channels = 64
    for planes, count in zip((64, 128, 256, 512), blocks, strict=True):
        inner, out = width * planes, 4 * planes
        for block in range(count):
            layers += [*_conv(channels, inner, 1), *_conv(inner, inner, 3, groups), *_conv(inner, out, 1)]
            if block == 0:
                layers += _conv(channels, out, 1)
            channels = out
    return layers


def _conv(channels: int, filters: int, kernel: int, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, filters, kernel, groups=groups, bias=False), nn.BatchNorm2d(filters)


def vit_b16() -> nn.Module:
    """ViT-B/16: 86,567,656 parameters."""
    patches = nn.Conv2d(3, 768, 16)
    places = nn.Embedding(197, 768), nn.Embedding(1, 768)  # of the patches and the class token; that token
    return nn.Sequential(patches, *places, *_blocks(12, 768), nn.LayerNorm(768), nn.Linear(768, 1000))


def gpt_1b() -> nn.Module:
    """A GPT of 24 blocks of width 1792, its head tied to the embedding: 1,017,555,712 parameters."""
    tokens, places = nn.Embedding(50_257, 1792), nn.Embedding(1024, 1792)
    return nn.Sequential(tokens, places, *_blocks(24, 1792), nn.LayerNorm(1792))


def _blocks(count: int, width: int) -> list[nn.Module]:
    """Transformer blocks: attention with one matrix for query, key and value, and an MLP of four times the width."""
    return [
        module
        for _ in range(count)
        for module in (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
    ]
