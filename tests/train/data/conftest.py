"""The digits that the formats' tests write and read back."""

import pytest

from .formats import Images, digit_images


@pytest.fixture(scope="session")
def digits() -> Images:
    """200 training and 60 test images."""
    pytest.importorskip("sklearn")
    return digit_images()
