"""Is this a picture we can use? Decided from its bytes, before and after decoding."""

import io

from PIL import Image, UnidentifiedImageError

# Our own limit, which is the user's to set, is checked before decoding; Pillow's would come first and hide it.
Image.MAX_IMAGE_PIXELS = None
# What is asked for; other formats of Pillow start programs (EPS) or are nobody's pictures.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_LONGEST_RATIO = 199  # Qwen's image processor refuses 200 and more
_SMALLEST_SIDE = 4  # pixels; a 1-pixel tracking image is no picture of anything


def picture_problem(data: bytes, *, max_pixels: int) -> str | None:
    """Why the picture cannot be used, in words; None when it decodes whole.

    Its size is read from the header first, so that a decompression bomb costs no memory.
    """
    if not data:
        return "image is empty (0 bytes)"
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                return f"image has {width} x {height} pixels, more than maxImagePixels {max_pixels}"
            if min(width, height) < _SMALLEST_SIDE:
                return f"image has {width} x {height} pixels; {_SMALLEST_SIDE} a side are the least"
            if max(width, height) > _LONGEST_RATIO * min(width, height):
                return f"image has {width} x {height} pixels; one side may be {_LONGEST_RATIO} times the other at most"
            image.convert("RGB")
    except UnidentifiedImageError:
        return "image is of no known format"
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return f"image is damaged: {error}"
    return None
