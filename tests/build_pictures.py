"""Small pictures for tests."""

import io

import numpy as np
from PIL import Image


def png(seed: int, size: tuple[int, int] = (28, 28)) -> bytes:
    """A PNG of random grey values, ``size`` as width and height."""
    grey = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()
