"""Named settings: `mtkernels train --preset NAME`, any flag after it overrides a field."""

from .config import Config

PRESETS: dict[str, Config] = {"digits": Config()}
