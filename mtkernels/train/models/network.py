"""What the networks here share: a trunk with one or two heads, and the first weights of convolutions."""

import math
from collections.abc import Callable

from torch import Tensor, nn

Logits = Tensor | tuple[Tensor, Tensor]


class TwoHeads(nn.Module):
    """Maps features to (class_logits, consistency_logits)."""

    def __init__(self, class_head: nn.Module, consistency_head: nn.Module) -> None:
        super().__init__()
        self.class_head = class_head
        self.consistency_head = consistency_head

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.class_head(features), self.consistency_head(features)


class Network(nn.Module):
    """`features` maps images to [rows, width]; one or two of `head()` map those to logits [rows, classes]."""

    def __init__(self, features: nn.Module, head: Callable[[], nn.Module], heads: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = head() if heads == 1 else TwoHeads(head(), head())

    def forward(self, images: Tensor) -> Logits:
        return self.classifier(self.features(images))


def initialize_convolutions(model: nn.Module) -> None:
    """Draw the kernels from N(0, 2 / (kernel height * kernel width * filters)); the rest keeps torch's."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            area = math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / (area * module.out_channels)))
