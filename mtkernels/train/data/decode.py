"""An image file to pixels; and the record of images that are broken."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np

from ..config import SettingError
from ..files import write_with

_T = TypeVar("_T")
_BLOCK = (
    1024  # tasks handed to the threads at once: a future for each of a million images would take a gigabyte
)


class DecodeError(Exception):
    """An image that cannot be decoded as a whole."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(path: Path, least: int = 0) -> np.ndarray:
    """The image as uint8 RGB [height, width, 3]; raises DecodeError for one that is broken, cut short or missing.

    With `least`, a JPEG may come scaled down by 2, 4 or 8 (or between), as long as neither side falls below `least`
    pixels. Greyscale and palettes become RGB, alpha is dropped, of 16 bits the upper 8 are kept, an EXIF orientation
    is not applied: all as torchvision's ImageFolder has it, but for 16-bit greyscale, which that clips to white.
    """
    return decode_noting(path, least)[0]


def decode_noting(path: Path, least: int = 0) -> tuple[np.ndarray, str | None]:
    """As `decode`, and what simplejpeg held against a JPEG that Pillow then decoded."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DecodeError(path, error.strerror or str(error)) from error
    if not data:
        raise DecodeError(path, "empty file")
    refusal, simplejpeg = None, _simplejpeg()
    if simplejpeg is not None and data.startswith(b"\xff\xd8"):
        try:
            # Scaled by less than 2, libjpeg-turbo takes longer than in full: 2.3 ms against 1.5 for 500 x 375 to 256.
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least, min_factor=2)
            return pixels, None
        except Exception as error:  # whatever it is, Pillow has the last word
            refusal = str(error)
    return _pillow(path, data, least), refusal


def resize_crop(image: np.ndarray, *, side: int, size: int) -> np.ndarray:
    """The shorter side to `side` pixels (antialiased, bilinear), then the centre: [size, size, 3].

    The same pixels as torchvision's Resize(side) and CenterCrop(size) on a PIL image.
    """
    from PIL import Image

    height, width = image.shape[:2]
    short = min(height, width)
    wide, high = int(side * width / short), int(side * height / short)
    resized = Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return np.array(resized.crop((left, top, left + size, top + size)))


def in_threads(task: Callable[[int], _T], count: int, threads: int | None = None) -> Iterator[_T]:
    """task(0), task(1) ... in order; decoders let go of the interpreter's lock, so threads are enough."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, _BLOCK):
            yield from pool.map(task, range(start, min(start + _BLOCK, count)))


class Quarantine:
    """Broken images by name, each with the reason; too many of them are an error."""

    def __init__(self, images: int = 0, *, max_broken: float = 0.01) -> None:
        """Allow a `max_broken` part of `images`, but at least 10; 0 allows none."""
        if not 0 <= max_broken <= 1:
            raise SettingError(f"max_broken must be between 0 and 1, got {max_broken}")
        self.images, self.max_broken = images, max_broken
        self.broken: dict[str, str] = {}

    @property
    def allowed(self) -> int:
        """How many may be broken before `add` raises."""
        return max(10, int(self.max_broken * self.images)) if self.max_broken else 0

    def add(self, name: str, reason: str) -> None:
        """Note a broken image, once; raises SettingError where it is one too many."""
        self.broken.setdefault(name, reason)
        if len(self.broken) > self.allowed:
            first = "; ".join(self.lines()[:3])
            raise SettingError(
                f"{len(self.broken):,} of {self.images:,} images are broken, and max_broken {self.max_broken}"
                f" allows {self.allowed:,} (`mtkernels data verify` lists all of them): {first}"
            )

    def lines(self) -> list[str]:
        """`name: reason` of each, by name."""
        return [f"{name}: {reason}" for name, reason in sorted(self.broken.items())]

    def write(self, path: Path) -> None:
        """The lines as a text file; none where nothing is broken."""
        if self.broken:
            text = "\n".join(self.lines()) + "\n"
            write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="replace"))


@cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _pillow(path: Path, data: bytes, least: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            if least:
                image.draft(None, (least, least))  # scaled decode, of JPEGs alone
            if image.mode.startswith("I"):  # 16 bits, or 32 that hold 16
                grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
                return np.array(image.convert("RGBA").convert("RGB"))  # the same, without a warning
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:  # its text holds an address
        raise DecodeError(path, "not an image that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DecodeError(path, str(error) or type(error).__name__) from error
