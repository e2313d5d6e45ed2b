"""Named settings: `mtkernels train --preset NAME`; each flag after it overrides a field."""

from .digits import DIGITS
from .preset import Preset
from .pytorch import PYTORCH
from .tensorflow import TENSORFLOW

PRESETS: dict[str, Preset] = {**DIGITS, **PYTORCH, **TENSORFLOW}

__all__ = ["PRESETS", "Preset"]
