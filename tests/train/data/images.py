"""Image files to test with: scikit-learn's digits in class folders, and files broken in every way."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photo(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """Smooth colours [height, width, 3], which JPEG keeps."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """An image file's bytes."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    data = io.BytesIO()
    image.save(data, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return data.getvalue()


JPEG = encoded(photo())
BROKEN = {  # file name -> its bytes
    "cut.jpg": JPEG[: len(JPEG) // 2],
    "end_missing.jpg": JPEG[:-2],
    "zero.jpg": b"",
    "text.jpg": b"this is no image",
    "head_only.jpg": JPEG[:20],
    "cut.png": encoded(photo(), "PNG")[:-200],
}


def write_digits(root: Path, *, train: int = 4, test: int = 2, classes: int = 3, unlabeled: int = 0) -> Path:
    """`train` and `test` images of each class, as ROOT/train/digit0/00.jpg, 01.png, 02.jpg ..., of 24 x 32 pixels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = (bunch.images * 15.9).astype(np.uint8)

    def write(folder: Path, rows: np.ndarray) -> None:
        folder.mkdir(parents=True)
        for number, row in enumerate(rows):
            image = Image.fromarray(pixels[row]).resize((32, 24), Image.Resampling.BICUBIC)
            if number % 2:
                image.save(folder / f"{number:02}.png")
            else:
                image.convert("RGB").save(folder / f"{number:02}.jpg", quality=95)

    for digit in range(classes):
        rows = np.flatnonzero(bunch.target == digit)
        write(root / "train" / f"digit{digit}", rows[:train])
        write(root / "val" / f"digit{digit}", rows[train : train + test])
    if unlabeled:
        write(root / "train" / "unlabeled", np.arange(1000, 1000 + unlabeled))
    return root
