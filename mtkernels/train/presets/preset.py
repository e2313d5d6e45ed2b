"""What a preset is."""

from dataclasses import dataclass

from ..config import Config


@dataclass(frozen=True)
class Preset:
    """Named settings, and what they gave to those who published them."""

    config: Config
    about: str  # what it is
    published: str = ""  # error in percent, mean and deviation over runs; empty: none is
